"""Sealing: a key pair is born, certified, wrapped for one SIM and destroyed (sim-package.md, "Sealing")."""

import hashlib
from dataclasses import replace
from datetime import datetime, timedelta

from pkcs11 import Mechanism

from appliance.domain import derivation
from appliance.domain.package import (
    ACTIVATION_CHECK_LENGTH,
    SPKI_DIGEST_LENGTH,
    Header,
    SimPackage,
    activation_message,
    package_mac_input,
)
from appliance.errors import ApplianceError, Reason
from appliance.hsm import derive, pairs
from appliance.hsm.authority import Authority
from appliance.hsm.keys import Role
from appliance.hsm.masters import HeldKeySet, Master
from appliance.hsm.module import TokenSession
from appliance.hsm.orders import SealOrder

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
    activation = activation_message(order.activation_code)
    outline = _outline(order)
    bind = key_set.bind
    with pairs.generated(session, order.key_type) as (private, spki):
        certificate = authority.issue(
            spki,
            int.from_bytes(order.certificate_serial, "big"),
            order.subject_common_name,
            order.not_before,
            order.not_after,
        )
        with bind.kdf3(Role.CMAC, derivation.K_AUTH, order.iccid) as k_auth:
            header = replace(
                outline,
                spki_sha256=hashlib.sha256(spki).digest(),
                activation_check=derive.cmac(session, k_auth, activation)[:ACTIVATION_CHECK_LENGTH],
            )
            wrapped = _wrap(session, bind, header, private, wrap_mechanism)
            mac = derive.cmac(session, k_auth, package_mac_input(header.encode(), wrapped, certificate))
    return SimPackage(header, wrapped, certificate, mac).encode()


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
    """The header as far as the order says it, which checks the order's fields."""
    return Header(
        iccid=order.iccid,
        applet_aid=order.applet_aid,
        kvn=order.kvn,
        counter=order.package_counter,
        key_type=order.key_type,
        spki_sha256=bytes(SPKI_DIGEST_LENGTH),
        activation_check=bytes(ACTIVATION_CHECK_LENGTH),
    )


def _wrap(session: TokenSession, bind: Master, header: Header, private: object, mechanism: Mechanism) -> bytes:
    """C1 = KWP(K_PKG, private key), with K_PKG = AES-256-CBC(K_SIM, IV 0, H)."""
    parameter = (derive.ZERO_BLOCK, header.digest())
    with (
        bind.kdf3(Role.WRAP_DERIVER, derivation.K_SIM, header.iccid) as k_sim,
        derive.derived(session, k_sim, Role.WRAP, Mechanism.AES_CBC_ENCRYPT_DATA, parameter, 256) as k_pkg,
    ):
        return bytes(session.call("wrap", k_pkg.wrap_key, private, mechanism=mechanism))
