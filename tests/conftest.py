"""What all tests share: both event loops, and a real server on a real socket."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from tests.harness import Server

try:
    import uvloop
except ImportError:  # pragma: no cover
    uvloop = None  # type: ignore[assignment]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every asynchronous test runs on asyncio and on uvloop."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if uvloop is not None:
        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest_asyncio.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Server]]]:
    """Start servers for applications; `handler_cancellation` and the like go to aiohttp's `AppRunner`."""
    servers: list[Server] = []

    async def start(app: web.Application, **options: Any) -> Server:
        server = Server(app, **options)
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        await server.stop()


@pytest_asyncio.fixture
async def noise(caplog: pytest.LogCaptureFixture) -> AsyncIterator[list[Any]]:
    """What the loop's exception handler and asyncio's log were told; the test fails if it is anything."""
    told: list[Any] = []
    gc.collect()  # what earlier tests left behind
    caplog.clear()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: told.append(context))
    yield told
    await asyncio.sleep(0)
    gc.collect()
    loop.set_exception_handler(None)
    assert not told
    assert not [record for record in caplog.records if record.name == "asyncio"]
