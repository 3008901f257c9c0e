"""SECURITY.md names what is there."""

import inspect
import re
from pathlib import Path

import aiohttp_reduce

ROOT = Path(__file__).parent.parent
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_the_tests_that_it_names_are_there() -> None:
    named = re.findall(r"`(tests/[^`]*)`", SECURITY)

    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_options_that_it_names_are_options() -> None:
    options = set(inspect.signature(aiohttp_reduce.reduce_middleware).parameters)
    named = set(re.findall(r"`(\w+)=\w*`", SECURITY))

    assert named >= {"key", "share", "ignore_state"}
    assert named <= options
