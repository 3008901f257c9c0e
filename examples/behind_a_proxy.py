"""Behind a proxy: answers by the client's country, found out in an outer middleware and named with `key=`.

Try `python -m examples.behind_a_proxy`, and be the proxy: from many terminals at once,
`curl -i -H "X-Forwarded-For: 192.0.2.1" http://127.0.0.1:8080/news`, some of them with 192.0.2.2 and 198.51.100.1.
It prints each run of the handler: one for each country, not for each address. The figures are not at
http://127.0.0.1:8080/_reduce/stats, as the proxy would pass them on.
"""

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from aiohttp_reduce import reduce_middleware

# aiohttp 3.14 has typed keys for requests, and warns of plain strings; before, there were only strings.
COUNTRY: Any = web.RequestKey("COUNTRY", str) if hasattr(web, "RequestKey") else "country"
PROXIES = {"127.0.0.1", "::1"}


def country_of(address: str | None) -> str:
    """Stands for a database of addresses."""
    return "Norway" if address is not None and address.startswith("192.0.2.") else "elsewhere"


@web.middleware
async def locate(request: web.Request, handler: Handler) -> web.StreamResponse:
    address = request.remote
    if address in PROXIES:  # nobody else is believed; the last address is the one that the proxy itself added
        addresses = ",".join(request.headers.getall("X-Forwarded-For", ()))
        address = addresses.rpartition(",")[2].strip()
    request[COUNTRY] = country_of(address)
    return await handler(request)


async def read_news(country: str) -> str:
    """Stands for whatever is slow."""
    print(f"the news of {country}", flush=True)
    await asyncio.sleep(2)
    return f"the news of {country}\n"


async def news(request: web.Request) -> web.Response:
    return web.Response(text=await read_news(request[COUNTRY]))


def make_app() -> web.Application:
    middleware = reduce_middleware(key=lambda request: str(request[COUNTRY]), stats_path=None)
    app = web.Application(middlewares=[locate, middleware])
    app.router.add_get("/news", news)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=8080)
