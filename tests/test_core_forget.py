"""`forget`: the next call starts a new flight; whoever already waits keeps the old one."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from aiohttp_reduce import AsyncReducer


class Work:
    def __init__(self) -> None:
        self.gates: list[asyncio.Event] = []

    async def run(self) -> int:
        gate = asyncio.Event()
        self.gates.append(gate)
        number = len(self.gates)
        await gate.wait()
        return number


async def test_the_next_call_starts_anew_and_whoever_waits_keeps_the_old_flight() -> None:
    reducer, work = AsyncReducer(), Work()
    old = [reducer(work.run(), ident="k"), reducer(work.run(), ident="k")]
    await asyncio.sleep(0)

    assert reducer.forget("k") is True
    new = [reducer(work.run(), ident="k"), reducer(work.run(), ident="k")]
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    work.gates[1].set()
    assert await asyncio.gather(*new) == [2, 2]
    assert not any(future.done() for future in old)
    work.gates[0].set()
    assert await asyncio.gather(*old) == [1, 1]


async def test_the_end_of_a_forgotten_flight_leaves_the_new_one_in_its_place() -> None:
    reducer, work = AsyncReducer(), Work()
    old = reducer(work.run(), ident="k")
    reducer.forget("k")
    new = reducer(work.run(), ident="k")
    await asyncio.sleep(0)
    work.gates[0].set()
    await old
    joined = reducer(work.run(), ident="k")
    await asyncio.sleep(0)
    assert len(work.gates) == 2
    work.gates[1].set()
    assert await asyncio.gather(new, joined) == [2, 2]


async def test_a_stuck_leader_is_got_rid_of() -> None:
    """async_reduce: a stuck leader sticks all, for ever."""
    reducer = AsyncReducer()

    async def stuck() -> str:
        await asyncio.Event().wait()
        return "never"

    async def fine() -> str:
        return "fine"

    old = reducer(stuck(), ident="k")
    await asyncio.sleep(0)
    assert reducer.forget("k")
    assert await reducer(fine(), ident="k") == "fine"
    assert not old.done()


async def test_what_is_unknown_is_no_error() -> None:
    reducer = AsyncReducer()
    assert reducer.forget("nothing") is False
    assert reducer.forget(None) is False


async def test_forgetting_twice_finds_nothing_the_second_time() -> None:
    reducer, work = AsyncReducer(), Work()
    reducer(work.run(), ident="k").cancel()
    assert [reducer.forget("k"), reducer.forget("k")] == [True, False]


async def test_a_coroutine_stands_for_its_automatic_identity() -> None:
    reducer, gate = AsyncReducer(), asyncio.Event()

    async def f(n: int) -> object:
        await gate.wait()
        return object()

    old = reducer(f(1))
    named = f(1)
    assert reducer.forget(f(2)) is False
    assert reducer.forget(named) is True
    assert inspect.getcoroutinestate(named) == inspect.CORO_CLOSED
    new = reducer(f(1))
    gate.set()
    assert await old is not await new


async def test_types_count_in_forget_too() -> None:
    reducer, work = AsyncReducer(), Work()
    future = reducer(work.run(), ident=1)
    await asyncio.sleep(0)
    assert [reducer.forget(True), reducer.forget(1.0), reducer.forget(1)] == [False, False, True]
    work.gates[0].set()
    assert await future == 1


async def test_an_unhashable_ident_is_refused() -> None:
    async def f(items: list[int]) -> None: ...

    with pytest.raises(TypeError, match="ident must be hashable"):
        AsyncReducer().forget([])  # type: ignore[arg-type]
    coro = f([])
    with pytest.raises(TypeError, match="argument 'items'"):
        AsyncReducer().forget(coro)
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CREATED
    coro.close()


async def test_another_loops_flight_is_not_touched() -> None:
    reducer, work = AsyncReducer(), Work()
    mine = reducer(work.run(), ident="k")

    async def elsewhere() -> bool:
        return reducer.forget("k")

    def new_program(main: Callable[[], Any]) -> Any:
        return asyncio.run(main())

    assert await asyncio.to_thread(new_program, elsewhere) is False
    joined = reducer(work.run(), ident="k")
    await asyncio.sleep(0)
    work.gates[0].set()
    assert await asyncio.gather(mine, joined) == [1, 1]


def test_forget_needs_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncReducer().forget("k")


class _Wrapped(Coroutine[Any, Any, int]):
    """A coroutine that is not Python's own, as compiled code makes them."""

    def __init__(self, inner: Coroutine[Any, Any, int]) -> None:
        self._inner = inner

    def send(self, value: Any) -> Any:
        return self._inner.send(value)

    def throw(self, *args: Any) -> Any:
        return self._inner.throw(*args)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Any:
        return self._inner.__await__()


async def test_one_ident_is_one_key_whatever_kind_of_coroutine_it_comes_with() -> None:
    reducer = AsyncReducer()
    release = asyncio.Event()
    runs = 0

    async def work() -> int:
        nonlocal runs
        runs += 1
        await release.wait()
        return runs

    calls = [reducer(work(), ident="x"), reducer(_Wrapped(work()), ident="x")]
    release.set()
    assert [await call for call in calls] == [1, 1]
    release.clear()
    call = reducer(_Wrapped(work()), ident="x")
    assert reducer.forget("x")
    release.set()
    assert await call == 2
