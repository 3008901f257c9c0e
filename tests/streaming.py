"""Handlers that stream piece by piece when they are told to, for the tests of streamed answers."""

import asyncio
import socket
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web

from aiohttp_reduce import reduce_middleware

from .harness import Connection, Server, Start, app_with, eventually

Prepare = Callable[[web.Request], web.StreamResponse]


def plain(request: web.Request) -> web.StreamResponse:
    return web.StreamResponse(headers={"X-From": "the handler"})


class Tap:
    """What a handler writes: each piece when it is let out, until `end()` or `fail(exception)`.

    `handler` prepares a response and writes to it, `body` is the same as an async generator, once for each run.
    `ended` has how each run ended: None, or what was raised in it.
    """

    def __init__(self, prepare: Prepare = plain) -> None:
        self.runs = 0
        self.heads = 0
        self.written = 0
        self.ended: list[BaseException | None] = []
        self._prepare = prepare
        self._pieces: list[Any] = []
        self._more = asyncio.Event()
        self._head = asyncio.Event()

    def send_head(self) -> None:
        """Let the handlers prepare their response."""
        self._head.set()

    def let(self, *pieces: bytes) -> None:
        """Let these pieces out."""
        self._pieces += pieces
        self._more.set()

    def end(self, end: BaseException | None = None) -> None:
        """Let the handlers return, or raise."""
        self._head.set()
        self.let(end)  # type: ignore[arg-type]

    async def pieces(self) -> AsyncIterator[bytes]:
        index = 0
        while True:
            while index == len(self._pieces):
                self._more.clear()
                await self._more.wait()
            piece = self._pieces[index]
            index += 1
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    async def handler(self, request: web.Request) -> web.StreamResponse:
        self.runs += 1
        await self._head.wait()
        response = self._prepare(request)
        try:
            await response.prepare(request)
            self.heads += 1
            async for piece in self.pieces():
                await response.write(piece)
                self.written += 1
        except BaseException as exception:
            self.ended.append(exception)
            raise
        self.ended.append(None)
        return response

    async def one_shot(self, request: web.Request) -> web.StreamResponse:
        self.runs += 1
        await self._head.wait()
        self.heads += 1

        async def body() -> AsyncIterator[bytes]:
            try:
                async for piece in self.pieces():
                    yield piece
                    self.written += 1
            except BaseException as exception:
                self.ended.append(exception)
                raise
            self.ended.append(None)

        return web.Response(body=body(), headers={"X-From": "the handler"})


async def streams(
    serve: Start, tap: Tap, *, handler: Any = None, outer: Any = (), inner: Any = (), **options: Any
) -> Server:
    """A server whose one handler is the tap's, behind a middleware with these options."""
    middleware = reduce_middleware(**options)
    app = app_with(handler or tap.handler, middleware, outer=outer, inner=inner)
    return await serve(app, middleware=middleware, shutdown_timeout=1.0)


async def joined(server: Server, size: int, tap: Tap, target: str = "/", headers: Any = ()) -> list[Connection]:
    """So many identical requests, the first of which leads, all waiting for the head."""
    first = await server.send(target, headers)
    await eventually(lambda: tap.runs == 1)
    others = [await server.send(target, headers) for _ in range(size - 1)]
    await server.waiting(size - 1)
    return [first, *others]


def kept(server: Server) -> int:
    """The bytes of streams that the server's middleware keeps."""
    assert server.middleware is not None
    return sum(budget.used for budget in server.middleware._budgets.by_loop.values())


async def nothing_is_left(server: Server) -> None:
    """Wait until no flight, nobody who waits, no run, no byte and no task of the middleware remains."""
    await eventually(lambda: server.nothing_is_left() and kept(server) == 0)
    await eventually(lambda: not [task for task in asyncio.all_tasks() if "aiohttp_reduce" in repr(task)])


# Bytes that the system keeps of a connection, at each of its ends; it takes that twofold.
_SOCKET_BUFFER = 0x8000
_SEGMENT = 1400


class Wires:
    """An outer middleware that keeps the connections and tasks of requests, in their order.

    It has the system keep little of what is sent on slow connections, which it knows by the size of their segments.
    """

    __middleware_version__ = 1

    def __init__(self) -> None:
        self.protocols: list[Any] = []
        # Not the tasks themselves: they hold what was raised in them, and that holds everything.
        self.tasks: list[weakref.ref[asyncio.Task[Any]]] = []

    async def __call__(self, request: web.Request, handler: Any) -> web.StreamResponse:
        assert request.transport is not None
        sock = request.transport.get_extra_info("socket")
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= _SEGMENT:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        task = asyncio.current_task()
        assert task is not None
        self.protocols.append(request.protocol)
        self.tasks.append(weakref.ref(task))
        response: web.StreamResponse = await handler(request)
        return response

    async def blocked(self, number: int) -> None:
        """Wait until nothing more can be written to this one's connection."""
        await eventually(lambda: len(self.protocols) > number and self.protocols[number]._paused)

    def cancel(self, number: int) -> None:
        """Cancel the task that answers this one."""
        task = self.tasks[number]()
        assert task is not None
        task.cancel()

    async def disconnected(self, number: int) -> None:
        """Wait until the server knows that this one's client is gone."""
        await eventually(lambda: self.protocols[number].transport is None)


async def slow(server: Server, target: str = "/", headers: Any = (), **options: Any) -> Connection:
    """Send a request on a connection of which nothing is read, and that takes little, until `resume(connection)`."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)
    # With the large segments of a loopback socket, so little room makes TCP wait before it says that there is more.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT)
    await asyncio.get_running_loop().sock_connect(sock, (server.address, server.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=2**24)
    connection = Connection(reader, writer)
    server._connections.append(connection)
    pause(connection)
    await connection.send(target, headers, **options)
    return connection


def pause(connection: Connection) -> None:
    """Read nothing more of a connection."""
    connection.writer.transport.pause_reading()  # type: ignore[attr-defined]


def resume(connection: Connection) -> None:
    """Read a connection again."""
    connection.writer.transport.resume_reading()  # type: ignore[attr-defined]


async def arrived(piece: bytes, *connections: Connection) -> None:
    """Wait until this has come over each of the connections; it is left there to be received."""
    for connection in connections:
        await eventually(lambda connection=connection: piece in connection.reader._buffer)  # type: ignore[misc]


async def is_broken(connection: Connection) -> bool:
    """Receive an answer, and say whether its client is told that this is not the whole."""
    try:
        await connection.receive()
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return True
    except ValueError:  # what is not a chunk stands where one should be
        return True
    except TimeoutError:  # it waits for what will never come
        return False
    return False
