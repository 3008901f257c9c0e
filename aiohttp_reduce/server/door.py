"""The server's door: what happens to a request between the outer middlewares and its handler.

Three ways lead through it. A request that coalescing does not consider goes straight on. The first of an
identity leads: its handler runs right here, in its own task, and its outcome goes to all who joined. The
others follow (`following.py`).
"""

import logging
import weakref
from asyncio import current_task, get_running_loop
from collections.abc import Callable, Hashable
from typing import Any, Final

from aiohttp import EMPTY_PAYLOAD, hdrs, web
from aiohttp.typedefs import Handler
from aiohttp.web import Response
from multidict import MultiMapping

from .. import _aiohttp, arguments
from .._aiohttp import USUALLY_LOOKED_UP
from ..async_reduce_core import PENDING, PerLoop, typed
from ..broadcast import Budget
from ..stats import Bypass, Stats, Unshared
from .access import Access, asks_for_stats
from .apart import why_apart
from .bypass import asks_for_events, bypass_reason
from .following import Follower
from .landing import Landing
from .last_call import LAST_CALL_AFTER
from .leading import Keyed, Settings, handler_failed, handler_returned
from .marks import never_reduce
from .reads import RecordedHeaders, RecordedState
from .routes import Route, Routes
from .streams import Limits
from .table import Arrival, RequestTable
from .values import MISSING, as_key
from .watching import Clients, Watchable

logger: logging.Logger = logging.getLogger("aiohttp_reduce")

_ODD: Final = object()
_UPGRADE: Final = hdrs.UPGRADE
_EXPECT: Final = hdrs.EXPECT
_ACCEPT: Final = hdrs.ACCEPT


class ReduceMiddleware:
    """A middleware object; made by `reduce_middleware()`, which says what its arguments mean.

    It may be used in several applications, on several levels of sub-applications, and in several event loops:
    none of them share a flight. What is done in one (a write, `forget`) counts in all.
    """

    # What aiohttp looks for in a middleware of the current kind.
    __middleware_version__ = 1

    def __init__(
        self,
        settings: Settings,
        *,
        methods: frozenset[str],
        key: Callable[[web.Request], Hashable] | None,
        when: Callable[[web.Request], bool] | None,
        max_age: float,
        max_buffer: float,
        max_buffer_total: float,
        stats_path: str | None,
        stats_access: Access,
    ) -> None:
        self._settings = settings
        self._methods = methods
        self._key = key
        self._when = when
        self._stats_path = stats_path
        # What the raw target of every request is compared with; no target is without its slash.
        self._stats_prefix = "\0" if stats_path is None else stats_path
        self._stats_access = stats_access
        routes = Routes()
        self._enter = routes.enter
        self._routes = routes.by_id
        self._stats = Stats(routes.counters)
        self._clients = Clients()

        self._max_age = max_age
        self._max_buffer = max_buffer
        self._budgets = PerLoop(lambda loop: Budget(max_buffer_total))
        self._clock = settings.clock
        # Whether a request's target, headers and key say all that there is to know.
        self._is_plain = when is None and settings.hooks is None and "GET" in methods
        self._tables: dict[int, RequestTable] = {}

    @property
    def stats(self) -> dict[str, Any]:
        """The figures that `/_reduce/stats` shows, as they are now; those of watched sessions under `clients`.

        A new dict each time; what its keys count stands at `aiohttp_reduce.stats`.
        """
        return {**self._stats.as_dict(), "clients": self._clients.as_dict()}

    def watch(self, session: Watchable, *, name: str) -> None:
        """Show the figures of an outgoing session too, for as long as the session object lives.

        - `session`: a `ReducingClientSession`, or the object that `reduce_client_middleware()` made. It is not kept
          alive by this.
        - `name`: printable text under which they are shown. One that is taken stands for the new session from now on.

        Raises TypeError or ValueError for anything else.
        """
        self._clients.add(session, name)

    @never_reduce
    async def stats_handler(self, request: web.Request) -> web.Response:
        """Answer with the figures as JSON. Mount it as a route of your own, behind your own access rules.

        It lets everybody see them who comes by that route: `stats_access` is not asked. With `stats_path=None`::

            middleware = reduce_middleware(stats_path=None)
            app = web.Application(middlewares=[middleware])
            app.router.add_get("/admin/reduce", middleware.stats_handler)
        """
        return web.json_response(self.stats, headers={hdrs.CACHE_CONTROL: "no-store"})

    def forget(self, path: str) -> None:
        """Let the next request for this path run anew, whatever its query and Host.

        Call it after a change that did not come as a request through this object: a job, another process. Whoever
        already waits keeps the old flight.

        - `path`: the decoded path without a query, as in `request.path`.

        Raises TypeError or ValueError for anything but a path.
        """
        if arguments.path("path", path) is None:
            raise TypeError("path takes a decoded path such as '/news', got None")
        self._wrote(path)

    def __repr__(self) -> str:
        return f"<reduce_middleware methods={sorted(self._methods)} at {id(self):#x}>"

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        # First the ordinary GET that is alone, or follows another one, on an ordinary route (`_learn_route`): plain
        # steps in one place, private names of aiohttp among them, and nothing computed that only an odd request would
        # need. It is the path of nearly every request, and each step is felt: 100 bytecodes are 1 us, and that is 2%
        # of what aiohttp takes for a whole request (m: through `_in_full` a lone request costs 2.5 us more).
        match_info: Any = request._match_info
        known = self._routes.get(id(match_info._route))
        if (
            known is not None
            and known.app_id == id(match_info._current_app)
            and request._method == "GET"
            and request._payload is EMPTY_PAYLOAD
            and request._transport_sslcontext is None
        ):
            message = request._message
            key_value: Hashable = None
            if self._key is not None:
                key_value = self._key_of(request, message.headers)
                if key_value is _ODD:
                    return await self._in_full(request, handler)
            cache = request._cache
            target = message.path
            table: RequestTable = known.table
            if (
                len(cache) == USUALLY_LOOKED_UP
                and target not in table.crowds
                and (known.is_first or self._is_untouched(request))
            ):
                flights: dict[Hashable, Any] = table.flights
                elder = flights.get(target)
                headers = message.headers
                if elder is not None:
                    if type(elder) is RecordedHeaders:
                        elder = table.meet(target, elder)
                    now = self._clock()
                    if (
                        elder.head == (message.raw_headers, message.version, match_info._route, match_info)
                        and elder.outcome is PENDING
                        and now < elder.closes
                        and table.writes.latest < elder.opened
                        and elder.subject._protocol is not request._protocol
                        and (key_value is None or self._is_equal(elder.key_value, key_value))
                    ):
                        known.counters.joined += 1
                        follower = Follower(table, request, handler, known, now)
                        if key_value is not None:
                            follower.key_value = key_value
                        if not known.is_first:
                            follower.look_at_request()
                        return await follower.follow(elder)
                elif (
                    _UPGRADE not in headers
                    and _EXPECT not in headers
                    and not (_ACCEPT in headers and asks_for_events(headers))
                ):
                    run = RecordedHeaders()
                    run.request = request
                    run.opened = now = self._clock()
                    run.table = table
                    run.route = known
                    run.flight = run.notes = None
                    if key_value is not None:
                        run.key_value = key_value
                    cancelling = 0
                    if not known.is_first:
                        # (No name for it here: the exception that a task was cancelled with holds this frame.)
                        run.task = current_task(table.loop)
                        cancelling = run.task.cancelling()
                    # As `_aiohttp.lend` does it.
                    run.under = headers
                    state = RecordedState()
                    state.headers = run
                    state.under = mapping = request._state
                    request._headers = cache["headers"] = run  # type: ignore[assignment]
                    request._state = state  # type: ignore[assignment]
                    request._prepare_hook = run  # type: ignore[method-assign,assignment]
                    # From here to the `try` nothing may fail: nobody would end the run.
                    flights[target] = run
                    counters = known.counters
                    counters.led += 1
                    try:
                        response = await handler(request)
                        if run.flight is not None and run.flight.stream is not None:
                            await run.flight.stream.handler_ended(response)
                    except BaseException as exception:
                        handler_failed(self._settings, run, target, cancelling, exception)
                        del run, state  # the flight may hold the exception, which holds this frame
                        raise
                    finally:
                        counters.ended += 1
                    if (
                        run.flight is None
                        and response.__class__ is Response
                        and response._body.__class__ is bytes
                        and self._clock() - now <= LAST_CALL_AFTER
                    ):
                        # Nobody met it, nobody can: as `_aiohttp.take_back` does it.
                        flights.pop(target, None)
                        request._headers = cache["headers"] = headers
                        request._state = mapping
                        del request._prepare_hook
                    else:
                        handler_returned(self._settings, run, target, cancelling, response)
                    return response
            return await self._in_full(request, handler, key_value)
        return await self._in_full(request, handler)

    async def _in_full(self, request: web.Request, handler: Handler, key_value: Hashable = None) -> web.StreamResponse:
        """What `__call__` does, for every request."""
        raw_target, method, headers, payload, tls, route, app = _aiohttp.at_the_door(request)
        if raw_target.startswith(self._stats_prefix) and await asks_for_stats(
            request, self._stats_path, self._stats_access
        ):
            return await self.stats_handler(request)
        outer, _ = _aiohttp.lent(request)
        if type(outer) is RecordedHeaders:
            outer.met()  # it has more to look at when it ends
        known = self._routes.get(id(route))
        if known is None:
            known = self._enter(route)
        if (
            method not in known.reduced_methods
            or payload is not EMPTY_PAYLOAD
            or _UPGRADE in headers
            or _EXPECT in headers
            or (_ACCEPT in headers and asks_for_events(headers))
            or self._when is not None
        ):
            reason = bypass_reason(request, method, headers, known, self._methods, self._when)
            if reason is not None:
                return await self._bypass(request, handler, known, reason)
        certificate = None if tls is None else _aiohttp.client_certificate(request)
        if self._key is not None and key_value is None:
            try:
                key_value = typed(self._key(request))
                hash(key_value)
            except Exception:
                logger.exception("key raised for %r, or gave something unhashable; not reduced", request)
                return await self._bypass(request, handler, known, Bypass.KEY_ERROR)

        if known.learned_items and known.remembers(self._clock()):
            mapping = _aiohttp.mapping_of(request)
            items = tuple([as_key(mapping.get(item, MISSING), request) for item in known.learned_items])
            key_value = Keyed(key_value, items)

        table = self._tables.get(id(app))
        if table is None:
            table = self._make_table(app)
        if not known.app_id:
            self._learn_route(known, request, table)
        target = raw_target if method == "GET" else f"{method} {raw_target}"
        now = self._clock()
        elder = flight = None
        flights: dict[Hashable, Any] = table.flights
        alone = target not in flights and target not in table.crowds
        arrival = None
        if not alone:
            arrival = Arrival(table, target, request, certificate, key_value, known)
            try:
                if target in table.passes.by_target:
                    flight = table.must_pass(arrival, now)
                if flight is None:
                    elder = table.find(arrival)
            except Exception:
                logger.exception("the value of key cannot be compared for %r; not reduced", request)
                return await self._bypass(request, handler, known, Bypass.KEY_ERROR)
            if elder is not None and elder.subject.protocol is request.protocol:
                if elder.under_way:
                    # The same request, at the same door again: it would wait for itself.
                    return await handler(request)
                # The last call is for others: this client has had its answer, and asks anew.
                elder.close()
        counters = known.counters
        settings = self._settings
        if settings.late and request.protocol in settings.late:
            return await handler(request)
        told = settings.hooks is not None
        if told:
            settings.tell("on_apply_for", request, known)
        if elder is not None and table.admits(elder, now):
            counters.joined += 1
            if told:
                settings.tell("on_reducing_for", request, known)
            follower = Follower(table, request, handler, known, now)
            follower.certificate = certificate
            follower.key_value = key_value
            follower.look_at_request()
            return await follower.follow(elder)

        if arrival is not None and flight is None and logger.isEnabledFor(logging.DEBUG):
            logger.debug("%.80s %s: does not wait (%s)", method, known.name, why_apart(table, arrival, elder, now))
        if flight is not None:
            counters.count_unshared(Unshared.PASS_MARKER)
            logger.debug("%.80s %s: not shared (%s)", method, known.name, Unshared.PASS_MARKER)
        if told:
            settings.tell("on_executing_for", request, known)
        task: Any = current_task(table.loop)
        cancelling = task.cancelling()
        run = RecordedHeaders()
        run.request = request
        run.opened = now
        run.table = table
        run.route = known
        run.task = task
        run.flight = None
        run.is_odd = True
        _aiohttp.lend(request, run, RecordedState(), settings.kept)
        # From here to the `try` nothing may fail: nobody would end the flight.
        if alone and certificate is None:
            run.key_value = key_value
            flights[target] = run
        elif flight is None:
            arrival = arrival or Arrival(table, target, request, certificate, key_value, known)
            flight = table.open(arrival, now, elder)
        run.flight = flight
        counters.led += 1
        try:
            response = await handler(request)
            if run.flight is not None and run.flight.stream is not None:
                await run.flight.stream.handler_ended(response)
        except BaseException as exception:
            handler_failed(settings, run, target, cancelling, exception)
            del flight, run, task  # the flight may hold the exception, which holds this frame; a task does, too
            raise
        finally:
            counters.ended += 1
        handler_returned(settings, run, target, cancelling, response)
        if told:
            settings.tell("on_result_for", request, known, response)
        return response

    def _key_of(self, request: web.Request, headers: MultiMapping[str]) -> Hashable:
        """The typed value of `key`; `_ODD` where it has none, or there is a reason not to ask for one."""
        if _UPGRADE in headers or _EXPECT in headers or (_ACCEPT in headers and asks_for_events(headers)):
            return _ODD
        assert self._key is not None
        try:
            key_value = typed(self._key(request))
            hash(key_value)
        except Exception:
            return _ODD
        return key_value

    def _is_equal(self, one: Hashable, other: Hashable) -> bool:
        try:
            return one == other
        except Exception:
            return False

    def _learn_route(self, known: Route, request: web.Request, table: RequestTable) -> None:
        """Let later GETs of this route take the short way in `__call__`, if nothing can be odd about them there."""
        if (
            self._is_plain
            and request.method == "GET"
            and not ((known.learned or known.learned_items) and known.remembers(self._clock()))
            and _aiohttp.is_ordinary(request, self._stats_path)
        ):
            known.table = table
            known.is_first = table.finds_plainly and _aiohttp.is_first_middleware(request, self)
            known.app_id = id(request.match_info.current_app)

    def _is_untouched(self, request: web.Request) -> bool:
        """Whether what outer middlewares did with a request leaves it an ordinary one."""
        late = self._settings.late
        return _aiohttp.is_untouched(request) and not (late and request.protocol in late)

    async def _bypass(self, request: web.Request, handler: Handler, known: Route, reason: Bypass) -> web.StreamResponse:
        known.counters.count_bypass(reason)
        logger.debug("%.80s %s: not considered (%s)", request.method, known.name, reason)
        if request.method not in arguments.SAFE_METHODS and request.match_info.http_exception is None:
            self._watch_write(request)
        return await handler(request)

    def _make_table(self, app: web.Application) -> RequestTable:
        """The table of an application, and with it of its loop; those of dead loops and applications go."""
        tables = self._tables
        for key, table in list(tables.items()):
            if table.loop.is_closed():
                tables.pop(key, None)
        key = id(app)
        settings = self._settings
        loop = get_running_loop()
        table = RequestTable(loop, settings, self._max_age)
        table.landing = Landing(settings, Limits(loop, self._max_buffer, self._budgets.get()))
        table.finds_plainly = _aiohttp.finds_plainly(app.router)
        tables[key] = table
        weakref.finalize(app, _forget_app, key, tables, self._routes).atexit = False
        return table

    def _watch_write(self, request: web.Request) -> None:
        """Close the path's flights when an unsafe request is answered, unless it is refused (4xx)."""
        path = request.path

        def answered(status: int) -> None:
            if not 400 <= status < 500:
                self._wrote(path)

        _aiohttp.before_answer(request, answered)

    def _wrote(self, path: str) -> None:
        now = self._settings.clock()
        for table in list(self._tables.values()):
            table.wrote(path, now)


def _forget_app(app_id: int, tables: dict[int, RequestTable], routes: dict[int, Route]) -> None:
    """The application is gone: another one may have its identity, and its resources."""
    tables.pop(app_id, None)
    for known in list(routes.values()):
        if known.app_id == app_id:
            known.app_id, known.table = 0, None
