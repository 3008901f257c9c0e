"""aiohttp-jinja2, with its context processors before us and inside us."""

from typing import Any

import pytest
from aiohttp import web

from tests.ecosystem.side_by_side import SHARED, UNSHARED, Twice, ask, together, twice
from tests.harness import Gate, Start

aiohttp_jinja2 = pytest.importorskip("aiohttp_jinja2", reason="aiohttp-jinja2 is not installed")
jinja2 = pytest.importorskip("jinja2")

# It names its item by a string.
pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")

PAGES = {
    "page": "{{ greeting }}, {{ user }}: {{ request.path }} {{ url('page') }}",
    "agent": "{{ greeting }}, you use {{ request.headers['User-Agent'] }}",
    "plain": "{{ greeting }}",
}
CONTEXT = "aiohttp_jinja2_context"


async def user(request: web.Request) -> dict[str, Any]:
    return {"user": request.cookies.get("user", "stranger")}


async def pages(serve: Start, *, inside: bool = False, processors: bool = True, **options: Any) -> Twice:
    async def build(doors: list[Any], gate: Gate) -> web.Application:
        @aiohttp_jinja2.template("page")
        async def page(request: web.Request) -> dict[str, Any]:
            await gate.wait()
            return {"greeting": "Hello"}

        class View(web.View):
            @aiohttp_jinja2.template("plain", status=203)
            async def get(self) -> dict[str, Any]:
                await gate.wait()
                return {"greeting": "Good day"}

        async def agent(request: web.Request) -> web.Response:
            response: web.Response = aiohttp_jinja2.render_template("agent", request, {"greeting": "Hi"})
            await gate.wait()
            return response

        app = web.Application(middlewares=doors if inside else [])
        aiohttp_jinja2.setup(
            app,
            loader=jinja2.DictLoader(PAGES),
            context_processors=[aiohttp_jinja2.request_processor, user] if processors else [],
        )
        if not inside:
            app.middlewares.extend(doors)
        app.router.add_get("/", page, name="page")
        app.router.add_view("/view", View)
        app.router.add_get("/agent", agent)
        return app

    return await twice(serve, build, **options)


ALICE, BOB = {"Cookie": "user=alice"}, {"Cookie": "user=bob"}


@pytest.mark.parametrize("inside", [False, True])
async def test_pages_are_as_without_us(serve: Start, inside: bool) -> None:
    app = await pages(serve, inside=inside)

    await app.is_the_same(
        *[ask(target, headers) for target in ("/", "/view", "/missing") for headers in ({}, ALICE, BOB)],
        ask("/agent", {"User-Agent": "one"}),
        ask("/", ALICE, method="HEAD"),
        ask("/", ALICE, method="POST"),
    )


async def test_a_page_is_rendered_once_for_each_users_herd(serve: Start) -> None:
    app = await pages(serve)

    replies = await app.meet(*[ask("/", headers) for headers in (ALICE, BOB, {}) * 2], runs=3)

    assert [reply.text for reply in replies[:3]] == [f"Hello, {user}: / /" for user in ("alice", "bob", "stranger")]
    assert together(replies) == [None] * 3 + [SHARED] * 3


async def test_users_do_not_share_where_their_cookies_are_left_out_of_the_identity(serve: Start) -> None:
    app = await pages(serve, headers=("Accept",))

    replies = await app.meet(*[ask("/", headers) for headers in (ALICE, BOB, {})], runs=3)

    assert [reply.text for reply in replies] == [f"Hello, {user}: / /" for user in ("alice", "bob", "stranger")]


async def test_a_view_that_is_a_template_is_rendered_once(serve: Start) -> None:
    app = await pages(serve, processors=False)

    replies = await app.meet(*[ask("/view")] * 3, runs=1)

    assert {(reply.status, reply.text) for reply in replies} == {(203, "Good day")}


async def test_what_a_template_looks_at_counts_as_if_the_handler_did(serve: Start) -> None:
    app = await pages(serve)

    await app.meet(*[ask("/agent", {"User-Agent": agent}) for agent in ("one", "two")], runs=2)
    await app.meet(*[ask("/agent", {"User-Agent": "one"})] * 2, runs=1)


async def test_processors_inside_us_make_an_item_for_each(serve: Start) -> None:
    app = await pages(serve, inside=True)

    replies = await app.meet(*[ask("/", ALICE)] * 3, runs=3)

    assert together(replies) == [None, UNSHARED, UNSHARED]


async def test_processors_inside_us_run_once_if_we_are_told_of_the_item(serve: Start) -> None:
    app = await pages(serve, inside=True, ignore_state=(CONTEXT,))

    replies = await app.meet(*[ask("/", headers) for headers in (ALICE, BOB) * 2], runs=2)

    assert [reply.text for reply in replies] == ["Hello, alice: / /", "Hello, bob: / /"] * 2
