"""Controlled time: a loop whose clock jumps to the next timer, and requests that need no socket."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar
from unittest import mock

from aiohttp import EMPTY_PAYLOAD, web
from aiohttp.test_utils import make_mocked_request

from aiohttp_reduce.server import ReduceMiddleware
from tests.harness import is_uncrowded

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    """Never sleeps: what it would have slept, the clock moves on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("everything waits, and no timer is set")
            self.now += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time (seconds)."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


def run_virtually(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run to the end in virtual time, and check that nothing is left behind."""
    loop = VirtualLoop()
    problems: list[Any] = []
    loop.set_exception_handler(lambda _loop, context: problems.append(context))
    try:
        asyncio.set_event_loop(loop)
        result = loop.run_until_complete(main(loop))
        left = asyncio.all_tasks(loop)
        assert not left, f"tasks were left behind: {left}"
        assert not problems, problems
        return result
    finally:
        asyncio.set_event_loop(None)
        loop.close()


class Door:
    """A middleware object in front of one handler, in virtual time.

    `is_ordinary`: GETs may take the short way through it. (Not where the route may be that of the figures.)
    """

    def __init__(
        self,
        loop: VirtualLoop,
        middleware: ReduceMiddleware,
        handler: Callable[[web.Request], Awaitable[Any]],
        *,
        outer: Iterable[Any] = (),
        inner: Iterable[Any] = (),
        is_ordinary: bool = True,
    ) -> None:
        self.loop = loop
        self.middleware = middleware
        middleware._clock = middleware._settings.clock = loop.time
        self.app = web.Application(middlewares=[*outer, middleware, *inner])
        self.app.router.add_route("*", "/{tail:(?!_reduce/).*}" if is_ordinary else "/{tail:.*}", handler)
        self.app._set_loop(loop)
        self.app.freeze()

    def request(self, target: str = "/", method: str = "GET", headers: dict[str, str] | None = None) -> web.Request:
        protocol = mock.Mock(ssl_context=None, _close=False, _force_close=False, peername=("127.0.0.1", 1))
        transport = mock.Mock(get_extra_info=lambda _name, default=None: default)
        transport.is_closing.return_value = False
        return make_mocked_request(
            method,
            target,
            {"Host": "localhost", **(headers or {})},
            protocol=protocol,
            transport=transport,
            payload=EMPTY_PAYLOAD,
            app=self.app,
        )

    async def get(self, target: str = "/", **options: Any) -> Any:
        return await self.app._handle(self.request(target, **options))

    def nothing_is_left(self) -> bool:
        stats = self.middleware.stats
        tables = self.middleware._tables.values()
        return all(not table.flights and is_uncrowded(table) for table in tables) and not (
            stats["waiting"] or stats["in_flight"]
        )
