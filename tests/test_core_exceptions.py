"""The same exception reaches every waiter, and none leaves noise in the log."""

import asyncio
import gc
import weakref
from typing import Any

import pytest

from aiohttp_reduce import AsyncReducer, async_reduce


class Boom(Exception):
    pass


class Abort(BaseException):
    """Like the outcomes of pytest: no `Exception`."""


async def outcomes(reducer: AsyncReducer, error: BaseException | type[BaseException]) -> list[Any]:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise error

    async def waiter() -> BaseException | None:
        try:
            await reducer(fail(), ident="fail")
        except BaseException as caught:
            return caught
        return None

    return list(await asyncio.gather(*(waiter() for _ in range(5))))


@pytest.mark.parametrize(
    "error",
    [Boom("x"), asyncio.CancelledError("inside"), TimeoutError(), Abort(), ExceptionGroup("g", [Boom()])],
    ids=lambda error: type(error).__name__,
)
async def test_the_same_exception_reaches_every_waiter(error: BaseException, noise: list[Any]) -> None:
    caught = await outcomes(AsyncReducer(), error)
    assert all(each is error for each in caught)


async def test_generator_exit_raised_inside_reaches_every_waiter(noise: list[Any]) -> None:
    error = GeneratorExit("inside")
    reducer = AsyncReducer()

    async def fail() -> None:
        await asyncio.sleep(0)
        raise error

    waiting = [reducer(fail(), ident="fail") for _ in range(3)]
    done, _ = await asyncio.wait(waiting, timeout=5)
    assert len(done) == 3
    assert all(future.exception() is error for future in waiting)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_for_the_loop_stops_the_loop(error: type[BaseException]) -> None:
    waiting: list[asyncio.Future[None]] = []

    async def fail() -> None:
        raise error

    async def main() -> None:
        waiting.extend([async_reduce(fail()), async_reduce(fail())])
        await asyncio.Event().wait()

    with pytest.raises(error):
        asyncio.run(main())
    assert all(isinstance(future.exception(), error) for future in waiting)
    assert len({id(future.exception()) for future in waiting}) == 1


async def test_cancelled_error_raised_inside_cancels_who_awaits_it(noise: list[Any]) -> None:
    async def fail() -> None:
        raise asyncio.CancelledError("inside")

    async def wait() -> None:
        await async_reduce(fail(), ident="cancelled inside")

    tasks = [asyncio.ensure_future(wait()) for _ in range(3)]
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)


async def test_a_timeout_inside_is_a_timeout_for_all(noise: list[Any]) -> None:
    async def slow() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    results = await asyncio.gather(*(async_reduce(slow()) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [TimeoutError] * 3


async def test_an_exception_raised_before_the_first_await_reaches_all(noise: list[Any]) -> None:
    async def fail() -> None:
        raise Boom

    results = await asyncio.gather(*(async_reduce(fail()) for _ in range(3)), return_exceptions=True)
    assert isinstance(results[0], Boom)
    assert all(result is results[0] for result in results)


async def test_stop_iteration_inside_reaches_all_as_python_turns_it(noise: list[Any]) -> None:
    async def fail() -> None:
        raise StopIteration

    results = await asyncio.gather(*(async_reduce(fail()) for _ in range(2)), return_exceptions=True)
    assert [type(result) for result in results] == [RuntimeError] * 2


async def test_a_failure_is_not_remembered() -> None:
    reducer = AsyncReducer()
    assert isinstance((await outcomes(reducer, Boom()))[0], Boom)

    async def succeed() -> str:
        return "fine"

    assert await reducer(succeed(), ident="fail") == "fine"


async def test_tracebacks_do_not_grow_with_the_waiters() -> None:
    def depth(error: BaseException) -> int:
        frame, count = error.__traceback__, 0
        while frame is not None:
            frame, count = frame.tb_next, count + 1
        return count

    depths: list[int] = []

    async def fail() -> None:
        raise Boom

    async def waiter() -> None:
        try:
            await async_reduce(fail(), ident="depth")
        except Boom as error:
            depths.append(depth(error))

    await asyncio.gather(*(waiter() for _ in range(20)))
    assert len(set(depths)) == 1


async def test_a_failed_flight_leaves_nothing_behind() -> None:
    class Argument:
        pass

    argument = Argument()
    gone = weakref.ref(argument)

    async def fail(argument: Argument) -> None:
        raise Boom

    with pytest.raises(Boom):
        await async_reduce(fail(argument))
    del argument
    await asyncio.sleep(0)
    gc.collect()
    assert gone() is None


async def test_nobody_looks_at_the_failure_and_nothing_is_logged(noise: list[Any]) -> None:
    ran = asyncio.Event()

    async def fail() -> None:
        ran.set()
        raise Boom

    async_reduce(fail())
    await ran.wait()


async def test_nobody_looks_at_what_is_no_exception_and_nothing_is_logged(noise: list[Any]) -> None:
    ran = asyncio.Event()

    async def fail() -> None:
        ran.set()
        raise Abort

    async_reduce(fail())
    await ran.wait()
