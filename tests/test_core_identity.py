"""Two calls are one only if the function is the same and the arguments are equal, types included."""

import asyncio
import enum
import gc
import inspect
import re
import types
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from aiohttp_reduce import AsyncReducer
from aiohttp_reduce.hooks import BaseHooks


class Point(NamedTuple):
    x: Any
    y: Any


class Pair(NamedTuple):
    x: Any
    y: Any


class Number(enum.IntEnum):
    ONE = 1


async def merged(*coroutines: Coroutine[Any, Any, Any]) -> bool:
    """Whether the calls were all executed as one."""
    seen: list[str] = []

    class Seen(BaseHooks):
        def on_executing_for(self, coro: Any, ident: Any) -> None:
            seen.append(ident)

    reducer = AsyncReducer(hooks=Seen())
    await asyncio.gather(*(reducer(coro) for coro in coroutines))
    assert len(seen) in {1, len(coroutines)}
    return len(seen) == 1


async def echo(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


@pytest.mark.parametrize(
    "value",
    [
        1,
        -1,
        0.0,
        -0.0,
        1.5,
        "text",
        b"bytes",
        None,
        True,
        (1, (2.0, True)),
        Point(1, 2),
        frozenset({1, "a"}),
        Number.ONE,
        int,
        echo,
        object(),
        float("nan"),
        range(3),
        1j,
        ...,
    ],
)
async def test_equal_arguments_are_merged(value: Any) -> None:
    assert await merged(echo(value), echo(value))


async def test_equal_but_not_identical_arguments_are_merged() -> None:
    assert await merged(echo("".join(["a", "b"])), echo("".join(["a", "b"])))
    assert await merged(echo((1, Point(10**20, 2))), echo((1, Point(10**20, 2))))
    assert await merged(echo(frozenset({10**20, "a"})), echo(frozenset({"a", 10**20})))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (-1, -2),  # hash(-1) == hash(-2) in CPython
        (2**61 - 1, 0),  # equal hashes
        (1, True),
        (1, 1.0),
        (True, 1.0),
        (1, 1 + 0j),
        (0, False),
        (0, None),
        ("", b""),
        (0.0, -0.0),
        (0, 0.0),
        (1, Number.ONE),
        ((-1,), (-2,)),
        ((1,), (True,)),
        ((1,), (1.0,)),
        ((0.0,), (-0.0,)),
        (((1,),), ((True,),)),
        (("a", (1, (0.0,))), ("a", (1, (-0.0,)))),
        ((1, 2), Point(1, 2)),
        (Point(1, 2), Pair(1, 2)),
        (Point(1, 2), Point(True, 2)),
        (Point(1, (2,)), Point(1, (2.0,))),
        (frozenset({1}), frozenset({True})),
        (frozenset({1}), frozenset({1.0})),
        (frozenset({(1,)}), frozenset({(True,)})),
        (frozenset({0.0}), frozenset({-0.0})),
        ((), frozenset()),
        ((int, 1), 1),  # what a key may look like inside
        ((), ((),)),
    ],
)
async def test_different_arguments_are_never_merged(a: Any, b: Any) -> None:
    assert not await merged(echo(a), echo(b))
    assert not await merged(echo(b), echo(a))


@pytest.mark.parametrize(
    ("a", "b"), [(1, True), (1, 1.0), (0.0, -0.0), ((1,), (True,)), (-1, -2), ("1", 1), (Point(1, 2), Pair(1, 2))]
)
async def test_different_explicit_idents_are_never_merged(a: Any, b: Any) -> None:
    reducer = AsyncReducer()
    assert await asyncio.gather(reducer(echo("a"), ident=a), reducer(echo("b"), ident=b)) == ["a", "b"]


async def test_an_explicit_ident_never_meets_an_automatic_one() -> None:
    seen: list[Any] = []

    class Seen(BaseHooks):
        def on_apply_for(self, coro: Any, ident: Any) -> None:
            seen.append(ident)

    reducer = AsyncReducer(hooks=Seen())
    first = reducer(echo("automatic"))
    assert await asyncio.gather(first, reducer(echo("explicit"), ident=str(seen[0]))) == ["automatic", "explicit"]


async def test_how_an_argument_was_passed_makes_no_difference() -> None:
    async def f(a: int, b: int = 2, *rest: int, c: int = 3) -> int:
        return a + b + c + sum(rest)

    assert await merged(f(1), f(a=1), f(1, 2), f(1, b=2, c=3))
    assert await merged(f(1, 2, 3), f(1, 2, 3))
    assert not await merged(f(1, 2, 3), f(1, 2, c=3))
    assert not await merged(f(1, 2), f(2, 1))


async def test_default_arguments_count() -> None:
    def made(default: int) -> Callable[[], Coroutine[Any, Any, int]]:
        async def f(value: int = default) -> int:
            return value

        return f

    assert not await merged(made(1)(), made(2)())

    def made_with_keyword(default: int) -> Callable[[], Coroutine[Any, Any, int]]:
        async def f(*, value: int = default) -> int:
            return value

        return f

    assert not await merged(made_with_keyword(1)(), made_with_keyword(2)())


async def test_functions_that_share_a_qualified_name_are_told_apart() -> None:
    async def f() -> str:
        return "first"

    first = f

    async def f() -> str:  # type: ignore[no-redef]
        return "second"

    assert first.__qualname__ == f.__qualname__
    reducer = AsyncReducer()
    assert await asyncio.gather(reducer(first()), reducer(f())) == ["first", "second"]


async def test_equal_code_at_different_places_is_told_apart() -> None:
    async def a() -> int:
        return 1

    async def b() -> int:
        return 1

    b.__qualname__, b.__name__ = a.__qualname__, a.__name__
    assert not await merged(a(), b())


async def test_one_code_with_different_globals_is_told_apart() -> None:
    async def where() -> str:
        return PLACE  # type: ignore[name-defined,no-any-return]  # noqa: F821

    here = types.FunctionType(where.__code__, {"PLACE": "here"})
    there = types.FunctionType(where.__code__, {"PLACE": "there"})
    reducer = AsyncReducer()
    assert await asyncio.gather(reducer(here()), reducer(there()), reducer(here())) == ["here", "there", "here"]


def closing_over(value: Any) -> Callable[[], Coroutine[Any, Any, Any]]:
    async def f() -> Any:
        await asyncio.sleep(0)
        return value

    return f


async def test_closures_are_compared_by_the_values_in_them() -> None:
    assert not await merged(closing_over(1)(), closing_over(2)())
    assert not await merged(closing_over(-1)(), closing_over(-2)())
    assert not await merged(closing_over(1)(), closing_over(True)())
    assert not await merged(closing_over(0.0)(), closing_over(-0.0)())
    assert await merged(closing_over("a")(), closing_over("a")())


async def test_an_unhashable_value_in_a_closure_is_compared_by_is() -> None:
    one, equal = [1], [1]
    assert await merged(closing_over(one)(), closing_over(one)())
    assert not await merged(closing_over(one)(), closing_over(equal)())
    nested = (one,)
    assert not await merged(closing_over(nested)(), closing_over((equal,))())


async def test_an_unhashable_value_that_a_closure_let_go_is_not_mistaken_for_the_next() -> None:
    reducer = AsyncReducer()
    gate = asyncio.Event()
    value: list[str] = []

    async def f() -> list[str]:
        mine = "".join(value)
        await gate.wait()
        return [mine]

    waiting = []
    for name in map(str, range(20)):
        value = [name]  # the one before is freed, and its address with it
        waiting.append(reducer(f()))
        await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*waiting) == [[str(i)] for i in range(20)]


async def test_an_unset_variable_in_a_closure_does_no_harm() -> None:
    def made(unset: bool) -> Callable[[], Coroutine[Any, Any, str]]:
        if not unset:
            later = 1

        async def f() -> str:
            return str(later) if not unset else "unset"

        return f

    assert not await merged(made(True)(), made(False)())


async def test_arguments_that_an_inner_function_uses_count_too() -> None:
    async def f(a: int, b: int) -> int:
        return (lambda: a)() + b

    assert await merged(f(1, 2), f(1, 2))
    assert not await merged(f(1, 2), f(2, 2))


async def test_methods_of_different_instances_are_told_apart() -> None:
    class Service:
        async def me(self) -> "Service":
            return self

        @classmethod
        async def cls(cls) -> type:
            return cls

    class Derived(Service):
        async def me(self) -> "Service":
            return await super().me()

    a, b = Service(), Service()
    assert not await merged(a.me(), b.me())
    assert await merged(a.me(), a.me())
    assert not await merged(Service.cls(), Derived.cls())
    assert not await merged(a.me(), Derived().me())


async def test_objects_with_equality_are_compared_by_it_and_by_type() -> None:
    @dataclass(frozen=True)
    class A:
        n: int

    @dataclass(frozen=True)
    class B(A): ...

    assert await merged(echo(A(1)), echo(A(1)))
    assert not await merged(echo(A(1)), echo(A(2)))
    assert not await merged(echo(A(1)), echo(B(1)))


async def test_an_argument_whose_hash_changes_meanwhile_hangs_nobody() -> None:
    class Record:
        number = 1

        def __hash__(self) -> int:
            return self.number

    reducer = AsyncReducer()
    record = Record()

    async def save(record: Record) -> int:
        record.number = 2
        return record.number

    assert await reducer(save(record)) == 2
    record.number = 1
    assert await asyncio.wait_for(reducer(save(record)), 5) == 2


# -- unhashable arguments


async def test_an_unhashable_argument_is_named_and_the_way_out_shown() -> None:
    async def lookup(name: str, filters: dict[str, str]) -> str:
        return name

    coro = lookup("a", {"b": "c"})
    with pytest.raises(TypeError) as caught:
        AsyncReducer()(coro)
    message = str(caught.value)
    assert "argument 'filters'" in message
    assert f"{lookup.__qualname__}()" in message
    assert re.search(r"async_reduce\(.*lookup\(\.\.\.\), ident='\.\.\.'\)", message)
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CREATED
    assert await AsyncReducer()(coro, ident="lookup a") == "a"


@pytest.mark.parametrize("value", [[], {}, set(), bytearray(), ([],), (1, (2, {})), Point([], 1)])
async def test_every_unhashable_argument_is_refused_and_the_coroutine_stays_usable(value: Any) -> None:
    coro = echo(value)
    with pytest.raises(TypeError, match="'value'"):
        AsyncReducer()(coro)
    assert await coro is value


async def test_unhashable_self_and_keywords_are_named() -> None:
    @dataclass
    class Service:
        n: int

        async def load(self) -> int:
            return self.n

    async def f(**options: int) -> int:
        return len(options)

    for coro, name in ((Service(1).load(), "self"), (f(a=1), "options")):
        with pytest.raises(TypeError, match=f"argument '{name}'"):
            AsyncReducer()(coro)
        coro.close()


async def test_an_unhashable_ident_is_refused_and_the_coroutine_stays_usable() -> None:
    reducer = AsyncReducer()
    coro = echo(1)
    with pytest.raises(TypeError, match=r"ident must be hashable, got \['x'\]"):
        reducer(coro, ident=["x"])  # type: ignore[arg-type]
    assert await coro == 1


async def test_a_refused_call_leaves_nothing_behind() -> None:
    stats = BaseHooks()
    reducer = AsyncReducer(hooks=stats)
    coro = echo([])
    with pytest.raises(TypeError):
        reducer(coro)
    coro.close()
    gc.collect()
    assert asyncio.all_tasks() == {asyncio.current_task()}


# -- what hooks see


class Idents(BaseHooks):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_apply_for(self, coro: Any, ident: Any) -> None:
        self.seen.append(ident)


async def test_the_automatic_identity_prints_module_name_and_state() -> None:
    hooks = Idents()
    reducer = AsyncReducer(hooks=hooks)
    await asyncio.gather(reducer(echo(1)), reducer(echo(1)), reducer(echo(2)))
    assert re.fullmatch(r"tests\.test_core_identity:echo\(<state_hash:-?\d+>\)", str(hooks.seen[0]))
    assert f"{hooks.seen[0]}" == f"{hooks.seen[1]}" != f"{hooks.seen[2]}"
    assert isinstance(hooks.seen[0], str)


async def test_the_identity_has_the_qualified_name() -> None:
    class Service:
        async def load(self) -> None: ...

    hooks = Idents()
    await AsyncReducer(hooks=hooks)(Service().load())
    name = "test_the_identity_has_the_qualified_name.<locals>.Service.load"
    assert str(hooks.seen[0]).startswith(f"tests.test_core_identity:{name}(<state_hash:")


async def test_the_module_path_is_relative_to_sys_path_and_inside_packages() -> None:
    hooks = Idents()
    await AsyncReducer(hooks=hooks)(asyncio.sleep(0))
    assert str(hooks.seen[0]).startswith("asyncio.tasks:sleep(<state_hash:")


async def test_code_without_a_file_goes_by_the_name_of_its_module() -> None:
    space: dict[str, Any] = {"__name__": "console"}
    exec("async def typed(): pass", space)
    hooks = Idents()
    await AsyncReducer(hooks=hooks)(space["typed"]())
    assert str(hooks.seen[0]).startswith("console:typed(<state_hash:")


@pytest.mark.parametrize("ident", ["given", 5, ("a", 1), b"x"])
async def test_an_explicit_ident_is_shown_as_given(ident: Any) -> None:
    hooks = Idents()
    await AsyncReducer(hooks=hooks)(echo(1), ident=ident)
    assert hooks.seen == [ident]
    assert hooks.seen[0] is ident
