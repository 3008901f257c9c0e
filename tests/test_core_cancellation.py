"""A cancelled waiter leaves alone and at once; the coroutine runs on for the others."""

import asyncio
import gc
import inspect
import sys
from typing import Any

import pytest

from aiohttp_reduce import AsyncReducer, async_reduce, async_reduceable
from aiohttp_reduce.hooks import BaseHooks
from tests.test_core_sharing import eager


class Work:
    """A coroutine function that ends when told to."""

    def __init__(self) -> None:
        self.executions = 0
        self.cancelled = 0
        self.ended = asyncio.Event()
        self.started = asyncio.Event()
        self.gate = asyncio.Event()
        self.task: asyncio.Task[Any] | None = None

    async def run(self) -> str:
        self.executions += 1
        self.task = asyncio.current_task()
        self.started.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.ended.set()
        return "result"


async def waiting(reducer: Any, work: Work) -> Any:
    return await reducer(work.run())


def caller(reducer: Any, work: Work) -> asyncio.Task[Any]:
    return asyncio.ensure_future(waiting(reducer, work))


@pytest.mark.parametrize("leaving", [0, 1, 2])
async def test_a_cancelled_waiter_leaves_alone(leaving: int, noise: list[Any]) -> None:
    reducer, work = AsyncReducer(), Work()
    tasks = [caller(reducer, work) for _ in range(3)]
    await work.started.wait()

    tasks[leaving].cancel()
    await asyncio.wait([tasks[leaving]])

    assert tasks[leaving].cancelled()
    assert not work.ended.is_set()
    others = [task for task in tasks if task is not tasks[leaving]]
    assert not any(task.done() for task in others)
    work.gate.set()
    assert await asyncio.gather(*others) == ["result", "result"]
    assert (work.executions, work.cancelled) == (1, 0)


async def test_a_cancelled_waiter_leaves_at_once(noise: list[Any]) -> None:
    reducer, work = AsyncReducer(), Work()
    stays, leaves = caller(reducer, work), caller(reducer, work)
    await work.started.wait()
    leaves.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert leaves.cancelled()
    work.gate.set()
    await stays


async def test_a_waiter_that_times_out_leaves_alone(noise: list[Any]) -> None:
    reducer, work = AsyncReducer(), Work()
    stays = reducer(work.run())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await reducer(work.run())
    work.gate.set()
    assert await stays == "result"


async def test_cancelling_the_awaitable_itself_harms_no_other(noise: list[Any]) -> None:
    work = Work()
    first, second = async_reduce(work.run()), async_reduce(work.run())
    assert first.cancel()
    work.gate.set()
    assert await second == "result"
    assert first.cancelled()


async def test_a_waiter_cancelled_before_its_first_step_leaves_alone(noise: list[Any]) -> None:
    reducer, work = AsyncReducer(), Work()
    never_stepped, stays = caller(reducer, work), caller(reducer, work)
    never_stepped.cancel()
    await work.started.wait()
    work.gate.set()
    assert await stays == "result"


async def test_when_all_waiters_are_cancelled_the_coroutine_runs_on_in_silence(noise: list[Any]) -> None:
    reducer, work = AsyncReducer(), Work()
    tasks = [caller(reducer, work) for _ in range(5)]
    await work.started.wait()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    work.gate.set()
    await work.ended.wait()
    await asyncio.sleep(0)
    assert work.cancelled == 0


async def test_when_all_waiters_are_cancelled_a_failure_is_silent_too(noise: list[Any]) -> None:
    gate, raised = asyncio.Event(), asyncio.Event()

    async def fail() -> None:
        await gate.wait()
        raised.set()
        raise ValueError("nobody listens")

    futures = [async_reduce(fail()) for _ in range(5)]
    for future in futures:
        future.cancel()
    gate.set()
    await raised.wait()
    await asyncio.sleep(0)
    assert all(future.cancelled() for future in futures)


async def test_waiters_cancelled_in_the_tick_of_the_outcome_leave_no_noise(noise: list[Any]) -> None:
    reducer, work = AsyncReducer(), Work()
    tasks = [caller(reducer, work) for _ in range(3)]
    await work.started.wait()
    work.gate.set()
    for task in tasks[:2]:
        task.cancel()
    await asyncio.wait(tasks)
    assert tasks[2].result() == "result"


async def test_a_waiters_cancellation_does_not_drop_the_key(noise: list[Any]) -> None:
    """janos/singleflight #4: duplicates ran."""
    reducer, work = AsyncReducer(), Work()
    first = caller(reducer, work)
    await work.started.wait()
    first.cancel()
    await asyncio.wait([first])

    second = caller(reducer, work)
    await asyncio.sleep(0)
    work.gate.set()
    assert await second == "result"
    assert work.executions == 1


async def test_the_first_callers_cancellation_poisons_nobody(noise: list[Any]) -> None:
    """Go singleflight (spicedb #925, cockroach #91038): the leader's cancelled context reached every waiter."""
    work = Work()

    @async_reduceable(AsyncReducer())
    async def fetch() -> str:
        return await work.run()

    leader = asyncio.ensure_future(fetch())
    await work.started.wait()
    followers = [asyncio.ensure_future(fetch()) for _ in range(3)]
    await asyncio.sleep(0)
    leader.cancel()
    await asyncio.wait([leader])
    work.gate.set()
    assert await asyncio.gather(*followers) == ["result"] * 3
    assert (work.executions, work.cancelled) == (1, 0)


async def test_a_task_group_that_fails_around_the_first_caller_poisons_nobody(noise: list[Any]) -> None:
    reducer, work = AsyncReducer(), Work()

    async def fail() -> None:
        await work.started.wait()
        raise ValueError

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(waiting(reducer, work))
            tasks.create_task(fail())

    grouped = asyncio.ensure_future(group())
    follower = caller(reducer, work)
    with pytest.raises(ExceptionGroup):
        await grouped
    work.gate.set()
    assert await follower == "result"
    assert (work.executions, work.cancelled) == (1, 0)


# -- the execution's own task


async def test_cancelling_the_execution_itself_reaches_every_waiter(noise: list[Any]) -> None:
    reducer, work = AsyncReducer(), Work()
    tasks = [caller(reducer, work) for _ in range(3)]
    await work.started.wait()
    assert work.task is not None
    work.task.cancel("shutdown")
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    await asyncio.sleep(0)
    assert work.task.cancelled()


def _others() -> set["asyncio.Task[Any]"]:
    current = asyncio.current_task()
    return {task for task in asyncio.all_tasks() if task is not current}


async def _cancelled_before_its_first_step(reducer: AsyncReducer) -> None:
    work = Work()
    coro = work.run()
    before = _others()
    futures = [reducer(coro, ident="x"), reducer(work.run(), ident="x")]
    (execution,) = _others() - before
    execution.cancel()

    done, _ = await asyncio.wait(futures, timeout=5)

    assert len(done) == 2
    assert all(isinstance(future.exception(), asyncio.CancelledError) for future in futures)
    assert work.executions == 0
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
    work.gate.set()
    assert await reducer(work.run(), ident="x") == "result"


@pytest.mark.parametrize("hooks", [None, BaseHooks()])
async def test_an_execution_cancelled_before_its_first_step_ends_the_flight(
    hooks: BaseHooks | None, noise: list[Any]
) -> None:
    await _cancelled_before_its_first_step(AsyncReducer(hooks=hooks))


@pytest.mark.parametrize("hooks", [None, BaseHooks()])
async def test_so_it_does_with_a_task_factory(hooks: BaseHooks | None, noise: list[Any]) -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options))
    try:
        await _cancelled_before_its_first_step(AsyncReducer(hooks=hooks))
    finally:
        loop.set_task_factory(None)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.eager_task_factory came with Python 3.12")
@pytest.mark.parametrize("hooks", [None, BaseHooks()])
async def test_so_it_does_with_the_eager_task_factory(hooks: BaseHooks | None, noise: list[Any]) -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(eager)
    try:
        await _cancelled_before_its_first_step(AsyncReducer(hooks=hooks))
    finally:
        loop.set_task_factory(None)


async def test_a_coroutine_that_swallows_its_cancellation_gives_its_result(noise: list[Any]) -> None:
    started = asyncio.Event()
    task: list[Any] = []

    async def stubborn() -> str:
        task.append(asyncio.current_task())
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "swallowed"
        return "never"

    futures = [async_reduce(stubborn(), ident="stubborn") for _ in range(2)]
    await started.wait()
    task[0].cancel()
    assert await asyncio.gather(*futures) == ["swallowed"] * 2


def test_the_end_of_the_program_cancels_all_in_silence(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("slow")

    async def main() -> None:
        async_reduce(slow())
        asyncio.ensure_future(waiting(async_reduce, Work()))  # noqa: RUF006
        for _ in range(3):
            await asyncio.sleep(0)

    asyncio.run(main())
    gc.collect()
    assert ended == ["slow"]
    assert not caplog.records
    assert capsys.readouterr().err == ""


async def test_waiters_that_left_a_stuck_flight_do_not_pile_up(noise: list[Any]) -> None:
    reducer, work = AsyncReducer(), Work()
    stays = reducer(work.run(), ident="stuck")
    alive: list[Any] = []

    for _ in range(5_000):
        reducer(work.run(), ident="stuck").cancel()
    gc.collect()
    alive = [each for each in gc.get_objects() if asyncio.isfuture(each) and each.cancelled()]
    assert len(alive) < 2_500
    alive.clear()
    work.gate.set()
    assert await stays == "result"
