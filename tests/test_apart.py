"""Two requests on one URL that do not wait together say in the debug log why, without a value of either."""

import asyncio
import logging
from typing import Any

import pytest
from aiohttp import web

from aiohttp_reduce import reduce_middleware
from tests.harness import Gate, Start, app_with, eventually
from tests.upstream import Exchange, OpenSession, StartUpstream

MINE: Any = getattr(web, "RequestKey", lambda name, _type: name)("mine", str)


@pytest.fixture(autouse=True)
def _debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="aiohttp_reduce")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for record in caplog.records if "does not wait" in (message := record.getMessage())]


async def two(serve: Start, one: dict[str, Any], other: dict[str, Any], **options: Any) -> Any:
    """Both are in flight at once; the server that served them."""
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response()

    middleware = reduce_middleware(**options)
    server = await serve(app_with(handler, middleware), middleware=middleware)
    first = asyncio.ensure_future(server.get("/", **one))
    await eventually(lambda: server.figure("executed") == 1)
    second = asyncio.ensure_future(server.get("/", **other))
    await eventually(lambda: server.figure("executed") == 2)
    gate.open()
    await asyncio.gather(first, second)
    return server


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        ({"X-Api-Key": "secret"}, {}, "x-api-key"),
        ({"X-Api-Key": "secret"}, {"X-Api-Key": "Secret"}, "x-api-key"),
        ({"Cookie": "id=secret"}, {"Cookie": "id=other"}, "cookie"),
        ({"X-B": "1", "X-A": "1", "Accept": "a"}, {"Accept": "b"}, "accept, x-a, x-b"),
        ({f"X-{n}": "1" for n in range(9)}, {}, "x-0, x-1, x-2, x-3, x-4, ..."),
        ({"X-" + "a" * 200: "secret"}, {}, "x-" + "a" * 78),
    ],
)
async def test_a_request_says_in_which_headers_it_differs(
    serve: Start, caplog: pytest.LogCaptureFixture, one: dict[str, str], other: dict[str, str], names: str
) -> None:
    await two(serve, {"headers": one}, {"headers": other})
    assert told(caplog) == [f"GET /: does not wait (differs in {names})"]
    assert "ecret" not in caplog.text


async def test_a_request_says_that_it_differs_in_key(serve: Start, caplog: pytest.LogCaptureFixture) -> None:
    of_user = {"headers": {"User-Agent": "secret"}}
    options: dict[str, Any] = {"key": lambda request: request.headers.get("User-Agent")}
    await two(serve, of_user, {"headers": {"User-Agent": "other"}}, **options)
    assert told(caplog) == ["GET /: does not wait (differs in key)"]


async def test_a_request_says_that_it_differs_in_host(serve: Start, caplog: pytest.LogCaptureFixture) -> None:
    await two(serve, {"host": "a.example"}, {"host": "b.example"})
    assert told(caplog) == ["GET /: does not wait (differs in host)"]


async def test_a_request_says_that_the_one_in_flight_is_too_old(serve: Start, caplog: pytest.LogCaptureFixture) -> None:
    await two(serve, {}, {}, max_age=0)
    assert told(caplog) == ["GET /: does not wait (that in flight is older than max_age)"]


async def test_a_call_says_in_what_it_differs(
    upstream: StartUpstream, reducing: OpenSession, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond(b"hello")

    server, session = await upstream(answer), reducing()

    async def get(**options: Any) -> bytes:
        async with session.get(server.url, **options) as response:
            return await response.read()

    first = asyncio.ensure_future(get(headers={"X-Api-Key": "secret"}))
    await eventually(lambda: len(server.requests) == 1)
    others = [asyncio.ensure_future(get()), asyncio.ensure_future(get(headers={"X-Api-Key": "secret"}, read_bufsize=9))]
    await eventually(lambda: len(server.requests) == 3)
    gate.open()
    assert await asyncio.gather(first, *others) == [b"hello"] * 3
    host = server.url.removeprefix("http://").rstrip("/")
    assert told(caplog) == [
        f"GET {host}: does not wait (differs in x-api-key)",
        f"GET {host}: does not wait (differs in options of reading)",
    ]
    assert "secret" not in caplog.text


async def test_a_request_says_that_the_one_in_flight_is_from_before_a_write(
    serve: Start, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        if request.method == "GET":
            await gate.wait()
        return web.Response()

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    first = asyncio.ensure_future(server.get("/"))
    await eventually(lambda: server.figure("executed") == 1)
    await server.get("/", method="POST")
    second = asyncio.ensure_future(server.get("/"))
    await eventually(lambda: server.figure("executed") == 2)
    gate.open()
    await asyncio.gather(first, second)
    assert told(caplog) == ["GET /: does not wait (that in flight is from before a write)"]


async def test_a_request_says_that_it_differs_in_what_the_handlers_look_at(
    serve: Start, caplog: pytest.LogCaptureFixture
) -> None:
    gates = [Gate(), Gate()]

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> Any:
        request[MINE] = request.headers["X-Forwarded-For"]
        return await handler(request)

    async def handler(request: web.Request) -> web.Response:
        number = int(request.headers["Referer"])
        await gates[number].wait()
        return web.Response(text=request.headers["User-Agent"] if number else request[MINE])

    middleware = reduce_middleware(ignore_headers={"User-Agent", "Referer", "X-Forwarded-For"})
    app = web.Application(middlewares=[outer, middleware])
    app.router.add_get("/", handler)
    server = await serve(app, middleware=middleware)

    async def herd(number: int, *askers: tuple[str, str]) -> None:
        total = server.figure("total") + len(askers)
        headers = [{"User-Agent": agent, "X-Forwarded-For": mine, "Referer": str(number)} for agent, mine in askers]
        tasks = [asyncio.ensure_future(server.get("/", headers=one)) for one in headers]
        await eventually(lambda: server.figure("total") == total)
        gates[number].open()
        await asyncio.gather(*tasks)

    await herd(0, ("a", "1"), ("a", "2"))  # it learns that they look at the item
    await herd(1, ("a", "1"), ("b", "1"))  # ... and at the header
    assert told(caplog) == []
    gates[:] = [Gate(), Gate()]
    await herd(0, ("a", "1"), ("a", "2"))
    await herd(1, ("a", "1"), ("b", "1"))
    assert told(caplog) == [
        "GET /: does not wait (differs in an item of the request)",
        "GET /: does not wait (differs in user-agent)",
    ]
