"""Delivery: rendering scripts for SIMs and taking their receipts.

A TSM sees the issuances of the SIM issuers that it serves; any other does not exist for it.
"""

import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final, TypeVar

from appliance.apdu.scp03 import Mode
from appliance.apdu.script import Channel, Script, render
from appliance.domain.derivation import MAX_SEQUENCE_COUNTER
from appliance.domain.issuance import IssuanceRecord, Move, next_state, not_found
from appliance.domain.keyset import SimIssuer
from appliance.domain.receipt import split_receipt
from appliance.domain.request import call_digest, validate_issuance_name, validate_request_id
from appliance.errors import ApplianceError, Reason
from appliance.issuing.vaults import VaultLost, Vaults
from appliance.ledger import Ledger

MAX_LOST: Final = 3
"""Vaults that may die over one call, as for an issuance."""

T = TypeVar("T")


class Delivery:
    """Carries packages to SIMs.

    Args:
        ledger, vaults: where the work is recorded and done.
        issuers: the declared SIM issuers by name.
        content_key: of the digests that tell a repeated request from another one.
        answer: the bytes that answer a good receipt, made once and then stored.
        challenge: random bytes, so many.
    """

    def __init__(
        self,
        ledger: Ledger,
        vaults: Vaults,
        *,
        issuers: Mapping[str, SimIssuer],
        content_key: bytes,
        answer: Callable[[IssuanceRecord], bytes],
        challenge: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._ledger = ledger
        self._vaults = vaults
        self._issuers = issuers
        self._content_key = content_key
        self._answer = answer
        self._challenge = challenge

    async def fetch_script(
        self, client: str, sim_issuers: Collection[str], request_id: str, name: str, sequence_counter: int
    ) -> tuple[IssuanceRecord, Script]:
        """The script for one value of the SIM's sequence counter; the same request gets the same bytes.

        Args:
            client: URI of the caller.
            sim_issuers: names of those that it serves.
            request_id: a UUID of its choice.
            name: issuances/{id}.
            sequence_counter: 1 to FFFFFF.

        Raises:
            ApplianceError
        """
        validate_request_id(request_id)
        issuance = validate_issuance_name(name, "issuance")
        if not 1 <= sequence_counter <= MAX_SEQUENCE_COUNTER:
            raise ApplianceError(
                Reason.FIELD_INVALID,
                f"The sequence counter {sequence_counter} lies outside 1 to {MAX_SEQUENCE_COUNTER}.",
                hint="Send the SIM's last counter plus one; a fresh SIM's first is 1.",
                field="sequence_counter",
            )
        record = await self._visible(issuance, sim_issuers)
        issuer = self._issuers[record.sim_issuer]
        channel = issuer.key_set(record.kvn).channel
        digest = call_digest(self._content_key, "FetchScript", issuance.encode(), str(sequence_counter).encode())
        with self._vaults.admit():
            record, host_challenge = await self._ledger.prepare_script(
                client, request_id, digest, issuance, self._challenge(channel.challenge_length)
            )
            opened = await _retried(lambda: self._vaults.open_channel(record, sequence_counter, host_challenge))
        script = render(
            record.package or b"",
            record.key_type,
            record.applet_aid,
            Channel(
                ssd_aid=issuer.ssd_aid_bytes,
                kvn=channel.kvn,
                keys=opened.keys,
                host_challenge=host_challenge,
                card_challenge=opened.card_challenge,
                level=channel.security_level_byte,
                mode=Mode(channel.challenge_length),
            ),
        )
        return record, script

    async def report_receipt(
        self, client: str, sim_issuers: Collection[str], request_id: str, name: str, receipt: bytes
    ) -> bytes:
        """The answer to a receipt that verifies; the issuance is ACTIVE then. Reporting it again changes nothing.

        Args:
            client: URI of the caller.
            sim_issuers: names of those that it serves.
            request_id: a UUID of its choice.
            name: issuances/{id}.
            receipt: signature and CMAC as the SIM gave them.

        Raises:
            ApplianceError
        """
        validate_request_id(request_id)
        issuance = validate_issuance_name(name, "issuance")
        digest = call_digest(self._content_key, "ReportReceipt", issuance.encode(), receipt)
        record = await self._visible(issuance, sim_issuers)
        stored = await self._ledger.find(client, request_id, digest)
        if stored is not None:
            return stored
        next_state(record.state, Move.ACTIVATE)
        split_receipt(receipt, record.key_type)
        with self._vaults.admit():
            await _retried(lambda: self._vaults.verify_receipt(record, receipt))
        return await self._ledger.activate(client, request_id, digest, issuance, self._answer)

    async def _visible(self, issuance: str, sim_issuers: Collection[str]) -> IssuanceRecord:
        record = await self._ledger.get(issuance)
        if record.sim_issuer not in sim_issuers:
            raise not_found(issuance)
        return record


async def _retried(ask: Callable[[], Awaitable[T]]) -> T:
    """The vault's answer; where a vault is lost, another one's: these calls make nothing, so asking again is safe.

    Raises:
        ApplianceError: VAULTS_UNAVAILABLE when several are lost in a row.
    """
    for _ in range(MAX_LOST):
        try:
            return await ask()
        except VaultLost:
            continue
    raise ApplianceError(
        Reason.VAULTS_UNAVAILABLE, "The vaults died over this call.", hint="Tell the operator before sending it again."
    )
