"""`reduce_middleware`: checks its arguments, and makes the middleware object of `door.py`."""

import time
from collections.abc import Callable, Hashable, Iterable

from aiohttp import web

from .. import arguments
from ..async_reduce_core import BaseHooks
from ..async_reduce_core.hooks import check_hooks
from .access import Access, local_only
from .door import ReduceMiddleware
from .identity import DEFAULT_IGNORE_COOKIES, DEFAULT_IGNORE_HEADERS, Selection
from .leading import Settings
from .replay import Share


def reduce_middleware(
    *,
    methods: Iterable[str] = ("GET", "HEAD"),
    headers: Iterable[str] | None = None,
    ignore_headers: Iterable[str] = DEFAULT_IGNORE_HEADERS,
    ignore_cookies: Iterable[str] = DEFAULT_IGNORE_COOKIES,
    ignore_state: Iterable[Hashable] = (),
    key: Callable[[web.Request], Hashable] | None = None,
    when: Callable[[web.Request], bool] | None = None,
    share: Share | None = None,
    max_age: float = 5.0,
    max_wait: float = 30.0,
    max_buffer: float = 4 * 2**20,
    max_buffer_total: float = 64 * 2**20,
    hooks: BaseHooks | None = None,
    stats_path: str | None = "/_reduce/stats",
    stats_access: Access = local_only,
    cache_status: str | None = "aiohttp-reduce",
) -> ReduceMiddleware:
    """Make a middleware that runs identical requests in flight once: `app.middlewares.append(...)`.

    Requests are identical if they agree in application, route and what it matched, method, scheme, HTTP version,
    Host, raw target, TLS client certificate, the selected headers, and `key(request)`.

    - `methods`: the methods that are reduced; safe ones only.
    - `headers`: the request headers that are compared. None: all but `ignore_headers`.
    - `ignore_headers`, `ignore_cookies`: names that are left out, a trailing `*` standing for any ending. They
      replace `DEFAULT_IGNORE_HEADERS` and `DEFAULT_IGNORE_COOKIES`; write `DEFAULT_IGNORE_HEADERS | {...}`.
    - `ignore_state`: keys of the request mapping, str or `web.RequestKey`, that handlers may look at, set and
      delete without that keeping requests apart.
    - `key`: a plain function of the request; its hashable value is added to the identity.
    - `when`: a plain function of the request; where it is false, the request goes straight on.
    - `share`: a plain function of the request and the response that its handler returned; where it gives a bool,
      that decides whether others may have the response, whatever that says itself.
    - `max_age`: seconds for which a flight takes followers.
    - `max_wait`: seconds that a follower waits before it also joins, or leads, a younger flight.
    - `max_buffer`, `max_buffer_total`: bytes of streamed answers that are kept for those who join late, and by which
      a handler runs ahead of the slowest reader: of each stream, and of all of this middleware object in one loop.
    - `hooks`: told of each request, with the request in place of the coroutine.
    - `stats_path`: where the figures are, or None; `stats_access`: a predicate, sync or async, that says who
      sees them.
    - `cache_status`: the name in the Cache-Status header (RFC 9211) of answers that had waited, or None.

    `key` or `when` that raises is logged, and the request goes straight on; after a `share` that raises, the answer
    is not shared. Raises TypeError or ValueError for
    a wrong argument, naming it and what it takes.
    """
    if headers is not None:
        headers = arguments.header_names("headers", headers, wildcards=False)
    selection = Selection(
        headers,
        arguments.header_names("ignore_headers", ignore_headers, wildcards=True),
        arguments.cookie_names("ignore_cookies", ignore_cookies),
    )
    key = arguments.function("key", key, "of the request that returns something hashable")
    check_hooks(hooks, "hooks")
    if not callable(stats_access):
        raise TypeError(f"stats_access takes a function of the request, sync or async, got {stats_access!r}")
    settings = Settings(
        selection=selection,
        share=arguments.function("share", share, "of the request and its response that returns a bool or None"),
        ignore_state=arguments.state_keys("ignore_state", ignore_state),
        max_wait=arguments.seconds("max_wait", max_wait),
        cache_status=arguments.cache_status(cache_status),
        hooks=hooks,
        has_key=key is not None,
        clock=time.monotonic,
    )
    return ReduceMiddleware(
        settings,
        methods=arguments.methods(methods),
        key=key,
        when=arguments.function("when", when, "of the request that returns a bool"),
        max_age=arguments.seconds("max_age", max_age),
        max_buffer=arguments.size("max_buffer", max_buffer),
        max_buffer_total=arguments.size("max_buffer_total", max_buffer_total),
        stats_path=arguments.path("stats_path", stats_path),
        stats_access=stats_access,
    )
