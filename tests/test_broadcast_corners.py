"""What of the broadcast is used by streams alone: the first one's time, forms, and where a producer goes on."""

import asyncio
import math
from typing import Any

from aiohttp_reduce.broadcast import CHUNK_OVERHEAD, Budget
from tests.broadcasting import SIZE, Reader, in_virtual_time, opened, pieces, produce, settled


@in_virtual_time
async def test_one_that_has_all_when_it_joins_starves(loop: Any) -> None:
    broadcast = opened(max_buffer=3_000, stall_timeout=1.0)
    for piece in pieces(3):
        broadcast.feed(piece)
    has_all = broadcast.join(lambda: None, has_all=True)
    stuck = Reader(broadcast)
    await asyncio.wait_for(broadcast.room(SIZE), 2.0)
    assert stuck.is_cut_off
    assert has_all.exception is None


@in_virtual_time
async def test_a_producer_that_waited_goes_on_when_enough_was_read(loop: Any) -> None:
    broadcast = opened(max_buffer=4_000, resume_at=0.25)
    reader = Reader(broadcast)
    for piece in pieces(4):
        broadcast.feed(piece)
    room = asyncio.ensure_future(broadcast.room(SIZE))
    await settled()
    for left in (3, 2):
        reader.read(1)
        await settled()
        assert (broadcast.held, room.done()) == (left * 1_000, False)
    reader.read(1)
    await settled()
    assert room.done()


def held_up(loop: Any, **options: Any) -> Any:
    """A broadcast whose producer waits, a first one that reads nothing, and one that has read all."""
    broadcast = opened(max_buffer=3_000, stall_timeout=100.0, first_timeout=2.0, **options)
    first, fast = Reader(broadcast), Reader(broadcast)
    for piece in pieces(3):
        broadcast.feed(piece)
    fast.read()
    return broadcast, first, fast


@in_virtual_time
async def test_a_first_one_that_reads_nothing_is_given_less_time_at_the_beginning(loop: Any) -> None:
    broadcast, first, _ = held_up(loop)
    broadcast.watch_first(first.consumer, lambda: None)
    began = loop.time()
    await broadcast.room(SIZE)
    assert first.is_cut_off
    assert math.isclose(loop.time() - began, 0.4)  # a fifth


@in_virtual_time
async def test_a_first_one_that_reads_nothing_later_is_given_its_time(loop: Any) -> None:
    broadcast, first, _ = held_up(loop)
    broadcast.watch_first(first.consumer, lambda: None)
    await asyncio.sleep(50)
    began = loop.time()
    await broadcast.room(SIZE)
    assert first.is_cut_off
    assert math.isclose(loop.time() - began, 2.0)


@in_virtual_time
async def test_a_first_one_whose_client_reads_is_not_cut_off(loop: Any) -> None:
    broadcast, first, _ = held_up(loop)
    broadcast.watch_first(first.consumer, lambda: loop.time() // 0.3)
    room = asyncio.ensure_future(broadcast.room(SIZE))
    await asyncio.sleep(20)
    assert not first.is_cut_off
    first.read()
    await room


@in_virtual_time
async def test_a_first_one_that_is_not_behind_is_not_cut_off(loop: Any) -> None:
    broadcast, slow, fast = held_up(loop)
    broadcast.watch_first(fast.consumer, lambda: None)
    room = asyncio.ensure_future(broadcast.room(SIZE))
    await asyncio.sleep(20)
    assert not fast.is_cut_off
    assert not slow.is_cut_off
    slow.read()
    await room


@in_virtual_time
async def test_a_first_one_that_reads_in_time_is_timed_no_more(loop: Any) -> None:
    broadcast, first, _ = held_up(loop)
    broadcast.watch_first(first.consumer, lambda: None)
    room = asyncio.ensure_future(broadcast.room(SIZE))
    await settled()
    first.read()
    await room  # and nothing is scheduled any more


@in_virtual_time
async def test_forms_count_and_close_what_they_make_too_large(loop: Any) -> None:
    budget = Budget(10_000)
    broadcast, other = opened(max_buffer=5_000, budget=budget), opened(budget=budget)
    chunk: Any = broadcast.feed(pieces(1)[0])
    broadcast.keep(chunk, "form", bytes(500))
    assert (broadcast.held, budget.used) == (1_500, 1_500)
    for piece in pieces(8):
        other.feed(piece)
    assert [broadcast.is_open, other.is_open] == [True, True]
    broadcast.keep(chunk, "another", bytes(600))
    assert not broadcast.is_open  # more than all may keep together; and nobody reads
    assert budget.used == 8_000


@in_virtual_time
async def test_forms_of_a_chunk_that_is_gone_do_not_count(loop: Any) -> None:
    broadcast = opened()
    reader = Reader(broadcast)
    fed: list[Any] = [broadcast.feed(piece) for piece in pieces(2)]
    gone, there = fed
    broadcast.close()
    reader.read(1)
    broadcast.keep(gone, "form", bytes(500))
    assert broadcast.held == 1_000
    broadcast.keep(there, "form", bytes(500))
    assert broadcast.held == 1_500
    reader.read()
    assert broadcast.held == 0


@in_virtual_time
async def test_the_time_that_reading_takes_at_a_fair_pace_is_not_used_up(loop: Any) -> None:
    large = 2 * 2**20 - CHUNK_OVERHEAD  # a second at a fair pace
    small = 2**16 - CHUNK_OVERHEAD
    broadcast = opened(max_buffer=2 * 2**20, stall_timeout=1.0)
    slow, fast = Reader(broadcast), Reader(broadcast)
    broadcast.close()
    stream = [bytes(size) for size in ([small] * 32 + [large]) * 4]
    slowly = asyncio.ensure_future(slow.read_on(pause=0.9 / 32))
    await asyncio.gather(fast.read_on(), produce(broadcast, stream))
    await slowly
    assert not slow.is_cut_off
    assert len(slow.got) == len(stream)
