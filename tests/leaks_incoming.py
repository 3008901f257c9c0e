"""The hunt for foreign secrets among incoming requests: worlds of applications, routes and users, all drawn at random.

A world has a few applications that share one middleware object, and routes; each route looks at some things of a
request and answers with the secrets of what it saw. What is right for a request is known from the request alone.
"""

import asyncio
import io
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiohttp import web
from multidict import CIMultiDict

from aiohttp_reduce import reduce_middleware
from aiohttp_reduce.server import DEFAULT_IGNORE_COOKIES, DEFAULT_IGNORE_HEADERS, ReduceMiddleware
from tests.harness import is_uncrowded
from tests.lines import MemoryServer, Received
from tests.secrets_of import NOBODY, USERS, Findings, found_in, number, secret
from tests.virtual import VirtualLoop, run_virtually

# What a request can carry the name of a user in.
CHANNELS = (
    "token", "session", "analytics", "agent", "credentials", "query", "path", "host", "forwarded", "address", "peer",
    "language", "method", "version",
)  # fmt: skip

_HEADERS = {
    "token": ("X-Token", "{}"),
    "agent": ("User-Agent", "{}"),
    "credentials": ("Authorization", "Bearer {}"),
    "forwarded": ("X-Forwarded-For", "{}"),
    "address": ("X-Real-IP", "{}"),
    "language": ("Accept-Language", "{}"),
}

# Set by an outer middleware, where nobody sees who looks at it.
_unseen: ContextVar[str] = ContextVar("unseen")
_keyed: ContextVar[Any] = ContextVar("keyed")

_NAME = web.AppKey("name", str)


class Ask(NamedTuple):
    """One request: which application, which route, and what each channel carries, if anything."""

    app: str
    route: int
    carries: Mapping[str, str]

    def get(self, channel: str) -> str:
        return self.carries.get(channel, NOBODY)

    @property
    def method(self) -> str:
        return self.carries.get("method", "GET")


@dataclass(frozen=True)
class Look:
    """One thing to look at: how, and in which channel of a request what is seen came."""

    look: Callable[[web.Request], Any]
    channel: str


LOOKS: dict[str, Look] = {
    "header": Look(lambda request: request.headers.get("X-Token"), "token"),
    "any case": Look(lambda request: request.headers.getall("x-ToKeN", [None])[0], "token"),
    "all headers": Look(lambda request: {k.lower(): v for k, v in request.headers.items()}.get("x-token"), "token"),
    "raw headers": Look(
        lambda request: {k.lower(): v.decode() for k, v in request.raw_headers}.get(b"user-agent"), "agent"
    ),
    "agent": Look(lambda request: request.headers.get("User-Agent"), "agent"),
    "language": Look(lambda request: request.headers.get("Accept-Language"), "language"),
    "credentials": Look(
        lambda request: request.headers.get("Authorization", "").removeprefix("Bearer "), "credentials"
    ),
    "cookie": Look(lambda request: request.cookies.get("session"), "session"),
    "cookie header": Look(lambda request: _cookie(request.headers.get("Cookie", ""), "session"), "session"),
    "analytics": Look(lambda request: _cookie(request.headers.get("Cookie", ""), "_ga"), "analytics"),
    "query": Look(lambda request: request.query.get("user"), "query"),
    "target": Look(lambda request: request.rel_url.raw_query_string.partition("user=")[2].split("&")[0], "query"),
    "path": Look(lambda request: request.match_info["name"], "path"),
    "raw path": Look(lambda request: request.path.rpartition("/")[2], "path"),
    "host": Look(lambda request: request.host.split(".")[0], "host"),
    "host header": Look(lambda request: request.headers["Host"].split(".")[0], "host"),
    "url": Look(lambda request: (request.url.host or "").split(".")[0], "host"),
    "forwarded": Look(lambda request: request.headers.get("X-Forwarded-For"), "forwarded"),
    "remote": Look(lambda request: request.remote, "peer"),
    "clone": Look(lambda request: request.clone().headers.get("X-Forwarded-For"), "forwarded"),
    "method": Look(lambda request: request.method, "method"),
    "version": Look(lambda request: f"1.{request.version.minor}", "version"),
    "item": Look(lambda request: _name_in(request.get("user")), "address"),
    "all items": Look(lambda request: _name_in(dict(request.items()).get("user")), "address"),
    "attribute": Look(lambda request: vars(request).get("user"), "address"),
    # The next two are seen by nobody: it takes the answer's Vary, or the key.
    "vary": Look(lambda request: _unseen.get(), "address"),
    "key": Look(lambda request: _keyed.get(), "address"),
    # What an outer middleware's clone says; without one, there is none of it.
    "derived header": Look(lambda request: request.headers.get("X-Derived"), "address"),
    "derived query": Look(lambda request: request.query.get("derived"), "address"),
    "derived host": Look(lambda request: request.host.split(".")[0], "address"),
}


@dataclass(frozen=True)
class Account:
    """A user as an outer middleware puts it into the request mapping."""

    name: str


def as_dict(name: str) -> dict[str, str]:
    """The same as a mapping."""
    return {"name": name}


_ITEMS: tuple[Callable[[str], Any], ...] = (
    str,
    Account,
    as_dict,
    lambda name: [name],
)


def _name_of(request: web.Request) -> str:
    """The application that has the request's route."""
    return request.match_info.apps[-1][_NAME]


def _route_of(request: web.Request) -> int:
    """The number of the request's route."""
    return int(request.path.rpartition("/r")[2].partition("/")[0])


def _cookie(line: str, name: str) -> str:
    return next((pair.partition("=")[2] for pair in line.split("; ") if pair.startswith(f"{name}=")), "")


def _name_in(item: Any) -> str:
    if isinstance(item, Account):
        return item.name
    if isinstance(item, dict):
        return str(item["name"])
    return str(item[0] if isinstance(item, list) else item)


FORMS = ("whole", "compressed", "payload", "stream", "compressed stream", "one-shot", "raised answer", "exception")
STREAMED = frozenset({"stream", "compressed stream", "one-shot"})
PLACES = ("body", "header", "cookie", "status", "reason")

_RAISED = {web.HTTPNotFound.status_code: web.HTTPNotFound, 410: web.HTTPGone, 500: web.HTTPInternalServerError}
_STATUSES = (200, 203, 404, 410, 500, 503)

# What makes an answer one for nobody else: each run's then bears a number of its own.
ONCE: dict[str, Mapping[str, str]] = {
    "no-store": {"Cache-Control": "No-Store"},
    "no-cache": {"Cache-Control": 'max-age=60, no-cache="Set-Cookie"'},
    "private": {"Cache-Control": "private"},
    "vary": {"Vary": "Accept, *"},
    "nonce": {"Content-Security-Policy": "script-src 'nonce-1'"},
    "clear": {"Clear-Site-Data": '"*"'},
    "info": {"Authentication-Info": "x"},
    "events": {"Content-Type": "text/event-stream"},
    "cookie": {},
    "cookie by hand": {},
    "401": {},
    "302": {"Location": "/"},
    "item": {},
}


@dataclass(frozen=True)
class Route:
    """What a handler looks at, when, and how it answers.

    `late` are looks after the head of a stream was sent, `inner` is one that a middleware behind the door does. With
    `shares`, it says to `share=` that its answers may be shared.
    """

    looks: tuple[str, ...]
    form: str = "whole"
    places: tuple[str, ...] = ("body",)
    late: tuple[str, ...] = ()
    inner: str | None = None
    once: str | None = None
    shares: bool = False
    looks_first: bool = True
    pause: float = 1.0


@dataclass(frozen=True)
class Options:
    """How the applications of a world are put together."""

    middleware: Mapping[str, Any]
    other: Mapping[str, Any]
    clones: str | None = None
    inner_clones: bool = False
    attributes: bool = False
    item: Callable[[str], Any] = str
    sub_door: str | None = None
    handler_cancellation: bool = False
    impatient: float = 0.0
    key: str | None = None


def share(request: web.Request, response: web.StreamResponse) -> bool | None:
    """The `share=` of all worlds."""
    return True if "X-Shares" in response.headers else None


KEYS: dict[str, Callable[[web.Request], Any]] = {
    "address": lambda request: request.headers.get("X-Real-IP"),
    "remote": lambda request: request.remote,
    "tuple": lambda request: ("v1", request.headers.get("X-Real-IP", NOBODY)),
}


class NotFoundHereError(Exception):
    """What handlers raise that is no answer."""


class World:
    """Applications that share middleware objects, and what is right for each request to them."""

    def __init__(self, options: Options, routes: list[Route], choose: random.Random, seed: object = None) -> None:
        self.options = options
        self.routes = routes
        self.choose = choose
        self.seed = seed
        self.findings = Findings()
        self.runs = 0
        # Whether a handler takes its whole time at each of its pauses.
        self.pause_always = False
        self._numbers: dict[str, list[Ask]] = {}
        key = KEYS[options.key] if options.key else None  # of both: a door that is not told takes all for one
        self.middleware = reduce_middleware(**options.middleware, key=key, share=share, stats_path=None)
        self.other = reduce_middleware(**options.other, key=key, share=share, stats_path=None)

    # What is right.

    def channel(self, look: str) -> str:
        """Where a look's value comes from in this world."""
        options = self.options
        if look == "remote" and (options.clones == "remote" or options.inner_clones):
            return "forwarded"
        if look == "key" and options.key == "remote":
            return "forwarded" if options.clones == "remote" else "peer"
        if options.clones == "host" and look in {"host", "url"}:
            return "address"
        return LOOKS[look].channel

    def value(self, look: str, ask: Ask) -> str:
        """What a look at this request sees."""
        channel = self.channel(look)
        if channel == "method":
            return ask.method
        if channel == "version":
            return ask.carries.get("version", "1.1")
        return ask.get(channel)

    def right(self, ask: Ask, looks: tuple[str, ...]) -> list[str]:
        """The secrets of what these looks at this request see."""
        return [secret(ask.app, str(ask.route), look, self.value(look, ask)) for look in looks]

    def judge(self, ask: Ask, received: Received) -> None:
        """Look at an answer: does it have what is for somebody else, and is it what it should be?"""
        findings, route = self.findings, self.routes[ask.route]
        own = self.right(ask, (*route.looks, *route.late, *([route.inner] if route.inner else ())))
        text = f"{received.head} {received.body.decode('utf-8', 'replace')}"
        story = f"world {self.seed}: {ask} of {route} got"
        if foreign := found_in(text) - set(own):
            findings.foreign.append(f"{story} {foreign} in {text!r}")
        numbers = {word for word in text.replace(";", " ").split() if word.startswith("run=")}
        if len(numbers) > 1:
            findings.foreign.append(f"{story} {numbers}")
        for word in numbers:
            sharers = self._numbers.setdefault(word, [])
            sharers.append(ask)
            if len(sharers) > 1 and not self._may_share_a_run(sharers):
                findings.foreign.append(f"{story} {word}, as {sharers[:-1]}")
        if not received.whole:
            findings.broken += 1
            return
        if received.headers.get("X-Given-Up"):
            findings.given_up += 1
            return
        findings.whole += 1
        if not self._is_right(ask, received):
            findings.wrong.append(f"{story} {received}")

    def _may_share_a_run(self, sharers: list[Ask]) -> bool:
        """Whether these may have one run's answer, although it is marked as one for nobody else."""
        route, first = self.routes[sharers[0].route], sharers[0]
        if route.shares and route.once != "item":
            return True
        if route.once != "private":
            return False
        # What `key` gave is enough, and so are credentials that are compared.
        key = self.options.key
        if key in {"remote", "tuple"} or (key == "address" and first.get("address") != NOBODY):
            holders = ["address"]
            if key == "remote":
                cloned = self.options.clones == "remote" or (self.options.inner_clones and self.options.sub_door)
                holders = ["forwarded" if cloned else "peer"]
        else:
            # (No cookie is an analytics one where none is said to be.)
            holders = ["session", "credentials"]
            if all(first.get(name) == NOBODY for name in (*holders, "analytics")):
                return False
        return all(ask.get(name) == first.get(name) for ask in sharers for name in holders)

    def _is_right(self, ask: Ask, received: Received) -> bool:
        route = self.routes[ask.route]
        words = self.right(ask, route.looks)
        if received.status != (500 if route.form == "exception" else self.status(route, words)):
            return False
        if "reason" in route.places and route.form != "exception" and received.reason != f"Says {words[0]}":
            return False
        headers = received.headers
        if "header" in route.places and headers.getall("X-Secret", []) != words:
            return False
        if "cookie" in route.places and route.form != "exception":
            lines = [line for line in headers.getall("Set-Cookie", []) if not line.startswith("made=")]
            cookies = [line.partition("=")[2].partition(";")[0] for line in lines]
            if cookies[: len(words)] != words:
                return False
        if route.inner and headers.getall("X-Inner", []) != self.right(ask, (route.inner,)):
            return False
        if ask.method == "HEAD":
            return not received.body
        pieces = [words, self.right(ask, route.late)] if "body" in route.places else [[], []]
        body = received.text.split(" run=")[0]
        return body == f"says{''.join(pieces[0])}" + (f"{''.join(pieces[1])}end" if route.form in STREAMED else "")

    def status(self, route: Route, words: list[str]) -> int:
        """The status of an answer with these words."""
        if route.once in {"401", "302"}:
            return int(route.once)
        if route.form == "raised answer":
            statuses = tuple(_RAISED)
            return statuses[number(words) % len(statuses)] if "status" in route.places else 404
        return _STATUSES[number(words) % len(_STATUSES)] if "status" in route.places else 200

    # The applications.

    def app(self, name: str, middlewares: list[Any], prefix: str = "") -> web.Application:
        """One with all routes."""
        app = web.Application(middlewares=middlewares)
        app[_NAME] = name
        for index, route in enumerate(self.routes):
            app.router.add_route("*", f"{prefix}/r{index}/{{name}}", self._handler(name, index, route))
        return app

    def _handler(self, app: str, index: int, route: Route) -> Any:
        def see(request: web.Request, looks: tuple[str, ...]) -> list[str]:
            return [secret(app, str(index), look, str(LOOKS[look].look(request) or NOBODY)) for look in looks]

        async def pause() -> None:
            pauses = [route.pause] if self.pause_always else [0, route.pause, route.pause * self.choose.random()]
            await asyncio.sleep(self.choose.choice(pauses))

        async def handler(request: web.Request) -> web.StreamResponse:
            self.runs += 1
            run = f" run={self.runs}" if route.once else ""
            if not route.looks_first:
                await pause()
            words = see(request, route.looks)
            await pause()
            if route.once == "item":
                request["made"] = run
            response = self._answer(request, route, words, run)
            if route.form == "one-shot":

                async def body() -> AsyncIterator[bytes]:
                    yield f"says{''.join(words) if 'body' in route.places else ''}".encode()
                    await pause()
                    late = see(request, route.late)
                    await pause()
                    yield f"{''.join(late) if 'body' in route.places else ''}end{run}".encode()

                response.body = body()  # type: ignore[attr-defined]
            elif route.form in STREAMED:
                await response.prepare(request)
                if request.method == "HEAD":
                    return response
                await response.write(f"says{''.join(words) if 'body' in route.places else ''}".encode())
                await pause()
                late = see(request, route.late)
                await pause()
                await response.write(f"{''.join(late) if 'body' in route.places else ''}end{run}".encode())
            return response

        return handler

    def _answer(self, request: web.Request, route: Route, words: list[str], run: str) -> web.StreamResponse:
        body = f"says{''.join(words) if 'body' in route.places else ''}{run}"
        status = self.status(route, words)
        reason = f"Says {words[0]}" if "reason" in route.places else None
        response: Any
        if route.form == "exception":
            raise NotFoundHereError(body, words if "header" in route.places else [])
        if route.form == "raised answer":
            response = _RAISED.get(status, web.HTTPNotFound)(text=body, reason=reason)
            if status not in _RAISED:
                response.set_status(status, reason)
        elif route.form in STREAMED - {"one-shot"}:
            response = web.StreamResponse(status=status, reason=reason)
        elif route.form == "payload":
            response = web.Response(status=status, reason=reason, body=io.StringIO(body))
        elif route.form == "one-shot":
            response = web.Response(status=status, reason=reason)
        else:
            response = web.Response(status=status, reason=reason, text=body)
        if route.form.startswith("compressed"):
            response.enable_compression()
        if "header" in route.places:
            response.headers.extend([("X-Secret", word) for word in words])
        if "cookie" in route.places:
            for index, word in enumerate(words):
                response.set_cookie(f"c{index}", word)
        if route.once is not None:
            if route.once == "cookie":
                response.set_cookie("made", run.strip().replace("=", ""))
            elif route.once == "cookie by hand":
                response.headers.add("Set-Cookie", f"made={run.strip().replace('=', '')}; Path=/")
            response.headers.extend({"X-Run": run.strip()})
            response.headers.update(ONCE[route.once])
        if "vary" in route.looks:
            response.headers["Vary"] = "Accept, X-Real-IP"
        if route.shares:
            response.headers["X-Shares"] = "yes"
        if route.form == "raised answer":
            raise response
        return response  # type: ignore[no-any-return]

    def _gives_up(self, request: web.Request) -> bool:
        """Whether an outer middleware answers for a handler that takes long; not where its head may have been sent."""
        route = self.routes[_route_of(request)]
        return route.form not in STREAMED and self.choose.random() < self.options.impatient

    @property
    def outer(self) -> list[Any]:
        """The middlewares in front of the door."""
        options = self.options

        @web.middleware
        async def catches(request: web.Request, handler: Any) -> web.StreamResponse:
            try:
                async with asyncio.timeout(1.0 if self._gives_up(request) else None):
                    response: web.StreamResponse = await handler(request)
            except NotFoundHereError as error:
                text, words = error.args
                return web.Response(status=500, text=text, headers=CIMultiDict([("X-Secret", word) for word in words]))
            except TimeoutError:
                return web.Response(status=504, headers={"X-Given-Up": "yes"})
            return response

        @web.middleware
        async def clones(request: web.Request, handler: Any) -> web.StreamResponse:
            address = request.headers.get("X-Real-IP", NOBODY)
            if options.clones == "remote":
                request = request.clone(remote=request.headers.get("X-Forwarded-For", NOBODY))
            elif options.clones == "header":
                request = request.clone(headers={**request.headers, "X-Derived": address})
            elif options.clones == "query":
                request = request.clone(rel_url=request.rel_url.update_query(derived=address))
            elif options.clones == "host":
                request = request.clone(host=f"{address}.derived.example")
            response: web.StreamResponse = await handler(request)
            return response

        @web.middleware
        async def knows(request: web.Request, handler: Any) -> web.StreamResponse:
            address = request.headers.get("X-Real-IP", NOBODY)
            request["user"] = options.item(address)
            if options.attributes:
                vars(request)["user"] = address
            _unseen.set(address)
            _keyed.set((request.remote if options.key == "remote" else address) or NOBODY)
            response: web.StreamResponse = await handler(request)
            return response

        return [catches, clones, knows]

    @property
    def inner(self) -> list[Any]:
        """The middlewares behind the door."""

        @web.middleware
        async def looks(request: web.Request, handler: Any) -> web.StreamResponse:
            index = _route_of(request)
            look = self.routes[index].inner
            if self.options.inner_clones:
                request = request.clone(remote=request.headers.get("X-Forwarded-For", NOBODY))
            if look is None:
                return await handler(request)  # type: ignore[no-any-return]
            word = secret(_name_of(request), str(index), look, str(LOOKS[look].look(request) or NOBODY))
            try:
                response: web.StreamResponse = await handler(request)
            except web.HTTPException as answer:
                answer.headers["X-Inner"] = word
                raise
            response.headers["X-Inner"] = word
            return response

        return [looks]

    def build(self) -> dict[str, web.Application]:
        """The applications by name; those that are mounted in one are reached through it."""
        sub_door = {"same": [self.middleware], "other": [self.other], None: []}[self.options.sub_door]
        apps = {}
        for name in ("root", "twin"):
            apps[name] = self.app(name, [*self.outer, self.middleware, *self.inner])
        sub = self.app("sub", [*sub_door])
        # (Paths of its own: with equal ones, aiohttp 3.12 gives the request to the parent.)
        domain = self.app("domain", [*sub_door], "/domain")
        apps["root"].add_subapp("/sub", sub)
        apps["root"].add_domain("*.sub.example", domain)
        return apps


def request_bytes(ask: Ask, extra: Iterable[str] = ()) -> bytes:
    """The request as it is sent."""
    carries = ask.carries
    name = carries.get("path", NOBODY)
    target = f"{f'/{ask.app}' if ask.app in {'sub', 'domain'} else ''}/r{ask.route}/{name}"
    if "query" in carries:
        target += f"?user={carries['query']}"
    domain = "sub" if ask.app == "domain" else "app"
    lines = [
        f"{ask.method} {target} HTTP/{carries.get('version', '1.1')}",
        f"Host: {carries.get('host', NOBODY)}.{domain}.example",
    ]
    lines += [f"{name}: {form.format(carries[at])}" for at, (name, form) in _HEADERS.items() if at in carries]
    cookies = [f"{name}={carries[at]}" for at, name in (("session", "session"), ("analytics", "_ga")) if at in carries]
    if cookies:
        lines.append(f"Cookie: {'; '.join(cookies)}")
    return "\r\n".join([*lines, *extra, "", ""]).encode()


class Drawn:
    """Draws worlds, routes and requests."""

    def __init__(self, choose: random.Random) -> None:
        self.choose = choose

    def options(self) -> Options:
        choose = self.choose

        def selection() -> dict[str, Any]:
            more = [{"X-Token"}, {"X-*", "Authorization"}, {"Accept-Language"}]
            return {
                "headers": choose.choice(
                    [None, None, None, ("Accept",), ("Cookie", "Authorization"), ("X-Token", "Accept-Language")]
                ),
                "ignore_headers": choose.choice(
                    [
                        DEFAULT_IGNORE_HEADERS,
                        DEFAULT_IGNORE_HEADERS,
                        *[DEFAULT_IGNORE_HEADERS | one for one in more],
                        (),
                    ]
                ),
                "ignore_cookies": choose.choice([DEFAULT_IGNORE_COOKIES, (), DEFAULT_IGNORE_COOKIES | {"theme"}]),
                "max_age": choose.choice([0.5, 5.0]),
                "max_wait": choose.choice([0.3, 1.0, 30.0]),
            }

        clones = choose.choice([None, None, "remote", "header", "query", "host"])
        return Options(
            selection(),
            selection(),
            clones=clones,
            inner_clones=clones != "host" and choose.random() < 0.1,
            attributes=choose.random() < 0.2,
            item=choose.choice(_ITEMS),
            sub_door=choose.choice([None, "same", "other"]),
            handler_cancellation=choose.random() < 0.25,
            impatient=choose.choice([0, 0, 0.05]),
            key=choose.choice([None, None, *KEYS]),
        )

    def looks(self, options: Options, count: int, *, but: frozenset[str] = frozenset()) -> tuple[str, ...]:
        """Things that handlers in such a world may look at."""
        without = set(but)
        if any(some["ignore_cookies"] for some in (options.middleware, options.other)):
            without.add("analytics")  # the README: those cookies are not for handlers
        # (Where a clone within has another address, `key` names that at the door behind it, not what was passed on.)
        if options.key is None or (options.key == "remote" and options.inner_clones and options.sub_door):
            without.add("key")
        if options.inner_clones or not options.attributes:
            without.add("attribute")
        without |= {f"derived {kind}" for kind in ("header", "query", "host") if kind != options.clones}
        return tuple(self.choose.sample([look for look in LOOKS if look not in without], count))

    def route(self, options: Options) -> Route:
        choose = self.choose
        form = choose.choice(FORMS)
        once = choose.choice([*ONCE]) if choose.random() < 0.35 and form != "exception" else None
        if options.inner_clones and once == "item":
            once = None  # nobody outside of the clone sees it
        shares = choose.random() < 0.2
        unseen = frozenset({"vary"}) if once or shares or form == "exception" else frozenset()
        places = tuple(place for place in PLACES if choose.random() < 0.6) or ("body",)
        if form == "exception":
            places = tuple(place for place in places if place in {"body", "header"})
        elif "cookie" in places and not shares and choose.random() < 0.85:
            places = tuple(place for place in places if place != "cookie")  # most should be shared
        return Route(
            self.looks(options, choose.choice([1, 1, 2, 3]), but=unseen),
            form,
            places,
            self.looks(options, 1, but=unseen | {"vary"}) if form in STREAMED and choose.random() < 0.2 else (),
            self.looks(options, 1, but=unseen | {"vary"})[0]
            if form in {"whole", "compressed", "payload", "raised answer"} and choose.random() < 0.2
            else None,
            once,
            shares,
            choose.random() < 0.5,
            choose.choice([0.0, 0.01, 1.0, 3.0]),
        )

    def asks(self, world: World, count: int) -> list[Ask]:
        """Some requests for one route, nearly alike: a few users, who differ in what the handler looks at."""
        choose, index = self.choose, self.choose.randrange(len(world.routes))
        route = world.routes[index]
        seen = [world.channel(look) for look in (*route.looks, *route.late, *([route.inner] if route.inner else []))]
        channels = dict.fromkeys([choose.choice(seen), *choose.sample(CHANNELS, choose.choice([0, 0, 1, 2]))])
        users = [f"u{number}" for number in choose.sample(range(USERS), choose.choice([1, 2, 2, 3]))]
        apps = choose.choice([["root"], ["root", "twin"], ["sub"], ["domain"], ["root", "twin", "sub", "domain"]])
        fixed = {channel: choose.choice(users) for channel in CHANNELS if choose.random() < 0.15}

        def carried(channel: str) -> str | None:
            if channel == "method":
                return choose.choice(["GET", "GET", "HEAD"])
            if channel == "version":
                return choose.choice(["1.1", "1.1", "1.0"])
            return choose.choice([*users, *users, None])

        def ask() -> Ask:
            carries = {name: value for name, value in fixed.items() if name not in {"method", "version"}}
            for channel in channels:
                value = carried(channel)
                carries.pop(channel, None)
                if value is not None:
                    carries[channel] = value
            return Ask(choose.choice(apps), index, carries)

        few = [ask() for _ in range(choose.choice([1, 2, 2, 3, 4]))]
        return [choose.choice(few) if choose.random() < 0.9 else ask() for _ in range(count)]


async def visit(
    world: World, servers: Mapping[str, MemoryServer], ask: Ask, comes: float = 0, tricks: bool = True
) -> None:
    """Send a request, and look at the answer; sometimes the client leaves, or takes it slowly."""
    choose = world.choose
    await asyncio.sleep(comes)
    line = servers[ask.app].line(ask.get("peer"))
    loop = asyncio.get_running_loop()
    gone = None
    if tricks and choose.random() < 0.08:
        gone = loop.call_later(choose.choice([0, 0.01, 0.5, 1.5]), line.leave)
    if tricks and choose.random() < 0.05:
        loop.call_later(choose.choice([0, 0.5]), line.hold, choose.choice([0.2, 2.0, 20.0]))
    may_compress = world.routes[ask.route].form.startswith("compressed")
    extra = ["Accept-Encoding: gzip"] if may_compress and (not tricks or choose.random() < 0.7) else []
    received = await line.ask(request_bytes(ask, extra), head_only=ask.method == "HEAD")
    if gone is not None:
        gone.cancel()
    world.findings.requests += 1
    world.judge(ask, received)


async def hunt_in(loop: VirtualLoop, world: World, visits: list[tuple[float, Ask]], *, tricks: bool = True) -> Findings:
    """Let these come to a world, each at its time, and see to it that nothing is left in the end."""
    for middleware in (world.middleware, world.other):
        middleware._clock = middleware._settings.clock = loop.time
    apps = world.build()
    at_roots = {
        name: MemoryServer(apps[name], handler_cancellation=world.options.handler_cancellation, shutdown_timeout=1.0)
        for name in apps
    }
    for server in at_roots.values():
        await server.start()
    servers = {**at_roots, "sub": at_roots["root"], "domain": at_roots["root"]}
    try:
        await asyncio.gather(*[visit(world, servers, ask, comes, tricks) for comes, ask in visits])
        await asyncio.sleep(60)  # runs that nobody waits for any more
        for middleware in (world.middleware, world.other):
            assert nothing_is_left(middleware), f"world {world.seed}: something was left behind"
            world.findings.add_figures(middleware.stats)
    finally:
        for server in at_roots.values():
            await server.stop()
    return world.findings


def nothing_is_left(middleware: ReduceMiddleware) -> bool:
    """Whether no flight, nobody who waits and no run remains."""
    tables = middleware._tables.values()
    stats = middleware.stats
    return all(not table.flights and is_uncrowded(table) for table in tables) and not (
        stats["waiting"] or stats["in_flight"]
    )


def random_world(seed: object, requests: int) -> Findings:
    """A world with all that happens in it drawn from the seed."""
    choose = random.Random(str(seed))
    drawn = Drawn(choose)
    options = drawn.options()
    world = World(options, [drawn.route(options) for _ in range(8)], choose, seed)
    visits: list[tuple[float, Ask]] = []
    now = 0.0
    while len(visits) < requests:
        herd = drawn.asks(world, min(choose.randint(3, 14), requests - len(visits)))
        pause = world.routes[herd[0].route].pause
        visits += [(now + choose.choice([0, 0, 0, pause * choose.random(), 2 * pause]), ask) for ask in herd]
        now += choose.choice([0, 0.01, 0.5, 2, 6])

    return run_virtually(lambda loop: hunt_in(loop, world, visits))
