"""SCP03 session keys: AES-CMAC in the token under the SIM's static channel keys, which never leave it."""

from typing import Any

from appliance.domain import derivation
from appliance.domain.derivation import Scp03Constant
from appliance.domain.sim import Iccid
from appliance.errors import ApplianceError, Reason
from appliance.hsm import derive
from appliance.hsm.keys import Role
from appliance.hsm.masters import HeldKeySet
from appliance.hsm.module import TokenSession
from appliance.hsm.orders import ChannelKeys, ChannelOrder


def open_channel(session: TokenSession, order: ChannelOrder, key_set: HeldKeySet) -> ChannelKeys:
    """Card challenge and session keys (GPC Amendment D, 6.2.1 and 6.2.2.1) for one sequence counter.

    Raises:
        ApplianceError: ICCID_INVALID, SCP03_INVALID, TOKEN_FAULT.
    """
    Iccid.from_ef_coding(order.iccid)
    channel = key_set.declared.channel
    length = channel.challenge_length
    if len(order.host_challenge) != length:
        raise ApplianceError(
            Reason.SCP03_INVALID,
            f"The host challenge has {len(order.host_challenge)} bytes; this key set's channel takes {length}.",
            hint="Send as many random bytes as the mode (S8 or S16) asks for.",
            field="host_challenge",
        )
    if not 1 <= order.sequence_counter <= derivation.MAX_SEQUENCE_COUNTER:
        raise ApplianceError(
            Reason.SCP03_INVALID,
            f"Sequence counter {order.sequence_counter} is outside 1 to {derivation.MAX_SEQUENCE_COUNTER}.",
            hint="Use one more than the SIM's last counter; a fresh SIM starts with 1.",
            field="sequence_counter",
        )
    context = derivation.pseudo_random_challenge_context(order.sequence_counter, key_set.issuer.ssd_aid_bytes)
    bits = channel.key_bits
    chan, kdd = key_set.chan, order.iccid
    with chan.kdf3(Role.CMAC, derivation.CHANNEL_ENC, kdd, bits) as k_enc:
        card_challenge = _derive(session, k_enc, Scp03Constant.CARD_CHALLENGE, length * 8, context)
        challenges = order.host_challenge + card_challenge
        s_enc = _derive(session, k_enc, Scp03Constant.S_ENC, bits, challenges)
    with chan.kdf3(Role.CMAC, derivation.CHANNEL_MAC, kdd, bits) as k_mac:
        s_mac = _derive(session, k_mac, Scp03Constant.S_MAC, bits, challenges)
        s_rmac = _derive(session, k_mac, Scp03Constant.S_RMAC, bits, challenges) if order.with_s_rmac else b""
    return ChannelKeys(card_challenge, s_enc, s_mac, s_rmac)


def _derive(session: TokenSession, key: Any, constant: Scp03Constant, bits: int, context: bytes) -> bytes:
    blocks = derivation.scp03_blocks(constant, bits, context)
    return b"".join(derive.cmac(session, key, block) for block in blocks)[: bits // 8]
