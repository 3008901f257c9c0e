"""Corners of streams where a handler, a reader or a client does what few do: what is written at odd times, what ends
or fails at odd ends, and who is told of it. Each test fails without one line that is easily lost."""

import asyncio
import contextvars
import gzip
from typing import Any

import pytest
from aiohttp import web
from aiohttp.payload import AsyncIterablePayload

from aiohttp_reduce import _aiohttp, reduce_middleware
from tests.harness import Start, app_with, eventually
from tests.streaming import Tap, Wires, arrived, is_broken, joined, nothing_is_left, resume, slow, streams
from tests.test_streams_isolation import BODY, PIECE, PIECES, received


async def test_a_buffer_that_the_handler_uses_again_is_as_it_was_when_it_was_written(serve: Start) -> None:
    go_on = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        buffer = bytearray(b"one ")
        await response.write(buffer)
        buffer[:] = b"two "
        await response.write(buffer)
        buffer[:] = b"gone"
        await go_on.wait()
        return response

    server = await streams(serve, Tap(), handler=handler)
    first = await server.send("/")
    await arrived(b"two ", first)
    late = await server.send("/")
    await arrived(b"two ", late)
    go_on.set()
    assert [(await one.receive()).body for one in (first, late)] == [b"one two "] * 2
    await nothing_is_left(server)


async def test_tasks_of_a_handler_that_write_at_once_are_sent_in_their_order(
    serve: Start, times: Any, quiet: list[Any]
) -> None:
    times()
    tap, wires = Tap(), Wires()
    begin = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        tap.runs += 1
        await begin.wait()
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in PIECES[:-1]:
            await response.write(piece)
        large = asyncio.create_task(response.write(b"L" * 0x60000))
        small = asyncio.create_task(response.write(b"small"))
        await asyncio.wait([large, small])
        return response

    server = await streams(serve, tap, handler=handler, outer=[wires], max_buffer=0x100000)
    (leader,) = await joined(server, 1, tap)
    stuck = await slow(server)
    await server.waiting(1)
    begin.set()
    await wires.blocked(1)
    await asyncio.sleep(0.1)
    resume(stuck)
    expected = b"".join(PIECES[:-1]) + b"L" * 0x60000 + b"small"
    assert [await received(leader), await received(stuck)] == [expected] * 2


async def test_what_a_handler_wrote_is_sent_also_where_it_did_not_wait_for_room(
    serve: Start, times: Any, quiet: list[Any]
) -> None:
    times()
    timeouts = []
    tap, wires = Tap(), Wires()

    async def handler(request: web.Request) -> web.StreamResponse:
        tap.runs += 1
        await tap._head.wait()
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in PIECES:
            try:
                await asyncio.wait_for(response.write(piece), 0.01)
            except TimeoutError:
                timeouts.append(piece)
        return response

    server = await streams(serve, tap, handler=handler, outer=[wires], max_buffer=4 * PIECE)
    (leader,) = await joined(server, 1, tap)
    stuck = await slow(server)
    await server.waiting(1)
    tap.send_head()
    await eventually(lambda: bool(timeouts))
    resume(stuck)
    assert [await received(leader), await received(stuck)] == [BODY] * 2
    await nothing_is_left(server)


async def test_whoever_comes_after_a_write_to_nobody_begins_anew(serve: Start, quiet: list[Any]) -> None:
    tap, wires = Tap(), Wires()
    writes: list[Any] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        tap.runs += 1
        response = web.StreamResponse()
        await tap._head.wait()
        await response.prepare(request)
        async for piece in tap.pieces():
            try:
                await response.write(piece)
                writes.append(None)
            except ConnectionError as exception:
                writes.append(exception)
        return response

    server = await streams(serve, tap, handler=handler, outer=[wires])
    everybody = await joined(server, 2, tap)
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"one ", *everybody)
    for number, one in enumerate(everybody):
        one.abort()
        await wires.disconnected(number)
    tap.let(b"two ")  # by this their readers find out
    await eventually(lambda: not [task for task in asyncio.all_tasks() if "Producer._serve" in repr(task)])
    tap.let(b"three ")
    await eventually(lambda: len(writes) == 3)
    assert isinstance(writes[2], ConnectionError)
    newcomer = await server.send("/")
    await eventually(lambda: len(wires.protocols) == 3)
    await asyncio.sleep(0.01)
    tap.let(b"four")
    tap.end()
    assert await received(newcomer) == b"one two three four"
    assert tap.runs == 2
    await nothing_is_left(server)


async def test_a_first_requester_whose_reader_is_cancelled_gets_no_whole_body(serve: Start) -> None:
    tap = Tap()
    server = await streams(serve, tap)
    leader, follower = await joined(server, 2, tap)
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"one ", leader, follower)
    (task,) = [task for task in asyncio.all_tasks() if "Producer._serve" in repr(task)]
    task.cancel()
    await asyncio.wait([task])
    tap.let(b"two")
    tap.end()
    assert await is_broken(leader)
    assert await received(follower) == b"one two"
    await nothing_is_left(server)


async def test_nobody_joins_what_the_handler_has_ended(serve: Start, quiet: list[Any]) -> None:
    runs: list[int] = []
    go_on = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        runs.append(1)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"all")
        await response.write_eof()
        if len(runs) == 1:
            await go_on.wait()
        return response

    server = await streams(serve, Tap(), handler=handler)
    first = await server.send("/")
    assert await received(first) == b"all"
    await asyncio.sleep(0.01)
    assert (await server.get("/")).body == b"all"
    assert len(runs) == 2
    go_on.set()
    await nothing_is_left(server)


async def test_nobody_can_write_on_to_what_the_handler_has_ended(serve: Start, quiet: list[Any]) -> None:
    tap = Tap()
    told: list[Any] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        response = await tap.handler(request)
        await response.write_eof()
        return response

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        try:
            await response.write(b"more")
        except RuntimeError as exception:
            told.append(str(exception))
        return response

    server = await streams(serve, tap, handler=handler, outer=[outer])
    everybody = await joined(server, 2, tap)
    tap.let(b"all")
    tap.end()
    assert [await received(one) for one in everybody] == [b"all"] * 2
    assert told == ["Cannot call write() after write_eof()"] * 2
    await nothing_is_left(server)


async def test_each_is_raised_an_exception_of_its_own(serve: Start, quiet: list[Any]) -> None:
    tap = Tap()
    raised: list[Exception] = []

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            response: web.StreamResponse = await handler(request)
        except Exception as exception:
            raised.append(exception)
            raise
        return response

    server = await streams(serve, tap, outer=[outer])
    everybody = await joined(server, 3, tap)
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"one ", *everybody)
    tap.end(RuntimeError("broken"))
    assert [await is_broken(one) for one in everybody] == [True] * 3
    assert [str(one) for one in raised] == ["broken"] * 3
    assert len({id(one) for one in raised}) == 3
    await nothing_is_left(server)


@pytest.mark.parametrize("raised", [ConnectionResetError, web.HTTPFound, asyncio.CancelledError, RuntimeError])
async def test_who_was_sent_nothing_of_what_broke_off_for_one_gets_another(serve: Start, raised: Any) -> None:
    tap = Tap()

    async def handler(request: web.Request) -> web.StreamResponse:
        tap.runs += 1
        run = tap.runs
        await tap._head.wait()
        response = web.StreamResponse()
        await response.prepare(request)
        if run == 1:
            raise raised("/") if raised is web.HTTPFound else raised()
        await response.write(b"whole")
        return response

    server = await streams(serve, tap, handler=handler)
    _, *followers = await joined(server, 3, tap)
    tap.send_head()
    if raised is RuntimeError:
        assert [await is_broken(one) for one in followers] == [True, True]
        assert tap.runs == 1
        return
    assert [await received(one) for one in followers] == [b"whole"] * 2
    await nothing_is_left(server)


async def test_who_gets_a_head_alone_holds_nobody_up(serve: Start, times: Any) -> None:
    times()
    tap = Tap()
    server = await streams(serve, tap, max_buffer=4 * PIECE)
    everybody = [await server.send("/", method="HEAD")]
    await eventually(lambda: tap.runs == 1)
    everybody.append(await server.send("/", method="HEAD"))
    await server.waiting(1)
    tap.send_head()
    tap.let(*PIECES)
    tap.end()
    await eventually(lambda: tap.ended == [None])
    assert (await everybody[1].receive(head_only=True)).status == 200
    await nothing_is_left(server)


async def test_a_handler_that_does_not_wait_for_the_end_truncates_nothing(
    serve: Start, times: Any, quiet: list[Any]
) -> None:
    times()
    tap, wires = Tap(), Wires()

    async def handler(request: web.Request) -> web.StreamResponse:
        tap.runs += 1
        await tap._head.wait()
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in PIECES:
            await response.write(piece)
        try:
            async with asyncio.timeout(0.3):
                await response.write_eof()
        except TimeoutError:
            tap.ended.append(None)
        return response

    server = await streams(serve, tap, handler=handler, outer=[wires])
    leader = await slow(server)
    await eventually(lambda: tap.runs == 1)
    other = await server.send("/")
    await server.waiting(1)
    tap.send_head()
    assert await received(other) == BODY
    await eventually(lambda: tap.ended == [None])
    resume(leader)
    try:
        body = await received(leader)
    except (asyncio.IncompleteReadError, ConnectionError, ValueError):
        return  # it is told
    assert body == BODY


async def test_whoever_is_cut_off_is_no_error_of_the_server(serve: Start, times: Any, caplog: Any) -> None:
    times(stall=0.1)
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, outer=[wires], max_buffer=4 * PIECE)
    (leader,) = await joined(server, 1, tap)
    await slow(server)
    await server.waiting(1)
    tap.send_head()
    tap.let(*PIECES)
    tap.end()
    assert await received(leader) == BODY
    await wires.disconnected(1)
    await nothing_is_left(server)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("one_shot", [False, True])
async def test_a_handler_that_ends_is_no_error_where_the_first_requester_is_gone(
    serve: Start, one_shot: bool, quiet: list[Any], caplog: Any
) -> None:
    tap, wires = Tap(), Wires()
    server = await streams(serve, tap, handler=tap.one_shot if one_shot else tap.handler, outer=[wires])
    leader, follower = await joined(server, 2, tap)
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"one ", leader, follower)
    leader.abort()
    await wires.disconnected(0)
    tap.let(b"two ")
    await arrived(b"two ", follower)
    tap.end()
    assert await received(follower) == b"one two "
    await nothing_is_left(server)
    assert server.figure("errors", "/") == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_preparing_for_a_client_that_leaves_meanwhile_raises(serve: Start, quiet: list[Any]) -> None:
    wires = Wires()
    raised: list[Any] = []
    signalled, go_on = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        try:
            await response.prepare(request)
        except ConnectionError as exception:
            raised.append(exception)
            raise
        raised.append(None)
        return response

    async def signal(request: web.Request, response: web.StreamResponse) -> None:
        signalled.set()
        await go_on.wait()

    middleware = reduce_middleware()
    app = app_with(handler, middleware, outer=[wires])
    app.on_response_prepare.append(signal)
    server = await serve(app, middleware=middleware)
    one = await server.send("/")
    await signalled.wait()
    one.abort()
    await wires.disconnected(0)
    go_on.set()
    await eventually(lambda: len(raised) == 1)
    assert isinstance(raised[0], ConnectionError)
    await nothing_is_left(server)


async def test_a_body_that_is_read_for_all_is_read_with_the_context_of_its_handler(serve: Start) -> None:
    runs: list[int] = []
    go_on = asyncio.Event()
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")

    async def body() -> Any:
        yield variable.get().encode()

    async def handler(request: web.Request) -> web.Response:
        runs.append(1)
        await go_on.wait()
        variable.set("the handler's")
        return web.Response(body=body())

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        begun.append(1)
        if len(begun) == 1:
            await last.wait()  # so that the other one begins to read
        return response

    last = asyncio.Event()
    begun: list[int] = []
    server = await streams(serve, Tap(), handler=handler, outer=[outer])
    first = await server.send("/")
    await eventually(lambda: len(runs) == 1)
    other = await server.send("/")
    await server.waiting(1)
    go_on.set()
    assert await received(other) == b"the handler's"
    last.set()
    assert await received(first) == b"the handler's"
    await nothing_is_left(server)


@pytest.mark.parametrize("herd", [1, 2])
async def test_a_body_is_closed_when_it_was_read(serve: Start, herd: int, quiet: list[Any]) -> None:
    closed: list[int] = []
    tap = Tap()

    class Body(AsyncIterablePayload):
        async def close(self) -> None:
            closed.append(1)
            await super().close()

    async def handler(request: web.Request) -> web.Response:
        tap.runs += 1
        await tap._head.wait()
        return web.Response(body=Body(tap.pieces()))

    server = await streams(serve, tap, handler=handler)
    everybody = await joined(server, herd, tap)
    tap.let(b"all")
    tap.end()
    assert [await received(one) for one in everybody] == [b"all"] * herd
    await nothing_is_left(server)
    assert closed


async def test_an_inner_door_that_keeps_no_more_leaves_the_outer_one_what_it_needs(serve: Start) -> None:
    tap = Tap()
    outer, inner = reduce_middleware(), reduce_middleware(max_buffer=10)
    sub = web.Application(middlewares=[inner])
    sub.router.add_get("/", tap.handler)
    app = web.Application(middlewares=[outer])
    app.add_subapp("/sub", sub)
    server = await serve(app, middleware=outer)
    everybody = [await server.send("/sub/")]
    await eventually(lambda: tap.runs == 1)
    everybody.append(await server.send("/sub/"))
    await server.waiting(1)
    tap.send_head()
    for piece in (b"a first piece ", b"a second piece ", b"a third piece"):
        tap.let(piece)
        await arrived(piece, *everybody)
    tap.end()
    assert [await received(one) for one in everybody] == [b"a first piece a second piece a third piece"] * 2
    assert tap.runs == 1
    await nothing_is_left(server)


async def test_a_write_that_was_given_up_is_no_noise_when_its_connection_breaks(serve: Start, noise: list[Any]) -> None:
    wires, go_on = Wires(), asyncio.Event()
    writing: list[asyncio.Task[None]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)

        async def write() -> None:
            for piece in PIECES:
                await response.write(piece)

        writing.append(asyncio.create_task(write()))
        await asyncio.wait(writing)
        await go_on.wait()
        return response

    server = await streams(serve, Tap(), handler=handler, outer=[wires])
    connection = await slow(server)
    await wires.blocked(0)
    writing[0].cancel()
    await asyncio.wait(writing)
    writing.clear()  # what it was cancelled with holds what it was waiting for
    connection.abort()
    await wires.disconnected(0)
    go_on.set()
    await nothing_is_left(server)


@pytest.mark.parametrize("at_the_end", [False, True])
async def test_who_joins_while_a_piece_is_compressed_has_it_all_though_the_first_requester_left_meanwhile(
    serve: Start, monkeypatch: pytest.MonkeyPatch, at_the_end: bool
) -> None:
    compressing, go_on = asyncio.Event(), asyncio.Event()
    wires = Wires()
    compress = _aiohttp.Compressor.compress

    async def held(self: Any, data: bytes) -> bytes:
        compressing.set()
        await go_on.wait()
        return await compress(self, data)

    monkeypatch.setattr(_aiohttp.Compressor, "compress_now", lambda *_: None)
    monkeypatch.setattr(_aiohttp.Compressor, "compress", held)

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_compression()
        await response.prepare(request)
        await (response.write_eof if at_the_end else response.write)(BODY)
        return response

    server = await streams(serve, Tap(), handler=handler, outer=[wires])
    gzipped = {"Accept-Encoding": "gzip"}
    first = await server.send("/", gzipped)
    await compressing.wait()
    late = await server.send("/", gzipped)
    await eventually(lambda: server.figure("reduced") == 1)
    first.abort()
    await wires.disconnected(0)
    go_on.set()
    assert gzip.decompress((await late.receive()).body) == BODY
    await nothing_is_left(server)
