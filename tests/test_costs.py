"""Section 7, without a clock: what a request costs in steps, calls, tasks, futures and identities.

Times are measured by `bench`; these say what must not creep in again on the path of every request. The limits on
steps (bytecodes) are a tenth above what they were when this was written: 100 of them take about a microsecond.
"""

import asyncio
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from aiohttp import web

import aiohttp_reduce
from aiohttp_reduce import AsyncReducer, ReducingClientSession, reduce_middleware
from aiohttp_reduce.hooks import BaseHooks
from tests.upstream import StartUpstream
from tests.upstream import hello as says_hello
from tests.virtual import Door, VirtualLoop, run_virtually

OURS = str(Path(aiohttp_reduce.__file__).parent)
IDENTITIES = ("RequestTable.identity", "Selection.headers_of", "Identities.of", "coroutine_key", "explicit_key")


def took_at_most(steps: float, limit: int) -> None:
    """Fail where there were more steps. (Later Pythons do not tell of all of them.)"""
    assert steps <= limit or sys.version_info >= (3, 12)


class Spent:
    """What was spent: our functions that were called and resumed, the steps in them, tasks and futures."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.steps = 0
        self.tasks = 0
        self.futures = 0

    def took_at_most(self, limit: int) -> None:
        took_at_most(self.steps, limit)

    @property
    def identities(self) -> int:
        return sum([self.calls[name] for name in IDENTITIES])

    def trace(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        if event == "call":
            self.calls[frame.f_code.co_qualname] += 1
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        elif event == "opcode":
            self.steps += 1
        return self.trace


@contextmanager
def spending(monkeypatch: pytest.MonkeyPatch, loop: asyncio.AbstractEventLoop) -> Iterator[Spent]:
    """Count what the block spends."""
    spent = Spent()
    create_task, create_future = loop.create_task, loop.create_future

    def counted_task(*args: Any, **kwargs: Any) -> Any:
        spent.tasks += 1
        return create_task(*args, **kwargs)

    def counted_future() -> Any:
        spent.futures += 1
        return create_future()

    before = sys.gettrace()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "create_task", counted_task)
        patch.setattr(loop, "create_future", counted_future)
        sys.settrace(spent.trace)
        try:
            yield spent
        finally:
            sys.settrace(before)


async def hello(_request: web.Request) -> web.Response:
    return web.Response(text="hello")


@web.middleware
async def outer(request: web.Request, handler: Any) -> Any:
    return await handler(request)


async def lone(
    monkeypatch: pytest.MonkeyPatch, loop: VirtualLoop, middleware: Any, headers: dict[str, str], outers: list[Any]
) -> Spent:
    """What one request spends that nobody joins, once others have gone before it."""
    door = Door(loop, middleware, hello, outer=outers)
    for _ in range(3):
        await door.get(headers=headers)
    request = door.request("/lone", headers=headers)
    with spending(monkeypatch, loop) as spent:
        response = await door.app._handle(request)
    assert (response.text, middleware.stats["executed"], middleware.stats["total"]) == ("hello", 4, 4)
    assert door.nothing_is_left()
    return spent


def test_a_lone_request_takes_the_short_way_and_makes_nothing_that_only_two_would_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spent = run_virtually(lambda loop: lone(monkeypatch, loop, reduce_middleware(), {}, []))
    assert spent.calls == {"ReduceMiddleware.__call__": 1}
    assert (spent.tasks, spent.futures, spent.identities) == (0, 0, 0)
    spent.took_at_most(255)


def test_headers_and_outer_middlewares_do_not_make_it_much_dearer(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"Accept": "*/*", "User-Agent": "x", "Cookie": "a=b", **{f"X-{number}": "x" for number in range(50)}}
    spent = run_virtually(lambda loop: lone(monkeypatch, loop, reduce_middleware(), headers, [outer]))
    assert spent.calls == {
        "ReduceMiddleware.__call__": 1,
        "ReduceMiddleware._is_untouched": 1,
        "is_untouched": 1,
        "asks_for_events": 1,
    }
    assert (spent.tasks, spent.futures, spent.identities) == (0, 0, 0)
    spent.took_at_most(360)


def test_a_lone_request_with_a_key_or_hooks_computes_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for middleware in (
        reduce_middleware(key=lambda request: "key"),
        reduce_middleware(hooks=BaseHooks()),
        reduce_middleware(when=lambda request: True),
    ):
        spent = run_virtually(lambda loop, its=middleware: lone(monkeypatch, loop, its, {}, []))  # type: ignore[misc]
        assert (spent.tasks, spent.futures, spent.identities) == (0, 0, 0)
        spent.took_at_most(850)


def test_a_lone_request_holds_two_small_objects_of_ours_while_its_handler_runs() -> None:
    held: list[tracemalloc.Statistic] = []

    async def looks(_request: web.Request) -> web.Response:
        if tracemalloc.is_tracing():
            ours = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, f"{OURS}/*")])
            held.extend(ours.statistics("filename"))
        return web.Response()

    async def main(loop: VirtualLoop) -> None:
        door = Door(loop, reduce_middleware(), looks)
        for _ in range(3):
            await door.get()
        request = door.request("/lone")
        tracemalloc.start()
        try:
            await door.app._handle(request)
        finally:
            tracemalloc.stop()

    run_virtually(main)
    # The stand-ins for headers and mapping, the one of them in the table, the time and a count.
    assert sum([one.count for one in held]) <= 8
    assert sum([one.size for one in held]) <= 1024


async def herd(
    monkeypatch: pytest.MonkeyPatch, loop: VirtualLoop, followers: int, headers: dict[str, str], outers: list[Any]
) -> Spent:
    """What a herd of so many followers spends, once others have gone before it."""
    released = loop.create_future()

    async def handler(_request: web.Request) -> web.Response:
        await released
        return web.Response(text="hello")

    middleware = reduce_middleware()
    door = Door(loop, middleware, handler, outer=outers)
    released.set_result(None)
    await door.get()
    released = loop.create_future()
    requests = [door.request("/herd", headers=headers) for _ in range(followers + 1)]
    tasks = [asyncio.Task(door.app._handle(request), loop=loop) for request in requests]
    with spending(monkeypatch, loop) as spent:
        for _ in range(3):
            await asyncio.sleep(0)
        assert middleware.stats["waiting"] == followers
        released.set_result(None)
        replies = await asyncio.gather(*tasks)
    assert {reply.text for reply in replies} == {"hello"}
    assert middleware.stats["reduced"] == followers
    return spent


def one_more_follower(monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], outers: list[Any]) -> Spent:
    """What the 21st to the 40th follower spend, each."""
    few, many = [
        run_virtually(lambda loop, size=size: herd(monkeypatch, loop, size, headers, outers))  # type: ignore[misc]
        for size in (20, 40)
    ]
    one = Spent()
    for name in many.calls:
        one.calls[name] = (many.calls[name] - few.calls[name]) // 20
    one.calls = +one.calls
    one.steps = (many.steps - few.steps) // 20
    one.tasks = many.tasks - few.tasks
    one.futures = (many.futures - few.futures) // 20
    return one


def test_one_more_follower_costs_one_future_and_a_handful_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    one = one_more_follower(monkeypatch, {"Accept": "*/*", "User-Agent": "x"}, [])
    assert one.calls == {
        "ReduceMiddleware.__call__": 1 + 1,  # it is resumed once
        "Follower.__init__": 1,
        "Follower.follow": 1 + 1,
        "Flight.join": 1,
        "Answer.make_another": 1,
        "rebuild": 1,
    }
    assert (one.tasks, one.futures, one.identities) == (0, 1, 0)
    one.took_at_most(400)


def test_followers_behind_an_outer_middleware_compute_no_identity_either(monkeypatch: pytest.MonkeyPatch) -> None:
    one = one_more_follower(monkeypatch, {"Accept": "*/*", "User-Agent": "x"}, [outer])
    assert (one.tasks, one.futures, one.identities) == (0, 1, 0)
    one.took_at_most(500)


@pytest.mark.one_loop  # uvloop's cannot be watched
async def test_outgoing_calls_compute_no_identity_and_followers_start_no_task(
    monkeypatch: pytest.MonkeyPatch, upstream: StartUpstream
) -> None:
    loop = asyncio.get_running_loop()
    server = await upstream(says_hello)
    async with ReducingClientSession() as session:

        async def fetch(path: str) -> bytes:
            async with session.get(server.url + path) as response:
                return await response.read()

        await fetch("/warm")
        with spending(monkeypatch, loop) as alone:
            await fetch("/alone")
        assert alone.identities == 0
        spent: dict[int, Spent] = {}
        for size in (10, 30):
            tasks = [asyncio.Task(fetch(f"/herd{size}"), loop=loop) for _ in range(size)]
            with spending(monkeypatch, loop) as spent[size]:
                await asyncio.gather(*tasks)
        assert spent[10].identities == spent[30].identities == 0
        assert session.stats["reduced"] == 9 + 29
        assert spent[30].tasks == spent[10].tasks
        took_at_most((spent[30].steps - spent[10].steps) / 20, 900)


def core_spends(monkeypatch: pytest.MonkeyPatch, calls: Callable[[AsyncReducer, int], Any], number: int) -> Spent:
    async def main(loop: VirtualLoop) -> Spent:
        reducer = AsyncReducer()
        await asyncio.gather(*[calls(reducer, n) for n in range(3)])
        with spending(monkeypatch, loop) as spent:
            await asyncio.gather(*[calls(reducer, n) for n in range(number)])
        return spent

    return run_virtually(main)


async def work(value: int) -> int:
    return value


def test_the_core_starts_one_task_for_a_herd_and_one_for_each_distinct_call(monkeypatch: pytest.MonkeyPatch) -> None:
    herd_of_40 = core_spends(monkeypatch, lambda reducer, n: reducer(work(1), ident="herd"), 40)
    distinct = core_spends(monkeypatch, lambda reducer, n: reducer(work(n), ident=f"call {n}"), 40)
    automatic = core_spends(monkeypatch, lambda reducer, n: reducer(work(n)), 40)
    assert (herd_of_40.tasks, herd_of_40.identities) == (1, 0)
    assert (distinct.tasks, distinct.identities) == (40, 0)
    assert (automatic.tasks, automatic.identities) == (40, 40)
    took_at_most(herd_of_40.steps / 40, 110)
    took_at_most(distinct.steps / 40, 260)
