"""The flights of outgoing requests: one upstream request each, in a task of its own, and those who wait for its head.

Nobody leads here in person: whoever starts a flight is a member of it like any other. It lasts as long as anybody is
interested: when the last member leaves, its task is cancelled, and that closes the upstream connection.
"""

import asyncio
from asyncio import AbstractEventLoop
from collections.abc import Callable, Hashable
from typing import Any

from aiohttp import ClientConnectionError, ClientRequest, ClientTimeout

from ..async_reduce_core import Flight, FlightTable
from ..broadcast import Budget
from ..writes import Writes
from .outcomes import Failure, Outcome, Streamed

Place = tuple[str | None, int | None, str]
"""Where a request goes, as far as read-your-writes is concerned: host, port and decoded path."""


def place_of(request: ClientRequest) -> Place:
    """Where a request goes."""
    url = request.url
    return url.raw_host, url.port, url.path


class OutgoingFlight(Flight[Outcome]):
    """A flight of outgoing requests.

    `subject` is the request that it sends, `starter` that of the call which started it, `timeout` what that allowed.
    """

    table: "OutgoingTable"
    subject: ClientRequest
    task: "asyncio.Task[None] | None" = None

    def __init__(
        self,
        table: "OutgoingTable",
        key: Hashable,
        request: ClientRequest,
        starter: ClientRequest,
        timeout: ClientTimeout,
        now: float,
    ) -> None:
        self.table = table
        self.key = key
        self.subject = request
        self.starter = starter
        self.timeout = timeout
        self.opened = now
        self.closes = now + table.max_age

    @property
    def has_seats(self) -> bool:
        """Whether it has no head yet, or a body that may still be read from byte 0."""
        return self.under_way or self.outcome.is_open

    def desert(self) -> None:
        """Nobody is interested any more."""
        if self.under_way:
            self.abandon(self.generation)
        else:
            self.close()
        self.stop()

    def hang_up(self) -> None:
        """The session is closed: whoever waits or reads fails as aiohttp has it."""
        if self.under_way:
            self.finish(self.generation, Failure(self, ClientConnectionError("Connector is closed.")))
        elif isinstance(self.outcome, Streamed):
            self.close()
            self.outcome.broadcast.fail(ClientConnectionError("Connection closed"))
        self.stop()

    def stop(self) -> None:
        """End the task, if it has not ended."""
        if self.task is not None:
            self.task.cancel()


class OutgoingTable(FlightTable[Outcome]):
    """The flights of one middleware object in one event loop.

    `running` are all whose task has not ended, those included that nobody can join any more; `streams` the ones among
    them whose body is on its way, by place.
    """

    __slots__ = ("budget", "max_age", "running", "streams", "writes")

    def __init__(
        self, loop: AbstractEventLoop, clock: Callable[[], float], max_age: float, max_buffer_total: float
    ) -> None:
        super().__init__(loop, clock)
        self.max_age = max_age
        self.budget = Budget(max_buffer_total)
        self.writes = Writes(max_age)
        self.running: set[OutgoingFlight] = set()
        self.streams: dict[Place, set[OutgoingFlight]] = {}

    def find(self, key: Hashable, now: float) -> OutgoingFlight | None:
        """The flight of this identity that a request which comes now may join."""
        flight: Any = self.flights.get(key)
        if flight is None or now >= flight.closes or not flight.has_seats:
            return None
        if len(self.writes) and not self.writes.allow(place_of(flight.subject), flight.opened):
            return None
        found: OutgoingFlight = flight
        return found

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
