"""Why a request was not reduced: every reason can be met, in the stats, in the debug log and in `docs/reasons.md`."""

import asyncio
import functools
import inspect
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import ClientRequest, ClientResponse, web

from aiohttp_reduce import never_reduce, reduce_client_middleware, reduce_middleware
from aiohttp_reduce.stats import Bypass, Unshared
from tests.harness import Start, app_with
from tests.herds import herds
from tests.upstream import Exchange, Held, OpenSession, StartUpstream, hello, reading, reducer_of, waiting

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reasons.md"
# What stands in values of headers and in queries, and must not be told.
SECRET = "hunter2"
USER: Any = web.RequestKey("user", str) if hasattr(web, "RequestKey") else "user"
USER_NAME = "user" if isinstance(USER, str) else f"{__name__}.user"


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged at debug level so far."""
    caplog.set_level(logging.DEBUG, "aiohttp_reduce")

    def messages() -> list[str]:
        records = [record for record in caplog.records if record.name == "aiohttp_reduce"]
        lines = [record.getMessage() for record in records if record.levelno == logging.DEBUG]
        assert not [line for line in lines if SECRET in line or "\n" in line]
        return lines

    return messages


async def echo(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(text="ok")


def raises(*_: Any) -> Any:
    raise LookupError(SECRET)


# Bypassed on the server.


class Asks(NamedTuple):
    """A request that is not considered, and the options of the middleware that make it so."""

    send: dict[str, Any] = {}  # noqa: RUF012 - of named tuples
    options: dict[str, Any] = {}  # noqa: RUF012
    handler: Any = echo


BYPASSED: dict[Bypass, Asks] = {
    Bypass.METHOD: Asks({"method": "POST"}),
    Bypass.BODY: Asks({"body": b"x"}),
    Bypass.EXPECT: Asks({"headers": {"Expect": "100-continue"}}),
    Bypass.WEBSOCKET: Asks({"headers": {"Upgrade": "websocket"}}),
    Bypass.EVENT_STREAM: Asks({"headers": {"Accept": "text/event-stream"}}),
    Bypass.NEVER_REDUCE: Asks(handler=never_reduce(functools.partial(echo))),
    Bypass.WHEN: Asks(options={"when": lambda request: False}),
    Bypass.WHEN_ERROR: Asks(options={"when": raises}),
    Bypass.KEY_ERROR: Asks(options={"key": raises}),
}


@pytest.mark.parametrize("reason", BYPASSED)
async def test_bypassed_on_the_server(serve: Start, reason: Bypass, told: Callable[[], list[str]]) -> None:
    case = BYPASSED[reason]
    middleware = reduce_middleware(**case.options)
    app = app_with(case.handler, middleware, path="/page/{number}")
    server = await serve(app, middleware=middleware)
    headers = {"Authorization": SECRET, **case.send.get("headers", {})}
    connection = await server.send(f"/page/1?q={SECRET}", **{**case.send, "headers": headers})
    if reason is Bypass.EXPECT:
        assert (await connection.receive(head_only=True)).status == 100
    assert (await connection.receive()).text == "ok"
    assert json.loads(json.dumps(middleware.stats))["routes"]["/page/{number}"]["bypassed"] == {reason.value: 1}
    assert told() == [f"{case.send.get('method', 'GET')} /page/{{number}}: not considered ({reason.value})"]


# Unshared on the server.


class Meets(NamedTuple):
    """A herd that is not given one answer."""

    answer: Callable[[web.Request], Any]
    requests: list[Any] = [{}, {}]  # noqa: RUF012
    options: dict[str, Any] = {}  # noqa: RUF012
    name: str | None = None
    cancels: bool = False


def says(status: int = 200, **headers: str) -> Callable[[web.Request], web.Response]:
    return lambda request: web.Response(
        status=status, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


class SendsItself(web.Response):
    async def write_eof(self, data: bytes = b"") -> None:
        await super().write_eof(data)


async def once() -> AsyncIterator[bytes]:
    yield b"once"


@web.middleware
async def names_user(request: web.Request, handler: Any) -> web.StreamResponse:
    request[USER] = request.headers.get("User-Agent")
    response: web.StreamResponse = await handler(request)
    return response


@web.middleware
async def sets_remote(request: web.Request, handler: Any) -> web.StreamResponse:
    response: web.StreamResponse = await handler(request.clone(remote=request.headers["X-Real-IP"]))
    return response


AGENTS: list[Any] = [{"User-Agent": SECRET}, {"User-Agent": "b"}]
UNSHARED: dict[Unshared, Meets] = {
    Unshared.HEADER: Meets(lambda request: request.headers["User-Agent"], AGENTS, name="user-agent"),
    Unshared.REMOTE: Meets(
        lambda request: request.remote, [{"X-Real-IP": "10.0.0.1"}, {"X-Real-IP": "10.0.0.2"}], {"outer": [sets_remote]}
    ),
    Unshared.STATE: Meets(lambda request: request[USER], AGENTS, {"outer": [names_user]}, name=USER_NAME),
    Unshared.STATE_WRITTEN: Meets(lambda request: request.setdefault(USER, SECRET), name=USER_NAME),
    Unshared.SET_COOKIE: Meets(says(Set_Cookie=f"session={SECRET}")),
    Unshared.NO_STORE: Meets(says(Cache_Control="no-store")),
    Unshared.NO_CACHE: Meets(says(Cache_Control="no-cache")),
    Unshared.PRIVATE: Meets(says(Cache_Control="private")),
    Unshared.AUTHORIZATION: Meets(says(), [{"Authorization": SECRET}] * 2, {"headers": ["Accept"]}),
    Unshared.VARY: Meets(says(Vary="User-Agent"), AGENTS, name="user-agent"),
    Unshared.STATUS: Meets(says(403), name="403"),
    Unshared.AUTHENTICATION: Meets(says(Authentication_Info=f"nextnonce={SECRET}"), name="authentication-info"),
    Unshared.CLEAR_SITE_DATA: Meets(says(Clear_Site_Data='"cookies"')),
    Unshared.CSP_NONCE: Meets(says(Content_Security_Policy=f"script-src 'nonce-{SECRET}'")),
    Unshared.NO_FRESHNESS: Meets(says(302, Location=f"/{SECRET}"), name="302"),
    Unshared.SHARE: Meets(says(), options={"share": lambda request, response: False}),
    Unshared.SHARE_ERROR: Meets(says(), options={"share": raises}),
    Unshared.STREAM: Meets(says(Content_Type="text/event-stream")),
    Unshared.ONE_SHOT_BODY: Meets(lambda request: web.Response(body=once()), cancels=True),
    Unshared.RESPONSE_CLASS: Meets(lambda request: SendsItself(text="ok")),
    Unshared.PASS_MARKER: Meets(says(Cache_Control="no-store")),
}


def worded(reason: Unshared, name: str | None) -> str:
    return reason.value if name is None else f"{reason.value}: {name}"


@pytest.mark.parametrize("reason", UNSHARED)
async def test_unshared_on_the_server(serve: Start, reason: Unshared, told: Callable[[], list[str]]) -> None:
    case = UNSHARED[reason]
    herd = await herds(functools.partial(serve, handler_cancellation=case.cancels), case.answer, **case.options)
    target = f"/?q={SECRET}"
    runs, _ = await herd.meet(case.requests, target)
    assert runs == 2
    if reason is Unshared.PASS_MARKER:
        assert told() == ["GET /: not shared (no-store)"]
        await herd.meet(case.requests[1:], target)
        assert herd.unshared == {"no-store": 1, "pass-marker": 1}
    else:
        assert herd.unshared == {worded(reason, case.name): 1}
    assert told()[-1:] == [f"GET /: not shared ({worded(reason, case.name)})"]
    assert worded(reason, "NAME" if case.name else None) in documented("unshared").get(reason.value, ())


async def test_an_answer_that_cannot_be_made_again_has_its_reason_too(
    serve: Start, caplog: pytest.LogCaptureFixture
) -> None:
    class Awkward(web.Response):
        def __new__(cls, *args: Any, **kwargs: Any) -> "Awkward":
            if not kwargs:
                raise TypeError("text is needed")
            return super().__new__(cls)

    herd = await herds(serve, lambda request: Awkward(text="ok"))
    assert (await herd.meet([{}, {}, {}]))[0] == 3
    assert herd.unshared == {"response-class": 2}
    assert "cannot replay" in caplog.text


# Bypassed on the client.


class OwnSend(ClientRequest):
    async def send(self, conn: Any) -> ClientResponse:
        return await super().send(conn)


async def further_in(request: ClientRequest, handler: Any) -> ClientResponse:
    response: ClientResponse = await handler(request)
    return response


class Calls(NamedTuple):
    """An outgoing call that is not considered."""

    call: dict[str, Any] = {}  # noqa: RUF012
    session: dict[str, Any] = {}  # noqa: RUF012
    method: str = "GET"


CALLS_BYPASSED: dict[Bypass, Calls] = {
    Bypass.METHOD: Calls(method="POST"),
    Bypass.BODY: Calls({"data": b"x"}),
    Bypass.EXPECT: Calls({"headers": {"Expect": "the-unexpected"}}),
    Bypass.EVENT_STREAM: Calls({"headers": {"Accept": "text/event-stream"}}),
    Bypass.OPT_OUT: Calls({"reduce": False}),
    Bypass.UPGRADE: Calls({"headers": {"Connection": "Upgrade", "Upgrade": "h2c"}}),
    Bypass.UPLOAD_TRACKER: Calls({"upload_tracker": None}),
    Bypass.REQUEST_CLASS: Calls(session={"request_class": OwnSend}),
    Bypass.NOT_INNERMOST: Calls(),
}


@pytest.mark.parametrize("reason", CALLS_BYPASSED)
async def test_bypassed_on_the_client(
    upstream: StartUpstream, reducing: OpenSession, reason: Bypass, told: Callable[[], list[str]]
) -> None:
    case = CALLS_BYPASSED[reason]
    options = dict(case.call)
    if reason is Bypass.UPLOAD_TRACKER:
        if "upload_tracker" not in inspect.signature(aiohttp.ClientSession._request).parameters:
            pytest.skip("this aiohttp's calls take no upload_tracker")
        options["upload_tracker"] = aiohttp.UploadTracker()
    server = await upstream(hello)
    host = server.url.removeprefix("http://")
    url = f"http://user:{SECRET}@{host}/{SECRET}?q={SECRET}"
    if reason is Bypass.NOT_INNERMOST:
        reducer = reduce_client_middleware()
        async with aiohttp.ClientSession(middlewares=[reducer, further_in]) as genuine:
            async with genuine.get(url) as response:
                assert await response.read() == b"hello"
            stats = reducer.stats
    else:
        session = reducing(**case.session)
        async with session.request(case.method, url, **options) as response:
            assert await response.read() == b"hello"
        stats = session.stats
    assert json.loads(json.dumps(stats))["hosts"][host]["bypassed"] == {reason.value: 1}
    assert told() == [f"{case.method} {host}: not considered ({reason.value})"]


# Unshared on the client.

CALLS_UNSHARED: dict[Unshared, tuple[dict[str, str], str | None]] = {
    Unshared.VARY: ({"Vary": "traceparent"}, "traceparent"),
    Unshared.STREAM: ({"Content_Type": "text/event-stream"}, None),
}


@pytest.mark.parametrize("reason", CALLS_UNSHARED)
async def test_unshared_on_the_client(
    upstream: StartUpstream, reducing: OpenSession, reason: Unshared, told: Callable[[], list[str]]
) -> None:
    headers, name = CALLS_UNSHARED[reason]
    held = Held(**headers)
    server = await upstream(held)
    session = reducing()
    url = f"{server.url}/{SECRET}?q={SECRET}"
    tasks = [task for trace in (SECRET, "b") for task in reading(session, 1, url, headers={"traceparent": trace})]
    await waiting(reducer_of(session), 1)
    held.gate.set()
    assert await asyncio.gather(*tasks) == [b"hello"] * 2
    host = server.url.removeprefix("http://")
    assert session.stats["hosts"][host]["unshared"] == {worded(reason, name): 1}
    assert told() == [f"GET {host}: not shared ({worded(reason, name)})"]


# What is not told, and how much.


async def test_what_is_reduced_says_nothing(
    serve: Start, upstream: StartUpstream, reducing: OpenSession, told: Callable[[], list[str]]
) -> None:
    herd = await herds(serve, lambda request: "shared")
    assert (await herd.meet([{}, {}, {}]))[0] == 1
    server = await upstream(hello)
    assert await asyncio.gather(*reading(reducing(), 3, server.url)) == [b"hello"] * 3
    assert told() == []


async def test_lines_are_short_whatever_strangers_make_up(
    serve: Start, upstream: StartUpstream, reducing: OpenSession, told: Callable[[], list[str]]
) -> None:
    herd = await herds(serve, lambda request: str(len(list(request.headers))), headers=("Accept",))
    await herd.meet([{}, {"X-" + "a" * 5_000: SECRET}])
    middleware = reduce_middleware()
    server = await serve(app_with(echo, middleware), middleware=middleware)
    for number in range(3):
        await server.get(f"/{SECRET}{number}", method="POST")

    async def answer(exchange: Exchange) -> None:
        await exchange.respond()

    method = "M" * 5_000
    far = await upstream(answer)
    async with reducing().request(method, far.url) as response:
        await response.read()
    lines = told()
    assert lines[:4] == [f"GET /: not shared (header: x-{'a' * 78})", *["POST (unrouted): not considered (method)"] * 3]
    assert lines[4:] == [f"{'M' * 80} {far.url.removeprefix('http://')}: not considered (method)"]


# The page.


def documented(*words: str) -> dict[str, list[str]]:
    """The reasons in the tables of the page whose headings have all these words, each with its forms."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE):
        heading = section.splitlines()[0].lower()
        if all(word in heading for word in words):
            for row in re.findall(r"^\| (`.*?) \| .{20,} \| .{10,} \|$", section, flags=re.MULTILINE):
                forms = re.findall(r"`(.*?)`", row)
                assert {form.split(": ")[0] for form in forms} == {forms[0].split(": ")[0]}
                found.setdefault(forms[0].split(": ")[0], []).extend(forms)
    return found


def test_every_reason_is_met_here_and_stands_on_the_page_where_it_belongs() -> None:
    assert {*BYPASSED, *CALLS_BYPASSED} == set(Bypass)
    assert {*UNSHARED, *CALLS_UNSHARED} == set(Unshared)
    assert set(documented("bypassed", "server")) == {reason.value for reason in BYPASSED}
    assert set(documented("bypassed", "client")) == {reason.value for reason in CALLS_BYPASSED}
    assert set(documented("unshared", "client")) == {reason.value for reason in CALLS_UNSHARED}
    assert set(documented("unshared")) == {reason.value for reason in UNSHARED}
    assert len(documented()) == len(Bypass) + len(Unshared)


@pytest.mark.parametrize("reason", [*Bypass, *Unshared])
def test_a_reason_says_what_it_means(reason: Bypass | Unshared) -> None:
    assert reason.__doc__ == reason.description
    assert reason.description.endswith(".")
    assert len(reason.description) > 10
    assert (str(reason), json.dumps({reason: 1})) == (reason.value, f'{{"{reason.value}": 1}}')
    assert type(reason)(reason.value) is reason
