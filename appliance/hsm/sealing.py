"""Sealing: a key pair is born, certified, wrapped for one SIM and destroyed (sim-package.md, "Sealing")."""

import hashlib
from datetime import datetime, timedelta

from pkcs11 import Mechanism

from appliance.domain import derivation
from appliance.domain.package import (
    ACTIVATION_CHECK_LENGTH,
    Header,
    SimPackage,
    activation_message,
    package_mac_input,
)
from appliance.domain.sim import Iccid
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
        ApplianceError: TIME_INVALID, CERTIFICATE_REFUSED, ACTIVATION_CODE_INVALID, TOKEN_FAULT, …;
            whatever was made is destroyed.
    """
    if abs(order.not_before - now) > CLOCK_TOLERANCE:
        raise ApplianceError(
            Reason.TIME_INVALID,
            f"Validity would start at {order.not_before:%FT%TZ}, but the vault's clock says {now:%FT%TZ}.",
            hint="Bring the clocks of front and vault together.",
            field="not_before_seconds",
        )
    Iccid.from_ef_coding(order.iccid)
    activation = activation_message(order.activation_code)
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
            header = Header(
                iccid=order.iccid,
                applet_aid=order.applet_aid,
                kvn=order.kvn,
                counter=order.package_counter,
                key_type=order.key_type,
                spki_sha256=hashlib.sha256(spki).digest(),
                activation_check=derive.cmac(session, k_auth, activation)[:ACTIVATION_CHECK_LENGTH],
            )
            wrapped = _wrap(session, bind, order.iccid, header, private, wrap_mechanism)
            mac = derive.cmac(session, k_auth, package_mac_input(header.encode(), wrapped, certificate))
    return SimPackage(header, wrapped, certificate, mac).encode()


def _wrap(
    session: TokenSession, bind: Master, iccid: bytes, header: Header, private: object, mechanism: Mechanism
) -> bytes:
    """C1 = KWP(K_PKG, private key), with K_PKG = AES-256-CBC(K_SIM, IV 0, H)."""
    parameter = (derive.ZERO_BLOCK, header.digest())
    with (
        bind.kdf3(Role.WRAP_DERIVER, derivation.K_SIM, iccid) as k_sim,
        derive.derived(session, k_sim, Role.WRAP, Mechanism.AES_CBC_ENCRYPT_DATA, parameter, 256) as k_pkg,
    ):
        return bytes(session.call("wrap", k_pkg.wrap_key, private, mechanism=mechanism))
