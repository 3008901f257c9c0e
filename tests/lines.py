"""A server without sockets: connections that exist in memory, for whole requests and answers in virtual time.

aiohttp's own connection handler reads and writes each of them, so that nothing of a server is left out but the sockets.
"""

import asyncio
import zlib
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from multidict import CIMultiDict


@dataclass
class Received:
    """An answer as far as it came. `whole` is whether its client can tell that it came to its end."""

    status: int = 0
    reason: str = ""
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    head: str = ""
    body: bytes = b""
    whole: bool = False

    @property
    def text(self) -> str:
        return self.body.decode()


class Line(asyncio.Transport):
    """One connection, as its client sees it; the server's end of it is `self._protocol`."""

    def __init__(self, server: "MemoryServer", peer: str) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._extra = {"peername": (peer, 1), "sockname": ("server", 80)}
        self._received = bytearray()
        self._closing = self._was_reset = self._held = False
        self._answered: asyncio.Future[None] | None = None
        self._head_only = False
        self._protocol: Any = server.runner.server()  # type: ignore[misc]
        self._protocol.connection_made(self)

    @property
    def is_idle(self) -> bool:
        """Whether another request can be sent."""
        return not self._closing and not self._received and self._answered is None

    async def ask(self, request: bytes, *, head_only: bool = False) -> Received:
        """Send a request, and receive the answer, or what there is of it."""
        self._answered = self._loop.create_future()
        self._head_only = head_only
        self._protocol.data_received(request)
        self._look()
        try:
            await self._answered
        finally:
            self._answered = None
        received = self._parsed()
        self._received.clear()
        return received

    def leave(self) -> None:
        """Hang up at once, as a client that is killed does."""
        self._end(reset=True)

    def hold(self, seconds: float) -> None:
        """Take nothing more for so long: the server is told that its writes are not taken."""
        if not self._closing and not self._held:
            self._held = True
            self._protocol.pause_writing()
            self._loop.call_later(seconds, self._take_again)

    def _take_again(self) -> None:
        self._held = False
        if not self._closing:
            self._protocol.resume_writing()

    def _look(self) -> None:
        answered = self._answered
        if answered is not None and not answered.done() and (self._closing or self._is_whole()):
            answered.set_result(None)

    def _is_whole(self) -> bool:
        received = self._received
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return False
        if self._head_only:
            return True
        head = bytes(received[:end]).lower()
        if b"\r\ntransfer-encoding: chunked" in head:
            return received.endswith(b"\r\n0\r\n\r\n")
        _, found, length = head.partition(b"\r\ncontent-length: ")
        if found:
            return len(received) >= end + 4 + int(length.split(b"\r\n", 1)[0])
        return head.split(b" ", 2)[1] in {b"204", b"304"} or (self._closing and not self._was_reset)

    def _parsed(self) -> Received:
        whole = self._is_whole()
        raw = bytes(self._received)
        head, found, rest = raw.partition(b"\r\n\r\n")
        if not found:
            return Received(head=raw.decode("latin-1"))
        lines = head.decode("latin-1").split("\r\n")
        _, status, reason = lines[0].split(" ", 2)
        headers = CIMultiDict([(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])])
        if headers.get("Transfer-Encoding") == "chunked":
            rest = _unchunked(rest)
        if headers.get("Content-Encoding") == "gzip":
            rest = zlib.decompressobj(31).decompress(rest)
        return Received(int(status), reason, headers, head.decode("latin-1"), rest, whole)

    def _end(self, *, reset: bool = False) -> None:
        if not self._closing:
            self._closing, self._was_reset = True, reset
            self._loop.call_soon(self._protocol.connection_lost, None)
            self._look()

    # What the server does with its transport.

    def write(self, data: Any) -> None:
        if not self._closing:
            self._received += data
            self._look()

    def writelines(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._end()

    def abort(self) -> None:
        self._end(reset=True)

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class MemoryServer:
    """An application behind connections in memory."""

    def __init__(self, app: web.Application, **runner_options: Any) -> None:
        self.runner = web.AppRunner(app, access_log=None, **runner_options)
        self._lines: dict[str, list[Line]] = {}

    async def start(self) -> None:
        await self.runner.setup()

    async def stop(self) -> None:
        for lines in self._lines.values():
            for line in lines:
                line.close()
        await self.runner.cleanup()

    def line(self, peer: str) -> Line:
        """A connection from this address: one that is kept alive and idle, if there is one."""
        lines = self._lines.setdefault(peer, [])
        lines[:] = [line for line in lines if not line.is_closing()]
        for line in lines:
            if line.is_idle:
                return line
        lines.append(Line(self, peer))
        return lines[-1]


def _unchunked(data: bytes) -> bytes:
    """The data of the chunks that came."""
    found: list[bytes] = []
    while data:
        size, _, data = data.partition(b"\r\n")
        try:
            length = int(size, 16)
        except ValueError:
            break
        found.append(data[:length])
        data = data[length + 2 :]
    return b"".join(found)
