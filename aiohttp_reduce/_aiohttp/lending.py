"""Stand-ins in the place of a request's headers and mapping, for the time in which a handler runs."""

from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from .requests import remote_of
from .writers import hook_heads, unhook_heads

EVERYTHING: Final = ""
"""Stands among the names of headers that were looked at where all were: no header is named so."""
REMOTE: Final = "(remote)"
"""Stands there for `request.remote`: no header is named so."""

USUALLY_LOOKED_UP: Final = 4
"""How many of a request's cached properties aiohttp has looked up before any middleware runs.

They are `method`, `rel_url` (to find the route), `headers` (for Expect) and `match_info` (3.12)."""

_EMPTY: Final[dict[Any, Any]] = {}
_NOT_LENT: Final = -1

# What `reify` (3.0) keeps in a request's `_cache` of that which says more than one header, by what it says.
_SAYS: Final = {
    "raw_headers": EVERYTHING,
    "message": EVERYTHING,
    "forwarded": "forwarded",
    "keep_alive": "connection",
    "remote": REMOTE,
}
# What it keeps of single headers: it asks for them by name, when it is first looked up.
_KEPT: Final = {
    "cookies": "cookie",
    "http_range": "range",
    "if_match": "if-match",
    "if_none_match": "if-none-match",
    "if_range": "if-range",
    "if_modified_since": "if-modified-since",
    "if_unmodified_since": "if-unmodified-since",
}

_LOOKED_UP: Final = frozenset([*_SAYS, *_KEPT])


def kept_names(in_identity: Callable[[str], bool]) -> frozenset[str]:
    """The properties that `lend` has to make a request look up anew, given which headers are in the identity."""
    return frozenset([*_SAYS, *[name for name, header in _KEPT.items() if not in_identity(header)]])


def lend(request: web.Request, headers: Any, state: Any, kept: frozenset[str]) -> None:
    """Put stand-ins in the place of the request's headers and mapping; `take_back` puts those back.

    `_headers` is behind `headers` and every property that is about one header (3.0), `_state` behind the mapping
    and the first thing `clone()` copies (3.0). Whatever was looked up before is forgotten, if it is in `kept`, to
    be looked up anew: what is there at the end was looked up in between.
    """
    headers.under = request._headers
    headers.notes = headers.peername = None
    request._headers = headers
    state.under = request._state
    state.headers = headers
    request._state = state
    hook_heads(request, headers)
    cache = request._cache
    cache["headers"] = headers
    if (
        # (m: 0.04 us to see that, 0.2 for the rest.)
        len(cache) != USUALLY_LOOKED_UP or "rel_url" not in cache or "method" not in cache or "match_info" not in cache
    ) and not kept.isdisjoint(cache):
        _forget_looked_up(request, headers, kept)
    headers.looked_up = len(cache)


def _forget_looked_up(request: web.BaseRequest, headers: Any, kept: frozenset[str]) -> None:
    cache = request._cache
    for name in kept.intersection(cache):
        value = cache.pop(name)
        outer = headers.under
        while type(outer) is type(headers):
            # The doors further out count what is there, and have to know what was looked up between two of them.
            outer.looked_up -= 1
            if name in _SAYS:
                outer.note(_SAYS[name])
            outer = outer.under
        if name == "remote" and value != remote_of(request):
            # Set by a `clone()`. It would be found by itself where `remote` looks for the address (3.0).
            if type(value) is str:
                headers.peername = (request._transport_peername,)
                request._transport_peername = (value, 0)
            else:
                headers.note(_SAYS[name])
                cache[name] = value


def take_back(request: web.BaseRequest, headers: Any) -> None:
    """Put back what `lend` took away, and note what was looked up otherwise than in the headers."""
    cache = request._cache
    under = headers.under
    unhook_heads(request, headers)
    if request._headers is headers:
        request._headers = cache["headers"] = under
        state: Any = request._state
        request._state = state.under
    else:
        _unlink(request, headers)
    if len(cache) != headers.looked_up:
        note_looked_up(headers)
    headers.looked_up = _NOT_LENT
    if headers.peername is not None:
        cache["remote"] = remote_of(request)
        (request._transport_peername,) = headers.peername


def note_looked_up(headers: Any) -> None:
    """Note what was looked up otherwise than in the headers, so far; for as long as they are lent."""
    cache = headers.request._cache
    if len(cache) != headers.looked_up != _NOT_LENT:
        for name in _SAYS.keys() & cache.keys():
            headers.note(_SAYS[name])


def look_aside(headers: Any) -> dict[str, Any]:
    """Let what is looked up from now on be no matter of the handler's; what it had looked up, for `look_back`."""
    note_looked_up(headers)
    cache = headers.request._cache
    return {name: cache.pop(name) for name in _LOOKED_UP & cache.keys()}


def look_back(headers: Any, looked_up: dict[str, Any]) -> None:
    """What is looked up from now on is the handler's matter again."""
    cache = headers.request._cache
    for name in _LOOKED_UP & cache.keys():
        del cache[name]
    cache.update(looked_up)
    if headers.looked_up != _NOT_LENT:
        headers.looked_up = len(cache)


def _unlink(request: web.BaseRequest, headers: Any) -> None:
    """Take stand-ins out from under others: this run ends before one that was begun after it.

    So it is where an outer middleware runs one request twice at once, or an inner one leaves a task behind.
    """
    _take_out(request._headers, lambda one: one is headers)
    _take_out(request._state, lambda one: one.headers is headers)


def _take_out(upper: Any, is_gone: Callable[[Any], bool]) -> None:
    under: Any = getattr(upper, "under", None)
    while type(under) is type(upper):
        if is_gone(under):
            upper.under = under.under
            return
        upper, under = under, getattr(under, "under", None)


def lent(request: web.BaseRequest) -> tuple[Any, Any]:
    """The headers and the mapping's storage as the request has them now."""
    return request._headers, request._state


def item_name(key: object) -> str:
    """The name of an item of the request mapping; `_name` is that of a `web.RequestKey` (3.14)."""
    try:
        return str(getattr(key, "_name", key))
    except Exception:
        return type(key).__name__


def mapping_of(request: web.BaseRequest) -> dict[Any, Any]:
    """A copy of the request mapping, whatever is lent."""
    state: Any = request._state
    while type(state) is not dict and hasattr(state, "under"):
        state = state.under
    return dict(state) if state else _EMPTY
