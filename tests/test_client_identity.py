"""Who flies together, who does not, and what is no flight at all: each part of an outgoing request's identity."""

import asyncio
import inspect
import ssl
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.abc import AbstractResolver
from aiohttp.client import ClientSession
from yarl import URL

from aiohttp_reduce import reduce_client_middleware
from aiohttp_reduce.client import DEFAULT_IGNORE_HEADERS
from tests.harness import Gate, Start, eventually
from tests.upstream import Exchange, OpenSession, StartUpstream, Upstream, reducer_of

# Credentials as arguments are on their way out in 3.14; they are still part of what is sent.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '(auth|proxy_auth)' parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:BasicAuth is deprecated:DeprecationWarning"),
]

Options = dict[str, Any]


def takes(name: str) -> Any:
    """Skip where this aiohttp does not know the option of a call."""
    known = name in inspect.signature(ClientSession._request).parameters
    return pytest.mark.skipif(not known, reason=f"this aiohttp's calls take no {name}")


class Held(Upstream):
    """An upstream that answers with the number of the request, once the gate is open."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.gate = asyncio.Event()
        self._tls = tls
        super().__init__(self._respond)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    async def _respond(self, exchange: Exchange) -> None:
        await self.gate.wait()
        await exchange.respond(b"%d" % exchange.number)


class ToLoopback(AbstractResolver):
    """Finds every host on this machine."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 0}]

    async def close(self) -> None:
        pass


Hold = Callable[..., Awaitable[Held]]


@pytest_asyncio.fixture
async def hold() -> Any:
    """Start upstreams that hold their answers."""
    started: list[Held] = []

    async def start(tls: ssl.SSLContext | None = None) -> Held:
        one = Held(tls)
        await one.start()
        started.append(one)
        return one

    yield start
    for one in started:
        await one.stop()


async def requests_of(server: Held, reducer: Any, calls: Iterable[Callable[[], Any]]) -> list[bytes]:
    """The bodies that the calls are given, each made once the one before is upstream or waits for another's flight."""

    async def run(call: Callable[[], Any]) -> bytes:
        async with call() as response:
            return await response.read()  # type: ignore[no-any-return]

    server.gate.clear()
    before = len(server.requests)
    running = []
    for call in calls:
        running.append(asyncio.ensure_future(run(call)))
        await eventually(lambda: len(server.requests) - before + reducer.stats["waiting"] == len(running))
    server.gate.set()
    return await asyncio.gather(*running)


async def fly_together(
    server: Held, session: Any, one: Options, other: Options, *, method: str = "GET", path: str = "/"
) -> bool:
    """Whether two calls with these options share one upstream request; two with equal ones must."""

    def call(options: Options) -> Callable[[], Any]:
        merged = {"method": method, "url": server.url + path, **options}
        return lambda: session.request(**merged)

    before = len(server.requests)
    answers = await requests_of(server, reducer_of(session), [call(one), call(other), call(one), call(other)])
    sent = len(server.requests) - before
    assert sent in (1, 2)
    assert answers[0] == answers[2]
    assert answers[1] == answers[3]
    return sent == 1


async def test_another_method_is_another_flight(hold: Hold, reducing: OpenSession) -> None:
    server, session = await hold(), reducing()
    assert await fly_together(server, session, {"method": "GET"}, {"method": "get"})
    server.gate.clear()
    get = asyncio.ensure_future(session.get(server.url))
    await server.asked(2)
    heads = [asyncio.ensure_future(session.head(server.url)) for _ in range(3)]
    await server.asked(3)
    await eventually(lambda: bool(session.stats["waiting"] == 2))
    server.gate.set()
    for response in await asyncio.gather(get, *heads):
        await response.read()
        assert response.status == 200
    assert [exchange.method for exchange in server.requests] == ["GET", "GET", "HEAD"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/a", "/b"),
        ("/a", "/a/"),
        ("/a", "/A"),
        ("/a", "/a?"),
        ("/a?x=1", "/a?x=2"),
        ("/a?x=1&y=2", "/a?y=2&x=1"),
        ("/a?x=1", "/a?x=1&x=1"),
        ("/a%2Fb", "/a/b"),
    ],
)
async def test_another_path_or_query_is_another_flight(one: str, other: str, hold: Hold, reducing: OpenSession) -> None:
    server = await hold()
    session = reducing()
    urls = [URL(server.url + path, encoded=True) for path in (one, other)]
    together = await fly_together(server, session, {"url": urls[0]}, {"url": urls[1]})
    # Requests agree exactly if they agree on the wire.
    assert together == (len({exchange.target for exchange in server.requests}) == 1)
    assert together == (other == "/a?")


async def test_params_and_base_url_say_the_same_as_the_url(hold: Hold, reducing: OpenSession) -> None:
    server = await hold()
    session = reducing(server.url)
    assert await fly_together(server, session, {"url": "/a?x=1"}, {"url": "/a", "params": {"x": "1"}})
    assert await fly_together(server, session, {"url": "/a?x=1"}, {"url": URL(server.url + "/a?x=1")})
    assert not await fly_together(server, session, {"url": "/a"}, {"url": "/a", "params": {"x": "1"}})


async def test_another_host_is_another_flight(hold: Hold, reducing: OpenSession) -> None:
    server = await hold()
    session = reducing(connector=aiohttp.TCPConnector(resolver=ToLoopback()))
    a, b = f"http://a.test:{server.port}/", f"http://b.test:{server.port}/"
    assert not await fly_together(server, session, {"url": a}, {"url": b})
    assert await fly_together(server, session, {"url": a}, {"url": a.upper().replace("HTTP", "http")})
    # Two hosts that say they are one are still two.
    headers = {"Host": "one.test"}
    assert not await fly_together(server, session, {"url": a, "headers": headers}, {"url": b, "headers": headers})


async def test_another_port_is_another_flight(hold: Hold, reducing: OpenSession) -> None:
    first, second, session = await hold(), await hold(), reducing()
    headers = {"Host": "one.test"}
    calls = [asyncio.ensure_future(session.get(one.url, headers=headers)) for one in (first, second) * 2]
    await eventually(lambda: bool(session.stats["waiting"] == 2))
    await first.asked(1)
    await second.asked(1)
    first.gate.set()
    second.gate.set()
    for response in await asyncio.gather(*calls):
        response.release()
    assert (len(first.requests), len(second.requests)) == (1, 1)


def client_tls(certificates: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates / "authority.pem"))


def server_tls(certificates: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "server.pem")
    return context


async def test_another_scheme_is_another_flight(hold: Hold, reducing: OpenSession) -> None:
    server, session = await hold(), reducing()
    plain = asyncio.ensure_future(session.get(server.url))
    await server.asked(1)
    # The server speaks no TLS; that it is asked for it at all says that the other is no answer.
    secure = asyncio.ensure_future(session.get(server.url.replace("http", "https")))
    await eventually(lambda: server.connections == 2)
    assert session.stats["waiting"] == 0
    secure.cancel()
    server.gate.set()
    async with await plain as response:
        assert await response.read() == b"1"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"X-Api-Key": "a"}, {"X-Api-Key": "b"}),
        ({"X-Api-Key": "a"}, {}),
        ({"Authorization": "Bearer a"}, {"Authorization": "Bearer b"}),
        ({"Authorization": "Bearer a"}, {}),
        ({"Cookie": "a=1"}, {"Cookie": "a=2"}),
        ({"Cookie": "a=1"}, {}),
        ({"User-Agent": "a"}, {"User-Agent": "b"}),
        ({"Accept": "text/html"}, {"Accept": "text/plain"}),
        ({"Accept-Encoding": "gzip"}, {"Accept-Encoding": "identity"}),
        ({"Cache-Control": "no-cache"}, {}),
        ({"If-None-Match": '"a"'}, {}),
        ({"Range": "bytes=0-1"}, {}),
        ({"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}),
        ({"Connection": "close"}, {}),
        ([("X-Many", "a"), ("X-Many", "b")], [("X-Many", "b"), ("X-Many", "a")]),
        ([("X-Many", "a"), ("X-Many", "b")], [("X-Many", "a, b")]),
    ],
    ids=repr,
)
async def test_another_header_is_another_flight(one: Any, other: Any, hold: Hold, reducing: OpenSession) -> None:
    server = await hold()
    assert not await fly_together(server, reducing(), {"headers": one}, {"headers": other})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([("X-A", "1"), ("X-B", "2")], [("X-B", "2"), ("X-A", "1")]),
        ([("X-A", "1"), ("X-B", "2")], [("x-a", "1"), ("X-b", "2")]),
        ([("X-A", "1"), ("X-B", "2"), ("X-A", "3")], [("X-A", "1"), ("X-A", "3"), ("X-B", "2")]),
    ],
    ids=["order", "case", "lines"],
)
async def test_the_order_and_the_case_of_header_names_do_not_matter(
    one: Any, other: Any, hold: Hold, reducing: OpenSession
) -> None:
    server = await hold()
    assert await fly_together(server, reducing(), {"headers": one}, {"headers": other})


@pytest.mark.parametrize("name", sorted(name.replace("*", "Anything") for name in DEFAULT_IGNORE_HEADERS))
async def test_headers_that_name_a_request_in_a_trace_do_not_matter(
    name: str, hold: Hold, reducing: OpenSession
) -> None:
    server = await hold()
    assert await fly_together(server, reducing(), {"headers": {name: "a"}}, {"headers": {name: "b"}})


async def test_what_ignore_headers_names_does_not_matter_and_nothing_else(hold: Hold, reducing: OpenSession) -> None:
    server = await hold()
    session = reducing(ignore_headers=("X-Noise", "X-Trace-*"))
    for name, together in [("x-noise", True), ("X-TRACE-a", True), ("X-Noise-2", False), ("traceparent", False)]:
        assert await fly_together(server, session, {"headers": {name: "a"}}, {"headers": {name: "b"}}) == together
        assert await fly_together(server, session, {"headers": {name: "a"}}, {}) == together
    every = reducing(ignore_headers=())
    assert not await fly_together(server, every, {"headers": {"traceparent": "a"}}, {})


async def test_cookies_of_the_jar_and_of_the_call_matter(hold: Hold, reducing: OpenSession) -> None:
    server = await hold()
    session = reducing(cookie_jar=aiohttp.CookieJar(unsafe=True))
    assert not await fly_together(server, session, {"cookies": {"a": "1"}}, {"cookies": {"a": "2"}})
    assert not await fly_together(server, session, {"cookies": {"a": "1"}}, {})
    assert await fly_together(server, session, {"cookies": {"a": "1"}}, {"headers": {"Cookie": "a=1"}})
    before = len(server.requests)

    def after_login() -> Any:
        session.cookie_jar.update_cookies({"user": "alice"}, URL(server.url))
        return session.get(server.url)

    def anonymous() -> Any:
        return session.get(server.url)

    answers = await requests_of(server, reducer_of(session), [anonymous, anonymous, after_login, anonymous])
    assert answers[0] == answers[1] != answers[2] == answers[3]
    assert [exchange.headers.get("Cookie") for exchange in server.requests[before:]] == [None, "user=alice"]


async def test_credentials_of_the_call_matter(hold: Hold, reducing: OpenSession) -> None:
    server, session = await hold(), reducing()
    alice, bob = aiohttp.BasicAuth("alice", "x"), aiohttp.BasicAuth("bob", "x")
    assert not await fly_together(server, session, {"auth": alice}, {"auth": bob})
    assert not await fly_together(server, session, {"auth": alice}, {})
    assert await fly_together(
        server, session, {"auth": alice}, {"url": URL(server.url).with_user("alice").with_password("x")}
    )


async def test_the_fragment_does_not_matter_and_each_keeps_its_own(hold: Hold, reducing: OpenSession) -> None:
    server, session = await hold(), reducing()
    calls = [asyncio.ensure_future(session.get(f"{server.url}/a#{name}")) for name in ("one", "two", "three")]
    calls.append(asyncio.ensure_future(session.get(f"{server.url}/a")))
    await eventually(lambda: bool(session.stats["waiting"] == 3))
    server.gate.set()
    responses = await asyncio.gather(*calls)
    assert [response.real_url.fragment for response in responses] == ["one", "two", "three", ""]
    assert [response.request_info.real_url.fragment for response in responses] == ["one", "two", "three", ""]
    assert {str(response.url) for response in responses} == {f"{server.url}/a"}
    assert [await response.read() for response in responses] == [b"1"] * 4


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"proxy": None}),
        ({"proxy_headers": {"X-P": "a"}}, {"proxy_headers": {"X-P": "a"}}),
        ({"proxy_headers": {"X-P": "a"}}, {"proxy_headers": {"X-P": "b"}}),
        ({"proxy_headers": {"X-P": "a"}}, {}),
        ({"proxy_auth": "a"}, {"proxy_auth": "b"}),
        ({"proxy_auth": "a"}, {}),
    ],
    ids=["proxy", "same headers", "headers", "no headers", "auth", "no auth"],
)
async def test_another_proxy_or_what_it_is_told_is_another_flight(
    one: Options, other: Options, hold: Hold, reducing: OpenSession
) -> None:
    server = await hold()
    session = reducing(connector=aiohttp.TCPConnector(resolver=ToLoopback()))
    # The upstream is its own proxy.
    one, other = ({"proxy": server.url, **options} for options in (one, other))
    for options in (one, other):
        if "proxy_auth" in options:
            options["proxy_auth"] = aiohttp.BasicAuth(options["proxy_auth"])
    together = await fly_together(server, session, one, other)
    assert together == (one == other)
    assert server.requests[0].target == f"{server.url}/"


async def test_two_proxies_are_two_flights(hold: Hold, reducing: OpenSession) -> None:
    first, second, session = await hold(), await hold(), reducing()
    calls = [asyncio.ensure_future(session.get("http://a.test/", proxy=one.url)) for one in (first, second) * 2]
    await eventually(lambda: bool(session.stats["waiting"] == 2))
    await first.asked(1)
    await second.asked(1)
    first.gate.set()
    second.gate.set()
    for response in await asyncio.gather(*calls):
        response.release()
    assert (len(first.requests), len(second.requests)) == (1, 1)


async def test_other_tls_options_are_another_flight(hold: Hold, reducing: OpenSession, certificates: Path) -> None:
    server = await hold(server_tls(certificates))
    server.url = server.url.replace("127.0.0.1", "localhost")
    session = reducing(connector=aiohttp.TCPConnector(resolver=ToLoopback()))
    one, other = client_tls(certificates), client_tls(certificates)
    assert await fly_together(server, session, {"ssl": one}, {"ssl": one})
    assert not await fly_together(server, session, {"ssl": one}, {"ssl": other})
    assert not await fly_together(server, session, {"ssl": one}, {"ssl": False})
    assert await fly_together(server, session, {"ssl": False}, {"ssl": False})
    named = {"ssl": one, "server_hostname": "localhost"}
    assert await fly_together(server, session, named, named)
    assert not await fly_together(server, session, {"ssl": one}, named)
    assert not await fly_together(
        server, session, {"ssl": False, "server_hostname": "a.test"}, {"ssl": False, "server_hostname": "b.test"}
    )


async def test_a_check_of_the_certificate_that_is_waived_by_one_is_not_waived_for_others(
    hold: Hold, reducing: OpenSession, certificates: Path
) -> None:
    server, session = await hold(server_tls(certificates)), reducing()
    careless = asyncio.ensure_future(session.get(server.url, ssl=False))
    await server.asked(1)
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await session.get(server.url)
    server.gate.set()
    async with await careless as response:
        assert response.status == 200


READING: list[Any] = [
    pytest.param({"auto_decompress": True}, {"auto_decompress": False}, id="auto_decompress"),
    pytest.param({"read_until_eof": True}, {"read_until_eof": False}, id="read_until_eof"),
    pytest.param({"read_bufsize": 2**16}, {"read_bufsize": 2**17}, id="read_bufsize"),
    pytest.param({"max_line_size": 8000}, {"max_line_size": 9000}, id="max_line_size"),
    pytest.param({"max_field_size": 8000}, {"max_field_size": 9000}, id="max_field_size"),
    pytest.param({"max_headers": 64}, {"max_headers": 65}, id="max_headers", marks=takes("max_headers")),
    pytest.param(
        {"timeout": aiohttp.ClientTimeout(sock_read=30)},
        {"timeout": aiohttp.ClientTimeout(sock_read=31)},
        id="sock_read",
    ),
    pytest.param(
        {"timeout": aiohttp.ClientTimeout(total=300, sock_connect=30, sock_read=30)},
        {"timeout": aiohttp.ClientTimeout(total=300, sock_connect=30)},
        id="no sock_read",
    ),
]


@pytest.mark.parametrize(("one", "other"), READING)
async def test_another_way_to_read_the_answer_is_another_flight(
    one: Options, other: Options, hold: Hold, reducing: OpenSession
) -> None:
    server, session = await hold(), reducing()
    assert not await fly_together(server, session, one, other)
    assert await fly_together(server, session, one, dict(one))


async def test_an_option_of_the_call_that_is_the_sessions_own_shares(hold: Hold, reducing: OpenSession) -> None:
    server = await hold()
    session = reducing(auto_decompress=False, read_bufsize=2**17)
    assert await fly_together(server, session, {}, {"auto_decompress": False, "read_bufsize": 2**17})
    assert not await fly_together(server, session, {}, {"auto_decompress": True})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"total": 20}, {"total": 21}),
        ({"total": None}, {"total": 20}),
        ({"connect": 20}, {"connect": 21}),
        ({"sock_connect": 20}, {"sock_connect": None}),
    ],
    ids=["total", "no total", "connect", "sock_connect"],
)
async def test_how_long_one_waits_does_not_matter(
    one: Options, other: Options, hold: Hold, reducing: OpenSession
) -> None:
    server, session = await hold(), reducing()
    timeouts = [aiohttp.ClientTimeout(**options) for options in (one, other)]
    assert await fly_together(server, session, {"timeout": timeouts[0]}, {"timeout": timeouts[1]})


async def test_what_a_caller_does_with_the_answer_does_not_matter(hold: Hold, reducing: OpenSession) -> None:
    server, session = await hold(), reducing()
    for other in ({"raise_for_status": True}, {"allow_redirects": False}, {"max_redirects": 2}):
        assert await fly_together(server, session, {}, other)
    assert await fly_together(server, session, {}, {"trace_request_ctx": object()})


async def test_two_sessions_with_one_middleware_object_never_share(hold: Hold) -> None:
    server = await hold()
    reducer = reduce_client_middleware()
    async with ClientSession(middlewares=[reducer]) as one, ClientSession(middlewares=[reducer]) as other:
        calls = [lambda session=session: session.get(server.url) for session in (one, other, one, other)]
        answers = await requests_of(server, reducer, calls)
    assert answers[0] == answers[2] != answers[1] == answers[3]
    assert len(server.requests) == 2


async def test_two_wrappers_of_one_session_never_share(hold: Hold, reducing: OpenSession) -> None:
    server = await hold()
    async with ClientSession() as genuine:
        wrappers = [reducing(session=genuine), reducing(session=genuine)]
        calls = [asyncio.ensure_future(wrapper.get(server.url)) for wrapper in wrappers * 2]
        await eventually(lambda: all(wrapper.stats["waiting"] == 1 for wrapper in wrappers))
        await server.asked(2)
        server.gate.set()
        for response in await asyncio.gather(*calls):
            response.release()
    assert len(server.requests) == 2


async def test_another_version_is_another_flight(hold: Hold, reducing: OpenSession) -> None:
    server, session = await hold(), reducing()

    async def as_http_1_0(request: aiohttp.ClientRequest, handler: Any) -> Any:
        request.version = aiohttp.HttpVersion10
        return await handler(request)

    assert not await fly_together(server, session, {}, {"middlewares": (as_http_1_0,)})
    assert await fly_together(server, session, {"middlewares": (as_http_1_0,)}, {"middlewares": [as_http_1_0]})


async def test_middlewares_of_the_call_matter_by_what_they_make_of_the_request(
    hold: Hold, reducing: OpenSession
) -> None:
    server = await hold()
    passed: list[str] = []

    def signing(name: str, signature: str) -> Any:
        async def sign(request: aiohttp.ClientRequest, handler: Any) -> Any:
            passed.append(name)
            request.headers["X-Signature"] = signature
            return await handler(request)

        return sign

    session = reducing(middlewares=[signing("of the session", "s")])
    one, equal, other = signing("one", "a"), signing("equal", "a"), signing("other", "b")
    assert await fly_together(server, session, {"middlewares": [one]}, {"middlewares": [equal]})
    assert passed == ["one", "equal", "one", "equal"]  # each caller's own, and not the session's
    assert not await fly_together(server, session, {"middlewares": [one]}, {"middlewares": [other]})
    assert not await fly_together(server, session, {"middlewares": [one]}, {})
    assert await fly_together(server, session, {"middlewares": ()}, {"middlewares": []})


async def test_headers_count_as_they_came_not_as_they_were_changed_meanwhile(hold: Hold, reducing: OpenSession) -> None:
    server, session = await hold(), reducing()
    seen: list[aiohttp.ClientRequest] = []

    async def remember(request: aiohttp.ClientRequest, handler: Any) -> Any:
        seen.append(request)
        return await handler(request)

    def call() -> Any:
        for request in seen:
            request.headers["X-Late"] = "yes"
        return session.get(server.url, middlewares=[remember])

    assert await requests_of(server, reducer_of(session), [call, call, call]) == [b"1"] * 3
    assert "X-Late" not in server.requests[0].headers


# What is no flight.


class OwnSend(aiohttp.ClientRequest):
    """Sends in a way of its own."""

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        return await super().send(conn)


class OwnName(aiohttp.ClientRequest):
    """Sends as any other."""


async def passed_by(server: Held, session: Any, **options: Any) -> dict[str, int]:
    """The bypasses counted for two identical calls at once, which must both go upstream."""
    before = len(server.requests)
    options = {"method": "GET", "url": server.url, **options}
    server.gate.clear()
    calls = [asyncio.ensure_future(session.request(**options)) for _ in range(2)]
    await server.asked(before + 2)
    server.gate.set()
    for response in await asyncio.gather(*calls):
        await response.read()
        assert response.status == 200
    assert session.stats["total"] == session.stats["waiting"] == 0
    return session.stats["bypassed"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"])
async def test_methods_that_are_not_selected_pass(method: str, hold: Hold, reducing: OpenSession) -> None:
    assert await passed_by(await hold(), reducing(), method=method) == {"method": 2}


async def test_methods_may_be_widened_and_narrowed(hold: Hold, reducing: OpenSession) -> None:
    server = await hold()
    assert await fly_together(server, reducing(methods=("GET", "OPTIONS")), {}, {}, method="OPTIONS")
    assert await passed_by(server, reducing(methods=("OPTIONS",)), method="GET") == {"method": 2}


@pytest.mark.parametrize("body", [{"data": b"x"}, {"json": {}}, {"data": {"a": "b"}}], ids=["data", "json", "form"])
async def test_a_body_passes(body: Options, hold: Hold, reducing: OpenSession) -> None:
    server = await hold()
    assert await passed_by(server, reducing(), **body) == {"body": 2}
    assert all(exchange.body for exchange in server.requests)


async def test_expect_passes(reducing: OpenSession, upstream: StartUpstream) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await exchange.respond()

    server, session = await upstream(answer), reducing()
    for options in ({"expect100": True}, {"headers": {"Expect": "100-continue"}}):
        async with session.get(server.url, **options) as response:
            assert await response.read() == b"hello"
    assert session.stats["bypassed"] == {"expect": 2}


async def test_asking_for_another_protocol_passes(hold: Hold, reducing: OpenSession) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "h2c"}
    assert await passed_by(await hold(), reducing(), headers=headers) == {"upgrade": 2}


async def test_websockets_pass_and_work(serve: Start, reducing: OpenSession) -> None:
    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(f"echo {message.data}")
        return socket

    app = web.Application()
    app.router.add_get("/", echo)
    server = await serve(app)
    session = reducing()
    url = f"ws://127.0.0.1:{server.port}/"
    async with session.ws_connect(url) as one, session.ws_connect(url) as other:
        await one.send_str("a")
        await other.send_str("b")
        assert (await one.receive_str(), await other.receive_str()) == ("echo a", "echo b")
    assert session.stats["bypassed"] == {"upgrade": 2}


@pytest.mark.parametrize("accept", ["text/event-stream", "text/html, Text/Event-Stream;q=0.9"])
async def test_asking_for_an_event_stream_passes(accept: str, hold: Hold, reducing: OpenSession) -> None:
    assert await passed_by(await hold(), reducing(), headers={"Accept": accept}) == {"event-stream": 2}


@takes("upload_tracker")
async def test_a_watched_upload_passes(hold: Hold, reducing: OpenSession) -> None:
    server, session = await hold(), reducing()
    server.gate.set()
    trackers = [aiohttp.UploadTracker() for _ in range(2)]
    responses = await asyncio.gather(*[session.get(server.url, upload_tracker=tracker) for tracker in trackers])
    for response in responses:
        response.release()
    assert session.stats["bypassed"] == {"upload-tracker": 2}
    assert [tracker.attempts for tracker in trackers] == [1, 1]


async def test_a_request_class_that_sends_in_its_own_way_passes_and_another_does_not(
    hold: Hold, reducing: OpenSession
) -> None:
    server = await hold()
    assert await passed_by(server, reducing(request_class=OwnSend)) == {"request-class": 2}
    assert await fly_together(server, reducing(request_class=OwnName), {}, {})


async def test_a_call_that_opts_out_passes(hold: Hold, reducing: OpenSession) -> None:
    server, session = await hold(), reducing()
    assert await passed_by(server, session, reduce=False) == {"reduce-false": 2}
    server.gate.clear()
    reduced = [asyncio.ensure_future(session.get(server.url)) for _ in range(2)]
    await eventually(lambda: bool(session.stats["waiting"] == 1))
    alone = [asyncio.ensure_future(call(server.url, reduce=False)) for call in (session.get, session.head)]
    await server.asked(5)
    server.gate.set()
    for response in await asyncio.gather(*reduced, *alone):
        await response.read()
    assert [exchange.method for exchange in server.requests[3:]] == ["GET", "HEAD"]
    assert session.stats["bypassed"] == {"reduce-false": 4}
    assert session.stats["reduced"] == 1


async def test_a_call_that_opts_out_still_passes_the_other_middlewares(hold: Hold, reducing: OpenSession) -> None:
    server = await hold()
    server.gate.set()

    def adding(name: str) -> Any:
        async def add(request: aiohttp.ClientRequest, handler: Any) -> Any:
            request.headers[name] = "yes"
            return await handler(request)

        return add

    session = reducing(middlewares=[adding("X-Session")])
    for options in ({}, {"middlewares": [adding("X-Call")]}):
        async with session.get(server.url, reduce=False, **options) as response:
            assert response.status == 200
    assert [("X-Session" in one.headers, "X-Call" in one.headers) for one in server.requests] == [
        (True, False),
        (False, True),
    ]


async def test_a_middleware_that_stands_further_in_makes_all_pass(hold: Hold) -> None:
    server = await hold()

    async def further_in(request: aiohttp.ClientRequest, handler: Any) -> Any:
        return await handler(request)

    reducer = reduce_client_middleware()
    async with ClientSession(middlewares=[reducer, further_in]) as session:
        calls = [asyncio.ensure_future(session.get(server.url)) for _ in range(2)]
        await server.asked(2)
        server.gate.set()
        for response in await asyncio.gather(*calls):
            await response.read()
        assert reducer.stats["bypassed"] == {"not-innermost": 2}
        assert reducer.stats["total"] == 0
        # The other way round it reduces.
        calls = [lambda: session.get(server.url, middlewares=[further_in, reducer])] * 2
        assert await requests_of(server, reducer, calls) == [b"3", b"3"]


# Answers that are not for all.


@pytest.mark.parametrize(
    "content_type",
    ["text/event-stream", "Text/Event-Stream; charset=utf-8", "multipart/x-mixed-replace; boundary=b"],
)
async def test_one_gets_an_endless_answer_live_and_the_others_ask_for_themselves_at_once(
    content_type: str, upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate, end = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.head(Content_Type=content_type, Transfer_Encoding="chunked")
        await exchange.chunk(b"event %d\n" % exchange.number)
        await end.wait()
        await exchange.chunk(b"last %d\n" % exchange.number)
        await exchange.chunk(b"")

    server, session = await upstream(answer), reducing()
    calls = [asyncio.ensure_future(session.get(server.url)) for _ in range(10)]
    await eventually(lambda: bool(session.stats["waiting"] == 9))
    await server.asked()
    gate.set()
    responses = await asyncio.gather(*calls)
    # All are there while not one of them has come to its end.
    lines = [await response.content.readline() for response in responses]
    assert sorted(lines) == sorted(b"event %d\n" % number for number in range(1, 11))
    assert lines[0] == b"event 1\n"
    end.set()
    for response, line in zip(responses, lines, strict=True):
        assert await response.read() == line.replace(b"event", b"last")
        assert (response.method, response.status) == ("GET", 200)
    assert session.stats["unshared"] == {"stream": 9}
    assert session.stats["reduced"] == 0


async def test_of_an_endless_answer_the_one_who_leaves_takes_nothing_from_the_others(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.head(Content_Type="text/event-stream", Transfer_Encoding="chunked")
        await exchange.chunk(b"event\n")
        await exchange.left.wait()

    server, session = await upstream(answer), reducing()
    calls = [asyncio.ensure_future(session.get(server.url)) for _ in range(3)]
    await eventually(lambda: bool(session.stats["waiting"] == 2))
    gate.set()
    responses = await asyncio.gather(*calls)
    responses[0].close()
    await asyncio.wait_for(server.requests[0].left.wait(), 5)
    assert [await response.content.readline() for response in responses[1:]] == [b"event\n"] * 2
    for response in responses[1:]:
        response.close()
    await eventually(lambda: server.open_connections == 0)


async def test_a_connection_that_switches_protocols_is_for_one(upstream: StartUpstream, reducing: OpenSession) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.head("101 Switching Protocols", Upgrade="own", Connection="Upgrade", X_Number=exchange.number)
        await exchange.left.wait()

    server, session = await upstream(answer), reducing()
    calls = [asyncio.ensure_future(session.get(server.url)) for _ in range(3)]
    await eventually(lambda: bool(session.stats["waiting"] == 2))
    gate.set()
    responses = await asyncio.gather(*calls)
    assert sorted(response.headers["X-Number"] for response in responses) == ["1", "2", "3"]
    transports = {response.connection.transport for response in responses}
    assert len(transports) == 3
    assert session.stats["unshared"] == {"stream": 2}
    for response in responses:
        assert response.status == 101
        response.close()


async def varied(
    vary: Any, headers: list[dict[str, str]], upstream: StartUpstream, session: Any, *, streamed: bool
) -> tuple[list[bytes], Upstream]:
    """The bodies that calls with these headers get, where the answer bears these lines of Vary."""
    gate, arrived = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        head = "".join(f"Vary: {line}\r\n" for line in vary)
        await exchange.send(f"HTTP/1.1 200 OK\r\n{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        if streamed:
            await arrived.wait()
        await exchange.chunk(b"%d" % exchange.number)
        await exchange.chunk(b"")

    async def body(call: Any) -> bytes:
        async with call as response:
            arrived.set()
            return await response.read()  # type: ignore[no-any-return]

    server = await upstream(answer)
    calls = [asyncio.ensure_future(body(session.get(server.url, headers=one))) for one in headers]
    await eventually(lambda: bool(session.stats["waiting"] == len(headers) - 1))
    gate.set()
    return await asyncio.gather(*calls), server


A, B, C = {"X-Request-ID": "a"}, {"X-Request-ID": "b"}, {"X-Request-ID": "c"}


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_that_varies_with_a_left_out_header_is_for_those_who_agree_in_it(
    streamed: bool, upstream: StartUpstream, reducing: OpenSession
) -> None:
    session = reducing()
    bodies, server = await varied(["Accept, x-request-id"], [A, A, B, B, {}, A], upstream, session, streamed=streamed)
    assert bodies[0] == bodies[1] == bodies[5] == b"1"
    assert sorted(bodies[2:5]) == [b"2", b"3", b"4"]
    assert [one.headers.get("X-Request-ID") for one in server.requests[:1]] == ["a"]
    assert session.stats["unshared"] == {"vary: x-request-id": 3}
    assert session.stats["reduced"] == 2


@pytest.mark.parametrize("vary", [["*"], ["Accept, *"], ["Accept", "*"], ["not a token"]], ids=repr)
async def test_an_answer_that_varies_with_anything_is_for_those_who_agree_in_all(
    vary: list[str], upstream: StartUpstream, reducing: OpenSession
) -> None:
    session = reducing()
    bodies, _ = await varied(vary, [A, A, B, C], upstream, session, streamed=False)
    assert bodies[0] == bodies[1] == b"1"
    assert sorted(bodies[2:]) == [b"2", b"3"]
    assert session.stats["unshared"] == {"vary: *": 2}


@pytest.mark.parametrize("vary", [["Accept"], ["X-Whatever, Cookie"], [""]], ids=repr)
async def test_an_answer_that_varies_with_what_is_compared_anyway_is_for_all(
    vary: list[str], upstream: StartUpstream, reducing: OpenSession
) -> None:
    session = reducing()
    bodies, _ = await varied(vary, [A, B, C], upstream, session, streamed=False)
    assert bodies == [b"1"] * 3
    assert session.stats["unshared"] == {}


class CountingJar(aiohttp.CookieJar):
    """Counts the answers whose cookies it was given."""

    updates = 0

    def update_cookies_from_headers(self, *args: Any, **options: Any) -> None:
        self.updates += 1
        super().update_cookies_from_headers(*args, **options)


@pytest.mark.parametrize(
    "headers",
    [
        {"Set_Cookie": "user=alice; Path=/"},
        {"Cache_Control": "no-store"},
        {"Cache_Control": "private"},
        {"Cache_Control": "no-cache, no-store, private, max-age=0"},
        {"Clear_Site_Data": '"cookies"'},
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "status", ["200 OK", "201 Created", "302 Found", "401 Unauthorized", "429 Too Many Requests", "500 Oh"]
)
async def test_whatever_an_answer_says_about_caching_it_is_for_all_who_are_this_session(
    headers: dict[str, str], status: str, upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond(b"%d" % exchange.number, status, **headers)

    server, session = await upstream(answer), reducing()
    calls = [
        asyncio.ensure_future(session.get(server.url, headers={"Authorization": "x"}, allow_redirects=False))
        for _ in range(3)
    ]
    await eventually(lambda: bool(session.stats["waiting"] == 2))
    gate.set()
    responses = await asyncio.gather(*calls)
    assert [await response.read() for response in responses] == [b"1"] * 3
    assert session.stats["unshared"] == {}
    assert session.stats["reduced"] == 2


async def test_cookies_that_an_answer_sets_come_into_the_jar_as_if_each_had_asked(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: a=1; Path=/\r\nSet-Cookie: b=2; Path=/\r\n\r\n"
        )

    server = await upstream(answer)
    jar = CountingJar(unsafe=True)
    session = reducing(cookie_jar=jar)
    calls = [asyncio.ensure_future(session.get(server.url)) for _ in range(3)]
    await eventually(lambda: bool(session.stats["waiting"] == 2))
    gate.set()
    responses = await asyncio.gather(*calls)
    assert jar.updates == 3
    assert {name: one.value for name, one in jar.filter_cookies(URL(server.url)).items()} == {"a": "1", "b": "2"}
    assert [[one.value for one in response.cookies.values()] for response in responses] == [["1", "2"]] * 3
    async with session.get(server.url):
        assert server.requests[-1].headers["Cookie"] == "a=1; b=2"


async def test_a_server_that_is_an_application_sees_one_request(serve: Start, reducing: OpenSession) -> None:
    gate = Gate()

    async def handle(request: web.Request) -> web.Response:
        await gate.wait(request)
        return web.json_response({"runs": gate.runs})

    app = web.Application()
    app.router.add_get("/", handle)
    server = await serve(app)
    session = reducing()
    calls = [asyncio.ensure_future(session.get(f"http://127.0.0.1:{server.port}/")) for _ in range(50)]
    await eventually(lambda: bool(session.stats["waiting"] == 49))
    gate.open()
    assert [await (await call).json() for call in calls] == [{"runs": 1}] * 50


@pytest.mark.parametrize("media_type", ["text/plain", "text/event-stream", "multipart/x-mixed-replace"])
async def test_an_answer_that_varies_is_not_for_the_last_one_who_stayed_if_that_one_differs(
    upstream: StartUpstream, reducing: OpenSession, media_type: str
) -> None:
    gate = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        headers = {"Vary": "X-Request-ID", "Content-Type": media_type}
        await exchange.respond(exchange.headers["X-Request-ID"].encode(), **headers)

    server, session = await upstream(answer), reducing()

    async def body(headers: dict[str, str]) -> bytes:
        async with session.get(server.url, headers=headers) as response:
            return await response.read()  # type: ignore[no-any-return]

    first, second = asyncio.ensure_future(body(A)), asyncio.ensure_future(body(B))
    await eventually(lambda: bool(session.stats["waiting"] == 1))
    await server.asked()
    first.cancel()
    await asyncio.wait([first])
    gate.set()
    assert await second == b"b"
