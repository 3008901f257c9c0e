"""A genuine `aiohttp.ClientSession` that coalesces: for code that insists on one.

`reduce_client_middleware()` stands last among the client middlewares, next to the wire. Each caller still runs
through those before it: here, each is logged by itself, though one request is sent.

Try `python -m examples.basic`, and beside it `python -m examples.genuine_session`, or any other URL as its argument. It
prints a line for each of five calls, `5 calls, 1 sent`, and the lengths of their answers.
"""

import asyncio
import sys

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

from aiohttp_reduce import reduce_client_middleware


async def log(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    response = await handler(request)
    print(request.method, request.url, response.status)
    return response


async def lengths(url: str, calls: int) -> list[int]:
    reducer = reduce_client_middleware()
    async with aiohttp.ClientSession(middlewares=[log, reducer]) as session:

        async def length() -> int:
            async with session.get(url) as response:
                return len(await response.read())

        found = await asyncio.gather(*[length() for _ in range(calls)])
        print(f"{reducer.stats['total']} calls, {reducer.stats['executed']} sent")
        return found


if __name__ == "__main__":
    print(asyncio.run(lengths(sys.argv[1] if sys.argv[1:] else "http://127.0.0.1:8080/news", 5)))
