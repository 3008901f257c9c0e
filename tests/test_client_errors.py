"""Errors reach everybody, each as a copy of one's own, and leave nothing behind; retries are aiohttp's."""

import asyncio
import gc
import os
import socket
import ssl
import traceback
import warnings
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp.abc import AbstractResolver
from aiohttp.client_exceptions import UnixClientConnectorError

from tests.harness import eventually
from tests.upstream import Exchange, OpenSession, StartUpstream, bodies, reducer_of

GONE = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"


class Failing(AbstractResolver):
    """Knows no host, once `gate` is open."""

    def __init__(self) -> None:
        self.asked = 0
        self.gate = asyncio.Event()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
        self.asked += 1
        await self.gate.wait()
        raise OSError(None, f"no such host: {host}")

    async def close(self) -> None:
        pass


class Attempt:
    """A way to fail: where to, with which session options and call options; `ready` lets it fail."""

    def __init__(self, url: str, make_session: dict[str, Any] | None = None, **call: Any) -> None:
        self.url = url
        self.session_options = make_session or {}
        self.call = call
        self.ready: Callable[[], None] = lambda: None
        self.tries: Callable[[], int] = lambda: 1


def say_no(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"no\r\n\r\n")
    writer.close()


@pytest_asyncio.fixture
async def attempt(upstream: StartUpstream, certificates: Path, tmp_path: Path) -> AsyncIterator[Callable[[str], Any]]:
    """Make attempts, by the name of their failure."""
    servers: list[asyncio.Server] = []

    async def make(name: str) -> Attempt:
        if name == "refused":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            return Attempt(f"http://127.0.0.1:{port}")
        if name == "dns":
            resolver = Failing()
            dns = Attempt("http://nowhere.test", {"connector": aiohttp.TCPConnector(resolver=resolver)})
            dns.ready = resolver.gate.set
            dns.tries = lambda: resolver.asked
            return dns
        if name == "unix":
            return Attempt("http://localhost", {"connector": aiohttp.UnixConnector(str(tmp_path / "nothing"))})
        if name == "certificate":
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificates / "server.pem")
            server = await asyncio.start_server(lambda _r, writer: writer.close(), "127.0.0.1", 0, ssl=context)
            servers.append(server)
            return Attempt(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        if name == "no tls":
            server = await asyncio.start_server(say_no, "127.0.0.1", 0)
            servers.append(server)
            return Attempt(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")

        gate = asyncio.Event()

        async def answer(exchange: Exchange) -> None:
            await gate.wait()
            if name == "malformed":
                await exchange.send(b"this is not HTTP\r\n\r\n")
            elif name == "malformed header":
                await exchange.send(b"HTTP/1.1 200 OK\r\nA\x00: b\r\n\r\n")
            exchange.drop()

        one = await upstream(answer)
        asked = Attempt(one.url)
        asked.ready = gate.set
        asked.tries = lambda: len(one.requests)
        return asked

    yield make
    for server in servers:
        server.close()


FAILURES = {
    "refused": aiohttp.ClientConnectorError,
    "dns": aiohttp.ClientConnectorDNSError,
    "unix": UnixClientConnectorError,
    "certificate": aiohttp.ClientConnectorCertificateError,
    "no tls": aiohttp.ClientConnectorSSLError,
    "dropped": aiohttp.ServerDisconnectedError,
    "malformed": aiohttp.ClientResponseError,
    "malformed header": aiohttp.ClientResponseError,
}
# `copy.copy` fails on it: all are given the one there is.
NO_COPY = {"unix"}


async def failures_of(session: Any, attempt: Attempt, count: int) -> list[Any]:
    """The exceptions of so many identical calls at once."""
    calls = [asyncio.ensure_future(session.get(f"{attempt.url}/#{number}", **attempt.call)) for number in range(count)]
    if attempt.ready is not None:
        reducer = reducer_of(session)
        await eventually(lambda: reducer.stats["waiting"] == count - 1 or all(call.done() for call in calls))
        attempt.ready()
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)


def values_of(exception: BaseException) -> dict[str, Any]:
    """What the exception says; which caller it is for left out."""
    skipped = {"args", "add_note", "with_traceback", "request_info", "message"}
    said = {"text": str(exception).partition(", url=")[0], "repr": repr(exception).partition("(")[0]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for name in dir(exception):
            if not name.startswith("_") and name not in skipped:
                said[name] = repr(getattr(exception, name, None))
    return said


@pytest.mark.parametrize("name", FAILURES)
async def test_an_error_reaches_all_as_what_a_genuine_session_raises(
    name: str, attempt: Any, reducing: OpenSession, noise: list[Any]
) -> None:
    ways = await attempt(name)
    session = reducing(**ways.session_options)
    caught = await failures_of(session, ways, 10)
    tried = ways.tries()
    assert {type(one) for one in caught} == {FAILURES[name]}
    async with aiohttp.ClientSession(connector=session.connector, connector_owner=False) as genuine:
        with pytest.raises(FAILURES[name]) as expected:
            await genuine.get(f"{ways.url}/#0", **ways.call)
    for one in caught:
        assert values_of(one) == values_of(expected.value)
        assert len(one.args) == len(expected.value.args)
        assert type(one.__cause__) is type(expected.value.__cause__)
        assert one.__suppress_context__ == expected.value.__suppress_context__
    if name not in NO_COPY:
        assert len({id(one) for one in caught}) == 10
    # aiohttp's own second try after a dropped connection is one for all, too.
    assert tried == (2 if name == "dropped" else 1)
    assert session.stats["errors"] == session.stats["executed"] == tried


@pytest.mark.parametrize("name", ["malformed", "malformed header"])
async def test_each_error_has_the_request_info_of_its_own_call(name: str, attempt: Any, reducing: OpenSession) -> None:
    ways = await attempt(name)
    caught = await failures_of(reducing(), ways, 5)
    assert [one.request_info.real_url.fragment for one in caught] == ["0", "1", "2", "3", "4"]
    assert len({id(one.request_info) for one in caught}) == 5
    for number, one in enumerate(caught):
        assert one.args[0] == one.request_info
        assert str(one).endswith(f"url='{ways.url}/#{number}'")
        assert one.history == ()


async def test_an_error_names_the_call_it_is_raised_in_also_where_the_first_caller_left(
    attempt: Any, reducing: OpenSession
) -> None:
    ways = await attempt("malformed")
    session = reducing()
    calls = [
        asyncio.ensure_future(session.get(f"{ways.url}/#{number}", headers={"X-Request-ID": str(number)}))
        for number in range(3)
    ]
    await eventually(lambda: bool(session.stats["waiting"] == 2))
    calls[0].cancel()
    await asyncio.wait(calls[:1])
    ways.ready()
    caught: list[Any] = await asyncio.gather(*calls[1:], return_exceptions=True)
    assert [one.request_info.real_url.fragment for one in caught] == ["1", "2"]
    assert [one.request_info.headers["X-Request-ID"] for one in caught] == ["1", "2"]


@pytest.mark.parametrize("name", [name for name in FAILURES if name not in NO_COPY])
async def test_what_one_adds_to_its_error_does_not_show_in_anothers(
    name: str, attempt: Any, reducing: OpenSession
) -> None:
    ways = await attempt(name)
    session = reducing(**ways.session_options)

    async def call(number: int) -> BaseException:
        try:
            await session.get(ways.url, **ways.call)
        except aiohttp.ClientError as error:
            # The others may not have been given theirs yet.
            error.add_note(f"caller {number}")
            setattr(error, f"of_{number}", number)
            error.__context__ = KeyError(number)
            return error
        raise AssertionError("it did not fail")

    calls = [asyncio.ensure_future(call(number)) for number in range(5)]
    await eventually(lambda: session.stats["waiting"] == 4 or calls[0].done())
    ways.ready()
    caught = await asyncio.wait_for(asyncio.gather(*calls), 5)
    for number, error in enumerate(caught):
        assert error.__notes__ == [f"caller {number}"]
        assert [name for name in vars(error) if name.startswith("of_")] == [f"of_{number}"]
        assert str(error.__context__) == str(number)
        assert getattr(error.__cause__, "__notes__", None) is None


@pytest.mark.parametrize("name", FAILURES)
async def test_tracebacks_do_not_grow_with_the_herd(name: str, attempt: Any, reducing: OpenSession) -> None:
    longest = []
    for size in (3, 50):
        ways = await attempt(name)
        caught = await failures_of(reducing(**ways.session_options), ways, size)
        lengths = [len(traceback.extract_tb(one.__traceback__)) for one in caught]
        longest.append(max(lengths))
    assert longest[1] == longest[0]


async def test_a_traceback_says_where_it_failed_and_nothing_of_the_other_callers(
    attempt: Any, reducing: OpenSession
) -> None:
    ways = await attempt("malformed")
    session = reducing()

    async def the_first_caller() -> None:
        await session.get(ways.url)

    async def another_caller() -> None:
        await session.get(ways.url)

    calls = [asyncio.ensure_future(the_first_caller()), *[asyncio.ensure_future(another_caller()) for _ in range(3)]]
    await eventually(lambda: bool(session.stats["waiting"] == 3))
    ways.ready()
    caught = await asyncio.gather(*calls, return_exceptions=True)
    for number, one in enumerate(caught):
        assert isinstance(one, aiohttp.ClientResponseError)
        names = [frame.name for frame in traceback.extract_tb(one.__traceback__)]
        assert names[0] == ("another_caller" if number else "the_first_caller")
        assert ("the_first_caller" in names) == (number == 0)
        assert names.count("another_caller") == (number > 0)
        assert "_connect_and_send_request" in names


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_breaks_off_breaks_off_for_all_who_read_it(
    chunked: bool, upstream: StartUpstream, reducing: OpenSession, noise: list[Any]
) -> None:
    gate, rest = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        if chunked:
            await exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        else:
            await exchange.send(GONE + b"hello")
        await rest.wait()
        exchange.drop()

    server, session = await upstream(answer), reducing()
    calls = [asyncio.ensure_future(session.get(server.url)) for _ in range(3)]
    await eventually(lambda: bool(session.stats["waiting"] == 2))
    gate.set()
    early = await asyncio.gather(*calls)
    first = [await response.content.readexactly(5) for response in early]
    late = [await session.get(server.url) for _ in range(2)]
    responses = [*early, *late]
    reads = [asyncio.ensure_future(response.content.readexactly(100)) for response in late]
    reads[:0] = [asyncio.ensure_future(response.read()) for response in early]
    await asyncio.sleep(0)
    rest.set()
    caught: list[Any] = await asyncio.wait_for(asyncio.gather(*reads, return_exceptions=True), 5)
    genuine_error = await break_off_genuinely(server.url)
    assert first == [b"hello"] * 3
    assert {type(one) for one in caught} == {aiohttp.ClientPayloadError} == {type(genuine_error)}
    assert {str(one) for one in caught} == {str(genuine_error)}
    assert len({id(one) for one in caught}) == 5
    caught[0].add_note("mine")
    assert [getattr(one, "__notes__", None) for one in caught[1:]] == [None] * 4
    assert len(server.requests) == 2
    for response in responses:
        response.close()
    # It is over: the next one asks anew.
    async with session.get(server.url) as response:
        assert response.status == 200
    assert len(server.requests) == 3


async def break_off_genuinely(url: str) -> BaseException:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        try:
            await response.read()
        except aiohttp.ClientError as error:
            return error
    raise AssertionError("it did not break off")


async def test_who_reads_late_gets_what_came_before_the_break(upstream: StartUpstream, reducing: OpenSession) -> None:
    rest = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.send(GONE + b"hello")
        await rest.wait()
        exchange.drop()

    server, session = await upstream(answer), reducing()
    responses = [await session.get(server.url) for _ in range(3)]
    rest.set()
    with pytest.raises(aiohttp.ClientPayloadError):
        await responses[0].read()
    for response in responses[1:]:
        # As with a genuine one: that it is broken goes before what is there.
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.readexactly(5)
        response.close()
    assert len(server.requests) == 1


async def test_a_retry_on_a_dropped_kept_alive_connection_is_one_for_all(
    upstream: StartUpstream, reducing: OpenSession, noise: list[Any]
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        if exchange.number == 2:
            await gate.wait()
            exchange.drop()
        else:
            await exchange.respond(b"%d" % exchange.number)

    server, session = await upstream(answer), reducing()
    assert await bodies(session, 1, server.url) == [b"1"]
    herd = asyncio.ensure_future(bodies(session, 20, server.url))
    await eventually(lambda: bool(session.stats["waiting"] == 19))
    await server.asked(2)
    assert server.connections == 1
    gate.set()
    assert await herd == [b"3"] * 20
    assert len(server.requests) == 3
    assert server.connections == 2
    assert session.stats["executed"] == 3


async def test_no_error_is_kept_for_who_comes_later(upstream: StartUpstream, reducing: OpenSession) -> None:
    async def answer(exchange: Exchange) -> None:
        if exchange.number == 1:
            await exchange.send(b"this is not HTTP\r\n\r\n")
            exchange.drop()
        else:
            await exchange.respond(b"%d" % exchange.number)

    server, session = await upstream(answer), reducing()
    with pytest.raises(aiohttp.ClientResponseError):
        await session.get(server.url)
    assert await bodies(session, 3, server.url) == [b"2"] * 3


async def test_an_error_of_a_middleware_further_out_is_the_callers_own(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond()

    async def picky(request: aiohttp.ClientRequest, handler: Any) -> Any:
        response = await handler(request)
        if request.original_url.fragment == "fails":
            response.close()
            raise aiohttp.ClientConnectionError("not for you")
        return response

    server, session = await upstream(answer), reducing(middlewares=[picky])
    calls = [asyncio.ensure_future(session.get(f"{server.url}#{name}")) for name in ("fails", "a", "b")]
    await eventually(lambda: bool(session.stats["waiting"] == 2))
    gate.set()
    done: Any = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(done[0], aiohttp.ClientConnectionError)
    assert [await one.read() for one in done[1:]] == [b"hello"] * 2


# Nothing waits for the garbage collector.


@pytest.fixture
def no_collector() -> Any:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def remembering(seen: list[Any]) -> Any:
    """A middleware that remembers the requests weakly."""

    async def remember(request: aiohttp.ClientRequest, handler: Any) -> Any:
        seen.append(weakref.ref(request))
        return await handler(request)

    return remember


async def forgotten(seen: list[Any]) -> bool:
    """Whether what was remembered goes away by itself."""
    for _ in range(20):
        await asyncio.sleep(0)
    return not any(ref() is not None for ref in seen)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("at_once", [True, False], ids=["whole", "streamed"])
async def test_after_success_no_cycle_keeps_a_request_or_a_response_alive(
    size: int, at_once: bool, upstream: StartUpstream, reducing: OpenSession, no_collector: None
) -> None:
    gate, rest = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        if at_once:
            await exchange.respond(b"x" * 100)
        else:
            await exchange.send(GONE)
            await rest.wait()
            await exchange.send(b"x" * 100)

    seen: list[Any] = []
    server = await upstream(answer)

    async def one(session: Any) -> None:
        async with session.get(server.url) as response:
            seen.append(weakref.ref(response))
            rest.set()
            assert await response.read() == b"x" * 100

    async with aiohttp.ClientSession(middlewares=[remembering(seen)]) as genuine:
        gate.set()
        await one(genuine)
        if not await forgotten(seen):
            pytest.skip("aiohttp keeps them itself")
        gate.clear()
        rest.clear()
        session = reducing(middlewares=[remembering(seen)])
        herd = [asyncio.ensure_future(one(session)) for _ in range(size)]
        await eventually(lambda: bool(session.stats["waiting"] == size - 1))
        await server.asked(2)
        gate.set()
        await asyncio.gather(*herd)
        del herd
        assert await forgotten(seen)
        assert len(seen) == 2 + 2 * size


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", ["refused", "malformed", "dns", "dropped", "unix"])
async def test_after_a_failure_no_cycle_keeps_a_request_or_an_error_alive(
    name: str, size: int, attempt: Any, reducing: OpenSession, no_collector: None
) -> None:
    seen: list[Any] = []
    ways = await attempt(name)

    async def one(session: Any) -> None:
        try:
            await session.get(ways.url, **ways.call)
        except aiohttp.ClientError as error:
            seen.append(weakref.ref(error))

    session = reducing(middlewares=[remembering(seen)], **ways.session_options)
    herd = [asyncio.ensure_future(one(session)) for _ in range(size)]
    await eventually(lambda: session.stats["waiting"] == size - 1 or session.stats["errors"] == 1)
    ways.ready()
    await asyncio.gather(*herd)
    del herd
    left = not await forgotten(seen)
    kept: list[Any] = []
    async with aiohttp.ClientSession(
        middlewares=[remembering(kept)], connector=session.connector, connector_owner=False
    ) as genuine:
        seen = kept
        await one(genuine)
        if not await forgotten(kept):
            pytest.skip("aiohttp keeps them itself")
    assert not left


async def test_after_a_broken_body_no_cycle_keeps_a_request_or_a_response_alive(
    upstream: StartUpstream, reducing: OpenSession, no_collector: None
) -> None:
    gate, rest = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.send(GONE)
        await rest.wait()
        exchange.drop()

    seen: list[Any] = []
    server = await upstream(answer)

    async def one(session: Any) -> None:
        async with session.get(server.url) as response:
            seen.append(weakref.ref(response))
            rest.set()
            try:
                await response.read()
            except aiohttp.ClientPayloadError as error:
                seen.append(weakref.ref(error))

    async with aiohttp.ClientSession(middlewares=[remembering(seen)]) as genuine:
        gate.set()
        await one(genuine)
        if not await forgotten(seen):
            pytest.skip("aiohttp keeps them itself")
    gate.clear()
    rest.clear()
    session = reducing(middlewares=[remembering(seen)])
    herd = [asyncio.ensure_future(one(session)) for _ in range(3)]
    await eventually(lambda: bool(session.stats["waiting"] == 2))
    gate.set()
    await asyncio.gather(*herd)
    del herd
    assert await forgotten(seen)
    assert len(seen) == 12


@pytest.mark.skipif(not hasattr(os, "fork"), reason="unix sockets")
async def test_an_error_that_cannot_be_copied_reaches_all(tmp_path: Path, reducing: OpenSession) -> None:
    session = reducing(connector=aiohttp.UnixConnector(str(tmp_path / "nothing")))
    calls = [asyncio.ensure_future(session.get("http://localhost/")) for _ in range(5)]
    caught: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(one) for one in caught} == {UnixClientConnectorError}
    assert {one.path for one in caught} == {str(tmp_path / "nothing")}
    assert session.stats["executed"] == 1
