"""A fingerprint's state: every change of what it was taken of is noticed, and nothing else costs a new one."""

# ruff: noqa: E501 - a case of a table stays on one line

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from zenray.fingerprint import Fingerprints, watched

Load = Callable[..., ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Write the modules `main` and `a` into a new folder and import `main`."""

    def forget() -> None:
        sys.modules.pop("main", None)
        sys.modules.pop("a", None)
        importlib.invalidate_caches()

    def load_one(main: str, a: str = "") -> ModuleType:
        (tmp_path / "main.py").write_text(main)
        (tmp_path / "a.py").write_text(a)
        forget()
        return importlib.import_module("main")

    monkeypatch.syspath_prepend(str(tmp_path))
    yield load_one
    forget()


# A module, and a statement that changes what its f does, run with the module as m.
CHANGES: dict[str, tuple[str, str]] = {
    "global": ("X = 1\ndef f(): return X", "m.X = 2"),
    "global that becomes equal": ("X = 1\ndef f(): return X", "m.X = True"),
    "global that becomes None": ("X = 1\ndef f(): return X", "m.X = None"),
    "global that is deleted": ("X = 1\ndef f(): return X", "del m.X"),
    "global that was missing": ("def f(): return X", "m.X = 1"),
    "global that hides a builtin": ("def f(): return len([])", "m.len = lambda x: 5"),
    "builtin": ("def f(): return fp_none()", "import builtins\nbuiltins.fp_none = lambda: 1"),
    "global in a query": ("import pandas\nX = 1\ndef f(): return pandas.DataFrame({'a': [1]}).query('a == @X')", "m.X = 2"),
    "global in a formula": ("def g(x): return x\ndef f(fit): return fit('y ~ g(x)')", "m.g = lambda x: 2"),
    "global read through globals()": ("X = 1\ndef f(): return globals()['X']", "m.X = 2"),
    "global that globals() finds later": ("def f(): return globals().get('X')", "m.X = 2"),
    "global by getattr": ("import sys\nX = 1\nM = sys.modules[__name__]\ndef f(): return getattr(M, 'X')", "m.X = 2"),
    "helper": ("def g(): return 1\ndef f(): return g()", "m.g = lambda: 2"),
    "helper of a helper": ("def h(): return 1\ndef g(): return h()\ndef f(): return g()", "m.h = lambda: 2"),
    "code of a helper": ("def g(): return 1\ndef h(): return 2\ndef f(): return g()", "m.g.__code__ = m.h.__code__"),
    "defaults": ("def g(x=1): return x\ndef f(): return g()", "m.g.__defaults__ = (2,)"),
    "keyword defaults": ("def g(*, x=1): return x\ndef f(): return g()", "m.g.__kwdefaults__ = {'x': 2}"),
    "keyword default in place": ("def g(*, x=1): return x\ndef f(): return g()", "m.g.__kwdefaults__['x'] = 2"),
    "mutable default": ("def g(x=[]): return x\ndef f(): return g()", "m.g.__defaults__[0].append(1)"),
    "attribute of a function": ("def g(): pass\ng.x = 1\ndef f(): return g.x", "m.g.x = 2"),
    "new attribute of a function": ("def g(): pass\ndef f(): return g.x", "m.g.x = 2"),
    "cell": ("def make():\n n = 0\n def a():\n  nonlocal n\n  n += 1\n def b(): return n\n return a, b\na, b = make()\ndef f(): return b()", "m.a()"),
    "cell that was empty": ("def make():\n def a():\n  nonlocal n\n  n = 1\n def b(): return n\n if 0: n = 0\n return a, b\na, b = make()\ndef f(): return b()", "m.a()"),
    "list": ("X = [1]\ndef f(): return X", "m.X.append(2)"),
    "item of a list": ("X = [1]\ndef f(): return X", "m.X[0] = 2"),
    "item of a list that becomes equal": ("X = [0.0]\ndef f(): return X", "m.X[0] = -0.0"),
    "dict": ("X = {}\ndef f(): return X", "m.X['a'] = 1"),
    "item of a dict": ("X = {'a': 1}\ndef f(): return X", "m.X['a'] = 2"),
    "order of a dict": ("X = {'a': 1, 'b': 2}\ndef f(): return X", "m.X['a'] = m.X.pop('a')"),
    "key of a dict": ("X = {'a': 1}\ndef f(): return X", "m.X['b'] = m.X.pop('a')"),
    "set": ("X = {1}\ndef f(): return X", "m.X.add(2)"),
    "member of a set": ("X = {1}\ndef f(): return X", "m.X.add(m.X.pop() + 1)"),
    "bytes": ("X = bytearray(b'a')\ndef f(): return X", "m.X[0] = 1"),
    "list in a tuple": ("X = (1, [1])\ndef f(): return X", "m.X[1].append(2)"),
    "dict in a list in a dict": ("X = {'a': [1, {'b': 2}]}\ndef f(): return X", "m.X['a'][1]['b'] = 3"),
    "large list": ("X = [0] * 5000\ndef f(): return X", "m.X[4999] = 1"),
    "deque": ("from collections import deque\nX = deque([1])\ndef f(): return X", "m.X.append(1)"),
    "deque of what cannot be pickled": ("from collections import deque\nX = deque([lambda: 1])\ndef f(): return X", "m.X.append(1)"),
    "list in a deque": ("from collections import deque\nX = deque([[1]])\ndef f(): return X", "m.X[0].append(1)"),
    "counter": ("from collections import Counter\nX = Counter('a')\ndef f(): return X", "m.X['a'] += 1"),
    "default dict": ("from collections import defaultdict\nX = defaultdict(lambda: 1)\ndef f(): return X[0]", "m.X[1]"),
    "factory of a default dict": ("from collections import defaultdict\nX = defaultdict(list)\ndef f(): return X[0]", "m.X.default_factory = dict"),
    "ordered dict": ("from collections import OrderedDict\nX = OrderedDict(a=1, b=2)\ndef f(): return X", "m.X.move_to_end('a')"),
    "namespace": ("import types\nX = types.SimpleNamespace(a=1)\ndef f(): return X.a", "m.X.a = 2"),
    "view of a dict": ("import types\nD = {'a': 1}\nX = types.MappingProxyType(D)\ndef f(): return X", "m.D['a'] = 2"),
    "class attribute": ("class C: x = 1\ndef f(): return C.x", "m.C.x = 2"),
    "new class attribute": ("class C: pass\ndef f(): return C.x", "m.C.x = 2"),
    "list in a class": ("class C: x = [1]\ndef f(): return C.x", "m.C.x.append(2)"),
    "method": ("class C:\n def g(s): return 1\ndef f(): return C().g()", "m.C.g = lambda s: 2"),
    "method of a base class": ("class B:\n def g(s): return 1\nclass C(B): pass\ndef f(): return C().g()", "m.B.g = lambda s: 2"),
    "base class": ("class A: x = 1\nclass B: x = 2\nclass C(A): pass\ndef f(): return C.x", "m.C.__bases__ = (m.B,)"),
    "attribute of a metaclass": ("class M(type): x = 1\nclass C(metaclass=M): pass\ndef f(): return C.x", "m.M.x = 2"),
    "code of a method": ("class C:\n def g(s): return 1\ndef h(s): return 2\ndef f(): return C().g()", "m.C.g.__code__ = m.h.__code__"),
    "virtual subclass": ("import abc\nclass A(abc.ABC): pass\nclass B: pass\ndef f(): return isinstance(B(), A)", "m.A.register(m.B)"),
    "subclass that is asked for": ("class A: pass\ndef f(): return A.__subclasses__()", "m.B = type('B', (m.A,), {})"),
    "attribute of a member": ("import enum\nclass E(enum.Enum):\n A = 1\nE.A.x = 1\ndef f(): return E.A.x", "m.E.A.x = 2"),
    "attribute of an instance": ("class C: pass\nX = C()\nX.x = 1\ndef f(): return X.x", "m.X.x = 2"),
    "new attribute of an instance": ("class C: pass\nX = C()\ndef f(): return X.x", "m.X.x = 2"),
    "all attributes of an instance": ("class C: pass\nX = C()\nX.x = 1\ndef f(): return X.x", "m.X.__dict__ = {'x': 2}"),
    "list of an instance": ("class C:\n def __init__(s): s.x = [1]\nX = C()\ndef f(): return X.x", "m.X.x.append(2)"),
    "instance in an instance": ("class C: pass\nX, Y = C(), C()\nX.y, Y.x = Y, 1\ndef f(): return X.y.x", "m.Y.x = 2"),
    "class of an instance": ("class A: x = 1\nclass B: x = 2\nX = A()\ndef f(): return X.x", "m.X.__class__ = m.B"),
    "instance that cannot be pickled": ("import threading\nclass C:\n __slots__ = ('x', 'lock')\nX = C()\nX.x, X.lock = 1, threading.Lock()\ndef f(): return X.x", "m.X.x = 2"),
    "instance that hides its state": ("class C:\n def __getstate__(s): return {}\nX = C()\nX.x = 1\ndef f(): return X.x", "m.X.x = 2"),
    "slot": ("class C: __slots__ = ('x',)\nX = C()\nX.x = 1\ndef f(): return X.x", "m.X.x = 2"),
    "slot that was empty": ("class C: __slots__ = ('x',)\nX = C()\ndef f(): return X.x", "m.X.x = 2"),
    "slot that is emptied": ("class C: __slots__ = ('x',)\nX = C()\nX.x = 1\ndef f(): return X.x", "del m.X.x"),
    "content of a list subclass": ("class L(list): pass\nX = L([1])\ndef f(): return X", "m.X.append(2)"),
    "content of a dict subclass": ("class D(dict): pass\nX = D(a=1)\ndef f(): return X", "m.X['a'] = 2"),
    "content of a subclass of a default dict": ("from collections import defaultdict\nclass D(defaultdict): pass\nX = D(int)\ndef f(): return X", "m.X['a']"),
    "argument of an exception": ("class E(Exception): pass\nX = E(1)\ndef f(): raise X", "m.X.args = (2,)"),
    "dataclass": ("from dataclasses import dataclass\n@dataclass\nclass C: x: int = 1\nX = C()\ndef f(): return X", "m.X.x = 2"),
    "dataclass with slots": ("from dataclasses import dataclass\n@dataclass(slots=True)\nclass C: x: int = 1\nX = C()\ndef f(): return X", "m.X.x = 2"),
    "pydantic model": ("import pydantic\nclass C(pydantic.BaseModel): x: int = 1\nX = C()\ndef f(): return X", "m.X.x = 2"),
    "attrs": ("import attrs\n@attrs.define\nclass C: x: int = 1\nX = C()\ndef f(): return X", "m.X.x = 2"),
    "object behind a method": ("class C:\n def g(s): return s.x\nX = C()\nX.x = 1\ng = X.g\ndef f(): return g()", "m.X.x = 2"),
    "object behind a builtin method": ("D = {1: 2}\ng = D.get\ndef f(): return g(1)", "m.D[1] = 3"),
    "argument of a partial": ("import functools\ndef g(x): return x\nh = functools.partial(g, [1])\ndef f(): return h()", "m.h.args[0].append(2)"),
    "keyword of a partial": ("import functools\ndef g(x): return x\nh = functools.partial(g, x=1)\ndef f(): return h()", "m.h.keywords['x'] = 2"),
    "attribute of a partial": ("import functools\nh = functools.partial(int)\nh.x = 1\ndef f(): return h.x", "m.h.x = 2"),
    "instance behind a partial": ("import functools\nclass C:\n def __call__(s): return s.x\nX = C()\nX.x = 1\nh = functools.partial(X)\ndef f(): return h()", "m.X.x = 2"),
    "descriptor": ("class D:\n def __init__(s, n): s.n = n\n def __get__(s, i, o): return s.n\nclass C: d = D(1)\ndef f(): return C().d", "vars(m.C)['d'].n = 2"),
    "attribute of a subclass of property": ("class P(property): pass\nclass C:\n @P\n def g(s): return vars(C)['g'].x\nvars(C)['g'].x = 1\ndef f(): return C().g", "vars(m.C)['g'].x = 2"),
    "implementation registered later": ("import functools\n@functools.singledispatch\ndef g(x): return 0\ndef f(): return g(1)", "m.g.register(int, lambda x: 1)"),
    "implementation of a method registered later": ("import functools\nclass C:\n @functools.singledispatchmethod\n def g(s, x): return 0\ndef f(): return C().g(1)", "vars(m.C)['g'].register(int, lambda s, x: 1)"),
    "array": ("import numpy\nX = numpy.zeros(3)\ndef f(): return X", "m.X[0] = 5"),
    "negative zero in an array": ("import numpy\nX = numpy.zeros(3)\ndef f(): return X", "m.X[0] = -0.0"),
    "shape of an array": ("import numpy\nX = numpy.zeros((2, 3))\ndef f(): return X", "m.X.resize((3, 2), refcheck=False)"),
    "array of objects": ("import numpy\nX = numpy.array([[1], 2], dtype=object)\ndef f(): return X", "m.X[0].append(2)"),
    "frame": ("import pandas\nX = pandas.DataFrame({'a': [1, 2]})\ndef f(): return X", "m.X.loc[0, 'a'] = 5"),
    "array behind a frame": ("import numpy, pandas\nA = numpy.zeros((2, 2))\nX = pandas.DataFrame(A, copy=False)\ndef f(): return X", "m.A[0, 0] = 5"),
    "column of a frame": ("import pandas\nX = pandas.DataFrame({'a': [1, 2]})\ndef f(): return X", "m.X['b'] = 1"),
    "names of a frame's columns": ("import pandas\nX = pandas.DataFrame({'a': [1, 2]})\ndef f(): return X", "m.X.columns = ['b']"),
    "tensor": ("import torch\nX = torch.zeros(3)\ndef f(): return X", "m.X[0] = 5"),
    "estimator": ("from sklearn.linear_model import Ridge\nX = Ridge(alpha=1)\ndef f(): return X", "m.X.alpha = 2"),
    "random generator": ("import random\nX = random.Random(1)\ndef f(): return X.random()", "m.X.random()"),
    "counter of itertools": ("import itertools\nX = itertools.count()\ndef f(): return next(X)", "next(m.X)"),
    "function of a library": ("import math\ndef f(): return math.floor(1.5)", "import math\nmonkeypatch.setattr(math, 'floor', m.f)"),
    "function put into a library": ("import math\ndef f(): return math.fp_none()", "import math\nmonkeypatch.setattr(math, 'fp_none', m.f, raising=False)"),
    "global that an import-time statement reads": ("import random\nX = 1\nrandom.seed(X)\ndef f(): return random.random()", "m.X = 2"),
    "cached property": ("import functools\nclass C:\n @functools.cached_property\n def x(s): return 1\nX = C()\ndef f(): return X.x", "m.X.x"),
}  # fmt: skip

# The same, of another module called a.
OTHER_CHANGES: dict[str, tuple[str, str, str]] = {
    "global": ("import a\ndef f(): return a.X", "X = 1", "m.a.X = 2"),
    "global that was missing": ("import a\ndef f(): return a.X", "", "m.a.X = 2"),
    "global of a helper": ("from a import g\ndef f(): return g()", "X = 1\ndef g(): return X", "import a\na.X = 2"),
    "global of the whole module": ("import a\nM = [a]\ndef f(): return M", "X = 1", "m.a.X = 2"),
    "new global of the whole module": ("import a\nM = [a]\ndef f(): return M", "X = 1", "m.a.Y = 2"),
    "name imported in the body": ("import a\ndef f():\n from a import X\n return X", "X = 1", "m.a.X = 2"),
    "missing name imported in the body": ("import a\ndef f():\n from a import X\n return X", "", "m.a.X = 2"),
    "module imported in the body": ("import a\ndef f():\n import a\n return a.X", "X = 1", "m.a.X = 2"),
    "module replaced": ("import a\ndef f():\n import a\n return a.X", "X = 1", "import sys, types\nsys.modules['a'] = types.ModuleType('a')"),
    "module loaded later": ("def f():\n import a\n return a.X", "X = 1", "m.f()"),
    "module loaded later for a name": ("def f():\n from a import X\n return X", "X = 1", "m.f()"),
    "module loaded later by its name": ("import importlib\ndef f(): return importlib.import_module('a').X", "X = 1", "m.f()"),
}  # fmt: skip


def change(module: ModuleType, statement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exec(statement, {"m": module, "monkeypatch": monkeypatch})


def is_noticed(module: ModuleType, statement: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    found, state = watched(module.f)
    assert found.problems == ()
    assert state.holds()
    assert watched(module.f)[0] == found
    assert state.holds()
    change(module, statement, monkeypatch)
    return not state.holds()


@pytest.mark.filterwarnings("ignore:Pickle, copy, and deepcopy support:DeprecationWarning")
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed(load: Load, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, statement = CHANGES[name]
    assert is_noticed(load(source), statement, monkeypatch)


@pytest.mark.parametrize("name", OTHER_CHANGES)
def test_a_change_of_another_module_is_noticed(load: Load, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, other, statement = OTHER_CHANGES[name]
    assert is_noticed(load(source, other), statement, monkeypatch)


# What changes nothing that f uses must not cost a new fingerprint.
NEUTRAL: dict[str, tuple[str, str]] = {
    "call": ("def g(): return 1\ndef f(): return g()", "m.f()"),
    "unused global": ("X, Y = 1, [1]\ndef f(): return 1", "m.X = 2\nm.Y.append(2)"),
    "new global": ("def f(): return 1", "m.X = 2"),
    "global of the same name elsewhere": ("import a\nX = 1\ndef f(): return X", "m.a.X = 2"),
    "call of a cached helper": ("import functools\n@functools.lru_cache\ndef g(x): return x\ndef f(): return g(1)", "m.f()"),
    "lock": ("import threading\nL = threading.Lock()\ndef f(): return L", "m.L.acquire()"),
    "logger": ("import logging\nL = logging.getLogger('fp')\ndef f(): L.info('a')", "m.L.setLevel(10)"),
    "call of a generic function": ("import functools\n@functools.singledispatch\ndef g(x): return 0\ndef f(): return g(1)", "m.f()"),
    "instance of a dataclass": ("from dataclasses import dataclass\n@dataclass\nclass C: x: int = 1\ndef f(): return C()", "m.f()"),
    "array": ("import numpy\nX = numpy.zeros(3)\ndef f(): return X + 1", "m.f()"),
    "frame": ("import pandas\nX = pandas.DataFrame({'a': [1, 2]})\ndef f(): return X.sum().sum(), X['a'], X.iloc[0]", "m.f()"),
    "pattern": ("import re\nX = re.compile('a')\ndef f(): return X.match('a')", "m.f()"),
    "library imported in the body": ("def f():\n import colorsys\n return colorsys.ONE_THIRD", "m.f()"),
    "warning": ("import warnings\ndef f():\n with warnings.catch_warnings():\n  warnings.simplefilter('ignore')\n  warnings.warn('a')", "m.f()"),
    "isinstance of an abstract class": ("import abc\nclass A(abc.ABC): pass\ndef f(): return isinstance(1, A)", "m.f()"),
}  # fmt: skip


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_is_not_used_costs_nothing(load: Load, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, statement = NEUTRAL[name]
    assert not is_noticed(load(source, "X = 1"), statement, monkeypatch)


@pytest.fixture
def fingerprints() -> Fingerprints:
    return Fingerprints()


def test_a_fingerprint_is_taken_once_until_something_changes(load: Load, fingerprints: Fingerprints) -> None:
    module = load("X = 1\ndef f(): return X")
    first = fingerprints.of(module.f)
    assert fingerprints.of(module.f) is first
    module.X = 2
    second = fingerprints.of(module.f)
    assert second.digest != first.digest
    assert fingerprints.of(module.f) is second


LAZY = {
    "module": ("def f():\n import a\n return a.X", "X = 1"),
    "name": ("def f():\n from a import X\n return X", "X = 1"),
    "name of a module": ("import importlib\ndef f(): return importlib.import_module('a').X", "X = 1"),
    "submodule": ("def f():\n import p.b\n return p.b.X", ""),
    "name of a submodule": ("def f():\n from p.b import X\n return X", ""),
    "submodule of a loaded package": ("import p\ndef f():\n import p.b\n return p.b.X", ""),
    "submodule as a name": ("import p\ndef f():\n from p import b\n return b.X", ""),
    "module that imports others": ("def f():\n import a\n return a.p.b.X", "import p.b, p.c"),
    "module imported by a helper": ("def g():\n import a\n return a.X\ndef f(): return g()", "X = 1"),
    "module imported in a module imported": (
        "def f():\n import a\n return a.g()",
        "def g():\n from p.b import X\n return X",
    ),
}


@pytest.mark.parametrize("name", LAZY)
def test_a_module_that_a_step_imports_as_it_is_written_changes_nothing(
    load: Load, package: Path, fingerprints: Fingerprints, name: str
) -> None:
    module = load(*LAZY[name])
    found = fingerprints.of(module.f)
    for _ in range(2):
        with fingerprints.kept():
            assert module.f() == 1
        assert fingerprints.of(module.f) is found
    last = sys.modules.get("p.b") or sys.modules["a"]
    vars(last)["X"] = 2
    assert fingerprints.of(module.f).digest != found.digest


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Path]:
    """A package with two modules."""
    (tmp_path / "p").mkdir()
    for name, text in {"__init__": "", "b": "X = 1", "c": "X = 1"}.items():
        (tmp_path / "p" / f"{name}.py").write_text(text)
    yield tmp_path / "p"
    for name in ("p", "p.b", "p.c"):
        sys.modules.pop(name, None)


CHANGED_LAZILY = {
    "by the step that imports it": ("def f():\n import a\n a.X += 1\n return a.X", "X = 1"),
    "by a function of its own": (
        "def f():\n import a\n return a.count()",
        "X = 1\ndef count():\n global X\n X += 1\n return X",
    ),
    "by a module imported later": ("def f():\n import a\n import p.b\n return a.X", "X = 1"),
}


@pytest.mark.parametrize("name", CHANGED_LAZILY)
def test_a_module_that_was_changed_after_its_import_counts(
    load: Load, package: Path, fingerprints: Fingerprints, name: str
) -> None:
    (package / "b.py").write_text("import a\na.X = 2")
    module = load(*CHANGED_LAZILY[name])
    found = fingerprints.of(module.f)
    with fingerprints.kept():
        assert module.f() == 2
    assert fingerprints.of(module.f).digest != found.digest


def test_an_edit_of_a_module_before_its_import_counts(load: Load, tmp_path: Path, fingerprints: Fingerprints) -> None:
    module = load("def f():\n import a\n return a.X", "X = 1")
    found = fingerprints.of(module.f)
    (tmp_path / "a.py").write_text("X = 22")
    edited = fingerprints.of(module.f)
    assert edited.digest != found.digest
    with fingerprints.kept():
        assert module.f() == 22
    assert fingerprints.of(module.f) is edited


def test_a_module_that_cannot_be_imported_is_left_to_the_step(load: Load, fingerprints: Fingerprints) -> None:
    module = load("def f():\n try: import a\n except ZeroDivisionError: return 1", "1 / 0")
    found = fingerprints.of(module.f)
    path = list(sys.meta_path)
    with fingerprints.kept():
        assert module.f() == 1
    assert sys.meta_path == path
    assert fingerprints.of(module.f) is found


def test_a_loader_is_what_it_was(load: Load, fingerprints: Fingerprints) -> None:
    module = load("def f():\n import a\n return a.X", "X = __loader__.get_source(__name__)")
    fingerprints.of(module.f)
    with fingerprints.kept():
        assert module.f().startswith("X = ")
    assert "exec_module" not in vars(sys.modules["a"].__loader__)
    assert importlib.reload(sys.modules["a"]) is sys.modules["a"]


def test_an_edit_of_a_module_while_the_step_runs_that_imports_it_is_noticed(
    load: Load, tmp_path: Path, fingerprints: Fingerprints
) -> None:
    module = load("def f(before):\n before()\n import a\n return a.X", "X = 1")
    found = fingerprints.of(module.f)
    with fingerprints.kept() as doubts:
        assert module.f(lambda: (tmp_path / "a.py").write_text("X = 22")) == 22
    assert [f"module 'a' ({tmp_path / 'a.py'}) is not what" in doubt for doubt in doubts] == [True]
    assert fingerprints.of(module.f).digest != found.digest
    with fingerprints.kept() as doubts:
        assert module.f(lambda: None) == 22
    assert not doubts


# A function that imports `a` after `edit` has been called with the folder, and what is doubted then.
TRIES = "def f(edit):\n edit()\n try: import a\n except Exception: return 0\n return a.X"
EDITED_LATE: dict[str, tuple[str, str, Callable[[Path], object], list[str]]] = {
    "into one that raises": (TRIES, "X = 1", lambda d: (d / "a.py").write_text("1 / 0"), ["a"]),
    "into one that is no Python": (TRIES, "X = 1", lambda d: (d / "a.py").write_text("1 +"), ["a"]),
    "removed": (TRIES, "X = 1", lambda d: (d / "a.py").unlink(), ["a"]),
    "made": (
        TRIES.replace("import a", "import fp_new as a"),
        "",
        lambda d: (d / "fp_new.py").write_text("X = 1"),
        ["fp_new"],
    ),
    "in its own place by a package": (
        TRIES,
        "X = 1",
        lambda d: ((d / "a").mkdir(), (d / "a" / "__init__.py").write_text("X = 2")),
        ["a"],
    ),
    "imported by one that fails": (
        TRIES,
        "import p.b\n1 / 0",
        lambda d: (d / "p" / "b.py").write_text("X = 22"),
        ["p.b"],
    ),
    "package": (
        "def f(edit):\n edit()\n import p.b\n return p.b.X",
        "",
        lambda d: (d / "p" / "__init__.py").write_text("Y = 1"),
        ["p"],
    ),
    "by a name in a call": (
        "import importlib\ndef f(edit):\n edit()\n return importlib.import_module('a').X",
        "X = 1",
        lambda d: (d / "a.py").write_text("X = 22"),
        ["a"],
    ),
    "imported by a helper": (
        "def g():\n import a\n return a.p.b.X\ndef f(edit):\n edit()\n return g()",
        "import p.b",
        lambda d: (d / "p" / "b.py").write_text("X = 22"),
        ["p.b"],
    ),
    "after its import": (
        "def f(edit):\n import a\n edit()\n import a\n return a.X",
        "X = 1",
        lambda d: (d / "a.py").write_text("X = 22"),
        [],
    ),
    "another one before its import": (
        "def f(edit):\n import a\n edit()\n from p.b import X\n return X",
        "X = 1",
        lambda d: (d / "p" / "b.py").write_text("X = 22"),
        ["p.b"],
    ),
    "one that is not imported": (
        TRIES,
        "def g(): import p.b\nX = 1",
        lambda d: (d / "p" / "b.py").write_text("X = 22"),
        [],
    ),
}


@pytest.mark.parametrize("name", EDITED_LATE)
def test_only_imports_of_what_no_fingerprint_has_are_doubted(
    load: Load, tmp_path: Path, package: Path, fingerprints: Fingerprints, name: str
) -> None:
    main, a, edit, doubted = EDITED_LATE[name]
    module = load(main, a)
    assert not fingerprints.of(module.f).problems
    with fingerprints.kept() as doubts:
        module.f(lambda: (edit(tmp_path), importlib.invalidate_caches()))
    sys.modules.pop("fp_new", None)
    assert [doubt.split("'")[1] for doubt in doubts] == doubted


def test_a_run_inside_of_a_step_follows_imports_too(load: Load, tmp_path: Path) -> None:
    module = load("def f():\n import a\n return a.X", "X = 1")
    outer, inner = Fingerprints(), Fingerprints()
    found = outer.of(module.f)
    inner.of(module.f)
    with outer.kept() as outer_doubts, inner.kept() as inner_doubts:
        assert module.f() == 1
    assert outer.of(module.f) is found
    assert not outer_doubts + inner_doubts
    del sys.modules["a"]
    outer.of(module.f)
    inner.of(module.f)
    (tmp_path / "a.py").write_text("X = 22")
    with outer.kept() as outer_doubts, inner.kept() as inner_doubts:
        assert module.f() == 22
    assert len(outer_doubts) == len(inner_doubts) == 1


@pytest.mark.parametrize("how", ["importlib.reload(a)", "from importlib import reload; reload(a)"])
def test_a_function_that_reloads_a_module_cannot_be_followed(load: Load, how: str) -> None:
    module = load(f"import importlib, a\ndef f():\n {how}\n return a.X", "X = 1")
    assert any("reload" in problem for problem in watched(module.f)[0].problems)


MEMORY = "import functools\nX, Y = 1, 1\n@functools.lru_cache\ndef g(n): return X + n\ndef f(): return g(1) + Y"


def test_a_memory_of_a_helper_is_harmless_while_its_code_reads_the_same(load: Load, fingerprints: Fingerprints) -> None:
    module = load(MEMORY)
    assert module.f() == 3
    fingerprints.of(module.f)
    module.Y = 2
    assert fingerprints.of(module.f).problems == ()
    assert module.f() == 4


def test_a_memory_of_other_values_is_a_problem_until_it_is_cleared(load: Load, fingerprints: Fingerprints) -> None:
    module = load(MEMORY)
    first = fingerprints.of(module.f)
    module.f()
    module.X = 2
    (problem,) = fingerprints.of(module.f).problems
    assert "g.cache_clear()" in problem
    assert module.f() == 3  # which is not what a new process would say
    module.X = 1
    assert fingerprints.of(module.f).problems == (problem,)
    module.g.cache_clear()
    module.X = 2
    assert fingerprints.of(module.f).problems == ()
    module.X = 1
    assert fingerprints.of(module.f) == first
