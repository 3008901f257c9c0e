"""`AsyncReducer` against `async_reduce` 1.5, in this process, on asyncio: time per call.

Calls are gathered as the README of `async_reduce` does it, and the coroutine's body is trivial.
"""

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp_reduce import AsyncReducer

from .report import Row, Target, microseconds, quotients

Work = Callable[[Any, int], Awaitable[Any]]


async def body(a: object) -> object:
    return a


async def herd_with_ident(reducer: Any, calls: int) -> None:
    await asyncio.gather(*[reducer(body(1), ident="herd") for _ in range(calls)])


async def herd_automatic(reducer: Any, calls: int) -> None:
    await asyncio.gather(*[reducer(body(1)) for _ in range(calls)])


async def distinct_with_ident(reducer: Any, calls: int) -> None:
    await asyncio.gather(*[reducer(body(n), ident=f"call {n}") for n in range(calls)])


async def distinct_automatic(reducer: Any, calls: int) -> None:
    await asyncio.gather(*[reducer(body(n)) for n in range(calls)])


async def sequential_with_ident(reducer: Any, calls: int) -> None:
    for n in range(calls):
        await reducer(body(n), ident="sequential")


async def sequential_automatic(reducer: Any, calls: int) -> None:
    for n in range(calls):
        await reducer(body(n))


WORKS: dict[str, Work] = {
    "core: herd of 200 with ident": herd_with_ident,
    "core: herd of 200, automatic identity": herd_automatic,
    "core: 200 distinct with ident": distinct_with_ident,
    "core: 200 distinct, automatic identity": distinct_automatic,
    "core: sequential with ident": sequential_with_ident,
    "core: sequential, automatic identity": sequential_automatic,
}
_CALLS = 200
_REPEATS = 10


def time_per_call(work: Work, reducer: Any) -> float:
    """Seconds for each call."""

    async def repeated() -> float:
        await work(reducer, _CALLS)
        gc.collect()
        start = time.perf_counter()
        for _ in range(_REPEATS):
            await work(reducer, _CALLS)
        return (time.perf_counter() - start) / (_CALLS * _REPEATS)

    return asyncio.run(repeated())


def core_row(what: str, work: Work, rounds: int) -> Row:
    """One of `WORKS`: A B, B A, and so on."""
    try:
        from async_reduce import AsyncReducer as Seed  # type: ignore[import-untyped]
    except ImportError:
        return Row(what, target=Target(0.67), missing="async_reduce is not installed")
    reducers: dict[str, Any] = {"ours": AsyncReducer(), "seed": Seed()}
    times: dict[str, list[float]] = {"ours": [], "seed": []}
    for number in range(rounds):
        for name in ("ours", "seed") if number % 2 else ("seed", "ours"):
            times[name].append(time_per_call(work, reducers[name]))
    return Row(
        what,
        ours=microseconds(statistics.median(times["ours"])),
        peers=f"async_reduce {microseconds(statistics.median(times['seed']))}",
        ratios=quotients(times["ours"], times["seed"]),
        target=Target(0.67),
    )
