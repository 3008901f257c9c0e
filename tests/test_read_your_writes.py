"""Section 2, point 5: who was answered a write never gets an answer from before it."""

import asyncio
import threading
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from aiohttp_reduce import reduce_middleware
from tests.harness import Gate, Server, Start, app_with, eventually

AIOHTTP = tuple(int(part) for part in aiohttp.__version__.split(".")[:2])


async def store(serve: Start, *, outer: Any = (), **options: Any) -> tuple[Server, Gate, dict[str, str]]:
    """GET waits at the gate with the value that it read first; other methods write the method's name."""
    gate = Gate()
    values = {"value": "old"}

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.method in {"GET", "HEAD", "OPTIONS", "QUERY"}:
            read = values["value"]
            await gate.wait()
            return web.Response(text=read)
        if "refuse" in request.query:
            raise web.HTTPConflict
        if "crash" in request.query:
            values["value"] = "half"
            raise RuntimeError("after the write")
        values["value"] = request.method
        return web.Response(text="written")

    middleware = reduce_middleware(**options)
    app = app_with(handler, middleware, path="/{tail:.*}", outer=outer)
    return await serve(app, middleware=middleware), gate, values


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PURGE"])
async def test_2_5_a_get_after_an_answered_write_never_joins_a_flight_from_before(serve: Start, method: str) -> None:
    server, gate, _ = await store(serve)
    before = await server.send("/a?x=1")
    await gate.entered()
    assert (await server.get("/a?y=2", method=method)).text == "written"
    after = await server.send("/a?x=1")
    await gate.entered(2)
    gate.open()
    assert (await before.receive()).text == "old"
    assert (await after.receive()).text == method
    await eventually(server.nothing_is_left)


@pytest.mark.parametrize("target", ["/caf%C3%A9", "/caf%c3%a9?q", "/c%61f%C3%A9"])
async def test_2_5_the_path_is_compared_decoded_whatever_the_host(serve: Start, target: str) -> None:
    server, gate, _ = await store(serve)
    before = await server.send("/caf%C3%A9", host="one.example")
    await gate.entered()
    await server.get(target, method="POST", host="two.example")
    after = await server.send("/caf%C3%A9", host="one.example")
    await gate.entered(2)
    gate.open()
    assert (await before.receive()).text == "old"
    assert (await after.receive()).text == "POST"


async def test_2_5_also_when_an_outer_middleware_commits_after_the_handler(serve: Start) -> None:
    committing = asyncio.Event()
    commit = asyncio.Event()
    values: dict[str, str] = {}

    @web.middleware
    async def transaction(request: web.Request, handler: Any) -> Any:
        response = await handler(request)
        if request.method == "POST":
            committing.set()
            await commit.wait()
            values["value"] = "committed"
            response = web.Response(text="committed")
        return response

    server, gate, stored = await store(serve, outer=[transaction])
    values = stored
    writer = await server.send("/", method="POST")
    await committing.wait()
    stored["value"] = "old"  # nothing is visible before the commit
    between = await server.send("/")
    await gate.entered()
    commit.set()
    assert (await writer.receive()).text == "committed"
    after = await server.send("/")
    await gate.entered(2)
    gate.open()
    assert (await between.receive()).text == "old"
    assert (await after.receive()).text == "committed"


@pytest.mark.parametrize("how", ["stream", "generator", "after the last part"])
async def test_2_5_also_when_the_answer_is_streamed_and_the_write_comes_in_its_midst(serve: Start, how: str) -> None:
    gate, writing, write = Gate(), asyncio.Event(), asyncio.Event()
    values = {"value": "old"}

    async def parts() -> Any:
        yield b"working "
        if how == "after the last part":
            yield b"done"
        writing.set()
        await write.wait()
        values["value"] = "new"
        if how != "after the last part":
            yield b"done"

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            read = values["value"]
            await gate.wait()
            return web.Response(text=read)
        if how == "generator":
            return web.Response(body=parts())
        response = web.StreamResponse()
        await response.prepare(request)
        async for part in parts():
            await response.write(part)
        return response

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    writer = await server.send("/", method="POST")
    await writing.wait()
    between = await server.send("/")
    await gate.entered()
    write.set()
    assert (await writer.receive()).text == "working done"
    after = await server.send("/")
    await gate.entered(2)
    gate.open()
    assert [(await one.receive()).text for one in (between, after)] == ["old", "new"]


async def test_2_5_also_when_the_write_failed_halfway(serve: Start, caplog: pytest.LogCaptureFixture) -> None:
    server, gate, _ = await store(serve)
    before = await server.send("/")
    await gate.entered()
    assert (await server.get("/?crash", method="POST")).status == 500
    after = await server.send("/")
    await gate.entered(2)
    gate.open()
    assert [(await one.receive()).text for one in (before, after)] == ["old", "half"]


async def test_2_5_a_loop_of_refused_writes_splits_no_herd(serve: Start) -> None:
    server, gate, _ = await store(serve)
    herd = [await server.send("/")]
    await gate.entered()
    for number in range(1, 20):
        assert (await server.get("/?refuse", method="DELETE")).status == 409
        herd.append(await server.send("/"))
        await server.waiting(number)
    gate.open()
    assert {(await one.receive()).text for one in herd} == {"old"}
    assert gate.runs == 1


async def test_2_5_a_loop_of_405s_on_a_hot_path_splits_no_herd(serve: Start) -> None:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response(text="ok")

    middleware = reduce_middleware()
    app = web.Application(middlewares=[middleware])
    app.router.add_get("/", handler)
    server = await serve(app, middleware=middleware)
    herd = [await server.send("/")]
    await gate.entered()
    for number in range(1, 20):
        assert (await server.get("/", method="POST")).status == 405
        herd.append(await server.send("/"))
        await server.waiting(number)
    gate.open()
    assert {(await one.receive()).text for one in herd} == {"ok"}
    assert gate.runs == 1


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "QUERY"])
async def test_2_5_safe_methods_close_nothing(serve: Start, method: str) -> None:
    if method == "QUERY" and AIOHTTP < (3, 13):
        pytest.skip("aiohttp's parser does not know QUERY before 3.13")
    server, gate, _ = await store(serve)
    first = await server.send("/")
    await gate.entered()
    other = await server.send("/", method=method)
    if method == "TRACE":
        await other.receive()
    second = await server.send("/")
    await server.waiting(1)
    gate.open()
    assert ((await first.receive()).text, (await second.receive()).text) == ("old", "old")


async def test_2_5_another_path_is_left_alone(serve: Start) -> None:
    server, gate, _ = await store(serve)
    first = await server.send("/a")
    await gate.entered()
    await server.get("/b", method="POST")
    second = await server.send("/a")
    await server.waiting(1)
    gate.open()
    assert [(await one.receive()).text for one in (first, second)] == ["old", "old"]


async def test_2_5_forget_does_it_by_hand(serve: Start) -> None:
    server, gate, values = await store(serve)
    assert server.middleware is not None
    before = await server.send("/a/%C3%A9?x")
    await gate.entered()
    values["value"] = "new"
    server.middleware.forget("/a/é")
    after = await server.send("/a/%C3%A9?x")
    await gate.entered(2)
    gate.open()
    assert [(await one.receive()).text for one in (before, after)] == ["old", "new"]


@pytest.mark.parametrize(
    ("path", "error"), [("a", ValueError), ("/a?b", ValueError), (None, TypeError), (1, TypeError)]
)
def test_2_5_forget_takes_a_decoded_path(path: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="path takes"):
        reduce_middleware().forget(path)


async def test_2_5_many_written_paths_cost_bounded_memory(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiohttp_reduce.writes._MAX_WRITES", 10)
    server, gate, values = await store(serve)
    assert server.middleware is not None
    before = await server.send("/hot")
    await gate.entered()
    for number in range(25):
        server.middleware.forget(f"/cold/{number}")
    (table,) = server.middleware._tables.values()
    assert len(table.writes) <= 10
    values["value"] = "new"
    # More than can be told apart were written: every flight is closed, none wrongly kept open.
    after = await server.send("/hot")
    await gate.entered(2)
    gate.open()
    assert [(await one.receive()).text for one in (before, after)] == ["old", "new"]


def test_2_5_writes_of_several_threads_disturb_each_other_in_nothing() -> None:
    middleware = reduce_middleware(max_age=0.0001)

    async def main() -> None:
        (table,) = middleware._tables.values()
        table.flights["/"] = None  # type: ignore[assignment]

    app = web.Application()

    async def prepare() -> None:
        middleware._make_table(app)
        await main()

    asyncio.run(prepare())
    failures: list[BaseException] = []

    def write(name: int) -> None:
        try:
            for number in range(20_000):
                middleware.forget(f"/{name}/{number % 50}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


async def test_2_5_writes_without_any_flight_leave_nothing(serve: Start) -> None:
    server, _, _ = await store(serve)
    assert server.middleware is not None
    for number in range(5):
        await server.get(f"/{number}", method="POST")
    assert all(not table.writes for table in server.middleware._tables.values())
