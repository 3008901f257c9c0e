"""Calls: each starts a flight or joins one, waits for its head, and makes its own response of it.

A call is given what its flight came to, with three exceptions. It asks for itself where the answer may not be shared
with it. It comes back to the door where the flight ended by a timeout that is not its own yet. And once it has waited
for `max_wait` seconds, it waits for a younger flight too, and takes whatever comes first.
"""

import asyncio
import logging
import math
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Final

from aiohttp import ClientRequest, ClientResponse, ClientTimeout, ConnectionTimeoutError, ServerTimeoutError
from aiohttp.client_middlewares import ClientHandlerType

from .. import _aiohttp
from ..async_reduce_core import PENDING, Flight, Waiter, Wake
from ..stats import Counters, Unshared, worded
from .flights import OutgoingFlight, OutgoingTable, target_of
from .flying import start
from .outcomes import Failure, Outcome, Shared
from .settings import Settings

if TYPE_CHECKING:
    from aiohttp.tracing import Trace

logger: logging.Logger = logging.getLogger("aiohttp_reduce")

# Loops tell time in steps: a budget is spent if no more than this is left of it (seconds).
_SLACK: Final = 0.01


class Call(Waiter[Outcome]):
    """One request at the door. `counters` are the figures of its host, `started` is the flight that it started last.

    At `overdue_at`, by the table's clock, it has waited for `max_wait`.
    """

    started: OutgoingFlight | None = None
    overdue_at: float = math.inf
    connect_is_spent: bool = False
    connect_timer: "asyncio.TimerHandle | None" = None

    def __init__(
        self,
        settings: Settings,
        table: OutgoingTable,
        request: ClientRequest,
        handler: ClientHandlerType,
        counters: Counters,
    ) -> None:
        # What `Waiter.__init__` does, without the call.
        self.future: asyncio.Future[Outcome | Wake] = table.loop.create_future()
        self.flights: list[Flight[Outcome]] = []
        self.settings = settings
        self.table = table
        self.request = request
        self.handler = handler
        self.counters = counters
        self.target: Hashable = target_of(request)
        self.arrived: float = settings.clock()

    def can_lead(self) -> bool:
        return False  # flights have tasks of their own

    async def response(self) -> ClientResponse:
        """This caller's own response; or its exception, raised."""
        table, counters, request = self.table, self.counters, self.request
        now = self.arrived
        flight = self._open_flight(now)
        if flight is None:
            if table.flights and logger.isEnabledFor(logging.DEBUG):
                self._tell_apart(now)
            flight = start(self, now)
            counters.led += 1
        else:
            counters.joined += 1
            if self.settings.hooks is not None:
                self.settings.tell("on_reducing_for", request)
        while True:
            outcome = flight.outcome
            waited = outcome is PENDING
            if waited:
                # One that started it was subscribed before it began, and waits as long as its own request takes.
                follows = flight is not self.started
                try:
                    if follows:
                        self._join(flight, now)
                        if traces := _aiohttp.traces_of(request):
                            await _tell(traces, request)
                    outcome = await self.future
                    while isinstance(outcome, Wake):
                        outcome = await self._wait_on()
                except BaseException:
                    self._give_up()
                    raise
                finally:
                    if follows:
                        counters.waiting -= 1
                        if self.connect_timer is not None:
                            self.connect_timer.cancel()
                            self.connect_timer = None
                if flight.under_way or len(self.flights) > 1:
                    self._leave_others(outcome)
            if type(outcome) is Failure:
                if self._has_spent(outcome):
                    exception = outcome.exception_for(request, is_own=self._is_own(outcome))
                    try:
                        raise exception
                    finally:
                        # They would hold this frame, and this frame them.
                        del exception, outcome, flight, self
            else:
                response = None
                if waited:
                    response = self._take_at_once(outcome)
                if response is None:
                    response = await self._take(outcome, waited=waited)
                if response is not None:
                    return response
            # Back to the door: it was another one's timeout, or the last seat was gone.
            self.future = table.loop.create_future()
            self.flights = []
            self.started = None
            now = self.settings.clock()
            flight = self._open_flight(now)
            if flight is None or _connect_budget(flight.timeout) != _connect_budget(self.timeout):
                flight = start(self, now)
                counters.late += 1

    @property
    def timeout(self) -> ClientTimeout:
        """What this call allows."""
        return _aiohttp.timeout_of(self.handler)

    def _is_own(self, outcome: Outcome) -> bool:
        """Whether an outcome is that of the flight which this call started."""
        return self.started is not None and outcome.request is self.started.subject

    def _open_flight(self, now: float) -> OutgoingFlight | None:
        """The flight that this call may join."""
        table = self.table
        flight = table.find(self.target, self.request, self.handler)
        return flight if flight is not None and table.admits(flight, now) else None

    def _tell_apart(self, now: float) -> None:
        reason = self.table.why_apart(self.target, self.request, self.handler, now)
        if reason is not None:
            host = self.request.url.host_port_subcomponent
            logger.debug("%.80s %.300s: does not wait (%.500s)", self.request.method, host, reason)

    def _take_at_once(self, outcome: Outcome) -> ClientResponse | None:
        """This caller's response of an outcome that it waited for, where nothing stands in the way of it."""
        if isinstance(outcome, Shared) and outcome.verdict.vary:
            return None
        is_own = self._is_own(outcome)
        response = outcome.response_at_once(self.request, self.future, is_own=is_own)
        if response is not None and not is_own:
            self.counters.reduced += 1
        return response

    async def _take(self, outcome: Outcome, *, waited: bool) -> ClientResponse | None:
        """This caller's response of an outcome; None where it came too late for it."""
        request, counters = self.request, self.counters
        if not waited:
            outcome.herd += 1
            counters.largest_herd = max(counters.largest_herd, outcome.herd)
        future = self.future if waited else None
        if isinstance(outcome, Shared) and outcome.verdict.vary:
            name = self._differs(outcome)
            if name is not None:
                if waited:
                    outcome.give_up(self.future)
                return await self._ask_alone(Unshared.VARY, name)
        response = await outcome.response_for(request, future)
        if response is None:
            if outcome.is_for_one:
                return await self._ask_alone(Unshared.STREAM, None)
        elif not self._is_own(outcome):
            counters.reduced += 1
        return response

    async def _ask_alone(self, reason: Unshared, name: str | None) -> ClientResponse:
        """Send the request by itself, after having waited for an answer that may not be shared with it."""
        counters, settings, request = self.counters, self.settings, self.request
        counters.count_unshared(reason, name)
        if logger.isEnabledFor(logging.DEBUG):
            host = request.url.host_port_subcomponent
            logger.debug("%.80s %.300s: not shared (%s)", request.method, host, worded(reason, name))
        settings.tell("on_executing_for", request)
        counters.late += 1
        try:
            response = await self.handler(request)
        except Exception as exception:
            counters.errors += 1
            settings.tell("on_exception_for", request, exception)
            raise
        finally:
            counters.ended += 1
        settings.tell("on_result_for", request, response)
        return response

    def _differs(self, outcome: Shared) -> str | None:
        """The header of Vary in which this request differs from the one that was sent; None if it may share."""
        sent, mine = outcome.request.headers, self.request.headers
        for name in outcome.verdict.vary:
            if name == "*":
                left_out = self.settings.identities.left_out
                if left_out(sent) != left_out(mine):
                    return name
            elif sent.getall(name, []) != mine.getall(name, []):
                return name
        return None

    def _join(self, flight: OutgoingFlight, now: float) -> None:
        """Wait for the flight's head; after `max_wait`, for that of a younger one too."""
        self.overdue_at = now + self.settings.max_wait
        flight.join(self, self.overdue_at)
        self.counters.waiting += 1
        timeout = self.timeout
        if timeout.connect is not None and _connect_budget(flight.timeout) != _connect_budget(timeout):
            left = self.arrived + timeout.connect - self.settings.clock()
            self.connect_timer = self.table.loop.call_later(max(0.0, left), self._spend_connect)

    def _give_up(self) -> None:
        """Leave for good, and leave nothing behind, woken already or not."""
        self._leave_others(None)

    def _leave_others(self, taken: Any) -> None:
        """Leave every flight, and give up what this call might have had of those that landed; not of the one taken."""
        flights: list[Any] = list(self.flights)
        self.leave()
        for flight in flights:
            if flight.outcome is not PENDING and flight.outcome is not taken:
                flight.outcome.give_up(self.future)

    async def _wait_on(self) -> Any:
        """After a wake-up without an outcome: join a younger flight or start one, and wait on."""
        outcome = self.landed()
        if outcome is not PENDING:
            return outcome
        elders: list[Any] = list(self.flights)
        connect_is_spent, self.connect_is_spent = self.connect_is_spent, False
        if connect_is_spent and not any(_aiohttp.was_sent(flight.subject) for flight in elders):
            raise ConnectionTimeoutError(f"Connection timeout to host {self.request.url}")
        self.renew()
        now = self.settings.clock()
        # Its time to connect may be up in the same pass of the loop as `max_wait`.
        if not connect_is_spent or now + _SLACK >= self.overdue_at or not self.flights:
            younger = self._open_flight(now)
            if younger is None or younger in elders or younger.opened < self.arrived:
                self.overdue_at = math.inf
                start(self, now)
                self.counters.late += 1
            elif younger.outcome is not PENDING:
                return younger.outcome
            else:
                self.overdue_at = now + self.settings.max_wait
                younger.join(self, self.overdue_at)
        return await self.future

    def _spend_connect(self) -> None:
        self.connect_is_spent = True
        if not self.future.done():
            self.future.set_result(Wake.OVERDUE)

    def leave(self) -> None:
        """Leave every flight; one that nobody else waits for ends."""
        flights: list[Any] = list(self.flights)
        super().leave()
        for flight in flights:
            if flight.under_way and not flight.waiters:
                flight.desert()

    def _has_spent(self, failure: Failure) -> bool:
        """Whether a failure is this call's too: another one's timeout is not, until as much of its own is spent."""
        exception = failure.exception
        if self._is_own(failure) or not isinstance(exception, ServerTimeoutError):
            return True
        mine = self.timeout
        spent = self.settings.clock() - self.arrived + _SLACK
        if not isinstance(exception, ConnectionTimeoutError):
            return spent >= (mine.sock_read or 0.0)
        budget = _connect_budget(mine)
        return budget == _connect_budget(failure.timeout) and spent >= min(
            [limit for limit in budget if limit is not None], default=0.0
        )


async def _tell(traces: "list[Trace]", request: ClientRequest) -> None:
    """The request is not written, but for those who watch it, it goes out now."""
    for trace in traces:
        await trace.send_request_headers(request.method, request.url, request.headers)


def _connect_budget(timeout: ClientTimeout) -> tuple[float | None, float | None]:
    return timeout.connect, timeout.sock_connect
