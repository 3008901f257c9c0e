"""Leading a flight: what a handler's end means for those who wait.

There are three cases. The handler ended by itself, by a result or an exception: that is the flight's outcome.
The leader left, by a cancellation or a timeout of its own or because its client is gone: that belongs to it
alone, and a follower takes over. Nobody waits and nobody could have been kept waiting: nothing to do.
"""

import logging
from asyncio import CancelledError, Task
from collections.abc import Callable, Hashable
from typing import Any, Final, NamedTuple

from aiohttp import web

from .. import _aiohttp
from ..async_reduce_core import BaseHooks, NamedIdent
from ..async_reduce_core.hooks import guarded
from ..policy import Verdict
from ..stats import Counters, Unshared
from .identity import Selection
from .reads import Notes, Reads, RecordedHeaders
from .replay import Failure, Outcome, Rules, Share, captured
from .routes import Route
from .table import RequestFlight

logger = logging.getLogger("aiohttp_reduce")

_FOR_THE_LOOP: Final = (KeyboardInterrupt, SystemExit, GeneratorExit)


class Settings:
    """What one middleware object was made with, checked."""

    __slots__ = (
        "cache_status",
        "clock",
        "has_key",
        "hooks",
        "ignore_state",
        "kept",
        "late",
        "max_wait",
        "rules",
        "selection",
    )

    def __init__(
        self,
        *,
        selection: Selection,
        share: Share | None,
        ignore_state: frozenset[Hashable],
        max_wait: float,
        cache_status: str | None,
        hooks: BaseHooks | None,
        has_key: bool,
        clock: Callable[[], float],
    ) -> None:
        self.selection = selection
        self.rules = Rules(selection, share, cache_status)
        self.ignore_state = ignore_state
        # What a request must look up anew for us to see that its handler does.
        self.kept = _aiohttp.kept_names(selection.holds_all_of)
        self.max_wait = max_wait
        self.cache_status = cache_status
        self.hooks = hooks
        self.has_key = has_key
        self.clock = clock
        # The connections whose requests had waited and run by themselves now: a further door of the same object,
        # in the same application or a sub-application, must not make them wait once more.
        self.late: set[Any] = set()

    def tell(self, hook: str, request: web.Request, route: Route, *args: Any) -> None:
        """Call one of the five hooks; the identity they see reads `GET http://host/path?query`."""
        if self.hooks is not None:
            shown = NamedIdent(f"{request.method} {request.scheme}://{request.host}{request.raw_path}", route.name)
            guarded(getattr(self.hooks, hook), request, shown, *args)


def left(task: "Task[Any]", cancelling: int, request: web.Request, exception: BaseException | None) -> bool:
    """Whether the handler's end is its leader's alone.

    `cancelling` is what `task.cancelling()` gave when it began to lead: a cancellation is the leader's own
    exactly if that has risen, also where the handler swallowed it.
    """
    if task.cancelling() > cancelling or is_for_the_loop(exception):
        return True
    return isinstance(exception, ConnectionError) and not _aiohttp.connection_is_open(request)


def land(
    settings: Settings,
    flight: RequestFlight,
    generation: int,
    run: RecordedHeaders,
    counters: Counters,
    result: Any,
    *,
    raised: bool,
    last_call: bool,
) -> None:
    """End the flight with what the run's handler returned or raised; `last_call` keeps it open a moment longer."""
    request = run.request
    outcome: Outcome
    try:
        if raised and not isinstance(result, web.HTTPException):
            outcome = Failure(request, result)
        else:
            has_key = settings.has_key and key_of(flight.key_value) != NO_KEY
            outcome = captured(request, result, raised=raised, rules=settings.rules, has_key=has_key)
        attributes = _aiohttp.own_attributes(request)
        if run.notes is not None or attributes:
            notes = run.notes or Notes()
            outcome.add_reads(Reads(notes, request, attributes, settings.selection, settings.ignore_state))
    except Exception:
        # A response class that breaks what aiohttp's classes keep: it is not shared, and nobody waits for it.
        logger.exception("cannot capture %r for others; they run by themselves", type(result))
        outcome = Outcome(request, Verdict(Unshared.RESPONSE_CLASS))
    outcome.herd = herd = len(flight.waiters) + 1
    if herd > 1:
        counters.largest_herd = max(counters.largest_herd, herd)
    if flight.passes and not outcome.for_nobody_else:
        flight.table.passes.delete(*flight.passes)
    linger = last_call and outcome.verdict.reason is None
    if flight.finish(generation, outcome, linger=linger) and linger:
        flight.table.last_call.begin(flight, outcome)


class Keyed(NamedTuple):
    """The value of `key`, and those items of the request mapping that the route's handlers look at."""

    key: Hashable
    items: tuple[Hashable, ...]


def key_of(key_value: Hashable) -> Hashable:
    """The value of `key` alone."""
    return key_value.key if isinstance(key_value, Keyed) else key_value


NO_KEY: Final = (type(None), None)
"""The typed value of a `key` function that gave None."""


def is_for_the_loop(exception: BaseException | None) -> bool:
    """Whether an exception is meant for the event loop, and not for anybody who waits for an answer."""
    return isinstance(exception, _FOR_THE_LOOP)


def is_error(exception: BaseException) -> bool:
    """Whether an exception counts under `errors`: HTTP exceptions are answers, a cancellation is nobody's fault."""
    return not isinstance(exception, (web.HTTPException, CancelledError))
