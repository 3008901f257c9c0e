"""Streamed answers with `enable_compression()`: each gets the coding that it negotiated, made once for all."""

import asyncio
import gzip
import random
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import aiohttp.http_writer
import pytest
from aiohttp import web
from aiohttp.compression_utils import ZLibCompressor

from aiohttp_reduce import _aiohttp
from tests.harness import Connection, Reply, Server, Start, eventually
from tests.streaming import Tap, joined, kept, nothing_is_left, streams

Adorn = Callable[[web.Request, web.StreamResponse], Any]

GZIP, DEFLATE, PLAIN = {"Accept-Encoding": "gzip"}, {"Accept-Encoding": "deflate"}, {"Accept-Encoding": "br"}
NONE: dict[str, str] = {}
JOINED = "aiohttp-reduce; fwd=miss; collapsed"


def compresses(request: web.Request, response: web.StreamResponse) -> None:
    response.enable_compression()


def compresses_always(request: web.Request, response: web.StreamResponse) -> None:
    response.enable_compression(web.ContentCoding.gzip)


class Source(Tap):
    """A tap whose response is made ready with `adorn`; `taken` counts the pieces that were begun."""

    def __init__(self, adorn: Adorn = compresses) -> None:
        super().__init__()
        self.adorn = adorn
        self.taken = 0

    async def handler(self, request: web.Request) -> web.StreamResponse:
        self.runs += 1
        await self._head.wait()
        response = web.StreamResponse()
        self.adorn(request, response)
        await response.prepare(request)
        async for piece in self.counted():
            await response.write(piece)
        return response

    async def one_shot(self, request: web.Request) -> web.StreamResponse:
        self.runs += 1
        await self._head.wait()
        response = web.Response(body=self.counted())
        self.adorn(request, response)
        return response

    async def counted(self) -> AsyncIterator[bytes]:
        async for piece in self.pieces():
            self.taken += 1
            yield piece


@pytest.fixture(params=["written by the handler", "a body that can be read once"])
def form(request: pytest.FixtureRequest) -> str:
    """How the answer is sent."""
    text: str = request.param
    return text


def handler_of(source: Source, form: str) -> Any:
    return source.handler if form == "written by the handler" else source.one_shot


class Work:
    """The codings of the compressors that were used, and how many pieces they were given in all."""

    def __init__(self) -> None:
        self.used: list[str] = []
        self.pieces = 0


class _Counted:
    def __init__(self, compressor: Any, encoding: str | None, work: Work) -> None:
        self._compressor = compressor
        self._encoding = str(encoding)
        self._is_used = False
        self._work = work

    def compress(self, data: Any) -> bytes:
        self._use()
        self._work.pieces += 1
        made: bytes = self._compressor.compress(data)
        return made

    def flush(self, *args: Any) -> bytes:
        self._use()
        made: bytes = self._compressor.flush(*args)
        return made

    def copy(self) -> Any:
        return self._compressor.copy()

    def _use(self) -> None:
        if not self._is_used:
            self._is_used = True
            self._work.used.append(self._encoding)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """What is compressed from now on, by us and by aiohttp's own writer."""
    work = Work()

    class Counting(ZLibCompressor):
        def __init__(self, encoding: str | None = None, **options: Any) -> None:
            super().__init__(encoding=encoding, **options)
            self._compressor: Any = _Counted(self._compressor, encoding, work)

    monkeypatch.setattr(_aiohttp.writers, "ZLibCompressor", Counting)
    monkeypatch.setattr(aiohttp.http_writer, "ZLibCompressor", Counting)
    return work


def plain(reply: Reply) -> bytes:
    """The body without its coding."""
    coding = reply.headers.get("Content-Encoding")
    if coding is None:
        return reply.body
    return gzip.decompress(reply.body) if coding == "gzip" else zlib.decompress(reply.body)


def codings(replies: Sequence[Reply]) -> list[str | None]:
    return [reply.headers.get("Content-Encoding") for reply in replies]


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that no coding makes smaller."""
    return random.Random(seed).randbytes(size)


async def meet(server: Server, source: Source, requests: Sequence[Any], **options: Any) -> list[Connection]:
    """Send these requests one by one, all to wait for the first one's run."""
    sent = [await server.send("/", requests[0], **options)]
    await eventually(lambda: source.runs == 1)
    for number, headers in enumerate(requests[1:], 1):
        sent.append(await server.send("/", headers, **options))
        await server.waiting(number)
    return sent


async def joins(server: Server, headers: Any) -> Connection:
    """One that comes while bytes flow."""
    before = server.figure("total")
    connection = await server.send("/", headers)
    await eventually(lambda: bool(server.figure("total") == before + 1))
    return connection


async def received(connections: Sequence[Connection]) -> list[Reply]:
    return await asyncio.gather(*[one.receive() for one in connections])


MIXED = [GZIP, DEFLATE, NONE, GZIP, DEFLATE, NONE, GZIP, PLAIN, PLAIN]
PIECES: dict[str, list[bytes]] = {
    "tiny": [b"x", b"y", b"", b"z" * 3] * 5,
    "small": [b"some text, " * 50] * 20,
    "at the border": [noise(4095, 1), noise(4096, 2), noise(4097, 3)],
    "large": [b"large pieces " * 5_000, noise(50_000, 4), b"!" * 300_000],
    "tiny and large": [b"a", noise(20_000, 5), b"b", noise(20_000, 6), b"c"],
    "none": [],
}


@pytest.mark.parametrize("leader", [GZIP, DEFLATE, NONE], ids=["gzip", "deflate", "none"])
@pytest.mark.parametrize("size", PIECES)
async def test_each_of_a_herd_gets_what_it_negotiated_of_one_run(
    serve: Start, form: str, size: str, leader: dict[str, str]
) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), headers=())
    everybody = await meet(server, source, [leader, *MIXED])
    source.let(*PIECES[size])
    source.end()
    replies = await received(everybody)
    assert codings(replies[1:]) == ["gzip", "deflate", None, "gzip", "deflate", None, "gzip", None, None]
    assert codings(replies[:1]) == [leader.get("Accept-Encoding")]
    assert [plain(reply) for reply in replies] == [b"".join(PIECES[size])] * 10
    assert [reply.collapsed for reply in replies] == [None, *[JOINED] * 9]
    assert (source.runs, server.figure("unshared")) == (1, {})
    await nothing_is_left(server)


@pytest.mark.parametrize("size", ["small", "large"])
async def test_each_piece_is_compressed_once_for_each_coding(serve: Start, form: str, size: str, work: Work) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), headers=())
    everybody = await meet(server, source, MIXED)
    source.let(*PIECES[size])
    source.end()
    replies = await received(everybody)
    assert {plain(reply) for reply in replies} == {b"".join(PIECES[size])}
    assert sorted(work.used) == ["deflate", "gzip"]
    assert work.pieces == 2 * len(PIECES[size])


async def test_nothing_is_compressed_for_those_who_take_no_coding(serve: Start, form: str, work: Work) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), headers=())
    everybody = await meet(server, source, [NONE, PLAIN])
    source.let(b"text")
    source.end()
    assert [reply.body for reply in await received(everybody)] == [b"text"] * 2
    assert (work.used, work.pieces) == ([], 0)


@pytest.mark.parametrize("size", ["small", "large", "tiny and large"])
async def test_a_lone_stream_is_compressed_once(serve: Start, form: str, size: str, work: Work) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), max_buffer=2_000)
    alone = await server.send("/", GZIP)
    source.let(*PIECES[size])
    source.end()
    (reply,) = await received([alone])
    assert (codings([reply]), plain(reply)) == (["gzip"], b"".join(PIECES[size]))
    assert (work.used, work.pieces) == (["gzip"], len(PIECES[size]))
    await nothing_is_left(server)


@pytest.mark.parametrize("leader", [GZIP, NONE], ids=["gzip", "none"])
@pytest.mark.parametrize("size", ["tiny", "small", "large", "tiny and large"])
async def test_late_joiners_get_what_they_negotiate_from_the_first_byte_on_and_nothing_is_compressed_again(
    serve: Start, form: str, size: str, leader: dict[str, str], work: Work
) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), headers=())
    everybody = await meet(server, source, [leader])
    source.send_head()
    pieces = [piece for piece in PIECES[size] if piece]
    for number, piece in enumerate(pieces, 1):
        source.let(piece)
        await eventually(lambda number=number: source.taken == number)  # type: ignore[misc]
        if number < 4:
            everybody += [await joins(server, headers) for headers in (GZIP, DEFLATE, NONE)]
    source.end()
    replies = await received(everybody)
    assert [plain(reply) for reply in replies] == [b"".join(pieces)] * len(everybody)
    assert codings(replies[1:4]) == ["gzip", "deflate", None]
    assert source.runs == 1
    assert sorted(work.used) == ["deflate", "gzip"]
    assert work.pieces == 2 * len(pieces)
    await nothing_is_left(server)


async def test_a_compressed_piece_that_can_be_sent_is_not_held_back_for_the_next(serve: Start, form: str) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), headers=())
    everybody = await meet(server, source, [GZIP, GZIP, DEFLATE])
    source.send_head()
    source.let(noise(100_000))
    for one in everybody:
        async with asyncio.timeout(5):
            await one.reader.readexactly(50_000)
    source.end()
    for one in everybody:
        await one.reader.readuntil(b"\r\n0\r\n\r\n")


# Who leaves, or is slow.


class Held:
    """Holds compressing in a thread until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self.go_on = asyncio.Event()
        compress = _aiohttp.Compressor.compress

        async def held(compressor: Any, chunk: bytes) -> bytes:
            self.begun += 1
            await self.go_on.wait()
            return await compress(compressor, chunk)

        monkeypatch.setattr(_aiohttp.Compressor, "compress", held)


@pytest.mark.parametrize("who", [0, 1, 2, 3])
async def test_a_reader_that_is_cancelled_while_a_piece_is_compressed_spoils_nothing_for_the_others(
    serve: Start, form: str, who: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    tasks: list[Any] = []

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        tasks.append(asyncio.current_task())
        response: web.StreamResponse = await handler(request)
        return response

    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), headers=(), outer=[outer])
    everybody = await meet(server, source, [NONE, GZIP, GZIP, DEFLATE, GZIP])
    source.send_head()
    source.let(noise(50_000))
    await eventually(lambda: held.begun == 2)
    if who == 0:
        everybody[0].abort()  # whoever runs the handler: without `handler_cancellation` nobody cancels it
    else:
        tasks[who].cancel()
    source.let(b"tiny", noise(20_000, 1))
    await eventually(lambda: source.taken == 3)
    held.go_on.set()
    source.end()
    others = [one for number, one in enumerate(everybody) if number != who]
    expected = noise(50_000) + b"tiny" + noise(20_000, 1)
    assert [plain(reply) for reply in await received(others)] == [expected] * 4
    assert held.begun == (3 if who == 3 else 4)  # nobody else takes that coding
    await nothing_is_left(server)


async def test_a_follower_that_aborts_midway_spoils_nothing_for_the_others(serve: Start, form: str) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), headers=())
    everybody = await meet(server, source, MIXED)
    source.send_head()
    pieces = [noise(10_000, number) for number in range(8)]
    source.let(*pieces[:4])
    await eventually(lambda: source.taken == 4)
    for gone in (0, 3, 4):
        everybody[gone].abort()
    source.let(*pieces[4:])
    source.end()
    others = [one for number, one in enumerate(everybody) if number not in {0, 3, 4}]
    assert [plain(reply) for reply in await received(others)] == [b"".join(pieces)] * len(others)
    assert source.runs == 1
    await nothing_is_left(server)


@pytest.mark.parametrize("slow", [GZIP, DEFLATE, NONE], ids=["gzip", "deflate", "none"])
async def test_readers_at_their_own_pace_all_get_the_whole(serve: Start, form: str, slow: dict[str, str]) -> None:
    """The slow one begins only when the fast ones are far ahead, by more than what sockets take."""
    source = Source()
    server = await streams(
        serve, source, handler=handler_of(source, form), headers=(), max_buffer=2**25, max_buffer_total=2**26
    )
    everybody = await meet(server, source, [NONE, slow, GZIP, DEFLATE])
    pieces = [noise(2**18, number) for number in range(40)]
    source.let(*pieces)
    source.end()
    fast = await received([everybody[0], *everybody[2:]])
    (late,) = await received(everybody[1:2])
    assert all(plain(reply) == b"".join(pieces) for reply in [*fast, late])
    await nothing_is_left(server)


async def test_a_stream_that_fails_midway_ends_no_compressed_body(
    serve: Start, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), headers=())
    everybody = await meet(server, source, MIXED)
    source.send_head()
    source.let(noise(20_000))
    await eventually(lambda: source.taken == 1)
    source.end(RuntimeError("broken"))
    for one in everybody:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await one.receive()
    await nothing_is_left(server)


# What is forced, and what it does to the length.


async def test_a_forced_coding_is_for_all_and_made_once(serve: Start, form: str, work: Work) -> None:
    source = Source(compresses_always)
    server = await streams(serve, source, handler=handler_of(source, form), headers=())
    everybody = await meet(server, source, MIXED)
    source.send_head()
    source.let(b"text " * 100)
    await eventually(lambda: source.taken == 1)
    everybody.append(await joins(server, NONE))
    source.end()
    replies = await received(everybody)
    assert codings(replies) == ["gzip"] * 10
    assert [plain(reply) for reply in replies] == [b"text " * 100] * 10
    assert (source.runs, work.used, work.pieces) == (1, ["gzip"], 1)
    await nothing_is_left(server)


async def test_a_strategy_is_kept(serve: Start, form: str) -> None:
    def adorn(request: web.Request, response: web.StreamResponse) -> None:
        response.enable_compression(web.ContentCoding.gzip, strategy=zlib.Z_HUFFMAN_ONLY)

    source = Source(adorn)
    server = await streams(serve, source, handler=handler_of(source, form))
    everybody = await meet(server, source, [NONE] * 3)
    source.let(b"x" * 4_000)
    source.end()
    replies = await received(everybody)
    assert {plain(reply) for reply in replies} == {b"x" * 4_000}
    assert all(len(reply.body) > 400 for reply in replies)  # it would be some 30 bytes otherwise


def with_length(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Content-Length"] = "8"
    response.enable_compression()


@pytest.mark.parametrize("leader", [GZIP, NONE], ids=["gzip", "none"])
async def test_a_length_is_not_said_of_what_is_compressed_and_is_of_what_is_not(
    serve: Start, form: str, leader: dict[str, str]
) -> None:
    source = Source(with_length)
    server = await streams(serve, source, handler=handler_of(source, form), headers=())
    everybody = await meet(server, source, [leader, GZIP, DEFLATE, NONE])
    source.let(b"four", b"more")
    source.end()
    replies = await received(everybody)
    assert [plain(reply) for reply in replies] == [b"fourmore"] * 4
    assert codings(replies[1:]) == ["gzip", "deflate", None]
    lengths = [reply.headers.get("Content-Length") for reply in replies]
    # Of what the first one was sent compressed, aiohttp has taken the length away before we see the head.
    is_known = leader is NONE or form != "written by the handler"
    assert lengths[1:] == [None, None, "8" if is_known else None]
    assert lengths[0] == (None if leader is GZIP else "8")
    assert source.runs == 1
    await nothing_is_left(server)


async def test_what_the_handler_compressed_itself_is_left_as_it_is(serve: Start, form: str, work: Work) -> None:
    def adorn(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Content-Encoding"] = "gzip"

    source = Source(adorn)
    server = await streams(serve, source, handler=handler_of(source, form), headers=())
    everybody = await meet(server, source, MIXED)
    body = gzip.compress(b"text")
    source.let(body[:10], body[10:])
    source.end()
    replies = await received(everybody)
    assert codings(replies) == ["gzip"] * 9
    assert {reply.body for reply in replies} == {body}
    assert work.used == []


async def test_over_http_1_0_each_gets_what_it_negotiated(serve: Start, form: str) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), headers=())
    everybody = await meet(server, source, [GZIP, DEFLATE, NONE], version="HTTP/1.0")
    source.let(b"text ", noise(10_000))
    source.end()
    replies = await received(everybody)
    assert codings(replies) == ["gzip", "deflate", None]
    assert [plain(reply) for reply in replies] == [b"text " + noise(10_000)] * 3
    assert source.runs == 1


async def test_a_head_request_gets_the_head_of_its_coding(serve: Start, form: str) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), headers=())
    everybody = await meet(server, source, [GZIP, DEFLATE, NONE], method="HEAD")
    source.let(b"text ")
    source.end()
    replies = [await one.receive(head_only=True) for one in everybody]
    assert codings(replies) == ["gzip", "deflate", None]
    assert source.runs == 1
    await nothing_is_left(server)


async def test_a_follower_that_asks_for_a_head_gets_no_bytes_after_it(serve: Start) -> None:
    source = Source()
    server = await streams(serve, source, headers=())
    everybody = await meet(server, source, [NONE, GZIP, DEFLATE], method="HEAD")
    source.end()
    for one in everybody[1:]:
        await one.receive(head_only=True)
        assert (await one.request("/", method="HEAD")).status == 200
    await nothing_is_left(server)


# What is kept.


async def test_a_lone_compressed_stream_keeps_little_more_than_max_buffer(serve: Start, form: str) -> None:
    """By no more than what a compressor gives for one piece."""
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), max_buffer=200_000)
    alone = await server.send("/", GZIP)
    receiving = asyncio.create_task(alone.receive())
    source.send_head()
    for number in range(40):
        source.let(noise(10_000, number))
        await eventually(lambda number=number: source.taken == number + 1)  # type: ignore[misc]
        assert kept(server) <= 200_000 + 10_000 + 2**15
    await eventually(lambda: kept(server) == 0)
    source.end()
    assert len(plain(await receiving)) == 400_000
    await nothing_is_left(server)


async def test_the_codings_of_a_stream_are_within_max_buffer_too(serve: Start, form: str) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), headers=(), max_buffer=200_000)
    everybody = await meet(server, source, [NONE])
    source.send_head()
    pieces = [noise(20_000, number) for number in range(8)]
    source.let(*pieces)
    await eventually(lambda: source.taken == 8)
    everybody += [await joins(server, headers) for headers in (GZIP, DEFLATE)]
    for one in everybody[1:]:
        async with asyncio.timeout(5):
            await one.reader.readexactly(120_000)
    most = kept(server)
    source.end()
    assert {plain(reply) for reply in await received(everybody[:1])} == {b"".join(pieces)}
    await nothing_is_left(server)
    assert most <= 200_000 + 2**15


async def test_compressed_forms_are_given_back_at_the_end(serve: Start, form: str) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), headers=())
    everybody = await meet(server, source, MIXED)
    source.let(*[noise(10_000, number) for number in range(5)])
    source.end()
    await received(everybody)
    await nothing_is_left(server)
    assert kept(server) == 0


# The default identity.


async def test_by_default_those_who_accept_other_codings_do_not_wait_together(
    serve: Start, form: str, work: Work
) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form))
    everybody = await joined(server, 3, source, headers=GZIP)
    everybody += [await server.send("/", DEFLATE)]
    await eventually(lambda: source.runs == 2)
    everybody += [await server.send("/", DEFLATE)]
    await server.waiting(3)
    everybody += [await server.send("/", NONE)]
    await eventually(lambda: source.runs == 3)
    source.let(b"some text " * 20)
    source.end()
    replies = await received(everybody)
    assert codings(replies) == ["gzip", "gzip", "gzip", "deflate", "deflate", None]
    assert {plain(reply) for reply in replies} == {b"some text " * 20}
    assert sorted(work.used) == ["deflate", "gzip"]
    assert (source.runs, server.figure("unshared")) == (3, {})
    await nothing_is_left(server)
