"""`reduce_client_middleware()` does for a genuine `ClientSession` what `ReducingClientSession` does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import ClientSession, ClientTimeout

from aiohttp_reduce import reduce_client_middleware
from aiohttp_reduce.client import ReduceClientMiddleware
from tests.harness import Gate, eventually
from tests.upstream import Exchange, StartUpstream, bodies, nothing_is_left, waiting

Open = Callable[..., tuple[ClientSession, ReduceClientMiddleware]]


@pytest_asyncio.fixture
async def genuine() -> AsyncIterator[Open]:
    """Open genuine sessions with a middleware of ours each, of which nothing may be left in the end."""
    opened: list[tuple[ClientSession, ReduceClientMiddleware]] = []

    def open_session(**options: Any) -> tuple[ClientSession, ReduceClientMiddleware]:
        reducer = reduce_client_middleware()
        opened.append((ClientSession(middlewares=[reducer], **options), reducer))
        return opened[-1]

    yield open_session
    for session, reducer in opened:
        await session.close()
        await eventually(lambda: nothing_is_left(reducer))  # noqa: B023 - called at once


async def hello(exchange: Exchange) -> None:
    await exchange.respond(b"hello")


async def test_a_herd_is_sent_once(upstream: StartUpstream, genuine: Open) -> None:
    gate = Gate()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond()

    server = await upstream(answer)
    session, reducer = genuine()
    herd = asyncio.ensure_future(bodies(session, 20, server.url))
    await waiting(reducer, 19)
    gate.open()
    assert await herd == [b"hello"] * 20
    assert (len(server.requests), reducer.stats["reduced"]) == (1, 19)


@pytest.mark.parametrize(
    "options",
    [
        {"auto_decompress": False},
        {"read_until_eof": False},
        {"read_bufsize": 1000},
        {"max_line_size": 5000},
        {"max_field_size": 5000},
        {"timeout": ClientTimeout(sock_read=3)},
    ],
    ids=lambda options: str(next(iter(options))),
)
async def test_options_of_one_call_keep_it_apart(
    upstream: StartUpstream, genuine: Open, options: dict[str, Any]
) -> None:
    gate = Gate()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond()

    server = await upstream(answer)
    session, reducer = genuine()
    calls = asyncio.gather(bodies(session, 2, server.url), bodies(session, 3, server.url, **options))
    await server.asked(2)
    await waiting(reducer, 3)
    gate.open()
    assert await calls == [[b"hello"] * 2, [b"hello"] * 3]
    assert len(server.requests) == 2


async def test_redirects_cookies_and_statuses_remain_each_callers_own(upstream: StartUpstream, genuine: Open) -> None:
    async def answer(exchange: Exchange) -> None:
        if exchange.target == "/a":
            await exchange.respond(b"", "302 Found", Location="/b", Set_Cookie="a=1; Path=/")
        else:
            await exchange.respond(exchange.headers.get("Cookie", "").encode(), "404 Not Found")

    server = await upstream(answer)
    session, _reducer = genuine(cookie_jar=aiohttp.CookieJar(unsafe=True))
    raises = [session.get(f"{server.url}/a", raise_for_status=True) for _ in range(2)]
    returns = [session.get(f"{server.url}/a") for _ in range(2)]
    outcomes: list[Any] = await asyncio.gather(*raises, *returns, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[:2]] == [aiohttp.ClientResponseError] * 2
    assert outcomes[0] is not outcomes[1]
    for response in outcomes[2:]:
        assert (response.status, [one.status for one in response.history]) == (404, [302])
        assert await response.read() == b"a=1"
    assert [request.target for request in server.requests] == ["/a", "/b"]


async def test_a_write_and_forget_let_the_next_call_ask_anew(upstream: StartUpstream, genuine: Open) -> None:
    gate = Gate()

    async def answer(exchange: Exchange) -> None:
        if exchange.method == "GET":
            await gate.wait()
        await exchange.respond(str(exchange.number).encode())

    server = await upstream(answer)
    session, reducer = genuine()
    before = asyncio.ensure_future(bodies(session, 1, server.url))
    await server.asked(1)
    await (await session.post(server.url)).read()
    after_the_write = asyncio.ensure_future(bodies(session, 1, server.url))
    await server.asked(3)
    reducer.forget(server.url)
    after_forget = asyncio.ensure_future(bodies(session, 1, server.url))
    await server.asked(4)
    gate.open()
    assert await before + await after_the_write + await after_forget == [b"1", b"3", b"4"]


async def test_closing_the_session_ends_a_body_that_nobody_reads(upstream: StartUpstream, genuine: Open) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.head(Content_Length=10)
        await exchange.send(b"hello")
        await exchange.left.wait()

    server = await upstream(answer)
    session, reducer = genuine()
    response = await session.get(server.url)
    assert await response.content.readany() == b"hello"
    pending = asyncio.ensure_future(response.content.readany())
    await asyncio.sleep(0)
    await session.close()
    with pytest.raises(aiohttp.ClientConnectionError, match="Connection closed"):
        await pending
    await eventually(lambda: nothing_is_left(reducer))


async def test_one_object_serves_sessions_that_come_and_go(upstream: StartUpstream) -> None:
    server = await upstream(hello)
    reducer = reduce_client_middleware()
    for _ in range(3):
        async with ClientSession(middlewares=[reducer]) as session:
            assert await bodies(session, 3, server.url) == [b"hello"] * 3
    assert (reducer.stats["total"], reducer.stats["executed"]) == (9, 3)
    assert nothing_is_left(reducer)
