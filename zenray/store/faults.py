"""What went wrong between us and an object store: told apart, tried again where it passes, said in our words.

Runs in: anywhere.

Every client library has its own exceptions, and none is imported here: a fault is told by the HTTP status and error
code it carries, by ``errno``, and by the names of its classes.
"""

import errno
import socket
from collections.abc import Callable, Collection, Iterator
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

from zenray.errors import StoreError
from zenray.masking import without
from zenray.waiting import Call, Server

T = TypeVar("T")


class Fault(StrEnum):
    """What kind of fault it is; worth another try is a passing one, and no host where there was one before."""

    PASSING = "passing"
    MISSING = "missing"
    EXISTS = "exists"
    DENIED = "denied"
    NO_BUCKET = "no bucket"
    NO_HOST = "no host"
    OTHER = "other"


_CODES = {
    "NoSuchBucket": Fault.NO_BUCKET,
    "InvalidBucketName": Fault.NO_BUCKET,
    "ContainerNotFound": Fault.NO_BUCKET,
    "PreconditionFailed": Fault.EXISTS,  # s3fs makes FileExistsError of it only for some servers' wording
    "ConditionalRequestConflict": Fault.PASSING,
    "InvalidAccessKeyId": Fault.DENIED,
    "SignatureDoesNotMatch": Fault.DENIED,
    "AccessDenied": Fault.DENIED,
    "ExpiredToken": Fault.DENIED,
    "InvalidToken": Fault.DENIED,
    "RequestTimeTooSkewed": Fault.DENIED,
    "BadDigest": Fault.PASSING,  # changed on the way
    "XAmzContentSHA256Mismatch": Fault.PASSING,
    "IncompleteBody": Fault.PASSING,
    "RequestTimeout": Fault.PASSING,
    "SlowDown": Fault.PASSING,
    "Throttling": Fault.PASSING,
    "ThrottlingException": Fault.PASSING,
    "RequestLimitExceeded": Fault.PASSING,
    "InternalError": Fault.PASSING,
    "ServiceUnavailable": Fault.PASSING,
    "OperationAborted": Fault.PASSING,
}
_CLASSES = {
    "botocore.exceptions.NoCredentialsError": Fault.DENIED,
    "botocore.exceptions.PartialCredentialsError": Fault.DENIED,
    "botocore.exceptions.TokenRetrievalError": Fault.DENIED,
    "google.auth.exceptions.TransportError": Fault.PASSING,
    "google.auth.exceptions.GoogleAuthError": Fault.DENIED,
    "azure.core.exceptions.ClientAuthenticationError": Fault.DENIED,
    "azure.core.exceptions.ServiceRequestError": Fault.PASSING,
    "azure.core.exceptions.ServiceResponseError": Fault.PASSING,
    "botocore.exceptions.HTTPClientError": Fault.PASSING,
    "botocore.exceptions.IncompleteReadError": Fault.PASSING,
    "botocore.parsers.ResponseParserError": Fault.PASSING,
    "aiohttp.client_exceptions.ClientError": Fault.PASSING,
    "requests.exceptions.ConnectionError": Fault.PASSING,
    "requests.exceptions.Timeout": Fault.PASSING,
    "requests.exceptions.ChunkedEncodingError": Fault.PASSING,
    "gcsfs.retry.ChecksumError": Fault.PASSING,
}
_ERRNOS = {
    errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH,
    errno.ENETUNREACH, errno.ENETDOWN, errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO),
}  # fmt: skip
_NO_HOST = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}


def classify(exc: BaseException) -> Fault:
    """Tell what kind of fault an exception of any client library is."""
    chain = list(_chain(exc))
    if any(isinstance(e, socket.gaierror) and e.errno in _NO_HOST for e in chain):
        return Fault.NO_HOST
    found = [kind for e in chain if (kind := _kind(e)) is not None]
    # What the store itself said counts for more than what a library made of it.
    for kind in (Fault.NO_BUCKET, Fault.DENIED, Fault.EXISTS, Fault.PASSING, Fault.MISSING):
        if kind in found:
            return kind
    return Fault.OTHER


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    seen = 0
    while exc is not None and seen < 10:
        yield exc
        exc, seen = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__), seen + 1


def _kind(exc: BaseException) -> Fault | None:
    code, status = _code(exc), _status(exc)
    if code in _CODES:
        return _CODES[code]
    if status in _PASSING_STATUS:
        return Fault.PASSING
    if status in (401, 403):
        return Fault.DENIED
    if status == 412:
        return Fault.EXISTS
    for cls in type(exc).__mro__:
        kind = _CLASSES.get(f"{cls.__module__}.{cls.__qualname__}")
        if kind is not None:
            return kind
    return _kind_of_os_error(exc) if isinstance(exc, OSError) else None


def _kind_of_os_error(exc: OSError) -> Fault | None:
    if isinstance(exc, FileNotFoundError):
        return Fault.MISSING
    if isinstance(exc, FileExistsError):
        return Fault.EXISTS
    if isinstance(exc, PermissionError) or str(exc).startswith("Forbidden"):  # gcsfs has no class for a 403
        return Fault.DENIED
    if isinstance(exc, ConnectionError | TimeoutError | socket.gaierror) or exc.errno in _ERRNOS:
        return Fault.PASSING
    return None


def _code(exc: BaseException) -> str:
    response = getattr(exc, "response", None)
    if isinstance(response, dict):  # botocore
        return str(response.get("Error", {}).get("Code", ""))
    return str(getattr(exc, "error_code", "") or "")  # azure


def _status(exc: BaseException) -> int:
    response = getattr(exc, "response", None)
    if isinstance(response, dict):
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
    for name in ("code", "status", "status_code"):  # gcsfs, aiohttp, azure
        found = str(getattr(exc, name, "") or "")
        if found.isdigit():
            return int(found)
    return 0


_ADVICE = {
    Fault.DENIED: (
        "the store refuses these credentials, or they lack a permission: check key and secret (or the environment's "
        "identity), which must be allowed to list, read, write and delete below this address"
    ),
    Fault.NO_BUCKET: "there is no such bucket or container: create it, or correct the stack's artifact_store",
    Fault.NO_HOST: "there is no such host{tried}: check the stack's endpoint_url, and this machine's network",
    Fault.PASSING: "it did not answer properly{tried}: check that it is up and reachable, and run again",
}
_ANSWERS = (Fault.MISSING, Fault.EXISTS, Fault.DENIED, Fault.NO_BUCKET)


class Patience:
    """Calls a store's client, again while a fault may pass; what remains is a StoreError that names the store."""

    def __init__(self, server: Server, secrets: Collection[str] = ()) -> None:
        self._server = server
        self._secrets = secrets

    def __repr__(self) -> str:
        return f"<patience with {self._server.name}>"

    def call(self, verb: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return what the function returns.

        A missing name stays a FileNotFoundError and an existing one a FileExistsError: what they mean, the caller
        knows.
        """
        with self._server.call() as call:
            try:
                return self._tried(call, function, *args, **kwargs)
            except Exception as exc:  # noqa: BLE001 - each client library has exceptions of its own
                return self._raise(exc, verb, call.tried)

    def tried(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return what the function returns, or raise what it raised when it is given up, as it is."""
        with self._server.call() as call:
            return self._tried(call, function, *args, **kwargs)

    def _tried(self, call: Call, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        while True:
            try:
                result = function(*args, **kwargs)
            except Exception as exc:
                kind = classify(exc)
                if kind in _ANSWERS:
                    call.answer()
                may_pass = kind is Fault.PASSING or (kind is Fault.NO_HOST and self._server.is_reached)
                if not may_pass or not call.pause(self._text(exc)):
                    raise
            else:
                call.answer()
                return result

    def _raise(self, exc: Exception, verb: str, tried: str) -> NoReturn:
        kind = classify(exc)
        if isinstance(exc, StoreError):
            raise exc
        if kind is Fault.MISSING:
            raise FileNotFoundError(without(str(exc), self._secrets)) from exc
        if kind is Fault.EXISTS:
            raise FileExistsError(without(str(exc), self._secrets)) from exc
        detail = self._text(exc).partition("\n")[0]  # Azure adds the whole answer
        raise StoreError(
            f"cannot {verb} {self._server.name}: "
            + (f"{_ADVICE[kind].format(tried=tried)} ({detail})" if kind in _ADVICE else f"{detail}")
        ) from exc

    def hurry(self) -> None:
        """Give up at the next failure."""
        self._server.waiter.hurry()

    def _text(self, exc: Exception) -> str:
        return without(f"{type(exc).__name__}: {exc}", self._secrets)
