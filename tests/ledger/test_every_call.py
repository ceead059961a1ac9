"""Death and error at every statement and at every disk call of an issuance, from opening the ledger to closing it.

Whatever happens: what was acknowledged is there, also after a cut of the power; the same calls, made again, complete
the same issuance; and the ledger keeps every rule.
"""

import errno
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from appliance.domain.issuance import State
from appliance.errors import Reason
from appliance.ledger import Ledger, database, migrate
from appliance.ledger.inspection import inspect
from appliance.ledger.store import utc_now
from tests.ledger.disk import Action, Disk, Fault
from tests.ledger.lives import REQUEST_ID, activate, issue
from tests.ledger.samples import DIGEST, ISSUER

ROOT = Path(__file__).parents[2]
STEPS = ("nothing", "RESERVED", "READY", "ACTIVE")
DISK_CALLS = [
    # Before this call: what was acknowledged, what a kill leaves, what a cut of the power leaves.
    ("truncate index", "nothing", "nothing", "nothing"),
    ("write index", "nothing", "nothing", "nothing"),
    ("write log", "nothing", "nothing", "nothing"),
    ("sync log", "nothing", "nothing", "nothing"),
    ("write log", "nothing", "nothing", "nothing"),
    ("commit log", "nothing", "RESERVED", "nothing"),
    ("write log", "RESERVED", "RESERVED", "RESERVED"),
    ("commit log", "RESERVED", "READY", "RESERVED"),
    ("write log", "READY", "READY", "READY"),
    ("commit log", "READY", "ACTIVE", "READY"),
    # All is acknowledged: SQLite moves its log into the file.
    ("commit log", "ACTIVE", "ACTIVE", "ACTIVE"),
    ("write file", "ACTIVE", "ACTIVE", "ACTIVE"),
    ("truncate file", "ACTIVE", "ACTIVE", "ACTIVE"),
    ("sync file", "ACTIVE", "ACTIVE", "ACTIVE"),
    ("truncate log", "ACTIVE", "ACTIVE", "ACTIVE"),
]
STRIDES = [3, pytest.param(1, marks=pytest.mark.soak)]
"""Where there are many alike, every third; all of them in the long run."""
ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT)


class Life(NamedTuple):
    """What a life said, in words, and how it ended: 0, or the number of its signal below 0."""

    said: list[list[str]]
    status: int

    def of(self, event: str) -> list[list[str]]:
        """The words of every line of this event."""
        return [words for told, *words in self.said if told == event]


class Lives:
    """Lives, one after the other, each on a ledger of its own in the same place."""

    def __init__(self, directory: Path, library: Path) -> None:
        self._template = directory / "template.db"
        migrate(f"sqlite:///{self._template}")
        self._directory, self.durable = directory / "ledger", directory / "durable"
        for made in (self._directory, self.durable):
            made.mkdir()
        self.file = self._directory / "ledger.db"
        self.url = f"sqlite:///{self.file}"
        self.engine = database.connect(self.url)
        self.disk = Disk(library, self.file, self.durable)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ledger.lives", self.url],
            cwd=ROOT,
            env={**os.environ, **self.disk.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == "ready\n"

    def live(self, kind: str = "issue", *, point: int = 0, fault: Fault | None = None) -> Life:
        """One life, on a new ledger, or on none where it is one that migrates."""
        for path in (*self._directory.glob(f"{self.file.name}*"), *self.durable.iterdir()):
            path.unlink()
        if kind != "migrate":
            for place in (self.file, self.durable / self.file.name):
                shutil.copy(self._template, place)
        if fault:
            self.disk.arm(fault)
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{kind} {point}\n")
        self._process.stdin.flush()
        ended = json.loads(self._process.stdout.readline())
        self.disk.disarm()
        return Life([line.split(" ", 2) for line in ended["said"]], ended["status"])

    def calls(self) -> list[str]:
        """The disk calls of a whole life that change something, in their order."""
        before = len(self.disk.calls)
        assert self.live().status == 0
        return [call for call in self.disk.calls[before:] if not call.startswith("read")]

    def cut_power(self) -> None:
        """Leaves of the ledger what had been synced."""
        for path in self._directory.glob(f"{self.file.name}*"):
            path.unlink()
        for path in self.durable.iterdir():
            path.rename(self.file.with_name(path.name))

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        assert self._process.wait() == 0
        assert self._process.stdout
        self._process.stdout.close()


@pytest.fixture(scope="module")
def lives(disk_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    made = Lives(tmp_path_factory.mktemp("lives"), disk_library)
    yield made
    made.end()


def rows(file: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return connection.execute(statement).fetchall()


def broken_rules(ledger: Ledger) -> list[str]:
    with ledger._engine.connect() as connection:
        return [f"{name}: {findings}" for name, findings in inspect(connection) if findings]


async def assert_goes_on(lives: Lives, life: Life) -> str:
    """What was acknowledged is there, and the same calls end where they would have; answers what they found."""
    with closing(Ledger(lives.engine, utc_now)) as ledger:
        assert broken_rules(ledger) == []
        attempts = rows(lives.file, "SELECT counter, lower(hex(serial)) FROM attempts ORDER BY number")
        assert {(int(counter), serial) for counter, serial in life.of("RESERVED")} <= set(attempts)
        stored = await ledger.find(ISSUER, REQUEST_ID, DIGEST)
        assert [bytes.fromhex(words[0]) for words in life.of("READY")] in ([], [stored])
        issuance, answer = await issue(ledger)
        if stored is not None:
            assert answer == stored, "no second one is made"
        found = (await ledger.get(issuance)).state
        activated = await activate(ledger, issuance)
        assert [bytes.fromhex(words[0]) for words in life.of("ACTIVE")] in ([], [activated])
        assert {state: n for state, n in (await ledger.status()).issuances.items() if n} == {State.ACTIVE: 1}
        assert broken_rules(ledger) == []
    after = rows(lives.file, "SELECT counter FROM attempts ORDER BY number")
    assert len(after) == len(attempts) + (stored is None)
    assert sorted(set(after)) == after, "counters rise"
    return found if stored is not None else "RESERVED" if attempts else STEPS[0]


async def test_killed_before_any_statement_and_after_any_commit(lives: Lives) -> None:
    seen = set()
    for point in itertools.count(1):
        life = lives.live(point=point)
        if life.status == 0:
            break
        assert life.status == -signal.SIGKILL
        [[*at]] = life.of("AT")
        seen.add((acknowledged(life), " ".join(at), await assert_goes_on(lives, life)))
    assert point > 40
    for before, after in itertools.pairwise(STEPS):
        assert (before, "COMMIT", before) in seen
        assert (before, "the connection is given back", after) in seen, "committed, and not yet acknowledged"


async def test_killed_and_cut_off_before_any_disk_call(lives: Lives) -> None:
    whole = lives.calls()
    seen, last, cut_off = [], None, ""
    for number, call in enumerate(whole, start=1):
        life = lives.live(fault=Fault(Action.KILL_BEFORE, number, number))
        assert life.status == -signal.SIGKILL
        killed = await assert_goes_on(lives, life)
        synced = acknowledged(life), {path.name: path.stat().st_size for path in lives.durable.iterdir()}
        if synced != last:
            lives.cut_power()
            cut_off = await assert_goes_on(lives, life)
            last = synced
        seen.append((call, acknowledged(life), killed, cut_off))
    assert [row for row, _ in itertools.groupby(seen)] == DISK_CALLS


@pytest.mark.parametrize("step", STRIDES)
async def test_an_error_of_any_disk_call_is_told_or_does_not_matter(lives: Lives, step: int) -> None:
    told = Counter[str]()
    for number in itertools.count(1, step):
        action = (Action.FAIL_BEFORE, Action.FAIL_AFTER)[number // 2 % 2]
        error = ERRORS[number % len(ERRORS)]
        life = lives.live(fault=Fault(action, number, number, error=error))
        if lives.disk.counted < number:
            break
        assert life.status == 0
        refusals = life.of("REFUSED")
        assert [reason for reason, _ in refusals] in ([], [Reason.LEDGER_UNAVAILABLE])
        told["told" if refusals else "does not matter"] += 1
        lives.cut_power()
        assert await assert_goes_on(lives, life) == State.ACTIVE
    assert number > 80
    assert told["told"] > 60 // step, "the others are SQLite's moving of the log into the file, which it does again"


@pytest.mark.parametrize("step", STRIDES)
async def test_migration_killed_before_any_statement_can_be_repeated(lives: Lives, step: int) -> None:
    for point in itertools.count(1, step):
        life = lives.live("migrate", point=point)
        if life.status == 0:
            break
        assert life.status == -signal.SIGKILL
        migrate(lives.url)
        assert await assert_goes_on(lives, Life([], 0)) == "nothing"
    assert point > 20


def acknowledged(life: Life) -> str:
    """The last state that was."""
    return next((told for told, *_ in reversed(life.said) if told in STEPS), STEPS[0])
