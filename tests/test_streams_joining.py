"""Who may still join an answer that is being sent, until when, and what is kept for those who may."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any
from unittest import mock

import pytest
from aiohttp import EMPTY_PAYLOAD, web
from aiohttp.http_writer import StreamWriter
from aiohttp.test_utils import make_mocked_request

from aiohttp_reduce import reduce_middleware
from aiohttp_reduce.hooks import BaseHooks
from aiohttp_reduce.server import ReduceMiddleware
from tests.harness import Connection, Server, Start, app_with, eventually
from tests.streaming import Tap, joined, kept, nothing_is_left, streams
from tests.virtual import Door, VirtualLoop, run_virtually

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

JOINED = "aiohttp-reduce; fwd=miss; collapsed"
# What a chunk counts beside its bytes.
OVERHEAD = 128


@pytest.fixture(params=["written by the handler", "a body that can be read once"])
def form(request: pytest.FixtureRequest) -> str:
    """How the answer is sent."""
    text: str = request.param
    return text


def handler_of(tap: Tap, form: str) -> Any:
    return tap.handler if form == "written by the handler" else tap.one_shot


async def arrived(connections: Sequence[Connection], piece: bytes) -> None:
    """Wait until this piece came to all of them."""
    async with asyncio.timeout(5):
        for one in connections:
            await one.reader.readuntil(piece)


async def came(server: Server, number: int) -> None:
    """Wait until so many requests in all came to the door."""
    await eventually(lambda: bool(server.figure("total") == number))


async def bodies(connections: Sequence[Connection]) -> set[bytes]:
    return {(await one.receive()).body for one in connections}


class Clock:
    """A clock that a test moves (seconds)."""

    def __init__(self, middleware: ReduceMiddleware | None) -> None:
        assert middleware is not None
        self.now = 1_000.0
        middleware._clock = middleware._settings.clock = lambda: self.now


def sends(pieces: Sequence[bytes], form: str, runs: list[int]) -> Handler:
    """A handler that sends all of these pieces without ever waiting for anything."""

    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def handler(request: web.Request) -> web.StreamResponse:
        runs.append(1)
        if form != "written by the handler":
            return web.Response(body=body())
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        return response

    return handler


# Until when a stream can be joined.


async def test_a_stream_can_be_joined_until_its_end(serve: Start, form: str) -> None:
    tap = Tap()
    server = await streams(serve, tap, handler=handler_of(tap, form))
    everybody = await joined(server, 2, tap)
    tap.send_head()
    tap.let(b"first;")
    await arrived(everybody, b"first;")
    late = await server.send("/")
    await arrived([late], b"first;")
    tap.end()
    await arrived([*everybody, late], b"0\r\n\r\n")
    assert tap.runs == 1
    assert (await server.get("/")).body == b"first;"
    assert tap.runs == 2
    await nothing_is_left(server)


async def test_a_stream_can_be_joined_until_more_than_max_buffer_has_passed(serve: Start, form: str) -> None:
    tap = Tap()
    server = await streams(serve, tap, handler=handler_of(tap, form), max_buffer=3 * (100 + OVERHEAD))
    everybody = [await server.send("/")]
    tap.send_head()
    for number in range(3):
        piece = b"%d" % number * 99 + b";"
        tap.let(piece)
        await arrived(everybody, piece)
        everybody.append(await server.send("/"))
        await came(server, len(everybody))
        await arrived(everybody[-1:], piece)
    assert tap.runs == 1
    tap.let(b"3" * 99 + b";")
    await arrived(everybody, b"3;")
    newcomer = await server.send("/")
    await eventually(lambda: tap.runs == 2)
    tap.end()
    await arrived(everybody, b"0\r\n\r\n")
    assert (await newcomer.receive()).body == b"".join(b"%d" % number * 99 + b";" for number in range(4))
    await nothing_is_left(server)


async def test_a_stream_can_be_joined_for_max_age_seconds(serve: Start, form: str) -> None:
    tap = Tap()
    server = await streams(serve, tap, handler=handler_of(tap, form), max_age=60.0)
    clock = Clock(server.middleware)
    everybody = await joined(server, 2, tap)
    clock.now += 30
    tap.send_head()
    tap.let(b"first;")
    await arrived(everybody, b"first;")
    clock.now += 29.9
    everybody.append(await server.send("/"))
    await arrived(everybody[2:], b"first;")
    assert tap.runs == 1
    clock.now += 0.2
    newcomer = await server.send("/")
    await eventually(lambda: tap.runs == 2)
    tap.let(b"last")
    tap.end()
    await arrived([*everybody, newcomer], b"last\r\n0\r\n\r\n")
    await nothing_is_left(server)


async def test_a_stream_whose_head_comes_after_max_age_is_for_those_who_waited(serve: Start, form: str) -> None:
    tap = Tap()
    server = await streams(serve, tap, handler=handler_of(tap, form), max_age=60.0)
    clock = Clock(server.middleware)
    everybody = await joined(server, 3, tap)
    clock.now += 61
    tap.send_head()
    tap.let(b"first;")
    await arrived(everybody, b"first;")
    newcomer = await server.send("/")
    await eventually(lambda: tap.runs == 2)
    tap.end()
    await arrived([*everybody, newcomer], b"0\r\n\r\n")
    assert tap.runs == 2
    await nothing_is_left(server)


async def test_after_forget_newcomers_start_anew_and_those_who_read_go_on(serve: Start, form: str) -> None:
    tap = Tap()
    server = await streams(serve, tap, handler=handler_of(tap, form))
    everybody = await joined(server, 2, tap)
    tap.send_head()
    tap.let(b"first;")
    await arrived(everybody, b"first;")
    assert server.middleware is not None
    server.middleware.forget("/other")
    everybody.append(await server.send("/"))
    await arrived(everybody[2:], b"first;")
    assert tap.runs == 1
    server.middleware.forget("/")
    newcomers = [await server.send("/") for _ in range(2)]
    await arrived(newcomers, b"first;")
    assert tap.runs == 2
    tap.let(b"last")
    tap.end()
    await arrived([*everybody, *newcomers], b"last\r\n0\r\n\r\n")
    await nothing_is_left(server)


@pytest.mark.parametrize(("status", "runs"), [(200, 2), (500, 2), (409, 1)])
async def test_whoever_comes_after_an_answered_write_is_given_nothing_from_before(
    serve: Start, form: str, status: int, runs: int
) -> None:
    tap = Tap()

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            return web.Response(status=status)
        response: web.StreamResponse = await handler_of(tap, form)(request)
        return response

    server = await streams(serve, tap, handler=handler)
    everybody = await joined(server, 2, tap)
    tap.send_head()
    tap.let(b"first;")
    await arrived(everybody, b"first;")
    assert (await server.get("/", method="POST")).status == status
    newcomer = await server.send("/")
    await arrived([newcomer], b"first;")
    assert tap.runs == runs
    tap.let(b"last")
    tap.end()
    await arrived([*everybody, newcomer], b"last\r\n0\r\n\r\n")
    await nothing_is_left(server)


async def test_a_write_that_is_not_answered_yet_keeps_nobody_from_joining(serve: Start, form: str) -> None:
    tap = Tap()
    writes = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            await writes.wait()
            return web.Response()
        response: web.StreamResponse = await handler_of(tap, form)(request)
        return response

    server = await streams(serve, tap, handler=handler)
    everybody = [await server.send("/")]
    tap.send_head()
    tap.let(b"first;")
    await arrived(everybody, b"first;")
    write = await server.send("/", method="POST")
    await eventually(lambda: bool(server.figure("bypassed") == {"method": 1}))
    everybody.append(await server.send("/"))
    await arrived(everybody[1:], b"first;")
    writes.set()
    assert (await write.receive()).status == 200
    assert tap.runs == 1
    tap.end()
    await arrived(everybody, b"0\r\n\r\n")
    await nothing_is_left(server)


# Whoever waited for the head misses nothing.


@pytest.mark.parametrize("max_buffer", [0, 1, 1_000, math.inf])
async def test_those_who_wait_are_there_before_the_first_byte_passes(
    serve: Start, form: str, max_buffer: float
) -> None:
    begin = asyncio.Event()
    runs: list[int] = []
    pieces = [b"%d" % (number % 10) * 100 for number in range(30)]
    handler = sends(pieces, form, runs)

    async def held(request: web.Request) -> web.StreamResponse:
        await begin.wait()
        return await handler(request)

    server = await streams(serve, Tap(), handler=held, max_buffer=max_buffer)
    everybody = [await server.send("/") for _ in range(6)]
    await server.waiting(5)
    begin.set()
    assert await bodies(everybody) == {b"".join(pieces)}
    assert (len(runs), server.figure("reduced"), server.figure("unshared")) == (1, 5, {})
    await nothing_is_left(server)


async def test_with_nothing_to_keep_a_stream_can_be_joined_until_its_first_byte(serve: Start, form: str) -> None:
    tap = Tap()
    server = await streams(serve, tap, handler=handler_of(tap, form), max_buffer=0)
    everybody = await joined(server, 2, tap)
    tap.send_head()
    await eventually(lambda: tap.heads == 1)
    everybody.append(await server.send("/"))
    await came(server, 3)
    tap.let(b"first;")
    await arrived(everybody, b"first;")
    newcomer = await server.send("/")
    await arrived([newcomer], b"first;")
    assert tap.runs == 2
    tap.end()
    await arrived([*everybody, newcomer], b"0\r\n\r\n")
    await nothing_is_left(server)


async def test_without_a_limit_a_stream_can_be_joined_until_its_end(serve: Start, form: str) -> None:
    tap = Tap()
    server = await streams(
        serve, tap, handler=handler_of(tap, form), max_buffer=math.inf, max_buffer_total=math.inf, max_age=math.inf
    )
    everybody = [await server.send("/")]
    tap.send_head()
    tap.let(*[b"x" * 2**16] * 100, b"end")
    await _read_much(everybody[0], b"end")
    everybody.append(await server.send("/"))
    await _read_much(everybody[1], b"end")
    assert tap.runs == 1
    assert kept(server) >= 100 * 2**16
    tap.end()
    await arrived(everybody, b"0\r\n\r\n")
    await nothing_is_left(server)


async def _read_much(connection: Connection, last: bytes) -> None:
    got = b""
    async with asyncio.timeout(5):
        while last not in got:
            some = await connection.reader.read(2**16)
            assert some, "the connection was closed"
            got = got[-len(last) :] + some


# What is kept.


async def test_a_lone_stream_keeps_no_more_than_max_buffer(serve: Start, form: str) -> None:
    tap = Tap()
    server = await streams(serve, tap, handler=handler_of(tap, form), max_buffer=10_000)
    alone = await server.send("/")
    tap.send_head()
    for number in range(30):
        piece = b"%02d;" % number + b"x" * 1_000
        tap.let(piece)
        await arrived([alone], piece)
        assert kept(server) <= 10_000
    assert kept(server) == 0  # nobody can join any more
    tap.end()
    await arrived([alone], b"0\r\n\r\n")
    await nothing_is_left(server)


async def test_a_piece_larger_than_max_buffer_is_not_kept(serve: Start, form: str) -> None:
    tap = Tap()
    server = await streams(serve, tap, handler=handler_of(tap, form), max_buffer=10_000)
    alone = await server.send("/")
    tap.send_head()
    tap.let(b"x" * 100_000 + b";")
    await arrived([alone], b";")
    assert kept(server) == 0
    tap.end()
    await arrived([alone], b"0\r\n\r\n")
    await nothing_is_left(server)


async def test_many_lone_streams_that_idle_keep_no_more_than_max_buffer_total(serve: Start, form: str) -> None:
    tap = Tap()
    server = await streams(
        serve, tap, handler=handler_of(tap, form), max_buffer=10_000, max_buffer_total=50_000, max_age=math.inf
    )
    tap.send_head()
    tap.let(*[b"x" * 1_000] * 8, b"end")
    idle = []
    for number in range(60):
        idle.append(await server.send(f"/?{number}"))
        await arrived(idle[-1:], b"end")
        assert kept(server) <= 50_000
    assert kept(server) > 0
    assert tap.runs == 60
    tap.end()
    await arrived(idle, b"0\r\n\r\n")
    await nothing_is_left(server)


async def test_what_was_kept_is_given_back_at_the_end(serve: Start, form: str) -> None:
    tap = Tap()
    server = await streams(serve, tap, handler=handler_of(tap, form), max_age=math.inf)
    alone = await server.send("/")
    tap.send_head()
    tap.let(b"x" * 1_000 + b";")
    await arrived([alone], b";")
    assert kept(server) == 1_001 + OVERHEAD
    tap.end()
    await arrived([alone], b"0\r\n\r\n")
    await eventually(lambda: kept(server) == 0)
    await nothing_is_left(server)


# In controlled time.


class StreamDoor(Door):
    """A door whose requests have a writer, so that what is sent can be looked at; `visit` gives the whole answer."""

    def request(self, target: str = "/", method: str = "GET", headers: dict[str, str] | None = None) -> web.Request:
        transport = mock.Mock()
        transport.get_extra_info = lambda _name, default=None: default
        transport.is_closing.return_value = False
        transport.wire = b""

        def write(data: Any) -> None:
            transport.wire += bytes(data)

        transport.write = write
        transport.writelines = lambda some: write(b"".join(map(bytes, some)))
        protocol = mock.Mock(ssl_context=None, _close=False, _force_close=False, peername=("127.0.0.1", 1))
        protocol._paused = False
        protocol._manager = mock.Mock(handler_cancellation=False)
        return make_mocked_request(
            method,
            target,
            {"Host": "localhost", **(headers or {})},
            protocol=protocol,
            transport=transport,
            writer=StreamWriter(protocol, self.loop),
            payload=EMPTY_PAYLOAD,
            app=self.app,
        )

    async def visit(self, target: str = "/") -> bytes:
        """Ask for the target, and return the decoded body of a whole answer."""
        request = self.request(target)
        response = await self.app._handle(request)
        await response.prepare(request)
        await response.write_eof()
        transport: Any = request.transport
        head, _, rest = transport.wire.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        body = b""
        while True:
            size, _, rest = rest.partition(b"\r\n")
            if int(size, 16) == 0:
                assert rest == b"\r\n"
                return body
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]

    @property
    def kept(self) -> int:
        return sum(budget.used for budget in self.middleware._budgets.by_loop.values())


class Timed:
    """A handler whose n-th run sends its head after `head(n)` seconds and a piece in each second after that."""

    def __init__(self, loop: VirtualLoop, form: str, *, head: Callable[[int], float], pieces: int = 3) -> None:
        self._form = form
        self._head = head
        self._pieces = pieces
        self.runs = 0
        self.cancelled: list[int] = []

    async def handler(self, request: web.Request) -> web.StreamResponse:
        self.runs += 1
        run = self.runs
        try:
            await asyncio.sleep(self._head(run))
            if self._form != "written by the handler":
                return web.Response(body=self._body(run))
            response = web.StreamResponse()
            await response.prepare(request)
            async for piece in self._body(run):
                await response.write(piece)
            return response
        except asyncio.CancelledError:
            self.cancelled.append(run)
            raise

    async def _body(self, run: int) -> AsyncIterator[bytes]:
        for number in range(self._pieces):
            yield b"run %d, piece %d;" % (run, number)
            await asyncio.sleep(1.0)

    def body(self, run: int) -> bytes:
        return b"".join(b"run %d, piece %d;" % (run, number) for number in range(self._pieces))


def test_what_was_kept_is_given_back_at_max_age(form: str) -> None:
    async def main(loop: VirtualLoop) -> None:
        timed = Timed(loop, form, head=lambda run: 1.5, pieces=10)
        door = StreamDoor(loop, reduce_middleware(max_age=5.0), timed.handler)
        alone = asyncio.create_task(door.visit())
        await asyncio.sleep(4.9)
        assert door.kept > 0
        (table,) = door.middleware._tables.values()
        assert table.flights
        await asyncio.sleep(0.2)
        assert door.kept == 0
        assert not table.flights
        late = asyncio.create_task(door.visit())
        assert await alone == timed.body(1)
        assert await late == timed.body(2)
        await asyncio.sleep(10.0)
        assert door.nothing_is_left()
        assert door.kept == 0

    run_virtually(main)


def test_an_overdue_follower_that_leads_is_not_interrupted_once_its_handler_sends(form: str) -> None:
    """The elder's head comes while the younger stream is on its way."""

    async def main(loop: VirtualLoop) -> None:
        timed = Timed(loop, form, head=lambda run: 5.0 if run == 1 else 2.0, pieces=6)
        door = StreamDoor(loop, reduce_middleware(max_age=1.0, max_wait=2.0), timed.handler)
        first = asyncio.create_task(door.visit())
        await asyncio.sleep(0.5)
        overdue = [asyncio.create_task(door.visit()) for _ in range(3)]
        assert await first == timed.body(1)
        assert [await one for one in overdue] == [timed.body(2)] * 3
        assert (timed.runs, timed.cancelled) == (2, [])
        await asyncio.sleep(1.0)
        assert door.nothing_is_left()
        assert door.kept == 0

    run_virtually(main)


def test_an_elder_stream_that_comes_first_wins(form: str) -> None:
    async def main(loop: VirtualLoop) -> None:
        timed = Timed(loop, form, head=lambda run: 5.0, pieces=6)
        door = StreamDoor(loop, reduce_middleware(max_age=1.0, max_wait=3.0), timed.handler)
        begin = loop.time()
        first = asyncio.create_task(door.visit())
        await asyncio.sleep(0.5)
        overdue = [asyncio.create_task(door.visit()) for _ in range(3)]
        assert [await one for one in (first, *overdue)] == [timed.body(1)] * 4
        assert loop.time() - begin == pytest.approx(11.0, abs=0.1)
        assert (timed.runs, timed.cancelled) == (2, [2])
        await asyncio.sleep(1.0)
        assert door.nothing_is_left()
        assert door.kept == 0

    run_virtually(main)


def test_one_who_differs_from_the_elder_stream_is_not_interrupted_by_it(form: str) -> None:
    async def main(loop: VirtualLoop) -> None:
        timed = Timed(loop, form, head=lambda run: 5.0, pieces=2)

        async def handler(request: web.Request) -> web.StreamResponse:
            response = await timed.handler(request)
            if not response.prepared:
                response.headers["Vary"] = "*"
            return response

        door = StreamDoor(loop, reduce_middleware(max_age=1.0, max_wait=2.0), handler)
        first = asyncio.create_task(door.visit())
        await asyncio.sleep(0.5)
        overdue = asyncio.create_task(door.visit())
        await first
        if form == "written by the handler":
            assert await overdue == timed.body(1)
        else:
            assert await overdue == timed.body(2)
            assert timed.cancelled == []
        await asyncio.sleep(1.0)
        assert door.nothing_is_left()

    run_virtually(main)


# Takeovers.


class Patience:
    """An outer middleware that answers 504 for whoever a test takes its patience from; requests by their order."""

    def __init__(self) -> None:
        self.timeouts: list[asyncio.Timeout] = []

    @property
    def middleware(self) -> Any:
        @web.middleware
        async def patience(request: web.Request, handler: Any) -> web.StreamResponse:
            try:
                async with asyncio.timeout(None) as timeout:
                    self.timeouts.append(timeout)
                    response: web.StreamResponse = await handler(request)
                    return response
            except TimeoutError:
                return web.Response(status=504)

        return patience

    def end(self, number: int) -> None:
        self.timeouts[number].reschedule(asyncio.get_running_loop().time())


async def test_where_the_first_leaves_before_its_head_the_successors_stream_is_for_the_rest(
    serve: Start, form: str
) -> None:
    tap = Tap()
    patience = Patience()
    server = await streams(serve, tap, handler=handler_of(tap, form), outer=[patience.middleware])
    everybody = await joined(server, 5, tap)
    patience.end(0)
    assert (await everybody[0].receive()).status == 504
    await eventually(lambda: tap.runs == 2)
    await server.waiting(3)
    tap.send_head()
    tap.let(b"first;")
    await arrived(everybody[1:], b"first;")
    late = await server.send("/")
    await arrived([late], b"first;")
    tap.let(b"last")
    tap.end()
    await arrived([*everybody[1:], late], b"last\r\n0\r\n\r\n")
    assert (tap.runs, server.figure("takeovers"), server.figure("reduced")) == (2, 1, 4)
    await nothing_is_left(server)


async def test_a_follower_that_leaves_before_the_head_is_missed_by_nobody(serve: Start, form: str) -> None:
    tap = Tap()
    patience = Patience()
    server = await streams(serve, tap, handler=handler_of(tap, form), outer=[patience.middleware])
    everybody = await joined(server, 4, tap)
    patience.end(2)
    assert (await everybody[2].receive()).status == 504
    tap.let(b"text")
    tap.end()
    assert await bodies([everybody[0], everybody[1], everybody[3]]) == {b"text"}
    assert (tap.runs, server.figure("reduced")) == (1, 2)
    await nothing_is_left(server)


# Applications and loops.


async def test_two_applications_behind_one_middleware_object_share_no_stream(serve: Start, form: str) -> None:
    taps = Tap(), Tap()
    middleware = reduce_middleware()
    servers = [await serve(app_with(handler_of(tap, form), middleware), middleware=middleware) for tap in taps]
    sent = []
    for server, tap in zip(servers, taps, strict=True):
        tap.send_head()
        sent += [await server.send("/")]
        tap.let(b"first;")
        await arrived(sent[-1:], b"first;")
        sent += [await server.send("/")]
        await arrived(sent[-1:], b"first;")
    assert [tap.runs for tap in taps] == [1, 1]
    taps[0].let(b"of the one")
    taps[1].let(b"of the other")
    for tap in taps:
        tap.end()
    await arrived(sent[:2], b"of the one\r\n0\r\n\r\n")
    await arrived(sent[2:], b"of the other\r\n0\r\n\r\n")
    await nothing_is_left(servers[0])


def test_two_event_loops_behind_one_middleware_object_share_no_stream(form: str) -> None:
    middleware = reduce_middleware()
    loops = [asyncio.new_event_loop() for _ in range(2)]
    taps: list[Tap] = []
    servers: list[Server] = []
    sent: list[list[Connection]] = []

    async def begin(name: bytes) -> None:
        tap = Tap()
        server = Server(app_with(handler_of(tap, form), middleware), middleware=middleware)
        await server.start()
        tap.send_head()
        tap.let(name)
        two = [await server.send("/")]
        await arrived(two, name)
        two += [await server.send("/")]
        await arrived(two[1:], name)
        taps.append(tap)
        servers.append(server)
        sent.append(two)

    async def finish(number: int) -> None:
        assert taps[number].runs == 1
        taps[number].end()
        await arrived(sent[number], b"0\r\n\r\n")
        await servers[number].stop()

    try:
        for loop, name in zip(loops, (b"one;", b"other;"), strict=True):
            loop.run_until_complete(begin(name))  # both are on their way at once
        for number, loop in enumerate(loops):
            loop.run_until_complete(finish(number))
    finally:
        for loop in loops:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
    assert middleware.stats["reduced"] == 2


# Figures and hooks.


class Told(BaseHooks):
    """Counts what it was told."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.idents: set[str] = set()

    def _count(self, hook: str, ident: Any) -> None:
        self.calls[hook] += 1
        self.idents.add(str(ident))

    def on_apply_for(self, coro: Any, ident: Any) -> None:
        self._count("apply", ident)

    def on_executing_for(self, coro: Any, ident: Any) -> None:
        self._count("executing", ident)

    def on_reducing_for(self, coro: Any, ident: Any) -> None:
        self._count("reducing", ident)

    def on_result_for(self, coro: Any, ident: Any, result: Any) -> None:
        self._count("result", ident)

    def on_exception_for(self, coro: Any, ident: Any, exception: BaseException) -> None:
        self._count("exception", ident)


async def test_hooks_and_figures_count_streams_as_other_answers(serve: Start, form: str) -> None:
    tap = Tap()
    told = Told()
    server = await streams(serve, tap, handler=handler_of(tap, form), hooks=told)
    everybody = await joined(server, 4, tap)
    assert (server.figure("waiting"), server.figure("in_flight")) == (3, 1)
    tap.send_head()
    tap.let(b"first;")
    await arrived(everybody, b"first;")
    assert server.figure("waiting") == 0
    assert server.figure("in_flight") == (1 if form == "written by the handler" else 0)
    everybody += [await server.send("/") for _ in range(2)]
    await arrived(everybody[4:], b"first;")
    tap.end()
    await arrived(everybody, b"0\r\n\r\n")
    await nothing_is_left(server)
    assert told.calls == {"apply": 6, "executing": 1, "reducing": 5, "result": 1}
    assert told.idents == {"GET http://localhost/"}
    figures = {name: server.figure(name, "/") for name in ("total", "executed", "reduced", "errors", "takeovers")}
    assert figures == {"total": 6, "executed": 1, "reduced": 5, "errors": 0, "takeovers": 0}
    assert server.figure("largest_herd") == 6
    assert (server.figure("unshared"), server.figure("bypassed")) == ({}, {})


async def test_a_handler_that_fails_midway_is_one_exception_for_hooks_and_figures(
    serve: Start, caplog: pytest.LogCaptureFixture
) -> None:
    tap = Tap()
    told = Told()
    server = await streams(serve, tap, hooks=told)
    everybody = await joined(server, 3, tap)
    tap.send_head()
    tap.let(b"first;")
    await arrived(everybody, b"first;")
    tap.end(RuntimeError("broken"))
    for one in everybody:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await one.reader.readuntil(b"0\r\n\r\n")
    await nothing_is_left(server)
    assert told.calls == {"apply": 3, "executing": 1, "reducing": 2, "exception": 1}
    assert (server.figure("errors"), server.figure("executed"), server.figure("reduced")) == (1, 1, 2)


# The last call.


@pytest.mark.parametrize("where", ["before the head", "midway"])
async def test_a_herd_on_a_handler_that_streams_and_keeps_the_loop_busy_is_one_or_two_runs(
    serve: Start, form: str, where: str
) -> None:
    runs = 0

    def burn(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(5):
            if where == "midway":
                burn(0.001)
            yield b"piece %d;" % number

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal runs
        runs += 1
        if where == "before the head":
            burn(0.005)
        if form != "written by the handler":
            return web.Response(body=pieces())
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in pieces():
            await response.write(piece)
        return response

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    replies = await server.herd(100, "/")
    assert runs <= 2
    assert {reply.body for reply in replies} == {b"piece 0;piece 1;piece 2;piece 3;piece 4;"}
    assert server.figure("reduced") == 100 - runs
    await nothing_is_left(server)


async def test_a_stream_that_took_no_time_has_no_last_call(serve: Start, form: str) -> None:
    runs: list[int] = []
    server = await streams(serve, Tap(), handler=sends([b"one", b"two"], form, runs))
    Clock(server.middleware)
    for number in range(1, 4):
        assert (await server.get("/")).body == b"onetwo"
        assert len(runs) == number
    await nothing_is_left(server)


# Arguments.


@pytest.mark.parametrize("name", ["max_buffer", "max_buffer_total"])
@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, ValueError), (-math.inf, TypeError | ValueError), ("1", TypeError), (None, TypeError), (True, TypeError),
     (1.5, TypeError), (math.nan, TypeError | ValueError), (b"1", TypeError)],
)  # fmt: skip
def test_a_wrong_number_of_bytes_raises_and_names_the_argument(name: str, value: Any, error: Any) -> None:
    kinds = (TypeError, ValueError) if error == TypeError | ValueError else error
    with pytest.raises(kinds, match=rf"^{name} takes .*bytes"):
        reduce_middleware(**{name: value})


@pytest.mark.parametrize("value", [0, 1, 2**40, math.inf])
def test_any_whole_number_of_bytes_is_taken(value: float) -> None:
    assert reduce_middleware(max_buffer=value, max_buffer_total=value)


# Outer middlewares that answer otherwise.


@pytest.mark.parametrize("streamed", [False, True])
async def test_what_an_outer_middleware_answers_that_gave_up_waiting_is_not_for_the_others(
    serve: Start, form: str, streamed: bool
) -> None:
    tap = Tap()
    gives_up = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        if tasks:
            response: web.StreamResponse = await handler(request)
            return response
        tasks.append(asyncio.create_task(handler(request)))
        await gives_up.wait()
        if not streamed:
            return web.Response(text="gave up")
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"gave up")
        return response

    async def handler(request: web.Request) -> web.StreamResponse:
        response: web.StreamResponse = await handler_of(tap, form)(request)
        return response

    server = await streams(serve, tap, handler=handler, outer=[outer])
    everybody = await joined(server, 3, tap)
    gives_up.set()
    assert (await everybody[0].receive()).body == b"gave up"
    assert (server.figure("waiting"), tap.runs) == (2, 1)  # the handler runs on
    everybody.append(await server.send("/"))
    await server.waiting(3)
    tap.send_head()
    tap.let(b"the answer")
    tap.end()
    assert await bodies(everybody[1:]) == {b"the answer"}
    await asyncio.wait(tasks)
    tasks.clear()
    await nothing_is_left(server)


@pytest.mark.parametrize("size", [2, 4])
async def test_where_an_outer_middleware_replaces_the_first_ones_body_the_others_get_it_all_the_same(
    serve: Start, size: int
) -> None:
    tap = Tap()
    came_first: list[web.Request] = []

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        first = not came_first
        came_first.append(request)
        response: web.StreamResponse = await handler(request)
        return web.Response(text="replaced") if first else response

    server = await streams(serve, tap, handler=tap.one_shot, outer=[outer])
    everybody = await joined(server, size, tap)
    tap.send_head()
    tap.let(b"first;")
    assert (await everybody[0].receive()).body == b"replaced"
    await arrived(everybody[1:], b"first;")
    everybody.append(await server.send("/"))
    tap.end()
    await arrived(everybody[1:-1], b"0\r\n\r\n")
    reply = await everybody[-1].receive()
    assert (reply.body, reply.collapsed) == (b"first;", JOINED)
    assert tap.runs == 1
    await nothing_is_left(server)


@pytest.mark.parametrize("discards", ["all followers", "one follower"])
async def test_a_follower_whose_outer_middleware_discards_its_body_holds_nobody_up(serve: Start, discards: str) -> None:
    tap = Tap()
    numbers = 0

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        nonlocal numbers
        number = numbers
        numbers += 1
        response: web.StreamResponse = await handler(request)
        if number == 1 or (number > 0 and discards == "all followers"):
            return web.Response(text="discarded")
        return response

    server = await streams(serve, tap, handler=tap.one_shot, outer=[outer], max_buffer=1_000)
    everybody = await joined(server, 4, tap)
    pieces = [b"%d" % (number % 10) * 500 for number in range(30)]
    began = time.monotonic()
    tap.let(*pieces)
    tap.end()
    replies = [await one.receive() for one in everybody]
    expected = [b"".join(pieces)] * 4
    expected[1] = b"discarded"
    if discards == "all followers":
        expected[2:] = [b"discarded"] * 2
    assert [reply.body for reply in replies] == expected
    assert time.monotonic() - began < 3.0
    await nothing_is_left(server)


async def test_a_body_that_everybody_discards_is_not_kept_for_ever(serve: Start) -> None:
    tap = Tap()

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        await handler(request)
        return web.Response(text="discarded")

    server = await streams(serve, tap, handler=tap.one_shot, outer=[outer], max_age=0.2)
    everybody = await joined(server, 3, tap)
    tap.let(b"first;")
    tap.send_head()
    assert await bodies(everybody) == {b"discarded"}
    await nothing_is_left(server)


def test_who_is_cancelled_in_the_very_pass_in_which_it_is_given_a_seat_leaves_it(form: str) -> None:
    follows: asyncio.Task[bytes] | None = None

    async def pieces() -> AsyncIterator[bytes]:
        yield b"piece"
        await asyncio.sleep(1.0)
        yield b"end"

    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(1.0)
        if form != "written by the handler":
            return web.Response(body=pieces())
        response = web.StreamResponse()
        await response.prepare(request)
        cancel()
        async for piece in pieces():
            await response.write(piece)
        return response

    def cancel() -> None:
        assert follows is not None
        assert follows.cancel()

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> Any:
        response = await handler(request)
        if form != "written by the handler" and asyncio.current_task() is not follows:
            cancel()
        return response

    async def main(loop: VirtualLoop) -> None:
        nonlocal follows
        door = StreamDoor(loop, reduce_middleware(), handler, outer=[outer])
        leads = loop.create_task(door.visit())
        await asyncio.sleep(0.5)
        follows = loop.create_task(door.visit())
        assert await leads == b"pieceend"
        with pytest.raises(asyncio.CancelledError):
            await follows
        await asyncio.sleep(10)
        assert door.kept == 0
        assert door.nothing_is_left()

    run_virtually(main)
