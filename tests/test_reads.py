"""Section 3, "Who may share: what the handler read": headers, the request mapping, `remote`, and what is learned."""

import asyncio
import copy
import datetime
import enum
import functools
import ipaddress
import itertools
import pickle
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from types import MappingProxyType, SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy, MultiDict, MultiMapping
from yarl import URL

from aiohttp_reduce import reduce_middleware
from aiohttp_reduce.headers import TRACING_HEADERS
from aiohttp_reduce.server.identity import DEFAULT_IGNORE_HEADERS
from aiohttp_reduce.server.routes import MAX_LEARNED, REMEMBERED_FOR, Route
from aiohttp_reduce.stats import Counters
from tests.harness import Start, app_with, eventually
from tests.herds import herds

pytestmark = pytest.mark.filterwarnings("ignore:It is recommended to use web.RequestKey")

A, B = {"User-Agent": "a"}, {"User-Agent": "b"}


def agents(request: web.Request) -> Any:
    return request.headers.get("User-Agent")


# Headers.

LOOKS: dict[str, Callable[[web.Request], Any]] = {
    "get": lambda request: request.headers.get("user-agent"),
    "getitem": lambda request: request.headers["USER-AGENT"],
    "getone": lambda request: request.headers.getone("User-Agent"),
    "getall": lambda request: request.headers.getall("User-Agent"),
    "iterating": lambda request: [request.headers[name] for name in request.headers],
    "items": lambda request: sorted(request.headers.items()),
    "keys": lambda request: [request.headers[name] for name in request.headers.keys()],  # noqa: SIM118
    "values": lambda request: sorted(request.headers.values()),
    "copy": lambda request: request.headers.copy(),
    "dict": lambda request: dict(request.headers),
    "unpacked": lambda request: {**request.headers},
    "CIMultiDict": lambda request: CIMultiDict(request.headers),
    "update": lambda request: MultiDict().update(request.headers),  # type: ignore[func-returns-value]
    "repr": lambda request: repr(request.headers),
    "len": lambda request: len(request.headers),
    "equality": lambda request: request.headers == CIMultiDict(A),
    "match": lambda request: _matched(request),
    "clone": lambda request: request.clone().headers.get("User-Agent"),
    "clone with headers": lambda request: request.clone(headers=request.headers).headers.get("User-Agent"),
    "raw_headers": lambda request: dict(request.raw_headers)[b"User-Agent"],
}


def _matched(request: web.Request) -> list[str]:
    match request.headers:
        case {"User-Agent": agent}:
            return [agent]
    return []


@pytest.mark.parametrize("how", LOOKS)
async def test_a_header_that_was_looked_at_must_be_equal(serve: Start, how: str) -> None:
    look = LOOKS[how]
    herd = await herds(serve, lambda request: str(look(request)))
    runs, replies = await herd.meet([A, B, A, B])
    assert runs == 3
    assert set(herd.unshared) == {"header: user-agent"}
    assert replies[0].text == replies[2].text
    assert replies[1].text == replies[3].text


@pytest.mark.parametrize("how", ["in", "get", "raw_headers"])
async def test_a_header_that_was_looked_for_must_be_absent_too(serve: Start, how: str) -> None:
    def look(request: web.Request) -> Any:
        if how == "in":
            return "DNT" in request.headers
        return request.headers.get("DNT") if how == "get" else len(request.raw_headers)

    herd = await herds(serve, look)
    runs, replies = await herd.meet([{}, {"DNT": "1"}, {}])
    assert runs == 2
    assert replies[0].text == replies[2].text != replies[1].text


async def test_all_lines_of_a_header_that_was_looked_at_count(serve: Start) -> None:
    herd = await herds(serve, lambda request: request.headers.getall("X-A"), headers=("Accept",))
    assert (await herd.meet([[("X-A", "1"), ("X-A", "2")], [("X-A", "1"), ("X-A", "3")]]))[0] == 2


@pytest.mark.parametrize("look", [lambda request: bool(request.headers), lambda request: str(request.cookies)[:1]])
async def test_what_says_nothing_of_what_is_left_out_splits_no_herd(serve: Start, look: Any) -> None:
    herd = await herds(serve, look)
    assert (await herd.meet([{**A, "Cookie": "_ga=1"}, {**B, "Cookie": "_ga=2"}]))[0] == 1


async def test_a_name_in_any_case_is_one_name(serve: Start) -> None:
    herd = await herds(serve, lambda request: request.headers["USER-AGENT"] + request.headers["user-agent"])
    await herd.meet([A, B])
    (route,) = herd.middleware._routes.values()
    assert route.learned == ("user-agent",)


async def test_a_header_that_was_not_looked_at_may_differ(serve: Start) -> None:
    herd = await herds(serve, lambda request: request.headers.get("Accept"))
    assert (await herd.meet([A, B, {"Referer": "/x"}]))[0] == 1
    assert herd.unshared == {}


async def test_headers_that_name_a_trace_are_exempt(serve: Start) -> None:
    def look(request: web.Request) -> str:
        request.headers.get("traceparent")
        request.headers["X-Request-ID"]
        return "x" * len(list(request.headers)) * 0

    herd = await herds(serve, look)
    requests = [{"X-Request-ID": str(number), "traceparent": f"00-{number}"} for number in range(3)]
    assert (await herd.meet(requests))[0] == 1
    await herd.meet([{**requests[0], "DNT": "1"}, requests[1]])  # something is learned
    assert (await herd.meet(requests))[0] == 1


async def test_iterating_looks_at_all_that_the_identity_does_not_hold(serve: Start) -> None:
    herd = await herds(serve, lambda request: [name for name in request.headers], headers=("Accept",))  # noqa: C416
    assert (await herd.meet([{}, {"X-New": "1"}]))[0] == 2
    assert herd.unshared == {"header: x-new": 1}


PROPERTIES: list[tuple[str, dict[str, str], dict[str, str]]] = [
    ("cookies", {"Cookie": "a=1"}, {"Cookie": "a=2"}),
    ("if_none_match", {"If-None-Match": '"a"'}, {"If-None-Match": '"b"'}),
    ("if_match", {"If-Match": '"a"'}, {"If-Match": '"b"'}),
    ("if_modified_since", {}, {"If-Modified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}),
    ("if_unmodified_since", {}, {"If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}),
    ("if_range", {}, {"If-Range": "Thu, 01 Jan 1970 00:00:00 GMT"}),
    ("http_range", {"Range": "bytes=0-1"}, {"Range": "bytes=0-2"}),
    ("forwarded", {"Forwarded": "for=1.1.1.1"}, {"Forwarded": "for=2.2.2.2"}),
    ("keep_alive", {}, {"Connection": "close"}),
    ("content_type", {"Content-Type": "text/a"}, {"Content-Type": "text/b"}),
    ("charset", {"Content-Type": "text/a;charset=a"}, {"Content-Type": "text/a;charset=b"}),
    ("content_length", {}, {"Content-Length": "0"}),
    ("raw_headers", {"X-A": "1"}, {"X-A": "2"}),
    ("message", {"X-A": "1"}, {"X-A": "2"}),
]


@pytest.mark.parametrize("before", [False, True], ids=["first", "after an outer middleware"])
@pytest.mark.parametrize(("name", "one", "other"), PROPERTIES)
@pytest.mark.filterwarnings("ignore:Request.message is deprecated:DeprecationWarning")
async def test_a_property_that_says_a_header_was_looked_at(
    serve: Start, name: str, one: dict[str, str], other: dict[str, str], *, before: bool
) -> None:
    @web.middleware
    async def looks_first(request: web.Request, handler: Any) -> web.StreamResponse:
        if before:
            getattr(request, name)
        response: web.StreamResponse = await handler(request)
        return response

    def look(request: web.Request) -> str:
        looked = getattr(request, name)
        return str(dict(looked) if isinstance(looked, Mapping) else looked)

    herd = await herds(serve, look, headers=("Accept",), outer=[looks_first])
    runs, replies = await herd.meet([one, other])
    assert runs == 2
    assert replies[0].text != replies[1].text or name == "message"


async def test_what_an_outer_middleware_looks_at_counts_not(serve: Start) -> None:
    @web.middleware
    async def log(request: web.Request, handler: Any) -> web.StreamResponse:
        names = [*request.headers], request.remote, request.cookies, request.raw_headers, request.forwarded
        response: web.StreamResponse = await handler(request)
        again = [*request.headers], request.remote, request.cookies, request.raw_headers, request.forwarded
        assert names == again
        return response

    herd = await herds(serve, lambda request: "anything", outer=[log])
    assert (await herd.meet([A, B, {"Cookie": "_ga=1"}]))[0] == 1


async def test_what_an_inner_middleware_looks_at_counts(serve: Start) -> None:
    @web.middleware
    async def robots(request: web.Request, handler: Any) -> web.StreamResponse:
        if "bot" in request.headers["User-Agent"]:
            raise web.HTTPGone
        response: web.StreamResponse = await handler(request)
        return response

    herd = await herds(serve, lambda request: "anything", inner=[robots])
    runs, replies = await herd.meet([A, {"User-Agent": "a bot"}, A])
    assert [reply.status for reply in replies] == [200, 410, 200]
    assert runs == 1  # the robot's own did not come as far as the handler


async def test_exceptions_are_shared_by_the_same_rule(serve: Start, caplog: pytest.LogCaptureFixture) -> None:
    herd = await herds(serve, lambda request: RuntimeError(request.headers["User-Agent"]))
    runs, replies = await herd.meet([A, B, A])
    assert (runs, [reply.status for reply in replies]) == (2, [500] * 3)
    assert herd.unshared == {"header: user-agent": 1}
    herd = await herds(serve, lambda request: web.HTTPNotFound(text=request.headers["User-Agent"]))
    runs, replies = await herd.meet([A, B, A])
    assert (runs, [reply.text for reply in replies]) == (2, ["a", "b", "a"])


async def test_the_recorded_headers_are_as_the_genuine_ones(serve: Start) -> None:
    def look(request: web.Request) -> str:
        lent, genuine = request.headers, request._message.headers
        assert type(lent) is not type(genuine)  # or this test shows nothing
        assert isinstance(lent, CIMultiDictProxy)
        assert isinstance(lent, MultiMapping)
        assert isinstance(lent, Mapping)
        assert lent == genuine
        assert lent == lent
        assert weakref.ref(lent)() is lent
        # (The other way round multidict compares repeated names with the first of each, and finds them unequal.)
        assert CIMultiDict(lent) == CIMultiDict(genuine)
        assert (dict(lent), list(lent.items()), len(lent), repr(lent), bool(lent)) == (
            dict(genuine), list(genuine.items()), len(genuine), repr(genuine), True,
        )  # fmt: skip
        assert lent.getall("X-A") == ["1", "2"]
        assert lent.getall("X-B", None) is None
        assert lent.getone("x-a") == lent.get("x-a", "default") == lent["X-a"] == "1"
        assert lent.get("X-B") is None
        assert lent.get("X-B", "default") == lent.getone("X-B", "default") == "default"
        assert "x-a" in lent
        assert "X-B" not in lent
        assert 5 not in lent  # type: ignore[comparison-overlap]
        assert {**lent}["X-A"] == "1"
        assert lent.copy() == genuine.copy()
        assert type(lent.copy()) is CIMultiDict
        for missing in (lent.__getitem__, lent.getone, lent.getall):
            with pytest.raises(KeyError):
                missing("X-B")
        for act in (hash, pickle.dumps, copy.copy, lambda headers: headers.__setitem__("a", "b")):
            with pytest.raises((TypeError, AttributeError)):
                act(lent)
            with pytest.raises((TypeError, AttributeError)):
                act(genuine)
        with pytest.raises(AttributeError, match="no_such_thing"):
            lent.no_such_thing  # type: ignore[attr-defined]  # noqa: B018
        return "as it should be"

    herd = await herds(serve, look)
    _, replies = await herd.meet([[("X-A", "1"), ("X-A", "2")]])
    assert replies[0].text == "as it should be"


@pytest.mark.parametrize("name", [None, 5, b"Accept", ()])
async def test_a_name_that_is_no_str_does_what_it_does_without_us(serve: Start, name: Any) -> None:
    def look(request: web.Request) -> str:
        try:
            return str(request.headers.get(name))
        except TypeError:
            return "fallback"

    herd = await herds(serve, look)
    runs, replies = await herd.meet([{}, {}, {}])
    assert (runs, {reply.text for reply in replies}) == (1, {look(herd.gate.requests[0])})
    herd = await herds(serve, lambda request: request.headers[name])
    runs, replies = await herd.meet([{}, {}, {}])
    assert (runs, [reply.status for reply in replies]) == (1, [500] * 3)


# `request.remote`, and a `clone()` further out.


def behind_a_proxy(request: web.Request) -> web.Request:
    return request.clone(remote=request.headers["X-Forwarded-For"])


@web.middleware
async def remotes(request: web.Request, handler: Any) -> web.StreamResponse:
    clone = behind_a_proxy(request)
    response: web.StreamResponse = await handler(clone)
    assert clone.remote == request.headers["X-Forwarded-For"]
    return response


ONE, OTHER = {"X-Forwarded-For": "1.1.1.1"}, {"X-Forwarded-For": "2.2.2.2"}


@pytest.mark.parametrize("looked_up_before", [False, True])
async def test_a_remote_set_by_an_outer_clone_must_be_equal_where_it_is_looked_at(
    serve: Start, *, looked_up_before: bool
) -> None:
    @web.middleware
    async def log(request: web.Request, handler: Any) -> web.StreamResponse:
        if looked_up_before:
            assert request.remote in {"1.1.1.1", "2.2.2.2"}
        response: web.StreamResponse = await handler(request)
        return response

    herd = await herds(serve, lambda request: request.remote, outer=[remotes, log])
    runs, replies = await herd.meet([ONE, OTHER, ONE])
    assert (runs, [reply.text for reply in replies]) == (2, ["1.1.1.1", "2.2.2.2", "1.1.1.1"])
    assert herd.unshared == {"remote": 1}
    runs, replies = await herd.meet([ONE, OTHER, ONE])  # learned: kept apart from the start
    assert runs == 2
    assert [reply.collapsed for reply in replies] == [None, None, "aiohttp-reduce; fwd=miss; collapsed"]


async def test_a_remote_alone_splits_a_herd_whose_headers_are_all_equal(serve: Start) -> None:
    numbers = itertools.count()

    @web.middleware
    async def numbered(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request.clone(remote=f"10.0.0.{next(numbers)}"))
        return response

    for look in (lambda request: request.remote, lambda request: str(request.clone().method)):
        herd = await herds(serve, look, outer=[numbered])
        _, replies = await herd.meet([{}, {}])
        assert herd.unshared == {"remote": 1}
        _, replies = await herd.meet([{}, {}])
        assert [reply.collapsed for reply in replies] == [None, None]
    herd = await herds(serve, lambda request: request.headers.get("DNT"), outer=[numbered])
    await herd.meet([{}, {"DNT": "1"}])  # something is learned, but not that
    assert (await herd.meet([{}, {}]))[0] == 1


async def test_a_remote_that_nobody_looks_at_may_differ(serve: Start) -> None:
    herd = await herds(serve, lambda request: "anything", outer=[remotes])
    runs, replies = await herd.meet([ONE, OTHER])
    assert (runs, [reply.text for reply in replies]) == (1, ["anything"] * 2)


async def test_a_remote_of_an_odd_type_counts_as_looked_at(serve: Start) -> None:
    @web.middleware
    async def odd(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request.clone(remote=(request.headers["X-Forwarded-For"],)))  # type: ignore[arg-type]
        return response

    herd = await herds(serve, lambda request: repr(request.remote), outer=[odd])
    runs, replies = await herd.meet([ONE, OTHER])
    assert (runs, [reply.text for reply in replies]) == (2, ["('1.1.1.1',)", "('2.2.2.2',)"])


async def test_the_peers_own_address_is_equal_for_its_connections(serve: Start) -> None:
    herd = await herds(serve, lambda request: request.remote)
    runs, replies = await herd.meet([{}, {}])
    assert (runs, {reply.text for reply in replies}) == (1, {"127.0.0.1"})


async def test_headers_of_an_outer_clone_are_those_that_count(serve: Start) -> None:
    @web.middleware
    async def normalises(request: web.Request, handler: Any) -> web.StreamResponse:
        headers = {"Host": "localhost", "User-Agent": request.headers["User-Agent"].lower()}
        response: web.StreamResponse = await handler(request.clone(headers=headers))
        return response

    herd = await herds(serve, agents, outer=[normalises])
    runs, replies = await herd.meet([{"User-Agent": "X"}, {"User-Agent": "x"}, {"User-Agent": "y"}])
    assert (runs, [reply.text for reply in replies]) == (2, ["x", "x", "y"])


async def test_after_the_handler_the_request_is_as_it_was(serve: Start) -> None:
    seen: list[Any] = []

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        request["kept"] = "value"
        request = request.clone(remote="10.0.0.1")
        before = request.headers, request._headers, request._state, request.remote, request._transport_peername
        try:
            response: web.StreamResponse = await handler(request)
        finally:
            after = request.headers, request._headers, request._state, request.remote, request._transport_peername
            seen.append([one is other for one, other in zip(before, after, strict=True)])
        return response

    def answer(request: web.Request) -> Any:
        assert (request["kept"], request.get("User-Agent"), request.remote) == ("value", None, "10.0.0.1")
        agents(request)
        request.clone()
        request["new"] = 1
        return RuntimeError("broken") if "X-Fail" in request.headers else "text"

    herd = await herds(serve, answer, outer=[outer])
    for headers in ({}, {"X-Fail": "1"}):
        await herd.meet([headers, headers])
    assert seen == [[True] * 5] * 4


# The request mapping.


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class User:
    name: str
    flashes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Tenant:
    name: str


@dataclass(slots=True)
class Cell:
    name: str


class Name(str):
    pass


class Hidden(dict[str, str]):
    def items(self) -> Any:
        return ()


class Slotted(dict[str, str]):
    """A dict that is equal by something beside its contents."""

    __slots__ = ("user",)

    def __init__(self, user: str) -> None:
        super().__init__()
        self.user = user

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and self.user == other.user

    __hash__ = None  # type: ignore[assignment]


class Tolerant:
    """Equal to all of its kind, whatever its attributes."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tolerant)

    __hash__ = None  # type: ignore[assignment]


class Lazy:
    """A proxy that must not be asked for anything (as an unbound one)."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("not bound")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("not bound")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not bound")

    __hash__ = None  # type: ignore[assignment]


class Connection:
    """As a database's: no equality."""


class Contrary:
    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")

    __hash__ = None  # type: ignore[assignment]


def with_item(make: Callable[[web.Request], Any], key: Any = "item") -> Any:
    """An outer middleware that sets an item of the request mapping."""

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        request[key] = make(request)
        response: web.StreamResponse = await handler(request)
        return response

    return outer


def agent(request: web.Request) -> str:
    return str(request.headers["User-Agent"])


SPLITTING: dict[str, Callable[[web.Request], Any]] = {
    "str": agent,
    "bool and int": lambda request: True if agent(request) == "a" else 1,
    "int and float": lambda request: 1 if agent(request) == "a" else 1.0,
    "nested bool and int": lambda request: [True] if agent(request) == "a" else [1],
    "None and object": lambda request: None if agent(request) == "a" else Connection(),
    "two classes of objects": lambda request: Connection() if agent(request) == "a" else asyncio.Lock(),
    "dict": lambda request: {"name": agent(request)},
    "dict in a list": lambda request: [{"name": agent(request)}],
    "tuple": lambda request: ("x", agent(request)),
    "set": lambda request: {agent(request)},
    "deque": lambda request: deque([agent(request)]),
    "bytearray": lambda request: bytearray(agent(request), "ascii"),
    "OrderedDict": lambda request: OrderedDict(name=agent(request)),
    "MultiDict": lambda request: MultiDict(name=agent(request)),
    "URL": lambda request: URL(f"/{agent(request)}"),
    "dataclass": lambda request: User(agent(request)),
    "frozen dataclass": lambda request: Tenant(agent(request)),
    "enumeration": lambda request: Colour.RED if agent(request) == "a" else Colour.BLUE,
    "class": lambda request: int if agent(request) == "a" else str,
    "function": lambda request: agent if agent(request) == "a" else agents,
    "time zone": lambda request: ZoneInfo("Europe/Paris" if agent(request) == "a" else "Asia/Tokyo"),
    "time zones of other names": lambda request: datetime.timezone(datetime.timedelta(0), agent(request)),
    "one instant in two zones": lambda request: NOON if agent(request) == "a" else NOON.astimezone(EAST),
    "decimals that are written differently": lambda request: Decimal("1.0" if agent(request) == "a" else "1.00"),
    "negative zero": lambda request: 0.0 if agent(request) == "a" else -0.0,
    "partial": lambda request: functools.partial(print, agent(request)),
    "exception": lambda request: ValueError(agent(request)),
    "mapping proxy": lambda request: MappingProxyType({"name": agent(request)}),
    "subclass of str": lambda request: Name(agent(request)),
    "dict that shows no items": lambda request: Hidden(name=agent(request)),
    "subclass of dict with slots": lambda request: Slotted(agent(request)),
    "ordered dict in another order": lambda request: OrderedDict.fromkeys("ab" if agent(request) == "a" else "ba"),
    "dataclass with slots": lambda request: Cell(agent(request)),
    "namespace": lambda request: SimpleNamespace(name=agent(request)),
    "large bytearray": lambda request: bytearray(100_000),
    "tuple in a dict": lambda request: {"x": (True,) if agent(request) == "a" else (1,)},
    "frozen set": lambda request: frozenset({True if agent(request) == "a" else 1}),
    "keys of a dict": lambda request: {True if agent(request) == "a" else 1: 1},
    "list and tuple": lambda request: {"x": [1] if agent(request) == "a" else (1,)},
    "multidict in another order": lambda request: MultiDict(
        [("x", "1"), ("x", "2")] if agent(request) == "a" else [("x", "2"), ("x", "1")]
    ),
    "decimal and fraction": lambda request: [Decimal(1) if agent(request) == "a" else Fraction(1)],
    "clones": lambda request: [request.clone()],
    "modules": lambda request: copy if agent(request) == "a" else pickle,
    "not comparable": lambda request: Contrary(agent(request)),
    "too large": lambda request: list(range(1000)),
    "an object within a dict": lambda request: {"connection": Connection()},
    "a request before its clone": lambda request: {"request": request.clone()},
}
JOINING: dict[str, Callable[[web.Request], Any]] = {
    "str": lambda request: "x",
    "connection": lambda request: Connection(),
    "dict": lambda request: {"a": [1, {"b": (2.5, None)}], "c": {"d"}},
    "dict in another order": lambda request: dict(sorted({"a": 1, "b": 2}.items(), reverse=agent(request) == "a")),
    "dataclass": lambda request: User("x", ["flash"]),
    "frozen dataclass": lambda request: Tenant("x"),
    "enumeration": lambda request: Colour.RED,
    "request": lambda request: request,
    "template context": lambda request: {"request": request, "app": request.app, "user": "x"},
    "not a number": lambda request: float("nan"),
    "time zone": lambda request: ZoneInfo("Europe/Paris"),
    "instant": lambda request: datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC),
    "partial": lambda request: functools.partial(print, "x"),
    "exception": lambda request: ValueError("x"),
    "mapping proxy": lambda request: MappingProxyType({"name": "x"}),
    "subclass of str": lambda request: Name("x"),
    "dataclass with slots": lambda request: Cell("x"),
    "namespace": lambda request: SimpleNamespace(name="x"),
    "URL": lambda request: URL("/x"),
    "path": lambda request: PurePath("/x") / "y",
    "date": lambda request: datetime.date(2000, 1, 1),
    "proxy that is not bound": lambda request: Lazy(),
    "equal by its own word": lambda request: Tolerant(agent(request)),
    "one object for all": lambda request: LARGE,
}
NOON = datetime.datetime(2000, 1, 1, 12, tzinfo=datetime.UTC)
EAST = datetime.timezone(datetime.timedelta(hours=2))
LARGE = {number: [] for number in range(1000)}  # type: ignore[var-annotated]


@pytest.mark.parametrize("kind", SPLITTING)
async def test_an_item_that_was_looked_at_must_be_equal(serve: Start, kind: str) -> None:
    herd = await herds(serve, lambda request: repr(request["item"])[:20], outer=[with_item(SPLITTING[kind])])
    runs, _ = await herd.meet([A, B])
    assert (runs, herd.unshared) == (2, {"state: item": 1})


@pytest.mark.parametrize("kind", JOINING)
async def test_an_item_that_is_equal_may_be_shared(serve: Start, kind: str) -> None:
    herd = await herds(serve, lambda request: str(type(request["item"])), outer=[with_item(JOINING[kind])])
    for _ in range(2):  # also when it has been learned
        runs, _ = await herd.meet([A, B])
        assert (runs, herd.unshared) == (1, {})


@pytest.mark.parametrize("look", [len, list, lambda request: sorted(map(str, request.values()))])
async def test_all_items_that_are_equal_may_be_shared(serve: Start, look: Callable[[web.Request], Any]) -> None:
    herd = await herds(serve, lambda request: str(look(request)), outer=[with_item(lambda request: {"x": [1]})])
    assert (await herd.meet([A, B]))[0] == 1


async def test_an_item_that_was_not_looked_at_may_differ(serve: Start) -> None:
    herd = await herds(serve, lambda request: "anything", outer=[with_item(agent)])
    assert (await herd.meet([A, B]))[0] == 1


async def test_an_item_alone_splits_a_herd_whose_headers_are_all_equal(serve: Start) -> None:
    numbers = itertools.count()
    for look in (
        lambda request: request["item"],
        lambda request: request.clone()["item"],
        lambda request: [key for key in request] and request["item"],  # noqa: C416
    ):
        herd = await herds(serve, look, outer=[with_item(lambda request: next(numbers))])
        assert (await herd.meet([{}, {}]))[0] == 2
        assert herd.unshared == {"state: item": 1}


async def test_an_item_that_only_the_leader_has_splits_the_herd(serve: Start) -> None:
    @web.middleware
    async def knows_a(request: web.Request, handler: Any) -> web.StreamResponse:
        if agent(request) == "a":
            request["item"] = "a"
        response: web.StreamResponse = await handler(request)
        return response

    herd = await herds(serve, lambda request: request.get("item"), outer=[knows_a])
    for _ in range(2):
        runs, replies = await herd.meet([A, B])
        assert (runs, [reply.text for reply in replies]) == (2, ["a", "None"])


LOOKS_AT_ITEMS: dict[str, Callable[[web.Request], Any]] = {
    "getitem": lambda request: request["item"],
    "get": lambda request: request.get("item"),
    "in": lambda request: "item" in request,
    "iterating": lambda request: [key for key in request],  # noqa: C416
    "items": lambda request: list(request.items()),
    "len": lambda request: len(request),
    "list": lambda request: list(request),
    "get of a default": lambda request: request.get("other", request.get("item")),
    "clone": lambda request: request.clone().get("item"),
}


@pytest.mark.parametrize("how", LOOKS_AT_ITEMS)
async def test_however_an_item_is_looked_at(serve: Start, how: str) -> None:
    herd = await herds(serve, lambda request: str(LOOKS_AT_ITEMS[how](request)), outer=[with_item(agent)])
    runs, _ = await herd.meet([A, B])
    assert runs == 2


@pytest.mark.parametrize("how", ["getitem", "get", "in", "iterating", "len"])
async def test_an_item_that_the_leader_has_not_must_be_absent(serve: Start, how: str) -> None:
    @web.middleware
    async def knows_b(request: web.Request, handler: Any) -> web.StreamResponse:
        if agent(request) == "b":
            request["item"] = "b"
        response: web.StreamResponse = await handler(request)
        return response

    def look(request: web.Request) -> Any:
        try:
            return LOOKS_AT_ITEMS[how](request)
        except KeyError:
            return None

    herd = await herds(serve, look, outer=[knows_b])
    runs, _ = await herd.meet([A, B, A])
    assert (runs, herd.unshared) == (2, {"state: item": 1})


WRITES: dict[str, Callable[[web.Request], Any]] = {
    "set": lambda request: request.__setitem__("new", 1),
    "replaced": lambda request: request.__setitem__("item", request["item"]),
    "deleted": lambda request: request.__delitem__("item"),
    "popped": lambda request: request.pop("item"),
    "set and deleted": lambda request: (request.__setitem__("new", 1), request.__delitem__("new")),
    "setdefault": lambda request: request.setdefault("new", 1),
    "update": lambda request: request.update({"new": 1}),
    "changed in place": lambda request: request["item"].clear(),
    "changed in place and looked at again": lambda request: (request["item"].clear(), request["item"]),
}


@pytest.mark.parametrize(
    "make",
    [
        lambda: deque([1]),
        lambda: bytearray(b"x"),
        lambda: MultiDict(x="1"),
        lambda: CIMultiDict(x="1"),
        lambda: {"x"},
        lambda: OrderedDict(x=1),
    ],
)
async def test_each_kind_of_container_that_is_changed_in_place(serve: Start, make: Callable[[], Any]) -> None:
    def answer(request: web.Request) -> str:
        request["item"].clear()
        return "text"

    herd = await herds(serve, answer, outer=[with_item(lambda request: make())])
    assert (await herd.meet([{}, {}]))[0] == 2
    assert herd.unshared == {"state-written: item": 1}
    herd = await herds(serve, lambda request: str(request["item"]), outer=[with_item(lambda request: make())])
    assert (await herd.meet([{}, {}]))[0] == 1


async def test_every_item_that_was_written_counts(serve: Start) -> None:
    def answer(request: web.Request) -> str:
        request["new"] = 1
        request["timing"] = 2
        return "text"

    herd = await herds(serve, answer, ignore_state=("timing",))
    assert (await herd.meet([{}, {}]))[0] == 2
    assert herd.unshared == {"state-written: new": 1}


async def test_an_ignored_item_may_be_changed_in_place(serve: Start) -> None:
    herd = await herds(
        serve,
        lambda request: str(request["item"].clear()),
        outer=[with_item(lambda request: [agent(request)])],
        ignore_state=("item",),
    )
    for _ in range(2):
        assert (await herd.meet([A, B]))[0] == 1


@pytest.mark.parametrize("how", WRITES)
async def test_a_handler_that_writes_an_item_makes_its_answer_unshared(serve: Start, how: str) -> None:
    herd = await herds(serve, lambda request: str(WRITES[how](request)), outer=[with_item(lambda request: {"x": 1})])
    runs, _ = await herd.meet([{}, {}, {}])
    assert runs == 3
    ((reason, count),) = herd.unshared.items()
    assert (reason.split(":")[0], count) == ("state-written", 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda user: user.flashes.clear(),
        lambda user: setattr(user, "name", "y"),
        lambda user: setattr(user, "more", "y"),
    ],
)
async def test_an_object_with_equality_that_is_changed_in_place_makes_the_answer_unshared(
    serve: Start, change: Callable[[User], None]
) -> None:
    def flashes(request: web.Request) -> User:
        # Only one has a message to be shown once; afterwards all are equal.
        return User("x", ["Saved!"] if agent(request) == "a" else [])

    def answer(request: web.Request) -> str:
        user = request["item"]
        text = " ".join(user.flashes)
        change(user)
        return text

    herd = await herds(serve, answer, outer=[with_item(flashes)])
    runs, replies = await herd.meet([A, B])
    assert (runs, [reply.text for reply in replies]) == (2, ["Saved!", ""])


@dataclass(frozen=True)
class Frozen:
    flashes: list[str]


@dataclass(slots=True)
class WithSlots:
    flashes: list[str]


@pytest.mark.parametrize("kind", [User, Frozen, WithSlots, "large", "dict", "in a tuple"])
async def test_a_message_that_is_shown_once_is_not_shown_to_another(serve: Start, kind: Any) -> None:
    """The handler takes it out of an item: afterwards, the leader's item equals the follower's."""

    def item(request: web.Request) -> Any:
        flashes = ["Saved!"] if agent(request) == "a" else []
        if kind == "large":
            return [flashes, *range(1000)]
        if kind in {"dict", "in a tuple"}:
            return {0: flashes} if kind == "dict" else (flashes,)
        return kind("x", flashes) if kind is User else kind(flashes)

    def answer(request: web.Request) -> str:
        value = request["item"]
        flashes = value[0] if isinstance(kind, str) else value.flashes
        text = " ".join(flashes)
        flashes.clear()
        return text

    herd = await herds(serve, answer, outer=[with_item(item)])
    runs, replies = await herd.meet([A, B])
    assert (runs, [reply.text for reply in replies]) == (2, ["Saved!", ""])


async def test_what_an_outer_middleware_does_to_an_item_afterwards_counts_not(serve: Start) -> None:
    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        request["item"] = {"name": request.headers["User-Agent"]}
        try:
            response: web.StreamResponse = await handler(request)
        finally:
            request["item"].update(name="b", ended=True)
        return response

    herd = await herds(serve, lambda request: request["item"]["name"], outer=[outer])
    runs, replies = await herd.meet([A, B])
    assert (runs, [reply.text for reply in replies]) == (2, ["a", "b"])
    herd = await herds(serve, lambda request: request["item"]["name"], outer=[outer])
    assert (await herd.meet([A, A, A]))[0] == 1


async def test_an_attribute_that_an_outer_middleware_gave_the_request_must_be_equal(serve: Start) -> None:
    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        vars(request)["country"] = request.headers["User-Agent"]
        response: web.StreamResponse = await handler(request)
        return response

    herd = await herds(serve, lambda request: vars(request)["country"], outer=[outer])
    runs, replies = await herd.meet([A, B, A])
    assert (runs, [reply.text for reply in replies]) == (2, ["a", "b", "a"])
    assert herd.unshared == {"state: country": 1}


@dataclass
class Person:
    name: str
    loaded: int = field(default=0, compare=False)

    @functools.cached_property
    def upper(self) -> str:
        return self.name.upper()


@dataclass(frozen=True)
class Place:
    name: str

    @functools.cached_property
    def upper(self) -> str:
        return self.name.upper()


@pytest.mark.parametrize("kind", [Person, Place])
async def test_what_an_object_computes_when_it_is_asked_is_no_change(serve: Start, kind: Any) -> None:
    numbers = itertools.count()

    def item(request: web.Request) -> Any:
        return Person("x", next(numbers)) if kind is Person else Place("x")

    herd = await herds(serve, lambda request: str(request["item"].upper), outer=[with_item(item)])
    for _ in range(2):
        assert (await herd.meet([A, B, A]))[0] == 1


async def test_a_network_that_computes_its_broadcast_address_is_no_change(serve: Start) -> None:
    herd = await herds(
        serve,
        lambda request: str(request["item"].broadcast_address),
        outer=[with_item(lambda request: ipaddress.ip_network("10.0.0.0/8"))],
    )
    assert (await herd.meet([A, B, A]))[0] == 1


async def test_one_who_differs_does_not_teach_to_split_by_an_item(serve: Start) -> None:
    numbers = itertools.count()
    herd = await herds(
        serve,
        lambda request: f"{request['item'].name} {agent(request)}",
        outer=[with_item(lambda request: Person("x", next(numbers)))],
    )
    assert (await herd.meet([A, A, B, A]))[0] == 2
    assert (await herd.meet([A, A, A, A]))[0] == 1


async def test_an_object_that_all_requests_share_may_change(serve: Start) -> None:
    shared_by_all = {"hits": 0}

    def answer(request: web.Request) -> str:
        request["item"]["hits"] += 1
        return "text"

    herd = await herds(serve, answer, outer=[with_item(lambda request: shared_by_all)])
    assert (await herd.meet([A, B, A]))[0] == 1


async def test_an_attribute_that_only_a_follower_has_splits_the_herd(serve: Start) -> None:
    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        if agent(request) == "b":
            vars(request)["vip"] = True
        response: web.StreamResponse = await handler(request)
        return response

    herd = await herds(serve, lambda request: "vip" if "vip" in vars(request) else "plain", outer=[outer])
    runs, replies = await herd.meet([A, A, B])
    assert (runs, [reply.text for reply in replies]) == (2, ["plain", "plain", "vip"])
    assert herd.unshared == {"state: vip": 1}


class Meta(type):
    """A class of classes that cannot be compared."""

    def __eq__(cls, other: object) -> bool:
        raise RuntimeError("not comparable")

    __hash__ = type.__hash__


async def test_what_cannot_be_compared_is_given_to_the_handler_all_the_same(serve: Start) -> None:
    odd = Meta("Odd", (), {})
    outer = with_item(lambda request: odd())
    herd = await herds(serve, lambda request: str(type(request["item"]) is odd), outer=[outer])
    _, replies = await herd.meet([{}, {}])
    assert [reply.text for reply in replies] == ["True", "True"]


async def test_ignore_state_names_items_that_may_be_looked_at_and_written(serve: Start) -> None:
    def answer(request: web.Request) -> str:
        request["timing"] = "x"
        return str(len(request["item"]))

    herd = await herds(serve, answer, outer=[with_item(agent)], ignore_state=("timing", "item"))
    assert (await herd.meet([A, B]))[0] == 1


async def test_ignore_state_holds_where_all_items_are_looked_at(serve: Start) -> None:
    herd = await herds(
        serve,
        lambda request: str(len(request.clone())),
        outer=[with_item(lambda request: object())],
        ignore_state=("item",),
    )
    assert (await herd.meet([{}, {}]))[0] == 1


@pytest.mark.skipif(not hasattr(web, "RequestKey"), reason="web.RequestKey came with aiohttp 3.14")
async def test_ignore_state_and_figures_take_request_keys(serve: Start) -> None:
    key = web.RequestKey("item", str)
    herd = await herds(serve, lambda request: request[key], outer=[with_item(agent, key)], ignore_state=(key,))
    assert (await herd.meet([A, B]))[0] == 1
    herd = await herds(serve, lambda request: request[key], outer=[with_item(agent, key)])
    assert (await herd.meet([A, B]))[0] == 2
    assert [reason.endswith("item") for reason in herd.unshared] == [True]


# What is learned.


async def test_two_herds_in_a_row_on_a_route_that_reads_user_agent(serve: Start) -> None:
    herd = await herds(serve, agents)
    runs, replies = await herd.meet([A, B, A, B, A, B])
    assert (runs, [reply.text for reply in replies]) == (4, ["a", "b"] * 3)  # the first pays for finding out
    runs, replies = await herd.meet([A, B, A, B, A, B])
    assert (runs, [reply.text for reply in replies]) == (2, ["a", "b"] * 3)
    assert [reply.collapsed for reply in replies] == [None] * 2 + ["aiohttp-reduce; fwd=miss; collapsed"] * 4


async def test_one_odd_request_teaches_nothing(serve: Start) -> None:
    """A handler that looks at all there is on an error path: herds on the same route go on as before."""

    def look(request: web.Request) -> Any:
        return (sorted(request.headers.items()), request.remote) if request.query_string else "usual"

    herd = await herds(serve, look)
    await herd.meet([A], "/?odd")
    assert (await herd.meet([A, B]))[0] == 1
    await herd.meet([A, B], "/?odd")  # two that met, and differed, do
    assert (await herd.meet([A, B]))[0] == 2


async def test_what_is_learned_is_forgotten_after_a_minute(serve: Start) -> None:
    herd = await herds(serve, agents, outer=[with_item(agent)])
    await herd.meet([A, B])
    (route,) = herd.middleware._routes.values()
    assert route.learned == ("user-agent",)
    assert 0 < route.until - time.monotonic() <= REMEMBERED_FOR
    route.until -= REMEMBERED_FOR
    runs, replies = await herd.meet([A, B])
    assert (runs, [reply.text for reply in replies]) == (2, ["a", "b"])
    assert replies[1].collapsed == "aiohttp-reduce; fwd=miss; collapsed=?0"  # they waited together once more
    assert (await herd.meet([A, B]))[1][1].collapsed is None


async def test_one_route_does_not_teach_another(serve: Start) -> None:
    middleware = reduce_middleware()
    first = await herds(serve, agents, middleware=middleware)
    await first.meet([A, B])
    second = await herds(serve, lambda request: "anything", middleware=middleware)
    assert (await second.meet([A, B]))[0] == 1


async def test_items_are_learned_by_what_they_are_at_arrival(serve: Start) -> None:
    herd = await herds(serve, lambda request: request["item"]["name"], outer=[with_item(SPLITTING["dict"])])
    await herd.meet([A, B])
    assert herd.unshared == {"state: item": 1}
    runs, replies = await herd.meet([A, B, A, B])
    assert (runs, [reply.text for reply in replies]) == (2, ["a", "b", "a", "b"])
    assert herd.unshared == {"state: item": 1}


async def test_all_that_split_a_herd_is_learned_at_once(serve: Start) -> None:
    names = sorted(DEFAULT_IGNORE_HEADERS - TRACING_HEADERS - {"Connection", "Keep-Alive", "Upgrade"})
    herd = await herds(serve, lambda request: str([request.headers.get(name) for name in names]))
    requests = [{name: "1"} for name in names[:6]]
    runs, _ = await herd.meet(requests)
    assert runs == 6
    _, replies = await herd.meet(requests)
    assert [reply.collapsed for reply in replies] == [None] * 6


def test_what_is_learned_first_stays() -> None:
    route = Route("/", Counters(), None)
    route.learn(["a"], ["b"], now=0.0)
    route.learn([f"x-{number}" for number in range(100)], range(100), now=1.0)
    assert (route.learned[:2], route.learned_items[:2]) == (("a", "x-0"), ("b", 0))
    assert (len(route.learned), len(route.learned_items)) == (MAX_LEARNED, MAX_LEARNED)
    assert route.remembers(59.0)
    assert not route.remembers(60.0)
    assert (route.learned, route.learned_items) == ((), ())


async def test_what_is_learned_is_bounded(serve: Start) -> None:
    def look(request: web.Request) -> str:
        for number in range(1000):
            request.headers.get(f"X-{request.query_string}-{number}")
            request.get(f"{request.query_string}-{number}")
        return agent(request)

    herd = await herds(serve, look, headers=("Accept",))
    for number in range(5):
        await herd.meet([A, B], f"/?{number}")
    (route,) = herd.middleware._routes.values()
    assert (len(route.learned), len(route.learned_items)) == (MAX_LEARNED, 0)
    runs, replies = await herd.meet([A, B])  # and still compared at the end
    assert (runs, [reply.text for reply in replies]) == (2, ["a", "b"])


# Several doors.


async def test_what_is_looked_at_behind_a_further_door_is_seen_at_the_first(serve: Start) -> None:
    """Two middleware objects, one behind the other: what the inner one's leader reads splits the outer's herd."""
    inner = reduce_middleware(headers=("Accept",), stats_path=None)
    herd = await herds(serve, lambda request: f"{agents(request)} {request.remote}", inner=[inner])
    runs, replies = await herd.meet([A, B, A])
    assert (runs, [reply.text for reply in replies]) == (2, ["a 127.0.0.1", "b 127.0.0.1", "a 127.0.0.1"])


async def test_what_is_read_for_a_follower_of_a_further_door_counts_at_the_first(serve: Start) -> None:
    """One follows at the inner door and leads at the outer one: its own followers must be as the inner leader."""
    inner = reduce_middleware(headers=(), stats_path=None)
    outer = reduce_middleware(headers=("X-Group",))
    herd = await herds(
        serve, lambda request: f"{agents(request)} {request.get('item')}", middleware=outer, inner=[inner]
    )
    # The first leads at both doors, the second at the outer one alone, and the third follows it there.
    sent = [await herd.server.send("/", {"X-Group": "1", **A})]
    await herd.gate.entered(1)
    sent.append(await herd.server.send("/", {"X-Group": "2", **A}))
    await eventually(lambda: inner.stats["waiting"] == 1)
    sent.append(await herd.server.send("/", {"X-Group": "2", **B}))
    await eventually(lambda: outer.stats["waiting"] == 1)
    herd.gate.open()
    assert [(await one.receive()).text for one in sent] == ["a None", "a None", "b None"]
    assert (inner.stats["reduced"], outer.stats["reduced"]) == (1, 0)
    assert herd.unshared == {"header: user-agent": 1}


async def test_what_is_read_for_a_follower_counts_at_each_door_further_out(serve: Start) -> None:
    inner = reduce_middleware(headers=(), stats_path=None)
    middle = reduce_middleware(headers=("X-Group",), stats_path=None)
    outer = reduce_middleware(headers=("X-Group",))
    herd = await herds(serve, agents, middleware=outer, inner=[middle, inner])
    sent = [await herd.server.send("/", {"X-Group": "1", **A})]
    await herd.gate.entered(1)
    sent.append(await herd.server.send("/", {"X-Group": "2", **A}))
    await eventually(lambda: inner.stats["waiting"] == 1)
    sent.append(await herd.server.send("/", {"X-Group": "2", **B}))
    await eventually(lambda: outer.stats["waiting"] == 1)
    herd.gate.open()
    assert [(await one.receive()).text for one in sent] == ["a", "a", "b"]
    assert herd.unshared == {"header: user-agent": 1}


@pytest.mark.parametrize("how", ["item", "all items", "keys", "header of the inner identity"])
async def test_items_and_headers_of_the_inner_identity_count_at_the_first_door_too(serve: Start, how: str) -> None:
    @web.middleware
    async def numbers_the_third(request: web.Request, handler: Any) -> web.StreamResponse:
        request["item"] = request.headers.get("X-Third", "0")
        if how == "keys" and "X-Third" in request.headers:
            request["other"] = "3"
        response: web.StreamResponse = await handler(request)
        return response

    def look(request: web.Request) -> str:
        if how == "header of the inner identity":
            return str(request.headers.get("X-Third"))
        if how == "keys":
            return str([key for key in request])  # noqa: C416
        return str(request["item"] if how == "item" else sorted(request.values()))

    inner = reduce_middleware(headers=("X-Third",), stats_path=None)
    outer = reduce_middleware(headers=("X-Group",))
    herd = await herds(serve, look, middleware=outer, inner=[inner], outer=[numbers_the_third])
    sent = [await herd.server.send("/", {"X-Group": "1"})]
    await herd.gate.entered(1)
    sent.append(await herd.server.send("/", {"X-Group": "2"}))
    await eventually(lambda: inner.stats["waiting"] == 1)
    sent.append(await herd.server.send("/", {"X-Group": "2", "X-Third": "3"}))
    await eventually(lambda: outer.stats["waiting"] == 1)
    herd.gate.open()
    first, second, third = [(await one.receive()).text for one in sent]
    assert first == second != third
    assert inner.stats["reduced"] == 1


async def test_what_is_looked_up_between_two_doors_is_seen_at_the_first(serve: Start) -> None:
    @web.middleware
    async def cookies(request: web.Request, handler: Any) -> web.StreamResponse:
        assert request.cookies == {}
        response: web.StreamResponse = await handler(request)
        return response

    @web.middleware
    async def client(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        response.headers["X-Client"] = str(request.remote)
        return response

    inner = reduce_middleware(headers=("Accept",), stats_path=None)
    herd = await herds(serve, lambda request: "text", outer=[remotes, cookies], inner=[client, inner])
    _, replies = await herd.meet([ONE, OTHER])
    assert [reply.headers["X-Client"] for reply in replies] == ["1.1.1.1", "2.2.2.2"]


async def test_lookups_that_an_inner_door_makes_up_for_are_seen(serve: Start) -> None:
    """What an inner door makes the request forget, and what its handler looks up, are equally many."""

    @web.middleware
    async def cookies(request: web.Request, handler: Any) -> web.StreamResponse:
        assert request.cookies is not None
        response: web.StreamResponse = await handler(request)
        return response

    inner = reduce_middleware(headers=("Accept",), stats_path=None)
    herd = await herds(serve, lambda request: str(request.raw_headers), outer=[cookies], inner=[inner])
    _, replies = await herd.meet([A, B])
    assert replies[0].text != replies[1].text


async def test_an_outer_middleware_that_runs_a_request_twice_at_once(serve: Start) -> None:
    """Each attempt has a flight of its own, by `key`; the first to end does not end what the other notes."""
    attempt: ContextVar[int] = ContextVar("attempt")
    slow = asyncio.Event()
    texts: list[str] = []

    @web.middleware
    async def hedges(request: web.Request, handler: Any) -> Any:
        async def run(number: int) -> Any:
            attempt.set(number)
            return await handler(request)

        both = [asyncio.create_task(run(number)) for number in range(2)]
        first, second = await both[0], await both[1]
        texts.append(second.text)
        assert type(request.headers) is CIMultiDictProxy
        assert type(request._state) is dict
        return first

    def key(request: web.Request) -> int:
        return attempt.get()

    async def handler(request: web.Request) -> web.Response:
        if attempt.get() == 0:
            return web.Response(text="quick")
        await slow.wait()
        return web.Response(text=request.headers["User-Agent"])

    middleware = reduce_middleware(key=key)
    server = await serve(app_with(handler, middleware, outer=[hedges]), middleware=middleware)
    sent = [await server.send("/", headers) for headers in (A, B)]
    await eventually(lambda: server.figure("waiting") == 1)
    slow.set()
    for one in sent:
        assert (await one.receive()).text == "quick"
    assert sorted(texts) == ["a", "b"]


async def test_a_run_that_an_inner_middleware_leaves_behind(serve: Start) -> None:
    slow = asyncio.Event()
    requests: list[web.Request] = []

    @web.middleware
    async def shields(request: web.Request, handler: Any) -> web.StreamResponse:
        requests.append(request)
        inner = asyncio.ensure_future(handler(request))
        try:
            return await asyncio.wait_for(asyncio.shield(inner), 0.01)
        except TimeoutError:
            return web.Response(text="later")

    async def handler(request: web.Request) -> web.Response:
        await slow.wait()
        return web.Response(text=str(agents(request)))

    inner_door = reduce_middleware(stats_path=None)
    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware, inner=[shields, inner_door]), middleware=middleware)
    assert (await server.get("/", A)).text == "later"
    slow.set()
    await eventually(lambda: inner_door.stats["in_flight"] == 0)
    assert type(requests[0].headers) is CIMultiDictProxy
    assert type(requests[0]._state) is dict


async def test_root_and_sub_application_with_one_object(serve: Start) -> None:
    middleware = reduce_middleware()

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=str(agents(request)))

    sub = web.Application(middlewares=[middleware])
    sub.router.add_get("/", handler)
    app = web.Application(middlewares=[middleware])
    app.add_subapp("/sub", sub)
    server = await serve(app, middleware=middleware)
    texts = [(await server.get("/sub/", headers)).text for headers in (A, B, A)]
    assert texts == ["a", "b", "a"]
    await eventually(server.nothing_is_left)
