"""The reducer core: identical calls that are in flight at once are executed once.

Pure asyncio; it imports nothing of aiohttp or of the rest of this package. Its API is that of the
`async_reduce` library (MIT, Konstantin Enchant), whose users can switch by changing an import; the code is
written anew. `AsyncReducer` is the door for coroutines; `Flight`, `FlightTable` and `Waiter` are the
lower-level door that the HTTP sides stand on.
"""

from .flights import PENDING, Flight, FlightTable, PerLoop, Waiter, Wake
from .hooks import (
    BaseHooks,
    DebugHooks,
    MultipleHooks,
    StatisticsDetailHooks,
    StatisticsOverallHooks,
)
from .identity import NamedIdent, typed
from .launch import PAUSE, launch
from .reducer import AsyncReducer, async_reduce, async_reduceable

__all__ = (
    "PAUSE",
    "PENDING",
    "AsyncReducer",
    "BaseHooks",
    "DebugHooks",
    "Flight",
    "FlightTable",
    "MultipleHooks",
    "NamedIdent",
    "PerLoop",
    "StatisticsDetailHooks",
    "StatisticsOverallHooks",
    "Waiter",
    "Wake",
    "async_reduce",
    "async_reduceable",
    "launch",
    "typed",
)
