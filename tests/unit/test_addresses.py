"""By what a store is known: one name for one place, and two for two."""

import pytest

from zenray.errors import ConfigError
from zenray.store import address_of, open_store


@pytest.fixture(autouse=True)
def unconfigured(tmp_path, monkeypatch):
    """Keep what this machine's user has set for object stores out."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))


AZURE = "az://box@acme.dfs.core.windows.net/x"


@pytest.mark.parametrize(
    ("uri", "options", "address"),
    [
        ("s3://box/x", {}, "s3://box/x"),
        ("s3://box/x/", {"region": "eu-1", "endpoint_url": ""}, "s3://box/x"),
        ("s3a://key:secret@box/x", {}, "s3://box/x"),
        ("s3://box/x", {"endpoint_url": "https://s3.eu-central-1.amazonaws.com"}, "s3://box/x"),
        ("s3://box/x", {"endpoint_url": "http://minio.office:9000/"}, "s3://box@minio.office:9000/x"),
        ("s3://box/x", {"endpoint_url": "https://u:hid@MinIO.office:443"}, "s3://box@minio.office/x"),
        ("s3://box/x", {"endpoint_url": "http://[::1]:9000"}, "s3://box@[::1]:9000/x"),
        ("s3://box/x", {"client_kwargs": {"endpoint_url": "http://a:80"}}, "s3://box@a/x"),
        ("s3://box/x", {"endpoint_url": "https://a/storage/s3"}, "s3://box@a%2Fstorage%2Fs3/x"),
        ("s3://box/x", {"endpoint_url": "https://amazonaws.com.example"}, "s3://box@amazonaws.com.example/x"),
        ("s3://box", {"endpoint_url": "http://a:1"}, "s3://box@a:1"),
        ("gcs://box/x", {"endpoint_url": "https://storage.googleapis.com"}, "gs://box/x"),
        ("gs://box/x", {"endpoint_url": "http://127.0.0.1:4443"}, "gs://box@127.0.0.1:4443/x"),
        ("abfs://box@acme.blob.core.windows.net/x", {}, AZURE),
        ("az://box/x", {"account_name": "acme"}, AZURE),
        ("abfss://box/x", {"connection_string": "AccountName=acme;AccountKey=aGlk=="}, AZURE),
        ("az://box/x", {"connection_string": "BlobEndpoint=http://a:1/dev;AccountName=dev"}, "az://box@a:1%2Fdev/x"),
        ("az://box/x", {"account_name": "acme", "account_host": "acme.example"}, "az://box@acme.example/x"),
        ("sftp://me:hid@host:22/x", {}, "sftp://host:22/x"),
        ("sftp://me@host:22/x", {}, "sftp://host:22/x"),
        ("s3://KEY:h/id@box/x", {}, "s3://box/x"),
        ("s3://KEY:h#i?d@box/x", {}, "s3://box/x"),
        ("ftp://me:h/i@d@host/x", {}, "ftp://host/x"),
        ("s3://box/a@b", {}, "s3://box/a@b"),
        ("memory://x/y", {}, "memory://x/y"),
    ],
)
def test_an_address_names_the_server_unless_it_is_the_providers_own(uri, options, address):
    assert address_of(uri, options) == address


def test_a_server_that_only_the_environment_names_counts(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all:1")
    assert address_of("s3://box/x") == "s3://box@all:1/x"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://only:1")
    assert address_of("s3://box/x") == "s3://box@only:1/x"
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert address_of("s3://box/x") == "s3://box/x"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "localhost:4443")
    assert address_of("gs://box/x") == "gs://box@localhost:4443/x"


def test_a_server_that_only_a_profile_of_the_client_names_counts(tmp_path):
    (tmp_path / "aws").write_text(
        "[profile office]\nendpoint_url = http://office:1\n"
        "[profile lab]\nservices = lab\n[services lab]\ns3 =\n  endpoint_url = http://lab:1\n"
    )
    assert address_of("s3://box/x", {"profile": "office"}) == "s3://box@office:1/x"
    assert address_of("s3://box/x", {"profile": "lab"}) == "s3://box@lab:1/x"
    assert address_of("s3://box/x", {"profile": "unknown"}) == address_of("s3://box/x") == "s3://box/x"


def test_a_folder_is_one_store_by_whatever_path_it_is_reached(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    monkeypatch.chdir(tmp_path / "disk")
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = ["store", f"{tmp_path}/link/store", f"file://{tmp_path}/disk/store", "~/link/../link/store/"]
    assert {address_of(p) for p in paths} == {f"{tmp_path}/disk/store"}
    assert {open_store(p).uri for p in paths} == {f"{tmp_path}/disk/store"}


def test_a_remote_store_has_the_address_of_its_url_and_options():
    options = {"endpoint_url": "http://127.0.0.1:9", "key": "k", "secret": "s"}
    assert open_store("s3://box/x", options).uri == address_of("s3://box/x", options) == "s3://box@127.0.0.1:9/x"


@pytest.mark.parametrize("uri", ["s3://KEY:hid/RET@box/x", "s3://KEY:hid?RET@box/x", "ftp://me:hid#RET@host/x"])
def test_a_secret_that_has_to_be_quoted_is_refused_and_not_shown(uri):
    with pytest.raises(ConfigError, match=r"write '/', '[?]' and '#' of a password as %2F") as error:
        open_store(uri)
    assert not any(part in str(error.value) for part in ("hid", "RET"))
    quoted = open_store("s3://KEY:hid%2FRET@box/x", {"endpoint_url": "http://127.0.0.1:9"})
    assert (quoted.uri, quoted._fs.secret) == ("s3://box@127.0.0.1:9/x", "hid/RET")
