"""A wire without sockets: a connector whose far end a test plays, for client sessions in virtual time.

What the far end sends arrives in the same step, and nothing is sent while the client has paused reading: with
`tests.virtual.VirtualLoop` a run depends on nothing but what the test does.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import aiohttp
from aiohttp.connector import BaseConnector

from aiohttp_reduce import ReducingClientSession
from tests.upstream import nothing_is_left, reducer_of
from tests.virtual import VirtualLoop, run_virtually

# No run takes longer; one that does hangs (seconds).
LIMIT = 10_000.0


class Line(asyncio.Transport):
    """One connection, as the far end sees it. `asked` are the request lines that came, `latest` is the last head."""

    def __init__(self, far_end: "FarEnd", protocol: Any) -> None:
        super().__init__()
        self.far_end = far_end
        self.asked: list[str] = []
        self.latest = b""
        self.closed = False
        self._protocol = protocol
        self._received = b""
        self._may_send = asyncio.Event()
        self._may_send.set()
        # One may linger after its last byte, while the next request is answered already.
        self._answering: list[asyncio.Task[None]] = []

    async def send(self, data: bytes) -> None:
        """Send bytes, once the client reads. Raises ConnectionResetError where it has hung up."""
        await self._may_send.wait()
        if self.closed:
            raise ConnectionResetError
        self._protocol.data_received(data)

    async def head(self, *lines: str, status: str = "200 OK") -> None:
        """Send a head."""
        await self.send("\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode())

    async def chunk(self, data: bytes) -> None:
        """Send one HTTP chunk; an empty one ends the body."""
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def respond(self, body: bytes = b"hello", status: str = "200 OK") -> None:
        """Send a whole response in one piece."""
        await self.send(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body))

    # What the client does with its transport.

    def write(self, data: Any) -> None:
        self._received += bytes(data)
        if self._received.endswith(b"\r\n\r\n") and not self.closed:
            line = self._received.split(b"\r\n", 1)[0].decode().removesuffix(" HTTP/1.1")
            self.latest, self._received = self._received, b""
            self.asked.append(line)
            self.far_end.asked.append(line)
            self._answering.append(asyncio.ensure_future(self._answer()))

    def pause_reading(self) -> None:
        self._may_send.clear()

    def resume_reading(self) -> None:
        self._may_send.set()

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            for answering in self._answering:
                answering.cancel()
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close

    async def _answer(self) -> None:
        try:
            await self.far_end.answer(self, len(self.far_end.asked))
        except ConnectionResetError:
            pass


Answer = Callable[[Line, int], Awaitable[None]]


class FarEnd(BaseConnector):
    """Connects to `answer(line, number)`, which plays the server for the request of that number."""

    def __init__(self, answer: Answer, **options: Any) -> None:
        super().__init__(**options)
        self.answer = answer
        self.asked: list[str] = []
        self.lines: list[Line] = []

    async def _create_connection(self, req: Any, traces: Any, timeout: aiohttp.ClientTimeout) -> Any:  # noqa: ASYNC109
        protocol = self._factory()
        line = Line(self, protocol)
        self.lines.append(line)
        protocol.connection_made(line)
        return protocol

    @property
    def open_lines(self) -> int:
        """How many connections the client has open, idle ones included."""
        return sum(not line.closed for line in self.lines)


def run_on_the_wire(
    answer: Answer,
    main: Callable[[VirtualLoop, ReducingClientSession, FarEnd], Coroutine[Any, Any, None]],
    **options: Any,
) -> None:
    """Run a session with these options against a far end, in virtual time; nothing may be left of it in the end."""

    async def with_session(loop: VirtualLoop) -> None:
        far_end = FarEnd(answer)
        async with ReducingClientSession(connector=far_end, **options) as session:
            reducer = reducer_of(session)
            reducer._settings = reducer._settings._replace(clock=loop.time)
            async with asyncio.timeout(LIMIT):
                await main(loop, session, far_end)
            await asyncio.sleep(0.01)
            assert nothing_is_left(reducer), "something was left behind"
        await asyncio.sleep(0.01)  # connections tell that they are lost

    run_virtually(with_session)


async def respond(line: Line, number: int) -> None:
    await line.respond(b"%d" % number)
