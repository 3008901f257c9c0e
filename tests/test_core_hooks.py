"""Hooks are told of every call, in a fixed order and form, and can disturb nothing."""

import asyncio
import io
import logging
import re
import sys
from collections import Counter
from typing import Any

import pytest

from aiohttp_reduce import AsyncReducer
from aiohttp_reduce.hooks import (
    BaseHooks,
    DebugHooks,
    MultipleHooks,
    StatisticsDetailHooks,
    StatisticsOverallHooks,
)


class Recorder(BaseHooks):
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def on_apply_for(self, coro: Any, ident: Any) -> None:
        self.calls.append(("apply", coro, ident))

    def on_executing_for(self, coro: Any, ident: Any) -> None:
        self.calls.append(("executing", coro, ident))

    def on_reducing_for(self, coro: Any, ident: Any) -> None:
        self.calls.append(("reducing", coro, ident))

    def on_result_for(self, coro: Any, ident: Any, result: Any) -> None:
        self.calls.append(("result", coro, ident, result))

    def on_exception_for(self, coro: Any, ident: Any, exception: BaseException) -> None:
        self.calls.append(("exception", coro, ident, exception))


class Raising(BaseHooks):
    """Every hook raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def _raise(self, *args: Any) -> None:
        raise self.error

    on_apply_for = on_executing_for = on_reducing_for = on_result_for = on_exception_for = _raise


async def echo(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


async def fail(message: str) -> None:
    await asyncio.sleep(0)
    raise ValueError(message)


async def test_the_five_calls_come_in_order_and_the_last_one_once() -> None:
    hooks = Recorder()
    reducer = AsyncReducer(hooks)
    led, joined = echo(1), echo(1)
    await asyncio.gather(reducer(led, ident="i"), reducer(joined, ident="i"))
    assert hooks.calls == [
        ("apply", led, "i"),
        ("executing", led, "i"),
        ("apply", joined, "i"),
        ("reducing", joined, "i"),
        ("result", led, "i", 1),
    ]


async def test_an_exception_is_told_once() -> None:
    hooks = Recorder()
    reducer = AsyncReducer(hooks=hooks)
    led, joined = fail("x"), fail("x")
    results = await asyncio.gather(reducer(led), reducer(joined), return_exceptions=True)
    assert [call[0] for call in hooks.calls] == ["apply", "executing", "apply", "reducing", "exception"]
    assert hooks.calls[-1][1] is led
    assert hooks.calls[-1][3] is results[0] is results[1]


async def test_a_cancellation_inside_is_told_as_an_exception() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    hooks = Recorder()
    await asyncio.gather(AsyncReducer(hooks)(cancelled()), return_exceptions=True)
    assert isinstance(hooks.calls[-1][3], asyncio.CancelledError)


async def test_the_result_is_told_also_when_nobody_waits_any_more() -> None:
    hooks, done = Recorder(), asyncio.Event()

    async def work() -> None:
        done.set()

    AsyncReducer(hooks)(work()).cancel()
    await done.wait()
    await asyncio.sleep(0)
    assert [call[0] for call in hooks.calls] == ["apply", "executing", "result"]


async def test_the_coroutine_of_a_joined_call_is_still_whole_when_hooks_see_it() -> None:
    class Peek(BaseHooks):
        frames: list[bool] = []  # noqa: RUF012

        def on_reducing_for(self, coro: Any, ident: Any) -> None:
            self.frames.append(coro.cr_frame is not None)

    hooks = Peek()
    reducer = AsyncReducer(hooks)
    await asyncio.gather(reducer(echo(1)), reducer(echo(1)))
    assert hooks.frames == [True]


async def test_a_hook_that_calls_the_reducer_does_not_break_it() -> None:
    class Reenter(BaseHooks):
        inner: Any = None

        def on_apply_for(self, coro: Any, ident: Any) -> None:
            if self.inner is None:
                self.inner = True
                self.inner = reducer(echo("inner"), ident=ident)

    hooks = Reenter()
    reducer = AsyncReducer(hooks)
    assert await reducer(echo("outer"), ident="x") == "inner"
    assert await hooks.inner == "inner"


# -- composition


def test_and_composes_two_hooks() -> None:
    a, b = BaseHooks(), BaseHooks()
    both = a & b
    assert isinstance(both, MultipleHooks)
    assert both.hooks_list == [a, b]
    assert len(both) == 2


def test_and_extends_composed_hooks_on_either_side() -> None:
    a, b, c, d = (BaseHooks() for _ in range(4))
    assert ((a & b) & c).hooks_list == [a, b, c]
    assert (a & (b & c)).hooks_list == [a, b, c]
    assert ((a & b) & (c & d)).hooks_list == [a, b, c, d]
    assert len(a & b & c & d) == 4


def test_and_leaves_what_it_composes_alone() -> None:
    a, b, c = (BaseHooks() for _ in range(3))
    both = a & b
    _ = both & c
    assert both.hooks_list == [a, b]


def test_and_with_anything_else_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        BaseHooks() & 1  # type: ignore[operator]


async def test_composed_hooks_are_all_told_in_order() -> None:
    a, b = Recorder(), Recorder()
    reducer = AsyncReducer(a & b)
    await asyncio.gather(reducer(echo(1)), reducer(echo(1)))
    await asyncio.gather(reducer(fail("x")), return_exceptions=True)
    assert a.calls == b.calls
    kinds = [call[0] for call in a.calls]
    assert kinds == ["apply", "executing", "apply", "reducing", "result", "apply", "executing", "exception"]


async def test_empty_composed_hooks_do_nothing() -> None:
    assert len(MultipleHooks()) == 0
    assert await AsyncReducer(MultipleHooks())(echo(1)) == 1


# -- a hook that raises


@pytest.mark.parametrize("error", [RuntimeError("broken hook"), asyncio.CancelledError()], ids=["error", "cancelled"])
async def test_a_hook_that_raises_is_logged_and_the_call_goes_on(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    reducer = AsyncReducer(Raising(error))
    with caplog.at_level(logging.ERROR):
        assert await asyncio.gather(reducer(echo(1)), reducer(echo(1))) == [1, 1]
        with pytest.raises(ValueError, match="x"):
            await reducer(fail("x"))
    records = [record for record in caplog.records if record.name.startswith("aiohttp_reduce.")]
    assert len(records) == 5 + 3
    assert all(record.exc_info is not None and record.exc_info[1] is error for record in records)
    assert all("hook" in record.getMessage() for record in records)


@pytest.mark.parametrize("first", [True, False])
async def test_a_hook_that_raises_does_not_silence_the_others(first: bool, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = Recorder(), Raising(RuntimeError())
    reducer = AsyncReducer(bad & good if first else good & bad)
    assert await reducer(echo(1)) == 1
    assert [call[0] for call in good.calls] == ["apply", "executing", "result"]
    assert len(caplog.records) == 3


# -- wrong arguments


class Half:
    def on_apply_for(self, coro: Any, ident: Any) -> None: ...


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (1, "got 1 without on_apply_for"),
        (BaseHooks, "the class BaseHooks itself"),
        (Half(), "without on_executing_for, on_reducing_for, on_result_for, on_exception_for"),
        ([BaseHooks()], "without on_apply_for"),
    ],
)
def test_wrong_hooks_are_refused_at_construction(wrong: Any, said: str) -> None:
    with pytest.raises(
        TypeError, match=r"AsyncReducer\(hooks=\.\.\.\) takes an instance of BaseHooks or None"
    ) as caught:
        AsyncReducer(hooks=wrong)
    assert said in str(caught.value)
    with pytest.raises(TypeError, match=r"MultipleHooks\(\.\.\.\)"):
        MultipleHooks(wrong)


def test_anything_with_the_five_methods_is_taken() -> None:
    class Duck:
        on_apply_for = on_executing_for = on_reducing_for = on_result_for = on_exception_for = print

    AsyncReducer(hooks=Duck())  # type: ignore[arg-type]


# -- the hooks that come with the library


async def test_debug_hooks_print_these_lines() -> None:
    stream = io.StringIO()
    reducer = AsyncReducer(DebugHooks(stream=stream))
    led, joined, failing = echo("value"), echo("value"), fail("message")
    led_shown, joined_shown, failing_shown = str(led), str(joined), str(failing)
    await asyncio.gather(reducer(led, ident="I"), reducer(joined, ident="I"))
    await asyncio.gather(reducer(failing, ident="F"), return_exceptions=True)
    assert stream.getvalue() == (
        f"[I] apply async_reduce() for {led_shown}\n"
        f"[I] executing for {led_shown}\n"
        f"[I] apply async_reduce() for {joined_shown}\n"
        f"[I] reducing for {joined_shown}\n"
        f"[I] result for {led_shown}: value\n"
        f"[F] apply async_reduce() for {failing_shown}\n"
        f"[F] executing for {failing_shown}\n"
        f"[F] get exception for {failing_shown}: message\n"
    )


async def test_debug_hooks_show_the_automatic_identity() -> None:
    stream = io.StringIO()
    await AsyncReducer(DebugHooks(stream))(echo(1))
    line = stream.getvalue().splitlines()[0]
    assert re.fullmatch(
        r"\[tests\.test_core_hooks:echo\(<state_hash:-?\d+>\)\] "
        r"apply async_reduce\(\) for <coroutine object echo at .*>",
        line,
    )


async def test_debug_hooks_print_to_stderr_as_it_is_then(capsys: pytest.CaptureFixture[str]) -> None:
    hooks = DebugHooks()
    mine = io.StringIO()
    stderr, sys.stderr = sys.stderr, mine
    try:
        await AsyncReducer(hooks)(echo(1), ident="I")
    finally:
        sys.stderr = stderr
    assert mine.getvalue().startswith("[I] apply")
    await AsyncReducer(hooks)(echo(1), ident="I")
    printed = capsys.readouterr()
    assert printed.err.startswith("[I] apply")
    assert printed.out == ""


async def test_overall_statistics_count_and_print() -> None:
    stats = StatisticsOverallHooks()
    assert str(stats) == "Stats(total=0, executed=0, reduced=0, errors=0)"
    reducer = AsyncReducer(stats)
    await asyncio.gather(
        reducer(echo(1)), reducer(echo(1)), reducer(echo(2)), reducer(fail("x")), return_exceptions=True
    )
    assert (stats.total, stats.executed, stats.reduced, stats.errors) == (4, 2, 1, 1)
    assert str(stats) == "Stats(total=4, executed=2, reduced=1, errors=1)"


async def test_detail_statistics_count_by_function_and_print() -> None:
    stats = StatisticsDetailHooks()
    assert str(stats) == "Top total:\nTop executed:\nTop reduced:\nTop errors:\n"
    reducer = AsyncReducer(stats)
    await asyncio.gather(
        reducer(fail("x")),
        reducer(echo(1)),
        reducer(echo(1)),
        reducer(echo(2)),
        reducer(echo(3), ident="explicit"),
        return_exceptions=True,
    )
    name, failing = "tests.test_core_hooks:echo", "tests.test_core_hooks:fail"
    assert stats.total == Counter({name: 4, failing: 1})
    assert stats.executed == Counter({name: 3, failing: 1})
    assert stats.reduced == Counter({name: 1})
    assert stats.errors == Counter({failing: 1})
    assert all(type(counter) is Counter for counter in (stats.total, stats.executed, stats.reduced, stats.errors))
    assert str(stats) == (
        f"Top total:\n\t{name}: 4\n\t{failing}: 1\n"
        f"Top executed:\n\t{name}: 3\n\t{failing}: 1\n"
        f"Top reduced:\n\t{name}: 1\n"
        f"Top errors:\n\t{failing}: 1\n"
    )


@pytest.mark.parametrize("ident", [None, "explicit"])
async def test_detail_statistics_keep_one_name_for_code_without_a_file(ident: str | None) -> None:
    space: dict[str, Any] = {"__name__": "notebook"}
    exec("async def cell(): raise ValueError", space)
    stats = StatisticsDetailHooks()
    await asyncio.gather(AsyncReducer(stats)(space["cell"](), ident=ident), return_exceptions=True)
    assert stats.total == stats.executed == stats.errors == Counter({"notebook:cell": 1})


def test_detail_statistics_count_so_many_names_and_then_all_others_as_one() -> None:
    hooks = StatisticsDetailHooks()
    for number in range(1_500):
        for call in (hooks.on_apply_for, hooks.on_executing_for, hooks.on_reducing_for):
            call(None, f"GET host{number}")
        hooks.on_exception_for(None, f"GET host{number}", RuntimeError())
    hooks.on_apply_for(None, "GET host0")
    assert (hooks.total["GET host0"], hooks.total["GET host999"], hooks.total["(other)"]) == (2, 1, 500)
    for counts in (hooks.total, hooks.executed, hooks.reduced, hooks.errors):
        assert len(counts) == 1_001
