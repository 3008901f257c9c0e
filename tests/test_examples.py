"""The examples run, and each shows its point."""

import ast
import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from examples import (
    basic,
    behind_a_proxy,
    core_only,
    demo,
    demo_app,
    export,
    gateway,
    genuine_session,
    metrics,
    migrating,
    never_reduce,
    per_user_key,
    stats_behind_auth,
)
from tests.harness import PATIENCE, Gate, Start, eventually
from tests.upstream import Exchange, StartUpstream

Client = TestClient[web.Request, web.Application]
StartClient = Callable[[web.Application], Awaitable[Client]]

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def figures(app: web.Application) -> dict[str, Any]:
    """The figures of the application's innermost middleware."""
    middleware: Any = app.middlewares[-1]
    return middleware.stats  # type: ignore[no-any-return]


async def text_of(client: Client, path: str, **headers: str) -> str:
    async with client.get(path, headers=headers) as response:
        assert response.status == 200
        return await response.text()


def test_the_list_of_the_examples_has_each_with_its_point() -> None:
    listed = dict(
        re.findall(r"^\| \[\w+\.py\]\((\w+)\.py\) \| (.*) \|$", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    )
    points = {path.stem: ast.get_docstring(ast.parse(path.read_text())) or "" for path in EXAMPLES.glob("[!_]*.py")}
    del points["demo_app"]
    assert listed == {name: point.splitlines()[0] for name, point in points.items()}


async def test_basic_runs_the_handler_once_for_a_herd(
    aiohttp_client: StartClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()

    async def read_headlines() -> list[str]:
        return [f"run {await gate.wait()}"]

    monkeypatch.setattr(basic, "read_headlines", read_headlines)
    app = basic.make_app()
    client = await aiohttp_client(app)
    herd = asyncio.gather(*[text_of(client, "/news") for _ in range(10)])
    await eventually(lambda: figures(app)["waiting"] == 9)
    gate.open()
    assert await herd == ['["run 1"]'] * 10
    stats = await (await client.get("/_reduce/stats")).json()
    assert (stats["total"], stats["executed"], stats["reduced"]) == (10, 1, 9)


async def test_export_is_made_once_for_whoever_asks_while_it_flows(
    serve: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()

    async def rows() -> AsyncIterator[bytes]:
        yield b"0,row\n"
        await gate.wait()
        yield b"1,row\n"

    monkeypatch.setattr(export, "rows", rows)
    app = export.make_app()
    server = await serve(app)
    everybody = [await server.send("/export.csv")]
    await gate.entered()
    everybody += [await server.send("/export.csv") for _ in range(4)]
    await eventually(lambda: figures(app)["reduced"] == 4)
    gate.open()
    assert [(await one.receive()).text for one in everybody] == ["0,row\n1,row\n"] * 5
    assert gate.runs == 1


async def test_per_user_key_shares_between_the_devices_of_one_user_only(
    aiohttp_client: StartClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()

    async def read_orders(name: str) -> list[str]:
        await gate.wait()
        return [name]

    monkeypatch.setattr(per_user_key, "read_orders", read_orders)
    app = per_user_key.make_app()
    client = await aiohttp_client(app)
    keys = ["alice-laptop", "alice-phone", "bob-laptop"] * 3
    herd = asyncio.gather(*[text_of(client, "/orders", **{"X-Api-Key": key}) for key in keys])
    await eventually(lambda: figures(app)["waiting"] == 7)
    assert gate.runs == 2
    gate.open()
    assert await herd == ['["alice"]', '["alice"]', '["bob"]'] * 3
    assert figures(app)["unshared"] == {}
    async with client.get("/orders", headers={"X-Api-Key": "of nobody"}) as response:
        assert response.status == 401


async def test_behind_a_proxy_runs_once_for_each_country(
    aiohttp_client: StartClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()

    async def read_news(country: str) -> str:
        await gate.wait()
        return country

    monkeypatch.setattr(behind_a_proxy, "read_news", read_news)
    app = behind_a_proxy.make_app()
    client = await aiohttp_client(app)
    # The first address of the third one is what the client itself claims.
    addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.1, 198.51.100.1", "198.51.100.2"]
    herd = asyncio.gather(*[text_of(client, "/news", **{"X-Forwarded-For": address}) for address in addresses])
    await eventually(lambda: figures(app)["waiting"] == 2)
    assert gate.runs == 2
    gate.open()
    assert await herd == ["Norway", "Norway", "elsewhere", "elsewhere"]
    assert figures(app)["unshared"] == {}
    async with client.get("/_reduce/stats") as response:
        assert response.status == 404
    # Some proxies add a line of their own to what the client claims.
    lines = [("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-For", "198.51.100.1")]
    async with client.get("/news", headers=lines) as response:
        assert await response.text() == "elsewhere"


async def test_never_reduce_gives_each_a_ticket_and_all_the_same_queue(
    aiohttp_client: StartClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = Gate()

    async def write_to_disk() -> None:
        await gate.wait()

    monkeypatch.setattr(never_reduce, "write_to_disk", write_to_disk)
    app = never_reduce.make_app()
    client = await aiohttp_client(app)
    tickets = asyncio.gather(*[text_of(client, "/ticket") for _ in range(3)])
    await gate.entered(3)
    queues = asyncio.gather(*[text_of(client, "/queue") for _ in range(3)])
    await eventually(lambda: figures(app)["waiting"] == 2)
    gate.open()
    assert sorted(await tickets) == ["1\n", "2\n", "3\n"]
    assert await queues == ["3 wait\n"] * 3
    assert capsys.readouterr().out == "ticket 1\nticket 2\nticket 3\nqueue\n"


async def test_metrics_are_those_of_the_middleware(
    aiohttp_client: StartClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = metrics.make_app()
    gate = Gate()
    monkeypatch.setattr(metrics, "read_greeting", gate.wait)
    client = await aiohttp_client(app)
    herd = asyncio.gather(*[text_of(client, "/hello") for _ in range(3)])
    await eventually(lambda: figures(app)["waiting"] == 2)
    assert 'reduce_waiting{route="/hello"} 2\n' in await text_of(client, "/metrics")
    gate.open()
    await herd
    lines = (await text_of(client, "/metrics")).splitlines()
    assert "# TYPE reduce_requests_total counter" in lines
    for line in ('requests_total{route="/hello"} 3', 'executed_total{route="/hello"} 1', 'in_flight{route="/hello"} 0'):
        assert f"reduce_{line}" in lines


def test_metrics_escape_what_would_end_a_label() -> None:
    figures = dict.fromkeys(metrics.METRICS, 1)
    lines = list(metrics.exposition({"routes": {'a"b\\c\nd': figures}}))
    assert lines[1] == 'reduce_requests_total{route="a\\"b\\\\c\\nd"} 1\n'


@pytest.mark.one_loop
async def test_migrating_counts_as_async_reduce_does(capsys: pytest.CaptureFixture[str]) -> None:
    await migrating.main()
    assert capsys.readouterr().out.splitlines() == [
        "fetching a",
        "fetching b",
        "['value of a', 'value of b', 'value of a', 'value of a']",
        "Stats(total=4, executed=2, reduced=2, errors=0)",
    ]
    assert "`Stats(total=4, executed=2, reduced=2, errors=0)`" in (migrating.__doc__ or "")


async def test_the_gateway_asks_its_upstream_once_for_two_herds(
    aiohttp_client: StartClient, upstream: StartUpstream
) -> None:
    gate = Gate()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond(b'{"tea": 3, "coffee": 4}', Content_Type="application/json")

    server = await upstream(answer)
    app = gateway.make_app(server.url + "/")
    client = await aiohttp_client(app)
    herds = asyncio.gather(*[text_of(client, path) for path in ["/cheapest", "/total"] * 5])
    await eventually(lambda: figures(app)["waiting"] == 8 and figures(app)["clients"]["prices"]["waiting"] == 1)
    gate.open()
    assert await herds == ['{"cheapest": "tea"}', '{"total": 7}'] * 5
    assert [request.target for request in server.requests] == ["/prices"]
    stats = await (await client.get("/_reduce/stats")).json()
    assert (stats["executed"], stats["reduced"]) == (2, 8)
    prices = stats["clients"]["prices"]
    assert (prices["total"], prices["executed"], prices["reduced"]) == (2, 1, 1)
    assert list(prices["hosts"]) == [server.url.removeprefix("http://")]


async def test_a_genuine_session_sends_once_and_logs_each(
    upstream: StartUpstream, capsys: pytest.CaptureFixture[str]
) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.respond(b"hello")

    server = await upstream(answer)
    assert await genuine_session.lengths(f"{server.url}/", 5) == [5] * 5
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"GET {server.url}/ 200"] * 5 + ["5 calls, 1 sent"]
    assert len(server.requests) == 1


async def test_stats_behind_auth_answers_to_the_token_only(aiohttp_client: StartClient) -> None:
    client = await aiohttp_client(stats_behind_auth.make_app("secret"))
    assert await text_of(client, "/hello") == "hello"
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        async with client.get("/admin/stats", headers=headers) as response:
            assert response.status == 401
    async with client.get("/admin/stats", headers={"Authorization": "Bearer secret"}) as response:
        assert (await response.json())["routes"]["/hello"]["executed"] == 1
    async with client.get("/_reduce/stats") as response:
        assert response.status == 404


async def test_stats_behind_auth_is_never_reduced(aiohttp_client: StartClient) -> None:
    app = stats_behind_auth.make_app("secret")
    client = await aiohttp_client(app)
    await text_of(client, "/admin/stats", Authorization="Bearer secret")
    assert figures(app)["bypassed"] == {"never_reduce": 1}


def test_stats_behind_auth_wants_a_token() -> None:
    with pytest.raises(ValueError, match="token takes a secret"):
        stats_behind_auth.make_app("")


async def test_core_only_asks_the_database_once_for_equal_calls(capsys: pytest.CaptureFixture[str]) -> None:
    await core_only.main()
    lines = capsys.readouterr().out.splitlines()
    assert [re.findall(r"asked (\d+) time", line) for line in lines] == [["1"], ["1"], ["3"]]
    assert "{3}" in lines[0]
    assert "{8}" in lines[1]
    assert "[3, 5, 8]" in lines[2]


@pytest.mark.parametrize(("reduce", "runs"), [(False, 10), (True, 1)])
async def test_the_demo_app_runs_one_query_for_a_herd_with_the_middleware(
    aiohttp_client: StartClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reduce: bool, runs: int
) -> None:
    held = threading.Event()
    report_of = demo_app.report_of

    def report_of_when_let_go(*args: Any) -> dict[str, Any]:
        assert held.wait(PATIENCE)
        return report_of(*args)

    monkeypatch.setattr(demo_app, "report_of", report_of_when_let_go)
    database = tmp_path / "sales.sqlite"
    demo_app.create_database(database, sales=1_000)
    app = demo_app.make_app(database, reduce=reduce)
    client = await aiohttp_client(app)
    herd = asyncio.gather(*[text_of(client, "/report?region=3") for _ in range(10)])
    try:
        if reduce:
            await eventually(lambda: figures(app)["waiting"] == 9)
        else:
            await eventually(lambda: app[demo_app.RUNS].total() == 10)
    finally:
        held.set()
    assert len(set(await herd)) == 1
    async with client.post("/usage") as response:
        assert (await response.json())["runs"] == runs


async def test_the_demo_app_refuses_what_is_not_there(aiohttp_client: StartClient, tmp_path: Path) -> None:
    database = tmp_path / "sales.sqlite"
    demo_app.create_database(database, sales=10)
    client = await aiohttp_client(demo_app.make_app(database, reduce=True))
    for path, status in (("/report?region=7", 400), ("/report", 400), ("/item/11", 404), ("/item/x", 404)):
        async with client.get(path) as response:
            assert response.status == status


def table_rows(output: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Requests and handler runs, by scenario and middleware, of the table that the demo prints."""
    rows = re.findall(r"^(\S.*?) +(with|without) +([\d,]+) +([\d,]+) +[\d,.]+ +[\d,.]+ +[\d.]+$", output, re.MULTILINE)
    return {(row[0], row[1]): (int(row[2].replace(",", "")), int(row[3].replace(",", ""))) for row in rows}


def test_the_demo_ends_by_itself_and_tells_what_was_saved() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = table_rows(done.stdout)
    same, few, different = (scenario.title for scenario in demo.scenarios(quick=True))
    assert rows[same, "without"] == rows[few, "without"] == (20, 20)
    # One and five, unless this machine pauses the demo for as long as a query takes.
    assert rows[same, "with"][0] == 20
    assert 1 <= rows[same, "with"][1] <= 5
    assert 5 <= rows[few, "with"][1] <= 15
    assert rows[different, "without"] == rows[different, "with"] == (100, 100)
    assert '"/report": {' in done.stdout
    saved = sum(row[1] if middleware == "without" else -row[1] for (_, middleware), row in rows.items())
    assert f"reduce_middleware() saved {saved} of 140 handler runs" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ("raise SystemExit(3)", "the server ended before it listened"),
        ("import time; time.sleep(60)", "the server did not start within"),
    ],
)
def test_the_demo_fails_with_a_message_where_the_server_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: str, message: str
) -> None:
    monkeypatch.setattr(demo, "server_command", lambda *args, **options: [sys.executable, "-c", server])
    monkeypatch.setattr(demo, "_START", 0.5 if "sleep" in server else PATIENCE)
    assert demo.main(["--quick"]) == 1
    assert message in capsys.readouterr().err


def test_the_demo_fails_with_a_message_where_an_answer_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected_answers = demo.expected_answers
    monkeypatch.setattr(demo, "expected_answers", lambda *args: {**expected_answers(*args), "/item/75000": None})
    assert demo.main(["--quick"]) == 1
    assert "The demo failed: GET /item/75000 was answered with" in capsys.readouterr().err
