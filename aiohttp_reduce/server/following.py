"""Following a flight: waiting for its outcome, moving on when that takes too long, taking over when asked to.

A follower never waits for ever: after `max_wait` seconds it stays subscribed and also joins a younger flight,
or leads one, and the first outcome wins.
"""

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler

from .. import _aiohttp
from ..async_reduce_core import PENDING, Flight, Waiter, Wake
from ..stats import MAX_REASONS, Unshared, worded
from .late_run import LateRun
from .leading import NobodyAnswersError, Settings, is_error
from .reading import Reader
from .replay import Answer, Outcome, mark_not_collapsed
from .routes import Route
from .streams import Stream
from .table import Arrival, RequestFlight, RequestTable

logger = logging.getLogger("aiohttp_reduce")

_REFUSED: Final = object()


class Follower(Waiter[Outcome]):
    """A request that met a flight of its identity at the door, and what it needs to go on without it.

    `passes` is the pass marker that was set because it was turned away, `seat` its reader of a stream that it was
    given and has not begun to read.
    """

    passes: tuple[str, Hashable] | None = None
    certificate: bytes | None = None
    key_value: Any = None
    # What a run of its own may change: see `look_at_request`.
    mapping: Mapping[Any, Any] = MappingProxyType({})
    has_attributes = False
    seat: Reader | None = None
    # Whether a stream broke off before it had sent anything of it: it does not wait for another one that may.
    has_lost = False

    def __init__(
        self, table: RequestTable, request: web.Request, handler: Handler, route: Route, arrived: float
    ) -> None:
        # What `Waiter.__init__` does, without the call: this is made for every follower.
        self.future = table.loop.create_future()
        self.flights = []
        self.table = table
        self.request = request
        self.handler = handler
        self.route = route
        self.arrived = arrived

    def look_at_request(self) -> None:
        """Look at what outer middlewares have put into the request."""
        self.mapping = _aiohttp.mapping_of(self.request)
        self.has_attributes = _aiohttp.has_own_attributes(self.request)

    @property
    def settings(self) -> Settings:
        """What the middleware was made with."""
        return self.table.settings

    def _arrival(self) -> Arrival:
        request = self.request
        target = _aiohttp.target_of(request)
        return Arrival(self.table, target, request, self.certificate, self.key_value, self.route)

    def can_lead(self) -> bool:
        return _aiohttp.can_answer(self.request)

    async def follow(self, flight: RequestFlight) -> web.StreamResponse:
        """Join the flight and return or raise its outcome, or that of whatever had to be done instead."""
        outcome: Any = flight.outcome
        if outcome is PENDING:
            flight.join(self, self.arrived + self.table.settings.max_wait)
            counters = self.route.counters
            counters.waiting += 1
            try:
                outcome = await self.future
            except BaseException:
                self.leave()
                self._leave_seat()  # it may have been given one in this very pass of the loop
                raise
            finally:
                counters.waiting -= 1
            if type(outcome) is Answer and outcome.is_simple and not self.has_attributes:
                # What most followers get, and all that `_take` would do for them.
                counters.reduced += 1
                if outcome.reads is not None:
                    outcome.reads.pass_on(self.request)
                return outcome.make_another()
        else:
            self._comes_late(flight, outcome)
        try:
            if isinstance(outcome, Wake):
                try:
                    return await self._wait_on(outcome)
                except BaseException:
                    self.leave()  # whatever went wrong: nobody may wait for this one
                    raise
            return await self._given(outcome)
        finally:
            self._leave_seat()

    def _leave_seat(self) -> None:
        if self.seat is not None:
            self.seat.stream.detach(self.seat)

    def _comes_late(self, flight: RequestFlight, outcome: Outcome) -> None:
        """The flight had landed, and was still open."""
        counters = self.route.counters
        outcome.herd += 1
        counters.largest_herd = max(counters.largest_herd, outcome.herd)
        if outcome.for_nobody_else:
            flight.close()  # it is for nobody; those to come lead their own

    async def _deliver(self, stream: Any, made: Any) -> web.StreamResponse:
        if stream.is_lost_to(self):
            stream.detach(self.seat)
            self.seat = None
            if self.has_lost:
                return await self.run_alone()
            self.has_lost = True
            self.renew()
            return await self._wait_on(Wake.ORPHANED, [stream])
        response: web.StreamResponse = await stream.deliver(made, self)
        return response

    def _take(self, outcome: Outcome) -> Any:
        """Return or raise this follower's own of the outcome; `_REFUSED` where it must run by itself."""
        counters = self.route.counters
        if not outcome.free or self.has_attributes:
            refusal = outcome.refuses(self)
            if refusal is not None:
                self.turned_away(outcome, *refusal)
                return _REFUSED
        try:
            made = outcome.make()
        except Exception:
            logger.exception("cannot replay the answer to %s; the handler runs again", self.request.path)
            counters.count_unshared(Unshared.RESPONSE_CLASS)
            return _REFUSED
        if outcome.is_stream:
            outcome.attach(self)
            made = outcome.seated(made, self)
        counters.reduced += 1
        if outcome.reads is not None:
            outcome.reads.pass_on(self.request)
        if outcome.raised:
            try:
                raise made
            finally:
                del made  # or it would hold this frame, and this frame it
        return made

    def turned_away(self, outcome: Outcome, reason: Unshared, name: str | None) -> None:
        self.route.counters.count_unshared(reason, name)
        # A stranger may make up the name: each follower's is compared with a bounded number of others.
        if len(outcome.told) < MAX_REASONS and (reason, name) not in outcome.told:
            outcome.told += ((reason, name),)
            logger.debug("%.80s %s: not shared (%s)", self.request.method, self.route.name, worded(reason, name))
        if outcome.for_nobody_else:
            self.passes = self._set_pass_marker(outcome)
        elif reason is Unshared.VARY and name is not None:
            self.route.learn((name,), (), self.settings.clock())
        elif outcome.reads is not None:
            self.route.learn(*outcome.reads.to_learn(reason, name), self.settings.clock())

    def _set_pass_marker(self, outcome: Outcome) -> tuple[str, Hashable]:
        """Let those who come next not wait for what nobody may share; once for each outcome."""
        if outcome.passes is None:
            arrival = self._arrival()
            self.table.passes.set(arrival.target, arrival.identity, self.settings.clock())
            outcome.passes = (arrival.target, arrival.identity)
        return outcome.passes

    async def _given(self, outcome: Outcome) -> web.StreamResponse:
        made = self._take(outcome)
        if made is _REFUSED:
            return await self.run_alone()
        if outcome.is_stream:
            return await self._deliver(outcome, made)
        response: web.StreamResponse = made
        return response

    async def run_alone(self) -> web.StreamResponse:
        """Run the handler without a flight that others could join."""
        if self.passes is None:
            return await self._run(None)
        flight = self.table.apart(self.request, self.key_value, self.settings.clock())
        flight.passes = self.passes
        return await self._run(LateRun(self, flight, 0))

    async def _run(self, run: "LateRun | None") -> web.StreamResponse:
        """Run the handler after having waited, and say so in the answer; `run` is what it does for others."""
        request, counters, settings = self.request, self.route.counters, self.settings
        elder: Outcome | None = None
        settings.tell("on_executing_for", request, self.route)
        settings.late.add(request.protocol)
        counters.late += 1
        mark = _aiohttp.HeadMark(request, self._mark_head)
        try:
            response = await self.handler(request) if run is None else await run.watched(self.handler)
        except BaseException as exception:
            if run is not None:
                elder = run.end(exception, raised=True)
            if elder is None:
                counters.errors += is_error(exception)
                self._mark_not_collapsed(exception)
                settings.tell("on_exception_for", request, self.route, exception)
                raise
        else:
            if run is not None:
                elder = run.end(response, raised=False)
            if elder is None:
                self._mark_not_collapsed(response)
                settings.tell("on_result_for", request, self.route, response)
                return response
        finally:
            mark.undo()
            settings.late.discard(request.protocol)
            counters.ended += 1
        return await self._given(elder)

    def _mark_not_collapsed(self, result: Any) -> None:
        if not getattr(result, "prepared", True):
            mark_not_collapsed(result, self.settings.cache_status)

    def _mark_head(self, response: web.StreamResponse) -> None:
        mark_not_collapsed(response, self.settings.cache_status)

    async def _wait_on(self, event: Wake, lost: Iterable[Stream] = ()) -> web.StreamResponse:
        """After a wake-up without an outcome: lead, join a younger flight or lead one, until there is one.

        `lost` are streams that broke off before anything of them was sent.
        """
        while True:
            if event is Wake.PROMOTED:
                assert self.promotion is not None
                flight, generation = self.promotion
                self.promotion = None
                assert isinstance(flight, RequestFlight)
                self.route.counters.takeovers += 1
                return await self._lead(flight, generation)
            outcome = self.landed()
            if outcome is PENDING:
                elders: list[Flight[Outcome] | Stream] = [*self.flights, *lost]
                self.renew()
                younger = self._younger(elders)
                if younger is not None:
                    outcome = younger.outcome
                    if outcome is PENDING:
                        younger.join(self, self.settings.clock() + self.settings.max_wait)
                elif _aiohttp.can_answer(self.request):
                    return await self._lead(self._hedge(elders), 0)
                elif not self.flights or not _aiohttp.connection_is_open(self.request):
                    # The server shuts down, or the client is gone and will not see this.
                    self.leave()
                    raise NobodyAnswersError(text="503: the server is shutting down")
            if outcome is PENDING:
                woken = await self._woken()
                if isinstance(woken, Wake):
                    event = woken
                    continue
                outcome = woken
            self.leave()
            return await self._given(outcome)

    async def _woken(self) -> Any:
        self.route.counters.waiting += 1
        try:
            return await self.future
        except BaseException:
            self.leave()
            raise
        finally:
            self.route.counters.waiting -= 1

    def _younger(self, elders: Sequence[Flight[Outcome] | Stream]) -> RequestFlight | None:
        """A flight of this identity, begun after this request came, that it does not wait for yet.

        It need not admit newcomers any more: for this request its answer is fresh enough.
        """
        candidates: list[Any] = [self.table.find(self._arrival())]
        candidates += [flight.hedge for flight in elders if isinstance(flight, (RequestFlight, Stream))]
        for flight in candidates:
            if (
                flight is not None
                and flight not in elders
                and flight.opened > self.arrived
                and (flight.under_way or flight.outcome is not PENDING)
            ):
                found: RequestFlight = flight
                return found
        return None

    def _hedge(self, elders: Sequence[Flight[Outcome] | Stream]) -> RequestFlight:
        hedge = self.table.apart(self.request, self.key_value, self.settings.clock())
        for flight in elders:
            if isinstance(flight, (RequestFlight, Stream)):
                flight.hedge = hedge
        return hedge

    async def _lead(self, flight: RequestFlight, generation: int) -> web.StreamResponse:
        """Run the handler for the flight in this request's own task, after having waited.

        An outcome of a flight that this request still waits for comes first: it interrupts the handler, and
        the flight goes to the next one.
        """
        elder = self.landed()
        if elder is not PENDING and elder.refuses(self) is None:
            self.leave()
            flight.abandon(generation)
            return await self._given(elder)
        flight.subject = self.request
        return await self._run(LateRun(self, flight, generation))
