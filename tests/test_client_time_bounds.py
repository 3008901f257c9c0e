"""Nobody waits for ever because of another call, and nobody is answered from before a write that was answered."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from aiohttp_reduce import ReducingClientSession, reduce_client_middleware
from tests.harness import eventually
from tests.upstream import Exchange, OpenSession, StartUpstream, nothing_is_left, reducer_of, waiting
from tests.virtual import VirtualLoop
from tests.wire import FarEnd, Line, run_on_the_wire

# Timers fire in steps (seconds).
EPSILON = 0.05
NO_TIMEOUT = aiohttp.ClientTimeout(total=None)


class Traffic:
    """Calls at given times, the n-th request being answered `duration(n)` seconds after it was sent."""

    def __init__(self, *, duration: Callable[[int], float], max_age: float, max_wait: float) -> None:
        self.duration = duration
        self.max_age = max_age
        self.max_wait = max_wait
        self.sent: list[float] = []
        self.latencies: dict[float, float] = {}
        self.answers: dict[float, str] = {}
        self.hung_up: list[int] = []

    def run(self, arrivals: list[float], *, patience: float = 1000.0) -> None:
        async def answer(line: Line, number: int) -> None:
            self.sent.append(asyncio.get_running_loop().time() - self.begin)
            try:
                await asyncio.sleep(min(self.duration(number), 10**6))
            except asyncio.CancelledError:
                self.hung_up.append(number)
                raise
            await line.respond(b"%d" % number)

        async def main(loop: VirtualLoop, session: ReducingClientSession, far_end: FarEnd) -> None:
            self.begin = loop.time()

            async def visit(at: float) -> None:
                await asyncio.sleep(at)
                arrived = loop.time()
                async with session.get("http://far.end/") as response:
                    self.answers[at] = await response.text()
                self.latencies[at] = loop.time() - arrived

            tasks = [asyncio.create_task(visit(at)) for at in arrivals]
            _, pending = await asyncio.wait(tasks, timeout=patience)
            for task in pending:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes) == len(pending)
            assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)

        run_on_the_wire(answer, main, max_age=self.max_age, max_wait=self.max_wait, timeout=NO_TIMEOUT)


def every(step: float, until: float, start: float = 0.0) -> list[float]:
    """Arrival times."""
    return [round(start + number * step, 6) for number in range(int((until - start) / step))]


def test_a_flight_admits_calls_for_max_age_seconds() -> None:
    traffic = Traffic(duration=lambda number: 10.0, max_age=1.0, max_wait=100.0)
    traffic.run([0.0, 0.5, 0.9, 1.1, 1.9, 2.2])
    assert traffic.sent == pytest.approx([0.0, 1.1, 2.2], abs=EPSILON)
    assert [traffic.answers[at] for at in sorted(traffic.answers)] == ["1", "1", "1", "2", "2", "3"]


def test_with_max_age_0_nobody_joins() -> None:
    traffic = Traffic(duration=lambda number: 1.0, max_age=0.0, max_wait=100.0)
    traffic.run([0.0, 0.0, 0.5])
    assert len(traffic.sent) == 3


def test_without_limits_all_wait_for_one() -> None:
    traffic = Traffic(duration=lambda number: 500.0, max_age=math.inf, max_wait=math.inf)
    traffic.run(every(10.0, 400.0))
    assert len(traffic.sent) == 1
    assert set(traffic.answers.values()) == {"1"}


def test_a_first_request_that_hangs_holds_nobody_up_for_longer_than_max_wait() -> None:
    takes = 1.5
    traffic = Traffic(duration=lambda number: math.inf if number == 1 else takes, max_age=1.0, max_wait=2.0)
    traffic.run(every(0.05, 10.0), patience=60.0)
    # All but the one that sent it, which waits as long as its own request takes.
    assert set(every(0.05, 10.0)) - set(traffic.latencies) == {0.0}
    assert max(traffic.latencies.values()) <= 2.0 + takes + EPSILON
    for one, other in zip(traffic.sent, traffic.sent[1:], strict=False):
        assert other - one >= 1.0 - EPSILON


def test_an_upstream_that_always_hangs_costs_one_request_in_every_max_age() -> None:
    traffic = Traffic(duration=lambda number: math.inf, max_age=1.0, max_wait=2.0)
    traffic.run(every(0.05, 10.0), patience=10.0)
    assert traffic.latencies == {}
    for one, other in zip(traffic.sent, traffic.sent[1:], strict=False):
        assert other - one >= 1.0 - EPSILON
    assert sorted(traffic.hung_up) == list(range(1, len(traffic.sent) + 1))


@pytest.mark.parametrize(
    "arrivals",
    [
        every(0.1, 12.0),
        every(0.7, 20.0),
        every(2.9, 30.0),
        [0.0, 0.5, 2.4, 2.6, 3.0, 5.1],
        [0.0, 0.1, 0.2, 0.3, 0.4, 9.9],
        [0.0, 0.99, 1.01, 1.99, 2.01, 4.5, 4.6, 7.2],
    ],
    ids=lambda arrivals: f"{len(arrivals)}-calls-to-{arrivals[-1]}",
)
@pytest.mark.parametrize(("max_age", "max_wait"), [(1.0, 2.0), (2.0, 1.0), (0.5, 0.5), (0.0, 0.1)])
def test_an_upstream_slower_than_max_wait_and_max_age_starves_nobody(
    arrivals: list[float], max_age: float, max_wait: float
) -> None:
    traffic = Traffic(duration=lambda number: 5.0, max_age=max_age, max_wait=max_wait)
    traffic.run(arrivals)
    assert len(traffic.latencies) == len(arrivals)
    assert max(traffic.latencies.values()) <= 5.0 + EPSILON


def test_after_max_wait_the_first_of_two_outcomes_wins() -> None:
    # The younger flight is faster; the elder goes on for the one that sent it.
    traffic = Traffic(duration=lambda number: 10.0 if number == 1 else 1.0, max_age=1.0, max_wait=3.0)
    traffic.run([0.0, 0.5])
    assert traffic.sent == pytest.approx([0.0, 3.5], abs=EPSILON)
    assert traffic.answers == {0.0: "1", 0.5: "2"}
    assert traffic.latencies[0.5] == pytest.approx(4.0, abs=EPSILON)
    assert traffic.hung_up == []

    # The elder is faster after all; nobody else is in the younger one, which is given up.
    traffic = Traffic(duration=lambda number: 4.0 if number == 1 else 10.0, max_age=1.0, max_wait=3.0)
    traffic.run([0.0, 0.5])
    assert traffic.answers == {0.0: "1", 0.5: "1"}
    assert traffic.hung_up == [2]

    # As before, but somebody joined the younger one.
    traffic = Traffic(duration=lambda number: 4.0 if number == 1 else 10.0, max_age=1.0, max_wait=3.0)
    traffic.run([0.0, 0.5, 3.8])
    assert traffic.answers == {0.0: "1", 0.5: "1", 3.8: "2"}
    # (That one, too, waited so long that it sent another.)
    assert traffic.hung_up == [3]


def test_after_max_wait_a_call_joins_a_younger_flight_that_is_open() -> None:
    traffic = Traffic(duration=lambda number: 10.0 if number == 1 else 2.0, max_age=1.0, max_wait=3.0)
    traffic.run([0.0, 0.5, 3.0])
    assert len(traffic.sent) == 2
    assert traffic.answers == {0.0: "1", 0.5: "2", 3.0: "2"}
    assert traffic.latencies[0.5] == pytest.approx(4.5, abs=EPSILON)


def test_a_herd_that_has_waited_max_wait_starts_one_flight_together() -> None:
    traffic = Traffic(duration=lambda number: math.inf if number == 1 else 1.0, max_age=1.0, max_wait=3.0)
    traffic.run([0.0, *[0.5] * 50], patience=60.0)
    assert len(traffic.sent) == 2
    assert traffic.latencies == {0.5: pytest.approx(4.0, abs=EPSILON)}


# Read your own writes.


class Store:
    """An upstream that answers GET when it is let, with what it read when it was asked; other methods write."""

    def __init__(self) -> None:
        self.value = "old"
        self.gate = asyncio.Event()
        self.written = asyncio.Event()
        self.written.set()
        self.status = "200 OK"
        self.breaks = False
        self.reads = 0

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.method == "GET":
            read = self.value
            self.reads += 1
            await self.gate.wait()
            await exchange.respond(read.encode())
            return
        await self.written.wait()
        self.value = "new"
        if self.breaks:
            exchange.drop()
        else:
            await exchange.respond(b"", self.status)


async def text_of(session: Any, url: str) -> str:
    async with session.get(url) as response:
        return await response.text()  # type: ignore[no-any-return]


def getting(session: Any, url: str) -> "asyncio.Task[str]":
    return asyncio.create_task(text_of(session, url))


@pytest.mark.parametrize("through", ["the-wrapper", "a-genuine-session", "a-given-session"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PURGE"])
async def test_a_get_after_an_answered_write_is_not_answered_from_before_it(
    upstream: StartUpstream, reducing: OpenSession, method: str, through: str
) -> None:
    store = Store()
    server = await upstream(store)
    reducer = reduce_client_middleware()
    async with aiohttp.ClientSession(middlewares=[reducer] if through == "a-genuine-session" else []) as genuine:
        session: Any = genuine
        if through == "the-wrapper":
            session = reducing()
        elif through == "a-given-session":
            session = reducing(session=genuine)
        before = getting(session, f"{server.url}/a%20b?x=1")
        other = getting(session, f"{server.url}/other")
        await server.asked(2)
        async with session.request(method, f"{server.url}/a b?y=2") as response:
            assert response.status == 200
        after = getting(session, f"{server.url}/a%20b?x=1")
        undisturbed = getting(session, f"{server.url}/other")
        await server.asked(4)
        store.gate.set()
        assert await asyncio.gather(before, after, other, undisturbed) == ["old", "new", "old", "old"]
    assert [exchange.method for exchange in server.requests] == ["GET", "GET", method, "GET"]


async def test_a_write_counts_from_its_answer_on(upstream: StartUpstream, reducing: OpenSession) -> None:
    store = Store()
    store.written.clear()
    server = await upstream(store)
    session = reducing()
    before = getting(session, server.url)
    await server.asked()
    writing = asyncio.ensure_future(session.post(server.url))
    await server.asked(2)
    meanwhile = getting(session, server.url)
    await waiting(reducer_of(session), 1)
    store.written.set()
    (await writing).release()
    after = getting(session, server.url)
    await server.asked(3)
    store.gate.set()
    assert await asyncio.gather(before, meanwhile, after) == ["old", "old", "new"]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "requests"),
    [("200 OK", 3), ("204 No Content", 3), ("303 See Other", 3), ("400 Bad", 2), ("405 No", 2), ("500 Oops", 3)],
)
async def test_a_write_that_was_refused_closes_nothing(
    upstream: StartUpstream, reducing: OpenSession, status: str, requests: int
) -> None:
    store = Store()
    store.status = status
    server = await upstream(store)
    session = reducing()
    before = getting(session, server.url)
    await server.asked()
    (await session.post(server.url, allow_redirects=False)).release()
    after = getting(session, server.url)
    await eventually(lambda: len(server.requests) == requests or session.stats["waiting"] == 1)
    store.gate.set()
    await asyncio.gather(before, after)
    assert len(server.requests) == requests


@pytest.mark.parametrize("how", ["breaks", "is-cancelled", "times-out"])
async def test_a_write_whose_end_nobody_knows_counts(upstream: StartUpstream, reducing: OpenSession, how: str) -> None:
    store = Store()
    server = await upstream(store)
    session = reducing()
    before = getting(session, server.url)
    await server.asked()
    if how == "breaks":
        store.breaks = True
        with pytest.raises(aiohttp.ClientError):
            await session.post(server.url)
    else:
        store.written.clear()
        timeout = aiohttp.ClientTimeout(total=0.05 if how == "times-out" else None)
        writing = asyncio.ensure_future(session.post(server.url, timeout=timeout))
        await server.asked(2)
        if how == "is-cancelled":
            writing.cancel()
        outcome = (await asyncio.gather(writing, return_exceptions=True))[0]
        assert isinstance(outcome, (TimeoutError, asyncio.CancelledError))
    after = getting(session, server.url)
    await server.asked(3)
    store.gate.set()
    await asyncio.gather(before, after)
    assert len(server.requests) == 3


async def test_a_write_that_was_never_sent_closes_nothing(upstream: StartUpstream, reducing: OpenSession) -> None:
    store = Store()
    server = await upstream(store)
    session = reducing(connector=aiohttp.TCPConnector(limit=1))
    before = getting(session, server.url)
    await server.asked()
    with pytest.raises(TimeoutError):
        await session.post(server.url, timeout=aiohttp.ClientTimeout(total=0.02))
    after = getting(session, server.url)
    await waiting(reducer_of(session), 1)
    store.gate.set()
    assert await asyncio.gather(before, after) == ["old", "old"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("how", ["write", "forget"])
async def test_a_body_on_its_way_is_not_joined_after_a_write(
    upstream: StartUpstream, reducing: OpenSession, how: str
) -> None:
    rest = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        if exchange.method != "GET":
            await exchange.respond(b"")
            return
        await exchange.head(Content_Length=4)
        await exchange.send(b"%02d" % exchange.number)
        await rest.wait()
        await exchange.send(b"--")

    server = await upstream(answer)
    session = reducing()
    paths = ["/a?1", "/a?2", "/b"]
    first = [await session.get(server.url + path) for path in paths]
    if how == "write":
        (await session.put(f"{server.url}/a?3")).release()
    else:
        session.forget(f"{server.url}/a?3")
    sent = len(server.requests)
    second = [await session.get(server.url + path) for path in paths]
    assert len(server.requests) == sent + 2
    rest.set()
    numbers = [int((await response.read())[:2]) for response in [*first, *second]]
    assert numbers == [1, 2, 3, sent + 1, sent + 2, 3]
    await eventually(lambda: nothing_is_left(reducer_of(session)))


async def test_another_host_or_port_is_another_place(upstream: StartUpstream, reducing: OpenSession) -> None:
    store, other_store = Store(), Store()
    server, other = await upstream(store), await upstream(other_store)
    session = reducing()
    tasks = [getting(session, f"{server.url}/a")]
    await server.asked()
    (await session.post(f"{other.url}/a")).release()
    tasks.append(getting(session, f"{server.url}/a"))
    await waiting(reducer_of(session), 1)
    store.gate.set()
    assert await asyncio.gather(*tasks) == ["old", "old"]
    assert len(server.requests) == 1


# By hand.


@pytest.mark.parametrize("form", ["/api/a b", "/api/a%20b?whatever", "{}/api/a%20b#there", "a b"])
async def test_forget_takes_urls_as_calls_do(upstream: StartUpstream, reducing: OpenSession, form: str) -> None:
    store = Store()
    server = await upstream(store)
    session = reducing(f"{server.url}/api/")
    before = getting(session, "a b?x=1")
    await eventually(lambda: store.reads == 1)
    store.value = "new"
    session.forget(form.format(server.url))
    after = getting(session, "a b?x=1")
    await server.asked(2)
    store.gate.set()
    assert await asyncio.gather(before, after) == ["old", "new"]
    assert len(server.requests) == 2


async def test_forget_of_another_path_disturbs_nobody(upstream: StartUpstream, reducing: OpenSession) -> None:
    store = Store()
    server = await upstream(store)
    session = reducing()
    tasks = [getting(session, f"{server.url}/a")]
    await server.asked()
    for path in ("/", "/a/", "/A", "/b"):
        session.forget(server.url + path)
    tasks.append(getting(session, f"{server.url}/a"))
    await waiting(reducer_of(session), 1)
    store.gate.set()
    assert await asyncio.gather(*tasks) == ["old", "old"]
    assert len(server.requests) == 1


@pytest.mark.parametrize("wrong", [None, 1, b"http://h/", ["http://h/"]], ids=repr)
async def test_forget_refuses_what_is_no_url(reducing: OpenSession, wrong: Any) -> None:
    session = reducing()
    for forget in (session.forget, reducer_of(session).forget):
        with pytest.raises(TypeError, match="url"):
            forget(wrong)


@pytest.mark.parametrize("wrong", ["", "/relative", "relative", "?x"])
async def test_forget_refuses_a_relative_url_without_a_base(reducing: OpenSession, wrong: str) -> None:
    session = reducing()
    for forget in (session.forget, reducer_of(session).forget):
        with pytest.raises(ValueError, match="url"):
            forget(wrong)


async def test_many_writes_cost_bounded_memory(upstream: StartUpstream, reducing: OpenSession) -> None:
    store = Store()
    server = await upstream(store)
    session = reducing(max_age=1000.0)
    before = getting(session, f"{server.url}/a")
    await server.asked()
    for number in range(25_000):
        session.forget(f"http://host/{number}")
    (table,) = reducer_of(session)._tables.by_loop.values()
    assert len(table.writes) <= 10_000
    # So many that one cannot tell any more: a newcomer is sent anew.
    after = getting(session, f"{server.url}/a")
    await server.asked(2)
    store.gate.set()
    await asyncio.gather(before, after)
    # With no flight open they cost nothing.
    await eventually(lambda: nothing_is_left(reducer_of(session)))
    known = len(table.writes)
    for number in range(100):
        session.forget(f"http://other/{number}")
    assert len(table.writes) <= known
