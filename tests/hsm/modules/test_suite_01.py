"""Suite 01 on each module: it runs wherever the mechanisms are there, and else one line says which one is missing."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from asn1crypto.parser import peek
from cryptography import x509
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

from appliance.apdu import scp03
from appliance.domain.derivation import CHANNEL_ENC, CHANNEL_MAC
from appliance.domain.package import KeyType, SimPackage
from tests.hsm.modules.provision import TOKENS, Token, library
from tests.hsm.site import ICCID, KM_BIND, KM_CHAN, PROFILES, SSD_AID, virtual_sim

FOUND: Final[Mapping[str, Any]] = {
    "softhsm": {"module": "SoftHSM", "wrap": "AES_KEY_WRAP_PAD", "deviations": []},
    "nss": {
        "module": "Mozilla Foundation NSS",
        "wrap": "AES_KEY_WRAP_KWP",
        "deviations": ["does not know CKA_COPYABLE", "does not tell by CKA_LOCAL where a key was born"],
    },
}
MISSING: Final = {"opencryptoki": ("AES_ECB_ENCRYPT_DATA", "CKM_AES_ECB_ENCRYPT_DATA (0x1104) cannot be used")}


@pytest.fixture(scope="module", params=FOUND)
def able(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Token, Any]]:
    """A token of a module that has the mechanisms, and what was declared of the keys that ceremonies made on it."""
    with TOKENS[request.param](tmp_path_factory.mktemp("t")) as token:
        yield token, token.job("hold_ceremonies")


def test_every_module_is_able_or_known_not_to_be() -> None:
    assert {*FOUND, *MISSING} == set(TOKENS)


def test_module_is_judged_by_its_behaviour(able: tuple[Token, Any]) -> None:
    token, _ = able
    found, expected = token.job("start"), FOUND[token.name]
    assert found.pop("module").startswith(expected["module"])
    assert found == {"wrap": expected["wrap"], "deviations": expected["deviations"]}


def test_check_values_are_the_same_on_every_module(able: tuple[Token, Any]) -> None:
    _, keys = able
    assert (keys["bind"]["kcv"], keys["bind"]["kdf_kcv"]) == ("A5AE31", "99FC44")
    assert (keys["chan"]["kcv"], keys["chan"]["kdf_kcv"]) == ("6204F8", "FA596E")


def test_keys_of_each_type_under_each_ca_reach_a_sim_and_leave_nothing(able: tuple[Token, Any]) -> None:
    token, keys = able
    issued = token.job("issue", keys=keys)
    assert {(one["profile"], one["key_type"]) for one in issued} == {
        (name, key_type.name) for name in PROFILES for key_type in KeyType
    }
    for one in issued:
        package = SimPackage.decode(bytes.fromhex(one["package"]))
        assert package.header.key_type.name == one["key_type"]
        certificate = x509.load_der_x509_certificate(package.certificate)
        certificate.verify_directly_issued_by(
            x509.load_der_x509_certificate(bytes.fromhex(keys["authorities"][one["profile"]]))
        )
        assert private_key(package).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == (
            certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        )
        sim = virtual_sim()
        sim.install(package.encode())
        assert sim.state.installed is not None
        assert sim.state.installed.certificate == package.certificate
        assert one["forged receipt"] == "RECEIPT_REJECTED", "and the true one was accepted before"
        assert one["session objects"] == 0


def private_key(package: SimPackage) -> Any:
    """The public half of what the package's SIM unwraps, by the readable reference."""
    k_sim = scp03.kdf3(KM_BIND, 0x10, ICCID, 256)
    k_pkg = Cipher(AES(k_sim), CBC(bytes(16))).encryptor().update(package.header.digest())
    padded = aes_key_unwrap_with_padding(k_pkg, package.wrapped)
    return load_der_private_key(padded[: peek(padded)], None).public_key()


def test_issuance_that_loses_its_keys_is_a_fault_and_the_next_one_works(able: tuple[Token, Any]) -> None:
    token, keys = able
    found = token.job("recover", keys=keys)
    assert (found["fault"], found["logins"]) == ("TOKEN_FAULT", 1)
    virtual_sim().install(bytes.fromhex(found["package"]))


def test_session_keys_are_those_of_the_reference(able: tuple[Token, Any]) -> None:
    token, keys = able
    found = token.job("open_channel", keys=keys, sequence_counter=7, host_challenge=bytes(range(8)).hex())
    k_enc, k_mac = (scp03.kdf3(KM_CHAN, constant, ICCID, 128) for constant in (CHANNEL_ENC, CHANNEL_MAC))
    card_challenge = scp03.card_challenge(k_enc, 7, SSD_AID, scp03.Mode.S8)
    expected = scp03.derive_session_keys(k_enc, k_mac, bytes(range(8)), card_challenge)
    assert found == {
        "card_challenge": card_challenge.hex(),
        "s_enc": expected.s_enc.hex(),
        "s_mac": expected.s_mac.hex(),
        "s_rmac": expected.s_rmac.hex(),
    }


@pytest.mark.parametrize("name", MISSING)
def test_module_without_the_mechanisms_is_refused_in_one_line_that_names_the_first(name: str, tmp_path: Path) -> None:
    mechanism, detail = MISSING[name]
    with TOKENS[name](tmp_path) as token:
        for job in ("start", "hold_ceremonies"):
            refusal = token.job(job)["refusal"]
            assert (refusal["reason"], refusal["mechanism"]) == ("MECHANISM_MISSING", mechanism)
            assert refusal["detail"] == f"{detail}: the module answered MechanismInvalid."
        assert token.job("labels") == [], "the ceremony left something"


def test_ceremony_of_a_ca_names_what_its_key_type_lacks_and_leaves_nothing(tmp_path: Path) -> None:
    lacks = {"RSA_2048": "CKM_SHA256_RSA_PKCS (0x40)", "EC_P256": "CKM_EC_KEY_PAIR_GEN (0x1040)"}
    with TOKENS["opencryptoki"](tmp_path) as token:
        for key_type, mechanism in lacks.items():
            refusal = token.job("make_authority", key_type=key_type)["refusal"]
            assert refusal["reason"] == "MECHANISM_MISSING"
            assert refusal["detail"] == f"{mechanism} cannot be used: the module answered MechanismInvalid."
        assert token.job("labels") == []


def test_module_that_stands_for_others_is_refused_by_the_setting(tmp_path: Path) -> None:
    """python-pkcs11 and the appliance would each have a state of their own in it."""
    proxy = str(library("p11-kit-proxy.so", "p11-kit-modules"))
    with TOKENS["softhsm"](tmp_path) as token:
        refusal = replace(token, module=replace(token.module, path=proxy)).job("labels")["refusal"]
    assert (refusal["reason"], refusal["field"]) == ("SETTINGS_INVALID", "module.path")


def test_arguments_that_a_module_refuses_are_named(tmp_path: Path) -> None:
    with TOKENS["nss"](tmp_path) as token:
        for arguments in ("", "configdir='sql:/nonexistent' flags="):
            refusal = replace(token, module=replace(token.module, arguments=arguments)).job("labels")["refusal"]
            assert (refusal["reason"], refusal["field"]) == ("TOKEN_ABSENT", "module.path"), refusal


def test_point_of_a_public_key_is_understood_without_its_der_too(tmp_path: Path) -> None:
    with TOKENS["nss"](tmp_path) as encoded:
        decoded = replace(encoded, environment={"NSS_USE_DECODED_CKA_EC_POINT": "1"})
        assert (encoded.job("point_length"), decoded.job("point_length")) == (67, 65)
        assert "refusal" not in decoded.job("hold_ceremonies"), "each CA's key proves that its public key is right"
