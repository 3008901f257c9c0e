"""The server of streamed answers: `python -m bench.stream_app MODE PORT`, on uvloop; MODE is `plain` or `reduce`.

- `GET /written?size=&piece=`: a response that its handler prepares and writes, so many bytes at a time. It writes
  nothing for `wait` seconds after the head, then `slow` bytes over `over` seconds, then the rest as fast as it can.
  With `fresh=1` every piece is an object of its own, so that what is kept of it shows in the memory; without, it costs
  its handler nothing;
- `GET /one-shot?size=&piece=`: the same as a body that is returned, an async generator;
- `GET /idle?size=&piece=`: the same, but the handler then waits for `POST /release`;
- `GET /whole?size=&wait=`: after so many seconds, a body in one piece; with `kept=1` always the same object;
- `POST /runs`: how many handlers were run by the GETs so far; it collects the garbage.
"""

import argparse
import asyncio
import gc
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cache
from typing import Final

import uvloop
from aiohttp import web

from aiohttp_reduce import reduce_middleware

# Pieces are told apart by the number that they begin with.
_CYCLE: Final = 97
_LARGEST: Final = 64 * 1024
_FILLER: Final = random.Random(5).randbytes(_LARGEST)
_IDLE_FOR: Final = 60.0


@cache
def _tail(size: int) -> bytes:
    return _FILLER[8:size]


def piece_of(number: int, size: int) -> bytes:
    """A piece of a stream: of 8 bytes to 64 KiB."""
    return (number % _CYCLE).to_bytes(8, "big") + _tail(size)


@cache
def _cycle(size: int) -> list[bytes]:
    return [piece_of(number, size) for number in range(_CYCLE)]


def whole(size: int) -> bytes:
    """A body in one piece."""
    return (_FILLER * (size // _LARGEST + 1))[:size]


@cache
def _kept(size: int) -> bytes:
    return whole(size)


@dataclass
class State:
    """How many handlers were run, and what those wait for that are idle."""

    runs: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)


STATE = web.AppKey("STATE", State)


async def pieces(request: web.Request) -> AsyncIterator[bytes]:
    """What the query asks for, at that pace."""
    asked = request.query
    size = int(asked["piece"])
    is_fresh = "fresh" in asked
    count = int(asked["size"]) // size
    slow = int(asked.get("slow", 0)) // size
    pause = float(asked.get("over", 0)) / max(slow, 1)
    made = _cycle(size)
    await asyncio.sleep(float(asked.get("wait", 0)))
    for number in range(count):
        yield piece_of(number, size) if is_fresh else made[number % _CYCLE]
        if number < slow:
            await asyncio.sleep(pause)


def length(request: web.Request) -> dict[str, str]:
    """Said beforehand, so that what comes over the wire is the body alone, however it is cut."""
    size = int(request.query["piece"])
    return {"Content-Length": str(int(request.query["size"]) // size * size)}


async def written(request: web.Request) -> web.StreamResponse:
    request.app[STATE].runs += 1
    response = web.StreamResponse(headers=length(request))
    await response.prepare(request)
    async for piece in pieces(request):
        await response.write(piece)
    return response


async def one_shot(request: web.Request) -> web.Response:
    request.app[STATE].runs += 1
    return web.Response(body=pieces(request), headers=length(request))


async def idle(request: web.Request) -> web.StreamResponse:
    response = await written(request)
    await asyncio.wait_for(request.app[STATE].released.wait(), _IDLE_FOR)
    return response


async def at_once(request: web.Request) -> web.Response:
    request.app[STATE].runs += 1
    await asyncio.sleep(float(request.query.get("wait", 0)))
    size = int(request.query["size"])
    return web.Response(body=_kept(size) if "kept" in request.query else whole(size))


async def runs(request: web.Request) -> web.Response:
    gc.collect()
    return web.json_response(request.app[STATE].runs)


async def release(request: web.Request) -> web.Response:
    request.app[STATE].released.set()
    return web.Response()


def make_app(mode: str) -> web.Application:
    app = web.Application(middlewares=[reduce_middleware()] if mode == "reduce" else [])
    app[STATE] = State()
    app.router.add_get("/written", written)
    app.router.add_get("/one-shot", one_shot)
    app.router.add_get("/idle", idle)
    app.router.add_get("/whole", at_once)
    app.router.add_post("/runs", runs)
    app.router.add_post("/release", release)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=["plain", "reduce"])
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    web.run_app(
        make_app(options.mode),
        host="127.0.0.1",
        port=options.port,
        loop=uvloop.new_event_loop(),
        access_log=None,
        print=None,
        backlog=2048,
        shutdown_timeout=1.0,
    )


if __name__ == "__main__":
    main()
