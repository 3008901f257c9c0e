"""Pass markers: a short memory that an identity's answers cannot be shared, so that nobody waits for nothing.

One is set when followers were turned away because of what an answer was, and deleted by the first answer that
could have been shared. It is a hint alone: without it a herd waits first and then runs in parallel, with it at once.
"""

from collections.abc import Hashable
from typing import Any, Final

from ..targets import TargetTable

# Seconds for which a marker holds, from when followers were turned away: those who pass by do not prolong it, so
# that every so often one herd finds out anew.
_HOLDS: Final = 3.0
_MAX_MARKERS: Final = 1_000


class PassMarkers:
    """The markers of one table, by target and full identity. The table counts their targets as crowded.

    Only the hash of an identity is kept, so that nothing in it is kept alive: if another one has the same, its
    requests run in parallel for a moment.
    """

    __slots__ = ("_count", "_table", "by_target")

    def __init__(self, table: TargetTable[Any]) -> None:
        self._table = table
        self.by_target: dict[str, dict[int, float]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def set(self, target: str, identity: Hashable, now: float) -> None:
        """Remember the identity; what was remembered the longest goes where there are too many."""
        while self._count >= _MAX_MARKERS:
            oldest = next(iter(self.by_target))
            self._count -= len(self.by_target.pop(oldest))
            self._table.uncrowd(oldest)
        if target not in self.by_target:
            self._table.crowd(target)
        markers = self.by_target.setdefault(target, {})
        self._count += hash(identity) not in markers
        markers[hash(identity)] = now + _HOLDS

    def holds(self, target: str, identity: Hashable, now: float) -> bool:
        """Whether the identity is remembered, and not for too long."""
        until = self.by_target.get(target, {}).get(hash(identity))
        if until is None:
            return False
        if now < until:
            return True
        self.delete(target, identity)
        return False

    def delete(self, target: str, identity: Hashable) -> None:
        """Forget the identity."""
        markers = self.by_target.get(target)
        if markers is not None and markers.pop(hash(identity), None) is not None:
            self._count -= 1
            if not markers:
                del self.by_target[target]
                self._table.uncrowd(target)
