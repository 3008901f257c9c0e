"""The checks of arguments, for both sides: each error names the argument and what it takes."""

import inspect
import math
import re
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final

from aiohttp import web

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"})
"""The methods that change nothing (RFC 9110, 9.2.1, and QUERY)."""

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_REQUEST_KEYS: Final[tuple[type, ...]] = (web.RequestKey,) if hasattr(web, "RequestKey") else ()
# RFC 8941, 3.3.4 and 3.3.3.
_SF_TOKEN: Final = re.compile(r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*\Z")
_SF_STRING: Final = re.compile(r"[\x20-\x7e]*\Z")


def seconds(argument: str, value: Any) -> float:
    """A time of zero or more seconds; `math.inf` for no limit."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} takes a number of seconds (math.inf for no limit), got {value!r}")
    if math.isnan(value) or value < 0:
        raise ValueError(f"{argument} takes seconds, zero or more (math.inf for no limit), got {value!r}")
    return float(value)


def size(argument: str, value: Any) -> float:
    """A number of bytes, zero or more; `math.inf` for no limit."""
    if isinstance(value, bool) or not (isinstance(value, int) or value == math.inf):
        raise TypeError(f"{argument} takes a whole number of bytes (math.inf for no limit), got {value!r}")
    if value < 0:
        raise ValueError(f"{argument} takes bytes, zero or more (math.inf for no limit), got {value!r}")
    number: float = value
    return number


def methods(value: Any) -> frozenset[str]:
    """Safe methods, in upper case."""
    names = frozenset(name.upper() for name in _strings("methods", value))
    if unsafe := names - SAFE_METHODS:
        raise ValueError(
            f"methods takes safe methods only ({', '.join(sorted(SAFE_METHODS))}), got {', '.join(sorted(unsafe))}: "
            "a request that changes something must run each time"
        )
    if not names:
        raise ValueError("methods takes at least one method; leave the middleware out to reduce nothing")
    return names


def header_names(argument: str, value: Any, *, wildcards: bool) -> frozenset[str]:
    """Header names (RFC 9110, 5.1), with a trailing `*` for any ending where `wildcards` allows it."""
    names = frozenset(_strings(argument, value))
    for name in names:
        plain = name[:-1] if wildcards and name.endswith("*") else name
        if _TOKEN.match(plain) is None or "*" in plain:
            stars = "; a trailing '*' stands for any ending" if wildcards else ""
            raise ValueError(f"{argument} takes header names such as 'Accept-Language'{stars}, got {name!r}")
    return names


def cookie_names(argument: str, value: Any) -> frozenset[str]:
    """Cookie names (RFC 6265, 4.1.1), with a trailing `*` for any ending."""
    names = frozenset(_strings(argument, value))
    for name in names:
        plain = name.removesuffix("*")
        if _TOKEN.match(plain) is None or "*" in plain:
            raise ValueError(f"{argument} takes cookie names; a trailing '*' stands for any ending, got {name!r}")
    return names


def state_keys(argument: str, value: Any) -> frozenset[Hashable]:
    """Keys of the request mapping: str, or what `web.RequestKey` (3.14) makes."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{argument} takes several keys of the request mapping, such as ('user',), got {value!r}")
    keys = list(value)
    for key in keys:
        if not isinstance(key, (str, _REQUEST_KEYS)):
            raise TypeError(f"{argument} takes keys of the request mapping, str or web.RequestKey, got {key!r}")
    return frozenset(keys)


def function(argument: str, value: Any, takes: str) -> Callable[..., Any] | None:
    """A plain function, or None."""
    if value is None:
        return None
    if not callable(value):
        raise TypeError(f"{argument} takes a function {takes}, or None, got {value!r}")
    if inspect.iscoroutinefunction(value):
        raise TypeError(f"{argument} takes a plain function {takes}, not an async one, got {value!r}")
    result: Callable[..., Any] = value
    return result


def path(argument: str, value: Any) -> str | None:
    """An absolute path without a query, or None."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{argument} takes a path such as '/_reduce/stats', or None, got {value!r}")
    if not value.startswith("/") or any(character in value for character in "?# ") or not value.isprintable():
        raise ValueError(f"{argument} takes a path that starts with '/' and has no query, got {value!r}")
    return value


def cache_status(value: Any) -> str | None:
    """The name of this cache in Cache-Status, serialised (RFC 9211, 2: an sf-token or sf-string), or None."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"cache_status takes a name such as 'aiohttp-reduce', or None, got {value!r}")
    if _SF_TOKEN.match(value):
        return value
    if not value or _SF_STRING.match(value) is None:
        raise ValueError(f"cache_status takes a name in printable ASCII, or None, got {value!r}")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _strings(argument: str, value: Any) -> list[str]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{argument} takes several names, such as ('A', 'B'), got {value!r}")
    names = list(value)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{argument} takes names that are str, got {name!r}")
    return names
