"""Section 2, point 4: nobody waits for ever because of us. All in virtual time."""

import asyncio
import math
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from aiohttp_reduce import reduce_middleware
from tests.virtual import Door, VirtualLoop, run_virtually

# The clock of the tests moves in steps; a comparison of sums of them needs some room (seconds).
EPSILON = 0.005


class Traffic:
    """Requests at given times against a handler whose n-th run takes `duration(n)` seconds."""

    def __init__(self, *, duration: Callable[[int], float], max_age: float, max_wait: float) -> None:
        self.duration = duration
        self.max_age = max_age
        self.max_wait = max_wait
        self.starts: list[float] = []
        self.latencies: dict[float, float] = {}
        self.cancelled = 0
        self.stats: dict[str, object] = {}

    def run(self, arrivals: list[float], *, patience: float = 1000.0) -> None:
        async def main(loop: VirtualLoop) -> None:
            begin = loop.time()

            async def handler(request: web.Request) -> web.Response:
                self.starts.append(loop.time() - begin)
                duration = self.duration(len(self.starts))
                if duration == math.inf:
                    await asyncio.Event().wait()
                try:
                    await asyncio.sleep(duration)
                except asyncio.CancelledError:
                    self.cancelled += 1
                    raise
                return web.Response(text=str(len(self.starts)))

            middleware = reduce_middleware(max_age=self.max_age, max_wait=self.max_wait)
            door = Door(loop, middleware, handler)

            async def visit(at: float) -> None:
                await asyncio.sleep(at)
                arrived = loop.time()
                await door.get()
                self.latencies[at] = loop.time() - arrived

            tasks = [asyncio.create_task(visit(at)) for at in arrivals]
            _, pending = await asyncio.wait(tasks, timeout=patience)
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            for task in tasks:
                if task not in pending:
                    task.result()
            await asyncio.sleep(0.001)  # the last call
            assert door.nothing_is_left()
            self.stats = middleware.stats

        run_virtually(main)


def every(step: float, until: float, start: float = 0.0) -> list[float]:
    """Arrival times."""
    return [round(start + number * step, 6) for number in range(int((until - start) / step))]


def test_2_4_a_first_run_that_is_stuck_for_ever_holds_nobody_up() -> None:
    handler_takes = 1.5
    traffic = Traffic(duration=lambda run: math.inf if run == 1 else handler_takes, max_age=1.0, max_wait=2.0)
    traffic.run(every(0.01, 10.0), patience=60.0)
    # All but the leader of the stuck run itself are answered.
    assert set(every(0.01, 10.0)) - set(traffic.latencies) == {0.0}
    assert max(traffic.latencies.values()) <= 2.0 + handler_takes + EPSILON
    # At most one new run a second.
    for one, other in zip(traffic.starts, traffic.starts[1:], strict=False):
        assert other - one >= 1.0 - EPSILON
    assert len(traffic.starts) <= 10


def test_2_4_a_handler_that_is_always_stuck_costs_one_execution_in_every_max_age() -> None:
    traffic = Traffic(duration=lambda run: math.inf, max_age=1.0, max_wait=2.0)
    traffic.run(every(0.01, 10.0), patience=10.0)
    assert traffic.latencies == {}
    for one, other in zip(traffic.starts, traffic.starts[1:], strict=False):
        assert other - one >= 1.0 - EPSILON


@pytest.mark.parametrize(
    "arrivals",
    [
        every(0.05, 12.0),
        every(0.7, 20.0),
        every(1.3, 30.0),
        every(2.9, 30.0),
        [0.0, 0.5],
        [0.0, 0.5, 3.0],
        [0.0, 0.5, 2.4, 2.6, 3.0, 5.1],
        [0.0, 0.1, 0.2, 0.3, 0.4, 9.9],
        [0.0, 0.99, 1.01, 1.99, 2.01, 4.5, 4.6, 7.2],
    ],
    ids=lambda arrivals: f"{len(arrivals)}-arrivals-to-{arrivals[-1]}",
)
@pytest.mark.parametrize(("max_age", "max_wait"), [(1.0, 2.0), (2.0, 1.0), (0.5, 0.5), (0.0, 0.1)])
def test_2_4_a_handler_slower_than_max_wait_and_max_age_answers_everybody_within_its_duration(
    arrivals: list[float], max_age: float, max_wait: float
) -> None:
    traffic = Traffic(duration=lambda run: 5.0, max_age=max_age, max_wait=max_wait)
    traffic.run(arrivals)
    assert len(traffic.latencies) == len(arrivals)
    assert max(traffic.latencies.values()) <= 5.0 + EPSILON


def test_2_4_a_flight_admits_followers_for_max_age_seconds() -> None:
    traffic = Traffic(duration=lambda run: 3.0, max_age=1.0, max_wait=30.0)
    traffic.run([0.0, 0.5, 0.999, 1.001, 1.5])
    assert [round(start, 3) for start in traffic.starts] == [0.0, 1.001]


def test_2_4_max_age_of_zero_shares_nothing() -> None:
    traffic = Traffic(duration=lambda run: 1.0, max_age=0.0, max_wait=30.0)
    traffic.run([0.0, 0.1, 0.2])
    assert len(traffic.starts) == 3


def test_2_4_one_overdue_follower_leads_for_all_the_others() -> None:
    traffic = Traffic(duration=lambda run: math.inf if run == 1 else 1.0, max_age=1.0, max_wait=2.0)
    traffic.run([0.0, *every(0.01, 0.5, 0.01)], patience=30.0)
    assert len(traffic.latencies) == 49
    assert len(traffic.starts) == 2
    assert max(traffic.latencies.values()) <= 2.0 + 1.0 + EPSILON


def test_2_4_an_elder_outcome_interrupts_the_run_of_an_overdue_follower() -> None:
    traffic = Traffic(duration=lambda run: 5.0, max_age=1.0, max_wait=2.0)
    traffic.run([0.0, 0.5])
    assert len(traffic.starts) == 2
    assert traffic.cancelled == 1
    assert traffic.latencies[0.5] == pytest.approx(4.5, abs=EPSILON)


def test_2_4_newcomers_never_join_the_run_of_an_overdue_follower() -> None:
    # It is interrupted as soon as the elder flight ends: whoever counted on it would start from nothing.
    traffic = Traffic(duration=lambda run: 5.0, max_age=1.0, max_wait=2.0)
    traffic.run([0.0, 0.5, 2.6])
    assert [round(start, 3) for start in traffic.starts] == [0.0, 2.5, 2.6]
    assert traffic.latencies[2.6] == pytest.approx(5.0, abs=EPSILON)


def test_2_2_a_takeover_resets_nobodys_max_wait() -> None:
    async def main(loop: VirtualLoop) -> None:
        starts: list[float] = []

        async def handler(request: web.Request) -> web.Response:
            starts.append(loop.time())
            if len(starts) < 3:
                await asyncio.Event().wait()
            return web.Response(text=str(len(starts)))

        middleware = reduce_middleware(max_age=60.0, max_wait=2.0)
        door = Door(loop, middleware, handler)
        begin = loop.time()
        leader = asyncio.create_task(door.get())
        await asyncio.sleep(0.1)
        followers: list[asyncio.Task[web.Response]] = [asyncio.create_task(door.get()) for _ in range(3)]
        await asyncio.sleep(1.0)
        leader.cancel()
        await asyncio.sleep(0.5)
        assert len(starts) == 2
        done, stuck = await asyncio.wait(followers, timeout=5.0)
        # Two of them came to their max_wait 2 s after they had arrived; the third leads, and is stuck.
        assert len(done) == 2
        assert loop.time() - begin >= 2.1
        assert starts[2] - begin == pytest.approx(2.1, abs=EPSILON)
        for task in stuck:
            task.cancel()
        await asyncio.gather(leader, *stuck, return_exceptions=True)
        assert door.nothing_is_left()

    run_virtually(main)


@pytest.mark.parametrize("late_takes", [2.499, 2.5, 2.501])
def test_2_4_a_late_run_that_has_ended_is_not_interrupted(late_takes: float) -> None:
    """The elder outcome may come in the very pass in which the late run ends: the request goes on outside."""

    async def main(loop: VirtualLoop) -> None:
        @web.middleware
        async def commits(request: web.Request, handler: object) -> web.StreamResponse:
            response: web.StreamResponse = await handler(request)  # type: ignore[operator]
            await asyncio.sleep(1.0)
            return response

        runs = 0

        async def handler(request: web.Request) -> web.Response:
            nonlocal runs
            runs += 1
            await asyncio.sleep(5.0 if runs == 1 else late_takes)
            return web.Response(text=str(runs))

        door = Door(loop, reduce_middleware(max_age=1.0, max_wait=2.0), handler, outer=[commits])
        first = asyncio.create_task(door.get())
        await asyncio.sleep(0.5)
        second = asyncio.create_task(door.get())
        assert {response.status for response in await asyncio.gather(first, second)} == {200}
        assert second.cancelling() == 0
        await asyncio.sleep(0.01)
        assert door.nothing_is_left()

    run_virtually(main)


def test_2_4_an_elder_outcome_that_may_not_be_shared_interrupts_nothing() -> None:
    async def main(loop: VirtualLoop) -> None:
        cancelled = 0

        async def handler(request: web.Request) -> web.Response:
            nonlocal cancelled
            try:
                await asyncio.sleep(5.0)
            except asyncio.CancelledError:
                cancelled += 1
                raise
            return web.Response(headers={"Cache-Control": "no-store"})

        door = Door(loop, reduce_middleware(max_age=1.0, max_wait=2.0), handler)
        begin = loop.time()
        await asyncio.gather(door.get(), door.get())
        assert cancelled == 0
        assert loop.time() - begin == pytest.approx(7.0, abs=EPSILON)

    run_virtually(main)


def test_2_4_followers_that_are_overdue_when_their_leader_leaves_share_one_run() -> None:
    async def main(loop: VirtualLoop) -> None:
        runs = 0

        async def handler(request: web.Request) -> web.Response:
            nonlocal runs
            runs += 1
            await asyncio.sleep(100.0 if runs == 1 else 1.0)
            return web.Response()

        door = Door(loop, reduce_middleware(max_wait=30.0), handler)
        leader = asyncio.create_task(door.get())
        followers = [asyncio.create_task(door.get()) for _ in range(50)]
        loop.call_later(30.0, leader.cancel)
        await asyncio.gather(*followers)
        await asyncio.wait([leader])
        assert runs == 2

    run_virtually(main)


def test_2_4_the_same_object_at_a_further_door_does_not_hold_up_a_late_run() -> None:
    async def main(loop: VirtualLoop) -> None:
        starts: list[float] = []
        begin = loop.time()

        async def handler(request: web.Request) -> web.Response:
            starts.append(loop.time() - begin)
            if len(starts) == 1:
                await asyncio.Event().wait()
            return web.Response()

        middleware = reduce_middleware(max_age=60.0, max_wait=30.0)
        door = Door(loop, middleware, handler, outer=[middleware])
        stuck, late = asyncio.create_task(door.get()), asyncio.create_task(door.get())
        await late
        assert starts == [0.0, pytest.approx(30.0, abs=EPSILON)]
        stuck.cancel()
        await asyncio.wait([stuck])
        assert door.nothing_is_left()
        assert not middleware._settings.late

    run_virtually(main)


def test_who_left_a_stuck_flight_is_let_go() -> None:
    async def main(loop: VirtualLoop) -> None:
        async def handler(request: web.Request) -> web.Response:
            await asyncio.Event().wait()
            raise AssertionError

        door = Door(loop, reduce_middleware(max_age=60.0, max_wait=60.0), handler)
        leader = asyncio.create_task(door.get())
        await asyncio.sleep(0)
        for _ in range(100):
            follower = asyncio.create_task(door.get())
            await asyncio.sleep(0.01)
            follower.cancel()
            await asyncio.wait([follower])
        (table,) = door.middleware._tables.values()
        (flight,) = table.flights.values()
        assert len(flight._deadlines or ()) <= 10
        leader.cancel()
        await asyncio.wait([leader])

    run_virtually(main)


@pytest.mark.parametrize("how", ["follower", "interrupted leader"])
def test_a_cancellation_from_outside_is_never_swallowed(how: str) -> None:
    async def main(loop: VirtualLoop) -> None:
        release = asyncio.Event()

        async def handler(request: web.Request) -> web.Response:
            await release.wait()
            return web.Response()

        door = Door(loop, reduce_middleware(max_age=1.0, max_wait=2.0), handler)
        first = asyncio.create_task(door.get())
        await asyncio.sleep(0.1)
        second: asyncio.Task[Awaitable[web.Response]] = asyncio.create_task(door.get())
        await asyncio.sleep(0.1 if how == "follower" else 3.0)
        second.cancel()
        if how == "interrupted leader":
            release.set()  # the elder outcome comes in the same tick
        with pytest.raises(asyncio.CancelledError):
            await second
        release.set()
        await first
        await asyncio.sleep(0.1)
        assert door.nothing_is_left()

    run_virtually(main)
