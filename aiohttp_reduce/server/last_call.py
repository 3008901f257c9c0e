"""The last call: a flight whose handler may have kept the loop busy stays open for a few passes of the loop.

Requests that had arrived, but could not be read in that time, still join. One chain of callbacks serves all
flights of a table that are at their last call.
"""

from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ..async_reduce_core import Flight
from .replay import Outcome

# A handler that took longer (seconds) may have kept the loop from reading requests that had arrived.
LAST_CALL_AFTER: Final = 0.001
# Passes of the loop from the end of such a handler to the end of the last call: the rest of the current one,
# one that reads the sockets, one that wakes the connection's task, one that starts the handler's (before 3.12).
_PASSES: Final = 4
# Each request that still joins makes the last call begin anew, for at most so long (seconds) in all: uvloop
# accepts one connection in a pass, so that a herd on fresh connections comes one by one (m: a herd of 200 on a
# handler that burns 5 ms was 49 runs without this, and is 1 with it).
_AT_MOST: Final = 0.1


class LastCall:
    """The flights of one table that have landed and are still open."""

    __slots__ = ("_calls", "_clock", "_loop", "_pass")

    def __init__(self, loop: AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._pass = 0
        # By the pass in which they end: the flight, its outcome, the herd so far, the time of the latest end.
        self._calls: deque[tuple[int, Flight[Any], Outcome, int, float]] = deque()

    def begin(self, flight: Flight[Any], outcome: Outcome) -> None:
        """Keep a landed flight in its table until its last call is over."""
        if not self._calls:
            self._loop.call_soon(self._next_pass)
        self._calls.append((self._pass + _PASSES, flight, outcome, outcome.herd, self._clock() + _AT_MOST))

    def _next_pass(self) -> None:
        calls = self._calls
        self._pass += 1
        while calls and calls[0][0] <= self._pass:
            _, flight, outcome, herd, until = calls.popleft()
            if outcome.herd > herd and self._clock() < until:
                calls.append((self._pass + _PASSES, flight, outcome, outcome.herd, until))
            else:
                flight.close()
        if calls:
            self._loop.call_soon(self._next_pass)
