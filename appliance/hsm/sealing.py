"""Sealing: a key pair is born, certified, wrapped for one SIM and destroyed (sim-package.md, "Sealing").

With an external CA a certificate request takes the certificate's place, and an interim MAC the package's
(`completion` does the rest); the private key's way is the same.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from pkcs11 import Mechanism

from appliance.domain import certificate_request, derivation
from appliance.domain.certificate import signature_scheme
from appliance.domain.package import (
    ACTIVATION_CHECK_LENGTH,
    SPKI_DIGEST_LENGTH,
    Header,
    PendingPackage,
    SimPackage,
    activation_message,
    interim_mac_input,
    package_mac_input,
)
from appliance.domain.profile import CertificateProfile
from appliance.errors import ApplianceError, Reason
from appliance.hsm import derive, pairs
from appliance.hsm.authority import Authority
from appliance.hsm.keys import Role
from appliance.hsm.masters import HeldKeySet, Master
from appliance.hsm.module import TokenSession
from appliance.hsm.orders import SealOrder
from appliance.hsm.signing import sign

CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far a caller's start of validity may lie from the vault's own clock."""


def seal(
    session: TokenSession,
    order: SealOrder,
    key_set: HeldKeySet,
    authority: Authority,
    wrap_mechanism: Mechanism,
    now: datetime,
) -> bytes:
    """Make one key pair and answer its SIM package.

    Raises:
        ApplianceError: NODE_INCONSISTENT, TIME_INVALID, ICCID_INVALID, AID_INVALID, KVN_INVALID, FIELD_INVALID,
            ACTIVATION_CODE_INVALID before anything is made; CERTIFICATE_REFUSED, TOKEN_FAULT: whatever was made is
            destroyed.
    """
    _check_validity(order, now)
    outline = _outline(order)
    with pairs.generated(session, order.key_type) as (private, spki):
        certificate = authority.issue(
            spki,
            int.from_bytes(order.certificate_serial, "big"),
            order.subject_common_name,
            order.not_before,
            order.not_after,
        )
        with _wrapped(session, order, outline, key_set.bind, private, spki, wrap_mechanism) as sealed:
            covered = package_mac_input(sealed.header.encode(), sealed.wrapped, certificate)
            mac = derive.cmac(session, sealed.k_auth, covered)
    return SimPackage(sealed.header, sealed.wrapped, certificate, mac).encode()


def seal_pending(
    session: TokenSession,
    order: SealOrder,
    key_set: HeldKeySet,
    profile: CertificateProfile,
    wrap_mechanism: Mechanism,
) -> PendingPackage:
    """Make one key pair, have it sign its certificate request, and answer what waits for the certificate.

    Raises:
        ApplianceError: CERTIFICATE_REFUSED where the profile permits no such certificate, and as `seal`.
    """
    certificate_request.require_permitted(profile, order.key_type, order.subject_common_name)
    outline = _outline(order)
    with pairs.generated(session, order.key_type, Role.REQUESTING_SUBSCRIBER) as (private, spki):
        info = certificate_request.build_request_info(profile, spki, order.subject_common_name)
        signature = sign(session, private, signature_scheme(spki), info)
        request = certificate_request.assemble_request(info, signature)
        with _wrapped(session, order, outline, key_set.bind, private, spki, wrap_mechanism) as sealed:
            covered = interim_mac_input(sealed.header.encode(), sealed.wrapped)
            mac = derive.cmac(session, sealed.k_auth, covered)
    return PendingPackage(sealed.header, sealed.wrapped, request, mac)


def _check_validity(order: SealOrder, now: datetime) -> None:
    if abs(order.not_before - now) > CLOCK_TOLERANCE:
        raise ApplianceError(
            Reason.NODE_INCONSISTENT,
            f"Validity would start at {order.not_before:%FT%TZ}, but the vault's clock says {now:%FT%TZ}.",
            hint="The operator brings the clocks of front and vault together; then the same call completes.",
        )
    if order.not_after <= order.not_before:
        raise ApplianceError(
            Reason.TIME_INVALID,
            f"Validity would end at {order.not_after:%FT%TZ}, before it starts.",
            hint="Send an end of validity in the future.",
            field="not_after_seconds",
        )


def _outline(order: SealOrder) -> Header:
    """The header as far as the order says it, which checks the order's fields, its activation code among them."""
    activation_message(order.activation_code)
    return Header(
        iccid=order.iccid,
        applet_aid=order.applet_aid,
        kvn=order.kvn,
        counter=order.package_counter,
        key_type=order.key_type,
        spki_sha256=bytes(SPKI_DIGEST_LENGTH),
        activation_check=bytes(ACTIVATION_CHECK_LENGTH),
    )


class _Sealed(NamedTuple):
    """K_AUTH, for as long as the context lasts, header, and C1 = KWP(K_PKG, private key)."""

    k_auth: Any
    header: Header
    wrapped: bytes


@contextmanager
def _wrapped(
    session: TokenSession,
    order: SealOrder,
    outline: Header,
    bind: Master,
    private: Any,
    spki: bytes,
    mechanism: Mechanism,
) -> Iterator[_Sealed]:
    """Finish the header and wrap the private key under it."""
    with bind.kdf3(Role.CMAC, derivation.K_AUTH, order.iccid) as k_auth:
        activation = derive.cmac(session, k_auth, activation_message(order.activation_code))
        header = replace(
            outline,
            spki_sha256=hashlib.sha256(spki).digest(),
            activation_check=activation[:ACTIVATION_CHECK_LENGTH],
        )
        yield _Sealed(k_auth, header, _wrap(session, bind, header, private, mechanism))


def _wrap(session: TokenSession, bind: Master, header: Header, private: Any, mechanism: Mechanism) -> bytes:
    """C1, with K_PKG = AES-256-CBC(K_SIM, IV 0, H)."""
    parameter = (derive.ZERO_BLOCK, header.digest())
    with (
        bind.kdf3(Role.WRAP_DERIVER, derivation.K_SIM, header.iccid) as k_sim,
        derive.derived(session, k_sim, Role.WRAP, Mechanism.AES_CBC_ENCRYPT_DATA, parameter, 256) as k_pkg,
    ):
        return session.wrap(k_pkg, private, mechanism)
