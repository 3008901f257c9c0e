"""Many large pieces at once: what goes to the system together (on uvloop, and on Pythons that can be trusted)."""

import logging
from typing import Any

import pytest
from aiohttp import web

from aiohttp_reduce import reduce_middleware
from tests.harness import Server, Start, app_with, eventually
from tests.streaming import Tap, joined, nothing_is_left, streams
from tests.test_streams_heads import Log

# So large that they are not joined, and so many that a reader takes several at once.
LARGE = [bytes([number]) * 0x10000 for number in range(1, 17)]
ROOM: dict[str, Any] = {"max_buffer": 2**23, "max_buffer_total": 2**24}


@pytest.mark.parametrize("more", [0, 100], ids=["as much", "more"])
async def test_many_large_pieces_keep_to_the_content_length_and_keep_the_connections(
    serve: Start, more: int, quiet: list[Any]
) -> None:
    whole = b"".join(LARGE)[: 0x100000 - more]
    tap = Tap(lambda request: web.StreamResponse(headers={"Content-Length": str(len(whole))}))
    server = await streams(serve, tap, **ROOM)
    everybody = await joined(server, 3, tap)
    tap.let(*LARGE)
    tap.end()
    for _ in range(2):
        assert [(await one.receive()).body == whole for one in everybody] == [True] * 3
        for one in everybody:
            await one.send("/")
    assert [(await one.receive()).body == whole for one in everybody] == [True] * 3
    await nothing_is_left(server)


async def test_the_access_log_has_the_size_of_many_large_pieces() -> None:
    lines: list[Any] = []
    tap = Tap(lambda request: web.StreamResponse(headers={"Content-Length": str(0x100000)}))
    middleware = reduce_middleware(**ROOM)
    server = Server(app_with(tap.handler, middleware), middleware=middleware)
    log = type("Lines", (Log,), {"lines": lines})
    server._runner = web.AppRunner(server.app, access_log=logging.getLogger("tests"), access_log_class=log)
    await server.start()
    try:
        everybody = await joined(server, 3, tap)
        tap.let(*LARGE)
        tap.end()
        for one in everybody:
            await one.receive()
        await eventually(lambda: len(lines) == 3)
        assert all(size >= 0x100000 for _, _, size in lines)
    finally:
        await server.stop()


async def test_many_large_pieces_pass_two_doors(serve: Start) -> None:
    """The inner door's followers are others' leaders at the outer one."""
    tap = Tap()
    outer = reduce_middleware(key=lambda request: request.headers["X-Who"], **ROOM)
    inner = reduce_middleware(headers=(), **ROOM)
    sub = web.Application(middlewares=[inner])
    sub.router.add_get("/", tap.handler)
    app = web.Application(middlewares=[outer])
    app.add_subapp("/sub", sub)
    server = await serve(app, middleware=outer)
    everybody = [await server.send("/sub/", {"X-Who": "a"})]
    await eventually(lambda: tap.runs == 1)
    everybody += [await server.send("/sub/", {"X-Who": "b"}) for _ in range(3)]
    await eventually(lambda: server.figure("total") == 4 and inner.stats["waiting"] + server.figure("waiting") == 3)
    tap.let(*LARGE)
    tap.end()
    assert [(await one.receive()).body == b"".join(LARGE) for one in everybody] == [True] * 4
    await nothing_is_left(server)
