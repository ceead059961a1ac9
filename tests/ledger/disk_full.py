"""Fills the disk under a ledger and makes room again: `python -m tests.ledger.disk_full DIRECTORY`.

DIRECTORY is a small file system of its own. Prints one JSON object of what was seen.
"""

import asyncio
import json
import sys
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.ledger import Ledger, migrate
from appliance.ledger.command import main as ledger_command
from tests.ledger.samples import DIGEST, ISSUER, answer, make_ready, order, package


async def main(directory: Path) -> None:
    url = f"sqlite:///{directory}/ledger.db"
    migrate(url)
    room = directory / "room"
    room.write_bytes(bytes(400_000))
    ledger = Ledger.open(url)
    halfway = await ledger.reserve(ISSUER, order("halfway", sim=999_999), DIGEST)
    assert halfway.attempt is not None
    acknowledged, errors = [], set()
    for number in range(5000):
        results = await asyncio.gather(
            *(make_ready(ledger, order(f"person-{number}-{n}", sim=8 * number + n)) for n in range(8)),
            return_exceptions=True,
        )
        acknowledged += [result[0].record.id for result in results if not isinstance(result, BaseException)]
        errors |= {_name(result) for result in results if isinstance(result, BaseException)}
        if errors:
            break
    sealed = package(halfway.record, halfway.attempt).encode()
    readable = (await ledger.get(acknowledged[0])).state
    room.unlink()
    await ledger.complete(halfway.attempt, sealed, answer)
    await make_ready(ledger, order("person-after", sim=999_998))
    kept = {record.id for record in (await ledger.list(page_size=100_000))[0] if record.package_sha256}
    ledger.close()
    seen = {
        "errors": sorted(errors),
        "acknowledged": len(acknowledged),
        "lost": len(set(acknowledged) - kept),
        "readable_when_full": readable,
        "check": ledger_command(["check", "--url", url]),
    }
    sys.stdout.write(json.dumps(seen) + "\n")


def _name(error: BaseException) -> str:
    return error.reason if isinstance(error, ApplianceError) else repr(error)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
