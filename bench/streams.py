"""The rows of streamed answers: memory and speed of `bench.stream_app` behind our middleware, and without it.

The load (`bench.stream_load`) is in this process and never decodes what it reads. Memory is what the server process
grows by at most, over what it was after a warm-up; each measurement of it has a server of its own. Every row fails if
a reader got another number of bytes than were sent, if one of those that take a digest got others, or if the handler
did not run as often as it should have.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from .memory import reset_peak, resident
from .processes import Server, running_module
from .report import Row, Target, mebibytes, quotients, turned
from .stream_load import Load, Reader

MIB: Final = 2**20
_PIECE: Final = 64 * 1024
# What the middleware keeps by default, of one stream and of all.
_MAX_BUFFER: Final = 4 * MIB
_MAX_BUFFER_TOTAL: Final = 64 * MIB
# Seconds for which a handler lets readers come before it writes.
_WAIT: Final = 0.3

# What a server may grow by before it is stopped, so that it does not take all the memory of the machine.
_STOP_AT: Final = 1024 * MIB

_JOINING: Final = 50
_CONSUMERS: Final = 20
_IDLE: Final = 60
# What a stream may cost beside its bytes.
_BESIDE: Final = 16 * 1024
_CROWD: Final = 1_000
_BODY: Final = 10 * MIB

JOINED = f"100 MiB to {_JOINING} who join at random: growth of memory"
CONSUMED = f"256 MiB to {_CONSUMERS}, written or returned: growth of memory"
IDLE = f"{_IDLE} idle streams of 4 MiB: growth of memory beyond plain"
CROWD = f"{_CROWD:,} followers of 10 MiB: growth of memory beyond a tiny answer"
TRICKLED = f"64 MiB to {_CONSUMERS}, a first one reads 1 byte/s: time, against none"


@contextmanager
def serving(mode: str) -> Iterator[Server]:
    """A server of streams that has served some already."""
    with running_module(mode, "bench.stream_app", mode) as server:
        for number in range(2):
            for target in (
                f"/written?size={MIB}&piece={_PIECE}",
                f"/one-shot?size={MIB}&piece={_PIECE}",
                "/whole?size=100",
            ):
                read(server, [Reader(f"{target}&wait=0.02&warm={number}") for _ in range(3)])
        yield server


def read(server: Server, readers: Sequence[Reader]) -> float:
    """All of them read to the end: the seconds from the first byte to the last."""
    with Load(server, readers) as load:
        return load.run()


def growth(server: Server, readers: Sequence[Reader], expected_runs: int) -> int:
    """The bytes that the server grows by at most while they read.

    Raises RuntimeError for another number of runs, and where it grows out of all proportion.
    """
    before = server.runs()
    reset_peak(server.pid)
    start = resident(server.pid)

    def look() -> None:
        grown = resident(server.pid) - start
        if grown > _STOP_AT:
            raise RuntimeError(f"{server.name} has grown by {mebibytes(grown)}, and was stopped there")

    with Load(server, readers) as load:
        load.run(look)
        grown = resident(server.pid, peak=True) - start
        server.post("/release")
    check_runs(server, before, expected_runs)
    return grown


def check_runs(server: Server, before: int, expected: int) -> None:
    seen = server.runs() - before
    if seen != expected:
        raise RuntimeError(f"{server.name} ran {seen} handlers instead of {expected}")


# Memory.


def joined(rounds: int) -> Row:
    """Many readers that come at random times while the handler writes its first 3 MiB slowly."""
    grown: list[float] = []
    for number in range(rounds):
        chance = random.Random(number)
        target = f"/written?size={100 * MIB}&piece={_PIECE}&slow={3 * MIB}&over=1.5&fresh=1"
        times = [0.0, *(chance.uniform(0.0, 1.2) for _ in range(_JOINING - 1))]
        with serving("reduce") as server:
            grown.append(growth(server, [Reader(target, after=after, checks=True) for after in times], 1))
    return _memory_row(JOINED, grown, _MAX_BUFFER + 32 * MIB)


def consumed(rounds: int) -> Row:
    """One large body for many: in each round from a handler that writes it, and from one that returns a generator."""
    grown: list[float] = []
    for path in ("written", "one-shot") * rounds:
        target = f"/{path}?size={256 * MIB}&piece={_PIECE}&wait={_WAIT}&fresh=1"
        with serving("reduce") as server:
            grown.append(growth(server, [Reader(target, checks=True) for _ in range(_CONSUMERS)], 1))
    return _memory_row(CONSUMED, grown, 32 * MIB)


def idle(rounds: int) -> Row:
    """Streams that nobody joins, of which everything that was written is read, and which then wait."""
    grown: dict[str, list[float]] = {"reduce": [], "plain": []}
    targets = [f"/idle?size={_MAX_BUFFER - _PIECE}&piece={_PIECE}&fresh=1&n={number}" for number in range(_IDLE)]
    for number in range(rounds):
        for mode in turned(grown, number):
            with serving(mode) as server:
                grown[mode].append(growth(server, [Reader(target, checks=True) for target in targets], _IDLE))
    return _beyond_row(IDLE, grown["reduce"], {"plain": grown["plain"]}, _MAX_BUFFER_TOTAL + _IDLE * _BESIDE)


def crowd(rounds: int) -> Row:
    """Very many followers of one large answer, against as many of a tiny one: what their connections cost."""
    grown: dict[int, list[float]] = {_BODY: [], 100: []}
    for number in range(rounds):
        for size in turned(grown, number):
            with serving("reduce") as server:
                target = f"/whole?size={size}&wait=1.5"
                # To look at all that they get would take the load longer than the server.
                readers = [Reader(target, checks=not n % 50) for n in range(_CROWD)]
                grown[size].append(growth(server, readers, 1))
    return _beyond_row(CROWD, grown[_BODY], {"of 100 bytes": grown[100]}, 2 * _BODY)


MEMORY: Final[dict[str, Callable[[int], Row]]] = {JOINED: joined, CONSUMED: consumed, IDLE: idle, CROWD: crowd}
PROMISED: Final = {CONSUMED, CROWD}


def _memory_row(what: str, grown: Sequence[float], limit: float) -> Row:
    return Row.of(what, {"ours": grown}, mebibytes, [size / MIB for size in grown], Target(limit / MIB, unit=" MiB"))


def _beyond_row(what: str, ours: Sequence[float], peer: dict[str, Sequence[float]], limit: float) -> Row:
    (others,) = peer.values()
    beyond = [(mine - other) / MIB for mine, other in zip(ours, others, strict=True)]
    return Row.of(what, {"ours": ours, **peer}, mebibytes, beyond, Target(limit / MIB, unit=" MiB"))


# Speed.


def trickled(rounds: int) -> Row:
    """How long the others take if the one for whom the handler runs reads a byte a second, and if there is none."""
    times: dict[bool, list[float]] = {True: [], False: []}
    with serving("reduce") as server:
        for number in range(-1, rounds):  # the first one warms up
            for trickles in (True, False) if number % 2 else (False, True):
                target = f"/written?size={64 * MIB}&piece={_PIECE}&wait={_WAIT}&n={number}{trickles}"
                others = [Reader(target, after=0.05) for _ in range(_CONSUMERS)]
                before = server.runs()
                taken = read(server, [Reader(target, trickles=True), *others] if trickles else others)
                check_runs(server, before, 1)
                if number >= 0:
                    times[trickles].append(taken)
    values = {"ours": times[True], "without": times[False]}
    return Row.of(TRICKLED, values, _seconds, quotients(times[True], times[False]), Target(1.5))


@dataclass(frozen=True)
class Pace:
    """Streams at full speed: to so many clients, so many bytes, in pieces."""

    what: str
    clients: int
    size: int
    piece: int
    throughput: Target
    cpu: Target

    def rows(self, instances: int, rounds: int) -> Iterator[Row]:
        """Bytes per second for each client, and the server's CPU per byte that was sent, ours and plain in turn."""
        rates: dict[str, list[float]] = {"reduce": [], "plain": []}
        costs: dict[str, list[float]] = {"reduce": [], "plain": []}
        for _ in range(instances):
            with serving("reduce") as ours, serving("plain") as plain:
                servers = {"reduce": ours, "plain": plain}
                for number in range(-1, rounds):  # the first one warms up, and is checked
                    for mode in turned(servers, number):
                        seconds, cpu = self._measure(servers[mode], number)
                        if number >= 0:
                            rates[mode].append(self.size / seconds)
                            costs[mode].append(cpu / self.size / self.clients * MIB)
        yield _against_plain(self.what, rates, _per_second, self.throughput)
        yield _against_plain("    CPU / MiB sent in the same rounds", costs, _milliseconds, self.cpu)

    def _measure(self, server: Server, number: int) -> tuple[float, float]:
        target = f"/written?size={self.size}&piece={self.piece}&wait={_WAIT if self.clients > 1 else 0}&n={number}"
        before = server.runs()
        readers = [Reader(target, checks=number < 0) for _ in range(self.clients)]
        used = server.cpu()
        seconds = read(server, readers)
        used = server.cpu() - used
        check_runs(server, before, self.clients if server.name == "plain" else 1)
        return seconds, used


SHARED = Pace(
    f"64 MiB to {_CONSUMERS} in 64 KiB: throughput, against plain",
    clients=_CONSUMERS,
    size=64 * MIB,
    piece=_PIECE,
    throughput=Target(1.0, at_least=True),
    cpu=Target(1.0),
)
SHARED_SMALL = Pace(
    f"8 MiB to {_CONSUMERS} in 1 KiB: throughput, against plain",
    clients=_CONSUMERS,
    size=8 * MIB,
    piece=1024,
    throughput=Target(1.0, at_least=True),
    cpu=Target(1.0),
)
LONE = Pace(
    "64 MiB to 1 in 64 KiB: throughput, against plain",
    clients=1,
    size=64 * MIB,
    piece=_PIECE,
    throughput=Target(0.95, at_least=True),
    cpu=Target(1 / 0.95),
)


def _against_plain(what: str, found: dict[str, list[float]], show: Callable[[float], str], target: Target) -> Row:
    return Row.of(what, found, show, quotients(found["reduce"], found["plain"]), target, ours="reduce")


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"


def _per_second(size: float) -> str:
    return f"{size / MIB:,.0f} MiB/s"
