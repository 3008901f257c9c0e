"""Following a flight: waiting for its outcome, moving on when that takes too long, taking over when asked to.

A follower never waits for ever: after `max_wait` seconds it stays subscribed and also joins a younger flight,
or leads one, and the first outcome wins.
"""

import asyncio
import logging
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from .. import _aiohttp
from ..async_reduce_core import PENDING, Wake
from ..stats import Route
from .last_call import LAST_CALL_AFTER
from .leading import Settings, is_error, is_for_the_loop, land, left
from .replay import Outcome, mark_not_collapsed
from .table import Follower, RequestFlight, RequestTable

logger = logging.getLogger("aiohttp_reduce")


class Visit:
    """One request that met a flight of its identity at the door."""

    __slots__ = (
        "arrived",
        "certificate",
        "counters",
        "handler",
        "key_value",
        "request",
        "route",
        "settings",
        "table",
        "target",
    )

    def __init__(
        self,
        settings: Settings,
        table: RequestTable,
        request: web.Request,
        handler: Handler,
        route: Route,
        target: str,
        certificate: bytes | None,
        key_value: Any,
        arrived: float,
    ) -> None:
        self.settings = settings
        self.table = table
        self.request = request
        self.handler = handler
        self.route = route
        self.counters = route.counters
        self.target = target
        self.certificate = certificate
        self.key_value = key_value
        self.arrived = arrived

    async def follow(self, flight: RequestFlight) -> web.StreamResponse:
        """Join the flight and return or raise its outcome, or that of whatever had to be done instead."""
        counters = self.counters
        landed = flight.outcome
        if landed is not PENDING:
            landed.herd += 1
            counters.largest_herd = max(counters.largest_herd, landed.herd)
            if landed.refuses(self.request) and landed.verdict.reason is not None:
                flight.close()  # it is for nobody; those to come lead their own
            return await self._given(landed)
        waiter = Follower(self.table.loop, self.arrived, self.request)
        flight.join(waiter, self.arrived + self.settings.max_wait)
        counters.waiting += 1
        try:
            event = await waiter.future
        except BaseException:
            waiter.leave()
            raise
        finally:
            counters.waiting -= 1
        if isinstance(event, Wake):
            return await self._wait_on(waiter, event)
        return await self._given(event)

    async def run_alone(self) -> web.StreamResponse:
        """Run the handler without a flight."""
        counters = self.counters
        settings = self.settings
        settings.tell("on_executing_for", self.request, self.route)
        counters.late += 1
        try:
            response = await self.handler(self.request)
        except BaseException as exception:
            counters.errors += is_error(exception)
            mark_not_collapsed(exception, settings.cache_status)
            settings.tell("on_exception_for", self.request, self.route, exception)
            raise
        finally:
            counters.ended += 1
        mark_not_collapsed(response, settings.cache_status)
        settings.tell("on_result_for", self.request, self.route, response)
        return response

    async def _given(self, outcome: Outcome) -> web.StreamResponse:
        refusal = outcome.refuses(self.request)
        if refusal is not None:
            self.counters.count_unshared(*refusal)
            return await self.run_alone()
        try:
            made = outcome.make()
        except Exception:
            logger.exception("cannot replay the answer to %s; the handler runs again", self.request.path)
            return await self.run_alone()
        self.counters.reduced += 1
        if outcome.raised:
            raise made
        response: web.StreamResponse = made
        return response

    async def _wait_on(self, waiter: Follower, event: Wake) -> web.StreamResponse:
        """After a wake-up without an outcome: lead, join a younger flight or lead one, until there is one."""
        while True:
            if event is Wake.PROMOTED:
                assert waiter.promotion is not None
                flight, generation = waiter.promotion
                waiter.promotion = None
                assert isinstance(flight, RequestFlight)
                self.counters.takeovers += 1
                return await self._lead(flight, generation, waiter)
            outcome = waiter.landed()
            if outcome is PENDING:
                waiter.renew()
                if event is Wake.ORPHANED and not waiter.flights and not _aiohttp.can_answer(self.request):
                    raise self._nobody_left()
                younger = self._younger(waiter)
                if younger is None:
                    return await self._lead(self._hedge(waiter), 0, waiter)
                outcome = younger.outcome
                if outcome is PENDING:
                    younger.join(waiter, self.settings.clock() + self.settings.max_wait)
                    woken = await self._woken(waiter)
                    if isinstance(woken, Wake):
                        event = woken
                        continue
                    outcome = woken
            waiter.leave()
            return await self._given(outcome)

    async def _woken(self, waiter: Follower) -> Any:
        self.counters.waiting += 1
        try:
            return await waiter.future
        except BaseException:
            waiter.leave()
            raise
        finally:
            self.counters.waiting -= 1

    def _younger(self, waiter: Follower) -> RequestFlight | None:
        """A flight of this identity, begun after this request came, that it does not wait for yet.

        It need not admit newcomers any more: for this request its answer is fresh enough.
        """
        candidates: list[Any] = [self.table.find(self.target, self.request, self.certificate, self.key_value)]
        candidates += [flight.hedge for flight in waiter.flights if isinstance(flight, RequestFlight)]
        for flight in candidates:
            if (
                flight is not None
                and flight not in waiter.flights
                and flight.opened > self.arrived
                and (flight.under_way or flight.outcome is not PENDING)
            ):
                found: RequestFlight = flight
                return found
        return None

    def _hedge(self, waiter: Follower) -> RequestFlight:
        hedge = self.table.hedge(self.request, self.certificate, self.key_value, self.settings.clock())
        for flight in waiter.flights:
            if isinstance(flight, RequestFlight):
                flight.hedge = hedge
        return hedge

    def _nobody_left(self) -> BaseException:
        if _aiohttp.is_shutting_down(self.request) and _aiohttp.connection_is_open(self.request):
            return web.HTTPServiceUnavailable(text="503: the server is shutting down")
        return ConnectionResetError("the client is gone, and so is the request that it waited for")

    async def _lead(self, flight: RequestFlight, generation: int, waiter: Follower) -> web.StreamResponse:
        """Run the handler for the flight in this request's own task, after having waited.

        An outcome of a flight that this request still waits for comes first: it interrupts the handler, and
        the flight goes to the next one.
        """
        request, counters, settings = self.request, self.counters, self.settings
        elder = waiter.landed()
        if elder is not PENDING:
            waiter.leave()
            flight.abandon(generation)
            return await self._given(elder)
        flight.subject = request
        run = _LateRun(self, flight, generation, waiter)
        settings.tell("on_executing_for", request, self.route)
        counters.late += 1
        try:
            response = await self.handler(request)
        except BaseException as exception:
            elder = run.end(exception, raised=True)
            if elder is None:
                counters.errors += is_error(exception)
                mark_not_collapsed(exception, settings.cache_status)
                settings.tell("on_exception_for", request, self.route, exception)
                raise
        else:
            elder = run.end(response, raised=False)
            if elder is None:
                mark_not_collapsed(response, settings.cache_status)
                settings.tell("on_result_for", request, self.route, response)
                return response
        finally:
            counters.ended += 1
        return await self._given(elder)


class _LateRun:
    """The run of one who waited first, and who may still be answered by an elder flight."""

    __slots__ = ("_cancelling", "_flight", "_generation", "_interrupted", "_started", "_task", "_visit", "_waiter")

    def __init__(self, visit: Visit, flight: RequestFlight, generation: int, waiter: Follower) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._visit = visit
        self._flight = flight
        self._generation = generation
        self._waiter = waiter
        self._interrupted = False
        self._started = visit.settings.clock()
        waiter.leading = True
        waiter.renew()
        if waiter.flights:
            waiter.future.add_done_callback(self._interrupt)

    def _interrupt(self, _future: "asyncio.Future[Any]") -> None:
        self._interrupted = True
        self._task.cancel()

    def end(self, result: Any, *, raised: bool) -> Outcome | None:
        """End the flight by what the handler did. The outcome to answer with instead, if an elder one came."""
        visit, waiter, flight = self._visit, self._waiter, self._flight
        waiter.future.remove_done_callback(self._interrupt)
        elder: Any = waiter.future.result() if self._interrupted else None
        waiter.leave()
        if elder is not None and self._task.uncancel() > self._cancelling:
            elder = None  # cancelled from outside as well
        exception = result if raised else None
        if elder is not None or left(self._task, self._cancelling, visit.request, exception):
            flight.abandon(self._generation)
            return None if is_for_the_loop(exception) else elder
        last_call = visit.settings.clock() - self._started > LAST_CALL_AFTER
        land(
            visit.settings,
            flight,
            self._generation,
            visit.request,
            visit.counters,
            result,
            raised=raised,
            last_call=last_call,
        )
        return None
