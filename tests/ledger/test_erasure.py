"""What is erased is gone: from the file, its free pages and its write-ahead log. What is never stored is not there."""

import asyncio
import random
import time
import uuid
from pathlib import Path

from appliance.domain.package import SimPackage
from appliance.ledger import Ledger, database
from appliance.ledger.committer import ERASE_SECONDS
from tests.ledger.conftest import Sql
from tests.ledger.samples import DIGEST, ISSUER, TSM, answer, order, package

PATIENCE = 10 * ERASE_SECONDS
PIECE = 16


def found(file: Path, made: list[SimPackage]) -> list[SimPackage]:
    """Those of which any 16 bytes of the wrapped key stand in any of the ledger's files."""
    stored = b"\x00".join(each.read_bytes() for each in file.parent.iterdir())
    return [
        sealed
        for sealed in made
        if any(sealed.wrapped[at : at + PIECE] in stored for at in range(0, len(sealed.wrapped) - PIECE + 1, PIECE))
    ]


async def until_gone(file: Path, made: list[SimPackage]) -> list[SimPackage]:
    deadline = time.monotonic() + PATIENCE
    while (left := found(file, made)) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return left


async def fill(ledger: Ledger, count: int) -> dict[str, SimPackage]:
    """READY issuances by id; their wrapped keys are of all sizes that occur, so that pages split and merge."""

    async def make(number: int) -> tuple[str, SimPackage]:
        reserved = await ledger.reserve(ISSUER, order(f"person-{number}", sim=number), DIGEST)
        assert reserved.attempt is not None
        sealed = package(reserved.record, reserved.attempt, random.choice([160, 208, 1224, 1300]))  # noqa: S311 sizes
        await ledger.complete(reserved.attempt, sealed.encode(), answer)
        return reserved.record.id, sealed

    return dict(await asyncio.gather(*(make(number) for number in range(count))))


async def test_wrapped_key_is_gone_from_every_file_after_delivery_or_abandonment(ledger: Ledger, file: Path) -> None:
    made = await fill(ledger, 60)
    assert len(found(file, list(made.values()))) == 60, "the search finds what is there"
    ids = list(made)
    random.shuffle(ids)
    ended, waiting = ids[:40], ids[40:]
    for number, issuance in enumerate(ended):
        end = ledger.activate if number % 2 else ledger.abandon
        await end(TSM, str(uuid.uuid4()), DIGEST, issuance, answer)
    assert await until_gone(file, [made[issuance] for issuance in ended]) == []
    for issuance in waiting:
        assert (await ledger.get(issuance)).package == made[issuance].encode()


async def test_reader_in_the_way_only_delays_erasure(ledger: Ledger, file: Path, url: str) -> None:
    made = await fill(ledger, 3)
    engine = database.connect(url)
    try:
        with engine.connect() as reader:
            reader.exec_driver_sql("SELECT count(*) FROM issuances").scalar_one()
            for issuance in made:
                await ledger.activate(TSM, str(uuid.uuid4()), DIGEST, issuance, answer)
            await asyncio.sleep(1.5 * ERASE_SECONDS)
            started = time.monotonic()
            await ledger.reserve(ISSUER, order("person-after", sim=99), DIGEST)
            assert time.monotonic() - started < database.BUSY_SECONDS / 2, "commits do not wait for the reader"
            assert found(file, list(made.values())) != []
    finally:
        engine.dispose()
    assert await until_gone(file, list(made.values())) == []


async def test_activation_code_is_never_stored(ledger: Ledger, file: Path, sql: Sql) -> None:
    await fill(ledger, 2)
    stored = b"".join(each.read_bytes() for each in file.parent.iterdir())
    assert order().person_id.encode() in stored
    assert order().activation_code.encode() not in stored
    assert sql("PRAGMA journal_mode") == [("wal",)]
