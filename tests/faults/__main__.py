"""`python -m tests.faults calls|ends|starts`: every call of every operation goes wrong in every way; prints the counts.

The gate runs a part of it. An answer is right, or an error that says what met which call; all others are "other".
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Final

from tests.path.site import Site, set_up
from tests.shim import Call, End, Fault, When, Which, compile_module

from .bench import bench
from .calls import RIGHT, Case, count, every, run
from .codes import APART, CODES, FEW
from .ends import CALLS, SETTINGS, Appliance, Started, calls_of, end_is_final, start_calls
from .operations import OPERATIONS

CHOSEN: Final[dict[str, Sequence[str]]] = {
    "start-up": APART,
    "renewal": APART,
    "issue P-384": APART,
    "issue RSA-2048": FEW[:1],
    "certificate request": APART,
}
"""Codes of operations with very many calls, with the same calls as others, or with one that takes long; else all."""
SEVERAL: Final = 10
"""Each how manieth call also ends in ways that differ little from those that every call ends in."""

Row = tuple[Counter[str], list[str]]


def cases(name: str, calls: int) -> Iterator[Case]:
    """All for this operation."""
    codes = CHOSEN.get(name, tuple(CODES))
    yield from every(calls, codes)
    yield from every(calls, [code for code in FEW if code in codes], lasting=True)


def calls_that_fail(directory: Path, module: Path, names: Sequence[str]) -> Iterator[tuple[str, int, Row]]:
    """An engine in this process, and every code."""
    with bench(directory, module) as made:
        made.ready()
        before = made.resources()
        for name in names or OPERATIONS:
            told: Counter[str] = Counter()
            wrong = []
            calls = count(made, OPERATIONS[name])
            for case in cases(name, calls):
                outcome = run(made, OPERATIONS[name], case)
                told["other" if outcome.wrong else outcome.told] += 1
                wrong += [f"{name} {case}: {found}" for found in outcome.wrong]
            yield name, calls, (told, wrong)
        made.ready()
        assert made.resources() == before


def ends(calls: int) -> Iterator[Fault]:
    """All for an operation of so many calls."""
    numbers = range(1, calls + 1)
    yield from (Fault(End.KILL, when, Which(n)) for n, when in product(numbers, When))
    yield from (Fault(End.HANG, When.BEFORE, Which(n)) for n in numbers)
    yield from (Fault(what, When.AFTER, Which(n)) for n in numbers[::SEVERAL] for what in (End.SEGV, End.HANG))
    yield from (Fault(CODES[code], when, Which(n)) for n, when, code in product(numbers, When, FEW))


def calls_that_end(directory: Path, module: Path, names: Sequence[str]) -> Iterator[tuple[str, int, Row]]:
    """Front and vault."""
    with _site(directory, module) as site:
        appliance = Appliance(site)
        appliance.waiting()
        before = appliance.resources()
        for name in names or CALLS:
            calls = calls_of(appliance, name)

            def told(fault: Fault, name: str = name) -> str:
                CALLS[name](appliance, fault)
                return appliance.told

            yield name, calls, _row(name, ends(calls), told)
        appliance.assert_nothing_has_grown(before)
        check = site.run("ledger", "check")
        print(check.stdout, check.stderr)
        assert check.returncode == 0


def starts(calls: Sequence[Call]) -> Iterator[Fault]:
    """All for a first vault that starts with these calls."""
    numbers = range(1, len(calls) + 1)
    yield from (Fault(End.KILL, When.BEFORE, Which(n)) for n in numbers)
    rest = [n for n in numbers if n % SEVERAL == 0 or calls[n - 1].function in {"C_OpenSession", "C_Login"}]
    whats: tuple[int | End, ...] = (End.KILL, End.SEGV, End.HANG, CODES[FEW[0]])
    yield from (Fault(what, When.AFTER, Which(n)) for what, n in product(whats, rest))


def starts_that_end(directory: Path, module: Path, _: Sequence[str]) -> Iterator[tuple[str, int, Row]]:
    """The vaults alone."""
    with _site(directory, module) as site:
        calls = start_calls(site)

        def told(fault: Fault) -> str:
            started = Started(site, fault)
            assert started.final == end_is_final(calls, fault)
            return "no vault any more" if started.final else "another vault" if started.again else RIGHT

        yield "start-up", len(calls), _row("start-up", starts(calls), told)


def _row(name: str, faults: Iterable[Fault], told: Callable[[Fault], str]) -> Row:
    counts: Counter[str] = Counter()
    wrong = []
    for fault in faults:
        try:
            counts[told(fault)] += 1
        except Exception as error:  # noqa: BLE001 - any is what is looked for
            counts["other"] += 1
            wrong.append(f"{name} {fault}: {error!r}")
    return counts, wrong


@contextmanager
def _site(directory: Path, module: Path) -> Iterator[Site]:
    set_up(directory / "demo")
    site = Site(directory / "demo", directory / "s", module, **SETTINGS)
    try:
        yield site
    finally:
        site.end()


MATRICES: Final = {"calls": calls_that_fail, "ends": calls_that_end, "starts": starts_that_end}


def main() -> int:
    """The exit status is 1 where something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("matrix", choices=MATRICES)
    parser.add_argument("operation", nargs="*", metavar="OPERATION")
    arguments = parser.parse_args()
    failed = False
    print("| operation | calls | cases | right | other answers and errors | wrong |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for operation, calls, (told, wrong) in MATRICES[arguments.matrix](
            directory, compile_module(directory), arguments.operation
        ):
            total, right, other = told.total(), told.pop(RIGHT, 0), told.pop("other", 0)
            rest = ", ".join(f"{number} {reason}" for reason, number in told.most_common())
            print(f"| {operation} | {calls} | {total} | {right} | {rest} | {other} |", flush=True)
            for line in wrong:
                print(line, file=sys.stderr, flush=True)
            failed |= bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
