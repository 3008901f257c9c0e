"""The client side: identical outgoing requests in flight are sent once."""

from .door import ReduceClientMiddleware
from .identity import DEFAULT_IGNORE_HEADERS
from .middleware import reduce_client_middleware
from .session import ReducingClientSession

__all__ = (
    "DEFAULT_IGNORE_HEADERS",
    "ReduceClientMiddleware",
    "ReducingClientSession",
    "reduce_client_middleware",
)
