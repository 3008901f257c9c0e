"""The flights of outgoing requests: one upstream request each, in a task of its own, and those who wait for its head.

Nobody leads here in person: whoever starts a flight is a member of it like any other. It lasts as long as anybody is
interested: when the last member leaves, its task is cancelled, and that closes the upstream connection.
"""

import asyncio
from asyncio import AbstractEventLoop
from collections.abc import Callable, Hashable
from typing import Any

from aiohttp import ClientConnectionError, ClientRequest, ClientTimeout
from aiohttp.client_middlewares import ClientHandlerType
from multidict import CIMultiDict

from .. import _aiohttp
from ..async_reduce_core import Flight, Wake
from ..broadcast import Budget
from ..targets import TargetTable
from ..writes import Writes
from .identity import Identities
from .outcomes import Failure, Outcome, Streamed
from .reading import HungUpError

Place = tuple[str | None, int | None, str]
"""Where a request goes, as far as read-your-writes is concerned: host, port and decoded path."""


def place_of(request: ClientRequest) -> Place:
    """Where a request goes."""
    url = request.url
    return url.raw_host, url.port, url.path


def target_of(request: ClientRequest) -> Hashable:
    """What flights are looked up by: most of the URL, and the method unless it is GET.

    Strings know their hash; a URL works it out each time (0.2 us, of which a lone request would pay seven).
    """
    url = request.url
    if request.method == "GET":
        return url.raw_host, url.port, url.raw_path_qs
    return url.raw_host, url.port, url.raw_path_qs, request.method


class OutgoingFlight(Flight[Outcome]):
    """A flight of outgoing requests.

    `subject` is the request that it sends, `starter` that of the call which started it, `handler` what sends it.
    `headers` and `way` are those of the request as it came: sending it adds to its own. `identity` is the full one,
    once it was needed. `crowds_target` is the target of a flight that stands under its identity, because another one
    was first.
    """

    table: "OutgoingTable"
    subject: ClientRequest
    task: "asyncio.Task[None] | None" = None
    identity: Hashable = None
    crowds_target: Hashable = None

    def __init__(
        self, table: "OutgoingTable", key: Hashable, request: ClientRequest, handler: ClientHandlerType, now: float
    ) -> None:
        self.table = table
        self.key = key
        self.subject = _aiohttp.for_a_flight(request)
        self.starter = request
        self.headers: CIMultiDict[str] = request.headers.copy()
        self.way: Hashable = _aiohttp.way_of(request)
        self.sending: Any = _aiohttp.ordinary_sending_of(request)
        self.handler = handler
        self.opened = now
        self.closes: float = now + table.max_age

    @property
    def timeout(self) -> ClientTimeout:
        """What the call that started it allowed."""
        return _aiohttp.timeout_of(self.handler)

    def members(self) -> list["asyncio.Future[Any]"]:
        """Those who wait for the head, by what they wait with.

        One that was woken because its time was up, and has not said yet what it does about it, is still a member.
        """
        return [
            future
            for future in self.waiters
            if not future.done() or (not future.cancelled() and isinstance(future.result(), Wake))
        ]

    def desert(self) -> None:
        """Nobody is interested any more."""
        if self.under_way:
            self.abandon(self.generation)
        else:
            self.close()
            if isinstance(self.outcome, Streamed):
                # The task would do it in its next step. Without us, the connection is free at once.
                self.outcome.response.close()
        self.stop()

    def hang_up(self) -> None:
        """The session is closed: whoever waits or reads fails as aiohttp has it."""
        if self.under_way:
            self.finish(0, Failure(self, ClientConnectionError("Connector is closed."), len(self.members())))
        elif isinstance(self.outcome, Streamed):
            self.close()
            self.outcome.broadcast.fail(HungUpError())
        self.stop()

    def stop(self) -> None:
        """End the task, if it has not ended."""
        if self.task is not None:
            self.task.cancel()


class OutgoingTable(TargetTable[Outcome]):
    """The flights of one middleware object in one event loop.

    `running` are all whose task has not ended, those included that nobody can join any more; `streams` the ones among
    them whose body is on its way, by place.
    """

    __slots__ = ("_identities", "budget", "max_age", "running", "streams", "writes")

    def __init__(
        self,
        loop: AbstractEventLoop,
        clock: Callable[[], float],
        identities: Identities,
        max_age: float,
        max_buffer_total: float,
    ) -> None:
        super().__init__(loop, clock)
        self._identities = identities
        self.max_age: float = max_age
        self.budget: Budget = Budget(max_buffer_total)
        self.writes: Writes = Writes(max_age)
        self.running: set[OutgoingFlight] = set()
        self.streams: dict[Place, set[OutgoingFlight]] = {}

    def find(self, target: Hashable, request: ClientRequest, handler: ClientHandlerType) -> OutgoingFlight | None:
        """The latest flight of the request's identity, open or not."""
        first: Any = self.flights.get(target)
        if first is not None and self._same(first, request, handler):
            flight: OutgoingFlight = first
            return flight
        if target in self.crowds:
            return self.flights.get(self._identity_of(request, handler))  # type: ignore[return-value]
        return None

    def why_apart(self, target: Hashable, request: ClientRequest, handler: ClientHandlerType, now: float) -> str | None:
        """In what a request that does not wait differs from the first one on its target; None if that is the first.

        For the debug log, and nothing else.
        """
        first: Any = self.flights.get(target)
        if first is None:
            return "differs from those in flight" if target in self.crowds else None
        if self._same(first, request, handler):
            return "that in flight is from before a write" if now < first.closes else "that in flight takes no more"
        names = self._identities.differ_in(first.identity, self._identity_of(request, handler))
        return f"differs in {', '.join(names)}"

    def admits(self, flight: OutgoingFlight, now: float) -> bool:
        """Whether a request that comes now may join: not too late, nor from before an answered write.

        It has no head yet, or a body that may still be read from byte 0.
        """
        if now >= flight.closes or not (flight.under_way or flight.outcome.is_open):
            return False
        writes = self.writes
        return writes.latest < flight.opened or writes.allow(place_of(flight.subject), flight.opened)

    def open(self, target: Hashable, request: ClientRequest, handler: ClientHandlerType, now: float) -> OutgoingFlight:
        """A new flight, in place of the one of the same identity that does not admit the request."""
        key: Hashable = target
        crowded: Hashable = None
        if target in self.flights or target in self.crowds:
            key, crowded = self.place(
                target,
                self.find(target, request, handler),
                lambda: self._identity_of(request, handler),
            )
        flight = OutgoingFlight(self, key, request, handler, now)
        if crowded is not None:
            flight.identity = key
            flight.crowds_target = crowded
        self.flights[key] = flight
        self.running.add(flight)
        return flight

    def _same(self, flight: OutgoingFlight, request: ClientRequest, handler: ClientHandlerType) -> bool:
        sending = flight.sending
        if sending is not None and flight.headers == request.headers and sending == _aiohttp.sending_of(request):
            # So it is in most herds: the same lines, in the same order.
            return _aiohttp.same_reading(flight.handler, handler)
        if flight.identity is None:
            flight.identity = self._identities.of(flight.subject, flight.headers, flight.way, flight.handler)
        return flight.identity == self._identity_of(request, handler)

    def wrote(self, place: Place, now: float) -> None:
        """An unsafe request to this place is answered: nobody joins what was begun before.

        In another thread than the loop's own it is only noted.
        """
        self.writes.note(place, now, matters=bool(self.flights))
        if asyncio._get_running_loop() is self.loop:
            for flight in list(self.streams.get(place, ())):
                if isinstance(flight.outcome, Streamed):
                    flight.outcome.broadcast.close()

    def begin_stream(self, flight: OutgoingFlight) -> None:
        """The flight's body is on its way."""
        self.streams.setdefault(place_of(flight.subject), set()).add(flight)

    def end_stream(self, flight: OutgoingFlight) -> None:
        """It is over."""
        place = place_of(flight.subject)
        streams = self.streams.get(place)
        if streams is not None:
            streams.discard(flight)
            if not streams:
                del self.streams[place]

    def _identity_of(self, request: ClientRequest, handler: ClientHandlerType) -> Hashable:
        return self._identities.of(request, request.headers, _aiohttp.way_of(request), handler)
