"""The servers that the benchmarks load: `python -m bench.apps MODE PORT [--loop uvloop|asyncio]`.

Each mode is the same small application, with another middleware in front of it or none.
"""

import argparse
import asyncio
import json
import time
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from aiohttp_reduce import reduce_middleware

BODY = b"x" * 100
HELD = web.AppKey("HELD", list[int])
BIG = json.dumps([{"id": n, "name": f"name {n}", "value": n * 1.5} for n in range(5_000)])[: 256 * 1024]


def burn(seconds: float) -> None:
    """Keep the processor busy."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


async def constant(request: web.Request) -> web.Response:
    return web.Response(body=BODY, content_type="text/plain")


async def slow(request: web.Request) -> web.Response:
    await asyncio.sleep(0.05)
    return web.Response(body=BODY, content_type="text/plain")


async def held(request: web.Request) -> web.Response:
    """Takes as many milliseconds as its path says, and is counted."""
    request.app[HELD].append(1)
    await asyncio.sleep(int(request.match_info["milliseconds"]) / 1000)
    return web.Response(body=BODY, content_type="text/plain")


async def cpu(request: web.Request) -> web.Response:
    burn(0.005)
    return web.Response(body=BODY, content_type="text/plain")


async def compressed(request: web.Request) -> web.Response:
    await asyncio.sleep(0.05)
    response = web.json_response(text=BIG)
    response.enable_compression()
    return response


_pending: list["asyncio.Future[None]"] = []


async def one_future(request: web.Request) -> web.Response:
    """What a follower costs at the least: a future, and a constant answer."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    if not _pending:
        asyncio.get_running_loop().call_later(0.05, _release)
    _pending.append(future)
    await future
    return web.Response(body=BODY, content_type="text/plain")


def _release() -> None:
    waiting = _pending.copy()
    _pending.clear()
    for future in waiting:
        if not future.done():
            future.set_result(None)


async def runs(request: web.Request) -> web.Response:
    """How often `held` has run."""
    return web.json_response(len(request.app[HELD]))


@web.middleware
async def no_op(request: web.Request, handler: Handler) -> web.StreamResponse:
    return await handler(request)


def async_reduce_middleware() -> Middleware:
    """`async_reduce` 1.5 in the plainest middleware that one would write with it."""
    from async_reduce import AsyncReducer  # type: ignore[import-untyped]

    reducer: Any = AsyncReducer()

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        async def run() -> web.StreamResponse:
            return await handler(request)

        ident = f"{request.method} {request.rel_url}"
        response = await reducer(run(), ident=ident)
        return web.Response(status=response.status, body=response.body, headers=response.headers)

    return middleware


def make_app(mode: str) -> web.Application:
    middlewares: dict[str, list[Any]] = {"plain": [], "no-op": [no_op]}
    if mode == "reduce":
        middlewares["reduce"] = [reduce_middleware()]
    elif mode == "async_reduce":
        middlewares["async_reduce"] = [async_reduce_middleware()]
    app = web.Application(middlewares=middlewares[mode])
    app[HELD] = []
    app.router.add_get("/constant/{n}", constant)
    app.router.add_get("/slow", slow)
    app.router.add_get("/cpu", cpu)
    app.router.add_get("/compressed", compressed)
    app.router.add_get("/one-future", one_future)
    app.router.add_get("/held/{milliseconds}", held)
    app.router.add_post("/runs", runs)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["plain", "no-op", "reduce", "async_reduce"])
    parser.add_argument("port", type=int)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    options = parser.parse_args()
    loop: asyncio.AbstractEventLoop
    if options.loop == "uvloop":
        import uvloop

        loop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    web.run_app(
        make_app(options.mode),
        host="127.0.0.1",
        port=options.port,
        loop=loop,
        access_log=None,
        print=None,
        backlog=2048,
    )


if __name__ == "__main__":
    main()
