"""The broadcast: what its readers get, who may join, what it holds, and when its producer waits. Time is virtual."""

import asyncio
import math
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from aiohttp_reduce.broadcast import CHUNK_OVERHEAD, Budget, Chunk
from tests.broadcasting import (
    SIZE,
    Reader,
    feed_while_it_fits,
    in_virtual_time,
    opened,
    pieces,
    produce,
    settled,
    timers,
)
from tests.virtual import VirtualLoop

# -- what a reader gets


async def test_every_reader_reads_from_byte_zero_whenever_it_joined() -> None:
    broadcast, stream = opened(), pieces(6)
    first = Reader(broadcast)
    for data in stream[:3]:
        broadcast.feed(data)
    first.read(2)
    midway = Reader(broadcast)
    for data in stream[3:]:
        broadcast.feed(data)
    last = Reader(broadcast)
    broadcast.finish()

    for reader in (first, midway, last):
        reader.read()
        assert reader.data == stream
        assert reader.consumer.at_end
        assert reader.consumer.exception is None
    assert broadcast.total == 6 * SIZE


async def test_chunks_are_handed_on_by_reference_with_the_boundaries_of_the_parts() -> None:
    broadcast = opened()
    stream = [(b"one part", True), (b"two ", False), (b"halves", True), (b"", True), (b"the rest", False)]
    readers = [Reader(broadcast), Reader(broadcast)]
    for data, ends_part in stream:
        broadcast.feed(data, ends_part=ends_part)
    readers.append(Reader(broadcast))
    broadcast.finish()

    for reader in readers:
        reader.read()
        assert all(chunk.data is data for chunk, (data, _) in zip(reader.got, stream, strict=True))
        assert [chunk.ends_part for chunk in reader.got] == [ends for _, ends in stream]


async def test_a_chunk_ends_no_part_unless_it_is_said() -> None:
    broadcast = opened()
    reader = Reader(broadcast)
    broadcast.feed(b"data")
    reader.read()
    assert reader.got[0].ends_part is False


async def test_an_empty_chunk_that_ends_a_part_is_dropped_once_its_offset_is_read() -> None:
    broadcast = opened()
    reader, other = Reader(broadcast), Reader(broadcast)
    broadcast.close()
    broadcast.feed(b"", ends_part=True)
    broadcast.feed(b"part")
    broadcast.feed(b"", ends_part=True)
    other.read()

    reader.read(1)
    assert broadcast.held == 4 + 2 * CHUNK_OVERHEAD
    reader.read(1)
    assert broadcast.held == CHUNK_OVERHEAD  # the last has the same offset, but was not taken yet
    reader.read(1)
    assert broadcast.held == 0


async def test_a_reader_that_waits_is_told_before_feed_returns_and_only_then() -> None:
    broadcast = opened()
    never_took, waits, lags = Reader(broadcast), Reader(broadcast), Reader(broadcast)
    assert waits.consumer.take() is None
    broadcast.feed(b"first")
    assert (never_took.told, waits.told, lags.told) == (1, 1, 1)
    waits.read()
    lags.read(1)  # and does not ask for more

    broadcast.feed(b"second")
    assert (never_took.told, waits.told, lags.told) == (1, 2, 1)
    assert waits.consumer.take().data == b"second"  # type: ignore[union-attr]


async def test_a_reader_that_waits_is_told_of_the_end_and_is_not_at_it_before() -> None:
    broadcast = opened()
    reader = Reader(broadcast)
    broadcast.feed(b"all")
    reader.read()
    told = reader.told
    assert not reader.consumer.at_end
    broadcast.finish()
    assert reader.told == told + 1
    assert reader.consumer.take() is None
    assert reader.consumer.at_end


async def test_a_reader_is_told_by_its_present_on_ready() -> None:
    broadcast = opened()
    reader = Reader(broadcast)
    told: list[str] = []
    reader.consumer.on_ready = lambda: told.append("the new one")
    broadcast.feed(b"data")
    assert told == ["the new one"]
    assert reader.told == 0


async def test_after_the_finish_late_readers_still_read_the_rest() -> None:
    broadcast, stream = opened(), pieces(4)
    reader, quick = Reader(broadcast), Reader(broadcast)
    for data in stream:
        broadcast.feed(data)
    broadcast.finish()
    quick.read()
    assert broadcast.consumers == 1
    assert reader.read(1) == stream[:1]
    assert broadcast.held == 3_000
    assert reader.read() == stream[1:]
    assert reader.consumer.at_end
    assert broadcast.consumers == broadcast.held == 0


async def test_an_empty_stream_ends() -> None:
    broadcast = opened()
    waits, asks = Reader(broadcast), Reader(broadcast)
    waits.take()
    broadcast.finish()
    assert waits.told == 1
    assert waits.take() == asks.take() == []
    assert waits.consumer.at_end
    assert asks.consumer.at_end


# -- who may join


@pytest.mark.parametrize("ending", ["close", "finish", "fail"])
async def test_nobody_joins_what_is_closed_finished_or_broken(ending: str) -> None:
    broadcast = opened()
    Reader(broadcast)
    arguments = [ValueError()] if ending == "fail" else []
    getattr(broadcast, ending)(*arguments)
    assert not broadcast.is_open
    with pytest.raises(RuntimeError, match="closed"):
        broadcast.join(lambda: None)
    assert broadcast.consumers == (0 if ending == "fail" else 1)


async def test_on_close_is_called_once_when_nobody_can_join_any_more() -> None:
    closed: list[bool] = []
    broadcast = opened(on_close=lambda: closed.append(broadcast.is_open))
    broadcast.feed(b"data")
    assert closed == []
    broadcast.close()
    assert closed == [False]
    broadcast.close()
    broadcast.finish()
    broadcast.fail(ValueError())
    assert closed == [False]


@pytest.mark.parametrize("ending", ["finish", "fail", "fits"])
async def test_on_close_is_called_by_whatever_closes(ending: str) -> None:
    closed: list[str] = []
    broadcast = opened(max_buffer=1_000, on_close=lambda: closed.append(ending))
    Reader(broadcast)
    broadcast.feed(*pieces(1))
    getattr(broadcast, ending)(*{"finish": [], "fail": [ValueError()], "fits": [SIZE]}[ending])
    assert closed == [ending]
    assert not broadcast.is_open


async def test_a_broadcast_that_closed_reads_on_for_those_who_are_in() -> None:
    broadcast, stream = opened(), pieces(4)
    reader, other = Reader(broadcast), Reader(broadcast)
    broadcast.feed(stream[0])
    broadcast.close()
    for data in stream[1:]:
        broadcast.feed(data)
        other.read()
    broadcast.finish()
    assert reader.read() == stream
    assert reader.consumer.at_end


@pytest.mark.parametrize("spent", ["max_buffer", "budget"])
async def test_it_closes_when_its_own_or_the_shared_limit_is_spent(spent: str) -> None:
    limits = {"max_buffer": math.inf, "budget": math.inf, spent: 3_000}
    broadcast = opened(max_buffer=limits["max_buffer"], budget=Budget(limits["budget"]))
    Reader(broadcast)
    stream = iter(pieces(9))
    for _ in range(3):  # the last fills it to the byte
        assert broadcast.fits(SIZE)
        assert broadcast.is_open
        broadcast.feed(next(stream))
    assert not broadcast.fits(1)
    assert not broadcast.is_open
    assert broadcast.held == 3_000


async def test_one_byte_too_many_does_not_fit() -> None:
    for limits in ({"max_buffer": 999}, {"budget": Budget(999)}):
        broadcast = opened(**limits)  # type: ignore[arg-type]
        Reader(broadcast)
        broadcast.feed(b"")
        assert broadcast.fits(SIZE - CHUNK_OVERHEAD - 1)
        assert broadcast.is_open
        assert not broadcast.fits(SIZE - CHUNK_OVERHEAD)


async def test_what_others_hold_closes_it_too() -> None:
    budget = Budget(3_000)
    other, broadcast = opened(budget=budget), opened(budget=budget)
    readers = [Reader(other), Reader(broadcast)]
    for data in pieces(2):
        other.feed(data)
    broadcast.feed(*pieces(1))
    assert not broadcast.fits(1)
    assert not broadcast.is_open
    assert other.is_open  # until it asks itself
    assert not other.fits(1)
    assert not other.is_open
    assert len(readers) == 2


@pytest.mark.parametrize("limit", ["max_buffer", "budget"])
async def test_a_first_chunk_that_is_too_large_closes_it_and_goes_through(limit: str) -> None:
    limits = {"max_buffer": math.inf, "budget": math.inf, limit: 999}
    broadcast = opened(max_buffer=limits["max_buffer"], budget=Budget(limits["budget"]))
    reader, (data,) = Reader(broadcast), pieces(1)
    assert broadcast.fits(SIZE)
    assert not broadcast.is_open
    broadcast.feed(data)
    assert reader.read() == [data]


async def test_closing_makes_room_at_once_where_all_was_read() -> None:
    broadcast = opened(max_buffer=2_000)
    reader = Reader(broadcast)
    for data in pieces(2):
        broadcast.feed(data)
    reader.read()
    assert broadcast.held == 2_000
    assert broadcast.fits(SIZE)
    assert not broadcast.is_open
    assert broadcast.held == 0


# -- what is held


async def test_held_and_the_budget_are_exact_at_any_time() -> None:
    budget = Budget(math.inf)
    budget.used = 50_000  # what others hold
    broadcast = opened(budget=budget)

    def held() -> int:
        assert budget.used - 50_000 == broadcast.held
        return broadcast.held

    fast, slow = Reader(broadcast), Reader(broadcast)
    for count, data in enumerate(pieces(4), 1):
        broadcast.feed(data)
        assert held() == count * 1_000
    fast.read()
    slow.read(2)
    assert held() == 4_000  # open: somebody may still join
    broadcast.close()
    assert held() == 2_000
    slow.read(1)
    assert held() == 1_000
    broadcast.feed(b"x")
    assert held() == 1_000 + 1 + CHUNK_OVERHEAD
    slow.read()
    assert held() == 1 + CHUNK_OVERHEAD
    fast.consumer.leave()
    assert held() == 0


@pytest.mark.parametrize(
    "ending", ["finish and read", "finish and leave", "leave and finish", "fail", "close and leave"]
)
async def test_nothing_is_held_at_the_end(ending: str) -> None:
    budget = Budget(math.inf)
    broadcast = opened(budget=budget)
    readers = [Reader(broadcast) for _ in range(3)]
    for data in pieces(5):
        broadcast.feed(data)
    for count, reader in enumerate(readers):
        reader.read(count)
    for step in ending.split(" and "):
        if step in {"read", "leave"}:
            for reader in readers:
                reader.read() if step == "read" else reader.consumer.leave()
        else:
            getattr(broadcast, step)(*[ValueError()] * (step == "fail"))
    assert broadcast.held == budget.used == broadcast.consumers == 0


async def test_what_a_reader_took_is_held_until_it_has_read_it() -> None:
    broadcast = opened(max_buffer=2_000)
    reader = Reader(broadcast)
    for data in pieces(2):
        broadcast.feed(data)
    reader.take()
    assert not broadcast.fits(SIZE)
    reader.consumer.has_read(0)
    reader.consumer.has_read(SIZE - 1)  # a part of a chunk keeps the whole
    assert broadcast.held == 2_000
    reader.consumer.has_read(SIZE)
    assert broadcast.held == 1_000
    reader.consumer.has_read(SIZE)
    reader.consumer.has_read(0)
    assert broadcast.held == 1_000
    reader.consumer.has_read(2 * SIZE)
    assert broadcast.held == 0


async def test_nobody_has_read_what_it_did_not_take() -> None:
    broadcast, stream = opened(), pieces(3)
    reader = Reader(broadcast)
    broadcast.close()
    for data in stream:
        broadcast.feed(data)
    reader.take(1)
    reader.consumer.has_read(10**9)
    assert broadcast.held == 2_000
    assert reader.read() == stream[1:]


async def test_whoever_took_the_end_holds_nothing_any_more() -> None:
    broadcast = opened()
    reader = Reader(broadcast)
    for data in pieces(3):
        broadcast.feed(data)
    broadcast.finish()
    reader.take(3)
    assert broadcast.held == 3_000
    reader.take()
    assert reader.consumer.at_end
    assert broadcast.held == broadcast.consumers == 0
    reader.consumer.has_read(reader.offset)
    assert broadcast.held == 0


async def test_a_flood_of_tiny_chunks_is_bounded_too() -> None:
    broadcast = opened(max_buffer=100 * 1_000)
    Reader(broadcast)
    fed = feed_while_it_fits(broadcast, iter([b"x"] * 10**6))
    assert fed == 100 * 1_000 // (1 + CHUNK_OVERHEAD)
    assert broadcast.held == fed * (1 + CHUNK_OVERHEAD)


@in_virtual_time
async def test_the_producer_never_runs_ahead_of_the_slowest_by_more_than_max_buffer(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, max_buffer=3_000), pieces(20)
    fast, slow = Reader(broadcast), Reader(broadcast)
    ahead: list[int] = []

    async def slowly() -> None:
        for _ in stream:
            await settled()
            ahead.append(broadcast.total - slow.offset)
            assert broadcast.held <= 3_000
            await slow.read_on(1)

    await asyncio.gather(produce(broadcast, stream), fast.read_on(), slowly())
    slow.read()
    assert max(ahead) == 3 * SIZE
    assert fast.data == slow.data == stream


async def test_a_chunk_larger_than_the_limits_goes_through_when_all_before_it_was_read() -> None:
    broadcast = opened(max_buffer=500, budget=Budget(500))
    reader, other = Reader(broadcast), Reader(broadcast)
    huge = pieces(2, 10_000)
    for data in huge:
        await asyncio.wait_for(broadcast.room(len(data)), 1)
        broadcast.feed(data)
        assert not broadcast.fits(1)
        assert reader.read() == [data]
        assert not broadcast.fits(1)
        assert other.read() == [data]
        assert broadcast.fits(1)
    assert broadcast.held == 0


@pytest.mark.parametrize("limit", ["max_buffer", "budget"])
@in_virtual_time
async def test_with_no_buffer_at_all_a_lone_reader_gets_on_chunk_by_chunk(loop: VirtualLoop, limit: str) -> None:
    budget = Budget(0 if limit == "budget" else math.inf)
    broadcast, stream = opened(loop, max_buffer=0 if limit == "max_buffer" else math.inf, budget=budget), pieces(5)
    reader = Reader(broadcast)
    most = 0

    async def slowly() -> None:
        nonlocal most
        while not reader.consumer.at_end:
            await reader.read_on(1, pause=10)
            most = max(most, budget.used)

    await asyncio.gather(produce(broadcast, stream), slowly())
    assert reader.data == stream
    assert most <= 1_000
    assert budget.used == 0


@in_virtual_time
async def test_readers_whose_budget_others_have_spent_still_get_on(loop: VirtualLoop) -> None:
    budget = Budget(2_000)
    hog = opened(loop, budget=budget)
    hogging = Reader(hog)
    for data in pieces(2):
        hog.feed(data)
    stream = pieces(5)
    broadcasts = [opened(loop, budget=budget) for _ in range(3)]
    readers = [Reader(broadcast) for broadcast in broadcasts for _ in range(2)]

    await asyncio.gather(*(produce(each, stream) for each in broadcasts), *(reader.read_on() for reader in readers))

    assert all(reader.data == stream for reader in readers)
    assert budget.used == hog.held == 2_000
    hogging.consumer.leave()
    hog.finish()
    assert budget.used == 0


async def test_a_stream_that_nobody_reads_costs_its_budget_at_most_and_nothing_once_closed() -> None:
    budget = Budget(math.inf)
    broadcast = opened(max_buffer=3_000, budget=budget)
    assert feed_while_it_fits(broadcast, iter(pieces(3))) == 3
    assert budget.used == 3_000
    for data in pieces(50):
        await asyncio.wait_for(broadcast.room(len(data)), 1)
        broadcast.feed(data)
        assert budget.used == broadcast.held == 0


async def test_what_was_fed_with_nobody_there_is_kept_for_the_first_who_joins() -> None:
    broadcast, stream = opened(), pieces(3)
    for data in stream[:2]:
        broadcast.feed(data)
    reader = Reader(broadcast)
    reader.consumer.leave()
    reader = Reader(broadcast)
    broadcast.feed(stream[2])
    broadcast.close()
    assert broadcast.held == 3_000
    assert reader.read() == stream
    assert broadcast.held == 0


# -- the blocked producer


async def test_room_returns_at_once_where_there_is_room() -> None:
    broadcast = opened(max_buffer=1_000)
    Reader(broadcast)
    coroutine = broadcast.room(SIZE)
    with pytest.raises(StopIteration):
        coroutine.send(None)


@pytest.mark.parametrize("how", ["read", "leave", "fail"])
async def test_a_blocked_producer_goes_on_when_the_slowest_reads_leaves_or_all_is_over(how: str) -> None:
    broadcast = opened(max_buffer=2_000)
    fast, slow = Reader(broadcast), Reader(broadcast)
    for data in pieces(2):
        broadcast.feed(data)
    waiting = asyncio.ensure_future(broadcast.room(SIZE))
    await settled()
    fast.read()
    await settled()
    assert not waiting.done()
    slow.take()
    await settled()
    assert not waiting.done()

    {"read": slow.read, "leave": slow.consumer.leave, "fail": lambda: broadcast.fail(ValueError())}[how]()
    if how == "read":
        slow.consumer.has_read(SIZE)
    await settled()
    assert waiting.done()
    assert broadcast.fits(SIZE)


async def test_a_blocked_producer_goes_on_when_the_last_reader_left() -> None:
    broadcast = opened(max_buffer=1_000)
    readers = [Reader(broadcast), Reader(broadcast)]
    broadcast.feed(*pieces(1))
    waiting = asyncio.ensure_future(broadcast.room(10**6))
    await settled()
    readers[0].consumer.leave()
    await settled()
    assert not waiting.done()
    readers[1].consumer.leave()
    await settled()
    assert waiting.done()


async def test_a_blocked_producer_waits_on_while_there_is_not_enough_room() -> None:
    broadcast = opened(max_buffer=3_000)
    reader = Reader(broadcast)
    for data in pieces(3):
        broadcast.feed(data)
    waiting = asyncio.ensure_future(broadcast.room(2 * SIZE + CHUNK_OVERHEAD))
    await settled()
    reader.read(1)
    await settled()
    assert not waiting.done()
    reader.read(1)
    await settled()
    assert waiting.done()


async def test_a_producer_that_was_woken_waits_again_if_another_took_the_budget_first() -> None:
    budget = Budget(3_000)
    broadcast, other = opened(budget=budget), opened(budget=budget)
    reader, _ = Reader(broadcast), Reader(other)
    for data in pieces(2):
        broadcast.feed(data)
    other.feed(*pieces(1))
    waiting = asyncio.ensure_future(broadcast.room(SIZE))
    await settled()

    reader.read(1)
    other.feed(*pieces(1))
    await settled()
    assert not waiting.done()
    assert budget.used == 3_000
    reader.read(1)
    await settled()
    assert waiting.done()


@in_virtual_time
async def test_a_producer_that_is_cancelled_in_room_leaves_no_timer_and_may_come_again(loop: VirtualLoop) -> None:
    broadcast = opened(loop, max_buffer=1_000)
    fast, slow = Reader(broadcast), Reader(broadcast)
    broadcast.feed(*pieces(1))
    fast.read()
    waiting = loop.create_task(broadcast.room(SIZE))
    await asyncio.sleep(1)
    assert timers(loop)
    waiting.cancel()
    await settled()
    assert waiting.cancelled()
    assert not timers(loop)
    await asyncio.sleep(100)
    assert not slow.is_cut_off

    again = loop.create_task(broadcast.room(SIZE))
    await settled()
    slow.read()
    await again


# -- what it costs


class CountedLog(deque[Chunk]):
    """A log that counts how often a chunk in it is looked up."""

    touched = 0

    def __getitem__(self, index: Any) -> Any:
        self.touched += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in super().__iter__():
            self.touched += 1
            yield chunk


@pytest.mark.parametrize("how", ["in step", "late", "one by one", "leave"])
async def test_the_work_is_linear_in_readers_and_chunks(how: str) -> None:
    def touched(readers: int, chunks: int) -> float:
        broadcast = opened()
        log = broadcast._log = CountedLog()
        early = [Reader(broadcast) for _ in range(0 if how == "late" else readers)]
        if how != "late":
            broadcast.close()
        for _ in range(chunks):
            broadcast.feed(b"x")
            if how == "in step":
                for reader in early:
                    reader.consumer.take()
                    reader.consumer.has_read(broadcast.total)
        everybody = early or [Reader(broadcast) for _ in range(readers)]
        broadcast.finish()
        for reader in everybody:
            offset = 0
            while how != "leave" and reader.consumer.take() is not None:
                offset += 1
                reader.consumer.has_read(offset)
            reader.consumer.leave()
        assert broadcast.held == 0
        return log.touched / (readers * chunks)

    assert touched(80, 10) <= 1.1 * touched(10, 10) + 1
    assert touched(10, 80) <= 1.1 * touched(10, 10) + 1
    assert touched(80, 80) < 8
