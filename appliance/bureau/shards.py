"""A directory of shards: files of scripts, each made once and for ever, and a manifest when all of them are there.

A run that died goes on where it stopped. What tells how far it came stands in `.work` beside the shards until the end:
the job, and a note for each shard. File and note of a shard are on the disk before the file gets its name; from then on
the shard is not made again, because its scripts would have other challenges.
"""

import fcntl
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from appliance.bureau.export import sync, translated
from appliance.bureau.forms import FORMS
from appliance.errors import ApplianceError, Reason

MANIFEST: Final = "manifest.json"
FAILURES: Final = "failures.jsonl"
WORK: Final = ".work"
LOCK_SECONDS: Final = 10.0
"""How long the workers of a run that died may still hold the directory; a batch takes them far less."""

_JOB: Final = "job.json"
_TOTALS: Final = ("packages", "scripts", "failed")
_WRITABLE: Final = 0o022
"""By group or others."""


@dataclass(frozen=True)
class Job:
    """What makes two runs the same.

    Args:
        export: its digest, hex.
        form: of `FORMS`.
        window: scripts for each package; 0 is what the export says.
        shard_packages: packages whose scripts go into one file.
    """

    export: str
    form: str
    window: int
    shard_packages: int


@dataclass(frozen=True)
class Directory:
    """Where the shards of a job go."""

    path: Path
    job: Job

    def manifest(self) -> dict[str, Any] | None:
        """What was made, if all of it is there; None while it is not.

        Raises:
            ApplianceError: FILE_UNUSABLE for another job's or program's directory, or where a shard of this one has
                gone.
        """
        file = self.path / MANIFEST
        if (found := _read(file)) is None:
            return None
        try:
            self._compare(found["job"])
            files = [self.path / shard["file"] for shard in found["shards"]]
            if not all(isinstance(found[name], int) for name in _TOTALS):
                raise TypeError
        except (KeyError, TypeError, AttributeError):
            raise _not_ours(file) from None
        for shard in files:
            if not shard.exists():
                raise _gone(shard)
        self._tidy()  # a run may have died behind its manifest
        return found

    @contextmanager
    def claimed(self) -> Iterator[int]:
        """For this run alone; yields a descriptor that holds the claim until the last process closes it.

        Raises:
            ApplianceError: FILE_UNUSABLE for a directory with anything else in it, one that is in use, or one into
                which others may write.
        """
        work = self.path / WORK
        with translated(self.path):
            with suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
                sync(self.path.parent)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _require_owners(descriptor, self.path)
                _lock(descriptor, self.path)
                if self.manifest() is None:
                    if (begun := _read(work / _JOB)) is not None:
                        self._compare(begun)
                    else:
                        self._begin(work)
                yield descriptor
            finally:
                os.close(descriptor)

    def file(self, number: int) -> Path:
        """Of a shard."""
        return self.path / f"{number:06}{FORMS[self.job.form].suffix}"

    def finished(self, number: int) -> bool:
        """Whether the shard has been made.

        Raises:
            ApplianceError: FILE_UNUSABLE where it was and has gone.
        """
        note, file = self._note(number), self.file(number)
        if not file.exists():
            if note.exists():
                raise _gone(file)
            return False
        if not note.exists():  # it died between the two names
            _partial(note).rename(note)
        return True

    @contextmanager
    def writing(self, number: int) -> Iterator[tuple[BinaryIO, dict[str, Any]]]:
        """The file of a shard, and a note on it to be filled in; both get their names at the end."""
        note, file = self._note(number), self.file(number)
        draft = note.parent / (file.name + ".partial")
        told: dict[str, Any] = {"file": file.name}
        with _owners_alone(draft) as writing:
            yield writing, told
            _flush(writing)
        with _owners_alone(_partial(note)) as writing:
            writing.write(json.dumps(told).encode())
            _flush(writing)
        sync(note.parent)
        draft.rename(file)
        sync(self.path)
        _partial(note).rename(note)

    def finish(self, count: int, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest of all `count` shards, and the failures if there are any; take the notes away."""
        work, shards = self.path / WORK, []
        with translated(self.path):
            with _owners_alone(work / FAILURES) as failures:
                for number in range(count):
                    note = json.loads(self._note(number).read_bytes())
                    failures.writelines(json.dumps(failure).encode() + b"\n" for failure in note.pop("failures"))
                    shards.append(note)
                _flush(failures)
            if (work / FAILURES).stat().st_size:
                (work / FAILURES).rename(self.path / FAILURES)
            totals = {name: sum(shard[name] for shard in shards) for name in _TOTALS}
            manifest = {"job": asdict(self.job), **facts, **totals, "shards": shards}
            with _owners_alone(work / MANIFEST) as writing:
                writing.write(json.dumps(manifest, indent=1).encode() + b"\n")
                _flush(writing)
            (work / MANIFEST).rename(self.path / MANIFEST)
            sync(self.path)
            self._tidy()
        return manifest

    def _tidy(self) -> None:
        shutil.rmtree(self.path / WORK, ignore_errors=True)

    def _begin(self, work: Path) -> None:
        others = [entry.name for entry in self.path.iterdir() if entry.name != WORK]
        if others:
            raise ApplianceError(
                Reason.FILE_UNUSABLE,
                f"{self.path} holds something else: {min(others)}.",
                hint="Name a directory that is empty or not there yet.",
                field="DEST",
            )
        work.mkdir(mode=0o700, exist_ok=True)
        draft = work / (_JOB + ".partial")
        with _owners_alone(draft) as writing:
            writing.write(json.dumps(asdict(self.job)).encode())
            _flush(writing)
        draft.rename(work / _JOB)
        sync(work)

    def _compare(self, begun: Mapping[str, Any]) -> None:
        for name, wanted in asdict(self.job).items():
            if (found := begun.get(name)) != wanted:
                raise ApplianceError(
                    Reason.FILE_UNUSABLE,
                    f"{self.path} was begun with {name} {found!r}, not {wanted!r}.",
                    hint="Repeat the command with which it was begun, or name a new directory.",
                    field="DEST",
                )

    def _note(self, number: int) -> Path:
        return self.path / WORK / f"{number:06}.json"


def _require_owners(descriptor: int, path: Path) -> None:
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if mode & _WRITABLE:
        raise ApplianceError(
            Reason.FILE_UNUSABLE,
            f"Others than its owner may write into {path} (mode {mode:04o}).",
            hint=f"Look at what is in it; then: chmod go-w {path}. Or name a directory that is not there yet.",
            field="DEST",
        )


def _lock(descriptor: int, path: Path) -> None:
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise ApplianceError(
                    Reason.FILE_UNUSABLE,
                    f"Another run is at work in {path}.",
                    hint="Wait for it, or name another directory.",
                    field="DEST",
                ) from None
            time.sleep(0.05)
        else:
            return


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no file."""
    try:
        with translated(path), suppress(FileNotFoundError, NotADirectoryError):
            found = json.loads(path.read_bytes())
            if isinstance(found, dict):
                return found
            raise ValueError
    except (ValueError, RecursionError):
        raise _not_ours(path) from None
    return None


def _owners_alone(path: Path) -> BinaryIO:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    return path.open("wb")


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _partial(note: Path) -> Path:
    return note.with_name(note.name + ".partial")


def _not_ours(file: Path) -> ApplianceError:
    return ApplianceError(
        Reason.FILE_UNUSABLE,
        f"{file} is none that this command has written, or it is damaged.",
        hint="Name a directory that is empty or not there yet.",
        field="DEST",
    )


def _gone(file: Path) -> ApplianceError:
    return ApplianceError(
        Reason.FILE_UNUSABLE,
        f"{file} was made, and is not there any more. It is not made again: its scripts would be others.",
        hint="Put it back, or render into a new directory.",
        field="DEST",
    )
