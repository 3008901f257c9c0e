"""Flights: one execution each, and everybody who waits for it.

This is the lower-level door of the core, the one that `AsyncReducer`, the server middleware and the client
all stand on. A caller looks a key up in its `FlightTable` and joins the flight it finds, or leads a new
one. A leader ends its flight exactly once: `finish`, `fail` or `abandon`. Nothing here starts a task, knows
about coroutines or HTTP, or is safe to call from another thread than the one of the table's event loop.

Invariants (each has a test in `tests/test_flights.py`):

- Each lead has a generation. `finish`, `fail` and `abandon` of an older generation do nothing.
- `table[key]` is removed only if it is still this flight.
- Being promoted is ownership: a waiter that was promoted and leaves, in the same tick too, hands on.
- Waiters that are done are skipped. A takeover never reopens a closed flight.
"""

import asyncio
import enum
import math
import random
import time
import types
from asyncio import get_running_loop
from bisect import insort
from collections import deque
from collections.abc import Callable, Hashable
from operator import itemgetter
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

_NEVER: Final = math.inf
# A timer may fire this much early (uvloop keeps time in whole milliseconds).
_TIMER_SLACK: Final = 0.001


class Wake(enum.Enum):
    """Why a waiter is woken although there is no outcome for it."""

    PROMOTED = enum.auto()
    """The leader left: this waiter leads now (`Waiter.promotion`)."""
    OVERDUE = enum.auto()
    """The waiter's deadline passed; it is still subscribed."""
    ORPHANED = enum.auto()
    """The leader left and nobody could take over: the flight is over without an outcome."""


class _Pending(enum.Enum):
    PENDING = enum.auto()


PENDING: Final = _Pending.PENDING
"""`Flight.outcome` while there is none."""


NOBODY: Final[Any] = types.MappingProxyType({})
"""`Flight.waiters` before anybody joins and after the end."""


class Waiter(Generic[T]):
    """A follower that may take over, and that may wait for several flights at once.

    Await its `future`: it has the outcome of the first flight that ends, or a `Wake`, or raises what the flight
    failed with. Subclasses say in `can_lead` whether the waiter could execute now.

    - `loop`: the event loop of the flights.
    - `arrived`: the time at which it came, by the table's clock, in seconds.

    After `Wake.PROMOTED`, `promotion` has the flight that this waiter leads, and the generation that it leads as.
    """

    promotion: "tuple[Flight[T], int] | None" = None
    leading = False

    def __init__(self, loop: asyncio.AbstractEventLoop, arrived: float) -> None:
        self.future: asyncio.Future[T | Wake] = loop.create_future()
        self.arrived = arrived
        self.flights: list[Flight[T]] = []

    def can_lead(self) -> bool:
        """Whether this waiter could take over now."""
        return True

    def renew(self) -> None:
        """Wait on: a fresh future in every flight that is still under way.

        Call it after a wake-up without an outcome, and look at `landed()` first: a flight that ended
        while this waiter's old future was already done has passed it by.
        """
        old, self.future = self.future, self.future.get_loop().create_future()
        self.flights = [flight for flight in self.flights if flight.under_way]
        for flight in self.flights:
            flight.waiters.pop(old, None)
            flight.waiters[self.future] = self

    def landed(self) -> Any:
        """The outcome of a subscribed flight that has one, or `PENDING`."""
        for flight in self.flights:
            if flight.outcome is not PENDING:
                return flight.outcome
        return PENDING

    def leave(self) -> None:
        """Leave every flight at once; one that this waiter was promoted in is handed on."""
        promotion, self.promotion = self.promotion, None
        for flight in self.flights:
            if flight.under_way:
                flight.waiters.pop(self.future, None)
                flight.sweep_deadlines()
        self.flights.clear()
        if promotion is not None:
            flight, generation = promotion
            flight.abandon(generation)


class Flight(Generic[T]):
    """One execution and everybody who waits for it.

    - `table`: where it stands.
    - `key`: under which it stands there.
    - `subject`: whatever the table's user compares or shows of the one who leads.
    - `opened`: the time at which it began, by the table's clock, in seconds.
    - `closes`: the time from which on nobody may join, by the same clock. (Whoever looks it up compares.)

    Those who wait stand in `waiters`, by the future that wakes them; the value is None for one that can never lead.
    `generation` is that of the lead: each takeover adds one, and an end that an older one brings does nothing.
    `outcome` is `PENDING` until there is one, `under_way` tells whether it has not ended.
    """

    # Most flights end alone: what they do not need stands here, once (0.3 us a flight instead of 1.0).
    generation = 0
    under_way = True
    outcome: Any = PENDING
    sweep_at = 64
    waiters: "dict[asyncio.Future[Any], Waiter[T] | None]" = NOBODY
    _deadlines: deque[tuple[float, Waiter[T]]] | None = None
    _timer: asyncio.TimerHandle | None = None

    def __init__(
        self, table: "FlightTable[T]", key: Hashable, subject: Any = None, opened: float = 0.0, closes: float = math.inf
    ) -> None:
        self.table = table
        self.key = key
        self.subject = subject
        self.opened = opened
        self.closes = closes

    def join(self, waiter: Waiter[T], deadline: float = _NEVER) -> None:
        """Subscribe a waiter; at `deadline` it is woken with `Wake.OVERDUE` and stays subscribed.

        - `waiter`: whoever joins.
        - `deadline`: a time of the table's clock, in seconds. Default: none.
        """
        waiters = self.waiters
        if waiters is NOBODY:
            waiters = self.waiters = {}
        waiters[waiter.future] = waiter
        waiter.flights.append(self)
        deadlines = self._deadlines
        if deadlines and deadlines[-1][0] <= deadline < _NEVER:
            deadlines.append((deadline, waiter))  # as nearly always: the timer runs
            return
        if deadline == _NEVER:
            return
        if deadlines is None:
            deadlines = self._deadlines = deque()
        if not deadlines or deadlines[-1][0] <= deadline:
            deadlines.append((deadline, waiter))
        else:
            insort(deadlines, (deadline, waiter), key=itemgetter(0))
            if deadlines[0][1] is waiter:
                self._stop_timer()
        if self._timer is None:
            self._arm(deadline)

    def sweep(self) -> "dict[asyncio.Future[Any], Waiter[T] | None]":
        """Drop the waiters that are done, and say in `sweep_at` at how many to look again.

        For those who put bare futures into `waiters`: one that is cancelled does not take itself out, and a
        flight that is stuck would gather them for ever.
        """
        self.waiters = {future: waiter for future, waiter in self.waiters.items() if not future.done()}
        self.sweep_at = max(64, 2 * len(self.waiters))
        return self.waiters

    def sweep_deadlines(self) -> None:
        """Let go of those who left before their deadline, once they are the most."""
        deadlines = self._deadlines
        if deadlines is not None and len(deadlines) > 2 * len(self.waiters) + 8:
            self._deadlines = deque(entry for entry in deadlines if entry[1].future in self.waiters)

    def close(self) -> None:
        """Nobody joins any more. Whoever waits keeps waiting."""
        self.closes = -math.inf
        self.table.remove(self)

    def finish(self, generation: int, outcome: T, *, linger: bool = False) -> bool:
        """Give the outcome to all. With `linger` the flight stays in the table, landed, until `close`.

        Returns False, having done nothing, if `generation` does not lead any more.
        """
        if generation != self.generation or not self.under_way:
            return False
        self.outcome = outcome
        self.under_way = False
        if not linger:
            self.table.remove(self)
        waiters, self.waiters = self.waiters, NOBODY
        for future in waiters:
            if not future.done():
                future.set_result(outcome)
        if self._deadlines is not None:
            self._forget_deadlines()
        return True

    def fail(self, generation: int, exception: BaseException) -> bool:
        """Raise the exception in all who wait. Returns False for a stale generation."""
        if generation != self.generation or not self.under_way:
            return False
        for future in self._end():
            if not future.done():
                future.set_exception(exception)
                # Read once, so that a waiter who never looks leaves no "never retrieved" in the log.
                future.exception()
        return True

    def abandon(self, generation: int) -> bool:
        """The leader left before the outcome: one waiter that can lead is promoted, drawn at random.

        With nobody to lead, all are woken with `Wake.ORPHANED`. Returns False for a stale generation.
        """
        if generation != self.generation or not self.under_way:
            return False
        self.generation += 1
        if self.table.loop.is_closed():
            self._end()
            return True
        candidates = [future for future in self.waiters if not future.done()]
        random.shuffle(candidates)
        for future in candidates:
            waiter = self.waiters[future]
            if waiter is not None and not waiter.leading and waiter.can_lead():
                del self.waiters[future]
                waiter.flights.remove(self)
                waiter.promotion = (self, self.generation)
                future.set_result(Wake.PROMOTED)
                return True
        for future, waiter in self._end().items():
            if not future.done() and not (waiter is not None and waiter.leading):
                future.set_result(Wake.ORPHANED)
        return True

    def _end(self) -> dict[asyncio.Future[Any], Waiter[T] | None]:
        self.under_way = False
        self.close()
        waiters, self.waiters = self.waiters, NOBODY
        if self._deadlines is not None:
            self._forget_deadlines()
        return waiters

    def _forget_deadlines(self) -> None:
        self._deadlines = None
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, deadline: float) -> None:
        delay = max(0.0, deadline - self.table.clock())
        self._timer = self.table.loop.call_later(delay, self._wake_overdue)

    def _wake_overdue(self) -> None:
        self._timer = None
        deadlines = self._deadlines
        if deadlines is None or not self.under_way:
            return
        due = self.table.clock() + _TIMER_SLACK
        while deadlines:
            deadline, waiter = deadlines[0]
            if waiter.future in self.waiters and not waiter.leading:
                if deadline > due:
                    self._arm(deadline)
                    return
                if not waiter.future.done():
                    waiter.future.set_result(Wake.OVERDUE)
            deadlines.popleft()


class FlightTable(Generic[T]):
    """The flights of one event loop, by key; at most one of them is open for a key.

    - `loop`: the event loop that its futures and timers are of.
    - `clock`: gives seconds and must not go backwards; it is the clock of every time in the table.

    `flights` is the dict of them: look a key up there, and join what you find if it is `under_way`.
    """

    __slots__ = ("clock", "flights", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic) -> None:
        self.loop = loop
        self.clock = clock
        self.flights: dict[Hashable, Flight[T]] = {}

    def lead(self, key: Hashable) -> Flight[T]:
        """Open a flight under `key`, in place of any that stood there, and lead it as generation 0."""
        flight: Flight[T] = Flight(self, key)
        self.flights[key] = flight
        return flight

    def remove(self, flight: Flight[T]) -> None:
        """Take the flight out, if it is still the one that stands under its key."""
        standing = self.flights.pop(flight.key, None)
        if standing is not flight and standing is not None:
            self.flights[flight.key] = standing


class PerLoop(Generic[T]):
    """One value for each event loop, made at first use; those of closed loops are dropped.

    Threads may share one object: each only ever touches the entry of its own running loop.
    """

    __slots__ = ("_make", "by_loop")

    def __init__(self, make: Callable[[asyncio.AbstractEventLoop], T]) -> None:
        self._make = make
        self.by_loop: dict[asyncio.AbstractEventLoop, T] = {}

    def get(self) -> T:
        """The value of the running loop. Raises RuntimeError where no loop runs."""
        loop = get_running_loop()
        value = self.by_loop.get(loop)
        if value is None:
            for other in list(self.by_loop):
                if other.is_closed():
                    self.by_loop.pop(other, None)
            value = self.by_loop[loop] = self._make(loop)
        return value
