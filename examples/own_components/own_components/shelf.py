"""A store protocol: ``shelf:///some/folder`` is a folder of this machine, ``shelf://folder`` one of the repository.

Anything that follows fsspec's protocol will do. ZenRay uses a handful of calls (open, info, pipe_file, cat_file, find,
put_file, rm_file); ``zenray.testing.StoreContract`` tries them all.
"""

from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from zenray.settings import find_repository


class ShelfFileSystem(LocalFileSystem):
    """The local file system, but for its scheme."""

    protocol = "shelf"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        # An absolute path, which also comes here, stays as it is.
        return super()._strip_protocol(str((find_repository() or Path.cwd()) / path.removeprefix("shelf://")))

    def unstrip_protocol(self, name: str) -> str:
        """Return the URL of a path."""
        return f"shelf://{self._strip_protocol(name)}"
