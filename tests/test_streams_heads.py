"""Everybody who shares a streamed answer has a head of their own, as if the handler had run for them.

Most tests are run three times: for those who wait for the head, of a handler that writes by itself and of one whose
body can be read once, and for those who come while the body is on its way.
"""

import asyncio
import io
import logging
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import aiohttp
import pytest
from aiohttp import helpers, web
from aiohttp.abc import AbstractAccessLogger

from aiohttp_reduce import reduce_middleware

from .harness import Connection, Reply, Server, Start, app_with, eventually
from .streaming import Tap, joined, nothing_is_left, streams

COLLAPSED = "aiohttp-reduce; fwd=miss; collapsed"
NOT_COLLAPSED = "aiohttp-reduce; fwd=miss; collapsed=?0"

Change = Callable[[web.StreamResponse], Any]


def unchanged(response: web.StreamResponse) -> None:
    """The response as it is."""


class Kind:
    """How an answer is streamed, and when followers come."""

    def __init__(self, *, one_shot: bool, late: bool) -> None:
        self.one_shot = one_shot
        self.late = late

    def tap(self, change: Change = unchanged, cls: Any = None, **options: Any) -> "Source":
        """A handler whose response is made with these options, and then changed."""
        return Source(self, change, cls, options)

    async def meet(self, server: Server, source: "Source", requests: Iterable[dict[str, Any]]) -> list[Connection]:
        """Send the requests; the first of them leads. All of them are given the head, and none is at the end."""
        first, *others = [dict(one) for one in requests]
        everybody = [await server.send("/", **first)]
        await eventually(lambda: source.tap.runs == 1)
        if self.late:
            source.tap.send_head()
            source.tap.let(b"first;")
            await eventually(lambda: source.tap.written == 1 or source.tap.heads == 1)
        for number, one in enumerate(others, 1):
            everybody.append(await server.send("/", **one))
            await eventually(lambda number=number: bool(server.figure("total") == number + 1))  # type: ignore[misc]
        if not self.late:
            await server.waiting(len(others))
            source.tap.send_head()
            source.tap.let(b"first;")
        return everybody


class Source:
    """A tap of this kind."""

    def __init__(self, kind: Kind, change: Change, cls: Any, options: dict[str, Any]) -> None:
        def prepare(request: web.Request) -> web.StreamResponse:
            response: web.StreamResponse = (cls or web.StreamResponse)(**options)
            change(response)
            return response

        self.tap = Tap(prepare)
        self._kind = kind
        self._change = change
        self._cls = cls or web.Response
        self._options = options

    async def handler(self, request: web.Request) -> web.StreamResponse:
        if not self._kind.one_shot:
            return await self.tap.handler(request)
        inner = await self.tap.one_shot(request)
        assert isinstance(inner, web.Response)
        response: web.StreamResponse = self._cls(body=inner.body, **self._options)
        self._change(response)
        return response

    def end(self) -> None:
        self.tap.let(b"last")
        self.tap.end()


BODY = b"first;last"


@pytest.fixture(
    params=[(False, False), (False, True), (True, False), (True, True)],
    ids=["written, waiting", "written, late", "one-shot, waiting", "one-shot, late"],
)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Who streams, and when followers come."""
    one_shot, late = request.param
    return Kind(one_shot=one_shot, late=late)


def asks(*headers: tuple[str, str], **options: Any) -> dict[str, Any]:
    return {"headers": headers, **options}


async def herd(
    serve: Start, kind: Kind, source: Source, requests: Iterable[dict[str, Any]], **options: Any
) -> tuple[Server, list[Connection], list[Reply]]:
    """All of the requests, and their replies."""
    requests = list(requests)
    server = await streams(serve, source.tap, handler=source.handler, **options)
    everybody = await kind.meet(server, source, requests)
    source.end()
    replies = [
        await one.receive(head_only=asked.get("method") == "HEAD")
        for one, asked in zip(everybody, requests, strict=True)
    ]
    return server, everybody, replies


async def is_usable(connection: Connection) -> bool:
    """Whether the server keeps the connection open for a further request."""
    try:
        await connection.send("/elsewhere")
        return (await connection.receive()).status == 404
    except (asyncio.IncompleteReadError, ConnectionError):
        return False


# What the handler says.


async def test_status_reason_and_headers_are_the_handlers(serve: Start, kind: Kind) -> None:
    source = kind.tap(
        status=206, reason="As you like", headers=[("X-Two", "1"), ("X-Two", "2"), ("ETag", '"tag"'), ("Server", "own")]
    )
    server, _, replies = await herd(serve, kind, source, [asks()] * 3)
    for reply in replies:
        assert (reply.status, reply.reason, reply.body) == (206, "As you like", BODY)
        assert reply.headers.getall("X-Two") == ["1", "2"]
        assert (reply.headers["ETag"], reply.headers["Server"]) == ('"tag"', "own")
    heads = [sorted((k, v) for k, v in reply.headers.items() if k not in {"Date", "Cache-Status"}) for reply in replies]
    assert heads[0] == heads[1] == heads[2]
    assert [reply.collapsed for reply in replies] == [None, COLLAPSED, COLLAPSED]
    assert (server.figure("reduced"), server.figure("unshared")) == (2, {})
    await nothing_is_left(server)


async def test_cookies_are_everybodys_where_share_says_so(serve: Start, kind: Kind) -> None:
    def change(response: web.StreamResponse) -> None:
        response.set_cookie("a", "1", httponly=True)
        response.set_cookie("b", "2")
        response.headers.add("Set-Cookie", "c=3")

    source = kind.tap(change)
    server, _, replies = await herd(serve, kind, source, [asks()] * 3, share=lambda request, response: True)
    for reply in replies:
        assert sorted(reply.headers.getall("Set-Cookie")) == ["a=1; HttpOnly; Path=/", "b=2; Path=/", "c=3"]
        assert reply.body == BODY
    assert (source.tap.runs, server.figure("unshared")) == (1, {})


async def test_an_answer_with_cookies_is_each_ones_own(serve: Start, kind: Kind) -> None:
    source = kind.tap(lambda response: response.set_cookie("a", "1"))
    server, _, replies = await herd(serve, kind, source, [asks()] * 3)
    assert [reply.body for reply in replies] == [BODY] * 3
    assert [reply.headers.getall("Set-Cookie") for reply in replies] == [["a=1; Path=/"]] * 3
    assert source.tap.runs == 3
    expected = [None, None, None] if kind.late else [None, NOT_COLLAPSED, NOT_COLLAPSED]
    assert [reply.collapsed for reply in replies] == expected
    await nothing_is_left(server)


async def test_a_content_length_is_everybodys(serve: Start, kind: Kind) -> None:
    source = kind.tap(headers={"Content-Length": str(len(BODY))})
    _, everybody, replies = await herd(serve, kind, source, [asks()] * 3)
    for reply in replies:
        assert (reply.headers["Content-Length"], reply.headers.get("Transfer-Encoding")) == ("10", None)
        assert reply.body == BODY
    assert [await is_usable(one) for one in everybody] == [True] * 3


async def test_a_cache_status_that_is_there_is_added_to(serve: Start, kind: Kind) -> None:
    source = kind.tap(headers={"Cache-Status": "upstream; hit"})
    _, _, replies = await herd(serve, kind, source, [asks()] * 2)
    assert [reply.collapsed for reply in replies] == ["upstream; hit", f"upstream; hit, {COLLAPSED}"]


async def test_no_cache_status_where_it_is_off(serve: Start, kind: Kind) -> None:
    _, _, replies = await herd(serve, kind, kind.tap(), [asks()] * 2, cache_status=None)
    assert [reply.collapsed for reply in replies] == [None, None]


# What is each request's own.


class Clock:
    """What aiohttp takes for the time when it writes a Date."""

    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def time(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.fixture
def date(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(helpers, "time", clock)
    return clock


async def test_each_date_is_of_its_own_time(serve: Start, date: Clock) -> None:
    tap = Tap()
    server = await streams(serve, tap)
    first = await server.send("/")
    tap.send_head()
    tap.let(b"first;")
    await eventually(lambda: tap.written == 1)
    date.now += 3
    late = await server.send("/")
    await eventually(lambda: bool(server.figure("reduced") == 1))
    await late.reader.readuntil(b"200 OK")
    tap.let(b"last")
    tap.end()
    assert (await first.receive()).headers["Date"] == "Sun, 09 Sep 2001 01:46:40 GMT"
    lines = (await late.reader.readuntil(b"\r\n\r\n")).decode()
    assert "Date: Sun, 09 Sep 2001 01:46:43 GMT\r\n" in lines


async def test_a_late_joiner_of_a_body_has_a_date_of_its_own_time(serve: Start, date: Clock) -> None:
    kind = Kind(one_shot=True, late=True)
    source = kind.tap()
    server = await streams(serve, source.tap, handler=source.handler)
    first = await server.send("/")
    source.tap.send_head()
    source.tap.let(b"first;")
    await first.reader.readuntil(b"200 OK\r\n")
    date.now += 3
    late = await server.send("/")
    await late.reader.readuntil(b"200 OK\r\n")
    source.end()
    assert b"Date: Sun, 09 Sep 2001 01:46:40 GMT\r\n" in await first.reader.readuntil(b"\r\n\r\n")
    assert b"Date: Sun, 09 Sep 2001 01:46:43 GMT\r\n" in await late.reader.readuntil(b"\r\n\r\n")


async def test_a_date_that_the_handler_set_stays(serve: Start, kind: Kind) -> None:
    source = kind.tap(headers={"Date": "Thu, 01 Jan 1970 00:00:00 GMT"})
    _, _, replies = await herd(serve, kind, source, [asks()] * 3)
    assert [reply.headers.getall("Date") for reply in replies] == [["Thu, 01 Jan 1970 00:00:00 GMT"]] * 3


@pytest.mark.parametrize("leader_closes", [False, True])
async def test_each_connection_is_kept_open_or_closed_as_its_own_request_asks(
    serve: Start, kind: Kind, leader_closes: bool
) -> None:
    closing, keeping = asks(("Connection", "close")), asks(("Connection", "keep-alive"))
    order = [closing, keeping, asks(), closing] if leader_closes else [keeping, closing, asks(), closing]
    server, everybody, replies = await herd(serve, kind, kind.tap(), order)
    assert [reply.body for reply in replies] == [BODY] * 4
    closes = [one is closing for one in order]
    assert [reply.headers.get("Connection") for reply in replies] == ["close" if one else None for one in closes]
    assert server.figure("reduced") == 3
    # (Whoever asks again at once may still join.)
    assert [await is_usable(one) for one in everybody] == [not one for one in closes]
    await nothing_is_left(server)


async def test_a_handler_that_forces_the_connection_closed_closes_everybodys(serve: Start, kind: Kind) -> None:
    source = kind.tap(lambda response: response.force_close())
    _, everybody, replies = await herd(serve, kind, source, [asks()] * 3)
    assert [(reply.body, reply.headers["Connection"]) for reply in replies] == [(BODY, "close")] * 3
    assert [await is_usable(one) for one in everybody] == [False] * 3


async def test_a_connection_header_of_the_handler_is_everybodys(serve: Start, kind: Kind) -> None:
    source = kind.tap(headers={"Connection": "X-Hop"})
    order = [asks(("Connection", "close")), asks()]
    _, everybody, replies = await herd(serve, kind, source, order)
    assert [reply.headers.getall("Connection") for reply in replies] == [["X-Hop"]] * 2
    assert [await is_usable(one) for one in everybody] == [False, True]


@pytest.mark.parametrize("leader_keeps", [False, True])
async def test_http_1_0_ends_by_the_close_of_each_connection(serve: Start, kind: Kind, leader_keeps: bool) -> None:
    keeping, plain = asks(("Connection", "keep-alive"), version="HTTP/1.0"), asks(version="HTTP/1.0")
    order = [keeping, plain, plain] if leader_keeps else [plain, plain, plain]
    source = kind.tap()
    server = await streams(serve, source.tap, handler=source.handler)
    leader, *others = await kind.meet(server, source, order)
    source.end()
    replies = [await one.receive() for one in others]
    for reply in replies:
        assert (reply.version, reply.body, reply.collapsed) == ("HTTP/1.0", BODY, COLLAPSED)
        assert "Transfer-Encoding" not in reply.headers
        assert "Connection" not in reply.headers
    # (aiohttp itself leaves a connection open whose client asked for that, and has no way to see the end.)
    received = await leader.reader.readuntil(BODY) if leader_keeps else await leader.reader.read()
    assert received.startswith(b"HTTP/1.0 200 OK\r\n")
    assert received.endswith(b"\r\n\r\n" + BODY)
    assert server.figure("reduced") == 2


async def test_http_1_0_with_a_content_length_keeps_whose_connection_asked_for_it(serve: Start, kind: Kind) -> None:
    keeping, plain = asks(("Connection", "keep-alive"), version="HTTP/1.0"), asks(version="HTTP/1.0")
    source = kind.tap(headers={"Content-Length": str(len(BODY))})
    _, everybody, replies = await herd(serve, kind, source, [plain, keeping, plain])
    assert [reply.headers.get("Connection") for reply in replies] == [None, "keep-alive", None]
    assert [reply.body for reply in replies] == [BODY] * 3
    assert [await is_usable(one) for one in everybody] == [False, True, False]


async def test_a_transfer_encoding_that_the_handler_asked_for_is_everybodys(serve: Start, kind: Kind) -> None:
    source = kind.tap(lambda response: response.enable_chunked_encoding())
    _, everybody, replies = await herd(serve, kind, source, [asks()] * 3)
    assert [reply.headers.getall("Transfer-Encoding") for reply in replies] == [["chunked"]] * 3
    assert [reply.body for reply in replies] == [BODY] * 3
    assert [await is_usable(one) for one in everybody] == [True] * 3


async def test_heads_alone_are_shared_too(serve: Start, kind: Kind) -> None:
    if kind.one_shot and kind.late:
        pytest.skip("nothing is on its way: the body of a HEAD is not read")
    source = kind.tap(headers={"X-From": "the handler"})
    _, everybody, replies = await herd(serve, kind, source, [asks(method="HEAD")] * 3)
    for reply in replies:
        assert (reply.status, reply.headers["X-From"]) == (200, "the handler")
    assert source.tap.runs == 1
    assert [reply.collapsed for reply in replies] == [None, COLLAPSED, COLLAPSED]
    if kind.one_shot:
        assert [await is_usable(one) for one in everybody] == [True] * 3


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body_leave_each_connection_usable(serve: Start, status: int) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        await gate.wait()
        response = web.StreamResponse(status=status, headers={"ETag": '"1"'})
        await response.prepare(request)
        return response

    gate = asyncio.Event()
    server = await streams(serve, Tap(), handler=handler)
    everybody = [await server.send("/") for _ in range(3)]
    await server.waiting(2)
    gate.set()
    replies = [await one.receive() for one in everybody]
    assert [(reply.status, reply.headers["ETag"]) for reply in replies] == [(status, '"1"')] * 3
    assert [reply.collapsed for reply in replies] == [None, COLLAPSED, COLLAPSED]
    assert [await is_usable(one) for one in everybody] == [True] * 3


async def test_a_trace_header_of_the_leader_is_not_replayed(serve: Start, kind: Kind) -> None:
    source = kind.tap(headers={"X-Request-ID": "leader-0001", "X-Trace-Id": "leader-0001", "X-Other": "leader-0001"})
    order = [asks(("X-Request-ID", "leader-0001")), asks(("X-Request-ID", "follower-2")), asks()]
    _, _, replies = await herd(serve, kind, source, order)
    leader, *followers = replies
    assert (leader.headers["X-Request-ID"], leader.headers["X-Trace-Id"]) == ("leader-0001", "leader-0001")
    for follower in followers:
        assert "X-Request-ID" not in follower.headers
        assert "X-Trace-Id" not in follower.headers
        assert follower.headers["X-Other"] == "leader-0001"


# Signals and outer middlewares.


async def test_signals_are_sent_for_each_with_its_own_request(serve: Start, kind: Kind) -> None:
    seen: list[tuple[web.Request, web.StreamResponse]] = []

    async def signal(request: web.Request, response: web.StreamResponse) -> None:
        seen.append((request, response))
        assert "X-For" not in response.headers
        who = request.headers["User-Agent"]
        response.headers["X-For"] = who
        response.headers["X-Only-" + who] = "yes"
        response.headers["X-Count"] = str(len([one for one in response.headers if one.startswith("X-Only")]))

    source = kind.tap()
    middleware = reduce_middleware()
    app = app_with(source.handler, middleware)
    app.on_response_prepare.append(signal)
    server = await serve(app, middleware=middleware)
    everybody = await kind.meet(server, source, [asks(("User-Agent", who)) for who in ("ann", "bob", "cid")])
    source.end()
    replies = [await one.receive() for one in everybody]
    assert [reply.headers.getall("X-For") for reply in replies] == [["ann"], ["bob"], ["cid"]]
    assert [reply.headers["X-Count"] for reply in replies] == ["1"] * 3
    assert [reply.body for reply in replies] == [BODY] * 3
    assert len({id(request) for request, _ in seen}) == len({id(response) for _, response in seen}) == len(seen) == 3


async def test_what_the_leaders_outer_middlewares_add_stays_with_it(serve: Start, kind: Kind) -> None:
    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        who = request.headers.get("User-Agent", "")
        response: web.StreamResponse = await handler(request)
        if not response.prepared:
            response.headers["X-Outer-" + who] = "yes"
            response.set_cookie(who, "1")
        return response

    order = [asks(("User-Agent", who)) for who in ("ann", "bob", "cid")]
    _, _, replies = await herd(serve, kind, kind.tap(), order, outer=[outer])
    for reply, who in zip(replies, ("ann", "bob", "cid"), strict=True):
        added = [name for name in reply.headers if name.startswith("X-Outer")]
        assert added == ([f"X-Outer-{who}"] if kind.one_shot else [])
        assert reply.headers.getall("Set-Cookie", []) == ([f"{who}=1; Path=/"] if kind.one_shot else [])


class SpecialWhole(web.Response):
    """A class of an application with a body."""


async def test_each_outer_middleware_sees_a_response_of_its_own(serve: Start, kind: Kind) -> None:
    seen: list[web.StreamResponse] = []

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        seen.append(response)
        assert dict(response.items()) == {"handler": "said"}
        response._state["outer"] = "said"
        return response

    def change(response: web.StreamResponse) -> None:
        response._state["handler"] = "said"

    cls = SpecialWhole if kind.one_shot else None
    source = kind.tap(change, cls, status=203)
    _, _, replies = await herd(serve, kind, source, [asks()] * 3, outer=[outer])
    assert [reply.body for reply in replies] == [BODY] * 3
    assert [type(one) for one in seen] == [SpecialWhole if kind.one_shot else web.StreamResponse] * 3
    assert len({id(one) for one in seen}) == 3
    assert [one.status for one in seen] == [203] * 3


async def test_an_outer_middleware_is_given_a_prepared_response_or_one_to_be_sent(serve: Start, kind: Kind) -> None:
    seen: list[tuple[bool, bool]] = []

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        seen.append((response.prepared, isinstance(response, web.Response)))
        return response

    await herd(serve, kind, kind.tap(), [asks()] * 3, outer=[outer])
    assert seen == [(not kind.one_shot, kind.one_shot)] * 3


async def test_an_outer_middleware_may_write_on_to_its_own_response(serve: Start) -> None:
    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        await response.write(b"for " + request.headers["User-Agent"].encode())
        return response

    kind = Kind(one_shot=False, late=False)
    order = [asks(("User-Agent", who)) for who in ("ann", "bob", "cid")]
    _, _, replies = await herd(serve, kind, kind.tap(), order, outer=[outer])
    assert [reply.body for reply in replies] == [BODY + b"for ann", BODY + b"for bob", BODY + b"for cid"]


@pytest.mark.parametrize("codings", [("gzip", "gzip", "deflate"), ("gzip", "", "gzip"), ("", "gzip", "deflate")])
async def test_an_outer_middleware_may_write_on_to_its_own_compressed_response(serve: Start, codings: Any) -> None:
    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        await response.write(b"for " + request.headers["User-Agent"].encode())
        return response

    kind = Kind(one_shot=False, late=False)
    source = kind.tap(lambda response: response.enable_compression())
    order = [asks(("User-Agent", "me"), ("Accept-Encoding", one)) for one in codings]
    options = {"ignore_headers": {"User-Agent", "Accept-Encoding"}}
    _, _, replies = await herd(serve, kind, source, order, outer=[outer], **options)
    for reply, coding in zip(replies, codings, strict=True):
        assert reply.headers.get("Content-Encoding", "") == coding
        body = zlib.decompress(reply.body, 47) if coding == "gzip" else reply.body
        body = zlib.decompress(reply.body) if coding == "deflate" else body
        assert body == BODY + b"for me"


async def test_each_follower_negotiates_its_own_coding(serve: Start, kind: Kind) -> None:
    source = kind.tap(lambda response: response.enable_compression())
    codings = ["gzip", "deflate", "", "gzip, deflate"]
    order = [asks(("Accept-Encoding", one)) for one in codings]
    _, everybody, replies = await herd(serve, kind, source, order, ignore_headers={"Accept-Encoding"})
    assert [reply.headers.get("Content-Encoding") for reply in replies] == ["gzip", "deflate", None, "deflate"]
    for reply in replies:
        coding = reply.headers.get("Content-Encoding")
        assert (zlib.decompress(reply.body, 47) if coding else reply.body) == BODY
    assert [await is_usable(one) for one in everybody] == [True] * 4
    assert source.tap.runs == 1


async def test_an_outer_middleware_of_one_may_replace_its_own_body(serve: Start, kind: Kind) -> None:
    if not kind.one_shot:
        pytest.skip("what was sent cannot be replaced")

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        response = await handler(request)
        assert isinstance(response, web.Response)
        if request.headers["User-Agent"] == "bob":
            response.body = b"replaced"
        return response

    order = [asks(("User-Agent", who)) for who in ("ann", "bob", "cid")]
    server, _, replies = await herd(serve, kind, kind.tap(), order, outer=[outer])
    assert [reply.body for reply in replies] == [BODY, b"replaced", BODY]
    await nothing_is_left(server)


@pytest.mark.parametrize("what", ["replaces", "raises", "makes it 304", "closes and replaces"])
async def test_a_body_that_its_first_requester_was_not_sent_is_whole_for_who_waited(serve: Start, what: str) -> None:
    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        response = await handler(request)
        assert isinstance(response, web.Response)
        if request.headers["User-Agent"] == "ann":
            if what == "raises":
                raise web.HTTPGone
            if what == "makes it 304":
                response.set_status(304)
                return response
            if what == "closes and replaces":
                await response.body.close()  # type: ignore[union-attr]
            return web.Response(status=299)
        return response

    kind = Kind(one_shot=True, late=False)
    source = kind.tap()
    order = [asks(("User-Agent", who)) for who in ("ann", "bob", "cid")]
    server, _, replies = await herd(serve, kind, source, order, outer=[outer])
    assert replies[0].status in {299, 304, 410}
    assert [reply.body for reply in replies[1:]] == [BODY, BODY]
    assert source.tap.runs == 1
    await nothing_is_left(server)


@pytest.mark.parametrize("what", ["replaces", "raises", "makes it 304", "closes and replaces"])
async def test_a_body_that_nobody_reads_is_not_given_to_who_comes_after_the_answer(serve: Start, what: str) -> None:
    runs = 0
    files: list[io.BytesIO] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal runs
        runs += 1
        files.append(io.BytesIO(b"run %d" % runs))
        return web.Response(body=files[-1])

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        response = await handler(request)
        assert isinstance(response, web.Response)
        if request.headers["User-Agent"] == "ann":
            if what == "raises":
                raise web.HTTPGone
            if what == "makes it 304":
                response.set_status(304)
                return response
            if what == "closes and replaces":
                await response.body.close()  # type: ignore[union-attr]
            return web.Response(status=299)
        return response

    server = await streams(serve, Tap(), handler=handler, outer=[outer])
    await server.get("/", asks(("User-Agent", "ann"))["headers"])
    # Its answer has come: whoever asks now asks for something newer.
    await asyncio.sleep(0.02)
    reply = await server.get("/", asks(("User-Agent", "bob"))["headers"])
    assert (reply.body, reply.collapsed) == (b"run 2", None)
    await nothing_is_left(server)


async def test_a_raised_answer_with_a_body_that_is_read_once_is_raised_for_all(serve: Start) -> None:
    kinds: list[type] = []
    kind = Kind(one_shot=True, late=False)
    source = kind.tap()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = await source.handler(request)
        assert isinstance(response, web.Response)
        error = web.HTTPNotFound(headers={"X-From": "the handler"})
        error._body = response._body
        raise error

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            response: web.StreamResponse = await handler(request)
        except web.HTTPException as error:
            kinds.append(type(error))
            raise
        return response

    server = await streams(serve, source.tap, handler=handler, outer=[outer])
    everybody = await kind.meet(server, source, [asks()] * 3)
    source.end()
    replies = [await one.receive() for one in everybody]
    assert [(reply.status, reply.body, reply.headers["X-From"]) for reply in replies] == [
        (404, BODY, "the handler")
    ] * 3
    assert kinds == [web.HTTPNotFound] * 3
    assert source.tap.runs == 1


# Responses with a whole body that the handler prepares by itself.


@pytest.mark.parametrize("ends", [False, True])
async def test_a_whole_response_that_is_prepared_is_whole_for_all(serve: Start, ends: bool) -> None:
    gate = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        await gate.wait()
        response = web.Response(text="whole")
        await response.prepare(request)
        if ends:
            await response.write_eof()
        return response

    server = await streams(serve, Tap(), handler=handler)
    everybody = [await server.send("/") for _ in range(3)]
    await server.waiting(2)
    gate.set()
    replies = [await one.receive() for one in everybody]
    assert [(reply.body, reply.headers["Content-Length"]) for reply in replies] == [(b"whole", "5")] * 3
    assert [await is_usable(one) for one in everybody] == [True] * 3
    await nothing_is_left(server)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("generator", [False, True])
async def test_a_prepared_response_with_a_body_that_is_read_once_is_whole_for_all(
    serve: Start, ends: bool, generator: bool
) -> None:
    gate = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"who"
        yield b"le"

    async def handler(request: web.Request) -> web.StreamResponse:
        await gate.wait()
        response = web.Response(body=body() if generator else io.BytesIO(b"whole"))
        await response.prepare(request)
        if ends:
            await response.write_eof()
        return response

    server = await streams(serve, Tap(), handler=handler)
    everybody = [await server.send("/") for _ in range(3)]
    await server.waiting(2)
    gate.set()
    replies = [await one.receive() for one in everybody]
    assert [reply.body for reply in replies] == [b"whole"] * 3
    assert [await is_usable(one) for one in everybody] == [True] * 3
    await nothing_is_left(server)


# Access logs.


class Log(AbstractAccessLogger):
    """Notes what `%{User-Agent}i %s %b` say."""

    lines: list[tuple[str | None, int, int]]

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        if request.path == "/":
            self.lines.append((request.headers.get("User-Agent"), response.status, response.body_length))

    @property
    def enabled(self) -> bool:
        return True


async def test_the_access_log_of_each_has_the_size_that_it_was_sent(kind: Kind) -> None:
    lines: list[tuple[str | None, int, int]] = []
    source = kind.tap()
    middleware = reduce_middleware()
    server = Server(app_with(source.handler, middleware), middleware=middleware)
    log = type("Lines", (Log,), {"lines": lines})
    server._runner = web.AppRunner(server.app, access_log=logging.getLogger("tests"), access_log_class=log)
    await server.start()
    try:
        closing = ("Connection", "close")
        everybody = await kind.meet(
            server, source, [asks(("User-Agent", who), closing) for who in ("ann", "bob", "cid")]
        )
        source.end()
        received = [await one.reader.read() for one in everybody]
        await eventually(lambda: len(lines) == 3)
        assert {(who, status) for who, status, _ in lines} == {("ann", 200), ("bob", 200), ("cid", 200)}
        sizes = {who: size for who, _, size in lines}
        assert [sizes[who] for who in ("ann", "bob", "cid")] == [len(one) for one in received]
    finally:
        await server.stop()


# Those who waited and then ran by themselves.


async def test_who_waited_in_vain_is_told_in_the_head_that_its_handler_prepared(serve: Start, kind: Kind) -> None:
    if kind.late:
        pytest.skip("nobody waits for a head that was refused")
    source = kind.tap(headers={"Cache-Control": "no-store"})
    server, _, replies = await herd(serve, kind, source, [asks()] * 3)
    assert [reply.collapsed for reply in replies] == [None, NOT_COLLAPSED, NOT_COLLAPSED]
    assert [reply.body for reply in replies] == [BODY] * 3
    assert (source.tap.runs, server.figure("unshared")) == (3, {"no-store": 2})
    await nothing_is_left(server)


async def test_who_takes_over_is_told_in_the_head_and_the_others_share_with_it(serve: Start) -> None:
    for one_shot in (False, True):
        kind = Kind(one_shot=one_shot, late=False)
        source = kind.tap()
        giving_up = asyncio.Event()
        waiting: list[asyncio.Task[Any]] = []

        @web.middleware
        async def outer(
            request: web.Request,
            handler: Any,
            giving_up: asyncio.Event = giving_up,
            waiting: list[asyncio.Task[Any]] = waiting,
        ) -> web.StreamResponse:
            if request.headers["User-Agent"] != "ann":
                response: web.StreamResponse = await handler(request)
                return response
            running = asyncio.ensure_future(handler(request))
            await giving_up.wait()
            running.cancel()
            await asyncio.wait([running])
            return web.Response(status=504)

        server = await streams(serve, source.tap, handler=source.handler, outer=[outer])
        everybody = [await server.send("/", asks(("User-Agent", "ann"))["headers"])]
        await eventually(lambda source=source: source.tap.runs == 1)  # type: ignore[misc]
        everybody += [await server.send("/", asks(("User-Agent", who))["headers"]) for who in ("bob", "cid")]
        await server.waiting(2)
        giving_up.set()
        await eventually(lambda source=source: source.tap.runs == 2)  # type: ignore[misc]
        source.tap.send_head()
        source.tap.let(b"first;")
        source.end()
        replies = [await one.receive() for one in everybody]
        assert [reply.status for reply in replies] == [504, 200, 200]
        assert [reply.body for reply in replies[1:]] == [BODY, BODY]
        assert {str(reply.collapsed) for reply in replies[1:]} == {COLLAPSED, NOT_COLLAPSED}, one_shot
        assert (source.tap.runs, server.figure("takeovers")) == (2, 1)
        await nothing_is_left(server)


async def test_who_waited_for_a_leader_that_left_before_the_head_is_served(serve: Start, kind: Kind) -> None:
    if kind.late:
        pytest.skip("this is about the head")
    source = kind.tap()
    here: list[web.Request] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        here.append(request)
        return await source.handler(request)

    server = await streams(serve, source.tap, handler=handler)
    leader, *others = await joined(server, 3, source.tap)
    leader.abort()
    await eventually(lambda: here[0].transport is None)
    source.tap.send_head()
    source.tap.let(b"first;")
    source.end()
    assert [(await one.receive()).body for one in others] == [BODY, BODY]
    assert source.tap.runs == 1
    await nothing_is_left(server)


# Several doors.


@pytest.mark.parametrize("same", [True, False])
async def test_two_doors_run_a_handler_once_and_everybody_is_whole(serve: Start, kind: Kind, same: bool) -> None:
    source = kind.tap(headers={"X-From": "the handler"})
    middleware = reduce_middleware()
    inner = middleware if same else reduce_middleware(cache_status="inner")
    sub = web.Application(middlewares=[inner])
    sub.router.add_get("/", source.handler)
    app = web.Application(middlewares=[middleware])
    app.add_subapp("/sub", sub)
    server = await serve(app, middleware=middleware)
    first = await server.send("/sub/")
    await eventually(lambda: source.tap.runs == 1)
    total = server.figure("total")
    if kind.late:
        source.tap.send_head()
        source.tap.let(b"first;")
        await first.reader.readuntil(b"HTTP/1.1 ")
    everybody = [first]
    for number in (1, 2):
        everybody.append(await server.send("/sub/"))
        await eventually(lambda number=number: server.figure("total") >= total + number)  # type: ignore[misc]
    if not kind.late:
        await server.waiting(2)
        source.tap.send_head()
        source.tap.let(b"first;")
    else:
        await eventually(lambda: server.figure("reduced") >= 2)
    source.end()
    replies = [await one.receive() if one is not first or not kind.late else await _rest(one) for one in everybody]
    assert [reply.body for reply in replies] == [BODY] * 3
    assert [reply.headers["X-From"] for reply in replies] == ["the handler"] * 3
    assert replies[0].collapsed is None
    for reply in replies[1:]:
        assert reply.collapsed is not None
        assert COLLAPSED in reply.collapsed
    assert source.tap.runs == 1
    assert [await is_usable(one) for one in everybody] == [True] * 3
    await nothing_is_left(server)
    assert all(not table.flights for table in inner._tables.values())


async def _rest(connection: Connection) -> Reply:
    """A reply whose first word was read already."""
    rest = connection.reader
    rest._buffer[:0] = b"HTTP/1.1 "  # type: ignore[attr-defined]
    return await connection.receive()


async def test_two_doors_in_one_application_run_a_handler_once(serve: Start, kind: Kind) -> None:
    for same in (True, False):
        source = kind.tap()
        middleware = reduce_middleware()
        inner = middleware if same else reduce_middleware(cache_status="inner")
        server = await serve(app_with(source.handler, middleware, inner=[inner]), middleware=middleware)
        first = await server.send("/")
        await eventually(lambda source=source: source.tap.runs == 1)  # type: ignore[misc]
        if kind.late:
            source.tap.send_head()
            source.tap.let(b"first;")
            await first.reader.readuntil(b"HTTP/1.1 ")
        others = [await server.send("/") for _ in range(2)]
        if kind.late:
            await eventually(lambda server=server: server.figure("reduced") >= 2)  # type: ignore[misc]
            first.reader._buffer[:0] = b"HTTP/1.1 "  # type: ignore[attr-defined]
        else:
            await server.waiting(2)
            source.tap.send_head()
            source.tap.let(b"first;")
        source.end()
        replies = [await one.receive() for one in (first, *others)]
        assert [reply.body for reply in replies] == [BODY] * 3
        assert replies[0].collapsed is None
        assert all(COLLAPSED in str(reply.collapsed) for reply in replies[1:])
        assert source.tap.runs == 1
        await nothing_is_left(server)


async def test_behind_an_inner_clone_everybody_is_whole(serve: Start, kind: Kind) -> None:
    @web.middleware
    async def inner(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request.clone())
        return response

    source = kind.tap()
    server, everybody, replies = await herd(serve, kind, source, [asks()] * 3, inner=[inner])
    assert [reply.body for reply in replies] == [BODY] * 3
    assert [await is_usable(one) for one in everybody] == [True] * 3
    if not kind.one_shot:
        assert source.tap.runs == 3
    await nothing_is_left(server)


async def test_behind_an_outer_clone_streams_are_shared(serve: Start, kind: Kind) -> None:
    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request.clone())
        return response

    source = kind.tap()
    server, everybody, replies = await herd(serve, kind, source, [asks()] * 3, outer=[outer])
    assert [reply.body for reply in replies] == [BODY] * 3
    assert [reply.collapsed for reply in replies] == [None, COLLAPSED, COLLAPSED]
    assert source.tap.runs == 1
    assert [await is_usable(one) for one in everybody] == [True] * 3
    await nothing_is_left(server)


# Ends.


async def test_a_short_body_closes_the_followers_connection(serve: Start, kind: Kind) -> None:
    source = kind.tap(headers={"Content-Length": "99"})
    server = await streams(serve, source.tap, handler=source.handler)
    everybody = await kind.meet(server, source, [asks()] * 3)
    source.end()
    for one in everybody[1:]:
        with pytest.raises(asyncio.IncompleteReadError):
            await one.receive()
    await nothing_is_left(server)


async def test_a_follower_of_a_stream_that_breaks_is_never_given_a_whole_one(serve: Start, kind: Kind) -> None:
    raised: list[str] = []

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            response: web.StreamResponse = await handler(request)
        except Exception as error:
            raised.append(repr(error))
            raise
        return response

    source = kind.tap()
    server = await streams(serve, source.tap, handler=source.handler, outer=[outer])
    everybody = await kind.meet(server, source, [asks()] * 3)
    source.tap.end(RuntimeError("broken"))
    for one in everybody:
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await one.receive()
    if not kind.one_shot:
        assert raised == ["RuntimeError('broken')"] * 3
    await nothing_is_left(server)


async def test_an_ordinary_client_is_given_each_answer_in_full(serve: Start, kind: Kind) -> None:
    source = kind.tap(lambda response: response.enable_compression())
    server = await streams(serve, source.tap, handler=source.handler)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:

        async def text() -> tuple[str, str | None]:
            async with session.get("/") as response:
                return await response.text(), response.headers.get("Content-Encoding")

        asked = [asyncio.ensure_future(text()) for _ in range(5)]
        await server.waiting(4)
        source.tap.send_head()
        source.tap.let(b"first;")
        source.end()
        assert set(await asyncio.gather(*asked)) in ({("first;last", "deflate")}, {("first;last", "gzip")})
    assert source.tap.runs == 1
