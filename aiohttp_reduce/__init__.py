"""aiohttp-reduce: many identical requests in flight at once cost one execution."""

from .async_reduce_core import AsyncReducer, async_reduce, async_reduceable
from .server import never_reduce, reduce_middleware

__all__ = ("AsyncReducer", "async_reduce", "async_reduceable", "never_reduce", "reduce_middleware")
