"""The private names of aiohttp's client that `_aiohttp` touches mean what it takes them for."""

import asyncio
import functools
from typing import Any

import aiohttp
import pytest
from aiohttp import EMPTY_PAYLOAD, ClientRequest, ClientResponse, ClientSession, ClientTimeout, StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from yarl import URL

from aiohttp_reduce import _aiohttp
from aiohttp_reduce._aiohttp import Head, ReaderProtocol
from tests.upstream import Exchange, StartUpstream


async def hello(exchange: Exchange) -> None:
    await exchange.respond(b"hello")


class Caught(Exception):
    """Carries what a middleware was given out of the call."""

    def __init__(self, request: ClientRequest, handler: Any) -> None:
        self.request = request
        self.handler = handler


async def caught(url: str = "http://127.0.0.1:9/", **options: Any) -> tuple[ClientRequest, Any]:
    """The request of a call, and the innermost handler."""

    async def catch(request: ClientRequest, handler: Any) -> ClientResponse:
        raise Caught(request, handler)

    async with ClientSession(middlewares=[catch]) as session:
        try:
            await session.get(url, **options)
        except Caught as found:
            return found.request, found.handler
    raise AssertionError("the middleware was not asked")


async def test_the_innermost_handler_is_told_from_others() -> None:
    _request, handler = await caught()

    async def another(request: ClientRequest) -> Any:
        return await handler(request)

    class Callable:
        async def __call__(self, request: ClientRequest) -> Any: ...

    assert _aiohttp.is_innermost(handler)
    for other in (another, functools.partial(handler), Callable(), Callable().__call__):
        assert not _aiohttp.is_innermost(other)
    assert _aiohttp.is_innermost(handler)


OPTIONS: dict[str, Any] = {
    "read_until_eof": False,
    "auto_decompress": False,
    "read_bufsize": 77,
    "max_line_size": 78,
    "max_field_size": 79,
    "max_headers": 80,
}


@pytest.mark.parametrize("option", OPTIONS)
async def test_every_option_of_reading_is_seen(option: str) -> None:
    try:
        _request, other = await caught(**{option: OPTIONS[option]})
    except TypeError:
        pytest.skip("this aiohttp does not know it")
    _request, handler = await caught()
    assert OPTIONS[option] in _aiohttp.reading_options_of(other)
    assert _aiohttp.reading_options_of(other) != _aiohttp.reading_options_of(handler)
    assert not _aiohttp.same_reading(handler, other)


async def test_the_timeouts_are_seen_and_of_them_sock_read_alone_is_compared() -> None:
    timeout = ClientTimeout(total=1, connect=2, sock_connect=3, sock_read=4)
    _request, handler = await caught(timeout=timeout)
    _request, same = await caught(timeout=ClientTimeout(sock_read=4))
    _request, other = await caught(timeout=ClientTimeout(total=1, connect=2, sock_connect=3, sock_read=5))
    assert _aiohttp.timeout_of(handler) == timeout
    assert _aiohttp.same_reading(handler, same)
    assert not _aiohttp.same_reading(handler, other)


async def test_what_a_plain_request_is() -> None:
    request, _handler = await caught()
    assert _aiohttp.is_plain(request)
    assert not _aiohttp.has_body(request)
    assert not _aiohttp.awaits_continue(request)
    assert not _aiohttp.has_upload_tracker(request)
    assert not _aiohttp.sends_in_its_own_way(request)
    assert _aiohttp.way_of(request) is None
    assert _aiohttp.session_of(request)._connector is None  # it is closed by now
    assert _aiohttp.traces_of(request) == []


@pytest.mark.parametrize(
    ("options", "look"),
    [
        ({"data": b"x"}, _aiohttp.has_body),
        ({"json": {}}, _aiohttp.has_body),
        ({"chunked": True}, _aiohttp.has_body),
        ({"expect100": True}, _aiohttp.awaits_continue),
        ({"headers": {"Expect": "100-continue"}}, _aiohttp.awaits_continue),
    ],
)
async def test_what_is_not_plain_is_found(options: dict[str, Any], look: Any) -> None:
    request, _handler = await caught(**options)
    assert look(request)
    assert not _aiohttp.is_plain(request)


@pytest.mark.skipif(not hasattr(aiohttp, "UploadTracker"), reason="this aiohttp has no UploadTracker")
async def test_an_upload_tracker_is_found() -> None:
    request, _handler = await caught(upload_tracker=aiohttp.UploadTracker())
    assert _aiohttp.has_upload_tracker(request)
    assert not _aiohttp.is_plain(request)


async def test_a_copy_for_a_flight_shares_nothing_that_sending_changes(upstream: StartUpstream) -> None:
    server = await upstream(hello)
    request, handler = await caught(f"{server.url}/#fragment", headers={"X-A": "1"}, timeout=ClientTimeout(total=5))
    copy = _aiohttp.for_a_flight(request)
    assert type(copy) is type(request)
    assert (copy.method, copy.url, copy.original_url) == (request.method, request.url, request.original_url)
    assert copy.headers == request.headers
    assert copy.headers is not request.headers
    assert not _aiohttp.was_sent(copy)
    async with ClientSession() as session:
        # Its session is closed: send it by another one's connector.
        connection = await session.connector.connect(copy, traces=[], timeout=_aiohttp.timeout_of(handler))  # type: ignore[union-attr]
        connection.protocol.set_response_params()  # type: ignore[union-attr]
        response = await copy.send(connection)
        await response.start(connection)
        assert _aiohttp.was_sent(copy)
        assert not _aiohttp.was_sent(request)
        assert await response.read() == b"hello"


async def test_a_reader_made_whole_is_as_one_that_was_fed() -> None:
    request, _handler = await caught()
    protocol: Any = ReaderProtocol(None, *[lambda: None] * 3)  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    for parts, in_parts in (([(b"abc", False)], False), ([(b"abc", True), (b"", True), (b"d", True)], True)):
        source = StreamReader(protocol, 64, loop=loop)
        if in_parts:
            source.begin_http_chunk_receiving()
        for data, ends_part in parts:
            _aiohttp.feed(source, data, ends_part)
        source.feed_eof()
        reader = StreamReader(protocol, 64, loop=loop)
        _aiohttp.fill_whole(reader, parts, source)
        for slot in StreamReader.__slots__:
            assert getattr(reader, slot) == getattr(source, slot) or slot == "_timer", slot
        assert _aiohttp.reads_in_parts(reader) == in_parts
        assert _aiohttp.unread(reader) == sum(len(data) for data, _ in parts)
        assert await reader.read() == await source.read()
    assert request.url == URL("http://127.0.0.1:9/")


async def test_a_reader_that_holds_less_pauses_sooner_and_still_resumes() -> None:
    protocol: Any = ReaderProtocol(None, *[lambda: None] * 3)  # type: ignore[arg-type]
    for limit, halves in ((64, (32, 64)), (1, (1, 1))):
        reader = StreamReader(protocol, limit, loop=asyncio.get_running_loop())
        _aiohttp.hold_less(reader)
        assert reader.get_read_buffer_limits() == halves
    _aiohttp.hold_less(EMPTY_PAYLOAD)


async def test_who_waits_for_a_reader_is_seen_and_told() -> None:
    protocol: Any = ReaderProtocol(None, *[lambda: None] * 3)  # type: ignore[arg-type]
    for read in (StreamReader.read, StreamReader.wait_eof):
        reader = StreamReader(protocol, 64, loop=asyncio.get_running_loop())
        assert not _aiohttp.is_waited_for(reader)
        waits = asyncio.ensure_future(read(reader))  # type: ignore[operator]
        await asyncio.sleep(0)
        assert _aiohttp.is_waited_for(reader)
        _aiohttp.break_off(reader, ValueError("broken"))
        with pytest.raises(ValueError, match="broken"):
            await waits


async def test_a_connection_tells_that_it_is_lost(upstream: StartUpstream) -> None:
    async def stalls(exchange: Exchange) -> None:
        await exchange.head(Content_Length=5)
        await exchange.left.wait()

    server = await upstream(stalls)
    async with ClientSession() as session:
        response = await session.get(server.url)
        closed = _aiohttp.connection_closed(response)
        assert closed is not None
        assert not closed.done()
        response.close()
        await closed
        assert _aiohttp.connection_closed(response) is None


async def test_a_stand_in_has_what_a_genuine_protocol_is_asked_for(upstream: StartUpstream) -> None:
    server = await upstream(hello)
    async with ClientSession() as session, session.get(server.url) as response:
        request, _handler = await caught(server.url)
        head = Head(response, request)
        stand_in = ReaderProtocol(head, *[lambda: None] * 3)
        genuine = ResponseHandler(asyncio.get_running_loop())
        for name in ("connected", "transport", "upgraded", "should_close", "is_connected", "close", "abort",
                     "pause_reading", "resume_reading", "read"):  # fmt: skip
            assert callable(getattr(stand_in, name)) == callable(getattr(genuine, name)), name
        let_go: list[int] = []
        stand_in = ReaderProtocol(head, lambda: None, lambda: let_go.append(1), lambda: None)
        connection = Connection(_connector(), request.connection_key, stand_in, asyncio.get_running_loop())  # type: ignore[arg-type]
        connection.release()
        connection.release()
        assert let_go == [1]


def _connector() -> Any:
    from aiohttp_reduce._aiohttp.replicas import _STAND_IN_CONNECTOR

    return _STAND_IN_CONNECTOR


async def test_relative_urls_and_middlewares_of_a_session_are_found() -> None:
    async def own(request: ClientRequest, handler: Any) -> ClientResponse:
        response: ClientResponse = await handler(request)
        return response

    async with ClientSession("http://localhost/base/", middlewares=[own]) as session:
        assert _aiohttp.absolute_url(session, "a") == URL("http://localhost/base/a")
        assert _aiohttp.middlewares_of(session) == (own,)
