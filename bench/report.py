"""The table: one row per measurement, ratios with their spread, and whether the target was reached."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_WIDTHS = (70, 10, 72, 6, 10, 9)
_TITLES = ("what", "ours", "peers", "ratio", "min..max", "target")


@dataclass(frozen=True)
class Target:
    """What a ratio is to reach: at least, or at most, a limit. With a `unit` it is no ratio, but a plain figure."""

    limit: float
    at_least: bool = False
    unit: str = ""

    def reached(self, ratio: float) -> bool:
        return ratio >= self.limit if self.at_least else ratio <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:{'.0f' if self.unit else '.2f'}}{self.unit}"


@dataclass
class Row:
    """One measurement. `ratios` holds one ratio per round; `missing` says why there are none."""

    what: str
    ours: str = "-"
    peers: str = "-"
    ratios: Sequence[float] = field(default_factory=list)
    target: Target | None = None
    missing: str = ""

    @property
    def ratio(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.ratios)

    def cells(self) -> tuple[str, ...]:
        target = str(self.target or "")
        if not self.ratios:
            return self.what, self.ours, self.peers, "-", "-", target, f"not measured: {self.missing or 'no rounds'}"
        exact, rough = (".1f", ".1f") if self.target is not None and self.target.unit else (".3f", ".2f")
        spread = f"{min(self.ratios):{rough}}..{max(self.ratios):{rough}}"
        verdict = "" if self.target is None else "reached" if self.target.reached(self.ratio) else "NOT REACHED"
        what = f"{self.what} ({len(self.ratios)} rounds)"
        return what, self.ours, self.peers, f"{self.ratio:{exact}}", spread, target, verdict

    def __str__(self) -> str:
        return _line(self.cells())


def header() -> str:
    """The titles of the columns, and a rule under them."""
    return f"{_line((*_TITLES, 'reached'))}\n{'-' * (sum(_WIDTHS) + 2 * len(_WIDTHS) + 11)}"


def _line(cells: Sequence[str]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=False)]
    return "  ".join([*padded, *cells[len(_WIDTHS) :]]).rstrip()


def listed(values: dict[str, Sequence[float]], show: Callable[[float], str]) -> str:
    """`name median, name median`, leaving out what has no values."""
    return ", ".join(f"{name} {show(statistics.median(found))}" for name, found in values.items() if found)


def quotients(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """The ratios of paired measurements."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us"


def mebibytes(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
