"""The server middleware: identical incoming requests in flight are run once."""

from .access import local_only
from .door import ReduceMiddleware
from .identity import DEFAULT_IGNORE_COOKIES, DEFAULT_IGNORE_HEADERS
from .marks import never_reduce
from .middleware import reduce_middleware

__all__ = (
    "DEFAULT_IGNORE_COOKIES",
    "DEFAULT_IGNORE_HEADERS",
    "ReduceMiddleware",
    "local_only",
    "never_reduce",
    "reduce_middleware",
)
