"""Section 2, point 6: requests that had arrived while a handler kept the loop busy still join."""

import asyncio
import time

import pytest
from aiohttp import web

from aiohttp_reduce import reduce_middleware
from tests.harness import Start, app_with, eventually


def burn(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.mark.parametrize("fails", [False, True])
async def test_2_6_a_herd_on_a_handler_that_burns_5_ms_of_cpu_is_one_or_two_runs(serve: Start, fails: bool) -> None:
    runs = 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal runs
        runs += 1
        burn(0.005)
        if fails:
            raise web.HTTPBadRequest(text="burnt")
        return web.Response(text="burnt")

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    replies = await server.herd(200, "/")
    assert runs <= 2
    assert {reply.text for reply in replies} == {"burnt"}
    assert server.figure("reduced") == 200 - runs
    await eventually(server.nothing_is_left)


async def test_2_6_the_last_call_ends_after_a_few_passes_of_the_loop(serve: Start) -> None:
    runs = 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal runs
        runs += 1
        burn(0.002)
        return web.Response(text=str(runs))

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    assert [(await server.get("/")).text for _ in range(3)] == ["1", "2", "3"]
    for _ in range(5):
        await asyncio.sleep(0)
    assert server.nothing_is_left()


async def test_2_6_a_quick_handler_has_no_last_call(serve: Start) -> None:
    left: list[bool] = []

    @web.middleware
    async def outer(request: web.Request, handler: object) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)  # type: ignore[operator]
        left.append(server.nothing_is_left())
        return response

    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware, outer=[outer]), middleware=middleware)
    await server.get("/")
    assert left == [True]


async def test_2_6_who_joins_at_the_last_call_counts_into_the_herd(serve: Start) -> None:
    async def handler(request: web.Request) -> web.Response:
        burn(0.02)
        return web.Response()

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    await server.herd(20, "/")
    assert server.figure("largest_herd") == server.figure("reduced") + 1 or server.figure("executed") == 2
