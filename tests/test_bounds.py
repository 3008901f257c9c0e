"""Sections 2, 3 and 5 under attack: whatever strangers send costs bounded memory, and time that grows with its size.

What is bounded elsewhere: pass markers (`test_pass_markers.py`), reasons and routes in the figures (`test_stats.py`),
hosts (`test_client_stats.py`), names that were learned (`test_reads.py`), writes (`test_read_your_writes.py`,
`test_client_time_bounds.py`), names of headers (`test_identity.py`, `test_client_rules.py`), bodies of streams
(`test_streams_joining.py`, `test_streams_isolation.py`, `test_broadcast.py`, `test_client_streaming.py`).
"""

import asyncio
import gc
import logging
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from aiohttp import web

from aiohttp_reduce.server import DEFAULT_IGNORE_COOKIES, DEFAULT_IGNORE_HEADERS
from aiohttp_reduce.server.identity import Selection
from aiohttp_reduce.server.reads import Reads
from aiohttp_reduce.stats import MAX_REASONS
from aiohttp_reduce.writes import Writes
from tests.harness import Start
from tests.herds import herds
from tests.streaming import Tap, arrived, nothing_is_left, streams

# Memory.


@contextmanager
def little_memory(limit: int) -> Iterator[None]:
    """Fail where the block leaves behind more bytes than this."""
    gc.collect()
    tracemalloc.start()
    try:
        yield
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] <= limit
    finally:
        tracemalloc.stop()


def test_written_paths_are_remembered_whatever_their_length_in_little_memory() -> None:
    writes = Writes(keep=5.0)
    with little_memory(2 * 2**20):
        for number in range(9_000):
            writes.note(f"/{'x' * 8_000}/{number}", 1.0, matters=True)
    assert not writes.allow(f"/{'x' * 8_000}/8999", begun=1.0)
    assert writes.allow(f"/{'x' * 8_000}/9000", begun=1.0)


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


USER: Any = web.RequestKey("user", str) if hasattr(web, "RequestKey") else "user"


@web.middleware
async def with_a_user(request: web.Request, handler: Any) -> Any:
    request[USER] = "alice"
    return await handler(request)


async def test_each_who_joins_a_stream_is_compared_a_few_times_however_many_there_are(
    serve: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = 0
    refuses = Reads.refuses

    def counted(*args: Any) -> Any:
        nonlocal compared
        compared += 1
        return refuses(*args)

    monkeypatch.setattr(Reads, "refuses", counted)
    tap = Tap(lambda request: web.StreamResponse(headers={"X-For": request[USER]}))
    server = await streams(serve, tap, outer=[with_a_user])
    tap.send_head()
    tap.let(b"first;")
    readers = [await server.send("/")]
    await arrived(b"first;", readers[0])
    for _ in range(60):
        readers.append(await server.send("/"))
        await arrived(b"first;", readers[-1])
    tap.let(*[b"more;"] * 40)
    tap.end()
    replies = await asyncio.gather(*[reader.receive() for reader in readers])
    assert {reply.body for reply in replies} == {b"first;" + b"more;" * 40}
    assert tap.runs == 1
    assert compared <= 3 * 60
    await nothing_is_left(server)


async def test_those_who_are_turned_away_for_reasons_of_their_own_are_logged_for_a_hundred(
    serve: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aiohttp_reduce")
    herd = await herds(serve, lambda request: str(len(list(request.headers))), headers=("Accept",))
    runs, replies = await herd.meet([{}, *[{f"X-{number}": ""} for number in range(150)]])
    assert (runs, {reply.text for reply in replies[1:]}) == (151, {"2"})
    assert len([record for record in caplog.records if "not shared" in record.message]) == MAX_REASONS
    assert sum(herd.unshared.values()) == 150
    assert len(herd.unshared) == MAX_REASONS + 1
