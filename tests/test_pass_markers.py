"""Section 3, pass markers: nobody waits for what was found a moment ago to be for one alone, and not for long."""

import asyncio
from typing import Any
from unittest import mock

import pytest
from aiohttp import web

from aiohttp_reduce import reduce_middleware
from aiohttp_reduce.server.passes import PassMarkers
from aiohttp_reduce.targets import TargetTable
from tests.harness import Gate, Start, app_with, eventually
from tests.herds import Herds, herds

THREE: list[Any] = [{}, {}, {}]
WAITED, JOINED = "aiohttp-reduce; fwd=miss; collapsed=?0", "aiohttp-reduce; fwd=miss; collapsed"


class Answers:
    """What the handler answers, until told otherwise."""

    def __init__(self, cache_control: str) -> None:
        self.cache_control = cache_control

    def __call__(self, request: web.Request) -> web.Response:
        return web.Response(headers={"Cache-Control": self.cache_control})


def markers(herd: Herds) -> int:
    return sum(len(table.passes) for table in herd.middleware._tables.values())


async def test_the_next_herd_starts_in_parallel(serve: Start) -> None:
    herd = await herds(serve, Answers("no-store"))
    runs, replies = await herd.meet(THREE)
    assert (runs, [reply.collapsed for reply in replies]) == (3, [None, WAITED, WAITED])
    runs, replies = await herd.meet(THREE)
    assert (runs, [reply.collapsed for reply in replies]) == (3, [None, None, None])
    assert herd.unshared == {"no-store": 2, "pass-marker": 3}
    assert (herd.server.figure("total"), herd.server.figure("executed")) == (6, 6)


async def test_one_that_nobody_waited_for_sets_none(serve: Start) -> None:
    herd = await herds(serve, Answers("no-store"))
    for _ in range(3):
        await herd.meet([{}])
    assert markers(herd) == 0
    _, replies = await herd.meet(THREE)
    assert [reply.collapsed for reply in replies] == [None, WAITED, WAITED]


async def test_the_first_shareable_answer_deletes_it(serve: Start) -> None:
    answers = Answers("no-store")
    herd = await herds(serve, answers)
    await herd.meet(THREE)
    assert markers(herd) == 1
    answers.cache_control = "public"
    await herd.meet([{}])
    assert markers(herd) == 0
    runs, replies = await herd.meet(THREE)
    assert (runs, [reply.collapsed for reply in replies]) == (1, [None, JOINED, JOINED])


async def test_an_unshareable_answer_leaves_it(serve: Start) -> None:
    answers = Answers("no-store")
    herd = await herds(serve, answers)
    await herd.meet(THREE)
    answers.cache_control = "no-cache"
    await herd.meet([{}])
    assert markers(herd) == 1


async def test_those_who_were_turned_away_delete_it_if_their_own_answers_are_shareable(serve: Start) -> None:
    """One odd answer (a 429, a cookie for the first who came) does not make the next herd run in parallel."""
    answered: list[int] = []

    def answer(request: web.Request) -> web.Response:
        answered.append(429 if not answered else 200)
        return web.Response(status=answered[-1])

    herd = await herds(serve, answer)
    runs, replies = await herd.meet(THREE)
    assert (runs, [reply.status for reply in replies]) == (3, [429, 200, 200])
    assert markers(herd) == 0
    assert (await herd.meet(THREE))[0] == 1


async def test_exceptions_delete_it_too(serve: Start, caplog: pytest.LogCaptureFixture) -> None:
    answers: list[Any] = [web.HTTPUnauthorized, web.HTTPNotFound, RuntimeError]
    for kind in (1, 2):
        current = [0]
        herd = await herds(serve, lambda request, current=current: answers[current[0]]())
        await herd.meet(THREE)
        assert markers(herd) == 1
        current[0] = kind
        await herd.meet([{}])
        assert markers(herd) == 0


async def test_it_is_for_one_identity_alone(serve: Start) -> None:
    def answer(request: web.Request) -> web.Response:
        return web.Response(headers={"Cache-Control": request.headers.get("Accept", "public")})

    herd = await herds(serve, answer)
    await herd.meet([{"Accept": "no-store"}] * 3)
    assert markers(herd) == 1
    runs, replies = await herd.meet(THREE)
    assert (runs, [reply.collapsed for reply in replies]) == (1, [None, JOINED, JOINED])
    runs, _ = await herd.meet(THREE, "/?other")
    assert runs == 1


async def test_a_header_that_splits_a_herd_sets_none(serve: Start) -> None:
    def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.headers.get("User-Agent"), headers={"Vary": "Referer"})

    herd = await herds(serve, answer)
    await herd.meet([{"User-Agent": "a"}, {"User-Agent": "b"}, {"User-Agent": "a", "Referer": "/"}])
    assert herd.unshared == {"header: user-agent": 1, "vary: referer": 1}
    assert markers(herd) == 0


async def test_an_item_that_is_written_sets_one(serve: Start) -> None:
    herd = await herds(serve, lambda request: str(request.update({KEY: 1})))
    await herd.meet(THREE)
    assert markers(herd) == 1
    _, replies = await herd.meet(THREE)
    assert [reply.collapsed for reply in replies] == [None] * 3


KEY: Any = web.RequestKey("token", int) if hasattr(web, "RequestKey") else "token"


@pytest.mark.parametrize("cancelled", [False, True])
async def test_nothing_is_left_of_runs_that_pass(serve: Start, noise: Any, *, cancelled: bool) -> None:
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait(request)
        return web.Response(headers={"Cache-Control": "no-store"})

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware, handler_cancellation=cancelled)
    sent = [await server.send("/") for _ in range(3)]
    await server.waiting(2)
    gate.open()
    for one in sent:
        await one.receive()
    gate.close()
    sent = [await server.send("/") for _ in range(3)]
    await gate.entered(6)
    sent[0].abort()
    await gate.disconnected(4)
    if cancelled:
        await eventually(lambda: gate.ended == 4)
    gate.open()
    for one in sent[1:]:
        assert (await one.receive()).collapsed is None
    await eventually(server.nothing_is_left)


def a_table() -> TargetTable[Any]:
    return TargetTable(mock.Mock(), lambda: 0.0)


def test_a_marker_holds_for_a_few_seconds_from_when_it_was_set() -> None:
    table = a_table()
    passes = PassMarkers(table)
    passes.set("/", "a", now=100.0)
    assert passes.holds("/", "a", now=102.9)
    assert not passes.holds("/", "b", now=100.0)
    assert not passes.holds("/b", "a", now=100.0)
    assert not passes.holds("/", "a", now=103.0)
    assert (len(passes), passes.by_target, table.crowds) == (0, {}, {})


def test_the_oldest_marker_makes_room() -> None:
    table = a_table()
    passes = PassMarkers(table)
    for number in range(1500):
        passes.set(f"/{number}", number, now=0.0)
    assert [passes.holds(f"/{number}", number, now=0.0) for number in (499, 500, 1499)] == [False, True, True]


def test_markers_are_bounded() -> None:
    table = a_table()
    passes = PassMarkers(table)
    for number in range(5000):
        passes.set(f"/{number % 700}", number, now=0.0)
        passes.set(f"/{number % 700}", number, now=0.0)
        assert len(passes) <= 1000
        assert table.crowds == dict.fromkeys(passes.by_target, 1)
        assert passes.holds(f"/{number % 700}", number, now=0.0)
    assert sum(map(len, passes.by_target.values())) == len(passes) > 500
    for number in range(5000):
        passes.delete(f"/{number % 700}", number)
        passes.delete(f"/{number % 700}", number)
    assert (len(passes), passes.by_target, table.crowds) == (0, {}, {})


async def test_a_herd_in_parallel_at_a_marker_takes_no_longer_than_one(serve: Start) -> None:
    herd = await herds(serve, Answers("no-store"))
    await herd.meet(THREE)
    herd.gate.close()
    sent = [await herd.server.send("/") for _ in range(20)]
    await herd.gate.entered(3 + 20)  # all of them at once
    assert herd.server.figure("waiting") == 0
    herd.gate.open()
    await asyncio.gather(*[one.receive() for one in sent])
    await eventually(herd.server.nothing_is_left)
