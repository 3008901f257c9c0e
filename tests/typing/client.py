"""What users see of the client under `mypy --strict` and pyright; checked, never run."""

from typing import Any, assert_type

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, ClientSession, ClientTimeout
from aiohttp.abc import AbstractCookieJar

from aiohttp_reduce import ReducingClientSession, reduce_client_middleware, reduce_middleware
from aiohttp_reduce.hooks import StatisticsOverallHooks


def takes_a_session(session: ClientSession) -> None: ...


def takes_a_middleware(middleware: aiohttp.ClientMiddlewareType) -> None: ...


async def it_is_used_as_a_session() -> None:
    async with ReducingClientSession(
        "http://localhost/", max_age=1, max_wait=2.5, max_buffer=0, hooks=StatisticsOverallHooks(), trust_env=True
    ) as session:
        assert_type(session, ReducingClientSession)
        takes_a_session(session)
        async with session.get("/a", params={"b": "c"}, reduce=False) as response:
            assert_type(response, ClientResponse)
            assert_type(await response.read(), bytes)
            assert_type(await response.json(), Any)
        assert_type(await session.request("GET", "/a", reduce=True, timeout=ClientTimeout(total=1)), ClientResponse)
        assert_type(await session.head("/a", reduce=False), ClientResponse)
        assert_type(await session.post("/a", json={"b": 1}), ClientResponse)
        async with session.ws_connect("/a") as socket:
            assert_type(await socket.receive_str(), str)
        assert_type(session.timeout, ClientTimeout)
        assert_type(session.closed, bool)
        assert_type(session.connector, aiohttp.BaseConnector | None)
        assert_type(session.cookie_jar, AbstractCookieJar)
        assert_type(session.session, ClientSession)
        assert_type(session.stats, dict[str, Any])
        session.forget("/a")


async def it_takes_a_session(given: ClientSession) -> None:
    session = ReducingClientSession(session=given)
    reduce_middleware().watch(session, name="given")
    await session.close()


async def the_middleware_is_one() -> None:
    reducer = reduce_client_middleware(methods=["GET", "OPTIONS"], ignore_headers=["X-Noise-*"])
    async with ClientSession(middlewares=[reducer]) as session:
        await session.get("http://localhost/")
    reducer.forget("http://localhost/")
    reduce_middleware().watch(reducer, name="genuine")
    takes_a_middleware(reducer)


async def mistakes_are_found(session: ReducingClientSession, genuine: ClientSession) -> None:
    await session.get("/a", reduce="no")  # type: ignore[arg-type]
    await session.get("/a", nonsense=1)  # type: ignore[call-arg]
    await session.post("/a", reduce=False)  # type: ignore[call-arg]
    await session.get(1)  # type: ignore[arg-type]
    ReducingClientSession(max_age="5")  # type: ignore[arg-type]
    ReducingClientSession(trust_env="yes")  # type: ignore[arg-type]
    ReducingClientSession(nonsense=1)  # type: ignore[call-arg]
    reduce_client_middleware(["GET"])  # type: ignore[call-arg]
    reduce_middleware().watch(genuine, name="x")  # type: ignore[arg-type]
    reduce_middleware().watch(session)  # type: ignore[call-arg]


async def logs(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    return await handler(request)
