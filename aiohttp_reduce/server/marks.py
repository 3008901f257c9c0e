"""`@never_reduce`, and how the mark is found again under whatever a handler is wrapped in."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final, TypeVar

from aiohttp import web

F = TypeVar("F", bound=Callable[..., Any])

_MARK: Final = "__never_reduce__"
# Wrappers around wrappers: more than anybody writes, and an end for a loop of `__wrapped__`.
_MAX_DEPTH: Final = 100


def never_reduce(handler: F) -> F:
    """Mark a handler, a class-based view or one of its methods: its requests are never coalesced.

    Use it for handlers whose GETs do something, or that answer each client differently by what no header
    says. The mark is found under decorators (`functools.wraps`), partials and methods too. Returns the handler
    itself. Raises TypeError for what cannot be called.

    Example::

        @never_reduce
        async def lottery(request: web.Request) -> web.Response:
            return web.Response(text="a new ticket for each")
    """
    if not callable(handler):
        raise TypeError(f"never_reduce() takes a handler function or a View class, got {handler!r}")
    setattr(handler, _MARK, True)
    return handler


def is_marked(handler: Any, method: str) -> bool:
    """Whether the handler of a route is marked for this method: itself, what it wraps, or the view's method."""
    for _ in range(_MAX_DEPTH):
        if handler is None:
            return False
        if getattr(handler, _MARK, False):
            return True
        if isinstance(handler, type) and issubclass(handler, web.View):
            handler = getattr(handler, method.lower(), None)
        elif isinstance(handler, functools.partial):
            handler = handler.func
        elif hasattr(handler, "__wrapped__"):
            handler = handler.__wrapped__
        elif inspect.ismethod(handler) or inspect.isfunction(handler):
            return False
        else:
            # An instance that is called: the mark may be on its class's `__call__`.
            return bool(getattr(type(handler).__call__, _MARK, False))
    return False
