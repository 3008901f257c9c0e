"""Figures and hooks of the client in the less common cases."""

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientRequest

from aiohttp_reduce import reduce_client_middleware
from tests.harness import eventually
from tests.upstream import (
    Exchange,
    Held,
    OpenSession,
    StartUpstream,
    Told,
    hello,
    nothing_is_left,
    reading,
    reducer_of,
    waiting,
)

# Figures.


async def test_the_figures_of_those_who_join_a_body_midway(upstream: StartUpstream, reducing: OpenSession) -> None:
    rest = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.head(Content_Length=2)
        await exchange.send(b"a")
        await rest.wait()
        await exchange.send(b"b")

    server = await upstream(answer)
    session = reducing()
    responses = [await session.get(server.url) for _ in range(4)]
    rest.set()
    assert [await response.read() for response in responses] == [b"ab"] * 4
    stats = session.stats
    assert (stats["total"], stats["executed"], stats["reduced"], stats["largest_herd"]) == (4, 1, 3, 4)


async def test_the_figures_of_those_who_ask_for_themselves(upstream: StartUpstream, reducing: OpenSession) -> None:
    held = Held(Content_Type="text/event-stream")
    server = await upstream(held)
    session = reducing()
    tasks = reading(session, 3, server.url)
    await server.asked()
    await waiting(reducer_of(session), 2)
    held.gate.set()
    await asyncio.gather(*tasks)
    stats = session.stats
    assert (stats["total"], stats["executed"], stats["reduced"], stats["in_flight"]) == (3, 3, 0, 0)
    assert stats["errors"] == 0
    assert stats["unshared"] == {"stream": 2}


async def test_an_error_of_one_who_asks_for_itself_counts(upstream: StartUpstream, reducing: OpenSession) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        if exchange.number == 1:
            await exchange.respond(b"hello", Content_Type="text/event-stream")
        else:
            await exchange.send(b"nonsense\r\n\r\n")

    server = await upstream(answer)
    told = Told()
    session = reducing(hooks=told)
    tasks = reading(session, 2, server.url)
    await server.asked()
    await waiting(reducer_of(session), 1)
    gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert outcomes[0] == b"hello"
    assert isinstance(outcomes[1], aiohttp.ClientResponseError)
    assert session.stats["errors"] == 1
    assert session.stats["in_flight"] == 0
    assert [event for event in told.events if event[0] == "exception"] == [("exception", outcomes[1])]


async def test_a_call_that_is_given_up_is_no_error(upstream: StartUpstream, reducing: OpenSession) -> None:
    server = await upstream(Held())
    session = reducing()
    (task,) = reading(session, 1, server.url)
    await server.asked()
    task.cancel()
    await asyncio.wait([task])
    await eventually(lambda: nothing_is_left(reducer_of(session)))
    assert session.stats["errors"] == 0
    assert session.stats["executed"] == 1


async def test_figures_of_a_host_are_those_of_all_its_schemes() -> None:
    reducer = reduce_client_middleware()

    async def fails(request: ClientRequest) -> Any:
        raise aiohttp.ClientConnectionError

    async with aiohttp.ClientSession(middlewares=[reducer, lambda request, handler: fails(request)]) as session:
        for url in ("http://upstream.example:8443/", "https://upstream.example:8443/", "ws://upstream.example:8443/"):
            with pytest.raises(aiohttp.ClientConnectionError):
                await session.get(url)
    assert {name: host["bypassed"] for name, host in reducer.stats["hosts"].items()} == {
        "upstream.example:8443": {"not-innermost": 3}
    }


# Hooks.


async def test_hooks_are_told_of_those_who_ask_for_themselves(upstream: StartUpstream, reducing: OpenSession) -> None:
    held = Held(Content_Type="text/event-stream")
    server = await upstream(held)
    told = Told()
    session = reducing(hooks=told)
    tasks = reading(session, 2, server.url)
    await server.asked()
    await waiting(reducer_of(session), 1)
    held.gate.set()
    await asyncio.gather(*tasks)
    follower = told.requests[2][1]
    assert [hook for hook, request in told.requests if request is follower] == [
        "apply", "reducing", "executing", "result"
    ]  # fmt: skip
    assert told.events.count(("result", 200)) == 2


async def test_hooks_are_not_told_of_calls_that_pass(upstream: StartUpstream, reducing: OpenSession) -> None:
    server = await upstream(hello)
    told = Told()
    session = reducing(hooks=told)
    await session.post(server.url)
    await session.get(server.url, reduce=False)
    assert told.events == []
