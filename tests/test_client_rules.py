"""Rules of the client that stand by themselves: the session object, what counts, what passes, who is failed."""

import asyncio
import inspect
import subprocess
import sys
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientRequest, ClientResponse, ClientTimeout
from multidict import CIMultiDict

from aiohttp_reduce import ReducingClientSession, reduce_client_middleware
from aiohttp_reduce.client.identity import Identities
from tests.harness import eventually
from tests.upstream import (
    Exchange,
    Held,
    OpenSession,
    StartUpstream,
    Told,
    bodies,
    body_of,
    halves,
    hello,
    nothing_is_left,
    reading,
    reducer_of,
    waiting,
)
from tests.virtual import VirtualLoop
from tests.wire import FarEnd, Line, respond, run_on_the_wire

# The session object.


async def test_what_a_subclass_brings_is_its_own_and_all_else_the_sessions() -> None:
    class Labelled(ReducingClientSession):
        label = "none"

    async with Labelled() as session:
        session.label = "mine"
        assert session.label == "mine"
        assert not hasattr(session.session, "label")
        # What a session has, or nobody, stays the session's.
        with pytest.warns(DeprecationWarning, match="requote_redirect_url"):
            session.requote_redirect_url = False
        assert session.session.requote_redirect_url is False
        setattr(session, "_resolve_charset", len)  # noqa: B010
        assert session.session._resolve_charset is len


async def test_one_whose_making_failed_has_no_attributes() -> None:
    unmade = ReducingClientSession.__new__(ReducingClientSession)
    for name in ("_session", "_reducer", "closed", "headers"):
        with pytest.raises(AttributeError):
            getattr(unmade, name)


def test_properties_of_the_class_are_documented_as_those_of_a_session() -> None:
    names = [name for name, member in vars(aiohttp.ClientSession).items() if isinstance(member, property)]
    own = {"closed", "connector"}
    assert names
    for name in set(names) - own:
        assert getattr(ReducingClientSession, name).__doc__ == getattr(aiohttp.ClientSession, name).__doc__


# What counts.


def test_a_get_that_is_sent_in_chunks_passes() -> None:
    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        async def refuse(*_: Any) -> Any:
            raise aiohttp.ClientConnectionError

        far_end._create_connection = refuse  # type: ignore[method-assign]
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get("http://far.end/", chunked=True)
        assert session.stats["bypassed"] == {"body": 1}

    run_on_the_wire(respond, main)


def test_many_names_of_headers_cost_bounded_memory() -> None:
    identities = Identities({"X-Ignored-*"})
    for number in range(5_000):
        headers = CIMultiDict({f"X-{number}": "1", f"X-Ignored-{number}": "2"})
        assert identities._headers_of(headers) == ((f"x-{number}", "1"),)
    assert len(identities._names) <= 1_024


async def test_no_middlewares_may_be_said_as_none(upstream: StartUpstream, reducing: OpenSession) -> None:
    server = await upstream(hello)
    session = reducing(middlewares=None)
    assert await bodies(session, 1, server.url, middlewares=None) == [b"hello"]
    assert session.stats["total"] == 1


async def test_closing_a_genuine_session_with_the_middleware_fails_those_who_read(upstream: StartUpstream) -> None:
    server = await upstream(halves)
    reducer = reduce_client_middleware()
    session = aiohttp.ClientSession(middlewares=[reducer])
    responses = [await session.get(server.url) for _ in range(3)]
    reads = [asyncio.create_task(response.read()) for response in responses]
    await eventually(lambda: all(response.content.total_bytes == 1 for response in responses))
    await session.close()
    async with asyncio.timeout(2):
        outcomes = await asyncio.gather(*reads, return_exceptions=True)
    assert all(isinstance(outcome, aiohttp.ClientError) for outcome in outcomes)
    assert len(server.requests) == 1
    await eventually(lambda: nothing_is_left(reducer))


@pytest.mark.parametrize("kind", ["whole", "streamed", "endless"])
async def test_a_middleware_further_out_finds_each_callers_response_at_its_request(
    upstream: StartUpstream, reducing: OpenSession, kind: str
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        content_type = "text/event-stream" if kind == "endless" else "text/plain"
        if kind == "whole":
            await exchange.respond(b"a")
        else:
            await exchange.head(Content_Type=content_type, Content_Length=1)
            await asyncio.wait_for(all_have_it.wait(), 2)
            await exchange.send(b"a")

    all_have_it = asyncio.Event()
    found: list[bool] = []

    async def outer(request: ClientRequest, handler: Any) -> ClientResponse:
        response: ClientResponse = await handler(request)
        found.append(request.response is response)
        if len(found) == 3:
            all_have_it.set()
        return response

    server = await upstream(answer)
    session = reducing(middlewares=[outer])
    tasks = reading(session, 3, server.url)
    await server.asked()
    await waiting(reducer_of(session), 2)
    gate.set()
    assert await asyncio.gather(*tasks) == [b"a"] * 3
    assert found == [True] * 3


async def test_the_case_of_header_names_does_not_matter_where_others_are_left_out(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    held = Held()
    server = await upstream(held)
    session = reducing(ignore_headers={"X-Ignored"})
    several = [
        {"X-Ignored": "1", "X-A": "1", "X-B": "2"},
        {"x-ignored": "2", "x-b": "2", "x-a": "1"},
        {"X-IGNORED": "3", "X-B": "2", "X-A": "1"},
        {"X-B": "2", "X-A": "1"},
    ]
    tasks = [asyncio.create_task(body_of(session, server.url, headers=headers)) for headers in several]
    await server.asked()
    await waiting(reducer_of(session), 3)
    held.gate.set()
    assert await asyncio.gather(*tasks) == [b"hello"] * 4
    assert len(server.requests) == 1


async def test_an_expectation_of_any_kind_passes(upstream: StartUpstream, reducing: OpenSession) -> None:
    server = await upstream(hello)
    session = reducing()
    await bodies(session, 2, server.url, headers={"Expect": "the-unexpected"})
    assert len(server.requests) == 2
    assert session.stats["bypassed"] == {"expect": 2}


async def test_what_a_caller_adds_to_its_request_later_is_not_sent_for_all(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    async def outer(request: ClientRequest, handler: Any) -> ClientResponse:
        calling = asyncio.create_task(handler(request))
        # It was at the door, and nothing is sent yet.
        await asyncio.sleep(0)
        request.headers["X-Late"] = "1"
        return await calling  # type: ignore[no-any-return]

    server = await upstream(hello)
    session = reducing(middlewares=[outer])
    assert await bodies(session, 3, server.url) == [b"hello"] * 3
    assert len(server.requests) == 1
    assert "X-Late" not in server.requests[0].headers


def test_a_cancellation_from_further_down_reaches_all_and_is_no_error() -> None:
    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        async def cancelled(*_: Any) -> Any:
            await asyncio.sleep(1)
            raise asyncio.CancelledError

        far_end._create_connection = cancelled  # type: ignore[method-assign]
        outcomes = await asyncio.gather(*reading(session, 3, "http://far.end/"), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
        assert session.stats["errors"] == 0

    run_on_the_wire(respond, main)


async def test_a_session_that_does_not_own_its_connector_is_closed_without_breaking_bodies_off(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    rest = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await exchange.head(Content_Length=2)
        await exchange.send(b"a")
        await rest.wait()
        await exchange.send(b"b")

    server = await upstream(answer)
    connector = aiohttp.TCPConnector()
    session = reducing(connector=connector, connector_owner=False)
    responses = [await session.get(server.url) for _ in range(2)]
    await session.close()
    rest.set()
    assert [await response.read() for response in responses] == [b"ab"] * 2
    await connector.close()


async def test_a_body_that_its_readers_leave_is_no_error(upstream: StartUpstream, reducing: OpenSession) -> None:
    server = await upstream(halves)
    told = Told()
    session = reducing(hooks=told)
    for response in [await session.get(server.url) for _ in range(2)]:
        response.close()
    await eventually(lambda: nothing_is_left(reducer_of(session)))
    assert session.stats["errors"] == 0
    assert "exception" not in [event[0] for event in told.events]


def test_a_body_is_kept_for_others_until_max_age_after_it_was_asked_for() -> None:
    async def answer(line: Line, number: int) -> None:
        await asyncio.sleep(3)
        await line.head("Content-Length: 2")
        await line.send(b"a")
        await asyncio.sleep(10)
        await line.send(b"b")

    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        response = await session.get("http://far.end/")
        (table,) = reducer_of(session)._tables.by_loop.values()
        assert await response.content.read(1) == b"a"
        await asyncio.sleep(1.9)
        assert table.budget.used > 0
        await asyncio.sleep(0.2)
        assert table.budget.used == 0
        assert await response.read() == b"b"

    run_on_the_wire(answer, main, max_age=5.0)


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "TRACE"])
async def test_a_safe_request_that_passes_is_no_write(
    upstream: StartUpstream, reducing: OpenSession, method: str
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        if exchange.number == 1:
            await gate.wait()
        await exchange.respond(b"%d" % exchange.number)

    server = await upstream(answer)
    session = reducing()
    tasks = reading(session, 1, server.url)
    await server.asked()
    async with session.request(method, server.url, reduce=False) as response:
        assert response.status == 200
    tasks += reading(session, 1, server.url)
    await waiting(reducer_of(session), 1)
    gate.set()
    assert await asyncio.gather(*tasks) == [b"1"] * 2
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"read_bufsize": 2**15}, {"read_bufsize": 2**17}),
        ({"auto_decompress": True}, {"auto_decompress": False}),
        ({"timeout": ClientTimeout(sock_read=50)}, {"timeout": ClientTimeout(sock_read=60)}),
        ({"ssl": True}, {"ssl": False}),
        ({"server_hostname": None}, {"server_hostname": "other.example"}),
        ({"headers": {"X-A": "1"}}, {"headers": {"X-A": "2"}}),
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("other_method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/", "/other"])
async def test_what_counts_counts_also_among_those_who_differ_in_what_does_not(
    upstream: StartUpstream, reducing: OpenSession, one: Any, other: Any, other_method: str, path: str
) -> None:
    held = Held()
    server = await upstream(held)
    session = reducing(ignore_headers={"X-Ignored"})

    async def call(method: str, url: str, options: Any, ignored: str) -> None:
        headers = {**options.get("headers", {}), "X-Ignored": ignored}
        async with session.request(method, url, **{**options, "headers": headers}) as response:
            await response.read()

    kinds = {
        (method, url, number): options
        for method in ("GET", other_method)
        for url in (f"{server.url}/", f"{server.url}{path}")
        for number, options in enumerate((one, other))
    }
    calls: list[asyncio.Task[None]] = []
    for (method, url, _), options in [*kinds.items()] * 3:
        calls.append(asyncio.create_task(call(method, url, options, str(len(calls)))))
        await asyncio.sleep(0)
    await server.asked(len(kinds))
    await waiting(reducer_of(session), 2 * len(kinds))
    held.gate.set()
    await asyncio.gather(*calls)
    assert len(server.requests) == len(kinds)


@pytest.mark.parametrize("given", ["base_url", "headers"])
async def test_each_argument_for_a_session_is_refused_with_a_given_one(given: str) -> None:
    arguments: Any = {"base_url": "http://localhost/"} if given == "base_url" else {"headers": {}}
    async with aiohttp.ClientSession() as genuine:
        with pytest.raises(TypeError, match=f"together with {given}$"):
            ReducingClientSession(session=genuine, **arguments)


async def test_another_name_to_verify_is_another_flight_also_where_all_else_is_alike(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    held = Held()
    server = await upstream(held)
    session = reducing()
    tasks = []
    for name in (None, "other.example", None, "other.example"):
        tasks += reading(session, 1, server.url, server_hostname=name)
        await asyncio.sleep(0)
    await server.asked(2)
    await waiting(reducer_of(session), 2)
    held.gate.set()
    assert await asyncio.gather(*tasks) == [b"hello"] * 4
    assert len(server.requests) == 2


@pytest.mark.parametrize("name", ["connection_key", "is_ssl", "ssl", "host", "port"])
async def test_a_request_class_that_goes_somewhere_in_its_own_way_passes(
    upstream: StartUpstream, reducing: OpenSession, name: str
) -> None:
    inherited = inspect.getattr_static(ClientRequest, name)
    own = property(inherited.__get__) if not inspect.isfunction(inherited) else lambda self: inherited(self)
    server = await upstream(hello)
    session = reducing(request_class=type("Own", (ClientRequest,), {name: own}))
    assert await bodies(session, 2, server.url) == [b"hello"] * 2
    assert session.stats["bypassed"] == {"request-class": 2}


def test_nobody_joins_an_answer_that_everybody_left_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
        genuine_start = ClientResponse.start
        later: list[asyncio.Task[bytes]] = []

        async def start(self: ClientResponse, connection: Any) -> ClientResponse:
            response = await genuine_start(self, connection)
            if not later:
                # It comes to the door before the one that leaves could say so.
                later.extend(reading(session, 1, "http://far.end/"))
                leaver.cancel()
            return response

        monkeypatch.setattr(ClientResponse, "start", start)
        (leaver,) = reading(session, 1, "http://far.end/")
        await asyncio.wait([leaver])
        assert leaver.cancelled()
        async with asyncio.timeout(1):
            assert await later[0] == b"2"

    run_on_the_wire(respond, main)


PROGRAM = """
import asyncio
from aiohttp.connector import BaseConnector
from aiohttp_reduce import ReducingClientSession


class Leaving(BaseConnector):
    async def _create_connection(self, *_):
        raise SystemExit(3)


async def main():
    async with ReducingClientSession(connector=Leaving()) as session:
        try:
            await session.get("http://far.end/")
        except BaseException as exception:
            print(type(exception).__name__)
            raise


asyncio.run(main())
"""


def test_an_exit_of_the_program_from_further_down_ends_the_program() -> None:
    # In a process of its own: it leaves the interpreter's count of recursions wrong (CPython 3.11).
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 3
    # It stops the loop; the call is cancelled with all other tasks, or fails as if the connection was closed.
    assert ended.stdout.strip() in {"CancelledError", "ClientConnectionError"}
