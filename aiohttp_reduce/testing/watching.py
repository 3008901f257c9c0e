"""Standing in the way of calls while a test's block is open, and not at all otherwise.

While it is watched, a target is of a subclass of its class: its calls then come by here, and give those who lead
something to wait for. With the last block its class is the old one again. So nothing in the library knows of this, and
a target that nobody watches takes not one step more.
"""

import asyncio
import threading
from collections.abc import Coroutine, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from aiohttp import ClientRequest, ClientResponse, web
from aiohttp.client_middlewares import ClientHandlerType
from aiohttp.typedefs import Handler

from .. import _aiohttp
from ..async_reduce_core import AsyncReducer
from ..client.door import ReduceClientMiddleware
from ..server import ReduceMiddleware
from ..server.reads import RecordedHeaders
from ..stats import Counters, Stats
from .finding import Reducing
from .runs import reducer_run, request_run
from .stand_ins import Call, Holder, Sending, wait

T = TypeVar("T")


class Watch:
    """A target while blocks are open at it."""

    def __init__(self, target: Reducing) -> None:
        self.target = target
        self.blocks = 0
        self.holders: list[Holder] = []
        # A reducer has no figures of its own: these, by name, and the followers that were not seen to end.
        self.counters: dict[str, Counters] = {}
        self._stats = Stats(self.counters, "names")
        self._waiting: dict[asyncio.Future[Any], Counters] = {}
        self._plain_class: Any = type(target)

    def figures(self) -> Mapping[str, Any]:
        """What the target did, as its `stats` have it."""
        if not isinstance(self.target, AsyncReducer):
            return self.target.stats
        for future in list(self._waiting):
            if future.done():
                self._answered(future)
        return self._stats.as_dict()

    def joined(self, future: "asyncio.Future[Any]", counters: Counters) -> None:
        """A call of a reducer has joined another's flight."""
        counters.joined += 1
        counters.waiting += 1
        self._waiting[future] = counters
        future.add_done_callback(self._answered)

    def _answered(self, future: "asyncio.Future[Any]") -> None:
        # Whoever awaits several futures may look at the figures before the loop has told of each.
        counters = self._waiting.pop(future, None)
        if counters is not None:
            counters.waiting -= 1
            counters.reduced += not future.cancelled()

    def begin(self) -> None:
        """Let the calls come by."""
        set_class(self.target, _watched(self._plain_class))

    def end(self) -> None:
        """Let them go straight on."""
        set_class(self.target, self._plain_class)


_watches: dict[int, Watch] = {}
_lock = threading.Lock()


@contextmanager
def watch(target: Reducing, holder: Holder | None = None) -> Iterator[Watch]:
    """Watch the target in a block, for a holder or for its figures only."""
    with _lock:
        watched = _watches.get(id(target))
        if watched is None:
            watched = Watch(target)
            watched.begin()
            _watches[id(target)] = watched
        watched.blocks += 1
        if holder is not None:
            watched.holders.append(holder)
    try:
        yield watched
    finally:
        with _lock:
            watched.blocks -= 1
            if holder is not None:
                watched.holders.remove(holder)
            if not watched.blocks:
                del _watches[id(target)]
                watched.end()


def set_class(target: Any, cls: type) -> None:
    """Make the target be of another class of the same layout."""
    target.__class__ = cls


def _watched(cls: Any) -> type:
    """A subclass of this class whose calls come by here."""
    if issubclass(cls, ReduceMiddleware):
        calls = _requests(cls)
    elif issubclass(cls, ReduceClientMiddleware):
        calls = _outgoing(cls)
    else:
        calls = _coroutines(cls)
    return type(cls.__name__, (cls,), {"__slots__": (), "__module__": cls.__module__, **calls})


def _came(target: Reducing, call: Any, name: Hashable) -> list[Holder]:
    """Tell those who hold this call in this loop that it has come."""
    watched = _watches.get(id(target))
    if watched is None or not watched.holders:
        return []
    loop = asyncio.get_running_loop()
    holders = [holder for holder in list(watched.holders) if holder.loop is loop and holder.selects(call, name)]
    for holder in holders:
        holder.came()
    return holders


# What the calls do then. A call may begin when its target is of the plain class again: they know that by themselves.


def _requests(plain: Any) -> dict[str, Any]:
    async def call(self: ReduceMiddleware, request: web.Request, handler: Handler) -> web.StreamResponse:
        # (`request.path` would be one more thing that was looked up, and keep it from the door's short way.)
        holders = _came(self, request, request.rel_url.path)

        async def held(arrived: web.Request) -> web.StreamResponse:
            run, _ = _aiohttp.lent(arrived)
            # It leads here, and others may join.
            if (
                type(run) is RecordedHeaders
                and run.table.settings is self._settings
                and (run.flight is None or run.flight.passes is None)
            ):
                await wait(holders, request_run(run))
            return await handler(arrived)

        response: web.StreamResponse = await plain.__call__(self, request, held if holders else handler)
        return response

    return {"__call__": call}


def _outgoing(plain: Any) -> dict[str, Any]:
    async def call(self: ReduceClientMiddleware, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        holders = _came(self, request, request.url.path)
        if holders and hasattr(handler, "__closure__"):
            handler = Sending(self, holders, handler)
        response: ClientResponse = await plain.__call__(self, request, handler)
        return response

    async def pass_on(
        self: ReduceClientMiddleware, request: ClientRequest, handler: ClientHandlerType
    ) -> ClientResponse:
        _came(self, request, request.url.path)
        response: ClientResponse = await plain.pass_on(self, request, handler)
        return response

    return {"__call__": call, "pass_on": pass_on}


def _coroutines(plain: Any) -> dict[str, Any]:
    def call(self: AsyncReducer, coro: Coroutine[Any, Any, T], *, ident: Hashable = None) -> "asyncio.Future[T]":
        watched = _watches.get(id(self))
        if watched is None or not isinstance(coro, Coroutine):
            future: asyncio.Future[T] = plain.__call__(self, coro, ident=ident)
            return future
        stand_in = Call(coro)
        future = plain.__call__(self, stand_in, ident=ident)
        name: Hashable = ident
        if ident is None:
            name = getattr(coro, "__qualname__", type(coro).__qualname__).rpartition("<locals>.")[2]
        holders = _came(self, coro, name)
        counters = watched.counters.setdefault(str(name), Counters())
        if stand_in.is_closed:
            watched.joined(future, counters)
        else:
            counters.led += 1
            stand_in.lead(holders, reducer_run(self._tables.get().flights.values(), future, str(name)), counters)
        return future

    return {"__call__": call}
