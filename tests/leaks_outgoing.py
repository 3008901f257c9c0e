"""The hunt for foreign secrets among outgoing calls: a gateway's session with credentials of each call, sessions of
users that share one middleware object and one connector, and twins that send the same, each through a connector of its
own, against a far end that answers by what it saw.

What is right for a call is known from the call alone.
"""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from aiohttp_reduce import ReducingClientSession, reduce_client_middleware
from aiohttp_reduce.client import DEFAULT_IGNORE_HEADERS
from tests.secrets_of import NOBODY, USERS, Findings, found_in, secret
from tests.upstream import nothing_is_left
from tests.virtual import VirtualLoop, run_virtually
from tests.wire import FarEnd, Line

# What the far end can look at; "locale" is left out of the identity, and so an answer by it says Vary. By its "line" it
# knows the connector that the call came through.
LOOKS = ("token", "basic", "bearer", "cookie", "query", "path", "host", "method", "locale", "user", "range", "line")
TWINS = ("twin 1", "twin 2")
FORMS = ("whole", "chunks", "to its end", "raised", "redirect", "redirect with a cookie", "redirect abroad")


@dataclass(frozen=True)
class Kind:
    """What the far end looks at, and how it answers. `pause` is in seconds."""

    looks: tuple[str, ...]
    form: str = "whole"
    pause: float = 1.0


def _header(lines: list[str], name: str) -> str:
    found = [line.partition(": ")[2] for line in lines if line.lower().startswith(f"{name}: ")]
    return found[0] if found else NOBODY


def _basic(value: str) -> str:
    return aiohttp.BasicAuth.decode(value).login if value.startswith("Basic ") else NOBODY


def _pair(text: str, name: str, separator: str) -> str:
    return next((one.partition("=")[2] for one in text.split(separator) if one.startswith(f"{name}=")), NOBODY)


def seen(head: str) -> dict[str, str]:
    """What the far end sees in a request."""
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ")
    path, _, query = target.partition("?")
    authorization = _header(lines, "authorization")
    return {
        "token": _header(lines, "x-token"),
        "basic": _basic(authorization),
        "bearer": authorization.removeprefix("Bearer ") if authorization.startswith("Bearer") else NOBODY,
        "cookie": _pair(_header(lines, "cookie"), "session", "; "),
        "query": _pair(query, "q", "&"),
        "path": path.split("/")[2],
        "host": _header(lines, "host").split(".")[0],
        "method": method,
        "locale": _header(lines, "x-locale"),
        "user": _header(lines, "x-user"),
        "range": _header(lines, "range").removeprefix("bytes="),
        "kind": path.split("/")[1],
        "landed": path.split("/")[3],
    }


class Outside:
    """The far end: answers each request with the secrets of what it saw in it."""

    def __init__(self, kinds: list[Kind], choose: random.Random, line: str, *, tricks: bool) -> None:
        self.kinds = kinds
        self.line = line
        self.choose = choose
        self.tricks = tricks

    def secrets(self, request: Mapping[str, str]) -> list[str]:
        """What is told to such a request."""
        kind = request["kind"]
        return [secret(kind, request["landed"], look, request[look]) for look in self.kinds[int(kind)].looks]

    async def answer(self, line: Line, number: int) -> None:
        request = {**seen(line.latest.decode("latin-1")), "line": self.line}
        kind = self.kinds[int(request["kind"])]
        pauses = [0, kind.pause, kind.pause * self.choose.random()] if self.tricks else [kind.pause]
        await asyncio.sleep(self.choose.choice(pauses))
        words = self.secrets(request)
        more = [f"X-Secret: {word}" for word in words]
        if "locale" in kind.looks:
            more.append("Vary: Accept, X-Locale")
        if kind.form.startswith("redirect") and request["landed"] == "-":
            origin = "http://abroad.example" if kind.form.endswith("abroad") else ""
            query = "" if request["query"] == NOBODY else f"?q={request['query']}"
            more.append(f"Location: {origin}/{request['kind']}/{request['path']}/landed{query}")
            if kind.form.endswith("cookie"):
                more.append(f"Set-Cookie: session={request['user']}; Path=/")
            await line.head(*more, "Content-Length: 0", status="302 Found")
            return
        status = "404 Not" if kind.form == "raised" else "200 Says"
        more.append(f"Set-Cookie: said={words[0]}; Path=/")
        body = f"says{''.join(words)}end".encode() if request["method"] != "HEAD" else b""
        if request["method"] == "HEAD":
            await line.head(*more, "Content-Length: 0", status=f"{status} {words[0]}")
        elif kind.form == "chunks":
            await line.head(*more, "Transfer-Encoding: chunked", status=f"{status} {words[0]}")
            for piece in (body[:10], body[10:-3], body[-3:]):
                await line.chunk(piece)
                await asyncio.sleep(self.choose.choice([0, kind.pause / 2]))
            await line.chunk(b"")
        elif kind.form == "to its end":
            await line.head(*more, "Connection: close", status=f"{status} {words[0]}")
            await line.send(body)
            await asyncio.sleep(self.choose.choice([0, kind.pause / 2]))
            line.close()
        else:
            await line.head(*more, f"Content-Length: {len(body)}", status=f"{status} {words[0]}")
            await line.send(body)


@dataclass(frozen=True)
class Call:
    """One call: through which session, to which kind of answer, and what it carries."""

    session: str
    kind: int
    carries: Mapping[str, str]

    @property
    def line(self) -> str:
        """The connector that it goes through."""
        return self.session if self.session in TWINS else NOBODY

    def sees(self, look: str) -> set[str]:
        """What the far end may rightly see of it there, after redirects too."""
        value = self.carries.get(look, NOBODY)
        if look == "method":
            return {self.carries.get("method", "GET")}
        if look == "line":
            return {self.line}
        if look == "host":
            return {self.carries.get("host", "upstream"), "abroad", "upstream"}
        if look == "cookie":
            # What an answer has set, or not any more on the way abroad.
            return {value, self.carries.get("user", NOBODY), NOBODY}
        return {value, NOBODY} if look in {"basic", "bearer", "token"} else {value}

    def right(self, kind: Kind) -> list[set[str]]:
        """The secrets that it may be told, by look."""
        landings = ("-", "landed") if kind.form.startswith("redirect") else ("-",)
        if len(landings) == 1:
            exact = {"method": "GET", "host": "upstream", "line": self.line}
            return [
                {secret(str(self.kind), "-", look, self.carries.get(look, exact.get(look, NOBODY)))}
                for look in kind.looks
            ]
        return [
            {secret(str(self.kind), landed, look, value) for landed in landings for value in self.sees(look)}
            for look in kind.looks
        ]


def options_of(call: Call, trace: str | None) -> dict[str, Any]:
    """What the call is made with."""
    carries = call.carries
    headers = {} if trace is None else {"traceparent": trace}
    named = {"token": "X-Token", "locale": "X-Locale", "user": "X-User"}
    headers |= {name: carries[at] for at, name in named.items() if at in carries}
    if "bearer" in carries:
        headers["Authorization"] = f"Bearer {carries['bearer']}"
    if "host" in carries:
        headers["Host"] = f"{carries['host']}.example"
    if "range" in carries:
        headers["Range"] = f"bytes={carries['range']}"
    options: dict[str, Any] = {"headers": headers}
    if "basic" in carries:
        options["auth"] = aiohttp.BasicAuth(carries["basic"], "password")
    if "query" in carries:
        options["params"] = {"q": carries["query"]}
    if call.session in {"gateway", *TWINS} and "cookie" in carries:
        options["cookies"] = {"session": carries["cookie"]}
    return options


class Hunt:
    """Calls of one world. What bears a trace has headers like no other call's."""

    def __init__(
        self, kinds: list[Kind], choose: random.Random, seed: object, *, tricks: bool = True, traced: float = 1.0
    ) -> None:
        self.kinds = kinds
        self.choose = choose
        self.tricks = tricks
        self.traced = traced
        self.seed = seed
        self.findings = Findings()
        self.sessions: dict[str, Any] = {}
        self._traces = 0

    def judge(self, call: Call, trace: str | None, response: aiohttp.ClientResponse, body: bytes | None) -> None:
        """Look at an answer, all of whose body came unless it is None."""
        kind = self.kinds[call.kind]
        right = call.right(kind)
        heads = [
            f"{one.status} {one.reason} {one.raw_headers!r} {one.cookies}" for one in (*response.history, response)
        ]
        text = f"{' '.join(heads)} {response.url} {(body or b'').decode()}"
        story = f"world {self.seed}: {call} of {kind} got"
        if foreign := found_in(text) - set().union(*right):
            self.findings.foreign.append(f"{story} {foreign} in {text!r}")
        if response.request_info.headers.get("traceparent") != trace:
            self.findings.foreign.append(f"{story} the request of somebody else: {response.request_info}")
        if body is None:
            self.findings.broken += 1
            return
        self.findings.whole += 1
        words = response.headers.getall("X-Secret", [])
        said = response.cookies["said"].value if "said" in response.cookies else None
        is_right = (
            len(words) == len(right)
            and all(word in allowed for word, allowed in zip(words, right, strict=True))
            and body == (b"" if response.method == "HEAD" else f"says{''.join(words)}end".encode())
            and response.reason is not None
            and response.reason.endswith(words[0])
            and said == words[0]
            and response.status == (404 if kind.form == "raised" else 200)
        )
        if not is_right:
            self.findings.wrong.append(f"{story} {text!r}")

    async def call(self, call: Call, comes: float) -> None:
        """Make a call, and look at the answer; sometimes it is given up."""
        await asyncio.sleep(comes)
        choose = self.choose
        self._traces += 1
        self.findings.requests += 1
        trace = f"00-{self._traces:032x}-{'1' * 16}-01" if choose.random() < self.traced else None
        url = URL(f"http://upstream.example/{call.kind}/{call.carries.get('path', NOBODY)}/-")
        patience = choose.choice([0.01, 0.5, 1.5]) if self.tricks and choose.random() < 0.08 else None
        try:
            async with (
                asyncio.timeout(patience),
                self.sessions[call.session].request(
                    call.carries.get("method", "GET"), url, **options_of(call, trace)
                ) as response,
            ):
                if self.tricks and choose.random() < 0.05:
                    self.judge(call, trace, response, None)
                    return
                if choose.random() < 0.5:
                    body = await response.read()
                else:
                    body = b"".join([chunk async for chunk in response.content.iter_chunked(choose.choice([7, 1000]))])
                self.judge(call, trace, response, body)
        except TimeoutError:
            self.findings.given_up += 1


def draw_calls(choose: random.Random, kinds: list[Kind], count: int) -> list[Call]:
    """Some calls for one kind of answer, nearly alike."""
    index = choose.randrange(len(kinds))
    channels = dict.fromkeys([choose.choice(kinds[index].looks), *choose.sample(LOOKS, choose.choice([0, 1, 2]))])
    users = [f"u{number}" for number in choose.sample(range(USERS), choose.choice([1, 2, 2, 3]))]
    through = choose.choice(["gateway", "gateway", "gateway", "twins", "own"])

    def one() -> Call:
        carries: dict[str, str] = {}
        for channel in channels:
            if channel == "line":
                continue  # that is the session's
            value = (
                choose.choice(["GET", "GET", "HEAD"]) if channel == "method" else choose.choice([*users, *users, None])
            )
            if value is not None:
                carries[channel] = value
        if "basic" in carries:
            carries.pop("bearer", None)
        if through != "own":
            return Call("gateway" if through == "gateway" else choose.choice(TWINS), index, carries)
        user = choose.choice(users)
        carries |= {"user": user, "cookie": user}
        return Call(user, index, carries)

    few = [one() for _ in range(choose.choice([1, 2, 2, 3]))]
    return [choose.choice(few) if choose.random() < 0.9 else one() for _ in range(count)]


def random_calls(seed: object, count: int) -> Findings:
    """Sessions with all that they do drawn from the seed."""
    choose = random.Random(f"outgoing {seed}")
    kinds = [
        Kind(
            tuple(choose.sample(LOOKS, choose.choice([1, 1, 2, 3]))), choose.choice(FORMS), choose.choice([0.01, 1, 3])
        )
        for _ in range(8)
    ]
    hunt = Hunt(kinds, choose, seed, traced=choose.choice([0.0, 0.7, 1.0]))
    calls: list[tuple[float, Call]] = []
    now = 0.0
    while len(calls) < count:
        herd = draw_calls(choose, kinds, min(choose.randint(3, 14), count - len(calls)))
        pause = kinds[herd[0].kind].pause
        calls += [(now + choose.choice([0, 0, 0, pause * choose.random(), 2 * pause]), call) for call in herd]
        now += choose.choice([0, 0.01, 0.5, 2, 6])
    return run_virtually(lambda loop: hunt_among(loop, hunt, calls))


async def hunt_among(loop: VirtualLoop, hunt: Hunt, calls: list[tuple[float, Call]]) -> Findings:
    """Make these calls, each at its time, and see to it that nothing is left in the end."""
    choose, ignored = hunt.choose, DEFAULT_IGNORE_HEADERS | {"X-Locale"}

    def far_end(line: str) -> FarEnd:
        answer = Outside(hunt.kinds, choose, line, tricks=hunt.tricks).answer
        return FarEnd(answer, limit=0, force_close=choose.random() < 0.3)

    connector = far_end(NOBODY)
    options: dict[str, Any] = {"max_age": choose.choice([0.5, 5.0]), "max_wait": choose.choice([0.3, 30.0])}
    shared = reduce_client_middleware(ignore_headers=ignored, **options)
    lent: dict[str, Any] = {"connector": connector, "connector_owner": False}
    gateway = ReducingClientSession(cookie_jar=aiohttp.DummyCookieJar(), ignore_headers=ignored, **options, **lent)
    sessions: list[Any] = [gateway]
    reducers = [shared, gateway._reducer]
    hunt.sessions["gateway"] = gateway
    for twin in TWINS:
        hunt.sessions[twin] = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(), middlewares=[shared], connector=far_end(twin)
        )
        sessions.append(hunt.sessions[twin])
    for user in dict.fromkeys(call.session for _, call in calls if call.session not in hunt.sessions):
        jar = aiohttp.CookieJar()
        jar.update_cookies({"session": user}, URL("http://upstream.example"))
        own: Any
        if choose.random() < 0.6:
            own = aiohttp.ClientSession(cookie_jar=jar, middlewares=[shared], **lent)
        else:
            own = ReducingClientSession(cookie_jar=jar, ignore_headers=ignored, **options, **lent)
            reducers.append(own._reducer)
        hunt.sessions[user] = own
        sessions.append(own)
    for reducer in reducers:
        reducer._settings = reducer._settings._replace(clock=loop.time)
    try:
        await asyncio.gather(*[hunt.call(call, comes) for comes, call in calls])
        await asyncio.sleep(20)
        for reducer in reducers:
            assert nothing_is_left(reducer), f"world {hunt.seed}: something was left behind"
            hunt.findings.add_figures(reducer.stats)
    finally:
        for session in sessions:
            await session.close()
        await connector.close()
        await asyncio.sleep(0.1)
    return hunt.findings
