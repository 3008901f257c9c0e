"""Nobody who reads a stream slowly, leaves it or dies holds up or harms another; and none of it takes much memory."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from aiohttp_reduce import broadcast as broadcast_module
from aiohttp_reduce.broadcast import CHUNK_OVERHEAD, Broadcast

from .harness import Connection, Server, Start, eventually
from .streaming import Tap, Wires, arrived, is_broken, joined, kept, nothing_is_left, pause, resume, slow, streams

PIECE = 0x8000
# More than what connections of which nothing is read take, and less than what the server keeps by default.
PIECES = [bytes([number]) * PIECE for number in range(1, 49)]
BODY = b"".join(PIECES)
# Seconds: what has to be waited for in these tests, and what nothing of it may take.
SHORT = 0.1
LONG = 60.0


@pytest.fixture(params=["written by the handler", "a body that can be read once"])
def handler_of(request: pytest.FixtureRequest) -> Any:
    """Which handler of a tap to use."""
    return lambda tap: tap.handler if "handler" in request.param else tap.one_shot


Times = Callable[..., None]


@pytest.fixture
def peak(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The most bytes that all broadcasts of a budget kept at any time."""
    most = [0]

    def watched(method: Any) -> Any:
        def call(broadcast: Broadcast, *args: Any, **options: Any) -> Any:
            result = method(broadcast, *args, **options)
            most[0] = max(most[0], broadcast._budget.used)
            return result

        return call

    monkeypatch.setattr(Broadcast, "feed", watched(Broadcast.feed))
    monkeypatch.setattr(Broadcast, "keep", watched(Broadcast.keep))
    return most


async def received(connection: Connection) -> bytes:
    return (await connection.receive()).body


async def end_of(tap: Tap) -> BaseException | None:
    """What the one run of a handler ended with; nothing but the garbage collector ends a generator without a reader."""
    await eventually(lambda: gc.collect() >= 0 and len(tap.ended) == 1)
    return tap.ended[0]


# -- the first requester


async def test_a_first_requester_that_reads_nothing_holds_nobody_up(
    serve: Start, handler_of: Any, times: Times, quiet: list[Any]
) -> None:
    times()
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, handler=handler_of(tap), outer=[wires])
    leader = await slow(server)
    await eventually(lambda: tap.runs == 1)
    followers = [await server.send("/") for _ in range(2)]
    await server.waiting(2)
    tap.send_head()
    tap.let(*PIECES)
    tap.end()
    assert [await received(follower) for follower in followers] == [BODY, BODY]
    resume(leader)
    assert await received(leader) == BODY
    assert (tap.runs, tap.ended) == (1, [None])
    await nothing_is_left(server)


async def test_whoever_joins_frees_a_handler_that_the_first_requester_holds_up_already(
    serve: Start, handler_of: Any, times: Times, quiet: list[Any]
) -> None:
    times()
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, handler=handler_of(tap), outer=[wires])
    leader = await slow(server)
    tap.send_head()
    tap.let(*PIECES)
    tap.end()
    await wires.blocked(0)
    written = tap.written
    assert written < len(PIECES)
    for _ in range(10):
        await asyncio.sleep(0)
    assert (tap.written, tap.ended) == (written, [])  # alone, it is as without us
    follower = await server.send("/")
    assert await received(follower) == BODY
    resume(leader)
    assert await received(leader) == BODY
    assert (tap.runs, tap.ended) == (1, [None])
    await nothing_is_left(server)


@pytest.mark.parametrize("when", ["before the head", "after the head", "midway"])
async def test_a_first_requester_that_dies_does_not_end_what_another_reads(
    serve: Start, handler_of: Any, when: str, quiet: list[Any]
) -> None:
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, handler=handler_of(tap), outer=[wires])
    leader, follower = await joined(server, 2, tap)
    if when != "before the head":
        tap.send_head()
        await eventually(lambda: tap.heads == 1)
    if when == "midway":
        tap.let(b"one ")
        await arrived(b"one ", leader, follower)
    leader.abort()
    await wires.disconnected(0)
    tap.send_head()
    tap.let(*([b"two "] if when == "midway" else [b"one ", b"two "]))
    await arrived(b"two ", follower)
    tap.let(b"three")
    tap.end()
    assert await received(follower) == b"one two three"
    assert (tap.runs, tap.ended) == (1, [None])
    await nothing_is_left(server)


async def test_a_first_requester_that_dies_alone_with_a_held_up_handler_ends_it(
    serve: Start, handler_of: Any, quiet: list[Any]
) -> None:
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, handler=handler_of(tap), outer=[wires])
    leader = await slow(server)
    tap.send_head()
    tap.let(*PIECES)
    await wires.blocked(0)
    leader.abort()
    assert await end_of(tap) is not None
    await nothing_is_left(server)


async def test_a_first_requester_that_dies_while_it_reads_nothing_does_not_end_what_another_reads(
    serve: Start, handler_of: Any, times: Times, quiet: list[Any]
) -> None:
    times()
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, handler=handler_of(tap), outer=[wires])
    leader = await slow(server)
    tap.send_head()
    tap.let(*PIECES[:24])
    await wires.blocked(0)
    follower = await server.send("/")
    await arrived(PIECES[23], follower)
    leader.abort()
    await wires.disconnected(0)
    tap.let(*PIECES[24:])
    tap.end()
    assert await received(follower) == BODY
    assert (tap.runs, tap.ended) == (1, [None])
    await nothing_is_left(server)


async def test_those_who_join_after_the_first_requester_died_get_every_byte(
    serve: Start, handler_of: Any, quiet: list[Any]
) -> None:
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, handler=handler_of(tap), outer=[wires])
    leader, follower = await joined(server, 2, tap)
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"one ", leader, follower)
    leader.abort()
    await wires.disconnected(0)
    late = await server.send("/")
    await arrived(b"one ", late)
    tap.let(b"two")
    tap.end()
    assert [await received(follower), await received(late)] == [b"one two", b"one two"]
    assert tap.runs == 1
    await nothing_is_left(server)


async def test_a_first_requester_that_reads_nothing_is_cut_off_where_others_would_wait_for_it(
    serve: Start, handler_of: Any, times: Times, quiet: list[Any]
) -> None:
    times(first=SHORT)
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, handler=handler_of(tap), outer=[wires], max_buffer=4 * PIECE)
    leader = await slow(server)
    await eventually(lambda: tap.runs == 1)
    followers = [await server.send("/") for _ in range(2)]
    await server.waiting(2)
    tap.send_head()
    began = asyncio.get_running_loop().time()
    tap.let(*PIECES)
    tap.end()
    assert [await received(follower) for follower in followers] == [BODY, BODY]
    # Less at the beginning of a stream: a fifth.
    assert asyncio.get_running_loop().time() - began >= SHORT / 5
    await wires.disconnected(0)
    resume(leader)
    assert await is_broken(leader)
    assert (tap.runs, tap.ended) == (1, [None])
    await nothing_is_left(server)


# -- slow followers


async def test_a_follower_that_reads_nothing_is_cut_off_and_the_others_get_everything(
    serve: Start, handler_of: Any, times: Times, quiet: list[Any]
) -> None:
    times(stall=SHORT)
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, handler=handler_of(tap), outer=[wires], max_buffer=4 * PIECE)
    leader, follower = await joined(server, 2, tap)
    stuck = await slow(server)
    await server.waiting(2)
    tap.send_head()
    began = asyncio.get_running_loop().time()
    tap.let(*PIECES)
    tap.end()
    assert [await received(leader), await received(follower)] == [BODY, BODY]
    assert asyncio.get_running_loop().time() - began >= SHORT
    await wires.disconnected(2)
    resume(stuck)
    assert await is_broken(stuck)
    assert (tap.runs, tap.ended) == (1, [None])
    await nothing_is_left(server)


async def test_a_follower_that_is_slow_for_less_than_its_time_gets_everything(
    serve: Start, handler_of: Any, times: Times, quiet: list[Any]
) -> None:
    times(stall=LONG)
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, handler=handler_of(tap), outer=[wires], max_buffer=4 * PIECE)
    leader, follower = await joined(server, 2, tap)
    stuck = await slow(server)
    await server.waiting(2)
    tap.send_head()
    tap.let(*PIECES)
    tap.end()
    await wires.blocked(2)
    resume(stuck)
    assert [await received(one) for one in (leader, follower, stuck)] == [BODY] * 3
    await nothing_is_left(server)


async def test_two_slow_followers_in_turn_share_one_time(
    serve: Start, handler_of: Any, times: Times, quiet: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    times(stall=0.4)
    monkeypatch.setattr(broadcast_module, "_PACE", 2**24)  # what one reads at once does not make up for its pause
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, handler=handler_of(tap), outer=[wires], max_buffer=16 * PIECE)
    (leader,) = await joined(server, 1, tap)
    first, second = await slow(server), await slow(server)
    await server.waiting(2)
    resume(second)
    tap.send_head()
    tap.let(*PIECES)
    await wires.blocked(1)
    await asyncio.sleep(0.25)  # so long it holds the others up
    pause(second)
    resume(first)
    began = asyncio.get_running_loop().time()
    # So much that the second one holds the others up as well; the rest has room when it is cut off.
    tap.let(*PIECES[:4])
    tap.end()
    assert [await received(leader), await received(first)] == [BODY + b"".join(PIECES[:4])] * 2
    assert asyncio.get_running_loop().time() - began < 0.35  # what was left of it, and not once more as long
    await wires.disconnected(2)
    resume(second)
    assert await is_broken(second)
    await nothing_is_left(server)


async def test_whoever_keeps_reading_is_not_cut_off_after_another_was(
    serve: Start, handler_of: Any, times: Times, quiet: list[Any]
) -> None:
    times(stall=SHORT)
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, handler=handler_of(tap), outer=[wires], max_buffer=4 * PIECE)
    (leader,) = await joined(server, 1, tap)
    stuck, reading = await slow(server), await slow(server)
    await server.waiting(2)
    resume(reading)
    tap.send_head()
    tap.let(*PIECES, *PIECES)
    tap.end()
    assert [await received(leader), await received(reading)] == [BODY + BODY] * 2
    await wires.disconnected(1)
    resume(stuck)
    assert await is_broken(stuck)
    await nothing_is_left(server)


# -- those who leave


class Scopes:
    """An outer middleware whose timeouts strike when they are told to, in the order of their requests."""

    __middleware_version__ = 1

    def __init__(self, *, answers: bool) -> None:
        self.scopes: list[asyncio.Timeout] = []
        self._answers = answers

    async def __call__(self, request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            async with asyncio.timeout(None) as scope:
                self.scopes.append(scope)
                response: web.StreamResponse = await handler(request)
                return response
        except TimeoutError:
            if self._answers:
                return web.Response(status=504, text="too late")
            raise

    async def strike(self, number: int) -> None:
        self.scopes[number].reschedule(asyncio.get_running_loop().time())
        await eventually(lambda: self.scopes[number].expired())


@pytest.mark.parametrize("way", ["aborted", "cancelled"])
@pytest.mark.parametrize("when", ["waits for the head", "starves", "is blocked"])
async def test_a_follower_that_leaves_leaves_alone(
    serve: Start, handler_of: Any, way: str, when: str, times: Times, quiet: list[Any]
) -> None:
    times()
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, handler=handler_of(tap), outer=[wires])
    leader, follower = await joined(server, 2, tap)
    leaving = await (slow if when == "is blocked" else server.send)(*([server, "/"] if when == "is blocked" else ["/"]))
    await server.waiting(2)
    sent = b""
    if when != "waits for the head":
        tap.send_head()
        await eventually(lambda: tap.heads == 1)
    if when == "starves":
        sent = b"one "
        tap.let(sent)
        await arrived(sent, leader, follower, leaving)
    if when == "is blocked":
        sent = BODY
        tap.let(*PIECES)
        await wires.blocked(2)
    if way == "aborted":
        leaving.abort()
    else:
        wires.cancel(2)
    await wires.disconnected(2)
    tap.send_head()
    tap.let(b"the ", b"rest")
    tap.end()
    assert [await received(leader), await received(follower)] == [sent + b"the rest"] * 2
    assert (tap.runs, tap.ended) == (1, [None])
    await nothing_is_left(server)


@pytest.mark.parametrize("answers", [True, False], ids=["and answered", "and failed"])
@pytest.mark.parametrize("when", ["waits for the head", "starves", "is blocked"])
async def test_a_follower_that_an_outer_middleware_times_out_leaves_alone(
    serve: Start, when: str, answers: bool, times: Times, quiet: list[Any]
) -> None:
    times()
    tap, wires, scopes = Tap(), Wires(), Scopes(answers=answers)
    server = await streams(serve, tap, outer=[scopes, wires])
    leader, follower = await joined(server, 2, tap)
    leaving = await slow(server)
    await server.waiting(2)
    sent = b""
    if when != "waits for the head":
        tap.send_head()
        await eventually(lambda: tap.heads == 1)
    if when == "starves":
        sent = b"one "
        resume(leaving)
        tap.let(sent)
        await arrived(sent, leader, follower, leaving)
    if when == "is blocked":
        sent = BODY
        tap.let(*PIECES)
        await wires.blocked(2)
    await scopes.strike(2)
    resume(leaving)
    if when == "waits for the head":
        assert (await leaving.receive()).status == 504  # either way
    else:
        assert await is_broken(leaving)
    tap.send_head()
    tap.let(b"the ", b"rest")
    tap.end()
    assert [await received(leader), await received(follower)] == [sent + b"the rest"] * 2
    assert (tap.runs, tap.ended) == (1, [None])
    await nothing_is_left(server)


async def test_a_follower_of_a_body_that_is_timed_out_while_it_waits_leaves_alone(
    serve: Start, quiet: list[Any]
) -> None:
    tap, scopes = Tap(), Scopes(answers=True)
    server = await streams(serve, tap, handler=tap.one_shot, outer=[scopes])
    leader, follower, leaving = await joined(server, 3, tap)
    await scopes.strike(2)
    assert (await leaving.receive()).status == 504
    tap.send_head()
    tap.let(b"all")
    tap.end()
    assert [await received(leader), await received(follower)] == [b"all", b"all"]
    await nothing_is_left(server)


@pytest.mark.parametrize("answers", [True, False], ids=["and answered", "and failed"])
async def test_a_first_requester_that_an_outer_middleware_times_out_breaks_what_others_read(
    serve: Start, answers: bool, quiet: list[Any]
) -> None:
    tap, scopes = Tap(), Scopes(answers=answers)
    server = await streams(serve, tap, outer=[scopes])
    everybody = await joined(server, 3, tap)
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"one ", *everybody)
    await scopes.strike(0)
    assert [await is_broken(one) for one in everybody] == [True] * 3
    assert isinstance(tap.ended[0], asyncio.CancelledError)
    await nothing_is_left(server)


@pytest.mark.parametrize("first_leaves", ["first", "last"])
async def test_the_last_one_who_leaves_ends_the_handler(
    serve: Start, first_leaves: str, handler_of: Any, quiet: list[Any]
) -> None:
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, handler=handler_of(tap), outer=[wires])
    everybody = await joined(server, 3, tap)
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"one ", *everybody)
    for number in (0, 1, 2) if first_leaves == "first" else (2, 1, 0):
        assert tap.ended == []
        everybody[number].abort()
        await wires.disconnected(number)
        if number != (2 if first_leaves == "first" else 0):
            written = tap.written
            tap.let(b"more ")
            await eventually(lambda written=written: tap.written > written)  # type: ignore[misc]
    for _ in range(3):  # the first write after it may have gone well, as on any connection
        tap.let(b"nobody ")
        for _ in range(10):
            await asyncio.sleep(0)
    end = await end_of(tap)
    assert isinstance(end, ConnectionError if handler_of(tap) == tap.handler else BaseException)
    await nothing_is_left(server)


async def test_the_last_one_who_leaves_ends_a_handler_that_waits_for_room(
    serve: Start, handler_of: Any, times: Times, quiet: list[Any]
) -> None:
    times()
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, handler=handler_of(tap), outer=[wires], max_buffer=4 * PIECE)
    leader = await slow(server)
    await eventually(lambda: tap.runs == 1)
    follower = await slow(server)
    await server.waiting(1)
    tap.send_head()
    tap.let(*PIECES)
    await wires.blocked(0)
    await wires.blocked(1)
    assert tap.written < len(PIECES)
    leader.abort()
    await wires.disconnected(0)
    assert tap.ended == []
    follower.abort()
    assert await end_of(tap) is not None
    await nothing_is_left(server)


# -- memory


async def test_a_reader_that_reads_nothing_keeps_no_more_than_max_buffer(
    serve: Start, handler_of: Any, times: Times, peak: list[int], quiet: list[Any]
) -> None:
    times(stall=SHORT)
    tap, wires = Tap(), Wires()
    limit = 0x10000
    pieces = [bytes([number]) * 0x2000 for number in range(1, 255)]
    server = await streams(serve, tap, handler=handler_of(tap), outer=[wires], max_buffer=limit)
    (leader,) = await joined(server, 1, tap)
    stuck = await slow(server)
    await server.waiting(1)
    tap.send_head()
    tap.let(*pieces)
    await wires.blocked(1)
    await eventually(lambda: kept(server) > limit / 2)
    tap.end()
    assert await received(leader) == b"".join(pieces)
    assert limit / 2 < peak[0] <= limit + CHUNK_OVERHEAD
    resume(stuck)
    assert await is_broken(stuck)
    await nothing_is_left(server)


async def test_many_streams_together_keep_no_more_than_max_buffer_total(
    serve: Start, handler_of: Any, times: Times, peak: list[int], quiet: list[Any]
) -> None:
    times(stall=SHORT)
    wires, limit, size, herds = Wires(), 0x20000, 0x2000, 8
    taps = {str(number): Tap() for number in range(herds)}
    handlers = {name: handler_of(tap) for name, tap in taps.items()}
    pieces = [bytes([number]) * size for number in range(1, 129)]

    async def handler(request: web.Request) -> web.StreamResponse:
        response: web.StreamResponse = await handlers[request.query["name"]](request)
        return response

    server = await streams(serve, Tap(), handler=handler, outer=[wires], max_buffer=0x10000, max_buffer_total=limit)
    leaders, stuck = [], []
    for name, tap in taps.items():
        leaders += await joined_at(server, tap, f"/?name={name}")
        stuck.append(await slow(server, f"/?name={name}"))
    await server.waiting(herds)
    for tap in taps.values():
        tap.send_head()
        tap.let(*pieces)
        tap.end()
    assert [await received(leader) for leader in leaders] == [b"".join(pieces)] * herds
    # A stream of which all was read gives out one chunk more, so that it can go on at all.
    assert limit / 2 < peak[0] <= limit + herds * (size + CHUNK_OVERHEAD)
    for one in stuck:
        one.abort()
    await nothing_is_left(server)


async def joined_at(server: Server, tap: Tap, target: str) -> list[Connection]:
    leader = await server.send(target)
    await eventually(lambda: tap.runs == 1)
    return [leader]


async def test_a_slow_reader_of_a_finished_stream_gives_its_bytes_back_when_it_leaves(
    serve: Start, handler_of: Any, times: Times, quiet: list[Any]
) -> None:
    times()
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, handler=handler_of(tap), outer=[wires])
    (leader,) = await joined(server, 1, tap)
    stuck = await slow(server)
    await server.waiting(1)
    tap.send_head()
    tap.let(*PIECES)
    tap.end()
    assert await received(leader) == BODY
    await eventually(lambda: tap.ended == [None])
    await wires.blocked(1)
    assert 0 < kept(server) <= len(BODY) + len(PIECES) * CHUNK_OVERHEAD
    stuck.abort()
    await eventually(lambda: kept(server) == 0)
    await nothing_is_left(server)


async def test_a_slow_reader_of_a_finished_stream_gives_its_bytes_back_as_it_reads(
    serve: Start, handler_of: Any, times: Times, quiet: list[Any]
) -> None:
    times()
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, handler=handler_of(tap), outer=[wires])
    (leader,) = await joined(server, 1, tap)
    stuck = await slow(server)
    await server.waiting(1)
    tap.send_head()
    tap.let(*PIECES)
    tap.end()
    assert await received(leader) == BODY
    await eventually(lambda: tap.ended == [None])
    assert kept(server) > 0
    resume(stuck)
    assert await received(stuck) == BODY
    await eventually(lambda: kept(server) == 0)
    await nothing_is_left(server)
