"""A TCP proxy on loopback that makes the faults of a network, and answers HTTP itself where it is told to.

Its switches are plain attributes and methods, for the process of the tests: ``proxy.latency_s = 1.0``,
``proxy.reset()``. It copies bytes and knows no protocol, so headers and signatures pass unchanged.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_CHUNK_BYTES = 65536
_TICK_S = 0.02


class FaultProxy:
    """Forwards connections to a server on loopback; what is set holds at once, also for open connections.

    ``latency_s``: every chunk arrives that much later, in each direction.
    ``is_refusing``: new connections are reset.
    ``is_hanging``: nothing is forwarded and nothing is answered, while connections stay open.
    ``reset_after_bytes``: a connection is reset once so many bytes have passed, both ways together; None: never.
    ``http_status``: HTTP requests are answered with this status and never reach the server; None: they do. With
    ``http_only`` only requests that have it in their head.
    ``lost_answer_to``: a connection whose request has this in its head is reset when the server has answered.
    ``connections``, ``resets``, ``bytes_passed`` and ``http_answers`` count since the start.
    """

    def __init__(self, port: int) -> None:
        self.port = 0  # where it listens
        self.latency_s = 0.0
        self.is_refusing = False
        self.is_hanging = False
        self.reset_after_bytes: int | None = None
        self.http_status: int | None = None
        self.http_only = b""
        self.lost_answer_to: bytes | None = None
        self.connections = 0
        self.resets = 0  # by these faults, not by a side that went away
        self.bytes_passed = 0
        self.http_answers = 0
        self._server_port = port
        self._open: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    def start(self) -> None:
        """Begin to listen on a free port, ``port``."""
        self._thread.start()
        self._listener = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._listener.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Reset what is open and end the thread."""
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reset(self) -> int:
        """Reset every open connection, as a crashed router does, and return how many those were."""
        return self._call(self._reset())

    def heal(self) -> None:
        """Switch all faults off; connections that were reset stay so."""
        self.latency_s, self.is_refusing, self.is_hanging = 0.0, False, False
        self.reset_after_bytes, self.http_status, self.http_only, self.lost_answer_to = None, None, b"", None

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _reset(self) -> int:
        doomed = list(self._open)
        for link in doomed:
            self._break(link)
        return len(doomed)

    def _break(self, link: "_Link") -> None:
        self.resets += 1
        link.reset()

    async def _end(self) -> None:
        self._listener.close()
        await self._reset()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        link = _Link(writer)
        if self.is_refusing:
            self._break(link)
            return
        self._open.add(link)
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
            link.add(server_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(link, reader, server_writer, back=writer))
                group.create_task(self._copy(link, server_reader, writer))
        except* OSError:  # one of the two sides is gone: the other learns it
            link.reset()
        finally:
            self._open.discard(link)
            link.close()

    async def _copy(
        self,
        link: "_Link",
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        back: asyncio.StreamWriter | None = None,
    ) -> None:
        """Copy one direction; ``back`` leads to the client, where this is the direction of requests."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        reading = asyncio.create_task(self._read(reader, queue))
        try:
            while (data := await self._next(queue, link)) and not link.is_reset:
                is_faulty = self.http_status is not None and self.http_only in data
                if back is not None and self.lost_answer_to is not None:
                    link.loses_answer |= self.lost_answer_to in data
                if back is None and link.loses_answer:
                    self._break(link)
                elif back is not None and (is_faulty or link.is_answered):
                    await self._answer(link, back)
                else:
                    await self._forward(data, link, writer)
            if writer.can_write_eof() and not writer.is_closing():
                writer.write_eof()
        finally:
            reading.cancel()

    async def _forward(self, data: bytes, link: "_Link", writer: asyncio.StreamWriter) -> None:
        link.count += len(data)
        self.bytes_passed += len(data)
        if self.reset_after_bytes is not None and link.count >= self.reset_after_bytes:
            self._break(link)
            return
        writer.write(data)
        await writer.drain()

    async def _next(self, queue: "asyncio.Queue[tuple[float, bytes]]", link: "_Link") -> bytes:
        """Return the next chunk when its time has come."""
        due, data = await queue.get()
        while not link.is_reset and (self.is_hanging or self._loop.time() < due):
            await asyncio.sleep(_TICK_S if self.is_hanging else min(due - self._loop.time(), 10 * _TICK_S))
        return data

    async def _read(self, reader: asyncio.StreamReader, queue: "asyncio.Queue[tuple[float, bytes]]") -> None:
        data = b"first"
        while data:
            data = b""
            with suppress(OSError):  # reset: the same as an end, what came before it is still delivered
                data = await reader.read(_CHUNK_BYTES)
            await queue.put((self._loop.time() + self.latency_s, data))

    async def _answer(self, link: "_Link", client: asyncio.StreamWriter) -> None:
        """Answer a request once; what the client goes on to send is read and dropped, so that it sees the answer."""
        if not link.is_answered:
            link.is_answered = True
            self.http_answers += 1
            head = f"HTTP/1.1 {self.http_status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            client.write(head.encode())
            await client.drain()
            client.write_eof()


class _Link:
    """The one or two sockets of a forwarded connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.count = 0
        self.is_reset = False
        self.loses_answer = False
        self.is_answered = False  # by this proxy: nothing of it goes to the server any more
        self._writers = [writer]

    def add(self, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)

    def reset(self) -> None:
        self.is_reset = True
        for writer in self._writers:
            with suppress(OSError):  # closed already
                linger = struct.pack("ii", 1, 0)  # closing then sends RST
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


@contextmanager
def fault_proxy(port: int) -> Iterator[FaultProxy]:
    """Run a proxy before a port of loopback; clients connect to its ``port``."""
    proxy = FaultProxy(port)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.close()
