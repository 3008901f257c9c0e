"""The one-liner: requests for the same page that are in flight at once run its handler once.

Try `python -m examples.basic`, and ask from many terminals at once: `curl -i http://127.0.0.1:8080/news`. All print
the headlines at the same moment; all but the first have `Cache-Status: aiohttp-reduce; fwd=miss; collapsed` as well.
`curl http://127.0.0.1:8080/_reduce/stats` prints the figures, with `"executed": 1`.
"""

import asyncio

from aiohttp import web

from aiohttp_reduce import reduce_middleware


async def read_headlines() -> list[str]:
    """Stands for whatever is slow: a query, a report, another service."""
    await asyncio.sleep(2)
    return ["Many asked, one worked"]


async def news(request: web.Request) -> web.Response:
    return web.json_response(await read_headlines())


def make_app() -> web.Application:
    app = web.Application()
    # Last, and so innermost: what stands before it (sessions, authentication, logging) runs for each request.
    app.middlewares.append(reduce_middleware())
    app.router.add_get("/news", news)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=8080)
