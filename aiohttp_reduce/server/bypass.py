"""Which requests coalescing does not consider at all, and why."""

import logging
from collections.abc import Callable
from typing import Final

from aiohttp import hdrs, web
from multidict import MultiMapping

from ..stats import Bypass
from .marks import is_marked
from .routes import Route

logger: logging.Logger = logging.getLogger("aiohttp_reduce")

_EVENT_STREAM: Final = "text/event-stream"


def bypass_reason(
    request: web.Request,
    method: str,
    headers: MultiMapping[str],
    known: Route,
    methods: frozenset[str],
    when: Callable[[web.Request], bool] | None,
) -> Bypass | None:
    """Why coalescing does not consider a request, given `methods` and `when` of the middleware; None if it does."""
    if method not in methods:
        return Bypass.METHOD
    if method not in known.reduced_methods:
        if is_marked(request.match_info.handler, method):
            return Bypass.NEVER_REDUCE
        known.reduced_methods.add(method)
    if "websocket" in headers.get(hdrs.UPGRADE, "").lower():
        return Bypass.WEBSOCKET
    if hdrs.EXPECT in headers:
        return Bypass.EXPECT
    if request.body_exists:
        return Bypass.BODY
    if asks_for_events(headers):
        return Bypass.EVENT_STREAM
    if when is not None:
        try:
            if not when(request):
                return Bypass.WHEN
        except Exception:
            logger.exception("when raised for %r; not reduced", request)
            return Bypass.WHEN_ERROR
    return None


def asks_for_events(headers: MultiMapping[str]) -> bool:
    """Whether a request accepts a stream of events."""
    return _EVENT_STREAM in ",".join(headers.getall(hdrs.ACCEPT, ())).lower()
