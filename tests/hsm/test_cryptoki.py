"""Calls that are not python-pkcs11's: they do what its calls do, and fail as they fail."""

import os
from collections.abc import Callable
from typing import Any

import pkcs11
import pytest
from pkcs11 import Attribute, Mechanism

from appliance.errors import ApplianceError
from appliance.hsm import cryptoki, probe
from appliance.hsm.keys import TEMPLATES, Role
from appliance.hsm.module import TokenSession
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
