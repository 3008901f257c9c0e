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
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock
from weakref import WeakValueDictionary

import pytest
from aiohttp import web
from multidict import CIMultiDict

from aiohttp_reduce import AsyncReducer, reduce_middleware
from aiohttp_reduce.policy import SHARED, judge
from aiohttp_reduce.server import DEFAULT_IGNORE_COOKIES, DEFAULT_IGNORE_HEADERS
from aiohttp_reduce.server.identity import Selection
from aiohttp_reduce.server.reads import Reads
from aiohttp_reduce.stats import MAX_REASONS
from aiohttp_reduce.writes import Writes
from tests.harness import Start, eventually
from tests.herds import herds
from tests.streaming import Tap, arrived, nothing_is_left, slow, streams
from tests.test_costs import Spent, spending
from tests.virtual import Door, VirtualLoop, run_virtually


async def hello(_request: web.Request) -> web.Response:
    return web.Response(text="hello")


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


def census(root: Any) -> int:
    """How many entries there are in all containers that can be reached from one of our objects through others."""
    entries = 0
    seen: set[int] = set()
    found = [root]
    while found:
        one = found.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, (dict, WeakValueDictionary)):
            entries += len(one)
            found += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set, frozenset, deque)):
            entries += len(one)
            found += one
        elif type(one).__module__.startswith("aiohttp_reduce"):
            names = [name for cls in type(one).__mro__ for name in getattr(cls, "__slots__", ())]
            found += [getattr(one, name, None) for name in (*names, "__dict__") if name != "__weakref__"]
    return entries


def run_flood(loop: VirtualLoop, requests: Any) -> Any:
    """Send a few requests, then many, and see that no container of ours has grown."""
    middleware = reduce_middleware()

    async def flood() -> None:
        door = Door(loop, middleware, hello, outer=[not_found_is_an_answer])
        for request in requests(3):
            await door.app._handle(request(door))
        before = census(middleware)
        assert before > 10
        for request in requests(50):
            await door.app._handle(request(door))
        assert census(middleware) == before
        assert door.nothing_is_left()

    return flood()


@web.middleware
async def not_found_is_an_answer(request: web.Request, handler: Any) -> Any:
    try:
        return await handler(request)
    except web.HTTPException as exception:
        return web.Response(status=exception.status)


FLOODS: dict[str, Any] = {
    "targets": lambda n: [lambda door, i=i: door.request(f"/{i}?") for i in range(n)],
    "header names": lambda n: [lambda door, i=i: door.request(headers={f"X-{i}": "1"}) for i in range(n)],
    "header values": lambda n: [lambda door, i=i: door.request(headers={"X-A": str(i)}) for i in range(n)],
    "cookies": lambda n: [lambda door, i=i: door.request(headers={"Cookie": f"a{i}=1"}) for i in range(n)],
    "unrouted targets": lambda n: [lambda door, i=i: door.request(f"/_reduce/{i}") for i in range(n)],
    "methods": lambda n: [lambda door, i=i: door.request(f"/{i}", method=f"M{i}") for i in range(n)],
    "written paths": lambda n: [lambda door, i=i: door.request(f"/{i}", method="PUT") for i in range(n)],
}


@pytest.mark.parametrize("what", FLOODS)
def test_requests_that_nobody_joins_leave_nothing_behind(what: str) -> None:
    run_virtually(lambda loop: run_flood(loop, FLOODS[what]))


def test_who_leaves_a_run_that_never_ends_is_forgotten_at_once() -> None:
    """A client that comes and goes, again and again, while the flight still takes followers."""
    middleware = reduce_middleware(max_age=1e9)

    async def stuck(request: web.Request) -> web.Response:
        await asyncio.sleep(1e6)
        return web.Response()

    async def main(loop: VirtualLoop) -> None:
        door = Door(loop, middleware, stuck)
        leader = asyncio.ensure_future(door.get())
        await asyncio.sleep(0)

        async def come_and_go(times: int) -> None:
            for _ in range(times):
                follower = asyncio.ensure_future(door.get())
                await asyncio.sleep(0)
                follower.cancel()
                await asyncio.wait([follower])

        await come_and_go(10)
        before = census(middleware)
        await come_and_go(200)
        assert census(middleware) <= before + 30
        ((flight,),) = [table.flights.values() for table in middleware._tables.values()]
        assert not flight.waiters
        assert len(flight._deadlines or ()) <= 10
        leader.cancel()
        await asyncio.wait([leader])
        assert door.nothing_is_left()

    run_virtually(main)
    assert middleware.stats["executed"] == 1


def test_calls_of_the_core_that_are_cancelled_are_forgotten_while_the_flight_goes_on() -> None:
    async def main(loop: VirtualLoop) -> None:
        reducer = AsyncReducer()
        first = reducer(asyncio.sleep(1e6, "slept"), ident="stuck")
        await asyncio.sleep(0)
        with little_memory(100_000):
            for _ in range(3_000):
                reducer(asyncio.sleep(0, "never"), ident="stuck").cancel()
        (flight,) = reducer._tables.get().flights.values()
        assert len(flight.waiters) <= 130
        assert await first == "slept"

    run_virtually(main)


def test_last_calls_are_over_after_a_tenth_of_a_second_however_many_join() -> None:
    middleware = reduce_middleware()

    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(0.01)
        return web.Response()

    async def main(loop: VirtualLoop) -> None:
        door = Door(loop, middleware, slow)
        await door.get()
        (table,) = middleware._tables.values()
        began = loop.time()
        while loop.time() < began + 1:
            await door.get()  # each of them makes the last call begin anew
            await asyncio.sleep(0)
            loop._virtual.now += 0.001
            assert len(table.last_call._calls) <= 1
        await asyncio.sleep(0.2)
        assert door.nothing_is_left()

    run_virtually(main)
    stats = middleware.stats
    assert stats["executed"] >= 8
    assert stats["reduced"] >= 8


async def test_a_herd_that_never_reads_holds_one_body(serve: Start) -> None:
    """Of a large answer no more is written to a follower's connection than it takes."""
    body = b"x" * 8 * 2**20
    herd = await herds(serve, lambda request: web.Response(body=body))
    connections = [await slow(herd.server) for _ in range(20)]
    await herd.gate.entered()
    await herd.server.waiting(19)
    protocols = list(herd.server.runner.server.connections)  # type: ignore[union-attr]
    herd.gate.open()
    await eventually(lambda: all(protocol._paused for protocol in protocols))
    held = sorted(protocol.transport.get_write_buffer_size() for protocol in protocols)
    assert len(held) == 20
    assert held[-2] <= 2**20  # the last is the first requester's, to which aiohttp writes as without us
    assert sum(held) <= len(body) + 20 * 2**20
    for connection in connections:
        connection.abort()
    await eventually(herd.server.nothing_is_left)


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


def many(number: int) -> str:
    return ", ".join([f"a{index}" for index in range(number)])


@pytest.mark.parametrize(
    "headers",
    [
        [(b"X-%d" % number, b"1") for number in range(20_000)],
        [(b"X-A", b"%d" % number) for number in range(20_000)],
        [(b"Accept", b"text/html") for _ in range(20_000)],
        [(b"Cookie", b"a=1") for _ in range(20_000)],
        [(b"Cookie", b"; ".join([b"a%d=1" % number for number in range(50_000)]))],
        [(b"Cookie", b"_ga=" + b"1" * 500_000)],
        [(b"Cookie", b";" * 500_000)],
        [(b"Cookie", b'_ga="' * 100_000)],
        [(b"Forwarded", b"for=1;host=a, " * 20_000)],
        [(b"Forwarded", b'host="' * 50_000)],
        [(b"Forwarded", b'"a" ' * 50_000)],
        [(b"Forwarded", b'host="' + b"\\" * 200_001)],
        [(b"Forwarded", b" " * 200_000 + b"host=a")],
    ],
    ids=lambda headers: f"{headers[0][0].decode()} {headers[0][1][:12].decode()} {len(headers)}",
)
def test_an_identity_takes_linear_time(headers: list[tuple[bytes, bytes]]) -> None:
    request = received(*headers)
    request._message.headers = CIMultiDict([(name.decode(), value.decode()) for name, value in headers])
    selection = a_selection()
    with little_time():
        assert selection.headers_of(request) == selection.headers_of(request)
        assert selection.difference(request, request) is None
        selection.has_credentials(request)
        selection.learned_of(request, ["", "x-a"])


def test_an_answer_is_judged_in_linear_time() -> None:
    headers: CIMultiDict[str] = CIMultiDict({"Vary": many(20_000), "Cache-Control": many(20_000)})
    for number in range(20_000):
        headers.add("Vary", f"b{number}")
        headers.add("Cache-Control", f'b{number}="')
    with little_time():
        verdict = judge(200, headers, authorized=True, has_credentials=True, in_identity=lambda name: True, now=0.0)
    assert verdict == SHARED


def test_thousands_of_identities_on_one_target_are_found_in_steps_that_do_not_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each newcomer's identity is worked out a few times, however many others there are."""

    async def stuck(request: web.Request) -> web.Response:
        await asyncio.sleep(1)
        return web.Response()

    async def main(loop: VirtualLoop) -> dict[int, Spent]:
        door = Door(loop, reduce_middleware(), stuck)
        spent: dict[int, Spent] = {}
        tasks: list[Any] = []
        for size in (20, 200):
            while len(tasks) < size:
                tasks.append(asyncio.ensure_future(door.get(headers={"X-A": str(len(tasks))})))
            await asyncio.sleep(0)
            requests = [door.request(headers={"X-A": str(number)}) for number in (3, size)]
            with spending(monkeypatch, loop) as spent[size]:
                tasks += [asyncio.ensure_future(door.app._handle(request)) for request in requests]
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        await asyncio.sleep(0.2)  # the last calls are over
        assert door.nothing_is_left()
        assert door.middleware.stats["reduced"] == 2
        return spent

    spent = run_virtually(main)
    assert spent[20].identities == spent[200].identities > 0
    assert spent[200].calls.total() <= spent[20].calls.total()
