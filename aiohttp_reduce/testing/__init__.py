"""For tests of your own coalescing: count what it did, and hold a flight open until others have joined.

Nothing in the library imports it, and while no block is open nothing of it is on the way of a request. It needs
no pytest: `aiohttp_reduce.pytest_plugin` is where its fixtures are.
"""

from .counts import Counts, counting
from .finding import Target
from .holding import Hold, HoldError, holding

__all__ = (
    "Counts",
    "Hold",
    "HoldError",
    "Target",
    "counting",
    "holding",
)
