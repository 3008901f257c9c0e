"""A handful of requests that differ as a test says, made to wait for one run, and what that came to."""

import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from aiohttp import web

from aiohttp_reduce import reduce_middleware
from aiohttp_reduce.server import ReduceMiddleware
from tests.harness import Connection, Gate, Reply, Server, Start, app_with, eventually

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Herds:
    """A server whose handler makes its answer of the request, then waits for a gate, then sends it."""

    def __init__(self, server: Server, gate: Gate, middleware: ReduceMiddleware) -> None:
        self.server = server
        self.gate = gate
        self.middleware = middleware

    @property
    def runs(self) -> int:
        return self.gate.runs

    @property
    def unshared(self) -> dict[str, int]:
        unshared: dict[str, int] = self.server.figure("unshared")
        return unshared

    async def meet(
        self, requests: Sequence[Any], target: str = "/", *, tls: Sequence[ssl.SSLContext | None] = ()
    ) -> tuple[int, list[Reply]]:
        """Send the requests one by one, let the handler go on, and say how many runs it took."""
        before = self.gate.runs
        self.gate.close()
        sent: list[Connection] = []
        for number, headers in enumerate(requests, 1):
            connection = await self.server.connect(tls[number - 1] if tls else None)
            await connection.send(target, headers)
            sent.append(connection)
            await eventually(lambda number=number: self._arrived(before) == number)  # type: ignore[misc]
        self.gate.open()
        replies = [await connection.receive() for connection in sent]
        await eventually(self.server.nothing_is_left)
        return self.gate.runs - before, replies

    def _arrived(self, before: int) -> int:
        waiting: int = self.server.figure("waiting")
        return waiting + self.gate.runs - before


async def herds(
    serve: Start,
    answer: Callable[[web.Request], Any],
    *,
    outer: Iterable[Any] = (),
    inner: Iterable[Any] = (),
    middleware: ReduceMiddleware | None = None,
    tls: ssl.SSLContext | None = None,
    **options: Any,
) -> Herds:
    """A server for herds; `answer` gives a response or a text. Options are those of `reduce_middleware`."""
    gate = Gate()

    async def handler(request: web.Request) -> web.StreamResponse:
        try:
            answered = answer(request)
        except Exception as exception:
            answered = exception
        await gate.wait(request)
        if isinstance(answered, BaseException):
            raise answered
        return answered if isinstance(answered, web.StreamResponse) else web.Response(text=str(answered))

    middleware = middleware or reduce_middleware(**options)
    app = app_with(handler, middleware, outer=outer, inner=inner)
    return Herds(await serve(app, middleware=middleware, tls=tls), gate, middleware)
