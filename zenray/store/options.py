"""From a store's URL and a stack's options to an fsspec file system: near names, plain S3 options, sane timeouts.

Runs in: anywhere.
"""

import inspect
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec

from zenray.errors import ConfigError, StoreError, suggest
from zenray.masking import MUST_BE_QUOTED, secrets_of, split_login, without

CONNECT_S, READ_S = 5, 30
_S3, _GCS, _AZURE = ("s3", "s3a"), ("gs", "gcs"), ("az", "abfs", "abfss")
OBJECT_STORES = (*_S3, *_GCS, *_AZURE)  # without folders; a put is seen whole under its name, or not at all
_INTEGRATION = dict.fromkeys(_S3, "s3") | dict.fromkeys(_GCS, "gcs") | dict.fromkeys((*_AZURE, "adl"), "azure")
_GENERIC = ("use_listings_cache", "listings_expiry_time", "max_paths", "skip_instance_cache", "asynchronous", "profile")


class Target:
    """A file system, the root of the store on it, and its address without credentials."""

    def __init__(self, uri: str, options: Mapping[str, Any]) -> None:
        self.protocol = urlsplit(uri).scheme
        self.uri, given = split_credentials(uri.rstrip("/"))
        if given.get("secret") == "":
            raise ConfigError(
                f"artifact store {self.uri!r}: what stands before the '@' has no secret; a server is given as the "
                f"option endpoint_url, credentials as '{self.protocol}://KEY:SECRET@BUCKET/PREFIX'"
            )
        if self.uri != uri and MUST_BE_QUOTED & set(split_login(uri)[2]):
            raise ConfigError(
                f"artifact store {self.uri!r}: what stands before the last '@' of its URL is not clear: write '/', '?' "
                "and '#' of a password as %2F, %3F and %23, or give it as an option; so too a port, where the path has "
                "an '@'"
            )
        self.options = {**given, **options}
        self.secrets = secrets_of(uri) | secrets_of(self.options)
        self.fs, self.root = self._open(uri if self.protocol not in OBJECT_STORES else self.uri)

    @property
    def is_s3(self) -> bool:
        """Say whether it is S3, whose parts we upload ourselves."""
        return self.protocol in _S3

    @property
    def is_azure(self) -> bool:
        """Say whether it is Azure's, whose blocks we upload ourselves."""
        return self.protocol in _AZURE

    @property
    def _is_emulated(self) -> bool:
        """Say whether it is Google's storage in name only."""
        is_elsewhere = "endpoint_url" in self.options or bool(os.environ.get("STORAGE_EMULATOR_HOST"))
        return self.protocol in _GCS and is_elsewhere

    def _open(self, uri: str) -> tuple[Any, str]:
        if self.protocol in OBJECT_STORES and not urlsplit(self.uri).netloc:
            raise ConfigError(f"artifact store {uri!r} names no bucket; write it as '{self.protocol}://BUCKET/PREFIX'")
        cls = self._file_system_class()
        options = self._translated(cls)
        try:
            if self._is_emulated:
                fs, root = cls(**options), cls._strip_protocol(uri)  # type: ignore[attr-defined]
            else:
                fs, root = fsspec.core.url_to_fs(uri, **options)
        except ImportError as exc:
            raise self._missing(exc) from exc
        except (TypeError, ValueError, KeyError) as exc:
            raise ConfigError(f"artifact store {self.uri!r}: its options are not accepted: {self._text(exc)}") from exc
        except OSError as exc:  # some connect at once
            raise StoreError(
                f"cannot open the artifact store {self.uri!r}: {type(exc).__name__}: {self._text(exc)}"
            ) from exc
        if self.is_s3:
            fs.retries = 1  # ours are the retries: two loops inside each other would multiply
        elif self.is_azure:
            _without_retries(fs.service_client)
        if self.protocol in OBJECT_STORES:
            fs.loop.set_exception_handler(_report)
        return fs, root

    def _text(self, exc: Exception) -> str:
        return without(str(exc), self.secrets)

    def _file_system_class(self) -> type:
        if self._is_emulated:
            # gcsfs registers a class that asks by gRPC what kind of bucket it has: every call to an emulator then hangs
            # for a minute. The variable spares its import, but counts only where gcsfs was not imported before.
            os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
            from gcsfs.core import GCSFileSystem

            return GCSFileSystem  # type: ignore[no-any-return]
        try:
            found: type = fsspec.get_filesystem_class(self.protocol)
        except ValueError as exc:
            known = suggest(self.protocol, fsspec.available_protocols())
            raise ConfigError(
                f"artifact store {self.uri!r}: nothing here reads the protocol {self.protocol!r}; {known}"
            ) from exc
        except ImportError as exc:
            raise self._missing(exc) from exc
        return found

    def _missing(self, exc: ImportError) -> ConfigError:
        name = _INTEGRATION.get(self.protocol)
        advice = f"run `zenray integration install {name}`" if name else "install the package it names"
        return ConfigError(f"artifact store {self.uri!r}: a package is missing ({exc}); {advice}")

    def _translated(self, cls: type) -> dict[str, Any]:
        options = dict(self.options)
        if self.protocol not in OBJECT_STORES:
            return options
        known = {n for c in cls.__mro__ if "__init__" in vars(c) for n in _parameters(c)}
        for name, value in options.items():
            if name not in {*known, *_GENERIC, "region"}:
                near = suggest(name, known | ({"region"} if self.is_s3 else set()))
                raise ConfigError(f"artifact store {self.uri!r} has no option {name!r}; {near}")
            if name in ("endpoint_url", "key", "secret", "region") and not isinstance(value, str):
                raise ConfigError(
                    f"artifact store {self.uri!r}: option {name!r} must be text, got {type(value).__name__}; "
                    "put it in quotes"
                )
            if name == "endpoint_url" and not value.startswith(("http://", "https://")):
                raise ConfigError(f"artifact store {self.uri!r}: endpoint_url must begin with http:// or https://")
        options.setdefault("use_listings_cache", False)
        if self.is_s3:
            _complete_s3(options)
        elif self.protocol in _GCS and "requests_timeout" not in options:
            from aiohttp import ClientTimeout  # gcsfs's own client; it is imported already

            options["requests_timeout"] = ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
        return options


def _without_retries(client: Any) -> None:
    """Turn off the retries of Azure's client, which sleep 15 s and more each; adlfs has no option for them."""
    for policy in getattr(getattr(client, "_pipeline", None), "_impl_policies", ()):
        if hasattr(policy, "total_retries"):
            policy.total_retries = 0


def _parameters(cls: type) -> list[str]:
    found = inspect.signature(vars(cls)["__init__"]).parameters.values()
    return [p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"]


def _report(loop: Any, context: dict[str, Any]) -> None:
    """Say nothing of a connection that broke before a request was written: the request itself says so.

    aiohttp 3.14's ``ClientRequest.write_bytes`` lets that out of its task while it waits to be told "100 Continue".
    """
    if not isinstance(context.get("exception"), ConnectionError):
        loop.default_exception_handler(context)


def _complete_s3(options: dict[str, Any]) -> None:
    region = options.pop("region", None)
    client = dict(options.get("client_kwargs") or {})
    if region:
        client.setdefault("region_name", region)
    defaults = {
        "connect_timeout": CONNECT_S,
        "read_timeout": READ_S,
        "retries": {"total_max_attempts": 1},
        "max_pool_connections": 32,
    }
    options["client_kwargs"] = client
    options["config_kwargs"] = defaults | dict(options.get("config_kwargs") or {})


def split_credentials(uri: str) -> tuple[str, dict[str, str]]:
    """Return a URL without the credentials in it, and these as options of an S3 store."""
    scheme = uri.partition("://")[0]
    bare, key, secret = split_login(uri)
    if bare == uri or scheme in _AZURE:  # there the '@' stands between container and account
        return uri, {}
    return bare, {"key": unquote(key), "secret": unquote(secret)} if scheme in _S3 else {}
