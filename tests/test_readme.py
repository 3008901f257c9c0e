"""The code blocks of the README run, as they stand there."""

import asyncio
import inspect
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aiohttp_reduce import ReducingClientSession, reduce_client_middleware, reduce_middleware
from aiohttp_reduce.server import DEFAULT_IGNORE_COOKIES, DEFAULT_IGNORE_HEADERS
from tests.harness import Gate, Start, app_with, eventually
from tests.upstream import Exchange, StartUpstream, bodies, waiting

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def everything() -> dict[str, Any]:
    async def user_of(request: web.Request) -> str:
        return request.headers.get("X-User", "nobody")

    names: dict[str, Any] = {"__name__": "readme", "user_of": user_of}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    return names


async def test_the_one_liner_reduces(serve: Start) -> None:
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(BLOCKS[0], "README.md", "exec"), names)
    server = await serve(names["app"])
    replies = await server.herd(5, "/report")
    assert {reply.text for reply in replies} == {'{"answer": 42}'}
    assert sorted(str(reply.collapsed) for reply in replies) == [
        "None",
        *["aiohttp-reduce; fwd=miss; collapsed"] * 4,
    ]
    stats = await server.get("/_reduce/stats")
    assert '"executed": 1, "reduced": 4' in stats.text


async def test_all_python_blocks_run(capsys: Any) -> None:
    names = everything()
    await names["main"]()
    assert capsys.readouterr().out == "['value of a', 'value of a']\nvalue of b\n"
    assert await asyncio.gather(names["cached_by_nobody"]("c"), names["cached_by_nobody"]("c")) == ["value of c"] * 2


@pytest.mark.parametrize("name", ["export", "export_too"])
async def test_the_streams_run_once(serve: Start, name: str) -> None:
    async def rows() -> AsyncIterator[bytes]:
        await eventually(lambda: bool(server.figure("total") == 5))
        for number in range(3):
            yield b"%d\n" % number

    middleware = reduce_middleware()
    names = everything()
    names["rows"] = rows
    server = await serve(app_with(names[name], middleware, path="/export"), middleware=middleware)
    replies = await server.herd(5, "/export")
    assert {(reply.text, reply.headers["Content-Type"]) for reply in replies} == {("0\n1\n2\n", "text/csv")}
    assert server.figure("executed") == 1


def test_the_tables_of_the_readme_are_the_defaults() -> None:
    text = README.replace("\\", "")
    for name in DEFAULT_IGNORE_HEADERS | DEFAULT_IGNORE_COOKIES:
        assert name in text, name


async def test_the_client_drop_in_sends_once(upstream: StartUpstream, capsys: pytest.CaptureFixture[str]) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.respond(b"hello")

    server = await upstream(answer)
    names = everything()
    assert await names["fan_in"](server.url) == [b"hello"] * 100
    assert capsys.readouterr().out == "100 1 99\n"
    assert len(server.requests) == 1


async def test_the_genuine_session_reduces(upstream: StartUpstream) -> None:
    gate = Gate()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond(b"hello")

    server = await upstream(answer)
    async with await everything()["genuine"]() as session:
        herd = asyncio.ensure_future(bodies(session, 3, server.url))
        (reducer,) = session._middlewares
        await waiting(reducer, 2)
        gate.open()
        assert await herd == [b"hello"] * 3
    assert len(server.requests) == 1


def test_the_readme_names_every_option() -> None:
    for function in (reduce_middleware, reduce_client_middleware, ReducingClientSession):
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                assert f"`{name}=" in README or f"{name}=" in README, name
