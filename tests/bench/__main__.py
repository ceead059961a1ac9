"""`python -m tests.bench`: measures, prints the figures, writes build/bench.json."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from tests.bench import apdu, fetch, figures, issue, machine, render, vault
from tests.bench.effort import FULL, QUICK, Effort
from tests.bench.figures import SCRIPTS_PER_SECOND, Figure

RESULTS = Path("build/bench.json")
WIDTH = 120

GROUPS: Mapping[str, tuple[str, Callable[[Effort], Iterator[Figure]]]] = {
    "apdu": ("rendering scripts, nothing around it", apdu.measure),
    "render": ("appliance scripts render, whole command", render.measure),
    "vault": ("session keys from the HSM", vault.measure),
    "fetch": ("FetchScript, whole path", fetch.measure),
    "issue": ("Issue, FetchScript, ReportReceipt", issue.measure),
}
"""What is measured, in this order: what it is, and what yields its figures."""


def main(argv: Sequence[str] | None = None) -> int:
    """Answers the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measure on this machine, which should have nothing else to do. Run it in the project's directory.",
        epilog="groups: " + "; ".join(f"{name}: {what}" for name, (what, _) in GROUPS.items()),
    )
    parser.add_argument("groups", nargs="*", metavar="group", help="what to measure (everything)")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs; not to be quoted")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if a goal is missed")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the figures go (%(default)s)")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.groups if name not in GROUPS]
    if unknown:
        parser.error(f"there is no group {unknown[0]}; there are {', '.join(GROUPS)}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(machine.described(), "", highlight=False)
    measured: list[Figure] = []
    for name in arguments.groups or GROUPS:
        what, measure = GROUPS[name]
        with console.status(f"measuring {name}"):
            group = list(measure(QUICK if arguments.quick else FULL))
        console.print(figures.table(f"{name}: {what}", group), "")
        measured += group
    if any(one.unit == SCRIPTS_PER_SECOND for one in measured):
        console.print(figures.chart(measured), "")
    figures.write(arguments.output, measured)
    missed = [one.figure for one in measured if one.met is False]
    goals = sum(one.met is not None for one in measured)
    console.print(f"figures written to {arguments.output}", highlight=False)
    if goals:
        console.print(f"{goals - len(missed)} of {goals} goals met", highlight=False)
    if missed:
        console.print(f"[bold red]missed:[/bold red] {', '.join(missed)}", highlight=False)
    return 1 if missed and arguments.strict else 0


if __name__ == "__main__":
    sys.exit(main())
