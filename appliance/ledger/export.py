"""Packages that wait for their delivery, written into a file for a bureau: as of one moment, and read alone.

The file holds what a delivery's scripts are made of, and no key. The issuances stay READY. Where several packages wait
for one SIM, each has counters of its own, in the order in which the SIM takes them.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Column, ColumnElement, Connection, func, select
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from appliance.api.v1 import bureau_pb2, issuance_pb2
from appliance.bureau.export import MAX_WINDOW, write
from appliance.domain.derivation import MAX_SEQUENCE_COUNTER
from appliance.domain.issuance import State
from appliance.domain.keyset import KeySet, SimIssuer
from appliance.errors import ApplianceError, Reason
from appliance.ledger.queries import Row, record_of
from appliance.ledger.schema import attempts, issuances

_PAGE = 500
"""Rows that are in memory at once."""


@dataclass(frozen=True)
class Scripts:
    """Which scripts the bureau is to make of each package, if it has the SIMs' static keys.

    Args:
        counter: the channel's sequence counter for the first one of a SIM.
        window: how many, for consecutive counters.
    """

    counter: int = 1
    window: int = 1


def export(connection: Connection, issuer: SimIssuer, scripts: Scripts, destination: Path, now: datetime) -> int:
    """Write every READY package for this SIM issuer's SIMs into a new file; answers how many.

    Raises:
        ApplianceError: FIELD_INVALID for counters that there are not, ISSUANCE_NOT_READY where there is no package,
            KEY_SET_UNKNOWN for one of a key set that is not declared any more, SEAL_REJECTED for one that is not as it
            was sealed, FILE_UNUSABLE. Nothing is written then.
    """
    _check(scripts, 1)
    waiting = _waits(issuances.c, issuer)
    counted = select(issuances.c.kvn, func.count()).where(waiting).group_by(issuances.c.kvn)
    counts: dict[int, int] = dict(connection.execute(counted).all())
    if not counts:
        raise ApplianceError(
            Reason.ISSUANCE_NOT_READY,
            f"No issuance for SIM issuer {issuer.name} is READY.",
            hint="There is nothing to deliver now; nothing was written.",
        )
    key_sets = [issuer.key_set(kvn) for kvn in sorted(counts)]
    created = Timestamp()
    created.FromDatetime(now)
    count = sum(counts.values())
    head = bureau_pb2.ExportHead(create_time=created, packages=count, routes=_routes(issuer, key_sets))
    rows = connection.execute(
        select(issuances, _before(issuer)).where(waiting).order_by(issuances.c.id).execution_options(yield_per=_PAGE)
    )
    write(destination, head, _packages(rows.mappings(), sorted(counts), scripts))
    return count


def _waits(of: ReadOnlyColumnCollection[str, Column[Any]], issuer: SimIssuer) -> ColumnElement[bool]:
    # An expression keeps SQLite from the index of states: then it would sort the rows, with their keys, in /var/tmp.
    return (of.state.concat("") == State.READY) & (of.sim_issuer == issuer.name)


def _before(issuer: SimIssuer) -> ColumnElement[int]:
    """How many packages wait for the same SIM whose counter (field 84 of the header) is lower."""
    other = issuances.alias()
    made = (attempts.c.issuance == other.c.id) & (attempts.c.number == other.c.attempt)
    lower = (attempts.c.iccid == issuances.c.iccid) & (attempts.c.counter < issuances.c.counter)
    counted = select(func.count()).select_from(attempts.join(other, made)).where(lower, _waits(other.c, issuer))
    return counted.scalar_subquery().label("before")


def _check(scripts: Scripts, packages: int) -> None:
    """The counters that so many packages for one SIM take."""
    if not 1 <= scripts.window <= MAX_WINDOW:
        raise ApplianceError(
            Reason.FIELD_INVALID,
            f"A window of {scripts.window} scripts is none of 1 to {MAX_WINDOW}.",
            hint="A SIM's counter rises with every session that anybody opens: a few scripts are enough.",
            field="--window",
        )
    last = scripts.counter + packages * scripts.window - 1
    if scripts.counter < 1 or last > MAX_SEQUENCE_COUNTER:
        raise ApplianceError(
            Reason.FIELD_INVALID,
            f"The counters {scripts.counter} to {last} are not all within 1 to {MAX_SEQUENCE_COUNTER}.",
            hint="Begin with the SIMs' last counter plus one; a fresh SIM's first is 1.",
            field="--counter",
        )


def _routes(issuer: SimIssuer, key_sets: Iterable[KeySet]) -> Iterator[bureau_pb2.ExportRoute]:
    for key_set in key_sets:
        channel = key_set.channel
        yield bureau_pb2.ExportRoute(
            sim_issuer=f"simIssuers/{issuer.name}",
            kvn=key_set.kvn,
            ssd_aid=issuer.ssd_aid_bytes,
            channel_kvn=channel.kvn,
            channel_i=channel.i_byte,
            channel_key_bits=channel.key_bits,
            security_level=channel.security_level_byte,
            km_chan_kcv=key_set.chan.kcv_bytes,
        )


def _packages(rows: Iterable[Row], kvns: Sequence[int], scripts: Scripts) -> Iterator[bureau_pb2.ExportedPackage]:
    for row in rows:
        record, before = record_of(row), row["before"]
        _check(scripts, before + 1)
        package = record.package or b""
        if hashlib.sha256(package).digest() != record.package_sha256:
            raise ApplianceError(
                Reason.SEAL_REJECTED,
                f"The package of issuances/{record.id} is not the one that was sealed.",
                hint="Run appliance ledger check; restore a backup if it fails.",
            )
        yield bureau_pb2.ExportedPackage(
            issuance=f"issuances/{record.id}",
            iccid=record.iccid,
            key_type=issuance_pb2.KeyType.ValueType(record.key_type),
            applet_aid=record.applet_aid,
            route=kvns.index(record.kvn),
            package=package,
            package_sha256=record.package_sha256,
            sequence_counter=scripts.counter + before * scripts.window,
            window=scripts.window,
        )
