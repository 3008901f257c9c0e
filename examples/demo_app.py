"""The application of the demo: reports and items from an embedded SQLite database, with or without reducing.

`python -m examples.demo_app DATABASE [--reduce]` serves on a free loopback port, prints the port, and ends when
its standard input does, so that it never outlives the one who started it.
"""

import argparse
import asyncio
import os
import queue
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeVar

from aiohttp import web

from aiohttp_reduce import reduce_middleware

T = TypeVar("T")

SALES: Final = 75_000
REGIONS: Final = 7
_PRODUCTS: Final = 500
_CONNECTIONS: Final = 4
# The default of 128 is less than a herd; a connection that does not fit in is tried again after a second.
_BACKLOG: Final = 2048


def create_database(path: Path, sales: int = SALES) -> None:
    """Fill a new database with generated sales, always the same ones."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "CREATE TABLE sales (id INTEGER PRIMARY KEY, region INTEGER, product INTEGER, cents INTEGER)"
        )
        connection.execute(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)"
            " INSERT INTO sales SELECT n, n * 7919 % ?, n * 104729 % ?, n * 15485863 % 10007 FROM numbers",
            (sales, REGIONS, _PRODUCTS),
        )


def connect(path: Path) -> sqlite3.Connection:
    """A connection that only reads, and that may go from thread to thread."""
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)


def report_of(connection: sqlite3.Connection, region: int) -> dict[str, Any]:
    """The slow one: the best products of a region, beside what they earn everywhere; reads every sale."""
    best = connection.execute(
        "SELECT product, sum(cents) FILTER (WHERE region = ?) AS here, sum(cents) AS everywhere"
        " FROM sales GROUP BY product ORDER BY here DESC, product LIMIT 5",
        (region,),
    )
    return {"region": region, "best": [dict(zip(("product", "here", "everywhere"), row, strict=True)) for row in best]}


def item_of(connection: sqlite3.Connection, number: int) -> dict[str, Any] | None:
    """The quick one: a sale by its id."""
    row = connection.execute("SELECT id, product, cents FROM sales WHERE id = ?", (number,)).fetchone()
    return None if row is None else dict(zip(("id", "product", "cents"), row, strict=True))


class Database:
    """A few connections and as many threads, so that queries keep nobody from being served."""

    def __init__(self, path: Path) -> None:
        self._threads = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="sqlite")
        self._connections: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        for _ in range(_CONNECTIONS):
            self._connections.put(connect(path))

    async def ask(self, query: Callable[[sqlite3.Connection, int], T], argument: int) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, query, argument)

    def _run(self, query: Callable[[sqlite3.Connection, int], T], argument: int) -> T:
        connection = self._connections.get()
        try:
            return query(connection, argument)
        finally:
            self._connections.put(connection)

    def close(self) -> None:
        self._threads.shutdown()
        for _ in range(_CONNECTIONS):
            self._connections.get().close()


DATABASE = web.AppKey("DATABASE", Database)
RUNS = web.AppKey("RUNS", Counter[str])


async def report(request: web.Request) -> web.Response:
    request.app[RUNS]["report"] += 1
    region = request.query.get("region", "")
    if region not in map(str, range(REGIONS)):
        raise web.HTTPBadRequest(text=f"400: region takes a number from 0 to {REGIONS - 1}")
    return web.json_response(await request.app[DATABASE].ask(report_of, int(region)))


async def item(request: web.Request) -> web.Response:
    request.app[RUNS]["item"] += 1
    found = await request.app[DATABASE].ask(item_of, int(request.match_info["id"]))
    if found is None:
        raise web.HTTPNotFound(text="404: no such item")
    return web.json_response(found)


async def usage(request: web.Request) -> web.Response:
    """Handler runs and CPU seconds (all threads) of this process so far. A POST, so that it is never coalesced."""
    return web.json_response({"runs": request.app[RUNS].total(), "cpu": time.process_time()})


def make_app(database: Path, *, reduce: bool) -> web.Application:
    async def with_database(app: web.Application) -> AsyncIterator[None]:
        app[DATABASE] = Database(database)
        yield
        app[DATABASE].close()

    app = web.Application(middlewares=[reduce_middleware()] if reduce else [])
    app[RUNS] = Counter()
    app.cleanup_ctx.append(with_database)
    app.router.add_get("/report", report)
    app.router.add_get(r"/item/{id:\d{1,9}}", item)
    app.router.add_post("/usage", usage)
    return app


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _end_with_standard_input() -> None:
    # Not by sys.stdin: a thread inside of its buffer cannot be left behind at the end.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the demo's application on a free loopback port.")
    parser.add_argument("database", type=Path)
    parser.add_argument("--reduce", action="store_true", help="with reduce_middleware()")
    options = parser.parse_args()
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as listening:
        port = listening.getsockname()[1]
        web.run_app(
            make_app(options.database, reduce=options.reduce),
            sock=listening,
            backlog=_BACKLOG,
            loop=_new_event_loop(),
            access_log=None,
            # Called once, when the application has started.
            print=lambda _banner: print(port, flush=True),
        )


if __name__ == "__main__":
    main()
