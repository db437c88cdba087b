"""Stacks as YAML files, profiles that group them, and what is chosen where."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from sqlalchemy import make_url

from zenray import checks, profile, settings, stack
from zenray.cli.stacks import _value as option_value
from zenray.errors import ConfigError, NotFoundError
from zenray.profile import active_stack
from zenray.store.read_cache import ReadCache

FULL = """\
# ours
orchestrator: inline  # for now
artifact_store:
  url: s3://acme-ml/zenray
  endpoint_url: https://minio.internal:9000
  key: ${env:STORE_KEY}
  secret: ${file:%s}
# the records
metadata_store: postgresql+psycopg://zenray:${env:DB_PASSWORD}@db/zenray
model_deployer: {port: 8000}
experiment_tracker: {flavor: mlflow, tracking_uri: http://mlflow:5000}
"""
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[S3_KEY, S3_SECRET]", ["S3_KEY", "S3_SECRET"]),
        ('["${env:A}"]', ["${env:A}"]),
        ("{X-Name: '${env:VALUE}'}", {"X-Name": "${env:VALUE}"}),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("${env:TOKEN}", "${env:TOKEN}"),
        ("[::1]:80", "[::1]:80"),
        ("[&a x, *a]", "[&a x, *a]"),
        ("[" * 1000, "[" * 1000),
        ("5", 5),
        ("true", True),
        ("yes", "yes"),
        ("null", "null"),
        ("a: b", "a: b"),
    ],
)
def test_an_options_text_is_yaml_where_it_begins_as_a_list_or_mapping(text, value):
    assert option_value(text) == value


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A user without repository, in a folder of their own."""
    for name in ("ZENRAY_HOME", "ZENRAY_STACK", "ZENRAY_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def repository(place):
    (place / ".zenray").mkdir()
    (place / "stacks").mkdir()
    return place


def parse(text: str) -> stack.StackFile:
    return stack.parse(Path("/r/stacks/aws.yaml"), text, Path("/r"))


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text).resolve()
    return str(caught.value)


class TestFile:
    def test_it_says_where_everything_is(self, tmp_path, monkeypatch):
        (tmp_path / "secret").write_text("s3cret\n")
        monkeypatch.setenv("STORE_KEY", "AKIA")
        monkeypatch.setenv("DB_PASSWORD", "p@ss/word")
        found = parse(FULL % (tmp_path / "secret")).resolve("work")
        assert (found.name, found.orchestrator, found.profile) == ("aws", "inline", "work")
        assert found.artifact_store == "s3://acme-ml/zenray"
        assert found.artifact_store_options == {
            "endpoint_url": "https://minio.internal:9000",
            "key": "AKIA",
            "secret": "s3cret",
        }
        assert found.metadata_store == "postgresql+psycopg://zenray:p%40ss%2Fword@db/zenray"
        assert found.model_deployer == {"port": 8000}
        assert found.experiment_tracker == {"flavor": "mlflow", "tracking_uri": "http://mlflow:5000"}
        for secret in ("AKIA", "s3cret", "p%40ss"):
            assert secret not in repr(found)

    def test_what_is_left_out_is_as_in_the_built_in_stack(self):
        for text in ("", "orchestrator: local\n", "# nothing\n"):
            found, default = parse(text).resolve(), stack.built_in("local")
            assert (found.orchestrator, found.artifact_store) == ("local", default.artifact_store)
            assert found.metadata_store == default.metadata_store

    def test_it_says_for_how_long_servers_are_waited_for(self):
        text = "artifact_store: {url: 's3://b', retry_s: 20min}\nmetadata_store: {url: sqlite://, retry_s: 60}\n"
        found = parse(text).resolve()
        assert found.artifact_store_options == {"retry_s": 1200}
        assert found.metadata_store_options == {"retry_s": 60}
        assert parse(text.replace("20min", "'${env:PATIENCE}'")).as_written().artifact_store_options

    def test_relative_paths_start_at_the_folder_above_stacks(self):
        found = parse("artifact_store: .zenray/store\nmetadata_store: sqlite:///.zenray/ledger.db\n").resolve()
        assert found.artifact_store == "/r/.zenray/store"
        assert found.metadata_store == "sqlite:////r/.zenray/ledger.db"
        absolute = parse("artifact_store: /data/store\nmetadata_store: sqlite:////data/ledger.db\n").resolve()
        assert absolute.artifact_store == "/data/store"
        assert absolute.metadata_store == "sqlite:////data/ledger.db"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("orchestrator: local\nartifact_stor: x\n", "/r/stacks/aws.yaml:2: unknown component 'artifact_stor'; did"),
            (
                "artifact_store: bucket\n",
                ":1: 'artifact_store' must be a URL such as 's3://bucket/prefix', got 'bucket'",
            ),
            ("metadata_store: db\n", "'metadata_store' must be a URL such as 'sqlite"),
            ("metadata_store: {url: sqlite://, pool: 3}\n", "'metadata_store' has no option 'pool', only 'retry_s'"),
            (
                "metadata_store: {url: sqlite://, retry_s: ever}\n",
                "'metadata_store': 'retry_s' must be a number of secon",
            ),
            ("artifact_store: {url: s3://b, retry_s: -1}\n", "'artifact_store': 'retry_s' must be a number of seconds"),
            ("orchestrator: locl\n", "did you mean 'local'?"),
            ("orchestrator: 5\n", "'orchestrator' must be a URL"),
            ("artifact_store: {endpoint_url: x}\n", "'artifact_store' must be a URL, or a mapping with 'url'"),
            ("artifact_store: {url: 's3://b', 3: x}\n", "an option whose name is not text"),
            ("model_deployer: {port: 99999}\n", "'model_deployer' must be a mapping with 'port'"),
            ("model_deployer: {port: 80, prt: 1}\n", "did you mean 'port'?"),
            ("experiment_tracker: {uri: x}\n", "'experiment_tracker' must be a mapping with 'flavor'"),
            ("artifact_store:\n  url: s3://b\n  key: ${env:NOPE}\n", ":3: 'artifact_store.key' refers to the variable"),
            (
                "artifact_store: {url: 's3://b', key: '${file:/nope}'}\n",
                "refers to a file: /nope cannot be read: No such file",
            ),
            ("artifact_store: {url: 's3://b', key: '${vault:x}'}\n", "of no known kind; use ${env:NAME}"),
            ("artifact_store: {url: 's3://b', key: '${env:NOPE'}\n", "has a reference without its end"),
            ("orchestrator: local\norchestrator: inline\n", ":2: 'orchestrator' stands there twice"),
            ("- a\n- b\n", "a stack is a mapping with orchestrator"),
            ("a: [\n", "cannot be read as YAML"),
            ("a: &x [1]\nb: *x\n", ":2: a stack has no aliases"),
            (LAUGHS, ":2: a stack has no aliases"),
            ("artifact_store:\n  x: " + "[" * 60_000, ":2: lists and mappings lie more than 20 deep"),
            ("artifact_store:\n  url: s3://b\n  x:\n    y: 1\n    y: 2\n", ":5: 'y' stands there twice; keep one"),
            ("artifact_store: {url: 's3://b', x: [{y: 1,\n y: 2}]}\n", ":2: 'y' stands there twice"),
            ("artifact_store: {url: 's3://b', x: {<<: {y: 1}}}\n", "an option whose name is not text"),
            ("artifact_store: {url: 's3://b', x: {yes: 1}}\n", ":1: 'artifact_store.x' has an option whose name is"),
            (
                "artifact_store:\n  url: s3://b\n  key: 2024-01-01\n",
                ":3: 'artifact_store.key' is read by YAML as a 'ti",
            ),
            ("artifact_store: {url: 's3://b', key: !!binary aGk=}\n", "is read by YAML as a 'binary'"),
            ("artifact_store: !!python/object:os.system {}\n", "YAML as a 'python/object:os.system'"),
            ("artifact_store: {url: 's3://b', n: 0x" + "f" * 5000 + "}\n", "as a 'number of 5002 digits'"),
            ("? [a, b]\n: c\n", "cannot be read as YAML"),
            ("orchestrator: local\n---\norchestrator: inline\n", ":2: cannot be read as YAML: but found another"),
            ("\0", "cannot be read as YAML"),
        ],
    )
    def test_what_is_wrong_is_named_with_file_and_line(self, text, message):
        assert message in refused(text)

    def test_a_file_of_ten_megabytes_is_not_read(self, tmp_path):
        path = tmp_path / "big.yaml"
        path.write_text("#" * 10_000_000)
        with pytest.raises(ConfigError, match="a page of text"):
            stack.read(path)

    def test_the_largest_file_that_is_read_is_read_whole(self, tmp_path):
        path = tmp_path / "s.yaml"
        head, tail = "artifact_store:\n  url: s3://b\n  x:\n", "    last: 1\n"
        count, left = divmod(stack.MAX_BYTES - len(head + tail), len("    k0000: 1\n"))
        path.write_text(head + "".join(f"    k{n:04}: 1\n" for n in range(count)) + "#" * (left - 1) + "\n" + tail)
        assert path.stat().st_size == stack.MAX_BYTES
        assert stack.read(path).components["artifact_store"]["x"]["last"] == 1
        path.write_text(path.read_text() + "#")
        with pytest.raises(ConfigError, match="more than 65,536 bytes"):
            stack.read(path)

    @pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "dangling link"])
    def test_what_is_no_file_is_neither_waited_for_nor_read(self, repository, kind):
        profile.save("good", {"orchestrator": "inline"}, profile=None)
        path = repository / "stacks" / "x.yaml"
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
            match kind:
                case "pipe":
                    os.mkfifo(path)
                case "socket":
                    listener.bind(os.path.relpath(path))  # an absolute path may be too long for one
                case "device":
                    path.symlink_to("/dev/zero")
                case "folder":
                    path.mkdir()
                case "dangling link":
                    path.symlink_to("nowhere")
        message = "x.yaml cannot be read: No such file" if kind == "dangling link" else "x.yaml is no file"
        for use in (
            lambda: active_stack("x"),
            lambda: profile.copy(profile.find("x"), "y", profile=None),
            lambda: profile.update(profile.find("x"), lambda before: {"orchestrator": "local"}),
            lambda: profile.import_file(path, "y", profile=None),
            lambda: stack.exported(path, "x"),
        ):
            with pytest.raises(ConfigError, match=message):
                use()
        assert active_stack("good").orchestrator == "inline"
        assert [s.name for s in profile.usable_stacks()] == ["inline", "good"]  # what is built in shares one store

    def test_files_that_look_like_stacks_but_cannot_be_named_are_named(self, repository):
        for name in ("old.yml", "my stack.yaml", "x.YAML", "a..b.yaml", ".hidden.yaml", "notes.md", "good.yaml"):
            (repository / "stacks" / name).write_text("orchestrator: inline\n")
        assert {e.name for e in profile.entries()} == {"local", "inline", "good"}
        found = profile.oddities()
        assert [Path(text.partition(" is not read")[0]).name for text in found] == [
            "a..b.yaml",
            "my stack.yaml",
            "old.yml",
            "x.YAML",
        ]
        with pytest.raises(NotFoundError, match=r"no stack 'old'.*stacks/old\.yml is not read: a stack's file"):
            profile.find("old")

    def test_a_binary_file_is_refused(self, tmp_path):
        path = tmp_path / "binary.yaml"
        path.write_bytes(b"\xff\xfe\x00a")
        with pytest.raises(ConfigError, match="cannot be read"):
            stack.read(path)

    def test_its_form_can_be_checked_without_its_secrets(self):
        parse("artifact_store: {url: 's3://b', key: '${env:NOPE}'}\n").as_written()

    def test_a_secret_of_a_device_is_refused_at_once(self):
        with pytest.raises(ConfigError, match=r"'artifact_store.key' refers to a file: /dev/zero is no file"):
            parse("artifact_store: {url: 's3://b', key: '${file:/dev/zero}'}\n").resolve()

    @pytest.mark.parametrize("form", ["db?user=zenray&password=${env:P}", "db?password=${env:P}&user=zenray"])
    def test_a_password_in_a_query_may_hold_any_sign(self, monkeypatch, form):
        monkeypatch.setenv("P", "abc&part=x#y")
        found = parse(f"metadata_store: 'postgresql+psycopg://host/{form}'\n").resolve()
        assert dict(make_url(found.metadata_store).query) == {"user": "zenray", "password": "abc&part=x#y"}

    def test_a_reference_in_a_path_may_have_slashes(self, monkeypatch):
        monkeypatch.setenv("PREFIX", "a/b c")
        found = parse("artifact_store: {url: 's3://bucket/${env:PREFIX}', token: 'x@y'}\n").resolve()
        assert found.artifact_store == "s3://bucket/a/b c"

    def test_a_component_that_is_a_reference_has_any_form_until_it_is_resolved(self, monkeypatch):
        for name in ("orchestrator", "artifact_store", "metadata_store"):
            for text in ("'${env:PLACE}'", "{url: '${file:/place}'}", "'${env:PLACE}/x'"):
                found = getattr(parse(f"{name}: {text}\n").as_written(), name)
                assert found.startswith("${")
        shown = stack.parse(Path("/p/x.yaml"), "metadata_store: sqlite:///${env:PLACE}\n").as_written()
        assert shown.metadata_store == "sqlite:///${env:PLACE}"
        monkeypatch.setenv("PLACE", "nowhere")
        assert "'orchestrator' must be" in refused("orchestrator: ${env:PLACE}\n")
        assert "'artifact_store' must be" in refused("artifact_store: ${env:PLACE}\n")


class TestSecrets:
    def test_literals_are_masked_and_references_stay(self):
        found = parse(
            "artifact_store: {url: 's3://b', key: AKIA, secret: '${env:S}', region: eu, account_key: 5}\n"
            "metadata_store: postgresql://me:hidden@host/db?sslpassword=hidden&x=1\n"
            "orchestrator: {url: 'http://ray', token: hidden}\n"
        )
        assert "hidden" not in str(found.masked())
        assert found.masked()["artifact_store"] == {
            "url": "s3://b",
            "key": "***",
            "secret": "${env:S}",
            "region": "eu",
            "account_key": "***",
        }
        assert found.masked()["metadata_store"] == "postgresql://me:***@host/db?sslpassword=***&x=1"
        assert found.literal_secrets() == (
            "artifact_store.key",
            "artifact_store.account_key",
            "metadata_store",
            "orchestrator.token",
        )

    def test_an_exported_stack_has_none_and_reads_the_same(self, tmp_path, monkeypatch):
        path = tmp_path / "aws.yaml"
        path.write_text(
            "# kept\nartifact_store: {url: 's3://b', key: AKIA, secret: hid}\nmetadata_store: mysql://me:hid@host/db\n"
        )
        text, variables = stack.exported(path, "aws")
        assert "hid" not in text
        assert "AKIA" not in text
        assert text.startswith("# kept\n")
        assert variables == ("AWS_ARTIFACT_STORE_KEY", "AWS_ARTIFACT_STORE_SECRET", "AWS_METADATA_STORE")
        for name, value in zip(variables, ("AKIA", "hid", "hid"), strict=True):
            monkeypatch.setenv(name, value)
        again, first = stack.parse(path, text).resolve(), stack.read(path).resolve()
        assert again.artifact_store_options == first.artifact_store_options
        assert again.metadata_store == first.metadata_store

    @pytest.mark.parametrize("url", ["https://${env:T}@host/x", "postgresql://${env:U}:${env:P}@host/db?key=${env:K}"])
    def test_references_in_a_url_are_no_literal_secrets(self, url):
        found = parse(f"metadata_store: {url}\n")
        assert found.masked()["metadata_store"] == url
        assert found.literal_secrets() == ()

    def test_secrets_are_found_however_deep_they_lie(self, tmp_path):
        path = tmp_path / "s.yaml"
        path.write_text(
            "artifact_store:\n  url: s3://b?password=hid1\n  token: {private_key: hid2}\n"
            "  client_kwargs: {my-token: hid3, my_token: hid4, headers: {Authorization: hid5}}\n"
            "  list: [{secret: hid6}]\n"
            "metadata_store: postgresql://db:db@db/db\n"
        )
        text, variables = stack.exported(path, "1a")
        assert "hid" not in text
        assert "hid" not in str(stack.read(path).masked())
        assert len(set(variables)) == len(variables) == 7
        assert all(v.isidentifier() for v in variables)
        assert "postgresql://db:${env:" in text
        assert text.endswith("@db/db\n")

    def test_no_message_or_repr_has_what_a_reference_stands_for(self, monkeypatch):
        monkeypatch.setenv("SECRET", "topsecret")
        for text in (
            "metadata_store: 'x:${env:SECRET}@db'",
            "orchestrator: '${env:SECRET}'",
            "artifact_store: '${env:SECRET}'",
        ):
            assert "topsecret" not in refused(text)
        found = parse("artifact_store: s3://k:${env:SECRET}@b\norchestrator: http://u:${env:SECRET}@h\n").resolve()
        assert "topsecret" not in repr(found)


class TestChange:
    TEXT = "# top\norchestrator: local  # why\nartifact_store:\n  url: s3://b\n  key: k\n\n# records\nmetadata_store: sqlite://\n"

    def test_the_rest_of_the_file_stays_as_it_is(self):
        changed = stack.with_components(self.TEXT, {"artifact_store": "gs://c"}, Path("s.yaml"))
        assert changed == self.TEXT.replace("artifact_store:\n  url: s3://b\n  key: k\n", "artifact_store: gs://c\n")

    def test_a_block_of_text_is_replaced_up_to_its_end(self):
        text = "artifact_store:\n  url: s3://b\n  secret: |-\n    ${env:K}\n# records\nmetadata_store: sqlite://\n"
        changed = stack.with_components(
            text, {"artifact_store": {"url": "s3://c", "secret": "${env:K}"}}, Path("s.yaml")
        )
        assert changed.endswith("secret: ${env:K}\n# records\nmetadata_store: sqlite://\n")

    def test_what_cannot_be_changed_in_place_is_left_to_its_author(self):
        with pytest.raises(ConfigError, match="edit it by hand"):
            stack.with_components("{orchestrator: inline}\n", {"artifact_store": "s3://c"}, Path("s.yaml"))

    def test_a_component_is_replaced_added_or_removed(self):
        changed = stack.with_components(
            self.TEXT, {"orchestrator": "inline", "metadata_store": None, "model_deployer": {"port": 1}}, Path("s.yaml")
        )
        assert parse(changed).components == {
            "orchestrator": "inline",
            "artifact_store": {"url": "s3://b", "key": "k"},
            "model_deployer": {"port": 1},
        }
        assert "# why" in changed
        assert "# records" in changed

    @limits(deadline=None)
    @given(
        st.dictionaries(
            st.sampled_from(stack.COMPONENTS), st.one_of(st.text(), st.dictionaries(st.text(), st.integers()))
        ),
        st.dictionaries(st.sampled_from(stack.COMPONENTS), st.one_of(st.none(), st.text(), st.lists(st.integers()))),
    )
    def test_what_is_written_is_read_back(self, first, changes):
        path = Path("s.yaml")
        text = stack.with_components(stack.with_components("", first, path), changes, path)
        assert stack.parse(path, text).components == {k: v for k, v in {**first, **changes}.items() if v is not None}


class TestProfiles:
    def test_without_anything_the_built_in_stack_is_active(self):
        found = active_stack()
        assert (found.name, found.orchestrator, found.source) == ("local", "local", "")
        assert profile.profiles() == ("default",)

    def test_every_profile_has_an_active_stack_of_its_own(self):
        profile.create_profile("work")
        profile.save("aws", {"orchestrator": "inline"}, profile="work")
        profile.save("mine", {"orchestrator": "inline"}, profile=None)
        profile.set_stack("mine")
        profile.set_stack("aws", profile="work")
        assert active_stack().name == "mine"
        profile.set_profile("work")
        assert active_stack().name == "aws"
        assert {e.name for e in profile.entries()} == {"local", "inline", "aws"}
        profile.set_profile("default")
        assert active_stack().name == "mine"

    def test_a_stack_is_copied_from_one_profile_to_another(self):
        for name in ("work", "aws"):
            profile.create_profile(name)
        profile.save("a", {"orchestrator": "inline"}, profile="work")
        profile.copy(profile.find("a", profile="work"), "b", profile="aws")
        assert profile.load(profile.find("b", profile="aws")).orchestrator == "inline"
        with pytest.raises(NotFoundError, match="no stack 'b' in profile 'work'"):
            profile.find("b", profile="work")

    def test_what_is_chosen_in_a_repository_holds_there_only(self, repository, monkeypatch):
        profile.create_profile("work")
        profile.save("prod", {"orchestrator": "inline"}, profile="work")
        profile.save("here", {"orchestrator": "inline"}, profile=None)
        profile.set_profile("work")
        profile.set_stack("prod")
        (repository / "deep" / "er").mkdir(parents=True)
        monkeypatch.chdir(repository / "deep" / "er")
        assert (settings.active_profile(), active_stack().name) == ("work", "prod")
        assert {e.name for e in profile.entries()} == {"local", "inline", "prod", "here"}
        monkeypatch.chdir(repository.parent)
        assert (settings.active_profile(), active_stack().name) == ("default", "local")

    def test_a_clone_of_a_repository_is_one_without_being_initialised_again(self, place, monkeypatch):
        (place / ".zenrayignore").write_text("")
        (place / "deep").mkdir()
        monkeypatch.chdir(place / "deep")
        assert settings.find_repository() == place
        profile.save("here", {"orchestrator": "inline"}, profile=None)
        profile.set_stack("here")
        assert active_stack().name == "here"
        assert (place / "stacks" / "here.yaml").is_file()
        assert (place / ".zenray" / "settings.json").is_file()

    def test_stacks_of_a_folder_that_is_no_repository_count_only_where_a_file_is_named(self, place):
        (place / "stacks").mkdir()
        (place / "stacks" / "there.yaml").write_text("orchestrator: inline\nartifact_store: ./data\n")
        assert {e.name for e in profile.entries()} == {"local", "inline"}
        with pytest.raises(NotFoundError, match=r"name its file, 'stacks/there\.yaml', or make .* with `zenray init`"):
            profile.active_stack("there")
        found = profile.active_stack("stacks/there.yaml")
        assert (found.name, found.orchestrator, found.artifact_store) == ("there", "inline", f"{place}/data")
        assert profile.save("mine", {"orchestrator": "inline"}, profile=None).path.parent != place / "stacks"
        (place / ".zenrayignore").touch()
        assert profile.active_stack("there").source == found.source

    def test_a_file_that_is_named_is_used_and_neither_chosen_nor_changed(self, place):
        (place / "mine.yaml").write_text("artifact_store: ./data\n")
        entry = profile.find("./mine.yaml")
        assert profile.load(entry).artifact_store == f"{place}/data"
        with pytest.raises(ConfigError, match=r"`zenray stack import \./mine\.yaml` gives it a name"):
            profile.set_stack("./mine.yaml")
        for change in (profile.delete, lambda e: profile.rename(e, "other"), lambda e: profile.update(e, dict)):
            with pytest.raises(ConfigError, match=r"mine\.yaml is a file of your own"):
                change(entry)
        with pytest.raises(NotFoundError, match=r"no stack's file .*/none\.yaml"):
            profile.find("./none.yaml")
        with pytest.raises(ConfigError, match=r"NAME\.yaml, with a NAME of"):
            profile.find("./flow.py")

    def test_a_choice_can_be_made_for_the_user_from_within_a_repository(self, repository, monkeypatch):
        profile.create_profile("work")
        profile.set_profile("work", is_global=True)
        monkeypatch.chdir(repository.parent)
        assert settings.active_profile() == "work"

    def test_variables_of_the_environment_win(self, repository, monkeypatch):
        profile.create_profile("work")
        profile.save("prod", {"orchestrator": "inline"}, profile="work")
        profile.set_stack("prod", profile="work")
        monkeypatch.setenv("ZENRAY_PROFILE", "work")
        assert active_stack().name == "prod"
        monkeypatch.setenv("ZENRAY_STACK", "inline")
        assert active_stack().name == "inline"
        monkeypatch.setenv("ZENRAY_PROFILE", "wrk")
        with pytest.raises(NotFoundError, match="did you mean 'work'"):
            active_stack()

    def test_a_repositorys_stack_wins_over_a_profiles(self, repository):
        profile.save("same", {"orchestrator": "local"}, profile="default")
        profile.save("same", {"orchestrator": "inline"}, profile=None)
        assert active_stack("same").orchestrator == "inline"

    def test_a_renamed_stack_stays_the_active_one(self, repository):
        profile.save("old", {"orchestrator": "inline"}, profile=None)
        profile.set_stack("old")
        profile.rename(profile.find("old"), "new")
        assert active_stack().name == "new"

    def test_renaming_changes_only_choices_that_mean_the_stack(self, repository, monkeypatch):
        profile.save("prod", {"orchestrator": "local"}, profile="default")
        profile.set_stack("prod", is_global=True)
        profile.save("prod", {"orchestrator": "inline"}, profile=None)
        profile.set_stack("prod")
        profile.rename(profile.find("prod", profile="default"), "prod2")
        assert active_stack().orchestrator == "inline"
        monkeypatch.chdir(repository.parent)
        assert active_stack().name == "prod2"

    def test_a_repositorys_stack_is_not_chosen_for_the_user(self, repository):
        profile.save("here", {"orchestrator": "inline"}, profile=None)
        with pytest.raises(NotFoundError, match="no stack 'here' in profile"):
            profile.set_stack("here", is_global=True)

    def test_a_profile_has_no_relative_paths_and_holds_nothing_but_stacks(self, tmp_path):
        profile.create_profile("work")
        with pytest.raises(ConfigError, match="must be absolute in a profile"):
            profile.save("s", {"artifact_store": "./data"}, profile="work")
        folder = tmp_path / "user" / ".zenray" / "profiles"
        (folder / ".odd").mkdir()
        profile.save("s", {"orchestrator": "inline"}, profile="work")
        (folder / "work" / "kept").write_text("x")
        assert profile.profiles() == ("default", "work")
        with pytest.raises(ConfigError, match=r"cannot delete .*: kept in it is no stack; remove it first"):
            profile.delete_profile("work")
        assert (folder / "work" / "s.yaml").is_file()
        assert (folder / "work" / "kept").read_text() == "x"

    def test_what_can_never_work_is_refused_before_it_is_written(self, repository, tmp_path):
        source = tmp_path / "x.yaml"
        source.write_text("experiment_tracker: {flavor: mlflo}\n")
        for make in (
            lambda: profile.import_file(source, "x", profile=None, check=checks.validate),
            lambda: profile.save("x", {"orchestrator": "mars://x"}, profile=None, check=checks.validate),
            lambda: profile.save("local", {}, profile=None, is_replacing=True),
        ):
            with pytest.raises(ConfigError):
                make()
        assert not list((repository / "stacks").iterdir())

    def test_the_active_and_the_built_in_are_not_deleted(self):
        profile.create_profile("work")
        profile.save("aws", {"orchestrator": "inline"}, profile="work")
        profile.set_stack("aws", profile="work")
        for forbidden in (
            lambda: profile.delete(profile.find("local")),
            lambda: profile.rename(profile.find("inline"), "x"),
            lambda: profile.update(profile.find("local"), lambda before: {"orchestrator": "inline"}),
            lambda: profile.delete(profile.find("aws", profile="work")),
            lambda: profile.delete_profile("default"),
            lambda: profile.save("local", {}, profile=None),
            lambda: profile.save("aws", {}, profile="work"),
            lambda: profile.create_profile("work"),
        ):
            with pytest.raises(ConfigError):
                forbidden()
        profile.set_profile("work")
        with pytest.raises(ConfigError, match="active"):
            profile.delete_profile("work")
        profile.set_profile("default")
        profile.delete_profile("work")
        assert profile.profiles() == ("default",)

    def test_a_renamed_profile_keeps_its_stacks_and_stays_the_active_one(self, repository, monkeypatch):
        for name in ("work", "other"):
            profile.create_profile(name)
        profile.save("aws", {"orchestrator": "inline"}, profile="work")
        profile.set_stack("aws", profile="work")
        profile.set_profile("work", is_global=True)
        profile.set_profile("work")
        profile.rename_profile("work", "job")
        assert (settings.active_profile(), active_stack().name) == ("job", "aws")
        assert profile.profiles() == ("default", "job", "other")
        monkeypatch.chdir(repository.parent)
        assert settings.active_profile() == "job"

    def test_a_profile_is_renamed_to_what_is_free_and_never_the_default_one(self):
        for name in ("work", "other"):
            profile.create_profile(name)
        for old, new, message in (
            ("work", "other", "there is a profile 'other' already"),
            ("work", "../x", "is no name for a profile"),
            ("default", "mine", "cannot be renamed: it is there where no other is chosen"),
        ):
            with pytest.raises(ConfigError, match=message):
                profile.rename_profile(old, new)
        with pytest.raises(NotFoundError, match="did you mean 'work'"):
            profile.rename_profile("wrk", "x")
        assert profile.profiles() == ("default", "other", "work")

    @pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "", "a..b", "-x", "a b", "x" * 65, "ä", "a\n"])
    def test_a_name_is_never_a_path(self, name):
        for make in (
            lambda: profile.save(name, {}, profile=None),
            lambda: profile.create_profile(name),
            lambda: profile.find(name),
        ):
            with pytest.raises(ConfigError, match=r"is no (name for|stack's file)"):
                make()

    def test_files_with_secrets_are_for_their_user_only(self, repository):
        written = profile.save("open", {"artifact_store": {"url": "s3://b", "key": "k"}}, profile=None)
        assert written.path.stat().st_mode & 0o077 == 0
        assert profile.save("safe", {"orchestrator": "inline"}, profile=None).path.stat().st_mode & 0o044

    def test_a_wrong_change_leaves_the_file_as_it_was(self, repository):
        made = profile.save("s", {"orchestrator": "inline"}, profile=None)
        before = made.path.read_text()
        with pytest.raises(ConfigError):
            profile.update(profile.find("s"), lambda before: {"artifact_store": "bucket"})
        assert made.path.read_text() == before
        assert [p.name for p in made.path.parent.iterdir()] == ["s.yaml"]

    def test_damaged_choices_say_what_to_do(self, repository):
        (repository / ".zenray" / "settings.json").write_text("{")
        with pytest.raises(ConfigError, match="remove it, and choose again"):
            active_stack()


class TestChecks:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("artifact_store: s4://bucket\n", "s4"),
            ("metadata_store: oracle://host/db\n", "no metadata store on 'oracle'"),
            ("orchestrator: mars://x\n", "no orchestrator is known for 'mars://x'"),
            ("orchestrator: kuberay://team\n", "no orchestrator is known for 'kuberay://team'"),
            ("orchestrator: http://ray:8265\n", "is a folder of this machine, which the cluster 'http://ray:8265'"),
            ("artifact_store: memory://x\n", "lives in one process"),
        ],
    )
    def test_a_component_of_no_known_kind_is_refused_before_anything_is_opened(self, text, message):
        with pytest.raises(ConfigError, match=message):
            checks.validate(parse(text).resolve())

    def test_every_component_is_opened_for_real(self, tmp_path):
        made = stack.Stack("s", "inline", str(tmp_path / "store"), f"sqlite:///{tmp_path}/ledger.db")
        found = list(checks.probe(made))
        assert [(f.component, f.is_ok) for f in found] == [
            ("orchestrator", True),
            ("artifact_store", True),
            ("metadata_store", True),
        ]
        assert not list((tmp_path / "store").rglob("check-*"))

    def test_every_component_that_does_not_work_is_a_finding_of_its_own(self, tmp_path):
        (tmp_path / "file").write_text("")
        made = stack.Stack(
            "s",
            "mars://x",
            str(tmp_path / "file"),
            f"sqlite:///{tmp_path}/file/x.db",
            experiment_tracker={"flavor": "mlflow", "tracking_uri": "http://127.0.0.1:9"},
        )
        found = {f.component: f for f in checks.probe(made)}
        assert list(found) == ["orchestrator", "artifact_store", "metadata_store", "experiment_tracker"]
        assert not any(f.is_ok for f in found.values())


class TestHome:
    def test_a_relative_home_stays_where_it_was_whatever_folder_is_next(self, place, monkeypatch):
        monkeypatch.setenv("ZENRAY_HOME", "state")
        monkeypatch.setenv("ZENRAY_CACHE_DIR", "cache")
        folders = settings.home(), settings.user_home(), Path(ReadCache.of_environment().folder)
        assert folders == (place / "state", place / "state", place / "cache")
        (place / "deep").mkdir()
        monkeypatch.chdir(place / "deep")
        assert folders == (settings.home(), settings.user_home(), Path(ReadCache.of_environment().folder))
        shown = subprocess.run([sys.executable, "-c", SHOW_HOME], capture_output=True, text=True, check=True).stdout
        assert shown.strip() == str(place / "state")

    def test_a_script_that_goes_elsewhere_after_its_imports_keeps_its_home(self, place):
        environment = os.environ | {"ZENRAY_HOME": "state"}
        (place / "deep").mkdir()
        code = f"import os, zenray; os.chdir('deep'); {SHOW_HOME}"
        shown = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        ).stdout
        assert shown.strip() == str(place / "state")


SHOW_HOME = "from zenray.settings import home; print(home())"
