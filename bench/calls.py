"""What one call of the middleware costs, without sockets: a door, and requests that are led through it.

Aiohttp's parser, router and writer are not in these figures, and so a growth of ours is not hidden by theirs. The
collector of garbage is off while the clock runs: it would go through all that is open, whoever opened it.
"""

import asyncio
import gc
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.typedefs import Handler
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from aiohttp_reduce import reduce_middleware

from .apps import constant, no_op

_BATCH = 500
_TRIES = 3


class Connection:
    """What a request asks of its connection and of the transport. Aiohttp's own stand-ins are slow to make."""

    peername = sockname = ("127.0.0.1", 1)
    ssl_context = None
    _manager = None  # so that handlers are not cancelled with it

    @property
    def transport(self) -> "Connection":
        return self

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default


class Door:
    """A middleware of ours (`reduce`) or the no-op one, in front of an application that has these routes."""

    def __init__(self, name: str, routes: int = 0) -> None:
        self.middleware = reduce_middleware() if name == "reduce" else None
        self._call: Any = self.middleware or no_op
        self._app = web.Application(middlewares=[self._call])
        for number in range(routes):
            self._app.router.add_get(f"/route/{number}", constant)
        self._app.router.add_get("/{tail:(?!_reduce/).*}", constant)  # anything that is not the page of the figures
        self.released: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def request(self, path: str, headers: Mapping[str, str] | None = None) -> web.Request:
        """A request as it would come to the middleware."""
        fields = CIMultiDictProxy(CIMultiDict({"Host": "localhost", **(headers or {})}))
        raw = tuple((name.encode(), value.encode()) for name, value in fields.items())
        message = RawRequestMessage("GET", path, HttpVersion11, fields, raw, False, None, False, False, URL(path))
        task = asyncio.current_task()
        connection: Any = Connection()
        writer: Any = None  # nothing is written
        assert task is not None
        request = web.Request(
            message, aiohttp.EMPTY_PAYLOAD, connection, writer, task, asyncio.get_running_loop(), client_max_size=2**20
        )
        found = await self._app.router.resolve(request)
        found.add_app(self._app)
        request._match_info = found
        # What aiohttp has looked up, beside what the router does, when the first middleware is called.
        assert request.headers is fields
        assert request.match_info is found
        return request

    async def call(self, request: web.Request, handler: Handler = constant) -> None:
        await self._call(request, handler)

    async def held(self, request: web.Request) -> web.Response:
        """A handler that waits until it is released."""
        await asyncio.shield(self.released)
        return await constant(request)

    async def open(self, requests: Sequence[web.Request]) -> list[asyncio.Task[None]]:
        """Have them held."""
        tasks = [asyncio.create_task(self.call(request, self.held)) for request in requests]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return tasks

    async def close(self, tasks: Sequence[Awaitable[None]]) -> None:
        """Let the handlers answer, and wait for all who were held."""
        if not self.released.done():
            self.released.set_result(None)
        await asyncio.gather(*tasks)

    def check(self, runs: int) -> None:
        """Raises RuntimeError if handlers ran another number of times, where it is we who count."""
        if self.middleware is not None and self.middleware.stats["executed"] != runs:
            raise RuntimeError(f"{self.middleware.stats['executed']} runs of the handler instead of {runs}")


class Stopwatch:
    """Processor seconds of this process within the block."""

    seconds = 0.0

    def __enter__(self) -> "Stopwatch":
        gc.collect()
        gc.disable()
        self.seconds -= time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.process_time()
        gc.enable()


async def _each(door: Door, requests: Sequence[web.Request]) -> float:
    """Seconds for each, one after another, with a handler that answers at once."""
    with Stopwatch() as watch:
        for request in requests:
            await door.call(request)
    return watch.seconds / len(requests)


async def beside_targets(name: str, size: int) -> float:
    """A distinct request while so many others are open, each on a target of its own."""
    door = Door(name)
    tasks = await door.open([await door.request(f"/open/{number}") for number in range(size)])
    cost = await _each(door, [await door.request(f"/{number}") for number in range(_BATCH)])
    await door.close(tasks)
    door.check(size + _BATCH)
    return cost


async def beside_identities(name: str, size: int) -> float:
    """A distinct request while so many others are open on the same target, each with a header of its own."""
    door = Door(name)

    async def requests(first: int, count: int) -> list[web.Request]:
        return [await door.request("/", {"X-Tenant": f"{number}"}) for number in range(first, first + count)]

    tasks = await door.open(await requests(0, size))
    cost = await _each(door, await requests(size, _BATCH))
    await door.close(tasks)
    door.check(size + _BATCH)
    return cost


def headers(count: int) -> dict[str, str]:
    """So many, none of which we know."""
    return {f"X-Header-{number}": f"value of {number}" for number in range(count)}


async def with_headers(name: str, size: int) -> float:
    """A distinct request with so many headers."""
    door = Door(name)
    return await _each(door, [await door.request(f"/{number}", headers(size)) for number in range(_BATCH)])


async def following_with_headers(name: str, size: int) -> float:
    """A follower with so many headers, from its coming to its answer: the best of some, as headers cost little."""
    return min([await _following(name, headers(size)) for _ in range(_TRIES)])


async def _following(name: str, headers: Mapping[str, str]) -> float:
    door = Door(name)
    requests = [await door.request("/", headers) for _ in range(_BATCH + 1)]
    tasks = await door.open(requests[:1])
    with Stopwatch() as watch:
        tasks += await door.open(requests[1:])
        await door.close(tasks)
    door.check(1)
    return watch.seconds / _BATCH


async def _used(name: str, size: int) -> Door:
    door = Door(name, routes=size)
    if door.middleware is not None:
        for number in range(size):
            await door.call(await door.request(f"/route/{number}"))
    return door


async def with_routes(name: str, size: int) -> float:
    """A distinct request, to one of so many routes that were used before."""
    door = await _used(name, size)
    step = max(size // _BATCH, 1)
    return await _each(door, [await door.request(f"/route/{number * step % size}") for number in range(_BATCH)])


async def stats_of_routes(name: str, size: int) -> float:
    """The page of the figures of so many routes."""
    door = await _used(name, size)
    assert door.middleware is not None
    request = await door.request("/")
    repeats = max(1, 100 // size)
    with Stopwatch() as watch:
        for _ in range(repeats):
            await door.middleware.stats_handler(request)
    return watch.seconds / repeats
