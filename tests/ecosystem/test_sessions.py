"""aiohttp-session, with its session loaded before us, inside us, and by the handler."""

import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from tests.ecosystem.side_by_side import SHARED, UNSHARED, Twice, ask, together, twice
from tests.harness import Gate, Start

aiohttp_session = pytest.importorskip("aiohttp_session", reason="aiohttp-session is not installed")
cookie_storage = pytest.importorskip("aiohttp_session.cookie_storage")

pytestmark = [
    pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning"),  # its items are named by strings
    pytest.mark.one_loop,  # it is about requests only, whatever the loop
]

SESSION = "aiohttp_session"
STORAGE = "aiohttp_session_storage"
KEY = b"k" * 32

STORAGES = {
    "simple": aiohttp_session.SimpleCookieStorage,
    "encrypted": lambda: cookie_storage.EncryptedCookieStorage(KEY),
}


@web.middleware
async def load(request: web.Request, handler: Any) -> web.StreamResponse:
    """The session is there before the handler is reached."""
    await aiohttp_session.get_session(request)
    return await handler(request)


# The middlewares around us, and our options.
PLACES: dict[str, tuple[Any, dict[str, Any]]] = {
    "loaded before us": (lambda session, doors: [session, load, *doors], {}),
    "inside us": (lambda session, doors: [*doors, session], {"ignore_state": (SESSION, STORAGE)}),
    "loaded by the handler": (lambda session, doors: [session, *doors], {}),
    "inside us, and we were told nothing": (lambda session, doors: [*doors, session], {}),
}
SHARING = ["loaded before us", "inside us"]
NOT_SHARING = [place for place in PLACES if place not in SHARING]


def decrypted(value: str) -> str:
    """What an encrypted cookie says, as the cookie is another one each time."""
    fernet = cookie_storage.EncryptedCookieStorage(KEY)._fernet
    return re.sub(r"gAAAA[\w=-]+", lambda found: fernet.decrypt(found[0].encode()).decode(), value)


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    # A session tells when it was made.
    clock = SimpleNamespace(time=lambda: 1_000_000_000.0, gmtime=time.gmtime, strftime=time.strftime)
    monkeypatch.setattr(aiohttp_session, "time", clock)
    return str(request.param)


async def sessions(serve: Start, storage: str, place: str, **more: Any) -> Twice:
    around, options = PLACES[place]

    async def build(doors: list[Any], gate: Gate) -> web.Application:
        async def whoami(request: web.Request) -> web.Response:
            session = await aiohttp_session.get_session(request)
            text = f"you are {session.get('user', 'a stranger')}"
            await gate.wait()
            return web.Response(text=text)

        async def login(request: web.Request) -> web.Response:
            session = await aiohttp_session.new_session(request)
            session["user"] = request.query["user"]
            await gate.wait()
            raise web.HTTPFound("/")

        async def visit(request: web.Request) -> web.Response:
            session = await aiohttp_session.get_session(request)
            session["visits"] = session.get("visits", 0) + 1
            await gate.wait()
            return web.Response(text=f"visit {session['visits']}")

        async def touch(request: web.Request) -> web.Response:
            session = await aiohttp_session.get_session(request)
            session.changed()
            await gate.wait()
            return web.Response(text="for another hour")

        async def logout(request: web.Request) -> web.Response:
            (await aiohttp_session.get_session(request)).invalidate()
            await gate.wait()
            return web.Response(text="bye")

        async def public(request: web.Request) -> web.Response:
            await gate.wait()
            return web.Response(text="the same for all")

        session = aiohttp_session.session_middleware(STORAGES[storage]())
        app = web.Application(middlewares=around(session, doors))
        for handler in (login, visit, touch, logout, public):
            app.router.add_get(f"/{handler.__name__}", handler)
        app.router.add_get("/", whoami)
        app.router.add_post("/visit", visit)
        return app

    return await twice(serve, build, see=decrypted, **options, **more)


async def cookie_of(app: Twice, user: str) -> dict[str, str]:
    """The Cookie header of somebody who has logged in."""
    reply = await app.of_plain(ask(f"/login?user={user}"))
    return {"Cookie": reply.headers["Set-Cookie"].split(";")[0]}


@pytest.mark.parametrize("place", PLACES)
async def test_sessions_are_as_without_us(serve: Start, storage: str, place: str) -> None:
    app = await sessions(serve, storage, place)
    alice, bob = await cookie_of(app, "alice"), await cookie_of(app, "bob")
    asked = [
        ask(target, headers, **options)
        for headers in ({}, alice, bob)
        for target, options in [
            ("/", {}), ("/", {"method": "HEAD"}), ("/login?user=carol", {}), ("/visit", {}),
            ("/visit", {"method": "POST", "body": b"x"}), ("/touch", {}), ("/logout", {}), ("/public", {}), ("/no", {}),
        ]
    ]  # fmt: skip
    if storage == "encrypted":
        asked.append(ask("/", {"Cookie": "AIOHTTP_SESSION=forged"}))

    await app.is_the_same(*asked)


@pytest.mark.parametrize("place", SHARING)
async def test_one_users_herd_takes_one_run(serve: Start, storage: str, place: str) -> None:
    app = await sessions(serve, storage, place)
    alice = await cookie_of(app, "alice")

    replies = await app.meet(*[ask("/", alice)] * 4, runs=1)

    assert together(replies) == [None, SHARED, SHARED, SHARED]
    assert {reply.text for reply in replies} == {"you are alice"}


@pytest.mark.parametrize("place", SHARING)
async def test_strangers_without_a_session_share(serve: Start, storage: str, place: str) -> None:
    app = await sessions(serve, storage, place)

    await app.meet(*[ask("/")] * 3, runs=1)


@pytest.mark.parametrize("place", SHARING)
async def test_users_do_not_share(serve: Start, storage: str, place: str) -> None:
    app = await sessions(serve, storage, place)
    everybody = [await cookie_of(app, "alice"), await cookie_of(app, "bob"), {}]

    replies = await app.meet(*[ask("/", headers) for headers in everybody * 2], runs=3)

    assert [reply.text for reply in replies] == ["you are alice", "you are bob", "you are a stranger"] * 2


async def test_users_do_not_share_where_their_cookies_are_left_out_of_the_identity(serve: Start, storage: str) -> None:
    app = await sessions(serve, storage, "loaded before us", headers=("Accept",))
    everybody = [await cookie_of(app, "alice"), await cookie_of(app, "bob"), {}]

    for _ in range(2):  # not now, nor when it is known that this route looks at the session
        replies = await app.meet(*[ask("/", headers) for headers in everybody], runs=3)
        assert [reply.text for reply in replies] == ["you are alice", "you are bob", "you are a stranger"]


@pytest.mark.parametrize("place", NOT_SHARING)
async def test_a_session_that_is_made_on_the_way_is_made_for_each(serve: Start, storage: str, place: str) -> None:
    app = await sessions(serve, storage, place)
    alice = await cookie_of(app, "alice")

    replies = await app.meet(*[ask("/", alice)] * 3, runs=3)

    assert together(replies) == [None, UNSHARED, UNSHARED]


@pytest.mark.parametrize("place", PLACES)
async def test_everybody_gets_a_cookie_of_his_own_where_the_session_changes(
    serve: Start, storage: str, place: str
) -> None:
    app = await sessions(serve, storage, place)
    alice = await cookie_of(app, "alice")

    for target in ("/visit", "/touch", "/logout", "/login?user=carol"):
        replies = await app.meet(*[ask(target, alice)] * 3, runs=3)

        assert all(reply.headers.getall("Set-Cookie") for reply in replies)


@pytest.mark.parametrize("place", ["loaded before us", "inside us", "loaded by the handler"])
async def test_what_does_not_look_at_the_session_is_shared(serve: Start, storage: str, place: str) -> None:
    app = await sessions(serve, storage, place)
    alice = await cookie_of(app, "alice")

    await app.meet(*[ask("/public", alice)] * 3, runs=1)
