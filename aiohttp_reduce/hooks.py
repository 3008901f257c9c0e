"""The hooks for users: the core's, under a name of their own."""

from .async_reduce_core.hooks import (
    BaseHooks,
    DebugHooks,
    MultipleHooks,
    StatisticsDetailHooks,
    StatisticsOverallHooks,
)

__all__ = (
    "BaseHooks",
    "DebugHooks",
    "MultipleHooks",
    "StatisticsDetailHooks",
    "StatisticsOverallHooks",
)
