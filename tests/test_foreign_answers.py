"""Attacks: whoever is handed an answer that was meant for someone else. Each fails when its rule is taken out."""

import hashlib
import itertools
import ssl
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aiohttp_reduce import reduce_middleware
from tests.harness import Start, eventually
from tests.herds import herds

pytestmark = pytest.mark.filterwarnings("ignore:It is recommended to use web.RequestKey")


async def test_a_foreign_api_key(serve: Start) -> None:
    keys = {"key-a": "alice", "key-b": "bob"}

    def answer(request: web.Request) -> str:
        return f"secrets of {keys[request.headers['X-Api-Key']]}"

    requests = [{"X-Api-Key": "key-a"}, {"X-Api-Key": "key-b"}, {"X-Api-Key": "key-a"}]
    texts = ["secrets of alice", "secrets of bob", "secrets of alice"]
    herd = await herds(serve, answer)  # kept apart: an unknown header is in the identity
    runs, replies = await herd.meet(requests)
    assert (runs, [reply.text for reply in replies]) == (2, texts)
    for wrongly_chosen in ({"headers": ("Accept",)}, {"ignore_headers": ("X-*",)}):
        herd = await herds(serve, answer, **wrongly_chosen)
        runs, replies = await herd.meet(requests)
        assert (runs, [reply.text for reply in replies]) == (2, texts)
        assert herd.unshared == {"header: x-api-key": 1}


@pytest.mark.parametrize(
    ("name", "good", "bad"), [("X-Real-IP", "10.0.0.1", "6.6.6.6"), ("User-Agent", "corp-browser", "curl")]
)
async def test_a_sub_applications_access_check(serve: Start, name: str, good: str, bad: str) -> None:
    middleware = reduce_middleware()

    @web.middleware
    async def access(request: web.Request, handler: Any) -> web.StreamResponse:
        allowed = request.headers.get(name) == good
        response: web.StreamResponse = await handler(request)
        return response if allowed else web.Response(status=403)

    herd = await herds(serve, lambda request: "internal", middleware=middleware, inner=[access])
    runs, replies = await herd.meet([{name: good}, {name: bad}, {name: good}, {}])
    assert [reply.status for reply in replies] == [200, 403, 200, 403]
    assert runs == 3
    runs, replies = await herd.meet([{name: bad}, {name: good}, {name: bad}, {name: good}])
    assert [reply.status for reply in replies] == [403, 200, 403, 200]

    async def inside(request: web.Request) -> web.Response:
        await herd.gate.wait()
        return web.Response(text="internal")

    sub = web.Application(middlewares=[access])
    sub.router.add_get("/", inside)
    app = web.Application(middlewares=[middleware])
    app.add_subapp("/sub", sub)
    server = await serve(app, middleware=middleware)
    herd.gate.close()
    before = herd.gate.runs
    sent = []
    for number, headers in enumerate([{name: good}, {name: bad}, {name: good}], 1):
        sent.append(await server.send("/sub/", headers))
        await eventually(lambda number=number: server.figure("waiting") + herd.gate.runs - before == number)  # type: ignore[misc]
    herd.gate.open()
    assert [(await one.receive()).status for one in sent] == [200, 403, 200]


async def test_a_session_and_csrf_token_made_by_the_handler(serve: Start) -> None:
    """As aiohttp-session does: the handler makes the session, its outer middleware sets the cookie."""
    numbers = itertools.count(1)

    @web.middleware
    async def sessions(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        if "session" in request:
            response.set_cookie("session", request["session"])
        return response

    def answer(request: web.Request) -> str:
        request["session"] = f"s{next(numbers)}"
        return f"token of {request['session']}"

    herd = await herds(serve, answer, outer=[sessions])
    runs, replies = await herd.meet([{}, {}, {}])
    assert runs == 3
    for number, reply in enumerate(replies, 1):
        assert reply.text == f"token of s{number}"
        assert reply.headers["Set-Cookie"] == f"session=s{number}; Path=/"
    assert herd.unshared == {"state-written: session": 2}


async def test_a_token_put_into_a_session_that_an_outer_middleware_loaded(serve: Start) -> None:
    numbers = itertools.count(1)

    @web.middleware
    async def sessions(request: web.Request, handler: Any) -> web.StreamResponse:
        request["session"] = {}
        response: web.StreamResponse = await handler(request)
        response.set_cookie("session", request["session"]["token"])
        return response

    def answer(request: web.Request) -> str:
        return str(request["session"].setdefault("token", f"t{next(numbers)}"))

    herd = await herds(serve, answer, outer=[sessions])
    runs, replies = await herd.meet([{}, {}, {}])
    assert (runs, [reply.text for reply in replies]) == (3, ["t1", "t2", "t3"])


async def test_a_user_that_an_outer_middleware_found(serve: Start) -> None:
    @web.middleware
    async def authenticate(request: web.Request, handler: Any) -> web.StreamResponse:
        request["user"] = request.headers["Authorization"]
        response: web.StreamResponse = await handler(request)
        return response

    herd = await herds(
        serve,
        lambda request: web.Response(text=f"mail of {request['user']}", headers={"Cache-Control": "public"}),
        outer=[authenticate],
        headers=("Accept",),
    )
    runs, replies = await herd.meet([{"Authorization": name} for name in ("alice", "bob", "alice")])
    assert (runs, [reply.text for reply in replies]) == (2, ["mail of alice", "mail of bob", "mail of alice"])


async def test_ranges_conditions_and_cookies_with_headers_accept(serve: Start) -> None:
    text = "0123456789"

    def answer(request: web.Request) -> web.Response:
        user = request.cookies.get("user")
        if user is not None:
            return web.Response(text=f"page of {user}")
        etag = request.headers.get("If-None-Match")
        if etag == '"1"':
            return web.Response(status=304)
        if "Range" in request.headers:
            part = text[request.http_range]
            return web.Response(status=206, text=part, headers={"Content-Range": "bytes"})
        return web.Response(text=text)

    herd = await herds(serve, answer, headers=("Accept",))
    requests = [
        {}, {"Range": "bytes=0-3"}, {"If-None-Match": '"1"'}, {"Cookie": "user=alice"}, {"Cookie": "user=bob"}, {},
    ]  # fmt: skip
    right = [(200, text), (206, "0123"), (304, ""), (200, "page of alice"), (200, "page of bob"), (200, text)]
    for start in range(len(requests)):  # whoever leads, and whatever is learned by then
        herd = await herds(serve, answer, headers=("Accept",))
        for _ in range(2):
            turned = [*requests[start:], *requests[:start]]
            _, replies = await herd.meet(turned)
            assert [(reply.status, reply.text) for reply in replies] == [*right[start:], *right[:start]]


async def test_the_answer_to_one_who_asked_too_often(serve: Start) -> None:
    statuses = iter([429, 200, 200])
    herd = await herds(serve, lambda request: web.Response(status=next(statuses), headers={"Retry-After": "60"}))
    _, replies = await herd.meet([{}, {}, {}])
    assert [reply.status for reply in replies] == [429, 200, 200]


async def test_a_401_with_a_nonce(serve: Start) -> None:
    numbers = itertools.count(1)
    herd = await herds(
        serve, lambda request: web.HTTPUnauthorized(headers={"WWW-Authenticate": f'Digest nonce="{next(numbers)}"'})
    )
    _, replies = await herd.meet([{}, {}, {}])
    assert [reply.headers["WWW-Authenticate"] for reply in replies] == [f'Digest nonce="{n}"' for n in (1, 2, 3)]


async def test_a_one_time_location(serve: Start) -> None:
    numbers = itertools.count(1)
    for status in (201, 202, 302, 303, 307):
        herd = await herds(
            serve,
            lambda request, status=status: web.Response(status=status, headers={"Location": f"/job/{next(numbers)}"}),
        )
        _, replies = await herd.meet([{}, {}, {}])
        assert len({reply.headers["Location"] for reply in replies}) == 3


async def test_a_csp_nonce(serve: Start) -> None:
    numbers = itertools.count(1)

    def answer(request: web.Request) -> web.Response:
        nonce = hashlib.sha256(bytes(next(numbers))).hexdigest()
        policy = f"default-src 'self'; script-src 'nonce-{nonce}'"
        return web.Response(text=f"<script nonce={nonce}>", headers={"Content-Security-Policy": policy})

    herd = await herds(serve, answer)
    _, replies = await herd.meet([{}, {}, {}])
    assert len({reply.headers["Content-Security-Policy"] for reply in replies}) == 3
    assert all(reply.text[14:-1] in reply.headers["Content-Security-Policy"] for reply in replies)


async def test_a_pass_marker_planted_by_one_odd_request(serve: Start) -> None:
    """Neither a request of another identity nor one odd answer makes the others' herds run in parallel."""
    answered: list[web.Request] = []

    def answer(request: web.Request) -> web.Response:
        answered.append(request)
        if "X-Odd" in request.headers or len(answered) == 1:
            return web.Response(headers={"Set-Cookie": "odd=1"})
        return web.Response()

    herd = await herds(serve, answer)
    await herd.meet([{"X-Odd": "1"}])
    await herd.meet([{"X-Odd": "1"}, {"X-Odd": "1"}])
    assert (await herd.meet([{}, {}, {}]))[0] == 1
    answered.clear()
    assert (await herd.meet([{}, {}, {}]))[0] == 3  # the first gets the cookie
    assert (await herd.meet([{}, {}, {}]))[0] == 1
    assert [reply.headers.get("Set-Cookie") for reply in (await herd.meet([{}, {}]))[1]] == [None, None]


async def test_an_odd_header_that_is_left_out_plants_no_marker_that_lasts(serve: Start) -> None:
    """The odd one leads with a User-Agent that gets a cookie: the others are turned away once, and not again."""

    def answer(request: web.Request) -> web.Response:
        odd = request.headers.get("User-Agent") == "odd"
        return web.Response(headers={"Set-Cookie": "odd=1"} if odd else {})

    herd = await herds(serve, answer)
    _, replies = await herd.meet([{"User-Agent": "odd"}, {}, {}])
    assert [reply.headers.get("Set-Cookie") for reply in replies] == ["odd=1", None, None]
    for _ in range(3):
        _, replies = await herd.meet([{"User-Agent": "odd"}, {}, {}])
        assert [reply.headers.get("Set-Cookie") for reply in replies] == ["odd=1", None, None]
        assert (await herd.meet([{}, {}, {}]))[0] == 1


@pytest.mark.parametrize("what", ["remote", "host", "scheme", "headers", "rel_url"])
async def test_outer_middlewares_that_clone(serve: Start, what: str) -> None:
    @web.middleware
    async def clones(request: web.Request, handler: Any) -> web.StreamResponse:
        value = request.headers["X-Real-IP"]
        given: Any = {
            "remote": value,
            "host": f"{value}.example",
            "scheme": "https" if value == "2" else "http",
            "headers": {"Host": "a", "X-Derived": value},
            "rel_url": f"/?{value}",
        }[what]
        response: web.StreamResponse = await handler(request.clone(**{what: given}))
        return response

    def answer(request: web.Request) -> str:
        return f"{request.remote} {request.host} {request.scheme} {request.headers.get('X-Derived')} {request.rel_url}"

    herd = await herds(serve, answer, outer=[clones])
    for _ in range(2):
        runs, replies = await herd.meet([{"X-Real-IP": value} for value in ("1", "2", "1")])
        assert runs == 2
        assert replies[0].text == replies[2].text != replies[1].text


async def test_an_inner_middleware_that_clones(serve: Start) -> None:
    @web.middleware
    async def remotes(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request.clone(remote=request.headers["X-Real-IP"]))
        return response

    herd = await herds(serve, lambda request: request.remote, inner=[remotes])
    for _ in range(2):
        runs, replies = await herd.meet([{"X-Real-IP": value} for value in ("1", "2", "1")])
        assert (runs, [reply.text for reply in replies]) == (2, ["1", "2", "1"])


async def test_two_tls_client_certificates(serve: Start, certificates: Path) -> None:
    def answer(request: web.Request) -> str:
        subject = request.get_extra_info("ssl_object").getpeercert()["subject"]
        return str(subject[0][0][1])

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates / "authority.pem"))
    context.load_cert_chain(certificates / "server.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    clients: list[ssl.SSLContext | None] = []
    for name in ("alice", "bob", "server", "alice"):
        client = ssl.create_default_context(cafile=str(certificates / "authority.pem"))
        client.load_cert_chain(certificates / f"{name}.pem")
        clients.append(client)
    herd = await herds(serve, answer, tls=context)
    runs, replies = await herd.meet([{}] * 4, tls=clients)
    assert (runs, [reply.text for reply in replies]) == (3, ["alice", "bob", "server", "alice"])


async def test_what_we_cannot_see_is_named_by_key(serve: Start) -> None:
    """A value derived from a header that is left out, passed on by a context variable: only `key=` can tell."""
    country: ContextVar[str] = ContextVar("country")

    @web.middleware
    async def locates(request: web.Request, handler: Any) -> web.StreamResponse:
        country.set(request.headers["X-Real-IP"][:2])
        response: web.StreamResponse = await handler(request)
        return response

    herd = await herds(serve, lambda request: country.get(), outer=[locates], key=lambda request: country.get())
    runs, replies = await herd.meet([{"X-Real-IP": value} for value in ("de-1", "fr-1", "de-2")])
    assert (runs, [reply.text for reply in replies]) == (2, ["de", "fr", "de"])


async def test_key_and_learned_items_both_keep_requests_apart(serve: Start) -> None:
    country: ContextVar[str] = ContextVar("country")

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        country.set(request.headers["X-Real-IP"])
        request["item"] = request.headers["User-Agent"]
        response: web.StreamResponse = await handler(request)
        return response

    herd = await herds(
        serve, lambda request: country.get() + request["item"], outer=[outer], key=lambda request: country.get()
    )
    requests = [{"X-Real-IP": ip, "User-Agent": agent} for ip, agent in ("1a", "2a", "1b", "2b", "1a")]
    for _ in range(3):
        _, replies = await herd.meet(requests)
        assert [reply.text for reply in replies] == ["1a", "2a", "1b", "2b", "1a"]
    assert [reply.collapsed for reply in replies[:4]] == [None] * 4


async def test_private_with_a_key_of_none_and_learned_items(serve: Start) -> None:
    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        request["item"] = request.headers.get("User-Agent")
        response: web.StreamResponse = await handler(request)
        return response

    private = [False]

    def answer(request: web.Request) -> web.Response:
        return web.Response(text=request["item"], headers={"Cache-Control": "private"} if private[0] else {})

    herd = await herds(serve, answer, outer=[outer], key=lambda request: None)
    await herd.meet([{"User-Agent": "a"}, {"User-Agent": "b"}])
    private[0] = True
    assert (await herd.meet([{"User-Agent": "a"}] * 3))[0] == 3
    assert herd.unshared["private"] == 2


async def test_crowds_on_two_targets_are_kept_apart(serve: Start) -> None:
    herd = await herds(serve, lambda request: f"{request.query_string} {request.headers['Accept']}")
    connections = []
    herd.gate.close()
    for number, (query, accept) in enumerate([("a", "1"), ("a", "2"), ("b", "1"), ("b", "2"), ("b", "2")], 1):
        connections.append(await herd.server.send(f"/?{query}", {"Accept": accept}))
        await eventually(lambda number=number: herd.server.figure("waiting") + herd.gate.runs == number)  # type: ignore[misc]
    assert herd.gate.runs == 4
    herd.gate.open()
    assert [(await one.receive()).text for one in connections] == ["a 1", "a 2", "b 1", "b 2", "b 2"]


async def test_a_fixed_host_and_a_host_header_that_is_read(serve: Start) -> None:
    @web.middleware
    async def fixed(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request.clone(host="fixed"))
        return response

    herd = await herds(serve, lambda request: request.headers["Host"], outer=[fixed], headers=("Accept",))
    herd.gate.close()
    sent = [await herd.server.send("/", {"Accept": accept}, host=host) for accept in "xy" for host in ("a", "b")]
    await herd.gate.entered(4)
    herd.gate.open()
    assert [(await one.receive()).text for one in sent] == ["a", "b", "a", "b"]
