"""Channel session keys of the real module, held against the readable SCP03 reference."""

from dataclasses import replace
from typing import Any

import pytest

from appliance.apdu import scp03
from appliance.domain.derivation import CHANNEL_ENC, CHANNEL_MAC
from appliance.domain.keyset import Channel, KeySetState
from appliance.errors import ApplianceError, Reason
from appliance.hsm.orders import ChannelOrder
from tests.hsm.site import ICCID, ISSUER, KM_CHAN, OTHER_ICCID, SSD_AID, Calls, Site


def channel_order(**changes: Any) -> ChannelOrder:
    values = {
        "sim_issuer": ISSUER,
        "kvn": 1,
        "iccid": ICCID,
        "sequence_counter": 7,
        "host_challenge": bytes(range(8)),
        "with_s_rmac": True,
    }
    return ChannelOrder(**{**values, **changes})


@pytest.mark.parametrize("i", ["70", "71"], ids=["S8", "S16"])
@pytest.mark.parametrize("bits", [128, 192, 256])
@pytest.mark.parametrize("counter", [1, 0xFFFFFF])
def test_session_keys_are_those_of_the_reference(site: Site, bits: int, i: str, counter: int) -> None:
    channel = Channel(1, bits, i)
    mode = scp03.Mode.S16 if channel.s16 else scp03.Mode.S8
    host_challenge = bytes(range(0x60, 0x60 + mode))
    k_enc, k_mac = (scp03.kdf3(KM_CHAN, constant, ICCID, bits) for constant in (CHANNEL_ENC, CHANNEL_MAC))
    card_challenge = scp03.card_challenge(k_enc, counter, SSD_AID, mode)
    expected = scp03.derive_session_keys(k_enc, k_mac, host_challenge, card_challenge)

    with site.engine(site.issuer(site.key_set(channel=channel))) as engine:
        keys = engine.open_channel(channel_order(sequence_counter=counter, host_challenge=host_challenge))
        assert site.session_objects() == 0

    assert keys.card_challenge == card_challenge
    assert (keys.s_enc, keys.s_mac, keys.s_rmac) == (expected.s_enc, expected.s_mac, expected.s_rmac)


def test_key_for_responses_is_made_only_where_it_is_asked_for(site: Site, calls: Calls) -> None:
    with site.engine(calls=calls) as engine:
        calls.kinds.clear()
        keys = engine.open_channel(channel_order(with_s_rmac=False))
        without = calls.kinds.count("mac")
        assert without == 3
        everything = engine.open_channel(channel_order())
    assert calls.kinds.count("mac") == without + 4
    assert keys.s_rmac == b""
    assert everything == replace(keys, s_rmac=everything.s_rmac)


def test_another_sim_and_another_counter_have_other_keys(site: Site) -> None:
    with site.engine() as engine:
        orders = (channel_order(), channel_order(iccid=OTHER_ICCID), channel_order(sequence_counter=8))
        assert len({engine.open_channel(order).s_enc for order in orders}) == len(orders)


@pytest.mark.parametrize("state", KeySetState)
def test_channels_are_served_in_every_state_of_the_key_set(site: Site, state: KeySetState) -> None:
    with site.engine(site.issuer(site.key_set(state=state))) as engine:
        assert engine.open_channel(channel_order())


MALFORMED: dict[str, tuple[dict[str, Any], Reason, str]] = {
    "host challenge of S16": ({"host_challenge": bytes(16)}, Reason.SCP03_INVALID, "host_challenge"),
    "empty host challenge": ({"host_challenge": b""}, Reason.SCP03_INVALID, "host_challenge"),
    "sequence counter 0": ({"sequence_counter": 0}, Reason.SCP03_INVALID, "sequence_counter"),
    "sequence counter of 4 bytes": ({"sequence_counter": 1 << 24}, Reason.SCP03_INVALID, "sequence_counter"),
    "ICCID of 9 bytes": ({"iccid": ICCID[1:]}, Reason.ICCID_INVALID, "iccid"),
    "the check value's diversification data": ({"iccid": b"\xff" * 10}, Reason.ICCID_INVALID, "iccid"),
    "unknown key version": ({"kvn": 2}, Reason.KEY_SET_UNKNOWN, "kvn"),
    "key version 0": ({"kvn": 0}, Reason.KEY_SET_UNKNOWN, "kvn"),
    "unknown SIM issuer": ({"sim_issuer": ""}, Reason.SIM_ISSUER_UNKNOWN, "sim_issuer"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_order_derives_nothing(site: Site, calls: Calls, name: str) -> None:
    changes, reason, field = MALFORMED[name]
    with site.engine(profiles={}, calls=calls) as engine:
        calls.kinds.clear()
        with pytest.raises(ApplianceError) as refused:
            engine.open_channel(channel_order(**changes))
    assert (refused.value.reason, refused.value.field) == (reason, field)
    assert calls.kinds == ["close"]
