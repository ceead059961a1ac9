"""Delivery: rendering scripts for SIMs and taking their receipts.

A TSM sees the issuances of the SIM issuers that it serves; any other does not exist for it.
"""

import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from appliance.apdu import engine, expanded, played, script
from appliance.apdu.engine import Form, Order, Route
from appliance.apdu.scp03 import Mode
from appliance.apdu.script import MAX_COMMANDS, RECEIPT_PART, Channel
from appliance.domain import keyset
from appliance.domain.derivation import MAX_SEQUENCE_COUNTER
from appliance.domain.issuance import IssuanceRecord, Move, next_state, not_found
from appliance.domain.receipt import RECEIPT_LENGTHS, split_receipt
from appliance.domain.request import call_digest, validate_issuance_name, validate_request_id
from appliance.domain.sim import Iccid
from appliance.errors import ApplianceError, Reason
from appliance.issuing.vaults import Vaults, retried
from appliance.ledger import Ledger


@dataclass(frozen=True)
class Played:
    """A script that was played, as PlayedScript of delivery.proto tells it."""

    request_id: str
    sequence_counter: int
    responses: Sequence[bytes]
    remote_responses: Sequence[bytes]


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
        issuers: Mapping[str, keyset.SimIssuer],
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
        self,
        client: str,
        sim_issuers: Collection[str],
        request_id: str,
        name: str,
        sequence_counter: int,
        forms: Collection[Form],
    ) -> tuple[IssuanceRecord, dict[Form, bytes]]:
        """The script for one value of the SIM's sequence counter, in these forms; the same request gets the same bytes.

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
        _check_counter(sequence_counter, "sequence_counter")
        record = await self._visible(issuance, sim_issuers)
        length = self._channel_of(record).challenge_length
        digest = self._script_digest(issuance, sequence_counter)
        with self._vaults.admit():
            record, host_challenge = await self._ledger.prepare_script(
                client, request_id, digest, issuance, self._challenge(length)
            )
            channel = await self._open(record, sequence_counter, host_challenge)
        order = _order(record, channel)
        return record, {form: engine.render_one(order, form) for form in forms}

    async def report_receipt(
        self, client: str, sim_issuers: Collection[str], request_id: str, name: str, proof: bytes | Played
    ) -> bytes:
        """The answer to a receipt that verifies; the issuance is ACTIVE then. Reporting it again changes nothing.

        Args:
            client: URI of the caller.
            sim_issuers: names of those that it serves.
            request_id: a UUID of its choice.
            name: issuances/{id}.
            proof: signature and CMAC as the SIM gave them, or the whole script that brought them.

        Raises:
            ApplianceError
        """
        validate_request_id(request_id)
        issuance = validate_issuance_name(name, "issuance")
        if isinstance(proof, Played):
            _check_played(proof)
        digest = call_digest(self._content_key, "ReportReceipt", issuance.encode(), *_content(proof))
        record = await self._visible(issuance, sim_issuers)
        stored = await self._ledger.find(client, request_id, digest)
        if stored is not None:
            return stored
        next_state(record.state, Move.ACTIVATE)
        receipt = await self._receipt_played(client, record, proof) if isinstance(proof, Played) else proof
        try:
            split_receipt(receipt, record.key_type)
            with self._vaults.admit():
                await retried(lambda: self._vaults.verify_receipt(record, receipt))
        except ApplianceError as refusal:
            if refusal.field and isinstance(proof, Played):
                refusal.field = "played"  # there is no field receipt in this request
            raise
        return await self._ledger.activate(client, request_id, digest, issuance, self._answer)

    async def _receipt_played(self, client: str, record: IssuanceRecord, proof: Played) -> bytes:
        """The receipt among the responses, after the session in them was checked while there is a package to do it."""
        digest = self._script_digest(record.id, proof.sequence_counter)
        host_challenge = await self._ledger.host_challenge(client, proof.request_id, digest)
        if host_challenge is None:
            raise ApplianceError(
                Reason.FIELD_INVALID,
                "You fetched no script of this issuance and sequence counter with this request_id.",
                hint="Send request_id and sequence_counter of the FetchScript call whose script was played.",
                field="played.request_id",
            )
        if record.package is None:
            return _last_parts(record, proof)
        with self._vaults.admit():
            channel = await self._open(record, proof.sequence_counter, host_challenge, with_s_rmac=True)
        rendered = script.render(record.package, record.key_type, record.applet_aid, channel)
        if proof.remote_responses:
            answered = played.remote_exchanges(rendered, proof.remote_responses, "played.remote_responses")
        else:
            answered = played.exchanges(rendered, proof.responses, "played.responses")
        opening = played.Opening(
            kdd=Iccid.parse(record.iccid).ef_coding,
            i=self._channel_of(record).i_byte,
            sequence_counter=proof.sequence_counter,
        )
        return played.receipt_in(answered, channel, opening)

    async def _open(
        self, record: IssuanceRecord, sequence_counter: int, host_challenge: bytes, *, with_s_rmac: bool = False
    ) -> Channel:
        declared = self._channel_of(record)
        opened = await retried(
            lambda: self._vaults.open_channel(record, sequence_counter, host_challenge, with_s_rmac=with_s_rmac)
        )
        return Channel(
            ssd_aid=self._issuers[record.sim_issuer].ssd_aid_bytes,
            kvn=declared.kvn,
            keys=opened.keys,
            host_challenge=host_challenge,
            card_challenge=opened.card_challenge,
            level=declared.security_level_byte,
            mode=Mode(declared.challenge_length),
        )

    def _channel_of(self, record: IssuanceRecord) -> keyset.Channel:
        return self._issuers[record.sim_issuer].key_set(record.kvn).channel

    def _script_digest(self, issuance: str, sequence_counter: int) -> bytes:
        return call_digest(self._content_key, "FetchScript", issuance.encode(), str(sequence_counter).encode())

    async def _visible(self, issuance: str, sim_issuers: Collection[str]) -> IssuanceRecord:
        record = await self._ledger.get(issuance)
        if record.sim_issuer not in sim_issuers:
            raise not_found(issuance)
        return record


def _order(record: IssuanceRecord, channel: Channel) -> Order:
    route = Route(channel.ssd_aid, record.applet_aid, channel.kvn, channel.level, channel.mode, record.key_type)
    keys = channel.keys
    return Order(route, record.package or b"", channel.host_challenge, channel.card_challenge, keys.s_enc, keys.s_mac)


def _last_parts(record: IssuanceRecord, proof: Played) -> bytes:
    """What GET DATA answered, without a check of the session around it: receipts are asked for last."""
    responses = proof.responses
    if proof.remote_responses:
        responses = expanded.responses(proof.remote_responses[-1], "played.remote_responses")
    parts = -(-RECEIPT_LENGTHS[record.key_type] // RECEIPT_PART)
    return b"".join(response[:-2] for response in responses[-parts:])


def _content(proof: bytes | Played) -> Iterator[bytes]:
    """The content of a report, in parts that differ where it differs."""
    if isinstance(proof, bytes):
        yield proof
        return
    yield proof.request_id.encode()
    yield str(proof.sequence_counter).encode()
    yield str(len(proof.responses)).encode()
    yield from proof.responses
    yield from proof.remote_responses


def _check_counter(sequence_counter: int, field: str) -> None:
    if not 1 <= sequence_counter <= MAX_SEQUENCE_COUNTER:
        raise ApplianceError(
            Reason.FIELD_INVALID,
            f"The sequence counter {sequence_counter} lies outside 1 to {MAX_SEQUENCE_COUNTER}.",
            hint="Send the SIM's last counter plus one; a fresh SIM's first is 1.",
            field=field,
        )


def _check_played(script: Played) -> None:
    _check_counter(script.sequence_counter, "played.sequence_counter")
    if bool(script.responses) == bool(script.remote_responses):
        raise ApplianceError(
            Reason.FIELD_INVALID,
            "Responses to a script come in one of two forms.",
            hint="Fill either responses or remote_responses, whichever the carrier gave.",
            field="played",
        )
    if max(len(script.responses), len(script.remote_responses)) > MAX_COMMANDS:
        raise ApplianceError(
            Reason.FIELD_INVALID,
            f"There are more responses than the {MAX_COMMANDS} commands that a script can have.",
            hint="Report the responses of one run alone.",
            field="played",
        )
