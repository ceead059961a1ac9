"""Issuing one key and certificate: reserve, attempt, act, record.

Each request runs in a task of its own, which neither a cancelled call nor a passed deadline ends; a second call with
the same request joins it. A request that could not be finished is refused before anything is reserved, where that can
be known: too little time, or no vault with room.
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Final

from appliance import logs
from appliance.domain.issuance import Attempt, IssuanceRecord
from appliance.domain.keyset import SimIssuer
from appliance.domain.package import KeyType, PendingPackage
from appliance.domain.profile import CertificateProfile
from appliance.domain.request import IssueOrder, RequestedIssue, content_digest, validate
from appliance.errors import REASONS, ApplianceError, Code, Reason
from appliance.issuing.link import VaultLost
from appliance.issuing.vaults import Vaults
from appliance.ledger import Ledger

SECONDS_NEEDED: Final[Mapping[KeyType, float]] = {KeyType.RSA_2048: 1.0, KeyType.EC_P256: 0.2, KeyType.EC_P384: 0.2}
"""Time that must be left of a call's deadline: twice the slowest key pair seen (RSA: 0.46 s), and the commits."""

ATTEMPTS_BESIDE_OTHERS: Final = 2
"""Of what a vault takes with it, all but one request are innocent, so the first retry waits for nobody."""
CERTIFICATE_WAIT: Final = timedelta(days=14)
"""How long a sealed key waits for an external CA: longer than public holidays and an outage together."""

_Key = tuple[str, str, bytes]


class Issuing:
    """Makes issuances.

    Args:
        ledger, vaults: where the work is recorded and done.
        issuers: the declared SIM issuers by name.
        profile: the certificate profile that serves.
        content_key: of the digests that tell a repeated request from another one.
        clock: aware times.
        answer: the bytes that answer a finished request, made once and then stored.
        ca_end: last second of the issuing CA's certificate; None where an external CA decides how long its own last.
        certificate_wait: how long a sealed key waits for the certificate of an external CA.
    """

    def __init__(
        self,
        ledger: Ledger,
        vaults: Vaults,
        *,
        issuers: Mapping[str, SimIssuer],
        profile: CertificateProfile,
        content_key: bytes,
        clock: Callable[[], datetime],
        answer: Callable[[IssuanceRecord], bytes],
        ca_end: datetime | None = None,
        certificate_wait: timedelta = CERTIFICATE_WAIT,
    ) -> None:
        self._ledger = ledger
        self._vaults = vaults
        self._issuers = issuers
        self._profile = profile
        self._content_key = content_key
        self._clock = clock
        self._answer = answer
        self._ca_end = ca_end
        self._certificate_wait = certificate_wait
        self._running: dict[_Key, asyncio.Task[bytes]] = {}
        self._suspects = asyncio.Lock()

    def check(self, fields: RequestedIssue) -> IssueOrder:
        """The order that this request would make; nothing is stored and no vault is asked.

        Raises:
            ApplianceError: the first broken rule.
        """
        return validate(fields, self._issuers, self._profile, self._clock(), ca_end=self._ca_end)

    async def issue(self, client: str, fields: RequestedIssue, seconds_left: float | None) -> bytes:
        """The answer to the request, for the first or the hundredth time.

        Args:
            client: URI of the caller; request ids are its own.
            fields: what arrived.
            seconds_left: until the call's deadline; None without one.

        Raises:
            ApplianceError
        """
        digest = content_digest(fields, self._content_key)
        key = (client, fields.request_id, digest)
        if key not in self._running:
            stored = await self._ledger.find(client, fields.request_id, digest)
            if stored is not None:
                return stored
        if key not in self._running:  # another call may have come while the ledger was asked
            order = self.check(fields)
            _require_time(order.key_type, seconds_left)
            task = asyncio.create_task(self._make(client, order, digest))
            self._running[key] = task
            task.add_done_callback(lambda task: self._ended(key, task))
        return await asyncio.shield(self._running[key])

    async def drain(self, seconds: float) -> None:
        """Returns when all requests under way have ended; those that take longer than `seconds` are cut off."""
        if not self._running:
            return
        _, late = await asyncio.wait(list(self._running.values()), timeout=seconds)
        for task in late:
            task.cancel()
        if late:
            logs.get().warning("issuances cut off", count=len(late))
            await asyncio.wait(late)

    async def _make(self, client: str, order: IssueOrder, digest: bytes) -> bytes:
        with self._vaults.admit():
            reserved = await self._ledger.reserve(client, order, digest)
            attempt = reserved.attempt
            if attempt is None:
                assert reserved.answer is not None  # noqa: S101 (a reservation is one or the other)
                return reserved.answer
            for _ in range(ATTEMPTS_BESIDE_OTHERS):
                try:
                    return await self._try(reserved.record, attempt, order.activation_code)
                except VaultLost:
                    attempt = await self._ledger.retry(attempt.issuance, attempt.number)
            return await self._try_alone(reserved.record, attempt, order.activation_code)

    async def _try_alone(self, record: IssuanceRecord, attempt: Attempt, activation_code: str) -> bytes:
        """Tries what has cost two vaults, one such request after the other: one that kills vaults dies alone."""
        while True:
            await self._vaults.wait_ready()
            async with self._suspects:
                if not self._vaults.ready:
                    continue  # the one before has killed another vault; wait for the next beside the others
                try:
                    return await self._try(record, attempt, activation_code)
                except VaultLost:
                    attempt = await self._ledger.retry(attempt.issuance, attempt.number)

    async def _try(self, record: IssuanceRecord, attempt: Attempt, activation_code: str) -> bytes:
        try:
            # What was reserved is made, also where the same request would be read otherwise today.
            made = await self._vaults.issue(record, attempt, activation_code, self._clock())
        except ApplianceError as refusal:
            # Only bad input stays bad: after a fault of token, vault or settings the same call can complete it.
            if REASONS[refusal.reason].code is Code.INVALID_ARGUMENT:
                await self._ledger.fail(attempt, refusal.reason, refusal.detail)
            raise
        told = {"issuance": f"issuances/{record.id}", "attempt": attempt.number}
        if isinstance(made, PendingPackage):
            due = self._clock() + self._certificate_wait
            answer = await self._ledger.await_certificate(attempt, made, due, self._answer)
            logs.get().info("issuance awaits its certificate", **told, due=due.isoformat())
        else:
            answer = await self._ledger.complete(attempt, made, self._answer)
            logs.get().info("issuance ready", **told, serial=attempt.serial.hex())
        return answer

    def _ended(self, key: _Key, task: asyncio.Task[bytes]) -> None:
        del self._running[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            # The caller may have left: the log is then the only one to hear of it.
            ours = isinstance(error, ApplianceError)
            logs.get().info(
                "issuance not completed",
                request_id=key[1],
                reason=error.reason if isinstance(error, ApplianceError) else Reason.INTERNAL,
                exc_info=None if ours else error,
            )


def _require_time(key_type: KeyType, seconds_left: float | None) -> None:
    needed = SECONDS_NEEDED[key_type]
    if seconds_left is not None and seconds_left < needed:
        raise ApplianceError(
            Reason.DEADLINE_TOO_SHORT,
            f"{seconds_left:.2f} s are left; a key of type {key_type.name} needs {needed} s. Nothing was reserved.",
            hint="Send the same call with a longer deadline.",
            needed_seconds=str(needed),
        )
