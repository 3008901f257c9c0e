"""What `bench/` does with what it measured: its table, its file, its pictures; and that it measures what it says."""

import os
import stat
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

if not hasattr(os, "sched_setaffinity"):
    pytest.skip("the bench is for Linux", allow_module_level=True)
pytest.importorskip("uvloop", reason="the servers of the bench run on uvloop")

from bench import calls, install, markdown, pictures
from bench.core import WORKS, cached
from bench.curve import Curve, extrapolated, level, per_unit
from bench.growth import LATENCY, MEMORY
from bench.record import Record, place
from bench.report import Row, Target, header, microseconds, turned
from bench.serving import DISTINCT_CPU


def sample() -> Record:
    """A run with what the pictures show."""
    values: dict[str, Sequence[float]] = {name: [4e-5, 5e-5] for name in ("ours", "no-op", "plain", "async_reduce")}
    rows = [Row.of(DISTINCT_CPU, values, microseconds, [1.0, 1.1], Target(1.05))]
    for curve in (LATENCY, MEMORY):
        for name in curve.names:
            is_ours = name == curve.names[0]
            row = Row(curve.what if is_ours else name, ratios=[1.0], under="" if is_ours else curve.what)
            row.curve = {size: 0.05 * size for size in curve.sizes}
            rows.append(row)
    rows.append(Row("not there", missing="no such program"))
    return Record("a machine", "a machine, in short", quick=True, rows=rows)


# The table.


@pytest.mark.parametrize(
    ("target", "reached", "missed", "shown"),
    [
        (Target(0.95), 0.95, 0.951, "<= 0.95"),
        (Target(0.95, at_least=True), 0.95, 0.949, ">= 0.95"),
        (Target(32, unit=" MiB"), 32.0, 32.1, "<= 32 MiB"),
    ],
)
def test_a_target_is_reached_up_to_its_limit(target: Target, reached: float, missed: float, shown: str) -> None:
    assert target.reached(reached)
    assert not target.reached(missed)
    assert str(target) == shown


def test_a_row_shows_medians_spread_and_verdict() -> None:
    values = {"reduce": [1e-6, 3e-6, 2e-6], "plain": [4e-6, 4e-6, 8e-6], "never asked": []}

    row = Row.of("work", values, microseconds, [0.25, 0.75, 0.5], Target(0.4), ours="reduce")

    assert row.cells() == (
        "work (3 rounds)",
        "2.0 us",
        "plain 4.0 us",
        "0.500",
        "0.25..0.75",
        "<= 0.40",
        "NOT REACHED",
    )
    assert list(row.values) == ["ours", "plain", "never asked"]


def test_a_row_without_rounds_says_why() -> None:
    row = Row("work", target=Target(0.4), missing="wrk is not installed")

    assert row.cells()[-1] == "not measured: wrk is not installed"


def test_a_row_under_another_one_is_indented() -> None:
    assert Row("plain", ratios=[1.0], under="work").cells()[0] == "    plain (1 round)"


def test_columns_stand_under_their_titles() -> None:
    row = str(Row("work", ours="1 us", ratios=[1.0]))

    assert row.index("1 us") == header().index("ours")


def test_rounds_take_turns() -> None:
    assert [turned(("a", "b"), number) for number in range(3)] == [["b", "a"], ["a", "b"], ["b", "a"]]


# Growth.


@pytest.mark.parametrize(
    ("growth", "linear", "quadratic"),
    [
        (level(10), lambda size: 5.0, lambda size: size),
        (per_unit(10), lambda size: 2.0 * size, lambda size: size * size),
        (extrapolated(10), lambda size: 100 + 2 * size, lambda size: 100 + size * size),
    ],
    ids=["level", "per_unit", "extrapolated"],
)
def test_what_grows_linearly_is_told_from_what_does_not(
    growth: Callable[[Mapping[int, float]], float],
    linear: Callable[[int], float],
    quadratic: Callable[[int], float],
) -> None:
    sizes = (1, 10, 100)

    assert growth({size: linear(size) for size in sizes}) == pytest.approx(1.0)
    assert growth({size: quadratic(size) for size in sizes}) > 5


def test_a_curve_has_a_row_for_each_that_is_measured() -> None:
    curve = Curve("work", (1, 10), ("reduce", "plain"), microseconds, level(1), seldom={"plain": 2})
    asked: list[tuple[str, int]] = []

    def measure(name: str, size: int) -> float:
        asked.append((name, size))
        return size * (1e-6 if name == "reduce" else 2e-6)

    ours, plain = curve.rows(measure, rounds=3)

    assert asked[:4] == [("plain", 1), ("reduce", 1), ("plain", 10), ("reduce", 10)]
    assert ours.peers == "1: 1.0 us, 10: 10.0 us"
    assert ours.ratios == pytest.approx([10.0] * 3)
    assert (plain.what, plain.under) == ("plain", "work")
    assert plain.ratios == pytest.approx([0.5] * 2)


def test_growth_beyond_that_of_another_one_is_divided_by_it() -> None:
    curve = Curve("work", (1, 10), ("reduce", "plain"), microseconds, level(1), beyond="plain")

    ours, _ = curve.rows(lambda name, size: size * 1e-6, rounds=1)

    assert ours.ratios == pytest.approx([1.0])


def test_a_curve_that_was_cut_short_promises_nothing() -> None:
    curve = Curve("work", (1, 10, 100), ("reduce",), microseconds, level(10))

    assert curve.upto(100).target is curve.target
    assert (curve.upto(10).sizes, curve.upto(10).target) == ([1, 10], None)


@pytest.mark.parametrize("name", ["reduce", "no-op"])
@pytest.mark.parametrize(
    "call",
    [
        calls.beside_targets,
        calls.beside_identities,
        calls.with_headers,
        calls.following_with_headers,
        calls.with_routes,
    ],
)
async def test_calls_are_what_they_say(call: Callable[[str, int], Coroutine[Any, Any, float]], name: str) -> None:
    """They raise where they come to another number of runs of the handler."""
    assert await call(name, 3) > 0


@pytest.mark.parametrize("what", [what for what, contest in WORKS.items() if contest.cached is not None])
async def test_async_lru_does_the_same_job(what: str) -> None:
    """It runs once for each herd, and again for the next."""
    pytest.importorskip("async_lru", reason="of the group `bench`")
    runs = 0

    async def body(a: object, ident: str = "") -> object:
        nonlocal runs
        runs += 1
        return a

    contest = WORKS[what]
    function = cached(body, by_ident=contest.by_ident)
    assert contest.cached is not None

    for _ in range(3):
        await contest.cached(function, 10)

    assert runs == (3 if "herd" in what else 30)


# What is kept.


def test_a_run_is_read_as_it_was_saved(tmp_path: Path) -> None:
    record = sample()

    record.save(tmp_path / "results" / "run.json")

    assert Record.load(tmp_path / "results" / "run.json") == record


def test_a_run_of_a_part_does_not_replace_one_of_all() -> None:
    assert len({place(), place(quick=True), place("core"), place("core", quick=True)}) == 4


def test_rows_are_found_by_name_and_by_what_they_stand_under() -> None:
    record = sample()

    assert record.row(MEMORY.what) is not None
    assert record.row("plain") is None
    assert record.row("plain", under=MEMORY.what) is not None
    assert record.row("not there") is None


def test_pictures_are_the_same_from_the_same_data(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="of the group `pictures`")

    said = [list(pictures.draw(sample(), tmp_path / folder)) for folder in ("one", "other")]

    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["distinct.svg", "latency.svg", "memory.svg"]
    assert len(said[0]) == 3
    for name in names:
        drawn = (tmp_path / "one" / name).read_text()
        assert drawn == (tmp_path / "other" / name).read_text()
        assert "a machine, in short" in drawn
        assert "<text" in drawn  # no paths of glyphs
        assert len(drawn) < 40_000


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="of the group `pictures`")

    said = list(pictures.draw(Record("", "", quick=True, rows=[]), tmp_path))

    assert not list(tmp_path.iterdir())
    assert all("has not measured" in line for line in said)


# Installing.


def test_installing_starts_no_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tmp_path / "policy-rc.d"
    said = tmp_path / "said"
    apt = tmp_path / "apt-get"
    apt.write_text(f'#!/bin/sh\necho "$* $({policy}; echo $?)" >> {said}\n')
    apt.chmod(apt.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(install, "_POLICY", policy)

    install.install(["wrk", "nginx"], [])

    assert said.read_text().splitlines() == [
        "-q update 101",
        "-q install -y --no-install-recommends wrk 101",
        "-q install -y --no-install-recommends nginx 101",
    ]
    assert not policy.exists()


def test_a_policy_of_others_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("theirs")
    monkeypatch.setattr(install, "_POLICY", policy)
    monkeypatch.setattr(install, "_run", lambda command: True)

    install.install(["wrk"], [])

    assert policy.read_text() == "theirs"


def test_what_cannot_be_installed_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(install, "missing", lambda: ["varnish"])
    monkeypatch.setattr(install, "as_root", lambda: None)

    install.main()

    assert "varnish" in capsys.readouterr().out


def test_all_rows_are_written_between_their_marks() -> None:
    begin, end = "<!-- bench: `make pictures` writes this -->\n", "<!-- end of bench -->\n"

    written = markdown.written_into(f"before\n{begin}old\n{end}after\n", sample())

    assert written.startswith(f"before\n{begin}\n| what ")
    assert written.endswith(f"- a machine\n\n{end}after\n")
    assert "old" not in written
    assert "| 1.050 (1.00..1.10) | <= 1.05 ✓ |" in written
    assert "| not there | - | - | not measured: no such program |  |" in written
    assert markdown.written_into(written, sample()) == written
    with pytest.raises(ValueError, match="no place for the table"):
        markdown.written_into("before\nafter\n", sample())


def test_the_few_rows_are_written_between_their_marks_in_their_order() -> None:
    record = sample()
    record.rows[:0] = [
        Row(what, ratios=[1.0]) for what in ("core: herd of 200", "client, distinct GETs: CPU", "others")
    ]
    record.rows.append(Row("distinct GETs: throughput", ratios=[1.0]))
    record.rows.append(Row("client, herds of 64", missing="no such program"))
    begin, end = "<!-- short: `make pictures` writes this -->\n", "<!-- end of short -->\n"

    written = markdown.shortly_written_into(f"before\n{begin}old\n{end}after\n", record)

    assert written.startswith(f"before\n{begin}\n| what ")
    assert written.endswith(f"\n{end}after\n")
    rows = [line.split(" (")[0] for line in written.splitlines() if "round)" in line]
    assert rows == ["| distinct GETs: throughput", "| client, distinct GETs: CPU"]
    assert markdown.shortly_written_into(written, record) == written
    with pytest.raises(ValueError, match="no place for the table"):
        markdown.shortly_written_into("before\nafter\n", record)


def test_the_documents_have_a_place_for_the_tables() -> None:
    assert markdown.written_into(markdown.FIGURES.read_text(encoding="utf-8"), sample())
    assert markdown.shortly_written_into(markdown.README.read_text(encoding="utf-8"), sample())


def test_both_tables_are_written_into_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample().save(tmp_path / "run.json")
    figures, readme = tmp_path / "figures.md", tmp_path / "README.md"
    for path, source in ((figures, markdown.FIGURES), (readme, markdown.README)):
        path.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    arguments = ["--data", str(tmp_path / "run.json"), "--figures", str(figures), "--readme", str(readme)]
    monkeypatch.setattr(sys, "argv", ["markdown", *arguments])

    assert markdown.main() == 0

    assert "- a machine\n" in figures.read_text(encoding="utf-8")
    assert " rounds)" not in readme.read_text(encoding="utf-8")


def test_the_readme_has_every_one_of_its_few_rows_as_the_figures_have_it() -> None:
    rows, all_rows = (
        [line for line in path.read_text(encoding="utf-8").splitlines() if " round" in line and line.startswith("| ")]
        for path in (markdown.README, markdown.FIGURES)
    )

    assert [row for row in rows if row not in all_rows] == []
    assert [begin for begin in markdown.FEW if not any(row.startswith(f"| {begin}") for row in rows)] == []
