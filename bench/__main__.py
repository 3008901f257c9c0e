"""Measure server, client, core and streams against their peers: `python -m bench [--quick] [--only PART]`.

Or `make bench [QUICK=1] [ONLY=client]`. Prints one table. Servers run on one core (uvloop, loopback only), load comes
from another; where it is the client that is measured, it is the load. What counts are the ratios, each the median over
rounds that measured both sides one right after the other.
"""

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from . import client, serving, streams
from .core import WORKS, core_row
from .processes import LOAD_CORE, SERVER_CORE
from .report import Row, header


@dataclass(frozen=True)
class Plan:
    """How many rounds each row gets, and after how many seconds the run is stopped whatever is left.

    `distinct` rounds are for each of `instances` processes, `client_distinct` and `client_herds` for each of
    `client_instances`, `streams` for each of `stream_instances`, and `lone_streams` for each of twice as many.
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
    limit: int


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
    limit=760,
)
QUICK = Plan(
    instances=2,
    distinct=2,
    follower=30,
    slow=8,
    burning=8,
    compressed=2,
    client_instances=1,
    client_distinct=8,
    client_herds=6,
    client_memory=1,
    core=7,
    stream_memory=1,
    trickled=2,
    stream_instances=1,
    streams=2,
    lone_streams=8,
    limit=75,
)


def server_rows(plan: Plan) -> Iterator[Row]:
    """The server against its peers."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, serving.all_servers() as running:
        yield from guarded("distinct GETs", lambda: serving.distinct(running, folder, plan.instances, plan.distinct))
        for contest, rounds in (
            (serving.FOLLOWER, plan.follower),
            (serving.SLOW, plan.slow),
            (serving.BURNING, plan.burning),
            (serving.COMPRESSED, plan.compressed),
        ):
            yield from guarded(contest.what, lambda: [contest.row(running, rounds)])  # noqa: B023 - called at once


def client_rows(plan: Plan) -> Iterator[Row]:
    """The client against its peers."""
    instances = plan.client_instances
    with client.upstream() as server:
        yield from guarded(client.DISTINCT, lambda: [client.distinct(server, instances, plan.client_distinct)])
        yield from guarded(client.HERDS, lambda: [client.herds(server, instances, plan.client_herds)])
        yield from guarded(client.STREAMED, lambda: [client.streamed(server, plan.client_memory)])
        yield from guarded(client.STALLED, lambda: [client.stalled(server, plan.client_memory)])


def core_rows(plan: Plan) -> Iterator[Row]:
    """The core against `async_reduce`."""
    for what, work in WORKS.items():
        yield from guarded(what, lambda: [core_row(what, work, plan.core)])  # noqa: B023 - called at once


def stream_rows(plan: Plan) -> Iterator[Row]:
    """Streamed answers: their memory, and their speed against an application without us."""
    for what, work in streams.MEMORY.items():
        yield from guarded(what, lambda: [work(plan.stream_memory)])  # noqa: B023 - called at once
    yield from guarded(streams.TRICKLED, lambda: [streams.trickled(plan.trickled)])
    for pace, instances, rounds in (
        (streams.SHARED, plan.stream_instances, plan.streams),
        (streams.SHARED_SMALL, plan.stream_instances, plan.streams),
        (streams.LONE, 2 * plan.stream_instances, plan.lone_streams),
    ):
        yield from guarded(pace.what, lambda: pace.rows(instances, rounds))  # noqa: B023 - called at once


PARTS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "server": server_rows,
    "client": client_rows,
    "core": core_rows,
    "streams": stream_rows,
}


def guarded(what: str, measured: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """The rows, or one that says what went wrong: the others are measured all the same."""
    try:
        yield from measured()
    except OutOfTimeError:
        raise
    except Exception as error:
        yield Row(what, missing=f"{type(error).__name__}: {error}")


class OutOfTimeError(Exception):
    """The run took longer than its plan allows."""


def _out_of_time(_signal: int, _frame: object) -> None:
    raise OutOfTimeError


def _terminated(_signal: int, _frame: object) -> None:
    raise SystemExit("terminated")


def machine() -> str:
    """The machine and the versions, for the top of the table."""
    processor = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.split(":", 1)[1].strip()
            break
    packages = ("aiohttp", "uvloop", "async_reduce", "aiohttp-client-cache", "multidict", "yarl")
    return "\n".join(
        (
            f"machine: {processor}, {os.cpu_count()} cores, {platform.system()} {platform.release()}; "
            f"servers on core {SERVER_CORE}, load on core {LOAD_CORE}; {load()}",
            f"versions: aiohttp-reduce {metadata.version('aiohttp-reduce')} ({_commit()}), Python "
            f"{platform.python_version()}, {', '.join(f'{name} {_version(name)}' for name in packages)}",
            f"peers: {_said('wrk', '-v')}; {_said('varnishd', '-V')}; {_said('nginx', '-v')}",
        )
    )


def load() -> str:
    """What else the machine does."""
    return f"load average {os.getloadavg()[0]:.2f}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _said(name: str, option: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        return f"{name} not found"
    result = subprocess.run([path, option], capture_output=True, text=True, timeout=10, check=False)
    lines = (result.stdout + result.stderr).splitlines()
    return lines[0].split(" [", 1)[0].split(" Copyright", 1)[0] if lines else name


def _commit() -> str:
    try:
        command = ["git", "describe", "--always", "--dirty"]
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "no commit known"
    return result.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds: about a minute, without the streams, and less sure"
    )
    parser.add_argument("--only", choices=PARTS, help="the rows of one part")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    # Quick is quick: the streams take as long again as all the rest, and are measured quickly by themselves alone.
    parts = (
        [PARTS[options.only]] if options.only else [PARTS[name] for name in PARTS if plan is FULL or name != "streams"]
    )
    os.sched_setaffinity(0, {LOAD_CORE})
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.signal(signal.SIGTERM, _terminated)
    signal.alarm(plan.limit)
    started = time.monotonic()
    print(machine(), header(), sep="\n\n", flush=True)
    complete = True
    try:
        for part in parts:
            for row in part(plan):
                complete &= bool(row.ratios)
                print(row, flush=True)
    except OutOfTimeError:
        print(f"stopped after {plan.limit} seconds; what is not above was not measured")
        complete = False
    print(f"\n{time.monotonic() - started:.0f} seconds; {load()} at the end")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
