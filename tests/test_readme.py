"""The code blocks of the README run, as they stand there, and what it says that they print is what they print."""

import asyncio
import inspect
import logging
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from aiohttp_reduce import ReducingClientSession, reduce_client_middleware, reduce_middleware
from aiohttp_reduce.server import DEFAULT_IGNORE_COOKIES, DEFAULT_IGNORE_HEADERS
from aiohttp_reduce.stats import Bypass, Unshared
from tests.harness import PATIENCE, Gate, Start, app_with, eventually
from tests.upstream import Exchange, StartUpstream, bodies, waiting

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
SESSIONS = re.findall(r"^```console\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def commands(session: str) -> list[tuple[str, str]]:
    """The commands of a console block, and what each is said to print; `...` stands for anything."""
    return [(command, output) for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)]


async def printed(command: str, port: int, folder: Path) -> str:
    """What the shell prints, with the application of the README on this port; carriage returns left out."""
    # Not for a time, but until the first request is there.
    command = command.replace(
        "sleep 0.1", "until curl -s localhost:8080/_reduce/stats | grep -q 'total.: 1'; do :; done"
    )
    command = command.replace("localhost:8080", f"127.0.0.1:{port}").replace("python ", f"{sys.executable} ")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shell = await asyncio.create_subprocess_shell(
        command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=folder, env=environment
    )
    try:
        async with asyncio.timeout(4 * PATIENCE):
            output, _ = await shell.communicate()
    finally:
        if shell.returncode is None:
            shell.kill()
            await shell.wait()
    assert shell.returncode == 0, output
    return output.decode().replace("\r\n", "\n")


def without_what_differs(output: str) -> str:
    """The output without the time of day and the versions."""
    return re.sub(r"^(Date|Server): .*$", r"\1: ", output, flags=re.MULTILINE).strip()


def everything() -> dict[str, Any]:
    async def user_of(request: web.Request) -> str:
        return request.headers.get("X-User", "nobody")

    names: dict[str, Any] = {"__name__": "readme", "user_of": user_of}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    return names


def one_liner() -> dict[str, Any]:
    """What the first block defines; `app` is its application."""
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(BLOCKS[0], "README.md", "exec"), names)
    return names


@pytest.mark.one_loop
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize(("session", "followers"), [(SESSIONS[0], 1), (SESSIONS[1], 0)], ids=["server", "client"])
async def test_the_commands_print_what_it_says(serve: Start, tmp_path: Path, session: str, followers: int) -> None:
    names = one_liner()
    server = await serve(names["app"], middleware=names["app"].middlewares[0])

    async def sleep(seconds: float) -> None:
        await server.waiting(followers)

    names["asyncio"] = SimpleNamespace(sleep=sleep)
    (tmp_path / "client.py").write_text(BLOCKS[1].replace("localhost:8080", f"127.0.0.1:{server.port}"))

    for command, said in commands(session):
        output = without_what_differs(await printed(command, server.port, tmp_path))
        expected = re.escape(without_what_differs(said)).replace(re.escape("..."), ".*")
        assert re.fullmatch(expected, output), f"{command} printed:\n{output}"


async def test_the_one_liner_reduces(serve: Start) -> None:
    server = await serve(one_liner()["app"])
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


@pytest.mark.parametrize("head", ["left out of the identity", "it looked at", "the answer"])
def test_the_documentation_has_the_same_rules(head: str) -> None:
    table = re.search(rf"^\| {head} \|.*\n(?:\|.*\n)+", README, re.MULTILINE)
    assert table is not None
    assert table.group() in (ROOT / "docs" / "design.md").read_text(encoding="utf-8")


async def test_the_client_drop_in_sends_once(upstream: StartUpstream, capsys: pytest.CaptureFixture[str]) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.respond(b"hello")

    server = await upstream(answer)
    names = everything()
    assert await names["fan_in"](server.url) == [b"hello"] * 100
    assert capsys.readouterr().out == "100 calls, 1 sent, 99 reduced\n"
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


def test_its_reasons_are_reasons() -> None:
    rows = re.findall(r"^\| `(bypassed|unshared)` \| (.*?) \|", README, re.MULTILINE)
    named = [(where, reason) for where, cell in rows for reason in re.findall(r"`([\w-]+)[`:]", cell)]
    assert len(named) > 15
    kinds = {"bypassed": set(Bypass), "unshared": set(Unshared)}
    assert [(where, reason) for where, reason in named if reason not in kinds[where]] == []


def test_its_anchors_are_headings() -> None:
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", README, re.MULTILINE)}
    assert [anchor for anchor in re.findall(r"\]\(#([^)]+)\)", README) if anchor not in headings] == []


async def test_the_debug_log_says_what_it_says(serve: Start, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        "GET /report: does not wait (differs in x-api-key)",
        "GET /report: not shared (set-cookie)",
        "POST /report: not considered (method)",
    ]
    assert all(f"`{line}`" in README for line in lines)
    gate = Gate()

    async def report(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response(headers={"Set-Cookie": "a=b"})

    middleware = reduce_middleware()
    server = await serve(app_with(report, middleware, path="/report"), middleware=middleware)
    caplog.set_level(logging.DEBUG, "aiohttp_reduce")
    herd = asyncio.ensure_future(server.herd(2, "/report"))
    await server.waiting(1)
    other = asyncio.ensure_future(server.get("/report", headers={"X-Api-Key": "k"}))
    await eventually(lambda: server.figure("executed") == 2)
    gate.open()
    await asyncio.gather(herd, other)
    await server.get("/report", method="POST")
    assert [record.getMessage() for record in caplog.records if record.name == "aiohttp_reduce"] == lines


def test_the_readme_names_every_option() -> None:
    for function in (reduce_middleware, reduce_client_middleware, ReducingClientSession):
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                assert f"`{name}=" in README or f"{name}=" in README, name
