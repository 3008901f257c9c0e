"""Streamed answers are shared live: one run, and everybody gets every byte, from the first one on."""

import asyncio
from typing import Any

import pytest

from .harness import Start, eventually
from .streaming import Tap, joined, nothing_is_left, streams


@pytest.fixture(params=["written by the handler", "a body that can be read once"])
def handler_of(request: pytest.FixtureRequest) -> Any:
    """Which handler of a tap to use."""
    return lambda tap: tap.handler if "handler" in request.param else tap.one_shot


async def test_those_who_wait_for_the_head_get_every_byte_of_one_run(serve: Start, handler_of: Any) -> None:
    tap = Tap()
    server = await streams(serve, tap, handler=handler_of(tap))
    everybody = await joined(server, 10, tap)
    tap.send_head()
    tap.let(b"one ", b"two ", b"three")
    tap.end()
    replies = [await one.receive() for one in everybody]
    assert {(reply.status, reply.body, reply.headers["X-From"]) for reply in replies} == {
        (200, b"one two three", "the handler")
    }
    assert [reply.collapsed for reply in replies] == [None, *["aiohttp-reduce; fwd=miss; collapsed"] * 9]
    assert (tap.runs, server.figure("reduced"), server.figure("unshared")) == (1, 9, {})
    await nothing_is_left(server)


async def test_whoever_comes_while_bytes_flow_gets_them_from_the_first_one_on(serve: Start, handler_of: Any) -> None:
    tap = Tap()
    server = await streams(serve, tap, handler=handler_of(tap))
    everybody = [await server.send("/")]
    tap.send_head()
    for number in range(5):
        tap.let(b"piece %d;" % number)
        await eventually(lambda number=number: tap.written >= number)  # type: ignore[misc]
        everybody.append(await server.send("/"))
        await eventually(lambda: bool(server.figure("total") == len(everybody)))
    tap.end()
    replies = [await one.receive() for one in everybody]
    assert {reply.body for reply in replies} == {b"".join(b"piece %d;" % number for number in range(5))}
    assert tap.runs == 1
    await nothing_is_left(server)


async def test_bytes_arrive_when_they_are_written(serve: Start, handler_of: Any) -> None:
    tap = Tap()
    server = await streams(serve, tap, handler=handler_of(tap))
    everybody = await joined(server, 3, tap)
    tap.send_head()
    for piece in (b"first", b"second"):
        tap.let(piece)
        for one in everybody:
            async with asyncio.timeout(5):
                await one.reader.readuntil(piece)
    tap.end()
    await nothing_is_left(server)
