"""Bad input for as long as you like, and what it leaves in memory: `python -m tests.growth --seconds 60`.

Sends malformed headers, URLs of 60 KiB and 1,000 distinct header names a request to a real server with the
middleware, and prints what is left of it afterwards.
"""

import argparse
import asyncio
import gc
import itertools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from aiohttp_reduce import reduce_middleware
from tests.harness import Server, app_with, eventually

_LIMITS = {"max_line_size": 2**17, "max_field_size": 2**16, "max_headers": 4096}


class Growth(NamedTuple):
    """What a flood left: KiB that the package allocated and still holds, KiB of the process, request objects."""

    sent: int
    kept_by_us: float
    resident: int
    live_requests: int


def resident() -> int:
    """The memory of this process, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def requests() -> Iterator[bytes]:
    """Requests, no two of them the same; every third one is malformed."""
    for number in itertools.count():
        url = b"/?" + b"%08d" % number + b"u" * 60 * 1024
        names = b"".join(b"X-%d-%d: 1\r\n" % (number, name) for name in range(1000))
        yield b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % url
        yield b"GET /same HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % names
        yield b"GET /same HTTP/1.1\r\nHost: localhost\r\nVary%d: \x00\r\nBad Name: 1\r\n\r\n" % number


async def flood(server: Server, seconds: float, connections: int = 8) -> int:
    """Send requests for so many seconds. Returns how many were sent."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    sent = 0
    source = requests()

    async def client() -> None:
        nonlocal sent
        while loop.time() < end:
            connection = await server.connect()
            server._connections.remove(connection)
            try:
                for request in itertools.islice(source, 30):
                    connection.writer.write(request)
                    sent += 1
                    reply = await connection.receive()
                    if reply.status == 400:
                        break
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                await connection.close()

    await asyncio.gather(*[client() for _ in range(connections)])
    return sent


def live_requests() -> int:
    """How many request objects there are."""
    gc.collect()
    return sum(isinstance(one, web.BaseRequest) for one in gc.get_objects())


async def growth(seconds: float) -> Growth:
    """Flood a server for so many seconds, and see what stays."""

    async def handler(request: web.Request) -> web.Response:
        await asyncio.sleep(0.002)
        return web.Response(text="ok")

    middleware = reduce_middleware()
    app = app_with(handler, middleware, path="/{tail:.*}")
    server = Server(app, middleware=middleware, **_LIMITS)
    await server.start()
    try:
        await flood(server, max(0.5, seconds / 10))  # fill the memories that are meant to fill: aiohttp's, yarl's
        tracemalloc.start()
        before = resident()
        sent = await flood(server, seconds)
        await eventually(server.nothing_is_left)
        gc.collect()
        ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/aiohttp_reduce/*")])
        tracemalloc.stop()
        kept = sum(trace.size for trace in ours.traces) / 1024
        return Growth(sent, kept, resident() - before, live_requests())
    finally:
        await server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    print(asyncio.run(growth(parser.parse_args().seconds)))


if __name__ == "__main__":
    main()
