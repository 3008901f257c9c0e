"""A gateway: a herd of clients in front, one call to the upstream behind; coalesced on both sides.

The middleware coalesces what clients ask. The session coalesces what handlers ask: different pages that need the same
piece of data at the same moment fetch it once.

Try `python -m examples.gateway`, and both at once: `curl http://127.0.0.1:8080/cheapest & curl
http://127.0.0.1:8080/total & wait` prints `{"cheapest": "rice"}` and `{"total": 5}`. It prints `the upstream is asked`
once for both. `curl http://127.0.0.1:8080/_reduce/stats` prints the figures of both sides; those of the session are
under `clients`. Its upstream is a route of its own, unless a URL is given:
`python -m examples.gateway http://127.0.0.1:8081/`.
"""

import asyncio
import sys
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from aiohttp_reduce import ReducingClientSession, reduce_middleware

SESSION = web.AppKey("SESSION", aiohttp.ClientSession)


async def fetch_prices(request: web.Request) -> dict[str, float]:
    # The session is used as any other.
    async with request.app[SESSION].get("prices") as response:
        response.raise_for_status()
        prices: dict[str, float] = await response.json()
        return prices


async def cheapest(request: web.Request) -> web.Response:
    prices = await fetch_prices(request)
    return web.json_response({"cheapest": min(prices, key=prices.__getitem__)})


async def total(request: web.Request) -> web.Response:
    prices = await fetch_prices(request)
    return web.json_response({"total": sum(prices.values())})


def make_app(upstream: str) -> web.Application:
    app = web.Application()
    middleware = reduce_middleware()
    app.middlewares.append(middleware)

    async def session(app: web.Application) -> AsyncIterator[None]:
        async with ReducingClientSession(upstream, timeout=aiohttp.ClientTimeout(total=10)) as session:
            app[SESSION] = session
            middleware.watch(session, name="prices")
            yield

    app.cleanup_ctx.append(session)
    app.router.add_get("/cheapest", cheapest)
    app.router.add_get("/total", total)
    return app


async def prices(request: web.Request) -> web.Response:
    """Stands for the upstream, where none is given."""
    print("the upstream is asked", flush=True)
    await asyncio.sleep(2)
    return web.json_response({"tea": 3, "rice": 2})


if __name__ == "__main__":
    gateway = make_app(sys.argv[1] if sys.argv[1:] else "http://127.0.0.1:8080/")
    gateway.router.add_get("/prices", prices)
    web.run_app(gateway, host="127.0.0.1", port=8080)
