"""The directory of shards: what dies at any moment of a shard's end leaves it either unmade or made for ever."""

import fcntl
import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

from appliance.bureau import shards
from appliance.bureau.shards import Directory, Job
from appliance.errors import ApplianceError, Reason

JOB = Job(export="ab" * 32, form="commands", window=0, shard_packages=10)
TOLD = {"packages": 1, "scripts": 1, "failed": 0, "bytes": 5, "sha256": "", "failures": []}


def make(directory: Directory, number: int, content: bytes) -> None:
    with directory.writing(number) as (file, note):
        file.write(content)
        note |= TOLD


class Died(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("moment", range(8))
def test_a_death_at_any_step_leaves_a_shard_unmade_or_made_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    directory, steps = Directory(tmp_path, JOB), 0
    rename, fsync = Path.rename, os.fsync

    def step() -> None:
        nonlocal steps
        steps += 1
        if steps == moment + 1:
            raise Died

    def dying_rename(self: Path, target: Path) -> Path:
        step()
        return rename(self, target)

    def dying_fsync(descriptor: int) -> None:
        step()
        fsync(descriptor)

    with directory.claimed(), monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying_rename)
        patch.setattr(os, "fsync", dying_fsync)
        try:
            make(directory, 0, b"first")
        except Died:
            assert steps == moment + 1
        else:
            assert steps == 6  # two files, two directories, two names: moments 6 and 7 are behind the last
    with directory.claimed():
        again = Directory(tmp_path, JOB)
        if directory.file(0).exists():
            assert again.finished(0)
            assert directory.file(0).read_bytes() == b"first"
        else:
            assert not again.finished(0)
            make(again, 0, b"second")
        assert again.finished(0)
        manifest = again.finish(1, {})
    assert [shard["file"] for shard in manifest["shards"]] == ["000000.scripts"]
    assert {path.name for path in tmp_path.iterdir()} == {"000000.scripts", "manifest.json"}


@pytest.mark.parametrize("moment", range(8))
def test_a_death_at_any_step_of_the_end_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    directory, steps = Directory(tmp_path, JOB), 0
    rename = Path.rename

    def dying_rename(self: Path, target: Path) -> Path:
        nonlocal steps
        steps += 1
        if steps == moment:
            raise Died
        return rename(self, target)

    with directory.claimed():
        with directory.writing(0) as (_, note):
            note |= TOLD | {"failed": 1, "failures": [{"record": 1}]}
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dying_rename)
            try:
                directory.finish(1, {})
            except Died:
                assert steps in (1, 2)
    if directory.manifest() is None:
        with directory.claimed():
            assert directory.finished(0)
            directory.finish(1, {})
    assert directory.manifest() is not None
    assert (tmp_path / "failures.jsonl").read_text() == '{"record": 1}\n'
    assert not (tmp_path / ".work").exists()


def refusal(directory: Directory) -> ApplianceError:
    with pytest.raises(ApplianceError) as caught, directory.claimed():
        pass
    assert caught.value.reason is Reason.FILE_UNUSABLE
    return caught.value


@pytest.mark.parametrize(
    "other",
    [
        Job("cd" * 32, "commands", 0, 10),
        Job("ab" * 32, "text", 0, 10),
        Job("ab" * 32, "commands", 1, 10),
        Job("ab" * 32, "commands", 0, 11),
    ],
)
def test_a_directory_of_another_job_is_left_alone(tmp_path: Path, other: Job) -> None:
    directory = Directory(tmp_path, JOB)
    with directory.claimed():
        make(directory, 0, b"first")
    assert "was begun with" in refusal(Directory(tmp_path, other)).detail
    with directory.claimed():
        directory.finish(1, {})
    with pytest.raises(ApplianceError, match="was begun with"):
        Directory(tmp_path, other).manifest()


@pytest.mark.parametrize(
    "content",
    [
        b'{"a"',
        b'{"name": "other"}',
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"job": 7}',
        json.dumps({"job": asdict(JOB)}).encode(),
        json.dumps({"job": asdict(JOB), "shards": [{}]}).encode(),
        json.dumps({"job": asdict(JOB), "shards": [], "packages": 1, "scripts": 1}).encode(),
        json.dumps({"job": asdict(JOB), "shards": [], "packages": 1, "scripts": "1", "failed": 0}).encode(),
    ],
    ids=range(10),
)
def test_a_manifest_that_is_not_ours_is_left_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "manifest.json"
    file.write_bytes(content)
    with pytest.raises(ApplianceError) as caught:
        Directory(tmp_path, JOB).manifest()
    assert caught.value.reason is Reason.FILE_UNUSABLE
    assert f"{file} is none that this command has written" in caught.value.detail
    assert file.read_bytes() == content


def test_a_manifest_that_is_no_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(ApplianceError, match=r"manifest\.json cannot be used: Is a directory"):
        Directory(tmp_path, JOB).manifest()


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o775])
def test_a_directory_into_which_others_may_write_is_refused_with_the_way_out(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    error = refusal(Directory(tmp_path, JOB))
    assert f"mode {mode:04o}" in error.detail
    assert f"chmod go-w {tmp_path}" in error.hint
    assert list(tmp_path.iterdir()) == []
    tmp_path.chmod(0o755)
    with Directory(tmp_path, JOB).claimed():
        pass


def test_the_directorys_own_name_outlives_the_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = [], os.fsync

    def told(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", told)
    with Directory(tmp_path / "d", JOB).claimed():
        assert synced[0] == tmp_path


def test_who_waited_for_a_run_finds_what_it_has_made(tmp_path: Path) -> None:
    directory = Directory(tmp_path, JOB)
    with directory.claimed():
        make(directory, 0, b"first")
        made = directory.finish(1, {})
    with directory.claimed():
        assert directory.manifest() == made


def test_a_directory_with_anything_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    assert "thesis.tex" in refusal(Directory(tmp_path, JOB)).detail
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_shard_that_was_taken_away_is_not_made_again(tmp_path: Path) -> None:
    directory = Directory(tmp_path, JOB)
    with directory.claimed():
        make(directory, 0, b"first")
        directory.file(0).rename(tmp_path / ".work" / "elsewhere")
        with pytest.raises(ApplianceError, match="not made again"):
            directory.finished(0)
        (tmp_path / ".work" / "elsewhere").rename(directory.file(0))
        directory.finish(1, {})
    directory.file(0).unlink()
    with pytest.raises(ApplianceError, match="not made again"):
        directory.manifest()


def test_two_runs_do_not_share_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LOCK_SECONDS", 0.1)
    directory = Directory(tmp_path / "d", JOB)
    with directory.claimed():
        assert "Another run" in refusal(directory).detail
    with directory.claimed():
        pass


def test_a_run_waits_for_the_workers_of_one_that_died(tmp_path: Path) -> None:
    directory, last = tmp_path / "d", tmp_path / "last"
    directory.mkdir()
    descriptor = os.open(directory, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    worker = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.3; touch {last}"], pass_fds=[descriptor])
    os.close(descriptor)
    with Directory(directory, JOB).claimed():
        assert last.exists()
    worker.wait()
