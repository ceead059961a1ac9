"""Files that are removed, replaced, locked, damaged or not to be written to, and clocks that jump.

Nothing is acknowledged that would not be there after a restart; the error says what to do; and the ledger goes on when
the fault is gone, or says that it will not.
"""

import asyncio
import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.domain.issuance import State
from appliance.errors import ApplianceError, Reason
from appliance.ledger import Ledger, committer, database, migrate
from appliance.ledger.change import REHEARSED
from appliance.ledger.command import main as ledger_command
from tests.ledger.conftest import Sql
from tests.ledger.samples import DIGEST, ISSUER, TSM, Clock, answer, make_ready, order, refused
from tests.ledger.test_faults import ROOT, kill_when

WAIT = 20
"""Seconds; much more than anything here takes."""
FILES = ("ledger.db", "ledger.db-wal", "ledger.db-shm")


def remove(path: Path) -> None:
    path.unlink()


def replace_by_a_copy(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.rename(path)


def move_its_directory(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("spoil", [remove, replace_by_a_copy, move_its_directory])
async def test_what_would_be_committed_to_a_file_without_a_name_is_not_acknowledged(
    tmp_path: Path, spoil: Callable[[Path], None], name: str
) -> None:
    file = tmp_path / "d" / "ledger.db"
    file.parent.mkdir()
    migrate(f"sqlite:///{file}")
    with closing(Ledger.open(f"sqlite:///{file}")) as ledger:
        before, _ = await make_ready(ledger, order("before"))
        spoil(file.with_name(name))
        error = await refused(ledger.reserve(ISSUER, order("after", sim=2), DIGEST))
        assert error.reason is Reason.LEDGER_UNAVAILABLE
        assert "was removed or replaced" in error.detail and "Stop the front" in error.hint
        assert not ledger.commits
        assert (await refused(ledger.probe())).detail == error.detail
        assert (await ledger.get(before.record.id)).state is State.READY, "what is there can be read"


async def test_change_committed_while_its_file_is_taken_away_is_not_acknowledged(ledger: Ledger, file: Path) -> None:
    wanted, away = order(), file.with_name("away")
    reserved = await ledger.reserve(ISSUER, wanted, DIGEST)
    assert reserved.attempt is not None

    def taken_away(_change: object) -> None:
        file.rename(away)

    error = await refused(ledger._write(taken_away))
    assert "ledger.db was removed" in error.detail
    away.rename(file)
    await ledger.probe()
    assert ledger.commits
    again = await ledger.reserve(ISSUER, wanted, DIGEST)
    assert again.record.id == reserved.record.id


@contextmanager
def locked(file: Path) -> Iterator[None]:
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock is waited for only a moment."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)


@pytest.mark.usefixtures("impatient")
async def test_locked_ledger_reads_says_so_and_goes_on(url: str, file: Path, sql: Sql) -> None:
    with closing(Ledger.open(url)) as ledger:
        wanted = order()
        made, _ = await make_ready(ledger, wanted)
        with locked(file):
            error = await refused(ledger.reserve(ISSUER, order("other", sim=2), DIGEST))
            assert (error.reason, "SQLITE_BUSY" in error.detail) == (Reason.LEDGER_UNAVAILABLE, True)
            assert error.hint == "Another process holds the ledger; only one front may write to it."
            assert not ledger.commits
            assert (await refused(ledger.probe())).reason is Reason.LEDGER_UNAVAILABLE
            assert await ledger.find(ISSUER, wanted.request_id, DIGEST) == answer(await ledger.get(made.record.id))
        assert not ledger.commits
        told = sql("SELECT * FROM audit")
        await ledger.probe()
        assert ledger.commits
        assert sql("SELECT * FROM audit") == told, "a rehearsal leaves nothing"


async def test_probe_writes_as_much_as_a_commit_of_an_issuance_and_only_where_none_has_succeeded(
    ledger: Ledger, file: Path
) -> None:
    def size() -> int:
        return file.with_name("ledger.db-wal").stat().st_size

    assert not ledger.commits, "nobody knows yet"
    sizes = [size()]
    for work in (ledger.probe(), ledger.reserve(ISSUER, order(), DIGEST), ledger.probe()):
        await work
        assert ledger.commits
        sizes.append(size())
    rehearsal, reservation, nothing = (after - before for before, after in itertools.pairwise(sizes))
    assert rehearsal > max(REHEARSED, reservation)
    assert nothing == 0


async def test_commit_that_hangs_is_seen_while_it_does(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    await ledger.probe()
    monkeypatch.setattr(committer, "HANG_SECONDS", 0.05)
    go_on = threading.Event()
    hanging = asyncio.create_task(ledger._write(lambda _: go_on.wait(WAIT)))
    try:
        async with asyncio.timeout(WAIT):
            while ledger.commits:
                await asyncio.sleep(0.01)
    finally:
        go_on.set()
    assert await hanging
    assert ledger.commits


async def test_damage_that_is_met_is_told_and_ends_all_writing(ledger: Ledger, file: Path, sql: Sql) -> None:
    await make_ready(ledger, order("person-1"))
    [(root,)] = sql("SELECT rootpage FROM sqlite_schema WHERE name = 'sims'")
    sql("PRAGMA wal_checkpoint(TRUNCATE)")
    sound = file.read_bytes()
    with file.open("r+b") as damaged:
        damaged.seek(4096 * (root - 1))
        damaged.write(os.urandom(4096))
    hint = "Stop the front and run: appliance ledger check. Restore a backup if it fails."
    for _ in range(2):
        error = await refused(ledger.reserve(ISSUER, order("person-2", sim=2), DIGEST))
        assert (error.reason, error.hint) == (Reason.LEDGER_UNAVAILABLE, hint)
        assert "SQLITE_CORRUPT" in error.detail
    file.write_bytes(sound)
    assert (await refused(ledger.probe())).hint == hint, "also where the next page would have been a sound one"
    assert not ledger.commits


async def test_package_that_has_changed_on_the_disk_is_not_delivered(ledger: Ledger, url: str, sql: Sql) -> None:
    made, _ = await make_ready(ledger, order())
    sql("UPDATE issuances SET wrapped_key = randomblob(length(wrapped_key))")
    error = await refused(ledger.prepare_script(TSM, str(uuid.uuid4()), DIGEST, made.record.id, b"8 bytes."))
    assert (error.reason, "not the one that was sealed" in error.detail) == (Reason.INTERNAL, True)
    assert sql("SELECT count(*) FROM requests WHERE method = 'FetchScript'") == [(0,)]
    assert ledger_command(["check", "--url", url]) == 1


def test_ledger_that_cannot_be_written_to_is_refused_and_one_that_was_goes_on_afterwards(tmp_path: Path) -> None:
    own_namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    command = [*own_namespace, sys.executable, "-m", "tests.ledger.read_only", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_after_a_clean_stop_the_file_is_all_there_is(url: str, file: Path) -> None:
    with closing(Ledger.open(url)) as ledger:
        made, _ = await make_ready(ledger, order())
    assert [path.name for path in file.parent.iterdir()] == ["ledger.db"]
    with closing(Ledger.open(url)) as ledger:
        assert (await ledger.get(made.record.id)).state is State.READY


async def test_log_removed_after_a_kill_leaves_a_sound_ledger_of_an_earlier_time(url: str, file: Path) -> None:
    said = kill_when(lambda number, _: number == 200, url)
    for suffix in ("-wal", "-shm"):
        file.with_name(file.name + suffix).unlink()
    assert ledger_command(["check", "--url", url]) == 0
    with closing(Ledger.open(url)) as ledger:
        left, _ = await ledger.list(page_size=1000)
        assert {record.id for record in left} <= {issuance for _, issuance, *_ in said}
        await make_ready(ledger, order("after", sim=99))


async def test_whichever_way_the_clock_jumps_no_counter_is_used_twice(ledger: Ledger, clock: Clock, sql: Sql) -> None:
    start = clock.now
    for number, jump in enumerate((0, 1, -3600, 86_400 * 365, -86_400 * 365, 3600, 86_400 * 3650, 0)):
        clock.now = start if jump == 0 else clock.now
        clock.forward(seconds=jump)
        for sim in (1, number + 2):
            try:
                await make_ready(ledger, order(str(uuid.uuid4()), sim=sim))
            except ApplianceError as error:
                assert (error.reason, sim) == (Reason.SIM_BUSY, 1), "only a SIM that was used after now waits"
                wait = int(error.facts["wait_seconds"])
                assert "clock" in error.hint and wait > 0
    of_sims = sql("SELECT iccid, group_concat(counter) FROM (SELECT * FROM attempts ORDER BY rowid) GROUP BY iccid")
    for _, told in of_sims:
        counters = [int(counter) for counter in told.split(",")]
        assert counters == sorted(set(counters))
    assert len(of_sims) == 9
    assert [number for (number,) in sql("SELECT number FROM audit ORDER BY number")] == list(
        range(1, sql("SELECT last FROM audit_head")[0][0] + 1)
    )


async def test_clock_that_jumped_ahead_ends_no_issuance_that_is_complete(ledger: Ledger, clock: Clock) -> None:
    ready, _ = await make_ready(ledger, order("ready"))
    working = await ledger.reserve(ISSUER, order("working", sim=2), DIGEST)
    assert working.attempt is not None
    clock.now = datetime(2029, 1, 1, tzinfo=UTC)
    assert (await refused(ledger.reserve(ISSUER, order("ready", sim=3), DIGEST))).reason is (
        Reason.PERSON_HAS_LIVE_ISSUANCE
    )
    await ledger.activate(TSM, str(uuid.uuid4()), DIGEST, ready.record.id, answer)
    await make_ready(ledger, order("working", sim=4))
    late = await refused(ledger.complete(working.attempt, b"", answer))
    assert late.reason is Reason.ISSUANCE_ENDED, "it seemed to idle, and gave way: never two"
