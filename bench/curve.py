"""How a cost grows with a size: measured at several sizes, a row for ours and one for each counterpart."""

import statistics
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .report import Row, Target, turned

# How much more each piece may cost at the largest size than at a smaller one, and it still be called linear: where the
# processor's caches no longer suffice, everybody pays about that.
LINEAR = Target(1.5)

Measure = Callable[[str, int], float]
Growth = Callable[[Mapping[int, float]], float]


def level(smaller: int) -> Growth:
    """Of costs that are for each piece already: that at the largest size to that at a smaller one."""
    return lambda costs: costs[max(costs)] / costs[smaller]


def per_unit(smaller: int) -> Growth:
    """The cost divided by the size: that at the largest to that at a smaller one, where it is size that costs."""
    return lambda costs: costs[max(costs)] / max(costs) / (costs[smaller] / smaller)


def extrapolated(middle: int) -> Growth:
    """The cost at the largest size to what a line through the smallest and the middle one foretells."""

    def growth(costs: Mapping[int, float]) -> float:
        low, high = min(costs), max(costs)
        each = (costs[middle] - costs[low]) / (middle - low)
        # Where size hardly matters, chance alone may make the line fall.
        return costs[high] / max(costs[low] + each * (high - low), costs[low])

    return growth


@dataclass(frozen=True)
class Curve:
    """A cost at each of these `sizes`, of ours (the first of `names`) and of the others.

    `growth` tells from the costs of one round how they grow: 1 is linearly. What is fixed hides what grows where
    sizes are small, so it looks at large ones. The ratio of the others is that of ours to theirs at the largest size.
    `seldom` are those that are asked in every n-th round only. Where one is named that ours is not to grow `beyond`,
    the growth is divided by its: many connections cost more each, whoever serves them.
    """

    what: str
    sizes: Sequence[int]
    names: Sequence[str]
    show: Callable[[float], str]
    growth: Growth
    target: Target | None = LINEAR
    seldom: Mapping[str, int] = field(default_factory=dict)
    beyond: str = ""

    def upto(self, largest: int) -> "Curve":
        """The same, leaving out what is larger; of what is left, growth is not told."""
        sizes = [size for size in self.sizes if size <= largest]
        return self if len(sizes) == len(self.sizes) else replace(self, sizes=sizes, target=None)

    def among(self, names: Container[str]) -> "Curve":
        """The same, for those of its names alone that are among these."""
        return replace(self, names=[name for name in self.names if name in names])

    def rows(self, measure: Measure, rounds: int) -> Iterator[Row]:
        """In each round each size, and at each size each name, in turn."""
        found: dict[str, dict[int, dict[int, float]]] = {name: {} for name in self.names}
        for number in range(rounds):
            names = [name for name in turned(self.names, number) if not number % self.seldom.get(name, 1)]
            for size in self.sizes:
                for name in names:
                    found[name].setdefault(number, {})[size] = measure(name, size)
        ours = found[self.names[0]]
        for name, rounds_of in found.items():
            row = self._row(rounds_of)
            if name == self.names[0]:
                others = found.get(self.beyond, {})
                row.ratios = [
                    self.growth(costs) / (self.growth(others[number]) if number in others else 1.0)
                    for number, costs in ours.items()
                ]
                row.target = self.target
            else:
                largest = self.sizes[-1]
                row.what, row.under = name, self.what
                row.ratios = [ours[number][largest] / costs[largest] for number, costs in rounds_of.items()]
            yield row

    def _row(self, found: Mapping[int, Mapping[int, float]]) -> Row:
        values = {size: [costs[size] for costs in found.values()] for size in self.sizes}
        curve = {size: statistics.median(costs) for size, costs in values.items()}
        return Row(
            self.what,
            peers=", ".join(f"{short(size)}: {self.show(cost)}" for size, cost in curve.items()),
            values={str(size): costs for size, costs in values.items()},
            curve=curve,
        )


def short(size: int) -> str:
    """16777216 as `16M`, 10000 as `10,000`."""
    for unit, name in ((2**20, "M"), (2**10, "K")):
        if size >= unit and not size % unit:
            return f"{size // unit}{name}"
    return f"{size:,}"
