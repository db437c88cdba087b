"""Moves bytes between a local file and an object store: in parts, several at a time, never all of them in memory.

Runs in: anywhere.
"""

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fsspec.asyn import sync

from zenray.errors import StoreError
from zenray.store.faults import Patience
from zenray.store.options import OBJECT_STORES, Target
from zenray.threads import Threads

PART_BYTES = 8 << 20
PARTS_AT_ONCE = 8  # for all transfers of a store together; downloads hold so many parts in memory, uploads none
_MAX_PARTS = 10_000  # S3's own limit
ANSWER_S = 120.0  # for one request to S3 with its bytes: a server that takes them and says nothing is a fault too
_WHOLE_BYTES = 2 * PART_BYTES  # up to this size an object goes in one request
_WHOLE_BYTES_AZURE = 1 << 20  # larger bytes in one piece hold up the client's loop: aiohttp warns of it


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload in parts that has begun and not ended: the object's path on the file system, and when (epoch s)."""

    path: str
    upload_id: str
    began_at: float


class Transfer:
    """Uploads and downloads of one store; each part is tried again by itself."""

    def __init__(self, target: Target, patience: Patience) -> None:
        self._target, self._fs, self._patience = target, target.fs, patience

    @cached_property
    def _parts(self) -> Threads:
        return Threads(PARTS_AT_ONCE, "zenray-parts")

    def size(self, path: str) -> int:
        """Return an object's size in one request; FileNotFoundError where it is not there."""
        if self._target.is_s3:  # s3fs would look for a folder of that name too
            bucket, key, _ = self._fs.split_path(path)
            found = self._patience.call("look up an object in", self._fs.call_s3, "head_object", Bucket=bucket, Key=key)
            return int(found["ContentLength"])
        self._fs.invalidate_cache()
        info = self._patience.call("look up an object in", self._fs.info, path)
        if info["type"] != "file":
            raise FileNotFoundError(path)
        return int(info["size"])

    def put_bytes(self, path: str, data: bytes, *, is_new: bool = False) -> None:
        """Write a small object whole; with ``is_new`` FileExistsError where there is one."""
        mode: dict[str, Any] = {"mode": "create"} if is_new else {}
        if self._target.is_s3:
            mode["timeout"] = ANSWER_S  # of fsspec's own: the client's limits do not count while it waits to send
        if self._target.protocol in OBJECT_STORES:
            self._patience.call("write to", self._fs.pipe_file, path, data, **mode)
            return
        if is_new and self._patience.call("look up a file in", self._fs.exists, path):
            raise FileExistsError(path)
        self._aside(path, lambda aside: self._fs.pipe_file(aside, data))

    def put_file(self, path: str, source: str) -> None:
        """Upload a local file; it appears whole, or not at all."""
        size_bytes = os.stat(source).st_size
        if self._target.protocol not in OBJECT_STORES:
            self._aside(path, lambda aside: self._fs.put_file(source, aside))
        elif size_bytes <= (_WHOLE_BYTES_AZURE if self._target.is_azure else _WHOLE_BYTES):
            with open(source, "rb") as file:
                self.put_bytes(path, file.read())
        elif self._target.is_s3:
            self._put_parts(path, source, size_bytes)
        elif self._target.is_azure:
            self._put_blocks(path, source, size_bytes)
        else:
            self._patience.call("write to", self._fs.put_file, source, path, chunksize=PART_BYTES)

    def _aside(self, path: str, write: Callable[[str], Any]) -> None:
        """Write under another name, then rename: on a file system a file is seen while it grows."""

        def attempt() -> None:
            folder, _, name = path.rpartition("/")
            aside = f"{self._target.root}/tmp/{name}-{os.getpid()}-{os.urandom(6).hex()}"
            self._fs.makedirs(folder, exist_ok=True)
            self._fs.makedirs(f"{self._target.root}/tmp", exist_ok=True)
            write(aside)
            self._fs.mv(aside, path)

        self._patience.call("write to", attempt)

    def _put_parts(self, path: str, source: str, size_bytes: int) -> None:
        bucket, key, _ = self._fs.split_path(path)
        place = {"Bucket": bucket, "Key": key}
        upload_id = self._s3("create_multipart_upload", **place)["UploadId"]
        part_bytes = max(PART_BYTES, -(-size_bytes // _MAX_PARTS))
        try:
            with open(source, "rb", buffering=0) as file:

                def put(number: int) -> dict[str, Any]:
                    start = (number - 1) * part_bytes
                    part = {"UploadId": upload_id, "PartNumber": number, **place}

                    def attempt() -> Any:  # each with a body that has not been read
                        body = _Slice(file.fileno(), start, min(part_bytes, size_bytes - start))
                        return self._fs.call_s3("upload_part", Body=body, timeout=ANSWER_S, **part)

                    return {"PartNumber": number, "ETag": self._patience.call("write to", attempt)["ETag"]}

                parts = self._all(put, range(1, -(-size_bytes // part_bytes) + 1))
            self._complete(place, upload_id, parts, path, size_bytes)
        except BaseException as exc:
            try:
                self._fs.call_s3("abort_multipart_upload", UploadId=upload_id, **place)
            except Exception as abort:  # noqa: BLE001 - what it failed for is the error to show
                exc.add_note(f"the unfinished upload {upload_id!r} of {path!r} remains in the store: {abort}")
            raise

    def _complete(self, place: dict[str, str], upload_id: str, parts: list[Any], path: str, size_bytes: int) -> None:
        try:
            self._s3("complete_multipart_upload", UploadId=upload_id, MultipartUpload={"Parts": parts}, **place)
        except FileNotFoundError:
            if self.size(path) != size_bytes:  # else the first try succeeded, and its answer was lost
                raise

    def _put_blocks(self, path: str, source: str, size_bytes: int) -> None:
        """Upload to Azure; its blocks count once a list names them, and it forgets those without one after a week.

        The names are the same for everybody who writes the object, so that one's list does not lack another's blocks.
        """
        from azure.storage.blob import BlobBlock

        block_bytes = max(PART_BYTES, -(-size_bytes // _MAX_PARTS))
        names = [f"{number:05}" for number in range(-(-size_bytes // block_bytes))]
        with open(source, "rb", buffering=0) as file:

            def put(number: int) -> None:
                start = number * block_bytes

                def attempt() -> Any:  # each with a body that has not been read
                    body = _Slice(file.fileno(), start, min(block_bytes, size_bytes - start))
                    return self._azure(path, "stage_block", names[number], body, length=len(body))

                self._patience.call("write to", attempt)

            self._all(put, range(len(names)))
        self._patience.call("write to", self._azure, path, "commit_block_list", [BlobBlock(name) for name in names])

    def _azure(self, path: str, method: str, *args: Any, **kwargs: Any) -> Any:
        container, key, _ = self._fs.split_path(path)

        async def call() -> Any:
            async with self._fs.service_client.get_blob_client(container, key) as client:
                return await getattr(client, method)(*args, **kwargs)

        return sync(self._fs.loop, call, timeout=ANSWER_S)

    def uploads(self, path: str, *, at_once: int = 1000) -> Iterator[Upload]:
        """Give the multipart uploads below a path that have not ended; only S3 keeps them, until they are aborted.

        MinIO finds none by a prefix, and removes them by itself after a day.
        """
        if not self._target.is_s3:
            return
        bucket, key, _ = self._fs.split_path(path)
        place, markers = {"Bucket": bucket, "Prefix": f"{key}/", "MaxUploads": at_once}, dict[str, str]()
        while True:
            found = self._patience.call(
                "list the uploads of", self._fs.call_s3, "list_multipart_uploads", **place, **markers
            )
            for upload in found.get("Uploads", ()):
                yield Upload(f"{bucket}/{upload['Key']}", upload["UploadId"], upload["Initiated"].timestamp())
            before, markers = markers, {n: v for n in ("KeyMarker", "UploadIdMarker") if (v := found.get(f"Next{n}"))}
            if not found.get("IsTruncated") or markers == before:
                return

    def abort(self, upload: Upload) -> None:
        """Discard an upload with its parts; harmless where it has ended."""
        bucket, key, _ = self._fs.split_path(upload.path)
        with suppress(FileNotFoundError):
            self._s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload.upload_id)

    def _s3(self, method: str, **arguments: Any) -> Any:
        return self._patience.call("write to", self._fs.call_s3, method, timeout=ANSWER_S, **arguments)

    def _all(self, function: Callable[[int], Any], numbers: Iterable[int]) -> list[Any]:
        """Call a function with each number, several at a time; the first failure ends it when none is at work."""
        futures: list[Future[Any]] = [self._parts.submit(function, n) for n in numbers]
        try:
            return [f.result() for f in futures]
        except KeyboardInterrupt:
            self._patience.hurry()  # those at work use the caller's file: they are waited for
            raise
        finally:
            for future in futures:
                future.cancel()
            for future in futures:
                if not future.cancelled():
                    future.exception()  # waits

    def head(self, path: str) -> bytes:
        """Return an object's first part in one request; less than PART_BYTES is the whole object."""
        return self._read(path, 0, PART_BYTES)

    def get_file(self, path: str, descriptor: int) -> None:
        """Write an object's bytes into an open, empty local file."""
        first = self.head(path)
        if len(first) < PART_BYTES:
            _write_at(descriptor, first, 0)
            return
        size_bytes = self.size(path)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size_bytes)  # a full disk shows now, not after minutes
        _write_at(descriptor, first, 0)
        del first

        def get(start: int) -> None:
            _write_at(descriptor, self._read(path, start, min(start + PART_BYTES, size_bytes)), start)

        self._all(get, range(PART_BYTES, size_bytes, PART_BYTES))

    def pieces(self, path: str) -> Iterator[bytes]:
        """Give an object's bytes in order, a few parts ahead of what is taken."""
        size_bytes = self.size(path)
        starts = iter(range(0, size_bytes, PART_BYTES))
        ahead: deque[Future[bytes]] = deque()
        try:
            while True:
                while len(ahead) < 3 and (start := next(starts, None)) is not None:
                    end = min(start + PART_BYTES, size_bytes)
                    ahead.append(self._parts.submit(self._read, path, start, end))
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def _read(self, path: str, start: int, end: int) -> bytes:
        data: bytes = self._patience.call("read", self._fs.cat_file, path, start=start, end=end)
        return data

    def each(self, function: Callable[[Any], None], items: Iterable[Any]) -> None:
        """Call a function with each of several small things, several at a time."""
        things = list(items)
        if len(things) == 1:
            function(things[0])
            return
        self._all(lambda n: function(things[n]), range(len(things)))


class _Slice(io.RawIOBase):
    """A part of a file as a file: bytes would be held in memory twice, by us and by the socket that sends them."""

    def __init__(self, descriptor: int, start: int, size_bytes: int) -> None:
        super().__init__()
        self._descriptor, self._start, self._size_bytes, self._at = descriptor, start, size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size_bytes}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._size_bytes - self._at)]
        count = os.preadv(self._descriptor, [view], self._start + self._at)
        self._at += count
        return count

    def __len__(self) -> int:
        return self._size_bytes


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def missing(uri: str, digest: str) -> StoreError:
    """Say that an object is not there."""
    return StoreError(
        f"object {digest[:12]} is not in the artifact store {uri!r}: it was removed, and running again writes it anew"
    )
