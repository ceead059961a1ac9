"""Exports: files of SIM packages on their way to a bureau (bureau.proto).

An export is checked whole before anything is made from it: its end holds a digest of all that stands before.
"""

import contextlib
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from google.protobuf.message import DecodeError

from appliance.api.v1 import bureau_pb2 as pb
from appliance.bureau.records import Record, damaged, delimited, read, varint
from appliance.domain.keyset import Channel
from appliance.domain.setting import SETTING_NAME, SettingError
from appliance.domain.sim import validate_aid, validate_kvn
from appliance.errors import ApplianceError, Reason

if TYPE_CHECKING:
    from hashlib import _Hash

FORMAT: Final = "sim-packages-1"
MAX_WINDOW: Final = 1000
"""Scripts for one SIM; where its counter runs on further, another export is made."""
KCV_LENGTH: Final = 3

_SIM_ISSUER: Final = re.compile(f"simIssuers/{SETTING_NAME.pattern}")
_END: Final = b"\x22\x0a\x20"
"""What ExportEnd begins with, its length included: 34 bytes, of which 32 are field 1."""
_END_BYTES: Final = len(_END) + hashlib.sha256().digest_size
_BLOCK: Final = 1 << 20
_OTHERS: Final = 0o077


class Shard(NamedTuple):
    """A run of packages whose scripts go into one file."""

    number: int
    first: int
    """Number of its first record."""
    packages: int
    offset: int
    end: int
    digest: bytes
    """SHA-256 of its records (`take`) when the export was checked: what is rendered must be the same."""


@dataclass(frozen=True)
class Export:
    """An export that is there; `shards` checks what is in it.

    Args:
        path: its file.
        head: as it was written, valid.
        digest: SHA-256, which names it.
        body: offset of the first package.
        end: offset of ExportEnd.
    """

    path: Path
    head: pb.ExportHead
    digest: bytes
    body: int
    end: int

    @classmethod
    def open(cls, path: Path) -> "Export":
        """Look at both ends of the file.

        Raises:
            ApplianceError: FILE_UNUSABLE, also for session keys that others may read; EXPORT_INVALID.
        """
        with opened(path) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _unusable(path, "is no file that can be read twice", "Name a regular file, not a pipe or device.")
            head, body = _head(file, status.st_size)
            if head.session_keys and status.st_mode & _OTHERS:
                raise _unusable(
                    path,
                    f"brings session keys, and others may read or write it (mode {stat.S_IMODE(status.st_mode):04o})",
                    f"Find out who has read it; then: chmod 600 {path}.",
                )
            end = max(body, status.st_size - _END_BYTES)
            file.seek(end)
            last = file.read(_END_BYTES)
            if not last.startswith(_END):
                raise _cut_off(file, head, body, status.st_size)
        return cls(path, head, last[len(_END) :], body, end)

    def shards(self, size: int) -> list[Shard]:
        """Its packages in runs of `size`, the last one shorter, after all of the file was read and found whole.

        Each issuance stands in it once, and they ascend: so no two shards make scripts for the same one.

        Raises:
            ApplianceError: EXPORT_INVALID naming record and offset.
        """
        made: list[Shard] = []
        number, last, wrong = 0, "", None
        digest = hashlib.sha256()
        with ThreadPoolExecutor(1) as beside:
            whole = beside.submit(self._digest)
            for record in self.records():
                number = record.number
                if wrong is None:
                    try:
                        last = _next_issuance(record, last)
                    except ApplianceError as error:  # perhaps no more than a sign of damage, which is told then
                        wrong = error
                if (number - 1) % size == 0:
                    if made:
                        made[-1] = made[-1]._replace(packages=size, end=record.offset, digest=digest.digest())
                    made.append(Shard(len(made), number, 0, record.offset, self.end, b""))
                    digest = hashlib.sha256()
                take(digest, record)
        if number != self.head.packages:
            raise damaged(
                f"The head tells of {self.head.packages} packages, but record {number} is the last.", record=number
            )
        if whole.result() != self.digest:
            raise self._damage()
        if wrong is not None:
            raise wrong
        if made:
            made[-1] = made[-1]._replace(packages=number - made[-1].first + 1, digest=digest.digest())
        return made

    def records(self) -> Iterator[Record]:
        """All its packages, numbered from 1."""
        with opened(self.path) as file:
            yield from read(file, self.body, self.end, 1)

    def _digest(self) -> bytes:
        """Of everything in front of the end."""
        digest, left = hashlib.sha256(), self.end
        with opened(self.path) as file:
            while chunk := file.read(min(_BLOCK, left)):
                digest.update(chunk)
                left -= len(chunk)
        return digest.digest()

    def _damage(self) -> ApplianceError:
        """What is wrong where the digest is: the first package that is not as it was sealed, if it is one of those."""
        for record in self.records():
            try:
                package = package_of(record)
            except ApplianceError:
                break
            if hashlib.sha256(package.package).digest() != package.package_sha256:
                break
        else:
            return damaged("The export is not as it was written: it has another digest than its end says.")
        return damaged(
            f"Record {record.number} at offset {record.offset} is not as it was written.",
            record=record.number,
            offset=record.offset,
        )


def write(path: Path, head: pb.ExportHead, packages: Iterable[pb.ExportedPackage]) -> bytes:
    """Write a new file of the owner's alone; it gets its name when it is whole and on the disk.

    Args:
        path: not there yet; of two writers of one name the first to be ready has it.
        head: its `format` is filled in here.
        packages: as many as the head says, in the order of `issuance`.

    Returns:
        Its digest.

    Raises:
        ApplianceError: FILE_UNUSABLE; whatever `packages` raises. Nothing is left then.
    """
    if path.exists():
        raise _there(path)
    digest = hashlib.sha256()
    head.format = FORMAT
    number, last = 0, ""
    with translated(path):
        descriptor, name = tempfile.mkstemp(".partial", f"{path.name}.", path.parent)
    partial = Path(name)
    try:
        with translated(path), os.fdopen(descriptor, "wb") as file:
            for message in _messages(head, packages):
                if isinstance(message, pb.ExportedPackage):
                    if message.issuance <= last:
                        raise ValueError("packages are not in the order of their issuances")
                    number, last = number + 1, message.issuance
                record = delimited(message.SerializeToString())
                digest.update(record)
                file.write(record)
            if number != head.packages:
                raise ValueError(f"there are {number} packages, not {head.packages}")
            file.write(_END + digest.digest())
            file.flush()
            os.fsync(file.fileno())
        with translated(path):
            try:
                path.hardlink_to(partial)  # a rename would take the place of another writer's file
            except FileExistsError:
                raise _there(path) from None
            except PermissionError:
                raise _unusable(
                    path, "lies in a file system without hard links", "Name a file in another, and copy it then."
                ) from None
            partial.unlink()
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)
    return digest.digest()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file for reading; FILE_UNUSABLE where it cannot be read."""
    with translated(path), path.open("rb") as file:
        yield file


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Errors of the operating system as FILE_UNUSABLE."""
    try:
        yield
    except OSError as error:
        raise _unusable(
            Path(error.filename or path),
            f"cannot be used: {error.strerror}",
            "See to path, mode and room on the disk, and repeat the command.",
        ) from error


def sync(directory: Path) -> None:
    """Names in a directory outlive the power too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def package_of(record: Record) -> pb.ExportedPackage:
    """What stands in a record.

    Raises:
        ApplianceError: EXPORT_INVALID naming it.
    """
    try:
        return pb.ExportedPackage.FromString(record.content)
    except DecodeError:
        raise damaged(
            f"Record {record.number} at offset {record.offset} is no ExportedPackage.",
            record=record.number,
            offset=record.offset,
        ) from None


def take(digest: "_Hash", record: Record) -> None:
    """A record into the digest of its shard, behind its length."""
    digest.update(varint(len(record.content)))
    digest.update(record.content)


def channel_of(route: pb.ExportRoute) -> Channel:
    """The channel's parameters, checked against each other as those of a settings file are.

    Raises:
        SettingError
    """
    return Channel(route.channel_kvn, route.channel_key_bits, f"{route.channel_i:02X}", f"{route.security_level:02X}")


def _head(file: BinaryIO, size: int) -> tuple[pb.ExportHead, int]:
    """The head and the offset behind it."""
    try:
        record = next(read(file, 0, size))
        head = pb.ExportHead.FromString(record.content)
    except (ApplianceError, DecodeError, StopIteration):
        head = pb.ExportHead()
    if head.format != FORMAT:
        raise ApplianceError(
            Reason.EXPORT_INVALID,
            "This is no export of packages that this program reads.",
            hint=f"Make one with: appliance ledger export. Its first record says {FORMAT}.",
            field="EXPORT",
        )
    for number, route in enumerate(head.routes):
        _check_route(route, f"head.routes[{number}]")
    return head, len(delimited(record.content))


def _check_route(route: pb.ExportRoute, where: str) -> None:
    if not _SIM_ISSUER.fullmatch(route.sim_issuer):
        raise ApplianceError(
            Reason.EXPORT_INVALID,
            "This is not the name of a SIM issuer.",
            hint="Write simIssuers/ and the issuer's name: lower-case letters, digits, hyphens.",
            field=f"{where}.sim_issuer",
        )
    try:
        validate_aid(route.ssd_aid, "ssd_aid")
        validate_kvn(route.kvn, "kvn")
        channel_of(route)
    except (ApplianceError, SettingError) as error:
        raise ApplianceError(
            Reason.EXPORT_INVALID, error.detail, hint=error.hint, field=f"{where}.{error.field}"
        ) from error
    if len(route.km_chan_kcv) != KCV_LENGTH:
        raise ApplianceError(
            Reason.EXPORT_INVALID,
            f"The check value of KM-CHAN has {len(route.km_chan_kcv)} bytes, not {KCV_LENGTH}.",
            hint="Have the export made again.",
            field=f"{where}.km_chan_kcv",
        )


def _next_issuance(record: Record, last: str) -> str:
    """The record's issuance, which comes behind the last one's."""
    name = package_of(record).issuance
    if record.number > 1 and name <= last:
        again = "is there twice" if name == last else "stands behind one of a greater name"
        raise ApplianceError(
            Reason.EXPORT_INVALID,
            f"Record {record.number} at offset {record.offset}: {name!r} {again}.",
            hint="Have the export made with each package once, in the order of issuances.",
            field="EXPORT",
            record=record.number,
            offset=record.offset,
        )
    return name


def _cut_off(file: BinaryIO, head: pb.ExportHead, body: int, size: int) -> ApplianceError:
    """What is wrong with a file that does not end as exports do, after a walk to where that begins."""
    number, offset = 0, 0
    try:
        for record in read(file, body, size, 1):
            number, offset = record.number, record.offset
    except ApplianceError as error:
        return error
    return damaged(
        f"The export ends behind record {number} at offset {offset}, of {head.packages}, and has no end record.",
        record=number,
        offset=offset,
    )


def _messages(
    head: pb.ExportHead, packages: Iterable[pb.ExportedPackage]
) -> Iterator[pb.ExportHead | pb.ExportedPackage]:
    yield head
    yield from packages


def _there(path: Path) -> ApplianceError:
    return _unusable(path, "is there already", "Name a new file.")


def _unusable(path: Path, problem: str, hint: str) -> ApplianceError:
    return ApplianceError(Reason.FILE_UNUSABLE, f"{path} {problem}.", hint=hint)
