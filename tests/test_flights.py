"""The lower-level door: flights, their waiters and their table. One section for each invariant."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiohttp_reduce.async_reduce_core import PENDING, Flight, FlightTable, Waiter, Wake


class Time:
    """An event loop's timers and a table's clock, moved by hand. Everything else is the running loop's."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None], Timer]] = []

    def clock(self) -> float:
        return self.now

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.get_running_loop().create_future()

    def is_closed(self) -> bool:
        return False

    def call_later(self, delay: float, callback: Callable[[], None]) -> "Timer":
        timer = Timer()
        self.timers.append((self.now + delay, callback, timer))
        return timer

    def active(self) -> list[float]:
        return sorted(when for when, _, timer in self.timers if not timer.cancelled)

    def move_to(self, now: float) -> None:
        while due := [entry for entry in self.timers if entry[0] <= now]:
            first = min(due, key=lambda entry: entry[0])
            self.timers.remove(first)
            self.now = max(self.now, first[0])
            if not first[2].cancelled:
                first[1]()
        self.now = now


class Timer:
    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def table(time: Time) -> FlightTable[str]:
    return FlightTable(time, time.clock)  # type: ignore[arg-type]


class Unable(Waiter[str]):
    """A waiter that cannot lead."""

    def can_lead(self) -> bool:
        return False


def joined(flight: Flight[str], deadline: float = math.inf, kind: type[Waiter[str]] = Waiter) -> Waiter[str]:
    waiter = kind(flight.table.loop, flight.table.clock())
    flight.join(waiter, deadline)
    return waiter


def promoted(*waiters: Waiter[str]) -> list[Waiter[str]]:
    return [waiter for waiter in waiters if waiter.promotion is not None]


# -- joining and ending


async def test_finish_gives_the_outcome_to_all_and_empties_the_table(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    waiters = [joined(flight) for _ in range(3)]
    assert table.flights == {"k": flight}
    assert flight.finish(0, "outcome") is True
    assert [await waiter.future for waiter in waiters] == ["outcome"] * 3
    assert flight.outcome == "outcome"
    assert not flight.under_way
    assert table.flights == {}


async def test_fail_raises_the_one_exception_in_all_and_empties_the_table(
    table: FlightTable[str], noise: list[Any]
) -> None:
    flight = table.lead("k")
    waiters = [joined(flight) for _ in range(3)]
    error = ValueError()
    assert flight.fail(0, error) is True
    assert [waiter.future.exception() for waiter in waiters] == [error] * 3
    assert table.flights == {}
    assert not flight.under_way


async def test_a_failure_that_nobody_looks_at_is_not_logged(table: FlightTable[str], noise: list[Any]) -> None:
    flight = table.lead("k")
    joined(flight)
    flight.fail(0, ValueError())


async def test_finish_with_linger_keeps_the_landed_flight_in_the_table_until_close(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    waiter = joined(flight)
    flight.finish(0, "outcome", linger=True)
    assert table.flights["k"] is flight
    assert flight.outcome == waiter.future.result() == "outcome"
    flight.close()
    assert table.flights == {}
    assert flight.outcome == "outcome"


async def test_the_outcome_is_pending_until_the_end(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    assert flight.outcome is PENDING
    flight.finish(0, None)  # type: ignore[arg-type]
    assert flight.outcome is None


async def test_close_lets_those_who_wait_wait_on(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    waiter = joined(flight)
    flight.close()
    assert table.flights == {}
    assert flight.closes == -math.inf
    assert flight.under_way
    assert not waiter.future.done()
    flight.finish(0, "outcome")
    assert waiter.future.result() == "outcome"


async def test_a_waiter_that_leaves_is_gone_at_once_and_alone(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    leaves, stays = joined(flight), joined(flight)
    leaves.leave()
    assert list(flight.waiters.values()) == [stays]
    assert leaves.flights == []
    flight.finish(0, "outcome")
    assert not leaves.future.done()
    assert stays.future.result() == "outcome"


async def test_leaving_twice_or_after_the_end_does_nothing(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    waiter = joined(flight)
    waiter.leave()
    waiter.leave()
    late = joined(flight)
    flight.finish(0, "outcome")
    late.leave()
    assert flight.outcome == "outcome"


# -- each lead has a generation: a stale finish, fail or abandon is a no-op


ENDINGS: dict[str, Callable[[Flight[str], int], bool]] = {
    "finish": lambda flight, generation: flight.finish(generation, "stale"),
    "fail": lambda flight, generation: flight.fail(generation, ValueError("stale")),
    "abandon": lambda flight, generation: flight.abandon(generation),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_stale_ending_after_a_takeover_is_a_no_op(ending: str, table: FlightTable[str]) -> None:
    flight = table.lead("k")
    a, b = joined(flight), joined(flight)
    flight.abandon(0)
    (leader,) = promoted(a, b)
    other = b if leader is a else a

    assert ENDINGS[ending](flight, 0) is False

    assert flight.generation == 1
    assert flight.under_way
    assert table.flights == {"k": flight}
    assert flight.outcome is PENDING
    assert not other.future.done()
    assert leader.promotion == (flight, 1)
    assert flight.finish(1, "outcome") is True
    assert other.future.result() == "outcome"


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("first", ENDINGS)
async def test_an_ending_after_the_end_is_a_no_op(first: str, ending: str, table: FlightTable[str]) -> None:
    flight = table.lead("k")
    waiter = joined(flight, kind=Unable)
    assert ENDINGS[first](flight, 0) is True
    generation, outcome = flight.generation, flight.outcome
    before = repr(waiter.future)

    for stale in {0, generation}:
        assert ENDINGS[ending](flight, stale) is False

    assert (flight.generation, flight.outcome) == (generation, outcome)
    assert repr(waiter.future) == before


@pytest.mark.parametrize("ending", ENDINGS)
async def test_an_ending_of_a_generation_that_never_led_is_a_no_op(ending: str, table: FlightTable[str]) -> None:
    flight = table.lead("k")
    waiter = joined(flight)
    assert ENDINGS[ending](flight, 1) is False
    assert flight.under_way
    assert not waiter.future.done()


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_late_ending_leaves_a_lingering_flight_landed(ending: str, table: FlightTable[str]) -> None:
    flight = table.lead("k")
    flight.finish(0, "outcome", linger=True)
    assert ENDINGS[ending](flight, 0) is False
    assert flight.outcome == "outcome"
    assert table.flights == {"k": flight}


# -- table[key] is removed only if it still is this flight


@pytest.mark.parametrize("ending", [*ENDINGS, "close"])
async def test_the_end_of_a_replaced_flight_leaves_the_younger_in_the_table(
    ending: str, table: FlightTable[str]
) -> None:
    old = table.lead("k")
    young = table.lead("k")
    if ending == "close":
        old.close()
    else:
        assert ENDINGS[ending](old, 0) is True
    assert table.flights == {"k": young}
    table.remove(old)
    assert table.flights == {"k": young}
    young.finish(0, "outcome")
    assert table.flights == {}


async def test_closing_twice_with_a_younger_flight_between_leaves_that_one(table: FlightTable[str]) -> None:
    old = table.lead("k")
    old.close()
    young = table.lead("k")
    old.close()
    old.finish(0, "outcome")
    assert table.flights == {"k": young}


async def test_removing_from_an_empty_table_is_no_error(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    flight.close()
    table.remove(flight)
    assert table.flights == {}


# -- takeovers


async def test_abandon_promotes_exactly_one_and_the_others_wait_on(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    waiters = [joined(flight) for _ in range(5)]
    assert flight.abandon(0) is True
    (leader,) = promoted(*waiters)
    assert leader.promotion == (flight, 1)
    assert leader.future.result() is Wake.PROMOTED
    assert flight not in leader.flights
    assert len(flight.waiters) == 4
    assert not any(waiter.future.done() for waiter in waiters if waiter is not leader)
    assert table.flights == {"k": flight}


async def test_the_successor_is_drawn_at_random(table: FlightTable[str]) -> None:
    drawn: set[int] = set()
    for _ in range(200):
        flight = table.lead("k")
        waiters = [joined(flight) for _ in range(3)]
        flight.abandon(0)
        drawn.add(waiters.index(promoted(*waiters)[0]))
        flight.finish(1, "outcome")
    assert drawn == {0, 1, 2}


async def test_a_takeover_never_reopens_a_closed_flight(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    waiter = joined(flight)
    flight.close()
    flight.abandon(0)
    assert promoted(waiter) == [waiter]
    assert flight.closes == -math.inf
    assert table.flights == {}
    young = table.lead("k")
    waiter.leave()  # hands on: nobody is left
    assert not flight.under_way
    assert table.flights == {"k": young}


async def test_a_takeover_resets_no_closing_time(table: FlightTable[str], time: Time) -> None:
    flight = table.lead("k")
    flight.closes = 105.0
    joined(flight)
    time.move_to(103.0)
    flight.abandon(0)
    assert flight.closes == 105.0


async def test_waiters_that_cannot_lead_are_passed_over(table: FlightTable[str]) -> None:
    for _ in range(20):
        flight = table.lead("k")
        unable = [joined(flight, kind=Unable) for _ in range(3)]
        able = joined(flight)
        flight.abandon(0)
        assert promoted(able, *unable) == [able]
        flight.finish(1, "outcome")


async def test_bare_futures_are_never_promoted(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    flight.waiters = {**flight.waiters, future: None}
    flight.abandon(0)
    assert future.result() is Wake.ORPHANED


async def test_waiters_that_are_done_are_skipped(table: FlightTable[str]) -> None:
    for _ in range(20):
        flight = table.lead("k")
        cancelled, overdue, waiting = (joined(flight) for _ in range(3))
        cancelled.future.cancel()
        overdue.future.set_result(Wake.OVERDUE)
        flight.abandon(0)
        assert promoted(cancelled, overdue, waiting) == [waiting]
        flight.finish(1, "outcome")
        assert overdue.future.result() is Wake.OVERDUE


@pytest.mark.parametrize("ending", ENDINGS)
async def test_waiters_that_are_done_are_skipped_by_every_ending(
    ending: str, table: FlightTable[str], noise: list[Any]
) -> None:
    flight = table.lead("k")
    cancelled, waiting = joined(flight, kind=Unable), joined(flight, kind=Unable)
    cancelled.future.cancel()
    assert ENDINGS[ending](flight, 0) is True
    assert cancelled.future.cancelled()
    assert waiting.future.done()


async def test_waiters_that_lead_already_are_passed_over(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    busy = joined(flight)
    busy.leading = True
    waiting = joined(flight, kind=Unable)
    flight.abandon(0)
    assert promoted(busy) == []
    assert waiting.future.result() is Wake.ORPHANED
    assert not busy.future.done()  # it has a run of its own, and nothing to hear


# -- promotion is ownership


async def test_a_promoted_waiter_that_leaves_in_the_same_tick_hands_on(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    waiters = [joined(flight) for _ in range(3)]
    flight.abandon(0)
    (first,) = promoted(*waiters)
    first.leave()
    (second,) = promoted(*waiters)
    assert second is not first
    assert second.promotion == (flight, 2)
    assert flight.finish(1, "stale") is False
    assert flight.finish(2, "outcome") is True


async def test_a_promoted_waiter_whose_task_is_cancelled_in_the_same_tick_hands_on(table: FlightTable[str]) -> None:
    flight = table.lead("k")

    async def follow() -> Any:
        waiter = joined(flight)
        try:
            return await waiter.future
        except BaseException:
            waiter.leave()
            raise

    tasks = [asyncio.ensure_future(follow()) for _ in range(2)]
    await asyncio.sleep(0)
    flight.abandon(0)
    (leaving,) = [
        task
        for task in tasks
        if (waiting := task._fut_waiter) is not None and waiting.done()  # type: ignore[attr-defined]
    ]
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    assert [await task for task in tasks if task is not leaving] == [Wake.PROMOTED]
    assert flight.generation == 2


async def test_when_the_last_promoted_waiter_leaves_the_flight_is_over(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    waiter, bystander = joined(flight), joined(flight, kind=Unable)
    flight.abandon(0)
    waiter.leave()
    assert bystander.future.result() is Wake.ORPHANED
    assert not flight.under_way
    assert table.flights == {}


async def test_a_promotion_that_was_taken_up_is_not_handed_on_by_leaving(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    waiter = joined(flight)
    flight.abandon(0)
    waiter.promotion = None  # as those do who begin to lead
    waiter.leave()
    assert flight.under_way
    assert flight.finish(1, "outcome") is True


async def test_a_promotion_survives_waiting_on_for_other_flights(table: FlightTable[str]) -> None:
    one, other = table.lead("one"), table.lead("other")
    waiter = joined(one)
    other.join(waiter)
    one.abandon(0)
    waiter.renew()
    assert waiter.promotion == (one, 1)
    assert waiter.flights == [other]
    waiter.leave()
    assert one.generation == 2
    assert other.waiters == {}


async def test_nobody_is_promoted_in_two_flights_at_once(table: FlightTable[str]) -> None:
    one, other = table.lead("one"), table.lead("other")
    waiter = joined(one)
    other.join(waiter)
    one.abandon(0)
    other.abandon(0)
    assert waiter.promotion == (one, 1)
    assert not other.under_way


# -- orphaned


async def test_with_nobody_to_lead_all_are_orphaned_and_the_flight_is_over(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    waiters = [joined(flight, kind=Unable) for _ in range(3)]
    assert flight.abandon(0) is True
    assert [waiter.future.result() for waiter in waiters] == [Wake.ORPHANED] * 3
    assert flight.outcome is PENDING
    assert not flight.under_way
    assert flight.closes == -math.inf
    assert table.flights == {}


async def test_abandoning_alone_ends_the_flight(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    flight.abandon(0)
    assert table.flights == {}
    assert not flight.under_way


# -- deadlines


async def test_at_its_deadline_a_waiter_is_overdue_and_still_subscribed(table: FlightTable[str], time: Time) -> None:
    flight = table.lead("k")
    waiter = joined(flight, 110.0)
    time.move_to(109.9)
    assert not waiter.future.done()
    time.move_to(110.0)
    assert waiter.future.result() is Wake.OVERDUE
    assert waiter.flights == [flight]
    waiter.renew()
    flight.finish(0, "outcome")
    assert waiter.future.result() == "outcome"


async def test_a_deadline_that_has_passed_wakes_at_once(table: FlightTable[str], time: Time) -> None:
    waiter = joined(table.lead("k"), 50.0)
    time.move_to(time.now)
    assert waiter.future.result() is Wake.OVERDUE


async def test_each_is_woken_at_its_own_deadline_by_one_timer(table: FlightTable[str], time: Time) -> None:
    flight = table.lead("k")
    waiters = [joined(flight, 110.0 + n) for n in range(5)]
    forever = joined(flight)
    assert len(time.active()) == 1
    for n in range(5):
        time.move_to(110.0 + n)
        assert [waiter.future.done() for waiter in waiters] == [m <= n for m in range(5)]
    assert not forever.future.done()
    assert time.active() == []


async def test_a_deadline_before_those_of_earlier_waiters_is_kept_too(table: FlightTable[str], time: Time) -> None:
    flight = table.lead("k")
    deadlines = [140.0, 110.0, 130.0, 120.0]
    waiters = {deadline: joined(flight, deadline) for deadline in deadlines}
    for now in sorted(deadlines):
        time.move_to(now)
        assert {deadline for deadline, waiter in waiters.items() if waiter.future.done()} == {
            deadline for deadline in deadlines if deadline <= now
        }
        assert len(time.active()) <= 1


async def test_a_timer_that_fires_a_millisecond_early_is_no_reason_to_wait_again(
    table: FlightTable[str], time: Time
) -> None:
    flight = table.lead("k")
    waiter = joined(flight, 110.0)
    _, callback, _ = time.timers.pop()
    time.now = 109.9995
    callback()
    assert waiter.future.result() is Wake.OVERDUE


async def test_a_waiter_that_left_is_not_overdue(table: FlightTable[str], time: Time) -> None:
    flight = table.lead("k")
    left, stays = joined(flight, 110.0), joined(flight, 120.0)
    left.leave()
    time.move_to(110.0)
    assert not left.future.done()
    assert not stays.future.done()
    time.move_to(120.0)
    assert stays.future.result() is Wake.OVERDUE


async def test_a_waiter_that_is_done_is_not_overdue(table: FlightTable[str], time: Time) -> None:
    flight = table.lead("k")
    cancelled, waiting = joined(flight, 110.0), joined(flight, 110.0)
    cancelled.future.cancel()
    time.move_to(110.0)
    assert cancelled.future.cancelled()
    assert waiting.future.result() is Wake.OVERDUE


async def test_one_who_leads_is_not_overdue(table: FlightTable[str], time: Time) -> None:
    flight = table.lead("k")
    waiter = joined(flight, 110.0)
    waiter.leading = True
    time.move_to(200.0)
    assert not waiter.future.done()


async def test_a_takeover_resets_nobodys_deadline(table: FlightTable[str], time: Time) -> None:
    flight = table.lead("k")
    waiter = joined(flight, 110.0, Unable)
    joined(flight)
    time.move_to(109.0)
    flight.abandon(0)
    time.move_to(110.0)
    assert waiter.future.result() is Wake.OVERDUE


async def test_renewing_for_one_flight_keeps_the_deadline_in_another(table: FlightTable[str], time: Time) -> None:
    one, other = table.lead("one"), table.lead("other")
    waiter = joined(one, 110.0)
    other.join(waiter, 120.0)
    time.move_to(110.0)
    assert waiter.future.result() is Wake.OVERDUE
    waiter.renew()
    time.move_to(119.0)
    assert not waiter.future.done()
    time.move_to(120.0)
    assert waiter.future.result() is Wake.OVERDUE


@pytest.mark.parametrize("ending", ENDINGS)
async def test_the_end_of_a_flight_stops_its_timer(ending: str, table: FlightTable[str], time: Time) -> None:
    flight = table.lead("k")
    joined(flight, 110.0, Unable)
    assert len(time.active()) == 1
    ENDINGS[ending](flight, 0)
    assert time.active() == []


async def test_deadlines_are_kept_by_a_real_loop_too() -> None:
    loop = asyncio.get_running_loop()
    table: FlightTable[str] = FlightTable(loop, loop.time)
    flight = table.lead("k")
    waiter: Waiter[str] = Waiter(loop, loop.time())
    flight.join(waiter, loop.time() + 0.01)
    assert await asyncio.wait_for(waiter.future, 5) is Wake.OVERDUE
    flight.finish(0, "outcome")


# -- waiting on after a wake-up, and what was missed meanwhile


async def test_an_outcome_that_came_while_the_future_was_done_has_landed(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    waiter = joined(flight)
    waiter.future.set_result(Wake.OVERDUE)
    flight.finish(0, "outcome")
    assert waiter.future.result() is Wake.OVERDUE
    assert waiter.landed() == "outcome"


async def test_nothing_has_landed_while_all_are_under_way(table: FlightTable[str]) -> None:
    assert joined(table.lead("k")).landed() is PENDING


async def test_renewing_drops_the_flights_that_ended_without_an_outcome(table: FlightTable[str]) -> None:
    failed, orphaned, under_way = table.lead("failed"), table.lead("orphaned"), table.lead("under way")
    waiter = joined(failed)
    orphaned.join(waiter)
    under_way.join(waiter)
    waiter.future.set_result(Wake.OVERDUE)
    failed.fail(0, ValueError())
    orphaned.abandon(0)
    assert waiter.landed() is PENDING
    waiter.renew()
    assert waiter.flights == [under_way]
    under_way.finish(0, "outcome")
    assert waiter.future.result() == "outcome"


async def test_the_first_outcome_of_several_flights_wins(table: FlightTable[str]) -> None:
    one, other = table.lead("one"), table.lead("other")
    waiter = joined(one)
    other.join(waiter)
    other.finish(0, "other")
    one.finish(0, "one")
    assert waiter.future.result() == "other"
    waiter.leave()
    assert one.waiters == other.waiters == {}


async def test_after_renewing_the_old_future_is_nobodys(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    waiter = joined(flight)
    old = waiter.future
    waiter.renew()
    assert list(flight.waiters) == [waiter.future]
    flight.finish(0, "outcome")
    assert not old.done()


async def test_sweeping_drops_those_who_are_done(table: FlightTable[str]) -> None:
    flight = table.lead("k")
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in range(200)]
    flight.waiters = dict.fromkeys(futures)
    for future in futures[:150]:
        future.cancel()
    assert list(flight.sweep()) == futures[150:]
    assert flight.sweep_at == 100
    flight.finish(0, "outcome")
    assert all(future.result() == "outcome" for future in futures[150:])


# -- a closed loop


def _on_a_closed_loop(kind: type[Waiter[str]] = Waiter) -> tuple[FlightTable[str], Flight[str], Waiter[str]]:
    async def main() -> tuple[FlightTable[str], Flight[str], Waiter[str]]:
        loop = asyncio.get_running_loop()
        table: FlightTable[str] = FlightTable(loop)
        flight = table.lead("k")
        waiter = kind(loop, table.clock())
        flight.join(waiter, table.clock() + 60)
        waiter.future.add_done_callback(lambda _: None)  # somebody awaits it
        return table, flight, waiter

    return asyncio.run(main())


def test_abandoning_on_a_closed_loop_ends_the_flight_and_wakes_nobody() -> None:
    table, flight, waiter = _on_a_closed_loop()
    assert flight.abandon(0) is True
    assert not flight.under_way
    assert not waiter.future.done()
    assert waiter.promotion is None
    assert table.flights == {}


def test_leaving_on_a_closed_loop_is_no_error() -> None:
    _, flight, waiter = _on_a_closed_loop()
    waiter.promotion = (flight, 0)
    waiter.leave()
    assert not flight.under_way


# -- the fields of a flight


async def test_a_new_lead_takes_the_place_of_the_standing_flight(table: FlightTable[str]) -> None:
    old = table.lead("k")
    waiter = joined(old)
    young = table.lead("k")
    assert (old.generation, young.generation) == (0, 0)
    young.finish(0, "young")
    assert not waiter.future.done()
    old.finish(0, "old")
    assert waiter.future.result() == "old"


async def test_a_flight_tells_its_key_subject_and_times(table: FlightTable[str]) -> None:
    flight: Flight[str] = Flight(table, "k", subject="request", opened=1.0, closes=2.0)
    assert (flight.key, flight.subject, flight.opened, flight.closes) == ("k", "request", 1.0, 2.0)
    assert table.flights == {}
    assert (table.lead("k").opened, table.lead("k").closes) == (0.0, math.inf)


# -- any interleaving


class Member:
    """Someone who came for the key: a follower, or one who leads."""

    def __init__(self) -> None:
        self.waiter: Waiter[str] | None = None
        self.flight: Flight[str] | None = None
        self.leads: int | None = None
        self.gone = False


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["come", "come", "come", "leave", "finish", "fail", "abandon", "close", "wake", "late"]),
        st.integers(0, 7),
    ),
    max_size=40,
)


def _play(steps: list[tuple[str, int]]) -> None:
    """Play the steps over one key, and check the door after each."""
    time = Time()
    table: FlightTable[str] = FlightTable(time, time.clock)  # type: ignore[arg-type]
    members: list[Member] = []
    flights: list[Flight[str]] = []
    endings: dict[asyncio.Future[Any], str] = {}

    def come() -> None:
        member = Member()
        members.append(member)
        flight = table.flights.get("k")
        if flight is None:
            flight = table.lead("k")
            flights.append(flight)
            member.leads = 0
        else:
            member.waiter = joined(flight, kind=Unable if len(members) % 5 == 0 else Waiter)
            future = member.waiter.future
            future.add_done_callback(lambda _: None)
        member.flight = flight

    def promote() -> None:
        """Those who were promoted begin to lead."""
        for member in members:
            if member.waiter is not None and member.waiter.promotion is not None:
                _, member.leads = member.waiter.promotion
                member.waiter.promotion = None

    def leaders(flight: Flight[str]) -> list[Member]:
        """Who owns the flight now: by leading it, or by having been promoted and not having noticed yet."""
        return [
            member
            for member in members
            if not member.gone
            and member.flight is flight
            and (
                member.leads == flight.generation
                or (
                    member.waiter is not None
                    and member.waiter.promotion is not None
                    and member.waiter.promotion[1] == flight.generation
                )
            )
        ]

    def end(member: Member, how: str) -> None:
        assert member.flight is not None
        assert member.leads is not None
        led = leaders(member.flight) == [member] and member.flight.under_way
        assert ENDINGS[how](member.flight, member.leads) is led

    for step, number in steps:
        present = [member for member in members if not member.gone]
        leading = [member for member in present if member.leads is not None]
        if step == "come":
            come()
        elif step == "wake":
            promote()
        elif step == "close" and flights:
            flights[number % len(flights)].close()
        elif step == "leave" and present:
            member = present[number % len(present)]
            if member.leads is not None:
                end(member, "abandon")
            if member.waiter is not None:
                if number % 2 and not member.waiter.future.done():
                    member.waiter.future.cancel()  # its task was cancelled; it leaves with its next step
                member.waiter.leave()
            member.gone = True
        elif step in ENDINGS and leading:
            end(leading[number % len(leading)], step)
        elif step == "late":  # those who left try once more
            for member in members:
                if member.gone and member.leads is not None and member.flight is not None:
                    for how in ENDINGS:
                        assert ENDINGS[how](member.flight, member.leads) is False

        standing = table.flights.get("k")
        assert standing is None or (standing.under_way and standing.closes > -math.inf)
        for flight in flights:
            # At most one leader, and exactly one while it is under way.
            assert len(leaders(flight)) == flight.under_way or not flight.under_way
        for member in members:
            if member.waiter is None or member.flight is None:
                continue
            future = member.waiter.future
            # Nobody is left behind when a flight has ended.
            assert member.gone or member.flight.under_way or future.done()
            # Whoever waits is subscribed; whoever left is not.
            if not member.gone and not future.done():
                assert member.flight.waiters[future] is member.waiter
            if member.gone:
                assert future not in member.flight.waiters
            # Each ends at most once: an outcome never changes.
            if future.done():
                said = "cancelled" if future.cancelled() else repr(future.exception() or future.result())
                assert endings.setdefault(future, said) == said


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(STEPS)
def test_any_interleaving_ends_each_waiter_once_and_leaves_nobody_behind(steps: list[tuple[str, int]]) -> None:
    async def main() -> None:
        _play(steps)

    LOOP.run(main())


LOOP: asyncio.Runner


@pytest.fixture(scope="module", autouse=True)
def _one_loop_for_all_examples() -> Any:
    global LOOP
    with asyncio.Runner() as LOOP:
        LOOP.get_loop()
        yield
