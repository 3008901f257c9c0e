"""What a test names, and the object behind it that does the reducing."""

from collections.abc import Iterator
from typing import Any

from aiohttp import web

from ..async_reduce_core import AsyncReducer
from ..client import ReducingClientSession
from ..client.door import ReduceClientMiddleware
from ..server import ReduceMiddleware

Target = ReduceMiddleware | ReduceClientMiddleware | ReducingClientSession | AsyncReducer | web.Application
"""What can be counted and held; an application stands for the one `reduce_middleware()` in it and its sub-apps."""

Reducing = ReduceMiddleware | ReduceClientMiddleware | AsyncReducer
"""What does it."""


def find(target: Any) -> Reducing:
    """The object behind a target.

    Raises TypeError for anything else, and ValueError for an application that has no such middleware, or several.
    """
    if isinstance(target, (ReduceMiddleware, ReduceClientMiddleware, AsyncReducer)):
        return target
    if isinstance(target, ReducingClientSession):
        return target._reducer
    if isinstance(target, web.Application):
        return _find_in(target)
    hint = "; pass its app" if isinstance(getattr(target, "app", None), web.Application) else ""
    raise TypeError(
        "target takes what reduce_middleware() or reduce_client_middleware() made, a ReducingClientSession, "
        f"an AsyncReducer or a web.Application, got {target!r}{hint}"
    )


def _find_in(app: web.Application) -> ReduceMiddleware:
    places: dict[ReduceMiddleware, list[str]] = {}
    for place, level in _levels(app, "/"):
        for middleware in level.middlewares:
            if isinstance(middleware, ReduceMiddleware):
                places.setdefault(middleware, []).append(place)
    if not places:
        raise ValueError(
            "the application and its sub-applications have no reduce_middleware() among their middlewares; if another "
            "middleware wraps it, pass the object itself"
        )
    if len(places) > 1:
        where = ", ".join([place for found in places.values() for place in found])
        raise ValueError(
            f"the application has {len(places)} reduce middlewares, at {where}; pass the one that is meant, or the "
            "sub-application that it is in"
        )
    return next(iter(places))


def _levels(app: web.Application, place: str) -> Iterator[tuple[str, web.Application]]:
    """An application and those in it, each with where it is."""
    yield place, app
    for resource in app.router.resources():
        info: Any = resource.get_info()
        if "app" in info:
            yield from _levels(info["app"], str(info.get("prefix") or resource.canonical))
