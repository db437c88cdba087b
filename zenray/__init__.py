"""ZenRay: machine-learning pipelines as plain Python, executed by Ray, cached by the code they really use.

Runs in: anywhere.
"""

from zenray.context import StepContext, context, log_metadata
from zenray.errors import ZenRayError
from zenray.files import File, Folder
from zenray.futures import Artifact
from zenray.materializer import Materializer, registry
from zenray.pipeline import Pipeline, pipeline
from zenray.step import Step, step
from zenray.views import Run, get_pipeline, get_run, list_runs

register = registry.register

__all__ = [
    "Artifact",
    "File",
    "Folder",
    "Materializer",
    "Pipeline",
    "Run",
    "Step",
    "StepContext",
    "ZenRayError",
    "context",
    "get_pipeline",
    "get_run",
    "list_runs",
    "log_metadata",
    "pipeline",
    "register",
    "step",
]
__version__ = "0.1.0"
