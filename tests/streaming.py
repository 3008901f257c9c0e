"""Handlers that stream piece by piece when they are told to, for the tests of streamed answers."""

import asyncio
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
    return await serve(app, middleware=middleware)


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
