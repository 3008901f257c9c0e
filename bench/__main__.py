"""Measure server, client, core and streams against their peers: `python -m bench [--quick] [--only PART]`.

Or `make bench [QUICK=1] [ONLY=client]`. Prints one table, and saves what is in it. Servers run on one core (uvloop,
loopback only), load comes from another; where it is the client that is measured, it is the load. What counts are the
ratios, each the median over rounds that measured both sides one right after the other.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from .machine import caption, load, machine
from .parts import FULL, PARTS, QUICK, Plan
from .processes import LOAD_CORE, allow_connections
from .record import Record, place
from .report import Row, header

_LESS_SURE = "A quick run: few rounds, so that single figures may be far off; what counts is a full one."


class OutOfTimeError(Exception):
    """The run took longer than its plan allows."""


def _out_of_time(_signal: int, _frame: object) -> None:
    raise OutOfTimeError


def _terminated(_signal: int, _frame: object) -> None:
    raise SystemExit("terminated")


class Progress:
    """Says on stderr what is being measured now; on a terminal, the table overwrites it."""

    def __init__(self, limit: int) -> None:
        self.started = time.monotonic()
        self._limit = limit
        self._is_terminal = sys.stderr.isatty()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def now(self, part: str, what: str) -> None:
        text = f"[{self.seconds:.0f} of at most {self._limit} s] {part}: {what.strip()} ..."
        print(f"\r\x1b[K{text}" if self._is_terminal else text, end="" if self._is_terminal else "\n", file=sys.stderr)
        sys.stderr.flush()

    def clear(self) -> None:
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def guarded(what: str, measured: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """The rows, or one that says what went wrong: the others are measured all the same."""
    try:
        yield from measured()
    except OutOfTimeError:
        raise
    except Exception as error:
        yield Row(what, missing=f"{type(error).__name__}: {error}")


def measure(parts: Iterable[str], plan: Plan, progress: Progress) -> Iterator[Row]:
    """All rows of these parts, one after another. Raises OutOfTimeError."""
    for part in parts:
        for what, work in PARTS[part](plan):
            progress.now(part, what)
            for row in guarded(what, work):
                progress.clear()
                yield row


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="few rounds of few rows: less than a minute, and less sure"
    )
    parser.add_argument("--only", choices=PARTS, help="the rows of one part")
    parser.add_argument("--save", type=Path, metavar="FILE", help="where what was measured is kept, as JSON")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    if options.only:
        plan = replace(plan, all_rows=True, limit=max(plan.limit, 120))
    os.sched_setaffinity(0, {LOAD_CORE})
    allow_connections()
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.signal(signal.SIGTERM, _terminated)
    signal.alarm(plan.limit)
    progress = Progress(plan.limit)
    found = Record(machine(), caption(), options.quick, [])
    print(found.machine, *([_LESS_SURE] if options.quick else []), header(), sep="\n\n", flush=True)
    complete = True
    try:
        for row in measure([options.only] if options.only else PARTS, plan, progress):
            complete &= bool(row.ratios)
            found.rows.append(row)
            print(row, flush=True)
    except OutOfTimeError:
        progress.clear()
        print(f"stopped after {plan.limit} seconds; what is not above was not measured")
        complete = False
    signal.alarm(0)
    path = options.save or place(options.only, options.quick)
    found.save(path)
    print(f"\n{progress.seconds:.0f} seconds; {load()} at the end; saved as {os.path.relpath(path)}")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
