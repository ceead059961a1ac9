"""What the mechanisms do that suite 01 needs, or may need: each is tried with throwaway keys, whatever is listed."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import Attribute, KeyType, Mechanism

from appliance.domain import derivation, package
from appliance.domain.certificate import signature_scheme
from appliance.domain.profile import CertificateProfile
from appliance.errors import ApplianceError, Reason
from appliance.hsm import derive, pairs, probe
from appliance.hsm.check import wrapped
from appliance.hsm.check.attack import NOT_THERE, answer
from appliance.hsm.check.bench import Bench, cmac
from appliance.hsm.check.conflicts import KEY_WRAPS
from appliance.hsm.check.counter_kdf import COUNTER_KDF, Kdf3Parameter
from appliance.hsm.check.finding import Finding, Section, Status, Verdict
from appliance.hsm.keys import Role, differences
from appliance.hsm.module import TokenSession
from appliance.hsm.signing import sign

Look = Callable[[Bench], tuple[Verdict, str]]
SUITE: Final = "suite 01"
_DERIVED: Final = {"K_SIM": Role.WRAP_DERIVER, "K_PKG": Role.WRAP, "K_AUTH": Role.CMAC}


@dataclass(frozen=True)
class Behaviour:
    """Something that a module does or does not.

    Args:
        name: the mechanism.
        part: with which key.
        look: tries it.
        needed: vaults on these settings do not work without.
    """

    name: str
    part: str
    look: Look
    needed: bool = False


def behaviours(profiles: Iterable[CertificateProfile]) -> tuple[Behaviour, ...]:
    """What is tried; key types are needed where a profile certifies them."""
    certified = {name for profile in profiles for name in profile.key_types}
    types = tuple(package.KeyType)
    return (
        Behaviour(SUITE, "", _suite([t for t in types if t.name in certified]), needed=True),
        *(Behaviour(_named(mechanism), "", _derivation(mechanism)) for mechanism in probe.DERIVATIONS),
        Behaviour(_named(COUNTER_KDF), "", _counter_kdf),
        Behaviour(_named(Mechanism.AES_CMAC), "", _cmac),
        *(Behaviour(_named(m), t.name, _wrapping(m, t)) for m in KEY_WRAPS for t in types),
        *(Behaviour("key pair", t.name, _pair(t, t.name in certified), t.name in certified) for t in types),
        *(Behaviour("signature", t.name, _signature(t)) for t in types),
        *(Behaviour("derived key", name, _template(role)) for name, role in _DERIVED.items()),
    )


def examine(session: TokenSession, behaviour: Behaviour) -> Finding:
    """Try it, and tell an absent mechanism from an error that says nothing."""
    bench = Bench(session)
    try:
        verdict, found = behaviour.look(bench)
    except ApplianceError as error:
        absent = error.reason is Reason.MECHANISM_MISSING or error.facts.get("error") in NOT_THERE
        verdict, found = (Verdict.NOT_OFFERED if absent else Verdict.UNKNOWN), answer(error)
    finally:
        bench.clear()
    wrong = verdict is Verdict.WRONG or (behaviour.needed and verdict is not Verdict.RIGHT)
    demands = Status.UNFIT if wrong else Status.FIT
    return Finding(
        Section.MECHANISMS, behaviour.name, behaviour.part, Verdict.WRONG if wrong else verdict, found, demands
    )


def _named(mechanism: Mechanism) -> str:
    return f"{mechanism.name} ({mechanism:X})"


def _suite(key_types: Iterable[package.KeyType]) -> Look:
    def look(bench: Bench) -> tuple[Verdict, str]:
        return Verdict.RIGHT, f"runs; wraps by {_named(probe.prove_mechanisms(bench.session, key_types))}"

    return look


def _derivation(mechanism: Mechanism) -> Look:
    def look(bench: Bench) -> tuple[Verdict, str]:
        with probe.known_key(bench.session) as (key, value):
            probe.prove_derivation(bench.session, key, value, mechanism)
        return Verdict.RIGHT, "derives the leading bytes of the ciphertext, and so KDF3 and K_PKG"

    return look


def _counter_kdf(bench: Bench) -> tuple[Verdict, str]:
    parameter = Kdf3Parameter(derivation.K_SIM, derive.KDF_CHECK_KDD)
    # A readable key, because a module may derive readable keys from no other by this mechanism.
    made = bench.derive(bench.secret(Role.PROBE), COUNTER_KDF, bytes(parameter), Role.READABLE, 256)
    blocks = derivation.kdf3_blocks(derivation.K_SIM, derive.KDF_CHECK_KDD, 256)
    if bench.read(made, Attribute.VALUE) != b"".join(cmac(bench.value, block) for block in blocks):
        return Verdict.NOTED, "derives another key than KDF3"
    return Verdict.RIGHT, "is KDF3, without K1"


def _cmac(bench: Bench) -> tuple[Verdict, str]:
    with probe.known_key(bench.session) as (key, value):
        probe.prove_mac(bench.session, key, value)
    return Verdict.RIGHT, "is RFC 4493"


def _wrapping(mechanism: Mechanism, key_type: package.KeyType) -> Look:
    def look(bench: Bench) -> tuple[Verdict, str]:
        private, spki = bench.pair(Role.SUBSCRIBER, key_type)
        exported = bench.wrap(bench.secret(Role.PROBE), private, mechanism)
        found = wrapped.recognise(bench.value, exported, spki)
        if found is None:
            return Verdict.NOTED, f"{len(exported)} bytes that are none of the known forms"
        verdict = Verdict.RIGHT if found.serves_suite_01 else Verdict.NOTED
        return verdict, f"{found}; {len(exported)} bytes"

    return look


def _pair(key_type: package.KeyType, needed: bool) -> Look:
    def look(bench: Bench) -> tuple[Verdict, str]:
        public, private = pairs.generate(bench.session, key_type, Role.SUBSCRIBER)
        bench.keep(public), bench.keep(private)
        verdict, found = _compared(differences(bench.session, Role.SUBSCRIBER, private))
        return (verdict if needed or verdict is Verdict.RIGHT else Verdict.NOTED), found

    return look


def _signature(key_type: package.KeyType) -> Look:
    """As a CA signs, and as a certificate request is signed."""

    def look(bench: Bench) -> tuple[Verdict, str]:
        private, spki = bench.pair(Role.REQUESTING_SUBSCRIBER, key_type)
        scheme, message = signature_scheme(spki), os.urandom(48)
        signature = sign(bench.session, private, scheme, message)
        algorithm = hashes.SHA256() if scheme.hash_name == "sha256" else hashes.SHA384()
        try:
            match load_der_public_key(spki):
                case rsa.RSAPublicKey() as public:
                    public.verify(signature, message, padding.PKCS1v15(), algorithm)
                case ec.EllipticCurvePublicKey() as public:
                    public.verify(signature, message, ec.ECDSA(algorithm))
        except InvalidSignature:
            return Verdict.WRONG, "a signature that does not verify"
        return Verdict.RIGHT, f"verifies ({'SHA256_RSA_PKCS' if scheme.is_rsa else 'ECDSA'})"

    return look


def _template(role: Role) -> Look:
    """Keys that are derived, as K_SIM, K_PKG and K_AUTH are; those that are made are held against theirs elsewhere."""

    def look(bench: Bench) -> tuple[Verdict, str]:
        made = bench.derive(
            bench.secret(Role.KM_BIND), Mechanism.AES_ECB_ENCRYPT_DATA, bytes(32), role, 256, KeyType.AES
        )
        return _compared(differences(bench.session, role, made, length=32))

    return look


def _compared(wrong: Mapping[Attribute, tuple[object, object]]) -> tuple[Verdict, str]:
    return (Verdict.WRONG, difference_text(wrong)) if wrong else (Verdict.RIGHT, "reads back as its template")


def difference_text(wrong: Mapping[Attribute, tuple[object, object]]) -> str:
    """`ATTRIBUTE: found | expected`, for each."""
    return "; ".join(f"{a.name}: {_told(found)} | {_told(expected)}" for a, (found, expected) in wrong.items())


def _told(value: object) -> str:
    return "not told" if value is None else getattr(value, "name", str(value)).lower()
