"""A real server on a loopback socket, raw connections to it, and gates that hold a handler open."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from aiohttp_reduce.server import ReduceMiddleware

PATIENCE = 5.0


async def eventually(condition: Callable[[], bool]) -> None:
    """Let the loop run until the condition holds; fails after `PATIENCE` seconds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


def is_uncrowded(table: Any) -> bool:
    """Whether nothing is known of a table's targets but its pass markers."""
    return table.crowds == dict.fromkeys(table.passes.by_target, 1)


class Gate:
    """Counts the runs of a handler, and holds each until `open()`."""

    def __init__(self) -> None:
        self.runs = 0
        self.ended = 0
        self.requests: list[web.Request] = []
        self._opened = asyncio.Event()

    async def wait(self, request: web.Request | None = None) -> int:
        """Count a run, and wait for the gate. Returns the number of the run."""
        self.runs += 1
        if request is not None:
            self.requests.append(request)
        run = self.runs
        try:
            await self._opened.wait()
        finally:
            self.ended += 1
        return run

    def open(self) -> None:
        """Let go of all runs, and of those to come."""
        self._opened.set()

    def close(self) -> None:
        """Hold the runs to come."""
        self._opened = asyncio.Event()

    async def disconnected(self, run: int = 1) -> None:
        """Wait until the server knows that the client of this run is gone."""
        await eventually(lambda: self.requests[run - 1].transport is None)

    async def entered(self, runs: int = 1) -> None:
        """Wait until so many runs have begun."""
        await eventually(lambda: self.runs >= runs)


@dataclass
class Reply:
    """A response as it came over the wire."""

    status: int
    reason: str
    headers: CIMultiDictProxy[str]
    body: bytes
    version: str = "HTTP/1.1"

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def collapsed(self) -> str | None:
        """The Cache-Status of the answer, if any."""
        return ", ".join(self.headers.getall("Cache-Status", [])) or None


@dataclass
class Connection:
    """One keep-alive connection, driven by hand."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    tasks: set["asyncio.Task[Any]"] = field(default_factory=set)

    async def send(
        self,
        target: str,
        headers: dict[str, str] | Iterable[tuple[str, str]] = (),
        *,
        method: str = "GET",
        version: str = "HTTP/1.1",
        host: str | None = "localhost",
        body: bytes = b"",
    ) -> None:
        pairs = list(headers.items()) if isinstance(headers, dict) else list(headers)
        if host is not None:
            pairs.insert(0, ("Host", host))
        if body:
            pairs.append(("Content-Length", str(len(body))))
        head = "".join(f"{name}: {value}\r\n" for name, value in pairs)
        self.writer.write(f"{method} {target} {version}\r\n{head}\r\n".encode() + body)
        await self.writer.drain()

    async def receive(self, *, head_only: bool = False) -> Reply:
        """Read one response. Raises IncompleteReadError where it is cut short."""
        async with asyncio.timeout(PATIENCE):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            version, status, reason = lines[0].split(" ", 2)
            headers: CIMultiDict[str] = CIMultiDict()
            for line in lines[1:]:
                if line:
                    name, _, value = line.partition(":")
                    headers.add(name, value.strip())
            body = b""
            if head_only or int(status) in {204, 304}:
                pass
            elif headers.get("Transfer-Encoding") == "chunked":
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    body += await self.reader.readexactly(size)
                    await self.reader.readexactly(2)
                await self.reader.readexactly(2)
            elif "Content-Length" in headers:
                body = await self.reader.readexactly(int(headers["Content-Length"]))
            else:
                body = await self.reader.read()
        return Reply(int(status), reason, CIMultiDictProxy(headers), body, version)

    async def request(self, target: str, headers: Any = (), **options: Any) -> Reply:
        await self.send(target, headers, **options)
        return await self.receive(head_only=options.get("method") == "HEAD")

    def abort(self) -> None:
        """Leave at once, as a client that is killed does."""
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (ConnectionError, ssl.SSLError):
            pass


class Server:
    """An application behind a loopback socket. `middleware` is the object whose figures `figure` reads."""

    def __init__(
        self,
        app: web.Application,
        *,
        middleware: ReduceMiddleware | None = None,
        tls: ssl.SSLContext | None = None,
        **runner_options: Any,
    ) -> None:
        self.app = app
        self.middleware = middleware
        self._tls = tls
        self._runner = web.AppRunner(app, access_log=None, **runner_options)
        self._connections: list[Connection] = []
        self._stopped = False
        self.address = "127.0.0.1"
        self.port = 0

    async def start(self) -> None:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=2048, ssl_context=self._tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        for connection in self._connections:
            await connection.close()
        await self._runner.cleanup()

    @property
    def runner(self) -> web.AppRunner:
        return self._runner

    async def connect(self, tls: ssl.SSLContext | None = None) -> Connection:
        options = {} if tls is None else {"server_hostname": "localhost"}
        reader, writer = await asyncio.open_connection(self.address, self.port, ssl=tls, limit=2**20, **options)
        connection = Connection(reader, writer)
        self._connections.append(connection)
        return connection

    async def get(self, target: str, headers: Any = (), **options: Any) -> Reply:
        """One request on a connection of its own."""
        connection = await self.connect()
        return await connection.request(target, headers, **options)

    async def herd(self, size: int, target: str, headers: Any = (), **options: Any) -> list[Reply]:
        """So many identical requests, each on its own connection, all sent before anything is received."""
        connections = await asyncio.gather(*[self.connect() for _ in range(size)])
        await asyncio.gather(*[one.send(target, headers, **options) for one in connections])
        head_only = options.get("method") == "HEAD"
        return await asyncio.gather(*[one.receive(head_only=head_only) for one in connections])

    async def send(self, target: str, headers: Any = (), **options: Any) -> Connection:
        """Send a request on a connection of its own; receive the answer later."""
        connection = await self.connect()
        await connection.send(target, headers, **options)
        return connection

    def figure(self, name: str, route: str | None = None) -> Any:
        """A figure of the middleware's stats."""
        assert self.middleware is not None
        stats = self.middleware.stats
        return stats[name] if route is None else stats["routes"][route][name]

    async def waiting(self, followers: int) -> None:
        """Wait until exactly so many requests wait for another's run."""
        await eventually(lambda: bool(self.figure("waiting") == followers))

    def nothing_is_left(self) -> bool:
        """Whether no flight, nobody who waits and no run remains."""
        assert self.middleware is not None
        return (
            all(not table.flights and is_uncrowded(table) for table in self.middleware._tables.values())
            and self.figure("waiting") == 0
            and self.figure("in_flight") == 0
        )


Start = Callable[..., Awaitable[Server]]


def app_with(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    middleware: ReduceMiddleware,
    *,
    path: str = "/",
    outer: Iterable[Any] = (),
    inner: Iterable[Any] = (),
) -> web.Application:
    """An application with one handler for every method on `path`."""
    app = web.Application(middlewares=[*outer, middleware, *inner])
    app.router.add_route("*", path, handler)
    return app
