"""Certificates of an external CA: what waits for one is completed with it, or abandoned when it does not come."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final

from appliance import logs
from appliance.domain.issuance import IssuanceRecord, State
from appliance.domain.request import call_digest, validate_issuance_name, validate_request_id
from appliance.domain.submission import identify
from appliance.errors import ApplianceError
from appliance.issuing.vaults import Vaults, retried
from appliance.ledger import ForeignCertificate, Ledger

SWEEP_SECONDS: Final = 300.0
"""How often overdue issuances are looked for; whoever asks for one meets its end at once."""
SWEEP_BATCH: Final = 100
"""Issuances that one commit ends, so that others get their turn."""


class Certification:
    """Takes certificates.

    Args:
        ledger, vaults: where the work is recorded and done.
        content_key: of the digests that tell a repeated request from another one.
        clock: aware times.
        answer: the bytes that answer SubmitCertificate, made once and then stored.
    """

    def __init__(
        self,
        ledger: Ledger,
        vaults: Vaults,
        *,
        content_key: bytes,
        clock: Callable[[], datetime],
        answer: Callable[[IssuanceRecord], bytes],
    ) -> None:
        self._ledger = ledger
        self._vaults = vaults
        self._content_key = content_key
        self._clock = clock
        self._answer = answer

    async def submit(self, client: str, request_id: str, name: str, certificate: bytes) -> bytes:
        """The answer to a certificate that completes its issuance; the same for the first or the hundredth time.

        Args:
            client: URI of the caller.
            request_id: a UUID of its choice.
            name: issuances/{id}.
            certificate: DER.

        Raises:
            ApplianceError
        """
        validate_request_id(request_id)
        issuance = validate_issuance_name(name, "name")
        foreign = ForeignCertificate(certificate, *identify(certificate))
        digest = call_digest(self._content_key, "SubmitCertificate", issuance.encode(), certificate)
        record = await self._ledger.get(issuance)
        package = await self._completed(record, certificate) if self._waits(record) else None
        answer = await self._ledger.certify(client, request_id, digest, issuance, foreign, package, self._answer)
        if package is not None:
            logs.get().info("issuance ready", issuance=name, serial=foreign.serial.hex())
        return answer

    async def follow(self) -> None:
        """Abandons what is overdue, now and again, until it is cancelled."""
        while True:
            if await self._sweep() < SWEEP_BATCH:
                await asyncio.sleep(SWEEP_SECONDS)

    async def _sweep(self) -> int:
        try:
            ended = await self._ledger.expire_overdue(SWEEP_BATCH)
        except ApplianceError as error:
            logs.get().warning("overdue issuances were not looked for", reason=error.reason, detail=error.detail)
            return 0
        for issuance in ended:
            logs.get().info("certificate overdue", issuance=f"issuances/{issuance}")
        return len(ended)

    def _waits(self, record: IssuanceRecord) -> bool:
        """Whether the vault has something to complete; the ledger decides what becomes of any other."""
        due = record.certificate_due
        return record.state is State.AWAITING_CERTIFICATE and due is not None and self._clock() < due

    async def _completed(self, record: IssuanceRecord, certificate: bytes) -> bytes:
        with self._vaults.admit():
            return await retried(lambda: self._vaults.complete(record, certificate))
