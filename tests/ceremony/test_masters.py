"""Forming a SIM issuer's masters: two different keys on the token, and no trace of their components."""

import pytest
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from pkcs11 import Attribute

from appliance.ceremony.components import Component, key_check_value
from appliance.ceremony.masters import form_masters, label
from appliance.demo import published
from appliance.domain.keyset import DEMO_KCVS
from appliance.errors import ApplianceError, Reason
from appliance.hsm.keys import Role
from appliance.hsm.module import TokenSession

BIND, CHAN = "KM-BIND/mno/7F", "KM-CHAN/mno/7F"


def demo_components() -> tuple[list[Component], list[Component]]:
    return published.components("KM-BIND"), published.components("KM-CHAN")


def wiped(*groups: list[Component]) -> bool:
    return not any(any(component.value) for group in groups for component in group)


def labels(session: TokenSession) -> set[str]:
    return {key.label for key in session.find_all({})}


def cmac(key: bytes, message: bytes) -> bytes:
    mac = CMAC(AES(key))
    mac.update(message)
    return mac.finalize()


def kdf_kcv(master: bytes, constant: int) -> str:
    """As sim-package.md's KDF3 says it, at the diversification data FF x 10."""
    key = b"".join(cmac(master, bytes((i, 0, 0, 0, constant, 0)) + b"\xff" * 10) for i in (1, 2))
    return cmac(key, bytes(16))[:3].hex().upper()


def test_labels_say_what_a_key_is_for() -> None:
    assert (label(Role.KM_BIND, "mno", 0x7F), label(Role.KM_CHAN, "mno", 0x7F)) == (BIND, CHAN)


def test_masters_are_on_the_token_with_the_check_values_of_their_components(session: TokenSession) -> None:
    bind, chan = demo_components()
    made = form_masters(session, "mno", 0x7F, bind, chan)
    assert [key.label for key in made] == [BIND, CHAN]
    for key, name, constant in zip(made, ("KM-BIND", "KM-CHAN"), (0x10, 0x01), strict=True):
        master = published.master(name)
        assert key.kcv == key_check_value(master)
        assert key.kdf_kcv == kdf_kcv(master, constant)
    assert labels(session) == {BIND, CHAN}
    assert wiped(bind, chan)


def test_check_values_of_the_demo_are_those_that_production_refuses(session: TokenSession) -> None:
    assert {key.kcv for key in form_masters(session, "mno", 1, *demo_components())} == DEMO_KCVS


def test_masters_cannot_be_read_from_the_token(session: TokenSession) -> None:
    form_masters(session, "mno", 0x7F, *demo_components())
    for name in (BIND, CHAN):
        key = session.find({}, name)
        with pytest.raises(ApplianceError) as refused:
            session.call("read", key.__getitem__, Attribute.VALUE)
        assert refused.value.facts["error"] == "AttributeSensitive"
        session.renew()


def test_same_key_for_both_uses_is_refused_also_from_other_components(session: TokenSession) -> None:
    mask = b"\x3c" * 32
    bind = published.components("KM-BIND")
    values = [bytes(component.value) for component in bind]
    other = [bytes(a ^ b for a, b in zip(value, mask, strict=True)) for value in values[:2]] + values[2:]
    chan = [Component(bytearray(value), key_check_value(value)) for value in other]
    with pytest.raises(ApplianceError) as refused:
        form_masters(session, "mno", 0x7F, bind, chan)
    assert (refused.value.reason, refused.value.field) == (Reason.COMPONENT_INVALID, "components")
    assert labels(session) == set()
    assert wiped(bind, chan)


@pytest.mark.parametrize("spoiled", ["KM-BIND", "KM-CHAN"])
def test_wrong_component_of_either_key_makes_nothing_and_wipes_all(session: TokenSession, spoiled: str) -> None:
    bind, chan = demo_components()
    ({"KM-BIND": bind, "KM-CHAN": chan}[spoiled])[1] = Component(bytearray(b"\x01" * 32), "000000")
    with pytest.raises(ApplianceError) as refused:
        form_masters(session, "mno", 0x7F, bind, chan)
    assert (refused.value.reason, refused.value.field) == (Reason.COMPONENT_INVALID, "components[2]")
    assert labels(session) == set()
    assert wiped(bind, chan)


@pytest.mark.parametrize("taken", ["KM-BIND", "KM-CHAN"])
def test_taken_label_of_either_key_makes_neither(session: TokenSession, taken: str) -> None:
    form_masters(session, "mno", 0x7F, *demo_components())
    session.destroy(session.find({}, {"KM-BIND": CHAN, "KM-CHAN": BIND}[taken]))
    bind, chan = demo_components()
    with pytest.raises(ApplianceError) as refused:
        form_masters(session, "mno", 0x7F, bind, chan)
    assert (refused.value.reason, refused.value.facts["label"]) == (Reason.KEY_EXISTS, f"{taken}/mno/7F")
    assert labels(session) == {f"{taken}/mno/7F"}
    assert wiped(bind, chan)
