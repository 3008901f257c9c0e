"""The rows of the server: the applications of `bench.apps` and their peers, one measured right after the other.

A round asks each of them once, in turning order, and gives one ratio: the machine's faster and slower phases
hit both sides of it alike.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from . import proxies
from .herd import Herd, percentile
from .processes import Server, app
from .report import Row, Target, microseconds, milliseconds, quotients, turned
from .wrk import Wrk

_HERD = 200

DISTINCT_CPU = "    CPU / request in the same rounds"


@dataclass
class Field:
    """The running servers, by name, and why others are not among them."""

    servers: dict[str, Server] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Server:
        return self.servers[name]


@contextmanager
def all_servers() -> Iterator[Field]:
    """Every server of these rows."""
    running = Field()
    with ExitStack() as stack:
        for mode in ("plain", "no-op", "reduce", "async_reduce"):
            running.servers[mode] = stack.enter_context(app(mode))
        for name, proxy in (("varnish", proxies.varnish), ("nginx", proxies.nginx)):
            try:
                running.servers[name] = stack.enter_context(proxy(running["plain"]))
            except (proxies.NotFoundError, RuntimeError) as error:
                running.missing[name] = str(error)
        yield running


def distinct(running: Field, folder: str, instances: int, rounds: int) -> Iterator[Row]:
    """Distinct GETs, constant handler, against the no-op middleware: requests per second, and CPU per request.

    Throughput is measured in turn, one second each. CPU per request is measured in duels: both servers are
    loaded at once and share their core, so that a slow moment of the machine hits both. One process differs
    from the next of the same program by some percent, hence several instances, and a control: no-op against
    another no-op. Each duels only with one that has served as much (a process that had served more was 4% slower).
    """
    what = "distinct GETs: {}, against no-op"
    throughput, cpu = what.format("throughput"), what.format("CPU / request")
    try:
        wrk = Wrk(folder)
    except proxies.NotFoundError as error:
        yield Row(throughput, target=Target(0.95, at_least=True), missing=str(error))
        yield Row(cpu, target=Target(1.05), missing=str(error))
        return
    rates: dict[str, list[float]] = {name: [] for name in ("reduce", "no-op", "plain", "async_reduce")}
    costs: dict[str, list[float]] = {name: [] for name in rates}
    duels, control = _Duels(), _Duels()
    for _ in range(instances):
        with app("reduce") as ours, app("no-op") as no_op, app("no-op") as one, app("no-op") as other:
            servers = {
                "reduce": ours,
                "no-op": no_op,
                "plain": running["plain"],
                "async_reduce": running["async_reduce"],
            }
            with ThreadPoolExecutor(4) as warming_up:
                list(warming_up.map(wrk.run, (ours, no_op, one, other)))
            for number in range(rounds):
                for name in turned(["reduce", "no-op"] if number else servers, number):
                    load = wrk.run(servers[name])
                    rates[name].append(load.per_second)
                    costs[name].append(load.cpu)
                duels.fight(wrk, ours, no_op)
                if number % 2 == 0:
                    control.fight(wrk, one, other)
    yield Row.of(
        throughput,
        rates,
        "{:,.0f}/s".format,
        quotients(rates["reduce"], rates["no-op"]),
        Target(0.95, at_least=True),
        ours="reduce",
    )
    yield Row.of(DISTINCT_CPU, costs, microseconds, quotients(costs["reduce"], costs["no-op"]), ours="reduce")
    yield duels.row(cpu, Target(1 / 0.95))
    yield control.row("    control: no-op against another no-op", None)


class _Duels:
    """Two servers under load at the same time, on the same core: the CPU per request of each."""

    def __init__(self) -> None:
        self.ours: list[float] = []
        self.peer: list[float] = []

    def fight(self, wrk: Wrk, ours: Server, peer: Server) -> None:
        pair = (ours, peer)
        turn = -1 if len(self.ours) % 2 else 1  # who is loaded first
        with ThreadPoolExecutor(2) as both:
            mine, others = list(both.map(wrk.run, pair[::turn]))[::turn]
        self.ours.append(mine.cpu)
        self.peer.append(others.cpu)

    def row(self, what: str, target: Target | None) -> Row:
        values = {"ours": self.ours, "no-op": self.peer}
        return Row.of(what, values, microseconds, quotients(self.ours, self.peer), target)


@dataclass(frozen=True)
class Contest:
    """Herds that are measured in turn.

    `targets` says what each server is asked for. `seldom` are those that are asked in every n-th round only:
    they show where others are, and take long. The ratio is that of `reduce` to `against`. With several
    `instances`, each runs the rounds with application processes of its own (see `distinct`).
    """

    what: str
    targets: dict[str, str]
    against: str
    measure: Callable[[Herd, str], float]
    show: Callable[[float], str]
    target: Target
    seldom: dict[str, int] = field(default_factory=dict)
    headers: str = ""
    instances: int = 1

    def row(self, running: Field, rounds: int) -> Row:
        if self.against in running.missing:
            return Row(self.what, target=self.target, missing=running.missing[self.against])
        found: dict[str, list[float]] = {name: [] for name in self.targets if name in running.servers}
        for _ in range(self.instances):
            with ExitStack() as stack:
                servers = {name: running[name] for name in found}
                if self.instances > 1:
                    servers = {name: stack.enter_context(app(name)) for name in found}
                herds = {
                    name: stack.enter_context(Herd(server, _HERD, headers=self.headers))
                    for name, server in servers.items()
                }
                self._compete(herds, rounds // self.instances, found)
        absent = "".join(f", no {name}: {why}" for name, why in running.missing.items() if name in self.targets)
        ratios = quotients(found["reduce"], found[self.against])
        return Row.of(self.what, found, self.show, ratios, self.target, ours="reduce", absent=absent)

    def _compete(self, herds: dict[str, Herd], rounds: int, found: dict[str, list[float]]) -> None:
        for number in range(-1, rounds):  # the first one warms up
            for name in turned(herds, number):
                if number >= 0 and number % self.seldom.get(name, 1):
                    continue
                value = self.measure(herds[name], f"{self.targets[name]}?h={number}")
                if number >= 0:
                    found[name].append(value)


def _cpu_per_request(herd: Herd, target: str) -> float:
    return herd.cpu_of(target) / _HERD


FOLLOWER = Contest(
    "follower (herds of 200): CPU / request, against one future",
    # No-op shows what any middleware at all costs in aiohttp.
    targets={"reduce": "/slow", "plain": "/one-future", "no-op": "/one-future"},
    against="plain",
    measure=_cpu_per_request,
    show=microseconds,
    target=Target(1.15),
    instances=3,
)
SLOW = Contest(
    "herd of 200, handler takes 50 ms: p99, against Varnish",
    targets={"reduce": "/slow", "varnish": "/slow", "plain": "/slow", "async_reduce": "/slow", "nginx": "/slow"},
    against="varnish",
    measure=lambda herd, target: percentile(herd.ask(target), 0.99),
    show=milliseconds,
    target=Target(0.95),
    seldom={"nginx": 6, "async_reduce": 2, "plain": 2},
)
BURNING = Contest(
    "herd of 200, handler burns 5 ms: p50, against Varnish",
    targets={"reduce": "/cpu", "varnish": "/cpu", "plain": "/cpu", "async_reduce": "/cpu", "nginx": "/cpu"},
    against="varnish",
    measure=lambda herd, target: percentile(herd.ask(target), 0.50),
    show=milliseconds,
    target=Target(1.0),
    seldom={"nginx": 6, "async_reduce": 10, "plain": 10},
)
COMPRESSED = Contest(
    "herd of 200, 256 KiB of JSON, gzip: CPU, against plain",
    targets={"reduce": "/compressed", "plain": "/compressed"},
    against="plain",
    measure=Herd.cpu_of,
    show=milliseconds,
    target=Target(0.10),
    headers="Accept-Encoding: gzip\r\n",
)
