"""Completing what waits: an external CA's certificate is held against the sealed key, and the package authenticated.

Only a header and a wrapped key that were sealed here are completed: their interim MAC says so (sim-package.md, "With
an external CA").
"""

import hmac
from datetime import datetime

from appliance.domain import derivation
from appliance.domain.package import Header, SimPackage, interim_mac_input, package_mac_input
from appliance.domain.submission import ExternalCa, Wanted
from appliance.errors import ApplianceError, Reason
from appliance.hsm import derive
from appliance.hsm.keys import Role
from appliance.hsm.masters import HeldKeySet
from appliance.hsm.module import TokenSession
from appliance.hsm.orders import CompletionOrder


def complete(
    session: TokenSession, order: CompletionOrder, header: Header, key_set: HeldKeySet, ca: ExternalCa, now: datetime
) -> bytes:
    """The SIM package of what waited and its certificate.

    Raises:
        ApplianceError: CERTIFICATE_REFUSED, FIELD_INVALID, SEAL_REJECTED, TOKEN_FAULT.
    """
    ca.examine(order.certificate, Wanted(header.spki_sha256, order.subject_common_name, order.latest_end), now)
    header_tlv = header.encode()
    interim = interim_mac_input(header_tlv, order.wrapped_key)
    with key_set.bind.kdf3(Role.CMAC, derivation.K_AUTH, header.iccid) as k_auth:
        if not hmac.compare_digest(derive.cmac(session, k_auth, interim), order.interim_mac):
            raise ApplianceError(
                Reason.SEAL_REJECTED,
                "The header and the wrapped key are not what this HSM has sealed.",
                hint="The operator finds out who changed the ledger; the issuer abandons the issuance and issues anew.",
            )
        mac = derive.cmac(session, k_auth, package_mac_input(header_tlv, order.wrapped_key, order.certificate))
    return SimPackage(header, order.wrapped_key, order.certificate, mac).encode()
