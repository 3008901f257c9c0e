"""The counters behind `/_reduce/stats`: plain integers, counted where it happens, added up when read.

One object may be counted on from several threads; an increment is a few bytecodes under the GIL.

Public are `Bypass` and `Unshared`, the reasons why a request was not reduced, on the server and on the client.
"""

import enum
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, Self

__all__ = ("Bypass", "Unshared")

MAX_REASONS: Final = 100
OTHER: Final = "(other)"
# Names come from applications: longer ones are cut.
_MAX_NAME: Final = 80


class _Reason(enum.StrEnum):
    """A word, as the stats and the log have it; `description` (and `__doc__`) says what it means."""

    description: str

    def __new__(cls, value: str, description: str = "") -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.description = member.__doc__ = description
        return member


class Bypass(_Reason):
    """Why coalescing did not consider a request."""

    METHOD = "method", "Its method is not one of `methods`."
    BODY = "body", "It has a body."
    EXPECT = "expect", "It has an Expect header."
    WEBSOCKET = "websocket", "It asks for an upgrade to a WebSocket."
    EVENT_STREAM = "event-stream", "It accepts `text/event-stream`."
    NEVER_REDUCE = "never_reduce", "Its handler is marked with `@never_reduce`."
    WHEN = "when", "`when(request)` was false."
    KEY_ERROR = "key-error", "`key(request)` raised, or gave something unhashable."
    WHEN_ERROR = "when-error", "`when(request)` raised."
    OPT_OUT = "reduce-false", "An outgoing call with `reduce=False`."
    UPGRADE = "upgrade", "An outgoing request that asks for another protocol."
    UPLOAD_TRACKER = "upload-tracker", "An outgoing call whose upload is watched."
    REQUEST_CLASS = "request-class", "The session's `request_class` sends requests in a way of its own."
    NOT_INNERMOST = (
        "not-innermost",
        "A client middleware stands further in than ours, or aiohttp's own handler cannot be read.",
    )


class Unshared(_Reason):
    """Why an outcome was not handed to a follower. With some, a name is told as well."""

    SET_COOKIE = "set-cookie", "The answer sets a cookie."
    NO_STORE = "no-store", "The answer says `Cache-Control: no-store`."
    NO_CACHE = "no-cache", "The answer says `Cache-Control: no-cache`."
    PRIVATE = "private", "The answer says `Cache-Control: private`, and nothing in the identity says for whom."
    AUTHORIZATION = (
        "authorization",
        "A request bears Authorization, which is not selected, and the answer does not say that it is for others.",
    )
    VARY = (
        "vary",
        "The answer says `Vary: *`, a malformed Vary, or (with its name) a header in which the follower differs.",
    )
    STATUS = "status", "The answer's status (its code is the name) judges the one who asked."
    AUTHENTICATION = "authentication", "The answer has an authentication header (its name)."
    CLEAR_SITE_DATA = "clear-site-data", "The answer has Clear-Site-Data."
    CSP_NONCE = "csp-nonce", "The answer's Content-Security-Policy has a nonce."
    NO_FRESHNESS = (
        "no-freshness",
        "The answer's status (its code is the name) may be for one alone, and it does not say how long it is fresh.",
    )
    STREAM = (
        "stream",
        "The answer is sent in a way that is for one: a WebSocket, sendfile by the handler, a stream of events, "
        "any stream under `handler_cancellation`; or it is a stream that could not be joined any more.",
    )
    ONE_SHOT_BODY = (
        "one-shot-body",
        "The body of the answer can be read only once, and the server runs with `handler_cancellation`.",
    )
    RESPONSE_CLASS = "response-class", "The answer's class sends its body in a way of its own."
    SHARE = "share", "`share(request, response)` was false."
    SHARE_ERROR = "share-error", "`share(request, response)` raised, or gave something that is neither a bool nor None."
    HEADER = "header", "The handler looked at a request header (its name) in which the follower differs."
    REMOTE = "remote", "The handler looked at `request.remote`, in which the follower differs."
    STATE = "state", "The handler looked at an item of the request mapping (its name) in which the follower differs."
    STATE_WRITTEN = (
        "state-written",
        "The handler set, replaced, deleted or changed an item of the request mapping (its name).",
    )
    PASS_MARKER = (
        "pass-marker",
        "Answers of this identity could not be shared a moment ago: the request did not wait first.",
    )


def worded(reason: Unshared, name: str | None) -> str:
    """A reason as the stats and the log have it: with the header, item or status that it is about."""
    return reason.value if name is None else f"{reason.value}: {name[:_MAX_NAME]}"


class Counters:
    """The figures of one route, or of one host.

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
        self.led: int = 0
        self.joined: int = 0
        self.late: int = 0
        self.ended: int = 0
        self.reduced: int = 0
        self.errors: int = 0
        self.takeovers: int = 0
        self.waiting: int = 0
        self.largest_herd: int = 0
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
        """One request was not given another's answer; `name` is the header, item or status that is the reason."""
        text = worded(reason, name)
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
            "bypassed": {str(reason): count for reason, count in self.bypassed.items()},  # printed as words
            "unshared": dict(self.unshared),
            "takeovers": self.takeovers,
            "in_flight": self.in_flight,
            "waiting": self.waiting,
            "largest_herd": self.largest_herd,
        }


def add_up(counters: Iterable[Counters]) -> Counters:
    """The sum of many."""
    total = Counters()
    for one in counters:
        total.add(one)
    return total


class Stats:
    """The figures of one object, since it was made; `counters` has those of each route or host by its name.

    `by` is the word under which they are shown: `routes` or `hosts`.
    """

    def __init__(self, counters: Mapping[str, Counters], by: str = "routes") -> None:
        self._counters = counters
        self._by = by
        self._started = time.monotonic()

    def as_dict(self) -> dict[str, Any]:
        """What `/_reduce/stats` shows; times in seconds."""
        named = dict(self._counters)
        return {
            **add_up(named.values()).as_dict(),
            "uptime": round(time.monotonic() - self._started, 3),
            self._by: {name: counters.as_dict() for name, counters in sorted(named.items())},
        }
