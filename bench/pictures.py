"""Draw what a run measured: `python -m bench.pictures [--data FILE] [--into FOLDER]`; wants matplotlib.

Pictures come out the same from the same data, byte for byte: no date, no random ids, and text as text.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .growth import LATENCY, MEMORY
from .record import Record, chosen
from .serving import DISTINCT_CPU

FOLDER: Final = Path(__file__).parent.parent / "docs" / "pictures"

# One colour and name each, whatever the picture.
_LOOKS: Final[Mapping[str, tuple[str, str]]] = {
    "ours": ("aiohttp-reduce", "#0b6e4f"),
    "plain": ("plain aiohttp", "#6c757d"),
    "no-op": ("no-op middleware", "#adb5bd"),
    "async_reduce": ("async_reduce in a middleware", "#d1793a"),
    "varnish": ("Varnish", "#3a6ea5"),
    "nginx": ("nginx proxy_cache_lock", "#a23b72"),
}
_STYLE: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bench",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
}


class NotMeasuredError(Exception):
    """The run has no such row."""


def latency(axes: Any, record: Record) -> None:
    """How long a herd waits, against its size."""
    _lines(axes, _curves(record, LATENCY.what, LATENCY.names[1:]), 1e3, legend="center right")
    axes.set(xscale="log", yscale="log", xlabel="identical requests at once", ylabel="99th percentile, ms")
    _ticks(axes.xaxis, LATENCY.sizes)
    _ticks(axes.yaxis, [tick for tick in (50, 100, 200, 500, 1_000, 2_000) if tick < 1.5 * axes.get_ylim()[1]])
    axes.set_title("How long a herd waits (the handler takes 50 ms)")


def memory(axes: Any, record: Record) -> None:
    """What a large answer to many takes, against their number."""
    _lines(axes, _curves(record, MEMORY.what, MEMORY.names[1:]), 2**-20, legend="upper left")
    axes.set(xlabel="clients that are answered at once", ylabel="growth of the server's memory, MiB", ylim=(0, None))
    axes.set_title("What an answer of 10 MiB takes")


def distinct(axes: Any, record: Record) -> None:
    """What a request costs that nobody joins."""
    row = record.row(DISTINCT_CPU)
    if row is None:
        raise NotMeasuredError(DISTINCT_CPU.strip())
    costs = {name: statistics.median(row.values[name]) * 1e6 for name in ("plain", "no-op", "ours", "async_reduce")}
    looks = [_LOOKS[name] for name in costs]
    bars = axes.barh([label for label, _ in looks], list(costs.values()), color=[colour for _, colour in looks])
    axes.bar_label(bars, fmt="{:.0f} us", padding=4)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="server's processor time for each, us")
    axes.set_title("What a request costs that nobody joins")


PICTURES: Final[Mapping[str, Callable[[Any, Record], None]]] = {
    "latency": latency,
    "distinct": distinct,
    "memory": memory,
}


def draw(record: Record, folder: Path) -> Iterator[str]:
    """Write each picture as `NAME.svg`, and say so, or why it cannot be. Raises ImportError without matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES.items():
        path = folder / f"{name}.svg"
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=(7.2, 4.2), facecolor="white", layout="constrained")
            try:
                picture(figure.subplots(), record)
            except NotMeasuredError as error:
                yield f"{path}: not drawn, as this run has not measured: {error}"
                continue
            figure.supxlabel(record.caption, fontsize=7, color="#6c757d")
            figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        yield f"{path}"


def _curves(record: Record, what: str, others: Sequence[str]) -> dict[str, Mapping[int, float]]:
    """By name: ours, and those of the others that were measured. Raises NotMeasuredError without ours."""
    ours = record.row(what)
    if ours is None:
        raise NotMeasuredError(what)
    rows = {name: record.row(name, under=what) for name in others}
    return {"ours": ours.curve, **{name: row.curve for name, row in rows.items() if row is not None}}


def _lines(axes: Any, curves: Mapping[str, Mapping[int, float]], scale: float, *, legend: str) -> None:
    """A line for each; ours is broad and below the others, so that one that is equal is seen too."""
    for name, curve in curves.items():
        label, colour = _LOOKS[name]
        values = [value * scale for value in curve.values()]
        width, order = (4.0, 2) if name == "ours" else (1.5, 3)
        axes.plot(list(curve), values, marker="o", label=label, color=colour, linewidth=width, zorder=order)
    axes.legend(frameon=False, loc=legend)


def _ticks(axis: Any, values: Sequence[float]) -> None:
    axis.set_ticks(values, labels=[f"{value:,g}" for value in values])
    axis.set_ticks([], minor=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pictures", description=__doc__)
    parser.add_argument("--into", type=Path, default=FOLDER, metavar="FOLDER")
    options, record = chosen(parser)
    for said in draw(record, options.into):
        print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
