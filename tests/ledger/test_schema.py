"""The schema: migrations make what the program expects, and another version is refused."""

import re
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from appliance.errors import ApplianceError, Reason
from appliance.ledger import Ledger, migrate
from appliance.ledger.schema import SCHEMA_VERSION, metadata
from tests.ledger.conftest import Sql
from tests.ledger.samples import DIGEST, ISSUER, make_ready, order, refused


def refusal_of(url: str) -> ApplianceError:
    with pytest.raises(ApplianceError) as caught:
        Ledger.open(url)
    return caught.value


@pytest.mark.usefixtures("url")
def test_migrations_make_exactly_the_tables_of_the_program(sql: Sql) -> None:
    def made_by(rows: Iterable[tuple[str, str, str | None]]) -> dict[str, list[str]]:
        """Each table's and index's clauses; their order within a table means nothing."""
        return {
            name: sorted(re.split(r",?\s*\n\s*", (sql or "").replace('"', "")))  # a table put in another's place
            for _, name, sql in rows
            if "alembic" not in name
        }

    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        metadata.create_all(connection)
        wanted = connection.exec_driver_sql("SELECT type, name, sql FROM sqlite_master").fetchall()
    migrated = sql("SELECT type, name, sql FROM sqlite_master")
    assert made_by(map(tuple, migrated)) == made_by(map(tuple, wanted))


def test_program_reads_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", "appliance.ledger:migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA_VERSION


def test_migrating_again_changes_nothing(url: str, sql: Sql) -> None:
    before = sql("SELECT * FROM sqlite_master"), sql("SELECT * FROM audit_head")
    migrate(url)
    assert (sql("SELECT * FROM sqlite_master"), sql("SELECT * FROM audit_head")) == before


def test_ledger_that_is_not_there_is_refused_and_not_made(file: Path) -> None:
    refusal = refusal_of(f"sqlite:///{file}")
    assert refusal.reason is Reason.LEDGER_SCHEMA_MISMATCH
    assert "appliance ledger migrate" in refusal.hint
    assert not file.exists()


@pytest.mark.parametrize(("version", "hint"), [("0000", "appliance ledger migrate"), ("9999", "newer")])
def test_schema_of_another_version_is_refused(url: str, sql: Sql, version: str, hint: str) -> None:
    sql(f"UPDATE alembic_version SET version_num = '{version}'")  # noqa: S608 (a parameter of this test)
    refusal = refusal_of(url)
    assert refusal.reason is Reason.LEDGER_SCHEMA_MISMATCH
    assert refusal.facts == {"found": version, "needed": SCHEMA_VERSION}
    assert hint in refusal.hint


def test_ledger_of_a_newer_program_is_not_migrated(url: str, sql: Sql) -> None:
    sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ApplianceError) as caught:
        migrate(url)
    assert caught.value.reason is Reason.LEDGER_SCHEMA_MISMATCH


def test_file_that_is_no_database_is_refused(file: Path) -> None:
    file.write_bytes(b"not a database, but long enough to look like the head of one" * 20)
    refusal = refusal_of(f"sqlite:///{file}")
    assert (refusal.reason, "NOTADB" in refusal.detail) == (Reason.LEDGER_UNAVAILABLE, True)


def test_directory_that_is_not_there_is_an_outage(tmp_path: Path) -> None:
    with pytest.raises(ApplianceError) as caught:
        migrate(f"sqlite:///{tmp_path}/nowhere/ledger.db")
    assert caught.value.reason is Reason.LEDGER_UNAVAILABLE


async def test_ledger_is_for_its_owner_alone(ledger: Ledger, file: Path) -> None:
    await make_ready(ledger, order())
    files = list(file.parent.iterdir())
    assert len(files) == 3, "with the write-ahead log and its index"
    assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}


async def test_every_connection_is_durable_and_erases(ledger: Ledger) -> None:
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1, "temp_store": 2}
    with ledger._engine.connect() as one, ledger._engine.connect() as two:
        for connection in (one, two):
            found = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in wanted}
            assert found == wanted


async def test_error_of_the_database_names_no_value(ledger: Ledger, sql: Sql) -> None:
    sql("ALTER TABLE issuances RENAME TO elsewhere")
    refusal = await refused(ledger.reserve(ISSUER, order("person-1"), DIGEST))
    assert refusal.reason is Reason.LEDGER_UNAVAILABLE
    assert "no such table" in str(refusal.__cause__)
    assert "person-1" not in f"{refusal} {refusal.__cause__}"
