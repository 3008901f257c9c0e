"""`AsyncReducer` against `async_reduce` 1.5 and `async-lru`, in this process, on asyncio: time per call.

Calls are gathered as the README of `async_reduce` does it, and the coroutine's body is trivial. `async-lru` is a cache;
with `ttl=0` it forgets a result one pass of the event loop after it came, so that herds and distinct calls are the same
job. One call right after another is not: it is still answered from memory then, and so those rows are without it.
"""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from aiohttp_reduce import AsyncReducer

from .report import Row, Target, microseconds, quotients, turned

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


# The same jobs for a function that `async-lru` caches.


async def cached_with_ident(a: object, ident: str) -> object:
    return a


async def cached_herd_with_ident(function: Any, calls: int) -> None:
    await asyncio.gather(*[function(1, "herd") for _ in range(calls)])


async def cached_herd_automatic(function: Any, calls: int) -> None:
    await asyncio.gather(*[function(1) for _ in range(calls)])


async def cached_distinct_with_ident(function: Any, calls: int) -> None:
    await asyncio.gather(*[function(n, f"call {n}") for n in range(calls)])


async def cached_distinct_automatic(function: Any, calls: int) -> None:
    await asyncio.gather(*[function(n) for n in range(calls)])


@dataclass(frozen=True)
class Contest:
    """What reducers do, and the same for a cached function, where that can be done."""

    work: Work
    cached: Work | None = None
    by_ident: bool = False


WORKS: dict[str, Contest] = {
    "core: herd of 200 with ident": Contest(herd_with_ident, cached_herd_with_ident, by_ident=True),
    "core: herd of 200, automatic identity": Contest(herd_automatic, cached_herd_automatic),
    "core: 200 distinct with ident": Contest(distinct_with_ident, cached_distinct_with_ident, by_ident=True),
    "core: 200 distinct, automatic identity": Contest(distinct_automatic, cached_distinct_automatic),
    "core: sequential with ident": Contest(sequential_with_ident),
    "core: sequential, automatic identity": Contest(sequential_automatic),
}
_CALLS = 200
_REPEATS = 10


def time_per_call(work: Work, worker: Any) -> float:
    """Seconds for each call to a reducer, or to a cached function."""

    async def repeated() -> float:
        await work(worker, _CALLS)
        gc.collect()
        start = time.perf_counter()
        for _ in range(_REPEATS):
            await work(worker, _CALLS)
        return (time.perf_counter() - start) / (_CALLS * _REPEATS)

    return asyncio.run(repeated())


def cached(function: Callable[..., Coroutine[Any, Any, object]], *, by_ident: bool) -> Any:
    """The function behind a cache of `async-lru` that remembers nothing: an object of one event loop."""
    from async_lru import alru_cache

    if by_ident:
        return alru_cache(maxsize=None, ttl=0, key=lambda a, ident: ident)(function)
    return alru_cache(maxsize=None, ttl=0, typed=True)(function)


def core_row(what: str, contest: Contest, rounds: int) -> Row:
    """One of `WORKS`: A B, B A, and so on."""
    try:
        from async_reduce import AsyncReducer as Seed  # type: ignore[import-untyped]
    except ImportError:
        return Row(what, target=Target(0.67), missing="async_reduce is not installed")
    reducers: dict[str, Any] = {"ours": AsyncReducer(), "async_reduce": Seed()}
    times: dict[str, list[float]] = {name: [] for name in reducers}
    lru = contest.cached if find_spec("async_lru") else None
    if lru is not None:
        times["async-lru"] = []
    for number in range(rounds):
        for name in turned(times, number):
            if name in reducers:
                taken = time_per_call(contest.work, reducers[name])
            elif lru is not None:
                function = cached_with_ident if contest.by_ident else body
                taken = time_per_call(lru, cached(function, by_ident=contest.by_ident))
            times[name].append(taken)
    absent = ", no async-lru: not installed" if contest.cached is not lru else ""
    return Row.of(
        what, times, microseconds, quotients(times["ours"], times["async_reduce"]), Target(0.67), absent=absent
    )
