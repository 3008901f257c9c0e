"""Sections 2, 3 and 5 under attack: whatever strangers send costs bounded memory, and time that grows with its size.

What is bounded elsewhere: pass markers (`test_pass_markers.py`), reasons and routes in the figures (`test_stats.py`),
hosts (`test_client_stats.py`), names that were learned (`test_reads.py`), writes (`test_read_your_writes.py`,
`test_client_time_bounds.py`), names of headers (`test_identity.py`, `test_client_rules.py`), bodies of streams
(`test_streams_joining.py`, `test_streams_isolation.py`, `test_broadcast.py`, `test_client_streaming.py`).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from aiohttp_reduce.server import DEFAULT_IGNORE_COOKIES, DEFAULT_IGNORE_HEADERS
from aiohttp_reduce.server.identity import Selection

# Time.


@contextmanager
def little_time() -> Iterator[None]:
    """Fail where the block takes long (2 s of CPU): a hundred times what it does, a tenth of what it did when it was
    quadratic."""
    began = time.process_time()
    yield
    assert time.process_time() - began < 2.0


def a_selection(headers: tuple[str, ...] | None = None) -> Selection:
    return Selection(headers, DEFAULT_IGNORE_HEADERS, DEFAULT_IGNORE_COOKIES)


def received(*headers: tuple[bytes, bytes]) -> Any:
    return mock.Mock(_message=mock.Mock(raw_headers=headers))


def test_the_difference_of_many_lines_is_found_in_linear_time() -> None:
    one, other = [received(*[(b"User-Agent", b"%d" % number) for number in range(n, n + 20_000)]) for n in (0, 20_000)]
    with little_time():
        assert a_selection().difference(one, other) == "user-agent"
