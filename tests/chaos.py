"""Chaos over real sockets: `python -m tests.chaos --seconds 600 --seed 1 --loop uvloop`.

One server after another, each with other settings and shut down in mid-flight, is beset by clients that misbehave in
every way (`chaos_clients.py`); its handlers do so too (`chaos_app.py`), and so does the upstream of those that are
gateways. Prints what became of the requests, and what is left. What meets what is up to the sockets: a seed gives the
same choices, not the same run.
"""

import argparse
import asyncio
import ctypes
import gc
import os
import random
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from unittest import mock

from aiohttp import web, web_app

from aiohttp_reduce.broadcast import Broadcast
from tests.chaos_answers import body_of
from tests.chaos_app import SESSION, Scene, make_app
from tests.chaos_clients import BOUND, SOCKET_BUFFER, Clients, Place
from tests.chaos_report import MAY_GROW, Report, listening
from tests.growth import resident
from tests.harness import eventually, is_uncrowded
from tests.upstream import nothing_is_left, reducer_of

# Seconds for which slow readers may hold up others here.
STALL: Final = 0.5


class Upstream:
    """Answers, stalls and drops connections, as it comes."""

    def __init__(self, choose: random.Random) -> None:
        self._choose = choose
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        self._tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                _, name, number = head.split(b" ", 2)[1].decode().split("/")
                if not await self._answer(body_of(name, int(number)), reader, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError, RuntimeError):
            pass  # the client has gone; uvloop may say RuntimeError
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(self, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        fate = self._choose.random()
        if fate < 0.1:
            return False
        if fate < 0.2:  # until the client has had enough
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), BOUND)
            return False
        if fate < 0.6:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        drops_at = self._choose.randrange(len(body)) if self._choose.random() < 0.2 else len(body)
        size = self._choose.randint(len(body) // 20 + 1, len(body))
        for at in range(0, drops_at, size):
            piece = body[at : min(at + size, drops_at)]
            writer.write(piece if fate < 0.6 else b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(self._choose.choice((0, 0, 0.01, 0.05)))
        if drops_at < len(body):
            return False
        if fate >= 0.6:
            writer.write(b"0\r\n\r\n")
        return True


class Chaos:
    """A run."""

    def __init__(self, seed: int, seconds: float, folder: Path) -> None:
        self.choose = random.Random(seed)
        self.seconds = seconds
        self.folder = folder
        self.report = Report()
        self._began = time.monotonic()

    async def run(self) -> Report:
        (await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)).close()  # uvloop opens one more for its first
        descriptors, tasks = _descriptors(), len(asyncio.all_tasks())
        with (
            listening(self.report.noise),
            mock.patch.dict(Broadcast.__init__.__kwdefaults__, {"stall_timeout": STALL}),  # type: ignore[arg-type]
        ):
            upstream = Upstream(self.choose)
            await upstream.start()
            try:
                while time.monotonic() < self._began + self.seconds:
                    await self._serve(upstream)
            finally:
                await upstream.stop()
            with suppress(TimeoutError):
                await eventually(lambda: len(asyncio.all_tasks()) <= tasks and _descriptors() <= descriptors)
            self.report.tasks = len(asyncio.all_tasks()) - tasks
            self.report.sockets = _descriptors() - descriptors
        return self.report

    async def _serve(self, upstream: Upstream) -> None:
        """One server, from its start to a shutdown in mid-flight, and what is left of it."""
        choose, report = self.choose, self.report
        scene = Scene(choose, upstream.url, self.folder)
        app, middleware = make_app(
            scene,
            {"max_age": choose.choice((0.2, 5.0)), "max_buffer": choose.choice((2**16, 2**22))},
            max_age=choose.choice((0.2, 5.0)),
            max_wait=choose.choice((0.3, 30.0)),
            max_buffer=choose.choice((2**15, 2**18, 2**22)),
            max_buffer_total=choose.choice((2**18, 2**26)),
        )
        # Not TestServer's: a runner and sites as `web.run_app` has them.
        runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=choose.random() < 0.4,
            keepalive_timeout=5.0,
            shutdown_timeout=choose.choice((0.01, 0.3)),
        )
        await runner.setup()
        place = Place(None, str(self.folder / f"socket-{report.servers}"))
        for family, address in ((socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, place.unix)):
            sock = socket.socket(family)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
            sock.bind(address)
            await web.SockSite(runner, sock, backlog=1024).start()
            place.tcp = place.tcp or sock.getsockname()
        report.servers += 1
        session = app[SESSION]
        clients = Clients(choose, report.figures, place)
        visits: set[asyncio.Task[None]] = set()
        end = min(time.monotonic() + choose.choice((1.5, 4.0)), self._began + self.seconds)
        while time.monotonic() < end:
            if len(visits) < 80:
                for visit in clients.herd():
                    visits.add(visit)
                    visit.add_done_callback(visits.discard)
            if choose.random() < 0.1:
                middleware.forget(f"/{choose.choice(list(scene.runs) or ['at_once'])}/{choose.randrange(40)}")
            await asyncio.sleep(choose.choice((0, 0, 0.01, 0.03)))
        scene.closing = True
        await asyncio.sleep(0.03)
        place.closing = True
        await runner.cleanup()
        for visit in await asyncio.gather(*visits, return_exceptions=True):
            if isinstance(visit, Exception):
                report.noise.append(f"a client: {visit!r}")
        await self._look_at_what_is_left(middleware, session)
        os.unlink(place.unix)
        report.memory.append((time.monotonic() - self._began, _held()))

    async def _look_at_what_is_left(self, middleware: Any, session: Any) -> None:
        report, reducer = self.report, reducer_of(session)
        tables = list(middleware._tables.values())

        def flights() -> int:
            stats = middleware.stats
            crowded = sum(not is_uncrowded(table) for table in tables)
            return sum(len(table.flights) for table in tables) + crowded + stats["waiting"] + stats["in_flight"]

        def buffered() -> int:
            return sum(budget.used for budget in middleware._budgets.by_loop.values())

        with suppress(TimeoutError):
            await eventually(lambda: not (flights() or buffered()) and nothing_is_left(reducer))
        report.flights += flights()
        report.buffered += buffered()
        report.calls += not nothing_is_left(reducer)
        stats = middleware.stats
        for name in ("total", "executed", "reduced", "takeovers"):
            report.totals[name] = report.totals.get(name, 0) + stats[name]


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _held() -> int:
    """The memory of this process, in KiB, without what nobody needs any more, as far as it can be given back.

    (aiohttp keeps the last 1,024 chains of middlewares that it built, and with them their applications.)
    """
    web_app._cached_build_middleware.cache_clear()
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return resident()


async def chaos(seconds: float, seed: int) -> Report:
    """Run for so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        return await Chaos(seed, seconds, Path(folder)).run()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    options = parser.parse_args()
    factory: Any = asyncio.new_event_loop
    if options.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        report = runner.run(chaos(options.seconds, options.seed))
    sys.stdout.write(f"{options.loop}, seed {options.seed}, {options.seconds:.0f} s\n{report}\n")
    return bool(report.problems() or report.growth > MAY_GROW)


if __name__ == "__main__":
    sys.exit(main())
