"""Receipt check: the signature proves the key, the CMAC in the token proves the SIM (sim-package.md, "Receipt")."""

import hmac

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.domain import derivation
from appliance.domain.package import Header
from appliance.domain.receipt import receipt_message, split_receipt, verify_signature
from appliance.errors import ApplianceError, Reason
from appliance.hsm import derive
from appliance.hsm.keys import Role
from appliance.hsm.masters import HeldKeySet
from appliance.hsm.module import TokenSession
from appliance.hsm.orders import ReceiptOrder


def verify_receipt(session: TokenSession, order: ReceiptOrder, header: Header, key_set: HeldKeySet) -> None:
    """Return only if the receipt is this SIM's for this package and certificate.

    Raises:
        ApplianceError: RECEIPT_INVALID, RECEIPT_REJECTED, FIELD_INVALID (certificate), TOKEN_FAULT.
    """
    signature, expected = split_receipt(order.receipt, header.key_type)
    message = receipt_message(header.digest(), order.certificate)
    verify_signature(_public_key(order.certificate), header.key_type, message, signature)
    with key_set.bind.kdf3(Role.CMAC, derivation.K_RCPT, header.iccid) as k_rcpt:
        found = derive.cmac(session, k_rcpt, message)
    if not hmac.compare_digest(found, expected):
        raise ApplianceError(
            Reason.RECEIPT_REJECTED,
            "The receipt's CMAC is not that of this issuance's SIM.",
            hint="Read the receipt again from the SIM that the script was for.",
            field="receipt",
        )


def _public_key(certificate: bytes) -> bytes:
    try:
        public = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise ApplianceError(
            Reason.FIELD_INVALID,
            "The certificate cannot be read.",
            hint="Send the certificate of this issuance, DER.",
            field="certificate",
        ) from None
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
