"""How fast `appliance scripts render` is: the whole command, on an export of 2,480-byte packages."""

import tempfile
import time
from pathlib import Path

from tests.bureau.samples import keys, many, run


def measure(directory: Path, count: int, *, static: bool, form: str = "commands", jobs: int = 0) -> float:
    """Scripts per second.

    Args:
        directory: for the export, which stays for the next run, and the scripts, which do not.
        count: packages, of one script each.
        static: with KM-CHAN through a descriptor; else with session keys in the export.
        form: of the scripts.
        jobs: worker processes; 0 is one for each core.
    """
    directory.mkdir(parents=True, exist_ok=True)
    source = directory / f"{'static' if static else 'session'}-{count}"
    if not source.exists():
        many(source, count, static=static)
    options = ["--form", form, *(["--keys-fd", 0] if static else []), *(["--jobs", jobs] if jobs else [])]
    with tempfile.TemporaryDirectory(dir=directory) as scripts:
        started = time.perf_counter()
        done = run("render", source, scripts, *options, given=keys() if static else b"")
        seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(done.stderr)
    return count / seconds
