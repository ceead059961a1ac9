"""SIGKILL at any moment, and a disk that is full: nothing acknowledged is lost, nothing is half done."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from appliance.domain.issuance import State
from appliance.ledger import Ledger
from appliance.ledger.command import main as ledger_command
from tests.ledger.conftest import Sql
from tests.ledger.samples import DIGEST, ISSUER, answer, order, package
from tests.ledger.writer import WRITERS

ROOT = Path(__file__).parents[2]


def kill_when(is_time: Callable[[int, str], bool], url: str, *mode: str) -> list[list[str]]:
    """Starts the writer, kills it at the line for which `is_time`, and answers every line that it has said by then.

    Args:
        is_time: of the line's number, from 1, and the line.
    """
    command = [sys.executable, "-m", "tests.ledger.writer", url, *mode]
    said = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for number, line in enumerate(process.stdout, start=1):
            said.append(line)
            if is_time(number, line):
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    return [line.split() for line in said if line.endswith("\n")]


@pytest.mark.parametrize("lines", [1, 40, 173, 300])
async def test_killed_writer_loses_nothing_that_was_acknowledged(url: str, sql: Sql, lines: int) -> None:
    acknowledged = kill_when(lambda number, _: number == lines, url)
    assert len(acknowledged) >= lines
    assert ledger_command(["check", "--url", url]) == 0

    committed = set(sql("SELECT issuance, counter, hex(serial) FROM attempts"))
    unfinished = {}
    ledger = Ledger.open(url)
    try:
        for event, issuance, *words in acknowledged:
            record = await ledger.get(issuance)
            if event == "RESERVED":
                request_id, counter, serial = words
                assert (issuance, int(counter), serial.upper()) in committed
                unfinished[issuance] = request_id
            elif event == "READY":
                assert record.state in (State.READY, State.ACTIVE)
                assert record.package_sha256 == bytes.fromhex(words[0])
                del unfinished[issuance]
            else:
                assert record.state is State.ACTIVE
        for issuance, request_id in unfinished.items():
            record = await ledger.get(issuance)
            wanted = order(record.person_id, sim=int(record.iccid[12:18]), request_id=request_id)
            again = await ledger.reserve(ISSUER, wanted, DIGEST)
            assert again.record.id == issuance
            if again.attempt is None:
                continue  # it was completed, and the kill came before the answer
            assert again.attempt.counter > max(c for i, c, _ in committed if i == issuance)
            await ledger.complete(again.attempt, package(again.record, again.attempt).encode(), answer)
        assert (await ledger.status()).issuances["RESERVED"] <= WRITERS
    finally:
        ledger.close()
    assert ledger_command(["check", "--url", url]) == 0


def test_what_a_killed_writer_left_in_its_log_is_moved_and_cut_at_the_next_start(url: str, file: Path) -> None:
    kill_when(lambda number, _: number == 60, url)
    log = file.with_name(file.name + "-wal")
    assert log.stat().st_size > 0, "with keys that the file has erased"
    with closing(Ledger.open(url)):
        assert not log.exists() or log.stat().st_size == 0


async def test_writer_killed_inside_its_transaction_has_changed_nothing(url: str) -> None:
    said = kill_when(lambda _, line: line.startswith("INSIDE"), url, "stop-inside")
    (inside,) = [words for event, *words in said if event == "INSIDE"]
    issuance, request_id, counter, serial = inside
    ledger = Ledger.open(url)
    try:
        record = await ledger.get(issuance)
        assert (record.state, record.package, record.certificate) == (State.RESERVED, None, None)
        wanted = order(record.person_id, sim=0, request_id=request_id)
        assert await ledger.find(ISSUER, request_id, DIGEST) is None
        again = await ledger.reserve(ISSUER, wanted, DIGEST)
        assert again.attempt is not None
        assert again.attempt.counter > int(counter)
        assert again.attempt.serial.hex() != serial
        await ledger.complete(again.attempt, package(again.record, again.attempt).encode(), answer)
        assert (await ledger.status()).issuances["READY"] == 1
    finally:
        ledger.close()
    assert ledger_command(["check", "--url", url]) == 0


def test_full_disk_is_an_outage_that_ends_when_there_is_room(tmp_path: Path) -> None:
    own_namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    script = 'mount -t tmpfs -o size=2m tmpfs "$1" && exec "$2" -m tests.ledger.disk_full "$1"'
    command = [*own_namespace, "sh", "-c", script, "sh", str(tmp_path), sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen.pop("acknowledged") > 0
    assert seen == {"errors": ["LEDGER_UNAVAILABLE"], "lost": 0, "readable_when_full": "READY", "check": 0}
