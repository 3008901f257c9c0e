"""Section 3, "Who waits together": what must be equal, and what is left out."""

import asyncio
from typing import Any
from unittest import mock

import pytest
from aiohttp import web

from aiohttp_reduce import reduce_middleware
from aiohttp_reduce.server import DEFAULT_IGNORE_COOKIES, DEFAULT_IGNORE_HEADERS, ReduceMiddleware
from aiohttp_reduce.server.identity import Selection, forwarded_host_and_proto
from tests.harness import Gate, Start, app_with, eventually

Pairs = list[tuple[str, str]]


async def runs_for(serve: Start, middleware: ReduceMiddleware, *requests: dict[str, Any], **app: Any) -> int:
    """How many runs these requests in flight at once cost."""
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response(text="ok")

    server = await serve(app_with(handler, middleware, path="/{tail:.*}", **app), middleware=middleware)
    sent = []
    for number, request in enumerate(requests, 1):
        sent.append(await server.send(**{"target": "/", **request}))
        await eventually(lambda number=number: server.figure("in_flight") + server.figure("waiting") == number)  # type: ignore[misc]
    runs = gate.runs
    gate.open()
    for connection, request in zip(sent, requests, strict=True):
        reply = await connection.receive(head_only=request.get("method") == "HEAD")
        assert reply.status == 200
    await eventually(server.nothing_is_left)
    return runs


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"method": "GET"}, {"method": "HEAD"}),
        ({"version": "HTTP/1.1"}, {"version": "HTTP/1.0"}),
        ({"host": "a.example"}, {"host": "b.example"}),
        ({"host": "a.example"}, {"host": "A.example"}),
        ({"target": "/a"}, {"target": "/b"}),
        ({"target": "/a"}, {"target": "/%61"}),
        ({"target": "/a"}, {"target": "/a?"}),
        ({"target": "/?a=1&b=2"}, {"target": "/?b=2&a=1"}),
        ({"headers": {"X-Api-Key": "one"}}, {"headers": {"X-Api-Key": "two"}}),
        ({"headers": {"X-Tenant": "one"}}, {}),
        ({"headers": {"Accept": "a/b"}}, {"headers": {"Accept": "a/c"}}),
        ({"headers": {"Authorization": "Basic a"}}, {"headers": {"Authorization": "Basic b"}}),
        ({"headers": {"Cookie": "session=1"}}, {"headers": {"Cookie": "session=2"}}),
        ({"headers": {"Cookie": "session=1"}}, {}),
        ({"headers": [("X-A", "1"), ("X-A", "2")]}, {"headers": [("X-A", "2"), ("X-A", "1")]}),
        ({"headers": [("X-A", "1"), ("X-A", "2")]}, {"headers": [("X-A", "1")]}),
        ({"headers": [("X-A", "1")]}, {"headers": [("X-B", "1")]}),
        ({"headers": {"X-Forwarded-Host": "a"}}, {"headers": {"X-Forwarded-Host": "b"}}),
        ({"headers": {"X-Forwarded-Proto": "http"}}, {"headers": {"X-Forwarded-Proto": "https"}}),
        ({"headers": {"X-Forwarded-Port": "1"}}, {}),
        ({"headers": {"Via": "1.1 a"}}, {}),
        ({"headers": {"CDN-Loop": "a"}}, {}),
        ({"headers": {"Sec-Fetch-Mode": "cors"}}, {}),
        ({"headers": {"Range": "bytes=0-1"}}, {}),
        ({"headers": {"If-None-Match": '"a"'}}, {}),
        ({"headers": {"Origin": "http://a"}}, {}),
        ({"headers": {"Forwarded": "for=1;host=a"}}, {"headers": {"Forwarded": "for=1;host=b"}}),
    ],
)
async def test_what_is_in_the_identity_keeps_requests_apart(
    serve: Start, one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert await runs_for(serve, reduce_middleware(), one, other) == 2


def ignored_examples() -> list[str]:
    return sorted(name.replace("*", "Anything") for name in DEFAULT_IGNORE_HEADERS if name != "Upgrade")


@pytest.mark.parametrize("name", ignored_examples())
async def test_each_header_of_the_table_is_left_out(serve: Start, name: str) -> None:
    values = ("keep-alive", "Keep-Alive") if name == "Connection" else ("one", "two")
    one, other = ({"headers": {name: value}} for value in values)
    assert await runs_for(serve, reduce_middleware(), one, other, {}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"headers": [("X-A", "1"), ("X-B", "2")]}, {"headers": [("X-B", "2"), ("X-A", "1")]}),
        ({"headers": {"Accept": "a/b"}}, {"headers": {"accept": "a/b"}}),
        ({"headers": {"Cookie": "_ga=1; session=1"}}, {"headers": {"Cookie": "session=1; _ga_XYZ=2;_gid=3"}}),
        ({"headers": {"Cookie": "_ga=1"}}, {}),
        ({"headers": {"Forwarded": "for=1.2.3.4;proto=http"}}, {"headers": {"Forwarded": "for=5.6.7.8; PROTO=http"}}),
        ({"headers": {"User-Agent": "a", "X-Request-ID": "1"}}, {"headers": {"X-Real-IP": "1.2.3.4", "DNT": "1"}}),
    ],
)
async def test_what_is_not_in_the_identity_does_not_keep_requests_apart(
    serve: Start, one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert await runs_for(serve, reduce_middleware(), one, other) == 1


async def test_selected_headers_are_just_these_in_any_case(serve: Start) -> None:
    def middleware() -> ReduceMiddleware:
        return reduce_middleware(headers=("accept", "ACCEPT-language"))

    apart = ({"headers": {"Accept-Language": "de"}}, {"headers": {"Accept-Language": "en"}})
    together = ({"headers": {"X-Api-Key": "1"}}, {"headers": {"X-Api-Key": "2"}})
    assert await runs_for(serve, middleware(), *apart) == 2
    assert await runs_for(serve, middleware(), *together) == 1
    assert await runs_for(serve, middleware(), {"host": "a"}, {"host": "b"}) == 2


async def test_ignore_headers_replaces_the_table_and_or_extends_it(serve: Start) -> None:
    requests = ({"headers": {"X-Noise": "1"}}, {"headers": {"X-Noise": "2", "User-Agent": "b"}})
    assert await runs_for(serve, reduce_middleware(), *requests) == 2
    assert await runs_for(serve, reduce_middleware(ignore_headers={"x-noise"}), *requests) == 2
    assert await runs_for(serve, reduce_middleware(ignore_headers=DEFAULT_IGNORE_HEADERS | {"x-noi*"}), *requests) == 1


async def test_ignore_cookies_replaces_the_table_and_or_extends_it(serve: Start) -> None:
    requests = ({"headers": {"Cookie": "theme=1"}}, {"headers": {"Cookie": "theme=2; _ga=1"}})
    assert await runs_for(serve, reduce_middleware(), *requests) == 2
    assert await runs_for(serve, reduce_middleware(ignore_cookies={"theme"}), *requests) == 2
    assert await runs_for(serve, reduce_middleware(ignore_cookies=DEFAULT_IGNORE_COOKIES | {"theme"}), *requests) == 1


async def test_many_identities_on_one_target_are_told_apart_and_found_again(serve: Start) -> None:
    users = [{"headers": {"X-User": str(number)}} for number in range(50)]
    assert await runs_for(serve, reduce_middleware(), *users, *users, *reversed(users)) == 50


async def test_the_first_of_a_target_may_end_while_others_are_under_way(serve: Start) -> None:
    gates = {"a": Gate(), "b": Gate()}

    async def handler(request: web.Request) -> web.Response:
        user = request.headers["X-User"]
        return web.Response(text=f"{user}{await gates[user].wait()}")

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    first = await server.send("/", {"X-User": "a"})
    await gates["a"].entered()
    second = await server.send("/", {"X-User": "b"})
    await gates["b"].entered()
    gates["a"].open()
    assert (await first.receive()).text == "a1"
    await asyncio.sleep(0.01)
    third = await server.send("/", {"X-User": "b"})
    await server.waiting(1)
    gates["b"].open()
    assert [(await one.receive()).text for one in (second, third)] == ["b1", "b1"]
    await eventually(server.nothing_is_left)


async def test_key_is_added_to_the_rest_and_never_replaces_it(serve: Start) -> None:
    def middleware() -> ReduceMiddleware:
        return reduce_middleware(key=lambda request: request.headers.get("User-Agent"))

    same, other_key = {"headers": {"User-Agent": "a"}}, {"headers": {"User-Agent": "b"}}
    other_target = {"headers": {"User-Agent": "a"}, "target": "/else"}
    assert await runs_for(serve, middleware(), same, same) == 1
    assert await runs_for(serve, middleware(), same, other_key) == 2
    assert await runs_for(serve, middleware(), same, other_target) == 2


async def test_key_is_compared_with_its_type(serve: Start) -> None:
    values: dict[str, object] = {"a": 1, "b": True, "c": 1.0, "d": (1,), "e": (True,)}
    middleware = reduce_middleware(key=lambda request: values[request.headers["User-Agent"]])  # type: ignore[arg-type, return-value]
    assert await runs_for(serve, middleware, *[{"headers": {"User-Agent": name}} for name in values]) == 5


@pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")
async def test_key_is_evaluated_at_arrival(serve: Start) -> None:
    """What a handler changes while it runs does not let others in."""
    gate = Gate()

    @web.middleware
    async def user(request: web.Request, handler: Any) -> Any:
        request["user"] = request.headers["User-Agent"]
        return await handler(request)

    async def handler(request: web.Request) -> web.Response:
        mine = request["user"]
        request["user"] = "b"
        await gate.wait()
        return web.Response(text=mine)

    middleware = reduce_middleware(key=lambda request: request["user"])
    server = await serve(app_with(handler, middleware, outer=[user]), middleware=middleware)
    sent = []
    for number, name in enumerate("ab", 1):
        sent.append(await server.send("/", {"User-Agent": name}))
        await gate.entered(number)
    gate.open()
    assert [(await one.receive()).text for one in sent] == ["a", "b"]


@pytest.mark.parametrize("key", [lambda request: 1 / 0, lambda request: []])
async def test_a_key_that_raises_is_logged_and_that_request_bypasses(
    serve: Start, key: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    middleware = reduce_middleware(key=key)
    server = await serve(app_with(handler, middleware), middleware=middleware)
    assert (await server.get("/")).text == "ok"
    assert server.figure("bypassed") == {"key-error": 1}
    assert any("key raised" in record.message for record in caplog.records)


async def test_the_request_is_taken_as_it_stands_at_the_door(serve: Start) -> None:
    @web.middleware
    async def clones(request: web.Request, handler: Any) -> Any:
        scheme = request.headers["User-Agent"]
        return await handler(request.clone(scheme=scheme))

    requests = [{"headers": {"User-Agent": scheme}} for scheme in ("http", "https")]
    assert await runs_for(serve, reduce_middleware(), *requests, outer=[clones]) == 2


async def test_a_host_that_an_outer_middleware_set_is_compared(serve: Start) -> None:
    @web.middleware
    async def clones(request: web.Request, handler: Any) -> Any:
        return await handler(request.clone(host=request.headers["User-Agent"]))

    requests = [{"headers": {"User-Agent": host}, "target": "http://x/"} for host in ("a", "b")]
    assert await runs_for(serve, reduce_middleware(), *requests, outer=[clones]) == 2


@pytest.mark.parametrize("kind", ["another route", "another match", "same"])
async def test_what_is_routed_elsewhere_is_kept_apart_whatever_a_clone_says(serve: Start, kind: str) -> None:
    """A clone keeps the route: with a prefix stripped outside, two targets become one."""
    gate = Gate()

    @web.middleware
    async def strip_prefix(request: web.Request, handler: Any) -> Any:
        return await handler(request.clone(rel_url="/stripped"))

    async def one(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response(text=f"one {request.match_info['id']}")

    async def other(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response(text=f"other {request.match_info['id']}")

    middleware = reduce_middleware()
    app = web.Application(middlewares=[strip_prefix, middleware])
    app.router.add_get("/a/{id}", one)
    app.router.add_get("/b/{id}", other)
    server = await serve(app, middleware=middleware)
    targets = {"another route": ("/a/1", "/b/1"), "another match": ("/a/1", "/a/2"), "same": ("/a/1", "/a/1")}[kind]
    sent = [await server.send(target) for target in targets]
    await eventually(lambda: server.figure("in_flight") + server.figure("waiting") == 2)
    gate.open()
    texts = [(await connection.receive()).text for connection in sent]
    assert texts == [{"a": "one", "b": "other"}[target[1]] + target[2:].replace("/", " ") for target in targets]
    assert gate.runs == (1 if kind == "same" else 2)


async def test_unrouted_requests_wait_together(serve: Start) -> None:
    """aiohttp makes a new route for each of them."""

    @web.middleware
    async def slow(request: web.Request, handler: Any) -> Any:
        await gate.wait()
        return await handler(request)

    gate = Gate()
    middleware = reduce_middleware()
    server = await serve(web.Application(middlewares=[middleware, slow]), middleware=middleware)
    sent = [await server.send("/nothing") for _ in range(3)]
    await server.waiting(2)
    gate.open()
    assert {(await connection.receive()).status for connection in sent} == {404}
    assert gate.runs == 1


async def test_without_a_host_header_the_address_is_compared(serve: Start) -> None:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response(text=request.host)

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    await web.TCPSite(server.runner, "127.0.0.2", server.port).start()
    sent = []
    for address in ("127.0.0.1", "127.0.0.2"):
        server.address = address
        sent.append(await server.send("/", host=None, version="HTTP/1.0"))
        await eventually(lambda: server.figure("in_flight") + server.figure("waiting") == len(sent))
    gate.open()
    texts = [(await connection.receive()).text for connection in sent]
    if "_transport_sockname" in web.BaseRequest.ATTRS:
        assert texts == ["127.0.0.1", "127.0.0.2"]
    assert gate.runs == len(set(texts))  # before 3.14 aiohttp says the name of the machine for both


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([("Cookie", "_ga=1 session=other")], []),
        ([("Cookie", "_ga=1\tsession=other")], []),
        ([("Cookie", '_ga="1;session=other"')], []),
        ([("Cookie", 'theme="a; _ga=1; b"')], [("Cookie", 'theme="a; _ga=2; b"')]),
        ([("Cookie", "_ga=1,session=other")], []),
        ([("Cookie", "_ga=1"), ("Cookie", "session=alice")], [("Cookie", "session=alice")]),
        ([("Cookie", "_ga=1"), ("Cookie", "session=alice")], []),
        ([("Cookie", "_ga")], []),
    ],
)
async def test_cookies_that_aiohttp_could_read_in_another_way_are_compared(
    serve: Start, one: Pairs, other: Pairs
) -> None:
    assert await runs_for(serve, reduce_middleware(), {"headers": one}, {"headers": other}) == 2


async def test_a_key_that_cannot_be_compared_bypasses(serve: Start, caplog: pytest.LogCaptureFixture) -> None:
    class Awkward:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            raise LookupError("no")

    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response(text="ok")

    middleware = reduce_middleware(key=lambda request: Awkward())
    server = await serve(app_with(handler, middleware), middleware=middleware)
    sent = [await server.send("/") for _ in range(2)]
    await gate.entered(2)
    gate.open()
    assert {(await connection.receive()).text for connection in sent} == {"ok"}
    assert server.figure("bypassed") == {"key-error": 1}


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (b"for=1.2.3.4", b""),
        (b"for=1.2.3.4;host=a;proto=http", b"host=a;proto=http"),
        (b"For=1 ; Host=A ; by=x", b"host=A"),
        (b"for=1, for=2;proto=https", b",proto=https"),
        (b"host=x, for=1", b"host=x,"),
        (b'for="[::1]:80";host="a,b;c"', b'host="a,b;c"'),
        (b'host="a\\"b"', b'host="a\\"b"'),
        # Malformed: the whole line, so that nobody is joined by mistake.
        (b'for="1;host=a', b'for="1;host=a'),
        (b"host", b"host"),
        (b"for=1host=a;x=y", b"for=1host=a;x=y"),
        (b"by=;host=a", b"by=;host=a"),
        (b"host=a:80", b"host=a:80"),
        (b"host=a b", b"host=a b"),
        (b"", b""),
        (b";;,", b","),
    ],
)
def test_of_forwarded_only_host_and_proto_are_compared(line: bytes, kept: bytes) -> None:
    assert forwarded_host_and_proto(line) == kept


def test_the_memory_of_header_names_is_bounded() -> None:
    selection = Selection(None, DEFAULT_IGNORE_HEADERS, DEFAULT_IGNORE_COOKIES)

    def request(*headers: tuple[bytes, bytes]) -> Any:
        return mock.Mock(_message=mock.Mock(raw_headers=headers))

    selection.headers_of(request(*[(b"X-%d" % number, b"") for number in range(20_000)]))
    assert len(selection._names) <= 4096
    selection.headers_of(request((b"Y" * 5000, b"")))  # long ones are not remembered at all
    assert max(map(len, selection._names)) <= 64
