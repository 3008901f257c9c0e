"""Random interleavings of all that may happen to a broadcast, compared with a plain model. Time is virtual.

`python -m tests.test_broadcast_interleavings 20000` runs as many of each kind as you like.
"""

import asyncio
import math
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiohttp_reduce import broadcast as module
from aiohttp_reduce.broadcast import CHUNK_OVERHEAD, Budget, Consumer, StalledError
from tests.broadcasting import SIZE, opened, settled, timers
from tests.virtual import VirtualLoop, run_virtually

# All time counts, however much was read in it.
PACE = math.inf


@pytest.fixture(autouse=True, scope="module")
def clock() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PACE", PACE)
        yield


# -- any interleaving


# How often each step is drawn.
WEIGHTS = {
    "join": 3, "feed": 6, "take": 3, "read": 3, "catch up": 3, "leave": 2, "advance": 4, "close": 1, "cancel": 1,
    "finish": 1, "fail": 1,
}  # fmt: skip
STEPS = st.lists(
    st.tuples(
        st.sampled_from([step for step, weight in WEIGHTS.items() for _ in range(weight)]),
        st.integers(0, 5),
        st.integers(0, 7),
    ),
    min_size=4,
    max_size=40,
)
STALL_TIMEOUT = 1.0
LIMITS = [math.inf, 4_000, 2_500, 0]
SIZES = [0, 1, 372, SIZE, SIZE, SIZE, 2 * SIZE, 5_000]
ADVANCES = [0.03125, 0.0625, 0.25, 0.5, 0.5, 1.0, 2.0, 30.0]


class Member:
    """A reader, and what it must be given."""

    def __init__(self, stage: "Stage", kind: int) -> None:
        self.stage = stage
        self.taken = self.passed = 0
        self.left = False
        self.waits = not stage.fed
        # What it does within its `on_ready`: nothing, read all, or leave.
        self.reacts = {4: self.catch_up, 5: self.leave}.get(kind)
        self.consumer: Consumer = stage.broadcast.join(self.on_ready)

    @property
    def is_in(self) -> bool:
        return not (self.left or self.consumer.at_end or self.consumer.exception is not None)

    @property
    def starves(self) -> bool:
        return self.passed == len(self.stage.fed)

    def on_ready(self) -> None:
        assert not self.left
        self.waits = False
        if isinstance(self.consumer.exception, StalledError):
            self.stage.was_cut_off(self)
        elif self.reacts is not None:
            self.reacts()

    def take(self) -> bool:
        stage = self.stage
        was_in = self.is_in
        chunk = self.consumer.take()
        if not was_in:
            assert chunk is None
        elif self.taken < len(stage.fed):
            assert chunk is not None
            data, ends_part = stage.fed[self.taken]
            assert chunk.data is data
            assert chunk.ends_part is ends_part
            self.taken += 1
        else:
            assert chunk is None
            assert self.consumer.at_end is stage.broadcast.ended
            self.waits = self.is_in
        return chunk is not None

    def read(self, offset: int) -> None:
        if self.is_in:
            while self.passed < self.taken and self.stage.ends[self.passed] <= offset:
                self.passed += 1
        self.consumer.has_read(offset)

    def catch_up(self) -> None:
        while self.take():
            pass
        self.read(10**9)

    def leave(self) -> None:
        self.left = self.left or self.is_in
        self.consumer.leave()


class Stage:
    """A broadcast, its producer and its readers, beside a model of what it must hold and when it may cut off."""

    def __init__(self, loop: VirtualLoop, budget: Budget, max_buffer: float) -> None:
        self.loop = loop
        self.max_buffer = max_buffer
        self.closings = 0
        self.broadcast = opened(
            loop,
            max_buffer=max_buffer,
            budget=budget,
            stall_timeout=STALL_TIMEOUT,
            on_close=self.on_close,
            on_desert=self.on_desert,
        )
        self.fed: list[tuple[bytes, bool]] = []
        self.ends: list[int] = []
        self.members: list[Member] = []
        self.producer: asyncio.Task[None] | None = None
        self.size = 0
        self.resumed = 0.0
        self.cut: list[Member] = []
        # Seconds for which the clock ran; and in its present stretch, with those after which it cuts off.
        self.spent = self.stretch = 0.0
        self.allowed: float | None = None

    def on_close(self) -> None:
        self.closings += 1
        assert self.closings == 1
        assert not self.broadcast.is_open

    def on_desert(self) -> None:
        assert not self.present
        assert not self.over

    @property
    def present(self) -> list[Member]:
        return [member for member in self.members if member.is_in]

    @property
    def over(self) -> bool:
        return self.broadcast.ended or self.broadcast.exception is not None

    @property
    def blocked(self) -> bool:
        return self.producer is not None and not self.producer.done()

    @property
    def clock_runs(self) -> bool:
        starving = [member.starves for member in self.present]
        return self.blocked and any(starving) and not all(starving)

    @property
    def costs(self) -> list[int]:
        """What each chunk costs that may still be needed by somebody."""
        if self.broadcast.exception is not None:
            return []
        first = 0 if self.broadcast.is_open else min((member.passed for member in self.present), default=len(self.fed))
        return [len(data) + CHUNK_OVERHEAD for data, _ in self.fed[first:]]

    @property
    def kept(self) -> int:
        return sum(self.costs)

    def start_feeding(self, size: int) -> None:
        self.size = size

        async def feed() -> None:
            if not self.broadcast.fits(size):
                await self.broadcast.room(size)
            self.resumed = self.loop.time()
            if not self.over:
                data, ends_part = bytes(bytearray(size)), size % 2 == 0
                self.fed.append((data, ends_part))
                self.ends.append(size + (self.ends[-1] if self.ends else 0))
                self.broadcast.feed(data, ends_part=ends_part)

        self.producer = self.loop.create_task(feed())

    def was_cut_off(self, member: Member) -> None:
        assert not member.starves
        assert all(member.passed <= other.passed for other in self.present)
        self.cut.append(member)

    def account(self, began: float, ran: bool) -> None:
        """Move the model's clock, which ran at `began` or not; whoever was cut off was so just when it was up."""
        took = min(self.resumed, self.loop.time()) - began if not self.blocked else self.loop.time() - began
        if ran:
            assert self.allowed is not None
            self.spent += took
            self.stretch += took
            if self.cut:
                assert self.stretch == pytest.approx(self.allowed)
        elif self.cut:  # by a step that took no time: it was up already
            assert took <= 0
            assert self.spent >= STALL_TIMEOUT
        if self.cut:
            assert not self.blocked
            self.cut.clear()
        if not self.clock_runs:
            self.stretch, self.allowed = 0.0, None
        elif self.allowed is None or not ran:
            left = max(0.0, STALL_TIMEOUT - self.spent)
            own = self.kept + self.size + CHUNK_OVERHEAD > self.max_buffer
            self.stretch, self.allowed = 0.0, left if own else max(left, module._GRACE)
        # Nobody holds others up for longer.
        assert self.allowed is None or self.stretch < self.allowed

    def check(self) -> None:
        broadcast, kept, present = self.broadcast, self.kept, self.present
        assert broadcast.held == kept
        assert kept <= self.max_buffer or len(self.costs) == 1
        assert broadcast.consumers == len(present)
        assert self.closings == (not broadcast.is_open)
        if self.blocked:
            assert kept > 0  # somebody has something to read: it is not for ever
            assert not broadcast.is_open
        elif self.producer is not None and not self.producer.cancelled():
            self.producer.result()
        for member in present:
            # Whoever took all that there is and was not told since has not missed anything.
            assert not member.waits or (member.taken == len(self.fed) and not broadcast.ended)
        for member in self.members:
            if broadcast.exception is not None and not member.left and not member.consumer.at_end:
                assert member.consumer.exception is broadcast.exception or isinstance(
                    member.consumer.exception, StalledError
                )
            assert not member.consumer.at_end or member.taken == len(self.fed)


async def play(loop: VirtualLoop, steps: list[tuple[str, int, int]], *, stages: int, after_leaving: bool) -> None:
    """Play the steps on broadcasts that share a budget, and check each after each step."""
    first = steps[0][2]
    if stages == 1:
        budget = Budget(LIMITS[first % 4])
        theatre = [Stage(loop, budget, LIMITS[first // 2])]
    else:  # it is the shared budget that is to be short
        budget = Budget(4_000 if first % 2 else 2_500)
        theatre = [Stage(loop, budget, math.inf if first < 6 else 2_500) for _ in range(stages)]
        for stage in theatre:
            stage.members += [Member(stage, 0), Member(stage, 0)]

    async def step(what: str, number: int, amount: int) -> None:
        stage = theatre[amount % stages]
        broadcast = stage.broadcast
        cast = stage.members if after_leaving else stage.present
        member = cast[number % len(cast)] if cast else None
        if what == "join":
            if broadcast.is_open:
                stage.members.append(Member(stage, number))
        elif what == "feed":
            if not stage.blocked and not stage.over:
                stage.start_feeding(SIZES[amount])
        elif what == "close":
            broadcast.close()
        elif what == "cancel":
            if stage.blocked and stage.producer is not None:
                stage.producer.cancel()
        elif what == "finish":
            if not stage.blocked:
                broadcast.finish()
        elif what == "fail":
            broadcast.fail(ValueError())
        elif what == "advance":
            await asyncio.sleep(ADVANCES[amount])
        elif member is not None:
            if what == "take":
                for _ in range(1 + amount // 2):
                    member.take()
            elif what == "read":
                reached = stage.ends[member.taken - 1] if member.taken else 0
                member.read(max(0, [reached, reached - 1, SIZE, 10**9][amount // 2]))
            elif what == "catch up":
                member.catch_up()
            elif what == "leave":
                member.leave()
                if amount % 2:
                    member.leave()

    async def play_step(what: str, number: int, amount: int) -> None:
        began = loop.time()
        ran = [stage.clock_runs for stage in theatre]
        await step(what, number, amount)
        await settled()
        for stage, did_run in zip(theatre, ran, strict=True):
            # A step that takes no time may stop a clock or start one, but moves none.
            stage.account(began, did_run and what == "advance")
            stage.check()
        assert budget.used == sum(stage.kept for stage in theatre)

    try:
        for what, number, amount in steps:
            await play_step(what, number, amount)
        # Nobody waits for ever: whoever reads gets on, and comes to the end.
        for stage in theatre:
            for member in stage.present:
                member.catch_up()
            await settled()
            assert not stage.blocked
            stage.broadcast.finish()
            for member in stage.present:
                member.catch_up()
            for member in stage.members:
                assert not member.is_in
                assert member.left or (member.consumer.exception is None) == member.consumer.at_end
            assert stage.broadcast.held == 0
        assert budget.used == 0
        assert not timers(loop)
    finally:
        for stage in theatre:
            if stage.producer is not None:
                stage.producer.cancel()
        await settled()


PLAYS = {
    "one broadcast": {"stages": 1, "after_leaving": False},
    "two that share a budget": {"stages": 2, "after_leaving": False},
    "readers that go on after they left": {"stages": 1, "after_leaving": True},
}


def interleave(kind: str, examples: int, derandomize: bool) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=derandomize, database=None)
    @given(STEPS)
    def any_interleaving(steps: list[tuple[str, int, int]]) -> None:
        run_virtually(lambda loop: play(loop, steps, **PLAYS[kind]))  # type: ignore[arg-type]

    any_interleaving()


@pytest.mark.parametrize(
    "kind",
    [
        "one broadcast",
        "two that share a budget",
        "readers that go on after they left",
    ],
)
def test_any_interleaving_keeps_its_bounds_and_gives_everybody_all(kind: str) -> None:
    interleave(kind, 200, derandomize=True)


if __name__ == "__main__":
    module._PACE = PACE  # type: ignore[misc]
    for play_of in PLAYS:
        interleave(play_of, int(sys.argv[1]), derandomize=False)
