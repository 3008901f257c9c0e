"""`reduce_client_middleware`: checks its arguments, and makes the middleware object of `door.py`."""

import time
from collections.abc import Iterable

from .. import arguments
from ..async_reduce_core import BaseHooks
from ..async_reduce_core.hooks import check_hooks
from .door import ReduceClientMiddleware
from .identity import DEFAULT_IGNORE_HEADERS, Identities
from .settings import Settings


def reduce_client_middleware(
    *,
    methods: Iterable[str] = ("GET", "HEAD"),
    ignore_headers: Iterable[str] = DEFAULT_IGNORE_HEADERS,
    max_age: float = 5.0,
    max_wait: float = 30.0,
    max_buffer: float = 4 * 2**20,
    max_buffer_total: float = 64 * 2**20,
    hooks: BaseHooks | None = None,
) -> ReduceClientMiddleware:
    """Make a client middleware that sends identical requests in flight once: `ClientSession(middlewares=[...])`.

    It must stand last, next to the wire: further out it lets every request pass, and counts it as bypassed. Requests
    are identical if they agree in session, method, URL, headers, proxy, TLS options, and the options of the call that
    say how the answer is read.

    - `methods`: the methods that are reduced, in any case; GET and HEAD by default. Only safe ones (RFC 9110, 9.2.1)
      are taken: GET, HEAD, OPTIONS, TRACE, QUERY.
    - `ignore_headers`: names of request headers that are left out of the identity, a trailing `*` standing for any
      ending. They replace `aiohttp_reduce.client.DEFAULT_IGNORE_HEADERS`, the tracing ones; to add to it, write
      `DEFAULT_IGNORE_HEADERS | {...}`. What an answer's Vary names keeps requests apart all the same.
    - `max_age`: seconds for which a request in flight is joined by others; a later call sends its own. 5 by default;
      `math.inf` for as long as it takes.
    - `max_wait`: seconds that a call waits for another one's head before it also joins, or starts, a younger flight;
      the first head wins. 30 by default; `math.inf` for as long as it takes.
    - `max_buffer`: bytes of a body that are kept for those who may still join, and by which the fastest reader may
      be ahead of the slowest. 4 MiB by default.
    - `max_buffer_total`: bytes that all bodies of this object may keep together, in one event loop. 64 MiB by
      default.
    - `hooks`: told of each request, with the `aiohttp.ClientRequest` in place of the coroutine and an identity such
      as `GET http://example.org/path?query`; see `aiohttp_reduce.hooks.BaseHooks`. Default: nobody is told.

    Returns the client middleware, an object with the figures and `forget`. Raises TypeError or ValueError for a wrong
    argument, naming it and what it takes.

    Example::

        reducer = reduce_client_middleware(max_age=1.0)

        async def main() -> None:
            async with aiohttp.ClientSession(middlewares=[reducer]) as session:
                ...
            print(reducer.stats["reduced"])  # 0
    """
    check_hooks(hooks, "hooks")
    return ReduceClientMiddleware(
        Settings(
            methods=arguments.methods(methods),
            identities=Identities(arguments.header_names("ignore_headers", ignore_headers, wildcards=True)),
            max_age=arguments.seconds("max_age", max_age),
            max_wait=arguments.seconds("max_wait", max_wait),
            max_buffer=arguments.size("max_buffer", max_buffer),
            max_buffer_total=arguments.size("max_buffer_total", max_buffer_total),
            hooks=hooks,
            clock=time.monotonic,
        )
    )
