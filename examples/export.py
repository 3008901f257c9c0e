"""A slow export, streamed row by row: many ask for it at once or one after another, and it is made once.

Try `python -m examples.export`, and from many terminals, whenever you like while it flows:
`curl -iN http://127.0.0.1:8080/export.csv`. Each prints every row, from the first one on: who comes late prints those
that have passed at once, and the others as they come.
"""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from aiohttp_reduce import reduce_middleware


async def rows() -> AsyncIterator[bytes]:
    """Stands for whatever is slow: a query with a cursor, another service."""
    for number in range(10):
        await asyncio.sleep(0.5)
        yield b"%d,row\n" % number


async def export(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/csv"})
    response.enable_compression()
    await response.prepare(request)
    async for row in rows():
        await response.write(row)
    return response


def make_app() -> web.Application:
    app = web.Application()
    app.middlewares.append(reduce_middleware())
    app.router.add_get("/export.csv", export)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=8080)
