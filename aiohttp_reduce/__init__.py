"""aiohttp-reduce: many identical requests in flight at once cost one execution."""

from .async_reduce_core import AsyncReducer, async_reduce, async_reduceable
from .client import ReducingClientSession, reduce_client_middleware
from .server import never_reduce, reduce_middleware

__all__ = (
    "AsyncReducer",
    "ReducingClientSession",
    "async_reduce",
    "async_reduceable",
    "never_reduce",
    "reduce_client_middleware",
    "reduce_middleware",
)
