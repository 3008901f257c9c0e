"""The rows of the client: a `ReducingClientSession` against a plain `ClientSession` and peers.

The client (`bench.client_load`) runs on the core that otherwise makes the load, the upstream on that of the servers.
All kinds of sessions take turns in one process, and one process differs from the next: hence several instances.
Memory is measured in a process of its own each time.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .client_load import DOWNLOAD, DOWNLOADS, HERD, MIB, READERS, STREAM
from .processes import LOAD_CORE, Server, free_port, running
from .report import Row, Target, mebibytes, microseconds, quotients, turned

_CACHE = "aiohttp-client-cache"
_WITHIN = 120.0

DISTINCT = "client, distinct GETs, small body: CPU, plain / ours"
HERDS = f"client, herds of {HERD}, small body: CPU, against plain"
STREAMED = f"client, {STREAM // MIB} MiB streamed to {READERS}: growth of memory"
STALLED = f"client, {DOWNLOADS} stalled downloads of {DOWNLOAD // MIB} MiB: memory beyond plain"


@contextmanager
def upstream() -> Iterator[Server]:
    """What the client asks."""
    port = free_port()
    with running("upstream", [sys.executable, "-m", "bench.upstream", str(port)], port) as server:
        yield server


def measured(work: str, server: Server, rounds: int = 1) -> dict[str, list[float]]:
    """The figures of one client process, by name of session. Raises RuntimeError if it failed."""
    command = ["taskset", "-c", str(LOAD_CORE), sys.executable, "-m", "bench.client_load"]
    result = subprocess.run(
        [*command, work, str(server.port), str(rounds)], capture_output=True, text=True, timeout=_WITHIN, check=False
    )
    if result.returncode:
        raise RuntimeError(f"{work}: {result.stderr.strip()[-500:]}")
    found: dict[str, list[float]] = json.loads(result.stdout)
    return found


def distinct(server: Server, instances: int, rounds: int) -> Row:
    """Calls that nobody joins: what we cost. The ratio is above 1 if we are cheaper than a plain session."""
    found = _all_instances("distinct", server, instances, rounds)
    return _cpu_row(DISTINCT, found, quotients(found["plain"], found["ours"]), Target(0.88, at_least=True))


def herds(server: Server, instances: int, rounds: int) -> Row:
    """Identical calls at once, of which the upstream sees one: what each costs."""
    found = _all_instances("herds", server, instances, rounds)
    return _cpu_row(HERDS, found, quotients(found["ours"], found["plain"]), Target(0.60))


def streamed(server: Server, rounds: int) -> Row:
    """One large body for many readers: what the client process grows by at most, in MiB."""
    grown = [size for _ in range(rounds) for size in measured("streamed", server)["ours"]]
    return Row.of(STREAMED, {"ours": grown}, mebibytes, [size / MIB for size in grown], Target(32, unit=" MiB"))


def stalled(server: Server, rounds: int) -> Row:
    """Downloads that nobody joins and nobody reads on: what they hold beyond those of a plain session, in MiB.

    The limit is `max_buffer_total`.
    """
    grown: dict[str, list[float]] = {"ours": [], "plain": []}
    for number in range(rounds):
        for name in turned(grown, number):
            grown[name] += measured(f"stalled-{name}", server)[name]
    beyond = [(mine - others) / MIB for mine, others in zip(grown["ours"], grown["plain"], strict=True)]
    return Row.of(STALLED, grown, mebibytes, beyond, Target(64, unit=" MiB"))


def _all_instances(work: str, server: Server, instances: int, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for _ in range(instances):
        for name, values in measured(work, server, rounds).items():
            found.setdefault(name, []).extend(values)
    return found


def _cpu_row(what: str, found: dict[str, list[float]], ratios: list[float], target: Target) -> Row:
    absent = "" if _CACHE in found else f", no {_CACHE}: not installed"
    return Row.of(what, found, microseconds, ratios, target, absent=absent)
