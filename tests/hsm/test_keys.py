"""The table of roles: complete, and as narrow as sealing permits."""

from collections.abc import Mapping

import pytest
from pkcs11 import Attribute, ObjectClass

from appliance.hsm.keys import TEMPLATES, Role

CAPABILITIES: Mapping[ObjectClass, str] = {
    # PKCS#11 v2.40 base specification, tables 27, 29 and 32: everything that a key of the class may be permitted.
    ObjectClass.PUBLIC_KEY: "ENCRYPT VERIFY VERIFY_RECOVER WRAP",
    ObjectClass.PRIVATE_KEY: "DECRYPT SIGN SIGN_RECOVER UNWRAP DERIVE",
    ObjectClass.SECRET_KEY: "ENCRYPT DECRYPT SIGN VERIFY WRAP UNWRAP DERIVE",
}
PERMITTED: Mapping[Role, str] = {
    Role.KM_BIND: "DERIVE",
    Role.KM_CHAN: "DERIVE",
    Role.ISSUING_CA: "SIGN",
    Role.SUBSCRIBER: "",
    Role.REQUESTING_SUBSCRIBER: "SIGN",
    Role.PUBLIC: "VERIFY",
    Role.WRAP_DERIVER: "DERIVE",
    Role.WRAP: "WRAP",
    Role.CMAC: "SIGN",
    Role.PROBE: "DERIVE SIGN WRAP",
    Role.READABLE: "",
}
READABLE = {Role.PROBE, Role.READABLE}
EXTRACTABLE = READABLE | {Role.SUBSCRIBER, Role.REQUESTING_SUBSCRIBER}
ON_TOKEN = {Role.KM_BIND, Role.KM_CHAN, Role.ISSUING_CA}

every_role = pytest.mark.parametrize("role", Role, ids=lambda role: role.name)


@every_role
def test_role_states_every_capability_and_permits_what_it_is_for_alone(role: Role) -> None:
    attributes = TEMPLATES[role].attributes
    stated = {name: attributes[Attribute[name]] for name in CAPABILITIES[attributes[Attribute.CLASS]].split()}
    assert {name for name, permitted in stated.items() if permitted} == set(PERMITTED[role].split())


@every_role
def test_role_states_where_it_lives_and_who_may_see_it(role: Role) -> None:
    attributes = TEMPLATES[role].attributes
    assert attributes[Attribute.TOKEN] == (role in ON_TOKEN)
    assert attributes[Attribute.COPYABLE] is False
    if role is not Role.PUBLIC:
        assert attributes[Attribute.PRIVATE] is True
        assert attributes[Attribute.SENSITIVE] == (role not in READABLE)
        assert attributes[Attribute.EXTRACTABLE] == (role in EXTRACTABLE)


def test_table_has_every_role() -> None:
    assert set(TEMPLATES) == set(Role) == set(PERMITTED)
