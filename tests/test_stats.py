"""Section 3, "Stats": what the page counts, under which names, and who may see it."""

import asyncio
import gc
import io
import json
import logging
from typing import Any

import pytest
from aiohttp import web

from aiohttp_reduce import reduce_middleware
from aiohttp_reduce.hooks import BaseHooks, DebugHooks, StatisticsDetailHooks, StatisticsOverallHooks
from aiohttp_reduce.server import local_only
from aiohttp_reduce.stats import Counters, Unshared
from tests.harness import Gate, Reply, Server, Start, app_with

PATH = "/_reduce/stats"


async def simple(serve: Start, *, outer: Any = (), **options: Any) -> Server:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="user")

    middleware = reduce_middleware(**options)
    return await serve(app_with(handler, middleware, path="/users/{id}", outer=outer), middleware=middleware)


def figures(reply: Reply) -> dict[str, Any]:
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "application/json; charset=utf-8"
    assert reply.headers["Cache-Control"] == "no-store"
    stats: dict[str, Any] = json.loads(reply.body)
    return stats


async def test_the_page_is_there_without_a_route_of_its_own(serve: Start) -> None:
    server = await simple(serve)
    for number in range(3):
        await server.get(f"/users/{number}")
    stats = figures(await server.get(PATH))
    assert stats.pop("uptime") >= 0
    counts = {
        "total": 3,
        "executed": 3,
        "reduced": 0,
        "errors": 0,
        "bypassed": {},
        "unshared": {},
        "takeovers": 0,
        "in_flight": 0,
        "waiting": 0,
        "largest_herd": 0,
    }
    assert stats == {**counts, "clients": {}, "routes": {"/users/{id}": counts}}
    assert (await server.get(PATH + "?pretty")).status == 200
    assert (await server.get(PATH, method="HEAD")).body == b""


async def test_live_figures_while_a_herd_waits(serve: Start) -> None:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response()

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    sent = [await server.send("/") for _ in range(5)]
    await server.waiting(4)
    stats = figures(await server.get(PATH))
    assert (stats["in_flight"], stats["waiting"], stats["total"]) == (1, 4, 5)
    gate.open()
    for connection in sent:
        await connection.receive()
    stats = figures(await server.get(PATH))
    assert (stats["in_flight"], stats["waiting"], stats["reduced"], stats["largest_herd"]) == (0, 0, 4, 5)


async def test_routes_are_counted_by_pattern_and_unrouted_ones_as_one(serve: Start) -> None:
    middleware = reduce_middleware()

    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    sub = web.Application()
    sub.router.add_get("/items/{item}", handler)
    app = app_with(handler, middleware, path="/users/{id}")
    app.add_subapp("/shop", sub)
    server = await serve(app, middleware=middleware)
    for target in ("/users/1", "/users/2", "/shop/items/7", "/nothing/1", "/nothing/2", "/shop/nothing"):
        await server.get(target)
    await server.get("/users/1", method="POST")
    routes = server.figure("routes")
    assert {name: route["total"] for name, route in routes.items()} == {
        "/users/{id}": 2,
        "/shop/items/{item}": 1,
        "(unrouted)": 3,
    }
    assert routes["/users/{id}"]["bypassed"] == {"method": 1}


async def test_at_most_so_many_routes_then_other(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiohttp_reduce.server.routes.MAX_ROUTES", 3)
    middleware = reduce_middleware()

    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application(middlewares=[middleware])
    for number in range(6):
        app.router.add_get(f"/{number}", handler)
    server = await serve(app, middleware=middleware)
    for number in range(6):
        await server.get(f"/{number}")
    routes = server.figure("routes")
    assert {name: route["total"] for name, route in routes.items()} == {"/0": 1, "/1": 1, "/2": 1, "(other)": 3}
    assert server.figure("total") == 6


def test_the_names_of_unshared_reasons_are_bounded() -> None:
    counters = Counters()
    for number in range(500):
        counters.count_unshared(Unshared.VARY, f"x-{number}")
    assert len(counters.unshared) <= 101
    assert sum(counters.unshared.values()) == 500


async def test_routes_and_tables_of_a_dead_application_are_let_go() -> None:
    middleware = reduce_middleware()

    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    route = app.router.add_get("/", handler)
    middleware._enter(route)
    middleware._make_table(app)
    assert len(middleware._routes) == len(middleware._tables) == 1
    del app, route
    gc.collect()
    assert len(middleware._routes) == len(middleware._tables) == 0
    assert "/" in middleware.stats["routes"]


def test_tables_of_dead_loops_are_let_go() -> None:
    middleware = reduce_middleware()
    apps = [web.Application() for _ in range(3)]

    async def meet(app: web.Application) -> None:
        middleware._make_table(app)

    for app in apps:
        asyncio.run(meet(app))
        assert len(middleware._tables) == 1


async def test_errors_are_exceptions_that_are_no_answers(serve: Start, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: web.Request) -> web.Response:
        if "http" in request.query:
            raise web.HTTPInternalServerError
        raise RuntimeError("broken")

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    await server.get("/?http")
    await server.get("/")
    assert (server.figure("executed"), server.figure("errors")) == (2, 1)


async def test_stats_path_moves_it_and_none_turns_it_off(serve: Start) -> None:
    moved = await simple(serve, stats_path="/inner/figures")
    assert (await moved.get("/inner/figures")).status == 200
    assert (await moved.get(PATH)).status == 404
    off = await simple(serve, stats_path=None)
    assert (await off.get(PATH)).status == 404


async def test_the_handler_can_be_mounted_as_an_ordinary_route(serve: Start) -> None:
    middleware = reduce_middleware(stats_path=None)
    app = web.Application(middlewares=[middleware])
    app.router.add_get("/admin/reduce", middleware.stats_handler)
    server = await serve(app, middleware=middleware)
    stats = figures(await server.get("/admin/reduce", {"X-Forwarded-For": "1.2.3.4"}, host="example.com"))
    assert stats["bypassed"] == {"never_reduce": 1}
    assert str(middleware.stats["bypassed"]) == "{'never_reduce': 1}"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.1.2.3:8080", "[::1]", "[::1]:80"])
async def test_a_local_user_may_see_it(serve: Start, host: str) -> None:
    server = await simple(serve)
    assert (await server.get(PATH, host=host)).status == 200


@pytest.mark.parametrize(
    "request_options",
    [
        {"host": "example.com"},
        {"host": "localhost.example.com"},
        {"host": "127.0.0.1.example.com"},
        {"host": "localhost:80:80"},
        {"host": "10.0.0.1"},
        {"host": ""},
        {"host": None, "version": "HTTP/1.0"},
        {"version": "HTTP/1.0"},
        {"headers": {"CF-Connecting-IP": "1.2.3.4"}},
        {"headers": {"Forwarded": "for=127.0.0.1"}},
        {"headers": {"X-Forwarded-For": "127.0.0.1"}},
        {"headers": {"x-forwarded-anything": "1"}},
        {"headers": {"X-Real-IP": "127.0.0.1"}},
        {"headers": {"Via": "1.1 proxy"}},
        {"method": "POST"},
        {"target": PATH + "/more"},
        {"target": "/%5Freduce/stats"},
        {"target": "http://localhost/_reduce/stats"},
    ],
)
async def test_strangers_are_answered_as_without_the_middleware(serve: Start, request_options: dict[str, Any]) -> None:
    server = await simple(serve)
    reply = await server.get(**{"target": PATH, **request_options})
    assert (reply.status, reply.text) == (404, "404: Not Found")


@pytest.mark.parametrize("peer", [("10.0.0.1", 1), ("::ffff:10.0.0.1", 1, 0, 0), "", None, ("not an address", 1)])
def test_a_peer_that_is_not_on_loopback_may_not(peer: Any) -> None:
    from aiohttp.test_utils import make_mocked_request

    def info(name: str, default: Any = None) -> Any:
        return peer if name == "peername" else default

    request = make_mocked_request("GET", PATH, {"Host": "localhost"})
    request.protocol.transport.get_extra_info = info  # type: ignore[union-attr, method-assign]
    assert not local_only(request)


async def test_a_remote_that_an_outer_middleware_set_counts_too(serve: Start) -> None:
    @web.middleware
    async def behind_a_proxy(request: web.Request, handler: Any) -> Any:
        return await handler(request.clone(remote="10.0.0.1"))

    server = await simple(serve, outer=[behind_a_proxy])
    assert (await server.get(PATH)).status == 404


async def test_stats_access_replaces_the_rule(serve: Start, caplog: pytest.LogCaptureFixture) -> None:
    def sync(request: web.Request) -> bool:
        return request.headers.get("X-Token") == "right"

    async def slow(request: web.Request) -> bool:
        await asyncio.sleep(0)
        return sync(request)

    def fails(request: web.Request) -> bool:
        raise LookupError("who?")

    for access in (sync, slow):
        server = await simple(serve, stats_access=access)
        assert (await server.get(PATH, {"X-Token": "right", "Via": "1.1 p"}, host="example.com")).status == 200
        assert (await server.get(PATH, {"X-Token": "wrong"})).status == 404
    server = await simple(serve, stats_access=fails)
    assert (await server.get(PATH)).status == 404
    assert any("stats_access raised" in record.message for record in caplog.records)


async def herd_with_hooks(serve: Start, hooks: BaseHooks, caplog: pytest.LogCaptureFixture) -> Server:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        if "fail" in request.query:
            raise RuntimeError("broken")
        return web.Response(text="ok")

    middleware = reduce_middleware(hooks=hooks)
    server = await serve(app_with(handler, middleware, path="/users/{id}"), middleware=middleware)
    sent = [await server.send("/users/1?a=b", host="example.com") for _ in range(3)]
    sent.append(await server.send("/users/1?fail", host="example.com"))
    await server.waiting(2)
    await gate.entered(2)
    gate.open()
    for connection in sent:
        await connection.receive()
    return server


async def test_hooks_are_told_of_requests(serve: Start, caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    overall, detail = StatisticsOverallHooks(), StatisticsDetailHooks()
    await herd_with_hooks(serve, overall & detail & DebugHooks(stream), caplog)
    assert str(overall) == "Stats(total=4, executed=1, reduced=2, errors=1)"
    assert detail.total == {"/users/{id}": 4}
    assert detail.executed == {"/users/{id}": 2}
    assert detail.reduced == {"/users/{id}": 2}
    assert detail.errors == {"/users/{id}": 1}
    shown = stream.getvalue()
    assert "[GET http://example.com/users/1?a=b] reducing for <Request GET /users/1 >" in shown
    assert "[GET http://example.com/users/1?fail] get exception for <Request GET /users/1 >: broken" in shown


async def test_a_hook_that_raises_is_logged_and_the_request_goes_on(
    serve: Start, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(BaseHooks):
        def on_apply_for(self, coro: Any, ident: Any) -> None:
            raise LookupError("hook")

        def on_result_for(self, coro: Any, ident: Any, result: Any) -> None:
            raise LookupError("hook")

    server = await herd_with_hooks(serve, Failing(), caplog)
    assert server.figure("reduced") == 2
    hooks = [record for record in caplog.records if record.name == "aiohttp_reduce.async_reduce_core.hooks"]
    assert len(hooks) == 5
    assert all(record.levelno == logging.ERROR for record in hooks)
