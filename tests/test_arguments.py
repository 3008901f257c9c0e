"""Wrong arguments raise at construction, naming the argument and what it takes."""

import math
from typing import Any

import pytest
from aiohttp import web

from aiohttp_reduce import reduce_middleware
from aiohttp_reduce.hooks import BaseHooks


async def async_function(request: web.Request) -> bool:
    return True


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("methods", ["POST"], ValueError),
        ("methods", ["GET", "delete"], ValueError),
        ("methods", [], ValueError),
        ("methods", "GET", TypeError),
        ("methods", None, TypeError),
        ("methods", [1], TypeError),
        ("headers", "Accept", TypeError),
        ("headers", ["Accept Language"], ValueError),
        ("headers", ["X-*"], ValueError),
        ("headers", [""], ValueError),
        ("headers", ["X:"], ValueError),
        ("headers", ["X\n"], ValueError),
        ("headers", [b"X"], TypeError),
        ("headers", 5, TypeError),
        ("ignore_headers", None, TypeError),
        ("ignore_headers", ["a b"], ValueError),
        ("ignore_headers", ["*-x"], ValueError),
        ("ignore_headers", ["*"], ValueError),
        ("ignore_cookies", "_ga", TypeError),
        ("ignore_cookies", ["a=b"], ValueError),
        ("ignore_cookies", ["a*b"], ValueError),
        ("key", "user", TypeError),
        ("key", async_function, TypeError),
        ("when", 1, TypeError),
        ("when", async_function, TypeError),
        ("max_age", -1, ValueError),
        ("max_age", math.nan, ValueError),
        ("max_age", "5", TypeError),
        ("max_age", None, TypeError),
        ("max_age", True, TypeError),
        ("max_wait", -0.1, ValueError),
        ("max_wait", math.nan, ValueError),
        ("max_wait", [], TypeError),
        ("hooks", object(), TypeError),
        ("hooks", BaseHooks, TypeError),
        ("hooks", print, TypeError),
        ("stats_path", "stats", ValueError),
        ("stats_path", "/a?b", ValueError),
        ("stats_path", "/a b", ValueError),
        ("stats_path", "", ValueError),
        ("stats_path", b"/a", TypeError),
        ("stats_access", None, TypeError),
        ("stats_access", True, TypeError),
        ("cache_status", "", ValueError),
        ("cache_status", "naïve", ValueError),
        ("cache_status", "a\nb", ValueError),
        ("cache_status", 1, TypeError),
    ],
)
def test_a_wrong_argument_is_named(argument: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=argument) as caught:
        reduce_middleware(**{argument: value})
    assert "takes" in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"methods": {"get"}},
        {"methods": ["QUERY", "OPTIONS", "TRACE"]},
        {"headers": ()},
        {"headers": {"Accept": "anything"}},
        {"ignore_headers": ()},
        {"ignore_cookies": []},
        {"max_age": 0, "max_wait": math.inf},
        {"max_age": math.inf, "max_wait": 0},
        {"hooks": BaseHooks()},
        {"stats_path": None, "cache_status": None},
    ],
)
def test_right_arguments_are_taken(arguments: dict[str, Any]) -> None:
    assert callable(reduce_middleware(**arguments))


def test_arguments_are_keywords_only() -> None:
    with pytest.raises(TypeError):
        reduce_middleware(["GET"])  # type: ignore[misc]
