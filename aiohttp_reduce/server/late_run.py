"""The run of a handler for one who had waited first."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.typedefs import Handler

from .. import _aiohttp
from ..async_reduce_core import PENDING
from .last_call import LAST_CALL_AFTER
from .leading import is_for_the_loop, left
from .reads import RecordedHeaders, RecordedState
from .replay import Outcome
from .table import RequestFlight

if TYPE_CHECKING:
    from .following import Follower


class LateRun:
    """The run of one who waited first, and who may still be answered by an elder flight."""

    __slots__ = (
        "_cancelling",
        "_ended",
        "_flight",
        "_follower",
        "_generation",
        "_interrupted",
        "_recorded",
        "_started",
        "_task",
    )

    def __init__(self, follower: Follower, flight: RequestFlight, generation: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._follower = follower
        self._flight = flight
        self._generation = generation
        self._interrupted = False
        self._ended = False
        self._started = follower.settings.clock()
        self._recorded = recorded = RecordedHeaders()
        recorded.request = follower.request
        recorded.flight = flight
        recorded.task = task
        recorded.table = flight.table
        recorded.route = follower.route
        recorded.late = self
        follower.leading = True
        follower.renew()
        if follower.flights:
            follower.future.add_done_callback(self._interrupt)

    async def watched(self, handler: Handler) -> web.StreamResponse:
        """Run the handler, and note what it looks at."""
        request = self._follower.request
        flight = self._flight
        _aiohttp.lend(request, self._recorded, RecordedState(), self._follower.settings.kept)
        try:
            response = await handler(request)
            if flight.stream is not None:
                await flight.stream.handler_ended(response)
            return response
        except BaseException as exception:
            if flight.stream is not None:
                flight.stream.handler_failed(exception)
            raise
        finally:
            _aiohttp.take_back(request, self._recorded)

    def sends_now(self) -> int:
        """The handler begins to send an answer: no other one may come instead. The generation that leads."""
        self._ended = True
        if self._interrupted:
            # The handler has swallowed that.
            self._interrupted = False
            self._task.uncancel()
        self._follower.leave()
        return self._generation

    def _interrupt(self, future: asyncio.Future[Any]) -> None:
        # A callback that is already scheduled cannot be removed: it may come after the handler's end.
        if not self._ended and future.result().refuses(self._follower) is None:
            self._interrupted = True
            self._task.cancel()

    def end(self, result: Any, *, raised: bool) -> Outcome | None:
        """End the flight by what the handler did. The outcome to answer with instead, if an elder one came."""
        follower, flight = self._follower, self._flight
        self._ended = True
        follower.future.remove_done_callback(self._interrupt)
        elder: Any = follower.future.result() if self._interrupted else None
        follower.leave()
        if elder is not None and self._task.uncancel() > self._cancelling:
            elder = None  # cancelled from outside as well
        exception = result if raised else None
        if elder is not None or left(self._task, self._cancelling, follower.request, exception):
            flight.abandon(self._generation)
            return None if is_for_the_loop(exception) else elder
        if flight.outcome is not PENDING:
            return None
        last_call = follower.settings.clock() - self._started > LAST_CALL_AFTER and flight.passes is None
        flight.table.landing.end(
            flight,
            self._generation,
            self._recorded,
            follower.route.counters,
            result,
            raised=raised,
            last_call=last_call,
        )
        return None
