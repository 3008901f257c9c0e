"""Put what a run measured into the README: `python -m bench.markdown [--data FILE] [--into README.md]`.

What stands between the two marks is replaced by a table of the run's rows, and the machine that it was made on.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .record import Record, chosen
from .report import Row

README: Final = Path(__file__).parent.parent / "README.md"
_BEGIN: Final = "<!-- bench: `make pictures` writes this -->"
_END: Final = "<!-- end of bench -->"
_BETWEEN: Final = re.compile(f"(?<={re.escape(_BEGIN)}\n).*(?={re.escape(_END)})", re.DOTALL)


def table(record: Record) -> Iterator[str]:
    """The lines of the table; counterparts of a curve have their costs in the same cell as ours."""
    yield "| what | ours | beside it | ratio (min..max) | target |"
    yield "|---|---|---|---|---|"
    for row in record.rows:
        if row.under and row.curve:
            continue  # in the cell of the row that it is under
        what, ours, peers, ratio, spread, target, *verdict = row.cells()
        if row.curve:
            ours, peers = peers, "; ".join(_counterparts(record, row))
        found = f"{ratio} ({spread})" if row.ratios else "; ".join(verdict)
        reached = f"{target} {'✓' if verdict == ['reached'] else '**missed**'}" if target and row.ratios else target
        yield f"| {_escaped(what)} | {ours} | {peers} | {found} | {reached} |"


def _counterparts(record: Record, row: Row) -> Iterator[str]:
    for other in record.rows:
        if other.under == row.what and other.curve:
            yield f"{other.what} {other.peers}"


def _escaped(text: str) -> str:
    return text.strip().replace("|", "\\|")


def written_into(text: str, record: Record) -> str:
    """The text with this run's table. Raises ValueError where the marks are missing."""
    if _BETWEEN.search(text) is None:
        raise ValueError(f"there is no place for the table: it goes between {_BEGIN!r} and {_END!r}")
    lines = ["", *table(record), "", *[f"- {line}" for line in record.machine.splitlines()], "", ""]
    return _BETWEEN.sub(lambda _: "\n".join(lines), text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.markdown", description=__doc__)
    parser.add_argument("--into", type=Path, default=README, metavar="FILE")
    options, record = chosen(parser)
    options.into.write_text(written_into(options.into.read_text(), record))
    print(options.into)
    return 0


if __name__ == "__main__":
    sys.exit(main())
