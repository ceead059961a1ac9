"""`appliance scripts` as a bureau calls it: whole processes, killed, interrupted and starved."""

import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from appliance import supervisor
from appliance.api.v1 import bureau_pb2 as pb
from appliance.bureau.command import main
from appliance.bureau.export import Export
from appliance.bureau.records import read
from appliance.bureau.shards import Directory, Job
from appliance.errors import ApplianceError, Reason
from tests.bureau.samples import ROOT, by_hand, command, export, iccid, keys, many, package, run
from tests.vsim.packages import KM_CHAN

MANY = 600
SMALL = 10
"""Packages in a shard: the disk, not the engine, then says how long a run takes, and there is time to kill it."""
PATIENCE = 60.0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many(tmp_path_factory.mktemp("bureau") / "export", MANY)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    return export(tmp_path / "export", [package(number) for number in range(3)])


def shards(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("[0-9]*")}


def counters(directory: Path) -> list[tuple[str, int]]:
    """Issuance and counter of every script there is."""
    found = []
    for path in sorted(directory.glob("*.scripts")):
        with path.open("rb") as file:
            for record in read(file, 0, path.stat().st_size):
                script = pb.RenderedScript.FromString(record.content)
                found.append((script.issuance, script.script.sequence_counter))
    return found


@contextmanager
def running(source: Path, directory: Path, *, until: int) -> Iterator["subprocess.Popen[bytes]"]:
    """A run with two workers that has made `until` shards, in a process group of its own."""
    process = subprocess.Popen(
        command("render", source, directory, "--keys-fd", 0, "--jobs", 2, "--shard-packages", SMALL),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdin
    process.stdin.write(keys())
    process.stdin.close()
    process.stdin = None
    deadline = time.monotonic() + PATIENCE
    while len(list(directory.glob("*.scripts"))) < until and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # nobody is left
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def children(process: "subprocess.Popen[bytes]") -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def workers(process: "subprocess.Popen[bytes]") -> list[int]:
    return [pid for pid in children(process) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_run_that_is_killed_goes_on_where_it_stopped(source: Path, tmp_path: Path) -> None:
    directory, made = tmp_path / "scripts", dict[str, bytes]()
    for number, kill in enumerate((os.kill, os.killpg), 1):  # the parent alone, or all of it
        with running(source, directory, until=len(made) + 9) as process:
            kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
        now = shards(directory)
        assert len(now) >= 9 * number
        assert made.items() <= now.items()
        made = now
    done = run("render", source, directory, "--keys-fd", 0, "--shard-packages", SMALL, given=keys())
    assert done.returncode == 0, done.stderr
    now = shards(directory)
    assert made.items() <= now.items()
    assert counters(directory) == [(package(number).issuance, 1) for number in range(MANY)]
    assert {path.name for path in directory.iterdir()} == {*now, "manifest.json"}
    again = run("render", source, directory, "--shard-packages", SMALL)
    assert (again.returncode, again.stdout.splitlines()[0]) == (0, "everything is there already")
    assert shards(directory) == now


def test_workers_that_outlive_their_run_keep_its_directory_and_end_by_themselves(source: Path, tmp_path: Path) -> None:
    directory = tmp_path / "scripts"
    with running(source, directory, until=5) as process:
        worker, _ = workers(process)
        os.kill(worker, signal.SIGSTOP)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        descriptor = os.open(directory, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(worker, signal.SIGCONT)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.close(descriptor)


def test_ctrl_c_ends_a_run_that_goes_on_later(source: Path, tmp_path: Path) -> None:
    directory = tmp_path / "scripts"
    with running(source, directory, until=5) as process:
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130, err
    told = re.fullmatch(rb"interrupted: (\d+) of 60 files are made; the same command goes on\n", err)
    assert told, err
    assert out == b""
    assert int(told[1]) == len(shards(directory)) < 60


def test_a_worker_that_dies_ends_the_run_with_the_way_on(source: Path, tmp_path: Path) -> None:
    with running(source, tmp_path / "scripts", until=5) as process:
        os.kill(workers(process)[0], signal.SIGKILL)
        _, err = process.communicate()
    assert process.returncode == 1
    assert b"A worker process died (status -9)." in err
    assert b"the same command goes on" in err


def test_the_keys_are_in_no_file_argument_environment_or_output(source: Path, tmp_path: Path) -> None:
    directory = tmp_path / "scripts"
    with running(source, directory, until=5) as process:
        seen = [
            Path(f"/proc/{pid}/{name}").read_bytes()
            for pid in (process.pid, *workers(process))
            for name in ("cmdline", "environ")
            if os.access(f"/proc/{pid}/{name}", os.R_OK)
        ]
        out, err = process.communicate()
    assert process.returncode == 0, err
    assert len(seen) > 2
    everything = [*seen, out, err, *(path.read_bytes() for path in directory.rglob("*") if path.is_file())]
    for secret in (KM_CHAN, KM_CHAN[:16], KM_CHAN.hex().encode(), KM_CHAN.hex().upper().encode()):
        assert not any(secret in where for where in everything)


def test_a_disk_that_is_full_ends_the_run_with_the_way_on(few: Path, tmp_path: Path) -> None:
    directory = tmp_path / "scripts"
    arguments = command("render", few, directory, "--keys-fd", 0, "--shard-packages", 2, "--jobs", 1)
    full = subprocess.run(
        arguments,
        input=keys(),
        capture_output=True,
        cwd=ROOT,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)),
    )
    assert full.returncode == 1
    assert f"FILE_UNUSABLE: {directory} cannot be used: File too large.".encode() in full.stderr
    assert b"Traceback" not in full.stderr
    assert shards(directory) == {}
    done = run(*arguments[4:], given=keys())
    assert done.returncode == 0, done.stderr
    assert counters(directory) == [(package(number).issuance, 1) for number in range(3)]


def test_what_failed_is_listed_and_is_the_exit_status(tmp_path: Path) -> None:
    wrong = package(1)
    wrong.iccid = iccid(5).digits
    source = by_hand(tmp_path / "export", [package(0), wrong, package(2)], 3)
    directory = tmp_path / "scripts"
    for _ in range(2):  # the second time from the manifest
        done = run("render", source, directory, "--keys-fd", 0, given=keys())
        assert done.returncode == 1
        assert "2 scripts for 3 packages" in done.stdout
        assert f"1 failed: see {directory / 'failures.jsonl'}" in done.stdout
    (failure,) = (json.loads(line) for line in (directory / "failures.jsonl").read_text().splitlines())
    assert (failure["record"], failure["issuance"]) == (2, wrong.issuance)
    assert failure["offset"] > 0


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ApplianceError]:
    """What the command is refused with before it starts a worker; in this process, which stays as open as it was."""
    monkeypatch.setattr(supervisor, "harden", lambda: None)

    def refused(*arguments: object, given: bytes = keys()) -> ApplianceError:
        reader, writer = os.pipe()
        os.write(writer, given)
        os.close(writer)
        named = [str(reader) if argument == "FD" else str(argument) for argument in arguments]
        with pytest.raises(ApplianceError) as caught:
            main(["render", *named])
        with suppress(OSError):  # it was read, and closed
            os.close(reader)
        return caught.value

    return refused


def test_a_wrong_key_makes_nothing(few: Path, tmp_path: Path, refusal: Callable[..., ApplianceError]) -> None:
    error = refusal(few, tmp_path / "scripts", "--keys-fd", "FD", given=keys(bytes(32)))
    assert error.reason is Reason.KCV_MISMATCH
    assert "example-mno, key set 30" in error.detail
    assert not (tmp_path / "scripts").exists()


def test_a_damaged_export_makes_nothing(few: Path, tmp_path: Path, refusal: Callable[..., ApplianceError]) -> None:
    sound = few.read_bytes()
    for damaged in (sound[:-100], sound[:3000] + b"\x00" + sound[3001:]):
        few.write_bytes(damaged)
        error = refusal(few, tmp_path / "scripts", "--keys-fd", "FD")
        assert error.reason is Reason.EXPORT_INVALID
        assert re.match(r"Record \d at offset \d+ is ", error.detail)
        assert not (tmp_path / "scripts").exists()


def test_a_sim_without_keys_makes_nothing(few: Path, tmp_path: Path, refusal: Callable[..., ApplianceError]) -> None:
    given = "".join(f"{iccid(number).digits} {'11' * 16} {'22' * 16}\n" for number in range(2)).encode()
    error = refusal(few, tmp_path / "scripts", "--keys-fd", "FD", given=given)
    assert error.reason is Reason.FIELD_INVALID
    assert error.detail.startswith(f"SIM {iccid(2).digits}, record 3: There are no keys for this SIM.")
    assert not (tmp_path / "scripts").exists()


def test_a_run_that_waited_for_another_finds_everything_there(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(Export.open(few).digest.hex(), "commands", 0, 5000)
    directory = Directory(tmp_path / "scripts", job)
    with directory.claimed():
        with directory.writing(0) as (_, note):
            note |= {"packages": 3, "scripts": 3, "failed": 0, "bytes": 0, "sha256": "", "failures": []}
        directory.finish(1, {})
    found, looks = Directory.manifest, []

    def first_not(self: Directory) -> dict[str, Any] | None:
        looks.append(self)
        return found(self) if len(looks) > 1 else None

    monkeypatch.setattr(supervisor, "harden", lambda: None)
    monkeypatch.setattr(Directory, "manifest", first_not)
    reader, writer = os.pipe()
    os.write(writer, keys())
    os.close(writer)
    assert main(["render", str(few), str(directory.path), "--keys-fd", str(reader)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "everything is there already"
    assert {path.name for path in directory.path.iterdir()} == {"000000.scripts", "manifest.json"}


@pytest.mark.parametrize("place", ["file", "file/below", "nowhere/below"])
def test_a_destination_that_cannot_be_is_told(
    few: Path, tmp_path: Path, refusal: Callable[..., ApplianceError], place: str
) -> None:
    (tmp_path / "file").touch()
    error = refusal(few, tmp_path / place, "--keys-fd", "FD")
    assert error.reason is Reason.FILE_UNUSABLE
    assert str(tmp_path / place) in error.detail


def test_keys_that_are_missing_or_too_many_are_told(
    few: Path, tmp_path: Path, refusal: Callable[..., ApplianceError]
) -> None:
    assert "brings no keys" in refusal(few, tmp_path / "scripts").detail
    sessions = many(tmp_path / "sessions", 2, static=False)
    assert "Leave --keys-fd out" in refusal(sessions, tmp_path / "scripts", "--keys-fd", "FD").hint
    assert "Leave --window out" in refusal(sessions, tmp_path / "scripts", "--window", 2).hint


def test_rendering_loads_neither_pkcs11_nor_a_database_nor_grpc(tmp_path: Path) -> None:
    source = many(tmp_path / "export", 2, static=False)
    loaded = subprocess.run(
        command("render", source, tmp_path / "scripts"),
        capture_output=True,
        cwd=ROOT,
        check=True,
        text=True,
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},  # the workers inherit it
    ).stderr
    modules = re.findall(r"\|\s+([\w.]+)$", loaded, flags=re.MULTILINE)
    assert modules.count("appliance.bureau.rendering") == 2  # parent and worker
    assert [name for name in modules if re.match(r"(pkcs11|sqlalchemy|alembic|grpc|uvloop)\b", name)] == []
    assert [name for name in modules if re.match(r"appliance\.(hsm|ledger|server|config|vault)\b", name)] == []


def test_show_tells_what_is_there_and_no_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = many(tmp_path / "export", 2, static=False)
    assert main(["show", str(source)]) == 0
    told = capsys.readouterr().out
    for what in ("2 packages, with session keys", "simIssuers/example-mno, key set 30", "AES-128, level 03"):
        assert what in told
    assert run("render", source, tmp_path / "scripts").returncode == 0
    assert main(["show", str(tmp_path / "scripts/000000.scripts")]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        [package(number).issuance, iccid(number).digits, "1", "19", "commands"] for number in range(2)
    ]
    (tmp_path / "other").write_bytes(b"hello")
    with pytest.raises(ApplianceError, match="no export"):
        main(["show", str(tmp_path / "other")])


def test_help_explains_keys_forms_and_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["render", "--help"])
    told = capsys.readouterr().out
    for what in (
        "SIM-ISSUER KVN KM-CHAN",
        "ICCID K-ENC K-MAC",
        "expanded-indefinite",
        "failures.jsonl",
        "scriptor",
    ):
        assert what in told
    for status in ("0  ", "1  ", "2  ", "130  Ctrl-C"):
        assert f"\n  {status}" in told
