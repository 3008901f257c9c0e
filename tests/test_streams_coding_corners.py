"""Corners of streams that are compressed: the end of what was compressed, those who come while a piece is, and what
happens where it cannot be. Each test fails without one line that is easily lost."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from aiohttp_reduce import _aiohttp
from aiohttp_reduce.server import last_call
from tests.harness import Start, eventually
from tests.streaming import Tap, Wires, is_broken, nothing_is_left, resume, slow, streams
from tests.test_streams_coding import DEFLATE, GZIP, NONE, Held, Source, joins, meet, noise, plain
from tests.test_streams_isolation import PIECE


@pytest.mark.parametrize("ends", [False, True])
async def test_a_slow_follower_gets_the_end_of_a_compressed_body_long_after_the_first_requester(
    serve: Start, ends: bool, times: Any, quiet: list[Any]
) -> None:
    times()
    tap, wires = Tap(), Wires()
    pieces = [noise(PIECE, number) for number in range(60)]

    async def handler(request: web.Request) -> web.StreamResponse:
        tap.runs += 1
        await tap._head.wait()
        response = web.StreamResponse()
        response.enable_compression()
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        if ends:
            await response.write_eof()
        return response

    server = await streams(serve, tap, handler=handler, outer=[wires])
    leader = await server.send("/", GZIP)
    await eventually(lambda: tap.runs == 1)
    stuck = await slow(server, headers=GZIP)
    await server.waiting(1)
    tap.send_head()
    await wires.blocked(1)
    assert plain(await leader.receive()) == b"".join(pieces)
    resume(stuck)
    assert plain(await stuck.receive()) == b"".join(pieces)
    await nothing_is_left(server)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("size", [100, 10_000])
async def test_who_joins_at_the_last_call_gets_the_end_of_a_compressed_body(
    serve: Start, ends: bool, size: int, quiet: list[Any], monkeypatch: Any
) -> None:
    runs = []
    ended = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        runs.append(1)
        response = web.StreamResponse()
        response.enable_compression()
        await response.prepare(request)
        await response.write(noise(size))
        await asyncio.sleep(0.01)
        loop.call_soon(send)
        if ends:
            await response.write_eof(b"last")
        ended.set()
        return response

    monkeypatch.setattr(last_call, "_PASSES", 200)
    loop = asyncio.get_running_loop()
    server = await streams(serve, Tap(), handler=handler)
    first, late = await server.send("/", GZIP), await server.connect()

    def send() -> None:
        late.writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n")

    expected = noise(size) + (b"last" if ends else b"")
    assert plain(await first.receive()) == expected
    assert plain(await late.receive()) == expected
    assert len(runs) == 1
    await nothing_is_left(server)


async def test_the_last_piece_reaches_all_where_somebody_joins_while_it_is_compressed(
    serve: Start, quiet: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    runs = []

    async def handler(request: web.Request) -> web.StreamResponse:
        runs.append(1)
        response = web.StreamResponse()
        response.enable_compression()
        await response.prepare(request)
        await response.write(b"first, ")
        await response.write_eof(noise(20_000))
        return response

    server = await streams(serve, Tap(), handler=handler, headers=())
    first = await server.send("/", GZIP)
    await eventually(lambda: held.begun == 1)
    late = await joins(server, GZIP)
    await asyncio.sleep(0.01)
    held.go_on.set()
    expected = b"first, " + noise(20_000)
    assert [plain(await one.receive()) for one in (first, late)] == [expected] * 2
    assert len(runs) == 1
    await nothing_is_left(server)


async def test_who_joins_while_a_piece_is_compressed_does_not_wait_for_the_first_requester(
    serve: Start, times: Any, quiet: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    times()
    held, tap, wires = Held(monkeypatch), Tap(), Wires()
    large = noise(0x400000)

    async def handler(request: web.Request) -> web.StreamResponse:
        tap.runs += 1
        response = web.StreamResponse()
        response.enable_compression()
        await response.prepare(request)
        await response.write(large)
        await response.write(b"last")
        return response

    room: dict[str, Any] = {"max_buffer": 2**25, "max_buffer_total": 2**26}
    server = await streams(serve, tap, handler=handler, outer=[wires], headers=(), **room)
    leader = await slow(server, headers=GZIP)
    await eventually(lambda: held.begun == 1)
    late = await joins(server, GZIP)
    await asyncio.sleep(0.02)
    held.go_on.set()
    assert plain(await late.receive()) == large + b"last"
    resume(leader)
    assert plain(await leader.receive()) == large + b"last"
    await nothing_is_left(server)


@pytest.mark.parametrize("one_shot", [False, True])
async def test_where_compressing_fails_everybody_is_told(
    serve: Start, one_shot: bool, quiet: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(compressor: Any, chunk: bytes) -> bytes:
        raise RuntimeError("no memory")

    monkeypatch.setattr(_aiohttp.Compressor, "compress", fails)
    source = Source()
    server = await streams(serve, source, handler=source.one_shot if one_shot else source.handler, headers=())
    everybody = await meet(server, source, [GZIP, GZIP, GZIP, NONE])
    source.send_head()
    source.let(noise(20_000))
    source.end()
    assert [await is_broken(one) for one in everybody[1:3]] == [True] * 2
    assert (await everybody[3].receive()).body == noise(20_000)


@pytest.mark.parametrize("one_shot", [False, True])
async def test_a_zlib_whose_compressors_cannot_be_copied_gives_all_the_whole(
    serve: Start, one_shot: bool, quiet: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_aiohttp.Compressor, "can_be_copied", False)
    monkeypatch.delattr(_aiohttp.Compressor, "copy")
    source = Source()
    server = await streams(serve, source, handler=source.one_shot if one_shot else source.handler, headers=())
    everybody = await meet(server, source, [GZIP, GZIP, DEFLATE, NONE, GZIP])
    source.let(b"first, ", noise(20_000))
    source.end()
    assert [plain(await one.receive()) for one in everybody] == [b"first, " + noise(20_000)] * 5
    assert source.runs == 1
    await nothing_is_left(server)
