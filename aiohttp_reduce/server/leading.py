"""Leading a flight: what a handler's end means for those who wait.

There are three cases. The handler ended by itself, by a result or an exception: that is the flight's outcome.
The leader left, by a cancellation or a timeout of its own or because its client is gone: that belongs to it
alone, and a follower takes over. Nobody waits and nobody could have been kept waiting: nothing to do.
"""

from asyncio import CancelledError, Task, current_task
from collections.abc import Callable, Hashable
from typing import Any, Final, NamedTuple

from aiohttp import web

from .. import _aiohttp
from ..async_reduce_core import PENDING, BaseHooks, NamedIdent
from ..async_reduce_core.hooks import guarded
from .identity import Selection
from .last_call import LAST_CALL_AFTER
from .reads import RecordedHeaders
from .replay import Rules, Share
from .routes import Route

_FOR_THE_LOOP: Final = (KeyboardInterrupt, SystemExit, GeneratorExit)


class Settings:
    """What one middleware object was made with, checked."""

    __slots__ = (
        "cache_status",
        "clock",
        "has_key",
        "hooks",
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
        self.selection: Selection = selection
        self.rules: Rules = Rules(selection, share, cache_status, ignore_state)
        # What a request must look up anew for us to see that its handler does.
        self.kept: frozenset[str] = _aiohttp.kept_names(selection.holds_all_of)
        self.max_wait: float = max_wait
        self.cache_status: str | None = cache_status
        self.hooks: BaseHooks | None = hooks
        self.has_key: bool = has_key
        self.clock: Callable[[], float] = clock
        # The connections whose requests had waited and run by themselves now: a further door of the same object,
        # in the same application or a sub-application, must not make them wait once more.
        self.late: set[Any] = set()

    def tell(self, hook: str, request: web.Request, route: Route, *args: Any) -> None:
        """Call one of the five hooks; the identity they see reads `GET http://host/path?query`."""
        if self.hooks is not None:
            shown = NamedIdent(f"{request.method} {request.scheme}://{request.host}{request.raw_path}", route.name)
            guarded(getattr(self.hooks, hook), request, shown, *args)


class NobodyAnswersError(web.HTTPServiceUnavailable):
    """A follower has to run its handler, but its client is gone, or the server shuts down."""


def left(task: "Task[Any]", cancelling: int, request: web.Request, exception: BaseException | None) -> bool:
    """Whether the handler's end is its leader's alone.

    `cancelling` is what `task.cancelling()` gave when it began to lead: a cancellation is the leader's own
    exactly if that has risen, also where the handler swallowed it.
    """
    if task.cancelling() > cancelling or is_for_the_loop(exception):
        return True
    return isinstance(exception, (ConnectionError, NobodyAnswersError)) and not _aiohttp.connection_is_open(request)


def handler_failed(
    settings: Settings, run: RecordedHeaders, target: str, cancelling: int, exception: BaseException
) -> None:
    """The handler of a run at the door has raised this; `cancelling` as in `left`."""
    request, route = run.request, run.route
    _aiohttp.take_back(request, run)
    route.counters.errors += is_error(exception)
    flight = run.flight or run.table.meet(target, run)
    if flight.stream is not None:
        flight.stream.handler_failed(exception)
    _end(settings, flight, run, cancelling, exception, raised=True)
    settings.tell("on_exception_for", request, route, exception)


def handler_returned(settings: Settings, run: RecordedHeaders, target: str, cancelling: int, response: Any) -> None:
    """The handler of a run at the door has returned this; `cancelling` as in `left`."""
    _aiohttp.take_back(run.request, run)
    flight, table = run.flight, run.table
    if flight is None and not _is_late(settings, run) and not _aiohttp.has_one_shot_body(response):
        if table.flights.get(target) is run:
            del table.flights[target]
        return
    _end(settings, flight or table.meet(target, run), run, cancelling, response, raised=False)


def _is_late(settings: Settings, run: RecordedHeaders) -> bool:
    """Whether a handler took so long that requests may have arrived and could not be read."""
    return settings.clock() - run.opened > LAST_CALL_AFTER


def _end(settings: Settings, flight: Any, run: RecordedHeaders, cancelling: int, result: Any, *, raised: bool) -> None:
    """End a flight that somebody has met, or may still meet, or that has a pass marker."""
    if flight.outcome is not PENDING:
        return  # with the head of what the handler sent itself
    passes = flight.passes is not None
    last_call = not passes and _is_late(settings, run)
    task: Any = run.task or current_task(flight.table.loop)
    if left(task, cancelling, run.request, result if raised else None):
        flight.abandon(0)
    elif flight.waiters or last_call or passes or _aiohttp.has_one_shot_body(result):
        landing = flight.table.landing
        landing.end(flight, 0, run, run.route.counters, result, raised=raised, last_call=last_call)
    else:
        flight.close()


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
