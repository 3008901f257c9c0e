"""Landing a flight: by the end of its handler, or by the head of what its handler begins to send."""

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from aiohttp import web

from .. import _aiohttp
from ..async_reduce_core import PENDING
from ..policy import Verdict
from ..stats import Counters, Unshared
from .leading import NO_KEY, Settings, key_of
from .one_shot import OneShot
from .producing import Producer
from .reads import RecordedHeaders
from .replay import Failure, Outcome, captured
from .streams import Limits, Stream

if TYPE_CHECKING:
    from .table import RequestFlight

logger: logging.Logger = logging.getLogger("aiohttp_reduce")


class Landing:
    """Lands the flights of one table."""

    __slots__ = ("_limits", "_settings")

    def __init__(self, settings: Settings, limits: Limits) -> None:
        self._settings = settings
        self._limits = limits

    def end(
        self,
        flight: "RequestFlight",
        generation: int,
        run: RecordedHeaders,
        counters: Counters,
        result: Any,
        *,
        raised: bool,
        last_call: bool,
    ) -> None:
        """End the flight with what the run's handler returned or raised; `last_call` keeps it open a moment longer."""
        outcome: Outcome
        try:
            if raised and not isinstance(result, web.HTTPException):
                outcome = Failure(run.request, result)
            else:
                outcome = self._captured(flight, run, result, raised=raised)
            self._add_reads(outcome, run)
        except Exception:
            outcome = _not_captured(run, result)
        self._announce(flight, outcome, counters)
        if outcome.is_stream and outcome.settled().reason is None:
            assert isinstance(outcome, OneShot)
            outcome.take_body(result)
            self._open(flight, generation, outcome)
            return
        if flight.waiters and not raised:
            _aiohttp.send_in_pieces(result)
        linger = last_call and outcome.verdict.reason is None
        if flight.finish(generation, outcome, linger=linger) and linger:
            flight.table.last_call.begin(flight, outcome)

    def begin(self, run: RecordedHeaders, response: web.StreamResponse | None) -> None:
        """Land the run's flight with the head of a response that its handler is preparing, before any signal is sent.

        Never raises. `response` is None where it cannot be told what the handler prepares.
        """
        task = asyncio.current_task()
        if run.is_over or (task is not run.task is not None and _aiohttp.is_of_connection(task)):
            # Not the handler's: what is sent where an outer middleware has given up waiting for it, for example.
            return
        flight = run.met()
        generation = 0 if run.late is None else run.late.sends_now()
        leader = task if run.task is None else run.task
        if flight.outcome is not PENDING or (leader is not None and leader.cancelling()):
            return
        if not flight.waiters and not _aiohttp.connection_is_open(run.request):
            return  # nobody is there
        outcome: Outcome
        try:
            if response is None or _aiohttp.cancels_handlers(run.request):
                outcome = Outcome(run.request, Verdict(Unshared.STREAM))
            else:
                if _aiohttp.negotiates(response):
                    run.forget_one_look("accept-encoding")
                _aiohttp.forget_keep_alive(run.request)
                aside = run.look_aside()  # for `share`
                try:
                    outcome = self._captured(flight, run, response, raised=False, prepared=True)
                finally:
                    run.look_back(aside)
            self._add_reads(outcome, run)
        except Exception:
            outcome = _not_captured(run, response)
        self._announce(flight, outcome, run.route.counters)
        if isinstance(outcome, Stream) and outcome.settled().reason is None:
            assert response is not None
            coding = _aiohttp.take_compression(response)
            producer = outcome.producer = Producer(
                outcome,
                run.request,
                _aiohttp.writer_of(response),
                None if coding is None else outcome.coding(*coding),
                heads=0,
            )
            producer.take_over()
            self._open(flight, generation, outcome)
        else:
            flight.finish(generation, outcome)

    def _captured(
        self,
        flight: "RequestFlight",
        run: RecordedHeaders,
        response: Any,
        *,
        raised: bool,
        prepared: bool = False,
    ) -> Outcome:
        def stream(response: web.StreamResponse, **options: Any) -> Outcome:
            if not prepared:
                return OneShot(run, response, limits=self._limits, settings=self._settings, **options)
            made = Stream(run, response, limits=self._limits, **options)
            made.undo_preparing(response)
            return made

        return captured(
            run.request,
            response,
            raised=raised,
            rules=self._settings.rules,
            has_key=self._settings.has_key and key_of(flight.key_value) != NO_KEY,
            stream=None if _aiohttp.cancels_handlers(run.request) else stream,
            prepared=prepared,
        )

    def _add_reads(self, outcome: Outcome, run: RecordedHeaders) -> None:
        reads = self._settings.rules.reads(run)
        if reads is not None:
            outcome.add_reads(reads)

    def _announce(self, flight: "RequestFlight", outcome: Outcome, counters: Counters) -> None:
        outcome.herd = herd = len(flight.waiters) + 1
        if herd > 1:
            counters.largest_herd = max(counters.largest_herd, herd)
        if flight.passes and not outcome.for_nobody_else:
            flight.table.passes.delete(*flight.passes)

    def _open(self, flight: "RequestFlight", generation: int, stream: Stream) -> None:
        """Land the flight with a stream that can be joined from now on."""
        stream.open_with(flight, self._settings.clock())
        flight.finish(generation, stream, linger=True)


def _not_captured(run: RecordedHeaders, response: Any) -> Outcome:
    """A response class that breaks what aiohttp's classes keep: it is not shared, and nobody waits for it."""
    logger.exception("cannot capture %r for others; they run by themselves", type(response))
    return Outcome(run.request, Verdict(Unshared.RESPONSE_CLASS))
