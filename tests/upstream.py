"""An upstream for outgoing requests: a server by hand on a loopback socket, and sessions that are closed in the end.

`Upstream` speaks HTTP on raw sockets, so that a test decides when each byte is sent and when a connection breaks; it
counts the requests and knows which connections are open. Real aiohttp servers are `tests.harness.Server`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from multidict import CIMultiDict

from aiohttp_reduce import ReducingClientSession, hooks
from aiohttp_reduce.client import ReduceClientMiddleware
from tests.harness import eventually


@dataclass
class Exchange:
    """One request as the upstream got it, and the means to answer it."""

    method: str
    target: str
    headers: CIMultiDict[str]
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: str = "200 OK", **headers: Any) -> None:
        """Send a head; underscores in names stand for dashes."""
        lines = [f"HTTP/1.1 {status}", *[f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]]
        await self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    async def respond(self, body: bytes = b"hello", status: str = "200 OK", **headers: Any) -> None:
        """Send a whole response, head and body in one piece."""
        headers.setdefault("Content_Length", len(body))
        lines = [f"HTTP/1.1 {status}", *[f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]]
        payload = b"" if self.method == "HEAD" else body
        await self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + payload)

    async def chunk(self, data: bytes) -> None:
        """Send one HTTP chunk; an empty one ends the body."""
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def drop(self) -> None:
        """Break the connection."""
        self.writer.transport.abort()


Answer = Callable[[Exchange], Awaitable[None]]


class Upstream:
    """A server whose every answer is what `answer(exchange)` sends. `requests` are those that came."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[Exchange] = []
        self.connections = 0
        self.open_connections = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=1024, limit=2**20)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        self._tasks.add(task)
        self.connections += 1
        self.open_connections += 1
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except RuntimeError:
            if not writer.transport.is_closing():
                raise  # otherwise it is how uvloop says ConnectionError
        finally:
            self.open_connections -= 1
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = lines[0].split(" ", 2)
            headers: CIMultiDict[str] = CIMultiDict()
            for line in lines[1:]:
                if line:
                    name, _, value = line.partition(":")
                    headers.add(name, value.strip())
            body = await reader.readexactly(int(headers.get("Content-Length", 0)))
            exchange = Exchange(method, target, headers, body, reader, writer, len(self.requests) + 1)
            self.requests.append(exchange)
            answering = asyncio.ensure_future(self.answer(exchange))
            gone = asyncio.ensure_future(self._gone(reader, exchange))
            try:
                await answering
            finally:
                gone.cancel()
                answering.cancel()
                await asyncio.gather(gone, answering, return_exceptions=True)
            if writer.transport.is_closing():
                return

    async def _gone(self, reader: asyncio.StreamReader, exchange: Exchange) -> None:
        """Notice that the client closed the connection while it was being answered."""
        while not reader.at_eof() and reader.exception() is None:
            await asyncio.sleep(0.002)
        exchange.left.set()

    async def asked(self, requests: int = 1) -> None:
        """Wait until so many requests have come."""
        await eventually(lambda: len(self.requests) >= requests)


def reducer_of(session: ReducingClientSession) -> ReduceClientMiddleware:
    """The middleware object of a session."""
    return session._reducer


def nothing_is_left(reducer: ReduceClientMiddleware) -> bool:
    """Whether no flight, task, call that waits or buffered byte remains."""
    stats = reducer.stats
    return not (stats["waiting"] or stats["in_flight"]) and all(
        not table.flights and not table.crowds and not table.running and not table.streams and not table.budget.used
        for table in reducer._tables.by_loop.values()
    )


async def waiting(reducer: ReduceClientMiddleware, calls: int) -> None:
    """Wait until exactly so many calls wait for another one's flight."""
    await eventually(lambda: bool(reducer.stats["waiting"] == calls))


async def bodies(session: Any, count: int, url: str, **options: Any) -> list[bytes]:
    """The bodies of so many identical GETs at once."""

    async def one() -> bytes:
        async with session.get(url, **options) as response:
            return await response.read()  # type: ignore[no-any-return]

    return await asyncio.gather(*[one() for _ in range(count)])


StartUpstream = Callable[[Answer], Awaitable[Upstream]]
OpenSession = Callable[..., ReducingClientSession]
OpenGenuine = Callable[..., aiohttp.ClientSession]


async def hello(exchange: Exchange) -> None:
    await exchange.respond(b"hello")


async def body_of(session: Any, url: str, **options: Any) -> bytes:
    """The body of one GET."""
    async with session.get(url, **options) as response:
        return await response.read()  # type: ignore[no-any-return]


def reading(session: Any, count: int, url: str, **options: Any) -> "list[asyncio.Task[bytes]]":
    """So many identical GETs, each a task that returns the body."""
    return [asyncio.create_task(body_of(session, url, **options)) for _ in range(count)]


class Held:
    """An answer that is held until `gate` opens, with headers."""

    def __init__(self, **headers: str) -> None:
        self.gate = asyncio.Event()
        self.headers = headers

    async def __call__(self, exchange: Exchange) -> None:
        await self.gate.wait()
        await exchange.respond(b"hello", **self.headers)


async def halves(exchange: Exchange) -> None:
    """The first half of a body, and no more until the client hangs up."""
    await exchange.head(Content_Length=2)
    await exchange.send(b"a")
    await exchange.left.wait()


class Told(hooks.BaseHooks):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.requests: list[tuple[str, Any]] = []
        self.shown: set[tuple[str, str]] = set()

    def note(self, hook: str, coro: Any, ident: Any, *what: Any) -> None:
        self.events.append((hook, *what))
        self.requests.append((hook, coro))
        self.shown.add((str(ident), ident.name))

    def on_apply_for(self, coro: Any, ident: Any) -> None:
        self.note("apply", coro, ident)

    def on_executing_for(self, coro: Any, ident: Any) -> None:
        self.note("executing", coro, ident)

    def on_reducing_for(self, coro: Any, ident: Any) -> None:
        self.note("reducing", coro, ident)

    def on_result_for(self, coro: Any, ident: Any, result: Any) -> None:
        self.note("result", coro, ident, result.status)

    def on_exception_for(self, coro: Any, ident: Any, exception: BaseException) -> None:
        self.note("exception", coro, ident, exception)
