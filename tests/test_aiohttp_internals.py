"""The private names of aiohttp that `_aiohttp` touches mean what it takes them for."""

import asyncio
from typing import Any
from unittest import mock

import pytest
from aiohttp import EMPTY_PAYLOAD, web
from aiohttp.test_utils import make_mocked_request

from aiohttp_reduce import _aiohttp
from aiohttp_reduce._aiohttp import REMOTE
from aiohttp_reduce.server.reads import RecordedHeaders, RecordedState
from tests.harness import Gate, Start


async def seen_by(serve: Start, look: Any, **options: Any) -> Any:
    """What `look(request)` gives inside a handler."""
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(look(request))
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/a", handler)
    server = await serve(app)
    await server.get("/a?b=%20c", **options)
    return seen[0]


async def test_at_the_door_gives_what_the_public_properties_say(serve: Start) -> None:
    def look(request: web.Request) -> Any:
        target, method, headers, payload, tls, route, app = _aiohttp.at_the_door(request)
        assert (method, headers) == (request.method, request.headers)
        assert (route, app) == (request.match_info.route, request.app)
        return target == request.raw_path, payload is request.content is EMPTY_PAYLOAD, tls

    assert await seen_by(serve, look) == (True, True, None)


async def test_a_request_with_a_body_has_another_payload(serve: Start) -> None:
    assert await seen_by(serve, lambda request: _aiohttp.at_the_door(request)[3] is EMPTY_PAYLOAD, body=b"x") is False


async def test_a_closing_server_and_a_closed_connection_cannot_answer(serve: Start) -> None:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait(request)
        return web.Response()

    app = web.Application()
    app.router.add_get("/", handler)
    server = await serve(app, shutdown_timeout=0.2)
    gone, stays = await server.send("/"), await server.send("/")
    await gate.entered(2)
    first, second = gate.requests
    assert _aiohttp.can_answer(first)
    assert _aiohttp.can_answer(second)
    gone.abort()
    await gate.disconnected(1)
    assert (_aiohttp.connection_is_open(first), _aiohttp.can_answer(second)) == (False, True)
    stopping = asyncio.create_task(server.runner.cleanup())
    await asyncio.sleep(0.05)
    assert (_aiohttp.is_shutting_down(second), _aiohttp.connection_is_open(second)) == (True, True)
    gate.open()
    await stays.receive()
    await stopping


@pytest.mark.parametrize("how", ["returned", "raised", "failed", "replaced", "prepared", "not found"])
async def test_before_answer_is_called_with_the_status_before_any_byte_and_before_the_end(
    serve: Start, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[tuple[int, int]] = []
    writers: list[Any] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        writers.append(request.writer)
        if how == "raised":
            raise web.HTTPConflict
        if how == "failed":
            raise RuntimeError("broken")
        if how == "prepared":
            response = web.StreamResponse(status=202)
            await response.prepare(request)
            return response
        return web.Response(status=201)

    @web.middleware
    async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
        clone = request.clone()
        _aiohttp.before_answer(clone, lambda status: called.append((status, request.writer.output_size)))
        response: web.StreamResponse = await handler(clone)
        return web.Response(status=299) if how == "replaced" else response

    app = web.Application(middlewares=[middleware])
    app.router.add_post("/", handler)
    server = await serve(app)
    target = "/else" if how == "not found" else "/"
    status = (await server.get(target, method="POST")).status
    assert called[0] == (status, 0)
    assert {code for code, _ in called} == {status}
    assert len(called) >= 2
    if writers:
        assert called[-1][1] < writers[0].output_size
        assert not {"write", "write_headers", "write_eof"} & set(vars(writers[0]))
    expected = {"raised": 409, "failed": 500, "replaced": 299, "prepared": 202, "not found": 404}.get(how, 201)
    assert status == expected


async def test_a_copy_shares_nothing_that_one_sending_changes(serve: Start) -> None:
    original = web.Response(text="ä", headers={"X-A": "1"}, status=299, reason="Fine")
    assert original.charset == "utf-8"
    fields = _aiohttp.fields_of_any_sending(vars(original))
    copy = _aiohttp.rebuild(web.Response, fields, original.headers, {})
    assert isinstance(copy, web.Response)
    copy.headers["X-A"] = "2"
    copy.charset = "latin-1"
    copy.set_cookie("a", "b")
    copy.etag = "tag"
    assert (original.headers["X-A"], original.charset, original.etag) == ("1", "utf-8", None)
    assert not _aiohttp.sets_cookies(original)
    assert _aiohttp.sets_cookies(copy)
    assert (copy.status, copy.reason, copy.body, copy.prepared) == (299, "Fine", "ä".encode(), False)


@pytest.mark.parametrize(
    ("cls", "own"),
    [
        (web.Response, False),
        (web.StreamResponse, False),
        (web.FileResponse, False),
        (web.HTTPNotFound, False),
        (web.WebSocketResponse, True),
        (type("Sub", (web.Response,), {}), False),
        (type("File", (web.FileResponse,), {}), False),
        (type("Prepares", (web.Response,), {"prepare": lambda self, request: None}), True),
        (type("Starts", (web.FileResponse,), {"_start": lambda self, request: None}), True),
        (type("Streams", (web.StreamResponse,), {}), True),
        (type("Slots", (web.Response,), {"__slots__": ("extra",)}), True),
    ],
)
def test_which_classes_send_their_body_themselves(cls: Any, own: bool) -> None:
    assert _aiohttp.class_sends_its_body_itself(cls) is own


@pytest.mark.parametrize(
    ("peername", "remote"), [(None, None), ("/run/client.sock", "/run/client.sock"), (("::1", 1, 0, 0), "::1")]
)
def test_remote_of_is_what_the_request_says(peername: Any, remote: str | None) -> None:
    def request() -> web.Request:
        protocol = mock.Mock(ssl_context=None, peername=peername)
        return make_mocked_request("GET", "/", {"Host": "a"}, protocol=protocol)

    assert _aiohttp.remote_of(request()) == request().remote == remote
    assert _aiohttp.remote_of(request().clone(remote="10.0.0.1")) == "10.0.0.1"


def test_a_remote_that_cannot_be_found_again_is_noted_when_it_is_lent() -> None:
    request = make_mocked_request("GET", "/", {"Host": "a"}).clone(remote=("10.0.0.1",))  # type: ignore[arg-type]
    headers, state = RecordedHeaders(), RecordedState()
    headers.request = request
    _aiohttp.lend(request, headers, state, _aiohttp.kept_names(lambda name: True))
    assert request.remote == ("10.0.0.1",)
    _aiohttp.take_back(request, headers)
    assert headers.notes is not None
    assert set(headers.notes.names) == {REMOTE}
    assert request.remote == ("10.0.0.1",)


@pytest.mark.skipif(not hasattr(web, "RequestKey"), reason="web.RequestKey came with aiohttp 3.14")
def test_the_name_of_an_item() -> None:
    assert _aiohttp.item_name("user") == "user"
    assert _aiohttp.item_name(web.RequestKey("user", str)).endswith("user")
    assert "<" not in _aiohttp.item_name(web.RequestKey("user", str))
