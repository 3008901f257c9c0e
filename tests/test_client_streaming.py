"""Heads are handed out when they come and bodies as they come, to many readers, in bounded memory.

`python -m tests.test_client_streaming 0 20000` runs as many random interleavings as you like.
"""

import asyncio
import gzip
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientConnectionError, ClientPayloadError, ClientResponse

from aiohttp_reduce import ReducingClientSession
from aiohttp_reduce.broadcast import CHUNK_OVERHEAD, Broadcast
from tests.harness import PATIENCE, eventually
from tests.upstream import Exchange, OpenSession, StartUpstream, nothing_is_left, reducer_of, waiting
from tests.virtual import VirtualLoop
from tests.wire import FarEnd, Line, run_on_the_wire

KIB = 1024
MIB = 1024 * KIB


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes that show where a piece is missing, doubled or misplaced."""
    return random.Random(seed).randbytes(size)


def table_of(session: ReducingClientSession) -> Any:
    """The session's table of flights in this loop."""
    return reducer_of(session)._tables.get()


def broadcast_of(session: ReducingClientSession) -> Broadcast:
    """The broadcast of the one body that is on its way."""
    ((flight,),) = table_of(session).streams.values()
    broadcast: Broadcast = flight.outcome.broadcast
    return broadcast


def stall_timeout_is(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Cut slow readers off after so many seconds instead of five."""
    monkeypatch.setitem(Broadcast.__init__.__kwdefaults__, "stall_timeout", seconds)


class Stepwise:
    """An upstream's answer in chunks, each sent when `say` is called; `say()` ends the body."""

    def __init__(self) -> None:
        self._chunks: dict[int, asyncio.Queue[bytes]] = {}

    async def __call__(self, exchange: Exchange) -> None:
        chunks = self._of(exchange.number)
        await exchange.head(Transfer_Encoding="chunked")
        while chunk := await chunks.get():
            await exchange.chunk(chunk)
        await exchange.chunk(b"")

    def say(self, *chunks: bytes, number: int = 1) -> None:
        """Send these chunks to the request of this number; none at all, and the body ends."""
        for chunk in chunks or (b"",):
            self._of(number).put_nowait(chunk)

    def _of(self, number: int) -> "asyncio.Queue[bytes]":
        return self._chunks.setdefault(number, asyncio.Queue())


# As it comes.


async def test_the_leader_has_its_head_and_reads_chunks_as_they_come(
    upstream: StartUpstream, reducing: OpenSession, noise: list[Any]
) -> None:
    stepwise, sent = Stepwise(), []

    async def answer(exchange: Exchange) -> None:
        sent.append(time.monotonic())
        await stepwise(exchange)

    server = await upstream(answer)
    session = reducing()
    async with session.get(server.url) as response:
        assert time.monotonic() - sent[0] < 0.05
        for number in range(5):
            chunk = b"chunk %d" % number
            stepwise.say(chunk)
            begun = time.monotonic()
            assert await response.content.readany() == chunk
            assert time.monotonic() - begun < 0.05
        stepwise.say()
        assert await response.read() == b""
    assert len(server.requests) == 1


async def test_whoever_joins_midway_reads_from_byte_0(upstream: StartUpstream, reducing: OpenSession) -> None:
    stepwise = Stepwise()
    server = await upstream(stepwise)
    session = reducing()
    chunks = [pattern(n * 100, n) for n in range(1, 6)]
    whole = b"".join(chunks)
    responses = []
    for number, chunk in enumerate(chunks):
        responses.append(await session.get(server.url))
        stepwise.say(chunk)
        for response in responses:
            joined = responses.index(response)
            already = b"".join(chunks[:number]) if response is responses[-1] and joined else b""
            assert await response.content.readexactly(len(already) + len(chunk)) == already + chunk
    late = await session.get(server.url)
    stepwise.say()
    assert await late.read() == whole
    assert [await response.read() for response in responses] == [b""] * 5
    assert len(server.requests) == 1
    assert session.stats["reduced"] == 5
    await eventually(lambda: nothing_is_left(reducer_of(session)))


async def test_chunk_boundaries_are_the_upstreams_for_all(upstream: StartUpstream, reducing: OpenSession) -> None:
    stepwise = Stepwise()
    server = await upstream(stepwise)
    session = reducing()
    first = await session.get(server.url)
    stepwise.say(b"one", b"three", b"of them")
    await eventually(lambda: broadcast_of(session).total == 15)
    second = await session.get(server.url)
    stepwise.say()

    async def parts(response: ClientResponse) -> list[bytes]:
        found, part = [], b""
        async for data, ends in response.content.iter_chunks():
            part += data
            if ends:
                found.append(part)
                part = b""
        return found

    for response in (first, second):
        assert [part for part in await parts(response) if part] == [b"one", b"three", b"of them"]
    assert len(server.requests) == 1


# How long a newcomer may join.


async def test_joining_ends_when_max_buffer_is_passed(upstream: StartUpstream, reducing: OpenSession) -> None:
    stepwise = Stepwise()
    server = await upstream(stepwise)
    session = reducing(max_buffer=4 * KIB)
    first = await session.get(server.url)
    stepwise.say(b"a" * KIB, b"b" * KIB)
    assert len(await first.content.readexactly(2 * KIB)) == 2 * KIB
    second = await session.get(server.url)
    assert len(server.requests) == 1
    stepwise.say(b"c" * KIB, b"d" * KIB)
    await eventually(lambda: not broadcast_of(session).is_open)
    third = asyncio.ensure_future(session.get(server.url))
    await server.asked(2)
    stepwise.say()
    stepwise.say(b"other", number=2)
    stepwise.say(number=2)
    whole = b"".join([letter * KIB for letter in (b"a", b"b", b"c", b"d")])
    assert await asyncio.gather(first.read(), second.read()) == [whole[2 * KIB :], whole]
    assert await (await third).read() == b"other"
    assert len(server.requests) == 2


async def test_joining_ends_after_max_age(upstream: StartUpstream, reducing: OpenSession) -> None:
    stepwise = Stepwise()
    server = await upstream(stepwise)
    session = reducing(max_age=0.1)
    begun = time.monotonic()
    first = await session.get(server.url)
    stepwise.say(b"a")
    broadcast = broadcast_of(session)
    await eventually(lambda: not broadcast.is_open)
    assert 0.05 < time.monotonic() - begun < 0.3
    second = await session.get(server.url)
    assert len(server.requests) == 2
    for number in (1, 2):
        stepwise.say(b"b", number=number)
        stepwise.say(number=number)
    assert (await first.read(), await second.read()) == (b"ab", b"b")


@pytest.mark.parametrize("how", ["forget", "write"])
async def test_joining_ends_with_forget_and_with_an_answered_write(
    upstream: StartUpstream, reducing: OpenSession, how: str
) -> None:
    stepwise = Stepwise()

    async def answer(exchange: Exchange) -> None:
        if exchange.method == "GET":
            await stepwise(exchange)
        else:
            await exchange.respond(b"written")

    server = await upstream(answer)
    session = reducing()
    first = await session.get(server.url)
    stepwise.say(b"old")
    second = await session.get(server.url)
    assert len(server.requests) == 1
    if how == "forget":
        session.forget(server.url)
        number = 2
    else:
        async with session.post(server.url):
            number = 3
    assert not broadcast_of(session).is_open
    third = await session.get(server.url)
    assert len(server.requests) == number
    stepwise.say(b"new", number=number)
    for one in (1, number):
        stepwise.say(number=one)
    assert [await response.read() for response in (first, second, third)] == [b"old", b"old", b"new"]


async def test_without_any_buffer_those_who_wait_for_the_head_share(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    stepwise = Stepwise()
    server = await upstream(stepwise)
    session = reducing(max_buffer=0)
    calls = [asyncio.ensure_future(session.get(server.url)) for _ in range(3)]
    responses = await asyncio.gather(*calls)
    assert len(server.requests) == 1
    reads = [asyncio.ensure_future(response.read()) for response in responses]
    chunks = [pattern(3 * KIB, number) for number in range(20)]
    stepwise.say(*chunks)
    await eventually(lambda: not broadcast_of(session).is_open)
    late = await session.get(server.url)
    assert len(server.requests) == 2
    late.close()
    stepwise.say()
    assert await asyncio.gather(*reads) == [b"".join(chunks)] * 3


@pytest.mark.parametrize("limits", [{"max_buffer": 0}, {"max_buffer_total": 0}], ids=str)
@pytest.mark.parametrize("members", [1, 3])
async def test_an_http_chunk_that_ends_later_than_its_bytes_holds_nobody_up_where_no_buffer_is_left(
    upstream: StartUpstream, reducing: OpenSession, members: int, limits: dict[str, int]
) -> None:
    pieces: asyncio.Queue[bytes] = asyncio.Queue()

    async def answer(exchange: Exchange) -> None:
        await exchange.head(Transfer_Encoding="chunked")
        while piece := await pieces.get():
            await exchange.send(piece)

    server = await upstream(answer)
    session = reducing(**limits)
    responses = await asyncio.gather(*[session.get(server.url) for _ in range(members)])
    for word in (b"hello", b"world"):
        pieces.put_nowait(b"5\r\n" + word)
        for response in responses:
            async with asyncio.timeout(0.5):
                assert await response.content.readexactly(5) == word
        pieces.put_nowait(b"\r\n")
        # The end of the chunk, which is no byte to read, arrives and is passed on.
        await asyncio.sleep(0.02)
    pieces.put_nowait(b"0\r\n\r\n")
    async with asyncio.timeout(0.5):
        assert await asyncio.gather(*[response.read() for response in responses]) == [b""] * members


# Memory and pace.


class Flood:
    """An upstream's answer of a given body, as fast as it is taken. `sent` are the bytes that were written."""

    def __init__(self, body: bytes, piece: int = 64 * KIB) -> None:
        self.body = body
        self.piece = piece
        self.sent = 0

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.head(Content_Length=len(self.body))
        for start in range(0, len(self.body), self.piece):
            await exchange.send(self.body[start : start + self.piece])
            self.sent = min(len(self.body), start + self.piece)


@pytest.fixture
def peak(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The most bytes that all broadcasts of one object kept together, and the largest chunk."""
    found = [0, 0]
    genuine = Broadcast.feed

    def feed(self: Broadcast, data: bytes, *, ends_part: bool = False) -> None:
        genuine(self, data, ends_part=ends_part)
        found[:] = [max(found[0], self._budget.used), max(found[1], len(data) + CHUNK_OVERHEAD)]

    monkeypatch.setattr(Broadcast, "feed", feed)
    return found


async def test_a_slow_reader_is_cut_off_and_holds_nobody_up_any_longer(
    upstream: StartUpstream, reducing: OpenSession, monkeypatch: pytest.MonkeyPatch, noise: list[Any]
) -> None:
    stall_timeout_is(monkeypatch, 0.1)
    flood = Flood(pattern(MIB))
    server = await upstream(flood)
    session = reducing(max_buffer=64 * KIB, read_bufsize=8 * KIB)
    slow, *fast = await asyncio.gather(*[session.get(server.url) for _ in range(4)])
    assert await slow.content.readexactly(100) == flood.body[:100]
    begun = time.monotonic()
    assert await asyncio.gather(*[response.read() for response in fast]) == [flood.body] * 3
    assert 0.09 < time.monotonic() - begun < 1.0
    with pytest.raises(ClientPayloadError, match="too long"):
        await slow.read()
    assert len(server.requests) == 1
    await eventually(lambda: nothing_is_left(reducer_of(session)))


async def test_an_idle_holder_of_a_response_does_not_stop_others_from_reading_32_mib(
    upstream: StartUpstream, reducing: OpenSession, monkeypatch: pytest.MonkeyPatch, peak: list[int]
) -> None:
    stall_timeout_is(monkeypatch, 0.05)
    flood = Flood(pattern(32 * MIB))
    server = await upstream(flood)
    session = reducing()
    holder, reader = await asyncio.gather(*[session.get(server.url) for _ in range(2)])
    assert await reader.read() == flood.body
    assert peak[0] <= 4 * MIB + peak[1]
    with pytest.raises(ClientPayloadError):
        await holder.read()
    assert len(server.requests) == 1
    await eventually(lambda: nothing_is_left(reducer_of(session)))


async def test_all_bodies_together_keep_no_more_than_max_buffer_total(
    upstream: StartUpstream, reducing: OpenSession, peak: list[int]
) -> None:
    flood = Flood(pattern(2 * MIB))
    server = await upstream(flood)
    session = reducing(max_buffer=MIB, max_buffer_total=512 * KIB, read_bufsize=16 * KIB)
    budget = table_of(session).budget

    async def reads(number: int) -> bytes:
        async with session.get(f"{server.url}/{number % 5}") as response:
            body = b""
            async for data in response.content.iter_chunked(10_000 + 1000 * number):
                body += data
                await asyncio.sleep(0)
            return body

    for body in await asyncio.gather(*[reads(number) for number in range(15)]):
        assert body == flood.body
    # Where the budget is spent, each goes on chunk by chunk.
    assert 256 * KIB < peak[0] <= 512 * KIB + 5 * peak[1]
    assert budget.used == 0
    assert len(server.requests) == 5


async def test_pressure_reaches_the_upstream_while_nobody_reads(
    upstream: StartUpstream, reducing: OpenSession, monkeypatch: pytest.MonkeyPatch, peak: list[int], noise: list[Any]
) -> None:
    # No clock runs while all are slow.
    stall_timeout_is(monkeypatch, 0.0)
    flood = Flood(pattern(32 * MIB), piece=MIB)
    server = await upstream(flood)
    session = reducing(max_buffer=MIB)
    responses = await asyncio.gather(*[session.get(server.url) for _ in range(3)])
    exchange = server.requests[0]
    await eventually(lambda: broadcast_of(session)._room is not None)
    await eventually(lambda: exchange.writer.transport.get_write_buffer_size() > 0)
    before = -1
    while before != flood.sent:
        before = flood.sent
        await asyncio.sleep(0.02)
    assert flood.sent < 32 * MIB
    assert peak[0] <= MIB + peak[1]
    assert await asyncio.gather(*[response.read() for response in responses]) == [flood.body] * 3
    assert peak[0] <= MIB + peak[1]
    assert len(server.requests) == 1


async def test_a_lone_call_that_does_not_read_stops_the_upstream_too(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    flood = Flood(pattern(32 * MIB), piece=MIB)
    server = await upstream(flood)
    session = reducing(max_buffer=MIB)
    response = await session.get(server.url)
    exchange = server.requests[0]
    await eventually(lambda: exchange.writer.transport.get_write_buffer_size() > 0)
    before = -1
    while before != flood.sent:
        before = flood.sent
        await asyncio.sleep(0.02)
    assert flood.sent < 32 * MIB
    assert await response.read() == flood.body


# Every kind of body, every way to read it.


async def _chunked(exchange: Exchange, body: bytes) -> None:
    await exchange.head(Transfer_Encoding="chunked")
    for start in range(0, len(body), 1000):
        await exchange.chunk(body[start : start + 1000])
    await exchange.chunk(b"")


async def _with_length(exchange: Exchange, body: bytes) -> None:
    await exchange.head(Content_Length=len(body))
    for start in range(0, len(body), 5000):
        await exchange.send(body[start : start + 5000])


async def _gzip(exchange: Exchange, body: bytes) -> None:
    packed = gzip.compress(body)
    await exchange.head(Content_Length=len(packed), Content_Encoding="gzip")
    for start in range(0, len(packed), 5000):
        await exchange.send(packed[start : start + 5000])
        await asyncio.sleep(0)


async def _gzip_chunked(exchange: Exchange, body: bytes) -> None:
    packed = gzip.compress(body)
    await exchange.head(Transfer_Encoding="chunked", Content_Encoding="gzip")
    for start in range(0, len(packed), 3000):
        await exchange.chunk(packed[start : start + 3000])
    await exchange.chunk(b"")


async def _until_close(exchange: Exchange, body: bytes) -> None:
    await exchange.head(Connection="close")
    await exchange.send(body)
    exchange.writer.close()


Send = Callable[[Exchange, bytes], Awaitable[None]]
KINDS = [_chunked, _with_length, _gzip, _gzip_chunked, _until_close]
# Lines, for `readline`; gzip is to have something to do, and not too much.
BODY = b"\n".join(bytes(random.Random(n).choices(b"abcdefgh", k=n % 100)) for n in range(1500)) + b"\nend"


async def _read(response: ClientResponse) -> bytes:
    return await response.read()


async def _text(response: ClientResponse) -> bytes:
    return (await response.text()).encode()


async def _sevens(response: ClientResponse) -> bytes:
    pieces = [piece async for piece in response.content.iter_chunked(7)]
    assert all(len(piece) <= 7 for piece in pieces)
    return b"".join(pieces)


async def _lines(response: ClientResponse) -> bytes:
    lines = []
    while line := await response.content.readline():
        lines.append(line)
    assert all(line.endswith(b"\n") for line in lines[:-1])
    return b"".join(lines)


async def _chunks(response: ClientResponse) -> bytes:
    return b"".join([data async for data, _ in response.content.iter_chunks()])


async def _any(response: ClientResponse) -> bytes:
    return b"".join([data async for data in response.content.iter_any()])


async def _exactly(response: ClientResponse) -> bytes:
    start = await response.content.readexactly(1234)
    return start + await response.content.read()


async def _slowly(response: ClientResponse) -> bytes:
    body = b""
    async for data in response.content.iter_chunked(4096):
        body += data
        await asyncio.sleep(0)
    return body


STYLES = [_read, _text, _sevens, _lines, _chunks, _any, _exactly, _slowly]


@pytest.mark.parametrize("read_bufsize", [64, 2**16])
@pytest.mark.parametrize("send", KINDS, ids=lambda send: send.__name__.strip("_"))
async def test_readers_of_every_style_get_exactly_the_bytes(
    upstream: StartUpstream, reducing: OpenSession, send: Send, read_bufsize: int
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await send(exchange, BODY)

    server = await upstream(answer)
    session = reducing(read_bufsize=read_bufsize)

    async def one(style: Callable[[ClientResponse], Awaitable[bytes]]) -> bytes:
        async with session.get(server.url) as response:
            return await style(response)

    herd = asyncio.gather(*[one(style) for style in STYLES])
    await waiting(reducer_of(session), len(STYLES) - 1)
    gate.set()
    assert await herd == [BODY] * len(STYLES)
    assert len(server.requests) == 1
    # And one that is alone.
    assert await one(_chunks) == BODY
    assert len(server.requests) == 2
    await eventually(lambda: nothing_is_left(reducer_of(session)))


async def test_a_tiny_buffer_for_readers_of_a_broadcast_holds_nothing_up(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    flood = Flood(BODY, piece=777)
    server = await upstream(flood)
    session = reducing(read_bufsize=1, max_buffer=KIB)
    # aiohttp takes no lines that are longer than its buffer.
    styles = [style for style in STYLES if style is not _lines]
    responses = await asyncio.gather(*[session.get(server.url) for _ in styles])
    reads = [style(response) for style, response in zip(styles, responses, strict=True)]
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.gather(*reads) == [BODY] * len(styles)
    assert len(server.requests) == 1


async def test_heads_of_streams_are_shared_and_have_no_body(upstream: StartUpstream, reducing: OpenSession) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.head(Transfer_Encoding="chunked", X_Stream="yes")

    server = await upstream(answer)
    session = reducing()
    calls = [asyncio.ensure_future(session.head(server.url)) for _ in range(5)]
    await server.asked()
    await waiting(reducer_of(session), 4)
    gate.set()
    for response in await asyncio.gather(*calls):
        assert (response.status, response.headers["X-Stream"], await response.read()) == (200, "yes", b"")
    assert len(server.requests) == 1
    await eventually(lambda: nothing_is_left(reducer_of(session)))


# Bodies that end too early.


async def _drops(exchange: Exchange) -> None:
    exchange.drop()


async def _closes(exchange: Exchange) -> None:
    exchange.writer.close()


@pytest.mark.parametrize("members", [1, 4])
@pytest.mark.parametrize("how", [_drops, _closes], ids=lambda how: how.__name__.strip("_"))
async def test_a_body_that_breaks_midway_is_a_whole_one_for_nobody(
    upstream: StartUpstream,
    reducing: OpenSession,
    how: Callable[[Exchange], Awaitable[None]],
    members: int,
    noise: list[Any],
) -> None:
    broken = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.head(Transfer_Encoding="chunked")
        await exchange.chunk(b"x" * 1000)
        await broken.wait()
        await how(exchange)

    server = await upstream(answer)
    session = reducing()
    responses = await asyncio.gather(*[session.get(server.url) for _ in range(members)])
    # One has read all that there was, one waits, the others have read nothing.
    assert await responses[-1].content.readexactly(1000) == b"x" * 1000
    reads = [asyncio.ensure_future(responses[0].read())]
    await asyncio.sleep(0)
    broken.set()
    await eventually(lambda: reads[0].done())
    reads += [asyncio.ensure_future(response.read()) for response in responses[1:]]
    outcomes = await asyncio.gather(*reads, return_exceptions=True)
    assert all(isinstance(outcome, (ClientPayloadError, ClientConnectionError)) for outcome in outcomes), outcomes
    assert len({id(outcome) for outcome in outcomes}) == members
    assert len(server.requests) == 1
    await eventually(lambda: nothing_is_left(reducer_of(session)))


@pytest.mark.parametrize("members", [1, 4])
@pytest.mark.parametrize("at_once", [True, False], ids=["with-the-head", "later"])
async def test_a_body_shorter_than_its_content_length_fails_all(
    upstream: StartUpstream, reducing: OpenSession, members: int, at_once: bool
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        if at_once:
            await exchange.respond(b"x" * 1000, Content_Length=1001)
        else:
            await exchange.head(Content_Length=1001)
            await exchange.send(b"x" * 1000)
        exchange.writer.close()

    server = await upstream(answer)
    session = reducing()

    async def one() -> bytes:
        async with session.get(server.url) as response:
            return await response.read()

    tasks = [asyncio.create_task(one()) for _ in range(members)]
    await server.asked()
    await waiting(reducer_of(session), members - 1)
    gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ClientPayloadError] * members
    assert len(server.requests) == 1


@pytest.mark.parametrize("members", [1, 3])
def test_a_reader_that_an_empty_end_of_a_chunk_wakes_is_told_that_the_body_broke_behind_it(members: int) -> None:
    async def answer(line: Line, number: int) -> None:
        await line.head("Transfer-Encoding: chunked")
        await line.send(b"5\r\nhello")
        await asyncio.sleep(1)
        await line.send(b"\r\n")
        await asyncio.sleep(1)
        line.close()

    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        async def reads() -> None:
            async with session.get("http://far.end/") as response:
                await asyncio.sleep(3)
                # Only now there is room for the end of the chunk; the connection is lost by then.
                assert await response.content.readexactly(5) == b"hello"
                with pytest.raises(ClientPayloadError):
                    await response.read()

        async with asyncio.timeout(100):
            await asyncio.gather(*[reads() for _ in range(members)])
        assert len(far_end.asked) == 1

    run_on_the_wire(answer, main, max_buffer=0)


# At random.

# A pause that spends all of the time for which slow readers may hold others up (seconds).
LONG = 60.0


def interleaving(seed: int) -> None:
    """Some readers of one URL, all of their choices drawn from the seed. Raises AssertionError."""
    choose = random.Random(seed)
    body = pattern(choose.choice([0, 1, 1000, 20_000, 100_000]), seed)
    breaks_at = choose.choice([None, None, None, len(body) // 2])
    in_chunks = choose.random() < 0.5
    piece = choose.choice([1, 100, 1000, 5000]) if len(body) < 50_000 else choose.choice([1000, 5000, 50_000])
    drips = choose.choice([0.0, 0.0, 0.01, 0.5])
    broken: set[int] = set()

    async def answer(line: Line, number: int) -> None:
        await asyncio.sleep(choose.choice([0, 0, 1]))
        await line.head("Transfer-Encoding: chunked" if in_chunks else f"Content-Length: {len(body)}")
        for start in range(0, len(body), piece):
            if breaks_at is not None and start >= breaks_at and number == 1:
                broken.add(number)
                line.close()
                return
            data = body[start : start + piece]
            await (line.chunk(data) if in_chunks else line.send(data))
            if drips and choose.random() < 0.1:
                await asyncio.sleep(drips)
        if in_chunks:
            await line.chunk(b"")

    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        longest = 0.0

        async def visit(comes: float, leaves: str, pause: float) -> None:
            await asyncio.sleep(comes)
            paused = False
            read = b""
            try:
                async with session.get("http://far.end/") as response:
                    stops_after = choose.randint(0, len(body))
                    style = choose.choice([1, 7, 1000, 10**6]) if len(body) < 5000 else choose.choice([1000, 10**6])
                    while piece := await response.content.read(choose.randint(1, style)):
                        read += piece
                        assert body.startswith(read), "foreign bytes"
                        if len(read) >= stops_after:
                            if leaves == "releases":
                                response.release()
                                return
                            if leaves == "closes":
                                response.close()
                                return
                            if pause and not paused:
                                paused = True
                                await asyncio.sleep(pause)
            except ClientPayloadError as error:
                # (Once slow readers have spent the time that all of them share, nobody is waited for.)
                fair = broken or (0 < pause < longest and "cut off" in str(error)) or pause == LONG
                if not fair:
                    raise AssertionError(f"failed for nothing, having paused for {pause} s") from error
            except ClientConnectionError as error:
                if not broken:
                    raise AssertionError(f"failed for nothing, having paused for {pause} s") from error
            else:
                assert read == body, f"{len(read)} bytes of {len(body)} are no whole body"

        async def cancelled(task: "asyncio.Task[None]", after: float) -> None:
            await asyncio.sleep(after)
            is_ours = task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                assert is_ours, "cancelled by nobody"

        visits: list[Any] = []
        for _ in range(choose.randint(1, 7)):
            leaves = choose.choice(["", "", "", "releases", "closes", "is cancelled"])
            comes = choose.choice([0, 0, 0, 0.005, 0.5, 1, 1.2])
            pause = choose.choice([0, 0, 0, 0.001, 0.1, 1, LONG])
            task = asyncio.create_task(visit(comes, leaves, pause))
            visits.append(task)
            longest = max(longest, pause)
            if leaves == "is cancelled":
                visits.append(cancelled(task, comes + choose.choice([0, 0.001, 0.5, 1, 1.5])))
        outcomes = await asyncio.gather(*visits, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome
        budget = table_of(session).budget
        assert budget.used == 0
        assert len(far_end.asked) <= len(visits)

    run_on_the_wire(
        answer,
        main,
        max_buffer=choose.choice([0, 1000, 10_000, 2**22]),
        max_buffer_total=choose.choice([0, 5000, 2**26, 2**26]),
        max_age=choose.choice([0.5, 5.0, 1000.0]),
        max_wait=choose.choice([0.3, 30.0]),
        read_bufsize=choose.choice([2, 100, 2**14, 2**16]),
        timeout=aiohttp.ClientTimeout(total=None),
    )


@pytest.mark.parametrize("block", range(4))
def test_random_readers_who_end_well_have_exactly_the_bytes(block: int) -> None:
    for seed in range(block * 50, block * 50 + 50):
        try:
            interleaving(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}: tests.test_client_streaming.interleaving({seed})")
            raise


if __name__ == "__main__":
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        try:
            interleaving(number)
        except BaseException as failure:
            sys.stderr.write(f"seed {number}: {failure!r}\n")
            if not isinstance(failure, (Exception, asyncio.CancelledError)):
                raise
