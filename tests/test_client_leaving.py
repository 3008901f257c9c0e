"""A flight runs in a task of its own: a caller that leaves takes only itself out, the last one ends it."""

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientConnectionError, ClientResponse, ClientTimeout, ConnectionTimeoutError, ServerTimeoutError

from aiohttp_reduce import ReducingClientSession, hooks, reduce_client_middleware
from aiohttp_reduce.client.outcomes import Streamed
from tests.harness import eventually
from tests.upstream import (
    Exchange,
    OpenSession,
    StartUpstream,
    Upstream,
    bodies,
    nothing_is_left,
    reducer_of,
    waiting,
)

# How long the upstream connection may stay once nobody is interested (seconds).
AT_ONCE = 0.1
HALF = b"x" * 1000


async def left_at_once(exchange: Exchange) -> None:
    """Wait until the client has hung up on this exchange; that may take no longer than `AT_ONCE`."""
    async with asyncio.timeout(AT_ONCE):
        await exchange.left.wait()


async def body_of(session: Any, url: str, **options: Any) -> bytes:
    """The body of one GET."""
    async with session.get(url, **options) as response:
        return await response.read()  # type: ignore[no-any-return]


def reading(session: Any, count: int, url: str, **options: Any) -> "list[asyncio.Task[bytes]]":
    """So many identical GETs, each a task that returns the body."""
    return [asyncio.create_task(body_of(session, url, **options)) for _ in range(count)]


class Halting:
    """An upstream's answer in two halves. `first` and `second` let go of them."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        await self.first.wait()
        await exchange.head(Content_Length=2 * len(HALF))
        await exchange.send(HALF)
        await self.second.wait()
        await exchange.send(HALF)


async def in_two_steps(exchange: Exchange) -> None:
    """Answer in two halves, some passes of the loop apart."""
    try:
        await exchange.head(Content_Length=2 * len(HALF))
        await exchange.send(HALF)
        await passes(3)
        await exchange.send(HALF)
    except RuntimeError:
        pass  # so says uvloop where the client has hung up


async def halted(upstream: StartUpstream) -> tuple[Upstream, Halting]:
    """An upstream that answers in two halves."""
    halting = Halting()
    return await upstream(halting), halting


async def under_way(server: Upstream, session: ReducingClientSession, calls: int) -> None:
    """Wait until the request has come and all calls wait for it."""
    await server.asked()
    await waiting(reducer_of(session), calls - 1)


async def passes(number: int) -> None:
    """Let the loop go round so often."""
    for _ in range(number):
        await asyncio.sleep(0)


# Before the head.


@pytest.mark.parametrize("leaver", [0, 1, 4], ids=["the-leader", "a-follower", "the-last-follower"])
async def test_a_cancelled_member_leaves_alone_before_the_head(
    upstream: StartUpstream, reducing: OpenSession, leaver: int
) -> None:
    server, halting = await halted(upstream)
    session = reducing()
    tasks = reading(session, 5, server.url)
    await under_way(server, session, 5)
    tasks[leaver].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks.pop(leaver)
    halting.first.set()
    halting.second.set()
    assert await asyncio.gather(*tasks) == [2 * HALF] * 4
    assert len(server.requests) == 1
    assert nothing_is_left(reducer_of(session))


@pytest.mark.parametrize("leaver", [0, 1], ids=["the-leader", "a-follower"])
async def test_a_member_whose_total_timeout_passes_leaves_alone_before_the_head(
    upstream: StartUpstream, reducing: OpenSession, leaver: int
) -> None:
    server, halting = await halted(upstream)
    session = reducing()
    tasks = []
    for number in range(4):
        timeout = ClientTimeout(total=0.05 if number == leaver else None)
        tasks += reading(session, 1, server.url, timeout=timeout)
        await waiting(reducer_of(session), number)
    with pytest.raises(TimeoutError):
        await tasks.pop(leaver)
    halting.first.set()
    halting.second.set()
    assert await asyncio.gather(*tasks) == [2 * HALF] * 3
    assert len(server.requests) == 1


async def test_32_callers_of_an_upstream_that_hangs_cost_one_request_and_all_time_out(
    upstream: StartUpstream, reducing: OpenSession, noise: list[Any]
) -> None:
    server, _ = await halted(upstream)
    session = reducing()
    begun = time.monotonic()
    tasks = reading(session, 32, server.url, timeout=ClientTimeout(total=0.3))
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert 0.25 < time.monotonic() - begun < 1.0
    assert [type(outcome) for outcome in outcomes] == [TimeoutError] * 32
    assert len(server.requests) == 1
    await left_at_once(server.requests[0])
    assert nothing_is_left(reducer_of(session))


@pytest.mark.parametrize("leaver", [0, 1], ids=["the-leader", "a-follower"])
async def test_a_member_may_be_cancelled_at_every_await(
    upstream: StartUpstream, reducing: OpenSession, leaver: int, noise: list[Any]
) -> None:
    server = await upstream(in_two_steps)
    session = reducing(connector=aiohttp.TCPConnector(force_close=True))
    step, was_late = 0, 0
    while was_late < 3:
        tasks = reading(session, 3, f"{server.url}/{step}")
        await passes(step)
        was_late += not tasks[leaver].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        del outcomes[leaver]
        assert outcomes == [2 * HALF] * 2, f"after {step} passes"
        assert len(server.requests) == step + 1
        step += 1
        assert step < 500
    assert nothing_is_left(reducer_of(session))


async def test_a_lone_call_may_be_cancelled_at_every_await(
    upstream: StartUpstream, reducing: OpenSession, noise: list[Any]
) -> None:
    server = await upstream(in_two_steps)
    session = reducing(connector=aiohttp.TCPConnector(force_close=True))
    step, was_late = 0, 0
    while was_late < 3:
        (task,) = reading(session, 1, f"{server.url}/{step}")
        await passes(step)
        was_late += not task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await eventually(lambda: nothing_is_left(reducer_of(session)))
        step += 1
        assert step < 500
    await eventually(lambda: server.open_connections == 0)


async def test_a_call_that_is_cancelled_before_its_first_step_leaves_nothing(
    upstream: StartUpstream, reducing: OpenSession, noise: list[Any]
) -> None:
    server, halting = await halted(upstream)
    session = reducing()
    first, second, third = reading(session, 3, server.url)
    first.cancel()
    third.cancel()
    await under_way(server, session, 1)
    halting.first.set()
    halting.second.set()
    assert await second == 2 * HALF
    assert first.cancelled()
    assert third.cancelled()
    assert len(server.requests) == 1
    assert nothing_is_left(reducer_of(session))


async def test_a_flight_whose_only_member_leaves_before_its_first_step_sends_nothing(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    server, _ = await halted(upstream)
    session = reducing()
    (task,) = reading(session, 1, server.url)
    while not reducer_of(session).stats["in_flight"]:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: nothing_is_left(reducer_of(session)))
    assert server.requests == []


@pytest.mark.parametrize("members", [1, 5])
async def test_the_last_to_leave_before_the_head_closes_the_connection(
    upstream: StartUpstream, reducing: OpenSession, members: int
) -> None:
    server, _ = await halted(upstream)
    session = reducing()
    tasks = reading(session, members, server.url)
    await under_way(server, session, members)
    for task in tasks[1:]:
        task.cancel()
    await asyncio.gather(*tasks[1:], return_exceptions=True)
    assert not server.requests[0].left.is_set()
    tasks[0].cancel()
    await left_at_once(server.requests[0])
    await eventually(lambda: nothing_is_left(reducer_of(session)))


async def test_a_call_after_the_last_has_left_is_sent_anew(upstream: StartUpstream, reducing: OpenSession) -> None:
    server, halting = await halted(upstream)
    session = reducing()
    (task,) = reading(session, 1, server.url)
    await under_way(server, session, 1)
    task.cancel()
    (other,) = reading(session, 1, server.url)
    halting.first.set()
    halting.second.set()
    assert await other == 2 * HALF
    assert len(server.requests) == 2


# As the head arrives.


class Afterwards(hooks.BaseHooks):
    """Calls `then` when the members have been woken by the head, and before one of them runs."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then

    def on_result_for(self, coro: Any, ident: Any, result: Any) -> None:
        self.then()


@pytest.mark.parametrize("leavers", [(0,), (1,), (0, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("order", ["before", "after", "both"])
@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "streamed"])
async def test_a_member_that_leaves_in_the_pass_of_the_head_leaves_no_seat_behind(
    upstream: StartUpstream,
    reducing: OpenSession,
    leavers: tuple[int, ...],
    order: str,
    is_whole: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head, rest = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await head.wait()
        if is_whole:
            await exchange.respond(2 * HALF)
            return
        await exchange.head(Content_Length=2 * len(HALF))
        await exchange.send(HALF)
        await rest.wait()
        await exchange.send(HALF)

    server = await upstream(answer)
    # The members that leave before the head, and those that do after it.
    early = leavers if order == "before" else leavers[:1] if order == "both" else ()
    late = [leaver for leaver in leavers if leaver not in early]
    tasks: list[asyncio.Task[bytes]] = []
    flights: list[Any] = []

    genuine_start = ClientResponse.start

    async def start(self: ClientResponse, connection: Any) -> ClientResponse:
        response = await genuine_start(self, connection)
        if not flights:
            # The upstream's head is there, and nobody is told yet.
            flights.extend(table.flights.values())
            for leaver in early:
                tasks[leaver].cancel()
        return response

    def leave_after() -> None:
        for leaver in late:
            tasks[leaver].cancel()

    monkeypatch.setattr(ClientResponse, "start", start)
    session = reducing(hooks=Afterwards(leave_after))
    tasks += reading(session, 3, server.url)
    await under_way(server, session, 3)
    (table,) = reducer_of(session)._tables.by_loop.values()
    head.set()
    await asyncio.gather(*[tasks[leaver] for leaver in leavers], return_exceptions=True)
    assert all(tasks[leaver].cancelled() for leaver in leavers)
    stayed = [task for number, task in enumerate(tasks) if number not in leavers]
    (flight,) = flights
    if not is_whole:
        if stayed:
            await eventually(lambda: isinstance(flight.outcome, Streamed))
            await eventually(lambda: not flight.outcome.seats and flight.outcome.broadcast.consumers == len(stayed))
        else:
            await left_at_once(server.requests[0])
    rest.set()
    assert await asyncio.gather(*stayed) == [2 * HALF] * len(stayed)
    await eventually(lambda: nothing_is_left(reducer_of(session)))
    assert len(server.requests) == 1


# In mid-body.


async def halfway(session: Any, url: str, count: int, server: Upstream, halting: Halting) -> list[ClientResponse]:
    """So many responses to one request whose body has come half."""
    calls = [asyncio.ensure_future(session.get(url)) for _ in range(count)]
    await under_way(server, session, count)
    halting.first.set()
    return await asyncio.gather(*calls)


async def test_a_response_that_is_released_in_mid_body_disturbs_nobody(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    server, halting = await halted(upstream)
    session = reducing()
    responses = await halfway(session, server.url, 5, server, halting)
    responses[0].release()
    responses[1].close()
    reads = [asyncio.create_task(response.read()) for response in responses[2:]]
    await passes(3)
    reads[0].cancel()
    halting.second.set()
    assert await asyncio.gather(*reads[1:]) == [2 * HALF] * 2
    assert len(server.requests) == 1
    assert reads[0].cancelled()
    await eventually(lambda: nothing_is_left(reducer_of(session)))


@pytest.mark.parametrize("leaver", [0, 1], ids=["the-leader", "a-follower"])
async def test_a_total_timeout_in_mid_body_is_that_callers_own(
    upstream: StartUpstream, reducing: OpenSession, leaver: int
) -> None:
    server, halting = await halted(upstream)
    session = reducing()
    tasks = []
    for number in range(3):
        timeout = ClientTimeout(total=0.1 if number == leaver else None)
        tasks += reading(session, 1, server.url, timeout=timeout)
        await waiting(reducer_of(session), number)
    halting.first.set()
    with pytest.raises(TimeoutError):
        await tasks.pop(leaver)
    halting.second.set()
    assert await asyncio.gather(*tasks) == [2 * HALF] * 2
    assert len(server.requests) == 1


WAYS = ["release", "close", "cancellation", "timeout"]


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("way", WAYS)
async def test_the_last_to_leave_in_mid_body_closes_the_connection(
    upstream: StartUpstream, reducing: OpenSession, way: str, members: int
) -> None:
    server, halting = await halted(upstream)
    session = reducing(timeout=ClientTimeout(total=0.1 if way == "timeout" else None))
    responses = await halfway(session, server.url, members, server, halting)
    exchange = server.requests[0]
    for number in range(members):
        assert not exchange.left.is_set()
        response = responses.pop()
        if way == "release":
            response.release()
        elif way == "close":
            response.close()
        elif way == "cancellation":
            read = asyncio.create_task(response.read())
            await passes(3)
            read.cancel()
            await asyncio.gather(read, return_exceptions=True)
        elif way == "timeout":
            with pytest.raises(TimeoutError):
                await response.read()
            if number < members - 1:
                continue
    await left_at_once(exchange)
    await eventually(lambda: nothing_is_left(reducer_of(session)))
    assert len(asyncio.all_tasks()) <= 3 + len(server._tasks)  # this one, and the upstream's


async def test_a_response_that_is_forgotten_in_mid_body_disturbs_nobody_and_ends_with_the_session(
    upstream: StartUpstream, reducing: OpenSession, noise: list[Any]
) -> None:
    # aiohttp keeps a response whose body is on its way alive, and so its connection open.
    server, halting = await halted(upstream)
    session = reducing()
    forgotten, *others = await halfway(session, server.url, 3, server, halting)
    del forgotten
    gc.collect()
    halting.second.set()
    assert await asyncio.gather(*[response.read() for response in others]) == [2 * HALF] * 2
    halting.second.clear()
    (forgotten,) = await halfway(session, server.url, 1, server, halting)
    del forgotten
    gc.collect()
    await session.close()
    await left_at_once(server.requests[1])
    assert nothing_is_left(reducer_of(session))


async def test_a_member_that_joined_in_mid_body_and_leaves_last_closes_the_connection(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    server, halting = await halted(upstream)
    session = reducing()
    (first,) = await halfway(session, server.url, 1, server, halting)
    late = await session.get(server.url)
    first.close()
    assert await late.content.readexactly(len(HALF)) == HALF
    assert not server.requests[0].left.is_set()
    late.close()
    await left_at_once(server.requests[0])
    assert len(server.requests) == 1
    await eventually(lambda: nothing_is_left(reducer_of(session)))


# Timeouts of the connection.


class Hanging(aiohttp.TCPConnector):
    """Connects no sooner than `through` is set, and from the connection with the number `works_from` on."""

    def __init__(self, works_from: int = 10**9) -> None:
        super().__init__()
        self.through = asyncio.Event()
        self.attempts = 0
        self.given_up = 0
        self._works_from = works_from

    async def _create_connection(self, req: Any, traces: Any, timeout: ClientTimeout) -> Any:  # noqa: ASYNC109
        self.attempts += 1
        if self.attempts < self._works_from:
            try:
                # As opening a socket has it.
                async with asyncio.timeout(timeout.sock_connect):
                    await self.through.wait()
            except BaseException:
                self.given_up += 1
                raise
        return await super()._create_connection(req, traces, timeout)


async def at_once(exchange: Exchange) -> None:
    await exchange.respond(b"hello")


@pytest.mark.parametrize("limit", ["connect", "sock_connect"])
async def test_a_connection_timeout_is_for_members_with_the_same_budget(
    upstream: StartUpstream, reducing: OpenSession, limit: str, noise: list[Any]
) -> None:
    server = await upstream(at_once)
    connector = Hanging(works_from=2)
    session = reducing(connector=connector)
    short: Any = ClientTimeout(total=None, **{limit: 0.1})
    hasty = reading(session, 3, server.url, timeout=short)
    patient = [
        *reading(session, 3, server.url, timeout=ClientTimeout(total=None)),
        *reading(session, 2, server.url, timeout=ClientTimeout(total=None, **{limit: 30})),
    ]
    outcomes = await asyncio.gather(*hasty, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ConnectionTimeoutError] * 3
    assert len({id(outcome) for outcome in outcomes}) == 3
    assert await asyncio.gather(*patient) == [b"hello"] * 5
    assert connector.attempts <= 3
    assert nothing_is_left(reducer_of(session))


@pytest.mark.parametrize("limit", ["connect", "sock_connect"])
async def test_nobody_gets_a_connection_timeout_before_its_own_budget_is_spent(
    upstream: StartUpstream, reducing: OpenSession, limit: str
) -> None:
    server = await upstream(at_once)
    session = reducing(connector=Hanging())
    loop = asyncio.get_running_loop()

    async def waited() -> float:
        begun = loop.time()
        with pytest.raises(ConnectionTimeoutError):
            await session.get(server.url, timeout=ClientTimeout(total=None, **{limit: 0.12}))
        return loop.time() - begun

    tasks = []
    for number in range(4):
        tasks.append(asyncio.create_task(waited()))
        await waiting(reducer_of(session), number)
        await asyncio.sleep(0.02)
    spent = await asyncio.gather(*tasks)
    assert min(spent) >= 0.1
    # Those who came later were given a second flight, which had the whole budget again.
    assert max(spent) <= 0.4
    assert nothing_is_left(reducer_of(session))


async def test_a_follower_with_a_shorter_connect_budget_gets_its_timeout_at_its_own_time(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    server = await upstream(at_once)
    connector = Hanging()
    session = reducing(connector=connector)
    (patient,) = reading(session, 1, server.url, timeout=ClientTimeout(total=None))
    await eventually(lambda: connector.attempts == 1)
    begun = time.monotonic()
    (hasty,) = reading(session, 1, server.url, timeout=ClientTimeout(total=None, connect=0.1))
    with pytest.raises(ConnectionTimeoutError, match=server.url):
        await hasty
    assert 0.09 <= time.monotonic() - begun < 0.3
    assert connector.attempts == 1
    connector.through.set()
    assert await patient == b"hello"
    assert len(server.requests) == 1


async def test_a_follower_whose_connect_budget_is_spent_waits_on_where_the_connection_was_made(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond(b"hello")

    server = await upstream(answer)
    session = reducing()
    tasks = reading(session, 1, server.url, timeout=ClientTimeout(total=None))
    await server.asked()
    tasks += reading(session, 1, server.url, timeout=ClientTimeout(total=None, connect=0.02))
    await waiting(reducer_of(session), 1)
    done, _ = await asyncio.wait(tasks, timeout=0.1)
    assert not done
    gate.set()
    assert await asyncio.gather(*tasks) == [b"hello"] * 2
    assert len(server.requests) == 1


async def test_the_starters_longer_connect_budget_does_not_shorten_a_followers_wait_for_the_head(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    server = await upstream(at_once)
    connector = Hanging(works_from=2)
    session = reducing(connector=connector)
    (hasty,) = reading(session, 1, server.url, timeout=ClientTimeout(total=None, connect=0.05))
    await eventually(lambda: connector.attempts == 1)
    (patient,) = reading(session, 1, server.url, timeout=ClientTimeout(total=None, connect=5))
    with pytest.raises(ConnectionTimeoutError):
        await hasty
    assert await patient == b"hello"
    assert (connector.attempts, connector.given_up) == (2, 1)


# Timeouts of reading.


async def test_a_late_follower_is_not_failed_by_the_leaders_sock_read_timeout(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    async def answer(exchange: Exchange) -> None:
        if exchange.number == 1:
            await exchange.left.wait()
        else:
            await exchange.respond(b"hello")

    server = await upstream(answer)
    session = reducing(timeout=ClientTimeout(total=None, sock_read=0.2))
    (leader,) = reading(session, 1, server.url)
    await server.asked()
    await asyncio.sleep(0.1)
    late = reading(session, 3, server.url)
    with pytest.raises(ServerTimeoutError):
        await leader
    assert await asyncio.gather(*late) == [b"hello"] * 3
    assert len(server.requests) == 2
    assert nothing_is_left(reducer_of(session))


async def test_members_that_came_together_share_the_sock_read_timeout(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    server, _ = await halted(upstream)
    session = reducing(timeout=ClientTimeout(total=None, sock_read=0.1))
    outcomes = await asyncio.gather(*reading(session, 5, server.url), return_exceptions=True)
    assert all(isinstance(outcome, ServerTimeoutError) for outcome in outcomes)
    assert len({id(outcome) for outcome in outcomes}) == 5
    assert len(server.requests) == 1
    await left_at_once(server.requests[0])


async def test_a_sock_read_timeout_in_mid_body_fails_all_who_read(
    upstream: StartUpstream, reducing: OpenSession, noise: list[Any]
) -> None:
    server, halting = await halted(upstream)
    halting.first.set()
    session = reducing(timeout=ClientTimeout(total=None, sock_read=0.1))
    outcomes = await asyncio.gather(*reading(session, 4, server.url), return_exceptions=True)
    assert all(isinstance(outcome, ServerTimeoutError) for outcome in outcomes), outcomes
    assert len({id(outcome) for outcome in outcomes}) == 4
    assert len(server.requests) == 1
    await left_at_once(server.requests[0])
    await eventually(lambda: nothing_is_left(reducer_of(session)))


# Closing.


@pytest.mark.parametrize("members", [1, 4])
async def test_closing_the_session_fails_those_who_wait_for_a_head(
    upstream: StartUpstream, reducing: OpenSession, members: int
) -> None:
    server, _ = await halted(upstream)
    session = reducing()
    tasks = reading(session, members, server.url)
    await under_way(server, session, members)
    async with asyncio.timeout(AT_ONCE):
        await session.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await server.requests[0].left.wait()
    assert all(isinstance(outcome, ClientConnectionError) for outcome in outcomes), outcomes
    assert nothing_is_left(reducer_of(session))
    assert len(server.requests) == 1


async def test_closing_the_session_fails_those_who_wait_for_a_connection(
    upstream: StartUpstream, reducing: OpenSession, noise: list[Any]
) -> None:
    server = await upstream(at_once)
    connector = Hanging()
    session = reducing(connector=connector)
    tasks = reading(session, 4, server.url)
    await eventually(lambda: connector.attempts == 1)
    async with asyncio.timeout(AT_ONCE):
        await session.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, ClientConnectionError) for outcome in outcomes), outcomes
    assert nothing_is_left(reducer_of(session))


@pytest.mark.parametrize("members", [1, 4])
async def test_closing_the_session_fails_those_who_read(
    upstream: StartUpstream, reducing: OpenSession, members: int
) -> None:
    server, halting = await halted(upstream)
    session = reducing()
    responses = await halfway(session, server.url, members, server, halting)
    reads = [asyncio.create_task(response.read()) for response in responses]
    await passes(3)
    async with asyncio.timeout(AT_ONCE):
        await session.close()
        outcomes = await asyncio.gather(*reads, return_exceptions=True)
        await server.requests[0].left.wait()
    assert all(isinstance(outcome, ClientConnectionError) for outcome in outcomes), outcomes
    assert nothing_is_left(reducer_of(session))


@pytest.mark.parametrize("members", [1, 3])
async def test_a_response_whose_session_was_closed_before_it_was_read_ends(
    upstream: StartUpstream, reducing: OpenSession, members: int
) -> None:
    server, halting = await halted(upstream)
    session = reducing()
    responses = await halfway(session, server.url, members, server, halting)
    await session.close()
    # So it is with aiohttp alone.
    for response in responses:
        with pytest.raises(RuntimeError, match="Connection closed"):
            async with asyncio.timeout(1):
                await response.read()
    await eventually(lambda: nothing_is_left(reducer_of(session)))


async def test_a_call_after_the_session_was_closed_is_refused(upstream: StartUpstream, reducing: OpenSession) -> None:
    server = await upstream(at_once)
    session = reducing()
    assert await bodies(session, 1, server.url) == [b"hello"]
    await session.close()
    with pytest.raises(RuntimeError, match="Session is closed"):
        await session.get(server.url)


async def test_closing_the_wrapper_of_a_given_session_leaves_it_and_its_flights_alone(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    server, halting = await halted(upstream)
    async with aiohttp.ClientSession() as genuine:
        session = reducing(session=genuine)
        tasks = reading(session, 3, server.url)
        await under_way(server, session, 3)
        await session.close()
        assert session.closed
        assert not genuine.closed
        with pytest.raises(RuntimeError, match="Session is closed"):
            await session.get(server.url)
        halting.first.set()
        halting.second.set()
        assert await asyncio.gather(*tasks) == [2 * HALF] * 3
        assert await bodies(genuine, 1, server.url) == [2 * HALF]
    assert nothing_is_left(reducer_of(session))


async def test_closing_one_session_leaves_the_flights_of_another_with_the_same_middleware_alone(
    upstream: StartUpstream,
) -> None:
    server, halting = await halted(upstream)
    reducer = reduce_client_middleware()
    async with (
        aiohttp.ClientSession(middlewares=[reducer]) as one,
        aiohttp.ClientSession(middlewares=[reducer]) as other,
    ):
        ones, others = reading(one, 2, server.url), reading(other, 2, server.url)
        await server.asked(2)
        await waiting(reducer, 2)
        await reducer._hang_up(one)
        outcomes = await asyncio.gather(*ones, return_exceptions=True)
        assert all(isinstance(outcome, ClientConnectionError) for outcome in outcomes)
        halting.first.set()
        halting.second.set()
        assert await asyncio.gather(*others) == [2 * HALF] * 2
    await eventually(lambda: nothing_is_left(reducer))


def test_a_program_that_ends_with_flights_open_is_quiet() -> None:
    program = """
        import aiohttp, asyncio
        from aiohttp_reduce import ReducingClientSession

        async def hang(reader, writer):
            await reader.readuntil(b"\\r\\n\\r\\n")
            if halfway:
                writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 10\\r\\n\\r\\nhello")
            arrived.set()
            try:
                await reader.read()
            except asyncio.CancelledError:
                pass
            writer.close()

        async def get(session, url):
            try:
                async with session.get(url) as response:
                    if halfway:
                        reading.append(response)
                    await response.read()
            except aiohttp.ClientConnectionError:
                print("closed")

        async def main(closes):
            global arrived, reading, tasks
            arrived, reading = asyncio.Event(), []
            server = await asyncio.start_server(hang, "127.0.0.1", 0)
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            session = ReducingClientSession()
            tasks = [asyncio.create_task(get(session, url)) for _ in range(5)]
            await arrived.wait()
            while session.stats["waiting"] < 4 and len(reading) < 5:
                await asyncio.sleep(0.001)
            if closes:
                await session.close()
            else:
                sessions.append(session)
            server.close()

        sessions = []
        for halfway in (False, True):
            for closes in (False, True):
                asyncio.run(main(closes))
                assert all(task.done() for task in tasks)
                assert closes != any(task.cancelled() for task in tasks)
        # Whoever does not close a session is told so by aiohttp, later.
        for session in sessions:
            session.detach()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=20)
    told = done.stderr
    assert done.returncode == 0, told
    assert done.stdout.split() == ["closed"] * 10
    for word in ("Task was destroyed", "never retrieved", "was never awaited", "Traceback"):
        assert word not in told


# Several loops.


@pytest.mark.parametrize("in_threads", [True, False], ids=["threads", "one-after-the-other"])
def test_event_loops_share_a_middleware_object_and_no_flight(in_threads: bool) -> None:
    reducer = reduce_client_middleware()
    failures: list[BaseException] = []
    requests: list[int] = []
    barrier = threading.Barrier(2 if in_threads else 1)

    async def herd() -> None:
        gate = asyncio.Event()

        async def answer(exchange: Exchange) -> None:
            await gate.wait()
            await exchange.respond(b"hello")

        server = Upstream(answer)
        await server.start()
        async with aiohttp.ClientSession(middlewares=[reducer]) as session:
            for step in range(20):
                gate.clear()
                tasks = reading(session, 8, f"{server.url}/{step}")
                await server.asked(step + 1)
                await asyncio.get_running_loop().run_in_executor(None, barrier.wait)
                gate.set()
                assert await asyncio.gather(*tasks) == [b"hello"] * 8
        requests.append(len(server.requests))
        await server.stop()

    def run() -> None:
        try:
            asyncio.run(herd())
        except BaseException as failure:
            barrier.abort()
            failures.append(failure)

    if in_threads:
        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        run()
        run()
    assert not failures
    assert requests == [20, 20]
    assert nothing_is_left(reducer)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are 3.12's")
async def test_with_an_eager_task_factory(upstream: StartUpstream, reducing: OpenSession) -> None:
    def eager(loop: Any, coro: Any, *, eager_start: Any = None, **options: Any) -> Any:
        # uvloop passes on an argument that 3.13's own factory does not take.
        return asyncio.eager_task_factory(loop, coro, **options)  # type: ignore[attr-defined]

    asyncio.get_running_loop().set_task_factory(eager)
    server, halting = await halted(upstream)
    session = reducing()
    tasks = reading(session, 5, server.url)
    await under_way(server, session, 5)
    tasks.pop(0).cancel()
    tasks.pop().cancel()
    halting.first.set()
    halting.second.set()
    assert await asyncio.gather(*tasks) == [2 * HALF] * 3
    assert len(server.requests) == 1
    # One at a time, on the connection that is there.
    for _ in range(3):
        assert await bodies(session, 1, server.url) == [2 * HALF]
    assert (len(server.requests), server.connections) == (4, 1)
    (task,) = reading(session, 1, server.url)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: nothing_is_left(reducer_of(session)))
