"""What a stack may say about its artifact store, and what it is told about the rest."""

import subprocess
import sys

import pytest

from tests.servers.object_stores import KEY, SECRET, ObjectStore
from zenray.errors import ConfigError
from zenray.store import address_of, open_store


def message(uri: str, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        open_store(uri, options)
    return str(caught.value)


def test_an_unknown_protocol_is_answered_with_near_ones() -> None:
    assert "'s3'" in message("s3x://bucket/x")


def test_a_protocol_whose_package_is_missing_names_the_command() -> None:
    code = "import sys; sys.modules['adlfs'] = None; from zenray.store import open_store; open_store('az://box/x')"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    assert "zenray integration install azure" in shown


def test_an_unknown_option_is_answered_with_near_ones() -> None:
    assert "'endpoint_url'" in message("s3://bucket/x", endpoint="http://127.0.0.1:9")
    assert "'region'" in message("s3://bucket/x", regin="eu")
    assert "'project'" in message("gs://bucket/x", projet="p")


def test_an_option_of_another_type_is_refused() -> None:
    assert "'key' must be text" in message("s3://bucket/x", key=123)


def test_a_store_without_a_bucket_is_refused() -> None:
    assert "names no bucket" in message("s3://")


def test_an_address_as_it_is_recorded_is_no_url_of_a_stack() -> None:
    assert "given as the option endpoint_url" in message("s3://bucket@minio.internal:9000/prefix")


def test_credentials_inside_the_address_are_used_and_never_shown(s3: ObjectStore) -> None:
    options = {"endpoint_url": s3.options["endpoint_url"]}
    store = open_store(s3.uri.replace("s3://", f"s3://{KEY}:{SECRET}@"), options)
    assert store.uri == address_of(s3.uri, s3.options)
    assert SECRET not in repr(store)
    store.put_named("probe", b"x")
    assert store.get_named("probe") == b"x"


def test_a_users_own_client_options_win(s3: ObjectStore) -> None:
    options = {
        "endpoint_url": s3.options["endpoint_url"],
        "client_kwargs": {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"},
        "config_kwargs": {"read_timeout": 7},
    }
    store = open_store(s3.uri, options)
    assert store.create_named("probe", b"x")
