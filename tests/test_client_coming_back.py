"""Calls that wait for two flights, and calls that come back to the door after a timeout of another one."""

import asyncio
import gc
import math
import weakref
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientResponse, ClientTimeout, ServerTimeoutError

from aiohttp_reduce import ReducingClientSession
from tests.harness import eventually
from tests.upstream import (
    Exchange,
    Held,
    OpenSession,
    StartUpstream,
    bodies,
    body_of,
    reading,
    reducer_of,
    waiting,
)
from tests.virtual import VirtualLoop
from tests.wire import FarEnd, Line, respond, run_on_the_wire

# Waiting for two.


async def test_a_call_that_took_a_younger_answer_does_not_keep_the_elder_request_going(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    rest = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        if exchange.number == 1:
            await exchange.left.wait()
            return
        await exchange.head(Content_Length=2)
        await exchange.send(b"a")
        await rest.wait()
        await exchange.send(b"b")

    server = await upstream(answer)
    session = reducing(max_wait=0.2)
    (leader,) = reading(session, 1, server.url)
    await server.asked()
    (follower,) = reading(session, 1, server.url)
    await waiting(reducer_of(session), 1)
    session.forget(server.url)
    # Its head is there, and its body may be joined, when the follower has waited long enough.
    younger = await session.get(server.url)
    await waiting(reducer_of(session), 0)
    leader.cancel()
    async with asyncio.timeout(1):
        await server.requests[0].left.wait()
    rest.set()
    assert await younger.read() == await follower == b"ab"
    assert len(server.requests) == 2


# Coming back.


async def test_who_comes_back_from_anothers_timeout_starts_a_request_of_that_moment(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        if exchange.number == 1:
            await exchange.left.wait()
            return
        await gate.wait()
        await exchange.respond(b"hello")

    server = await upstream(answer)
    session = reducing(timeout=ClientTimeout(total=None, sock_read=0.2))
    (leader,) = reading(session, 1, server.url)
    await server.asked()
    started = asyncio.get_running_loop().time()
    await eventually(lambda: asyncio.get_running_loop().time() > started + 0.1)
    (follower,) = reading(session, 1, server.url)
    await waiting(reducer_of(session), 1)
    session.forget(server.url)
    with pytest.raises(ServerTimeoutError):
        await leader
    await server.asked(2)
    (later,) = reading(session, 1, server.url)
    await waiting(reducer_of(session), 1)
    gate.set()
    assert await asyncio.gather(follower, later) == [b"hello"] * 2
    assert len(server.requests) == 2


async def test_a_call_that_ended_leaves_no_timer_behind(upstream: StartUpstream, reducing: OpenSession) -> None:
    held = Held()
    server = await upstream(held)
    session = reducing()

    async def call(connect: float) -> "weakref.ref[ClientResponse]":
        response = await session.get(server.url, timeout=ClientTimeout(total=None, connect=connect))
        await response.read()
        return weakref.ref(response)

    leader = asyncio.create_task(call(7200))
    await server.asked()
    follower = asyncio.create_task(call(3600))
    await waiting(reducer_of(session), 1)
    held.gate.set()
    await leader
    response = await follower
    del follower
    gc.collect()
    assert response() is None


class Closed:
    """A far end that nobody reaches before `reachable_at` (seconds in virtual time). `attempts` are when one tried."""

    def __init__(self, far_end: FarEnd, reachable_at: float) -> None:
        self.attempts: list[float] = []
        self.begin = asyncio.get_running_loop().time()
        self._connect = far_end._create_connection
        self._reachable_at = self.begin + reachable_at
        far_end._create_connection = self  # type: ignore[method-assign, assignment]

    async def __call__(self, req: Any, traces: Any, timeout: ClientTimeout) -> Any:  # noqa: ASYNC109
        now = asyncio.get_running_loop().time()
        self.attempts.append(now - self.begin)
        await asyncio.sleep(max(0.0, self._reachable_at - now))
        return await self._connect(req, traces, timeout)


def test_those_who_come_back_with_different_connect_budgets_do_not_wait_for_one_another() -> None:
    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        closed = Closed(far_end, 1000.0)
        failed: dict[float, float] = {}

        async def call(connect: float) -> None:
            with pytest.raises(aiohttp.ConnectionTimeoutError):
                await session.get("http://far.end/", timeout=ClientTimeout(total=None, connect=connect))
            failed[connect] = loop.time() - closed.begin

        await asyncio.gather(call(1.0), call(2.0), call(4.0))
        assert closed.attempts == pytest.approx([0.0, 1.0, 1.0], abs=0.05)
        # Each had its whole budget, once it had come back from the first one's timeout.
        assert failed == pytest.approx({1.0: 1.0, 2.0: 3.0, 4.0: 5.0}, abs=0.05)

    run_on_the_wire(respond, main)


def test_those_who_come_back_with_one_connect_budget_have_all_of_it_together() -> None:
    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        closed = Closed(far_end, 3.5)

        async def call(at: float) -> bytes:
            await asyncio.sleep(at)
            return await body_of(session, "http://far.end/", timeout=ClientTimeout(total=None, connect=2.0))

        first, *others = await asyncio.gather(call(0.0), call(1.0), call(1.0), return_exceptions=True)
        assert isinstance(first, aiohttp.ConnectionTimeoutError)
        assert others == [b"1"] * 2
        assert closed.attempts == pytest.approx([0.0, 2.0], abs=0.05)

    run_on_the_wire(respond, main)


def test_a_timeout_that_was_not_its_own_is_not_told_to_a_call_later() -> None:
    async def answer(line: Line, number: int) -> None:
        if number == 1:
            await asyncio.sleep(1000)
        if number == 2:
            await line.send(b"HTTP/1.1 200 OK\r\n")
            for _ in range(6):
                await asyncio.sleep(1)
                await line.send(b"X-Slow: 1\r\n")
            await line.send(b"Content-Length: 1\r\n\r\n2")
        else:
            await line.respond(b"%d" % number)

    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        async def call(at: float) -> bytes:
            await asyncio.sleep(at)
            return await body_of(session, "http://far.end/", timeout=ClientTimeout(total=None, sock_read=2.0))

        first, second, third = await asyncio.gather(call(0.0), call(1.0), call(1.0), return_exceptions=True)
        assert isinstance(first, ServerTimeoutError)
        # One sent it again; the other waited for that too, and after `max_wait` for one of its own.
        assert (second, third) == (b"2", b"3")

    run_on_the_wire(answer, main, max_wait=3.0)


async def test_an_answer_that_varies_with_a_left_out_header_of_several_lines(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    held = Held(Vary="X-Ignored")
    server = await upstream(held)
    session = reducing(ignore_headers={"X-Ignored"})
    several = [[("X-Ignored", "1"), ("X-Ignored", last)] for last in ("2", "2", "3")]
    tasks = [asyncio.create_task(body_of(session, server.url, headers=headers)) for headers in several]
    await server.asked()
    await waiting(reducer_of(session), 2)
    held.gate.set()
    assert await asyncio.gather(*tasks) == [b"hello"] * 3
    assert len(server.requests) == 2
    assert session.stats["unshared"] == {"vary: x-ignored": 1}


def test_a_body_that_comes_as_a_call_stops_waiting_for_it_alone_is_that_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answer(line: Line, number: int) -> None:
        await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n%d" % number)
        await asyncio.sleep(1)
        await line.send(b"!")

    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        genuine_start = ClientResponse.start

        async def start(self: ClientResponse, connection: Any) -> ClientResponse:
            response = await genuine_start(self, connection)
            if loop.time() < 1_100:
                # `max_wait` passes in the pass of the loop in which this is woken.
                woken = loop.create_future()
                loop._virtual.now += 100
                loop.call_soon(woken.set_result, None)
                await woken
            return response

        monkeypatch.setattr(ClientResponse, "start", start)
        assert await bodies(session, 2, "http://far.end/") == [b"1!"] * 2

    run_on_the_wire(answer, main, max_age=math.inf, max_wait=3.0)


def test_a_call_does_not_wait_longer_than_max_wait_for_a_younger_request_either() -> None:
    async def answer(line: Line, number: int) -> None:
        if number < 3:
            await asyncio.sleep(1000)
        await line.respond(b"%d" % number)

    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        begin = loop.time()
        tasks = reading(session, 3, "http://far.end/", timeout=ClientTimeout(total=None))
        # The second sends it again after 3 seconds; the third waits for that one as long, and sends it once more.
        done, hanging = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=100)
        assert [await task for task in done] == [b"3"]
        assert loop.time() - begin == pytest.approx(6.0, abs=0.05)
        assert len(far_end.asked) == 3
        for task in hanging:
            task.cancel()
        await asyncio.wait(hanging)

    run_on_the_wire(answer, main, max_wait=3.0)


async def never(line: Line, number: int) -> None:
    if number == 1:
        await asyncio.sleep(1000)
    await line.respond(b"%d" % number)


@pytest.mark.parametrize("connect", [1.0, 3.0])
def test_a_call_whose_connect_budget_is_spent_sends_another_after_max_wait_all_the_same(connect: float) -> None:
    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        begin = loop.time()
        (leader,) = reading(session, 1, "http://far.end/", timeout=ClientTimeout(total=None))
        await asyncio.sleep(0)
        timeout = ClientTimeout(total=None, connect=connect)
        async with asyncio.timeout(100):
            assert await body_of(session, "http://far.end/", timeout=timeout) == b"2"
        assert loop.time() - begin == pytest.approx(3.0, abs=0.05)
        leader.cancel()
        await asyncio.wait([leader])

    run_on_the_wire(never, main, max_wait=3.0)


def test_a_timeout_from_further_down_is_that_of_the_call_which_sent() -> None:
    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        attempts = 0

        async def times_out(*_: Any) -> Any:
            # As a resolver does, or the operating system.
            nonlocal attempts
            attempts += 1
            raise asyncio.TimeoutError if attempts < 3 else AssertionError

        far_end._create_connection = times_out  # type: ignore[method-assign]
        with pytest.raises(aiohttp.ConnectionTimeoutError):
            await session.get("http://far.end/", timeout=ClientTimeout(total=None, connect=30, sock_connect=30))
        assert attempts == 1

    run_on_the_wire(respond, main)


async def test_an_error_that_is_no_timeout_is_for_all_whatever_they_allow(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.send(b"nonsense\r\n\r\n")

    server = await upstream(answer)
    session = reducing(timeout=ClientTimeout(total=None, sock_read=30))
    tasks = reading(session, 3, server.url)
    await server.asked()
    await waiting(reducer_of(session), 2)
    gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [aiohttp.ClientResponseError] * 3
    assert len(server.requests) == 1


@pytest.mark.parametrize(("later", "requests"), [(0.005, 1), (0.5, 2)])
def test_a_timeout_is_shared_by_those_who_have_all_but_spent_theirs(later: float, requests: int) -> None:
    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        timeout = ClientTimeout(total=None, sock_read=2.0)
        tasks = reading(session, 1, "http://far.end/", timeout=timeout)
        await asyncio.sleep(later)
        tasks += reading(session, 1, "http://far.end/", timeout=timeout)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outcomes[0], ServerTimeoutError)
        assert isinstance(outcomes[1], ServerTimeoutError) if requests == 1 else outcomes[1] == b"2"
        assert len(far_end.asked) == requests

    run_on_the_wire(never, main)


def test_of_two_connect_budgets_the_shorter_one_counts() -> None:
    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        attempts = 0

        async def times_out(_req: Any, _traces: Any, timeout: ClientTimeout) -> Any:  # noqa: ASYNC109
            nonlocal attempts
            attempts += 1
            async with asyncio.timeout(timeout.sock_connect):
                await asyncio.sleep(1000)

        far_end._create_connection = times_out  # type: ignore[method-assign, assignment]
        timeout = ClientTimeout(total=None, connect=30, sock_connect=1)
        outcomes = await asyncio.gather(
            *reading(session, 3, "http://far.end/", timeout=timeout), return_exceptions=True
        )
        assert all(isinstance(outcome, aiohttp.ConnectionTimeoutError) for outcome in outcomes)
        assert attempts == 1

    run_on_the_wire(respond, main)
