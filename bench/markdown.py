"""Put what a run measured into the documentation: `python -m bench.markdown [--data FILE]`.

What stands between two marks is replaced: in `docs/figures.md` by a table of all rows, and the machine that it was
made on; in the README by the few rows that matter most.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .record import Record, chosen
from .report import Row

_ROOT: Final = Path(__file__).parent.parent
README: Final = _ROOT / "README.md"
FIGURES: Final = _ROOT / "docs" / "figures.md"

# How the rows of the README begin, in its order.
FEW: Final = (
    "distinct GETs: ",
    "follower (herds of 200)",
    "herd of 200, handler takes 50 ms",
    "herd of 200, handler burns 5 ms",
    "herd of 200, 256 KiB of JSON, gzip",
    "client, distinct GETs",
    "client, herds of 64",
    "core: herd of 200, automatic identity",
    "core: sequential, automatic identity",
    "1,000 followers of 10 MiB",
    "256 MiB to 20",
)


@dataclass(frozen=True)
class Place:
    """Where something is written: between its two marks."""

    begin: str
    end: str

    def filled(self, text: str, lines: Sequence[str]) -> str:
        """The text with these lines there. Raises ValueError where the marks are missing."""
        between = re.compile(f"(?<={re.escape(self.begin)}\n).*(?={re.escape(self.end)})", re.DOTALL)
        if between.search(text) is None:
            raise ValueError(f"there is no place for the table: it goes between {self.begin!r} and {self.end!r}")
        return between.sub(lambda _: "\n".join(["", *lines, "", ""]), text)


_ALL: Final = Place("<!-- bench: `make pictures` writes this -->", "<!-- end of bench -->")
_SHORT: Final = Place("<!-- short: `make pictures` writes this -->", "<!-- end of short -->")


def table(record: Record, rows: Sequence[Row]) -> Iterator[str]:
    """The lines of the table of these rows; counterparts of a curve have their costs in the same cell as ours."""
    yield "| what | ours | beside it | ratio (min..max) | target |"
    yield "|---|---|---|---|---|"
    for row in rows:
        if row.under and row.curve:
            continue  # in the cell of the row that it is under
        what, ours, peers, ratio, spread, target, *verdict = row.cells()
        if row.curve:
            ours, peers = peers, "; ".join(_counterparts(record, row))
        found = f"{ratio} ({spread})" if row.ratios else "; ".join(verdict)
        reached = f"{target} {'✓' if verdict == ['reached'] else '**missed**'}" if target and row.ratios else target
        yield f"| {_escaped(what)} | {ours} | {peers} | {found} | {reached} |"


def few(record: Record) -> list[Row]:
    """The rows for the README; what was not measured is left out."""
    return [row for begin in FEW for row in record.rows if row.what.startswith(begin) and row.ratios and not row.under]


def _counterparts(record: Record, row: Row) -> Iterator[str]:
    for other in record.rows:
        if other.under == row.what and other.curve:
            yield f"{other.what} {other.peers}"


def _escaped(text: str) -> str:
    return text.strip().replace("|", "\\|")


def written_into(text: str, record: Record) -> str:
    """The text of `docs/figures.md` with this run's table. Raises ValueError where the marks are missing."""
    machine = [f"- {line}" for line in record.machine.splitlines()]
    return _ALL.filled(text, [*table(record, record.rows), "", *machine])


def shortly_written_into(text: str, record: Record) -> str:
    """The text of the README with the few rows of this run. Raises ValueError where the marks are missing."""
    return _SHORT.filled(text, [*table(record, few(record))])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.markdown", description=__doc__)
    parser.add_argument("--figures", type=Path, default=FIGURES, metavar="FILE", help="has all rows")
    parser.add_argument("--readme", type=Path, default=README, metavar="FILE", help="has few rows")
    options, record = chosen(parser)
    for path, write in ((options.figures, written_into), (options.readme, shortly_written_into)):
        path.write_text(write(path.read_text(encoding="utf-8"), record), encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
