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
    """Make a middleware that runs identical requests in flight once: `app.middlewares.append(reduce_middleware())`.

    Requests are identical if they agree in application, route and what it matched, method, scheme, HTTP version,
    Host, raw target, TLS client certificate, the selected headers, and `key(request)`. Whether those who waited
    together may share is decided afterwards, by what the handler looked at and by what its answer says (RFC 9111,
    applied to requests in flight).

    - `methods`: the methods that are reduced, in any case; GET and HEAD by default. Only safe ones (RFC 9110, 9.2.1)
      are taken: GET, HEAD, OPTIONS, TRACE, QUERY.
    - `headers`: the request headers that are compared, such as `("Accept", "Authorization", "Cookie")`. None, the
      default: all but `ignore_headers`.
    - `ignore_headers`: names of request headers that are left out, a trailing `*` standing for any ending. They
      replace `DEFAULT_IGNORE_HEADERS`; to add to it, write `DEFAULT_IGNORE_HEADERS | {"X-Build", "X-Noise-*"}`. Of no
      effect where `headers` is given.
    - `ignore_cookies`: names of cookies that are left out of a Cookie header that is compared, and that no handler
      looks at; a trailing `*` stands for any ending. They replace `DEFAULT_IGNORE_COOKIES`.
    - `ignore_state`: keys of the request mapping, str or `web.RequestKey`, that handlers may look at, set and
      delete without that keeping requests apart. Default: none.
    - `key`: a plain function of the request, called when it comes; its hashable value is added to the identity, and
      where it is not None, `Cache-Control: private` answers are shared among those with the same. Default: nothing
      is added. Where it raises, or its value cannot be hashed, that is logged, and the request goes straight on.
    - `when`: a plain function of the request; where it is false, the request goes straight on. Default: all are
      considered. Where it raises, that is logged, and the request goes straight on.
    - `share`: a plain function of the request and the response of its handler; where it gives a bool, that decides
      whether others may have the response, whatever that says itself (what cannot be sent twice stays unshared).
      Default, and where it gives None: the rules decide. Where it raises, that is logged, and nobody shares.
    - `max_age`: seconds for which a flight takes followers; a later request starts its own. So no answer is based on
      a run that began more than this before the request came. 5 by default; `math.inf` for as long as it takes.
    - `max_wait`: seconds that a follower waits before it also joins, or leads, a younger flight; the first outcome
      wins. 30 by default; `math.inf` for as long as it takes.
    - `max_buffer`: bytes of a streamed answer that are kept for those who join late, and by which its handler runs
      ahead of the slowest reader. 4 MiB by default.
    - `max_buffer_total`: bytes that all streamed answers of this middleware object may keep together, in one event
      loop. 64 MiB by default.
    - `hooks`: told of each request, with the `web.Request` in place of the coroutine and an identity such as
      `GET http://example.org/path?query`; see `aiohttp_reduce.hooks.BaseHooks`. Default: nobody is told.
    - `stats_path`: the path at which the figures are, `/_reduce/stats` by default; None: nowhere.
    - `stats_access`: a function of the request, sync or async, that says who sees them. For whoever is refused, and
      where it raises, the application answers as if the page did not exist. By default `local_only`.
    - `cache_status`: the name that the Cache-Status header (RFC 9211) of an answer that had waited bears,
      `aiohttp-reduce` by default; None: no header.

    Returns the middleware, an object with the figures and `forget`. Raises TypeError or ValueError for a wrong
    argument, naming it and what it takes.

    Example::

        async def user_of(request: web.Request) -> str | None:
            return request.headers.get("X-User")

        middleware = reduce_middleware(key=lambda request: request.get("user"), max_age=2.0)

        @web.middleware
        async def authenticate(request, handler):
            request["user"] = await user_of(request)
            return await handler(request)

        app = web.Application(middlewares=[authenticate, middleware])
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
