"""What everybody left or closed, and what a write closes: nothing of it is joined or kept."""

import asyncio
import threading
from typing import Any

import aiohttp
import pytest

from aiohttp_reduce import ReducingClientSession
from aiohttp_reduce.broadcast import Broadcast
from tests.harness import eventually
from tests.upstream import (
    Exchange,
    OpenSession,
    StartUpstream,
    body_of,
    halves,
    hello,
    nothing_is_left,
    reading,
    reducer_of,
)
from tests.virtual import VirtualLoop
from tests.wire import FarEnd, Line, run_on_the_wire

# Leaving.


async def first_half(line: Line, number: int) -> None:
    await line.head("Content-Length: 2")
    await line.send(b"%d" % number)
    if number == 1:
        await asyncio.sleep(1000)
    await line.send(b"!")


def test_a_body_that_everybody_left_is_not_joined_and_its_connection_closed_at_once() -> None:
    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        response = await session.get("http://far.end/")
        assert far_end.open_lines == 1
        response.close()
        assert far_end.open_lines == 0
        # In the same pass of the loop.
        assert await body_of(session, "http://far.end/") == b"2!"
        assert len(far_end.asked) == 2

    run_on_the_wire(first_half, main)


async def test_closing_does_not_wait_for_a_trace_and_those_who_wait_are_told_at_once(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    begun, released = asyncio.Event(), asyncio.Event()

    async def hold(_session: Any, _context: Any, _params: Any) -> None:
        begun.set()
        try:
            await released.wait()
        except asyncio.CancelledError:
            await released.wait()
            raise

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_start.append(hold)
    server = await upstream(hello)
    session = reducing(trace_configs=[trace])
    tasks = reading(session, 3, server.url)
    await begun.wait()
    async with asyncio.timeout(2):
        await session.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [aiohttp.ClientConnectionError] * 3
    assert {str(outcome) for outcome in outcomes} == {"Connector is closed."}
    released.set()


# Writes.


def test_what_was_begun_in_the_moment_of_a_write_is_from_before_it() -> None:
    gate = asyncio.Event()

    async def answer(line: Line, number: int) -> None:
        if line.asked[-1].startswith("GET"):
            await gate.wait()
        await line.respond(b"%d" % number)

    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        # No time passes in all of this.
        tasks = reading(session, 1, "http://far.end/")
        await eventually_asked(far_end, 1)
        for path in ("", "other"):
            async with session.post(f"http://far.end/{path}"):
                pass
        tasks += reading(session, 1, "http://far.end/")
        await eventually_asked(far_end, 4)
        gate.set()
        assert await asyncio.gather(*tasks) == [b"1", b"4"]

    run_on_the_wire(answer, main)


async def eventually_asked(far_end: FarEnd, requests: int) -> None:
    """Let the loop go round until so many requests have come, and their answers have begun."""
    for _ in range(100):
        if len(far_end.asked) >= requests:
            await asyncio.sleep(0)
            return
        await asyncio.sleep(0)
    raise AssertionError(far_end.asked)


async def test_only_the_loops_own_thread_touches_bodies_on_their_way(
    upstream: StartUpstream, reducing: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await upstream(halves)
    session = reducing()
    response = await session.get(server.url)
    threads: list[int] = []
    close = Broadcast.close

    def noted(self: Broadcast) -> None:
        threads.append(threading.get_ident())
        close(self)

    monkeypatch.setattr(Broadcast, "close", noted)
    await asyncio.to_thread(session.forget, server.url)
    # It counts all the same.
    other = await session.get(server.url)
    assert len(server.requests) == 2
    response.close()
    other.close()
    await eventually(lambda: nothing_is_left(reducer_of(session)))
    assert set(threads) <= {threading.get_ident()}


async def test_a_body_that_ended_does_not_keep_another_of_its_path_joinable_after_a_write(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    rests = [asyncio.Event(), asyncio.Event()]

    async def answer(exchange: Exchange) -> None:
        await exchange.head(Content_Length=2)
        await exchange.send(b"a")
        await rests[exchange.number - 1].wait()
        await exchange.send(b"b")

    server = await upstream(answer)
    session = reducing()
    responses = [await session.get(f"{server.url}/?{number}") for number in range(2)]
    (table,) = reducer_of(session)._tables.by_loop.values()
    rests[0].set()
    assert await responses[0].read() == b"ab"
    await eventually(lambda: len(table.running) == 1)
    assert await responses[1].content.read(1) == b"a"
    assert table.budget.used > 0
    session.forget(server.url)
    # What everybody has read is not kept for those who cannot come any more.
    assert table.budget.used == 0
    rests[1].set()
    assert await responses[1].read() == b"b"
