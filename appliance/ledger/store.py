"""The ledger as the use cases see it: asynchronous methods over the committer and a few threads that read.

Every method raises ApplianceError alone; LEDGER_UNAVAILABLE where the database cannot commit or read, and then nothing
has changed, or the same request finds what has.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self, TypeVar

from sqlalchemy import Connection, Engine

from appliance.domain.issuance import Attempt, IssuanceRecord, State
from appliance.domain.package import PendingPackage
from appliance.domain.request import IssueOrder
from appliance.errors import ApplianceError
from appliance.ledger import database, lifecycle, queries, reservation
from appliance.ledger.calls import Call
from appliance.ledger.change import Change, rehearse
from appliance.ledger.committer import Committer
from appliance.ledger.lifecycle import ForeignCertificate
from appliance.ledger.reservation import Reservation
from appliance.ledger.schema import SCHEMA_VERSION

READERS = 2
"""Threads that read; each read takes well under a millisecond, listing a few."""

T = TypeVar("T")


def utc_now() -> datetime:
    """The machine's clock."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class LedgerStatus:
    """`issuances` counts by state, every state named; `audit_entries` is the newest entry's number."""

    schema_version: str
    issuances: dict[str, int]
    audit_entries: int


class Ledger:
    """What the appliance has promised and done, in one database.

    `client` is the caller's URI, `request_id` its UUID, `digest` of the whole validated request; `issuance` is an id
    without "issuances/". `answer` makes the bytes to answer and to keep from the record as it is after the change; it
    runs in the committer's thread, must be quick, and is given no package: what is kept for ever may not hold one.
    """

    def __init__(self, engine: Engine, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._committer = Committer(engine, clock)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="ledger-reader")
        # Counting reads a whole index, 0.1 s for a million issuances: one at a time, and never in the way of `find`.
        self._counting = ThreadPoolExecutor(1, thread_name_prefix="ledger-counting")

    @classmethod
    def open(cls, url: str, *, clock: Callable[[], datetime] = utc_now) -> Self:
        """Opens a migrated ledger.

        Args:
            url: of SQLAlchemy, such as sqlite:////var/lib/appliance/ledger.db.
            clock: aware times.

        Raises:
            ApplianceError: LEDGER_SCHEMA_MISMATCH, or LEDGER_UNAVAILABLE.
        """
        database.require_writable(url)
        database.require_schema(url)
        with database.translated_errors():
            return cls(database.connect(url), clock)

    def close(self) -> None:
        """Finishes the queued work and closes the database; later calls raise LEDGER_UNAVAILABLE."""
        self._committer.close()
        self._readers.shutdown()
        self._counting.shutdown()
        self._engine.dispose()

    async def reserve(self, client: str, order: IssueOrder, digest: bytes) -> Reservation:
        """Reserves an issuance and opens its first attempt; the same request again resumes it.

        Raises:
            ApplianceError: REQUEST_ID_REUSED, PERSON_HAS_LIVE_ISSUANCE with the fact `issuance` (its resource name),
                SIM_BUSY, and for a request whose issuance ended without an answer ISSUANCE_FAILED or ISSUANCE_ENDED.
        """
        return await self._write(lambda change: reservation.reserve(change, client, order, digest))

    async def retry(self, issuance: str, lost_attempt: int) -> Attempt:
        """Opens a new attempt in place of one whose vault died.

        Raises:
            ApplianceError: ISSUANCE_FAILED when it was the third (the issuance is FAILED then); SIM_BUSY (the loss
                counts, and `reserve` goes on with the issuance later); ISSUANCE_ENDED when the issuance is not
                RESERVED any more, or the lost attempt was not its newest.
        """
        result = await self._write(lambda change: reservation.retry(change, issuance, lost_attempt))
        if isinstance(result, ApplianceError):
            raise result
        return result

    async def complete(self, attempt: Attempt, package: bytes, answer: Callable[[IssuanceRecord], bytes]) -> bytes:
        """Stores the package and the answer: RESERVED becomes READY. Answers the stored bytes if there are any.

        Raises:
            ApplianceError: ISSUANCE_ENDED for an attempt that came late; INTERNAL for a package of another order.
        """
        return await self._write(lambda change: reservation.complete(change, attempt, package, answer))

    async def await_certificate(
        self, attempt: Attempt, pending: PendingPackage, due: datetime, answer: Callable[[IssuanceRecord], bytes]
    ) -> bytes:
        """Stores the sealed key, its certificate request and the answer: RESERVED becomes AWAITING_CERTIFICATE.

        Answers the stored bytes if there are any. After `due` it is ABANDONED.

        Raises:
            ApplianceError: as `complete`.
        """
        return await self._write(lambda change: reservation.await_certificate(change, attempt, pending, due, answer))

    async def certify(
        self,
        client: str,
        request_id: str,
        digest: bytes,
        issuance: str,
        certificate: ForeignCertificate,
        package: bytes | None,
        answer: Callable[[IssuanceRecord], bytes],
    ) -> bytes:
        """AWAITING_CERTIFICATE becomes READY; one that has this certificate already is answered as it is.

        Args:
            package: what the vault has completed with this certificate; None where nothing was to be completed.

        Raises:
            ApplianceError: ISSUANCE_NOT_FOUND, CERTIFICATE_NOT_AWAITED, CERTIFICATE_OVERDUE (the issuance is ABANDONED
                then), CERTIFICATE_REFUSED for a serial number that another issuance has, ISSUANCE_ENDED,
                REQUEST_ID_REUSED; INTERNAL for a package of another issuance.
        """
        call = Call(client, request_id, "SubmitCertificate", digest)
        result = await self._write(
            lambda change: lifecycle.certify(change, call, issuance, certificate, package, answer)
        )
        if isinstance(result, ApplianceError):
            raise result
        return result

    async def expire_overdue(self, most: int) -> Sequence[str]:
        """At most so many issuances whose certificates are overdue become ABANDONED; their ids."""
        return await self._write(lambda change: lifecycle.expire_overdue(change, most))

    async def fail(self, attempt: Attempt, reason: str, detail: str) -> None:
        """RESERVED becomes FAILED, for `reason` of `REASONS`; a failure that came late changes nothing."""
        await self._write(lambda change: reservation.fail(change, attempt, reason, detail))

    async def prepare_script(
        self, client: str, request_id: str, digest: bytes, issuance: str, host_challenge: bytes
    ) -> tuple[IssuanceRecord, bytes]:
        """Keeps the host challenge of a script; the same request again gets the one that was kept.

        Raises:
            ApplianceError: ISSUANCE_NOT_FOUND, ISSUANCE_NOT_READY, REQUEST_ID_REUSED.
        """
        call = Call(client, request_id, "FetchScript", digest)
        return await self._write(lambda change: lifecycle.prepare_script(change, call, issuance, host_challenge))

    async def host_challenge(self, client: str, request_id: str, digest: bytes) -> bytes | None:
        """What was kept for the script that this call fetched; None where no such call with this content was seen."""
        return await self._read(lambda connection: queries.host_challenge(connection, client, request_id, digest))

    async def activate(
        self, client: str, request_id: str, digest: bytes, issuance: str, answer: Callable[[IssuanceRecord], bytes]
    ) -> bytes:
        """READY becomes ACTIVE and the wrapped key is erased; an ACTIVE one stays so and is answered again.

        Raises:
            ApplianceError: ISSUANCE_NOT_FOUND, ISSUANCE_NOT_READY, ISSUANCE_ENDED, REQUEST_ID_REUSED.
        """
        call = Call(client, request_id, "ReportReceipt", digest)
        return await self._write(lambda change: lifecycle.activate(change, call, issuance, answer))

    async def abandon(
        self, client: str, request_id: str, digest: bytes, issuance: str, answer: Callable[[IssuanceRecord], bytes]
    ) -> bytes:
        """RESERVED, AWAITING_CERTIFICATE or READY becomes ABANDONED and the wrapped key is erased.

        Raises:
            ApplianceError: ISSUANCE_NOT_FOUND, ISSUANCE_ENDED, REQUEST_ID_REUSED.
        """
        call = Call(client, request_id, "Abandon", digest)
        return await self._write(lambda change: lifecycle.abandon(change, call, issuance, answer))

    async def find(self, client: str, request_id: str, digest: bytes) -> bytes | None:
        """The stored answer of a finished request, or None.

        Raises:
            ApplianceError: REQUEST_ID_REUSED when the request had another content.
        """
        return await self._read(lambda connection: queries.answer(connection, client, request_id, digest))

    async def get(self, issuance: str) -> IssuanceRecord:
        """The issuance as it stands.

        Raises:
            ApplianceError: ISSUANCE_NOT_FOUND.
        """
        return await self._read(lambda connection: queries.issuance(connection, issuance))

    async def list(
        self, *, page_size: int, page_token: str = "", person_id: str = "", state: State | None = None
    ) -> tuple[Sequence[IssuanceRecord], str]:
        """At most `page_size` (at least 1) issuances, oldest first, and the token of the next page or "".

        Raises:
            ApplianceError: PAGE_TOKEN_INVALID for a token that is not of this method and these filters.
        """
        return await self._read(lambda connection: queries.page(connection, page_size, page_token, person_id, state))

    @property
    def commits(self) -> bool:
        """Whether the last commit succeeded, and the one under way does not hang."""
        return self._committer.works

    async def probe(self) -> None:
        """Returns if the ledger reads and commits; it tries a commit of its own only where the last one failed.

        Raises:
            ApplianceError: what stands in the way.
        """
        await self.list(page_size=1)
        if not self.commits:
            await self._write(rehearse)

    async def status(self) -> LedgerStatus:
        """Counts over the whole ledger."""
        issuances, entries = await self._read(queries.counts, self._counting)
        return LedgerStatus(SCHEMA_VERSION, issuances, entries)

    async def _write(self, work: Callable[[Change], T]) -> T:
        return await asyncio.wrap_future(self._committer.submit(work))

    async def _read(self, work: Callable[[Connection], T], threads: ThreadPoolExecutor | None = None) -> T:
        def read() -> T:
            with database.translated_errors(), self._engine.connect() as connection:
                return work(connection)

        try:
            reading = (threads or self._readers).submit(read)
        except RuntimeError:
            raise database.closed() from None
        return await asyncio.wrap_future(reading)
