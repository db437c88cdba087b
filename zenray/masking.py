"""What must not be shown: secrets in URLs, in options, and in what other libraries say of them.

What is not known to be a secret is found by its form: ``masked_url`` and ``masked_text``. What is known, from
``secrets_of``, is taken out of any text by ``without``.

Runs in: anywhere.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from zenray.model import Json

MASK = "***"
_OPTION = re.compile(
    r"secret|passw|passphrase|pwd|token|credential|(api|access|account|private)_?key|connection_string|^key$|sas|^auth",
    re.I,
)
# A URL's parameters have shorter names, and nobody misses one that was taken for a secret.
_WORDS = "(?:pass|pwd|secret|token|credential|key|sig)"
_PARAMETER, _PARAMETER_IN_TEXT = (
    re.compile(rf"([?&;#][^=&;#{end}]*{_WORDS}[^=&;#{end}]*=)([^&{end}]+)", re.I) for end in ("", r"\s")
)
_CONNECTION = re.compile(rf"(?:^|;)[^=;]*{_WORDS}[^=;]*=([^;]+)", re.I)
# A password may hold '/' and '@': the last '@' ends it. A user may be a reference, with a ':' of its own.
_PASSWORD = re.compile(r"(://(?>(?:\$\{[^}]*\}|[^/:])*)):(.+)@", re.S)
_USER = re.compile(r"(://[^/?#]*)()@")
MUST_BE_QUOTED = frozenset("/?#")  # in a password: a URL's host would end there for whoever reads it by the rules
_TOKEN = re.compile(r"(https?://)((?:\$\{[^}]*\}|[^/:@])+)@")
_LOGIN_IN_TEXT = re.compile(r"://\S+@")
_SHORT = 4  # below, a secret is taken out only as a word of its own: others would lose their letters, and tell them

Path = tuple[str, ...]


def replaced(value: Json, instead: Callable[[Path, Json], Json], path: Path = ()) -> Json:
    """Return a URL, an option or a mapping of them with ``instead(path, secret)`` for each secret, unless it is empty.

    ``path`` are the names of the options that lead there. Secret are options named like one, headers, passwords of
    URLs, what stands for a user in http URLs, and their parameters named like a secret.
    """
    is_secret = path and (_OPTION.search(path[-1]) or path[-2:-1] == ("headers",))
    if is_secret and value not in (None, "", {}, []):
        return instead(path, value)
    if isinstance(value, Mapping):
        return {k: replaced(v, instead, (*path, str(k))) for k, v in value.items()}
    if isinstance(value, list):
        return [replaced(v, instead, path) for v in value]
    if not isinstance(value, str):
        return value
    value = _PASSWORD.sub(lambda m: f"{m[1]}:{instead(path, m[2])}@", value)
    value = _TOKEN.sub(lambda m: f"{m[1]}{instead(path, m[2])}@", value)
    return _PARAMETER.sub(lambda m: f"{m[1]}{instead(path, m[2])}", value)


def masked_url(url: str) -> str:
    """Return a URL for people; the name of a user stays."""
    return str(replaced(url, lambda path, secret: MASK))


def masked_text(text: str) -> str:
    """Return a text without the logins, and the secret parameters, of URLs in it."""
    return _PARAMETER_IN_TEXT.sub(rf"\1{MASK}", _LOGIN_IN_TEXT.sub(f"://{MASK}@", text))


def split_login(url: str) -> tuple[str, str, str]:
    """Return a URL without its login, and user and password as they stand there; empty is what is missing.

    The last '@' ends a password, whatever it holds, as in ``masked_url``. See ``MUST_BE_QUOTED``.
    """
    found = _PASSWORD.search(url) or _USER.search(url)
    if found is None:
        return url, "", ""
    user = found[1].removeprefix("://").removesuffix(":")
    return f"{url[: found.start()]}://{url[found.end() :]}", user, found[2]


def secrets_of(value: Json) -> frozenset[str]:
    """Return the secrets in a URL or in options, as they are written there."""
    found: set[str] = set()

    def note(path: Path, secret: Json) -> str:
        found.update(_texts(secret))
        return MASK

    replaced(value, note)
    return frozenset(found)


def without(text: str, secrets: Collection[str]) -> str:
    """Return a text without these secrets, be they written as they are, quoted as in a URL, or unquoted."""
    forms = {form for secret in secrets for form in _forms(secret) if form.strip()}
    if not forms:
        return text
    ordered = sorted(forms, key=len, reverse=True)  # one may begin with another
    found = (re.escape(f) if len(f) >= _SHORT else rf"(?<!\w){re.escape(f)}(?!\w)" for f in ordered)
    return re.sub("|".join(found), MASK, text)


def _forms(secret: str) -> Iterator[str]:
    for form in {secret, unquote(secret), unquote_plus(secret)}:
        yield from (form, quote(form), quote(form, safe=""), quote_plus(form), repr(form)[1:-1])


def _texts(value: Json) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, str | int) and not isinstance(value, bool):
        yield str(value)
        yield from _CONNECTION.findall(str(value))  # the keys in a connection string, which may be shown by themselves
