"""A response that was shared is told from a genuine one by nothing: all of its surface, in all of its states."""

import asyncio
import functools
import gc
import gzip
import json
import warnings
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientResponse

from tests.harness import eventually
from tests.upstream import Exchange, OpenSession, StartUpstream, Upstream

LARGE = bytes(range(256)) * 2048
PACKED = gzip.compress(b"".join(b"%d" % number for number in range(300)))
TEXT = "grüße\n".encode("iso-8859-1")

Options = dict[str, Any]


@dataclass
class Case:
    """An answer, and how it is asked for; `at_once` where all of it comes with its head."""

    send: Callable[[Exchange, asyncio.Event], Awaitable[None]]
    options: Options
    at_once: bool = True
    method: str = "GET"


def whole(body: bytes = b"hello", status: str = "200 OK", **headers: Any) -> Any:
    """An answer in one piece."""

    async def send(exchange: Exchange, _rest: asyncio.Event) -> None:
        await exchange.respond(body, status, **headers)

    return send


def headless(status: str, **headers: Any) -> Any:
    """An answer that has no body by its status."""

    async def send(exchange: Exchange, _rest: asyncio.Event) -> None:
        await exchange.head(status, **headers)

    return send


def chunked(*chunks: bytes, rest: tuple[bytes, ...] = (), **headers: Any) -> Any:
    """An answer in HTTP chunks, all in one piece but the `rest`, which comes later."""

    async def send(exchange: Exchange, more: asyncio.Event) -> None:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{lines}\r\n".encode()
        first = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in chunks)
        if not rest:
            await exchange.send(head + first + b"0\r\n\r\n")
            return
        await exchange.send(head + first)
        await more.wait()
        for one in rest:
            await exchange.chunk(one)
        await exchange.chunk(b"")

    return send


def streamed(body: bytes, before: int, **headers: Any) -> Any:
    """An answer with a length, of which so many bytes come with the head."""

    async def send(exchange: Exchange, more: asyncio.Event) -> None:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode()
        await exchange.send(head + body[:before])
        await more.wait()
        await exchange.send(body[before:])

    return send


async def redirecting(exchange: Exchange, rest: asyncio.Event) -> None:
    if exchange.target == "/final":
        await exchange.respond(b"there", Set_Cookie="final=1")
    else:
        await exchange.respond(b"not here", "302 Found", Location="/final", Set_Cookie="first=1")


CASES = {
    "whole": Case(whole(), {}),
    "with headers": Case(
        whole(
            b'{"a": [1, 2]}',
            Content_Type='application/json; charset="utf-8"',
            Set_Cookie="a=1; Path=/; HttpOnly",
            Content_Disposition="attachment; filename=a.json",
            Link='<https://example.test/2>; rel="next", </3>; rel=last',
            ETag='"x"',
        ),
        {},
    ),
    "text": Case(whole(TEXT, Content_Type="text/plain; charset=iso-8859-1"), {}),
    "of no known encoding": Case(whole(TEXT, Content_Type="text/plain"), {}),
    "empty": Case(whole(b""), {}),
    "head": Case(whole(), {}, method="HEAD"),
    "204": Case(headless("204 No Content"), {}),
    "304": Case(headless("304 Not Modified", ETag='"x"'), {}),
    "404": Case(whole(b"nowhere", "404 Not Found"), {}),
    "500 without a reason": Case(whole(b"", "500 "), {}),
    "chunks": Case(chunked(b"one", b"two", b"three\n"), {}),
    "gzip": Case(whole(gzip.compress(b"hello" * 100), Content_Encoding="gzip"), {}),
    "gzip left alone": Case(
        whole(gzip.compress(b"hello" * 100, mtime=0), Content_Encoding="gzip"), {"auto_decompress": False}
    ),
    "gzip in chunks": Case(
        chunked(*(PACKED[i : i + 50] for i in range(0, len(PACKED), 50)), Content_Encoding="gzip"), {}
    ),
    "redirect": Case(redirecting, {}),
    "redirect not followed": Case(redirecting, {"allow_redirects": False}),
    "close": Case(whole(b"bye", Connection="close"), {}),
    "streamed": Case(streamed(LARGE, 100), {}, at_once=False),
    "streamed, only the head first": Case(streamed(b"x" * 100, 0), {}, at_once=False),
    "streamed in chunks": Case(chunked(b"one", b"two", rest=(b"three", LARGE)), {}, at_once=False),
    "streamed in chunks, only the head first": Case(chunked(rest=(b"three", b"four")), {}, at_once=False),
    "streamed gzip": Case(streamed(gzip.compress(LARGE), 50, Content_Encoding="gzip"), {}, at_once=False),
}


@dataclass
class Trio:
    """A genuine response, and two of a herd that shared one; `rest` lets the bodies come to their end."""

    genuine: ClientResponse
    leader: ClientResponse
    follower: ClientResponse
    rest: asyncio.Event
    server: Upstream

    def __iter__(self) -> Iterator[ClientResponse]:
        return iter((self.genuine, self.leader, self.follower))


class Studio:
    """Makes trios of one upstream, whose answers wait for those who wait for them."""

    def __init__(self, start: StartUpstream, reducing: OpenSession, genuine: aiohttp.ClientSession) -> None:
        self._start = start
        self._reducing = reducing
        self._genuine = genuine
        self._session_options: Options = {}

    async def trio(self, case: Case, session_options: Options | None = None, **options: Any) -> Trio:
        rest, gate = asyncio.Event(), asyncio.Event()

        async def answer(exchange: Exchange) -> None:
            await gate.wait()
            await case.send(exchange, rest)

        server = await self._start(answer)
        gate.set()
        url = f"{server.url}/a?b=c#d"
        merged: Options = {**case.options, **options}
        async with asyncio.timeout(5):
            genuine = await self._genuine.request(case.method, url, **merged)
            gate.clear()
            session = self._reducing(cookie_jar=aiohttp.DummyCookieJar(), **(session_options or {}))
            sent = len(server.requests)
            calls = [asyncio.ensure_future(session.request(case.method, url, **merged)) for _ in range(2)]
            await eventually(lambda: bool(session.stats["waiting"] == 1))
            await server.asked(sent + 1)
            gate.set()
            leader, follower = await asyncio.gather(*calls)
        assert session.stats["executed"] == sent
        assert session.stats["reduced"] == sent
        return Trio(genuine, leader, follower, rest, server)


@contextmanager
def debugging(on: bool) -> Iterator[None]:
    """The running loop in debug mode."""
    loop = asyncio.get_running_loop()
    loop.slow_callback_duration = 60
    loop.set_debug(on)
    try:
        yield
    finally:
        loop.set_debug(False)


@contextmanager
def only_new_garbage() -> Iterator[None]:
    """Let the garbage collector look only at what is made from now on: it takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def outcome_of(call: Callable[[], Any]) -> Any:
    """What a call returns, or the type and the text of what it raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return plain(call())
    except Exception as exception:
        return type(exception), str(exception)


async def outcome_of_awaiting(call: Callable[[], Awaitable[Any]]) -> Any:
    """The same for what a coroutine gives."""
    try:
        async with asyncio.timeout(5):
            return plain(await call())
    except TimeoutError:
        raise
    except Exception as exception:
        return type(exception), str(exception)


def plain(value: Any) -> Any:
    """The value in a form that compares by what it says."""
    if isinstance(value, MappingProxyType):
        return dict(value)
    if isinstance(value, aiohttp.client_reqrep.ContentDisposition):
        return value.type, dict(value.parameters), value.filename
    if isinstance(value, asyncio.Future):
        return type(value).__name__, value.done(), value.done() and value.result()
    if hasattr(value, "getall"):
        return [(name, plain(one)) for name, one in value.items()]
    return value


def reader_of(response: ClientResponse) -> Any:
    content = response.content
    figures = {
        "type": type(content),
        "is_eof": content.is_eof(),
        "total_bytes": content.total_bytes,
        "total_raw_bytes": outcome_of(lambda: content.total_raw_bytes),
        "exception": (type(content.exception()), str(content.exception())),
    }
    if type(content) is aiohttp.StreamReader:
        figures["at_eof"] = content.at_eof()
        figures["limits"] = content.get_read_buffer_limits()
    return figures


def connection_of(response: ClientResponse) -> Any:
    connection = response.connection
    if connection is None:
        return None
    peer = connection.transport.get_extra_info("peername") if connection.transport is not None else None
    return type(connection), connection.closed, peer, repr(connection)


def equal_value(name: str) -> Callable[[ClientResponse], Any]:
    return lambda response: outcome_of(lambda: getattr(response, name))


# How each public attribute is looked at. One that a later aiohttp adds is to be considered: does it stand up for a
# response that aiohttp never received?
LOOKS: dict[str, Callable[[ClientResponse], Any]] = {
    **{
        name: equal_value(name)
        for name in (
            *("ATTRS", "charset", "closed", "content_disposition", "content_length", "content_type", "cookies"),
            *("headers", "host", "links", "method", "ok", "raw_headers", "real_url", "reason", "status", "url"),
            *("url_obj", "version", "output_size", "upload_complete"),
        )
    },
    "content": reader_of,
    "connection": connection_of,
    "get_encoding": lambda response: outcome_of(response.get_encoding),
    "history": lambda response: [portrait(one) for one in response.history],
    "request_info": lambda response: [plain(one) for one in response.request_info],
}
# These are acted out in the tests below.
ACTS = {"close", "json", "raise_for_status", "read", "release", "start", "text", "wait_for_close"}


def surface(response: ClientResponse) -> set[str]:
    return {name for name in dir(response) if not name.startswith("_")}


def portrait(response: ClientResponse) -> dict[str, Any]:
    """All that the response says about itself at this moment."""
    seen = {name: LOOKS[name](response) for name in sorted(surface(response) - ACTS)}
    return {**seen, "repr": repr(response), "type": type(response)}


async def acted_out(response: ClientResponse) -> dict[str, Any]:
    """What comes of all that may be done with a response, in this state."""
    return {
        "used": portrait(response),
        "content.read": await outcome_of_awaiting(response.content.read),
        "read": await outcome_of_awaiting(response.read),
        "text": await outcome_of_awaiting(response.text),
        "json": await outcome_of_awaiting(response.json),
        "json of anything": await outcome_of_awaiting(lambda: response.json(content_type=None)),
        "wait_for_close": await outcome_of_awaiting(response.wait_for_close),
        "raise_for_status": outcome_of(response.raise_for_status),
        "afterwards": portrait(response),
    }


def own_objects(trio: Trio) -> None:
    """What can be changed, or stands for its owner, is nobody else's."""
    leader, follower = trio.leader, trio.follower
    assert leader is not follower
    assert leader.cookies is not follower.cookies
    assert leader.request_info is not follower.request_info
    assert leader._history is not follower._history or leader._history == ()
    for one, other in zip(leader.history, follower.history, strict=True):
        assert one is not other
        assert one.cookies is not other.cookies
    if type(leader.content) is aiohttp.StreamReader:
        assert leader.content is not follower.content
    assert leader.connection is None or leader.connection is not follower.connection
    follower.cookies["added"] = "by one"
    assert "added" not in leader.cookies
    del follower.cookies["added"]


async def use_read(response: ClientResponse) -> None:
    await response.read()


async def use_release(response: ClientResponse) -> None:
    response.release()


async def use_close(response: ClientResponse) -> None:
    response.close()


async def use_context(response: ClientResponse) -> None:
    async with response:
        pass


async def use_read_in_context(response: ClientResponse) -> None:
    async with response:
        await response.read()


USES = [use_read, use_release, use_close, use_context, use_read_in_context]


async def compare(trio: Trio, case: Case, use: Callable[[ClientResponse], Awaitable[None]]) -> None:
    """Hold that the three are equal: untouched, when they were used, and whatever is done with them then."""
    assert surface(trio.genuine) - set(LOOKS) - ACTS == set(), "consider what is new"
    if not case.at_once:
        before = trio.genuine.content.total_bytes
        await eventually(lambda: all(response.content.total_bytes == before for response in trio))
    own_objects(trio)
    expected = portrait(trio.genuine)
    assert portrait(trio.leader) == expected
    assert portrait(trio.follower) == expected
    trio.rest.set()
    for response in trio:
        await use(response)
    done = [await acted_out(response) for response in trio]
    if not case.at_once and use not in (use_read, use_read_in_context):
        # How much of it had come is a matter of chance.
        for one in done:
            del one["used"], one["afterwards"]
    assert done[1] == done[0]
    assert done[2] == done[0]
    own_objects(trio)
    trio.genuine.close()


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
async def test_a_shared_response_is_told_from_a_genuine_one_by_nothing(
    case: Case, upstream: StartUpstream, reducing: OpenSession
) -> None:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as genuine:
        studio = Studio(upstream, reducing, genuine)
        for use in USES:
            await compare(await studio.trio(case), case, use)


async def test_so_it_is_in_debug_mode_and_nothing_is_complained_of(
    upstream: StartUpstream, reducing: OpenSession, noise: list[Any]
) -> None:
    with debugging(True):
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as genuine:
            studio = Studio(upstream, reducing, genuine)
            for name in ("whole", "chunks", "redirect", "head", "404", "streamed", "streamed in chunks"):
                for use in (use_read, use_context):
                    await compare(await studio.trio(CASES[name]), CASES[name], use)


async def test_every_public_attribute_of_a_response_was_considered() -> None:
    assert {name for name in dir(ClientResponse) if not name.startswith("_")} <= set(LOOKS) | ACTS


# Reading in every way there is.


async def by_chunks(response: ClientResponse) -> Any:
    return [one async for one in response.content.iter_chunks()]


async def by_readchunk(response: ClientResponse) -> Any:
    chunks = [await response.content.readchunk()]
    while chunks[-1] != (b"", False):
        chunks.append(await response.content.readchunk())
    return chunks


async def by_length(response: ClientResponse) -> Any:
    return [one async for one in response.content.iter_chunked(4)]


async def by_any(response: ClientResponse) -> Any:
    return b"".join([one async for one in response.content.iter_any()])


async def by_line(response: ClientResponse) -> Any:
    return [one async for one in response.content]


async def by_readline(response: ClientResponse) -> Any:
    return [await response.content.readline() for _ in range(4)]


async def by_separator(response: ClientResponse) -> Any:
    return [await response.content.readuntil(b"e") for _ in range(4)]


async def exactly(response: ClientResponse) -> Any:
    read = [await response.content.readexactly(3) for _ in range(2)]
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await response.content.readexactly(1000)
    return [*read, caught.value.partial, caught.value.expected]


async def by_n(response: ClientResponse) -> Any:
    read = [await response.content.read(2), await response.content.read(0), await response.content.read()]
    return [*read, await response.content.read()]


async def by_readany(response: ClientResponse) -> Any:
    read = b""
    while data := await response.content.readany():
        read += data
    return read


async def without_waiting(response: ClientResponse) -> Any:
    await response.content.wait_eof()
    return [response.content.read_nowait(4), response.content.read_nowait(), response.content.read_nowait()]


async def partly_then_read(response: ClientResponse) -> Any:
    return [await response.content.readexactly(2), await response.read(), await response.text()]


async def twice(response: ClientResponse) -> Any:
    return [await response.read(), await response.read(), response._body]


READS = [
    *(by_chunks, by_readchunk, by_length, by_any, by_line, by_readline, by_separator, exactly, by_n, by_readany),
    *(without_waiting, partly_then_read, twice),
]
LINES = (b"one\ntwo", b" three\n", b"four\n", b"and the end")
READABLE = {
    "whole": Case(whole(b"".join(LINES)), {}),
    "chunks": Case(chunked(*LINES), {}),
    "streamed": Case(streamed(b"".join(LINES), 10), {}, at_once=False),
    "streamed chunks": Case(chunked(*LINES[:2], rest=LINES[2:]), {}, at_once=False),
    "only the head first": Case(chunked(rest=LINES), {}, at_once=False),
}


@pytest.mark.parametrize("case", READABLE.values(), ids=list(READABLE))
async def test_a_shared_body_reads_as_a_genuine_one_in_every_way(
    case: Case, upstream: StartUpstream, reducing: OpenSession
) -> None:
    async with aiohttp.ClientSession() as genuine:
        studio = Studio(upstream, reducing, genuine)
        for read in READS:
            trio = await studio.trio(case)
            trio.rest.set()
            read_by_all = await asyncio.wait_for(asyncio.gather(*[read(response) for response in trio]), 5)
            if read is by_length and not case.at_once:
                # Where it was cut in waiting is a matter of chance.
                read_by_all = [b"".join(one) for one in read_by_all]
            if read in (by_chunks, by_readchunk) and "length" in trio.genuine.headers:
                read_by_all = [b"".join(data for data, _ in one) for one in read_by_all]
            assert read_by_all[1] == read_by_all[2] == read_by_all[0], read.__name__
            for response in trio:
                await response.read()
                response.release()
            assert portrait(trio.leader) == portrait(trio.follower) == portrait(trio.genuine)


@pytest.mark.parametrize("sizes", [(1,), (3, 1, 4, 1, 5), (70_000, 3, 200_000, 1)], ids=repr)
async def test_chunk_boundaries_stay_where_they_were_also_for_who_reads_late(
    sizes: tuple[int, ...], upstream: StartUpstream, reducing: OpenSession
) -> None:
    chunks = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    async with aiohttp.ClientSession() as genuine:
        trio = await Studio(upstream, reducing, genuine).trio(Case(chunked(rest=tuple(chunks)), {}))
        trio.rest.set()

        async def http_chunks(response: ClientResponse) -> list[bytes]:
            parts, ended = [b""], False
            async for data, ends in response.content.iter_chunks():
                if ended:
                    parts.append(b"")
                parts[-1] += data
                ended = ends
            return parts

        assert await http_chunks(trio.genuine) == chunks
        assert await http_chunks(trio.leader) == chunks
        # By now all of it has come.
        assert await http_chunks(trio.follower) == chunks


async def test_json_is_parsed_anew_for_each(upstream: StartUpstream, reducing: OpenSession) -> None:
    async with aiohttp.ClientSession() as genuine:
        case = Case(whole(b'{"a": [1]}', Content_Type="application/json"), {})
        trio = await Studio(upstream, reducing, genuine).trio(case)
        values = [await response.json() for response in trio]
        values[1]["a"].append("by the leader")
        assert values[0] == values[2] == await trio.leader.json() == {"a": [1]}
        used: list[str] = []

        def loads(text: str) -> Any:
            used.append(text)
            return json.loads(text)

        assert await trio.follower.json(loads=loads) == {"a": [1]}
        assert used == ['{"a": [1]}']


async def test_json_of_another_type_fails_for_each_with_its_own_request_info(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    async with aiohttp.ClientSession() as genuine:
        trio = await Studio(upstream, reducing, genuine).trio(Case(whole(b"{}", Content_Type="text/html"), {}))
        for response in trio:
            with pytest.raises(aiohttp.ContentTypeError) as caught:
                await response.json()
            assert caught.value.request_info is response.request_info
            assert caught.value.status == 200


async def herd_of(
    count: int, server: Upstream, gate: asyncio.Event, session: Any, **options: Any
) -> list[ClientResponse | BaseException]:
    """What so many identical GETs at once come to."""
    gate.clear()
    calls = [asyncio.ensure_future(session.get(f"{server.url}/#{number}", **options)) for number in range(count)]
    await eventually(lambda: bool(session.stats["waiting"] == count - 1))
    gate.set()
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)


@pytest.mark.parametrize("of", ["session", "call", "callable of the session", "callable of the call"])
async def test_raise_for_status_raises_for_each_its_own(
    of: str, upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate = asyncio.Event()
    asked: list[ClientResponse] = []

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond(LARGE, "404 Not Found", X_A="b")

    async def check(response: ClientResponse) -> None:
        asked.append(response)
        response.raise_for_status()

    server = await upstream(answer)
    value = {"raise_for_status": check if of.startswith("callable") else True}
    session = reducing(**(value if of.endswith("session") else {}))
    caught: Any = await herd_of(3, server, gate, session, **(value if of.endswith("call") else {}))
    assert {type(one) for one in caught} == {aiohttp.ClientResponseError}
    assert len({id(one) for one in caught}) == 3
    assert [one.request_info.real_url.fragment for one in caught] == ["0", "1", "2"]
    assert [(one.status, one.message, one.headers["X-A"]) for one in caught] == [(404, "Not Found", "b")] * 3
    assert len({id(one) for one in asked}) == (3 if of.startswith("callable") else 0)
    assert all(one.closed for one in asked)
    assert len(server.requests) == 1


async def test_raise_for_status_of_one_is_not_that_of_the_others(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond(b"nowhere", "404 Not Found")

    server, session = await upstream(answer), reducing()
    calls = [
        asyncio.ensure_future(session.get(server.url, raise_for_status=value)) for value in (True, False, None, True)
    ]
    await eventually(lambda: bool(session.stats["waiting"] == 3))
    gate.set()
    done: Any = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(one, aiohttp.ClientResponseError) for one in done] == [True, False, False, True]
    assert [await one.read() for one in done[1:3]] == [b"nowhere"] * 2


class Early(ClientResponse):
    """Reads its body when it starts."""

    async def start(self, connection: Any) -> ClientResponse:
        response = await super().start(connection)
        self.early = await self.read()
        return response


class Tagged(ClientResponse):
    """Has an attribute of its own from the beginning."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tags: list[str] = []

    @property
    def shout(self) -> str:
        return f"{self.status}!"


class Peeking(ClientResponse):
    """Reads a piece of its body when it starts."""

    async def start(self, connection: Any) -> ClientResponse:
        response = await super().start(connection)
        self.first = await self.content.read(2)
        return response


@pytest.mark.parametrize("case", READABLE.values(), ids=list(READABLE))
async def test_a_response_class_that_reads_when_it_starts_gets_its_bytes(
    case: Case, upstream: StartUpstream, reducing: OpenSession
) -> None:
    for debug in (False, True):
        for response_class in (Early, Peeking):
            gate, rest = asyncio.Event(), asyncio.Event()
            rest.set()

            async def answer(exchange: Exchange, gate: asyncio.Event = gate, rest: asyncio.Event = rest) -> None:
                await gate.wait()
                await case.send(exchange, rest)

            server = await upstream(answer)
            with debugging(debug):
                session = reducing(response_class=response_class)
                responses: Any = await herd_of(3, server, gate, session)
                assert len(server.requests) == 1
                async with aiohttp.ClientSession(response_class=response_class) as genuine:
                    # And one without us, for comparison; and one that is alone.
                    responses += [await genuine.get(server.url), await session.get(server.url)]
                    assert {type(one) for one in responses} == {response_class}
                    bodies = [await one.read() for one in responses]
                if response_class is Early:
                    assert [one.early for one in responses] == [b"".join(LINES)] * 5
                    assert bodies == [b"".join(LINES)] * 5
                else:
                    assert [one.first for one in responses] == [b"on"] * 5
                    assert bodies == [b"".join(LINES)[2:]] * 5


@pytest.mark.parametrize("case", READABLE.values(), ids=list(READABLE))
async def test_a_response_class_with_attributes_of_its_own_has_them_for_each(
    case: Case, upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate, rest = asyncio.Event(), asyncio.Event()
    rest.set()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await case.send(exchange, rest)

    server, session = await upstream(answer), reducing(response_class=Tagged)
    responses: Any = await herd_of(3, server, gate, session)
    responses[0].tags.append("mine")
    assert [one.tags for one in responses] == [["mine"], [], []]
    assert [one.shout for one in responses] == ["200!"] * 3
    assert [await one.read() for one in responses] == [b"".join(LINES)] * 3


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_encoding_is_detected_for_each_by_the_sessions_resolver(
    at_once: bool, upstream: StartUpstream, reducing: OpenSession
) -> None:
    asked: list[tuple[ClientResponse, bytes]] = []

    def resolve(response: ClientResponse, body: bytes) -> str:
        asked.append((response, body))
        return "iso-8859-1"

    send = whole(TEXT, Content_Type="text/plain") if at_once else streamed(TEXT, 2, Content_Type="text/plain")
    async with aiohttp.ClientSession(fallback_charset_resolver=resolve) as genuine:
        studio = Studio(upstream, reducing, genuine)
        trio = await studio.trio(Case(send, {}), {"fallback_charset_resolver": resolve})
        trio.rest.set()
        assert [await response.text() for response in trio] == ["grüße\n"] * 3
        assert asked == [(response, TEXT) for response in trio]
        assert [response.get_encoding() for response in trio] == ["iso-8859-1"] * 3
        assert [await response.text("utf-8", errors="replace") for response in trio] == ["gr��e\n"] * 3


# The connection underneath.


async def test_the_connection_may_be_looked_at_while_the_body_comes(
    upstream: StartUpstream, reducing: OpenSession, noise: list[Any]
) -> None:
    async with aiohttp.ClientSession() as genuine:
        trio = await Studio(upstream, reducing, genuine).trio(CASES["streamed"])
        for response in trio:
            connection = response.connection
            assert connection is not None
            transport = connection.transport
            assert transport is not None
            assert f"http://127.0.0.1:{transport.get_extra_info('peername')[1]}" == trio.server.url
            assert transport.get_extra_info("socket") is not None
            assert transport.get_extra_info("nothing", "of the kind") == "of the kind"
            assert not transport.is_closing()
            assert not connection.closed
            assert connection.protocol is not None
            assert connection.protocol.is_connected()
        trio.rest.set()
        for response in trio:
            held = response.connection
            assert await response.read() == LARGE
            assert response.connection is None
            assert held.transport is None
            assert held.closed


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_closing_the_transport_ends_that_response_alone(
    how: str, upstream: StartUpstream, reducing: OpenSession
) -> None:
    async with aiohttp.ClientSession() as genuine:
        trio = await Studio(upstream, reducing, genuine).trio(CASES["streamed"])
        failed = []
        for response in (trio.genuine, trio.follower):
            getattr(response.connection.transport, how)()
            # Whoever reads is told, and does not wait for what will never come.
            failed.append(await outcome_of_awaiting(response.read))
            assert response.closed
        assert failed[1][0] is failed[0][0]
        trio.rest.set()
        assert await trio.leader.read() == LARGE


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_closing_the_transport_wakes_who_reads_from_it(
    how: str, upstream: StartUpstream, reducing: OpenSession
) -> None:
    async with aiohttp.ClientSession() as genuine:
        trio = await Studio(upstream, reducing, genuine).trio(CASES["streamed"])
        failed = []
        for response in (trio.genuine, trio.follower):
            transport = response.connection.transport
            await response.content.readexactly(100)
            reading = asyncio.ensure_future(outcome_of_awaiting(response.read))
            await asyncio.sleep(0)
            getattr(transport, how)()
            failed.append((await reading)[0])
        assert failed[1] is failed[0]
        trio.rest.set()
        assert await trio.leader.read() == LARGE


async def test_closing_the_transports_of_all_ends_the_request(
    upstream: StartUpstream, reducing: OpenSession, noise: list[Any]
) -> None:
    async with aiohttp.ClientSession() as genuine:
        trio = await Studio(upstream, reducing, genuine).trio(CASES["streamed"])
        trio.genuine.close()
        for response in (trio.leader, trio.follower):
            response.connection.transport.close()
        await asyncio.wait_for(trio.server.requests[1].left.wait(), 5)
        for response in trio:
            response.close()


async def test_callbacks_of_the_connection_are_called_when_the_response_lets_go(
    upstream: StartUpstream, reducing: OpenSession, noise: list[Any]
) -> None:
    async with aiohttp.ClientSession() as genuine:
        studio = Studio(upstream, reducing, genuine)
        for use in (use_read, use_release, use_close):
            trio = await studio.trio(CASES["streamed"])
            called: list[ClientResponse] = []
            for response in trio:
                response.connection.add_callback(functools.partial(called.append, response))
            assert called == []
            trio.rest.set()
            for response in trio:
                await use(response)
            assert called == list(trio)


async def test_a_reader_that_is_closed_while_it_waits_fails_as_a_genuine_one(
    upstream: StartUpstream, reducing: OpenSession, noise: list[Any]
) -> None:
    async with aiohttp.ClientSession() as genuine:
        trio = await Studio(upstream, reducing, genuine).trio(CASES["streamed"])
        failed = []
        for response in (trio.genuine, trio.follower):
            await response.content.readexactly(100)
            reading = asyncio.ensure_future(response.content.read())
            await asyncio.sleep(0)
            response.close()
            with pytest.raises(aiohttp.ClientError) as caught:
                await asyncio.wait_for(reading, 1)
            failed.append((type(caught.value), str(caught.value)))
        assert failed[1] == failed[0]
        trio.rest.set()
        assert await trio.leader.read() == LARGE


# Used and forgotten.


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("name", ["whole", "streamed", "streamed in chunks"])
async def test_forgotten_responses_complain_as_genuine_ones(
    name: str, debug: bool, upstream: StartUpstream, reducing: OpenSession
) -> None:
    loop = asyncio.get_running_loop()
    told: list[Any] = []
    loop.set_exception_handler(lambda _loop, context: told.append(context))

    def complaints(caught: list[warnings.WarningMessage]) -> list[Any]:
        said = [(one.category.__name__, str(one.message)) for one in caught]
        said += [(str(sorted(context)), context["message"]) for context in told]
        caught.clear()
        told.clear()
        return sorted(said)

    async with aiohttp.ClientSession() as genuine:
        with debugging(debug), warnings.catch_warnings(record=True) as caught, only_new_garbage():
            trio = await Studio(upstream, reducing, genuine).trio(CASES[name])
            refs = [weakref.ref(response) for response in trio]

            async def gone(*refs: Any) -> None:
                # A complaint holds it, too.
                await eventually(
                    lambda: gc.collect() >= 0 and [ref() for ref in refs].count(None) + len(told) >= len(refs)
                )

            warnings.simplefilter("always")
            # A connection holds the response that is read from it, until it breaks.
            setattr(trio, "genuine", None)  # noqa: B010 - it is forgotten, whatever its type says
            gc.collect()
            while_open = complaints(caught)
            trio.server.requests[0].drop()
            await gone(refs[0])
            at_break = complaints(caught)
            setattr(trio, "leader", None)  # noqa: B010
            setattr(trio, "follower", None)  # noqa: B010
            gc.collect()
            assert complaints(caught) == while_open * 2
            trio.server.requests[1].drop()
            await gone(*refs[1:])
            assert complaints(caught) == sorted(at_break * 2)
    loop.set_exception_handler(None)
    assert bool(at_break) == (debug and name != "whole")


async def test_a_forgotten_response_does_not_hold_up_the_others(
    upstream: StartUpstream, reducing: OpenSession, noise: list[Any]
) -> None:
    async with aiohttp.ClientSession() as genuine:
        trio = await Studio(upstream, reducing, genuine).trio(CASES["streamed"])
        trio.genuine.close()
        setattr(trio, "leader", None)  # noqa: B010 - it is forgotten, whatever its type says
        gc.collect()
        trio.rest.set()
        assert await trio.follower.read() == LARGE
        assert trio.server.open_connections <= 2


async def test_a_shared_response_holds_what_a_genuine_one_holds(upstream: StartUpstream, reducing: OpenSession) -> None:
    async with aiohttp.ClientSession() as genuine:
        trio = await Studio(upstream, reducing, genuine).trio(CASES["whole"])
        attributes = [{name for name, value in vars(one).items() if value is not None} for one in trio]
        # What a genuine response holds of its own, a shared one holds, too.
        assert attributes[1] - {"_upload_complete"} == attributes[2] - {"_upload_complete"}
        assert attributes[0] <= attributes[1] | {"_output_size", "_session"}
