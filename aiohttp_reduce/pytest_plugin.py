"""Fixtures for tests of your own coalescing: `pytest_plugins = ["aiohttp_reduce.pytest_plugin"]` in the root conftest.

It is no entry point, so that pytest does not load this package where nobody asked for it. The only module that
imports pytest.
"""

from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import ExitStack
from typing import Any, Final, Protocol

import pytest

from .testing import Counts, Hold, Target, counting, holding

_COUNTED: Final = pytest.StashKey[list[Counts]]()


class HoldFlights(Protocol):
    """The type of the fixture `hold_flights`."""

    def __call__(
        self, target: Target, *, only: Hashable | Callable[[Any], bool] | None = None, timeout: float | None = None
    ) -> Hold:
        """As `aiohttp_reduce.testing.holding`."""


class ReduceCounts(Protocol):
    """The type of the fixture `reduce_counts`."""

    def __call__(self, target: Target) -> Counts:
        """Count what the target does from now on."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option `reduce_timeout`."""
    parser.addini("reduce_timeout", "seconds for which hold_flights waits for what a test expects", default="5")


@pytest.fixture
def hold_flights(request: pytest.FixtureRequest) -> HoldFlights:
    """`aiohttp_reduce.testing.holding`, with the ini option `reduce_timeout` (seconds, 5 by default) as its timeout."""
    usual = float(request.config.getini("reduce_timeout"))

    def hold(
        target: Target, *, only: Hashable | Callable[[Any], bool] | None = None, timeout: float | None = None
    ) -> Hold:
        return holding(target, only=only, timeout=usual if timeout is None else timeout)

    return hold


@pytest.fixture
def reduce_counts(request: pytest.FixtureRequest) -> Iterator[ReduceCounts]:
    """Begins to count what a target does, until the test ends; a failing test shows the figures in its report."""
    shown: list[Counts] = []
    request.node.stash[_COUNTED] = shown
    with ExitStack() as counted:

        def count(target: Target) -> Counts:
            counts = counted.enter_context(counting(target))
            shown.append(counts)
            return counts

        yield count


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Put the figures into the report of the test."""
    try:
        return (yield)
    finally:
        for counts in item.stash.get(_COUNTED, ()):
            item.add_report_section("call", "aiohttp-reduce", repr(counts))
