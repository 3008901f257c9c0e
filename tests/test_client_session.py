"""`ReducingClientSession` is used in the place of a `ClientSession`, and nothing else changes."""

import asyncio
import inspect
import math
import warnings
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientSession, web

from aiohttp_reduce import ReducingClientSession, reduce_client_middleware
from aiohttp_reduce.client.session_arguments import SessionArguments
from tests.harness import Gate, Start
from tests.upstream import Exchange, OpenSession, StartUpstream, bodies, nothing_is_left, reducer_of, waiting

# What `ReducingClientSession` has of its own, beside everything that a session has.
OWN = {"session", "stats", "forget"}


async def hello(exchange: Exchange) -> None:
    await exchange.respond(b"hello")


async def echo_method(exchange: Exchange) -> None:
    await exchange.respond(f"{exchange.method} {exchange.body.decode()}".encode())


def public(one: Any) -> set[str]:
    return {name for name in dir(one) if not name.startswith("_")}


async def test_everything_public_of_a_session_is_there_and_alike(reducing: OpenSession) -> None:
    async with ClientSession() as genuine:
        session = reducing()
        assert public(session) - public(genuine) == OWN
        assert public(genuine) - public(session) == set()
        for name in sorted(public(genuine)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                mine, its = getattr(session, name), getattr(genuine, name)
            if callable(its):
                assert callable(mine), name
                assert inspect.iscoroutinefunction(mine) == inspect.iscoroutinefunction(its), name
            else:
                assert type(mine) is type(its), name


def test_type_checkers_know_every_argument_of_a_session() -> None:
    parameters = inspect.signature(ClientSession).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    assert named <= SessionArguments.__annotations__.keys()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("headers", {"X-A": "1"}),
        ("skip_auto_headers", ["User-Agent"]),
        ("timeout", aiohttp.ClientTimeout(total=7)),
        ("raise_for_status", True),
        ("auto_decompress", False),
        ("trust_env", True),
        ("requote_redirect_url", False),
        ("connector_owner", False),
    ],
)
async def test_arguments_reach_the_session(reducing: OpenSession, argument: str, value: Any) -> None:
    connector = aiohttp.TCPConnector()
    async with ClientSession(connector=connector, **{argument: value}) as genuine:
        session = reducing(connector=connector, **{argument: value})
        assert getattr(session, argument) == getattr(genuine, argument)
    await connector.close()


async def test_attributes_that_are_read_set_and_deleted_are_the_sessions(reducing: OpenSession) -> None:
    session = reducing()
    session.session._default_headers["X-A"] = "1"
    assert session._default_headers["X-A"] == "1"
    with pytest.warns(DeprecationWarning, match="requote_redirect_url"):
        session.requote_redirect_url = False
    assert session.session.requote_redirect_url is False
    setattr(session, "_resolve_charset", len)  # noqa: B010
    assert session.session._resolve_charset is len
    delattr(session, "_resolve_charset")
    assert not hasattr(session.session, "_resolve_charset")
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = session.nothing_such


@pytest.mark.parametrize("method", ["get", "head", "options", "post", "put", "patch", "delete"])
async def test_every_method_works_awaited_and_as_a_context_manager(
    upstream: StartUpstream, reducing: OpenSession, method: str
) -> None:
    server = await upstream(echo_method)
    session = reducing()
    sends = {"data": b"body"} if method in {"post", "put", "patch", "delete"} else {}
    expected = b"" if method == "head" else f"{method.upper()} {'body' if sends else ''}".encode()
    async with getattr(session, method)(server.url, **sends) as response:
        assert (response.status, await response.read()) == (200, expected)
    response = await getattr(session, method)(server.url, **sends)
    assert await response.read() == expected
    async with session.request(method, server.url, **sends) as response:
        assert await response.read() == expected


async def test_positional_arguments_are_those_of_a_session(upstream: StartUpstream, reducing: OpenSession) -> None:
    server = await upstream(hello)
    session = reducing(server.url + "/")
    async with session.request("GET", "path") as response:
        assert str(response.url) == f"{server.url}/path"
    assert server.requests[0].target == "/path"


async def test_web_sockets_are_opened_as_ever(serve: Start, reducing: OpenSession) -> None:
    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(f"echo {message.data}")
        return socket

    app = web.Application()
    app.router.add_get("/", handler)
    server = await serve(app)
    session = reducing()
    async with session.ws_connect(f"http://127.0.0.1:{server.port}/") as socket:
        await socket.send_str("a")
        assert (await socket.receive_str()) == "echo a"


async def test_a_given_session_is_left_open_and_its_own_calls_alone(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate = Gate()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond()

    server = await upstream(answer)
    async with ClientSession() as given:
        session = ReducingClientSession(session=given)
        mine = asyncio.ensure_future(bodies(session, 3, server.url))
        theirs = asyncio.ensure_future(bodies(given, 2, server.url))
        await waiting(reducer_of(session), 2)
        await server.asked(3)
        gate.open()
        assert await mine + await theirs == [b"hello"] * 5
        assert len(server.requests) == 3
        await session.close()
        assert session.closed
        assert session.connector is None
        assert not given.closed
        with pytest.raises(RuntimeError, match="Session is closed"):
            await session.get(server.url)
        with pytest.raises(RuntimeError, match="Session is closed"):
            await session.ws_connect(server.url)
        assert await bodies(given, 1, server.url) == [b"hello"]


async def test_closing_closes_a_session_of_its_own(upstream: StartUpstream) -> None:
    server = await upstream(hello)
    async with ReducingClientSession() as session:
        assert await bodies(session, 2, server.url) == [b"hello"] * 2
        genuine = session.session
        assert not session.closed
    assert session.closed
    assert genuine.closed
    assert session.connector is None
    with pytest.raises(RuntimeError, match="Session is closed"):
        await session.get(server.url)


async def test_a_connector_that_is_not_owned_stays_open(upstream: StartUpstream) -> None:
    server = await upstream(hello)
    connector = aiohttp.TCPConnector()
    session = ReducingClientSession(connector=connector, connector_owner=False)
    response = await session.get(server.url)
    await session.close()
    assert not connector.closed
    assert await response.read() == b"hello"
    await connector.close()


async def test_detach_leaves_the_connector_open(reducing: OpenSession) -> None:
    connector = aiohttp.TCPConnector()
    session = reducing(connector=connector)
    session.detach()
    assert session.closed
    assert not connector.closed
    given = ClientSession(connector=connector, connector_owner=False)
    wrapper = ReducingClientSession(session=given)
    wrapper.detach()
    assert wrapper.closed
    assert not given.closed
    await given.close()
    await connector.close()


async def test_it_is_no_plain_context_manager(reducing: OpenSession) -> None:
    session: Any = reducing()
    with pytest.raises(TypeError, match="Use async with instead"):
        session.__enter__()
    session.__exit__(None, None, None)


async def test_one_that_is_forgotten_warns_as_a_session_does() -> None:
    held = [ReducingClientSession()]
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    connector = held[0].connector
    assert connector is not None
    with pytest.warns(ResourceWarning, match="Unclosed client session"):
        held.clear()
    await connector.close()
    asyncio.get_running_loop().set_exception_handler(None)


async def test_the_session_of_its_own_is_genuine_and_reduces_too(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    gate = Gate()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond()

    server = await upstream(answer)
    session = reducing()
    assert isinstance(session.session, ClientSession)
    assert not isinstance(session, ClientSession)
    assert "ReducingClientSession of <aiohttp.client.ClientSession" in repr(session)
    herd = asyncio.ensure_future(bodies(session.session, 3, server.url))
    await waiting(reducer_of(session), 2)
    gate.open()
    assert await herd == [b"hello"] * 3
    assert len(server.requests) == 1


@pytest.mark.parametrize("given", [False, True], ids=["own session", "given session"])
@pytest.mark.parametrize("per_call", [False, True], ids=["session's middlewares", "call's middlewares"])
async def test_the_users_client_middlewares_run_for_each_caller(
    upstream: StartUpstream, given: bool, per_call: bool
) -> None:
    seen: list[str] = []

    async def users(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
        seen.append("in")
        response: aiohttp.ClientResponse = await handler(request)
        seen.append(str(response.status))
        return response

    server = await upstream(hello)
    options: dict[str, Any] = {} if per_call else {"middlewares": (users,)}
    call: dict[str, Any] = {"middlewares": (users,)} if per_call else {}
    genuine = ClientSession(**options) if given else None
    session = ReducingClientSession(session=genuine) if given else ReducingClientSession(**options)
    assert await bodies(session, 3, server.url, **call) == [b"hello"] * 3
    assert (sorted(seen), len(server.requests)) == (["200"] * 3 + ["in"] * 3, 1)
    seen.clear()
    assert await bodies(session, 2, server.url, reduce=False, **call) == [b"hello"] * 2
    assert (sorted(seen), len(server.requests)) == (["200"] * 2 + ["in"] * 2, 3)
    assert session.stats["bypassed"] == {"reduce-false": 2}
    await session.close()
    if genuine is not None:
        await genuine.close()


@pytest.mark.parametrize("method", ["get", "head", "request"])
async def test_one_call_can_opt_out(upstream: StartUpstream, reducing: OpenSession, method: str) -> None:
    server = await upstream(hello)
    session = reducing()
    args = ("GET", server.url) if method == "request" else (server.url,)
    call = getattr(session, method)
    responses = await asyncio.gather(*[call(*args, reduce=False) for _ in range(3)])
    for response in responses:
        response.release()
    assert len(server.requests) == 3


async def test_cookies_of_one_answer_are_in_the_jar_for_the_next(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.respond(exchange.headers.get("Cookie", "none").encode(), Set_Cookie="a=1; Path=/")

    server = await upstream(answer)
    session = reducing(cookie_jar=aiohttp.CookieJar(unsafe=True))
    assert await bodies(session, 3, server.url) == [b"none"] * 3
    assert await bodies(session, 3, server.url) == [b"a=1"] * 3
    assert len(server.requests) == 2


async def test_each_redirect_is_each_callers_own_and_coalesces(upstream: StartUpstream, reducing: OpenSession) -> None:
    async def answer(exchange: Exchange) -> None:
        if exchange.target == "/a":
            await exchange.respond(b"", "302 Found", Location="/b")
        else:
            await exchange.respond(b"there")

    server = await upstream(answer)
    session = reducing()
    responses = await asyncio.gather(*[session.get(f"{server.url}/a") for _ in range(5)])
    for response in responses:
        assert await response.read() == b"there"
        assert [one.status for one in response.history] == [302]
        assert response.history[0].url.path == "/a"
    assert len({id(response.history[0]) for response in responses}) == 5
    assert [request.target for request in server.requests] == ["/a", "/b"]


async def test_digest_authentication_works_for_a_herd(upstream: StartUpstream, reducing: OpenSession) -> None:
    async def answer(exchange: Exchange) -> None:
        if "Authorization" in exchange.headers:
            await exchange.respond(b"secret")
        else:
            challenge = 'Digest realm="r", qop="auth", nonce="n", opaque="o", algorithm=MD5'
            await exchange.respond(b"no", "401 Unauthorized", WWW_Authenticate=challenge)

    server = await upstream(answer)
    session = reducing(middlewares=(aiohttp.DigestAuthMiddleware("user", "pass"),))
    assert await bodies(session, 4, server.url) == [b"secret"] * 4


async def test_traces_see_each_call_and_the_connection_of_the_first(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    events: list[tuple[Any, str]] = []
    trace = aiohttp.TraceConfig()

    def record(name: str) -> Any:
        async def note(_session: Any, context: Any, _params: Any) -> None:
            events.append((context.trace_request_ctx, name))

        return note

    for name in (
        "request_start", "request_headers_sent", "request_end", "request_exception",
        "response_chunk_received", "connection_create_end", "connection_reuseconn",
    ):  # fmt: skip
        getattr(trace, f"on_{name}").append(record(name))
    gate = Gate()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond()

    server = await upstream(answer)
    session = reducing(trace_configs=[trace])

    async def call(number: int) -> None:
        async with session.get(server.url, trace_request_ctx=number) as response:
            await response.read()

    calls = asyncio.gather(*[call(number) for number in range(3)])
    await waiting(reducer_of(session), 2)
    gate.open()
    await calls
    own = ["request_start", "request_headers_sent", "request_end", "response_chunk_received"]
    for number in range(3):
        names = [name for context, name in events if context == number]
        assert [name for name in names if name != "connection_create_end"] == own
        assert names.count("connection_create_end") == (number == 0)


async def test_a_trace_that_raises_fails_that_call_alone(upstream: StartUpstream, reducing: OpenSession) -> None:
    trace = aiohttp.TraceConfig()

    async def headers_sent(_session: Any, context: Any, _params: Any) -> None:
        if context.trace_request_ctx == 1:
            raise ValueError("trace")

    trace.on_request_headers_sent.append(headers_sent)
    server = await upstream(hello)
    session = reducing(trace_configs=[trace])
    responses = await asyncio.gather(
        *[session.get(server.url, trace_request_ctx=number) for number in range(3)], return_exceptions=True
    )
    assert [type(one) for one in responses] == [aiohttp.ClientResponse, ValueError, aiohttp.ClientResponse]
    assert nothing_is_left(reducer_of(session))


async def test_a_session_needs_a_running_loop_as_ever() -> None:
    def outside() -> None:
        with pytest.raises(RuntimeError, match="no running event loop"):
            ReducingClientSession()

    await asyncio.to_thread(outside)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("methods", ["POST"], ValueError),
        ("methods", "GET", TypeError),
        ("ignore_headers", ["a b"], ValueError),
        ("ignore_headers", None, TypeError),
        ("max_age", -1, ValueError),
        ("max_age", "5", TypeError),
        ("max_wait", math.nan, ValueError),
        ("max_wait", None, TypeError),
        ("max_buffer", -1, ValueError),
        ("max_buffer", 1.5, TypeError),
        ("max_buffer", True, TypeError),
        ("max_buffer", None, TypeError),
        ("max_buffer_total", -1, ValueError),
        ("max_buffer_total", "64 MiB", TypeError),
        ("hooks", object(), TypeError),
    ],
)
async def test_wrong_arguments_are_named(argument: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=argument):
        reduce_client_middleware(**{argument: value})
    with pytest.raises(error, match=argument):
        ReducingClientSession(**{argument: value})


async def test_a_given_session_comes_without_arguments_for_one() -> None:
    async with ClientSession() as given:
        with pytest.raises(TypeError, match=r"session takes .* together with base_url, headers"):
            ReducingClientSession("http://localhost/", session=given, headers={})
        with pytest.raises(TypeError, match=r"session takes an aiohttp\.ClientSession, got 'x'"):
            ReducingClientSession(session="x")  # type: ignore[arg-type]
        async with ReducingClientSession() as other:
            with pytest.raises(TypeError, match=r"session takes an aiohttp\.ClientSession, got <Reducing"):
                ReducingClientSession(session=other)


async def test_limits_may_be_none_at_all() -> None:
    async with ReducingClientSession(
        max_age=math.inf, max_wait=math.inf, max_buffer=math.inf, max_buffer_total=math.inf
    ):
        pass


async def test_wrong_arguments_of_aiohttps_own_are_told_as_ever() -> None:
    with pytest.raises(TypeError, match="nonsense"):
        ReducingClientSession(nonsense=1)
    async with ReducingClientSession() as session:
        with pytest.raises(TypeError, match="nonsense"):
            await session.get("http://localhost/", nonsense=1)  # type: ignore[call-arg]
        with pytest.raises(aiohttp.InvalidURL):
            await session.get("http://")
