"""Section 2: who leads, what is shared, who takes over. The numbers in the names are the section's points."""

import asyncio
import contextvars
import gc
import weakref
from typing import Any

import pytest
from aiohttp import web

from aiohttp_reduce import reduce_middleware
from tests.harness import Gate, Server, Start, app_with, eventually


async def gated(
    serve: Start, *, max_age: float = 60.0, max_wait: float = 60.0, outer: Any = (), **options: Any
) -> tuple[Server, Gate]:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        run = await gate.wait(request)
        return web.Response(text=f"run {run}")

    middleware = reduce_middleware(max_age=max_age, max_wait=max_wait)
    app = app_with(handler, middleware, path="/{tail:.*}", outer=outer)
    return await serve(app, middleware=middleware, **options), gate


async def test_a_herd_of_200_is_one_run_and_200_equal_answers(serve: Start) -> None:
    server, gate = await gated(serve)
    herd = asyncio.create_task(server.herd(200, "/"))
    await server.waiting(199)
    gate.open()
    replies = await herd
    assert gate.runs == 1
    assert {(reply.status, reply.text) for reply in replies} == {(200, "run 1")}
    assert (server.figure("executed"), server.figure("reduced"), server.figure("largest_herd")) == (1, 199, 200)
    await eventually(server.nothing_is_left)


@pytest.mark.parametrize("kind", ["not-found", "error", "file"])
async def test_a_herd_of_200_for_an_exception_or_a_file_is_one_run(
    serve: Start, kind: str, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    file = tmp_path / "file.txt"
    file.write_text("content " * 1000)

    async def handler(request: web.Request) -> web.StreamResponse:
        await gate.wait()
        if kind == "not-found":
            raise web.HTTPNotFound(text="nothing here", headers={"X-Reason": "gone"})
        if kind == "error":
            raise RuntimeError("broken")
        return web.FileResponse(file)

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    herd = asyncio.create_task(server.herd(200, "/"))
    await server.waiting(199)
    gate.open()
    replies = await herd
    assert gate.runs == 1
    assert len({reply.body for reply in replies}) == 1
    expected = {"not-found": 404, "error": 500, "file": 200}[kind]
    assert {reply.status for reply in replies} == {expected}
    if kind == "not-found":
        assert {reply.headers["X-Reason"] for reply in replies} == {"gone"}
    if kind == "error":
        assert server.figure("errors") == 1
        assert sum("Error handling request" in record.message for record in caplog.records) == 200
    if kind == "file":
        assert replies[0].body == file.read_bytes()
    await eventually(server.nothing_is_left)


async def test_2_1_the_handler_runs_in_the_leaders_own_task_and_context(serve: Start) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen: dict[str, Any] = {}

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> Any:
        variable.set("from outside")
        seen["outer task"], seen["outer request"] = asyncio.current_task(), request
        return await handler(request)

    async def handler(request: web.Request) -> web.Response:
        seen["task"], seen["request"], seen["variable"] = asyncio.current_task(), request, variable.get()
        variable.set("from inside")
        return web.Response()

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware, outer=[outer]), middleware=middleware)
    await server.get("/")
    assert seen["task"] is seen["outer task"]
    assert seen["request"] is seen["outer request"]
    assert seen["variable"] == "from outside"


async def test_2_2_a_leader_that_disconnects_under_handler_cancellation_is_followed_by_one_other(serve: Start) -> None:
    server, gate = await gated(serve, handler_cancellation=True)
    leader = await server.send("/")
    await gate.entered()
    followers = [await server.send("/") for _ in range(20)]
    await server.waiting(20)
    leader.abort()
    await gate.entered(2)
    await server.waiting(19)
    gate.open()
    replies = [await follower.receive() for follower in followers]
    assert gate.runs == 2
    assert {reply.text for reply in replies} == {"run 2"}
    assert server.figure("takeovers") == 1
    assert sorted(str(reply.collapsed) for reply in replies) == [
        *["aiohttp-reduce; fwd=miss; collapsed"] * 19,
        "aiohttp-reduce; fwd=miss; collapsed=?0",
    ]
    await eventually(server.nothing_is_left)


async def test_2_2_a_leader_that_an_outer_middleware_times_out_is_followed_by_one_other(serve: Start) -> None:
    expire = asyncio.Event()

    @web.middleware
    async def timeout(request: web.Request, handler: Any) -> Any:
        if "X-Timed" not in request.headers:
            return await handler(request)
        running = asyncio.ensure_future(handler(request))
        waiting = asyncio.ensure_future(expire.wait())
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        running.cancel()
        raise web.HTTPGatewayTimeout

    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=f"run {await gate.wait()}")

    middleware = reduce_middleware(headers=())
    server = await serve(app_with(handler, middleware, outer=[timeout]), middleware=middleware)
    leader = await server.send("/", {"X-Timed": "yes"})
    await gate.entered()
    followers = [await server.send("/") for _ in range(5)]
    await server.waiting(5)
    expire.set()
    assert (await leader.receive()).status == 504
    await gate.entered(2)
    gate.open()
    replies = [await follower.receive() for follower in followers]
    assert {(reply.status, reply.text) for reply in replies} == {(200, "run 2")}
    assert gate.runs == 2
    await eventually(server.nothing_is_left)


async def test_2_2_asyncio_timeout_in_an_outer_middleware_is_the_leaders_own(serve: Start) -> None:
    scopes: list[asyncio.Timeout] = []

    @web.middleware
    async def timeout(request: web.Request, handler: Any) -> Any:
        try:
            async with asyncio.timeout(None) as scope:
                scopes.append(scope)
                return await handler(request)
        except TimeoutError:
            raise web.HTTPGatewayTimeout from None

    server, gate = await gated(serve, outer=[timeout])
    leader = await server.send("/")
    await gate.entered()
    follower = await server.send("/")
    await server.waiting(1)
    scopes[0].reschedule(0)
    assert (await leader.receive()).status == 504
    await gate.entered(2)
    gate.open()
    assert (await follower.receive()).text == "run 2"


async def test_2_2_a_timeout_inside_the_handler_goes_to_all(serve: Start, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
        raise AssertionError

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    herd = asyncio.create_task(server.herd(5, "/"))
    await server.waiting(4)
    gate.open()
    assert {reply.status for reply in await herd} == {504}
    assert gate.runs == 1


async def test_2_2_a_cancelled_error_that_the_handler_raises_itself_goes_to_all(serve: Start) -> None:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        raise asyncio.CancelledError

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    connections = [await server.send("/") for _ in range(5)]
    await server.waiting(4)
    gate.open()
    for connection in connections:
        with pytest.raises(asyncio.IncompleteReadError):
            await connection.receive()
    assert gate.runs == 1
    await eventually(server.nothing_is_left)


async def test_2_2_a_handler_that_swallows_its_cancellation_has_abandoned(serve: Start) -> None:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        try:
            run = await gate.wait(request)
        except asyncio.CancelledError:
            return web.Response(text="swallowed")
        return web.Response(text=f"run {run}")

    middleware = reduce_middleware()
    app = app_with(handler, middleware)
    server = await serve(app, middleware=middleware, handler_cancellation=True)
    leader = await server.send("/")
    await gate.entered()
    follower = await server.send("/")
    await server.waiting(1)
    leader.abort()
    await gate.entered(2)
    gate.open()
    assert (await follower.receive()).text == "run 2"


async def test_2_2_without_handler_cancellation_a_leaders_disconnect_ends_nothing(serve: Start) -> None:
    server, gate = await gated(serve)
    leader = await server.send("/")
    await gate.entered()
    follower = await server.send("/")
    await server.waiting(1)
    leader.abort()
    await gate.disconnected()
    gate.open()
    assert (await follower.receive()).text == "run 1"
    assert gate.runs == 1


async def test_2_2_a_connection_error_after_the_transport_closed_is_an_abandon(serve: Start) -> None:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        run = await gate.wait(request)
        if run == 1:
            raise ConnectionResetError("cannot write")
        return web.Response(text=f"run {run}")

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    leader = await server.send("/")
    await gate.entered()
    follower = await server.send("/")
    await server.waiting(1)
    leader.abort()
    await gate.disconnected()
    gate.open()
    assert (await follower.receive()).text == "run 2"


async def test_2_2_a_connection_error_of_the_handlers_own_goes_to_all(
    serve: Start, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        raise ConnectionRefusedError("the database is down")

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    herd = asyncio.create_task(server.herd(5, "/"))
    await server.waiting(4)
    gate.open()
    assert {reply.status for reply in await herd} == {500}
    assert gate.runs == 1


async def test_2_2_a_flock_of_clients_that_leave_one_after_another_does_not_queue_before_the_rest(serve: Start) -> None:
    server, gate = await gated(serve, handler_cancellation=True)
    first = await server.send("/")
    await gate.entered()
    flock = [await server.send("/") for _ in range(100)]
    patient = await server.send("/")
    await server.waiting(101)
    for leaver in [first, *flock]:
        leaver.abort()
    await eventually(lambda: server.figure("waiting") + server.figure("in_flight") == 1)
    gate.open()
    assert (await patient.receive()).status == 200
    # All of them left before any successor could begin: no run was spent on one that was already gone.
    assert gate.runs <= 3
    await eventually(server.nothing_is_left)


async def test_2_2_successors_are_drawn_at_random_among_open_connections(serve: Start) -> None:
    leaders: list[str] = []
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        leaders.append(request.headers["X-Request-ID"])
        return web.Response(text=f"run {await gate.wait()}")

    middleware = reduce_middleware()
    app = app_with(handler, middleware)
    server = await serve(app, middleware=middleware, handler_cancellation=True)
    seconds: set[str] = set()
    for _ in range(12):
        leaders.clear()
        gate.close()
        connections = {}
        for number in range(5):
            connections[str(number)] = await server.send("/", {"X-Request-ID": str(number)})
            await eventually(lambda number=number: server.figure("waiting") == number and len(leaders) == 1)  # type: ignore[misc]
        connections["0"].abort()
        await eventually(lambda: len(leaders) == 2)
        seconds.add(leaders[1])
        gate.open()
        for number in range(1, 5):
            await connections[str(number)].receive()
        await eventually(server.nothing_is_left)
    assert len(seconds) > 1


async def test_2_2_no_takeover_once_the_application_shuts_down(serve: Start) -> None:
    server, gate = await gated(serve, handler_cancellation=True, shutdown_timeout=1.0)
    leader = await server.send("/")
    await gate.entered()
    followers = [await server.send("/") for _ in range(3)]
    await server.waiting(3)
    stopping = asyncio.create_task(server.runner.cleanup())
    await asyncio.sleep(0.05)
    leader.abort()
    replies = [await follower.receive() for follower in followers]
    assert {reply.status for reply in replies} == {503}
    assert gate.runs == 1
    await stopping
    await eventually(server.nothing_is_left)


async def test_2_2_no_new_run_of_an_overdue_follower_once_the_application_shuts_down(serve: Start) -> None:
    server, gate = await gated(serve, max_wait=0.1, shutdown_timeout=0.5)
    await server.send("/")
    await gate.entered()
    await server.send("/")
    await server.waiting(1)
    await server.runner.cleanup()
    assert gate.runs == 1
    await eventually(server.nothing_is_left)


async def test_2_7_followers_whose_clients_left_are_ended_quietly(
    serve: Start, caplog: pytest.LogCaptureFixture
) -> None:
    scopes: list[asyncio.Timeout] = []

    @web.middleware
    async def limit(request: web.Request, handler: Any) -> Any:
        try:
            async with asyncio.timeout(None) as scope:
                scopes.append(scope)
                return await handler(request)
        except TimeoutError:
            return web.Response(status=503)

    server, gate = await gated(serve, outer=[limit])
    leader = await server.send("/")
    await gate.entered()
    followers = [await server.send("/") for _ in range(3)]
    await server.waiting(3)
    for follower in followers:
        follower.abort()
    (table,) = server.middleware._tables.values()  # type: ignore[union-attr]
    (flight,) = table.flights.values()
    await eventually(lambda: not any(waiter.can_lead() for waiter in flight.waiters.values() if waiter))
    scopes[0].reschedule(0)
    assert (await leader.receive()).status == 503
    await eventually(server.nothing_is_left)
    assert gate.runs == 1
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("kind", ["answer", "compressed", "error"])
async def test_2_7_no_reference_cycle_keeps_a_request(
    serve: Start, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    seen: list[weakref.ref[web.Request]] = []

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> Any:
        seen.append(weakref.ref(request))
        return await handler(request)

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        if kind == "error":
            raise TimeoutError
        response = web.Response(text="x" * 1000)
        if kind == "compressed":
            response.enable_compression()
        return response

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware, outer=[outer]), middleware=middleware)
    gc.collect()
    gc.disable()
    try:
        herd = asyncio.create_task(server.herd(8, "/"))
        await server.waiting(7)
        gate.open()
        await herd
        for connection in server._connections:
            await connection.close()
        caplog.clear()
        await eventually(lambda: all(reference() is None for reference in seen))
        assert len(seen) == 8
    finally:
        gc.enable()


async def test_the_last_call_is_not_for_the_connection_that_was_answered(serve: Start) -> None:
    runs = 0

    async def handler(request: web.Request) -> web.Response:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.002)
        return web.Response(text=str(runs))

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    connection = await server.connect()
    for _ in range(5):
        await connection.send("/")
    assert [(await connection.receive()).text for _ in range(5)] == list("12345")
    assert (server.figure("total"), server.figure("executed")) == (5, 5)


async def test_2_3_a_follower_that_leaves_disturbs_nobody_and_wakes_at_once(serve: Start) -> None:
    server, gate = await gated(serve, handler_cancellation=True)
    leader = await server.send("/")
    await gate.entered()
    stays, leaves = await server.send("/"), await server.send("/")
    await server.waiting(2)
    leaves.abort()
    await server.waiting(1)  # while the flight is still under way
    gate.open()
    assert [(await one.receive()).text for one in (leader, stays)] == ["run 1", "run 1"]
    assert gate.runs == 1


async def test_2_7_nothing_is_left_behind_after_a_mix_of_everything(
    serve: Start, caplog: pytest.LogCaptureFixture
) -> None:
    tasks_before = len(asyncio.all_tasks())
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        run = await gate.wait(request)
        if "fail" in request.path:
            raise web.HTTPBadRequest
        return web.Response(text=f"run {run}")

    middleware = reduce_middleware(max_wait=0.05)
    app = app_with(handler, middleware, path="/{tail:.*}")
    server = await serve(app, middleware=middleware, handler_cancellation=True)
    connections = [
        await server.send(f"/{kind}", {"Accept": accept})
        for kind in ("ok", "fail")
        for accept in "abc"
        for _ in range(5)
    ]
    await eventually(lambda: server.figure("waiting") + server.figure("in_flight") == 30)
    for connection in connections[::3]:
        connection.abort()
    await eventually(lambda: server.figure("waiting") + server.figure("in_flight") == 20)
    gate.open()
    for number, connection in enumerate(connections):
        if number % 3:
            assert (await connection.receive()).status in {200, 400}
    await eventually(server.nothing_is_left)
    await server.stop()
    await eventually(lambda: len(asyncio.all_tasks()) == tasks_before)
    assert [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}] == []


async def test_a_request_never_waits_for_itself(serve: Start) -> None:
    """The same object twice in one application, on the root and on a sub-application."""
    middleware = reduce_middleware()
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response(text="ok")

    @web.middleware
    async def clones(request: web.Request, handler: Any) -> Any:
        return await handler(request.clone())

    sub = web.Application(middlewares=[middleware])
    sub.router.add_get("/page", handler)
    app = web.Application(middlewares=[middleware, clones, middleware])
    app.add_subapp("/sub", sub)
    server = await serve(app, middleware=middleware)
    sent = [await server.send("/sub/page")]
    await gate.entered()
    sent += [await server.send("/sub/page") for _ in range(10)]
    await server.waiting(10)
    gate.open()
    assert {(await connection.receive()).text for connection in sent} == {"ok"}
    assert gate.runs == 1
    # One leader at the first door and at that of the sub-application; straight on at the second.
    assert server.figure("total") == 1 + 10 + 1
    await eventually(server.nothing_is_left)


async def test_applications_never_share_a_flight(serve: Start) -> None:
    middleware = reduce_middleware()
    gate = Gate()

    def make(name: str) -> web.Application:
        async def handler(request: web.Request) -> web.Response:
            await gate.wait()
            return web.Response(text=name)

        return app_with(handler, middleware)

    servers = [await serve(make(name), middleware=middleware) for name in ("one", "two")]
    sent = [await server.send("/", host="same") for server in servers]
    await gate.entered(2)
    gate.open()
    assert [(await connection.receive()).text for connection in sent] == ["one", "two"]


async def test_one_who_is_gone_and_should_lead_at_a_door_further_in_hands_on_at_the_one_further_out(
    serve: Start,
) -> None:
    gate = Gate()
    tasks: list[Any] = []
    requests: list[web.Request] = []

    @web.middleware
    async def outermost(request: web.Request, handler: Any) -> web.StreamResponse:
        tasks.append(asyncio.current_task())
        requests.append(request)
        response: web.StreamResponse = await handler(request)
        return response

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=f"run {await gate.wait(request)}")

    outer, inner = reduce_middleware(headers=("X-Who",)), reduce_middleware(headers=())
    server = await serve(app_with(handler, outer, outer=[outermost], inner=[inner]), middleware=outer)
    await server.send("/", {"X-Who": "1"})
    await gate.entered()
    second = await server.send("/", {"X-Who": "2"})
    await eventually(lambda: inner.stats["waiting"] == 1)
    third = await server.send("/", {"X-Who": "2"})
    await server.waiting(1)
    second.abort()
    await eventually(lambda: requests[1].transport is None)
    tasks[0].cancel()
    await gate.entered(2)
    gate.open()
    assert (await third.receive()).text == "run 2"
    await eventually(server.nothing_is_left)
