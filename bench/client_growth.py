"""How the cost of a client's call grows: with those who make the same one, and with its headers.

The client is this process (on the core that otherwise makes the load, on uvloop); `bench.upstream` answers it.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, Final

import uvloop
from aiohttp import ClientSession

from aiohttp_reduce import ReducingClientSession

from .calls import Stopwatch, headers
from .client import upstream
from .client_load import fetch, requests_at
from .curve import Curve, extrapolated, level
from .processes import Server
from .report import Row, microseconds
from .upstream import BODY

_BOTH: Final = ("ours", "plain")
_AT_ONCE: Final = 50
_CALLS: Final = 1_000
# No two herds ask for the same.
_NUMBERS: Final = count()

Call = Callable[[Server, str, int], Coroutine[Any, Any, float]]


async def _cpu(server: Server, name: str, size: int, fields: Mapping[str, str], *, is_herd: bool) -> float:
    """Seconds of CPU for each call, where so many are made at once, again and again; a herd asks for the same.

    Raises RuntimeError where the upstream has seen another number of requests.
    """
    times = max(1, _CALLS // size)
    kind: Any = ReducingClientSession if name == "ours" else ClientSession
    async with ClientSession() as counting, kind(headers=fields) as session:

        async def ask(number: int) -> None:
            if await fetch(session, f"http://127.0.0.1:{server.port}/small?n={number}") != BODY:
                raise RuntimeError(f"{name}: another body than was sent")

        await asyncio.gather(*[ask(next(_NUMBERS)) for _ in range(100)])  # as many connections as a session has
        before = await requests_at(counting, server.port)
        with Stopwatch() as watch:
            for _ in range(times):
                first = next(_NUMBERS)
                await asyncio.gather(*[ask(first if is_herd else next(_NUMBERS)) for _ in range(size)])
        seen = await requests_at(counting, server.port) - before
    if seen != (times if is_herd and name == "ours" else times * size):
        raise RuntimeError(f"{name}: {times} times {size} calls came to {seen} requests")
    return watch.seconds / times / size


async def _herd(server: Server, name: str, size: int) -> float:
    """A call in a herd of so many."""
    return await _cpu(server, name, size, {}, is_herd=True)


async def _with_headers(server: Server, name: str, size: int) -> float:
    """A call that nobody joins, with so many headers."""
    return await _cpu(server, name, _AT_ONCE, headers(size), is_herd=False)


async def _following_with_headers(server: Server, name: str, size: int) -> float:
    """A call in a herd, with so many headers."""
    return await _cpu(server, name, _AT_ONCE, headers(size), is_herd=True)


_HEADERS: Final = (5, 10, 25, 50, 100)
CALLS: Final[Sequence[tuple[Call, Curve]]] = (
    (
        _herd,
        Curve("client, herd of N: CPU / call", (1, 10, 100, 1_000, 10_000), _BOTH, microseconds, level(100)),
    ),
    (_with_headers, Curve("client, a call with N headers: CPU", _HEADERS, _BOTH, microseconds, extrapolated(25))),
    (
        _following_with_headers,
        Curve(
            f"client, herd of {_AT_ONCE} with N headers: CPU / call", _HEADERS, _BOTH, microseconds, extrapolated(25)
        ),
    ),
)


def works(rounds: int, largest: int) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    """What each row is, and how to measure it at sizes up to the largest."""
    with upstream() as server:
        for call, curve in CALLS:
            yield curve.what, partial(curve.upto(largest).rows, partial(_measure, call, server), rounds)


def _measure(call: Call, server: Server, name: str, size: int) -> float:
    return uvloop.run(call(server, name, size))
