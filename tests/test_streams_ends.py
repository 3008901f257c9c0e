"""How a stream ends: whoever does not get all of it is told so, and nothing of it is left behind."""

import asyncio
import contextlib
import gc
import logging
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from aiohttp_reduce import reduce_middleware
from aiohttp_reduce.server.streams import Stream

from .harness import Connection, Server, Start, app_with, eventually
from .streaming import (
    Tap,
    Wires,
    arrived,
    is_broken,
    joined,
    kept,
    nothing_is_left,
    resume,
    slow,
    streams,
)

# How often each way to end is gone through on one server.
ROUNDS = int(os.environ.get("ROUNDS", "8"))
PIECE = 0x8000
KINDS = ["written by the handler", "a body that can be read once"]
FRAMINGS = ["chunked", "Content-Length", "HTTP/1.0"]
# As much is missing where a body breaks off after its first piece: less than the head of an answer.
MISSING = 40
FIRST = b"the first piece "


@web.middleware
async def as_500(request: web.Request, handler: Any) -> web.StreamResponse:
    """An outer middleware that turns whatever is raised into an answer."""
    try:
        response: web.StreamResponse = await handler(request)
    except Exception as exception:
        return web.json_response({"error": repr(exception)}, status=500)
    return response


@pytest.fixture(params=[[], [as_500]], ids=["", "errors become answers"])
def outer(request: pytest.FixtureRequest) -> Any:
    """The outer middlewares."""
    return request.param


class Framed:
    """A tap whose answers are framed in one way."""

    def __init__(self, framing: str, kind: str, length: int = len(FIRST) + MISSING) -> None:
        self.version = "HTTP/1.0" if framing == "HTTP/1.0" else "HTTP/1.1"
        self.headers = {"Content-Length": str(length)} if framing == "Content-Length" else {}
        self.tap = Tap(lambda request: web.StreamResponse(headers=self.headers))
        self.handler = self.tap.handler if kind == KINDS[0] else self._one_shot

    async def _one_shot(self, request: web.Request) -> web.StreamResponse:
        response = await self.tap.one_shot(request)
        response.headers.update(self.headers)
        return response

    async def joined(self, server: Server, size: int, target: str = "/") -> list[Connection]:
        """So many identical requests, the first of which leads, all waiting for the head."""
        runs = self.tap.runs
        everybody = [await server.send(target, version=self.version)]
        await eventually(lambda: self.tap.runs == runs + 1)
        everybody += [await server.send(target, version=self.version) for _ in range(size - 1)]
        await server.waiting(size - 1)
        return everybody

    async def begun(self, server: Server, size: int) -> list[Connection]:
        """The same, all of whom have got the first piece."""
        everybody = await self.joined(server, size)
        self.tap.send_head()
        self.tap.let(FIRST)
        await arrived(FIRST, *everybody)
        return everybody


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    """What makes the stream."""
    return request.param


@pytest.fixture(params=FRAMINGS)
def framing(request: pytest.FixtureRequest) -> Any:
    """How it is told where the body ends."""
    return request.param


# -- what breaks off midway


@pytest.mark.parametrize(
    "raised",
    [RuntimeError, web.HTTPNotFound, asyncio.CancelledError, ConnectionResetError],
    ids=lambda one: one.__name__,
)
async def test_what_fails_midway_is_broken_for_everybody(
    serve: Start, kind: str, framing: str, outer: Any, raised: type[BaseException], quiet: list[Any]
) -> None:
    framed = Framed(framing, kind)
    server = await streams(serve, framed.tap, handler=framed.handler, outer=outer)
    everybody = await framed.begun(server, 3)
    framed.tap.end(raised())
    assert [await is_broken(one) for one in everybody] == [True] * 3
    assert framed.tap.runs == 1
    await nothing_is_left(server)


async def test_whoever_is_slow_when_it_fails_is_told_as_well(
    serve: Start, kind: str, framing: str, quiet: list[Any]
) -> None:
    framed, wires = Framed(framing, kind, length=48 * PIECE), Wires()
    server = await streams(serve, framed.tap, handler=framed.handler, outer=[wires])
    everybody = await framed.joined(server, 2)
    stuck = await slow(server, version=framed.version)
    await server.waiting(2)
    framed.tap.send_head()
    framed.tap.let(*[b"x" * PIECE] * 40)
    await wires.blocked(2)
    framed.tap.end(RuntimeError("broken"))
    assert [await is_broken(one) for one in everybody] == [True] * 2
    await wires.disconnected(2)
    resume(stuck)
    assert await is_broken(stuck)
    await nothing_is_left(server)


async def test_a_slow_first_requester_is_told_as_well_when_it_fails(
    serve: Start, kind: str, framing: str, quiet: list[Any]
) -> None:
    framed, wires = Framed(framing, kind, length=48 * PIECE), Wires()
    server = await streams(serve, framed.tap, handler=framed.handler, outer=[wires])
    leader = await slow(server, version=framed.version)
    await eventually(lambda: framed.tap.runs == 1)
    follower = await server.send("/", version=framed.version)
    await server.waiting(1)
    framed.tap.send_head()
    framed.tap.let(*[b"x" * PIECE] * 40)
    await wires.blocked(0)
    framed.tap.end(RuntimeError("broken"))
    assert await is_broken(follower)
    resume(leader)
    assert await is_broken(leader)
    await nothing_is_left(server)


async def test_whoever_joined_midway_is_told_as_well(serve: Start, kind: str, framing: str, quiet: list[Any]) -> None:
    framed = Framed(framing, kind)
    server = await streams(serve, framed.tap, handler=framed.handler)
    leader = await server.send("/", version=framed.version)
    framed.tap.send_head()
    framed.tap.let(FIRST)
    await arrived(FIRST, leader)
    late = await server.send("/", version=framed.version)
    await arrived(FIRST, late)
    framed.tap.end(RuntimeError("broken"))
    assert [await is_broken(one) for one in (leader, late)] == [True, True]
    await nothing_is_left(server)


@pytest.mark.parametrize("way", ["aborted", "cancelled"])
async def test_a_first_requester_that_is_gone_leaves_others_a_whole_or_a_broken_body(
    serve: Start, kind: str, framing: str, way: str, quiet: list[Any]
) -> None:
    framed, wires = Framed(framing, kind), Wires()
    server = await streams(serve, framed.tap, handler=framed.handler, outer=[wires])
    leader, *followers = await framed.begun(server, 3)
    if way == "aborted":
        leader.abort()
    else:
        wires.cancel(0)
    await wires.disconnected(0)
    rest = b"." * MISSING
    framed.tap.let(rest)
    framed.tap.end()
    if way == "aborted" or kind != KINDS[0]:
        assert [(await follower.receive()).body for follower in followers] == [FIRST + rest] * 2
    else:  # it is the handler that was cancelled
        assert [await is_broken(follower) for follower in followers] == [True] * 2
    assert framed.tap.runs == 1
    await nothing_is_left(server)


async def test_a_follower_that_is_cancelled_midway_gets_no_whole_body(
    serve: Start, kind: str, framing: str, quiet: list[Any]
) -> None:
    framed, wires = Framed(framing, kind), Wires()
    server = await streams(serve, framed.tap, handler=framed.handler, outer=[wires])
    leader, follower, cancelled = await framed.begun(server, 3)
    wires.cancel(2)
    assert await is_broken(cancelled)
    rest = b"." * MISSING
    framed.tap.let(rest)
    framed.tap.end()
    assert [(await one.receive()).body for one in (leader, follower)] == [FIRST + rest] * 2
    await nothing_is_left(server)


async def test_another_response_than_the_prepared_one_breaks_the_transfer(
    serve: Start, framing: str, outer: Any, quiet: list[Any]
) -> None:
    framed = Framed(framing, KINDS[0])

    async def handler(request: web.Request) -> web.StreamResponse:
        await framed.handler(request)
        return web.Response(text="another " * 10)

    server = await streams(serve, framed.tap, handler=handler, outer=outer)
    everybody = await framed.begun(server, 3)
    framed.tap.end()
    assert [await is_broken(one) for one in everybody] == [True] * 3
    await nothing_is_left(server)


async def test_a_second_head_breaks_the_transfer(serve: Start, framing: str, outer: Any, quiet: list[Any]) -> None:
    framed = Framed(framing, KINDS[0])

    async def handler(request: web.Request) -> web.StreamResponse:
        await framed.handler(request)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"another " * 10)
        await response.write_eof()
        return response

    server = await streams(serve, framed.tap, handler=handler, outer=outer)
    everybody = await framed.begun(server, 3)
    framed.tap.end()
    assert [await is_broken(one) for one in everybody] == [True] * 3
    await nothing_is_left(server)


async def test_all_who_leave_leave_nothing(serve: Start, kind: str, framing: str, quiet: list[Any]) -> None:
    framed, wires = Framed(framing, kind), Wires()
    server = await streams(serve, framed.tap, handler=framed.handler, outer=[wires])
    everybody = await framed.begun(server, 3)
    for one in everybody:
        one.abort()
    for number in range(3):
        await wires.disconnected(number)
    for _ in range(3):  # what is written before anybody looks still goes well, as on any connection
        framed.tap.let(b".")
        for _ in range(10):
            await asyncio.sleep(0)
    await eventually(lambda: gc.collect() >= 0 and len(framed.tap.ended) == 1)
    assert framed.tap.ended[0] is not None
    assert framed.tap.written <= 2
    await nothing_is_left(server)


# -- what fails before the head


@pytest.mark.parametrize(
    ("raised", "status"), [(RuntimeError, 500), (web.HTTPNotFound, 404), (ConnectionResetError, 500)]
)
async def test_what_fails_before_the_head_is_the_answer_for_everybody(
    serve: Start, raised: type[Exception], status: int, quiet: list[Any]
) -> None:
    tap = Tap()

    async def handler(request: web.Request) -> web.StreamResponse:
        tap.runs += 1
        await tap._head.wait()
        raise raised()

    server = await streams(serve, tap, handler=handler)
    everybody = await joined(server, 3, tap)
    tap.send_head()
    assert [(await one.receive()).status for one in everybody] == [status] * 3
    assert tap.runs == 1
    await nothing_is_left(server)


async def test_a_body_that_fails_before_its_first_byte_is_broken_for_everybody(
    serve: Start, framing: str, quiet: list[Any]
) -> None:
    framed = Framed(framing, KINDS[1])
    server = await streams(serve, framed.tap, handler=framed.handler)
    everybody = await framed.joined(server, 3)
    framed.tap.end(RuntimeError("broken"))
    assert [await is_broken(one) for one in everybody] == [True] * 3
    assert framed.tap.runs == 1
    await nothing_is_left(server)


async def test_a_signal_that_fails_gives_nobody_an_empty_body(serve: Start, quiet: list[Any]) -> None:
    tap, middleware, failing = Tap(), reduce_middleware(), [True]
    app = app_with(tap.handler, middleware)

    async def on_prepare(request: web.Request, response: web.StreamResponse) -> None:
        if failing and failing.pop():
            raise RuntimeError("signal")

    app.on_response_prepare.append(on_prepare)
    server = await serve(app, middleware=middleware, shutdown_timeout=1.0)
    leader, *followers = await joined(server, 3, tap)
    tap.send_head()
    assert (await leader.receive()).status == 500
    assert [await is_broken(follower) for follower in followers] == [True] * 2
    await nothing_is_left(server)


# -- Content-Length


async def test_less_than_content_length_says_closes_the_connections_of_followers(
    serve: Start, kind: str, quiet: list[Any]
) -> None:
    framed = Framed("Content-Length", kind)
    server = await streams(serve, framed.tap, handler=framed.handler)
    leader, *followers = await framed.begun(server, 3)
    framed.tap.end()
    assert [await is_broken(follower) for follower in followers] == [True] * 2
    leader.abort()
    await nothing_is_left(server)


async def test_as_much_as_content_length_says_keeps_the_connections(serve: Start, kind: str, quiet: list[Any]) -> None:
    framed = Framed("Content-Length", kind)
    server = await streams(serve, framed.tap, handler=framed.handler)
    everybody = await framed.begun(server, 3)
    rest = b"." * MISSING
    framed.tap.let(rest)
    framed.tap.end()
    for _ in range(2):
        assert [(await one.receive()).body for one in everybody] == [FIRST + rest] * 3
        for one in everybody:
            await one.send("/")
    assert [(await one.receive()).body for one in everybody] == [FIRST + rest] * 3
    await nothing_is_left(server)


async def test_more_than_content_length_says_is_cut_to_it_and_keeps_the_connections(
    serve: Start, quiet: list[Any]
) -> None:
    framed = Framed("Content-Length", KINDS[0])
    server = await streams(serve, framed.tap, handler=framed.handler)
    everybody = await framed.begun(server, 3)
    framed.tap.let(b"." * (MISSING + 10))
    framed.tap.end()
    assert [(await one.receive()).body for one in everybody] == [FIRST + b"." * MISSING] * 3
    assert [len((await one.request("/")).body) for one in everybody] == [len(FIRST) + MISSING] * 3
    await nothing_is_left(server)


@pytest.mark.parametrize("framing", FRAMINGS[:1])
async def test_a_chunked_body_keeps_the_connections(serve: Start, kind: str, framing: str, quiet: list[Any]) -> None:
    framed = Framed(framing, kind)
    server = await streams(serve, framed.tap, handler=framed.handler)
    everybody = await framed.begun(server, 3)
    framed.tap.end()
    assert [(await one.receive()).body for one in everybody] == [FIRST] * 3
    assert [(await one.request("/")).body for one in everybody] == [FIRST] * 3
    await nothing_is_left(server)


# -- again and again


def streams_in_memory() -> int:
    """How many streams there are."""
    gc.collect()
    return sum(issubclass(type(one), Stream) for one in gc.get_objects())


async def _first_is_aborted(framed: Framed, everybody: list[Connection]) -> None:
    everybody.pop(0).abort()
    framed.tap.let(b"more")
    framed.tap.end()
    assert [(await one.receive()).body for one in everybody] == [FIRST + b"more"] * 2


async def _follower_is_aborted(framed: Framed, everybody: list[Connection]) -> None:
    everybody.pop().abort()
    framed.tap.let(b"more")
    framed.tap.end()
    assert [(await one.receive()).body for one in everybody] == [FIRST + b"more"] * 2


async def _handler_fails(framed: Framed, everybody: list[Connection]) -> None:
    framed.tap.end(RuntimeError("broken"))
    assert [await is_broken(one) for one in everybody] == [True] * 3


async def _all_are_aborted(framed: Framed, everybody: list[Connection]) -> None:
    for one in everybody:
        one.abort()
    framed.tap.let(b"more")
    framed.tap.end()


@pytest.mark.parametrize(
    "way",
    [_first_is_aborted, _follower_is_aborted, _handler_fails, _all_are_aborted],
    ids=lambda way: way.__name__.removeprefix("_").replace("_", " "),
)
async def test_what_ends_many_times_leaves_nothing(
    serve: Start, kind: str, way: Any, noise: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    now: list[Framed] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        return await now[0].handler(request)

    # What is logged holds what was raised, and that holds what raised it.
    caplog.set_level(logging.CRITICAL, logger="aiohttp.server")
    before = streams_in_memory()
    server = await streams(serve, Tap(), handler=handler)
    for _ in range(ROUNDS):
        now[:] = [Framed("chunked", kind)]
        everybody = await now[0].begun(server, 3)
        await way(now[0], everybody)
        for one in everybody:
            one.abort()
        assert now[0].tap.runs == 1
        await eventually(lambda: server.nothing_is_left() and kept(server) == 0)
    now.clear()
    await nothing_is_left(server)
    assert server.runner.server is not None
    await eventually(lambda: not server.runner.server.connections)  # type: ignore[union-attr]
    assert server.figure("total") == 3 * ROUNDS
    assert server.figure("waiting") == 0
    await eventually(lambda: streams_in_memory() <= before)


# -- shutdown


@pytest.mark.parametrize("blocked", [False, True], ids=["while all wait for more", "while one reads nothing"])
async def test_a_server_that_shuts_down_midway_ends_it(
    serve: Start, kind: str, blocked: bool, quiet: list[Any]
) -> None:
    framed, wires, middleware = Framed("chunked", kind), Wires(), reduce_middleware(max_buffer=4 * PIECE)
    app = app_with(framed.handler, middleware, outer=[wires])
    server = await serve(app, middleware=middleware, shutdown_timeout=0.05)
    everybody = await framed.joined(server, 2)
    stuck = await slow(server)
    await server.waiting(2)
    if not blocked:
        resume(stuck)
    everybody.append(stuck)
    framed.tap.send_head()
    framed.tap.let(FIRST)
    await arrived(FIRST, *everybody[: 2 if blocked else 3])
    if blocked:
        framed.tap.let(*[b"x" * PIECE] * 48)
        await wires.blocked(2)
    await server.runner.cleanup()
    resume(stuck)
    assert [await is_broken(one) for one in everybody] == [True] * 3
    await eventually(lambda: gc.collect() >= 0 and len(framed.tap.ended) == 1)
    assert framed.tap.ended[0] is not None
    await nothing_is_left(server)


async def test_a_server_that_shuts_down_before_the_head_ends_it(serve: Start, kind: str, quiet: list[Any]) -> None:
    framed, middleware = Framed("chunked", kind), reduce_middleware()
    server = await serve(app_with(framed.handler, middleware), middleware=middleware, shutdown_timeout=0.05)
    everybody = await framed.joined(server, 3)
    await server.runner.cleanup()
    for one in everybody:
        try:
            assert (await one.receive()).status == 503  # if there was still time to say so
        except asyncio.IncompleteReadError:
            pass
    await nothing_is_left(server)


async def test_a_generator_is_closed_when_all_have_left(serve: Start, quiet: list[Any]) -> None:
    closed, going = asyncio.Event(), asyncio.Event()
    tap = Tap()

    async def handler(request: web.Request) -> web.StreamResponse:
        tap.runs += 1
        await tap._head.wait()

        async def body() -> AsyncIterator[bytes]:
            try:
                yield FIRST
                while True:
                    await going.wait()
                    await asyncio.sleep(0)
                    yield b"more"
            finally:
                closed.set()

        return web.Response(body=body())

    server = await streams(serve, tap, handler=handler)
    everybody = await joined(server, 3, tap)
    tap.send_head()
    await arrived(FIRST, *everybody)
    for one in everybody:
        one.abort()
    going.set()
    await eventually(lambda: gc.collect() >= 0 and closed.is_set())
    await nothing_is_left(server)


# -- what an earlier version got wrong


async def test_a_first_requester_that_was_not_given_all_when_its_handler_gave_up_gets_no_whole_body(
    serve: Start, quiet: list[Any]
) -> None:
    """The end is timed out while the first one reads nothing; what the handler returns must not end its body."""
    body = [bytes([number]) * 2**16 for number in range(100)]
    gone_on = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        await server.waiting(1)
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in body:
            await response.write(piece)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await response.write_eof()
        gone_on.set()
        return response

    server = await streams(serve, Tap(), handler=handler, max_buffer=2**24)
    leader = await slow(server)
    await eventually(lambda: bool(server.figure("total") == 1))
    follower = await server.send("/")
    assert (await follower.receive()).body == b"".join(body)
    await gone_on.wait()
    resume(leader)
    assert await is_broken(leader)
    await nothing_is_left(server)


async def test_what_a_signal_writes_before_the_head_goes_straight_through(serve: Start, quiet: list[Any]) -> None:
    async def hint(request: web.Request, response: web.StreamResponse) -> None:
        await request.writer.write(b"early;")

    tap = Tap()
    middleware = reduce_middleware()
    app = app_with(tap.handler, middleware)
    app.on_response_prepare.append(hint)
    server = await serve(app, middleware=middleware)
    everybody = await joined(server, 2, tap)
    tap.let(b"text")
    tap.end()
    for one in everybody:
        assert b"early;" in await one.reader.readuntil(b"HTTP/1.1 200")
        assert (await one.reader.readuntil(b"text")).count(b"early;") == 0
    await nothing_is_left(server)


@pytest.mark.parametrize("how", ["a task of its own", "a thread"])
async def test_what_a_returned_body_looks_at_elsewhere_counts_as_well(serve: Start, how: str, quiet: list[Any]) -> None:
    async def handler(request: web.Request) -> web.Response:
        await server.waiting(1)

        async def look() -> str:
            return request.headers.get("X-Real-IP", "")

        async def body() -> AsyncIterator[bytes]:
            yield b"first;"
            if how == "a thread":
                yield (await asyncio.to_thread(lambda: request.headers.get("X-Real-IP", ""))).encode()
            else:
                yield (await asyncio.gather(look()))[0].encode()

        return web.Response(body=body())

    server = await streams(serve, Tap(), handler=handler)
    leader = await server.send("/", {"X-Real-IP": "1.1.1.1"})
    follower = await server.send("/", {"X-Real-IP": "2.2.2.2"})
    assert (await leader.receive()).body == b"first;1.1.1.1"
    assert b"1.1.1.1" not in await follower.reader.read()
    await nothing_is_left(server)


async def test_those_whose_stream_broke_before_anything_was_sent_run_again_all_at_once(
    serve: Start, quiet: list[Any]
) -> None:
    runs = most = now = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal runs, most, now
        runs, now = runs + 1, now + 1
        most = max(most, now)
        try:
            await (server.waiting(9) if runs == 1 else asyncio.sleep(0.02))
            await web.StreamResponse().prepare(request)
            raise ConnectionResetError("of something else")
        finally:
            now -= 1

    server = await streams(serve, Tap(), handler=handler)
    everybody = [await server.send("/") for _ in range(10)]
    for one in everybody:
        await one.reader.read()
    assert runs == 10
    assert most >= 7
    await nothing_is_left(server)
