"""The counters behind `/_reduce/stats`: plain integers, counted where it happens, added up when read.

One object may be counted on from several threads; an increment is a few bytecodes under the GIL.
"""

import enum
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final

from aiohttp import web

from ._aiohttp import UNROUTED

MAX_ROUTES: Final = 1_000
MAX_REASONS: Final = 100
OTHER: Final = "(other)"
UNROUTED_NAME: Final = "(unrouted)"


class Bypass(enum.StrEnum):
    """Why coalescing did not consider a request."""

    METHOD = "method"
    """Its method is not one of `methods`."""
    BODY = "body"
    """It has a body."""
    EXPECT = "expect"
    """It has an Expect header."""
    WEBSOCKET = "websocket"
    """It asks for an upgrade to a WebSocket."""
    EVENT_STREAM = "event-stream"
    """It accepts `text/event-stream`."""
    NEVER_REDUCE = "never_reduce"
    """Its handler is marked with `@never_reduce`."""
    WHEN = "when"
    """`when(request)` was false."""
    KEY_ERROR = "key-error"
    """`key(request)` raised, or gave something unhashable."""
    WHEN_ERROR = "when-error"
    """`when(request)` raised."""


class Unshared(enum.StrEnum):
    """Why an outcome was not handed to a follower."""

    SET_COOKIE = "set-cookie"
    """The answer sets a cookie."""
    NO_STORE = "no-store"
    """The answer says `Cache-Control: no-store`."""
    NO_CACHE = "no-cache"
    """The answer says `Cache-Control: no-cache`."""
    PRIVATE = "private"
    """The answer says `Cache-Control: private`, and nothing in the identity says for whom."""
    VARY = "vary"
    """The answer says `Vary: *`, a malformed Vary, or (with its name) a header in which the follower differs."""
    STREAM = "stream"
    """The handler sent the answer itself, or took the connection over."""
    ONE_SHOT_BODY = "one-shot-body"
    """The body of the answer can be read only once."""
    RESPONSE_CLASS = "response-class"
    """The answer's class sends its body in a way of its own."""


class Counters:
    """The figures of one route.

    Counted are requests that `led` a flight at once and that `joined` one, runs of the handler by those who
    had waited first (`late`), runs that `ended`, `errors` (runs that raised anything but an `HTTPException`),
    followers that were answered by another's run (`reduced`). The rest is added up when it is read.
    """

    __slots__ = (
        "bypassed",
        "ended",
        "errors",
        "joined",
        "largest_herd",
        "late",
        "led",
        "reduced",
        "takeovers",
        "unshared",
        "waiting",
    )

    def __init__(self) -> None:
        self.led = 0
        self.joined = 0
        self.late = 0
        self.ended = 0
        self.reduced = 0
        self.errors = 0
        self.takeovers = 0
        self.waiting = 0
        self.largest_herd = 0
        self.bypassed: dict[str, int] = {}
        self.unshared: dict[str, int] = {}

    @property
    def total(self) -> int:
        """Requests that were considered."""
        return self.led + self.joined

    @property
    def executed(self) -> int:
        """Runs of the handler for them."""
        return self.led + self.late

    @property
    def in_flight(self) -> int:
        """Runs that have not ended."""
        return self.executed - self.ended

    def count_bypass(self, reason: Bypass) -> None:
        """One request was not considered."""
        self.bypassed[reason] = self.bypassed.get(reason, 0) + 1

    def count_unshared(self, reason: Unshared, name: str | None = None) -> None:
        """One follower was turned away; `name` is the header that split the herd."""
        text = reason.value if name is None else f"{reason.value}: {name}"
        if text not in self.unshared and len(self.unshared) >= MAX_REASONS:
            text = OTHER
        self.unshared[text] = self.unshared.get(text, 0) + 1

    def add(self, other: "Counters") -> None:
        """Add the other's figures to these."""
        for name in ("led", "joined", "late", "ended", "reduced", "errors", "takeovers", "waiting"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.largest_herd = max(self.largest_herd, other.largest_herd)
        for mine, others in ((self.bypassed, other.bypassed), (self.unshared, other.unshared)):
            for reason, count in others.items():
                mine[reason] = mine.get(reason, 0) + count

    def as_dict(self) -> dict[str, Any]:
        """The figures by name."""
        return {
            "total": self.total,
            "executed": self.executed,
            "reduced": self.reduced,
            "errors": self.errors,
            "bypassed": dict(self.bypassed),
            "unshared": dict(self.unshared),
            "takeovers": self.takeovers,
            "in_flight": self.in_flight,
            "waiting": self.waiting,
            "largest_herd": self.largest_herd,
        }


class Route:
    """What is known of one route: the name of its pattern, its counters, and its methods that may be reduced."""

    __slots__ = ("counters", "name", "reduced_methods", "reference")

    def __init__(self, name: str, counters: Counters, reference: Any) -> None:
        self.name = name
        self.counters = counters
        self.reduced_methods: set[str] = set()
        self.reference = reference


class Routes:
    """The routes that were asked for, by identity, and their counters, by name; bounded."""

    __slots__ = ("by_id", "counters", "unrouted")

    def __init__(self) -> None:
        self.by_id: dict[int, Route] = {}
        self.counters: dict[str, Counters] = {}
        self.unrouted: Route | None = None

    def enter(self, route: web.AbstractRoute) -> Route:
        """The entry of a route that `by_id` does not have yet."""
        if isinstance(route, UNROUTED):
            # A new one for every such request: all of them are one entry.
            if self.unrouted is None:
                self.unrouted = Route(UNROUTED_NAME, self._counters(UNROUTED_NAME), None)
            return self.unrouted
        resource = route.resource
        name = str(UNROUTED_NAME if resource is None else resource.canonical)
        by_id, key = self.by_id, id(route)
        entry = Route(name, self._counters(name), weakref.ref(route, _remove_from(by_id, key)))
        by_id[key] = entry
        return entry

    def _counters(self, name: str) -> Counters:
        if name not in self.counters and len(self.counters) >= MAX_ROUTES:
            name = OTHER
        return self.counters.setdefault(name, Counters())


def _remove_from(by_id: dict[int, Route], key: int) -> Callable[[object], None]:
    def remove(_reference: object) -> None:
        by_id.pop(key, None)

    return remove


def add_up(counters: Iterable[Counters]) -> Counters:
    """The sum of many."""
    total = Counters()
    for one in counters:
        total.add(one)
    return total


class Stats:
    """The figures of one middleware object, since it was made."""

    def __init__(self) -> None:
        self.routes = Routes()
        self._started = time.monotonic()

    def as_dict(self) -> dict[str, Any]:
        """What `/_reduce/stats` shows; times in seconds."""
        routes = dict(self.routes.counters)
        return {
            **add_up(routes.values()).as_dict(),
            "uptime": round(time.monotonic() - self._started, 3),
            "routes": {name: counters.as_dict() for name, counters in sorted(routes.items())},
        }
