"""How a broadcast ends: finished, failed, left, and all of that from within `on_ready`."""

import asyncio
import gc
import math
import weakref
from typing import Any

import pytest

from aiohttp_reduce.broadcast import Budget
from tests.broadcasting import SIZE, Reader, in_virtual_time, opened, pieces, produce, settled
from tests.virtual import VirtualLoop

# -- the end


@pytest.mark.parametrize("blocked", [False, True])
async def test_a_failure_reaches_every_reader(blocked: bool) -> None:
    budget = Budget(math.inf)
    broadcast = opened(max_buffer=2_000, budget=budget)
    nothing, some, everything, left = (Reader(broadcast) for _ in range(4))
    for data in pieces(2):
        broadcast.feed(data)
    some.take(1)
    everything.read()
    left.read(1)
    left.consumer.leave()
    told = [reader.told for reader in (nothing, some, everything, left)]
    waiting = asyncio.ensure_future(broadcast.room(SIZE if blocked else 0))
    await settled()
    error = ValueError()

    broadcast.fail(error)

    assert broadcast.exception is error
    for reader in (nothing, some, everything):
        assert reader.consumer.exception is error
        assert reader.take() == []
        assert not reader.consumer.at_end
        reader.consumer.has_read(10**6)
        reader.consumer.leave()
    assert left.consumer.exception is None
    assert [reader.told for reader in (nothing, some, everything, left)] == [*(n + 1 for n in told[:3]), told[3]]
    assert broadcast.held == budget.used == broadcast.consumers == 0
    await asyncio.wait_for(waiting, 1)
    broadcast.feed(b"too late")
    assert broadcast.held == budget.used == 0


async def test_the_first_ending_stands() -> None:
    broken, complete = opened(), opened()
    first, rest = ValueError("first"), Reader(complete)
    reader = Reader(broken)
    broken.fail(first)
    broken.fail(ValueError("second"))
    broken.finish()
    assert broken.exception is first
    assert reader.consumer.exception is first
    assert not broken.ended
    assert reader.told == 1

    complete.feed(b"all")
    complete.finish()
    complete.fail(ValueError("late"))
    complete.finish()
    assert complete.exception is None
    assert rest.read() == [b"all"]
    assert rest.consumer.at_end


@pytest.mark.parametrize("state", ["new", "took", "read some", "waits", "closed", "at end", "failed"])
async def test_leaving_is_harmless_in_any_state_and_twice(state: str) -> None:
    budget = Budget(math.inf)
    broadcast, stream = opened(budget=budget), pieces(4)
    leaves, stays = Reader(broadcast), Reader(broadcast)
    if state != "new":
        for data in stream[:2]:
            broadcast.feed(data)
    if state == "took":
        leaves.take()
    elif state == "read some":
        leaves.read(1)
    elif state == "waits":
        leaves.read()
    elif state == "closed":
        broadcast.close()
    elif state == "at end":
        broadcast.finish()
        leaves.read()
    elif state == "failed":
        broadcast.fail(ValueError())
    told = leaves.told

    leaves.consumer.leave()
    leaves.consumer.leave()

    ended = state in {"at end", "failed"}
    assert broadcast.consumers == (0 if state == "failed" else 1)
    if not ended:
        for data in stream[0 if state == "new" else 2 :]:
            broadcast.feed(data)
        broadcast.finish()
    stays.read()
    leaves.consumer.leave()
    assert leaves.told == told
    assert leaves.consumer.at_end is (state == "at end")
    if state != "failed":
        assert stays.data == (stream[:2] if ended else stream)
    assert broadcast.held == budget.used == broadcast.consumers == 0


@pytest.mark.parametrize("waits", [False, True])
async def test_a_reader_that_left_is_forgotten_at_once(waits: bool) -> None:
    broadcast = opened()
    reader = Reader(broadcast)
    if not waits:
        broadcast.feed(b"data")
    reader.take()
    reader.consumer.leave()
    alive = weakref.ref(reader)
    del reader
    gc.collect()
    assert alive() is None


async def test_a_reader_that_left_frees_just_what_nobody_else_needs() -> None:
    broadcast, stream = opened(), pieces(4)
    behind, ahead = Reader(broadcast), Reader(broadcast)
    broadcast.close()
    for data in stream:
        broadcast.feed(data)
    behind.read(1)
    ahead.read(3)
    behind.consumer.leave()
    assert broadcast.held == 1_000
    assert ahead.read() == stream[3:]


async def test_on_desert_is_called_when_the_last_one_left_before_the_end() -> None:
    deserted: list[int] = []
    broadcast = opened(on_desert=lambda: deserted.append(broadcast.consumers))
    first, second = Reader(broadcast), Reader(broadcast)
    broadcast.feed(b"data")
    first.consumer.leave()
    assert deserted == []
    second.consumer.leave()
    assert deserted == [0]
    second.consumer.leave()
    broadcast.close()
    broadcast.finish()
    assert deserted == [0]


@pytest.mark.parametrize("ending", ["finish", "fail", "read"])
async def test_on_desert_is_not_called_after_the_end(ending: str) -> None:
    deserted: list[str] = []
    broadcast = opened(on_desert=lambda: deserted.append(ending))
    readers = [Reader(broadcast), Reader(broadcast)]
    broadcast.feed(b"data")
    broadcast.fail(ValueError()) if ending == "fail" else broadcast.finish()
    for reader in readers:
        if ending == "read":
            reader.read()
        reader.consumer.leave()
    assert deserted == []
    assert broadcast.consumers == 0


@in_virtual_time
async def test_nobody_is_deserted_by_those_who_are_cut_off(loop: VirtualLoop) -> None:
    deserted: list[bool] = []
    broadcast = opened(loop, max_buffer=1_000, on_desert=lambda: deserted.append(True))
    fast, stuck = Reader(broadcast), Reader(broadcast)
    await asyncio.gather(produce(broadcast, pieces(3)), fast.read_on())
    assert stuck.is_cut_off
    stuck.consumer.leave()
    assert deserted == []


# -- from within on_ready


async def test_a_reader_may_leave_itself_when_it_is_told() -> None:
    broadcast, stream = opened(), pieces(3)
    leaves, stays = Reader(broadcast), Reader(broadcast)
    leaves.consumer.on_ready = leaves.consumer.leave
    broadcast.close()
    for data in stream:
        broadcast.feed(data)
    broadcast.finish()
    assert broadcast.consumers == 1
    assert stays.read() == stream
    assert broadcast.held == 0


@pytest.mark.parametrize("what", ["feed", "finish"])
async def test_a_reader_that_another_made_leave_is_not_told(what: str) -> None:
    broadcast = opened()
    leads, gone = Reader(broadcast), Reader(broadcast)
    leads.consumer.on_ready = gone.consumer.leave
    broadcast.feed(b"data") if what == "feed" else broadcast.finish()
    assert gone.told == 0
    assert broadcast.consumers == 1


async def test_a_reader_that_another_made_leave_is_not_told_of_a_failure() -> None:
    broadcast = opened()
    leads, gone = Reader(broadcast), Reader(broadcast)
    leads.consumer.on_ready = gone.consumer.leave
    broadcast.fail(ValueError())
    assert gone.told == 0


@in_virtual_time
async def test_a_reader_that_another_made_leave_is_not_cut_off(loop: VirtualLoop) -> None:
    broadcast = opened(loop, max_buffer=1_000, stall_timeout=0)
    fast, stuck, gone = (Reader(broadcast) for _ in range(3))
    broadcast.feed(*pieces(1))
    fast.read()
    told = gone.told
    stuck.consumer.on_ready = gone.consumer.leave
    await broadcast.room(SIZE)
    assert stuck.is_cut_off
    assert gone.told == told


async def test_one_who_joins_when_another_is_told_reads_from_byte_zero() -> None:
    broadcast, stream = opened(), pieces(3)
    joined: list[Reader] = []
    reader = Reader(broadcast)

    def join() -> None:
        if broadcast.is_open:
            joined.append(Reader(broadcast))
        reader.read()

    reader.consumer.on_ready = join
    for data in stream:
        broadcast.feed(data)
    broadcast.finish()
    assert len(joined) == 3
    for late in joined:
        late.read()
        assert late.data == stream
        assert late.consumer.at_end
    assert reader.data == stream
    assert broadcast.held == 0


@in_virtual_time
async def test_all_may_be_read_within_on_ready(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, max_buffer=1_000), pieces(50)
    readers = [Reader(broadcast) for _ in range(3)]
    for reader in readers:
        reader.consumer.on_ready = reader.read  # type: ignore[assignment]
        reader.read()
    await produce(broadcast, stream)
    assert all(reader.data == stream and reader.consumer.at_end for reader in readers)
    assert broadcast.held == 0


@pytest.mark.parametrize("how", ["feed", "fail"])
async def test_a_reader_may_break_the_stream_when_it_is_told(how: str) -> None:
    broadcast, error = opened(), ValueError()
    first, second, third = (Reader(broadcast) for _ in range(3))
    second.consumer.on_ready = lambda: broadcast.fail(error)
    broadcast.feed(b"data") if how == "feed" else broadcast.fail(error)
    assert [reader.consumer.exception for reader in (first, second, third)] == [error] * 3
    assert third.told == 1
    assert broadcast.held == 0


@pytest.mark.parametrize("ask", ["take", "has_read"])
async def test_a_reader_told_of_a_failure_may_look_at_another(ask: str) -> None:
    broadcast = opened()
    first, second = Reader(broadcast), Reader(broadcast)
    for data in pieces(2):
        broadcast.feed(data)
    second.take(1)
    told: list[Any] = []
    first.consumer.on_ready = lambda: told.append(second.take() if ask == "take" else second.consumer.has_read(SIZE))
    broadcast.fail(ValueError())
    assert told == [[] if ask == "take" else None]
    assert second.told == 2


@in_virtual_time
async def test_a_reader_that_is_cut_off_may_end_it_all(loop: VirtualLoop) -> None:
    broadcast, error = opened(loop, max_buffer=1_000), ValueError()
    fast, stuck = Reader(broadcast), Reader(broadcast)
    broadcast.feed(*pieces(1))
    fast.read()
    stuck.consumer.on_ready = lambda: broadcast.fail(error)
    await broadcast.room(SIZE)
    assert fast.consumer.exception is error
    assert stuck.is_cut_off
    assert broadcast.held == 0


# -- after it left


async def test_what_one_says_after_it_left_takes_nothing_from_others() -> None:
    broadcast, stream = opened(), pieces(3)
    left, quick, slow = (Reader(broadcast) for _ in range(3))
    broadcast.close()
    for data in stream:
        broadcast.feed(data)
    left.take(1)
    left.consumer.leave()
    left.consumer.has_read(SIZE)
    quick.read(1)
    assert broadcast.held == 3_000
    assert slow.read() == stream


@pytest.mark.parametrize("dropped", [0, 1, 4])
async def test_one_that_left_is_given_nothing(dropped: int) -> None:
    broadcast = opened()
    left, stays = Reader(broadcast), Reader(broadcast)
    broadcast.close()
    for data in pieces(5):
        broadcast.feed(data)
    left.consumer.leave()
    stays.read(dropped)
    assert left.take(1) == []
