"""The flights of incoming requests in one application: found by target first, by identity only when they meet.

The first flight on a target stands under that target (raw, with the method in front unless it is GET); what it
shares with a second request is compared when that one comes. Until then, a run that has no certificate
stands there itself, and has no flight. Flights of other identities on the same target stand under their full
identity, so that a lookup is never a scan.
"""

import asyncio
import math
from asyncio import AbstractEventLoop
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from aiohttp import hdrs, web

from .. import _aiohttp
from .._aiohttp import REMOTE
from ..async_reduce_core import Flight
from ..targets import TargetTable
from ..writes import Writes
from .last_call import LastCall
from .passes import PassMarkers
from .reads import RecordedHeaders
from .replay import Outcome
from .routes import Route

if TYPE_CHECKING:
    from .landing import Landing
    from .leading import Settings
    from .streams import Stream


class RequestFlight(Flight[Outcome]):
    """A flight of requests. `subject` is the request of the one who leads.

    `identity` is the full identity, once it was needed; `certificate` and `key_value` were taken at arrival.
    `crowds_target` is the target of a flight that stands under its identity, because another one was first.
    `hedge` is the flight that an overdue follower of this one leads: only other overdue followers join it.
    `stream` is what it has landed with, where that is a stream: it can be joined as long as the flight is open.
    `head` is what a GET without TLS that agrees with the leader in route and all headers has as well (see
    `_aiohttp.head_of`), if that says that they are identical.
    `passes` is, for a run that nobody can join because of a pass marker, that marker's target and identity.
    """

    table: "RequestTable"
    subject: web.Request
    crowds_target: Hashable = None
    certificate: bytes | None = None
    key_value: Hashable = None
    identity: Hashable | None = None
    hedge: "RequestFlight | None" = None
    passes: tuple[str, Hashable] | None = None
    stream: "Stream | None" = None
    head: Any = None

    def close(self) -> None:
        super().close()
        if self.stream is not None:
            self.stream.close()


class Arrival:
    """A request that comes to the door, and all that has to be equal for it to wait together with another one.

    `target` is where the first flight of its identity stands, `route` knows what its handlers look at. The identity
    is worked out when it is needed, once: it may change when the route learns, so nobody keeps an arrival for long.
    """

    __slots__ = ("_identity", "_table", "certificate", "key_value", "request", "route", "target")

    def __init__(
        self,
        table: "RequestTable",
        target: str,
        request: web.Request,
        certificate: bytes | None,
        key_value: Hashable,
        route: Route,
    ) -> None:
        self._table = table
        self.target: str = target
        self.request: web.Request = request
        self.certificate: bytes | None = certificate
        self.key_value: Hashable = key_value
        self.route: Route = route
        self._identity: Hashable = None

    @property
    def identity(self) -> Hashable:
        """What two requests that wait together have in common."""
        if self._identity is None:
            request, route, table = self.request, self.route, self._table
            selection = table.settings.selection
            learned = route.learned if route.learned and route.remembers(table.clock()) else ()
            self._identity = (
                self.target,
                _aiohttp.route_of(request),
                request.scheme,
                request.version,
                tuple(_aiohttp.received_headers(request).getall(hdrs.HOST, ())),
                _aiohttp.host_of(request),
                self.certificate,
                self.key_value,
                selection.headers_of(request),
                learned and selection.learned_of(request, learned),
            )
        return self._identity


class OpenStreams:
    """The streams of one table that can be joined, by decoded path."""

    __slots__ = ("_by_path", "_loop")

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._by_path: dict[str, dict[Stream, None]] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._by_path

    def add(self, path: str, stream: "Stream") -> None:
        """It can be joined from now on."""
        self._by_path.setdefault(path, {})[stream] = None

    def remove(self, path: str, stream: "Stream") -> None:
        """It cannot be joined any more."""
        streams = self._by_path.get(path, {})
        streams.pop(stream, None)
        if not streams:
            self._by_path.pop(path, None)

    def close(self, path: str) -> None:
        """Close those of a path; from any thread."""
        if asyncio._get_running_loop() is self._loop:
            for stream in list(self._by_path.get(path, ())):
                stream.close()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.close, path)


class RequestTable(TargetTable[Outcome]):
    """The flights of one middleware object in one application, and so in one event loop."""

    __slots__ = ("finds_plainly", "landing", "last_call", "max_age", "passes", "settings", "streams", "writes")

    landing: "Landing"
    # Whether nobody but aiohttp sees a request before the application's first middleware.
    finds_plainly: bool

    def __init__(self, loop: AbstractEventLoop, settings: "Settings", max_age: float) -> None:
        super().__init__(loop, settings.clock)
        self.settings: Settings = settings
        self.last_call: LastCall = LastCall(loop, settings.clock)
        self.max_age: float = max_age
        self.passes: PassMarkers = PassMarkers(self)
        self.streams: OpenStreams = OpenStreams(loop)
        # When the answer to an unsafe request was sent, by decoded path.
        self.writes: Writes = Writes(max_age)

    def find(self, arrival: Arrival) -> RequestFlight | None:
        """The latest flight of the request's identity, open or not."""
        target = arrival.target
        first: Any = self.flights.get(target)
        if type(first) is RecordedHeaders:
            first = self.meet(target, first)
        if first is not None and self._same(first, arrival):
            flight: RequestFlight = first
            return flight
        if target in self.crowds:
            return self.flights.get(arrival.identity)  # type: ignore[return-value]
        return None

    def meet(self, target: str, run: RecordedHeaders) -> RequestFlight:
        """The flight of a run that stands in the table by itself, from now on in its place."""
        flight = RequestFlight(self, target, run.request, run.opened, run.opened + self.max_age)
        flight.key_value = run.key_value
        if not run.is_odd:
            flight.head = _aiohttp.head_of(run.request)
        self.flights[target] = run.flight = flight
        return flight

    def admits(self, flight: RequestFlight, now: float) -> bool:
        """Whether a request that comes now may join: not too old, and not from before an answered write."""
        return now < flight.closes and self.writes.allow(flight.subject.path, flight.opened)

    def open(self, arrival: Arrival, now: float, instead_of: RequestFlight | None) -> RequestFlight:
        """Lead a new flight, in place of `instead_of`, the one that `find` gave and that did not admit."""
        key, crowded = self.place(arrival.target, instead_of, lambda: arrival.identity)
        flight = RequestFlight(self, key, arrival.request, now, now + self.max_age)
        if crowded is not None:
            flight.identity = key
            flight.crowds_target = crowded
        self.flights[key] = flight
        flight.certificate = arrival.certificate
        flight.key_value = arrival.key_value
        return flight

    def apart(self, request: web.Request, key_value: Hashable, now: float) -> RequestFlight:
        """A flight that does not stand in the table, so that newcomers never join it."""
        flight = RequestFlight(self, object(), request, now, -math.inf)
        flight.key_value = key_value
        return flight

    def must_pass(self, arrival: Arrival, now: float) -> RequestFlight | None:
        """A flight apart for a request whose identity has a pass marker; None without one."""
        if not self.passes.holds(arrival.target, arrival.identity, now):
            return None
        flight = self.apart(arrival.request, arrival.key_value, now)
        flight.passes = (arrival.target, arrival.identity)
        return flight

    def wrote(self, path: str, now: float) -> None:
        """An unsafe request on the path is answered now: no flight begun before admits anyone any more."""
        self.writes.note(path, now, matters=bool(self.flights))
        if path in self.streams:
            self.streams.close(path)

    def _same(self, flight: RequestFlight, arrival: Arrival) -> bool:
        leader, request, route = flight.subject, arrival.request, arrival.route
        if flight.certificate != arrival.certificate or flight.key_value != arrival.key_value:
            return False
        if _aiohttp.same_head(leader, request):
            learned = route.learned and route.remembers(self.clock()) and route.learned
            return not learned or REMOTE not in learned or _aiohttp.remote_of(leader) == _aiohttp.remote_of(request)
        if flight.identity is None:
            led = Arrival(self, arrival.target, leader, flight.certificate, flight.key_value, route)
            flight.identity = led.identity
        return flight.identity == arrival.identity
