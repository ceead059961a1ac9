"""What a measurement says: a figure, and how figures are printed and written.

A figure is the median of its runs unless its name says otherwise. Without a goal it is only reported.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.bar import Bar
from rich.table import Table

SCRIPTS_PER_SECOND = "scripts/s"
RATIO = "ratio"
_BAR_WIDTH = 60


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Args:
        figure: its name, the same in every version.
        value: in `unit`.
        direction: which values are better.
        runs: how many were measured.
        goal: what the value has to reach, or None.
        spread: half of what the middle half of the runs spans, by the value; None where runs are not told apart.
    """

    figure: str
    value: float
    unit: str
    direction: Literal["higher", "lower"]
    runs: int
    goal: float | None = None
    spread: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.direction == "higher" else self.value <= self.goal

    def row(self) -> dict[str, object]:
        """Its object in bench.json."""
        names = ("figure", "value", "unit", "goal", "direction", "met", "runs")
        return {name: getattr(self, name) for name in names}


def median(
    figure: str,
    runs: Sequence[float],
    unit: str,
    *,
    direction: Literal["higher", "lower"] = "higher",
    goal: float | None = None,
) -> Figure:
    """The figure of several runs."""
    value = statistics.median(runs)
    low, _, high = statistics.quantiles(runs, n=4, method="inclusive") if len(runs) > 1 else (value,) * 3
    return Figure(figure, value, unit, direction, len(runs), goal, (high - low) / 2 / value)


def write(path: Path, figures: Iterable[Figure]) -> None:
    """Writes bench.json: a list of {figure, value, unit, goal, direction, met, runs}, what is not there null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([figure.row() for figure in figures], indent=1) + "\n", encoding="utf-8")


def table(title: str, figures: Iterable[Figure]) -> Table:
    """The figures to read; a goal that was missed is red."""
    made = Table(title=title, title_justify="left")
    for heading in ("figure", "value", "unit", "goal", "met", "runs", "spread"):
        made.add_column(heading, justify="left" if heading in ("figure", "unit") else "right", no_wrap=True)
    for one in figures:
        made.add_row(
            one.figure,
            _number(one.value),
            one.unit,
            "" if one.goal is None else f"{'>=' if one.direction == 'higher' else '<='} {one.goal:g}",
            {None: "", True: "[green]yes[/green]", False: "[bold red]NO[/bold red]"}[one.met],
            str(one.runs),
            "" if one.spread is None else f"±{one.spread:.1%}",
        )
    return made


def chart(figures: Iterable[Figure]) -> Table:
    """The rates, at least one, as bars on a logarithmic scale, slowest first."""
    rates = sorted((one for one in figures if one.unit == SCRIPTS_PER_SECOND), key=lambda one: one.value)
    made = Table(title="Scripts per second; ten times as many are a step of the scale", title_justify="left", box=None)
    made.add_column(no_wrap=True)
    made.add_column(no_wrap=True, width=_BAR_WIDTH)
    made.add_column(justify="right", no_wrap=True)
    first = math.floor(math.log10(rates[0].value))
    decades = math.ceil(math.log10(rates[-1].value)) - first or 1
    step = _BAR_WIDTH // decades
    for one in rates:
        made.add_row(
            one.figure, Bar(decades, 0, math.log10(one.value) - first, width=step * decades), _number(one.value)
        )
    made.add_row("", "".join(f"|{10**power:<{step - 1},}" for power in range(first, first + decades)), "")
    return made


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"
