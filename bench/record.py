"""What a run measured, as JSON: for the pictures, and to compare one run with another."""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .report import Row, Target

_RESULTS = Path(__file__).parent / "results"


def place(only: str | None = None, quick: bool = False) -> Path:
    """Where the latest run of that kind is kept: one of a part does not replace one of all."""
    return _RESULTS / f"{'-'.join(['latest', *([only] if only else []), *(['quick'] if quick else [])])}.json"


@dataclass(frozen=True)
class Record:
    """One run: the machine in full, in one line for a `caption`, whether it was a quick one, and its rows."""

    machine: str
    caption: str
    quick: bool
    rows: list[Row]

    def row(self, what: str, under: str = "") -> Row | None:
        """The row of that name, `under` that one, if it was measured."""
        return next((row for row in self.rows if (row.what, row.under) == (what, under) and row.ratios), None)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Record":
        """What `save` wrote. Raises OSError, and ValueError or TypeError where it is something else."""
        found = json.loads(path.read_text())
        return cls(found["machine"], found["caption"], found["quick"], [_row(row) for row in found["rows"]])


def chosen(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Record]:
    """The options, and the run that `--data` names. Where there is none, the program ends and says so."""
    parser.add_argument("--data", type=Path, default=place(), metavar="FILE", help="what `python -m bench` saved")
    options = parser.parse_args()
    try:
        return options, Record.load(options.data)
    except FileNotFoundError:
        parser.exit(1, f"{options.data} is not there: `make bench` writes it\n")


def _row(found: dict[str, Any]) -> Row:
    target = found.pop("target")
    curve = {int(size): value for size, value in found.pop("curve").items()}  # JSON has no keys but strings
    return Row(**found, target=target and Target(**target), curve=curve)
