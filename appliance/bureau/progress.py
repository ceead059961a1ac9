"""How far a run is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

LINE_SECONDS: Final = 10.0


@contextmanager
def shown(total: int, done: int) -> Iterator[Callable[[int], None]]:
    """Yields what is told how many more packages are done, of `total`, when `done` were before; on standard error."""
    if sys.stderr.isatty():
        with _bar(total, done) as told:
            yield told
    else:
        yield _Lines(total, done)


@contextmanager
def _bar(total: int, done: int) -> Iterator[Callable[[int], None]]:
    # Half of the command's start, and needed on a terminal alone.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("packages"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total, completed=done)
        yield lambda more: progress.advance(task, more)


class _Lines:
    """A line when there is something to tell and the last one is `LINE_SECONDS` old."""

    def __init__(self, total: int, done: int) -> None:
        self._total = total
        self._done = done
        self._next = time.monotonic() + LINE_SECONDS

    def __call__(self, more: int) -> None:
        self._done += more
        if (now := time.monotonic()) >= self._next:
            self._next = now + LINE_SECONDS
            sys.stderr.write(f"{self._done:,} of {self._total:,} packages\n")
            sys.stderr.flush()
