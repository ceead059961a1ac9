"""Backup and restore, as the documentation says it, and what `appliance ledger` tells about a ledger."""

import asyncio
import shutil
import sqlite3
import stat
import uuid
from contextlib import closing, suppress
from pathlib import Path

import pytest

from appliance.domain.issuance import COUNTER_LEAD, State
from appliance.errors import ApplianceError, Reason
from appliance.ledger import Ledger
from appliance.ledger.backup import backup
from appliance.ledger.command import main
from appliance.ledger.inspection import CHECKS
from tests.ledger.conftest import Sql
from tests.ledger.samples import DIGEST, ISSUER, TSM, Clock, answer, make_awaiting, make_ready, order


async def test_backup_beside_a_writing_front_is_whole(ledger: Ledger, url: str, tmp_path: Path) -> None:
    for number in range(20):
        await make_ready(ledger, order(f"before-{number}", sim=number))
    stop = asyncio.Event()

    async def go_on() -> int:
        number = 0
        while not stop.is_set():
            await make_ready(ledger, order(f"during-{number}", sim=number))
            number += 1
        return number

    writing = asyncio.create_task(go_on())
    copies = [tmp_path / f"copy-{number}.db" for number in range(5)]
    for copy in copies:
        await asyncio.to_thread(backup, url, copy)
    stop.set()
    assert await writing > 0, "the front went on"
    for copy in copies:
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        assert main(["check", "--url", f"sqlite:///{copy}"]) == 0
        with closing(Ledger.open(f"sqlite:///{copy}")) as restored:
            assert (await restored.status()).issuances["READY"] >= 20
    assert sorted(tmp_path.glob("*.partial")) == []


def restore(copy: Path, file: Path) -> None:
    for lost in file.parent.glob("ledger.db*"):
        lost.unlink()
    shutil.copy(copy, file)


async def test_restored_ledger_goes_on_and_repeats_no_counter(
    url: str, file: Path, clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, later = order("kept"), order("later")
    copy = tmp_path / "copy.db"
    with closing(Ledger.open(url, clock=clock)) as ledger:
        before, _ = await make_ready(ledger, kept)
        assert main(["backup", "--url", url, str(copy)]) == 0
        clock.forward(seconds=1)
        after, _ = await make_ready(ledger, later)
        spent = [reserved.attempt.counter for reserved in (before, after) if reserved.attempt]

    restore(copy, file)
    assert main(["migrate", "--url", url]) == 0
    assert main(["check", "--url", url]) == 0
    clock.forward(seconds=COUNTER_LEAD)
    with closing(Ledger.open(url, clock=clock)) as ledger:
        assert (await ledger.get(before.record.id)).state is State.READY
        again, _ = await make_ready(ledger, later)
        assert again.attempt is not None
        assert again.attempt.counter > max(spent)
        assert await ledger.find(ISSUER, kept.request_id, DIGEST) is not None
    capsys.readouterr()
    assert main(["status", "--url", url]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told == (
        "schema version 0002 RESERVED 0 AWAITING_CERTIFICATE 0 READY 2 ACTIVE 0 ABANDONED 0 FAILED 0 audit entries 6"
    )


async def test_restored_ledger_repeats_no_counter_of_a_sim_that_was_tried_many_times_a_second(
    url: str, file: Path, clock: Clock, tmp_path: Path
) -> None:
    async def attempts(ledger: Ledger) -> list[int]:
        """The counters of a request that is sent again as often as it is not refused, and a little longer than that."""
        counters, wanted = [], order(str(uuid.uuid4()))
        for _ in range(COUNTER_LEAD + 20):
            with suppress(ApplianceError):
                attempt = (await ledger.reserve(ISSUER, wanted, DIGEST)).attempt
                assert attempt is not None
                counters.append(attempt.counter)
            clock.forward(seconds=0.03)
        return counters

    copy = tmp_path / "copy.db"
    with closing(Ledger.open(url, clock=clock)) as ledger:
        before = await attempts(ledger)
        backup(url, copy)
        before += await attempts(ledger)
    restore(copy, file)
    clock.forward(seconds=COUNTER_LEAD)
    with closing(Ledger.open(url, clock=clock)) as ledger:
        after = await attempts(ledger)
    assert len(before) > COUNTER_LEAD
    assert len(after) >= COUNTER_LEAD
    assert set(before) & set(after) == set()


def test_the_readme_says_how_long_a_restored_ledger_must_wait() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    section = readme.partition("## Backup and restore of the ledger")[2].partition("\n## ")[0]
    assert f"{COUNTER_LEAD} seconds" in section


async def test_backup_holds_no_key_that_was_erased_before_it(ledger: Ledger, url: str, tmp_path: Path) -> None:
    reserved, delivered = await make_ready(ledger, order())
    _, waiting = await make_ready(ledger, order("person-2", sim=2))
    await ledger.activate(TSM, order().request_id, DIGEST, reserved.record.id, answer)
    backup(url, tmp_path / "copy.db")
    stored = (tmp_path / "copy.db").read_bytes()
    assert delivered.wrapped not in stored
    assert waiting.wrapped in stored


def test_looking_at_a_backup_changes_no_byte_of_it(url: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    backup(url, copy)
    before = copy.read_bytes()
    copy.chmod(0o400)
    assert main(["check", "--url", f"sqlite:///{copy}"]) == 0
    assert main(["status", "--url", f"sqlite:///{copy}"]) == 0
    assert copy.read_bytes() == before
    assert before[18:20] == b"\x01\x01", "the file format's version without a write-ahead log (fileformat2.html, 1.3)"
    assert not copy.with_name("copy.db-wal").exists()


def test_backup_writes_over_nothing(url: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    copy.write_text("precious")
    with pytest.raises(ApplianceError) as caught:
        backup(url, copy)
    assert caught.value.reason is Reason.SETTINGS_INVALID
    assert copy.read_text() == "precious"


def test_backup_of_nothing_leaves_nothing(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ApplianceError) as caught:
        backup(f"sqlite:///{file}", tmp_path / "copy.db")
    assert caught.value.reason is Reason.LEDGER_UNAVAILABLE
    assert list(tmp_path.iterdir()) == []


def test_backup_of_a_ledger_of_an_older_version_is_possible(url: str, sql: Sql, tmp_path: Path) -> None:
    sql("UPDATE alembic_version SET version_num = '0000'")
    backup(url, tmp_path / "copy.db")
    assert (tmp_path / "copy.db").stat().st_size > 0


BREAKAGES = {
    "the file is whole": "PRAGMA foreign_keys=OFF; DELETE FROM issuances WHERE state = 'RESERVED'",
    "audit entries are numbered without gaps": "DELETE FROM audit WHERE number = 2",
    "every package is as it was sealed": "UPDATE issuances SET package_mac = zeroblob(16) WHERE state = 'READY'",
    "a person has one live issuance": "DROP INDEX one_live_issuance; UPDATE issuances SET person_id = 'one'",
    "a wrapped key waits for its certificate or its delivery": (
        "PRAGMA ignore_check_constraints=ON; UPDATE issuances SET wrapped_key = x'00' WHERE state = 'ACTIVE'"
    ),
    "what awaits a certificate has all that completes it": (
        "UPDATE issuances SET certificate_request = NULL WHERE state = 'AWAITING_CERTIFICATE'"
    ),
    "an external CA's serial number stands once": (
        "DROP INDEX one_certificate_of_a_serial; UPDATE issuances SET certificate_issuer = 'CA', certificate_serial = 1"
    ),
    "an issuance knows its newest attempt": "UPDATE issuances SET attempt = 7 WHERE state = 'RESERVED'",
    "no attempt has a counter above its SIM's": "UPDATE sims SET last_counter = last_counter - 1",
    "what was completed has its certificate and its answer": "UPDATE requests SET answer = NULL",
}


@pytest.fixture
async def one_of_each(ledger: Ledger) -> None:
    """An issuance that is RESERVED, one that is READY, one that is ACTIVE, one that is AWAITING_CERTIFICATE."""
    await ledger.reserve(ISSUER, order("person-1", sim=1), DIGEST)
    await make_ready(ledger, order("person-2", sim=2))
    active, _ = await make_ready(ledger, order("person-3", sim=3))
    await ledger.activate(TSM, order().request_id, DIGEST, active.record.id, answer)
    await make_awaiting(ledger, order("person-4", sim=4))


@pytest.mark.usefixtures("one_of_each")
@pytest.mark.parametrize("name", CHECKS)
def test_check_finds_what_is_broken(url: str, file: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["check", "--url", url]) == 0
    assert "BROKEN" not in capsys.readouterr().out
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(BREAKAGES[name])
    assert main(["check", "--url", url]) == 1
    assert f"BROKEN  {name}\n" in capsys.readouterr().out


@pytest.mark.usefixtures("one_of_each")
@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE audit_head SET last = last + 1",
        "UPDATE audit_head SET last = last - 1",
        "UPDATE audit SET entry = (SELECT entry FROM audit WHERE number = 1) WHERE number = 3",
    ],
)
def test_check_finds_a_log_that_was_cut_stretched_or_forged(
    url: str, sql: Sql, capsys: pytest.CaptureFixture[str], tampering: str
) -> None:
    sql(tampering)
    assert main(["check", "--url", url]) == 1
    assert "BROKEN  audit entries are numbered without gaps\n" in capsys.readouterr().out


def test_command_reads_the_settings_or_takes_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Front:
        ledger = f"sqlite:///{tmp_path}/named-by-settings.db"

    class Settings:
        front = Front

    monkeypatch.setattr("appliance.config.load", lambda _: Settings)
    assert main(["migrate", "--config", "appliance.toml"]) == 0
    assert (tmp_path / "named-by-settings.db").exists()
    with pytest.raises(SystemExit):
        main(["migrate"])
