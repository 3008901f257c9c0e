"""gunicorn with aiohttp's workers: a real process, which ends as it is told to."""

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.ecosystem.gunicorn_app import made
from tests.harness import Connection, Reply, Start

pytest.importorskip("gunicorn", minversion="27", reason="gunicorn 27 is not installed")

pytestmark = [
    pytest.mark.one_loop,  # the process has a loop of its own
    pytest.mark.skipif(sys.platform == "win32", reason="gunicorn needs a Unix"),
]

# The application is made in the worker, or before there is one.
WORKERS = [
    pytest.param("asyncio", ["reduced", "--worker-class", "aiohttp.GunicornWebWorker"], id="asyncio"),
    pytest.param(
        "uvloop",
        ["app", "--worker-class", "aiohttp.GunicornUVLoopWebWorker", "--preload"],
        id="uvloop",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("uvloop") is None or aiohttp.__version__.startswith("3.12."),
            reason="uvloop is not installed, or aiohttp 3.12's worker does not start with it",
        ),
    ),
]
ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 20.0


class Gunicorn:
    """A gunicorn with one worker, on a loopback socket that is open before it starts."""

    def __init__(self, application: str, options: list[str], log: Path) -> None:
        self._log = log
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listening, log.open("wb") as output:
            self.port: int = listening.getsockname()[1]
            command = [
                sys.executable, "-m", "gunicorn", f"tests.ecosystem.gunicorn_app:{application}", *options,
                "--workers", "1", "--bind", f"fd://{listening.fileno()}", "--no-control-socket",
            ]  # fmt: skip
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
                pass_fds=[listening.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    async def send(self, target: str, headers: Any = (), **options: Any) -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        connection = Connection(reader, writer)
        await connection.send(target, headers, **options)
        return connection

    async def get(self, target: str, headers: Any = (), **options: Any) -> Reply:
        connection = await self.send(target, headers, **options)
        try:
            return await connection.receive(head_only=options.get("method") == "HEAD")
        finally:
            await connection.close()

    async def ready(self) -> None:
        """Wait for the first answer; the process may take a while to start."""
        connection = await self.send("/other")
        try:
            async with asyncio.timeout(SECONDS):
                await connection.reader.readuntil(b"\r\n\r\n")
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pytest.fail(f"gunicorn did not start:\n{self.log()}")
        await connection.close()

    async def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = json.loads((await self.get("/_reduce/stats")).body)
        return stats

    async def in_flight(self, runs: int, waiting: int) -> None:
        """Wait until so many runs are held, and so many requests wait for them."""
        async with asyncio.timeout(SECONDS):
            while True:
                stats = await self.stats()
                if (stats["in_flight"], stats["waiting"]) == (runs, waiting):
                    return
                await asyncio.sleep(0.005)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        """Wait for the end of the process."""
        return await asyncio.to_thread(self.process.wait, SECONDS)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Gunicorn]]:
    """Start gunicorns for an application, with options."""
    started: list[Gunicorn] = []

    def start(application: str, *options: str) -> Gunicorn:
        started.append(Gunicorn(application, [*options], tmp_path / f"log {len(started)}"))
        return started[-1]

    yield start
    for one in started:
        one.close()


def seen(reply: Reply) -> Any:
    return reply.status, reply.reason, [pair for pair in reply.headers.items() if pair[0] != "Date"], reply.body


# One test for all of it, as each process takes a second to stop.
@pytest.mark.parametrize(("loop", "arguments"), WORKERS)
async def test_an_application_in_gunicorn_is_as_without_us_coalesces_and_stops(
    serve: Start, start: Callable[..., Gunicorn], loop: str, arguments: list[str]
) -> None:
    ours = start(*arguments)
    without = await serve(made())
    await ours.ready()

    # As without us.
    for target, options in [
        ("/other", {}), ("/other?for=alice", {}), ("/other?cookie", {}), ("/other", {"method": "HEAD"}),
        ("/other", {"method": "POST", "body": b"x"}), ("/missing", {}),
    ]:  # fmt: skip
        assert seen(await ours.get(target, **options)) == seen(await without.get(target, **options))

    # A herd takes one run for each user.
    users = [{"X-User": "alice"}, {"X-User": "bob"}]
    sent = [await ours.send("/page", headers) for headers in users]
    await ours.in_flight(runs=2, waiting=0)
    sent += [await ours.send("/page", headers) for headers in users * 4]
    await ours.in_flight(runs=2, waiting=8)

    # It is told to stop while they wait: nobody is lost, and it ends. (The page is let go by the shutdown.)
    ours.terminate()
    replies = [await connection.receive() for connection in sent]

    assert {reply.status for reply in replies} == {200}
    assert {reply.headers["X-Loop"] for reply in replies} == {loop}
    for texts, user in [({reply.text for reply in replies[::2]}, "alice"), ({r.text for r in replies[1::2]}, "bob")]:
        assert len(texts) == 1
        assert texts.pop().startswith(f"for {user}, in run ")
    for connection in sent:
        await connection.close()
    assert await ours.ended() == 0, ours.log()
    assert "Traceback" not in ours.log()
