"""Section 3, "Replaying": what a follower is given, and that it is its own."""

import asyncio
import gzip
import zlib
from pathlib import Path
from typing import Any

import pytest
from aiohttp import payload, web

from aiohttp_reduce import reduce_middleware
from aiohttp_reduce.failures import copied
from aiohttp_reduce.server import ReduceMiddleware
from tests.harness import Connection, Gate, Reply, Server, Start, app_with, eventually


async def herd(
    serve: Start, handler: Any, size: int = 3, headers: Any = (), **options: Any
) -> tuple[list[Reply], Server]:
    """A gated herd: `handler(request)` gives the response once all of them are there. Leader's answer first."""
    gate = Gate()

    async def gated(request: web.Request) -> web.StreamResponse:
        await gate.wait()
        response: web.StreamResponse = await handler(request)
        return response

    method = options.pop("method", "GET")
    middleware: ReduceMiddleware = options.pop("middleware", None) or reduce_middleware()
    on_prepare = options.pop("on_prepare", None)
    app = app_with(gated, middleware, **options)
    if on_prepare is not None:
        app.on_response_prepare.append(on_prepare)
    server = await serve(app, middleware=middleware)
    sent: list[Connection] = []
    for number in range(size):
        extra = headers(number) if callable(headers) else headers
        sent.append(await server.send("/", extra, method=method))
        await eventually(lambda: server.figure("waiting") + gate.runs == len(sent))
    server.runs = gate  # type: ignore[attr-defined]
    gate.open()
    replies = [await connection.receive(head_only=method == "HEAD") for connection in sent]
    await eventually(server.nothing_is_left)
    return replies, server


def runs(server: Server) -> int:
    gate: Gate = server.runs  # type: ignore[attr-defined]
    return gate.runs


async def test_status_reason_headers_and_body_are_the_handlers(serve: Start) -> None:
    async def handler(request: web.Request) -> web.Response:
        headers = [
            ("X-Many", "1"),
            ("X-Many", "2"),
            ("Content-Type", "text/weird"),
            ("Date", "then"),
            ("Server", "own"),
        ]
        return web.Response(status=299, reason="Very Fine", headers=headers, body=b"body")  # type: ignore[arg-type]

    replies, server = await herd(serve, handler)
    assert runs(server) == 1
    assert {(reply.status, reply.reason, reply.body) for reply in replies} == {(299, "Very Fine", b"body")}
    leader, *followers = [[item for item in reply.headers.items() if item[0] != "Cache-Status"] for reply in replies]
    assert all(follower == leader for follower in followers)


async def test_followers_answers_say_collapsed_and_the_leaders_is_untouched(serve: Start) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(headers={"Cache-Status": "origin; hit"})

    replies, _ = await herd(serve, handler)
    assert [reply.collapsed for reply in replies] == [
        "origin; hit",
        *["origin; hit, aiohttp-reduce; fwd=miss; collapsed"] * 2,
    ]


@pytest.mark.parametrize(
    ("name", "shown"),
    [("own", "own; fwd=miss; collapsed"), ('a "b"', '"a \\"b\\""; fwd=miss; collapsed'), (None, None)],
)
async def test_cache_status_names_it_or_turns_it_off(serve: Start, name: str | None, shown: str | None) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    replies, _ = await herd(serve, handler, middleware=reduce_middleware(cache_status=name))
    assert [reply.collapsed for reply in replies] == [None, shown, shown]


async def test_what_outer_middlewares_of_the_leader_add_does_not_leak(serve: Start) -> None:
    @web.middleware
    async def outer(request: web.Request, handler: Any) -> Any:
        response = await handler(request)
        response.headers["X-Mine"] = request.headers["User-Agent"]
        response.set_cookie("session", request.headers["User-Agent"])
        return response

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    replies, server = await herd(serve, handler, headers=lambda n: {"User-Agent": str(n)}, outer=[outer])
    assert runs(server) == 1
    assert [reply.headers.getall("X-Mine") for reply in replies] == [["0"], ["1"], ["2"]]
    assert [reply.headers.getall("Set-Cookie") for reply in replies] == [[f"session={n}; Path=/"] for n in range(3)]


async def test_signals_run_and_date_is_set_for_each_request(serve: Start) -> None:
    seen: list[int] = []

    async def on_prepare(request: web.Request, response: web.StreamResponse) -> None:
        seen.append(id(response))
        response.headers["X-Signal"] = request.headers["User-Agent"]

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    replies, _ = await herd(serve, handler, headers=lambda n: {"User-Agent": str(n)}, on_prepare=on_prepare)
    assert [reply.headers["X-Signal"] for reply in replies] == ["0", "1", "2"]
    assert all("Date" in reply.headers for reply in replies)
    assert len(set(seen)) == 3


@pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")
async def test_the_response_mapping_is_copied(serve: Start) -> None:
    seen: list[tuple[object, object]] = []

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> Any:
        response = await handler(request)
        seen.append((response.get("given"), response.get("added")))
        response["added"] = "by the leader"
        return response

    async def handler(request: web.Request) -> web.Response:
        response = web.Response()
        response["given"] = "by the handler"
        return response

    await herd(serve, handler, outer=[outer])
    assert seen == [("by the handler", None)] * 3


async def test_own_object_of_the_same_class_for_everybody(serve: Start) -> None:
    class Special(web.Response):
        def __init__(self, tag: str) -> None:
            super().__init__(text=tag)
            self.tag = tag

    seen: list[Any] = []

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> Any:
        response = await handler(request)
        seen.append(response)
        return response

    async def handler(request: web.Request) -> web.Response:
        return Special("mark")

    replies, _ = await herd(serve, handler, outer=[outer])
    assert [(type(response), response.tag) for response in seen] == [(Special, "mark")] * 3
    assert len({id(response) for response in seen}) == 3
    assert {reply.text for reply in replies} == {"mark"}


async def test_keep_alive_and_http_1_0_work_per_request(serve: Start) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    replies, server = await herd(
        serve, handler, headers=lambda n: {"Connection": ["keep-alive", "close", "keep-alive"][n]}
    )
    assert runs(server) == 1
    assert [reply.headers.get("Connection") for reply in replies] == [None, "close", None]


async def test_head_is_answered_without_a_body(serve: Start) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    replies, _ = await herd(serve, handler, method="HEAD")
    assert [reply.headers["Content-Length"] for reply in replies] == ["2"] * 3


@pytest.mark.parametrize("kind", ["bytes", "empty", "bytearray", "memoryview", "text", "payload", "json"])
async def test_bodies_that_can_be_sent_many_times(serve: Start, kind: str) -> None:
    leaders: list[bytearray] = []

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> Any:
        response = await handler(request)
        if leaders:
            leaders.pop()[:] = b"spoilt!"
        return response

    async def handler(request: web.Request) -> web.Response:
        if kind in {"bytearray", "memoryview"}:
            buffer = bytearray(b"content")
            leaders.append(buffer)
            return web.Response(body=buffer if kind == "bytearray" else memoryview(buffer))
        bodies: dict[str, Any] = {
            "bytes": b"content",
            "empty": None,
            "text": "content",
            "payload": payload.StringPayload("content"),
            "json": payload.JsonPayload("content"),
        }
        return web.Response(body=bodies[kind])

    replies, server = await herd(serve, handler, outer=[outer])
    assert runs(server) == 1
    expected = {"empty": b"", "json": b'"content"'}.get(kind, b"content")
    assert {reply.body for reply in replies[1:]} == {expected}


async def test_a_class_that_sends_its_body_itself_is_unshared(serve: Start) -> None:
    class Rows(web.Response):
        async def write_eof(self, data: bytes = b"") -> None:
            self.rows = [*getattr(self, "rows", []), 1]
            await super().write_eof(data)

    async def handler(request: web.Request) -> web.Response:
        return Rows(text="rows")

    replies, server = await herd(serve, handler)
    assert server.figure("unshared") == {"response-class": 2}
    assert {reply.text for reply in replies} == {"rows"}


async def test_an_object_that_sends_itself_in_its_own_way_is_unshared(serve: Start) -> None:
    async def handler(request: web.Request) -> web.Response:
        response = web.Response(text="ok")
        prepare = response.prepare

        async def wrapped(to: Any) -> Any:
            response.headers["X-Wrapped"] = "yes"
            return await prepare(to)

        response.prepare = wrapped  # type: ignore[method-assign]
        return response

    replies, server = await herd(serve, handler)
    assert {(reply.text, reply.headers["X-Wrapped"]) for reply in replies} == {("ok", "yes")}
    assert server.figure("unshared") == {"response-class": 2}


async def test_containers_on_a_response_are_each_ones_own(serve: Start) -> None:
    class Tagged(web.Response):
        def __init__(self) -> None:
            super().__init__(text="ok")
            self.tags: list[str] = []

    seen: list[list[str]] = []

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> Any:
        response = await handler(request)
        response.tags.append(request.headers["User-Agent"])
        seen.append(response.tags)
        return response

    async def handler(request: web.Request) -> web.Response:
        return Tagged()

    _, server = await herd(serve, handler, headers=lambda n: {"User-Agent": str(n)}, outer=[outer])
    assert runs(server) == 1
    assert sorted(seen) == [["0"], ["1"], ["2"]]


async def test_a_client_cannot_take_headers_from_others_by_what_it_sends(serve: Start) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="ok", headers={"X-Frame-Options": "SAMEORIGIN"})

    replies, server = await herd(serve, handler, headers=lambda n: {"X-Request-ID": "SAMEORIGIN"} if n == 0 else {})
    assert runs(server) == 1
    assert {reply.headers["X-Frame-Options"] for reply in replies} == {"SAMEORIGIN"}


@pytest.mark.parametrize("content_type", ["text/event-stream", "multipart/x-mixed-replace"])
async def test_endless_types_are_unshared(serve: Start, content_type: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=b"data: 1\n\n", content_type=content_type)

    _, server = await herd(serve, handler)
    assert server.figure("unshared") == {"stream": 2}


async def test_a_second_line_of_content_type_is_looked_at_too(serve: Start) -> None:
    async def handler(request: web.Request) -> web.Response:
        response = web.Response(body=b"data: 1\n\n", content_type="text/plain")
        response.headers.add("Content-Type", "Text/Event-Stream; charset=utf-8")
        return response

    _, server = await herd(serve, handler)
    assert server.figure("unshared") == {"stream": 2}


async def test_raised_stays_raised_and_returned_stays_returned(serve: Start) -> None:
    seen: list[Any] = []

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> Any:
        try:
            response = await handler(request)
        except web.HTTPException as error:
            seen.append(("raised", error))
            raise
        seen.append(("returned", response))
        return response

    async def raises(request: web.Request) -> web.Response:
        raise web.HTTPMethodNotAllowed("GET", ["POST"], text="no", headers={"X-A": "1"})

    async def returns(request: web.Request) -> web.Response:
        return web.Response(status=405)

    replies, server = await herd(serve, raises, outer=[outer])
    assert runs(server) == 1
    assert {(reply.status, reply.text, reply.headers["Allow"]) for reply in replies} == {(405, "no", "POST")}
    assert [kind for kind, _ in seen] == ["raised"] * 3
    assert len({id(error) for _, error in seen}) == 3
    for _, error in seen:
        assert type(error) is web.HTTPMethodNotAllowed
        assert error.allowed_methods == {"POST"}
        assert str(error) == "Method Not Allowed"
    seen.clear()
    await herd(serve, returns, outer=[outer])
    assert [kind for kind, _ in seen] == ["returned"] * 3


async def test_a_redirect_keeps_its_location(serve: Start) -> None:
    async def handler(request: web.Request) -> web.Response:
        raise web.HTTPMovedPermanently("/there")

    replies, server = await herd(serve, handler)
    assert runs(server) == 1
    assert {reply.headers["Location"] for reply in replies} == {"/there"}


class Odd(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


async def test_an_exception_reaches_all_with_the_handlers_traceback_only(
    serve: Start, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[BaseException] = []

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> Any:
        try:
            return await handler(request)
        except LookupError as error:
            error.add_note(f"seen by {request.headers['User-Agent']}")
            seen.append(error)
            raise

    async def handler(request: web.Request) -> web.Response:
        raise KeyError("missing")

    replies, server = await herd(serve, handler, 20, lambda n: {"User-Agent": str(n)}, outer=[outer])
    assert {reply.status for reply in replies} == {500}
    assert (runs(server), server.figure("errors")) == (1, 1)
    assert len({id(error) for error in seen}) == 20
    for number, error in enumerate(seen):
        assert error.args == ("missing",)
        assert error.__notes__ == [f"seen by {number}"]
        assert error.__context__ is None
    depths = []
    for record in caplog.records:
        depth, traceback = 0, record.exc_info[2] if record.exc_info else None
        names = []
        while traceback is not None:
            names.append(traceback.tb_frame.f_code.co_name)
            depth, traceback = depth + 1, traceback.tb_next
        assert "handler" in names
        depths.append(depth)
    assert max(depths) <= min(depths) + 4


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a", 1),
        FileNotFoundError(2, "no such file", "name"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        ExceptionGroup("group", [ValueError(1)]),
        TimeoutError(),
        asyncio.IncompleteReadError(b"x", 2),
    ],
)
def test_exceptions_are_copied_faithfully(error: Exception) -> None:
    error.add_note("note")
    error.__cause__ = ValueError("cause")
    twin = copied(error)
    assert twin is not error
    assert (type(twin), twin.args, str(twin)) == (type(error), error.args, str(error))
    assert twin.__cause__ is error.__cause__
    assert not hasattr(twin, "__notes__")
    assert error.__notes__ == ["note"]


def test_an_exception_that_cannot_be_copied_faithfully_is_shared_as_it_is() -> None:
    error = Odd(5)
    assert copied(error) is error

    class Uncopyable(Exception):
        def __reduce__(self) -> Any:
            raise TypeError("no")

    other = Uncopyable("x")
    assert copied(other) is other


async def test_a_file_is_sent_by_each_with_range_and_conditions(serve: Start, tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    file.write_bytes(b"0123456789" * 1000)

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(file, headers={"X-File": "yes"})

    ranges = ["bytes=0-9", "bytes=10-14", "bytes=-1"]
    middleware = reduce_middleware(headers=())
    replies, server = await herd(serve, handler, headers=lambda n: {"Range": ranges[n]}, middleware=middleware)
    assert runs(server) == 1
    assert [(reply.status, reply.body) for reply in replies] == [(206, b"0123456789"), (206, b"01234"), (206, b"9")]
    assert {reply.headers["X-File"] for reply in replies} == {"yes"}
    etag = replies[0].headers["ETag"]
    replies, server = await herd(serve, handler, headers={"If-None-Match": etag})
    assert {reply.status for reply in replies} == {304}


async def test_a_body_is_compressed_once_for_each_coding(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    from aiohttp_reduce import _aiohttp

    codings: list[str] = []
    original = _aiohttp.compressed

    async def counted(response: web.Response, coding: web.ContentCoding) -> bytes:
        codings.append(coding.value)
        return await original(response, coding)

    monkeypatch.setattr(_aiohttp, "compressed", counted)
    body = b"compress me " * 20_000

    async def handler(request: web.Request) -> web.Response:
        response = web.Response(body=body)
        response.enable_compression()
        return response

    accept = ["gzip", "deflate", "identity"]
    middleware = reduce_middleware(headers=("Accept",))
    replies, server = await herd(
        serve, handler, 12, lambda n: {"Accept-Encoding": accept[n % 3]}, middleware=middleware
    )
    assert runs(server) == 1
    assert sorted(codings) == ["deflate", "gzip"]
    for number, reply in enumerate(replies):
        coding = reply.headers.get("Content-Encoding", "identity")
        assert coding == accept[number % 3]
        plain = {"gzip": gzip.decompress, "deflate": zlib.decompress, "identity": bytes}[coding](reply.body)
        assert plain == body


async def test_a_body_that_an_outer_middleware_replaces_is_compressed_anew(serve: Start) -> None:
    @web.middleware
    async def outer(request: web.Request, handler: Any) -> Any:
        response = await handler(request)
        response.body = request.headers["User-Agent"].encode() * 100
        return response

    async def handler(request: web.Request) -> web.Response:
        response = web.Response(body=b"original " * 100)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    replies, _ = await herd(serve, handler, headers=lambda n: {"User-Agent": str(n)}, outer=[outer])
    assert [gzip.decompress(reply.body) for reply in replies] == [b"0" * 100, b"1" * 100, b"2" * 100]


async def test_headers_that_repeat_the_leaders_trace_are_not_replayed(serve: Start) -> None:
    async def handler(request: web.Request) -> web.Response:
        ident = request.headers["X-Request-ID"]
        return web.Response(headers={"X-Request-ID": ident, "X-Trace-Echo": ident, "X-Page": ident, "X-Other": "kept"})

    replies, server = await herd(serve, handler, headers=lambda n: {"X-Request-ID": f"request-{n}"})
    assert runs(server) == 1
    assert [reply.headers.get("X-Request-ID") for reply in replies] == ["request-0", None, None]
    assert [reply.headers.get("X-Trace-Echo") for reply in replies] == ["request-0", None, None]
    # Not just any header: whoever leads chooses the value, and could take security headers away from others.
    assert {reply.headers["X-Page"] for reply in replies} == {"request-0"}
    assert {reply.headers["X-Other"] for reply in replies} == {"kept"}


@pytest.mark.parametrize("value", [None, "text"])
async def test_a_handler_that_returns_no_response_is_a_500_for_all(
    serve: Start, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: web.Request) -> Any:
        return value

    replies, server = await herd(serve, handler)
    assert runs(server) == 1
    assert {reply.status for reply in replies} == {500}


async def test_a_response_class_that_cannot_be_remade_runs_again(
    serve: Start, caplog: pytest.LogCaptureFixture
) -> None:
    class Awkward(web.Response):
        def __new__(cls, *args: Any, **kwargs: Any) -> "Awkward":
            if not kwargs:
                raise TypeError("text is needed")
            return super().__new__(cls)

    async def handler(request: web.Request) -> web.Response:
        return Awkward(text="ok")

    replies, server = await herd(serve, handler)
    assert {reply.text for reply in replies} == {"ok"}
    assert runs(server) == 3
    assert any("cannot replay" in record.message for record in caplog.records)
