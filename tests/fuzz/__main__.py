"""`python -m tests.fuzz [TARGET ...] --runs N`: search guided by coverage; `make fuzz` runs every target.

atheris searches what is in Python, libFuzzer alone what is in C. Each target has a process of its own, one after the
other. A finding is kept in build/fuzz/TARGET/ (the input, and where it was raised; of C, in its log), and the search
goes on, in C it ends; the corpus stays there for the next search. The exit status is 1 where anything was found.
"""

import argparse
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

if TYPE_CHECKING:
    from tests.fuzz.target import Target

ROOT: Final = Path(__file__).parents[2]
FOUND: Final = ROOT / "build" / "fuzz"
MOST_SECONDS: Final = 10
"""Of one input; all are short, so one that takes longer is a finding."""
_PROGRESS: Final = re.compile(r"^#\d+\s+(\w+)\s+cov: (\d+) ft: (\d+)", re.MULTILINE)
_EXECUTIONS: Final = re.compile(r"^stat::number_of_executed_units:\s+(\d+)", re.MULTILINE)


class Outcome(NamedTuple):
    """What a search did: executions, their rate, edges that the seeds reach and those behind them, and findings."""

    target: str
    executions: int
    per_second: int
    seeded: int
    beyond: int
    findings: int


def main(argv: Sequence[str] | None = None) -> int:
    """Searches, and prints a line for each target."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=main.__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="of tests/fuzz/targets.py; default: all")
    runs_help = "executions of each target (%(default)s); of one in C a hundred times as many"
    parser.add_argument("--runs", type=int, default=100_000, help=runs_help)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.inside:
        search(arguments.targets[0], arguments.runs)
        return 0
    from tests.fuzz.targets import TARGETS  # not at the top: `search` must be the first to import the appliance

    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    print(
        f"{'target':<14}{'executions':>12}{'/s':>8}{'edges of seeds':>16}{'new edges':>11}{'findings':>10}", flush=True
    )
    outcomes = []
    for name in arguments.targets or TARGETS:
        outcome = run(name, arguments.runs)
        outcomes.append(outcome)
        print(
            f"{name:<14}{outcome.executions:>12,}{outcome.per_second:>8,}{outcome.seeded:>16,}{outcome.beyond:>11,}"
            f"{outcome.findings:>10}",
            flush=True,
        )
    print(f"{'all':<14}{sum(outcome.executions for outcome in outcomes):>12,}")
    return int(any(outcome.findings for outcome in outcomes))


def run(name: str, runs: int) -> Outcome:
    """One target in a process of its own."""
    from tests.fuzz.targets import TARGETS  # see `main`

    directory, native = FOUND / name, TARGETS[name].native
    directory.mkdir(parents=True, exist_ok=True)
    if native:
        native.compile(directory / "search")
        faster = "-entropic_scale_per_exec_time=1"  # more of what takes less time
        command = [str(directory / "search"), faster, *options(name, TARGETS[name], runs * native.times)]
    else:
        command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz", name, "--runs", str(runs), "--inside"]
    started = time.monotonic()
    # The search ends its process without leaving its contexts; what those have put there goes away here.
    with tempfile.TemporaryDirectory(prefix="f-") as temporary, (directory / "log").open("wb") as log:
        environment = {**os.environ, "TMPDIR": temporary}
        ended = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, env=environment, check=False)
    told = (directory / "log").read_text(encoding="utf-8", errors="replace")
    progress = {event: int(edges) for event, edges, _ in _PROGRESS.findall(told)}
    executions = int(done[1]) if (done := _EXECUTIONS.search(told)) else 0
    if ended.returncode and not findings(directory):
        raise SystemExit(f"{name} could not be searched, status {ended.returncode}: see {directory / 'log'}")
    seeded = progress.get("INITED", 0)
    return Outcome(
        target=name,
        executions=executions,
        per_second=round(executions / (time.monotonic() - started)),
        seeded=seeded,
        beyond=progress.get("DONE", seeded) - seeded,
        findings=len(findings(directory)),
    )


def findings(directory: Path) -> list[Path]:
    """The inputs that were findings, or that made the search itself end."""
    kept = (path for kind in ("finding", "crash", "timeout", "oom") for path in directory.glob(f"{kind}-*"))
    return [path for path in kept if path.suffix != ".txt"]


def search(name: str, runs: int) -> None:
    """Searches one target; ends the process."""
    import atheris  # an extra that `make test` does not install

    with atheris.instrument_imports(include=["appliance"], enable_loader_override=False):
        from tests.fuzz.targets import TARGETS

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    directory = FOUND / name
    with TARGETS[name].open() as take:

        def once(data: bytes) -> None:
            try:
                take(data)
            except Exception as error:  # noqa: BLE001 (that is what a finding is)
                keep(directory, data, error)

        atheris.Setup([name, *options(name, TARGETS[name], runs)], once)
        atheris.Fuzz()


def options(name: str, target: "Target", runs: int) -> list[str]:
    """Those of libFuzzer for a search, of which atheris is one too; the seeds are written for it."""
    from tests.fuzz.targets import regressions  # see `main`

    directory = FOUND / name
    places = [directory / part for part in ("corpus", "seeds")]
    for place in places:
        place.mkdir(exist_ok=True)
    earlier = findings(directory)
    for number, seed in enumerate([*target.seeds(), *(path.read_bytes() for path in [*regressions(name), *earlier])]):
        (directory / "seeds" / f"{number:03}").write_bytes(seed)
    for path in earlier:  # comes again, unless it is mended
        path.unlink()
        path.with_name(f"{path.name}.txt").unlink(missing_ok=True)
    limits = (f"-runs={runs}", f"-max_len={target.longest}", f"-timeout={MOST_SECONDS}", "-print_final_stats=1")
    return [*limits, f"-artifact_prefix={directory}/", *map(str, places)]


def keep(directory: Path, data: bytes, error: Exception) -> None:
    """The shortest input for each place that raises, with the traceback beside it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if str(ROOT) in frame.filename]
    last = frames[-1]
    name = f"finding-{type(error).__name__}-{Path(last.filename).stem}-{last.lineno}"
    path = directory / name
    if not path.exists() or len(data) < path.stat().st_size:
        path.write_bytes(data)
        (directory / f"{name}.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
