"""aiohttp-cors: its headers are set by a signal, for each request."""

from typing import Any

import pytest
from aiohttp import web

from aiohttp_reduce.server import DEFAULT_IGNORE_HEADERS
from tests.ecosystem.side_by_side import SHARED, Twice, ask, together, twice
from tests.harness import Gate, Start

aiohttp_cors = pytest.importorskip("aiohttp_cors", reason="aiohttp-cors is not installed")

ALICE, BOB, STRANGER = "https://alice.example", "https://bob.example", "https://stranger.example"


async def with_cors(serve: Start, **options: Any) -> Twice:
    async def build(doors: list[Any], gate: Gate) -> web.Application:
        async def report(request: web.Request) -> web.Response:
            await gate.wait()
            return web.json_response({"answer": 42}, headers={"X-Total": "1"})

        async def export(request: web.Request) -> web.StreamResponse:
            await gate.wait()
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"a long ")
            await response.write(b"export")
            return response

        class View(web.View, aiohttp_cors.CorsViewMixin):
            async def get(self) -> web.Response:
                return await report(self.request)

            async def put(self) -> web.Response:
                return await report(self.request)

        resource = aiohttp_cors.ResourceOptions(
            allow_credentials=True, expose_headers=("X-Total",), allow_headers=("X-Requested-With",), max_age=60
        )
        app = web.Application(middlewares=doors)
        cors = aiohttp_cors.setup(app, defaults={ALICE: resource, BOB: resource})
        cors.add(cors.add(app.router.add_resource("/")).add_route("GET", report))
        cors.add(app.router.add_get("/export", export))
        cors.add(app.router.add_view("/view", View))
        return app

    return await twice(serve, build, **options)


@pytest.mark.parametrize("target", ["/", "/view", "/export"])
async def test_cors_is_as_without_us(serve: Start, target: str) -> None:
    app = await with_cors(serve)
    preflight = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "X-Requested-With"}

    await app.is_the_same(
        ask(target),
        *[ask(target, {"Origin": origin}) for origin in (ALICE, BOB, STRANGER)],
        *[ask(target, {"Origin": origin, **preflight}, method="OPTIONS") for origin in (ALICE, BOB, STRANGER)],
        ask(target, {"Origin": ALICE}, method="OPTIONS"),
        ask(target, {"Origin": ALICE}, method="PUT"),
        ask("/missing", {"Origin": ALICE}),
    )
    assert app.ours.figure("bypassed")["method"] == 5


@pytest.mark.parametrize("target", ["/", "/view", "/export"])
async def test_a_herd_from_one_origin_takes_one_run(serve: Start, target: str) -> None:
    app = await with_cors(serve)

    replies = await app.meet(*[ask(target, {"Origin": ALICE})] * 4, runs=1)

    assert together(replies) == [None, SHARED, SHARED, SHARED]
    assert {reply.headers["Access-Control-Allow-Origin"] for reply in replies} == {ALICE}


async def test_origins_do_not_share(serve: Start) -> None:
    app = await with_cors(serve)

    replies = await app.meet(*[ask("/", {"Origin": origin}) for origin in (ALICE, BOB, STRANGER) * 2], runs=3)

    origins = [reply.headers.get("Access-Control-Allow-Origin") for reply in replies]
    assert origins == [ALICE, BOB, None] * 2


@pytest.mark.parametrize("target", ["/", "/export"])
async def test_origins_that_we_were_told_to_let_share_get_headers_of_their_own(serve: Start, target: str) -> None:
    app = await with_cors(serve, ignore_headers=DEFAULT_IGNORE_HEADERS | {"Origin"})

    origins = [{"Origin": origin} for origin in (ALICE, BOB, STRANGER)]
    replies = await app.meet(*[ask(target, headers) for headers in (*origins, {})], runs=1)

    allowed = [reply.headers.get("Access-Control-Allow-Origin") for reply in replies]
    assert allowed == [ALICE, BOB, None, None]
