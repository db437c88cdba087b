"""The normal form of a code object: what it does, without layout, comments, annotations and names of locals.

Runs in: driver.

The compiled code is used rather than the text because it is what the process really runs: no file can be newer
than it, a lambda cannot be mistaken for its neighbour, and a notebook cell need not exist any more. Comments,
docstrings, line breaks and the annotations of a function are not in it; locals are numbers in it. Measured on
3,700 functions of the standard library and pandas, rewriting the text with `ast.unparse` changes the normal form
of 2.
"""

import dis
import inspect
import re
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import CodeType

from zenray.hashing import digest_bytes, encode, framed

_SILENT = frozenset({"NOP", "EXTENDED_ARG", "CACHE", "RESUME"})
_JUMPS = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)
_GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_GLOBAL_WRITES = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})
_WRITES = _GLOBAL_WRITES | {"STORE_ATTR", "DELETE_ATTR"}
_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
# The rest of CodeType.co_flags tells how the code was nested and which __future__ imports its file had.
_FLAGS = 0x04 | 0x08 | 0x20 | 0x80 | 0x100 | 0x200
# Callables that look up names in the frame of their caller: locals by name, or globals named in a string.
_FRAME_READERS = frozenset(
    {"locals", "vars", "dir", "eval", "exec", "globals", "query", "sql", "evaluate", "execute", "currentframe"}
    | {"_getframe", "stack", "f_locals", "f_globals", "f_back", "tb_frame", "format_map"}
)
_PAIR = re.compile(r"((?:LOAD|STORE)_FAST(?:_BORROW)?)_((?:LOAD|STORE)_FAST(?:_BORROW)?)")
_SPECIAL = re.compile(r"__\w+__")  # getattr(f, "__doc__") looks up as much as f.__doc__
_WORD = re.compile(r"[^\W\d]\w*")
# Text such as "log(price) ~ scaled(area)": formulas are evaluated among the caller's names by some libraries.
_CALLED_WORD = re.compile(r"[^\W\d]\w*(?=\s*\()")


@dataclass(frozen=True, slots=True)
class Reference:
    """A name that code looks up outside of itself, with the attributes that it takes from it at once.

    `is_called` says that the value is called where it stands, so that its own name cannot be observed. `imported`
    says that `name` is a module imported by the code itself. `argument` is a string constant that is all it is called
    or looked into with.
    `is_guess` marks a name found in the text of a string.
    """

    name: str
    attributes: tuple[str, ...] = ()
    is_called: bool = False
    imported: bool = False
    argument: str | None = None
    is_guess: bool = False


@dataclass(frozen=True, slots=True)
class Import:
    """An import statement in code; no names means that the module itself is bound.

    With `is_followed` the attributes that are taken from the module are references of their own.
    """

    module: str
    level: int = 0
    names: tuple[str, ...] = ()
    is_followed: bool = False


@dataclass(slots=True)
class CodeForm:
    """The normal form of one code object and all that are nested in it."""

    digest: str = ""
    references: list[Reference] = field(default_factory=list)
    imports: list[Import] = field(default_factory=list)
    mentions: frozenset[str] = frozenset()
    stores: set[str] = field(default_factory=set)  # the globals and attributes that it binds


def normal_form(code: CodeType) -> CodeForm:
    """Return the normal form of a code object; pure, so that the result may be kept as long as the code object."""
    nested = list(nested_codes(code))
    constants = (c for inner in nested for c in inner.co_consts if isinstance(c, str) and _SPECIAL.fullmatch(c))
    mentions = frozenset(name for inner in nested for name in _mentioned(inner)) | frozenset(constants)
    form = CodeForm(mentions=mentions)
    reads_frames = bool(mentions & _FRAME_READERS)
    form.digest = digest_bytes(_Normalizer(code, form, keep_locals=reads_frames).encoded())
    form.references += _guesses(nested, _WORD if reads_frames else _CALLED_WORD)
    return form


def nested_codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and all that are nested in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested_codes(constant)


def _mentioned(code: CodeType) -> Iterable[str]:
    """Return the names that code looks up; a class body also binds its own name, module and docstring."""
    if code.co_flags & inspect.CO_OPTIMIZED or code.co_name == "<module>":
        return code.co_names
    steps = dis.get_instructions(code)
    return {s.argval for s in steps if s.opcode in dis.hasname and s.opname != "STORE_NAME"} - {"__name__"}


def _guesses(codes: list[CodeType], pattern: re.Pattern[str]) -> Iterator[Reference]:
    texts = (c for code in codes for c in code.co_consts if isinstance(c, str) and c != _docstring(code))
    words = {word for text in texts for word in pattern.findall(text)}
    return (Reference(word, is_guess=True) for word in sorted(words))


def _docstring(code: CodeType) -> object:
    is_function = bool(code.co_flags & inspect.CO_OPTIMIZED)
    return code.co_consts[0] if is_function and code.co_consts else None


class _Normalizer:
    """Writes one code object as bytes, and notes what it refers to."""

    def __init__(self, code: CodeType, form: CodeForm, *, keep_locals: bool) -> None:
        self.code = code
        self.form = form
        self.keep_locals = keep_locals
        bytecode = dis.Bytecode(code)
        self.steps = [part for step in bytecode if step.opname not in _SILENT for part in _parts(step)]
        self.offsets = [step.offset for step in self.steps]
        self.handlers = bytecode.exception_entries  # type: ignore[attr-defined]
        self.targets = {step.argval for step in self.steps if step.opcode in _JUMPS}
        self.targets |= {handler.target for handler in self.handlers}
        self.aliases = dict(self._module_aliases())

    def encoded(self) -> bytes:
        code = self.code
        parameters = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _FLAGS)
        names = (code.co_varnames if self.keep_locals else code.co_varnames[:parameters], code.co_freevars)
        written = [encode((counts, names))]
        position = 0
        while position < len(self.steps):
            data, position = self._instruction(position)
            written.append(data)
        for entry in self.handlers:
            place = tuple(map(self._ordinal, (entry.start, entry.end, entry.target)))
            written.append(encode((*place, entry.depth, entry.lasti)))
        return framed(b"code", b"".join(written))

    def _ordinal(self, offset: int) -> int:
        return bisect_left(self.offsets, offset)

    def _instruction(self, position: int) -> tuple[bytes, int]:
        """Return one instruction as bytes, and the position of the next."""
        step = self.steps[position]
        name = step.opname
        operand: object = step.arg
        if self._is_docstring(position):
            return b"", position + 2
        if name in _GLOBALS:
            return self._global(position)
        if name in _WRITES:
            self.form.stores.add(step.argval)
        if name in _GLOBAL_WRITES:
            self.form.references.append(Reference(step.argval))
        elif name == "IMPORT_NAME":
            self._import(position)
        elif name.startswith("LOAD_FAST") and step.argval in self.aliases:
            self._alias(position)
        if step.opcode in _JUMPS:
            operand = self._ordinal(step.argval)
        elif step.opcode in dis.hasconst:
            # not argval: dis resolves the constants of LOAD_CONST only, not those of KW_NAMES
            return framed(name.encode(), self._constant(self.code.co_consts[step.arg or 0])), position + 1
        elif step.opcode in dis.hasname or step.opcode in dis.hasfree:
            operand = (step.argval, is_call(step)) if name in _ATTRIBUTES else step.argval
        return encode((name, operand)), position + 1

    def _is_docstring(self, position: int) -> bool:
        following = self.steps[position + 1 : position + 2]
        return bool(following and following[0].opname == "STORE_NAME" and following[0].argval == "__doc__")

    def _constant(self, value: object) -> bytes:
        if isinstance(value, CodeType):
            # The name of a nested function can be observed when it is passed on, so it stays.
            inner = _Normalizer(value, self.form, keep_locals=self.keep_locals).encoded()
            return encode(value.co_name) + inner
        if isinstance(value, tuple):
            return framed(b"tuple", b"".join(map(self._constant, value)))
        if value is Ellipsis:
            return framed(b"ellipsis", b"")
        if isinstance(value, slice):
            return framed(b"slice", self._constant((value.start, value.stop, value.step)))
        return encode(value)

    def _attributes(self, position: int) -> tuple[list[dis.Instruction], int]:
        """Return the attribute lookups from this position on, and the position after them."""
        chain = []
        while position < len(self.steps):
            step = self.steps[position]
            if step.opname not in _ATTRIBUTES or step.offset in self.targets:
                break
            chain.append(step)
            position += 1
        return chain, position

    def _global(self, position: int) -> tuple[bytes, int]:
        """A global becomes its number among the references: what it is called does not matter, what it is does."""
        step = self.steps[position]
        chain, after = self._attributes(position + 1)
        last = chain[-1] if chain else step
        reference = Reference(
            name=step.argval,
            attributes=tuple(link.argval for link in chain),
            is_called=is_call(step) or is_call(last) or self._pushes_null(after) or self._pushes_null(position - 1),
            argument=self._string_at(after),
        )
        number = len(self.form.references)
        self.form.references.append(reference)
        # In a class body, and only there, the name is looked up among the class's own names first.
        own_name = "" if step.opname == "LOAD_GLOBAL" else step.argval
        lookups = tuple((link.opname, is_call(link)) for link in chain)
        return encode(("global", step.opname, own_name, is_call(step), lookups, number)), after

    def _pushes_null(self, position: int) -> bool:
        """Tell whether what is loaded beside it gets called: before it in Python 3.12, after it in Python 3.13."""
        return 0 <= position < len(self.steps) and self.steps[position].opname == "PUSH_NULL"

    def _string_at(self, position: int) -> str | None:
        position += self._pushes_null(position)
        if not self._takes_one(position + 1):
            return None  # the constant is but a part of what is computed: "plugins." + name
        for step in self.steps[position : position + 1]:
            if step.opcode in dis.hasconst and isinstance(step.argval, str):
                return step.argval
            if step.opname in _GLOBALS and step.argval == "__name__":
                return "__name__"
        return None

    def _takes_one(self, position: int) -> bool:
        """Tell whether a call with what was just loaded as its only argument follows, or a look-up of it."""
        following = self.steps[position : position + 1]
        return any(s.opname == "BINARY_SUBSCR" or (s.opname in ("PRECALL", "CALL") and s.arg == 1) for s in following)

    def _import(self, position: int) -> None:
        level, names = (self.steps[position - back].argval for back in (2, 1))
        module = self.steps[position].argval
        is_followed = not names and self._bound_alias(position) in self.aliases
        self.form.imports.append(Import(module, level or 0, tuple(names or ()), is_followed))

    def _alias(self, position: int) -> None:
        chain, after = self._attributes(position + 1)
        names = tuple(link.argval for link in chain)
        module = self.aliases[self.steps[position].argval]
        argument = self._string_at(after)
        self.form.references.append(Reference(module, names, imported=True, argument=argument))

    def _module_aliases(self) -> Iterator[tuple[str, str]]:
        """Yield locals that are bound once, by an import of a module, and used only to take attributes from it."""
        parameters = self.code.co_varnames[: self.code.co_argcount + self.code.co_kwonlyargcount]
        for position, step in enumerate(self.steps):
            if step.opname != "IMPORT_NAME" or self.steps[position - 1].argval:
                continue
            name = self._bound_alias(position)
            if name is None or name in parameters:
                continue
            uses = [s for s in self.steps if s.opcode in dis.haslocal and self._uses(s, name)]
            if sum(not s.opname.startswith("LOAD_FAST") for s in uses) == 1 and all(s.argval == name for s in uses):
                is_renamed = self.steps[position + 1].opname == "IMPORT_FROM"
                module = step.argval
                yield name, module if is_renamed else module.partition(".")[0]

    @staticmethod
    def _uses(step: dis.Instruction, name: str) -> bool:
        return name in step.argval if isinstance(step.argval, tuple) else step.argval == name

    def _bound_alias(self, position: int) -> str | None:
        """Return the local that an import of a module binds; None where it binds something else."""
        if self.steps[position - 2].argval != 0:
            return None
        for step in self.steps[position + 1 :]:
            if step.opname == "STORE_FAST":
                return str(step.argval)
            if step.opname not in {"IMPORT_FROM", "SWAP", "POP_TOP"}:
                return None
        return None


def _parts(step: dis.Instruction) -> tuple[dis.Instruction, ...]:
    """Return the two halves of an instruction that Python 3.13 makes of two when they stand on one line."""
    pair = _PAIR.fullmatch(step.opname)
    if pair is None:
        return (step,)
    args = divmod(step.arg or 0, 16)
    halves = zip(pair.groups(), args, step.argval, strict=True)
    return tuple(step._replace(opname=n, opcode=dis.opmap[n], arg=arg, argval=v) for n, arg, v in halves)


def is_call(step: dis.Instruction) -> bool:
    """Tell whether what is looked up gets called at once, which the lowest bit of the operand says."""
    if step.opname == "LOAD_METHOD":
        return True
    # Before Python 3.12 the operand of LOAD_ATTR is a plain number, and LOAD_METHOD says that it is called.
    has_bit = step.opname == "LOAD_GLOBAL" or (step.opname == "LOAD_ATTR" and sys.version_info >= (3, 12))
    return has_bit and bool((step.arg or 0) & 1)
