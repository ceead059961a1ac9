"""A ledger of an older version becomes one of this, with every row, every rule, and no copy of a key left behind."""

import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from appliance.domain.issuance import State
from appliance.errors import ApplianceError, Reason
from appliance.ledger import Ledger, database, migrate
from appliance.ledger.command import main
from tests.ledger.samples import DIGEST, ISSUER, TSM, Clock, answer, make_ready, order

TABLES = ("issuances", "attempts", "sims", "requests", "audit", "audit_head")

Rows = dict[str, list[dict[str, object]]]


def make_version(file: Path, version: str) -> None:
    """An empty ledger of this version."""
    config = Config()
    config.set_main_option("script_location", "appliance.ledger:migrations")
    engine = database.connect(f"sqlite:///{file}").execution_options(writes=True)
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, version)
    engine.dispose()


def rows(file: Path) -> Rows:
    """Everything in it, in the order of its keys."""
    with closing(sqlite3.connect(file)) as connection:
        connection.row_factory = sqlite3.Row
        return {
            table: [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2")]  # noqa: S608 (own)
            for table in TABLES
        }


@pytest.fixture
async def old(ledger: Ledger, file: Path, tmp_path: Path) -> Path:
    """A ledger of version 1 with an issuance in each of its states, as that version would have written them."""
    await ledger.reserve(ISSUER, order("reserved", sim=1), DIGEST)
    await make_ready(ledger, order("ready", sim=2))
    for person, sim in (("active", 3), ("abandoned", 4)):
        made, _ = await make_ready(ledger, order(person, sim=sim))
        move = ledger.activate if person == "active" else ledger.abandon
        await move(TSM, str(uuid.uuid4()), DIGEST, made.record.id, answer)
    failed = await ledger.reserve(ISSUER, order("failed", sim=5), DIGEST)
    assert failed.attempt
    await ledger.fail(failed.attempt, Reason.CERTIFICATE_REFUSED, "A lint.")
    old = tmp_path / "old.db"
    make_version(old, "0001")
    with closing(sqlite3.connect(old, isolation_level=None)) as connection:
        connection.execute("ATTACH ? AS new", (str(file),))
        connection.execute("DELETE FROM audit_head")
        for table in TABLES:
            columns = ", ".join(name for _, name, *_ in connection.execute(f"PRAGMA main.table_info({table})"))
            connection.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}")  # noqa: S608
    return old


def test_migration_keeps_every_row_and_its_new_columns_are_empty(old: Path, file: Path) -> None:
    before, written_new = rows(old), rows(file)
    migrate(f"sqlite:///{old}")
    after = rows(old)
    assert after == written_new
    assert {row["state"] for row in after["issuances"]} == set(State) - {State.AWAITING_CERTIFICATE}
    for then, now in zip(before["issuances"], after["issuances"], strict=True):
        assert {name: now[name] for name in then} == then
        assert {now[name] for name in now.keys() - then.keys()} == {None}
    assert main(["check", "--url", f"sqlite:///{old}"]) == 0


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("UPDATE issuances SET state = 'LOST' WHERE person_id = 'active'", "known_state"),
        ("UPDATE issuances SET wrapped_key = x'00' WHERE person_id = 'active'", "wrapped_key_only_while_needed"),
        ("UPDATE issuances SET wrapped_key = NULL WHERE person_id = 'ready'", "wrapped_key_only_while_needed"),
        ("UPDATE issuances SET state = 'AWAITING_CERTIFICATE' WHERE person_id = 'ready'", "interim_mac_only"),
        ("UPDATE issuances SET interim_mac = x'00' WHERE person_id = 'ready'", "interim_mac_only_while_awaiting"),
        (
            "UPDATE issuances SET person_id = 'ready', state = 'AWAITING_CERTIFICATE', wrapped_key = x'00',"
            " interim_mac = x'00' WHERE person_id = 'abandoned'",
            "issuances.person_id, issuances.kind",
        ),
        (
            "UPDATE issuances SET certificate_issuer = 'CA', certificate_serial = x'01'",
            "issuances.certificate_issuer, issuances.certificate_serial",
        ),
        ("DELETE FROM issuances WHERE person_id = 'ready'", "FOREIGN KEY"),
        ("UPDATE attempts SET issuance = 'nobody' WHERE rowid = 1", "FOREIGN KEY"),
    ],
)
def test_migrated_ledger_keeps_every_rule(old: Path, statement: str, rule: str) -> None:
    migrate(f"sqlite:///{old}")
    with closing(sqlite3.connect(old)) as connection:
        connection.execute("PRAGMA foreign_keys=ON")
        with pytest.raises(sqlite3.IntegrityError, match=rule):
            connection.execute(statement)


async def test_migrated_ledger_goes_on_and_erases_what_it_delivers(old: Path, clock: Clock) -> None:
    (ready,) = (row for row in rows(old)["issuances"] if row["state"] == State.READY)
    key = ready["wrapped_key"]
    assert isinstance(key, bytes)
    migrate(f"sqlite:///{old}")
    clock.forward(minutes=1)
    with closing(Ledger.open(f"sqlite:///{old}", clock=clock)) as ledger:
        assert (await ledger.reserve(ISSUER, order("failed", sim=5), DIGEST)).attempt
        await ledger.activate(TSM, str(uuid.uuid4()), DIGEST, str(ready["id"]), answer)
    assert [path.name for path in old.parent.glob("old.db*") if key in path.read_bytes()] == []


def test_migration_that_fails_leaves_the_ledger_as_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rows(old)

    def fail(*_: object, **__: object) -> None:
        raise ApplianceError(Reason.INTERNAL, "The last step fails.", hint="-")

    with monkeypatch.context() as broken:
        broken.setattr("alembic.op.create_index", fail)
        with pytest.raises(ApplianceError, match="last step"):
            migrate(f"sqlite:///{old}")
    assert rows(old) == before
    migrate(f"sqlite:///{old}")


def test_ledger_with_rows_that_refer_to_nothing_is_not_migrated(old: Path) -> None:
    with closing(sqlite3.connect(old)) as connection:
        connection.execute("DELETE FROM issuances WHERE person_id = 'failed'")
        connection.commit()
    before = rows(old)
    with pytest.raises(ApplianceError, match="not migrated"):
        migrate(f"sqlite:///{old}")
    assert rows(old) == before
