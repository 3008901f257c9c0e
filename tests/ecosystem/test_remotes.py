"""aiohttp-remotes, which tells an application behind proxies who asks it for what, and whether he may."""

import asyncio
import base64
import sys
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from tests.ecosystem.side_by_side import Ask, Twice, ask, twice
from tests.harness import Connection, Gate, Start

aiohttp_remotes = pytest.importorskip("aiohttp_remotes", reason="aiohttp-remotes is not installed")

# Whatever the loop: it is about requests only.
pytestmark = pytest.mark.one_loop

PROXIES: dict[str, Callable[[], Any]] = {
    "relaxed": lambda: aiohttp_remotes.XForwardedRelaxed(),
    "strict": lambda: aiohttp_remotes.XForwardedStrict([["127.0.0.1"]]),
    "filtered": lambda: aiohttp_remotes.XForwardedFiltered({"127.0.0.1"}),
    "forwarded, relaxed": lambda: aiohttp_remotes.ForwardedRelaxed(),
    "forwarded, strict": lambda: aiohttp_remotes.ForwardedStrict([["127.0.0.1"]]),
}


async def behind(serve: Start, *remotes: Callable[[], Any], inside: bool = False, **options: Any) -> Twice:
    """An application with these before us, or inside us."""

    async def build(doors: list[Any], gate: Gate) -> web.Application:
        async def where(request: web.Request) -> web.Response:
            text = f"{request.scheme}://{request.host}{request.path}"
            await gate.wait()
            return web.Response(text=text)

        async def remote(request: web.Request) -> web.Response:
            text = f"you are {request.remote}"
            await gate.wait()
            return web.Response(text=text)

        async def secret(request: web.Request) -> web.Response:
            await gate.wait()
            return web.Response(text="the secret")

        app = web.Application(middlewares=doors if inside else [])
        for handler in (where, remote, secret):
            app.router.add_get(f"/{handler.__name__}", handler)
        await aiohttp_remotes.setup(app, *[make() for make in remotes])
        if not inside:
            app.middlewares.extend(doors)
        return app

    return await twice(serve, build, **options)


def by(kind: str, target: str, client: str, *, proto: str = "https", host: str = "site.example") -> Ask:
    """A request of a client's, as a proxy forwards it."""
    if kind.startswith("forwarded"):
        return ask(target, {"Forwarded": f"for={client};proto={proto};host={host}"})
    return ask(target, {"X-Forwarded-For": client, "X-Forwarded-Proto": proto, "X-Forwarded-Host": host})


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", PROXIES)
async def test_what_proxies_say_is_as_without_us(serve: Start, kind: str, inside: bool) -> None:
    app = await behind(serve, PROXIES[kind], inside=inside)

    await app.is_the_same(
        *[by(kind, target, client) for target in ("/where", "/remote") for client in ("192.0.2.1", "192.0.2.2")],
        by(kind, "/where", "192.0.2.1", proto="http"),
        by(kind, "/where", "192.0.2.1", host="other.example"),
        by(kind, "/missing", "192.0.2.1"),
        ask("/remote"),
        # What the strict ones refuse.
        ask("/where", {"X-Forwarded-For": "192.0.2.1, 192.0.2.2", "Forwarded": "for=192.0.2.1, for=192.0.2.2"}),
        ask("/where", {"X-Forwarded-For": "nobody"}),
    )


@pytest.mark.parametrize("kind", PROXIES)
async def test_clients_of_one_site_share(serve: Start, kind: str) -> None:
    app = await behind(serve, PROXIES[kind])

    replies = await app.meet(*[by(kind, "/where", f"192.0.2.{number}") for number in range(4)], runs=1)

    assert {reply.text for reply in replies} == {"https://site.example/where"}


# With `headers=()` by what the proxy said alone, as it stands at our door.
@pytest.mark.parametrize("options", [{}, {"headers": ()}], ids=["all headers", "no headers"])
@pytest.mark.parametrize("kind", PROXIES)
async def test_sites_and_schemes_do_not_share(serve: Start, kind: str, options: dict[str, Any]) -> None:
    app = await behind(serve, PROXIES[kind], **options)
    sites = [
        by(kind, "/where", "192.0.2.1"),
        by(kind, "/where", "192.0.2.1", host="other.example"),
        by(kind, "/where", "192.0.2.1", proto="http"),
    ]

    replies = await app.meet(*sites * 2, runs=3)

    urls = ["https://site.example/where", "https://other.example/where", "http://site.example/where"]
    assert [reply.text for reply in replies] == urls * 2


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", PROXIES)
async def test_an_answer_by_address_is_for_that_address(serve: Start, kind: str, inside: bool) -> None:
    app = await behind(serve, PROXIES[kind], inside=inside)
    clients = ["192.0.2.1", "192.0.2.2", "192.0.2.1"]

    await app.meet(*[by(kind, "/remote", client) for client in clients], runs=2)
    # By now it is known that this route looks at it.
    replies = await app.meet(*[by(kind, "/remote", client) for client in clients], runs=2)

    assert [reply.text for reply in replies] == [f"you are {client}" for client in clients]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second loopback address")
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", ["strict", "forwarded, strict"])
async def test_who_does_not_come_by_the_proxy_joins_nobody(serve: Start, kind: str, inside: bool) -> None:
    app = await behind(serve, PROXIES[kind], inside=inside)
    asked = by(kind, "/secret", "192.0.2.1")
    leader = await app.ours.send(asked.target, asked.headers)
    await app.gate.entered()

    reader, writer = await asyncio.open_connection("127.0.0.1", app.ours.port, local_addr=("127.0.0.2", 0))
    stranger = Connection(reader, writer)
    await stranger.send(asked.target, asked.headers)
    if inside:
        await app.ours.waiting(1)
    app.gate.open()

    assert (await stranger.receive()).status == 400
    assert (await leader.receive()).text == "the secret"
    await stranger.close()


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


RIGHT = basic("alice", "right")
WRONG: list[dict[str, str]] = [{}, basic("alice", "wrong"), basic("bob", "right"), {"Authorization": "Basic ?"}]


def guard() -> Any:
    return aiohttp_remotes.BasicAuth("alice", "right", "a realm")


@pytest.mark.parametrize("inside", [False, True])
async def test_passwords_are_asked_for_as_without_us(serve: Start, inside: bool) -> None:
    app = await behind(serve, guard, inside=inside)

    await app.is_the_same(*[ask(target, headers) for target in ("/secret", "/no") for headers in (RIGHT, *WRONG)])


@pytest.mark.parametrize("inside", [False, True])
async def test_those_who_know_the_password_share(serve: Start, inside: bool) -> None:
    app = await behind(serve, guard, inside=inside)

    await app.meet(*[ask("/secret", RIGHT)] * 3, runs=1)


@pytest.mark.parametrize("inside", [False, True])
async def test_nobody_else_joins_them(serve: Start, inside: bool) -> None:
    app = await behind(serve, guard, inside=inside)
    inside_already = await app.ours.send("/secret", RIGHT)
    await app.gate.entered()

    refused = [await app.ours.get("/secret", headers) for headers in WRONG]
    app.gate.open()

    assert [reply.status for reply in refused] == [401] * len(WRONG)
    assert all("secret" not in reply.text for reply in refused)
    assert (await inside_already.receive()).text == "the secret"


async def test_the_headers_of_secure_are_on_every_answer(serve: Start) -> None:
    # (The first that is set up is the outermost.)
    app = await behind(serve, PROXIES["relaxed"], aiohttp_remotes.Secure)
    secure = [by("relaxed", "/where", f"192.0.2.{number}") for number in range(3)]

    await app.is_the_same(*secure, by("relaxed", "/where", "192.0.2.1", proto="http"), ask("/where"), ask("/no"))
    replies = await app.meet(*secure, runs=1)

    assert {reply.headers["X-Frame-Options"] for reply in replies} == {"DENY"}
    assert (await app.ours.get("/where")).status == 308


async def test_hosts_that_are_not_allowed_are_refused_as_without_us(serve: Start) -> None:
    app = await behind(serve, lambda: aiohttp_remotes.AllowedHosts({"site.example"}))
    allowed, other = ask("/where", host="site.example"), ask("/where", host="other.example")

    await app.is_the_same(allowed, other)
    await app.meet(*[allowed] * 3, runs=1)
