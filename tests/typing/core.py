"""What users see of the core under `mypy --strict` and pyright; checked, never run."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, assert_type

from aiohttp_reduce import AsyncReducer, async_reduce, async_reduceable
from aiohttp_reduce.hooks import (
    BaseHooks,
    DebugHooks,
    MultipleHooks,
    StatisticsDetailHooks,
    StatisticsOverallHooks,
)


async def fetch(url: str, *, retries: int = 0) -> bytes:
    return url.encode() * retries


def takes_a_fetcher(fetcher: Callable[[str], Coroutine[Any, Any, bytes]]) -> None: ...


class Service:
    async def load(self, number: int) -> list[str]:
        return [str(number)]

    @async_reduceable()
    async def reduced(self, number: int) -> list[str]:
        return [str(number)]


async def the_awaited_type_is_that_of_the_coroutine(reducer: AsyncReducer) -> None:
    assert_type(async_reduce, AsyncReducer)
    assert_type(await async_reduce(fetch("u")), bytes)
    assert_type(await async_reduce(fetch("u"), ident="u"), bytes)
    assert_type(await async_reduce(fetch("u"), ident=("u", 1)), bytes)
    assert_type(await reducer(Service().load(1)), list[str])
    assert_type(async_reduce(fetch("u")), asyncio.Future[bytes])
    assert_type(await asyncio.gather(reducer(fetch("u")), reducer(Service().load(1))), tuple[bytes, list[str]])
    assert_type(reducer.forget("u"), bool)
    assert_type(reducer.forget(fetch("u")), bool)


async def the_decorator_keeps_parameters(reducer: AsyncReducer) -> None:
    reduced = async_reduceable()(fetch)
    assert_type(await reduced("u", retries=2), bytes)
    assert_type(await async_reduceable(reducer)(fetch)("u"), bytes)
    assert_type(await Service().reduced(1), list[str])
    takes_a_fetcher(reduced)


async def mistakes_are_found(reducer: AsyncReducer) -> None:
    reduced = async_reduceable()(fetch)
    await reduced(1)  # type: ignore[arg-type]
    await reduced("u", retries="2")  # type: ignore[arg-type]
    await reduced("u", timeout=2)  # type: ignore[call-arg]
    await Service().reduced("1")  # type: ignore[arg-type]
    reducer(fetch)  # type: ignore[arg-type]
    reducer(fetch("u"), ident=[])  # type: ignore[arg-type]
    reducer(fetch("u"), "u")  # type: ignore[call-arg]
    AsyncReducer(hooks=1)  # type: ignore[arg-type]
    async_reduceable(fetch)  # type: ignore[arg-type]


def hooks_compose(stats: StatisticsOverallHooks, detail: StatisticsDetailHooks) -> None:
    assert_type(stats & detail, MultipleHooks)
    assert_type(stats & detail & DebugHooks(), MultipleHooks)
    assert_type((stats & detail).hooks_list, list[BaseHooks])
    assert_type(stats.total, int)
    assert_type(detail.errors.most_common(1), list[tuple[str, int]])
    AsyncReducer(hooks=stats & detail)
    AsyncReducer(stats)
    AsyncReducer(None)
