"""Identical outgoing requests in flight are sent once, and each caller gets its own response."""

import asyncio

import aiohttp

from tests.upstream import Exchange, OpenSession, StartUpstream, bodies, nothing_is_left, reducer_of, waiting


async def test_500_identical_requests_are_sent_once_on_one_connection(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond(b"x" * 1000)

    server = await upstream(answer)
    session = reducing(connector=aiohttp.TCPConnector(limit=1))
    herd = asyncio.ensure_future(bodies(session, 500, server.url))
    await waiting(reducer_of(session), 499)
    gate.set()
    assert await herd == [b"x" * 1000] * 500
    assert (len(server.requests), server.connections) == (1, 1)
    assert nothing_is_left(reducer_of(session))
    # The connection is back in the pool, and the next request goes out on it.
    assert await bodies(session, 1, server.url) == [b"x" * 1000]
    assert (len(server.requests), server.connections) == (2, 1)
