"""Middlewares that send one request again, and events that fall into one pass of the loop."""

import asyncio
import gc
import time
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientRequest, ClientResponse, ClientSession, ClientTimeout

from aiohttp_reduce import ReducingClientSession
from tests.harness import PATIENCE, Gate, eventually
from tests.upstream import Exchange, OpenSession, StartUpstream, bodies, nothing_is_left, reducer_of, waiting
from tests.virtual import VirtualLoop
from tests.wire import FarEnd, Line, run_on_the_wire


async def hello(exchange: Exchange) -> None:
    await exchange.respond(b"hello")


# One request object, sent more than once.


async def test_an_attempt_that_was_given_up_is_joined_by_the_next_one(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate, impatient = Gate(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond()

    async def retry(request: ClientRequest, handler: Any) -> ClientResponse:
        first = asyncio.ensure_future(handler(request))
        if "X-Impatient" in request.headers:
            del request.headers["X-Impatient"]
            await impatient.wait()
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            return await handler(request)  # type: ignore[no-any-return]
        return await first  # type: ignore[no-any-return]

    server = await upstream(answer)
    session = reducing(middlewares=[retry], ignore_headers=["X-Impatient"])
    impatient_one = asyncio.ensure_future(bodies(session, 1, server.url, headers={"X-Impatient": "yes"}))
    await server.asked()
    others = asyncio.ensure_future(bodies(session, 2, server.url))
    await waiting(reducer_of(session), 2)
    impatient.set()
    await waiting(reducer_of(session), 3)
    gate.open()
    assert await impatient_one + await others == [b"hello"] * 3
    assert len(server.requests) == 1


async def test_a_request_that_is_hedged_by_itself_is_answered_twice(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    async def hedge(request: ClientRequest, handler: Any) -> ClientResponse:
        first, second = await asyncio.gather(handler(request), handler(request))
        assert first is not second
        second.release()
        return first  # type: ignore[no-any-return]

    server = await upstream(hello)
    session = reducing(middlewares=[hedge])
    async with asyncio.timeout(PATIENCE):
        assert await bodies(session, 2, server.url) == [b"hello"] * 2
    assert len(server.requests) == 1


async def test_whoever_asks_again_because_of_an_error_is_not_told_the_same_again(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    rest = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        if exchange.number > 1:
            await exchange.respond(b"hello")
            return
        await exchange.head("503 Service Unavailable", Content_Length=5)
        await rest.wait()
        await exchange.send(b"later")

    async def retry(request: ClientRequest, handler: Any) -> ClientResponse:
        response: ClientResponse = await handler(request)
        return response if response.ok else await handler(request)

    server = await upstream(answer)
    session = reducing(middlewares=[retry])
    async with asyncio.timeout(PATIENCE):
        assert await bodies(session, 3, server.url) == [b"hello"] * 3
    assert len(server.requests) == 2
    rest.set()


async def test_a_redirect_to_itself_is_followed_as_often_as_it_is_sent(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    async def answer(exchange: Exchange) -> None:
        if exchange.number > 2:
            await exchange.respond(b"there")
            return
        await exchange.head("302 Found", Location="/", Content_Length=5)
        await asyncio.sleep(0)
        await exchange.send(b"later")

    server = await upstream(answer)
    session = reducing()
    assert await bodies(session, 3, f"{server.url}/", max_redirects=4) == [b"there"] * 3


async def test_a_request_whose_send_was_replaced_is_sent_by_itself(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    async def sign(request: ClientRequest, handler: Any) -> ClientResponse:
        name = request.headers.popone("X-Name")
        send = request.send

        async def signed(connection: Any) -> ClientResponse:
            request.headers["X-Signature"] = name
            return await send(connection)

        request.send = signed  # type: ignore[method-assign]
        return await handler(request)  # type: ignore[no-any-return]

    async def answer(exchange: Exchange) -> None:
        await exchange.respond(exchange.headers["X-Signature"].encode())

    server = await upstream(answer)
    session = reducing(middlewares=[sign])
    signatures = await asyncio.gather(*[bodies(session, 1, server.url, headers={"X-Name": name}) for name in "ab"])
    assert signatures == [[b"a"], [b"b"]]
    assert session.stats["bypassed"] == {"request-class": 2}


async def test_one_that_is_sent_again_has_its_own_time_to_connect() -> None:
    class Stuck(aiohttp.TCPConnector):
        async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
            await asyncio.Event().wait()

    async def again(request: ClientRequest, handler: Any) -> ClientResponse:
        # As if it had been answered before.
        request.response = object()  # type: ignore[assignment]
        return await handler(request)  # type: ignore[no-any-return]

    async with ReducingClientSession(connector=Stuck(), middlewares=[again]) as session:
        starter = asyncio.ensure_future(session.get("http://localhost/", timeout=ClientTimeout()))
        await eventually(lambda: session.stats["total"] == 1)
        with pytest.raises(aiohttp.ConnectionTimeoutError):
            await session.get("http://localhost/", timeout=ClientTimeout(connect=0.02, total=PATIENCE))
        starter.cancel()
        await asyncio.gather(starter, return_exceptions=True)


async def test_nobody_is_given_a_response_of_another_callers_class(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate = Gate()

    class Own(ClientResponse):
        pass

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond()

    server = await upstream(answer)
    session = reducing()
    starter = asyncio.ensure_future(session.get(server.url))
    await server.asked()
    session.session._response_class = Own
    follower = asyncio.ensure_future(session.get(server.url))
    await waiting(reducer_of(session), 1)
    starter.cancel()
    await asyncio.gather(starter, return_exceptions=True)
    gate.open()
    response = await follower
    assert (type(response), await response.read()) == (Own, b"hello")


# In one pass of the loop: the answer, and somebody's time.

HELD_UP = 0.25


async def _answers_while_the_loop_is_held_up(exchange: Exchange, gate: Gate) -> None:
    await gate.wait()
    await exchange.respond()
    time.sleep(HELD_UP)  # noqa: ASYNC251 - as a handler that computes does


@pytest.mark.parametrize("starter_leaves", [False, True])
async def test_an_answer_that_comes_with_the_end_of_max_wait_is_for_all(
    upstream: StartUpstream, reducing: OpenSession, starter_leaves: bool
) -> None:
    gate = Gate()
    server = await upstream(lambda exchange: _answers_while_the_loop_is_held_up(exchange, gate))
    session = reducing(max_wait=HELD_UP * 0.8)
    starter = asyncio.ensure_future(bodies(session, 1, server.url))
    await server.asked()
    followers = asyncio.ensure_future(bodies(session, 10, server.url))
    await waiting(reducer_of(session), 10)
    if starter_leaves:
        starter.cancel()
    gate.open()
    assert await followers == [b"hello"] * 10
    await asyncio.gather(starter, return_exceptions=True)
    assert (len(server.requests), session.stats["unshared"]) == (1, {})
    assert nothing_is_left(reducer_of(session))


async def test_an_answer_that_comes_with_the_end_of_the_time_to_connect_is_for_all(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate = Gate()
    server = await upstream(lambda exchange: _answers_while_the_loop_is_held_up(exchange, gate))
    session = reducing()
    starter = asyncio.ensure_future(bodies(session, 1, server.url, timeout=ClientTimeout()))
    await server.asked()
    timeout = ClientTimeout(connect=HELD_UP * 0.8, total=PATIENCE)
    followers = asyncio.ensure_future(bodies(session, 3, server.url, timeout=timeout))
    await waiting(reducer_of(session), 3)
    starter.cancel()
    gate.open()
    assert await followers == [b"hello"] * 3
    assert len(server.requests) == 1


def test_one_who_waited_for_max_wait_joins_only_what_is_still_open() -> None:
    sent: list[float] = []

    async def answer(line: Line, number: int) -> None:
        sent.append(asyncio.get_running_loop().time() - 1_000.0)
        await asyncio.sleep(100.0)
        await line.respond()

    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        calls = []
        for pause in (0.1, 0.4, 2.0):
            calls.append(asyncio.ensure_future(session.get("http://far.end/")))
            await asyncio.sleep(pause)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    run_on_the_wire(answer, main, max_age=0.3, max_wait=1.0)
    # The one that joined the first at 0.1 is overdue at 1.1; the second, of 0.5, is closed since 0.8.
    assert sent == pytest.approx([0.0, 0.5, 1.1], abs=0.01)


async def test_streams_that_are_closed_early_leave_nothing_to_the_garbage_collector(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.head(Content_Length=10)
        await exchange.send(b"hello")
        await exchange.left.wait()

    server = await upstream(answer)
    session = reducing()
    gc.collect()
    gc.disable()
    try:
        response: Any = await session.get(server.url)
        assert await response.content.readany() == b"hello"
        reader = response.content
        response.close()
        await eventually(lambda: nothing_is_left(reducer_of(session)))
        holders = [one for one in gc.get_referrers(reader) if type(one).__module__.startswith("aiohttp_reduce")]
        assert holders == []
    finally:
        gc.enable()


async def test_a_plain_session_needs_none_of_this(upstream: StartUpstream) -> None:
    """What the tests above take for granted of aiohttp: that a request may be sent more than once."""

    async def twice(request: ClientRequest, handler: Any) -> ClientResponse:
        (await handler(request)).release()
        return await handler(request)  # type: ignore[no-any-return]

    server = await upstream(hello)
    async with ClientSession(middlewares=[twice]) as session:
        assert await bodies(session, 1, server.url) == [b"hello"]
    assert len(server.requests) == 2
