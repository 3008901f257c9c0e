"""The rows that show how cost grows: with identities, headers and routes (`bench.calls`, without sockets), and with
followers and the size of bodies (from servers).

Each is to grow linearly or better. A row lists the cost by size; it is per call or per client, so that it stays level
where the whole grows linearly, but for bodies and for the stats, where it is the size itself that costs.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import Any, Final

from . import calls
from .curve import Curve, extrapolated, level, per_unit
from .herd import Herd, percentile
from .processes import Server
from .report import Row, Target, duration, mebibytes, microseconds, milliseconds
from .serving import Field, all_servers
from .stream_load import Load, Reader
from .streams import check_runs, growth, serving

_MIB: Final = 2**20
_OPEN: Final = (1, 100, 10_000)
_HEADERS: Final = (5, 10, 25, 50, 100)
_ROUTES: Final = (1, 10, 100, 1_000, 10_000)
_READERS: Final = 20
_TRIES: Final = 3
# No two herds ask for the same.
_NUMBERS: Final = count()
_DOORS: Final = ("reduce", "no-op")
_SERVERS: Final = ("reduce", "plain")

Call = Callable[[str, int], Coroutine[Any, Any, float]]

CALLS: Final[Sequence[tuple[Call, Curve]]] = (
    (
        calls.beside_targets,
        Curve("a call beside N open ones, each to a target of its own", _OPEN, _DOORS, microseconds, level(100)),
    ),
    (
        calls.beside_identities,
        Curve("a call beside N open ones to the same target", _OPEN, _DOORS, microseconds, level(100)),
    ),
    (calls.with_headers, Curve("a call with N headers", _HEADERS, _DOORS, microseconds, level(5))),
    (
        calls.following_with_headers,
        Curve("a follower with N headers", _HEADERS, _DOORS, microseconds, extrapolated(25)),
    ),
    (
        calls.with_routes,
        # Not linearly at all, but what is known of each of 10,000 routes no longer fits into the processor's caches.
        Curve("a call beside N routes in the stats", _ROUTES, _DOORS, microseconds, level(100), Target(2.0)),
    ),
    (calls.stats_of_routes, Curve("the stats of N routes", _ROUTES, ("reduce",), duration, per_unit(100))),
)

FOLLOWERS: Final = Curve(
    "herd of N: CPU / request", (1, 10, 100, 1_000, 10_000), _SERVERS, microseconds, level(100), beyond="plain"
)

# A small herd is asked again and again: so many requests in all.
_REQUESTS: Final = 200

_BODIES: Final = (0, 2**10, 2**16, _MIB, 4 * _MIB, 16 * _MIB)


def _body_curve(to: str, what: str) -> Curve:
    return Curve(f"N bytes to {to}: {what}", _BODIES, _SERVERS, duration, per_unit(4 * _MIB), beyond="plain")


# By the number of readers: the CPU of the server for each of them, and the time that all take.
BODIES: Final = {
    _READERS: (
        _body_curve(f"{_READERS} followers", "CPU for each"),
        _body_curve(f"{_READERS} followers", "first byte to last"),
    ),
    1: (_body_curve("one", "CPU"), _body_curve("one", "first byte to last")),
}
LATENCY: Final = Curve(
    "herd of N, handler takes 50 ms: p99",
    (1, 10, 50, 200, 1_000),
    ("reduce", "plain", "async_reduce", "varnish", "nginx"),
    milliseconds,
    level(10),
    target=None,
    seldom={"nginx": 3},
)
MEMORY: Final = Curve(
    "N followers of 10 MiB: growth of memory", (1, 10, 25, 50), _SERVERS, mebibytes, level(10), target=None
)


Works = Iterator[tuple[str, Callable[[], Iterator[Row]]]]


def calls_works(rounds: int, largest: int) -> Works:
    """What each row without sockets is, and how to measure it at sizes up to the largest."""
    for call, curve in CALLS:
        yield curve.what, partial(curve.upto(largest).rows, _run(call), rounds)


def server_works(rounds: int, largest: int) -> Works:
    """The same of the rows with sockets; those of bodies do not end there."""
    with all_servers() as running:
        yield LATENCY.what, partial(_latencies, running, rounds, largest)
        yield FOLLOWERS.what, partial(FOLLOWERS.upto(largest).rows, partial(_follower, running), min(rounds, 2))
    yield MEMORY.what, partial(MEMORY.upto(largest // 10).rows, _memory, 1)  # slow, and the same each time
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serving(name)) for name in _SERVERS}
        for readers, (cpu, _) in BODIES.items():
            yield cpu.what, partial(_bodies, servers, readers, rounds)


def _run(call: Call) -> Callable[[str, int], float]:
    return lambda name, size: asyncio.run(call(name, size))


def _latencies(running: Field, rounds: int, largest: int) -> Iterator[Row]:
    """The rows of those that run, and a line for each that does not."""
    yield from LATENCY.upto(largest).among(running.servers).rows(partial(_latency, running), rounds)
    for name, why in running.missing.items():
        yield Row(name, missing=why, under=LATENCY.what)


def _latency(servers: Field, name: str, size: int) -> float:
    """What the slowest of a herd but one in a hundred waits."""
    with Herd(servers[name], size) as herd:
        herd.ask("/constant/1")
        return percentile(herd.ask(f"/slow?n={next(_NUMBERS)}"), 0.99)


def _memory(name: str, size: int) -> float:
    """What a server grows by at most while so many have the same large answer."""
    with serving(name) as server:
        readers = [Reader(f"/whole?size={10 * _MIB}&wait=0.3") for _ in range(size)]
        return growth(server, readers, 1 if name == "reduce" else size)


def _follower(servers: Field, name: str, size: int) -> float:
    """CPU of the server for each request of a herd. Raises RuntimeError where it took more than one run."""
    server = servers[name]
    target = f"/held/{20 + size // 5}"  # duration, within which all of them are to come
    repeats = max(1, min(20, _REQUESTS // size))
    with Herd(server, size) as herd:
        herd.ask("/constant/1")  # all connections are taken
        before = server.runs()
        cost = sum(herd.cpu_of(f"{target}?n={next(_NUMBERS)}") for _ in range(repeats)) / size / repeats
    check_runs(server, before, repeats if name == "reduce" else repeats * size)
    return cost


def _bodies(servers: Mapping[str, Server], readers: int, rounds: int) -> Iterator[Row]:
    """The rows of the CPU, and those of the time, of the same answers."""
    cpu, time = BODIES[readers]
    times: deque[float] = deque()

    def measure(name: str, size: int) -> float:
        # To one it takes little, and so chance much: the best of some.
        found = [_body(servers[name], readers, size) for _ in range(1 if readers > 1 else _TRIES)]
        times.append(min(seconds for _, seconds in found))
        return min(used for used, _ in found)

    yield from cpu.rows(measure, rounds)
    yield from time.rows(lambda name, size: times.popleft(), rounds)  # both ask in the same order


def _body(server: Server, readers: int, size: int) -> tuple[float, float]:
    """CPU seconds of the server for each reader, and seconds from the first byte to the last."""
    target = f"/whole?size={size}&wait=0.05&kept=1&n={next(_NUMBERS)}"
    before = server.runs()
    with Load(server, [Reader(target) for _ in range(readers)]) as load:
        used = server.cpu()
        seconds = load.run()
        used = server.cpu() - used
    check_runs(server, before, 1 if server.name == "reduce" else readers)
    return used / readers, seconds
