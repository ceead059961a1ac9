"""The nineteen recorded sessions (tests/vectors/scp03.json), and the published derivations (kdf.json)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.apdu.scp03 import InitializeUpdateResponse, Mode, SessionKeys, derive_session_keys

VECTORS = Path(__file__).parents[1] / "vectors"
SESSIONS: list[dict[str, Any]] = json.loads((VECTORS / "scp03.json").read_text())
KDF = json.loads((VECTORS / "kdf.json").read_text())
EUICC_ANSWER = "bf3e125a1089882119900000000000000000000005"
"""EID of the eUICC in the recorded traces, as levels without R-MAC show it in plain."""

OVER_PADDED = [vector for vector in SESSIONS if "over_padded" in vector]

every_session = pytest.mark.parametrize("vector", SESSIONS, ids=lambda vector: vector["name"])
every_derived_challenge = pytest.mark.parametrize(
    "vector", [vector for vector in SESSIONS if vector["aid"]], ids=lambda vector: vector["name"]
)


@dataclass(frozen=True)
class Opening:
    """What a recorded session says about its opening, whichever way it was recorded."""

    host_challenge: bytes
    card_challenge: bytes
    card_cryptogram: bytes
    sequence_counter: int
    mode: Mode

    @classmethod
    def of(cls, vector: dict[str, Any]) -> "Opening":
        if "init_upd_cmd" in vector:
            answer = InitializeUpdateResponse.decode(bytes.fromhex(vector["init_upd_rsp"]))
            challenge = bytes.fromhex(vector["init_upd_cmd"])[5:-1]
            return cls(
                challenge, answer.card_challenge, answer.card_cryptogram, answer.sequence_counter, Mode[vector["mode"]]
            )
        return cls(
            bytes.fromhex(vector["host_challenge"]),
            bytes.fromhex(vector["card_challenge"]),
            bytes.fromhex(vector["card_cryptogram"]),
            int(vector["sequence_counter"], 16),
            Mode[vector["mode"]],
        )


def keys_of(vector: dict[str, Any]) -> SessionKeys:
    opening = Opening.of(vector)
    k_enc, k_mac = bytes.fromhex(vector["k_enc"]), bytes.fromhex(vector["k_mac"])
    return derive_session_keys(k_enc, k_mac, opening.host_challenge, opening.card_challenge)


def answer(wrap: dict[str, Any]) -> str:
    """The recorded response in plain, with its status word."""
    return f"{wrap.get('answer', EUICC_ANSWER)}9000"
