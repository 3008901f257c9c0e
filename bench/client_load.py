"""The measured client: `python -m bench.client_load WORK PORT [ROUNDS]`, on uvloop. Prints its figures as JSON.

It asks `bench.upstream`. CPU is that of this process, in seconds per call, for each kind of session by its name;
memory is what this process grows by, in bytes.
"""

import argparse
import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any, Final

import uvloop
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, ClientSession, ClientTimeout

from aiohttp_reduce import ReducingClientSession

from .memory import reset_peak, resident
from .upstream import BODY

MIB: Final = 2**20
HERD: Final = 64
STREAM: Final = 256 * MIB
READERS: Final = 20
DOWNLOADS: Final = 50
DOWNLOAD: Final = 4 * MIB

_CALLS: Final = 1_000
_CONCURRENT: Final = 50
_HERDS: Final = 16
_CACHE: Final = "aiohttp-client-cache"
# It is asked in every n-th round only: it shows where others are, and takes long.
_SELDOM: Final = {_CACHE: 4}
# Seconds without a page more, or less, after which no more of a body is taken in.
_CALM: Final = 0.5

Asked = Callable[[ClientSession, Iterator[str]], Awaitable[int]]


# CPU per call.


async def no_op(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    return await handler(request)


@asynccontextmanager
async def all_sessions() -> AsyncIterator[dict[str, Any]]:
    """One session of each kind that is installed; ours next to the plain one."""
    async with AsyncExitStack() as stack:
        sessions: dict[str, Any] = {
            "plain": await stack.enter_async_context(ClientSession()),
            "ours": await stack.enter_async_context(ReducingClientSession()),
            "no-op": await stack.enter_async_context(ClientSession(middlewares=(no_op,))),
        }
        try:
            from aiohttp_client_cache.backends.base import CacheBackend
            from aiohttp_client_cache.session import CachedSession
        except ImportError:
            pass
        else:
            sessions[_CACHE] = await stack.enter_async_context(CachedSession(cache=CacheBackend()))
        yield sessions


async def fetch(session: ClientSession, url: str) -> bytes:
    async with session.get(url) as response:
        return await response.read()


async def distinct(session: ClientSession, urls: Iterator[str]) -> int:
    """Each call to another URL, 50 at a time. Returns the number of requests that the upstream is to see."""

    async def one_after_another() -> None:
        for _ in range(_CALLS // _CONCURRENT):
            await fetch(session, next(urls))

    await asyncio.gather(*[one_after_another() for _ in range(_CONCURRENT)])
    return _CALLS


async def herds(session: ClientSession, urls: Iterator[str]) -> int:
    """Herds of identical calls, each herd to another URL. Returns what the upstream is to see if they are reduced."""
    for _ in range(_HERDS):
        url = next(urls)
        await asyncio.gather(*[fetch(session, url) for _ in range(HERD)])
    return _HERDS


async def cpu_per_call(work: Asked, calls: int, names: list[str] | None, port: int, rounds: int) -> dict[str, Any]:
    """Seconds of CPU per call in each round, by name of session: there and back, and the first one warms up."""
    found: dict[str, list[float]] = {}
    urls = (f"http://127.0.0.1:{port}/small?n={number}" for number in count())
    async with ClientSession() as counting, all_sessions() as sessions:
        chosen = [name for name in sessions if names is None or name in names]
        for name in chosen:
            if await fetch(sessions[name], next(urls)) != BODY:
                raise RuntimeError(f"{name}: another body than was sent")
        for number in range(-1, rounds):
            for name in chosen if number % 2 else reversed(chosen):
                if number >= 0 and number % _SELDOM.get(name, 1):
                    continue
                session = sessions[name]
                before = await requests_at(counting, port)
                gc.collect()
                start = time.process_time()
                expected = await work(session, urls)
                used = time.process_time() - start
                seen = await requests_at(counting, port) - before
                if seen != (calls if name in ("plain", "no-op") else expected):
                    raise RuntimeError(f"{name}: {calls} calls came to {seen} requests")
                if name == _CACHE:
                    await session.cache.clear()
                if number >= 0:
                    found.setdefault(name, []).append(used / calls)
    return {name: found[name] for name in chosen}


async def requests_at(session: ClientSession, port: int) -> int:
    """How many the upstream has seen so far."""
    return int(await fetch(session, f"http://127.0.0.1:{port}/count"))


# Memory.


async def streamed(port: int) -> int:
    """One body, read as it comes by many who join at the start: the most that it takes at any moment."""
    url = f"http://127.0.0.1:{port}/stream/{STREAM}?n=0"

    async def read(session: ClientSession) -> int:
        size = 0
        async with session.get(url) as response:
            async for piece in response.content.iter_any():
                size += len(piece)
        return size

    async with ClientSession() as counting, ReducingClientSession(timeout=ClientTimeout(total=60)) as session:
        await fetch(session, f"http://127.0.0.1:{port}/small?n=0")
        before = await requests_at(counting, port)
        gc.collect()
        reset_peak()
        start = resident()
        sizes = await asyncio.gather(*[read(session) for _ in range(READERS)])
        grown = resident(peak=True) - start
        requests = await requests_at(counting, port) - before
    if set(sizes) != {STREAM} or requests != 1:
        raise RuntimeError(f"{requests} requests, and bodies of {sorted(set(sizes))} bytes")
    return grown


async def stalled(port: int, session: ClientSession) -> int:
    """Downloads of which only the heads are taken: what they hold once nothing more is taken in."""
    async with session:
        await fetch(session, f"http://127.0.0.1:{port}/small?n=0")
        gc.collect()
        start = resident()
        urls = [f"http://127.0.0.1:{port}/stream/{DOWNLOAD}?n={number}" for number in range(DOWNLOADS)]
        responses = await asyncio.gather(*[session.get(url) for url in urls])
        grown, since = resident() - start, time.monotonic()
        while time.monotonic() < since + _CALM:
            await asyncio.sleep(0.02)
            now = resident() - start
            if now != grown:
                grown, since = now, time.monotonic()
        for response in responses:
            response.close()
    return grown


async def run(work: str, port: int, rounds: int) -> dict[str, Any]:
    if work == "distinct":
        return await cpu_per_call(distinct, _CALLS, None, port, rounds)
    if work == "herds":
        names = ["plain", "ours", _CACHE]
        return await cpu_per_call(herds, _HERDS * HERD, names, port, rounds)
    if work == "streamed":
        return {"ours": [await streamed(port)]}
    if work == "stalled-plain":
        return {"plain": [await stalled(port, ClientSession())]}
    return {"ours": [await stalled(port, ReducingClientSession())]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=["distinct", "herds", "streamed", "stalled-plain", "stalled-ours"])
    parser.add_argument("port", type=int)
    parser.add_argument("rounds", type=int, nargs="?", default=1)
    options = parser.parse_args()
    print(json.dumps(uvloop.run(run(options.work, options.port, options.rounds))))


if __name__ == "__main__":
    main()
