"""From a file and parameters to a finished run.

Runs in: driver.
"""

import importlib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zenray.annotations import classes_in, fits
from zenray.checks import validate
from zenray.errors import ClusterError, DefinitionError, NotFoundError, StepFailed, shown, suggest
from zenray.head import is_elsewhere
from zenray.integrations import for_module
from zenray.jobs import Call, Job, Order, submit
from zenray.materializer import main_module_name, register_repository
from zenray.model import Json
from zenray.pipeline import Pipeline
from zenray.profile import active_stack, of_file
from zenray.runner import RunObserver, RunRequest, git_revision, new_run_id, run, user_name
from zenray.settings import find_repository
from zenray.stack import Stack, StackFile
from zenray.views import Books, Run


def run_pipeline(
    pipeline: Pipeline[Any],
    parameters: Mapping[str, Any],
    *,
    stack: Stack | None = None,
    observer: RunObserver | None = None,
    use_cache: bool = True,
    order: Order | None = None,
) -> Run:
    """Run a pipeline to its end and return the recorded run; raises StepFailed where a step failed.

    ``order`` is what a job of a cluster was told by whoever submitted it.
    """
    register_repository()
    pipeline.check()
    stack = stack or active_stack()
    if stack.source:  # the built-in ones need nothing
        validate(stack)
    if is_elsewhere(stack.orchestrator):
        return _run_elsewhere(pipeline, parameters, stack, use_cache=use_cache)
    if observer is None:
        from zenray.progress import terminal_observer

        observer = terminal_observer(names_stack=order is not None)
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
        source_file=order.source_file if order else file,
        use_cache=use_cache,
        run_id=order.run_id if order else "",
        user=order.user if order else "",
        git_revision=order.git_revision if order else "",
    )
    run_id = run(request, observer)
    books = Books(stack)
    return Run(books.ledger.find_run(run_id), books)


def submit_elsewhere(
    file: StackFile, call: Call, *, texts: Sequence[str] = (), parameters: Mapping[str, Json] | None = None
) -> Job:
    """Start a run on the cluster of a stack, and return its job once the cluster has it; see ``zenray.jobs``.

    Parameters are given as ``name=value`` texts, which the job converts, or as values.
    """
    file_name = str(call.file.absolute())
    order = Order(new_run_id(), user_name(), git_revision(call.file.parent), file_name, texts, parameters or {})
    return submit(file, call, order)


def _run_elsewhere(pipeline: Pipeline[Any], parameters: Mapping[str, Any], stack: Stack, *, use_cache: bool) -> Run:
    given = _as_json(pipeline, parameters)
    call = Call(_file_of(pipeline), pipeline.name, use_cache=use_cache)
    job = submit_elsewhere(of_file(Path(stack.source)), call, parameters=given)
    code = job.follow()
    books = Books(stack)
    if not code:
        return Run(books.ledger.find_run(job.run_id), books)
    try:
        error = books.ledger.find_run(job.run_id).error or {}
    except NotFoundError:
        error = {"message": f"run {job.run_id} did not begin; what its job has printed says why"}
    kind = StepFailed if error.get("type") == StepFailed.__name__ else ClusterError
    raise kind(str(error.get("message") or f"run {job.run_id} failed"))


def _file_of(pipeline: Pipeline[Any]) -> Path:
    """Return the file in which a job finds the pipeline by its name."""
    module = sys.modules.get(pipeline.function.__module__)
    file = getattr(module, "__file__", None)
    if not file or file.startswith("<") or all(v is not pipeline for v in vars(module).values()):
        raise DefinitionError(
            f"pipeline {pipeline.name!r} cannot be found by a cluster elsewhere: define it at the level of a module, "
            "in a file"
        )
    return Path(file)


def _as_json(pipeline: Pipeline[Any], parameters: Mapping[str, Any]) -> dict[str, Json]:
    """Return the parameters that are not the defaults; those of a run elsewhere have to be plain values."""
    known = pipeline.signature.parameters
    given = {name: value for name, value in parameters.items() if value is not known[name].default}
    for name, value in given.items():
        try:
            is_plain = bool(json.loads(json.dumps(value)) == value)
        except (TypeError, ValueError, RecursionError):
            is_plain = False
        if not is_plain:
            raise DefinitionError(
                f"pipeline {pipeline.name!r}: parameter {name!r} is {shown(value)} of type {type(value).__name__!r}, "
                "which cannot go to a cluster elsewhere as JSON: give a number, a text, or a list or dict of them, and "
                "make the rest in a step"
            )
    return given


def load_pipeline(target: str) -> Pipeline[Any]:
    """Import ``FILE`` or ``FILE:PIPELINE`` and return the pipeline; without a name the file must define exactly one.

    Raises NotFoundError for a file or a pipeline that is not there, and DefinitionError for a file that cannot be
    imported, with the user's own exception as its cause.
    """
    path, name = locate(target)
    module = import_file(path)
    found = {v.name: v for v in vars(module).values() if isinstance(v, Pipeline)}
    own = {n: p for n, p in found.items() if p.function.__module__ == module.__name__}
    if name:
        if name not in found:
            raise NotFoundError(f"{path} has no pipeline {name!r}; {suggest(name, found)}")
        return found[name]
    if len(own) != 1:
        raise NotFoundError(
            f"{path} defines {len(own)} pipelines; "
            + (f"name one: {path}:{sorted(own)[0]} (of {', '.join(sorted(own))})" if own else "mark one with @pipeline")
        )
    return next(iter(own.values()))


def locate(target: str) -> tuple[Path, str]:
    """Return the Python file and the pipeline, or nothing, that ``FILE`` or ``FILE:PIPELINE`` names."""
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
    return path, name


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
        needed = for_module(exc.name or "") if isinstance(exc, ModuleNotFoundError) else None
        advice = f"; run `zenray integration install {needed}`" if needed else ""
        raise DefinitionError(f"{path} cannot be imported: {type(exc).__name__}: {exc}{advice}") from exc
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
