"""Everything of the demo that would be secret elsewhere, published: PINs and the components of its master keys.

Production settings refuse what is made from them: the token's label, the SIM issuer's `demo` flag, and the check
values in `domain.keyset.DEMO_KCVS`.
"""

import hashlib

from appliance.ceremony.components import Component, key_check_value

TOKEN_LABEL = "DEMO-JPKI"  # noqa: S105 - a label
SIM_ISSUER = "demo-mno"
KVN = 1
SO_PIN = "demo-security-officer"
PIN = "demo-user-pin"
PROFILE = "jpki-user-authentication"
COMPONENTS = 3


def component_values(key: str) -> list[bytes]:
    """The published components of a master key ("KM-BIND" or "KM-CHAN"): SHA-256 of a sentence each, 32 bytes."""
    return [
        hashlib.sha256(f"appliance demo {key} component {number}".encode()).digest()
        for number in range(1, COMPONENTS + 1)
    ]


def components(key: str) -> list[Component]:
    """The same as a ceremony takes them: with their check values, in buffers that it wipes."""
    return [Component(bytearray(value), key_check_value(value)) for value in component_values(key)]


def master(key: str) -> bytes:
    """The master key, as a SIM issuer's personalisation bureau holds it, 32 bytes."""
    values = (int.from_bytes(value, "big") for value in component_values(key))
    combined = 0
    for value in values:
        combined ^= value
    return combined.to_bytes(32, "big")
