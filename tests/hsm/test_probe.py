"""The start-up probe on the real module, and on one that lies at single calls."""

from collections.abc import Callable
from typing import Any

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

from appliance.errors import ApplianceError, Reason
from appliance.hsm import probe
from appliance.hsm.module import TokenSession
from tests.hsm.site import PIN, Calls, Site


class LyingModule(TokenSession):
    """The real module, whose answers to one kind of call are changed; a fake, because no module at hand does this.

    A lie gets the probe's key and the true answer.
    """

    def __init__(self, site: Site, kind: str, lie: Callable[[bytes, Any], Any]) -> None:
        self._kind, self._lie = kind, lie
        self._key = b""
        super().__init__(site.module, PIN, Calls())

    def call(self, kind: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if kind == "probe" and arguments:
            self._key = arguments[0][Attribute.VALUE]
        answer = super().call(kind, function, *arguments, **options)
        return self._lie(self._key, answer) if kind == self._kind else answer


def flip(_key: bytes, answer: Any) -> Any:
    return bytes([answer[0] ^ 1]) + answer[1:] if isinstance(answer, bytes) else answer


def encoded(secret: ec.EllipticCurvePrivateKey, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    return secret.private_bytes(Encoding.DER, form, NoEncryption())


def unwrapped(key: bytes, wrapped: bytes) -> ec.EllipticCurvePrivateKey:
    secret = load_der_private_key(aes_key_unwrap_with_padding(key, wrapped)[:67], None)
    assert isinstance(secret, ec.EllipticCurvePrivateKey)
    return secret


def rewrap(encode: Callable[[ec.EllipticCurvePrivateKey], bytes]) -> Callable[[bytes, bytes], bytes]:
    return lambda key, wrapped: aes_key_wrap_with_padding(key, encode(unwrapped(key, wrapped)))


def test_mechanism_is_chosen_by_behaviour_and_nothing_is_left(site: Site) -> None:
    with site.session() as session:
        assert probe.prove_mechanisms(session) is Mechanism.AES_KEY_WRAP_PAD
        assert site.session_objects() == 0


HONEST: dict[str, Callable[[ec.EllipticCurvePrivateKey], bytes]] = {
    "a public key inside the ECPrivateKey": encoded,
    "seven zero bytes behind the DER": lambda secret: encoded(secret) + bytes(7),
}
LIES: dict[str, tuple[str, Callable[[bytes, Any], Any], str]] = {
    "derives another key": ("read", flip, "AES_ECB_ENCRYPT_DATA"),
    "gives another MAC": ("mac", flip, "AES_CMAC"),
    "does not list the wrap mechanisms": (
        "probe", lambda _, answer: set() if isinstance(answer, set) else answer, "AES_KEY_WRAP_KWP"
    ),
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
    assert site.session_objects() == 0
    session.close()


def test_other_derivation_by_cbc_is_refused(site: Site) -> None:
    """The second derived key that is read, of the right length, is the one by CBC."""
    reads = []

    def second(_key: bytes, answer: Any) -> Any:
        if isinstance(answer, bytes):
            reads.append(answer)
        return bytes(32) if len(reads) == 2 and isinstance(answer, bytes) else answer

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


@pytest.mark.parametrize(
    ("only", "named"),
    [(Mechanism.AES_KEY_WRAP, "AES_KEY_WRAP_KWP"), (Mechanism.AES_CBC_PAD, "AES_CBC_PAD")],
    ids=["something else", "refused by the module"],
)
def test_module_without_the_wrap_mechanism_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch, only: Mechanism, named: str
) -> None:
    monkeypatch.setattr(probe, "WRAP_CANDIDATES", (only,))
    with site.session() as session, pytest.raises(ApplianceError) as refused:
        probe.prove_mechanisms(session)
    assert (refused.value.reason, refused.value.facts["mechanism"]) == (Reason.MECHANISM_MISSING, named)


def test_fault_while_probing_is_a_fault_and_no_verdict_on_the_module(site: Site, calls: Calls) -> None:
    with site.session(calls) as session:
        calls.before("mac", site.close_all_sessions)
        with pytest.raises(ApplianceError) as fault:
            probe.prove_mechanisms(session)
    assert fault.value.reason is Reason.TOKEN_FAULT
