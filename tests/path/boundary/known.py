"""What a run must keep secret, known to the test from the other side: from published masters and from the SIMs."""

import base64
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.api.v1.delivery_pb2 import FetchScriptResponse
from appliance.vsim.card import VirtualSim
from appliance.vsim.kdf import scp03_kdf

WINDOW: Final = 32
"""Bytes of a wrapped key that are looked for piece by piece: a page of the ledger may hold a part of it."""


def private_key(sim: VirtualSim) -> dict[str, bytes]:
    """The private key that a SIM has installed: whole in each DER form, and every number of it."""
    installed = sim.state.installed
    assert installed
    key = installed.key()
    forms = {name: key.private_bytes(Encoding.DER, form, NoEncryption()) for name, form in _FORMS.items()}
    numbers = key.private_numbers()
    if isinstance(numbers, rsa.RSAPrivateNumbers):
        values = {name: getattr(numbers, name) for name in ("d", "p", "q", "dmp1", "dmq1", "iqmp")}
    else:
        values = {"scalar": numbers.private_value}
    return forms | {name: value.to_bytes(-(-value.bit_length() // 8)) for name, value in values.items()}


_FORMS: Final = {"PKCS#8": PrivateFormat.PKCS8, "its own DER": PrivateFormat.TraditionalOpenSSL}


def sim_keys(sim: VirtualSim) -> dict[str, bytes]:
    """What a SIM was personalised with."""
    binding, channel = sim.state.sim.binding, sim.state.sim.channel
    return {
        "K_SIM": binding.k_sim,
        "K_AUTH": binding.k_auth,
        "K_RCPT": binding.k_rcpt,
        "K-ENC": channel.k_enc,
        "K-MAC": channel.k_mac,
    }


def session_keys(sim: VirtualSim, script: FetchScriptResponse, responses: list[bytes]) -> dict[str, bytes]:
    """Of the channel in which a script was played (GPC Amendment D, 6.2.1 and 6.2.2)."""
    initialize_update, authenticate = script.commands[1].apdu, script.commands[2].apdu
    context = initialize_update[5:13] + responses[1][13:21]
    channel = sim.state.sim.channel
    keys = {"S-ENC": scp03_kdf(channel.k_enc, 0x04, context, 128)}
    keys |= {name: scp03_kdf(channel.k_mac, c, context, 128) for name, c in (("S-MAC", 6), ("S-RMAC", 7))}
    assert authenticate[5:13] == scp03_kdf(keys["S-MAC"], 0x01, context, 64), "these are the session's keys"
    return keys


def forms(value: bytes) -> Iterator[bytes]:
    """How a value may show: as it is, turned round (numbers), in hex, in base64 at any offset, escaped by Python."""
    yield value
    yield value[::-1]
    yield value.hex().encode()
    yield value.hex().upper().encode()
    yield repr(value)[2:-1].encode()
    for offset in range(3):
        whole = base64.b64encode(bytes(offset) + value)
        middle = whole[4 * (offset > 0) : len(whole) // 4 * 4 - 4]  # what does not depend on the neighbours
        yield middle
        yield middle.translate(bytes.maketrans(b"+/", b"-_"))


def found(values: Mapping[str, bytes], text: bytes) -> set[str]:
    """The names of the values that show in a text."""
    return {name for name, value in values.items() if any(form in text for form in set(forms(value)))}


def windows(value: bytes) -> Iterable[bytes]:
    """Every piece of a value; half of one always survives where a whole one was cut in two."""
    return (value[start : start + WINDOW] for start in range(0, len(value) - WINDOW + 1, WINDOW // 2))
