"""Identical calls in flight cost one execution, and all get its result."""

import asyncio
import contextvars
import gc
import inspect
import sys
from collections.abc import Coroutine, Generator
from typing import Any

import pytest

import aiohttp_reduce
from aiohttp_reduce import AsyncReducer, async_reduce, async_reduceable


class Work:
    """A coroutine function that counts its executions and ends when told to."""

    def __init__(self) -> None:
        self.executions = 0
        self.started = asyncio.Event()
        self.gate = asyncio.Event()

    async def run(self, name: str = "") -> list[str]:
        self.executions += 1
        self.started.set()
        await self.gate.wait()
        return [name]


async def test_all_get_the_one_result_of_one_execution() -> None:
    work = Work()

    waiting = [async_reduce(work.run("a")) for _ in range(50)]
    work.gate.set()
    results = await asyncio.gather(*waiting)

    assert work.executions == 1
    assert results[0] == ["a"]
    assert all(result is results[0] for result in results)


async def test_joins_also_when_the_coroutine_is_already_running() -> None:
    work = Work()
    first = async_reduce(work.run())
    await work.started.wait()
    second = async_reduce(work.run())
    work.gate.set()
    assert await first is await second
    assert work.executions == 1


async def test_returns_an_awaitable_at_once() -> None:
    work = Work()
    awaitable = async_reduce(work.run())
    assert inspect.isawaitable(awaitable)
    assert work.executions == 0
    work.gate.set()
    assert await awaitable == [""]


async def test_the_awaitable_may_be_awaited_by_several_and_again() -> None:
    work = Work()
    awaitable = async_reduce(work.run())
    work.gate.set()
    assert await asyncio.gather(awaitable, awaitable) == [[""], [""]]
    assert await awaitable == [""]


async def test_runs_whether_or_not_anyone_awaits() -> None:
    work = Work()
    kept = async_reduce(work.run("kept"))
    async_reduce(work.run("dropped"))
    gc.collect()
    await work.started.wait()
    await asyncio.sleep(0)
    assert work.executions == 2
    work.gate.set()
    await kept


async def test_the_execution_has_a_task_of_its_own() -> None:
    async def which() -> asyncio.Task[Any] | None:
        return asyncio.current_task()

    task = await async_reduce(which())
    assert task is not None
    assert task is not asyncio.current_task()


async def test_the_execution_sees_the_context_of_the_call_that_leads() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def read() -> str:
        return variable.get()

    variable.set("leader")
    first = async_reduce(read(), ident="read")
    variable.set("follower")
    second = async_reduce(read(), ident="read")
    assert await asyncio.gather(first, second) == ["leader", "leader"]


def eager(
    loop: asyncio.AbstractEventLoop, coro: Any, *, eager_start: bool | None = None, **options: Any
) -> asyncio.Task[Any]:
    """asyncio's own; uvloop 0.23 hands it an `eager_start` that it does not take before Python 3.14."""
    make: Any = asyncio.eager_task_factory  # type: ignore[attr-defined,unused-ignore]
    task: asyncio.Task[Any] = make(loop, coro, **options)
    return task


async def _starting_late(call: Any) -> None:
    shared = {"user": "before"}
    keys: list[str] = []

    async def change() -> str:
        shared["user"] = "after"
        return shared["user"]

    first = call(change(), ident="change")
    keys.append(shared["user"])
    second = call(change(), ident="change")
    keys.append(shared["user"])
    assert keys == ["before", "before"]
    assert await asyncio.gather(first, second) == ["after", "after"]


async def test_the_coroutine_does_not_start_inside_the_call() -> None:
    await _starting_late(AsyncReducer())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.eager_task_factory came with Python 3.12")
async def test_nor_with_the_eager_task_factory() -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(eager)
    reducer = AsyncReducer()
    try:
        await _starting_late(reducer)
        work = Work()
        waiting = [reducer(work.run()) for _ in range(3)]
        assert work.executions == 0
        work.gate.set()
        assert await asyncio.gather(*waiting) == [[""]] * 3
        assert work.executions == 1
    finally:
        loop.set_task_factory(None)


async def test_nor_with_a_task_factory_that_steps_at_once() -> None:
    loop = asyncio.get_running_loop()

    def stepping(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        assert coro.send(None) is None  # a bare yield: it waits for the next pass of the loop
        return asyncio.Task(coro, loop=loop, **options)

    loop.set_task_factory(stepping)  # type: ignore[arg-type,unused-ignore]
    try:
        await _starting_late(AsyncReducer())
    finally:
        loop.set_task_factory(None)


async def test_a_task_factory_that_raises_leaves_no_flight_behind() -> None:
    loop = asyncio.get_running_loop()
    reducer = AsyncReducer()

    def broken(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        raise ValueError("no task today")

    work = Work()
    work.gate.set()
    coro = work.run()
    loop.set_task_factory(broken)
    try:
        with pytest.raises(ValueError, match="no task today") as caught:
            reducer(coro, ident="k")
    finally:
        loop.set_task_factory(None)
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
    assert await reducer(work.run(), ident="k") == [""]
    assert work.executions == 1
    assert caught.value is not None  # held until here, and with it whatever its traceback holds


async def test_every_other_coroutine_is_closed() -> None:
    work = Work()
    led, joined = work.run(), work.run()
    first = async_reduce(led)
    second = async_reduce(joined)
    assert inspect.getcoroutinestate(joined) == inspect.CORO_CLOSED
    assert inspect.getcoroutinestate(led) == inspect.CORO_CREATED
    work.gate.set()
    await asyncio.gather(first, second)
    assert inspect.getcoroutinestate(led) == inspect.CORO_CLOSED


async def test_a_call_after_the_end_executes_again() -> None:
    work = Work()
    work.gate.set()
    await async_reduce(work.run())
    await async_reduce(work.run())
    assert work.executions == 2


async def test_a_call_made_while_the_outcome_is_on_its_way_executes_again() -> None:
    count = 0

    async def number() -> int:
        nonlocal count
        count += 1
        return count

    reducer = AsyncReducer()
    first = reducer(number(), ident="n")
    later: list[asyncio.Future[int]] = []
    first.add_done_callback(lambda _: later.append(reducer(number(), ident="n")))
    assert await first == 1
    await asyncio.sleep(0)
    assert await later[0] == 2


async def test_reducers_do_not_share_with_each_other() -> None:
    work = Work()
    work.gate.set()
    await asyncio.gather(AsyncReducer()(work.run()), AsyncReducer()(work.run()))
    assert work.executions == 2


async def test_an_explicit_ident_is_all_that_counts() -> None:
    async def one() -> str:
        return "one"

    async def two() -> str:
        return "two"

    assert await asyncio.gather(async_reduce(one(), ident="x"), async_reduce(two(), ident="x")) == ["one", "one"]
    assert await asyncio.gather(async_reduce(one(), ident="x"), async_reduce(one(), ident="y")) == ["one", "one"]


@pytest.mark.parametrize("ident", ["", 0, False, (), frozenset()])
async def test_a_false_ident_is_an_ident(ident: Any) -> None:
    async def echo(value: int) -> int:
        return value

    assert await asyncio.gather(async_reduce(echo(1), ident=ident), async_reduce(echo(2), ident=ident)) == [1, 1]


async def test_an_execution_may_call_the_reducer_for_another_call() -> None:
    async def factorial(n: int) -> int:
        return 1 if n == 0 else n * await async_reduce(factorial(n - 1))

    assert await asyncio.gather(async_reduce(factorial(5)), async_reduce(factorial(4))) == [120, 24]


async def test_any_object_with_the_methods_of_a_coroutine_is_taken_with_an_ident() -> None:
    class Custom(Coroutine[Any, Any, str]):
        closed = 0

        def __await__(self) -> Generator[Any, Any, str]:
            yield
            return "custom"

        def send(self, value: Any) -> Any:
            raise StopIteration("custom")

        def throw(self, *args: Any) -> Any:
            raise args[0]

        def close(self) -> None:
            self.closed += 1

    led, joined = Custom(), Custom()
    assert await asyncio.gather(async_reduce(led, ident="c"), async_reduce(joined, ident="c")) == ["custom"] * 2
    assert joined.closed == 1
    with pytest.raises(TypeError, match=r"takes a coroutine, got .*Custom"):
        async_reduce(Custom())


async def test_what_is_no_fresh_coroutine_is_refused() -> None:
    async def f() -> None:
        await asyncio.sleep(0)

    def generator() -> Generator[None, None, None]:
        yield

    for wrong in (f, 1, None, generator(), asyncio.get_running_loop().create_future()):
        with pytest.raises(TypeError, match=r"async_reduce\(\) takes a coroutine, got"):
            async_reduce(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"async_reduce\(\) takes a coroutine, got"):
            async_reduce(wrong, ident="x") if wrong is not None else async_reduce(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"call it: async_reduce\(f\(\.\.\.\)\)"):
        async_reduce(f)  # type: ignore[arg-type]

    started = f()
    started.send(None)
    with pytest.raises(TypeError, match="has not started"):
        async_reduce(started)
    started.close()
    with pytest.raises(TypeError, match="has not started"):
        async_reduce(started)


def test_without_a_running_loop_the_call_raises_and_the_coroutine_stays_usable() -> None:
    async def f() -> int:
        return 3

    coro = f()
    with pytest.raises(RuntimeError, match="no running event loop"):
        async_reduce(coro)
    assert asyncio.run(coro) == 3


# -- the decorator


async def test_the_decorator_reduces_each_call() -> None:
    executions: list[int] = []

    @async_reduceable()
    async def double(n: int) -> int:
        executions.append(n)
        await asyncio.sleep(0)
        return 2 * n

    assert await asyncio.gather(double(1), double(1), double(2), double(n=1)) == [2, 2, 4, 2]
    assert sorted(executions) == [1, 2]


async def test_the_decorator_goes_through_the_reducer_that_it_is_given() -> None:
    stats = aiohttp_reduce.async_reduce_core.StatisticsOverallHooks()
    reducer = AsyncReducer(hooks=stats)

    @async_reduceable(reducer)
    async def f() -> str:
        await asyncio.sleep(0)
        return "f"

    assert await asyncio.gather(f(), f()) == ["f", "f"]
    assert (stats.total, stats.reduced) == (2, 1)


@pytest.mark.parametrize("decorate", [async_reduceable(), async_reduceable(AsyncReducer())])
def test_the_decorator_keeps_name_signature_and_kind(decorate: Any) -> None:
    async def named(a: int, *, b: str = "b") -> float:
        """Documented."""
        return 0.0

    decorated = decorate(named)

    assert inspect.iscoroutinefunction(decorated)
    assert inspect.signature(decorated) == inspect.signature(named)
    assert (decorated.__name__, decorated.__qualname__) == (named.__name__, named.__qualname__)
    assert (decorated.__doc__, decorated.__module__) == ("Documented.", __name__)
    assert decorated.__wrapped__ is named


async def test_decorated_methods_are_shared_by_instance() -> None:
    class Service:
        calls = 0

        @async_reduceable()
        async def load(self) -> "Service":
            self.calls += 1
            await asyncio.sleep(0)
            return self

        @classmethod
        @async_reduceable()
        async def name(cls) -> str:
            return cls.__name__

    a, b = Service(), Service()
    assert await asyncio.gather(a.load(), a.load(), b.load()) == [a, a, b]
    assert (a.calls, b.calls) == (1, 1)
    assert await Service.name() == "Service"


async def test_a_decorated_call_with_an_unhashable_argument_leaves_no_coroutine_unawaited() -> None:
    @async_reduceable()
    async def f(items: list[int]) -> int:
        return len(items)

    with pytest.raises(TypeError, match="'items'"):
        await f([1])
    gc.collect()


async def test_a_decorated_function_that_makes_no_coroutine_says_so() -> None:
    @async_reduceable()
    def plain() -> int:  # type: ignore[type-var]
        return 1

    with pytest.raises(TypeError, match=r"takes a coroutine, got 1"):
        await plain()


def test_the_decorator_without_parentheses_says_how_it_is_written() -> None:
    async def f() -> None: ...

    with pytest.raises(TypeError, match=r"write @async_reduceable\(\) with parentheses"):
        async_reduceable(f)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes an AsyncReducer, got 1"):
        async_reduceable(1)  # type: ignore[arg-type]
