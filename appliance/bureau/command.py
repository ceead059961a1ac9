"""`appliance scripts`: delivery scripts for the packages in an export, on all cores, with neither ledger nor HSM."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from appliance import supervisor
from appliance.bureau import keys
from appliance.bureau.content import lines
from appliance.bureau.export import MAX_WINDOW, Export
from appliance.bureau.forms import FORMS
from appliance.bureau.orders import require_keys
from appliance.bureau.progress import shown
from appliance.bureau.shards import FAILURES, Directory, Job
from appliance.bureau.workers import Claim, Work, render_all
from appliance.errors import ApplianceError, Reason

SHARD_PACKAGES: Final = 5000
MAX_SHARD_PACKAGES: Final = 100_000

_RENDER = """Makes a script for every package of an export and every counter of its window, in files of many scripts.

The directory gets 000000.scripts, 000001.scripts and so on (--form text: .tar), then manifest.json, and failures.jsonl
if anything failed; bureau.proto says what stands in them. Nothing has its name before it is whole. A run that was
interrupted goes on with the same command; what has been made is never made again.
"""
_RENDER_EPILOG = """the keys:
  An export brings session keys, or it does not; then the SIMs' static keys come through --keys-fd, as lines of three
  words, in any order. # begins a comment.

    SIM-ISSUER KVN KM-CHAN      master of a key set: its KVN in hex and 64 hex digits. Its check value must be the
                                export's. K-ENC and K-MAC of each SIM are derived from it.
    ICCID K-ENC K-MAC           keys of one SIM in hex, for bureaus that have no master. No check value vouches for
                                them: a wrong one shows when the SIM answers 6300 to EXTERNAL AUTHENTICATE.

  They never reach a disk: pipe them out of whatever holds them. Two ways, in bash:

    appliance scripts render export.bin scripts --keys-fd 3 3< <(gpg --decrypt keys.gpg)
    gpg --decrypt keys.gpg | appliance scripts render export.bin scripts --keys-fd 0

text form: an archive for each shard; one script out of it into a SIM in a reader:
    tar --extract --to-stdout --file scripts/000000.tar 000000/ICCID-COUNTER-ISSUANCE.txt | scriptor

exit status:
  0  all scripts are there, be it from an earlier run
  1  some could not be made: failures.jsonl names each with the way out, which is an export of those packages alone and
     a new directory; or the run ended, and the error says how to go on
  2  the command was called wrongly
  130  Ctrl-C: the same command goes on
"""


def main(argv: Sequence[str]) -> int:
    """Runs one of the commands.

    Raises:
        ApplianceError: what stood in the way.
    """
    arguments = _parser().parse_args(argv)
    if arguments.command == "show":
        sys.stdout.writelines(f"{line}\n" for line in lines(arguments.file))
        return 0
    return _render(arguments)


def _render(arguments: argparse.Namespace) -> int:
    supervisor.harden()
    begun = time.monotonic()
    export = Export.open(arguments.export)
    job = Job(export.digest.hex(), arguments.form, arguments.window, arguments.shard_packages)
    directory = Directory(arguments.destination, job)
    if (made := directory.manifest()) is not None:
        return _told(directory, made, None)
    _check_keys(export, arguments)
    with ExitStack() as stack:
        static = None if arguments.keys_fd is None else stack.enter_context(keys.given(arguments.keys_fd))
        if static:
            static.check(export.head.routes)
        shards = export.shards(job.shard_packages)
        if static:
            require_keys(export, static)
        claim = Claim(stack.enter_context(directory.claimed()))
        if (made := directory.manifest()) is not None:  # another run came to its end while this one waited for it
            return _told(directory, made, None)
        waiting = [shard for shard in shards if not directory.finished(shard.number)]
        left = sum(shard.packages for shard in waiting)
        try:
            with shown(export.head.packages, export.head.packages - left) as told:
                render_all(Work(export, directory, static, claim), waiting, arguments.jobs, told)
        except KeyboardInterrupt:
            finished = sum(directory.finished(shard.number) for shard in shards)
            sys.stderr.write(f"interrupted: {finished} of {len(shards)} files are made; the same command goes on\n")
            return 130
        facts = {"export": arguments.export.name, "finish_time": datetime.now(UTC).isoformat()}
        made = directory.finish(len(shards), facts)
    return _told(directory, made, time.monotonic() - begun)


def _told(directory: Directory, made: dict[str, Any], seconds: float | None) -> int:
    if seconds is None:
        sys.stdout.write("everything is there already\n")
    taken = "" if seconds is None else f" in {seconds:.1f} s"
    sys.stdout.write(
        f"{directory.path}: {made['scripts']:,} scripts for {made['packages']:,} packages "
        f"in {len(made['shards']):,} files{taken}\n"
    )
    if made["failed"]:
        sys.stdout.write(f"{made['failed']:,} failed: see {directory.path / FAILURES}\n")
    return 1 if made["failed"] else 0


def _check_keys(export: Export, arguments: argparse.Namespace) -> None:
    if export.head.session_keys and arguments.window:
        raise _invalid("The export brings session keys for certain counters.", "Leave --window out.", "--window")
    if export.head.session_keys and arguments.keys_fd is not None:
        raise _invalid("The export brings its session keys.", "Leave --keys-fd out.", keys.FIELD)
    if not export.head.session_keys and arguments.keys_fd is None:
        raise _invalid(
            "The export brings no keys.", "Hand them over with --keys-fd: appliance scripts render --help.", keys.FIELD
        )


def _invalid(detail: str, hint: str, field: str) -> ApplianceError:
    return ApplianceError(Reason.FIELD_INVALID, detail, hint=hint, field=field)


def _number(highest: int) -> Any:
    def parsed(text: str) -> int:
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= highest):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {highest}")
        return int(text)

    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="appliance scripts", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    forms = "".join(f"  {name:<22}{form.purpose}\n" for name, form in FORMS.items())
    render = commands.add_parser(
        "render",
        help="make the scripts for all packages of an export",
        description=_RENDER,
        epilog=f"forms:\n{forms}\n{_RENDER_EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    render.add_argument("export", type=Path, metavar="EXPORT", help="what `appliance ledger export` has written")
    render.add_argument("destination", type=Path, metavar="DEST", help="a directory: new, empty, or of a run to go on")
    render.add_argument("--form", choices=FORMS, default="commands", help="how scripts are written (%(default)s)")
    render.add_argument("--keys-fd", type=int, metavar="N", help="read static keys from this open file descriptor")
    render.add_argument(
        "--window",
        type=_number(MAX_WINDOW),
        default=0,
        metavar="W",
        help="scripts for each package, for consecutive counters (what the export says; more than that makes several "
        "for a counter where packages are for one SIM)",
    )
    render.add_argument(
        "--jobs",
        type=_number(1024),
        default=len(os.sched_getaffinity(0)),
        metavar="J",
        help="worker processes (one for each core)",
    )
    render.add_argument(
        "--shard-packages",
        type=_number(MAX_SHARD_PACKAGES),
        default=SHARD_PACKAGES,
        metavar="P",
        help="packages whose scripts go into one file (%(default)s)",
    )
    show = commands.add_parser("show", help="tell what is in an export or in a shard, without keys")
    show.add_argument("file", type=Path, metavar="FILE", help="an export, or a .scripts file")
    return parser
