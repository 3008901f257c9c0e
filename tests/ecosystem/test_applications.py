"""What aiohttp itself brings: applications in applications, views, normalised paths, static files."""

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.ecosystem.side_by_side import SHARED, Twice, ask, together, twice
from tests.harness import Gate, Start

# Whatever the loop: it is about routes only.
pytestmark = pytest.mark.one_loop

ALICE, BOB = {"X-User": "alice"}, {"X-User": "bob"}


@web.middleware
async def for_known_users(request: web.Request, handler: Any) -> web.StreamResponse:
    if request.headers.get("X-User") not in {"alice", "bob"}:
        raise web.HTTPForbidden
    return await handler(request)


async def nested(serve: Start, levels: str) -> Twice:
    """One middleware object on the root, on the sub-applications, or on both."""

    async def build(doors: list[Any], gate: Gate) -> web.Application:
        def page(name: str) -> Any:
            async def handler(request: web.Request) -> web.Response:
                user = request.headers.get("X-User")
                await gate.wait()
                return web.Response(text=f"{name} for {user}: {request.match_info.get('page')}")

            return handler

        def sub(name: str) -> web.Application:
            app = web.Application(middlewares=[for_known_users, *(doors if "sub" in levels else [])])
            app.router.add_get("/{page}", page(name))
            return app

        deep, admin, root = sub("deep"), sub("admin"), web.Application(middlewares=doors if "root" in levels else [])
        admin.add_subapp("/deep", deep)
        root.add_domain("shop.example", sub("shop"))
        root.add_domain("*.blog.example", sub("blog"))
        root.add_subapp("/admin", admin)
        root.router.add_get("/root/{page}", page("root"))
        return root

    return await twice(serve, build)


# A request for each application, with its Host.
PLACES = [
    ("/root/one", "localhost", "root"), ("/admin/one", "localhost", "admin"), ("/admin/deep/one", "localhost", "deep"),
    ("/one", "shop.example", "shop"), ("/one", "a.blog.example", "blog"), ("/one", "b.blog.example", "blog"),
]  # fmt: skip


@pytest.mark.parametrize("levels", ["root", "sub", "root and sub"])
async def test_applications_in_applications_are_as_without_us(serve: Start, levels: str) -> None:
    app = await nested(serve, levels)

    await app.is_the_same(
        *[ask(target, headers, host=host) for target, host, _ in PLACES for headers in ({}, ALICE, BOB)],
        ask("/admin/no/such/page", ALICE),
        ask("/admin/one", ALICE, method="POST"),
        ask("/admin", ALICE),
    )


@pytest.mark.parametrize("levels", ["root", "sub", "root and sub"])
@pytest.mark.parametrize(("target", "host", "name"), PLACES[1:5])
async def test_a_herd_for_an_inner_application_takes_one_run(
    serve: Start, levels: str, target: str, host: str, name: str
) -> None:
    app = await nested(serve, levels)

    replies = await app.meet(*[ask(target, ALICE, host=host)] * 3, runs=1)

    assert {reply.text for reply in replies} == {f"{name} for alice: one"}


async def test_applications_hosts_and_users_do_not_share(serve: Start) -> None:
    app = await nested(serve, "root")
    asked = [ask(target, headers, host=host) for target, host, _ in PLACES for headers in (ALICE, BOB)]

    replies = await app.meet(*asked * 2, runs=len(asked))

    texts = [f"{name} for {user}: one" for _, _, name in PLACES for user in ("alice", "bob")]
    assert [reply.text for reply in replies] == texts * 2


async def test_who_is_refused_inside_joins_nobody(serve: Start) -> None:
    app = await nested(serve, "root")
    leader = await app.ours.send("/admin/one", ALICE)
    await app.gate.entered()

    assert [(await app.ours.get("/admin/one", headers)).status for headers in ({}, {"X-User": "carol"})] == [403, 403]
    app.gate.open()
    assert (await leader.receive()).status == 200


async def with_views(serve: Start) -> Twice:
    async def build(doors: list[Any], gate: Gate) -> web.Application:
        class Item(web.View):
            async def get(self) -> web.Response:
                user = self.request.headers.get("X-User")
                await gate.wait()
                return web.Response(text=f"{self.request.match_info['name']} for {user}")

            async def post(self) -> web.Response:
                await gate.wait()
                return web.Response(text="made", status=201, headers={"Location": "/item/new"})

        class Pages:
            def __init__(self, greeting: str) -> None:
                self.greeting = greeting

            async def index(self, request: web.Request) -> web.Response:
                await gate.wait()
                return web.Response(text=self.greeting)

        app = web.Application(middlewares=doors)
        app.router.add_view("/item/{name}", Item)
        app.router.add_get("/hello", Pages("hello").index)
        app.router.add_get("/bye", Pages("bye").index)
        return app

    return await twice(serve, build)


async def test_views_are_as_without_us(serve: Start) -> None:
    app = await with_views(serve)

    await app.is_the_same(
        *[ask("/item/one", headers) for headers in ({}, ALICE)],
        *[ask("/item/one", method=method) for method in ("POST", "HEAD", "PUT", "OPTIONS")],
        ask("/hello"),
        ask("/bye"),
    )


async def test_a_herd_for_a_view_takes_one_run_for_each_user_and_item(serve: Start) -> None:
    app = await with_views(serve)
    asked = [ask(f"/item/{name}", headers) for name in ("one", "two") for headers in (ALICE, BOB)]

    replies = await app.meet(*asked * 3, runs=4)

    assert together(replies) == [None] * 4 + [SHARED] * 8
    assert [reply.text for reply in replies[4:8]] == [f"{n} for {u}" for n in ("one", "two") for u in ("alice", "bob")]


async def test_methods_of_objects_of_one_class_do_not_share(serve: Start) -> None:
    app = await with_views(serve)

    replies = await app.meet(*[ask("/hello"), ask("/bye")] * 2, runs=2)

    assert [reply.text for reply in replies] == ["hello", "bye"] * 2


async def with_normalised_paths(serve: Start, inside: bool) -> Twice:
    async def build(doors: list[Any], gate: Gate) -> web.Application:
        async def page(request: web.Request) -> web.Response:
            await gate.wait()
            return web.Response(text=f"{request.path} for {request.headers.get('X-User')}")

        normalise = web.normalize_path_middleware()
        app = web.Application(middlewares=[*doors, normalise] if inside else [normalise, *doors])
        app.router.add_get("/slash/", page)
        app.router.add_get("/none", page)
        return app

    return await twice(serve, build)


@pytest.mark.parametrize("inside", [False, True])
async def test_normalised_paths_are_as_without_us(serve: Start, inside: bool) -> None:
    app = await with_normalised_paths(serve, inside)

    targets = ["/slash/", "/slash", "/slash?a=1&b=%2F", "//slash", "/none", "//none", "/none/", "/no", "/slash//"]
    await app.is_the_same(*[ask(target) for target in targets], ask("/slash", method="POST", body=b"x"))
    assert (await app.ours.get("/slash?a=1")).headers["Location"] == "/slash/?a=1"


@pytest.mark.parametrize("inside", [False, True])
async def test_a_herd_behind_normalised_paths_takes_one_run_for_each_user(serve: Start, inside: bool) -> None:
    app = await with_normalised_paths(serve, inside)

    replies = await app.meet(*[ask("/slash/", headers) for headers in (ALICE, BOB) * 2], runs=2)

    assert [reply.text for reply in replies] == ["/slash/ for alice", "/slash/ for bob"] * 2


async def with_files(serve: Start, folder: Path) -> Twice:
    (folder / "a.txt").write_text("a" * 1000)
    (folder / "b.html").write_text("<b>b</b>")
    (folder / "b.html.gz").write_bytes(b"not really gzip")
    (folder / "folder").mkdir()

    async def build(doors: list[Any], gate: Gate) -> web.Application:
        @web.middleware
        async def counted(request: web.Request, handler: Any) -> web.StreamResponse:
            await gate.wait()
            return await handler(request)

        app = web.Application(middlewares=[*doors, counted])
        app.router.add_static("/static", folder, show_index=True)
        app.router.add_static("/hidden", folder, append_version=True)
        return app

    return await twice(serve, build)


async def test_static_files_are_as_without_us(serve: Start, tmp_path: Path) -> None:
    app = await with_files(serve, tmp_path)
    known = (await app.of_plain(ask("/static/a.txt"))).headers

    await app.is_the_same(
        *[
            ask(f"/static/{name}", headers, method=method)
            for name in ("a.txt", "b.html", "missing", "folder", "../secret", "")
            for method in ("GET", "HEAD", "POST")
            for headers in ({}, {"Accept-Encoding": "gzip"})
        ],
        *[ask("/static/a.txt", {"Range": value}) for value in ("bytes=0-9", "bytes=-5", "bytes=2000-", "rows=1")],
        ask("/static/a.txt", {"If-None-Match": known["ETag"]}),
        ask("/static/a.txt", {"If-Modified-Since": known["Last-Modified"]}),
        ask("/static/a.txt", {"If-Match": '"another"'}),
        ask("/static/a.txt", {"Range": "bytes=0-9", "If-Range": known["ETag"]}),
        ask("/hidden/a.txt"),
        ask("/hidden/folder"),
    )


async def test_a_herd_for_a_file_takes_one_run_and_each_gets_what_it_asked_for(serve: Start, tmp_path: Path) -> None:
    app = await with_files(serve, tmp_path)
    whole, part, compressed = ask("/static/a.txt"), {"Range": "bytes=0-9"}, {"Accept-Encoding": "gzip"}

    await app.meet(*[whole] * 4, runs=1)
    replies = await app.meet(whole, ask("/static/a.txt", part), whole, ask("/static/a.txt", part), runs=2)
    assert [reply.status for reply in replies] == [200, 206, 200, 206]
    replies = await app.meet(*[ask("/static/b.html"), ask("/static/b.html", compressed)] * 2, runs=2)
    assert [reply.body for reply in replies] == [b"<b>b</b>", b"not really gzip"] * 2
