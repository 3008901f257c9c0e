"""The client's door: what happens to an outgoing request between the other middlewares and the wire.

A request that coalescing does not consider goes straight on. All others become calls (`calls.py`), which start a
flight or join one.
"""

import asyncio
import logging
from asyncio import AbstractEventLoop
from typing import Any, Final

from aiohttp import ClientRequest, ClientResponse, ClientSession, hdrs
from aiohttp.client_middlewares import ClientHandlerType
from yarl import URL

from .. import _aiohttp
from ..arguments import SAFE_METHODS
from ..async_reduce_core import PerLoop
from ..stats import OTHER, Bypass, Counters, Stats
from .calls import Call
from .flights import OutgoingTable, Place, place_of
from .settings import Settings

logger = logging.getLogger("aiohttp_reduce")

MAX_HOSTS: Final = 1_000
_EVENT_STREAM: Final = "text/event-stream"


class ReduceClientMiddleware:
    """A client middleware object; made by `reduce_client_middleware()`, which says what its arguments mean.

    It may be used in several sessions and event loops: none of them share a flight. The figures are those of all.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # The figures of each host, by host and port, and by the name that is shown.
        self._hosts: dict[tuple[str | None, int | None], Counters] = {}
        self._counters: dict[str, Counters] = {}
        self._stats = Stats(self._counters, "hosts")
        self._tables: PerLoop[OutgoingTable] = PerLoop(self._make_table)

    @property
    def stats(self) -> dict[str, Any]:
        """The figures as they are now, those of each host under `hosts`.

        A new dict each time; what its keys count stands at `aiohttp_reduce.stats`.
        """
        return self._stats.as_dict()

    def forget(self, url: str | URL) -> None:
        """Let the next request for this URL be sent anew, whatever its query.

        Whoever already waits keeps the old flight.

        - `url`: an absolute URL, str or `yarl.URL`.

        Raises TypeError or ValueError for anything else.
        """
        if not isinstance(url, (str, URL)):
            raise TypeError(f"url takes an absolute URL, str or yarl.URL, got {url!r}")
        parsed = URL(url)
        if not parsed.absolute:
            raise ValueError(f"url takes an absolute URL such as 'http://example.com/news', got {url!r}")
        self._wrote((parsed.raw_host, parsed.port, parsed.path))

    def __repr__(self) -> str:
        return f"<reduce_client_middleware methods={sorted(self._settings.methods)} at {id(self):#x}>"

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """What aiohttp calls for each request, redirects and retries included."""
        url = request.url
        counters = self._hosts.get((url.raw_host, url.port))
        if counters is None:
            counters = self._enter(url)
        settings = self._settings
        headers = request.headers
        # What `_bypass_reason` looks for, in fewer steps for most.
        if (
            request.method not in settings.methods
            or not _aiohttp.is_innermost(handler)
            or not _aiohttp.is_plain(request)
            or hdrs.EXPECT in headers
            or hdrs.UPGRADE in headers
            or _EVENT_STREAM in headers.get(hdrs.ACCEPT, "").lower()
        ):
            reason = self._bypass_reason(request, handler)
            if reason is not None:
                return await self._bypass(request, handler, counters, reason)
        if settings.hooks is not None:
            settings.tell("on_apply_for", request)
        # (The call stands in no variable: an exception holds this frame, and the call may hold the exception.)
        table = self._tables.by_loop.get(request.loop) or self._tables.get()
        return await Call(settings, table, request, handler, counters).response()

    async def pass_on(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """The client middleware for a call with `reduce=False`."""
        counters = self._enter(request.url)
        return await self._bypass(request, handler, counters, Bypass.OPT_OUT)

    async def hang_up(self, session: ClientSession) -> None:
        """End the flights of a session that is being closed: whoever waits or reads fails as aiohttp has it."""
        table = self._tables.get()
        flights = [flight for flight in table.running if _aiohttp.session_of(flight.subject) is session]
        for flight in flights:
            flight.hang_up()
        current = asyncio.current_task()
        tasks = {flight.task for flight in flights if flight.task is not None and flight.task is not current}
        if tasks:
            # They only have to take note; one that a tracing callback holds is not worth waiting for.
            await asyncio.wait(tasks, timeout=0.1)

    def _bypass_reason(self, request: ClientRequest, handler: ClientHandlerType) -> Bypass | None:
        if request.method not in self._settings.methods:
            return Bypass.METHOD
        if not _aiohttp.is_innermost(handler):
            return Bypass.NOT_INNERMOST
        if _aiohttp.has_body(request):
            return Bypass.BODY
        headers = request.headers
        if _aiohttp.awaits_continue(request) or hdrs.EXPECT in headers:
            return Bypass.EXPECT
        if hdrs.UPGRADE in headers:
            return Bypass.UPGRADE
        if _EVENT_STREAM in headers.get(hdrs.ACCEPT, "").lower():
            return Bypass.EVENT_STREAM
        if _aiohttp.has_upload_tracker(request):
            return Bypass.UPLOAD_TRACKER
        if _aiohttp.sends_in_its_own_way(request):
            return Bypass.REQUEST_CLASS
        return None

    async def _bypass(
        self, request: ClientRequest, handler: ClientHandlerType, counters: Counters, reason: Bypass
    ) -> ClientResponse:
        counters.count_bypass(reason)
        if logger.isEnabledFor(logging.DEBUG):
            host = request.url.host_port_subcomponent
            logger.debug("%.80s %.300s: not considered (%s)", request.method, host, reason)
        if request.method in SAFE_METHODS:
            return await handler(request)
        try:
            response = await handler(request)
        except BaseException:
            if _aiohttp.was_sent(request):
                self._wrote(place_of(request))  # nobody knows how it ended
            raise
        if not 400 <= response.status < 500:
            self._wrote(place_of(request))
        return response

    def _wrote(self, place: Place) -> None:
        now = self._settings.clock()
        for table in list(self._tables.by_loop.values()):
            table.wrote(place, now)

    def _enter(self, url: URL) -> Counters:
        key = (url.raw_host, url.port)
        counters = self._hosts.get(key)
        if counters is None:
            name = str(url.host_port_subcomponent)
            if name not in self._counters and len(self._counters) >= MAX_HOSTS:
                return self._counters.setdefault(OTHER, Counters())
            counters = self._counters.setdefault(name, Counters())
            if len(self._hosts) < MAX_HOSTS:  # one name is of many hosts: "a", "a.", "a..", ...
                self._hosts[key] = counters
        return counters

    def _make_table(self, loop: AbstractEventLoop) -> OutgoingTable:
        settings = self._settings
        return OutgoingTable(loop, settings.clock, settings.identities, settings.max_age, settings.max_buffer_total)
