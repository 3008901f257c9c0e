"""The demo: the same herds against the same application, once without and once with `reduce_middleware()`.

`python -m examples.demo` starts a server process for each, sends the herds over loopback connections, checks every
answer, and prints what was measured. `--quick` does the same with few requests.
"""

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from . import demo_app

# Bounds in seconds: for a server to start, for a request, for everything.
_START: Final = 15.0
_REQUEST: Final = 60.0
_ALL: Final = 90.0


class DemoError(Exception):
    """Something is not as it should be; the message is for whoever runs the demo."""


@dataclass(frozen=True)
class Scenario:
    """Requests for these paths, so many of them at a time, each on an open connection of its own."""

    title: str
    paths: Sequence[str]
    at_once: int

    @property
    def opening(self) -> "Scenario":
        """As many quick requests as there are connections, which opens all of them.

        They are for items that no scenario asks for: nobody may join what is left of them.
        """
        items = range(demo_app.SALES, demo_app.SALES - self.at_once, -1)
        return Scenario("open connections", [f"/item/{n}" for n in items], self.at_once)


@dataclass(frozen=True)
class Row:
    """What one scenario took on one server; times in seconds."""

    scenario: Scenario
    reduced: bool
    latencies: Sequence[float]
    runs: int
    cpu: float

    def cells(self) -> tuple[str, ...]:
        percentiles = statistics.quantiles(self.latencies, n=100, method="inclusive")
        times = [f"{percentiles[percent - 1] * 1000:,.1f}" for percent in (50, 99)]
        middleware = "with" if self.reduced else "without"
        return (
            self.scenario.title,
            middleware,
            f"{len(self.latencies):,}",
            f"{self.runs:,}",
            *times,
            f"{self.cpu:.2f}",
        )


def scenarios(*, quick: bool) -> list[Scenario]:
    herd, each, items = (20, 4, 100) if quick else (200, 5, 2_000)
    few = [f"/report?region={region}" for region in range(5)] * each
    return [
        Scenario(f"{herd} ask for the same report at once", ["/report?region=3"] * herd, herd),
        Scenario(f"{len(few)} ask for 5 reports at once", few, len(few)),
        Scenario(f"{items:,} different items, 50 at a time", [f"/item/{n}" for n in range(1, items + 1)], 50),
    ]


def expected_answers(database: Path, paths: set[str]) -> dict[str, Any]:
    """What the database itself says, by path."""
    with closing(demo_app.connect(database)) as connection:
        return {
            path: (demo_app.item_of if path.startswith("/item/") else demo_app.report_of)(
                connection, int(re.split("[/=]", path)[-1])
            )
            for path in paths
        }


def server_command(database: Path, *, reduced: bool) -> list[str]:
    return [sys.executable, "-m", "examples.demo_app", str(database), *(["--reduce"] if reduced else [])]


@asynccontextmanager
async def server(database: Path, *, reduced: bool) -> AsyncIterator[str]:
    """A server process of its own; gives its address, and ends the process whatever happens."""
    pipe = asyncio.subprocess.PIPE
    # In a session of its own, where Ctrl-C does not reach it.
    process = await asyncio.create_subprocess_exec(
        *server_command(database, reduced=reduced),
        stdin=pipe,
        stdout=pipe,
        cwd=Path(__file__).parent.parent,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), _START)
        except TimeoutError:
            raise DemoError(f"the server did not start within {_START:.0f} s") from None
        if not line.strip().isdigit():
            raise DemoError("the server ended before it listened; it may say above why")
        yield f"http://127.0.0.1:{int(line)}"
    finally:
        if process.returncode is None:
            process.kill()  # it only reads, so there is nothing to end in order
        await process.wait()


async def send(session: aiohttp.ClientSession, scenario: Scenario, expected: dict[str, Any]) -> list[float]:
    """Send all requests, check all answers, and give the latencies."""
    latencies: list[float] = []
    bodies: dict[str, bytes] = {}
    failures: list[BaseException] = []
    to_do = iter(scenario.paths)

    async def one_after_another() -> None:
        for path in to_do:
            start = time.perf_counter()
            try:
                async with session.get(path) as response:
                    body = await response.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                raise DemoError(f"GET {path} failed: {error!r}") from error
            latencies.append(time.perf_counter() - start)
            if response.status != 200:
                raise DemoError(f"GET {path} was answered with {response.status} {response.reason}")
            if bodies.setdefault(path, body) != body:
                raise DemoError(f"GET {path} was answered differently at different times")

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(scenario.at_once):
                group.create_task(one_after_another())
    except* DemoError as failed:
        failures.extend(failed.exceptions)
    if failures:
        raise failures[0]  # one tells enough; the group has cancelled the others
    for path, body in bodies.items():
        if json.loads(body) != expected[path]:
            raise DemoError(f"GET {path} was answered with {body[:100]!r}, but the database says {expected[path]}")
    return latencies


async def usage(session: aiohttp.ClientSession) -> dict[str, Any]:
    async with session.post("/usage") as response:
        return dict(await response.json())


async def measure(address: str, scenario: Scenario, expected: dict[str, Any], *, reduced: bool) -> Row:
    """One scenario on one server. The connections are opened before, so that only the requests are measured."""
    async with aiohttp.ClientSession(
        address, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=_REQUEST)
    ) as session:
        await send(session, scenario.opening, expected)
        before = await usage(session)
        latencies = await send(session, scenario, expected)
        after = await usage(session)
    return Row(scenario, reduced, latencies, after["runs"] - before["runs"], after["cpu"] - before["cpu"])


async def run_on_server(
    database: Path, work: Sequence[Scenario], expected: dict[str, Any], *, reduced: bool
) -> tuple[list[Row], dict[str, Any]]:
    """All scenarios on a new server: what was measured, and the middleware's own figures, if it is there."""
    say(f"Starting a server {'with' if reduced else 'without'} reduce_middleware() ...")
    rows: list[Row] = []
    stats: dict[str, Any] = {}
    async with server(database, reduced=reduced) as address:
        for scenario in work:
            say(f"  {scenario.title} ...")
            rows.append(await measure(address, scenario, expected, reduced=reduced))
        if reduced:
            async with aiohttp.ClientSession(address) as session, session.get("/_reduce/stats") as response:
                response.raise_for_status()
                stats = await response.json()
    return rows, stats


async def run(directory: Path, *, quick: bool) -> None:
    say(f"Making a table of {demo_app.SALES:,} sales in SQLite ...")
    database = directory / "sales.sqlite"
    demo_app.create_database(database)
    work = scenarios(quick=quick)
    paths = {path for scenario in work for path in (*scenario.paths, *scenario.opening.paths)}
    expected = expected_answers(database, paths)
    async with asyncio.timeout(_ALL):
        without, _ = await run_on_server(database, work, expected, reduced=False)
        reduced, stats = await run_on_server(database, work, expected, reduced=True)
    show(without, reduced, stats)


def say(text: str) -> None:
    print(text, flush=True)


def show(without: Sequence[Row], reduced: Sequence[Row], stats: dict[str, Any]) -> None:
    """Print the table, the figures of the middleware, and what was saved."""
    heads = ("scenario", "middleware", "requests", "handler runs", "p50 ms", "p99 ms", "server CPU s")
    lines = [row.cells() for pair in zip(without, reduced, strict=True) for row in pair]
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    say("")
    template = "  ".join(f"{{:{'<' if column < 2 else '>'}{width}}}" for column, width in enumerate(widths))
    for line in (heads, ["-" * width for width in widths], *lines):
        say(template.format(*line))
    say("\nGET /_reduce/stats at the end (the requests that opened the connections are in it):")
    say(json.dumps(stats, indent=2))
    runs, runs_reduced = (sum(row.runs for row in rows) for rows in (without, reduced))
    cpu, cpu_reduced = (sum(row.cpu for row in rows) for rows in (without, reduced))
    say(
        f"\nAll answers were right. reduce_middleware() saved {runs - runs_reduced:,} of {runs:,} handler runs,"
        f" and {cpu - cpu_reduced:.1f} of {cpu:.1f} s of the server's CPU time."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description="Herds with and without reducing.")
    parser.add_argument("--quick", action="store_true", help="with few requests")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="aiohttp-reduce-demo-") as directory:
            asyncio.run(run(Path(directory), quick=options.quick))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (DemoError, aiohttp.ClientError, OSError) as error:
        # A TimeoutError, which is an OSError, has nothing to say.
        print(f"The demo failed: {str(error) or 'a step took too long'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
