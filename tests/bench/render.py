"""`appliance scripts render` as bureaus run it, on all cores: scripts per second of the whole command."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench import bureau
from tests.bench.effort import Effort
from tests.bench.figures import SCRIPTS_PER_SECOND, Figure, median

BUILD = Path("build/bench")
STATIC = {"render_static": True, "render_session": False}
"""Whether the keys are static ones, or the export has those of sessions."""


def measure(effort: Effort) -> Iterator[Figure]:
    """A rate for each kind of keys; their runs take turns."""
    BUILD.mkdir(parents=True, exist_ok=True)
    rates: dict[str, list[float]] = {figure: [] for figure in STATIC}
    with tempfile.TemporaryDirectory(dir=BUILD) as directory:
        for _ in range(effort.runs):
            for figure, static in STATIC.items():
                rates[figure].append(bureau.measure(Path(directory), effort.scripts, static=static))
    for figure, runs in rates.items():
        yield median(figure, runs, SCRIPTS_PER_SECOND)
