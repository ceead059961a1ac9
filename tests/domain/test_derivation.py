"""Derivation inputs against published answers: through AES-CMAC, and through AES-ECB as a token computes it."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from cryptography.hazmat.primitives.cmac import CMAC
from hypothesis import given
from hypothesis import strategies as st

from appliance.domain import derivation

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "kdf.json").read_text())
KDF3_CONSTANTS = {"enc": derivation.CHANNEL_ENC, "mac": derivation.CHANNEL_MAC, "dek": 0x03}
KDF3_CASES: list[dict[str, Any]] = VECTORS["kdf3"]["cases"]


def aes_ecb(key: bytes, data: bytes) -> bytes:
    encryptor = Cipher(AES(key), ECB()).encryptor()  # noqa: S305 - this is what the token computes
    return encryptor.update(data) + encryptor.finalize()


def cmac(key: bytes, message: bytes) -> bytes:
    mac = CMAC(AES(key))
    mac.update(message)
    return mac.finalize()


def kdf3_by_cmac(master: bytes, constant: int, kdd: bytes, bits: int) -> bytes:
    return b"".join(cmac(master, block) for block in derivation.kdf3_blocks(constant, kdd, bits))[: bits // 8]


def kdf3_by_ecb(master: bytes, constant: int, kdd: bytes, bits: int) -> bytes:
    k1 = derivation.cmac_subkey_k1(aes_ecb(master, bytes(16)))
    return aes_ecb(master, derivation.ecb_input(derivation.kdf3_blocks(constant, kdd, bits), k1))[: bits // 8]


def test_all_published_cases_are_there() -> None:
    assert len(VECTORS["scp03_kdf"]["cases"]) == 7
    assert len(KDF3_CASES) == 2


@pytest.mark.parametrize("case", VECTORS["scp03_kdf"]["cases"], ids=lambda case: f"constant-{case['constant']}")
def test_scp03_blocks_give_the_published_output(case: dict[str, Any]) -> None:
    blocks = derivation.scp03_blocks(case["constant"], case["bits"], bytes.fromhex(case["context"]))
    output = b"".join(cmac(bytes.fromhex(case["key"]), block) for block in blocks)
    assert output[: case["bits"] // 8].hex() == case["out"]


@pytest.mark.parametrize("name", ["enc", "mac", "dek"])
def test_kdf3_gives_the_published_check_values(name: str) -> None:
    case = KDF3_CASES[0]
    master, kdd = bytes.fromhex(case["master"]), bytes.fromhex(case["kdd"])
    key = kdf3_by_cmac(master, KDF3_CONSTANTS[name], kdd, case["bits"])
    assert kdf3_by_ecb(master, KDF3_CONSTANTS[name], kdd, case["bits"]) == key
    assert aes_ecb(key, b"\x01" * 16)[:3].hex() == case["kcv"][name]


def test_kdf3_gives_the_published_256_bit_key() -> None:
    case = KDF3_CASES[1]
    arguments = bytes.fromhex(case["master"]), derivation.CHANNEL_ENC, bytes.fromhex(case["kdd"]), case["bits"]
    assert kdf3_by_cmac(*arguments).hex() == case["enc"]
    assert kdf3_by_ecb(*arguments).hex() == case["enc"]


@given(
    master=st.sampled_from([16, 24, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    constant=st.integers(0, 0xFF),
    kdd=st.binary(min_size=10, max_size=10),
    bits=st.sampled_from([128, 192, 256]),
)
def test_ecb_over_the_masked_blocks_is_cmac(master: bytes, constant: int, kdd: bytes, bits: int) -> None:
    assert kdf3_by_ecb(master, constant, kdd, bits) == kdf3_by_cmac(master, constant, kdd, bits)


@pytest.mark.parametrize(
    ("l", "k1"),
    [
        # RFC 4493, section 4 (AES-128), and NIST SP 800-38B, D.2 and D.3 (AES-192, AES-256)
        ("7df76b0c1ab899b33e42f047b91b546f", "fbeed618357133667c85e08f7236a8de"),
        ("22452d8e49a8a593 9f7321ceea6d514b", "448a5b1c93514b27 3ee6439dd4daa296"),
        ("e568f68194cf76d6 174d4cc04310a854", "cad1ed03299eedac 2e9a99808621502f"),
    ],
)
def test_published_cmac_subkeys(l: str, k1: str) -> None:  # noqa: E741 - RFC 4493 calls it L
    assert derivation.cmac_subkey_k1(bytes.fromhex(l)) == bytes.fromhex(k1)


def test_layouts_stand_as_written() -> None:
    kdd = bytes.fromhex("981803194171703546f4")
    assert [block.hex() for block in derivation.kdf3_blocks(derivation.K_AUTH, kdd, 256)] == [
        "010000001100981803194171703546f4",
        "020000001100981803194171703546f4",
    ]
    assert [block.hex() for block in derivation.scp03_blocks(derivation.Scp03Constant.S_RMAC, 192, b"\xcc")] == [
        "0000000000000000000000070000c001cc",
        "0000000000000000000000070000c002cc",
    ]
    assert len(derivation.scp03_blocks(derivation.Scp03Constant.CARD_CRYPTOGRAM, 64, b"")) == 1
    assert derivation.pseudo_random_challenge_context(0x010203, b"\xa0" * 5).hex() == "010203a0a0a0a0a0"


def test_binding_constants_lie_outside_those_of_globalplatform() -> None:
    binding = {derivation.K_SIM, derivation.K_AUTH, derivation.K_RCPT}
    assert len(binding) == 3
    assert binding.isdisjoint(KDF3_CONSTANTS.values())
    assert binding.isdisjoint(derivation.Scp03Constant)


@pytest.mark.parametrize(
    "call",
    [
        lambda: derivation.kdf3_blocks(derivation.K_SIM, bytes(9), 256),
        lambda: derivation.kdf3_blocks(derivation.K_SIM, bytes(10), 64),
        lambda: derivation.scp03_blocks(derivation.Scp03Constant.S_ENC, 100, b""),
        lambda: derivation.pseudo_random_challenge_context(0, bytes(5)),
        lambda: derivation.pseudo_random_challenge_context(0x1000000, bytes(5)),
        lambda: derivation.cmac_subkey_k1(bytes(15)),
        lambda: derivation.ecb_input([bytes(17)], bytes(16)),
        lambda: derivation.ecb_input([bytes(16)], bytes(15)),
    ],
)
def test_input_of_another_size_is_never_laid_out(call: Any) -> None:
    with pytest.raises(ValueError, match=r"bytes|bits"):
        call()
