"""A small model of what the middleware promises, and random visits in controlled time that must agree with it.

Requests of a few identities come, are answered in every way, are cancelled at any await and lose their connections;
writes and `forget` come between, and time passes. The model knows nothing of how the middleware works: it knows of
each run of the handler for whom and when it was begun, and of each request when it came.
`python -m tests.test_model_middleware 10000` runs as many examples as you like; a second number is the seed.
"""

import asyncio
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from aiohttp_reduce import reduce_middleware
from tests.virtual import Door
from tests.visits import Moment, Moments, SteppedLoop, request_of

# How long the memories of what keeps requests apart may hold (seconds): there the model foretells nothing.
_PASSES_HOLD = 5.0
_LEARNED_HOLDS = 60.0
_MOST_AT_ONCE = 16

Identity = tuple[Any, ...]


class Boom(Exception):
    """What a handler raises."""


class Doom(BaseException):
    """What a handler raises that is no `Exception`."""


class Run:
    """One run of the handler: for whom and when it was begun, what it looked at, and how it ended."""

    def __init__(self, number: int, visit: "Visit", begun: Moment, looked: dict[str, str | None]) -> None:
        self.number = number
        self.visit = visit
        self.begun = begun
        self.looked = looked
        self.ending: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.kind: str | None = None
        self.active = True
        self.is_left = False
        self.is_late = visit.has_waited
        # When it ended, and how many it may be for at the most, its own request included.
        self.ended = -1.0
        self.herd = 1

    @property
    def told_to_end(self) -> bool:
        return self.ending.done()


class Visit:
    """One request: who asks for what, where it is now, and how it ended."""

    def __init__(self, number: int, method: str, target: str, who: "Who", *, with_key: bool) -> None:
        self.number = number
        self.method = method
        self.target = target
        self.path = "/a" if target in {"/a?q", "/%61"} else target
        self.who = who
        self.is_write = method not in {"GET", "HEAD"}
        self.identity: Identity = (method, target, who.user, *([who.tenant] if with_key else []))
        self.at_once: str | None = None
        self.is_stubborn = False
        self.stage = "coming"
        self.entered = Moment(0.0, 0)
        self.run: Run | None = None
        self.given: Run | None = None
        self.ends: list[str] = []
        self.is_cancelled = False
        self.has_waited = False
        self.commit: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None]
        self.transport: Any
        self.writer: Any

    @property
    def is_over(self) -> bool:
        return bool(self.ends)

    @property
    def waits(self) -> bool:
        """Whether it is at the door, and no run of its own is under way."""
        return not self.is_over and self.stage == "door" and not (self.run is not None and self.run.active)

    def __repr__(self) -> str:
        return f"<visit {self.number} {self.identity} {self.stage} {self.ends}>"


class Who(tuple[str | None, str, str, str]):
    """A user by its cookie (None: a stranger), and what its browser and its address are; those two are ignored.

    Whose tenant it is no header says: only the connection does, and `key`.
    """

    __slots__ = ()

    @property
    def user(self) -> str | None:
        return self[0]

    @property
    def agent(self) -> str:
        return self[1]

    @property
    def address(self) -> str:
        return self[2]

    @property
    def tenant(self) -> str:
        return self[3]

    def but(self, part: int) -> "Who":
        """One that differs in its browser (1), its address (2) or its tenant (3)."""
        parts = list(self)
        parts[part] = {"x": "y", "y": "x", "1": "2", "2": "1", "s": "t", "t": "s", "u": "s"}[parts[part] or ""]
        return Who(parts)

    @property
    def headers(self) -> dict[str, str]:
        ignored = {"User-Agent": self.agent, "X-Real-IP": self.address}
        return ignored if self.user is None else {"Cookie": f"session={self.user}", **ignored}


# What handlers return or raise, by name, given the number of the run.

_RETURNED: dict[str, tuple[int, dict[str, str]]] = {
    "ok": (200, {}),
    "gone": (410, {}),
    "moved": (301, {"Location": "/"}),
    "set-cookie": (200, {"Set-Cookie": "session=secret"}),
    "no-store": (200, {"Cache-Control": "no-store"}),
    "no-cache": (200, {"Cache-Control": "max-age=1, no-cache=x"}),
    "private": (200, {"Cache-Control": "private"}),
    "vary on all": (200, {"Vary": "Accept, *"}),
    "vary on agent": (200, {"Vary": "user-agent"}),
    "judged": (401, {}),
    "for one": (302, {"Location": "/mine"}),
    "marks": (200, {}),
}
_RAISED: dict[str, Callable[[int], BaseException]] = {
    "missing": lambda number: web.HTTPNotFound(headers={"X-Run": str(number)}, text=str(number)),
    "refused": lambda number: web.HTTPForbidden(headers={"X-Run": str(number)}, text=str(number)),
    "broken": lambda number: web.HTTPBadGateway(headers={"X-Run": str(number)}, text=str(number)),
    "error": lambda number: Boom(number),
    "doom": lambda number: Doom(number),
    "timeout": lambda number: TimeoutError(number),
    "cancels itself": lambda number: asyncio.CancelledError(number),
    "lost": lambda number: ConnectionResetError(number),
}
_KINDS = [*["ok"] * 8, "set-cookie", "error", "missing", *[kind for kind in [*_RETURNED, *_RAISED] if kind != "ok"]]
_FOR_NOBODY_ELSE = {"set-cookie", "no-store", "no-cache", "vary on all", "judged", "refused", "for one", "marks"}


def may_have(run: Run, asker: Visit, *, with_key: bool) -> bool:
    """Whether one who asks for the same may have what this run answers."""
    if run.kind in _FOR_NOBODY_ELSE or run.is_left:
        return False
    if run.kind == "private" and asker.who.user is None and not with_key:
        return False
    if run.kind == "vary on agent" and run.visit.who.agent != asker.who.agent:
        return False
    return all(asker.who.headers.get(name) == value for name, value in run.looked.items())


class Flight:
    """A run that others join, as far as the model is certain of it."""

    def __init__(self, leader: Visit) -> None:
        self.leader = leader
        self.opened = leader.entered
        self.members: list[Visit] = []


class _Log(logging.Handler):
    """What the library logs, of some weight."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record.getMessage())


_TARGETS = [*["/a"] * 6, "/a?q", "/%61", "/b"]
_who = st.builds(
    lambda user, agent, address, tenant: Who((user, agent, address, tenant)),
    st.sampled_from([None, None, None, None, "alice", "alice", "bob"]),
    st.sampled_from(["x", "x", "x", "y"]),
    st.sampled_from(["1", "1", "1", "2"]),
    st.sampled_from(["s", "s", "s", "t"]),
)
# How many passes of the loop there are before what comes next; None for as many as it takes.
_passes = st.sampled_from([*[None] * 12, 0, 1, 2, 3, 5])
_index = st.integers(0, 20)
_kind = st.sampled_from(_KINDS)


class Middleware(RuleBasedStateMachine):
    """The middleware in front of one handler, and the model of it."""

    steps = 0
    visits_made = 0
    joined = 0
    reduced = 0
    takeovers = 0

    @initialize(
        is_ordinary=st.booleans(),
        outer=st.sampled_from(["none", "plain", "slow"]),
        with_key=st.booleans(),
        times=st.sampled_from([(2.0, 30.0), (2.0, 3.0), (5.0, 1.0), (1.0, 1.0), (0.0, 2.0)]),
        looks=st.sampled_from([(), ("User-Agent",), ("X-Real-IP", "User-Agent")]),
        opening=st.sampled_from(["", "user", "tenant", "heirs", "heirs in one pass"]),
    )
    def open_the_door(
        self,
        is_ordinary: bool,
        outer: str,
        with_key: bool,
        times: tuple[float, float],
        looks: tuple[str, ...],
        opening: str,
    ) -> None:
        self.loop = SteppedLoop()
        self.moments = Moments(self.loop)
        self.with_key = with_key = with_key or opening == "tenant"
        self.outer = outer
        self.max_age, self.max_wait = times
        self.looks = looks
        key = (lambda request: request.protocol.visit.who.tenant) if with_key else None
        self.middleware = reduce_middleware(max_age=self.max_age, max_wait=self.max_wait, key=key)
        self.door = Door(
            self.loop,
            self.middleware,
            self.handle,
            outer=[] if outer == "none" else [self.outer_middleware],
            is_ordinary=is_ordinary,
        )
        self.visits: list[Visit] = []
        self.places = 0
        self.broken: list[AssertionError] = []
        self.runs: list[Run] = []
        self.is_settled = True
        # The largest herd that there may have been.
        self.largest = 1
        self.exits = 0
        # The writes that were answered, and the calls of `forget`, by path: when, and when that was known.
        self.writes: dict[str, list[tuple[Moment, Moment]]] = {}
        # The flights that the model is certain of.
        self.flights: dict[Identity, Flight] = {}
        self.passes_until: dict[Identity, float] = {}
        self.learned_at: list[float] = []
        self.log = _Log()
        self.loggers = [logging.getLogger(name) for name in ("aiohttp_reduce", "asyncio")]
        for logger in self.loggers:
            logger.addHandler(self.log)
        # Before anything is known of the route.
        if opening.startswith("heirs"):
            self.all_but_one_leave(Who((None, "x", "1", "s")), 5, 0, opening == "heirs in one pass")
        elif opening:
            self.different_ones_meet(opening, [0, 1, 2], 0)

    # -- what the application does

    @property
    def outer_middleware(self) -> Any:
        @web.middleware
        async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
            visit: Visit = request.protocol.visit  # type: ignore[attr-defined]
            visit.stage = "outside"
            await asyncio.sleep(0)
            self.enters(visit)
            try:
                response: web.StreamResponse = await handler(request)
            except BaseException as exception:
                self.holds(self.exits_door, visit, exception)
                if isinstance(exception, web.HTTPException):
                    exception.headers.add("X-Outer", str(visit.number))
                    await self.waits_to_commit(visit)
                raise
            self.holds(self.exits_door, visit, response)
            response.headers.add("X-Outer", str(visit.number))
            await self.waits_to_commit(visit)
            return response

        return outer

    async def waits_to_commit(self, visit: Visit) -> None:
        if self.outer == "slow":
            visit.commit = self.loop.create_future()
            await visit.commit

    def enters(self, visit: Visit) -> None:
        visit.stage = "door"
        visit.entered = self.moments.now()
        # Whoever runs at once does so before that.
        self.loop.call_soon(setattr, visit, "has_waited", True)
        for run in self.runs:
            if run.ended == visit.entered.time and run.visit.identity == visit.identity:
                self.counts(run, run.herd + 1)  # it may just be in time

    def counts(self, run: Run, herd: int) -> None:
        run.herd = herd
        if not run.visit.is_write and not run.is_left:
            self.largest = max(self.largest, herd)

    def holds(self, check: Callable[..., None], *args: Any) -> None:
        """Check something in the midst of a request, which must not take a failure for its handler's."""
        try:
            check(*args)
        except AssertionError as broken:
            self.broken.append(broken)

    def exits_door(self, visit: Visit, result: Any) -> None:
        """The door answered this: say whose run that is of, and check it."""
        visit.stage = "left"
        number = (
            result.headers.get("X-Run")
            if isinstance(result, web.StreamResponse)
            else result.args[0]
            if result.args
            else None
        )
        if number is None:
            self.check_no_answer(visit, result)
            return
        run = self.runs[int(number) - 1]
        assert visit.given is None, "answered twice"
        visit.given = run
        if run.visit is not visit:
            self.exits += 1
            self.check_foreign(visit, run)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        visit: Visit = request.protocol.visit  # type: ignore[attr-defined]
        looked = {name: request.headers.get(name) for name in self.looks}
        run = Run(len(self.runs) + 1, visit, self.moments.now(), looked)
        self.runs.append(run)
        if visit.run is not None and visit.run.active:
            self.broken.append(AssertionError("it runs twice at once"))
        visit.run = run
        visit.stage = "handler"
        try:
            kind = visit.at_once
            while kind is None:
                try:
                    kind = await run.ending
                    if kind.startswith("after "):
                        kind = kind.removeprefix("after ")
                        await asyncio.sleep(0)
                except asyncio.CancelledError:
                    if not visit.is_stubborn:
                        raise
                    run.is_left = True
                    kind = "ok"
            run.kind = kind
            if kind == "lost" and visit.transport.closing:
                run.is_left = True
            if kind in _RAISED:
                raise _RAISED[kind](run.number)
            status, headers = _RETURNED[kind]
            if kind == "marks":
                request["csrf"] = run.number
            text = self.text_for(run, visit)
            return web.Response(status=status, headers={**headers, "X-Run": str(run.number)}, text=text)
        finally:
            run.active = False
            run.ended = self.loop.time()
            visit.stage = "door"
            self.counts(run, 1 + sum(one.stage in {"door", "handler"} for one in self.others(visit)))
            self.learn(run)

    def text_for(self, run: Run, visit: Visit) -> str:
        """What the handler says to this request: it depends on all that it looked at, and on the tenant."""
        tenant = visit.who.tenant if self.with_key else None
        return f"{run.number} {tenant} {[visit.who.headers.get(name) for name in run.looked]}"

    def learn(self, run: Run) -> None:
        """What the middleware may remember of a run that ended, where others ask for the same."""
        if not run.visit.is_write and any(self.others(run.visit)):
            if run.kind in _FOR_NOBODY_ELSE or run.kind == "private":
                self.passes_until[run.visit.identity] = self.loop.time() + _PASSES_HOLD
            if run.looked or run.kind == "vary on agent":
                self.learned_at.append(self.loop.time())

    async def serve(self, visit: Visit, request: web.Request) -> None:
        """What aiohttp does with a request."""
        end = "answered"
        try:
            if self.outer == "none":
                self.enters(visit)
            try:
                result: Any = await self.door.app._handle(request)
            except BaseException as exception:
                result = exception
            if self.outer == "none":
                self.holds(self.exits_door, visit, result)
            if isinstance(result, asyncio.CancelledError | Doom):
                end = "cancelled" if isinstance(result, asyncio.CancelledError) else "doomed"
                return
            is_error = isinstance(result, Exception) and not isinstance(result, web.HTTPException)
            if is_error:
                end = "failed"
                result = web.Response(status=500)
            await result.prepare(request)
            sent = self.moments.now()
            await result.write_eof()
            if not is_error:
                self.holds(self.check_sent, visit)
            if visit.is_write and not 400 <= visit.writer.status < 500:
                self.writes.setdefault(visit.path, []).append((sent, self.moments.now()))
        finally:
            visit.stage = "ended"
            visit.ends.append(end)

    # -- what the model says of a request that ended

    def check_foreign(self, visit: Visit, run: Run) -> None:
        """A request was answered by another's run."""
        assert run.visit.identity == visit.identity, f"{visit} was given a run of {run.visit}"
        assert not visit.is_write
        assert may_have(run, visit, with_key=self.with_key), (
            f"{visit} was given {run.kind}, {run.looked} of {run.visit}"
        )
        assert run.begun.time > visit.entered.time - self.max_age, f"{visit} was given what is too old"
        for answered, known in self.writes.get(visit.path, ()):
            if known.tick < visit.entered.tick:
                assert run.begun.tick > answered.tick, f"{visit} was given what is from before a write"

    def check_no_answer(self, visit: Visit, result: Any) -> None:
        if isinstance(result, web.HTTPServiceUnavailable):
            assert visit.transport.closing, "turned away although its client is there"
        else:
            assert isinstance(result, asyncio.CancelledError), repr(result)
            assert visit.is_cancelled, "cancelled by nobody"

    def check_sent(self, visit: Visit) -> None:
        """An answer was sent."""
        writer, run = visit.writer, visit.given
        assert (writer.heads, writer.ends) == (1, 1)
        if run is None:
            assert writer.status == 503
            return
        assert writer.headers["X-Run"] == str(run.number)
        text = self.text_for(run, visit) if run.kind in _RETURNED else str(run.number)
        assert writer.body == (b"" if visit.method == "HEAD" else text.encode()), f"{visit} was sent {writer.body!r}"
        expected = _RETURNED[run.kind][0] if run.kind in _RETURNED else _RAISED[run.kind or ""](0).status  # type: ignore[attr-defined]
        assert writer.status == expected
        outer = [] if self.outer == "none" else [str(visit.number)]
        assert writer.headers.getall("X-Outer", []) == outer, "what is added for one is sent to another"
        ran = ["aiohttp-reduce; fwd=miss; collapsed=?0"]
        if visit.is_write or (run.visit is visit and not run.is_late):
            cache_status = [[], ran] if self.met_last_call(visit) else [[]]
        else:
            cache_status = [ran if run.visit is visit else ["aiohttp-reduce; fwd=miss; collapsed"]]
        assert writer.headers.getall("Cache-Status", []) in cache_status

    def met_last_call(self, visit: Visit) -> bool:
        """Whether it may have come in the last call of a run that was not for it, so that it ran at once itself."""
        same = [run for run in self.runs if run.visit is not visit and run.visit.identity == visit.identity]
        return not visit.is_write and any(run.ended == visit.entered.time for run in same)

    # -- what the model says while nothing happens

    def live(self) -> list[Visit]:
        return [visit for visit in self.visits if not visit.is_over]

    def reads(self) -> list[Visit]:
        return [visit for visit in self.live() if not visit.is_write]

    def others(self, visit: Visit) -> list[Visit]:
        return [one for one in self.visits if one is not visit and not one.is_over and one.identity == visit.identity]

    def active(self) -> list[Run]:
        return [run for run in self.runs if run.active and not run.told_to_end]

    def last_write(self, path: str) -> float:
        return max((answered.time for answered, _ in self.writes.get(path, ())), default=-1.0)

    def check(self) -> None:
        """Nothing is ready, and no time passes."""
        if self.broken:
            raise self.broken[0]
        assert not self.loop.problems, self.loop.problems
        assert not self.log.records, self.log.records
        now = self.loop.time()
        runs = [run for run in self.runs if run.active and not run.visit.is_write]
        waiting = [visit for visit in self.visits if visit.waits]
        for visit in waiting:
            same = [run for run in runs if run.visit.identity == visit.identity]
            assert same, f"{visit} waits for nobody"
            if now >= visit.entered.time + self.max_wait and not visit.transport.closing:
                younger = [run for run in same if run.begun.tick > visit.entered.tick]
                assert younger, f"{visit} has waited for too long"
        stats = self.middleware.stats
        reads = [visit for visit in self.visits if not visit.is_write and visit.entered.tick]
        assert stats["waiting"] == len(waiting)
        assert stats["in_flight"] == len(runs)
        assert stats["total"] == len(reads)
        assert stats["executed"] == sum(not run.visit.is_write for run in self.runs)
        assert stats["reduced"] == self.exits
        assert stats["largest_herd"] <= self.largest
        writes = sum(visit.is_write and visit.entered.tick > 0 for visit in self.visits)
        assert stats["bypassed"].get("method", 0) == writes
        failed = [run for run in self.runs if run.kind in {"error", "doom", "timeout", "lost"}]
        known = sum(not run.visit.is_write and run.visit.given is run for run in failed)
        assert known <= stats["errors"] <= len(failed)
        self.check_one_open_flight(now)

    def check_one_open_flight(self, now: float) -> None:
        counted: Counter[Any] = Counter()
        for table in self.middleware._tables.values():
            for flight in table.flights.values():
                leader: Any = getattr(flight, "subject", None) or getattr(flight, "request", None)
                visit: Visit = leader.protocol.visit
                since = max(self.last_write(visit.path), now - self.max_age)
                if flight.opened > since and not self.learned_since(flight.opened):
                    counted[visit.identity, visit.who] += 1
        assert not counted or max(counted.values()) == 1, counted

    def learned_since(self, opened: float) -> bool:
        """Whether what belongs to the identity may have changed since then."""
        return any(at >= opened or at + _LEARNED_HOLDS + 1 >= opened >= at for at in self.learned_at)

    def open_flight(self, visit: Visit) -> Flight | None:
        """The flight that this request must join, if the model is certain of one."""
        flight, now = self.flights.get(visit.identity), self.loop.time()
        if flight is None:
            return None
        run = flight.leader.run
        if run is None or not run.active or flight.leader.is_over:
            return None
        if flight.opened.time <= max(now - self.max_age, self.last_write(visit.path)):
            return None
        if self.passes_until.get(visit.identity, 0.0) > now or self.learned_since(flight.opened.time):
            return None
        return flight

    def go(self, passes: int | None) -> bool:
        """Let the loop run; whether nothing was under way before and nothing is now."""
        Middleware.steps += 1
        was_settled = self.is_settled
        if passes is None:
            self.loop.settle()
            self.is_settled = True
            self.check()
        else:
            for _ in range(passes):
                self.loop.run_pass()
            self.is_settled = False
        if was_settled and self.is_settled:
            return True
        self.flights.clear()
        return False

    def visit(self, method: str, target: str, who: Who) -> Visit:
        visit = Visit(len(self.visits), method, target, who, with_key=self.with_key)
        request, visit.transport, visit.writer = request_of(visit, self.loop, method, target, who.headers)
        self.visits.append(visit)
        Middleware.visits_made += 1
        visit.task = self.loop.create_task(self.serve(visit, request))
        visit.task.add_done_callback(lambda task: self.has_ended(visit, task))
        return visit

    def has_ended(self, visit: Visit, task: asyncio.Task[None]) -> None:
        if not visit.ends:
            visit.ends.append("never begun")
        elif not task.cancelled() and (exception := task.exception()) is not None:
            self.broken.append(AssertionError(f"{visit}: {exception!r}"))

    # -- what happens

    @precondition(lambda self: len(self.live()) < _MOST_AT_ONCE)
    @rule(
        place=st.sampled_from(_TARGETS),
        who=_who,
        method=st.sampled_from([*["GET"] * 8, "HEAD"]),
        size=st.sampled_from([1, 2, 3, 5]),
        at_once=st.sampled_from([*[None] * 9, "ok", "set-cookie", "error"]),
        is_stubborn=st.sampled_from([False, False, False, True]),
        passes=_passes,
    )
    def come(
        self,
        place: str,
        who: Who,
        method: str,
        size: int,
        at_once: str | None,
        is_stubborn: bool,
        passes: int | None,
    ) -> None:
        """Some requests come at once, that are the same."""
        visits = [self.visit(method, place, who) for _ in range(size)]
        for visit in visits:
            visit.at_once = at_once
            visit.is_stubborn = is_stubborn
        first = visits[0]
        flight = self.open_flight(first)
        runs = [run for run in self.runs if run.active and run.visit.identity == first.identity]
        is_alone = not runs and not any(visit not in visits for visit in self.others(first))
        if not self.go(passes):
            return
        if flight is not None:
            assert all(visit.run is None and visit.waits for visit in visits), "they do not wait for the run"
            flight.members += visits
            Middleware.joined += size
            return
        if is_alone:
            assert first.run is not None, "it does not run at once"
        now, apart = self.loop.time(), self.passes_until.get(first.identity, 0.0) > self.loop.time()
        joinable = self.max_age > 0 and self.last_write(first.path) < now and not apart
        if at_once is None and joinable and not self.learned_since(now):
            assert [visit.run is not None for visit in visits].count(True) <= 1, "each runs by itself"
            leaders = [visit for visit in visits if visit.run is not None and visit.run.active]
            if leaders:
                assert len(leaders) + sum(visit.waits for visit in visits) == size
                flight = self.flights[first.identity] = Flight(leaders[0])
                flight.members = [visit for visit in visits if visit is not leaders[0]]
                Middleware.joined += size - 1

    @precondition(lambda self: 0 < len(self.reads()) < _MOST_AT_ONCE)
    @rule(
        index=_index,
        first=st.sampled_from(["", "", "wait", "wait", "write", "forget", "end", "look"]),
        seconds=st.sampled_from([0.9, 1.0, 2.0, 3.0]),
        size=st.sampled_from([1, 2, 3, 5]),
        is_stubborn=st.sampled_from([False, False, False, True]),
        kind=_kind,
        differs=st.sampled_from([0, 0, 1, 2, 3, 3]),
        passes=_passes,
    )
    def come_again(
        self,
        index: int,
        first: str,
        seconds: float,
        size: int,
        is_stubborn: bool,
        kind: str,
        differs: int,
        passes: int | None,
    ) -> None:
        """Something happens, and some come who ask for what another one still waits for, or nearly the same."""
        reads = self.reads()
        like = reads[index % len(reads)]
        if first == "wait":
            self.wait(seconds)
        elif first == "write":
            self.write("POST", like.target, "ok", None)
            self.commit(-1, None)
        elif first == "forget":
            self.forget(like.path, None)
        elif first == "look":
            self.looks = ("X-Real-IP",) if self.looks else ("User-Agent",)
        elif first == "end" and self.active():
            self.end(index, kind, "", None)
        self.come(
            like.target, like.who.but(differs) if differs else like.who, like.method, size, None, is_stubborn, passes
        )

    @precondition(lambda self: len(self.live()) < _MOST_AT_ONCE)
    @rule(
        method=st.sampled_from(["POST", "DELETE", "BREW"]),
        place=st.sampled_from(_TARGETS),
        at_once=st.sampled_from([None, "ok", "ok", "refused", "missing", "error", "gone"]),
        passes=_passes,
    )
    def write(self, method: str, place: str, at_once: str | None, passes: int | None) -> None:
        """An unsafe request comes."""
        self.visit(method, place, Who((None, "x", "1", "s"))).at_once = at_once
        self.go(passes)

    @precondition(lambda self: self.active())
    @rule(index=_index, kind=_kind, later=st.sampled_from(["", "", "after "]), passes=_passes)
    def end(self, index: int, kind: str, later: str, passes: int | None) -> None:
        """A run of the handler ends by itself."""
        runs = self.active()
        run = runs[index % len(runs)]
        flight = self.flights.get(run.visit.identity)
        members = []
        if flight is not None and flight.leader is run.visit:
            # Those that still wait for it; one that waited too long may run as well.
            here = [visit for visit in flight.members if visit.stage in {"door", "handler"}]
            members = [visit for visit in here if not visit.is_cancelled]
            del self.flights[run.visit.identity]
        run.ending.set_result(later + kind)
        if not self.go(passes) or run.is_left:
            return
        for visit in members:
            if may_have(run, visit, with_key=self.with_key):
                assert visit.given is run, f"{visit} was not given what it may have"
            else:
                assert visit.run is not None, f"{visit} does not run although it was turned away"

    @precondition(lambda self: self.live())
    @rule(index=_index, closes=st.booleans(), passes=_passes)
    def cancel(self, index: int, closes: bool, passes: int | None) -> None:
        """A request is cancelled, wherever it is."""
        visits = self.live()
        visit = visits[index % len(visits)]
        flight = self.flights.get(visit.identity)
        heirs: list[Visit] = []
        if flight is not None and flight.leader is visit and visit.stage == "handler":
            del self.flights[visit.identity]
            heirs = [one for one in flight.members if one.waits and not one.is_cancelled]
        overdue = self.loop.time() - self.max_wait
        runs_before = len(self.runs)
        visit.is_cancelled = True
        visit.transport.closing = visit.transport.closing or closes
        if visit.run is not None and visit.run.active:
            visit.run.is_left = True
        visit.task.cancel()
        if not self.go(passes):
            return
        assert visit.is_over or visit.is_stubborn or self.outer == "slow", "it does not leave at once"
        if (
            heirs
            and all(one.at_once is None and one.entered.time > overdue for one in heirs)
            and not all(one.transport.closing for one in heirs)
        ):
            (successor,) = self.runs[runs_before:]
            # (Those that waited for too long in an older flight have joined this one as well.)
            others = [one for one in self.others(visit) if one.entered.time <= overdue]
            assert successor.visit in heirs + others
            assert not successor.visit.transport.closing, "one takes over whose client is gone"

    def led(self) -> list[Flight]:
        """The flights that the model is certain of whose leader's handler runs, and for which others wait."""
        return [
            flight
            for flight in self.flights.values()
            if flight.leader.stage == "handler" and any(one.waits for one in flight.members)
        ]

    @precondition(lambda self: self.led())
    @rule(index=_index, gone=st.sets(st.integers(0, 5), max_size=4), then=st.sampled_from(["", "end", "heir", "heir"]))
    def leave_flight(self, index: int, gone: set[int], then: str) -> None:
        """Some clients of a herd leave, then who leads it; its heir may be next, or end."""
        flights = self.led()
        flight = flights[index % len(flights)]
        waiting = [one for one in flight.members if one.waits]
        for number in sorted(gone):
            waiting[number % len(waiting)].transport.closing = True
        runs_before = len(self.runs)
        self.cancel(self.live().index(flight.leader), False, None)
        for run in [run for run in self.runs[runs_before:] if run.active and not run.told_to_end]:
            if then == "heir":
                self.cancel(self.live().index(run.visit), False, None)
            elif then == "end":
                run.ending.set_result("ok")
                self.go(None)

    def elsewhere(self) -> str:
        """A target that nobody has asked for, once nothing is under way: nothing that went before matters there."""
        self.go(None)
        self.places += 1
        return f"/elsewhere/{self.places}"

    @precondition(lambda self: len(self.live()) <= _MOST_AT_ONCE // 2)
    @rule(who=_who, size=st.sampled_from([3, 4, 5]), stays=_index, in_one_pass=st.booleans())
    def all_but_one_leave(self, who: Who, size: int, stays: int, in_one_pass: bool) -> None:
        """A herd comes, the clients of all that wait but one leave, then who leads it: that one is the heir.

        Or who leads it leaves first, and the heir of the very moment is among those who leave.
        """
        target = self.elsewhere()
        self.come(target, who, "GET", size, None, False, None)
        flights = [flight for flight in self.led() if flight.leader.target == target]
        if not flights:
            return
        leader, waiting = flights[0].leader, flights[0].members
        gone = set(range(size - 1)) - {stays % (size - 1)}
        if not in_one_pass:
            self.leave_flight(self.led().index(flights[0]), gone, "end")
            return
        self.cancel(self.live().index(leader), False, 1)
        for number in gone:
            self.cancel(self.live().index(waiting[number]), False, 0)
        self.go(None)

    @precondition(lambda self: len(self.live()) <= _MOST_AT_ONCE // 2)
    @rule(by=st.sampled_from(["user", "tenant"]), order=st.permutations(range(3)), ends=st.integers(0, 2))
    def different_ones_meet(self, by: str, order: list[int], ends: int) -> None:
        """Three that differ in their user, or in `key` alone, ask for the same; one ends, and all come again."""
        target = self.elsewhere()
        if by == "tenant" and self.with_key:
            they = [Who(("bob", "x", "1", "stu"[number])) for number in order]
        else:
            they = [Who(((None, "alice", "bob")[number], "x", "1", "s")) for number in order]
        come = [self.comes(target, who) for who in they]
        self.end_run(come[ends])
        come += [self.comes(target, who) for who in they]
        for visit in come:
            self.end_run(visit)

    def comes(self, target: str, who: Who) -> Visit:
        self.come(target, who, "GET", 1, None, False, None)
        return self.visits[-1]

    def end_run(self, visit: Visit) -> None:
        if visit.run in self.active():
            self.end(self.active().index(visit.run), "ok", "", None)

    @precondition(lambda self: self.live())
    @rule(index=_index, passes=_passes)
    def disconnect(self, index: int, passes: int | None) -> None:
        """A client leaves, and its request is not cancelled for that."""
        visits = self.live()
        visits[index % len(visits)].transport.closing = True
        self.go(passes)

    @precondition(lambda self: self.commits_due())
    @rule(index=_index, passes=_passes)
    def commit(self, index: int, passes: int | None) -> None:
        """The outer middleware ends."""
        commits = self.commits_due()
        if commits:
            commits[index % len(commits)].set_result(None)
        self.go(passes)

    def commits_due(self) -> list[asyncio.Future[None]]:
        return [visit.commit for visit in self.live() if visit.commit is not None and not visit.commit.done()]

    @rule(path=st.sampled_from(["/a", "/b"]), passes=_passes)
    def forget(self, path: str, passes: int | None) -> None:
        """Somebody forgets a path by hand."""
        now = self.moments.now()
        self.writes.setdefault(path, []).append((now, now))
        self.middleware.forget(path)
        self.go(passes)

    @rule(seconds=st.sampled_from([0.0001, 0.002, 0.5, 0.9, 1.0, 1.1, 2.0, 3.0, 5.0, 7.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.loop.settle()
        self.loop.advance(seconds)
        self.go(None)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            self.end_all()
        finally:
            for logger in self.loggers:
                logger.removeHandler(self.log)
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_pass()
            self.loop.close()

    def end_all(self) -> None:
        """Every handler ends: so does every request, and nothing is left."""
        self.flights.clear()
        for _ in range(3 * len(self.visits) + 3):
            self.loop.settle()
            self.check()
            if not self.live():
                break
            for visit in self.live():
                if visit.run is not None and visit.run.active and not visit.run.told_to_end:
                    visit.run.ending.set_result("ok")
                if visit.commit is not None and not visit.commit.done():
                    visit.commit.set_result(None)
        assert not self.live(), "some never end"
        assert all(len(visit.ends) == 1 for visit in self.visits)
        assert all(
            visit.ends in (["cancelled"], ["never begun"]) or visit.given or visit.writer.status
            for visit in self.visits
        )
        self.loop.advance(self.max_age + self.max_wait)
        self.check()
        assert self.door.nothing_is_left()
        assert not self.middleware._settings.late
        assert not asyncio.all_tasks(self.loop)
        assert self.loop.next_timer() == float("inf"), "a timer is left"
        stats = self.middleware.stats
        Middleware.reduced += stats["reduced"]
        Middleware.takeovers += stats["takeovers"]


_SETTINGS = settings(
    database=None,
    deadline=None,
    stateful_step_count=40,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@pytest.mark.filterwarnings("ignore:It is recommended to use web:Warning")
def test_the_middleware_does_what_the_model_says() -> None:
    before = Middleware.joined, Middleware.reduced, Middleware.takeovers
    run_state_machine_as_test(Middleware, settings=settings(_SETTINGS, max_examples=100, derandomize=True))
    joined, reduced, takeovers = Middleware.joined, Middleware.reduced, Middleware.takeovers
    figures = joined - before[0], reduced - before[1], takeovers - before[2]
    assert all(figure >= least for figure, least in zip(figures, (10, 20, 3), strict=True)), f"{figures} show nothing"


def main() -> None:
    examples, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    began, done = time.monotonic(), 0
    while done < examples:
        block = min(500, examples - done)
        machine = seed(first + done)(type("Middleware", (Middleware,), {}))
        run_state_machine_as_test(machine, settings=settings(_SETTINGS, max_examples=block))
        done += block
        sys.stdout.write(
            f"{done} examples, {Middleware.steps} steps, {Middleware.visits_made} requests, {Middleware.joined} joined"
            f" as foretold, {Middleware.reduced} reduced, {Middleware.takeovers} takeovers,"
            f" {time.monotonic() - began:.0f} s\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
