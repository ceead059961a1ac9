"""The start-up probe on the real module, and on one that lies at single calls."""

from collections.abc import Callable
from typing import Any

import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding, aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from pkcs11 import Attribute, Mechanism

from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from appliance.hsm import pairs, probe
from appliance.hsm.module import TokenSession, token_fault
from tests.hsm.site import PIN, Calls, Site


class LyingModule(TokenSession):
    """The real module, whose answers to one kind of call are changed; a fake, because no module at hand does this.

    A lie gets the probe's key and the true answer.
    """

    def __init__(self, site: Site, kind: str, lie: Callable[[bytes, Any], Any]) -> None:
        self._kind, self._lie = kind, lie
        self._key = b""
        self.calls = Calls()
        super().__init__(site.module, PIN, self.calls)

    def call(self, kind: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if kind == "probe" and arguments:
            self._key = arguments[0][Attribute.VALUE]
        answer = super().call(kind, function, *arguments, **options)
        return self._lie(self._key, answer) if kind == self._kind else answer


def flip(_key: bytes, answer: Any) -> Any:
    if isinstance(answer, dict) and Attribute.VALUE in answer:
        return {Attribute.VALUE: flip(_key, answer[Attribute.VALUE])}
    return bytes([answer[0] ^ 1]) + answer[1:] if isinstance(answer, bytes) else answer


def encoded(secret: ec.EllipticCurvePrivateKey, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    return secret.private_bytes(Encoding.DER, form, NoEncryption())


def unwrapped(key: bytes, wrapped: bytes) -> ec.EllipticCurvePrivateKey:
    secret = load_der_private_key(aes_key_unwrap_with_padding(key, wrapped)[:67], None)
    assert isinstance(secret, ec.EllipticCurvePrivateKey)
    return secret


def rewrap(encode: Callable[[ec.EllipticCurvePrivateKey], bytes]) -> Callable[[bytes, bytes], bytes]:
    return lambda key, wrapped: aes_key_wrap_with_padding(key, encode(unwrapped(key, wrapped)))


def test_mechanism_is_chosen_by_behaviour_and_nothing_is_left(site: Site, calls: Calls) -> None:
    with site.session(calls) as session:
        assert probe.prove_mechanisms(session) is Mechanism.AES_KEY_WRAP_PAD
        assert calls.kinds.count("login") == 1, "the number that the module lists is tried first, and breaks nothing"
        assert site.session_objects() == 0


HONEST: dict[str, Callable[[ec.EllipticCurvePrivateKey], bytes]] = {
    "a public key inside the ECPrivateKey": encoded,
    "seven zero bytes behind the DER": lambda secret: encoded(secret) + bytes(7),
}
LIES: dict[str, tuple[str, Callable[[bytes, Any], Any], str]] = {
    "derives another key": ("read", flip, "AES_ECB_ENCRYPT_DATA"),
    "gives another MAC": ("mac", flip, "AES_CMAC"),
    "wraps with a broken check": ("wrap", flip, "AES_KEY_WRAP_KWP"),
    "wraps nothing": ("wrap", lambda *_: b"", "AES_KEY_WRAP_KWP"),
    "wraps another key": (
        "wrap", rewrap(lambda _: encoded(ec.generate_private_key(ec.SECP256R1()))), "AES_KEY_WRAP_KWP"
    ),
    "wraps ECPrivateKey instead of PKCS#8": (
        "wrap", rewrap(lambda secret: encoded(secret, PrivateFormat.TraditionalOpenSSL) + b"\1"), "AES_KEY_WRAP_KWP"
    ),
    "puts something behind the DER": ("wrap", rewrap(lambda secret: encoded(secret) + b"\1"), "AES_KEY_WRAP_KWP"),
    "puts eight zero bytes behind the DER": (
        "wrap", rewrap(lambda secret: encoded(secret) + bytes(8)), "AES_KEY_WRAP_KWP"
    ),
}  # fmt: skip


def listing(*mechanisms: Mechanism) -> Callable[[bytes, Any], Any]:
    """The module lists these mechanisms."""
    return lambda _, answer: set(mechanisms) if isinstance(answer, set) else answer


LISTS: dict[str, tuple[Mechanism, ...]] = {
    "nothing": (),
    "both numbers": probe.WRAP_CANDIDATES,
    "only the number that it refuses": (Mechanism.AES_KEY_WRAP_KWP,),
}


@pytest.mark.parametrize("lists", LISTS)
def test_mechanism_is_tried_whatever_the_module_lists_and_whatever_the_other_number_did(site: Site, lists: str) -> None:
    session = LyingModule(site, "list", listing(*LISTS[lists]))
    assert probe.prove_mechanisms(session) is Mechanism.AES_KEY_WRAP_PAD
    assert not session.broken
    assert site.session_objects() == 0
    session.close()


@pytest.mark.parametrize("quirk", HONEST)
def test_module_with_a_permitted_quirk_is_accepted(site: Site, quirk: str) -> None:
    session = LyingModule(site, "wrap", rewrap(HONEST[quirk]))
    assert probe.prove_mechanisms(session) is Mechanism.AES_KEY_WRAP_PAD
    session.close()


@pytest.mark.parametrize("behaviour", LIES)
def test_module_that_behaves_otherwise_is_refused_by_mechanism(site: Site, behaviour: str) -> None:
    kind, lie, mechanism = LIES[behaviour]
    session = LyingModule(site, kind, lie)
    with pytest.raises(ApplianceError) as refused:
        probe.prove_mechanisms(session)
    assert (refused.value.reason, refused.value.facts["mechanism"]) == (Reason.MECHANISM_MISSING, mechanism)
    assert session.broken or site.session_objects() == 0
    session.close()


def test_other_derivation_by_cbc_is_refused(site: Site) -> None:
    """The second derived key that is read, of the right length, is the one by CBC."""
    reads = []

    def second(_key: bytes, answer: Any) -> Any:
        if Attribute.VALUE not in answer:
            return answer
        reads.append(answer)
        return {Attribute.VALUE: bytes(32)} if len(reads) == 2 else answer

    session = LyingModule(site, "read", second)
    with pytest.raises(ApplianceError) as refused:
        probe.prove_mechanisms(session)
    assert refused.value.facts["mechanism"] == "AES_CBC_ENCRYPT_DATA"
    session.close()


def test_mechanism_that_is_something_else_is_passed_over(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """AES_KEY_WRAP of the real module is RFC 3394 over padded DER: of the same length, and not KWP."""
    monkeypatch.setattr(probe, "WRAP_CANDIDATES", (Mechanism.AES_KEY_WRAP, Mechanism.AES_KEY_WRAP_PAD))
    with site.session() as session:
        assert probe.prove_mechanisms(session) is Mechanism.AES_KEY_WRAP_PAD


def test_module_without_the_wrap_mechanism_is_refused_in_one_line_that_tells_of_each_number(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "WRAP_CANDIDATES", (Mechanism.AES_KEY_WRAP, Mechanism.AES_CBC_PAD))
    with site.session() as session, pytest.raises(ApplianceError) as refused:
        probe.prove_mechanisms(session)
    assert refused.value.reason is Reason.MECHANISM_MISSING
    assert refused.value.detail == (
        "CKM_AES_KEY_WRAP (0x2109) cannot be used: it is not RFC 5649 over PKCS#8. "
        "CKM_AES_CBC_PAD (0x1085) cannot be used: the module answered MechanismInvalid."
    )


class RefusingModule(TokenSession):
    """The real module, but each call of one kind ends in an error; a fake, because no module at hand gives all of them.

    A session that is broken stays as it is: there is nothing in it to repair.
    """

    def __init__(self, site: Site, kind: str, error: str) -> None:
        self._refused, self._error = kind, error
        super().__init__(site.module, PIN, Calls())

    def call(self, kind: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if kind == self._refused:
            self.broken = True
            raise token_fault(kind, getattr(pkcs11, self._error)())
        return super().call(kind, function, *arguments, **options)


NEEDS = {
    "learn": "AES_KEY_GEN",
    "derive": "AES_ECB_ENCRYPT_DATA",
    "mac": "AES_CMAC",
    "keypair_ec": "EC_KEY_PAIR_GEN",
    "wrap": "AES_KEY_WRAP_KWP",
}
PERSISTENT = [
    *("FunctionNotSupported", "MechanismInvalid", "MechanismParamInvalid", "KeyTypeInconsistent", "KeySizeRange"),
    *("AttributeTypeInvalid", "AttributeValueInvalid", "TemplateInconsistent", "KeyUnextractable"),
]
PASSING = ["DeviceError", "DeviceRemoved", "FunctionFailed", "GeneralError", "SessionHandleInvalid", "HostMemory"]


@pytest.mark.parametrize("kind", NEEDS)
@pytest.mark.parametrize("error", ["MechanismInvalid", "TemplateInconsistent"])
def test_refusal_of_any_step_names_its_mechanism(site: Site, kind: str, error: str) -> None:
    session = RefusingModule(site, kind, error)
    with pytest.raises(ApplianceError) as refused:
        probe.prove_mechanisms(session)
    assert (refused.value.reason, refused.value.facts["mechanism"]) == (Reason.MECHANISM_MISSING, NEEDS[kind])
    assert f"(0x{Mechanism[NEEDS[kind]]:X})" in refused.value.detail
    assert error in refused.value.detail
    session.close()


@pytest.mark.parametrize("error", [*PERSISTENT, *PASSING])
def test_error_is_a_verdict_on_the_module_only_if_it_would_come_again(site: Site, error: str) -> None:
    session = RefusingModule(site, "derive", error)
    with pytest.raises(ApplianceError) as refused:
        probe.prove_mechanisms(session)
    assert refused.value.reason is (Reason.MECHANISM_MISSING if error in PERSISTENT else Reason.TOKEN_FAULT)
    session.close()


@pytest.mark.parametrize("listed", [True, False])
def test_rsa_key_pair_is_made_only_where_the_module_does_not_list_it(site: Site, listed: bool) -> None:
    session = LyingModule(site, "list", lambda _, answer: listed if isinstance(answer, bool) else answer)
    probe.prove_mechanisms(session)
    assert session.calls.kinds.count("keypair_rsa") == (not listed)
    session.close()


def test_listed_mechanism_counts_only_with_the_key_size(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for bits, made in ((2048, 0), (32768, 1)):
        monkeypatch.setattr(pairs, "RSA_BITS", bits)
        session = RefusingModule(site, "keypair_rsa", "KeySizeRange")
        if made:
            with pytest.raises(ApplianceError) as refused:
                probe.prove_pairs(session, KeyType.RSA_2048)
            assert refused.value.facts["mechanism"] == "RSA_PKCS_KEY_PAIR_GEN"
        else:
            probe.prove_pairs(session, KeyType.RSA_2048)
        session.close()


def test_key_types_that_nobody_asked_for_are_not_tried(site: Site, calls: Calls) -> None:
    with site.session(calls) as session:
        probe.prove_mechanisms(session, ())
        without = calls.kinds.count("keypair_ec")
        calls.kinds.clear()
        probe.prove_mechanisms(session, (KeyType.EC_P384,))
        assert calls.kinds.count("keypair_ec") == without + 1


def test_fault_while_probing_is_a_fault_and_no_verdict_on_the_module(site: Site, calls: Calls) -> None:
    with site.session(calls) as session:
        calls.before("mac", site.close_all_sessions)
        with pytest.raises(ApplianceError) as fault:
            probe.prove_mechanisms(session)
    assert fault.value.reason is Reason.TOKEN_FAULT
