"""Calls that are not python-pkcs11's: they do what its calls do, and fail as they fail."""

import os
import sys
from collections.abc import Callable
from typing import Any

import pkcs11
import pytest
from pkcs11 import Attribute, Mechanism

from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from appliance.hsm import cryptoki, derive, pairs, probe
from appliance.hsm.keys import TEMPLATES, Role
from appliance.hsm.module import TokenSession
from appliance.hsm.objects import Attributes, unpacked
from tests.hsm.site import Site


def aes(session: TokenSession, **changes: Any) -> Any:
    """A key that may wrap and be wrapped, but for these changes."""
    template = {**TEMPLATES[Role.PROBE].attributes, Attribute.VALUE: os.urandom(24)}
    return session.raw.create_object({**template, **{Attribute[name]: value for name, value in changes.items()}})


def test_wrapped_key_is_the_one_that_python_pkcs11_gives(site: Site) -> None:
    with site.session() as session, probe.known_key(session) as (wrapping_key, _):
        key = aes(session)
        wrapped = session.wrap(wrapping_key, key, Mechanism.AES_KEY_WRAP)
        assert wrapped == wrapping_key.wrap_key(key, mechanism=Mechanism.AES_KEY_WRAP)
        assert len(wrapped) == 24 + 8


def test_attributes_are_those_that_python_pkcs11_reads(site: Site) -> None:
    with site.session() as session:
        public, private = pairs.generate(session, KeyType.EC_P256, Role.SUBSCRIBER)
        for key, role in ((aes(session), Role.PROBE), (public, Role.PUBLIC), (private, Role.SUBSCRIBER)):
            wanted = tuple(TEMPLATES[role].attributes)
            found = session.read(key, Attributes.asking(wanted))
            assert {attribute: unpacked(attribute, value) for attribute, value in found.items()} == (
                key.get_attributes(wanted)
            )
        assert session.read(public, Attributes.asking([Attribute.EC_POINT])) == {
            Attribute.EC_POINT: public[Attribute.EC_POINT]
        }


def test_room_that_is_used_again_keeps_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Attributes.asking((Attribute.VALUE, Attribute.ENCRYPT, Attribute.VALUE_LEN))
    with site.session() as session:
        readable, hidden = aes(session), aes(session, EXTRACTABLE=False, SENSITIVE=True, ENCRYPT=True)
        for _ in range(2):
            given = session.read(readable, asked)
            assert given[Attribute.VALUE] == readable[Attribute.VALUE]
            assert given[Attribute.ENCRYPT] == b"\x00"
            given = session.read(hidden, asked)
            assert given == {Attribute.ENCRYPT: b"\x01", Attribute.VALUE_LEN: (24).to_bytes(8, sys.byteorder)}
        session.read(readable, asked)
        monkeypatch.setattr(session._calls, "_read", lambda *_: 0)
        assert not any(b"".join(session.read(hidden, asked).values())), "what a module writes nothing to is empty"


NOT_GIVEN: dict[str, tuple[Attributes, str]] = {
    "unknown": (Attributes.asking([Attribute.ENCAPSULATE]), "AttributeTypeInvalid"),
    "longer than its room": (Attributes.asking([Attribute.VALUE], 16), "BufferTooSmall"),
}


@pytest.mark.parametrize("why", NOT_GIVEN)
def test_attribute_that_is_not_given_is_left_out_and_alone_it_is_a_fault(site: Site, why: str) -> None:
    alone, error = NOT_GIVEN[why]
    with site.session() as session:
        key = aes(session)
        given = session.read(key, Attributes.asking((Attribute.DERIVE, *alone.types, Attribute.WRAP), 16))
        assert given == {Attribute.DERIVE: b"\x01", Attribute.WRAP: b"\x01"}
        assert not session.broken
        with pytest.raises(ApplianceError) as fault:
            session.read(key, alone)
        assert fault.value.facts["error"] == error


@pytest.mark.parametrize("code", [0x11, 0x12, 0x150])
def test_module_that_gives_everything_and_says_that_it_does_not_is_not_believed(
    site: Site, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with site.session() as session:
        key = aes(session)
        session.read(key, Attributes.asking([Attribute.WRAP]))
        monkeypatch.setattr(session._calls, "_read", lambda *_: code)
        with pytest.raises(ApplianceError) as fault:
            session.read(key, Attributes.asking([Attribute.WRAP]))
        assert fault.value.facts["call"] == "read"


@pytest.mark.parametrize("length", [2**64 - 1, 2000])
def test_value_that_a_module_says_to_have_given_and_has_not_is_a_fault(
    site: Site, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    def nothing(_session: int, _key: int, words: Any, _count: int) -> int:
        words[2] = length
        return 0

    with site.session() as session:
        key = aes(session)
        monkeypatch.setattr(session._calls, "_read", nothing)
        with pytest.raises(ApplianceError) as caught:
            derive.value(session, key)
        assert caught.value.reason is Reason.TOKEN_FAULT


@pytest.mark.parametrize("length", [0, 1, 16, 33, 5000])
def test_mac_is_the_one_that_python_pkcs11_gives(site: Site, length: int) -> None:
    message = b"\x00" * length
    with site.session() as session, probe.known_key(session) as (key, _):
        assert session.sign(key, Mechanism.AES_CMAC, message) == key.sign(message, mechanism=Mechanism.AES_CMAC)


@pytest.mark.parametrize("mechanism", probe.DERIVATIONS, ids=lambda mechanism: mechanism.name)
def test_derived_key_is_the_one_that_python_pkcs11_derives(site: Site, mechanism: Mechanism) -> None:
    text = b"\x00" * 16 + os.urandom(16)
    data = text if mechanism is Mechanism.AES_ECB_ENCRYPT_DATA else (b"\x01\x00" + os.urandom(14), text)
    readable = TEMPLATES[Role.READABLE].attributes
    with site.session() as session, probe.known_key(session) as (base, _):
        theirs = base.derive_key(pkcs11.KeyType.AES, 256, mechanism=mechanism, mechanism_param=data, template=readable)
        with derive.derived(session, base, Role.READABLE, mechanism, data, 256) as ours:
            assert derive.value(session, ours) == theirs[Attribute.VALUE]


def gone(session: TokenSession) -> Any:
    key = aes(session)
    key.destroy()
    return key


FAILING: dict[str, tuple[Callable[[TokenSession], Any], Callable[[TokenSession], Any], Mechanism]] = {
    "MechanismInvalid": (aes, aes, Mechanism.AES_CBC_PAD),
    "KeyUnextractable": (aes, lambda session: aes(session, EXTRACTABLE=False), Mechanism.AES_KEY_WRAP),
    "KeyHandleInvalid": (aes, gone, Mechanism.AES_KEY_WRAP),
    "WrappingKeyHandleInvalid": (gone, aes, Mechanism.AES_KEY_WRAP),
    "KeyFunctionNotPermitted": (lambda session: aes(session, WRAP=False), aes, Mechanism.AES_KEY_WRAP),
}


@pytest.mark.parametrize("error", FAILING)
def test_failure_is_a_fault_by_its_name_and_breaks_the_session(site: Site, error: str) -> None:
    wrapping_key, key, mechanism = FAILING[error]
    with site.session() as session:
        with pytest.raises(ApplianceError) as fault:
            session.wrap(wrapping_key(session), key(session), mechanism)
        assert (fault.value.facts["call"], fault.value.facts["error"]) == ("wrap", error)
        assert session.broken


def test_return_value_without_a_name_keeps_its_number() -> None:
    with pytest.raises(pkcs11.PKCS11Error, match="0x80000001"):
        cryptoki.check(0x80000001)
    cryptoki.check(0)
