"""The materializers that come with ZenRay keep the contract: plain values, files, pickles, and the table of types."""

import atexit
import dataclasses
import datetime as dt
import enum
import fcntl
import functools
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, ClassVar, NamedTuple
from zoneinfo import ZoneInfo

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zenray_materializers import TABLE
from zenray_materializers.files import PathMaterializer
from zenray_materializers.pickled import PickleMaterializer
from zenray_materializers.plain import PlainMaterializer

from zenray.errors import MaterializerError
from zenray.materializer import load_class, load_materializer, type_name
from zenray.testing import MaterializerContract, MemoryFiles, round_trip, save

BERLIN = ZoneInfo("Europe/Berlin")


class Color(enum.Enum):
    RED = "r"
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: float
    y: float = 0.0


Pair = namedtuple("Pair", "left right")


@dataclasses.dataclass
class Item:
    name: str
    price: float = 0.0
    tags: list[str] = dataclasses.field(default_factory=list)
    total: float = dataclasses.field(init=False, default=0.0)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    item: Item
    when: dt.date | None = None


@dataclasses.dataclass
class Child(Item):
    parent: Frozen | None = None

    @functools.cached_property
    def upper(self) -> str:
        return self.name.upper()


@dataclasses.dataclass
class ListWithFields(list):  # type: ignore[type-arg]
    name: str = ""


class Settings(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    lr: float = 0.1
    when: dt.date | None = None
    _secret: int = 3


class Nested(pydantic.BaseModel):
    settings: Settings
    item: Item
    levels: dict[int, str] = {}


class Plain:
    """A class that nothing serves."""


class DictChild(dict):  # type: ignore[type-arg]
    pass


def _same(value: Any, other: Any) -> bool:
    """Equality that tells ``1`` from ``1.0``, ``0.0`` from ``-0.0``, and finds NaN equal to itself, order included."""
    if isinstance(value, Item) and isinstance(other, Item):  # a NaN in a field is not equal to itself
        return all(_same(getattr(value, f.name), getattr(other, f.name)) for f in dataclasses.fields(Item))
    if type(value) is not type(other):
        return False
    if isinstance(value, float):
        return struct.pack(">d", value) == struct.pack(">d", other)
    if isinstance(value, complex):
        return _same(value.real, other.real) and _same(value.imag, other.imag)
    if isinstance(value, list | tuple | deque):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, dict):
        return _same(list(value.items()), list(other.items()))
    if isinstance(value, dt.datetime | dt.time):
        return value.replace(tzinfo=None) == other.replace(tzinfo=None) and (
            (repr(value.tzinfo), value.fold) == (repr(other.tzinfo), other.fold)
        )
    if isinstance(value, pydantic.BaseModel):
        return bool(value == other) and value.model_fields_set == other.model_fields_set
    return bool(value == other)


class TestPlain(MaterializerContract):
    materializer = PlainMaterializer

    def values(self) -> Mapping[str, Any]:
        cell = Item("cell", 1.5, ["a"])
        cell.total = 3.0
        child = Child("child", parent=Frozen(cell, dt.date(2026, 1, 31)))
        assert child.upper == "CHILD"
        return {
            "none": None,
            "bools": [True, False, None],
            "small ints": list(range(1000)),
            "large ints": [2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 10**5000],
            "floats": [0.0, -0.0, 1.0, 1e300, 5e-324, math.nan, math.inf, -math.inf],
            "odd nan": struct.unpack(">d", bytes.fromhex("7ff8000000000123"))[0],
            "floats that overflow in sum": [1e308, 1e308],
            "complex": complex(-0.0, math.nan),
            "texts": ["", "ä", "日本", "\x00", "😀", "\ud800", "\ud83d\ude00", "$date"],
            "bytes": b"\x00\xff",
            "bytearray": bytearray(b"ab"),
            "nested bytes": {"small": b"x", "large": b"y" * 100_000, "array": bytearray(b"z")},
            "empty containers": [[], (), {}, set(), frozenset(), "", b"", deque()],
            "tuple": (1, (2.0, ("3",))),
            "dict in order": {"b": 1, "a": {"z": None, "y": []}},
            "dict of any keys": {1: "a", "1": "b", (1, 2): "c", None: "d", False: "e", 2.5: "f"},
            "dict like a tag": {"$date": "2026-01-31", "x": {"$tuple": [1]}},
            "dict with odd key": {"\ud800": 1},
            "sets": [{"b", "a", "c", "ä"}, frozenset({(1, 2), (0, 3)}), {1, "1", 2.5, None}],
            "collections": [Counter("abca"), OrderedDict(b=1, a=2), defaultdict(list, {"a": [1]}), deque([1, 2], 5)],
            "times": [dt.time(1, 2, 3, 4), dt.time(23, tzinfo=dt.UTC), dt.timedelta(-1, 2, 3)],
            "dates": [dt.date(1, 1, 1), dt.datetime(2026, 1, 31, 12), dt.datetime(9999, 12, 31, 23, 59, 59, 999999)],
            "zones": [
                dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN),
                dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-3, microseconds=1), "odd")),
                dt.UTC,
                dt.timezone(dt.timedelta(minutes=330)),
                BERLIN,
            ],
            "numbers": [Decimal("1.10"), Decimal("NaN"), Decimal("-Infinity"), Fraction(-1, 3), range(0, 10, 3)],
            "names": [uuid.UUID(int=7), PurePosixPath("a/../b"), PureWindowsPath("c:/x"), ...],
            "enums": [Color.RED, Level.LOW, Access.READ, Access.READ | Access.WRITE, Access(0)],
            "named tuples": [Point(1.0), Pair(1, [2])],
            "dataclass": child,
            "frozen dataclass": Frozen(cell),
            "pydantic": Nested(settings=Settings(when=dt.date(2026, 1, 31), other=[1]), item=cell, levels={3: "x"}),
            "deep": functools.reduce(lambda inner, _: [inner], range(150), "bottom"),
        }

    def refused(self) -> Mapping[str, Any]:
        loop: list[Any] = []
        loop.append(loop)
        twice: list[Any] = []
        twice.extend([twice, twice])
        with_extra = Item("x")
        with_extra.extra = 1  # type: ignore[attr-defined]

        @dataclasses.dataclass
        class Local:
            x: int = 1

        return {
            "cycle": loop,
            "cycle twice": {"a": (twice,)},
            "too deep": functools.reduce(lambda inner, _: [inner], range(250), "bottom"),
            "far too deep": functools.reduce(lambda inner, _: [inner], range(5000), "bottom"),
            "local class": [Local()],
            "lambda": {"f": lambda: 1},
            "class": [Item],
            "module": [json],
            "generator": [iter(())],
            "unknown class": [Plain()],
            "subclass of dict": DictChild(a=1),
            "subclass of list": ListWithFields(),
            "attribute that is no field": with_extra,
            "factory": defaultdict(lambda: 3),
            "exception": [ValueError("x")],
            "set of files": {Path(__file__)},
        }

    def is_equal(self, value: Any, loaded: Any) -> bool:
        if isinstance(value, Decimal) and value.is_nan():
            return loaded.is_nan()
        if isinstance(value, list) and value and isinstance(value[0], Decimal):
            return all(map(self.is_equal, value, loaded)) and len(value) == len(loaded)
        return _same(value, loaded)


def _plain_values() -> st.SearchStrategy[Any]:
    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(st.characters())
        | st.binary()
        | st.dates()
        | st.datetimes(timezones=st.none() | st.sampled_from([BERLIN, dt.UTC]))
        | st.timedeltas()
        | st.decimals(allow_nan=False)
        | st.fractions()
        | st.uuids()
        | st.sampled_from([*Color, *Access])
    )
    keys = st.text(st.sampled_from("$ab\ud800")) | st.integers() | st.tuples(st.integers(), st.text())
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner)
            | st.lists(inner).map(tuple)
            | st.dictionaries(keys, inner)
            | st.sets(st.integers() | st.text() | st.booleans())
            | st.builds(Item, st.text(), st.floats(), st.lists(st.text()))
        ),
        max_leaves=20,
    )


@given(_plain_values())
@settings(max_examples=150, deadline=None)
def test_any_plain_value_comes_back_the_same(value: Any) -> None:
    assert _same(round_trip(PlainMaterializer(), value), value)


@given(st.lists(st.floats() | st.integers() | st.text() | st.none()))
@settings(max_examples=100, deadline=None)
def test_a_plain_value_is_strict_json(value: Any) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    files, _ = save(PlainMaterializer(), value)
    json.loads(files.contents["value.json"].decode("utf-8"), parse_constant=refuse)


def test_plain_json_is_readable() -> None:
    files, _ = save(PlainMaterializer(), {"lr": 0.1, "layers": [64, 32], "day": dt.date(2026, 1, 31), "at": (1, None)})
    assert files.contents["value.json"] == (
        b'{"lr":0.1,"layers":[64,32],"day":{"$date":"2026-01-31"},"at":{"$tuple":[1,null]}}'
    )


def test_order_of_a_dict_makes_a_difference() -> None:
    one, other = save(PlainMaterializer(), {"a": 1, "b": 2})[0], save(PlainMaterializer(), {"b": 2, "a": 1})[0]
    assert one.contents != other.contents


def test_errors_about_plain_values_say_what_to_do() -> None:
    for value, advice in (
        ({"f": len}, "return what it gives"),
        ([Item], "return an instance"),
        ([Plain()], "allow_pickle=True"),
        ([DictChild()], "return a dict or a dataclass"),
    ):
        with pytest.raises(MaterializerError, match=advice):
            save(PlainMaterializer(), value)


def test_a_stored_plain_value_cannot_name_a_class_that_is_not_data() -> None:
    for text in (
        '{"$dataclass":["subprocess.Popen",{"args":"true"}]}',
        '{"$enum":["os._Environ","x",false]}',
        '{"$namedtuple":["subprocess.Popen",{}]}',
        '{"$pydantic":["subprocess.Popen",{"fields":{},"set":[]}]}',
        '{"$artifact":["builtins.int","zenray_materializers.pickled:PickleMaterializer","0/",{}]}',
        '{"$artifact":["builtins.int","os:abort","0/",{}]}',
        '{"$unknown":1}',
        "{",
    ):
        files = MemoryFiles()
        files.writer().put("value.json", text.encode())
        with pytest.raises(MaterializerError):
            PlainMaterializer().load(files.reader(), dict, {})


def test_a_field_added_to_a_dataclass_has_its_default_when_an_old_value_is_loaded() -> None:
    files = MemoryFiles()
    name = type_name(Item)
    files.writer().put("value.json", json.dumps({"$dataclass": [name, {"name": "old"}]}).encode())
    assert PlainMaterializer().load(files.reader(), Item, {}) == Item("old")
    files = MemoryFiles()
    files.writer().put("value.json", json.dumps({"$dataclass": [name, {"name": "old", "gone": 1}]}).encode())
    with pytest.raises(MaterializerError, match="gone"):
        PlainMaterializer().load(files.reader(), Item, {})


def _scratch() -> Path:
    """Return a new directory that goes away with the process; fixtures aren't to be had in the other process."""
    path = tempfile.mkdtemp(prefix="zenray-test-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


@functools.cache
def _tree() -> Path:
    """Make a directory with something of everything; in each process its own, with the same content."""
    root = _scratch() / "out"
    (root / "empty" / "deeper").mkdir(parents=True)
    (root / "sub").mkdir()
    (root / "sub" / "ä b.txt").write_text("text")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "large.bin").write_bytes(bytes(100_000))
    (root / "link").symlink_to("sub/ä b.txt")
    (root / "sub" / "up").symlink_to(root / "run.sh")
    (root / "directory link").symlink_to("sub")
    return root


def _listing(root: Path) -> list[Any]:
    if root.is_file():
        return [root.name, root.read_bytes(), os.access(root, os.X_OK)]
    found: list[Any] = []
    for path in sorted(root.rglob("*")):
        content = path.read_bytes() if path.is_file() else None
        found.append([str(path.relative_to(root)), path.is_symlink(), content, os.access(path, os.X_OK)])
    return found


class TestPath(MaterializerContract):
    materializer = PathMaterializer

    def values(self) -> Mapping[str, Any]:
        root = _tree()
        return {"file": root / "large.bin", "program": root / "run.sh", "directory": root, "empty": root / "empty"}

    def refused(self) -> Mapping[str, Any]:
        root = _scratch()
        for name, target in (("outside", "/etc/hosts"), ("up", ".."), ("broken", "nowhere"), ("loop", "loop")):
            (root / name).mkdir()
            (root / name / "link").symlink_to(target)
        (root / "special").mkdir()
        os.mkfifo(root / "special" / "fifo")
        names = ("outside", "up", "broken", "loop", "special")
        return {name: root / name for name in names} | {"missing": root / "missing", "device": Path("/dev/null")}

    def is_equal(self, value: Any, loaded: Any) -> bool:
        return loaded != value and loaded.name == value.name and _listing(loaded) == _listing(value)


def test_stored_names_that_leave_the_directory_are_refused() -> None:
    kept = {"kind": "directory", "name": "x", "directories": [], "executables": [], "links": {}}
    for names, change in (
        ({"data/../evil": b""}, {}),
        ({"data//etc/evil": b""}, {}),
        ({}, {"name": ".."}),
        ({}, {"name": "a/b"}),
        ({}, {"directories": ["../evil"]}),
        ({}, {"links": {"a": "../evil"}}),
        ({}, {"links": {"a": "/etc"}}),
        ({}, {"links": {"../a": "x"}}),
        ({}, {"links": {"a": ".", "a/b": ".."}}),
    ):
        files = MemoryFiles()
        files.contents.update(names)
        with pytest.raises(MaterializerError):
            PathMaterializer().load(files.reader(), Path, kept | change)


def _load_elsewhere(statement: str, temporary: Path) -> "subprocess.CompletedProcess[str]":
    """Load the directory as ``p`` in another process, whose temporary directory is given, and run a statement."""
    program = (
        "import os; from pathlib import Path; from zenray.testing import round_trip\n"
        "from zenray_materializers.files import PathMaterializer\n"
        f"p = round_trip(PathMaterializer(), Path({str(_tree())!r}))\n"
        f"{statement}"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "TMPDIR": str(temporary)}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)


def test_a_loaded_directory_is_a_private_copy_removed_when_the_process_ends(tmp_path: Path) -> None:
    result = _load_elsewhere("(p / 'run.sh').write_text('changed'); print(p)", tmp_path)
    assert result.stdout.strip().endswith("/out"), result.stderr
    assert list(tmp_path.iterdir()) == []
    assert (_tree() / "run.sh").read_text() == "#!/bin/sh\n"


def test_what_a_killed_process_has_loaded_is_removed_by_a_later_one_but_not_what_is_in_use(tmp_path: Path) -> None:
    _load_elsewhere("os.kill(os.getpid(), 9)", tmp_path)
    (left,) = tmp_path.iterdir()
    used = tmp_path / f"{left.name}-used"
    used.mkdir()
    descriptor = os.open(used, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    for path in (left, used):
        os.utime(path, (0, 0))
    _load_elsewhere("", tmp_path)
    os.close(descriptor)
    assert list(tmp_path.iterdir()) == [used]


class TestPickle(MaterializerContract):
    materializer = PickleMaterializer

    def values(self) -> Mapping[str, Any]:
        return {"anything": ValueError("x"), "nested": {"a": [1, Color.RED]}}

    def refused(self) -> Mapping[str, Any]:
        return {"generator": (i for i in ()), "file": [sys.stdout.buffer]}

    def is_equal(self, value: Any, loaded: Any) -> bool:
        return repr(value) == repr(loaded)


def test_a_pickle_that_needs_cloudpickle_holds_functions() -> None:
    pytest.importorskip("cloudpickle")
    files, metadata = save(PickleMaterializer(), {"f": lambda x: x + 1})
    assert metadata == {"by": "cloudpickle"}
    assert PickleMaterializer().load(files.reader(), object, metadata)["f"](1) == 2


def test_a_pickle_that_is_broken_says_so() -> None:
    files = MemoryFiles()
    files.writer().put("value.pickle", b"broken")
    with pytest.raises(MaterializerError, match="cannot be loaded"):
        PickleMaterializer().load(files.reader(), object, {})


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_the_table_says_what_the_classes_say(row: tuple[str, str, bool, bool]) -> None:
    name, path, is_exact, is_pickle = row
    materializer = load_materializer(path)
    assert name in materializer.types
    assert (materializer.is_exact, materializer.is_pickle) == (is_exact, is_pickle)
    assert name.startswith("@") or type_name(load_class(name)) == name


def test_every_type_a_materializer_names_is_in_the_table() -> None:
    for path in {path for _, path, _, _ in TABLE}:
        assert set(load_materializer(path).types) == {name for name, other, _, _ in TABLE if other == path}


def test_the_package_imports_nothing_heavy() -> None:
    program = (
        "import sys, zenray_materializers, zenray_materializers.plain, zenray_materializers.files\n"
        "heavy = {'numpy', 'pandas', 'pyarrow', 'torch', 'sklearn', 'polars', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout.strip() == "[]"


class NotEqual(PlainMaterializer):
    def load(self, reader: Any, cls: type, metadata: Mapping[str, Any]) -> Any:
        return "other"


class HashDependent(PlainMaterializer):
    def save(self, value: Any, writer: Any) -> Mapping[str, Any] | None:
        super().save(value, writer)
        return {"hash": hash(value)}


class TimeDependent(PlainMaterializer):
    def save(self, value: Any, writer: Any) -> Mapping[str, Any] | None:
        super().save(value, writer)
        return {"at": time.perf_counter_ns()}


class Talkative(PlainMaterializer):
    def preview(self, value: Any) -> Mapping[str, Any]:
        return {"all": "x" * 10_000}


class Elsewhere(PlainMaterializer):
    types: ClassVar[tuple[str, ...]] = ("builtins.int",)


class _TextContract(MaterializerContract):
    def values(self) -> Mapping[str, Any]:
        return {"text": "a"}

    def refused(self) -> Mapping[str, Any]:
        return {"text": "a"}


class HashDependentContract(_TextContract):
    materializer = HashDependent


@pytest.mark.parametrize(
    ("faulty", "test"),
    [
        (NotEqual, "test_values_come_back_equal_and_of_the_same_class"),
        (TimeDependent, "test_a_value_that_was_loaded_is_saved_as_the_same_bytes"),
        (Talkative, "test_previews_are_small_json"),
        (Elsewhere, "test_types_lead_to_the_materializer"),
        (PlainMaterializer, "test_other_values_are_refused"),
    ],
)
def test_the_contract_finds_a_fault(faulty: type[PlainMaterializer], test: str) -> None:
    contract = type("Contract", (_TextContract,), {"materializer": faulty})()
    with pytest.raises(AssertionError):
        getattr(contract, test)()


def test_the_contract_finds_bytes_that_depend_on_the_process() -> None:
    with pytest.raises(AssertionError):
        HashDependentContract().test_equal_values_give_equal_bytes_in_another_process()
