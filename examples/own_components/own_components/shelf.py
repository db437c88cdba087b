"""A store protocol: ``shelf:///some/folder`` is a folder of this machine, under a scheme of its own.

Anything that follows fsspec's protocol will do. ZenRay uses a handful of calls (open, info, pipe_file, cat_file, find,
put_file, rm_file); ``zenray.testing.StoreContract`` tries them all.
"""

from fsspec.implementations.local import LocalFileSystem


class ShelfFileSystem(LocalFileSystem):
    """The local file system, but for its scheme."""

    protocol = "shelf"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("shelf://"))

    def unstrip_protocol(self, name: str) -> str:
        """Return the URL of a path."""
        return f"shelf://{self._strip_protocol(name)}"
