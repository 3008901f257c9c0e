"""Whom the broadcast cuts off, and when: the time for which readers may hold others up. Time is virtual."""

import asyncio
import math
from collections.abc import Iterator

import pytest

from aiohttp_reduce import broadcast as module
from aiohttp_reduce.broadcast import Budget
from tests.broadcasting import SIZE, Reader, in_virtual_time, opened, pieces, produce, settled, timers
from tests.virtual import VirtualLoop


@pytest.fixture(autouse=True, scope="module")
def clock() -> Iterator[None]:
    """All time counts, however much was read in it; there is a test of its own for that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PACE", math.inf)
        yield


# -- who is cut off


@pytest.mark.parametrize("seconds", [None, 0.5, 0])
@in_virtual_time
async def test_a_reader_that_holds_a_starving_one_up_is_cut_off_after_the_stall_timeout(
    loop: VirtualLoop, seconds: float | None
) -> None:
    options = {} if seconds is None else {"stall_timeout": seconds}
    broadcast, stream = opened(loop, max_buffer=2_000, **options), pieces(8)
    fast, stuck = Reader(broadcast), Reader(broadcast)
    began = loop.time()
    producing, reading = loop.create_task(produce(broadcast, stream)), loop.create_task(fast.read_on())

    await stuck.ready.wait()  # for the first chunk
    stuck.ready.clear()
    await stuck.ready.wait()

    assert stuck.is_cut_off
    assert "too long" in str(stuck.consumer.exception)
    assert stuck.take() == []
    assert not stuck.consumer.at_end
    # The others go on at once.
    await asyncio.gather(producing, reading)
    assert fast.data == stream
    assert loop.time() - began == (5 if seconds is None else seconds)
    assert broadcast.held == 0


@in_virtual_time
async def test_a_reader_that_took_all_but_reads_nothing_is_cut_off_too(loop: VirtualLoop) -> None:
    broadcast = opened(loop, max_buffer=2_000)
    fast, hostile = Reader(broadcast), Reader(broadcast)
    began = loop.time()
    producing, reading = loop.create_task(produce(broadcast, pieces(8))), loop.create_task(fast.read_on())
    await settled()
    hostile.take()
    await asyncio.gather(producing, reading)
    assert hostile.is_cut_off
    assert loop.time() - began == 5


@in_virtual_time
async def test_a_trickling_reader_is_cut_off_when_it_has_held_others_up_for_as_long_in_all(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, max_buffer=2_000), pieces(50)
    fast, trickling = Reader(broadcast), Reader(broadcast)
    began = loop.time()
    slowly = loop.create_task(trickling.read_on(pause=0.75))
    await asyncio.gather(produce(broadcast, stream), fast.read_on())
    assert loop.time() - began == 5
    assert trickling.is_cut_off
    assert fast.data == stream
    await slowly
    assert trickling.data == stream[:7]  # the seventh was in its hands


@in_virtual_time
async def test_slow_readers_in_turn_share_one_time(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, max_buffer=2_000), pieces(20)
    fast, first, second, third = (Reader(broadcast) for _ in range(4))
    began = loop.time()

    async def in_turn() -> None:
        # The buffer is two chunks: each stops two further than the one before.
        reading = [loop.create_task(second.read_on(2)), loop.create_task(third.read_on(4))]
        await asyncio.sleep(2)
        reading.append(loop.create_task(first.read_on()))
        await asyncio.sleep(2)
        reading.append(loop.create_task(second.read_on()))
        await asyncio.gather(*reading)

    await asyncio.gather(produce(broadcast, stream), fast.read_on(), in_turn())
    assert loop.time() - began == 5
    assert third.is_cut_off
    assert len(third.got) == 4
    assert fast.data == first.data == second.data == stream


@in_virtual_time
async def test_a_hundred_readers_that_are_stuck_hold_others_up_no_longer_than_one(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, max_buffer=4_000), pieces(40)
    fast, stuck = Reader(broadcast), [Reader(broadcast) for _ in range(100)]
    began = loop.time()
    stopping = [reader.read_on(number % 30) for number, reader in enumerate(stuck)]
    await asyncio.gather(produce(broadcast, stream), fast.read_on(), *stopping)
    assert loop.time() - began == 5
    assert fast.data == stream
    assert all(reader.is_cut_off for reader in stuck)
    assert broadcast.held == 0


@in_virtual_time
async def test_only_those_who_are_furthest_behind_are_cut_off(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, max_buffer=2_000), pieces(3)
    fast, one_ahead, stuck, stuck_too = (Reader(broadcast) for _ in range(4))
    reading = [produce(broadcast, stream), fast.read_on(), one_ahead.read_on(1)]
    await asyncio.gather(*reading)
    assert stuck.is_cut_off
    assert stuck_too.is_cut_off
    assert fast.data == stream
    one_ahead.read()
    assert one_ahead.data == stream
    assert one_ahead.consumer.at_end


@in_virtual_time
async def test_as_many_are_cut_off_as_the_next_chunk_needs(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, max_buffer=3_000), [*pieces(3), *pieces(1, 2 * SIZE)]
    fast, stuck, one_ahead, two_ahead = (Reader(broadcast) for _ in range(4))
    began = loop.time()
    await asyncio.gather(produce(broadcast, stream), fast.read_on(), one_ahead.read_on(1), two_ahead.read_on(2))
    assert loop.time() - began == 5
    assert [stuck.is_cut_off, one_ahead.is_cut_off, two_ahead.is_cut_off] == [True, True, False]
    two_ahead.read()
    assert fast.data == two_ahead.data == stream


@in_virtual_time
async def test_a_lone_slow_reader_is_never_cut_off(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, max_buffer=1_000), pieces(10)
    reader = Reader(broadcast)
    began = loop.time()
    await asyncio.gather(produce(broadcast, stream), reader.read_on(pause=100))
    assert reader.data == stream
    assert loop.time() - began == 1_000


@in_virtual_time
async def test_readers_that_are_equally_slow_are_never_cut_off(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, max_buffer=1_000), pieces(10)
    readers = [Reader(broadcast) for _ in range(3)]
    await asyncio.gather(produce(broadcast, stream), *(reader.read_on(pause=100) for reader in readers))
    assert all(reader.data == stream for reader in readers)


@in_virtual_time
async def test_no_clock_runs_while_nobody_starves(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, max_buffer=2_000), pieces(6)
    busy, stuck = Reader(broadcast), Reader(broadcast)
    producing = loop.create_task(produce(broadcast, stream))
    await busy.read_on(1)
    busy.take()  # it has the rest in its hands
    await asyncio.sleep(600)
    assert not timers(loop)
    assert not stuck.is_cut_off

    began = loop.time()
    busy.read()
    await asyncio.gather(producing, busy.read_on())
    assert loop.time() - began == 5
    assert stuck.is_cut_off
    assert busy.data == stream


@in_virtual_time
async def test_no_clock_runs_while_the_producer_is_not_blocked(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, max_buffer=3_000), pieces(6)
    fast, stuck = Reader(broadcast), Reader(broadcast)
    began = loop.time()

    async def slow_producer() -> None:
        for data in stream:
            await broadcast.room(len(data))
            broadcast.feed(data)
            await asyncio.sleep(20)
        broadcast.finish()

    producing = loop.create_task(slow_producer())
    reading = loop.create_task(fast.read_on())
    await asyncio.sleep(59)
    assert not stuck.is_cut_off
    await asyncio.gather(producing, reading)
    assert stuck.is_cut_off
    # Blocked once, at the fourth chunk.
    assert loop.time() - began == 6 * 20 + 5


@in_virtual_time
async def test_the_clock_keeps_what_ran_before_the_producer_went_on(loop: VirtualLoop) -> None:
    broadcast = opened(loop, max_buffer=1_000)
    fast, slow = Reader(broadcast), Reader(broadcast)
    stream = pieces(3)
    broadcast.feed(stream[0])
    fast.read()
    waiting = loop.create_task(broadcast.room(SIZE))
    await asyncio.sleep(3)
    slow.read()
    await waiting
    await asyncio.sleep(50)  # the producer has nothing to say
    broadcast.feed(stream[1])
    fast.read()
    began = loop.time()
    await broadcast.room(SIZE)
    assert loop.time() - began == 2
    assert slow.is_cut_off


@in_virtual_time
async def test_no_clock_runs_once_the_producer_went_on(loop: VirtualLoop) -> None:
    broadcast = opened(loop, max_buffer=2_000)
    fast, slow = Reader(broadcast), Reader(broadcast)
    for data in pieces(2):
        broadcast.feed(data)
    waiting = loop.create_task(broadcast.room(SIZE))
    await settled()
    slow.read(1)
    fast.read(1)
    await waiting
    fast.read()
    await settled()
    assert not timers(loop)
    broadcast.feed(*pieces(1))  # it is full again, but nobody is kept from feeding
    fast.read()
    await asyncio.sleep(100)
    assert not slow.is_cut_off


@in_virtual_time
async def test_the_clock_stops_when_the_one_who_starved_leaves(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, max_buffer=1_000), pieces(4)
    starves, slow, joins_in = (Reader(broadcast) for _ in range(3))
    producing = loop.create_task(produce(broadcast, stream))
    await settled()
    starves.read()
    await asyncio.sleep(4)
    starves.consumer.leave()
    await asyncio.sleep(100)
    assert not timers(loop)
    assert not slow.is_cut_off

    began = loop.time()
    await joins_in.read_on()  # starves now in its place: one second is left
    assert loop.time() - began == 1
    assert slow.is_cut_off
    await producing


@in_virtual_time
async def test_the_time_in_which_the_clock_stood_is_not_counted_afterwards(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, max_buffer=2_000), pieces(5)
    starves, slow, busy = (Reader(broadcast) for _ in range(3))
    producing = loop.create_task(produce(broadcast, stream))
    await settled()
    starves.read()
    await asyncio.sleep(1)
    starves.consumer.leave()
    await asyncio.sleep(100)
    slow.read(1)
    busy.read(1)
    await settled()
    began = loop.time()
    await busy.read_on()
    await producing
    assert loop.time() - began == 4
    assert slow.is_cut_off


@in_virtual_time
async def test_the_clock_runs_on_while_somebody_else_starves(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, max_buffer=1_000), pieces(4)
    starves, starves_too, slow = (Reader(broadcast) for _ in range(3))
    producing = loop.create_task(produce(broadcast, stream))
    await settled()
    began = loop.time()
    starves.read()
    await asyncio.sleep(1)
    starves_too.read()
    await asyncio.sleep(1)
    starves.consumer.leave()
    await starves_too.read_on()
    assert loop.time() - began == 5
    assert slow.is_cut_off
    await producing


@in_virtual_time
async def test_whoever_joined_when_all_was_read_or_nothing_was_there_is_counted_right(loop: VirtualLoop) -> None:
    """A reader that left before anything came does not starve, one that joined late neither."""
    broadcast = opened(loop, max_buffer=2_000)
    stays = Reader(broadcast)
    Reader(broadcast).consumer.leave()
    stream = pieces(4)
    broadcast.feed(stream[0])
    late, leaves = Reader(broadcast), Reader(broadcast)
    leaves.read()
    leaves.consumer.leave()
    broadcast.feed(stream[1])
    producing = loop.create_task(produce(broadcast, stream[2:]))
    await asyncio.sleep(100)  # nobody starves: the two are equally far
    assert not stays.is_cut_off
    assert not late.is_cut_off
    await asyncio.gather(late.read_on(), producing)
    assert stays.is_cut_off
    assert late.data == stream


@in_virtual_time
async def test_a_reader_that_comes_along_in_time_is_not_cut_off(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, max_buffer=1_000), pieces(5)
    fast, slow = Reader(broadcast), Reader(broadcast)
    slowly = loop.create_task(slow.read_on(pause=0.9375))
    await asyncio.gather(produce(broadcast, stream), fast.read_on())
    await slowly
    assert slow.data == fast.data == stream
    assert slow.consumer.at_end


@in_virtual_time
async def test_no_clock_runs_after_the_finish(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, max_buffer=4_000), pieces(4)
    fast, slow = Reader(broadcast), Reader(broadcast)
    await asyncio.gather(produce(broadcast, stream), fast.read_on())
    await slow.read_on(pause=1_000)
    assert slow.data == stream
    assert slow.consumer.at_end


@in_virtual_time
async def test_where_the_shared_budget_blocks_nobody_is_cut_off_for_a_moment(loop: VirtualLoop) -> None:
    """Chunk by chunk, each is the slowest at some moment: its time may be spent, a tenth of a second it has."""
    broadcast, stream = opened(loop, budget=Budget(0), stall_timeout=0), pieces(30)
    fast, slower = Reader(broadcast), Reader(broadcast)
    slowly = loop.create_task(slower.read_on(pause=0.0625))
    await asyncio.gather(produce(broadcast, stream), fast.read_on())
    await slowly
    assert slower.data == fast.data == stream


@in_virtual_time
async def test_where_the_shared_budget_blocks_a_stuck_reader_is_cut_off_too(loop: VirtualLoop) -> None:
    for timeout, expected in ((0, 0.1), (5, 5)):
        broadcast, stream = opened(loop, budget=Budget(0), stall_timeout=timeout), pieces(5)
        fast, stuck = Reader(broadcast), Reader(broadcast)
        began = loop.time()
        await asyncio.gather(produce(broadcast, stream), fast.read_on())
        assert loop.time() - began == pytest.approx(expected)
        assert stuck.is_cut_off
        assert fast.data == stream


@in_virtual_time
async def test_a_trickle_that_makes_no_room_gains_no_time(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, budget=Budget(5_000), stall_timeout=0), [*pieces(5), *pieces(1, 5_000)]
    fast, trickling = Reader(broadcast), Reader(broadcast)
    began = loop.time()
    slowly = loop.create_task(trickling.read_on(pause=0.0625))
    await asyncio.gather(produce(broadcast, stream), fast.read_on())
    assert loop.time() - began == pytest.approx(0.1)
    assert trickling.is_cut_off
    await slowly


@in_virtual_time
async def test_its_own_limit_gives_no_such_respite(loop: VirtualLoop) -> None:
    broadcast, stream = opened(loop, max_buffer=1_000, budget=Budget(0), stall_timeout=0), pieces(5)
    fast, slower = Reader(broadcast), Reader(broadcast)
    slowly = loop.create_task(slower.read_on(pause=0.0625))
    await asyncio.gather(produce(broadcast, stream), fast.read_on())
    await slowly
    assert slower.is_cut_off
    assert fast.data == stream


@in_virtual_time
async def test_a_starving_reader_goes_on_in_time_also_if_others_gave_the_budget_back(loop: VirtualLoop) -> None:
    budget = Budget(4_000)
    hog, broadcast = opened(loop, budget=budget), opened(loop, budget=budget)
    hogging = Reader(hog)
    for data in pieces(3):
        hog.feed(data)
    fast, stuck = Reader(broadcast), Reader(broadcast)
    producing, reading = loop.create_task(produce(broadcast, pieces(3))), loop.create_task(fast.read_on())
    try:
        await asyncio.sleep(1)
        hogging.consumer.leave()
        hog.finish()
        await asyncio.sleep(4.5)
        assert len(fast.got) > 1
    finally:
        stuck.consumer.leave()
        await asyncio.gather(producing, reading)


@in_virtual_time
async def test_readers_of_a_fair_pace_are_not_cut_off_whoever_of_them_is_the_last_at_a_moment(
    loop: VirtualLoop,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PACE", 100 * SIZE)
        patch.setattr(module, "_AT_LEAST", 0)
        stream = pieces(200)
        for pause, is_fair in ((0.009, True), (0.02, False)):
            broadcast = opened(loop, max_buffer=3_000, stall_timeout=0.05)
            fast, slow = Reader(broadcast), Reader(broadcast)
            await asyncio.gather(produce(broadcast, stream), fast.read_on(), slow.read_on(pause=pause))
            assert fast.data == stream
            assert slow.is_cut_off is not is_fair
