"""Section 3, "Bypass": what coalescing does not consider at all, and that it then changes nothing."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientSession, web

from aiohttp_reduce import never_reduce, reduce_middleware
from aiohttp_reduce.server import ReduceMiddleware
from tests.harness import Gate, Server, Start, app_with

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def runs_of_two(serve: Start, app: web.Application, middleware: ReduceMiddleware, gate: Gate, **send: Any) -> int:
    """Send the same request twice at once; how many runs there are when both are at the handler or wait."""
    server: Server = await serve(app, middleware=middleware)
    sent = [await server.send(**{"target": "/", **send}) for _ in range(2)]
    await gate.entered(1)
    async with asyncio.timeout(5):
        while gate.runs + server.figure("waiting") < 2:
            await asyncio.sleep(0.001)
    runs = gate.runs
    gate.open()
    for connection in sent:
        assert (await connection.receive(head_only=send.get("method") == "HEAD")).status == 200
    return runs


@pytest.mark.parametrize(
    ("send", "reason"),
    [
        ({"method": "POST"}, "method"),
        ({"method": "OPTIONS"}, "method"),
        ({"body": b"x"}, "body"),
        ({"headers": {"Accept": "text/event-stream"}}, "event-stream"),
        ({"headers": {"Accept": "text/html, TEXT/Event-Stream;q=0.5"}}, "event-stream"),
        ({"headers": [("Accept", "text/html"), ("Accept", "text/event-stream")]}, "event-stream"),
        ({"headers": {"Upgrade": "websocket", "Connection": "Upgrade"}}, "websocket"),
        ({"headers": {"Upgrade": "WebSocket"}}, "websocket"),
    ],
)
async def test_requests_that_are_not_considered(serve: Start, send: dict[str, Any], reason: str) -> None:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        await request.read()
        return web.Response(text="ok")

    middleware = reduce_middleware()
    assert await runs_of_two(serve, app_with(handler, middleware), middleware, gate, **send) == 2
    assert middleware.stats["bypassed"] == {reason: 2}
    assert middleware.stats["total"] == 0


async def test_expect_is_not_considered(serve: Start) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    connection = await server.send("/", {"Expect": "100-continue"})
    assert (await connection.receive(head_only=True)).status == 100
    assert (await connection.receive()).text == "ok"
    assert server.figure("bypassed") == {"expect": 1}


@pytest.mark.parametrize(
    "send",
    [
        {"headers": {"Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AAMAAABkAAQA"}},
        {"headers": {"Content-Length": "0"}},
        {"method": "HEAD"},
    ],
)
async def test_ordinary_requests_in_disguise_are_considered(serve: Start, send: dict[str, Any]) -> None:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response()

    middleware = reduce_middleware()
    assert await runs_of_two(serve, app_with(handler, middleware), middleware, gate, **send) == 1


async def test_when_decides_for_each_request(serve: Start) -> None:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response()

    def middleware() -> ReduceMiddleware:
        return reduce_middleware(when=lambda request: "share" in request.query)

    shared, apart = middleware(), middleware()
    assert await runs_of_two(serve, app_with(handler, shared), shared, gate, target="/?share") == 1
    gate.close()
    gate.runs = 0
    assert await runs_of_two(serve, app_with(handler, apart), apart, gate) == 2
    assert apart.stats["bypassed"] == {"when": 2}


async def test_a_when_that_raises_is_logged_and_that_request_bypasses(
    serve: Start, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    def when(request: web.Request) -> bool:
        raise LookupError("no such thing")

    middleware = reduce_middleware(when=when)
    server = await serve(app_with(handler, middleware), middleware=middleware)
    assert (await server.get("/")).text == "ok"
    assert server.figure("bypassed") == {"when-error": 1}
    assert any("when raised" in record.message for record in caplog.records)


async def test_methods_selects(serve: Start) -> None:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response()

    middleware = reduce_middleware(methods=["options"])
    assert await runs_of_two(serve, app_with(handler, middleware), middleware, gate, method="OPTIONS") == 1
    server = await serve(app_with(handler, middleware), middleware=middleware)
    await server.get("/")
    assert server.figure("bypassed") == {"method": 1}


def marked_handlers(gate: Gate) -> dict[str, Any]:
    async def plain(request: web.Request) -> web.StreamResponse:
        await gate.wait()
        return web.Response()

    async def with_argument(request: web.Request, argument: int) -> web.StreamResponse:
        return await plain(request)

    def decorator(function: Handler) -> Handler:
        @functools.wraps(function)
        async def wrapper(request: web.Request) -> web.StreamResponse:
            return await function(request)

        return wrapper

    class Service:
        @never_reduce
        async def method(self, request: web.Request) -> web.StreamResponse:
            return await plain(request)

    class PartlyView(web.View):
        @never_reduce
        async def get(self) -> web.StreamResponse:
            return await plain(self.request)

        async def head(self) -> web.StreamResponse:
            return await plain(self.request)

    @never_reduce
    class WholeView(web.View):
        async def get(self) -> web.StreamResponse:
            return await plain(self.request)

    return {
        "function": never_reduce(with_copy(plain)),
        "decorated below": decorator(never_reduce(with_copy(plain))),
        "decorated above": never_reduce(decorator(with_copy(plain))),
        "partial": functools.partial(never_reduce(with_argument), argument=1),
        "method": Service().method,
        "view method": PartlyView,
        "view": WholeView,
    }


def with_copy(function: Handler) -> Handler:
    """A function of its own, so that a mark on it marks no other."""

    async def copy(request: web.Request) -> web.StreamResponse:
        return await function(request)

    return copy


@pytest.mark.parametrize("kind", list(marked_handlers(Gate())))
@pytest.mark.parametrize("level", ["root", "sub-application"])
async def test_never_reduce_is_found_under_wrappers(serve: Start, kind: str, level: str) -> None:
    gate = Gate()
    handler = marked_handlers(gate)[kind]
    middleware = reduce_middleware()
    app = web.Application(middlewares=[middleware])
    if level == "root":
        app.router.add_get("/page", handler, allow_head=False)
    else:
        sub = web.Application()
        sub.router.add_get("/", handler, allow_head=False)
        app.add_subapp("/page", sub)
    target = "/page" if level == "root" else "/page/"
    assert await runs_of_two(serve, app, middleware, gate, target=target) == 2
    assert middleware.stats["bypassed"] == {"never_reduce": 2}


async def test_never_reduce_on_one_method_of_a_view_leaves_the_others(serve: Start) -> None:
    gate = Gate()
    middleware = reduce_middleware()
    app = web.Application(middlewares=[middleware])
    app.router.add_view("/", marked_handlers(gate)["view method"])
    server = await serve(app, middleware=middleware)
    sent = [await server.send("/", method="HEAD") for _ in range(2)]
    await server.waiting(1)
    gate.open()
    for connection in sent:
        assert (await connection.receive(head_only=True)).status == 200


@pytest.mark.parametrize("wrong", [None, 1, "handler"])
def test_never_reduce_takes_a_handler(wrong: Any) -> None:
    with pytest.raises(TypeError, match="never_reduce"):
        never_reduce(wrong)


async def test_a_websocket_works_through_the_middleware(serve: Start) -> None:
    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str(await socket.receive_str())
        await socket.close()
        return socket

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    async with ClientSession() as session:
        for _ in range(2):
            async with session.ws_connect(f"http://127.0.0.1:{server.port}/") as socket:
                await socket.send_str("hello")
                assert await socket.receive_str() == "hello"
