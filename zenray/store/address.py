"""What tells a remote store from others: the address that ledgers know it by, which names its server.

Runs in: anywhere.

The same bucket and prefix on two servers are two stores. So where a server was chosen, by an option, a variable or a
client's own configuration, its host stands in the address, as in ``s3://bucket@minio.internal:9000/prefix``. Each
provider's own hosts lead to the same buckets, and are left out; Azure's name the account, and are kept.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from fsspec.config import conf

from zenray.masking import split_login

_SAME = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
_OWN_HOSTS = {"s3": ".amazonaws.com", "gs": ".googleapis.com"}
_AZURE_HOST = "{}.dfs.core.windows.net"


def remote_address(uri: str, options: Mapping[str, Any]) -> str:
    """Return the address of the store that a URL and a stack's options lead to from this process; asks no server."""
    scheme = uri.partition("://")[0]
    rest = (uri if _SAME.get(scheme, scheme) == "az" else split_login(uri)[0]).partition("://")[2]
    place, _, path = rest.partition("/")
    found = _configured(scheme) | {k: v for k, v in options.items() if v}
    scheme = _SAME.get(scheme, scheme)
    if scheme == "az":
        bucket, _, host = place.partition("@")
        server = _azure_server(host, found)
    else:
        bucket, server = place or str(found.get("host", "")), _server(scheme, found)
    return f"{scheme}://{bucket}{'@' * bool(server)}{server}/{path}".rstrip("/")


def _configured(scheme: str) -> dict[str, Any]:
    """Return what fsspec's own configuration, files and variables, adds to the options."""
    same = _SAME.get(scheme, scheme)
    found: dict[str, Any] = {}
    for name in (same, *(n for n, s in _SAME.items() if s == same)):
        found |= conf.get(name, {})
    return found


def _server(scheme: str, options: Mapping[str, Any]) -> str:
    client = options.get("client_kwargs")
    given = options.get("endpoint_url") or (client.get("endpoint_url") if isinstance(client, Mapping) else None)
    given = given or options.get("endpoint")
    if not given and scheme == "s3":
        given = next(filter(None, _endpoints_of_aws(options.get("profile"))), "")
    elif not given and scheme == "gs":
        given = os.environ.get("STORAGE_EMULATOR_HOST", "").removeprefix("default")
    server = _host(str(given or ""))
    return "" if server.endswith(_OWN_HOSTS.get(scheme, "/")) else server


def _endpoints_of_aws(profile: Any) -> Iterator[Any]:
    """Give the endpoints that the AWS client finds for itself, in its own order.

    https://docs.aws.amazon.com/sdkref/latest/guide/feature-ss-endpoints.html
    """
    from botocore.exceptions import BotoCoreError  # only S3 without an endpoint of its own needs it
    from botocore.session import Session

    try:
        session = Session(profile=profile)
        if session.get_config_variable("ignore_configured_endpoint_urls"):
            return
        settings = session.get_scoped_config()
    except BotoCoreError:  # what is wrong with a profile is said when the store is opened
        return
    yield os.environ.get("AWS_ENDPOINT_URL_S3")
    yield os.environ.get("AWS_ENDPOINT_URL")
    services = session.full_config.get("services", {}).get(settings.get("services"), {})
    yield services.get("s3", {}).get("endpoint_url")
    yield settings.get("endpoint_url")


def _azure_server(host: str, options: Mapping[str, Any]) -> str:
    """Return the host of an account, however the account was named."""
    connection = options.get("connection_string") or os.environ.get("AZURE_STORAGE_CONNECTION_STRING") or ""
    parts = dict(p.partition("=")[::2] for p in str(connection).split(";"))
    if not parts.get("BlobEndpoint"):
        host = str(options.get("account_host") or host)
    account = options.get("account_name") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    account = parts.get("AccountName") or ("" if host else account)
    given = parts.get("BlobEndpoint") or (_AZURE_HOST.format(account) if account else host)
    return _host(given).replace(".blob.core.", ".dfs.core.")


def _host(endpoint: str) -> str:
    """Return an endpoint's host, its port where it is not the usual one, and its path; never a password."""
    parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    usual = {"http": ":80", "https": ":443"}.get(parts.scheme, ":443")
    host = parts.netloc.rpartition("@")[2].lower().removesuffix(usual)
    return host + quote(parts.path.rstrip("/"), safe="")
