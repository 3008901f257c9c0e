"""The table: one row per measurement, ratios with their spread, and whether the target was reached."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, TypeVar

_WIDTHS = (78, 10, 84, 6, 10, 9)
_TITLES = ("what", "ours", "peers, or how it grows", "ratio", "min..max", "target")

_Name = TypeVar("_Name")


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
    """One measurement. `ratios` holds one ratio per round; `missing` says why there are none.

    `values` are what was measured, by name, in seconds, bytes, or per second; `curve` the medians of each size. A row
    that belongs `under` another one names it.
    """

    what: str
    ours: str = "-"
    peers: str = "-"
    ratios: Sequence[float] = field(default_factory=list)
    target: Target | None = None
    missing: str = ""
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    curve: Mapping[int, float] = field(default_factory=dict)
    under: str = ""

    @classmethod
    def of(
        cls,
        what: str,
        values: Mapping[str, Sequence[float]],
        show: Callable[[float], str],
        ratios: Sequence[float],
        target: Target | None = None,
        *,
        ours: str = "ours",
        absent: str = "",
    ) -> Self:
        """The row of these values: ours, the peers' medians, and after them what is `absent`."""
        peers = {name: found for name, found in values.items() if name != ours}
        shown = listed(peers, show) + absent
        kept = {"ours": values[ours], **peers}
        return cls(what, show(statistics.median(values[ours])), shown or "-", ratios, target, values=kept)

    @property
    def ratio(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.ratios)

    def cells(self) -> tuple[str, ...]:
        target = str(self.target or "")
        what = f"    {self.what}" if self.under else self.what
        if not self.ratios:
            return what, self.ours, self.peers, "-", "-", target, f"not measured: {self.missing or 'no rounds'}"
        exact, rough = (".1f", ".1f") if self.target is not None and self.target.unit else (".3f", ".2f")
        spread = f"{min(self.ratios):{rough}}..{max(self.ratios):{rough}}"
        verdict = "" if self.target is None else "reached" if self.target.reached(self.ratio) else "NOT REACHED"
        return (
            f"{what} ({len(self.ratios)} round{'s' * (len(self.ratios) > 1)})",
            self.ours,
            self.peers,
            f"{self.ratio:{exact}}",
            spread,
            target,
            verdict,
        )

    def __str__(self) -> str:
        return _line(self.cells())


def header() -> str:
    """The titles of the columns, and a rule under them."""
    return f"{_line((*_TITLES, 'reached'))}\n{'-' * (sum(_WIDTHS) + 2 * len(_WIDTHS) + 11)}"


def _line(cells: Sequence[str]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=False)]
    return "  ".join([*padded, *cells[len(_WIDTHS) :]]).rstrip()


def turned(names: Iterable[_Name], number: int) -> list[_Name]:
    """The names in the order of this round: there and back, so that none always comes first."""
    return list(names) if number % 2 else list(names)[::-1]


def listed(values: Mapping[str, Sequence[float]], show: Callable[[float], str]) -> str:
    """`name median, name median`, leaving out what has no values."""
    return ", ".join(f"{name} {show(statistics.median(found))}" for name, found in values.items() if found)


def quotients(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """The ratios of paired measurements."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us"


def duration(seconds: float) -> str:
    """In microseconds below a millisecond."""
    return microseconds(seconds) if seconds < 1e-3 else milliseconds(seconds)


def mebibytes(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
