"""What one middleware object knows of each route: its name, its figures, and what its handlers look at."""

import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final

from aiohttp import web

from .._aiohttp import UNROUTED
from ..stats import OTHER, Counters

MAX_ROUTES: Final = 1_000
UNROUTED_NAME: Final = "(unrouted)"
# So many names of each kind are learned for one route; a handler that makes up names has no end of them.
MAX_LEARNED: Final = 32
# Seconds for which they are remembered after they split a herd, so that one odd request, on which a handler looked
# at more than it usually does, does not keep herds apart for ever.
REMEMBERED_FOR: Final = 60.0


class Route:
    """What is known of one route.

    `reduced_methods` are its methods that may be reduced. `learned` are the request headers, in lower case,
    by which herds were split because its handlers looked at them, or its answers' Vary names them, although the
    identity does not hold them: they join the identity of its later requests. So do the items of the request
    mapping in `learned_items`.

    `app_id` is the identity of the application in which its GETs take the short way of the door, and 0 if in none;
    `table` that application's, and `is_first` says whether nothing of the application's comes before the door there.
    """

    __slots__ = (
        "app_id", "counters", "is_first", "learned", "learned_items", "name", "reduced_methods", "reference", "table",
        "until",
    )  # fmt: skip

    def __init__(self, name: str, counters: Counters, reference: Any) -> None:
        self.name: str = name
        self.counters: Counters = counters
        self.reduced_methods: set[str] = set()
        self.reference: Any = reference
        self.learned: tuple[str, ...] = ()
        self.learned_items: tuple[Hashable, ...] = ()
        self.until: float = 0.0
        self.app_id: int = 0
        self.table: Any = None
        self.is_first: bool = False

    def learn(self, names: Iterable[str], keys: Iterable[Hashable], now: float) -> None:
        """Let these headers and items of the request mapping join the identity of the route's later requests."""
        self.remembers(now)
        if not (self.learned or self.learned_items):
            self.until = now + REMEMBERED_FOR
        self.app_id = 0
        self.learned = _grown(self.learned, names)
        self.learned_items = _grown(self.learned_items, keys)

    def remembers(self, now: float) -> bool:
        """Whether what was learned still holds; otherwise it is forgotten."""
        if now < self.until:
            return True
        self.learned = self.learned_items = ()
        return False


def _grown(known: tuple[Any, ...], new: Iterable[Any]) -> tuple[Any, ...]:
    # A new tuple, set at once: another loop's thread may be reading the old one.
    return tuple(dict.fromkeys([*known, *new]))[:MAX_LEARNED]


class Routes:
    """The routes that were asked for, by identity, and their counters, by name; bounded."""

    __slots__ = ("by_id", "counters", "unrouted")

    def __init__(self) -> None:
        self.by_id: dict[int, Route] = {}
        self.counters: dict[str, Counters] = {}
        self.unrouted: Route | None = None

    def enter(self, route: web.AbstractRoute) -> Route:
        """The entry of a route that `by_id` does not have yet."""
        if isinstance(route, UNROUTED):
            # A new one for every such request: all of them are one entry.
            if self.unrouted is None:
                self.unrouted = Route(UNROUTED_NAME, self._counters(UNROUTED_NAME), None)
            return self.unrouted
        resource = route.resource
        name = str(UNROUTED_NAME if resource is None else resource.canonical)
        by_id, key = self.by_id, id(route)
        entry = Route(name, self._counters(name), weakref.ref(route, _remove_from(by_id, key)))
        by_id[key] = entry
        return entry

    def _counters(self, name: str) -> Counters:
        if name not in self.counters and len(self.counters) >= MAX_ROUTES:
            name = OTHER
        return self.counters.setdefault(name, Counters())


def _remove_from(by_id: dict[int, Route], key: int) -> Callable[[object], None]:
    def remove(_reference: object) -> None:
        by_id.pop(key, None)

    return remove
