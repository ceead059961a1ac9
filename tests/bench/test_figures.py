"""Figures as build/bench.json and the table have them."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from tests.bench import __main__ as command
from tests.bench import figures
from tests.bench.effort import QUICK, Effort
from tests.bench.figures import SCRIPTS_PER_SECOND, Figure, median

MET = median("fast_enough", [1.0, 3.0, 2.0], "ratio", goal=2)
MISSED = median("too_slow", [5.0, 6.0], "ms", direction="lower", goal=5)
REPORTED = Figure("only_told", 1234.5, SCRIPTS_PER_SECOND, "higher", 7)


def printed(table: Table) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_file_is_a_list_of_figures_with_numeric_goals(tmp_path: Path) -> None:
    file = tmp_path / "new" / "bench.json"
    figures.write(file, [MET, MISSED, REPORTED])
    assert json.loads(file.read_text("utf-8")) == [
        {
            "figure": "fast_enough",
            "value": 2,
            "unit": "ratio",
            "goal": 2,
            "direction": "higher",
            "met": True,
            "runs": 3,
        },
        {"figure": "too_slow", "value": 5.5, "unit": "ms", "goal": 5, "direction": "lower", "met": False, "runs": 2},
        {"figure": "only_told", "value": 1234.5, "unit": "scripts/s", "goal": None, "direction": "higher"}
        | {"met": None, "runs": 7},
    ]


@pytest.mark.parametrize(
    ("value", "direction", "met"),
    [(2, "higher", True), (1.9, "higher", False), (2, "lower", True), (2.1, "lower", False)],
)
def test_a_goal_is_met_from_its_side(value: float, direction: str, met: bool) -> None:
    assert Figure("x", value, "", "higher" if direction == "higher" else "lower", 1, goal=2).met is met


def test_the_spread_is_half_of_the_middle_half() -> None:
    assert median("x", [8.0, 9.0, 10.0, 11.0, 12.0], "").spread == pytest.approx(0.1)
    assert median("x", [10.0], "").spread == 0


def test_the_table_tells_which_goals_were_missed() -> None:
    lines = {line.split()[1]: line for line in printed(figures.table("t", [MET, MISSED, REPORTED])).splitlines()[4:-1]}
    assert ">= 2" in lines["fast_enough"] and "yes" in lines["fast_enough"]
    assert "<= 5" in lines["too_slow"] and "NO" in lines["too_slow"]
    assert "1,234" in lines["only_told"] and "yes" not in lines["only_told"] and "NO" not in lines["only_told"]


def test_the_chart_shows_rates_alone_from_slow_to_fast() -> None:
    rates = [Figure(f"rate_{value}", value, SCRIPTS_PER_SECOND, "higher", 1) for value in (100_000, 60, 5_000)]
    lines = printed(figures.chart([*rates, MET])).splitlines()
    named = [line for line in lines if "_" in line]
    assert [line.split()[0] for line in named] == ["rate_60", "rate_5000", "rate_100000"]
    assert [line.count("█") for line in named] == sorted(line.count("█") for line in named)


@pytest.mark.parametrize(("options", "status"), [([], 0), (["--strict"], 1)])
def test_a_missed_goal_fails_a_strict_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], status: int
) -> None:
    asked: list[Effort] = []

    def measure(effort: Effort) -> list[Figure]:
        asked.append(effort)
        return [MET, MISSED]

    monkeypatch.setattr(command, "GROUPS", {"some": ("what", measure), "other": ("what", lambda _: [REPORTED])})
    file = tmp_path / "bench.json"
    assert command.main([*options, "--quick", "--output", str(file), "some"]) == status
    assert [row["figure"] for row in json.loads(file.read_text("utf-8"))] == ["fast_enough", "too_slow"]
    assert asked == [QUICK]
    told = capsys.readouterr().out
    assert "Python" in told and "OpenSSL" in told
    assert "1 of 2 goals met" in told and "missed: too_slow" in told


def test_every_group_is_measured_unless_some_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = {"some": ("what", lambda _: [MET]), "other": ("what", lambda _: [REPORTED])}
    monkeypatch.setattr(command, "GROUPS", groups)
    file = tmp_path / "bench.json"
    assert command.main(["--strict", "--output", str(file)]) == 0
    assert [row["figure"] for row in json.loads(file.read_text("utf-8"))] == ["fast_enough", "only_told"]
    with pytest.raises(SystemExit):
        command.main(["unknown"])
    assert "there is no group unknown; there are some, other" in capsys.readouterr().err
