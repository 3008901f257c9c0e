"""A run that is held: what it is called, who waits for it, and why another one is not the same."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import _aiohttp
from ..async_reduce_core import Flight
from ..client.flights import OutgoingFlight
from ..client.identity import Identities
from ..server.leading import key_of
from ..server.reads import RecordedHeaders

Future = asyncio.Future[Any]


@dataclass(frozen=True, eq=False, slots=True)
class Run:
    """One run. `followers()` are what its followers wait with; `parts` what has to be equal for two to be one."""

    label: str
    followers: Callable[[], list[Future]]
    parts: Mapping[str, Any]

    def differs_from(self, other: "Run") -> list[str]:
        """The names of what the two do not have in common."""
        names = dict.fromkeys([*self.parts, *other.parts])
        return [name for name in names if not _equal(self.parts.get(name), other.parts.get(name))]


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:
        return False


def request_run(run: RecordedHeaders) -> Run:
    """A run at the server's door."""
    request = run.request
    selection = run.table.settings.selection

    def followers() -> list[Future]:
        flight: Flight[Any] | None = run.flight
        if flight is None:
            return []
        return [f for f, waiter in flight.waiters.items() if not f.done() and not (waiter and waiter.leading)]

    headers = _aiohttp.received_headers(request)
    parts: dict[str, Any] = {name: headers.getall(name) for name in headers if selection.selects(name.lower())}
    known: Any = run.flight if run.flight is not None else run
    parts["key"] = key_of(getattr(known, "key_value", None))
    return Run(f"{request.method} {_aiohttp.target_of(request)}", followers, parts)


def sent_run(flight: OutgoingFlight, identities: Identities) -> Run:
    """A request that is about to be sent."""

    def followers() -> list[Future]:
        waiters: Mapping[Future, Any] = flight.waiters
        return [f for f, call in waiters.items() if not f.done() and call.started is not flight]

    request, headers = flight.starter, flight.headers
    parts: dict[str, Any] = {name: headers.getall(name) for name in headers if identities.counts(name.lower())}
    parts["session"] = _aiohttp.session_of(request)
    parts["proxy, TLS or server_hostname"] = flight.way
    parts["options of reading"] = _aiohttp.reading_options_of(flight.handler)
    return Run(f"{request.method} {request.url}", followers, parts)


def reducer_run(flights: Iterable[Flight[Any]], own: Future, name: str) -> Run:
    """A coroutine that is about to run, in the one of these flights that the call with this future started."""
    flight = next((flight for flight in flights if own in flight.waiters), None)

    def followers() -> list[Future]:
        return [] if flight is None else [f for f in flight.waiters if not f.done() and f is not own]

    return Run(name, followers, {})
