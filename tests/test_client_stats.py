"""What a session did is plain to see: its figures by host, its hooks, its place on the stats page."""

import asyncio
import gc
import json
import logging
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientSession, web
from yarl import URL

from aiohttp_reduce import ReducingClientSession, reduce_client_middleware, reduce_middleware
from aiohttp_reduce.client.door import MAX_HOSTS
from aiohttp_reduce.hooks import BaseHooks, StatisticsDetailHooks, StatisticsOverallHooks
from aiohttp_reduce.stats import Bypass
from tests.harness import Gate, Start
from tests.upstream import Exchange, OpenSession, StartUpstream, bodies, reducer_of, waiting


async def hello(exchange: Exchange) -> None:
    await exchange.respond(b"hello")


def figures_of(stats: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: stats[name] for name in names}


async def test_figures_of_a_herd_while_it_waits_and_afterwards(upstream: StartUpstream, reducing: OpenSession) -> None:
    gate = Gate()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond()

    server = await upstream(answer)
    session = reducing()
    herd = asyncio.ensure_future(bodies(session, 5, server.url))
    await waiting(reducer_of(session), 4)
    names = ("total", "executed", "reduced", "in_flight", "waiting", "largest_herd", "errors")
    assert list(figures_of(session.stats, *names).values()) == [5, 1, 0, 1, 4, 0, 0]
    gate.open()
    await herd
    assert list(figures_of(session.stats, *names).values()) == [5, 1, 4, 0, 0, 5, 0]


async def test_figures_are_by_host_and_port(upstream: StartUpstream, reducing: OpenSession) -> None:
    first, second = await upstream(hello), await upstream(hello)
    session = reducing()
    await bodies(session, 3, first.url)
    await bodies(session, 1, second.url)
    await session.post(second.url)
    hosts = session.stats["hosts"]
    assert sorted(hosts) == sorted(server.url.removeprefix("http://") for server in (first, second))
    assert figures_of(hosts[first.url.removeprefix("http://")], "total", "executed", "reduced") == {
        "total": 3,
        "executed": 1,
        "reduced": 2,
    }
    assert hosts[second.url.removeprefix("http://")]["bypassed"] == {"method": 1}
    assert (session.stats["total"], session.stats["bypassed"]) == (4, {"method": 1})


async def test_the_names_of_hosts_are_bounded(
    upstream: StartUpstream, reducing: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiohttp_reduce.client.door.MAX_HOSTS", 2)
    servers = [await upstream(hello) for _ in range(4)]
    session = reducing()
    for server in servers:
        await bodies(session, 2, server.url)
        await bodies(session, 1, server.url, reduce=False)
    hosts = session.stats["hosts"]
    assert next(iter(hosts)) == "(other)"
    assert len(hosts) == 3
    assert (hosts["(other)"]["total"], hosts["(other)"]["bypassed"]) == (4, {"reduce-false": 2})
    assert session.stats["total"] == 8
    assert len(reducer_of(session)._hosts) == 2


def test_hosts_that_are_shown_under_one_name_are_bounded_too() -> None:
    middleware = reduce_client_middleware()
    for number in range(3_000):
        middleware._enter(URL(f"http://host{'.' * number}/")).count_bypass(Bypass.METHOD)
    assert middleware.stats["hosts"]["host"]["bypassed"] == {"method": 3_000}
    assert len(middleware._hosts) <= MAX_HOSTS


async def test_an_error_counts_once_for_its_run(upstream: StartUpstream, reducing: OpenSession) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.drop()

    server = await upstream(answer)
    session = reducing()
    session.session._retry_connection = False
    results = await asyncio.gather(*[session.get(server.url) for _ in range(3)], return_exceptions=True)
    assert all(isinstance(result, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError) for result in results)
    assert figures_of(session.stats, "executed", "errors", "in_flight") == {"executed": 1, "errors": 1, "in_flight": 0}


class Told(BaseHooks):
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def on_apply_for(self, coro: Any, ident: Any) -> None:
        self.calls.append(("apply", type(coro), str(ident)))

    def on_executing_for(self, coro: Any, ident: Any) -> None:
        self.calls.append(("executing", type(coro), str(ident)))

    def on_reducing_for(self, coro: Any, ident: Any) -> None:
        self.calls.append(("reducing", type(coro), str(ident)))

    def on_result_for(self, coro: Any, ident: Any, result: Any) -> None:
        self.calls.append(("result", type(coro), str(ident), result.status))

    def on_exception_for(self, coro: Any, ident: Any, exception: BaseException) -> None:
        self.calls.append(("exception", type(coro), str(ident), type(exception)))


async def test_hooks_are_told_with_the_request_and_a_readable_identity(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    server = await upstream(hello)
    told, overall, detail = Told(), StatisticsOverallHooks(), StatisticsDetailHooks()
    session = reducing(hooks=told & overall & detail)
    await bodies(session, 3, f"{server.url}/a?b=c")
    ident = f"GET {server.url}/a?b=c"
    request = aiohttp.ClientRequest
    assert told.calls == [
        ("apply", request, ident),
        ("executing", request, ident),
        ("apply", request, ident),
        ("reducing", request, ident),
        ("apply", request, ident),
        ("reducing", request, ident),
        ("result", request, ident, 200),
    ]
    assert str(overall) == "Stats(total=3, executed=1, reduced=2, errors=0)"
    assert dict(detail.reduced) == {f"GET {server.url.removeprefix('http://')}": 2}


async def test_hooks_are_told_of_a_failure_once(reducing: OpenSession, unused_tcp_port: int) -> None:
    told = Told()
    session = reducing(hooks=told)
    url = f"http://127.0.0.1:{unused_tcp_port}/"
    await asyncio.gather(*[session.get(url) for _ in range(2)], return_exceptions=True)
    failure = ("exception", aiohttp.ClientRequest, f"GET {url}", aiohttp.ClientConnectorError)
    assert [call for call in told.calls if call[0] == "exception"] == [failure]


async def test_a_hook_that_raises_is_logged_and_disturbs_nobody(
    upstream: StartUpstream, reducing: OpenSession, caplog: pytest.LogCaptureFixture
) -> None:
    class Raises(BaseHooks):
        def on_result_for(self, coro: Any, ident: Any, result: Any) -> None:
            raise ValueError("hook")

    server = await upstream(hello)
    assert await bodies(reducing(hooks=Raises()), 3, server.url) == [b"hello"] * 3
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ValueError]


async def test_why_a_call_was_not_shared_is_in_the_debug_log(
    upstream: StartUpstream, reducing: OpenSession, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.respond(b"hello", Vary="traceparent")

    caplog.set_level(logging.DEBUG, "aiohttp_reduce")
    server = await upstream(answer)
    session = reducing()
    await asyncio.gather(*[bodies(session, 1, server.url, headers={"traceparent": trace}) for trace in "ab"])
    assert session.stats["unshared"] == {"vary: traceparent": 1}
    messages = [record.message for record in caplog.records if record.name == "aiohttp_reduce"]
    assert messages == [f"GET {server.url.removeprefix('http://')}: not shared (vary: traceparent)"]


# On the server's page.


async def test_a_watched_session_is_on_the_page_for_as_long_as_it_lives(
    upstream: StartUpstream, serve: Start, reducing: OpenSession
) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    target = await upstream(hello)
    middleware = reduce_middleware()
    app = web.Application(middlewares=[middleware])
    app.router.add_get("/", handler)
    server = await serve(app, middleware=middleware)
    session, reducer = reducing(), reduce_client_middleware()
    middleware.watch(session, name="weather")
    middleware.watch(reducer, name="maps")
    await bodies(session, 3, target.url)
    async with ClientSession(middlewares=[reducer]) as genuine:
        await bodies(genuine, 1, target.url)
    page = json.loads((await server.get("/_reduce/stats")).text)
    assert list(page["clients"]) == ["maps", "weather"]
    assert figures_of(page["clients"]["weather"], "total", "executed") == {"total": 3, "executed": 1}
    assert list(page["clients"]["maps"]["hosts"]) == [target.url.removeprefix("http://")]
    del reducer, genuine
    gc.collect()
    assert list(middleware.stats["clients"]) == ["weather"]


async def test_a_name_stands_for_the_session_that_took_it_last(upstream: StartUpstream, reducing: OpenSession) -> None:
    server = await upstream(hello)
    middleware = reduce_middleware()
    first, second = reducing(), reducing()
    middleware.watch(first, name="a")
    middleware.watch(second, name="a")
    await bodies(first, 3, server.url)
    await bodies(second, 1, server.url)
    assert middleware.stats["clients"]["a"]["total"] == 1


async def test_only_sessions_that_reduce_are_watched() -> None:
    middleware: Any = reduce_middleware()
    reducer = reduce_client_middleware()
    for wrong in (None, "session", reduce_middleware(), middleware, object()):
        with pytest.raises(TypeError, match=r"watch\(\) takes a ReducingClientSession or the object"):
            middleware.watch(wrong, name="a")
    async with ClientSession() as genuine:
        with pytest.raises(TypeError, match=r"got <aiohttp\.client\.ClientSession"):
            middleware.watch(genuine, name="a")
    for name, error in ((None, TypeError), (b"a", TypeError), ("", ValueError), ("a\nb", ValueError)):
        with pytest.raises(error, match="name takes"):
            middleware.watch(reducer, name=name)
    assert middleware.stats["clients"] == {}


def test_a_reducing_session_is_kept_alive_by_nobody_who_watches() -> None:
    async def main() -> bool:
        middleware = reduce_middleware()
        async with ReducingClientSession() as session:
            middleware.watch(session, name="a")
        del session
        gc.collect()
        return middleware.stats["clients"] == {}

    assert asyncio.run(main())
