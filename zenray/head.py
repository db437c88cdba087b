"""The head node of a Ray cluster elsewhere, seen through its Jobs API, which its dashboard offers over HTTP.

Runs in: driver.

Ray's own client is not used: it waits without an end, and RAY_ADDRESS overrides the address that it is given.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from zenray.errors import ClusterError, ConfigError, suggest
from zenray.masking import MUST_BE_QUOTED, masked_url, secrets_of, split_login, without
from zenray.settings import IGNORE_FILE

OLDEST_RAY = (2, 60)
CONNECT_S, ANSWER_S, UPLOAD_S = 10.0, 60.0, 600.0
# What Ray takes with a job: the kind of each, and an example.
RAYS_OWN: Mapping[str, tuple[Any, str]] = {
    "entrypoint_num_cpus": (int | float, "1"),
    "entrypoint_num_gpus": (int | float, "1"),
    "entrypoint_memory": (int, "1000000000"),
    "entrypoint_resources": (Mapping, "{special: 1}"),
    "entrypoint_label_selector": (Mapping, "{region: eu}"),
}
_OPTIONS: Mapping[str, tuple[Any, str]] = {
    "token": (str, "${env:RAY_TOKEN}"),
    "headers": (Mapping, "{X-Name: '${env:VALUE}'}"),
    "verify": (bool | str, "/path/ca.pem"),
    "env": (list, "[NAME, ...]"),
    "runtime_env": (Mapping, "{pip: [polars]}"),
    **RAYS_OWN,
}


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")


class NoAnswerError(ClusterError):
    """Raised when the cluster cannot be reached just now."""


def is_elsewhere(orchestrator: str) -> bool:
    """Say whether an orchestrator is the Jobs API of a Ray cluster."""
    return orchestrator.startswith(("http://", "https://"))


class Head:
    """The head node of a Ray cluster, whose dashboard takes jobs over HTTP. Nothing secret is in its messages."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        _check_options(options)
        self.url = masked_url(url).rstrip("/")
        self.options = options
        self._url = url.rstrip("/")
        token = _token(options.get("token"))
        self.has_token = bool(token)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._headers |= {name: str(value) for name, value in options.get("headers", {}).items()}
        self._secrets = {token, *secrets_of(url), *secrets_of(options)}
        if MUST_BE_QUOTED & set(split_login(url)[2]):
            raise self._no_url()

    def check(self) -> str:
        """Return the cluster's version of Ray; ConfigError for a wrong token, ClusterError where no Ray answers."""
        found = self._json("GET", "/api/version").get("ray_version")
        if not isinstance(found, str):
            raise self._no_ray("its answer names no version of Ray")
        if tuple(int(part) for part in found.split(".")[:2] if part.isdigit()) < OLDEST_RAY:
            oldest = ".".join(map(str, OLDEST_RAY))
            raise ConfigError(
                f"the cluster at {self.url!r} has Ray {found}, and ZenRay needs {oldest}: use a newer one"
            )
        return found

    def upload(self, archive: Path) -> str:
        """Bring an archive to the cluster unless it has one of that content; return the URI that it has there."""
        with archive.open("rb") as file:
            name = f"_ray_pkg_{hashlib.file_digest(file, 'sha256').hexdigest()[:40]}.zip"
            if self._answer("GET", f"/api/packages/gcs/{name}", accepted=(404,)).status_code == 404:
                file.seek(0)
                self._answer("PUT", f"/api/packages/gcs/{name}", timeout_s=UPLOAD_S, data=file)
        return f"gcs://{name}"

    def start(self, request: Mapping[str, Any]) -> None:
        """Start a job."""
        self._answer("POST", "/api/jobs/", json=dict(request))

    def job(self, job_id: str) -> dict[str, Any]:
        """Return what the cluster knows of a job; ClusterError where it has no such job."""
        return self._json("GET", f"/api/jobs/{job_id}")

    def output(self, job_id: str) -> str:
        """Return all that a job has printed."""
        return str(self._json("GET", f"/api/jobs/{job_id}/logs").get("logs") or "")

    def stop(self, job_id: str) -> bool:
        """Have a job ended, and return before it has; False where it has not begun yet, or has ended."""
        return self._json("POST", f"/api/jobs/{job_id}/stop").get("stopped") is True

    def _json(self, method: str, path: str) -> dict[str, Any]:
        answer = self._answer(method, path)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._no_ray("its answer is no JSON")
        return found

    def _answer(
        self, method: str, path: str, *, timeout_s: float = ANSWER_S, accepted: tuple[int, ...] = (), **given: Any
    ) -> Any:
        import requests

        try:
            answer = requests.request(
                method,
                self._url + path,
                auth=self._authorized,
                verify=self.options.get("verify", True),
                timeout=(CONNECT_S, timeout_s),
                allow_redirects=False,  # the token is for this address alone
                **given,
            )
        except requests.exceptions.InvalidURL:
            raise self._no_url() from None  # its words may have half of a password
        except requests.exceptions.SSLError as exc:
            raise ClusterError(
                f"{self.url!r} has no certificate that is trusted here: {self._reason(exc)}; correct the address, or "
                "name the authority's file as the orchestrator's option 'verify'"
            ) from exc
        except OSError as exc:
            raise NoAnswerError(
                f"nobody answers at {self.url!r}: {self._reason(exc)}; is the cluster up, and this the address of its "
                "dashboard (port 8265, unless chosen otherwise)?"
            ) from exc
        if answer.status_code != 200 and answer.status_code not in accepted:
            raise self._refusal(answer)
        return answer

    def _authorized(self, request: Any) -> Any:
        request.headers.update(self._headers)  # by this way no ~/.netrc comes in between
        return request

    def _refusal(self, answer: Any) -> ClusterError | ConfigError:
        code, text = answer.status_code, (self._without_secrets(answer.text).strip().splitlines() or [""])[-1][-500:]
        is_rays = "authentication token" in text
        if code == 401 and is_rays:
            return ConfigError(
                f"the cluster at {self.url!r} wants a token, and there is none: give the orchestrator "
                "'token: ${env:RAY_TOKEN}' in the stack's file, or set RAY_AUTH_TOKEN"
            )
        if code == 403 and is_rays:
            return ConfigError(
                f"the cluster at {self.url!r} does not take the token: it has another one; correct what the "
                "orchestrator's 'token', RAY_AUTH_TOKEN or ~/.ray/auth_token says"
            )
        if code == 404 and "does not exist" in text:
            return ClusterError(f"the cluster at {self.url!r} does not know that job: it was started anew; run again")
        if code >= 500 and answer.request.method == "GET":  # such as while an agent of the cluster starts
            return NoAnswerError(f"the cluster at {self.url!r} gives no answer ({code}: {text}); is it well?")
        if code in (401, 403, 404) or 300 <= code < 400:
            return self._no_ray(f"it answers with {code}")
        return ClusterError(f"the cluster at {self.url!r} refuses ({code}): {text}; see the logs of its dashboard")

    def _reason(self, exc: BaseException) -> str:
        """Return what was at the root of an error of `requests`, which wraps that of urllib3, which the system's."""
        while exc.__context__ is not None:
            exc = exc.__context__
        return self._without_secrets(getattr(exc, "strerror", None) or exc) or type(exc).__name__

    def _without_secrets(self, text: object) -> str:
        return without(str(text), self._secrets)

    def _no_url(self) -> ConfigError:
        return ConfigError(
            f"the orchestrator's URL {self.url!r} cannot be used: write it as 'http://HOST:PORT', and what stands for "
            "'/', '?', '#', '@' or a space in a password, or for '@' in a path, as %2F, %3F, %23, %40 or %20"
        )

    def _no_ray(self, what: str) -> ClusterError:
        return ClusterError(
            f"{self.url!r} is not the dashboard of a Ray cluster: {what}; correct the orchestrator's 'url' (Ray's "
            "dashboard has port 8265, unless chosen otherwise)"
        )


def _check_options(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name not in _OPTIONS:
            raise ConfigError(f"'orchestrator' has no option {name!r} for a Ray cluster; {suggest(name, _OPTIONS)}")
        kind, example = _OPTIONS[name]
        if not isinstance(value, kind):
            raise ConfigError(f"'orchestrator.{name}' must be as in {{{name}: {example}}}")
    for name, value in options.get("headers", {}).items():
        is_value = isinstance(value, str | int) and _HEADER_VALUE.fullmatch(str(value))
        if not is_value or not _HEADER_NAME.fullmatch(name):
            raise ConfigError(
                f"'orchestrator.headers.{name}' cannot be sent: a header has a name without spaces, and one line of "
                "text in Latin letters; correct what stands there, or what its reference leads to"
            )
    environment = options.get("runtime_env", {})
    modules = environment.get("py_modules") or []
    if not isinstance(modules, list) or any("://" not in str(module) for module in modules):
        raise ConfigError(
            "'orchestrator.runtime_env.py_modules' must be URLs such as 's3://bucket/package.zip': a folder goes along "
            "as a part of the repository"
        )
    for name in ("working_dir", "excludes"):
        if name in environment:
            raise ConfigError(
                f"'orchestrator.runtime_env' cannot have {name!r}: the repository is what goes to the cluster; leave "
                f"out what is not needed there in {IGNORE_FILE}"
            )


def _token(token: str | None) -> str:
    """Return the stack's token, else the one that Ray's own tools would find, or nothing."""
    token = token or os.environ.get("RAY_AUTH_TOKEN")
    if not token:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        with suppress(OSError, UnicodeDecodeError):
            token = path.read_text(encoding="utf-8")
    token = (token or "").strip()
    if not _HEADER_VALUE.fullmatch(token):
        raise ConfigError(
            "the token for the cluster cannot be sent: it is more than one line, or has other than Latin letters; "
            "correct what the orchestrator's 'token', RAY_AUTH_TOKEN or ~/.ray/auth_token says"
        )
    return token
