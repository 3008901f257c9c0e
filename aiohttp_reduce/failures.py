"""Copies of exceptions: each of those who wait raises its own."""

import copy

from . import _aiohttp


def copied(exception: BaseException) -> BaseException:
    """A copy of the exception without its notes and context, or the exception itself where copying fails."""
    try:
        twin = copy.copy(exception)
        faithful = type(twin) is type(exception) and twin.args == exception.args and str(twin) == str(exception)
    except Exception:
        return exception
    if twin is exception or not faithful:
        return exception
    twin.__dict__.pop("__notes__", None)
    for name, value in twin.__dict__.items():
        twin.__dict__[name] = _aiohttp.own(value)
    twin.__cause__ = exception.__cause__
    twin.__suppress_context__ = exception.__suppress_context__
    return twin
