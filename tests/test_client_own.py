"""What is one caller's own: its error, the genuine response, an endless answer."""

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientRequest, ClientResponse, ClientTimeout

from aiohttp_reduce import ReducingClientSession, hooks
from tests.upstream import (
    Exchange,
    Held,
    OpenSession,
    StartUpstream,
    Told,
    halves,
    reading,
    reducer_of,
    waiting,
)
from tests.virtual import VirtualLoop
from tests.wire import FarEnd, respond, run_on_the_wire

# One's own.


async def test_an_error_of_a_lone_call_is_the_one_that_was_raised(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send(b"nonsense\r\n\r\n")

    server = await upstream(answer)
    told = Told()
    session = reducing(hooks=told)
    with pytest.raises(aiohttp.ClientResponseError) as raised:
        await session.get(server.url)
    assert raised.value is told.events[-1][1]


async def test_an_error_of_the_only_one_who_stayed_has_its_request_info(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.send(b"nonsense\r\n\r\n")

    server = await upstream(answer)
    session = reducing()
    (leader,) = reading(session, 1, server.url + "#leader")
    await server.asked()
    (follower,) = reading(session, 1, server.url + "#follower")
    await waiting(reducer_of(session), 1)
    leader.cancel()
    await asyncio.wait([leader])
    gate.set()
    with pytest.raises(aiohttp.ClientResponseError) as raised:
        await follower
    assert raised.value.request_info.real_url.fragment == "follower"


def test_an_error_that_cannot_be_copied_is_left_as_it_was() -> None:
    class SingularError(aiohttp.ClientResponseError):
        def __copy__(self) -> Any:
            raise TypeError

    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        async def refuse(req: ClientRequest, _traces: Any, _timeout: Any) -> Any:
            raise SingularError(req.request_info, (), status=407)

        far_end._create_connection = refuse  # type: ignore[method-assign, assignment]
        tasks = [task for name in "abc" for task in reading(session, 1, f"http://far.end/#{name}")]
        outcomes: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {SingularError}
        assert {outcome.request_info.real_url.fragment for outcome in outcomes} == {"a"}

    run_on_the_wire(respond, main)


@pytest.mark.parametrize("content_type", ["text/plain", "text/event-stream"])
async def test_the_genuine_response_is_that_of_the_only_one_who_stayed(
    upstream: StartUpstream, reducing: OpenSession, content_type: str
) -> None:
    held = Held(Content_Type=content_type)
    server = await upstream(held)
    events: list[Any] = []

    async def note(_session: Any, context: Any, _params: Any) -> None:
        events.append(context.trace_request_ctx)

    trace = aiohttp.TraceConfig()
    trace.on_response_chunk_received.append(note)
    session = reducing(trace_configs=[trace])
    (leader,) = reading(session, 1, server.url + "#leader", trace_request_ctx="leader")
    await server.asked()

    async def call() -> ClientResponse:
        return await session.get(server.url + "#follower", trace_request_ctx="follower")

    calling = asyncio.create_task(call())
    await waiting(reducer_of(session), 1)
    leader.cancel()
    await asyncio.wait([leader])
    held.gate.set()
    response = await calling
    assert response.real_url.fragment == response.request_info.real_url.fragment == "follower"
    assert await response.read() == b"hello"
    assert events == ["follower"]


async def test_an_endless_answer_is_read_by_the_clock_of_the_one_who_has_it(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.head(Content_Type="text/event-stream")
        await exchange.left.wait()

    server = await upstream(answer)
    session = reducing()
    (leader,) = reading(session, 1, server.url)
    await server.asked()
    (follower,) = reading(session, 1, server.url, timeout=ClientTimeout(total=0.3))
    await waiting(reducer_of(session), 1)
    leader.cancel()
    await asyncio.wait([leader])
    gate.set()
    async with asyncio.timeout(3):
        with pytest.raises(asyncio.TimeoutError):
            await follower
        await server.requests[0].left.wait()
    assert follower.cancelling() == 0


async def test_an_endless_answer_whose_caller_leaves_as_it_comes_is_closed(
    upstream: StartUpstream, reducing: OpenSession, noise: list[Any]
) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.head(Content_Type="text/event-stream")
        await exchange.left.wait()

    class Leaving(hooks.BaseHooks):
        def on_result_for(self, coro: Any, ident: Any, result: Any) -> None:
            # It was woken by the head, and has not run yet.
            task.cancel()
            results.append(result)

    results: list[ClientResponse] = []
    server = await upstream(answer)
    session = reducing(hooks=Leaving())
    (task,) = reading(session, 1, server.url)
    await asyncio.wait([task])
    assert task.cancelled()
    assert results[0].closed
    async with asyncio.timeout(1):
        await server.requests[0].left.wait()


async def test_a_response_class_that_fails_for_one_leaves_no_seat_behind(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    class Choosy(ClientResponse):
        def __init__(self, method: str, url: Any, **options: Any) -> None:
            if url.fragment == "bad":
                raise ZeroDivisionError
            super().__init__(method, url, **options)

    server = await upstream(halves)
    session = reducing(response_class=Choosy)
    response = await session.get(server.url)
    with pytest.raises(ZeroDivisionError):
        await session.get(server.url + "#bad")
    response.close()
    async with asyncio.timeout(1):
        await server.requests[0].left.wait()
    assert len(server.requests) == 1


async def test_of_an_endless_answer_for_a_response_class_of_its_own_the_others_ask_for_themselves_at_once(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.head(Content_Type="text/event-stream")
        await exchange.send(b"%d" % exchange.number)
        await exchange.left.wait()

    class Own(ClientResponse):
        async def start(self, connection: Any) -> ClientResponse:
            return await super().start(connection)

    server = await upstream(answer)
    session = reducing(response_class=Own)

    async def call() -> ClientResponse:
        return await session.get(server.url)

    calls = [asyncio.create_task(call()) for _ in range(4)]
    await server.asked()
    await waiting(reducer_of(session), 3)
    gate.set()
    responses = await asyncio.gather(*calls)
    assert {type(response) for response in responses} == {Own}
    assert {await response.content.read(1) for response in responses} == {b"1", b"2", b"3", b"4"}
    assert session.stats["unshared"] == {"stream": 3}
    for response in responses:
        response.close()
