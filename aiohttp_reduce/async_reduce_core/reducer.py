"""`AsyncReducer`: identical coroutines that are in flight at once are executed once.

Credit: the API is that of the `async_reduce` library by Konstantin Enchant (MIT); the code is written anew.
"""

import asyncio
import functools
import logging
from asyncio import get_running_loop
from collections.abc import Callable, Coroutine, Hashable
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar

from .flights import Flight, FlightTable, PerLoop
from .hooks import BaseHooks, check_hooks, guarded
from .identity import coroutine_key, describe, explicit_key, unhashable
from .launch import PAUSE, launch

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)


class AsyncReducer:
    """Calls take a coroutine and return an awaitable of the result that it shares with all identical calls.

    One reducer may be used from many event loops and threads: flights of different loops never meet, nor do those of
    different reducers.

    - `hooks`: an object with the methods of `BaseHooks`, told of every call. Default: nobody is told.

    Raises TypeError for any other `hooks`.

    Example::

        from aiohttp_reduce.hooks import StatisticsOverallHooks

        figures = StatisticsOverallHooks()
        reduce = AsyncReducer(hooks=figures)

        async def fetch(key: str) -> str:
            await asyncio.sleep(0.01)
            return f"value of {key}"

        async def main() -> None:
            await asyncio.gather(reduce(fetch("a")), reduce(fetch("a")))
            print(figures)  # Stats(total=2, executed=1, reduced=1, errors=0)
    """

    __slots__ = ("_hooks", "_tables")

    def __init__(self, hooks: BaseHooks | None = None) -> None:
        check_hooks(hooks, "AsyncReducer(hooks=...)")
        self._hooks = hooks
        self._tables: PerLoop[FlightTable[Any]] = PerLoop(FlightTable)

    def __call__(self, coro: Coroutine[Any, Any, T], *, ident: Hashable = None) -> "asyncio.Future[T]":
        """Join the flight of `ident`, or start `coro` in a task of its own; returns at once.

        - `coro`: a coroutine that has not started. One that joins is closed, and does not run.
        - `ident`: what identifies the call; hashable, compared with its type. None, the default: calls are identical
          if they are of the same function with equal arguments of equal types (`f(1)` and `f(True)` are not); what
          cannot be hashed in a closure is compared by `is`.

        Returns a future of what the coroutine returns or raises. It may be cancelled without harm to the others, and
        may be dropped: the coroutine runs all the same.

        Raises TypeError for what is no such coroutine and for an unhashable argument or ident (the coroutine stays
        usable), and RuntimeError where no event loop runs.
        """
        if ident is None:
            key = coroutine_key(coro)
        elif type(ident) is str and type(coro) is CoroutineType:
            key = ident  # as `explicit_key` says, without the call
        else:
            key = explicit_key(ident, coro)
        loop = get_running_loop()
        table = self._tables.by_loop.get(loop)
        if table is None:
            table = self._tables.get()
        try:
            flight = table.flights.get(key)
        except TypeError:
            raise TypeError(unhashable(coro, ident)) from None
        future: asyncio.Future[T] = loop.create_future()
        hooks = self._hooks
        shown: Hashable = None
        if hooks is not None:
            shown = ident if ident is not None else describe(coro, key)
            guarded(hooks.on_apply_for, coro, shown)
            guarded(hooks.on_executing_for if flight is None else hooks.on_reducing_for, coro, shown)
            # A hook may have called the reducer itself.
            flight = table.flights.get(key)
        # An argument whose hash changed meanwhile leaves its flight in the table: one that ended wakes nobody.
        if flight is not None and flight.under_way:
            coro.close()
            waiters = flight.waiters  # never empty: the first call's future stands there
            if len(waiters) >= flight.sweep_at:
                waiters = flight.sweep()
            waiters[future] = None
            return future
        flight = table.flights[key] = Flight(table, key)
        flight.waiters = {future: None}
        # A task factory may be asyncio's eager one, which would run the coroutine inside this call and let
        # it change what the next call's identity sees.
        eager = loop.get_task_factory() is not None
        execution = _execute(flight, coro, eager, hooks, shown)
        flight.subject = launch(loop, execution)
        return future

    def forget(self, ident: Hashable | Coroutine[Any, Any, Any]) -> bool:
        """Let the next call for `ident` start anew; whoever already waits keeps the old flight.

        - `ident`: as it was given to the call; or a coroutine, which stands for its automatic identity, and is closed.

        Returns whether there was a flight in the running loop. Raises TypeError for an unhashable ident, and
        RuntimeError where no event loop runs.
        """
        coro = ident if isinstance(ident, Coroutine) else None
        key = explicit_key(ident) if coro is None else coroutine_key(coro)
        try:
            flight = self._tables.get().flights.get(key)
        except TypeError:
            raise TypeError(unhashable(coro, ident)) from None
        if coro is not None:
            coro.close()
        if flight is None:
            return False
        flight.close()
        return True


async def _execute(
    flight: Flight[Any], coro: Coroutine[Any, Any, Any], eager: bool, hooks: BaseHooks | None, shown: Hashable
) -> None:
    try:
        await PAUSE
        if eager:
            await PAUSE
        result = await coro
    except BaseException as exception:
        if hooks is not None:
            guarded(hooks.on_exception_for, coro, shown, exception)
        _fail(flight, coro, exception)
    else:
        if hooks is not None:
            guarded(hooks.on_result_for, coro, shown, result)
        flight.finish(0, result)


_FOR_THE_LOOP = (asyncio.CancelledError, KeyboardInterrupt, SystemExit)


def _fail(flight: Flight[Any], coro: Coroutine[Any, Any, Any], exception: BaseException) -> None:
    """End the flight by the exception; what is for the loop rather than for those who wait is raised again."""
    coro.close()
    if asyncio._get_running_loop() is flight.table.loop:
        flight.fail(0, exception)
    else:
        flight.close()  # the loop is gone, and with it whoever waited
    if isinstance(exception, _FOR_THE_LOOP):
        raise exception


async_reduce = AsyncReducer()
"""A reducer for the whole process, without hooks: an `AsyncReducer`, and called as one.

It takes, returns and raises what `AsyncReducer.__call__` does; `async_reduce.forget(ident)` is there too.

Example::

    async def fetch(key: str) -> str:
        await asyncio.sleep(0.01)
        return f"value of {key}"

    async def main() -> None:
        await asyncio.gather(async_reduce(fetch("a")), async_reduce(fetch("a")))  # once
        await async_reduce(fetch("b"), ident="b")  # says what identifies the call
        async_reduce.forget("b")
"""


def async_reduceable(
    reducer: AsyncReducer = async_reduce,
) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """Decorate a coroutine function so that each call goes through `reducer`; its signature stays.

    Write `@async_reduceable()` or `@async_reduceable(reducer)`.

    - `reducer`: an `AsyncReducer`; `async_reduce` by default.

    Raises TypeError for anything but a reducer. A call raises TypeError for an unhashable argument.

    Example::

        @async_reduceable()
        async def price_of(product: str) -> int:
            await asyncio.sleep(0.01)
            return 42

        async def main() -> None:
            await asyncio.gather(price_of("apple"), price_of("apple"))  # runs once
    """
    if not callable(reducer) or not hasattr(reducer, "forget"):
        raise TypeError(
            f"async_reduceable() takes an AsyncReducer, got {reducer!r}; write @async_reduceable() with parentheses"
        )

    def decorate(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        @functools.wraps(function)
        async def reduced(*args: P.args, **kwargs: P.kwargs) -> T:
            coro = function(*args, **kwargs)
            try:
                future = reducer(coro)
            except BaseException:
                if isinstance(coro, Coroutine):
                    coro.close()
                raise
            return await future

        return reduced

    return decorate
