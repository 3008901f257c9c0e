"""`aiohttp_reduce.testing`: what was counted, who is held, and what a test is told where that is not as it expects."""

import asyncio
import math
import re
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from aiohttp_reduce import (
    AsyncReducer,
    ReducingClientSession,
    never_reduce,
    reduce_client_middleware,
    reduce_middleware,
)
from aiohttp_reduce.client.door import ReduceClientMiddleware
from aiohttp_reduce.server import ReduceMiddleware
from aiohttp_reduce.testing import Hold, HoldError, counting, holding
from tests.harness import PATIENCE, Gate, Server, Start, eventually
from tests.test_costs import Spent, lone
from tests.upstream import Exchange, OpenSession, StartUpstream, body_of, hello, reading, reducer_of
from tests.virtual import Door, VirtualLoop, run_virtually

pytest_plugins = ["pytester"]

PAGE = Path(__file__).parent.parent / "docs" / "howto" / "testing.md"


async def says(request: web.Request) -> web.Response:
    return web.Response(text=f"hello {request.headers.get('X-Name', '')}")


async def refuses(request: web.Request) -> web.Response:
    return web.Response(text="hello", headers={"Cache-Control": "no-store"})


@never_reduce
async def lottery(request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def breaks(request: web.Request) -> web.Response:
    raise web.HTTPConflict


async def streams(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for number in range(3):
        await response.write(b"%d" % number)
    return response


@web.middleware
async def outer(request: web.Request, handler: Any) -> Any:
    return await handler(request)


def make_app(middleware: ReduceMiddleware, *, before: list[Any] | None = None) -> web.Application:
    app = web.Application(middlewares=[*(before or []), middleware])
    for path, handler in (
        ("/", says),
        ("/a", says),
        ("/b", says),
        ("/refuses", refuses),
        ("/lottery", lottery),
        ("/breaks", breaks),
        ("/streams", streams),
    ):
        app.router.add_route("*", path, handler)
    return app


def is_as_before(*targets: Any) -> bool:
    """Whether nobody stands in the way of the targets' calls any more."""
    return all(type(one) in {ReduceMiddleware, ReduceClientMiddleware, AsyncReducer} for one in targets)


def herd(server: Server, size: int, target: str = "/", headers: Any = (), **options: Any) -> "list[asyncio.Task[Any]]":
    return [asyncio.create_task(server.get(target, headers, **options)) for _ in range(size)]


async def told(held: Hold, wait: Callable[[int], Awaitable[None]], number: int) -> str:
    """What a test is told that waits in vain; without taking the time for it."""
    held._timeout = 0.0
    with pytest.raises(HoldError) as error:
        await wait(number)
    held._timeout = PATIENCE
    held._start_timer()
    return str(error.value)


async def cut(tasks: "list[asyncio.Task[Any]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("before", [[], [outer]])
@pytest.mark.parametrize("target", ["/", "/breaks", "/streams"])
async def test_ten_are_one_run(serve: Start, before: list[Any], target: str) -> None:
    middleware = reduce_middleware()
    server = await serve(make_app(middleware, before=before), middleware=middleware)
    # The second time they take the short way through the door.
    for _ in range(2):
        async with holding(middleware) as held:
            tasks = herd(server, 10, target)
            await held.joined(9)
            assert (held.leaders, held.followers) == (1, 9)
            assert (held.counts.waiting, held.counts.in_flight, held.counts.reduced) == (9, 1, 0)
        replies = await asyncio.gather(*tasks)
        assert len({(reply.status, reply.body) for reply in replies}) == 1
        assert held.counts.as_dict() == {
            "total": 10, "executed": 1, "reduced": 9, "errors": 0, "takeovers": 0, "bypassed": {}, "unshared": {},
            "waiting": 0, "in_flight": 0,
        }  # fmt: skip
        assert (held.leaders, held.followers) == (0, 0)
        assert is_as_before(middleware)
        await eventually(server.nothing_is_left)


async def test_heads_are_held_too_and_not_with_the_gets(serve: Start) -> None:
    middleware = reduce_middleware()
    server = await serve(make_app(middleware), middleware=middleware)
    async with holding(middleware) as held:
        tasks = [*herd(server, 3, "/", method="HEAD"), *herd(server, 2)]
        await held.joined(3)
        assert held.leaders == 2
    assert {reply.status for reply in await asyncio.gather(*tasks)} == {200}
    assert (held.counts.executed, held.counts.reduced) == (2, 3)


async def test_a_thousand_join(serve: Start) -> None:
    middleware = reduce_middleware(max_age=60)
    server = await serve(make_app(middleware), middleware=middleware)
    async with holding(middleware, timeout=60) as held:
        connections = [await server.send("/") for _ in range(1_001)]
        await held.joined(1_000)
    replies = await asyncio.gather(*[connection.receive() for connection in connections])
    assert {reply.text for reply in replies} == {"hello "}
    assert (held.counts.executed, held.counts.reduced, held.counts["/"].reduced) == (1, 1_000, 1_000)


async def test_an_application_stands_for_the_middleware_in_it(serve: Start) -> None:
    middleware = reduce_middleware()
    deep = web.Application(middlewares=[middleware])
    deep.router.add_get("/deep", says)
    sub = web.Application()
    sub.add_subapp("/lower", deep)
    app = web.Application(middlewares=[outer])
    app.add_subapp("/sub", sub)
    server = await serve(app, middleware=middleware)
    async with holding(app, only="/sub/lower/deep") as held:
        tasks = herd(server, 3, "/sub/lower/deep")
        await held.joined(2)
    await asyncio.gather(*tasks)
    assert held.counts["/sub/lower/deep"].reduced == 2
    with counting(deep) as counts:
        await server.get("/sub/lower/deep")
    assert counts.executed == 1


async def test_an_object_on_two_levels_is_one(serve: Start) -> None:
    middleware = reduce_middleware()
    sub = web.Application(middlewares=[middleware])
    sub.router.add_get("/", says)
    app = web.Application(middlewares=[middleware])
    app.add_domain("localhost", sub)
    server = await serve(app, middleware=middleware)
    async with holding(app) as held:
        tasks = herd(server, 3)
        await held.joined(2)
        assert held.leaders == 1
    assert {reply.text for reply in await asyncio.gather(*tasks)} == {"hello "}


def test_what_is_no_target_is_refused() -> None:
    several = make_app(reduce_middleware())
    several.add_subapp("/api", make_app(reduce_middleware()))
    with pytest.raises(ValueError, match="2 reduce middlewares, at /, /api; pass the one that is meant"):
        holding(several)
    with pytest.raises(ValueError, match="have no reduce_middleware"), counting(web.Application(middlewares=[outer])):
        pass
    with pytest.raises(TypeError, match=r"target takes what reduce_middleware.* got <function says"):
        holding(says)  # type: ignore[arg-type]

    class Client:
        app = several

    with pytest.raises(TypeError, match="pass its app"):
        holding(Client())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="only takes a path"):
        holding(reduce_middleware(), only="report")
    with pytest.raises(TypeError, match="only takes a path"):
        holding(reduce_middleware(), only=3)
    with pytest.raises(ValueError, match="timeout takes seconds"):
        holding(reduce_middleware(), timeout=-1)


async def test_a_test_is_told_who_was_bypassed_and_why(serve: Start) -> None:
    middleware = reduce_middleware()
    server = await serve(make_app(middleware))
    async with holding(middleware) as held:
        tasks = [*herd(server, 4), *herd(server, 6, body=b"x")]
        await held.arrived(10)
        message = "expected 9 followers within 0 s; 3 joined, 6 were bypassed (body), 1 is held: GET /"
        assert await told(held, held.joined, 9) == message
        tasks += herd(server, 1, "/lottery")
        await held.arrived(11)
        message = "; 3 joined, 7 were bypassed (body: 6, never_reduce: 1), 1 is held: GET /"
        assert (await told(held, held.joined, 4)).endswith(message)
    await asyncio.gather(*tasks)


async def test_a_test_is_told_what_keeps_two_apart(serve: Start) -> None:
    middleware = reduce_middleware(key=lambda request: len(request.headers["X-Name"]))
    server = await serve(make_app(middleware))
    async with holding(middleware) as held:
        tasks = herd(server, 1, "/a", headers={"X-Name": "Ada"})
        await held.led(1)
        for number, name in enumerate(["Ada", "Bob", "Bice"], 2):
            tasks += herd(server, 1, headers={"X-Name": name, "User-Agent": name})
            await held.led(number)
        assert await told(held, held.joined, 1) == (
            "expected 1 follower within 0 s; none joined, 4 are held: GET /a, "
            "GET / (3 of them: they differ in X-Name; they differ in X-Name, key)"
        )
        tasks += [task for number in range(5) for task in herd(server, 1, f"/?{number}", headers={"X-Name": "Ada"})]
        await held.led(9)
        message = await told(held, held.led, 10)
        assert message.startswith("expected 10 leaders")
        assert message.endswith(", and 2 others")
    await asyncio.gather(*tasks)


async def test_a_test_is_told_that_a_flight_took_no_more(serve: Start) -> None:
    middleware = reduce_middleware(max_age=0)
    server = await serve(make_app(middleware))
    async with holding(middleware) as held:
        tasks = herd(server, 2)
        await held.led(2)
        message = "2 are held: GET / (2 of them: the first takes no more followers)"
        assert message in await told(held, held.joined, 1)
    await asyncio.gather(*tasks)


async def test_a_test_is_told_of_answers_failures_and_runs_that_are_not_held(serve: Start) -> None:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        if request.query_string:
            raise ZeroDivisionError
        return web.Response()

    middleware = reduce_middleware()
    app = web.Application(middlewares=[middleware])
    app.router.add_get("/", handler)
    app.router.add_get("/refuses", refuses)
    server = await serve(app, middleware=middleware)
    tasks = herd(server, 1)
    await gate.entered()
    async with holding(middleware, only="/") as held:
        tasks += [*herd(server, 2), *herd(server, 1, "/refuses")]
        await held.arrived(2)
        await tasks[-1]
        assert await told(held, held.joined, 2) == (
            "expected 2 followers within 0 s; none joined, 1 run not held, 2 waiting for them, "
            "1 call not selected by only='/' (/refuses)"
        )
        gate.open()
        await asyncio.gather(*tasks)
        held.release()
        await server.get("/?fails")
        with pytest.raises(HoldError, match="before the release; none joined, 2 answered by another's run, 1 run fail"):
            await held.joined(2)


async def test_a_test_is_told_that_nothing_came_and_of_the_limit_of_connections() -> None:
    middleware, reducer = reduce_middleware(), AsyncReducer()
    async with holding(middleware) as held:
        message = await told(held, held.arrived, 2)
        assert message.startswith("expected 2 calls within 0 s; nothing came to <reduce_middleware methods=")
        assert message.endswith("> in this event loop (is it the one that is asked, and are the calls tasks?)")

    async def work() -> None:
        pass

    async with holding(reducer) as held:
        calls = [reducer(work()) for _ in range(100)]
        hint = " (a ClientSession opens 100 connections at most, unless its connector has limit=0)"
        assert (await told(held, held.joined, 199)).endswith(hint)
    await asyncio.gather(*calls)


async def test_awaiting_the_herd_in_the_block_ends_in_an_explanation(serve: Start) -> None:
    middleware = reduce_middleware()
    server = await serve(make_app(middleware), middleware=middleware)
    with pytest.raises(HoldError) as error:  # noqa: PT012 - how the block ends
        async with holding(middleware) as held:
            (task,) = herd(server, 1)
            await held.led(1)
            held._timeout = 0.0
            held._start_timer()
            await task
    assert str(error.value) == (
        "the block was not left, nor held.release() called, within 0 s; none joined, 1 is held: GET /. Start what "
        "is to be held with asyncio.create_task(...), and await it after the block"
    )
    assert isinstance(error.value.__cause__, asyncio.CancelledError)
    current: Any = asyncio.current_task()
    assert current.cancelling() == 0
    assert is_as_before(middleware)
    await eventually(server.nothing_is_left)


async def test_the_explanation_comes_whatever_the_block_does_with_its_cancellation() -> None:
    with pytest.raises(HoldError, match="was not left"):  # noqa: PT012 - how the block ends
        async with holding(reduce_middleware(), timeout=0):
            with pytest.raises(asyncio.CancelledError):
                await asyncio.Event().wait()
    with pytest.raises(HoldError, match="was not left") as error:  # noqa: PT012 - how the block ends
        async with holding(reduce_middleware(), timeout=0):
            try:
                await asyncio.Event().wait()
            finally:
                raise ZeroDivisionError
    assert isinstance(error.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, pytest.skip.Exception])
async def test_what_ends_more_than_the_block_is_not_made_an_explanation(end: type[BaseException]) -> None:
    with pytest.raises(end):  # noqa: PT012 - how the block ends
        async with holding(reduce_middleware(), timeout=0):
            try:
                await asyncio.Event().wait()
            finally:
                raise end
    current: Any = asyncio.current_task()
    assert current.cancelling() == 0


async def test_a_late_block_of_a_task_that_is_being_cancelled_is_explained() -> None:
    async def cleanup() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            async with holding(reduce_middleware(), timeout=0):
                await asyncio.Event().wait()

    task = asyncio.create_task(cleanup())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(HoldError, match="was not left"):
        await task
    assert task.cancelling() == 1


def test_a_block_that_goes_on_in_time_or_has_released_is_left_alone() -> None:
    async def main(loop: VirtualLoop) -> None:
        middleware = reduce_middleware()
        async with holding(middleware) as held:
            for _ in range(3):
                with pytest.raises(HoldError):  # that takes all of the time, and then there is as much again
                    await held.joined(1)
                await asyncio.sleep(4.9)
            held.release()
            await asyncio.sleep(100)
        async with holding(middleware, timeout=5), holding(middleware, timeout=15) as inner:
            with pytest.raises(HoldError, match="expected 1 follower within 15 s"):
                await inner.joined(1)  # not the outer one is late
            await asyncio.sleep(4.9)
        with pytest.raises(HoldError, match="was not left"):
            async with holding(middleware):
                await asyncio.sleep(5.1)

    run_virtually(main)


def test_a_block_that_a_task_which_has_ended_began_is_told_of_at_its_end() -> None:
    async def main(loop: VirtualLoop) -> None:
        reducer = AsyncReducer()
        held = holding(reducer)
        await loop.create_task(held.__aenter__())  # as a fixture does it
        assert await reducer(double(1)) == 2
        with pytest.raises(HoldError, match="was not left"):
            await held.__aexit__(None, None, None)

    run_virtually(main)


@pytest.mark.parametrize("waits", [False, True])
def test_a_block_whose_loop_is_closed_leaves_nothing_in_the_way(waits: bool) -> None:
    reducer = AsyncReducer()
    loop = asyncio.new_event_loop()

    async def test() -> None:
        async with holding(reducer) as held:
            call = reducer(double(1))
            await held.led(1)
            inside.set()
            await (held.joined(1) if waits else call)

    inside = asyncio.Event()
    block = test()
    task = loop.create_task(block)
    loop.run_until_complete(inside.wait())
    loop.close()
    assert not task.done()
    block.close()  # as the interpreter does it, when nobody has the task any more
    assert is_as_before(reducer)
    for left in asyncio.all_tasks(loop):
        left.get_coro().close()  # type: ignore[union-attr]
        left._log_destroy_pending = False  # type: ignore[attr-defined]


async def test_a_hold_may_last_as_long_as_it_likes() -> None:
    reducer = AsyncReducer()
    async with holding(reducer, timeout=math.inf) as held:
        call = reducer(double(1))
        await held.led(1)
    assert await call == 2


async def test_a_hold_is_for_one_block() -> None:
    held = holding(reduce_middleware())
    with pytest.raises(RuntimeError, match="async with holding"):
        await held.joined(1)
    async with held:
        pass
    with pytest.raises(RuntimeError, match="async with holding"):
        await held.arrived(0)
    with pytest.raises(RuntimeError, match="for one block"):
        await held.__aenter__()
    held.release()


async def test_an_exception_in_the_block_releases(serve: Start) -> None:
    middleware = reduce_middleware()
    server = await serve(make_app(middleware), middleware=middleware)
    tasks: list[asyncio.Task[Any]] = []
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - how the block ends
        async with holding(middleware) as held:
            tasks += herd(server, 3)
            await held.joined(2)
            raise ZeroDivisionError
    assert {reply.text for reply in await asyncio.gather(*tasks)} == {"hello "}
    assert is_as_before(middleware)


@pytest.mark.parametrize("wait", ["joined", "led", "arrived", "nothing"])
async def test_a_cancellation_in_the_block_releases(serve: Start, wait: str) -> None:
    middleware = reduce_middleware()
    server = await serve(make_app(middleware), middleware=middleware)
    tasks: list[asyncio.Task[Any]] = []
    inside = asyncio.Event()

    async def test() -> None:
        async with holding(middleware) as held:
            tasks.extend(herd(server, 3))
            await held.joined(2)
            inside.set()
            await (asyncio.Event().wait() if wait == "nothing" else getattr(held, wait)(50))

    task = asyncio.create_task(test())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {reply.text for reply in await asyncio.gather(*tasks)} == {"hello "}
    assert is_as_before(middleware)
    await eventually(server.nothing_is_left)


async def test_a_block_that_is_late_and_cancelled_at_once_is_cancelled() -> None:
    task: Any = None

    async def test() -> None:
        async with holding(reduce_middleware(), timeout=0):
            asyncio.get_running_loop().call_later(0, lambda: task.cancel())
            await asyncio.Event().wait()

    task = asyncio.create_task(test())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_who_takes_over_is_held_as_well(serve: Start) -> None:
    middleware = reduce_middleware()
    server = await serve(make_app(middleware), middleware=middleware, handler_cancellation=True)
    async with holding(middleware) as held:
        leader = await server.send("/")
        await held.led(1)
        tasks = herd(server, 4)
        await held.joined(4)
        leader.abort()
        await eventually(lambda: held.counts.takeovers == 1)
        await held.led(1)
        assert (held.leaders, held.followers) == (1, 3)
    assert {reply.text for reply in await asyncio.gather(*tasks)} == {"hello "}
    assert (held.counts.executed, held.counts.reduced) == (2, 3)
    await eventually(server.nothing_is_left)


async def test_a_leader_that_leaves_is_held_on_where_its_handler_runs_on(serve: Start) -> None:
    middleware = reduce_middleware()
    server = await serve(make_app(middleware), middleware=middleware)
    async with holding(middleware) as held:
        leader = await server.send("/")
        await held.led(1)
        tasks = herd(server, 2)
        await held.joined(2)
        leader.abort()
        await leader.close()
        assert (held.leaders, held.followers) == (1, 2)
    assert {reply.text for reply in await asyncio.gather(*tasks)} == {"hello "}
    assert held.counts.executed == 1
    await eventually(server.nothing_is_left)


async def test_all_may_leave_while_they_are_held(serve: Start) -> None:
    middleware = reduce_middleware()
    server = await serve(make_app(middleware), middleware=middleware, handler_cancellation=True)
    async with holding(middleware) as held:
        connections = [await server.send("/") for _ in range(3)]
        await held.joined(2)
        for connection in connections:
            connection.abort()
        await eventually(lambda: held.leaders == 0)
        await eventually(server.nothing_is_left)
        assert held.followers == 0


async def test_a_server_that_stops_in_the_block_does_not_hang(serve: Start) -> None:
    middleware = reduce_middleware()
    server = await serve(make_app(middleware), middleware=middleware, shutdown_timeout=0.01)
    async with holding(middleware) as held:
        connections = [await server.send("/") for _ in range(3)]
        await held.joined(2)
        await server.runner.cleanup()
        assert (held.leaders, held.followers) == (0, 0)
    # The leader is cut off, and who followed may be told that the server shuts down.
    await asyncio.gather(*[connection.receive() for connection in connections], return_exceptions=True)
    await eventually(server.nothing_is_left)


async def test_who_has_a_pass_marker_is_not_held(serve: Start) -> None:
    middleware = reduce_middleware()
    server = await serve(make_app(middleware), middleware=middleware)
    async with holding(middleware) as held:
        tasks = herd(server, 3, "/refuses")
        await held.joined(2)
    await asyncio.gather(*tasks)
    assert held.counts.unshared == {"no-store": 2}
    async with holding(middleware) as held:
        await asyncio.gather(*herd(server, 2, "/refuses"))
        assert (await told(held, held.joined, 1)).endswith("; none joined, 2 were not shared (pass-marker)")


async def test_only_what_is_selected_is_held(serve: Start) -> None:
    middleware = reduce_middleware()
    server = await serve(make_app(middleware), middleware=middleware)
    for only in ("/a", lambda request: request.path == "/a"):
        async with holding(middleware, only=only) as held:
            tasks = herd(server, 3, "/a?x")
            assert (await server.get("/b")).text == "hello "
            await held.joined(2)
            await held.arrived(3)
        await asyncio.gather(*tasks)
        assert (held.counts["/a"].reduced, held.counts["/b"].executed, held.counts["/c"].total) == (2, 1, 0)


async def test_a_selection_that_raises_fails_the_test_and_not_the_request(serve: Start) -> None:
    middleware = reduce_middleware()
    server = await serve(make_app(middleware), middleware=middleware)

    def only(request: web.Request) -> bool:
        raise ZeroDivisionError

    with pytest.raises(HoldError, match=r"^only=") as error:
        async with holding(middleware, only=only):
            assert (await server.get("/")).text == "hello "
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    with pytest.raises(HoldError, match=r"^only="):  # noqa: PT012 - how the block ends
        async with holding(middleware, only=only) as held:
            tasks = herd(server, 2)
            await held.joined(1)
    await asyncio.gather(*tasks)


def test_a_selection_that_raises_is_told_of_at_once() -> None:
    async def main(loop: VirtualLoop) -> None:
        began = loop.time()
        reducer = AsyncReducer()
        calls: list[Any] = []
        with pytest.raises(HoldError, match=r"^only="):  # noqa: PT012 - how the block ends
            async with holding(reducer, only=lambda coro: 1 / 0) as held:
                loop.call_soon(lambda: calls.append(reducer(double(1))))
                await held.arrived(1)
        assert loop.time() == began
        assert await calls[0] == 2

    run_virtually(main)


async def test_nested_holds_all_have_to_release(serve: Start) -> None:
    middleware = reduce_middleware()
    server = await serve(make_app(middleware), middleware=middleware)
    async with holding(middleware) as held:
        async with holding(middleware, only="/a") as inner:
            tasks = [*herd(server, 3, "/a"), *herd(server, 2, "/b")]
            await held.joined(3)
            await inner.joined(2)
            assert (held.leaders, inner.leaders) == (2, 1)
        assert not is_as_before(middleware)
        tasks += herd(server, 1, "/a")
        await held.joined(4)
        assert (inner.leaders, held.leaders) == (1, 2)  # of the same run, which the outer one holds on
    assert {reply.text for reply in await asyncio.gather(*tasks)} == {"hello "}
    assert (inner.leaders, held.leaders) == (0, 0)
    assert is_as_before(middleware)
    assert held.counts.executed == 2


async def test_holds_of_tests_side_by_side_do_not_mind_each_other(serve: Start) -> None:
    middleware = reduce_middleware()
    server = await serve(make_app(middleware), middleware=middleware)

    async def test(path: str, size: int) -> int:
        async with holding(middleware, only=path) as held:
            tasks = herd(server, size, path)
            await held.joined(size - 1)
        await asyncio.gather(*tasks)
        return held.counts[path].reduced

    assert await asyncio.gather(*[test(path, size) for path, size in (("/a", 3), ("/b", 5), ("/", 4))]) == [2, 4, 3]
    assert is_as_before(middleware)


async def test_what_was_released_is_not_held_any_more(serve: Start) -> None:
    middleware = reduce_middleware()
    server = await serve(make_app(middleware), middleware=middleware)
    async with holding(middleware) as held:
        tasks = herd(server, 2)
        await held.joined(1)
        held.release()
        held.release()
        await asyncio.gather(*tasks)
        assert (await server.get("/")).text == "hello "
        await held.arrived(3)
        with pytest.raises(HoldError, match="expected 1 leader before the release"):
            await held.led(1)
    assert held.counts.executed == 2


def test_a_release_ends_the_waiting_of_another_task_at_once() -> None:
    async def main(loop: VirtualLoop) -> None:
        before = loop.time()
        async with holding(reduce_middleware()) as held:
            task = asyncio.create_task(held.joined(1))
            await asyncio.sleep(0)
            held.release()
            with pytest.raises(HoldError, match="before the release; nothing came"):
                await task
            with pytest.raises(HoldError, match="before the release; nothing came"):
                await held.led(1)
        assert loop.time() == before

    run_virtually(main)


async def test_what_another_door_leads_is_not_held(serve: Start) -> None:
    first, second = reduce_middleware(), reduce_middleware(methods=["HEAD"])
    server = await serve(make_app(second, before=[first]), middleware=second)
    async with holding(second) as held:
        assert (await server.get("/")).text == "hello "
    assert (held.counts.bypassed, held.leaders) == ({"method": 1}, 0)


async def test_large_streams_are_read_after_the_block(serve: Start) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(64):
            await response.write(bytes(2**16))
        return response

    middleware = reduce_middleware()
    app = web.Application(middlewares=[middleware])
    app.router.add_get("/", endless)
    server = await serve(app, middleware=middleware)
    async with holding(app) as held:
        connections = [await server.send("/") for _ in range(4)]
        await held.joined(3)
    replies = await asyncio.gather(*[connection.receive() for connection in connections])
    assert [len(reply.body) for reply in replies] == [2**22] * 4
    assert (held.counts.executed, held.counts.reduced) == (1, 3)


async def test_both_sides_of_a_gateway_may_be_held(
    serve: Start, upstream: StartUpstream, reducing: OpenSession
) -> None:
    source, session, middleware = await upstream(hello), reducing(), reduce_middleware()

    async def fetch(request: web.Request) -> web.Response:
        return web.Response(body=await body_of(session, source.url))

    app = web.Application(middlewares=[middleware])
    app.router.add_get("/{name}", fetch)
    server = await serve(app, middleware=middleware)
    async with holding(session) as sent, holding(app) as held:
        tasks = [*herd(server, 3, "/a"), *herd(server, 2, "/b")]
        await held.joined(3)
        assert (held.leaders, sent.leaders) == (2, 0)
        held.release()
        await sent.joined(1)
        assert (sent.leaders, len(source.requests)) == (1, 0)
    assert {reply.text for reply in await asyncio.gather(*tasks)} == {"hello"}
    assert (held.counts.executed, sent.counts.executed, sent.counts.reduced) == (2, 1, 1)


async def test_holds_may_end_in_another_order_than_they_began() -> None:
    reducer = AsyncReducer()
    first, second = holding(reducer), holding(reducer)
    await first.__aenter__()
    await second.__aenter__()
    call = reducer(double(1))
    await second.led(1)
    await first.__aexit__(None, None, None)
    assert (second.leaders, call.done()) == (1, False)
    assert not is_as_before(reducer)
    await second.__aexit__(None, None, None)
    assert await call == 2
    assert is_as_before(reducer)


async def test_an_overdue_follower_that_runs_by_itself_is_held_too_and_may_be_answered(serve: Start) -> None:
    middleware = reduce_middleware(max_wait=0.01)
    server = await serve(make_app(middleware), middleware=middleware)
    async with holding(middleware) as held:
        tasks = herd(server, 2)
        await held.led(2)
        assert (held.leaders, held.followers) == (2, 0)
    assert {reply.text for reply in await asyncio.gather(*tasks)} == {"hello "}
    assert held.counts.executed == 2
    await eventually(server.nothing_is_left)


@pytest.mark.parametrize("passes", range(12))
def test_a_cancellation_at_any_moment_leaves_nothing_behind(passes: int) -> None:
    async def main(loop: VirtualLoop) -> None:
        middleware, reducer = reduce_middleware(), AsyncReducer()
        door = Door(loop, middleware, says)
        calls: list[Any] = []

        async def test() -> None:
            async with holding(middleware) as held, holding(reducer) as coroutines:
                calls.extend([loop.create_task(door.get()) for _ in range(3)])
                calls.extend([reducer(double(1)) for _ in range(3)])
                await held.joined(2)
                await coroutines.joined(2)
                held.release()
                await held.arrived(3)
                await asyncio.sleep(0)

        await door.get()
        task = loop.create_task(test())
        for _ in range(passes):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        results = await asyncio.gather(*calls)
        assert [getattr(result, "text", result) for result in results] in ([], ["hello "] * 3 + [2] * 3)
        assert is_as_before(middleware, reducer)
        await asyncio.sleep(1)  # the last call
        assert door.nothing_is_left()

    run_virtually(main)


# Outgoing requests


async def test_outgoing_calls_are_held_before_they_are_sent(upstream: StartUpstream, reducing: OpenSession) -> None:
    server, session = await upstream(hello), reducing()
    async with holding(session) as held:
        tasks = reading(session, 10, server.url + "/x?y")
        await held.joined(9)
        assert (held.leaders, len(server.requests)) == (1, 0)
    assert await asyncio.gather(*tasks) == [b"hello"] * 10
    assert (held.counts.executed, held.counts.reduced, len(server.requests)) == (1, 9, 1)
    assert held.counts[server.url.removeprefix("http://")].reduced == 9
    assert is_as_before(reducer_of(session))


async def test_a_session_that_is_given_is_held(upstream: StartUpstream) -> None:
    server = await upstream(hello)
    async with aiohttp.ClientSession() as genuine:
        session = ReducingClientSession(session=genuine)
        async with holding(session) as held:
            tasks = reading(session, 3, server.url)
            assert await body_of(genuine, server.url) == b"hello"
            await held.joined(2)
        assert await asyncio.gather(*tasks) == [b"hello"] * 3


async def test_a_genuine_session_is_held_by_its_middleware(upstream: StartUpstream) -> None:
    server, reducer = await upstream(hello), reduce_client_middleware()

    async def passes(request: Any, handler: Any) -> Any:
        return await handler(request)

    async with aiohttp.ClientSession(middlewares=[passes, reducer]) as session:
        async with holding(reducer, only="/a") as held:
            tasks = reading(session, 3, server.url + "/a")
            assert await body_of(session, server.url + "/b") == b"hello"
            await held.joined(2)
        await asyncio.gather(*tasks)
    assert (held.counts.executed, held.counts.reduced) == (2, 2)
    async with aiohttp.ClientSession(middlewares=[reducer, passes]) as session, holding(reducer) as held:
        await asyncio.gather(*reading(session, 2, server.url))
        assert (await told(held, held.joined, 1)).endswith("; none joined, 2 were bypassed (not-innermost)")


async def test_a_test_is_told_why_outgoing_calls_do_not_meet(upstream: StartUpstream, reducing: OpenSession) -> None:
    server, session = await upstream(hello), reducing()
    async with holding(session) as held:
        tasks = reading(session, 2, server.url)
        tasks += reading(session, 1, server.url, headers={"X-Name": "Ada"})
        tasks += reading(session, 1, server.url, read_bufsize=99)
        tasks += reading(session, 2, server.url, reduce=False)
        await held.arrived(6)
        message = await told(held, held.joined, 2)
    assert message == (
        "expected 2 followers within 0 s; 1 joined, 2 were bypassed (reduce-false), 3 are held: "
        f"GET {server.url} (3 of them: they differ in X-Name; they differ in options of reading)"
    )
    assert await asyncio.gather(*tasks) == [b"hello"] * 6


async def test_an_outgoing_call_that_all_leave_is_not_held_any_more(
    upstream: StartUpstream, reducing: OpenSession
) -> None:
    server, session = await upstream(hello), reducing()
    async with holding(session) as held:
        tasks = reading(session, 3, server.url)
        await held.joined(2)
        await cut(tasks[:1])  # the one that started it
        assert (held.leaders, held.followers) == (1, 2)
        await cut(tasks)
        await eventually(lambda: held.leaders == 0)
    assert not server.requests


async def test_a_session_that_is_closed_while_it_is_held(upstream: StartUpstream, reducing: OpenSession) -> None:
    server, session = await upstream(hello), reducing()
    async with holding(session) as held:
        tasks = reading(session, 3, server.url)
        await held.joined(2)
        await session.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [aiohttp.ClientConnectionError] * 3


async def test_who_asks_alone_because_of_vary_is_not_held(upstream: StartUpstream) -> None:
    async def varies(exchange: Exchange) -> None:
        await exchange.respond(b"hello", Vary="X-Name")

    server = await upstream(varies)
    async with ReducingClientSession(ignore_headers=["X-Name"]) as session:
        async with holding(session) as held:
            tasks = reading(session, 1, server.url, headers={"X-Name": "Ada"})
            tasks += reading(session, 1, server.url, headers={"X-Name": "Bob"})
            await held.joined(1)
        await asyncio.gather(*tasks)
    assert held.counts.unshared == {"vary: x-name": 1}


# Coroutines


async def double(number: int) -> int:
    return 2 * number


async def test_coroutines_are_held_and_counted_by_name_and_ident() -> None:
    reducer = AsyncReducer()
    async with holding(reducer) as held:
        calls = [reducer(double(number % 2)) for number in range(6)]
        calls += [reducer(double(number), ident=("it", 1)) for number in range(3)]
        await held.joined(6)
        await held.arrived(9)
        assert held.leaders == 3
    assert await asyncio.gather(*calls) == [0, 2, 0, 2, 0, 2, 0, 0, 0]
    assert (held.counts.executed, held.counts.reduced, held.counts.total) == (3, 6, 9)
    assert held.counts["double"].as_dict()["reduced"] == 4
    assert held.counts["('it', 1)"].reduced == 2
    assert is_as_before(reducer)


@pytest.mark.parametrize("only", ["double", ("it", 1), lambda coro: coro.__name__ == "double"])
async def test_only_selected_coroutines_are_held(only: Any) -> None:
    async def other() -> str:
        return "other"

    reducer = AsyncReducer()
    ident = None if only == "double" else ("it", 1)
    async with holding(reducer, only=only) as held:
        assert await asyncio.gather(reducer(other()), reducer(other())) == ["other", "other"]
        calls = [reducer(double(1), ident=ident) for _ in range(3)]
        await held.joined(2)
    assert await asyncio.gather(*calls) == [2, 2, 2]
    name = "test_only_selected_coroutines_are_held.<locals>.other"
    assert (held.counts["other"].reduced, held.counts[name].total) == (1, 0)


async def test_exceptions_and_cancellations_of_coroutines_are_theirs(noise: list[Any]) -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    reducer = AsyncReducer()
    async with holding(reducer) as held:
        calls = [reducer(fails()) for _ in range(3)]
        left = reducer(fails())
        await held.joined(3)
        left.cancel()
        await asyncio.sleep(0)
        assert held.followers == 2
    for call in calls:
        with pytest.raises(ZeroDivisionError):
            await call
    assert (held.counts.executed, held.counts.reduced, held.counts.errors, held.counts.waiting) == (1, 2, 1, 0)


@pytest.mark.parametrize("passes", [0, 3])
async def test_a_held_coroutine_may_be_cancelled(noise: list[Any], passes: int) -> None:
    reducer = AsyncReducer()
    others = asyncio.all_tasks()
    async with holding(reducer) as held:
        call = reducer(double(1))
        for _ in range(passes):
            await asyncio.sleep(0)
        (task,) = asyncio.all_tasks() - others
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (held.leaders, held.counts.in_flight, held.counts.errors) == (0, 0, 0)
        assert await asyncio.wait([task])


async def test_a_reducer_refuses_what_it_refuses(noise: list[Any]) -> None:
    async def listing(names: list[str]) -> int:
        return len(names)

    reducer = AsyncReducer()
    async with holding(reducer) as held:
        with pytest.raises(TypeError, match=r"argument 'names' of .*listing\(\) is not hashable"):
            reducer(coro := listing(["a"]))
        call = reducer(coro, ident="it")
        await held.led(1)
        with pytest.raises(TypeError, match="takes a coroutine, got 3"):
            reducer(3)  # type: ignore[arg-type]
        assert reducer.forget("it")
        again = reducer(listing([]), ident="it")
        await held.led(2)
    assert await asyncio.gather(call, again) == [1, 0]


async def test_hooks_see_calls_named_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    from aiohttp_reduce.hooks import DebugHooks

    reducer = AsyncReducer(hooks=DebugHooks(sys.stdout))
    with counting(reducer) as counts:
        assert await asyncio.gather(reducer(double(1)), reducer(double(1))) == [2, 2]
    assert counts.reduced == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(re.match(r"\[tests\.test_testing_aid:double\(<state_hash:", line) for line in lines)
    assert "<coroutine object double" in lines[0]


async def test_another_loop_is_not_held() -> None:
    reducer = AsyncReducer()
    results: list[int] = []

    async def elsewhere() -> None:
        results.extend(await asyncio.gather(reducer(double(1)), reducer(double(1))))

    async with holding(reducer) as held:
        call = reducer(double(1))
        await held.led(1)
        thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
        thread.start()
        await asyncio.to_thread(thread.join)
        assert results == [2, 2]
        assert (held.leaders, held.followers) == (1, 0)
    assert await call == 2


async def test_a_hold_may_begin_elsewhere_at_any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    async def elsewhere() -> None:
        begun.append(await holding(AsyncReducer()).__aenter__())

    def task_of(hold: Hold) -> Any:
        if not begun:
            thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
            thread.start()
            thread.join()
        return vars(hold)["_task"]

    begun: list[Hold] = []
    async with holding(AsyncReducer()) as held:
        with monkeypatch.context() as patch:
            # Where the other blocks are looked through, another thread may run.
            patch.setattr(Hold, "_task", property(task_of, lambda hold, task: vars(hold).update(_task=task)), False)
            await held.arrived(0)
    (other,) = begun
    await other.__aexit__(None, None, None)


@pytest.mark.parametrize("passes", range(5))
def test_who_leaves_again_at_any_moment_is_not_taken_for_there(passes: int) -> None:
    async def main(loop: VirtualLoop) -> None:
        reducer = AsyncReducer()
        async with holding(reducer) as held:
            calls = [reducer(double(1))]
            waiting = loop.create_task(held.joined(1))
            await held.led(1)
            fickle = reducer(double(1))
            for _ in range(passes):
                await asyncio.sleep(0)
            fickle.cancel()
            there = waiting.done()
            await asyncio.sleep(1)
            assert waiting.done() is there
            calls.append(reducer(double(1)))
            await waiting
        assert await asyncio.gather(*calls) == [2, 2]

    run_virtually(main)


async def test_they_go_on_in_the_order_in_which_they_came() -> None:
    order: list[int] = []

    async def note(number: int) -> None:
        order.append(number)

    async def call(number: int) -> None:
        await reducer(note(number))

    reducer = AsyncReducer()
    async with holding(reducer) as held:
        calls = [asyncio.create_task(call(number)) for number in range(20)]
        await held.led(20)
    await asyncio.gather(*calls)
    assert order == list(range(20))


# Counting


async def test_counting_is_of_its_block(serve: Start) -> None:
    middleware = reduce_middleware()
    server = await serve(make_app(middleware), middleware=middleware)
    await server.get("/a")
    with counting(middleware) as counts:
        assert repr(counts) == "Counts()"
        await server.get("/a")
        with counting(middleware) as inner:
            await server.get("/b", method="POST")
        await server.get("/breaks")
    await server.get("/a")
    assert (counts.total, counts.executed, counts["/a"].executed, counts["/breaks"].errors) == (2, 2, 1, 0)
    assert counts.bypassed == inner.bypassed == inner["/b"].bypassed == {"method": 1}
    assert (inner.total, inner["/nowhere"].total, inner["/nowhere"].unshared) == (0, 0, {})
    assert repr(inner) == "Counts(bypassed={'method': 1})"
    assert is_as_before(middleware)


async def test_who_stops_counting_in_the_block_has_counted_until_then() -> None:
    reducer = AsyncReducer()
    with counting(reducer) as counts:
        await reducer(double(1))
        counts.stop()
        await reducer(double(2))
    assert counts.total == 1


async def test_the_wayside_is_clear_when_nobody_looks() -> None:
    middleware, client, reducer = reduce_middleware(), reduce_client_middleware(), AsyncReducer()
    for target in (middleware, client, reducer):
        assert is_as_before(target)
        with counting(target):  # type: ignore[arg-type]
            assert not is_as_before(target)
            with pytest.raises(ZeroDivisionError), counting(target):  # type: ignore[arg-type]
                raise ZeroDivisionError
            assert not is_as_before(target)
        assert is_as_before(target)


def test_a_target_that_was_held_takes_not_one_step_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(loop: VirtualLoop, middleware: ReduceMiddleware) -> Spent:
        return await lone(monkeypatch, loop, middleware, {}, [])

    async def hold(middleware: ReduceMiddleware) -> None:
        async with holding(middleware):
            pass

    fresh, held = reduce_middleware(), reduce_middleware()
    asyncio.run(hold(held))
    before, after = [run_virtually(lambda loop, one=one: main(loop, one)) for one in (fresh, held)]  # type: ignore[misc]
    assert after.calls == before.calls
    assert after.steps == before.steps or sys.version_info >= (3, 12)  # (where not all of them are told of)


def test_a_call_may_begin_after_the_block_in_which_it_was_made() -> None:
    async def main(loop: VirtualLoop) -> None:
        middleware = reduce_middleware()

        @web.middleware
        async def later(request: web.Request, handler: Any) -> Any:
            called = handler(request)
            await asyncio.sleep(1)
            return await called

        door = Door(loop, middleware, says, outer=[later])
        async with holding(middleware):
            task = loop.create_task(door.get())
            await asyncio.sleep(0.5)
        assert (await task).text == "hello "
        assert middleware.stats["executed"] == 1

    run_virtually(main)


async def test_a_call_that_was_looked_up_in_a_block_may_be_made_after_it() -> None:
    reducer = AsyncReducer()
    with counting(reducer) as counts:
        call = reducer.__call__
    assert await call(double(1)) == 2
    assert counts.total == 0


async def test_a_hold_leaves_requests_on_the_short_way(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_full(*args: Any) -> Any:
        in_detail.append(args)
        return of_all(*args)

    middleware = reduce_middleware()
    server = await serve(make_app(middleware), middleware=middleware)
    await server.get("/")
    in_detail: list[Any] = []
    of_all = ReduceMiddleware._in_full
    monkeypatch.setattr(ReduceMiddleware, "_in_full", in_full)
    async with holding(middleware) as held:
        tasks = herd(server, 3)
        await held.joined(2)
    await asyncio.gather(*tasks)
    assert in_detail == []


async def test_a_subclass_is_watched_as_its_own(serve: Start) -> None:
    class Mine(AsyncReducer):
        asked = 0

        def __call__(self, coro: Any, *, ident: Any = None) -> Any:
            self.asked += 1
            return super().__call__(coro, ident=ident)

    reducer = Mine()
    async with holding(reducer) as held:
        calls = [reducer(double(1)) for _ in range(2)]
        await held.joined(1)
        assert type(reducer).__name__ == "Mine"
    assert await asyncio.gather(*calls) == [2, 2]
    assert (type(reducer), reducer.asked) == (Mine, 2)


def test_the_library_does_not_load_it() -> None:
    code = (
        "import sys, aiohttp_reduce; loaded = set(sys.modules); import aiohttp_reduce.testing;"
        "print([name for name in loaded if name.startswith('aiohttp_reduce.testing')], 'pytest' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] False\n"


# The plugin and the page


CONFTEST = 'pytest_plugins = ["aiohttp_reduce.pytest_plugin"]\n'
INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
reduce_timeout = 0.01
filterwarnings = error
"""
PLUGIN_TEST = """
import asyncio

from aiohttp_reduce import AsyncReducer

reducer = AsyncReducer()


async def work():
    pass


async def test_shares(hold_flights, reduce_counts):
    counts = reduce_counts(reducer)
    async with hold_flights(reducer, timeout=5) as held:
        calls = [reducer(work()) for _ in range(3)]
        await held.joined(2)
    await asyncio.gather(*calls)
    assert counts.reduced == 2
    assert held.counts.reduced == 2


def test_nobody_watches_any_more():
    assert type(reducer) is AsyncReducer


async def test_does_not_share(hold_flights, reduce_counts):
    reduce_counts(reducer)
    async with hold_flights(reducer, only="work") as held:
        calls = [reducer(work(), ident=number) for number in range(3)]
        await held.joined(2)


async def test_hangs(hold_flights):
    async with hold_flights(reducer):
        await reducer(work())
"""


def test_the_fixtures_hold_and_count_and_show_it(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makeini(INI)
    pytester.makepyfile(PLUGIN_TEST)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines([
        "*HoldError: expected 2 followers within 0.01 s; none joined, 3 calls not selected by only='work' (0, 1, 2)",
        "*HoldError: the block was not left*within 0.01 s; none joined, 1 is held: work.*",
    ])  # fmt: skip
    result.stdout.no_fnmatch_line("*in joined*")
    result.stdout.fnmatch_lines(["*- Captured aiohttp-reduce call -*", "Counts(total=3, executed=3*)"])
    result.stdout.fnmatch_lines([">*await reducer(work())"])


def test_nothing_is_registered_by_itself(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makepyfile("def test_it(hold_flights): pass")
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(errors=1)


def test_the_tests_of_the_page_are_green(pytester: pytest.Pytester) -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python( no-run)?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for _, block in blocks:
        compile(block, str(PAGE), "exec")
    (conftest,) = [block for no_run, block in blocks if no_run and block.startswith("pytest_plugins")]
    (fixtures,) = [block for no_run, block in blocks if no_run and "hold_flights" in block]
    fixtures = fixtures.replace("test_the_report_runs_once", "test_with_fixtures")
    imports = "import asyncio\n\nimport aiohttp\nfrom aiohttp import web\n\n"
    pytester.makeconftest(conftest)
    pytester.makeini(INI.replace("0.01", "5"))
    pytester.makepyfile(imports + "\n\n".join([*[block for no_run, block in blocks if not no_run], fixtures]))
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=6)


async def test_the_page_runs_without_pytest() -> None:
    names: dict[str, Any] = {"asyncio": asyncio, "aiohttp": aiohttp, "web": web, "__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(compile(block, str(PAGE), "exec"), names)
    await names["main"]()
