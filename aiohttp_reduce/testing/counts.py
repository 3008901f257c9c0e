"""Counting what a target did in a block: the difference of its figures between two moments."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from .finding import Target, find
from .watching import watch

Figures = Mapping[str, Any]

# What goes up and down is told as it is, not as a difference.
_NOW: Final = ("waiting", "in_flight")
_SUMS: Final = ("total", "executed", "reduced", "errors", "takeovers")
_REASONS: Final = ("bypassed", "unshared")
_NAMED: Final = ("routes", "hosts", "names")


class Counts:
    """What was done since a moment, in the words of `/_reduce/stats`.

    `counts[name]` are those of one route by its pattern (`"/users/{id}"`), one host (`"example.org:8080"`), or one
    coroutine function or `ident`: all zero where nothing came.
    """

    def __init__(self, read: Callable[[], Figures]) -> None:
        self._read = read
        self._before: Figures = read()
        self._after: Figures | None = None

    @property
    def total(self) -> int:
        """Calls that were considered: each executed or joined."""
        return self._since("total")

    @property
    def executed(self) -> int:
        """Runs that were begun: of the handler, of the coroutine, or requests that were sent."""
        return self._since("executed")

    @property
    def reduced(self) -> int:
        """Calls that were answered by another's run. (Not those that still wait for it.)"""
        return self._since("reduced")

    @property
    def errors(self) -> int:
        """Runs that raised anything but an `HTTPException`."""
        return self._since("errors")

    @property
    def takeovers(self) -> int:
        """Followers that ran the handler because its leader had left."""
        return self._since("takeovers")

    @property
    def bypassed(self) -> dict[str, int]:
        """Calls that were not considered, by reason."""
        return self._by_reason("bypassed")

    @property
    def unshared(self) -> dict[str, int]:
        """Calls that were considered, and not given another's answer, by reason."""
        return self._by_reason("unshared")

    @property
    def waiting(self) -> int:
        """Followers that wait now; after `counting`, at the end of its block."""
        return int(self._now().get("waiting", 0))

    @property
    def in_flight(self) -> int:
        """Runs that have not ended now; after `counting`, at the end of its block."""
        return int(self._now().get("in_flight", 0))

    def as_dict(self) -> dict[str, Any]:
        """All of them by name."""
        return {name: getattr(self, name) for name in (*_SUMS, *_REASONS, *_NOW)}

    def __getitem__(self, name: str) -> "Counts":
        part = Counts.__new__(Counts)
        part._read = lambda: _part(self._read(), name)
        part._before = _part(self._before, name)
        part._after = None if self._after is None else _part(self._after, name)
        return part

    def __repr__(self) -> str:
        shown = [f"{name}={value!r}" for name, value in self.as_dict().items() if value]
        return f"Counts({', '.join(shown)})"

    def stop(self) -> None:
        """Count no more."""
        if self._after is None:
            self._after = self._read()

    def _now(self) -> Figures:
        return self._read() if self._after is None else self._after

    def _since(self, name: str) -> int:
        return int(self._now().get(name, 0)) - int(self._before.get(name, 0))

    def _by_reason(self, name: str) -> dict[str, int]:
        before = self._before.get(name, {})
        since = {reason: count - before.get(reason, 0) for reason, count in self._now().get(name, {}).items()}
        return {str(reason): count for reason, count in since.items() if count}


def _part(figures: Figures, name: str) -> Figures:
    for by in _NAMED:
        if by in figures:
            part: Figures = figures[by].get(name, {})
            return part
    return {}


@contextmanager
def counting(target: Target) -> Iterator[Counts]:
    """Count what the target does in the block: `with counting(app) as counts: ...`; afterwards the counts stay.

    Of an `AsyncReducer`, which has no figures of its own, only calls that are made within a block are counted. Raises
    TypeError for what is no target, and ValueError for an application without a `reduce_middleware()`, or with several.
    """
    found = find(target)
    with watch(found) as watched:
        counts = Counts(watched.figures)
        try:
            yield counts
        finally:
            counts.stop()
