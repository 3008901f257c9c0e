"""A small model of what the core promises, and random calls in controlled time that must agree with it.

Two machines: `Doorway` leads, joins, ends and leaves flights by hand, `Reducer` calls an `AsyncReducer`. Both know
after each step who was told what, and that nobody else was told anything.
`python -m tests.test_model_core 10000` runs as many examples of each as you like; a second number is the seed.
"""

import asyncio
import math
import sys
import time
from typing import Any

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from aiohttp_reduce import AsyncReducer
from aiohttp_reduce.async_reduce_core import PENDING, Flight, FlightTable, Waiter, Wake
from aiohttp_reduce.hooks import StatisticsOverallHooks
from tests.visits import SteppedLoop

_index = st.integers(0, 20)


class Boom(Exception):
    """What an execution raises."""


class Follower(Waiter[Any]):
    """A waiter that says whether it can lead."""

    able = True

    def can_lead(self) -> bool:
        return self.able


class Flown:
    """What the model knows of a flight."""

    def __init__(self, flight: Flight[Any], key: str) -> None:
        self.flight = flight
        self.key = key
        self.generation = 0
        self.is_over = False
        self.outcome: Any = PENDING
        # Who is subscribed, and the deadlines that were not told yet.
        self.members: set[int] = set()
        self.deadlines: list[tuple[float, int]] = []


class Following:
    """What the model knows of a waiter: what it was told last and has not heard, and what it leads or may lead."""

    def __init__(self, waiter: Follower) -> None:
        self.waiter = waiter
        self.told: Any = PENDING
        self.promoted: tuple[int, int] | None = None
        self.leads: tuple[int, int] | None = None
        self.is_gone = False


class Doorway(RuleBasedStateMachine):
    """The lower-level door: a table, its flights and their waiters."""

    steps = 0
    handed_on = 0

    @initialize()
    def open_a_table(self) -> None:
        self.loop = SteppedLoop()
        self.table: FlightTable[Any] = FlightTable(self.loop, self.loop.time)
        self.flown: list[Flown] = []
        self.following: list[Following] = []
        self.standing: dict[str, int] = {}

    # -- the model

    def told(self, number: int, what: Any) -> None:
        one = self.following[number]
        if one.told is PENDING:
            one.told = what

    def over(self, number: int, told: Any, *, outcome: Any = PENDING, stays: bool = False) -> None:
        """The flight is over, and all its members are told so."""
        flown = self.flown[number]
        flown.is_over = True
        flown.outcome = outcome
        if not stays:
            self.gone_from_table(number)
        for member in flown.members:
            if told is not Wake.ORPHANED or self.following[member].leads is None:
                self.told(member, told)
        flown.members.clear()
        flown.deadlines.clear()

    def gone_from_table(self, number: int) -> None:
        key = self.flown[number].key
        if self.standing.get(key) == number:
            del self.standing[key]

    def abandoned(self, number: int, generation: int) -> bool:
        """The leader left. Who takes over is drawn: it is seen, and must be one of those who may."""
        flown = self.flown[number]
        if flown.is_over or generation != flown.generation:
            return False
        flown.generation += 1
        heirs = {
            member
            for member in flown.members
            if (one := self.following[member]).waiter.able and one.told is PENDING and one.leads is None
        }
        if not heirs:
            self.over(number, Wake.ORPHANED)
            return True
        now_promoted = {
            member
            for member, one in enumerate(self.following)
            if one.promoted is None and one.waiter.promotion is not None and not one.is_gone
        }
        (heir,) = now_promoted
        assert heir in heirs, "one takes over who cannot, or waits no more"
        self.following[heir].promoted = (number, flown.generation)
        self.told(heir, Wake.PROMOTED)
        self.unsubscribed(number, heir)
        return True

    def unsubscribed(self, number: int, member: int) -> None:
        flown = self.flown[number]
        flown.members.discard(member)
        flown.deadlines = [entry for entry in flown.deadlines if entry[1] != member]

    def check(self) -> None:
        Doorway.steps += 1
        self.loop.settle()
        assert not self.loop.problems
        assert self.table.flights == {key: self.flown[number].flight for key, number in self.standing.items()}
        for flown in self.flown:
            flight = flown.flight
            assert flight.generation == flown.generation
            assert flight.under_way is not flown.is_over
            assert flight.outcome is flown.outcome
            assert set(flight.waiters.values()) == {self.following[member].waiter for member in flown.members}
        for number, one in enumerate(self.following):
            waiter = one.waiter
            assert waiter.future.done() is (one.told is not PENDING), f"waiter {number}: {waiter.future}, {one.told}"
            if isinstance(one.told, Boom):
                assert waiter.future.exception() is one.told
            elif one.told is not PENDING and one.told != "cancelled":
                assert waiter.future.result() is one.told
            expected = one.promoted and (self.flown[one.promoted[0]].flight, one.promoted[1])
            assert waiter.promotion == expected
            subscribed = [flown.flight for flown in self.flown if number in flown.members]
            assert {flight for flight in waiter.flights if flight.under_way} == set(subscribed)

    # -- what happens

    def under_way(self) -> list[int]:
        return [number for number, flown in enumerate(self.flown) if not flown.is_over]

    def present(self) -> list[int]:
        return [number for number, one in enumerate(self.following) if not one.is_gone]

    @rule(key=st.sampled_from("ab"))
    def lead(self, key: str) -> None:
        """A newcomer leads, in place of whatever stands there."""
        self.standing[key] = len(self.flown)
        self.flown.append(Flown(self.table.lead(key), key))
        self.check()

    @precondition(lambda self: self.under_way())
    @rule(
        index=_index,
        able=st.sampled_from([True, True, True, False]),
        within=st.sampled_from([math.inf, 1.0, 1.0, 2.0, 0.0]),
    )
    def join(self, index: int, able: bool, within: float) -> None:
        """A newcomer follows."""
        waiter = Follower(self.loop, self.loop.time())
        waiter.able = able
        self.following.append(Following(waiter))
        self.subscribe(index, len(self.following) - 1, within)

    @precondition(lambda self: self.under_way() and self.present())
    @rule(index=_index, who=_index, within=st.sampled_from([math.inf, 1.0]))
    def join_another(self, index: int, who: int, within: float) -> None:
        """One who waits for a flight waits for another one as well."""
        present, flights = self.present(), self.under_way()
        member, number = present[who % len(present)], flights[index % len(flights)]
        one = self.following[member]
        if member not in self.flown[number].members and one.told is PENDING and one.leads is None:
            self.subscribe(index, member, within)

    def subscribe(self, index: int, member: int, within: float) -> None:
        flights = self.under_way()
        number = flights[index % len(flights)]
        flown, deadline = self.flown[number], self.loop.time() + within
        flown.members.add(member)
        if within < math.inf:
            flown.deadlines.append((deadline, member))
        flown.flight.join(self.following[member].waiter, deadline)
        if within == 0.0:
            self.pass_time(0.0)
        self.check()

    @precondition(lambda self: self.flown)
    @rule(
        index=_index,
        how=st.sampled_from(["finish", "linger", "fail", "abandon", "abandon", "abandon"]),
        older=st.sampled_from([0, 0, 0, 0, 1, -1]),
    )
    def end(self, index: int, how: str, older: int) -> None:
        """Somebody who leads, or did, or never will, ends a flight."""
        number = index % len(self.flown)
        flown = self.flown[number]
        generation = flown.generation - older
        may = not flown.is_over and older == 0
        if how == "abandon":
            assert flown.flight.abandon(generation) is may
            self.abandoned(number, generation)
        elif how == "fail":
            boom = Boom()
            assert flown.flight.fail(generation, boom) is may
            if may:
                self.over(number, boom)
        else:
            outcome = object()
            assert flown.flight.finish(generation, outcome, linger=how == "linger") is may
            if may:
                self.over(number, outcome, outcome=outcome, stays=how == "linger")
        if may:
            for one in self.following:
                if one.leads == (number, generation):
                    one.leads = None
                    one.waiter.leading = False
        self.check()

    @precondition(lambda self: self.flown)
    @rule(index=_index)
    def close(self, index: int) -> None:
        """Nobody joins a flight any more; whoever waits goes on waiting."""
        number = index % len(self.flown)
        self.flown[number].flight.close()
        self.gone_from_table(number)
        self.check()

    @precondition(lambda self: self.present())
    @rule(who=_index, is_heir=st.booleans())
    def leave(self, who: int, is_heir: bool) -> None:
        """One who waits, or was promoted, leaves."""
        present = self.present()
        heirs = [number for number in present if self.following[number].promoted is not None]
        if is_heir and heirs:
            present = heirs
        self.leave_one(present[who % len(present)])

    def leave_one(self, member: int) -> None:
        one = self.following[member]
        one.is_gone = True
        one.waiter.leave()
        for number in range(len(self.flown)):
            self.unsubscribed(number, member)
        promoted, one.promoted = one.promoted, None
        if promoted is not None:
            Doorway.handed_on += self.abandoned(*promoted)
        self.check()

    @precondition(lambda self: self.under_way())
    @rule(
        index=_index,
        herd=st.lists(st.sampled_from([True, True, False]), min_size=1, max_size=4),
        leaving=st.integers(0, 3),
        leads=st.booleans(),
    )
    def take_over(self, index: int, herd: list[bool], leaving: int, leads: bool) -> None:
        """Some follow, the leader leaves, and so do heirs one after the other; the next may lead."""
        flights = self.under_way()
        number = flights[index % len(flights)]
        for able in herd:
            self.join(index, able, math.inf)
        self.end(number, "abandon", 0)
        for left in range(leaving + 1):
            heirs = [
                member
                for member, one in enumerate(self.following)
                if one.promoted == (number, self.flown[number].generation) and not one.is_gone
            ]
            if heirs and left < leaving:
                self.leave_one(heirs[0])
            elif heirs and leads:
                self.lead_on(self.following[heirs[0]])

    @precondition(lambda self: any(one.told is PENDING and not one.is_gone for one in self.following))
    @rule(who=_index)
    def cancel(self, who: int) -> None:
        """The future of one is cancelled, and it has not left yet."""
        waiting = [one for one in self.following if one.told is PENDING and not one.is_gone]
        one = waiting[who % len(waiting)]
        one.waiter.future.cancel()
        one.told = "cancelled"
        self.check()

    @precondition(lambda self: any(one.told in (Wake.PROMOTED, Wake.OVERDUE) for one in self.following))
    @rule(who=_index)
    def wait_on(self, who: int) -> None:
        """One who was woken without an outcome leads, if it was promoted, and waits on for what it still waits for."""
        woken = [one for one in self.following if one.told in (Wake.PROMOTED, Wake.OVERDUE) and not one.is_gone]
        if not woken:
            return
        self.lead_on(woken[who % len(woken)])

    def lead_on(self, one: Following) -> None:
        if one.promoted is not None and one.leads is None:
            one.leads, one.promoted = one.promoted, None
            one.waiter.promotion = None
            one.waiter.leading = True
        one.waiter.renew()
        one.told = PENDING
        self.check()

    @precondition(lambda self: self.following)
    @rule(who=_index, able=st.booleans())
    def disconnect(self, who: int, able: bool) -> None:
        """One can lead no more, or again."""
        self.following[who % len(self.following)].waiter.able = able

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 2.0]))
    def pass_time(self, seconds: float) -> None:
        """Whose deadline passes is told, unless it leads."""
        self.loop.advance(seconds)
        now = self.loop.time()
        for flown in self.flown:
            for entry in sorted(flown.deadlines):
                if entry[0] <= now and self.following[entry[1]].leads is None:
                    self.told(entry[1], Wake.OVERDUE)
            flown.deadlines = [entry for entry in flown.deadlines if entry[0] > now]
        self.check()

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            for number in self.under_way():
                flown = self.flown[number]
                assert flown.flight.finish(flown.generation, None)
                self.over(number, None, outcome=None)
            for flown in self.flown:
                flown.flight.close()  # those that lingered
            self.standing.clear()
            self.check()
            assert self.loop.next_timer() == math.inf
        finally:
            self.loop.close()


class Call:
    """One call of the reducer: its coroutine, and what it was told."""

    def __init__(self, execution: "Execution") -> None:
        self.execution = execution
        self.future: asyncio.Future[Any]
        self.is_cancelled = False


class Execution:
    """One execution, as the model has it: how it ends, and when it has."""

    def __init__(self, ident: str) -> None:
        self.ident = ident
        self.gate: asyncio.Future[None] | None = None
        self.ending = ""
        self.result = object()
        self.task: asyncio.Task[Any] | None = None
        self.is_stubborn = False
        self.is_over = False
        self.raised: type[BaseException] | None = None


class Reducer(RuleBasedStateMachine):
    """`AsyncReducer`: calls with a few identities."""

    steps = 0

    @initialize()
    def make_a_reducer(self) -> None:
        self.loop = SteppedLoop()
        self.hooks = StatisticsOverallHooks()
        self.reducer = AsyncReducer(self.hooks)
        self.open: dict[str, Execution] = {}
        self.executions: list[Execution] = []
        self.calls: list[Call] = []

    async def execute(self, execution: Execution) -> Any:
        assert not execution.is_over, "a coroutine runs whose execution is over"
        assert execution.task is None, "a coroutine runs that should be closed"
        execution.task = asyncio.current_task()
        execution.gate = self.loop.create_future()
        try:
            await execution.gate
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if not execution.is_stubborn:
                raise
        if execution.ending == "fail":
            raise Boom
        if execution.ending == "cancels itself":
            raise asyncio.CancelledError
        return execution.result

    def inside(self, function: Any, *args: Any, **options: Any) -> Any:
        """Call a function while the loop runs."""
        got: list[Any] = []

        async def call() -> None:
            got.append(function(*args, **options))

        self.loop.run_until_complete(call())
        return got[0]

    def end(self, execution: Execution, raised: type[BaseException] | None) -> None:
        execution.is_over = True
        execution.raised = raised
        if self.open.get(execution.ident) is execution:
            del self.open[execution.ident]

    def check(self) -> None:
        Reducer.steps += 1
        self.loop.settle()
        assert not self.loop.problems, self.loop.problems
        for call in self.calls:
            execution = call.execution
            if call.is_cancelled:
                assert call.future.cancelled()
            elif not execution.is_over:
                assert not call.future.done()
            elif execution.raised is Boom:
                assert isinstance(call.future.exception(), Boom)
            elif execution.raised is not None:
                assert call.future.cancelled() or isinstance(call.future.exception(), asyncio.CancelledError)
            else:
                assert call.future.result() is execution.result
        (table,) = self.reducer._tables.by_loop.values() or [None]
        assert (set(table.flights) if table else set()) == set(self.open)
        assert len(asyncio.all_tasks(self.loop)) == sum(not one.is_over for one in self.executions)
        ended = [one for one in self.executions if one.is_over]
        assert self.hooks.total == len(self.calls)
        assert self.hooks.reduced == len(self.calls) - len(self.executions)
        assert self.hooks.executed == sum(one.raised is None for one in ended)
        assert self.hooks.errors == sum(one.raised is not None for one in ended)

    def running(self) -> list[Execution]:
        return [one for one in self.executions if not one.is_over]

    @rule(ident=st.sampled_from("ab"), is_stubborn=st.booleans(), size=st.sampled_from([1, 1, 3]))
    def call(self, ident: str, is_stubborn: bool, size: int) -> None:
        """Some call, and join what is open."""
        for _ in range(size):
            own = Execution(ident)
            own.is_stubborn = is_stubborn
            coro = self.execute(own)
            if ident not in self.open:
                self.open[ident] = own
                self.executions.append(own)
            call = Call(self.open[ident])
            call.future = self.inside(self.reducer, coro, ident=ident)
            self.calls.append(call)
        self.check()

    @precondition(lambda self: self.running())
    @rule(index=_index, ending=st.sampled_from(["result", "result", "fail", "cancels itself"]))
    def ends(self, index: int, ending: str) -> None:
        """An execution ends by itself."""
        running = self.running()
        self.end_one(running[index % len(running)], ending)

    def end_one(self, execution: Execution, ending: str) -> None:
        execution.ending = ending
        assert execution.gate is not None, "it was never begun"
        execution.gate.set_result(None)
        raised = {"result": None, "fail": Boom, "cancels itself": asyncio.CancelledError}
        self.end(execution, raised[ending])
        self.check()

    @precondition(lambda self: self.running())
    @rule(index=_index)
    def kill(self, index: int) -> None:
        """The task of an execution is cancelled from outside."""
        running = self.running()
        execution = running[index % len(running)]
        assert execution.task is not None
        execution.task.cancel()
        self.end(execution, None if execution.is_stubborn else asyncio.CancelledError)
        self.check()

    @precondition(lambda self: any(not call.future.done() for call in self.calls))
    @rule(index=_index)
    def cancel(self, index: int) -> None:
        """One who waits is cancelled: it leaves alone, and the execution runs on."""
        waiting = [call for call in self.calls if not call.future.done()]
        call = waiting[index % len(waiting)]
        call.future.cancel()
        call.is_cancelled = True
        self.check()

    @rule(ident=st.sampled_from("ab"))
    def forget(self, ident: str) -> None:
        """The next call starts anew; whoever waits keeps the old one."""
        assert self.inside(self.reducer.forget, ident) is (ident in self.open)
        self.open.pop(ident, None)
        self.check()

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            while self.running():
                self.end_one(self.running()[0], "result")
            assert not self.open
            self.check()
        finally:
            self.loop.close()


_SETTINGS = settings(
    database=None,
    deadline=None,
    stateful_step_count=40,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


def test_the_door_does_what_the_model_says() -> None:
    before = Doorway.handed_on
    run_state_machine_as_test(Doorway, settings=settings(_SETTINGS, max_examples=60, derandomize=True))
    assert Doorway.handed_on - before >= 10, "or this shows nothing"


def test_the_reducer_does_what_the_model_says() -> None:
    run_state_machine_as_test(Reducer, settings=settings(_SETTINGS, max_examples=60, derandomize=True))


def main() -> None:
    examples, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    for kind in (Doorway, Reducer):
        began = time.monotonic()
        for done in range(0, examples, 500):
            machine = seed(first + done)(type(kind.__name__, (kind,), {}))
            run_state_machine_as_test(machine, settings=settings(_SETTINGS, max_examples=min(500, examples - done)))
        sys.stdout.write(
            f"{kind.__name__}: {examples} examples, {kind.steps} steps, {time.monotonic() - began:.0f} s\n"
        )


if __name__ == "__main__":
    main()
