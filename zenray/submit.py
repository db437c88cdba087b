"""From a file and parameters to a finished run.

Runs in: driver.
"""

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zenray.annotations import classes_in, fits
from zenray.checks import validate
from zenray.errors import DefinitionError, NotFoundError, suggest
from zenray.materializer import main_module_name, register_repository
from zenray.pipeline import Pipeline
from zenray.profile import active_stack
from zenray.runner import RunObserver, RunRequest, run
from zenray.settings import find_repository
from zenray.stack import Stack
from zenray.views import Books, Run


def run_pipeline(
    pipeline: Pipeline[Any],
    parameters: Mapping[str, Any],
    *,
    stack: Stack | None = None,
    observer: RunObserver | None = None,
    use_cache: bool = True,
) -> Run:
    """Run a pipeline to its end and return the recorded run; raises StepFailed where a step failed."""
    register_repository()
    pipeline.check()
    stack = stack or active_stack()
    if stack.source:  # the built-in ones need nothing
        validate(stack)
    if observer is None:
        from zenray.progress import terminal_observer

        observer = terminal_observer()
    module = sys.modules.get(pipeline.function.__module__)
    file = str(getattr(module, "__file__", None) or "")
    if file.startswith("<") and stack.orchestrator != "inline":
        raise DefinitionError(
            f"pipeline {pipeline.name!r} was read from {file}, which the workers cannot: write it into a file and run "
            "that, or use the stack 'inline'"
        )
    main = sys.modules["__main__"]
    if module is main and getattr(main, "__file__", None):
        # Values of the script's classes are stored under the script's name, and must load as the same classes.
        sys.modules.setdefault(main_module_name(), main)
    request = RunRequest(
        pipeline=pipeline.name,
        function=pipeline.function,
        parameters=dict(parameters),
        stack=stack,
        source_file=file,
        use_cache=use_cache,
    )
    run_id = run(request, observer)
    books = Books(stack)
    return Run(books.ledger.find_run(run_id), books)


def load_pipeline(target: str) -> Pipeline[Any]:
    """Import ``FILE`` or ``FILE:PIPELINE`` and return the pipeline; without a name the file must define exactly one.

    Raises NotFoundError for a file or a pipeline that is not there, and DefinitionError for a file that cannot be
    imported, with the user's own exception as its cause.
    """
    file, name = _split(target)
    path = Path(file)
    if path.is_dir():
        files = sorted(str(p) for p in path.glob("*.py"))
        raise NotFoundError(f"{file!r} is a folder; name a file in it" + (f": {', '.join(files[:8])}" if files else ""))
    if not path.is_file():
        near = [str(p) for folder in {path.parent, Path(), Path("examples")} for p in folder.glob("*.py")]
        raise NotFoundError(f"there is no file {file!r}; {suggest(file, near)}")
    if path.suffix != ".py":
        raise DefinitionError(f"{file!r} is not a Python file; a pipeline lives in a file that ends in .py")
    module = import_file(path)
    found = {v.name: v for v in vars(module).values() if isinstance(v, Pipeline)}
    own = {n: p for n, p in found.items() if p.function.__module__ == module.__name__}
    if name:
        if name not in found:
            raise NotFoundError(f"{file} has no pipeline {name!r}; {suggest(name, found)}")
        return found[name]
    if len(own) != 1:
        raise NotFoundError(
            f"{file} defines {len(own)} pipelines; "
            + (f"name one: {file}:{sorted(own)[0]} (of {', '.join(sorted(own))})" if own else "mark one with @pipeline")
        )
    return next(iter(own.values()))


def import_file(path: Path) -> Any:
    """Import a script as the module it would be: by its stem, or by its dotted name inside a package."""
    path = path.absolute()
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    repository = find_repository(root)
    for folder in filter(None, (repository, root)):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    name = ".".join(parts)
    try:
        existing = sys.modules.get(name)
        if len(parts) > 1 or (existing is not None and getattr(existing, "__file__", None) == str(path)):
            return importlib.import_module(name)
        if existing is not None or name in sys.stdlib_module_names:
            raise DefinitionError(f"{path.name} has the name of the module {name!r}; rename the file")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    except DefinitionError:
        raise
    except (Exception, SystemExit) as exc:
        raise DefinitionError(f"{path} cannot be imported: {type(exc).__name__}: {exc}") from exc
    return module


def parse_parameters(pipeline: Pipeline[Any], texts: Sequence[str]) -> dict[str, Any]:
    """Turn ``name=value`` texts into the pipeline's parameters, converted to what is annotated.

    ``lr=3e-4`` for a float, ``months=[1,2]`` (JSON) for a list; without an annotation JSON where it is, else text.
    For ``str`` it is the text as it stands, for ``str | None`` too, but for ``null``. For other annotations it is JSON
    where that fits, so that ``2024`` is a number for ``int | str``, else the text: ``Literal["1", "2"]``, ``Path``.
    """
    values: dict[str, Any] = {}
    known = pipeline.signature.parameters
    for text in texts:
        name, equals, raw = text.partition("=")
        if not equals:
            raise DefinitionError(f"-p {text!r} must be NAME=VALUE")
        if name not in known:
            raise DefinitionError(f"pipeline {pipeline.name!r} has no parameter {name!r}; {suggest(name, known)}")
        if name in values:
            raise DefinitionError(f"parameter {name!r} is given twice")
        values[name] = _converted(pipeline, name, raw)
    missing = [
        name
        for name, parameter in known.items()
        if name not in values
        and parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if missing:
        options = " ".join(f"-p {name}=..." for name in missing)
        raise DefinitionError(f"pipeline {pipeline.name!r} needs {', '.join(map(repr, missing))}: add {options}")
    return pipeline.bind((), values)


def _converted(pipeline: Pipeline[Any], name: str, raw: str) -> Any:
    import json

    from pydantic import TypeAdapter, ValidationError

    annotation = pipeline.annotations.get(name, Any)
    allowed = set(classes_in(annotation))
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = raw
    if isinstance(value, bool) and not fits(value, annotation):
        value = raw  # "true" is no number
    if str in allowed <= {str, type(None)} and not (value is None and type(None) in allowed):
        value = raw
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as exc:
        reason = exc.errors()[0]["msg"]
    try:
        return TypeAdapter(annotation).validate_python(raw)
    except ValidationError:
        raise DefinitionError(
            f"parameter {name!r} of pipeline {pipeline.name!r}: {raw!r} does not fit: {reason}"
        ) from None


def _split(target: str) -> tuple[str, str]:
    file, colon, name = target.rpartition(":")
    if colon and file.endswith(".py"):
        return file, name
    return target, ""
