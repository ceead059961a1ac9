"""`appliance ledger`: makes, looks at, backs up, checks and exports a ledger, beside a running front or without one."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection

from appliance import config
from appliance.errors import ApplianceError, Reason
from appliance.ledger import database
from appliance.ledger.backup import backup
from appliance.ledger.export import Scripts, export
from appliance.ledger.inspection import inspect
from appliance.ledger.queries import counts
from appliance.ledger.schema import SCHEMA_VERSION


def main(argv: Sequence[str]) -> int:
    """Runs one of the commands; 1 when `check` found something.

    Raises:
        ApplianceError: what stood in the way.
    """
    arguments = _parser().parse_args(argv)
    if arguments.command == "export":
        return _export(arguments)
    url = arguments.url or config.load(arguments.config).front.ledger
    match arguments.command:
        case "migrate":
            database.migrate(url)
            sys.stdout.write(f"the ledger has schema version {SCHEMA_VERSION}\n")
        case "backup":
            backup(url, arguments.destination)
            sys.stdout.write(f"{arguments.destination}: {arguments.destination.stat().st_size} bytes\n")
        case "check":
            return _check(url)
        case "status":
            return _status(url)
    return 0


def _parser() -> argparse.ArgumentParser:
    ledger = argparse.ArgumentParser(add_help=False)
    which = ledger.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", type=Path, metavar="PATH", help="appliance.toml; its front.ledger is meant")
    which.add_argument("--url", help="a ledger by itself, such as sqlite:////var/backups/ledger.db")
    parser = argparse.ArgumentParser(prog="appliance ledger", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    purposes = {
        "migrate": "make the ledger, or bring its schema to this program's version",
        "status": "schema version, issuances by state, audit entries",
        "check": "check the file and every rule of the ledger; exit status 1 if one is broken",
        "backup": "copy the ledger while the front goes on",
    }
    made = {
        name: commands.add_parser(name, parents=[ledger], help=purpose, description=purpose)
        for name, purpose in purposes.items()
    }
    made["backup"].add_argument("destination", type=Path, metavar="DEST", help="a file that is not there yet")
    _add_export(commands)
    return parser


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    exporting = commands.add_parser(
        "export",
        help="write the READY packages of a SIM issuer into a file, for `appliance scripts render`",
        description=(
            "Writes the READY packages of a SIM issuer, as of now, into a file for a bureau. It holds no keys. Where "
            "several packages wait for one SIM, each next one has the counters behind those of the one before."
        ),
    )
    exporting.add_argument("--config", type=Path, metavar="PATH", required=True, help="appliance.toml")
    exporting.add_argument("--sim-issuer", metavar="NAME", required=True, help="as in sim_issuers/NAME.toml")
    exporting.add_argument("--counter", type=int, default=1, metavar="N", help="first sequence counter (%(default)s)")
    exporting.add_argument("--window", type=int, default=1, metavar="W", help="scripts for each package (%(default)s)")
    exporting.add_argument("destination", type=Path, metavar="DEST", help="a file that is not there yet")


def _export(arguments: argparse.Namespace) -> int:
    settings = config.load(arguments.config)
    issuer = settings.sim_issuers.get(arguments.sim_issuer)
    if issuer is None:
        raise ApplianceError(
            Reason.SIM_ISSUER_UNKNOWN,
            f"SIM issuer {arguments.sim_issuer} is not declared.",
            hint=f"Choose among {', '.join(settings.sim_issuers) or 'those that you declare in sim_issuers/'}.",
            field="--sim-issuer",
        )
    scripts = Scripts(arguments.counter, arguments.window)
    with _opened(settings.front.ledger) as connection:
        count = export(connection, issuer, scripts, arguments.destination, datetime.now(UTC))
    sys.stdout.write(f"{arguments.destination}: {count:,} packages, {arguments.destination.stat().st_size:,} bytes\n")
    return 0


@contextmanager
def _opened(url: str) -> Iterator[Connection]:
    database.require_schema(url)
    engine = database.connect(url, read_only=True)
    try:
        with database.translated_errors(), engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _status(url: str) -> int:
    with _opened(url) as connection:
        issuances, entries = counts(connection)
    told = {"schema version": SCHEMA_VERSION, **issuances, "audit entries": entries}
    lines = [f"{what:<20} {value}" for what, value in told.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _check(url: str) -> int:
    sound = True
    with _opened(url) as connection:
        for name, findings in inspect(connection):
            sound = sound and not findings
            sys.stdout.write(f"{'BROKEN' if findings else 'ok':<7} {name}\n")
            sys.stdout.writelines(f"        {finding}\n" for finding in findings)
    return 0 if sound else 1
