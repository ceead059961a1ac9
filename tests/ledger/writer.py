"""A program that writes to a ledger until it is killed: `python -m tests.ledger.writer URL [stop-inside]`.

A line on its standard output says what was acknowledged, and is written after that: "RESERVED id request_id counter
serial", "READY id sha256", "ACTIVE id". With `stop-inside` it stands still inside the transaction that completes its
first issuance, says "INSIDE id request_id counter serial", and waits to be killed there.
"""

import asyncio
import hashlib
import itertools
import sys
import threading
import uuid

from appliance.domain.issuance import IssuanceRecord
from appliance.ledger import Ledger
from tests.ledger.samples import DIGEST, ISSUER, TSM, answer, order, package

WRITERS = 8
SIMS = 8
"""Few, so that counters of one SIM are taken in quick succession; enough that none becomes SIM_BUSY in a test."""


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def write(ledger: Ledger, writer: int, *, stop_inside: bool) -> None:
    for number in itertools.count():
        wanted = order(f"person-{writer}-{number}", sim=number % SIMS)
        reserved = await ledger.reserve(ISSUER, wanted, DIGEST)
        attempt = reserved.attempt
        assert attempt is not None
        reservation = attempt.issuance, wanted.request_id, attempt.counter, attempt.serial.hex()
        say("RESERVED", *reservation)

        def stand_still(_: IssuanceRecord, words: tuple[object, ...] = reservation) -> bytes:
            say("INSIDE", *words)
            threading.Event().wait()
            return b""

        sealed = package(reserved.record, attempt).encode()
        await ledger.complete(attempt, sealed, stand_still if stop_inside else answer)
        say("READY", attempt.issuance, hashlib.sha256(sealed).hexdigest())
        if number % 2:
            await ledger.activate(TSM, str(uuid.uuid4()), DIGEST, attempt.issuance, answer)
            say("ACTIVE", attempt.issuance)


async def main(url: str, *, stop_inside: bool) -> None:
    ledger = Ledger.open(url)
    await asyncio.gather(*(write(ledger, writer, stop_inside=stop_inside) for writer in range(WRITERS)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], stop_inside="stop-inside" in sys.argv[2:]))
