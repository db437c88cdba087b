"""A small project and a table of edits to it, each with the steps whose code it changes.

Runs in: anywhere.

The table is for any tool that caches steps: a step in `must_rerun` that is not run again after the edit is a stale
hit, and any other step that is run again is a needless one. The project is plain Python but for the decorators
of `pipeline.py`, its steps take and return plain data, and where `changes_result` is set the steps in `must_rerun`
return something else after the edit when they get the same input, so that a stale hit shows in the values too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

STEPS = ("load", "features", "train")
# What each step gets, as keyword arguments, when it is run on its own.
INPUTS: Mapping[str, Mapping[str, object]] = {
    "load": {"path": "data/numbers.txt"},
    "features": {"rows": [3, 1, 4, 1, 5, 9, 2, 6]},
    "train": {"columns": {"a": 4, "b": 7}},
}

PROJECT: Mapping[str, str] = {
    "pipeline.py": '''\
"""The project's pipeline."""

import functools

import tinydist
from zenray import pipeline, step

import cleaning as tidy
import config
import loading
import models
import registry
from package import public
from package.inner import relative
from starred import *


def read(path: str) -> list[int]:
    # one number a line
    with open(path) as lines:
        return [int(line) for line in lines]


def unused(value: int) -> int:
    return value + 1


def make_scaler(factor):
    def scale(value):
        return value * factor

    return scale


scaler = make_scaler(3)
halved = functools.partial(tidy.divide, by=2)
add_tax = lambda value: value + 19


@step(num_cpus=1)
def load(path: str = "data/numbers.txt") -> list:
    """Load numbers."""
    rows = read(path)
    total = 0
    for row in rows:
        total += loading.weight(row)
    from lazy import offset

    if total < 0:
        import fallback

        total = fallback.repair(total)
    rows.append(total + offset(total) + loading.shift(total) + loading.parity(total))
    rows += loading.numbers(3)
    rows.append(loading.waited(total))
    rows.append(loading.described(total))
    return rows


@step(retries=1)
def features(rows: list, threshold: int = 2, *, power: int = 2) -> dict:
    """Make features."""
    kept = [row for row in rows if row > threshold]
    result = {
        "kept": kept,
        "cleaned": [tidy.clean(row) for row in kept],
        "limit": config.LIMIT,
        "ratio": config.RATIO,
        "flag": config.FLAG,
        "power": [row**power for row in kept],
        "scaled": scaler(5),
        "halved": halved(9),
        "taxed": add_tax(5),
        "label": f"rows: {len(kept)}",
        "starred": starred(4),
        "public": public(3),
        "relative": relative(3),
        "seen": tidy.first_seen(rows),
        "counted": tidy.counted(),
        "derived": config.DERIVED,
        "mode": config.MODE,
        "tags": sorted(config.TAGS),
        "deep": config.NESTED["levels"][1],
        "tiny": tinydist.version_of(),
    }

    def finish(value):
        return value + 1000

    result["finished"] = finish(len(kept))
    return result


@step
def train(columns: dict) -> dict:
    """Train a model."""
    model = models.Forest(depth=3)
    model.fit(columns)
    settings = models.Settings()
    return {
        "prediction": model.predict(columns),
        "size": model.size,
        "kind": models.Forest.kind,
        "trees": model.trees,
        "registered": type(model).registered,
        "settings": [settings.rate, settings.rounds],
        "colour": models.Colour.RED.value,
        "shape": models.Shape(3, 4).area(),
        "default": models.DEFAULT.describe(),
        "dispatch": [registry.OPERATIONS[name](6) for name in registry.OPERATIONS],
        "single": [registry.show(1), registry.show("x")],
        "cached": registry.cached(7),
        "decorated": registry.decorated(7),
        "repeated": registry.repeated(7),
        "context": registry.context(),
        "caught": registry.caught(),
        "matched": registry.matched("one"),
    }


@pipeline
def demo() -> dict:
    return train(features(load()))


if __name__ == "__main__":
    demo()
''',
    "loading.py": """\
import asyncio

STEP = 1


def weight(row):
    return adjusted(row) * 2


def adjusted(row):
    return row + STEP


def shift(total):
    return 0 if total <= 0 else 2 + shift(total - 10)


def parity(number):
    return 0 if number <= 0 else 1 + odd(number - 1)


def odd(number):
    return 0 if number <= 0 else 2 + parity(number - 1)


def numbers(count):
    for number in range(count):
        yield number * 5


async def answer(total):
    return total % 17


def waited(total):
    return asyncio.run(answer(total))


def described(total):
    if (half := total // 2) > 3:
        return f"half {half}"
    return "small"
""",
    "cleaning.py": '''\
"""Cleaning of numbers."""

COUNT = 0
SEEN = {"first": 11}


def clean(row):
    """Return a clean row."""
    value = strip(row)
    return value * 2


def strip(row):
    return row - 1


def divide(value, by):
    return value / by


def first_seen(rows):
    return SEEN["first"] + rows[0]


def counted():
    global COUNT
    COUNT = 5
    return increased()


def increased():
    return COUNT + 1


def not_called():
    return 5
''',
    "config.py": """\
import os

LIMIT = 10
RATIO = 1
FLAG = 1
TAGS = {"x", "y"}
NESTED = {"levels": [1, 2, 3], "name": "nested"}
MODE = os.environ.get("EDITS_MODE", "quiet")
DERIVED = 4
DERIVED = DERIVED * 2 + LIMIT
UNUSED = 3
""",
    "models.py": """\
import enum
from dataclasses import dataclass, field


class Registering(type):
    registered_as = "model"

    def __new__(mcls, name, bases, namespace):
        made = super().__new__(mcls, name, bases, namespace)
        made.registered = mcls.registered_as + name
        return made


class Base(metaclass=Registering):
    kind = "base"

    def __init__(self, depth):
        self.depth = depth

    def fit(self, columns):
        self.total = sum(columns.values())

    def predict(self, columns):
        return self.scale(self.total) + self.depth

    @staticmethod
    def scale(value):
        return value * 10


class Forest(Base):
    kind = "forest"
    trees = 8

    def __init__(self, depth):
        super().__init__(depth + 1)

    @property
    def size(self):
        return self.depth * self.trees


@dataclass
class Settings:
    rate: float = 0.5
    rounds: int = field(default=20)


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


class Shape:
    def __init__(self, width, height):
        self.width = width
        self.height = height

    def area(self):
        return self.width * self.height


class Named:
    def __init__(self, name):
        self.name = name

    def describe(self):
        return f"named {self.name}"


DEFAULT = Named("default")


class NotUsed:
    value = 1
""",
    "registry.py": """\
import contextlib
import functools


def double(value):
    return value * 2


def negate(value):
    return -value


OPERATIONS = {"double": double, "negate": negate}


@functools.singledispatch
def show(value):
    return "something"


@show.register
def _(value: int):
    return f"number {value}"


@show.register
def _(value: str):
    return f"text {value}"


@functools.lru_cache(maxsize=8)
def cached(value):
    return value + 100


def louder(function):
    @functools.wraps(function)
    def wrapper(value):
        return function(value) * 3

    return wrapper


@louder
def decorated(value):
    return value + 7


def repeat(times):
    def decorate(function):
        def wrapper(value):
            return [function(value)] * times

        return wrapper

    return decorate


@repeat(2)
def repeated(value):
    return value + 9


@contextlib.contextmanager
def opened():
    yield 31


def context():
    with opened() as value:
        return value


def caught():
    try:
        return int("x")
    except ValueError:
        return recover()


def recover():
    return -1


def matched(word):
    match word:
        case "one":
            return 1
        case _:
            return 0
""",
    "lazy.py": """\
from amounts import AMOUNT


def offset(total):
    return AMOUNT + total % 3
""",
    "amounts.py": "AMOUNT = 40\n",
    "fallback.py": """\
def repair(total):
    return -total
""",
    "starred.py": """\
def starred(value):
    return value + 21
""",
    "dead.py": """\
VALUE = 1
""",
    "package/__init__.py": """\
from .public_part import public
""",
    "package/public_part.py": """\
def public(value):
    return value * 13
""",
    "package/inner.py": """\
from . import tools


def relative(value):
    return tools.apply(value)
""",
    "package/tools.py": """\
def apply(value):
    return value + 77
""",
    "site-packages/tinydist/__init__.py": """\
def version_of():
    return "1.0"
""",
    "site-packages/tinydist-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tinydist\nVersion: 1.0\n",
    "site-packages/tinydist-1.0.dist-info/RECORD": "tinydist/__init__.py,,\ntinydist-1.0.dist-info/METADATA,,\n",
    "data/numbers.txt": "5\n8\n13\n",
}


@dataclass(frozen=True, slots=True)
class Edit:
    """One edit: replacements of text in files, and which steps' code it changes.

    `kind` is ``code``, or ``input`` for a changed data file, or ``environment`` for a changed variable.
    """

    name: str
    description: str
    replace: tuple[tuple[str, str, str], ...]
    must_rerun: frozenset[str] = frozenset()
    changes_result: bool = False
    kind: str = "code"
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


def write_project(folder: Path, edit: Edit | None = None) -> None:
    """Write the project into an empty folder, as it is after an edit."""
    files = dict(PROJECT)
    if edit is not None:
        for path, old, new in edit.replace:
            if files[path].count(old) != 1:
                raise ValueError(f"edit {edit.name!r}: {old!r} is not in {path!r} exactly once")
            files[path] = files[path].replace(old, new)
        files.update(edit.add)
        for path in edit.remove:
            del files[path]
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def _neutral(name: str, description: str, *replace: tuple[str, str, str]) -> Edit:
    return Edit(name, description, replace)


def _change(name: str, step: str, description: str, *replace: tuple[str, str, str]) -> Edit:
    return Edit(name, description, replace, frozenset(step.split()), changes_result=True)


P, L, C, G, M, R = "pipeline.py", "loading.py", "cleaning.py", "config.py", "models.py", "registry.py"

_NEUTRAL = [
    _neutral("comment", "a comment in a step", (P, "    total = 0\n", "    total = 0  # start at nothing\n")),
    _neutral(
        "comment above", "comments above everything", (P, "import functools\n", "# one\n# two\n\nimport functools\n")
    ),
    _neutral(
        "comment in helper", "a comment in a helper of another module", (C, "    value = s", "    # say\n    value = s")
    ),
    _neutral("docstring", "the docstring of a step", (P, '"""Load numbers."""', '"""Load all of the numbers."""')),
    _neutral("docstring of helper", "the docstring of a helper", (C, '"""Return a clean row."""', '"""Clean."""')),
    _neutral("docstring removed", "no docstring any more", (C, '    """Return a clean row."""\n', "")),
    _neutral("docstring of module", "the docstring of a module", (C, '"""Cleaning of numbers."""', '"""Cleans."""')),
    _neutral(
        "formatting",
        "a call over several lines",
        (
            P,
            "total + offset(total) + loading",
            "\n        total\n        + offset(\n            total\n        )\n        + loading",
        ),
    ),
    _neutral(
        "blank lines", "blank lines in a helper", (C, "    value = strip(row)\n", "\n\n    value = strip(row)\n\n")
    ),
    _neutral("quotes", "other quotes for a string", (P, '"kept": kept', "'kept': kept")),
    _neutral("parentheses", "parentheses that change nothing", (C, "return value * 2", "return (value * 2)")),
    _neutral(
        "condition wrapped",
        "a condition over several lines",
        (P, "if row > threshold]", "if\n        row\n        > threshold]"),
    ),
    _neutral(
        "rename of a local",
        "a local of a helper gets another name",
        (C, "value = strip(row)\n    return value * 2", "stripped = strip(row)\n    return stripped * 2"),
    ),
    _neutral(
        "rename of a loop variable",
        "a loop variable of a step gets another name",
        (
            P,
            "for row in rows:\n        total += loading.weight(row)",
            "for r in rows:\n        total += loading.weight(r)",
        ),
    ),
    _neutral(
        "rename in a comprehension",
        "the variable of a comprehension gets another name",
        (P, "[row for row in rows if row > threshold]", "[r for r in rows if r > threshold]"),
    ),
    _neutral(
        "rename of a helper",
        "a helper gets another name, its callers with it",
        (C, "strip(row)\n    return", "stripped(row)\n    return"),
        (C, "def strip(row)", "def stripped(row)"),
    ),
    _neutral(
        "rename of a constant",
        "a constant gets another name, its users with it",
        (L, "STEP = 1", "STRIDE = 1"),
        (L, "row + STEP", "row + STRIDE"),
    ),
    _neutral(
        "annotation of a helper", "a type annotation of a helper", (C, "def clean(row):", "def clean(row: int) -> int:")
    ),
    _neutral("annotation of a local", "a type annotation of a local", (C, "    value = s", "    value: int = s")),
    _neutral(
        "annotation changed",
        "another type annotation",
        (P, "def read(path: str) -> list[int]", "def read(path) -> list"),
    ),
    _neutral(
        "unused function",
        "a function that nothing calls",
        (C, "def not_called():\n    return 5", "def not_called():\n    return 6"),
    ),
    _neutral(
        "unused function in pipeline",
        "a function beside the steps",
        (P, "return value + 1\n\n\ndef make", "return 9\n\n\ndef make"),
    ),
    _neutral(
        "unused class",
        "a class that nothing uses",
        (M, "class NotUsed:\n    value = 1", "class NotUsed:\n    value = 2"),
    ),
    _neutral("unused constant", "a constant that nothing uses", (G, "UNUSED = 3", "UNUSED = 4")),
    _neutral(
        "new function",
        "a new function that nothing calls",
        (C, "def strip(row):", "def extra():\n    return 1\n\n\ndef strip(row):"),
    ),
    _neutral("unused import", "an import that nothing uses", (C, "COUNT = 0", "import json\n\nCOUNT = 0")),
    _neutral(
        "imports reordered",
        "imports in another order",
        (P, "import config\nimport loading\n", "import loading\nimport config\n"),
    ),
    _neutral(
        "functions reordered",
        "functions in another order",
        (C, "def strip(row):\n    return row - 1\n\n\n", ""),
        (C, "def not_called", "def strip(row):\n    return row - 1\n\n\ndef not_called"),
    ),
    _neutral(
        "constants reordered",
        "constants in another order",
        (G, "LIMIT = 10\nRATIO = 1\n", "RATIO = 1\nLIMIT = 10\n"),
    ),
    _neutral("resources", "another resource request", (P, "@step(num_cpus=1)", "@step(num_cpus=2)")),
    _neutral("retries", "other retries", (P, "@step(retries=1)", "@step(retries=5)")),
    _neutral(
        "options added",
        "options where there were none",
        (P, "@step\ndef train", "@step(num_cpus=1, retries=2)\ndef train"),
    ),
    _neutral("dead module", "a module that nothing imports", ("dead.py", "VALUE = 1", "VALUE = 2")),
    _neutral(
        "pipeline",
        "the pipeline's own function",
        (P, "return train(features(load()))", "rows = load()\n    return train(features(rows))"),
    ),
    _neutral(
        "main guard", "what runs when the file is a script", (P, "    demo()\n", '    demo()\n    print("done")\n')
    ),
    _neutral("module alias", "an import under another name", (P, "import loading\n", "import loading as loading\n")),
    _neutral("set order", "the order of a set", (G, '{"x", "y"}', '{"y", "x"}')),
    _neutral("same value", "a constant written in another way", (G, "LIMIT = 10", "LIMIT = 5 * 2")),
    _neutral(
        "helper moved",
        "a helper lives in another module and is imported from there",
        (C, "def strip(row):\n    return row - 1\n\n\n", ""),
        (C, "COUNT = 0", "from starred import strip\n\nCOUNT = 0"),
        ("starred.py", "def starred", "def strip(row):\n    return row - 1\n\n\ndef starred"),
    ),
    Edit("input", "a data file changed", (("data/numbers.txt", "13", "14"),), kind="input"),
]

_CHANGES = [
    _change("step body", "load", "the body of a step", (P, "total = 0\n", "total = 1\n")),
    _change("helper in same module", "load", "a helper beside the step", (P, "[int(line) for", "[2 * int(line) for")),
    _change(
        "helper in other module", "load", "a helper in another module", (L, "adjusted(row) * 2", "adjusted(row) * 3")
    ),
    _change("helper of helper", "features", "a helper of a helper", (C, "return row - 1", "return row - 2")),
    _change(
        "constant",
        "features",
        "a constant of a module",
        (G, 'NESTED = {"levels": [1, 2, 3]', 'NESTED = {"levels": [1, 5, 3]'),
    ),
    _change("constant of helper", "load", "a constant that a helper of a helper uses", (L, "STEP = 1", "STEP = 2")),
    _change("constant used twice", "features", "a constant with a value made from it", (G, "LIMIT = 10", "LIMIT = 11")),
    _change("string constant", "features", "a string", (P, 'f"rows: {', 'f"lines: {')),
    _change("f-string expression", "features", "an expression in a string", (P, "{len(kept)}", "{len(kept) + 1}")),
    _change("int to float", "features", "1 becomes 1.0", (G, "RATIO = 1\n", "RATIO = 1.0\n")),
    _change("int to bool", "features", "1 becomes True", (G, "FLAG = 1\n", "FLAG = True\n")),
    _change("set member", "features", "another member of a set", (G, '{"x", "y"}', '{"x", "z"}')),
    _change("default argument", "features", "a default", (P, "threshold: int = 2", "threshold: int = 3")),
    _change("keyword-only default", "features", "a keyword-only default", (P, "power: int = 2", "power: int = 3")),
    _change("closure variable", "features", "the value that a closure holds", (P, "make_scaler(3)", "make_scaler(4)")),
    _change(
        "closure body", "features", "the body of a closure", (P, "return value * factor", "return value * factor + 1")
    ),
    _change("nested function", "features", "a function inside of a step", (P, "value + 1000", "value + 2000")),
    _change(
        "comprehension filter", "features", "the filter of a comprehension", (P, "> threshold]", "> threshold + 1]")
    ),
    _change(
        "method", "train", "a method", (M, "self.scale(self.total) + self.depth", "self.scale(self.total) - self.depth")
    ),
    _change("static method", "train", "a static method of a base class", (M, "return value * 10", "return value * 11")),
    _change("property", "train", "a property", (M, "return self.depth * self.trees", "return self.depth + self.trees")),
    _change(
        "inherited method", "train", "a method of the base class", (M, "self.total = sum(", "self.total = 1 + sum(")
    ),
    _change(
        "super call",
        "train",
        "what is passed to the base class",
        (M, "super().__init__(depth + 1)", "super().__init__(depth + 2)"),
    ),
    _change("class attribute", "train", "an attribute of a class", (M, "trees = 8", "trees = 9")),
    _change(
        "overridden attribute", "train", "an attribute that hides one of the base", (M, '    kind = "forest"\n', "")
    ),
    _change(
        "metaclass method",
        "train",
        "the body of a metaclass",
        (M, "mcls.registered_as + name", "name + mcls.registered_as"),
    ),
    _change(
        "metaclass attribute",
        "train",
        "an attribute of a metaclass",
        (M, 'registered_as = "model"', 'registered_as = "class"'),
    ),
    _change(
        "base class",
        "train",
        "another base class",
        (
            M,
            "class Forest(Base):",
            "class Other(Base):\n    def fit(self, columns):\n        self.total = 7\n\n\nclass Forest(Other):",
        ),
    ),
    _change("dataclass default", "train", "the default of a field", (M, "rate: float = 0.5", "rate: float = 0.6")),
    _change("dataclass field", "train", "the default in field()", (M, "field(default=20)", "field(default=21)")),
    _change("enum member", "train", "the value of an enum's member", (M, "RED = 1", "RED = 5")),
    _change(
        "instance in a global",
        "train",
        "the state of an instance in a global",
        (M, 'Named("default")', 'Named("other")'),
    ),
    _change(
        "class of an instance",
        "train",
        "a method of an instance in a global",
        (M, 'f"named {self.name}"', 'f"called {self.name}"'),
    ),
    _change(
        "method of a plain class",
        "train",
        "a method of a class",
        (M, "self.width * self.height", "self.width + self.height"),
    ),
    _change(
        "dispatch table function", "train", "a function in a dict", (R, "return value * 2\n", "return value * 4\n")
    ),
    _change(
        "dispatch table entry",
        "train",
        "an entry of a dict",
        (R, '"negate": negate}', '"negate": negate, "more": double}'),
    ),
    _change(
        "dict order",
        "train",
        "the order of a dict that is iterated",
        (R, '"double": double, "negate": negate', '"negate": negate, "double": double'),
    ),
    _change(
        "dict values swapped",
        "train",
        "two functions change places",
        (R, '"double": double, "negate": negate', '"double": negate, "negate": double'),
    ),
    _change("singledispatch", "train", "a registered implementation", (R, 'f"number {value}"', 'f"integer {value}"')),
    _change(
        "singledispatch removed",
        "train",
        "an implementation is gone",
        (R, '@show.register\ndef _(value: str):\n    return f"text {value}"\n', ""),
    ),
    _change("lru_cache", "train", "a cached helper", (R, "return value + 100", "return value + 101")),
    _change("decorated helper", "train", "a decorated helper", (R, "return value + 7\n", "return value + 8\n")),
    _change(
        "decorator", "train", "the body of a decorator's wrapper", (R, "function(value) * 3", "function(value) * 4")
    ),
    _change("decorator removed", "train", "a decorator is gone", (R, "@louder\n", "")),
    _change("decorator argument", "train", "the argument of a decorator", (R, "@repeat(2)", "@repeat(3)")),
    _change("context manager", "train", "a generator under contextmanager", (R, "yield 31", "yield 32")),
    _change("exception handler", "train", "what an exception handler calls", (R, "return -1", "return -2")),
    _change("match case", "train", "a case", (R, "            return 1\n", "            return 3\n")),
    _change("partial argument", "features", "the argument of a partial", (P, "by=2", "by=3")),
    _change(
        "partial function", "features", "the function of a partial", (C, "return value / by", "return value // by")
    ),
    _change("lambda", "features", "a lambda", (P, "value + 19", "value + 20")),
    _change("recursion", "load", "a recursive helper", (L, "2 + shift(total - 10)", "3 + shift(total - 10)")),
    _change("mutual recursion", "load", "a helper in a cycle", (L, "2 + parity(number - 1)", "3 + parity(number - 1)")),
    _change("generator", "load", "a generator", (L, "yield number * 5", "yield number * 6")),
    _change("async", "load", "a coroutine", (L, "return total % 17", "return total % 7 + 20")),
    _change("walrus", "load", "an assignment expression", (L, "total // 2", "total // 3")),
    _change(
        "function-level import",
        "load",
        "a helper imported in the body",
        ("lazy.py", "AMOUNT + total % 3", "AMOUNT - total % 3 - 1"),
    ),
    _change(
        "import of an import",
        "load",
        "a constant that a module imported in the body imports",
        ("amounts.py", "40", "41"),
    ),
    Edit(
        "conditional import",
        "a helper imported in a branch",
        (("fallback.py", "return -total", "return -total + 1"),),
        frozenset({"load"}),
    ),
    _change("star import", "features", "a function that came by a star", ("starred.py", "value + 21", "value + 22")),
    _change(
        "re-export",
        "features",
        "a function that a package offers",
        ("package/public_part.py", "value * 13", "value * 14"),
    ),
    _change(
        "re-export of another",
        "features",
        "a package offers another function under the name",
        ("package/__init__.py", "from .public_part import public", "from .tools import apply as public"),
    ),
    _change(
        "relative import",
        "features",
        "a function in a sibling module",
        ("package/tools.py", "value + 77", "value + 78"),
    ),
    _change("global statement", "features", "a global that a function sets", (C, "COUNT = 5", "COUNT = 6")),
    _change("global dict", "features", "a value in a dict", (C, '"first": 11', '"first": 12')),
    _change(
        "reassigned global",
        "features",
        "the second assignment of a global",
        (G, "DERIVED * 2 + LIMIT", "DERIVED * 3 + LIMIT"),
    ),
    _change("first assignment", "features", "the first assignment of a global", (G, "DERIVED = 4", "DERIVED = 5")),
    Edit(
        "import alias",
        "another module under the same name",
        ((P, "import cleaning as tidy", "import cleaning2 as tidy"),),
        frozenset({"features"}),
        changes_result=True,
        add=(("cleaning2.py", PROJECT["cleaning.py"].replace("row - 1", "row - 5")),),
    ),
    _change(
        "helper replaced",
        "features",
        "a helper assigned at module level",
        (C, "def not_called", "strip = lambda row: row * 9\n\n\ndef not_called"),
    ),
    _change(
        "monkeypatch",
        "features",
        "the pipeline's module replaces a helper",
        (P, "scaler = make", "tidy.strip = lambda row: row * 8\nscaler = make"),
    ),
    _change(
        "shadowed builtin",
        "features",
        "a function with the name of a builtin",
        (P, "def unused(value", "def len(values):\n    return 99\n\n\ndef unused(value"),
    ),
    _change(
        "two steps",
        "load features",
        "a body of each of two steps",
        (P, "total = 0\n", "total = 1\n"),
        (P, "value + 1000", "value + 3000"),
    ),
    Edit(
        "environment",
        "a variable that is read at import",
        (),
        frozenset({"features"}),
        changes_result=True,
        kind="environment",
        environment=(("EDITS_MODE", "loud"),),
    ),
    Edit(
        "package version",
        "another version of a package",
        (("site-packages/tinydist/__init__.py", '"1.0"', '"1.1"'),),
        frozenset({"features"}),
        changes_result=True,
        add=(
            ("site-packages/tinydist-1.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinydist\nVersion: 1.1\n"),
            ("site-packages/tinydist-1.1.dist-info/RECORD", "tinydist/__init__.py,,\n"),
        ),
        remove=("site-packages/tinydist-1.0.dist-info/METADATA", "site-packages/tinydist-1.0.dist-info/RECORD"),
    ),
]

EDITS: tuple[Edit, ...] = (*_NEUTRAL, *_CHANGES)
