"""Making an issuing CA: its key is born on the token, its certificate signed by itself."""

import secrets
from datetime import datetime

from appliance.domain.certificate import build_self_signed_tbs
from appliance.domain.package import KeyType
from appliance.hsm.making import complete_or_gone, generate_ca_key
from appliance.hsm.module import TokenSession

_SERIAL_BITS = 126


def make_issuing_ca(
    session: TokenSession,
    label: str,
    key_type: KeyType,
    organization: str,
    common_name: str,
    not_before: datetime,
    not_after: datetime,
) -> bytes:
    """Make key and self-signed certificate, or neither; answers the certificate (DER).

    Raises:
        ApplianceError: KEY_EXISTS, MECHANISM_MISSING, KEY_ATTRIBUTES_DIFFER, TOKEN_FAULT.
    """
    serial = secrets.randbits(_SERIAL_BITS) | 1 << _SERIAL_BITS
    with complete_or_gone(session, label):
        signer, spki = generate_ca_key(session, label, key_type)
        return signer.sign(build_self_signed_tbs(spki, serial, organization, common_name, not_before, not_after))
