"""The parts of a run, and how long each is measured."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec

from . import client, client_growth, growth, serving, streams
from .core import WORKS, core_row
from .report import Row

_P = ParamSpec("_P")

# What is measured, and how.
Work = tuple[str, Callable[[], Iterable[Row]]]


@dataclass(frozen=True)
class Plan:
    """How many rounds each row gets, and after how many seconds the run is stopped whatever is left.

    `distinct` rounds are for each of `instances` processes, `client_distinct` and `client_herds` for each of
    `client_instances`, `streams` for each of `stream_instances`, and `lone_streams` for each of twice as many. Sizes
    in the rows of growth end at `largest`. Without `all_rows` those are left out for which there is no target in the
    contract.
    """

    instances: int
    distinct: int
    follower: int
    slow: int
    burning: int
    compressed: int
    client_instances: int
    client_distinct: int
    client_herds: int
    client_memory: int
    core: int
    stream_memory: int
    trickled: int
    stream_instances: int
    streams: int
    lone_streams: int
    growth: int
    largest: int
    limit: int
    all_rows: bool = True


FULL = Plan(
    instances=4,
    distinct=6,
    follower=90,
    slow=30,
    burning=30,
    compressed=7,
    client_instances=4,
    client_distinct=30,
    client_herds=25,
    client_memory=3,
    core=21,
    stream_memory=3,
    trickled=5,
    stream_instances=2,
    streams=6,
    lone_streams=15,
    growth=3,
    largest=10_000,
    limit=1200,
)
QUICK = Plan(
    instances=1,
    distinct=2,
    follower=9,
    slow=6,
    burning=4,
    compressed=1,
    client_instances=1,
    client_distinct=4,
    client_herds=4,
    client_memory=1,
    core=3,
    stream_memory=1,
    trickled=2,
    stream_instances=1,
    streams=2,
    lone_streams=8,
    growth=1,
    largest=100,
    limit=59,
    all_rows=False,
)


def server_part(plan: Plan) -> Iterator[Work]:
    """The server against its peers."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, serving.all_servers() as running:
        yield "distinct GETs", partial(serving.distinct, running, folder, plan.instances, plan.distinct)
        for contest, rounds in (
            (serving.FOLLOWER, plan.follower),
            (serving.SLOW, plan.slow),
            (serving.BURNING, plan.burning),
            (serving.COMPRESSED, plan.compressed),
        ):
            yield _one(contest.what, contest.row, running, rounds)


def client_part(plan: Plan) -> Iterator[Work]:
    """The client against its peers."""
    instances = plan.client_instances
    with client.upstream() as server:
        yield _one(client.DISTINCT, client.distinct, server, instances, plan.client_distinct)
        yield _one(client.HERDS, client.herds, server, instances, plan.client_herds)
        yield _one(client.STREAMED, client.streamed, server, plan.client_memory)
        if plan.all_rows:
            yield _one(client.STALLED, client.stalled, server, plan.client_memory)


def core_part(plan: Plan) -> Iterator[Work]:
    """The core against `async_reduce` and `async-lru`."""
    for what, contest in WORKS.items():
        yield _one(what, core_row, what, contest, plan.core)


def stream_part(plan: Plan) -> Iterator[Work]:
    """Streamed answers: their memory, and their speed against an application without us."""
    for what, work in streams.MEMORY.items():
        if plan.all_rows or what in streams.PROMISED:
            yield _one(what, work, plan.stream_memory)
    if not plan.all_rows:
        return
    yield _one(streams.TRICKLED, streams.trickled, plan.trickled)
    for pace, instances, rounds in (
        (streams.SHARED, plan.stream_instances, plan.streams),
        (streams.SHARED_SMALL, plan.stream_instances, plan.streams),
        (streams.LONE, 2 * plan.stream_instances, plan.lone_streams),
    ):
        yield pace.what, partial(pace.rows, instances, rounds)


def growth_part(plan: Plan) -> Iterator[Work]:
    """How cost grows with sizes."""
    yield from growth.calls_works(plan.growth, plan.largest)
    if plan.all_rows:
        yield from client_growth.works(plan.growth, plan.largest)
        yield from growth.server_works(plan.growth, plan.largest)


def _one(what: str, measure: Callable[_P, Row], *args: _P.args, **kwargs: _P.kwargs) -> Work:
    """Work that gives one row."""
    return what, lambda: [measure(*args, **kwargs)]


PARTS: dict[str, Callable[[Plan], Iterator[Work]]] = {
    "server": server_part,
    "client": client_part,
    "core": core_part,
    "streams": stream_part,
    "growth": growth_part,
}
