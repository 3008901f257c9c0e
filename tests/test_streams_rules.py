"""Who may share an answer that is sent piece by piece, by its head and by what its handler looks at on the way."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aiohttp_reduce import never_reduce, reduce_middleware
from aiohttp_reduce.server import ReduceMiddleware
from tests.harness import Connection, Server, Start, app_with, eventually
from tests.streaming import Tap, kept, nothing_is_left, streams

pytestmark = pytest.mark.filterwarnings("ignore:It is recommended to use web.RequestKey")

Adorn = Callable[[web.Request, web.StreamResponse], Any]
Look = Callable[[web.Request], Any]

WAITED, JOINED = "aiohttp-reduce; fwd=miss; collapsed=?0", "aiohttp-reduce; fwd=miss; collapsed"
A, B = {"User-Agent": "a"}, {"User-Agent": "b"}


class Source(Tap):
    """A tap that makes its head ready with `adorn`, and whose pieces may be functions of the request.

    `taken` counts the pieces that were begun, those that gave no bytes too.
    """

    def __init__(self, adorn: Adorn = lambda request, response: None) -> None:
        super().__init__()
        self.adorn = adorn
        self.taken = 0

    def hold_head(self) -> None:
        """Hold the heads of the runs to come."""
        self._head.clear()

    def let(self, *pieces: Any) -> None:
        super().let(*pieces)

    async def handler(self, request: web.Request) -> web.StreamResponse:
        self.runs += 1
        await self._head.wait()
        response = web.StreamResponse()
        self.adorn(request, response)
        await response.prepare(request)
        self.heads += 1
        async for piece in self.made_for(request):
            await response.write(piece)
        return response

    async def one_shot(self, request: web.Request) -> web.StreamResponse:
        self.runs += 1
        await self._head.wait()
        response = web.Response(body=self.made_for(request))
        self.adorn(request, response)
        self.heads += 1
        return response

    async def made_for(self, request: web.Request) -> AsyncIterator[bytes]:
        async for piece in self.pieces():
            self.taken += 1
            made = piece(request) if callable(piece) else piece
            if made:
                yield made


@pytest.fixture(params=["written by the handler", "a body that can be read once"])
def form(request: pytest.FixtureRequest) -> str:
    """How the answer is sent."""
    text: str = request.param
    return text


def handler_of(source: Source, form: str) -> Any:
    return source.handler if form == "written by the handler" else source.one_shot


def says(*headers: tuple[str, str], status: int = 200, reads: Look = lambda request: None) -> Adorn:
    """Give a response these headers and this status, once the request was looked at."""

    def adorn(request: web.Request, response: web.StreamResponse) -> None:
        reads(request)
        response.set_status(status)
        for name, value in headers:
            if name == "Content-Type":
                response.headers[name] = value
            else:
                response.headers.add(name, value)

    return adorn


def sets_a_cookie(request: web.Request, response: web.StreamResponse) -> None:
    response.set_cookie("session", "1")


async def started(
    serve: Start,
    handler: Any,
    *,
    signals: Sequence[Any] = (),
    outer: Sequence[Any] = (),
    cancels: bool = False,
    **options: Any,
) -> Server:
    middleware = reduce_middleware(**options)
    app = app_with(handler, middleware, outer=outer)
    app.on_response_prepare.extend(signals)
    return await serve(app, middleware=middleware, handler_cancellation=cancels)


async def meet(server: Server, source: Source, requests: Sequence[Any], **options: Any) -> list[Connection]:
    """Send these requests one by one; each has begun to run or waits before the next is sent."""
    before = source.runs
    sent: list[Connection] = []
    for number, headers in enumerate(requests, 1):
        sent.append(await server.send("/", headers, **options))
        await eventually(lambda number=number: source.runs - before + server.figure("waiting") == number)  # type: ignore[misc]
    return sent


async def arrived(connections: Sequence[Connection], piece: bytes) -> None:
    """Wait until this piece came to all of them."""
    async with asyncio.timeout(5):
        for one in connections:
            await one.reader.readuntil(piece)


async def drained(connection: Connection, piece: bytes) -> None:
    """Read much, until this piece comes."""
    got = b""
    async with asyncio.timeout(5):
        while piece not in got:
            some = await connection.reader.read(2**16)
            assert some, "the connection was closed"
            got = got[-len(piece) :] + some


async def rest(connection: Connection) -> bytes:
    """All that comes until the body is whole, or the server ends the connection, however it does."""
    got = b""
    try:
        async with asyncio.timeout(5):
            while not got.endswith(b"0\r\n\r\n") and (some := await connection.reader.read(2**16)):
                got += some
    except ConnectionError:
        pass
    return got


# What the head says.

HEADS: dict[str, tuple[Adorn, str]] = {
    "a cookie": (sets_a_cookie, "set-cookie"),
    "Set-Cookie": (says(("Set-Cookie", "a=1")), "set-cookie"),
    "no-store": (says(("Cache-Control", "no-store")), "no-store"),
    "no-cache": (says(("Cache-Control", "max-age=5, No-Cache")), "no-cache"),
    "private": (says(("Cache-Control", "private")), "private"),
    "Vary: *": (says(("Vary", "Accept, *")), "vary"),
    "401": (says(status=401), "status: 401"),
    "429": (says(status=429), "status: 429"),
    "WWW-Authenticate": (says(("WWW-Authenticate", "Digest nonce=1")), "authentication: www-authenticate"),
    "Clear-Site-Data": (says(("Clear-Site-Data", '"cookies"')), "clear-site-data"),
    "a nonce": (says(("Content-Security-Policy", "script-src 'nonce-abc'")), "csp-nonce"),
    "302": (says(("Location", "/x"), status=302), "no-freshness: 302"),
    "events": (says(("Content-Type", "text/event-stream; charset=utf-8")), "stream"),
    "replaced parts": (says(("Content-Type", "multipart/x-mixed-replace; boundary=x")), "stream"),
}


@pytest.mark.parametrize("name", HEADS)
async def test_a_head_that_may_not_be_shared_sends_all_off_at_once_while_the_first_still_streams(
    serve: Start, form: str, name: str
) -> None:
    adorn, reason = HEADS[name]
    source = Source(adorn)
    server = await streams(serve, source, handler=handler_of(source, form))
    everybody = await meet(server, source, [{}] * 4)
    assert source.runs == 1
    source.send_head()
    source.let(b"first;")
    await arrived(everybody, b"first;")  # all of them run, and none has ended
    assert (source.runs, source.heads) == (4, 4)
    assert server.figure("unshared") == {reason: 3}
    assert server.figure("reduced") == 0
    everybody += await meet(server, source, [{}] * 3)  # and the next ones do not even wait
    await arrived(everybody[4:], b"first;")
    assert source.runs == 7
    assert server.figure("unshared") == {reason: 3, "pass-marker": 3}
    source.let(b"last")
    source.end()
    await arrived(everybody, b"last\r\n0\r\n\r\n")
    await nothing_is_left(server)


async def test_whoever_was_sent_off_says_so_in_its_head_and_gets_a_whole_body(serve: Start, form: str) -> None:
    source = Source(says(("Cache-Control", "no-store")))
    server = await streams(serve, source, handler=handler_of(source, form))
    everybody = await meet(server, source, [{}] * 3)
    source.let(b"one ", b"two")
    source.end()
    replies = [await one.receive() for one in everybody]
    assert [reply.body for reply in replies] == [b"one two"] * 3
    assert [reply.collapsed for reply in replies] == [None, WAITED, WAITED]
    assert [reply.headers.getall("Cache-Control") for reply in replies] == [["no-store"]] * 3
    await nothing_is_left(server)


async def test_the_first_stream_that_may_be_shared_deletes_the_pass_marker(serve: Start, form: str) -> None:
    source = Source(says(("Cache-Control", "no-store")))
    server = await streams(serve, source, handler=handler_of(source, form))
    everybody = await meet(server, source, [{}] * 2)
    source.send_head()
    source.let(b"first;")
    await arrived(everybody, b"first;")
    source.adorn = says()
    everybody += await meet(server, source, [{}])  # by the pass marker
    await arrived(everybody[2:], b"first;")
    source.hold_head()
    runs = source.runs
    everybody += await meet(server, source, [{}] * 3)
    assert source.runs == runs + 1
    source.end()
    await arrived(everybody, b"0\r\n\r\n")
    await nothing_is_left(server)


@pytest.mark.parametrize("name", HEADS)
async def test_a_lone_stream_that_may_not_be_shared_keeps_no_bytes_for_others(
    serve: Start, form: str, name: str
) -> None:
    source = Source(HEADS[name][0])
    server = await streams(serve, source, handler=handler_of(source, form))
    source.send_head()
    source.let(b"first;")
    alone = await server.send("/")
    await arrived([alone], b"first;")
    bytes_kept = kept(server)
    source.end()
    await arrived([alone], b"0\r\n\r\n")
    assert bytes_kept == 0
    await nothing_is_left(server)


async def test_a_vary_keeps_apart_only_those_who_differ(serve: Start, form: str) -> None:
    source = Source(says(("Vary", "User-Agent")))
    server = await streams(serve, source, handler=handler_of(source, form))
    everybody = await meet(server, source, [A, B, A])
    source.send_head()
    source.let(lambda request: request.headers["User-Agent"].encode())
    source.end()
    replies = [await one.receive() for one in everybody]
    assert [reply.body for reply in replies] == [b"a", b"b", b"a"]
    assert [reply.collapsed for reply in replies] == [None, WAITED, JOINED]
    assert (source.runs, server.figure("unshared")) == (2, {"vary: user-agent": 1})
    await nothing_is_left(server)


async def test_a_late_joiner_that_differs_in_a_vary_runs_by_itself(serve: Start, form: str) -> None:
    source = Source(says(("Vary", "User-Agent")))
    server = await streams(serve, source, handler=handler_of(source, form))
    source.send_head()
    everybody = await meet(server, source, [A])
    source.let(b"first;")
    await arrived(everybody, b"first;")
    everybody += [await server.send("/", headers) for headers in (B, A)]
    await arrived(everybody[1:], b"first;")
    assert source.runs == 2
    source.end()
    await arrived(everybody, b"0\r\n\r\n")
    await nothing_is_left(server)


async def test_a_private_head_is_shared_where_the_identity_holds_credentials(serve: Start, form: str) -> None:
    source = Source(says(("Cache-Control", "private")))
    server = await streams(serve, source, handler=handler_of(source, form))
    everybody = await meet(server, source, [{"Authorization": "Basic abc"}] * 3)
    source.let(b"mine")
    source.end()
    assert [(await one.receive()).body for one in everybody] == [b"mine"] * 3
    assert (source.runs, server.figure("unshared")) == (1, {})


async def test_a_head_for_one_whose_authorization_is_not_compared_is_not_shared(serve: Start, form: str) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), headers=("Accept",))
    everybody = await meet(server, source, [{}, {"Authorization": "Basic abc"}, {}])
    source.let(b"x")
    source.end()
    assert [(await one.receive()).body for one in everybody] == [b"x"] * 3
    assert (source.runs, server.figure("unshared")) == (2, {"authorization": 1})


async def test_what_a_signal_adds_is_for_one_and_keeps_nobody_apart(serve: Start, form: str) -> None:
    count = 0

    async def adds(request: web.Request, response: web.StreamResponse) -> None:
        nonlocal count
        count += 1
        response.headers["Set-Cookie"] = f"number={count}"
        response.headers["Cache-Control"] = "no-store"

    source = Source()
    server = await started(serve, handler_of(source, form), signals=[adds])
    everybody = await meet(server, source, [{}] * 3)
    source.send_head()
    source.let(b"first;")
    await arrived(everybody, b"\r\n\r\n")
    everybody += [await server.send("/")]
    await eventually(lambda: bool(server.figure("total") == 4))
    source.end()
    await arrived(everybody[:3], b"0\r\n\r\n")
    assert (await everybody[3].receive()).headers.getall("Set-Cookie") == ["number=4"]
    assert (source.runs, count, server.figure("unshared")) == (1, 4, {})


async def test_each_gets_its_own_of_what_a_signal_adds(serve: Start, form: str) -> None:
    async def adds(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.add("X-Signal", request.headers["X-Request-ID"])

    source = Source()
    server = await started(serve, handler_of(source, form), signals=[adds])
    everybody = await meet(server, source, [{"X-Request-ID": f"number {number}"} for number in range(3)])
    source.end()
    replies = [await one.receive() for one in everybody]
    assert [reply.headers.getall("X-Signal") for reply in replies] == [["number 0"], ["number 1"], ["number 2"]]
    assert source.runs == 1


# `share=`


async def test_share_true_overrides_what_the_head_says(serve: Start, form: str) -> None:
    asked: list[int] = []

    def share(request: web.Request, response: web.StreamResponse) -> bool:
        asked.append(response.status)
        return True

    def adorn(request: web.Request, response: web.StreamResponse) -> None:
        sets_a_cookie(request, response)
        says(("Cache-Control", "no-store"), ("Set-Cookie", "a=1"), ("Vary", "*"), status=429)(request, response)

    source = Source(adorn)
    server = await streams(serve, source, handler=handler_of(source, form), share=share)
    everybody = await meet(server, source, [{}] * 3)
    source.let(b"for all")
    source.end()
    replies = [await one.receive() for one in everybody]
    assert [(reply.status, reply.body) for reply in replies] == [(429, b"for all")] * 3
    assert [sorted(reply.headers.getall("Set-Cookie")) for reply in replies] == [["a=1", "session=1; Path=/"]] * 3
    assert (source.runs, asked, server.figure("unshared")) == (1, [429], {})


async def test_share_false_turns_away_whatever_the_head_says(serve: Start, form: str) -> None:
    source = Source(says(("Cache-Control", "public, max-age=60")))
    server = await streams(serve, source, handler=handler_of(source, form), share=lambda request, response: False)
    everybody = await meet(server, source, [{}] * 3)
    source.send_head()
    source.let(b"first;")
    await arrived(everybody, b"first;")
    assert (source.runs, server.figure("unshared")) == (3, {"share": 2})
    source.end()
    await arrived(everybody, b"0\r\n\r\n")


@pytest.mark.parametrize(("cache_control", "runs"), [("public", 1), ("no-store", 3)])
async def test_share_none_leaves_it_to_the_head(serve: Start, form: str, cache_control: str, runs: int) -> None:
    source = Source(says(("Cache-Control", cache_control)))
    server = await streams(serve, source, handler=handler_of(source, form), share=lambda request, response: None)
    everybody = await meet(server, source, [{}] * 3)
    source.let(b"x")
    source.end()
    assert [(await one.receive()).body for one in everybody] == [b"x"] * 3
    assert source.runs == runs


@pytest.mark.parametrize("said", [1, ValueError("broken")])
async def test_share_that_goes_wrong_is_logged_and_turns_away(
    serve: Start, form: str, said: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def share(request: web.Request, response: web.StreamResponse) -> Any:
        if isinstance(said, Exception):
            raise said
        return said

    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), share=share)
    everybody = await meet(server, source, [{}] * 3)
    source.send_head()
    source.let(b"first;")
    await arrived(everybody, b"first;")
    assert (source.runs, server.figure("unshared")) == (3, {"share-error": 2})
    source.end()
    await arrived(everybody, b"0\r\n\r\n")
    assert [record for record in caplog.records if "share failed" in record.message]


@web.middleware
async def numbered(request: web.Request, handler: Any) -> web.StreamResponse:
    """Give each request an address of its own, and its agent's name as an item."""
    agent = request.headers.get("User-Agent", "")
    request["user"] = agent
    response: web.StreamResponse = await handler(request.clone(remote=f"address {agent}"))
    return response


LOOKS: dict[str, tuple[Look, str]] = {
    "a header": (lambda request: request.headers["User-Agent"], "header: user-agent"),
    "all headers": (lambda request: dict(request.headers)["User-Agent"], "header: user-agent"),
    "an item": (lambda request: request["user"], "state: user"),
    "the address": (lambda request: request.remote, "remote"),
}


@pytest.mark.parametrize("what", LOOKS)
async def test_what_share_looks_at_does_not_count_as_looked_at_by_the_handler(
    serve: Start, form: str, what: str
) -> None:
    look, _ = LOOKS[what]
    source = Source()
    server = await streams(
        serve,
        source,
        handler=handler_of(source, form),
        outer=[numbered],
        share=lambda request, response: True if look(request) else None,
    )
    everybody = await meet(server, source, [A, B, A])
    source.send_head()
    source.let(b"first;")
    await arrived(everybody, b"first;")
    everybody.append(await server.send("/", B))
    await arrived(everybody[3:], b"first;")
    source.end()
    await arrived(everybody, b"0\r\n\r\n")
    assert (source.runs, server.figure("unshared")) == (1, {})
    await nothing_is_left(server)


LATER_LOOKS: dict[str, tuple[Look, Any, Any]] = {
    "cookies": (lambda request: request.cookies["a"], {"Cookie": "a=a"}, {"Cookie": "a=b"}),
    "http_range": (lambda request: request.http_range, {"Range": "bytes=1-2"}, {"Range": "bytes=3-4"}),
    "if_match": (lambda request: request.if_match, {"If-Match": '"a"'}, {"If-Match": '"b"'}),
    "forwarded": (lambda request: request.forwarded, {"Forwarded": "for=1.1.1.1"}, {"Forwarded": "for=2.2.2.2"}),
    "raw_headers": (lambda request: request.raw_headers, {"X-A": "1"}, {"X-A": "2"}),
    "get": (lambda request: request.headers.get("User-Agent"), A, B),
}


@pytest.mark.parametrize("what", LATER_LOOKS)
async def test_what_share_looked_at_before_is_seen_when_the_handler_looks_at_it_later(
    serve: Start, form: str, what: str
) -> None:
    look, one, other = LATER_LOOKS[what]
    source = Source()
    server = await streams(
        serve,
        source,
        handler=handler_of(source, form),
        headers=(),
        share=lambda request, response: look(request) and None,
    )
    everybody = await meet(server, source, [one, other, one])
    source.send_head()
    source.let(b"same;")
    await arrived(everybody, b"same;")
    source.let(lambda request: f"secret {look(request)}".encode())
    source.end()
    got = await rest(everybody[1])
    assert b"secret" not in got
    assert not got.endswith(b"0\r\n\r\n")
    await arrived([everybody[0], everybody[2]], b"0\r\n\r\n")
    await nothing_is_left(server)


async def test_share_does_not_override_what_the_handler_looks_at(serve: Start, form: str) -> None:
    source = Source(says(reads=lambda request: request.headers["User-Agent"]))
    server = await streams(serve, source, handler=handler_of(source, form), share=lambda request, response: True)
    everybody = await meet(server, source, [A, B])
    source.end()
    assert [(await one.receive()).collapsed for one in everybody] == [None, WAITED]
    assert server.figure("unshared") == {"header: user-agent": 1}


# What cannot be shared for other reasons.


async def test_where_the_server_cancels_handlers_nothing_is_streamed_to_others(serve: Start, form: str) -> None:
    source = Source()
    server = await started(serve, handler_of(source, form), cancels=True)
    everybody = await meet(server, source, [{}] * 3)
    source.send_head()
    source.let(b"first;")
    await arrived(everybody, b"first;")
    assert source.runs == 3
    assert sum(server.figure("unshared").values()) == 2
    assert set(server.figure("unshared")) <= {"stream", "one-shot-body"}
    everybody[0].abort()  # which cancels the first one's handler, and nobody else's
    source.let(b"last")
    source.end()
    await arrived(everybody[1:], b"last\r\n0\r\n\r\n")
    await nothing_is_left(server)


async def test_a_handler_that_is_marked_is_left_alone(serve: Start, form: str) -> None:
    source = Source()

    @never_reduce
    async def handler(request: web.Request) -> web.StreamResponse:
        response: web.StreamResponse = await handler_of(source, form)(request)
        return response

    server = await streams(serve, source, handler=handler)
    everybody = await meet(server, source, [{}] * 3)
    source.let(b"x")
    source.end()
    assert [(await one.receive()).collapsed for one in everybody] == [None] * 3
    assert (source.runs, server.figure("bypassed")) == (3, {"never_reduce": 3})


async def test_a_websocket_goes_beside_a_stream_on_the_same_path(serve: Start, form: str) -> None:
    source = Source()

    async def handler(request: web.Request) -> web.StreamResponse:
        if "Upgrade" not in request.headers:
            response: web.StreamResponse = await handler_of(source, form)(request)
            return response
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str("hello")
        await socket.close()
        return socket

    server = await streams(serve, source, handler=handler)
    everybody = await meet(server, source, [{}] * 2)
    source.send_head()
    source.let(b"first;")
    await arrived(everybody, b"first;")
    upgrade = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    sockets = [await server.send("/", upgrade) for _ in range(2)]
    await arrived(sockets, b"hello")
    source.end()
    await arrived(everybody, b"0\r\n\r\n")
    assert (source.runs, server.figure("bypassed")) == (1, {"websocket": 2})
    for socket in sockets:
        socket.abort()
    await nothing_is_left(server)


async def test_a_file_that_the_handler_sends_itself_is_not_shared(serve: Start, tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_bytes(b"content " * 10_000)
    source = Source()

    async def handler(request: web.Request) -> web.StreamResponse:
        source.runs += 1
        await source._head.wait()
        response = web.FileResponse(file)
        await response.prepare(request)
        return response

    server = await streams(serve, source, handler=handler)
    everybody = await meet(server, source, [{}] * 3)
    source.send_head()
    assert {(await one.receive()).body for one in everybody} == {file.read_bytes()}
    assert (source.runs, server.figure("unshared")) == (3, {"stream": 2})
    await nothing_is_left(server)


async def test_a_file_that_is_returned_is_sent_by_each_itself(serve: Start, tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_bytes(b"content " * 10_000)
    source = Source()

    async def handler(request: web.Request) -> web.StreamResponse:
        source.runs += 1
        await source._head.wait()
        return web.FileResponse(file)

    server = await streams(serve, source, handler=handler)
    everybody = await meet(server, source, [{}] * 3)
    source.send_head()
    replies = [await one.receive() for one in everybody]
    assert {reply.body for reply in replies} == {file.read_bytes()}
    assert [reply.collapsed for reply in replies] == [None, JOINED, JOINED]
    assert (source.runs, server.figure("unshared")) == (1, {})


def own_way(base: Any, what: str) -> Any:
    """A class of responses that replaces one of the steps in which aiohttp sends an answer."""

    async def prepare(self: Any, request: web.BaseRequest) -> Any:
        return await base.prepare(self, request)

    async def write(self: Any, data: Any) -> None:
        await base.write(self, b"<" + data + b">")

    async def write_eof(self: Any, data: Any = b"") -> None:
        await base.write_eof(self, data)

    return type("OwnWay", (base,), {what: {"prepare": prepare, "write": write, "write_eof": write_eof}[what]})


@pytest.mark.parametrize("what", ["prepare", "write", "write_eof"])
@pytest.mark.parametrize("how", ["its class", "itself"])
async def test_a_response_that_sends_in_a_way_of_its_own_is_not_shared(
    serve: Start, form: str, what: str, how: str
) -> None:
    source = Source()
    written = form == "written by the handler"

    async def handler(request: web.Request) -> web.StreamResponse:
        source.runs += 1
        await source._head.wait()
        base: Any = web.StreamResponse if written else web.Response
        cls = own_way(base, what) if how == "its class" else base
        response = cls() if written else cls(body=source.made_for(request))
        if how == "itself":
            setattr(response, what, getattr(response, what))
        if written:
            await response.prepare(request)
            async for piece in source.pieces():
                await response.write(piece)
        return response  # type: ignore[no-any-return]

    server = await streams(serve, source, handler=handler)
    everybody = await meet(server, source, [{}] * 3)
    source.send_head()
    source.let(b"first")
    await arrived(everybody, b"first")
    assert (source.runs, server.figure("unshared")) == (3, {"response-class": 2})
    source.end()
    await arrived(everybody, b"0\r\n\r\n")
    await nothing_is_left(server)


@pytest.mark.parametrize("ends", [False, True])
async def test_a_whole_response_that_the_handler_sends_itself_is_shared(serve: Start, ends: bool) -> None:
    source = Source()

    async def handler(request: web.Request) -> web.StreamResponse:
        source.runs += 1
        await source._head.wait()
        response = web.Response(text="all of it")
        await response.prepare(request)
        if ends:
            await response.write_eof()
        return response

    server = await streams(serve, source, handler=handler)
    everybody = await meet(server, source, [{}] * 3)
    source.send_head()
    replies = [await one.receive() for one in everybody]
    assert [(reply.body, reply.headers["Content-Length"]) for reply in replies] == [(b"all of it", "9")] * 3
    assert [(await one.request("/")).body for one in everybody] == [b"all of it"] * 3  # the connections go on
    await nothing_is_left(server)


# What the handler looked at before it sent its head.


@pytest.mark.parametrize("what", LOOKS)
async def test_one_who_differs_in_what_was_looked_at_before_the_head_runs_at_once(
    serve: Start, form: str, what: str
) -> None:
    look, reason = LOOKS[what]
    source = Source(says(reads=look))
    server = await streams(serve, source, handler=handler_of(source, form), outer=[numbered])
    everybody = await meet(server, source, [A, B, A])
    source.send_head()
    source.let(lambda request: f"{look(request)};".encode())
    await arrived(everybody, b";")  # while nobody's has ended
    assert (source.runs, server.figure("unshared")) == (2, {reason: 1})
    source.end()
    await arrived(everybody, b"0\r\n\r\n")
    await nothing_is_left(server)


async def test_one_who_differs_in_an_attribute_of_the_request_runs_by_itself(serve: Start, form: str) -> None:
    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        vars(request)["country"] = request.headers["User-Agent"]
        response: web.StreamResponse = await handler(request)
        return response

    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), outer=[outer])
    everybody = await meet(server, source, [A, B, A])
    source.send_head()
    source.let(lambda request: f"{vars(request)['country']};".encode())
    source.end()
    assert [(await one.receive()).body for one in everybody] == [b"a;", b"b;", b"a;"]
    assert (source.runs, server.figure("unshared")) == (2, {"state: country": 1})


async def test_names_are_learned_so_that_the_next_herd_is_split_at_the_door(serve: Start, form: str) -> None:
    source = Source(says(reads=lambda request: request.headers.get("User-Agent")))
    server = await streams(serve, source, handler=handler_of(source, form))
    everybody = await meet(server, source, [A, B, A])
    source.end()
    for one in everybody:
        await one.receive()
    source.hold_head()
    everybody = await meet(server, source, [A, B, A, B])
    assert (source.runs, server.figure("waiting")) == (4, 2)
    source.send_head()
    assert [(await one.receive()).collapsed for one in everybody] == [None, None, JOINED, JOINED]
    assert server.figure("unshared") == {"header: user-agent": 1}
    await nothing_is_left(server)


# What the handler looks at while it sends.


@pytest.mark.parametrize("what", LOOKS)
async def test_one_who_differs_in_what_is_looked_at_midway_is_broken_off_before_what_may_depend_on_it(
    serve: Start, form: str, what: str
) -> None:
    look, reason = LOOKS[what]
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), outer=[numbered])
    everybody = await meet(server, source, [A, B, A])
    source.send_head()
    source.let(b"same;")
    await arrived(everybody, b"same;")
    source.let(lambda request: f"secret {look(request)};".encode())
    first, other, third = everybody
    await arrived([first, third], b"a;")
    got = await rest(other)
    assert b"secret" not in got
    assert not got.endswith(b"0\r\n\r\n")
    source.let(b"more")
    source.end()
    await arrived([first, third], b"more\r\n0\r\n\r\n")
    assert (source.runs, server.figure("unshared")) == (1, {reason: 1})
    await nothing_is_left(server)


async def test_one_who_is_slow_is_broken_off_midway_as_well(serve: Start, form: str) -> None:
    """It is behind by more than what its socket takes, so that it waits for its client, not for the handler."""
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), max_buffer=2**26, max_buffer_total=2**26)
    first, other = await meet(server, source, [A, B])
    source.send_head()
    source.let(b"same;")
    await arrived([other], b"same;")
    source.let(*[bytes(2**20)] * 20, b"much;")
    await drained(first, b"much;")
    source.let(lambda request: f"secret {request.headers['User-Agent']};".encode())
    await arrived([first], b"secret a;")
    source.end()
    got = await rest(other)
    assert b"secret" not in got
    assert not got.endswith(b"0\r\n\r\n")
    await nothing_is_left(server)


async def test_where_the_end_of_the_connection_is_the_end_of_the_body_a_reset_says_that_it_is_none(
    serve: Start, form: str
) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form))
    first, other = await meet(server, source, [A, B], version="HTTP/1.0")
    source.send_head()
    source.let(b"same;")
    await arrived([first, other], b"same;")
    source.let(lambda request: f"secret {request.headers['User-Agent']};".encode())
    source.end()
    await arrived([first], b"secret a;")
    with pytest.raises(ConnectionResetError):
        await other.reader.read()
    assert await first.reader.read() == b""


async def test_one_who_differs_is_not_given_a_whole_body_where_the_handler_looks_and_just_ends(
    serve: Start, form: str
) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form))
    everybody = await meet(server, source, [A, B, A])
    source.send_head()
    source.let(b"same;")
    await arrived(everybody, b"same;")
    source.let(lambda request: request.headers["User-Agent"] and b"")  # it might have written something
    source.end()
    assert not (await rest(everybody[1])).endswith(b"0\r\n\r\n")
    await arrived([everybody[0], everybody[2]], b"0\r\n\r\n")
    await nothing_is_left(server)


@pytest.mark.parametrize("last", [b"", b"secret"])
async def test_one_who_differs_is_not_given_a_whole_body_where_the_handler_looks_and_ends_the_body_itself(
    serve: Start, last: bytes
) -> None:
    source = Source()

    async def handler(request: web.Request) -> web.StreamResponse:
        source.runs += 1
        await source._head.wait()
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in source.pieces():
            await response.write(piece)
        assert request.headers["User-Agent"]
        await response.write_eof(last)
        return response

    server = await streams(serve, source, handler=handler)
    everybody = await meet(server, source, [A, B, A])
    source.send_head()
    source.let(b"same;")
    await arrived(everybody, b"same;")
    source.end()
    got = await rest(everybody[1])
    assert b"secret" not in got
    assert not got.endswith(b"0\r\n\r\n")
    await arrived([everybody[0], everybody[2]], b"0\r\n\r\n")
    await nothing_is_left(server)


async def test_a_late_joiner_that_differs_in_what_was_looked_at_midway_runs_by_itself(serve: Start, form: str) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form))
    source.send_head()
    everybody = await meet(server, source, [A])
    source.let(b"same;", lambda request: f"{request.headers['User-Agent']};".encode(), b"more;")
    await arrived(everybody, b"a;")
    everybody.append(await server.send("/", B))
    await eventually(lambda: source.runs == 2)
    everybody.append(await server.send("/", A))
    await eventually(lambda: bool(server.figure("total") == 3))
    source.end()
    assert [(await one.receive()).body for one in everybody[1:]] == [b"same;b;more;", b"same;a;more;"]
    assert source.runs == 2
    await arrived(everybody[:1], b"0\r\n\r\n")
    await nothing_is_left(server)


async def test_what_is_looked_at_midway_is_learned_too(serve: Start, form: str) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form))
    everybody = await meet(server, source, [A, B])
    source.send_head()
    source.let(b"same;")
    await arrived(everybody, b"same;")
    source.let(lambda request: request.headers["User-Agent"].encode())
    source.end()
    await rest(everybody[1])
    source.hold_head()
    everybody = await meet(server, source, [A, B, A, B])
    assert (source.runs, server.figure("waiting")) == (3, 2)
    source.send_head()
    replies = [await one.receive() for one in everybody]
    assert [reply.body for reply in replies] == [b"same;a", b"same;b"] * 2
    assert [reply.collapsed for reply in replies] == [None, None, JOINED, JOINED]
    await nothing_is_left(server)


async def test_an_item_that_may_be_ignored_breaks_nobody_off(serve: Start, form: str) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form), outer=[numbered], ignore_state=("user",))
    everybody = await meet(server, source, [A, B])
    source.send_head()
    source.let(b"same;")
    await arrived(everybody, b"same;")
    source.let(lambda request: f"{request['user']};".encode())
    source.end()
    await arrived(everybody, b"a;\r\n0\r\n\r\n")
    assert server.figure("unshared") == {}


async def test_who_is_broken_off_is_told_in_the_log_once(
    serve: Start, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aiohttp_reduce")
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form))
    everybody = await meet(server, source, [A, B, B])
    source.send_head()
    source.let(b"same;")
    await arrived(everybody, b"same;")
    source.let(lambda request: request.headers["User-Agent"].encode())
    source.end()
    await rest(everybody[1])
    await rest(everybody[2])
    told = [record.getMessage() for record in caplog.records if record.name == "aiohttp_reduce"]
    assert told.count("GET /: not shared (header: user-agent)") == 1


# Items that the handler sets.


def sets_an_item(request: web.Request) -> bytes:
    request["token"] = "one-time"
    return b"set;"


async def test_an_item_that_is_set_before_the_head_keeps_the_stream_for_one(serve: Start, form: str) -> None:
    source = Source(says(reads=sets_an_item))
    server = await streams(serve, source, handler=handler_of(source, form))
    everybody = await meet(server, source, [{}] * 3)
    source.send_head()
    source.let(b"first;")
    await arrived(everybody, b"first;")
    assert (source.runs, server.figure("unshared")) == (3, {"state-written: token": 2})
    source.end()
    await arrived(everybody, b"0\r\n\r\n")
    await nothing_is_left(server)


@pytest.mark.parametrize("size", [1, 3])
async def test_once_an_item_is_set_midway_nobody_joins_and_those_who_read_go_on(
    serve: Start, form: str, size: int
) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form))
    everybody = await meet(server, source, [{}] * size)
    source.send_head()
    source.let(b"first;", sets_an_item)
    await arrived(everybody, b"set;")
    newcomer = await server.send("/")
    await arrived([newcomer], b"first;")
    assert source.runs == 2
    source.let(b"last")
    source.end()
    await arrived([*everybody, newcomer], b"last\r\n0\r\n\r\n")
    await nothing_is_left(server)


# What aiohttp itself looks at.


def compresses(request: web.Request, response: web.StreamResponse) -> None:
    response.enable_compression()


CODINGS: list[dict[str, str]] = [
    {"Accept-Encoding": "gzip"},
    {"Accept-Encoding": "deflate"},
    {},
    {"Accept-Encoding": "gzip, deflate"},
]


async def test_the_coding_that_aiohttp_negotiates_keeps_nobody_apart(serve: Start, form: str) -> None:
    source = Source(compresses)
    server = await streams(serve, source, handler=handler_of(source, form), headers=())
    everybody = await meet(server, source, CODINGS)
    source.let(b"text")
    source.end()
    replies = [await one.receive() for one in everybody]
    codings = [reply.headers.get("Content-Encoding") for reply in replies]
    assert codings == ["gzip", "deflate", None, "deflate"]
    assert (source.runs, server.figure("unshared")) == (1, {})


@pytest.mark.parametrize("force", [False, True])
async def test_a_handler_that_looks_at_accept_encoding_itself_keeps_those_who_differ_apart(
    serve: Start, form: str, force: bool
) -> None:
    def adorn(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["X-Saw"] = request.headers.get("Accept-Encoding", "nothing")
        response.enable_compression(web.ContentCoding.gzip if force else None)

    source = Source(adorn)
    server = await streams(serve, source, handler=handler_of(source, form), headers=())
    everybody = await meet(server, source, [*CODINGS, CODINGS[0]])
    source.let(b"text")
    source.end()
    replies = [await one.receive() for one in everybody]
    assert [reply.headers["X-Saw"] for reply in replies] == ["gzip", "deflate", "nothing", "gzip, deflate", "gzip"]
    assert (source.runs, server.figure("unshared")) == (4, {"header: accept-encoding": 3})


async def test_a_handler_that_looks_at_accept_encoding_midway_goes_on_only_for_those_who_agree(
    serve: Start, form: str
) -> None:
    source = Source(compresses)
    server = await streams(serve, source, handler=handler_of(source, form), headers=())
    everybody = await meet(server, source, [{}, {"Accept-Encoding": "br"}, {}])
    source.send_head()
    source.let(b"same;")
    await arrived(everybody, b"same;")
    source.let(lambda request: f"secret {request.headers.get('Accept-Encoding')};".encode())
    source.end()
    got = await rest(everybody[1])
    assert b"secret" not in got
    assert not got.endswith(b"0\r\n\r\n")
    await arrived([everybody[0], everybody[2]], b"secret None;\r\n0\r\n\r\n")


@pytest.mark.parametrize("closes", [0, 1])
async def test_whether_a_connection_is_kept_is_each_ones_own_matter(serve: Start, form: str, closes: int) -> None:
    source = Source()
    server = await streams(serve, source, handler=handler_of(source, form))
    requests: list[Any] = [{}, {}, {}]
    requests[closes] = {"Connection": "close"}
    everybody = await meet(server, source, requests)
    source.let(b"text")
    source.end()
    replies = [await one.receive() for one in everybody]
    kept = [reply.headers.get("Connection") for reply in replies]
    assert kept == ["close" if number == closes else None for number in range(3)]
    assert (source.runs, server.figure("unshared")) == (1, {})
    assert await rest(everybody[closes]) == b""
    assert (await everybody[2].request("/")).body == b"text"


def _middleware(server: Server) -> ReduceMiddleware:
    assert server.middleware is not None
    return server.middleware


async def test_what_aiohttp_looks_at_itself_is_not_learned(serve: Start, form: str) -> None:
    source = Source(compresses)
    server = await streams(serve, source, handler=handler_of(source, form), headers=())
    everybody = await meet(server, source, [*CODINGS, {"Connection": "close"}])
    source.end()
    for one in everybody:
        await one.receive()
    (route,) = _middleware(server)._routes.values()
    assert route.learned == ()
