"""The report: one document of plain data, as JSON, or laid out for people."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from appliance.hsm.check.attack import joined
from appliance.hsm.check.attacks import ATTACKS, PREMISE
from appliance.hsm.check.finding import Finding, Section, Status, Verdict, exit_status

WIDTH = 118
"""Of a report that goes to no terminal."""
_OUTCOMES = {
    Status.FIT: "Suite 01 runs, the declared keys are right, and no attack is possible but those that PKCS #11 itself "
    "permits, or that are accepted.",
    Status.UNFIT: "Something is wrong that keeps vaults from starting, or should: see WRONG, CRASHED and HUNG.",
    Status.OPEN: "Vaults can serve; but an attack is possible, or not excluded, that modules and their settings close.",
}
_UNDECLARED = "No settings were given, so no key was expected; check values were compared with nothing."
_STYLES = {
    Verdict.RIGHT: "green",
    Verdict.BLOCKED: "green",
    Verdict.POSSIBLE: "yellow",
    Verdict.UNKNOWN: "yellow",
    Verdict.WRONG: "red",
    Verdict.CRASHED: "red",
    Verdict.HUNG: "red",
}
_QUIET = {Verdict.BLOCKED, Verdict.NOT_OFFERED}


def document(findings: Sequence[Finding], accepted: Iterable[str], *, declared: bool) -> dict[str, Any]:
    """Everything that was found, and the exit status, as plain data.

    Args:
        accepted: names of attacks that are known to be possible.
        declared: whether there were settings.
    """
    known = sorted(set(accepted))
    status = exit_status(findings, known)
    return {
        "status": int(status),
        "outcome": _OUTCOMES[status],
        "settings": declared,
        "premise": PREMISE,
        "accepted": known,
        **{section.value: [_row(f) for f in findings if f.section is section] for section in _PLAIN},
        Section.ATTACKS.value: _attacks([f for f in findings if f.section is Section.ATTACKS], known),
    }


_PLAIN = tuple(section for section in Section if section is not Section.ATTACKS)


def _row(finding: Finding) -> dict[str, Any]:
    return {
        "name": finding.name,
        "part": finding.part,
        "verdict": finding.verdict.name,
        "found": finding.found,
        "status": int(finding.demands),
    }


def _attacks(findings: Sequence[Finding], accepted: Sequence[str]) -> list[dict[str, Any]]:
    table = {attack.name: attack for attack in ATTACKS}
    rows = []
    for name, variants in ((name, list(group)) for name, group in groupby(findings, lambda f: f.name)):
        attack = table[name]
        rows.append(
            _row(joined(variants))
            | {"tried": attack.tried, "means": attack.means, "defence": attack.defence, "closing": attack.closing}
            | {"source": attack.source, "inherent": attack.inherent, "accepted": name in accepted}
            | {"variants": [_row(variant) for variant in variants]}
        )
    return rows


def show(told: Mapping[str, Any], stream: TextIO) -> None:
    """Lay a document out for a terminal, else as plain text."""
    console = Console(file=stream, highlight=False)
    if console.is_terminal:
        _lay_out(told, console)
        return
    console = Console(width=WIDTH, highlight=False)
    with console.capture() as captured:
        _lay_out(told, console)
    stream.writelines(line.rstrip() + "\n" for line in captured.get().splitlines())


def _lay_out(told: Mapping[str, Any], console: Console) -> None:
    for section in (Section.MODULE, Section.TOKEN, Section.OBJECTS):
        _heading(console, section)
        grid = Table.grid(padding=(0, 2))
        for row in told[section]:
            grid.add_row(Text(f"{row['name']} {row['part']}".strip()), _verdict(row, plain=True), Text(row["found"]))
        console.print(Padding(grid, (0, 0, 0, 2)))
    for section in (Section.MECHANISMS, Section.KEYS):
        _heading(console, section)
        if told[section]:
            console.print(_table(told[section], section.removesuffix("s")))
    if not told["settings"]:
        console.print(Padding(Text(_UNDECLARED), (0, 0, 0, 2)))
    _heading(console, Section.ATTACKS)
    console.print(Padding(Text(PREMISE), (0, 0, 0, 2)))
    console.print(_attack_table(told[Section.ATTACKS]))
    _explain(told[Section.ATTACKS], console)
    console.print(Text(f"\n{told['outcome']} Exit status {told['status']}."))


def _heading(console: Console, section: Section) -> None:
    console.print(Text(f"\n{section.upper()}", style="bold"))


def _verdict(row: Mapping[str, Any], *, plain: bool = False) -> Text:
    verdict = Verdict[row["verdict"]]
    return Text("" if plain and verdict is Verdict.NOTED else verdict, style=_STYLES.get(verdict, ""))


def _table(rows: Iterable[Mapping[str, Any]], of: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for title in (of, "part", "verdict", "found | expected"):
        table.add_column(title, overflow="fold", no_wrap=title == "verdict")
    before = ""
    for row in rows:
        name, before = ("" if row["name"] == before else row["name"]), row["name"]
        table.add_row(Text(name), Text(row["part"]), _verdict(row), Text(row["found"]))
    return table


def _attack_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for title in ("attack", "verdict", "tried; what the module answered"):
        table.add_column(title, overflow="fold", no_wrap=title == "attack")
    for row in rows:
        mark = " (accepted)" if row["accepted"] else " (inherent)" if row["inherent"] else ""
        verdict = _verdict(row) + Text(mark if Verdict[row["verdict"]] not in _QUIET else "")
        table.add_row(Text(row["name"]), verdict, Text(f"{row['tried']}\n{row['found']}"))
    return table


def _explain(rows: Iterable[Mapping[str, Any]], console: Console) -> None:
    """What each attack means that is not blocked, and what closes it."""
    for row in rows:
        if Verdict[row["verdict"]] in _QUIET:
            continue
        console.print(Text(f"\n  {row['name']}", style="bold"))
        grid = Table.grid(padding=(0, 2))
        for title in ("means", "defence", "closing", "source"):
            grid.add_row(Text(title), Text(row[title]))
        console.print(Padding(grid, (0, 0, 0, 4)))
