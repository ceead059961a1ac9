"""What is learned of a module's attributes, and that nothing more is given up than what it does not know."""

from collections.abc import Callable
from typing import Any

import pkcs11
import pytest
from asn1crypto.core import ObjectIdentifier
from cryptography.hazmat.primitives.asymmetric import ec
from pkcs11 import Attribute

from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from appliance.hsm import pairs
from appliance.hsm.dialect import ORIGIN
from appliance.hsm.keys import TEMPLATES, Role, attributes, differences, verify_attributes
from appliance.hsm.module import TokenSession
from tests.hsm.site import PIN, Calls, Site

Attributes = dict[Attribute, Any]
SUBSCRIBERS = set(TEMPLATES[Role.SUBSCRIBER].origin)


class OtherModule(TokenSession):
    """The real module, whose throwaway keys tell something else of themselves; a fake, for combinations not at hand.

    Args:
        born: what the key that was generated tells, instead of what is true.
        brought: likewise the one that was created from a value.
        unknown: what neither tells.
    """

    def __init__(self, site: Site, born: Attributes, brought: Attributes, unknown: tuple[Attribute, ...] = ()) -> None:
        self._told = [born, brought]
        self._unknown = unknown
        super().__init__(site.module, PIN, Calls())

    def call(self, kind: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        answer = super().call(kind, function, *arguments, **options)
        if kind == "learn" and isinstance(answer, dict):
            told = {**answer, **self._told.pop(0)}
            return {attribute: value for attribute, value in told.items() if attribute not in self._unknown}
        return answer


def brought_in(session: TokenSession) -> Any:
    """A subscriber's key in everything but its origin."""
    template = {
        **TEMPLATES[Role.SUBSCRIBER].attributes,
        Attribute.KEY_TYPE: pkcs11.KeyType.EC,
        Attribute.EC_PARAMS: ObjectIdentifier("1.2.840.10045.3.1.7").dump(),
        Attribute.VALUE: ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value.to_bytes(32),
    }
    return session.raw.create_object(template)


def test_module_that_keeps_to_the_standard_deviates_in_nothing_and_keeps_nothing(site: Site) -> None:
    with site.session() as session:
        assert session.dialect.deviations == ()
        assert session.dialect.telling == set(ORIGIN)
        for role in Role:
            assert attributes(session, role) == TEMPLATES[role].attributes
        assert site.session_objects() == 0


def test_module_is_learned_once_in_a_session_and_again_after_a_renewal(site: Site, calls: Calls) -> None:
    with site.session(calls) as session:
        assert session.dialect is session.dialect
        once = calls.kinds.count("learn")
        session.renew()
        assert session.dialect.deviations == ()
        assert calls.kinds.count("learn") == 2 * once


def test_attribute_that_the_module_does_not_know_is_left_out_and_not_looked_for(site: Site) -> None:
    session = OtherModule(site, {}, {}, unknown=(Attribute.COPYABLE,))
    assert session.dialect.deviations == ("does not know CKA_COPYABLE",)
    for role in Role:
        assert attributes(session, role) == {
            attribute: value for attribute, value in TEMPLATES[role].attributes.items() if attribute.name != "COPYABLE"
        }
    public, private = pairs.generate(session, KeyType.EC_P256, Role.SUBSCRIBER)
    assert private[Attribute.COPYABLE] is True, "the module's default: this one knows it after all"
    assert differences(session, Role.SUBSCRIBER, private) == differences(session, Role.PUBLIC, public) == {}
    session.close()


@pytest.mark.parametrize("dispensable", [Attribute.SENSITIVE, Attribute.EXTRACTABLE, Attribute.MODIFIABLE])
def test_other_attributes_are_not_given_up(site: Site, dispensable: Attribute) -> None:
    session = OtherModule(site, {}, {}, unknown=(dispensable,))
    assert session.dialect.deviations == ()
    assert dispensable in attributes(session, Role.ISSUING_CA)
    session.close()


MUTE: dict[str, tuple[Attributes, Attributes, set[Attribute]]] = {
    "LOCAL is always false": ({Attribute.LOCAL: False}, {}, {Attribute.LOCAL}),
    "LOCAL is always true": ({}, {Attribute.LOCAL: True}, {Attribute.LOCAL}),
    "only LOCAL tells": (
        {},
        {Attribute.ALWAYS_SENSITIVE: True, Attribute.NEVER_EXTRACTABLE: True},
        {Attribute.ALWAYS_SENSITIVE, Attribute.NEVER_EXTRACTABLE},
    ),
}


@pytest.mark.parametrize("module", MUTE)
def test_key_that_was_brought_is_told_from_one_that_was_born_by_what_is_left(site: Site, module: str) -> None:
    born, brought, mute = MUTE[module]
    session = OtherModule(site, born, brought)
    assert session.dialect.telling == set(ORIGIN) - mute
    assert session.dialect.deviations == tuple(
        f"does not tell by CKA_{attribute.name} where a key was born" for attribute in ORIGIN if attribute in mute
    )
    _, born_here = pairs.generate(session, KeyType.EC_P256, Role.SUBSCRIBER)
    assert differences(session, Role.SUBSCRIBER, born_here) == {}
    assert differences(session, Role.SUBSCRIBER, brought_in(session)).keys() >= session.dialect.telling & SUBSCRIBERS
    session.close()


def test_module_that_tells_no_origin_at_all_certifies_no_key(site: Site) -> None:
    session = OtherModule(site, {}, dict.fromkeys(ORIGIN, True))
    _, key = pairs.generate(session, KeyType.EC_P256, Role.SUBSCRIBER)
    with pytest.raises(ApplianceError) as refused:
        verify_attributes(session, Role.SUBSCRIBER, key)
    assert refused.value.reason is Reason.KEY_ATTRIBUTES_DIFFER
    assert refused.value.facts["attributes"] == "ALWAYS_SENSITIVE,LOCAL"
    session.close()
