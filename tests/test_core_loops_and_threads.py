"""A flight belongs to its event loop; one reducer serves many loops, one after another and at once."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from aiohttp_reduce import AsyncReducer, async_reduce
from aiohttp_reduce.async_reduce_core import PerLoop
from tests.conftest import uvloop

NEW_LOOP = [pytest.param(asyncio.new_event_loop, id="asyncio")]
if uvloop is not None:
    NEW_LOOP.append(pytest.param(uvloop.new_event_loop, id="uvloop"))

pytestmark = pytest.mark.parametrize("new_loop", NEW_LOOP)

Loop = Callable[[], asyncio.AbstractEventLoop]


def run(main: Any, new_loop: Loop) -> Any:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)


async def running_loop() -> asyncio.AbstractEventLoop:
    await asyncio.sleep(0)
    return asyncio.get_running_loop()


def test_one_reducer_serves_many_loops_in_turn(new_loop: Loop) -> None:
    async def main() -> None:
        first, second = await asyncio.gather(async_reduce(running_loop()), async_reduce(running_loop()))
        assert first is second is asyncio.get_running_loop()

    for _ in range(20):
        run(main(), new_loop)


def test_one_reducer_serves_many_loops_in_turn_in_each_of_many_programs(new_loop: Loop) -> None:
    for _ in range(5):
        assert asyncio.run(_in_a_program()).is_closed()


async def _in_a_program() -> asyncio.AbstractEventLoop:
    return await async_reduce(running_loop())


def test_loops_in_threads_never_share_a_flight(new_loop: Loop) -> None:
    loops = 8
    barrier = threading.Barrier(loops)
    executions: list[int] = []
    failures: list[BaseException] = []

    async def work(number: int, release: "asyncio.Event") -> asyncio.AbstractEventLoop:
        executions.append(number)
        await release.wait()
        return asyncio.get_running_loop()

    async def main() -> None:
        for number in range(25):
            release = asyncio.Event()
            waiting = [async_reduce(work(number, release), ident=("threads", number)) for _ in range(4)]
            await asyncio.sleep(0)
            barrier.wait(30)  # every thread now has this flight open
            release.set()
            assert set(await asyncio.gather(*waiting)) == {asyncio.get_running_loop()}

    def thread() -> None:
        try:
            run(main(), new_loop)
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=thread) for _ in range(loops)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert not failures
    assert len(executions) == loops * 25


async def _stuck() -> None:
    await asyncio.Event().wait()


def _abandoned_loop(reducer: AsyncReducer, new_loop: Loop, argument: Any) -> "asyncio.Future[str]":
    """A loop that was closed while a flight was under way."""

    async def stuck(argument: Any) -> str:
        await asyncio.Event().wait()
        return "from the dead loop"

    async def main() -> "asyncio.Future[str]":
        future = reducer(stuck(argument), ident="k")
        await asyncio.sleep(0)
        return future

    loop = new_loop()
    loop.set_exception_handler(lambda _loop, context: None)  # "Task was destroyed but it is pending"
    future = loop.run_until_complete(main())
    loop.close()
    return future


def test_a_flight_of_a_closed_loop_is_never_joined(new_loop: Loop) -> None:
    reducer = AsyncReducer()
    left = _abandoned_loop(reducer, new_loop, None)

    async def fresh() -> str:
        return "fresh"

    async def main() -> str:
        return await reducer(fresh(), ident="k")

    assert run(main(), new_loop) == "fresh"
    assert not left.done()
    del left
    gc.collect()


def test_a_flight_of_a_closed_loop_does_not_leak(new_loop: Loop) -> None:
    class Argument:
        pass

    reducer = AsyncReducer()
    argument = Argument()
    gone = weakref.ref(argument)
    _abandoned_loop(reducer, new_loop, argument)
    del argument

    async def main() -> None:
        await reducer(running_loop())

    run(main(), new_loop)
    gc.collect()
    assert gone() is None


def test_closed_loops_do_not_pile_up(new_loop: Loop) -> None:
    reducer = AsyncReducer()
    loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()

    async def main() -> None:
        loops.add(asyncio.get_running_loop())
        await reducer(running_loop())

    for _ in range(10):
        run(main(), new_loop)
    gc.collect()
    assert len(loops) <= 1


def test_a_flight_whose_loop_is_closed_wakes_nobody_when_its_coroutine_is_destroyed(
    new_loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    reducer = AsyncReducer()
    told: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", lambda unraisable: told.append(type(unraisable.exc_value)))

    async def breaks() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while it is destroyed")

    async def waits() -> None:
        await reducer(breaks(), ident="k")

    async def main() -> None:
        waiting.append(asyncio.ensure_future(waits()))
        for _ in range(3):
            await asyncio.sleep(0)

    waiting: list[asyncio.Future[None]] = []
    loop = new_loop()
    loop.set_exception_handler(lambda _loop, context: None)
    loop.run_until_complete(main())
    loop.close()
    run(_touch(reducer), new_loop)
    waiting.clear()
    gc.collect()
    assert set(told) <= {ValueError}  # its own, and no "Event loop is closed"


async def _touch(reducer: AsyncReducer) -> None:
    await reducer(running_loop())


def test_per_loop_makes_one_value_for_each_loop_and_drops_the_closed(new_loop: Loop) -> None:
    made: list[asyncio.AbstractEventLoop] = []

    def make(loop: asyncio.AbstractEventLoop) -> list[str]:
        made.append(loop)
        return []

    per_loop = PerLoop(make)

    async def twice() -> None:
        assert per_loop.get() is per_loop.get()

    run(twice(), new_loop)
    run(twice(), new_loop)
    assert len(made) == 2
    assert len(per_loop.by_loop) == 1
    with pytest.raises(RuntimeError, match="no running event loop"):
        per_loop.get()
