"""When was written where: what was begun before a write answers nobody who came after it.

A write is an unsafe request (RFC 9110, 9.2.1) that was answered, or whose outcome is unknown.
"""

import math
import threading
from collections.abc import Hashable
from typing import Final

# So many recent writes are remembered one by one; with more, a write counts for every place.
_MAX_WRITES: Final = 10_000


class Writes:
    """The latest write to each place, for `keep` seconds. Times are those of the caller's clock.

    Noting and asking cost the same however many there are. It may be noted from another thread; those who ask
    look up one key at a time.
    """

    __slots__ = ("_all", "_at", "_keep", "_noting", "latest")

    def __init__(self, keep: float) -> None:
        self._keep = keep
        # What was begun after the latest of all writes is allowed wherever it goes.
        self.latest: float = -math.inf
        # The latest of each place, oldest first. By its hash: a stranger may choose a long path, and where two have
        # the same hash, a write to one of them counts for the other too.
        self._at: dict[int, float] = {}
        self._all = -math.inf
        self._noting = threading.Lock()

    def __len__(self) -> int:
        return len(self._at)

    def note(self, place: Hashable, now: float, *, matters: bool) -> None:
        """A write to this place is answered now; `matters` is false where nothing was begun before it."""
        at, key = self._at, hash(place)
        with self._noting:
            while at:
                oldest = next(iter(at))
                if at[oldest] >= now - self._keep:
                    break
                del at[oldest]  # whatever was begun before it is too old to be joined anyway
            at.pop(key, None)
            if not matters:
                return
            self.latest = now
            if len(at) >= _MAX_WRITES:
                self._all = now
                at.clear()
            else:
                at[key] = now

    def allow(self, place: Hashable, begun: float) -> bool:
        """Whether what was begun then is from after the latest write to this place."""
        if self._all >= begun:
            return False
        return not self._at or self._at.get(hash(place), -math.inf) < begun
