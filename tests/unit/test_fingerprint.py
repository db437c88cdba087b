"""What changes a fingerprint, what does not, and what makes it say that it cannot know."""

import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zenray.fingerprint import Fingerprint, Fingerprinter, distribution_of, fingerprint

Take = Callable[..., Fingerprint]


@pytest.fixture
def take(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Take]:
    """Write files to a new folder, import the module `main` from there and take the fingerprint of its `f`."""
    path, modules = list(sys.path), set(sys.modules)

    def forget() -> None:
        for name in set(sys.modules) - modules:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if "/project" in file or "/project" in str(getattr(sys.modules[name], "__path__", "")):
                del sys.modules[name]
        importlib.invalidate_caches()

    def take_one(main: str, /, *, fresh: bool = True, **others: str) -> Fingerprint:
        folder = tmp_path_factory.mktemp("project")
        for name, text in {"main": main, **others}.items():
            file = folder / f"{name.replace('__in__', '/').replace('__init', '/__init__')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))
        forget()
        sys.path[:] = [str(folder), *path]
        return fingerprint(importlib.import_module("main").f)

    yield take_one
    forget()
    sys.path[:] = path


# Each is a module before and after an edit that changes what f returns.
CHANGES: dict[str, tuple[str, str, str]] = {
    "keyword of a call": ("def f(): return dict(a=1)", "a=1", "b=1"),
    "operator": ("def f(x): return x + 1", "x + 1", "x - 1"),
    "comparison": ("def f(x): return x < 1", "<", "<="),
    "order of operands": ("def f(x, y): return x - y", "x - y", "y - x"),
    "order of parameters": ("def f(x, y): return 1", "x, y", "y, x"),
    "name of a parameter": ("def f(x): return x", "x", "z"),
    "kind of a parameter": ("def f(x): return x", "(x)", "(x, /)"),
    "variadic": ("def f(*x): return x", "*x", "**x"),
    "two locals swapped": ("def f():\n a = 1; b = 2\n return a", "return a", "return b"),
    "negative zero": ("def f(): return 0.0", "0.0", "-0.0"),
    "bytes and text": ("def f(): return 'a'", "'a'", "b'a'"),
    "tuple and list": ("X = (1,)\ndef f(): return X", "(1,)", "[1]"),
    "except clause": ("def f():\n try: g()\n except KeyError: return 1", "KeyError", "TypeError"),
    "finally": ("def f():\n try: return 1\n finally: print(2)", "print(2)", "print(3)"),
    "format": ("def f(x): return f'{x!r}'", "!r", "!s"),
    "generator or list": ("def f(x): return [i for i in x]", "[i for i in x]", "(i for i in x)"),
    "await": ("async def f(x): return await x", "await x", "x"),
    "yield": ("def f(x): yield x", "yield x", "return x"),
    "lambda on the same line": ("a, b = (lambda x: x + 1), (lambda x: x + 2)\ndef f(): return b(1)", "x + 2", "x + 3"),
    "other lambda on the same line": ("a, b = (lambda x: 1), (lambda x: 2)\ndef f(): return b(1)", "return b", "return a"),
    "default of a helper": ("def g(x=1): return x\ndef f(): return g()", "x=1", "x=2"),
    "mutable default": ("def f(x=[1]): return x", "[1]", "[2]"),
    "default of a nested function": ("def f():\n def g(x=1): return x\n return g()", "x=1", "x=2"),
    "decorator of a nested function": (
        "def d(n): return lambda g: n\ndef f():\n @d(1)\n def g(): pass\n return g", "@d(1)", "@d(2)"),
    "two closures of one factory": (
        "def m(n):\n def g(): return n\n return g\na = m(1)\nb = m(2)\ndef f(): return a() - b()", "a() - b()", "b() - a()"),
    "value in a closure of a closure": (
        "def m(n):\n def g():\n  def h(): return n\n  return h\n return g()\na = m(1)\ndef f(): return a()", "m(1)", "m(2)"),
    "attribute of a function": ("def g(): pass\ng.x = 1\ndef f(): return g.x", "g.x = 1", "g.x = 2"),
    "class attribute set from outside": ("class C: x = 1\nC.x = 2\ndef f(): return C.x", "C.x = 2", "C.x = 3"),
    "method added from outside": ("class C: pass\nC.m = lambda s: 1\ndef f(): return C().m()", "s: 1", "s: 2"),
    "code replaced": ("def g(): return 1\ndef h(): return 2\ng.__code__ = h.__code__\ndef f(): return g()", "return 2", "return 3"),
    "descriptor": (
        "class D:\n def __get__(s, i, o): return 1\nclass C: d = D()\ndef f(): return C().d", "return 1", "return 2"),
    "state of a descriptor": (
        "class D:\n def __init__(s, n): s.n = n\n def __get__(s, i, o): return s.n\nclass C: d = D(1)\ndef f(): return C().d",
        "D(1)", "D(2)"),
    "__init_subclass__": (
        "class B:\n def __init_subclass__(c): c.x = 1\nclass C(B): pass\ndef f(): return C.x", "c.x = 1", "c.x = 2"),
    "__slots__": ("class C: __slots__ = ('a',)\nc = C()\nc.a = 1\ndef f(): return c.a", "c.a = 1", "c.a = 2"),
    "__call__ of an instance": ("class C:\n def __call__(s): return 1\nc = C()\ndef f(): return c()", "return 1", "return 2"),
    "instance inside of an instance": (
        "class A:\n def __init__(s, x): s.x = x\na = A(A(1))\ndef f(): return a.x.x", "A(A(1))", "A(A(2))"),
    "content of a list subclass": ("class L(list): pass\nl = L([1])\ndef f(): return l", "L([1])", "L([2])"),
    "content of a str subclass": ("class S(str): pass\ns = S('a')\ndef f(): return s", "'a'", "'b'"),
    "class made by type()": ("C = type('C', (), {'x': 1})\ndef f(): return C.x", "'x': 1", "'x': 2"),
    "named tuple default": (
        "from typing import NamedTuple\nclass N(NamedTuple):\n x: int = 1\ndef f(): return N()", "= 1", "= 2"),
    "named tuple fields": ("import collections\nN = collections.namedtuple('N', 'a b')\ndef f(): return N(1, 2)", "a b", "b a"),
    "order of dataclass fields": (
        "from dataclasses import dataclass\n@dataclass\nclass D:\n a: int\n b: int\ndef f(): return D(1, 2)",
        "a: int\n b: int", "b: int\n a: int"),
    "dataclass option": (
        "from dataclasses import dataclass\n@dataclass(order=False)\nclass D: a: int = 1\ndef f(): return D()",
        "order=False", "order=True"),
    "dataclass default factory": (
        "from dataclasses import dataclass, field\ndef g(): return 1\n@dataclass\nclass D: a: int = field(default_factory=g)\n"
        "def f(): return D()", "return 1", "return 2"),
    "enum order": ("import enum\nclass E(enum.Enum):\n A = 1\n B = 2\ndef f(): return list(E)", "A = 1\n B = 2", "B = 2\n A = 1"),
    "enum method": ("import enum\nclass E(enum.Enum):\n A = 1\n def g(s): return 1\ndef f(): return E.A.g()", "return 1", "return 2"),
    "enum alias": ("import enum\nclass E(enum.Enum):\n A = 1\n B = 1\ndef f(): return E.B", "B = 1", "B = 2"),
    "flag": ("import enum\nclass E(enum.Flag):\n A = 1\n B = 2\nX = E.A | E.B\ndef f(): return X", "E.A | E.B", "E.A"),
    "pydantic default": ("import pydantic\nclass M(pydantic.BaseModel): x: int = 1\ndef f(): return M()", "= 1", "= 2"),
    "pydantic constraint": (
        "import pydantic\nclass M(pydantic.BaseModel): x: int = pydantic.Field(1, gt=0)\ndef f(): return M(x=3)", "gt=0", "gt=5"),
    "pydantic annotation": ("import pydantic\nclass M(pydantic.BaseModel): x: int\ndef f(): return M(x='1')", "x: int", "x: str"),
    "pydantic validator": (
        "import pydantic\nclass M(pydantic.BaseModel):\n x: int\n @pydantic.field_validator('x')\n @classmethod\n"
        " def v(c, x): return x + 1\ndef f(): return M(x=3)", "x + 1", "x + 2"),
    "alias in an annotation": (
        "from __future__ import annotations\nimport annotated_types, pydantic\nfrom typing import Annotated\n"
        "T = Annotated[int, annotated_types.Gt(1)]\nclass M(pydantic.BaseModel): x: T\ndef f(): return M(x=3)", "Gt(1)", "Gt(5)"),
    "pydantic instance": (
        "import pydantic\nclass M(pydantic.BaseModel): x: int = 1\nm = M(x=5)\ndef f(): return m", "x=5", "x=6"),
    "validated arguments": (
        "import pydantic\n@pydantic.validate_call\ndef g(x: int): return x\ndef f(): return g('1')", "x: int", "x: str"),
    "typed dict": ("from typing import TypedDict\nclass T(TypedDict): x: int\ndef f(): return T.__annotations__", "x: int", "x: str"),
    "numpy array": ("import numpy\nX = numpy.arange(3)\ndef f(): return X", "arange(3)", "arange(4)"),
    "numpy type": ("import numpy\nX = numpy.zeros(3)\ndef f(): return X", "zeros(3)", "zeros(3, dtype='f4')"),
    "numpy shape": ("import numpy\nX = numpy.zeros((2, 3))\ndef f(): return X", "(2, 3)", "(3, 2)"),
    "vectorised helper": (
        "import numpy\n@numpy.vectorize\ndef g(x): return x + 1\ndef f(): return g([1])", "x + 1", "x + 2"),
    "option of a library's decorator": (
        "import numpy\nimport functools\n@functools.partial(numpy.vectorize, otypes='d')\ndef g(x): return 1\ndef f(): return g([1])",
        "otypes='d'", "otypes='f'"),
    "data frame": ("import pandas\nX = pandas.DataFrame({'a': [1]})\ndef f(): return X", "[1]", "[2]"),
    "column name": ("import pandas\nX = pandas.DataFrame({'a': [1]})\ndef f(): return X", "'a'", "'b'"),
    "transformer of a helper": (
        "from sklearn.preprocessing import FunctionTransformer\ndef g(x): return x\nT = FunctionTransformer(g)\n"
        "def f(): return T.transform([1])", "return x\n", "return [x]\n"),
    "estimator option": (
        "from sklearn.linear_model import Ridge\nM = Ridge(alpha=1)\ndef f(): return M", "alpha=1", "alpha=2"),
    "function of a library": ("import math\ndef f(): return math.floor(1.5)", "floor", "ceil"),
    "library imported under the name": ("from math import floor as g\ndef f(): return g(1.5)", "floor", "ceil"),
    "deque": ("import collections\nX = collections.deque([1])\ndef f(): return X", "[1]", "[2]"),
    "default dict": ("import collections\nX = collections.defaultdict(lambda: 1)\ndef f(): return X[0]", ": 1)", ": 2)"),
    "cycle": ("import itertools\nX = itertools.cycle([1])\ndef f(): return next(X)", "[1]", "[2]"),
    "pattern flags": ("import re\nX = re.compile('a')\ndef f(): return X.match('A')", "'a')", "'a', re.I)"),
    "attribute getter": ("import operator\nX = operator.attrgetter('real')\ndef f(): return X(1)", "real", "imag"),
    "namespace": ("import types\nX = types.SimpleNamespace(a=1)\ndef f(): return X.a", "a=1", "a=2"),
    "partial of a partial": (
        "from functools import partial\ndef g(a, b): return a\nh = partial(partial(g, 1), 2)\ndef f(): return h()", "(g, 1)", "(g, 2)"),
    "bound method": ("class C:\n def __init__(s, x): s.x = x\n def g(s): return s.x\ng = C(1).g\ndef f(): return g()", "C(1)", "C(2)"),
    "method of a dict": ("X = {1: 2}.get\ndef f(): return X(1)", "1: 2", "1: 3"),
    "cached property": (
        "import functools\nclass C:\n @functools.cached_property\n def x(s): return 1\ndef f(): return C().x", "return 1", "return 2"),
    "partial method": (
        "import functools\nclass C:\n def g(s, x): return x\n h = functools.partialmethod(g, 1)\ndef f(): return C().h()", "g, 1", "g, 2"),
    "singledispatch method": (
        "import functools\nclass C:\n @functools.singledispatchmethod\n def g(s, x): return 0\n @g.register\n"
        " def _(s, x: int): return 1\ndef f(): return C().g(1)", "return 1", "return 2"),
    "registry filled by a decorator": (
        "R = {}\ndef reg(g):\n R[g.__name__] = g\n return g\n@reg\ndef a(): return 1\ndef f(): return [g() for g in R.values()]",
        "return 1", "return 2"),
    "plugin found by __subclasses__": (
        "class B: pass\nclass C(B): x = 1\ndef f(): return [c.x for c in B.__subclasses__()]", "x = 1", "x = 2"),
    "virtual subclass": (
        "import abc\nclass A(abc.ABC): pass\nclass B: pass\nclass C: pass\nA.register(B)\ndef f(): return isinstance(C(), A)",
        "register(B)", "register(C)"),
    "global looked up by name": ("X = 1\ndef f(): return globals()['X']", "X = 1", "X = 2"),
    "helper looked up by eval": ("def g(): return 1\ndef f(): return eval('g()')", "return 1", "return 2"),
    "own module from sys.modules": ("import sys\nX = 1\ndef f(): return sys.modules[__name__].X", "X = 1", "X = 2"),
    "name of a helper": ("def a(): pass\ndef f(): return a.__name__", "a", "b"),
    "name of a helper given away": (
        "import pandas\ndef a(x): return 1\ndef f(): return pandas.Series([1]).agg([a])", "a(x): return 1\ndef f(): return pandas.Series([1]).agg([a])",
        "b(x): return 1\ndef f(): return pandas.Series([1]).agg([b])"),
    "docstring that is read": ("def g():\n 'one'\ndef f(): return g.__doc__", "one", "two"),
    "annotation that is read": ("def g(x: int): pass\ndef f(): return g.__annotations__", "int", "str"),
    "local that is read by name": ("def f():\n a = 1\n return locals()", "a = 1", "b = 1"),
    "global in a query": (
        "import pandas\nX = 1\ndef f(): return pandas.DataFrame({'a': [1]}).query('a == @X')", "X = 1", "X = 2"),
    "helper in a formula": ("def g(x): return x\ndef f(fit): return fit('y ~ g(x)')", "return x", "return 2 * x"),
    "random seed": ("import random\nrandom.seed(1)\ndef f(): return random.random()", "seed(1)", "seed(2)"),
    "random seed in a helper": (
        "import random\ndef setup(): random.seed(1)\nsetup()\ndef f(): return random.random()", "seed(1)", "seed(2)"),
    "random seed in an assignment": (
        "import random\ndef setup(): random.seed(1)\nX = setup()\ndef f(): return random.random()", "seed(1)", "seed(2)"),
    "random seed in a block": (
        "import random\nfor _ in range(2):\n if True:\n  random.seed(1)\ndef f(): return random.random()", "seed(1)", "seed(2)"),
    "option of a library": (
        "import decimal\ndecimal.getcontext().prec = 5\ndef f(): return decimal.Decimal(1) / 3", "prec = 5", "prec = 6"),
    "environment variable set": ("import os\nos.environ['FINGERPRINT_X'] = '1'\ndef f(): return os.environ['FINGERPRINT_X']", "'1'", "'2'"),
    "accessor registered with a library": (
        "import pandas\n@pandas.api.extensions.register_series_accessor('fp')\nclass A:\n def __init__(s, o): pass\n"
        " def g(s): return 1\ndef f(): return pandas.Series([1]).fp.g()", "return 1", "return 2"),
    "function put into a library": ("import math\ndef g(): return 1\nmath.fp = g\ndef f(): return math.fp()", "return 1", "return 2"),
    "class of an argument": ("class C:\n def g(s): return 1\ndef f(c: C): return c.g()", "return 1", "return 2"),
    "class in a string annotation": ("class C:\n def g(s): return 1\ndef f(c: 'list[C]'): return c[0].g()", "return 1", "return 2"),
    "name that is undefined": ("def f(): return later()", "def f", "def later(): return 1\ndef f"),
    "builtin that is shadowed": ("def f(): return len([])", "def f", "len = lambda x: 5\ndef f"),
    "star arguments": ("def g(*a): return a\ndef f(x): return g(*x)", "g(*x)", "g(x)"),
    "assert": ("def f(x):\n assert x > 1", "x > 1", "x > 2"),
    "class body of a nested class": ("def f():\n class C: x = 1\n return C.x", "x = 1", "x = 2"),
    "recursive container": ("X = [1]\nX.append(X)\ndef f(): return X", "X = [1]", "X = [2]"),
    "time zone": ("import datetime\nX = datetime.timedelta(1)\ndef f(): return X", "timedelta(1)", "timedelta(2)"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:registration of accessor")  # pandas keeps the one of the version before
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_behaviour_changes_the_digest(take: Take, name: str) -> None:
    text, old, new = CHANGES[name]
    assert old in text
    before = take(text)
    after = take(text.replace(old, new))
    assert before.problems == after.problems == ()
    assert before.digest != after.digest
    assert take(text).digest == before.digest
