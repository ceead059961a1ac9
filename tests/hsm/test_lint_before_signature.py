"""No certificate that breaks a lint is signed: what the PKCS#11 module itself was asked, seen from below the vault."""

import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from asn1crypto import x509
from pkcs11 import Mechanism

from appliance.domain.lints import LINTS
from tests.hsm.site import MODULE, PIN, Site, order, profile
from tests.shim import Shim

ISSUE = """
import pickle, sys
from datetime import UTC, datetime
from appliance.errors import ApplianceError
from appliance.hsm.engine import Engine

start, orders = pickle.load(sys.stdin.buffer)
engine = Engine.start(*start, clock=lambda: datetime.now(UTC), stamp=lambda kind: None)
for order in orders:
    try:
        engine.issue(order)
        print("issued")
    except ApplianceError as refused:
        print(refused.reason, refused.facts.get("lints"))
engine.close()
"""
"""The vault's engine in a process of its own, because a process has one module."""


@dataclass(frozen=True)
class Breaks:
    """How an order comes to break one lint: by itself, by its profile, or by the CA's certificate."""

    order: Mapping[str, Any] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)
    ca: Mapping[str, Any] = field(default_factory=dict)


BREAKS = {
    "size": Breaks(profile={"crl_url": "http://crl.example.jp/" + "x" * 2000}),
    "serial_number": Breaks(order={"certificate_serial": b"\x40"}),
    "issuer_may_sign": Breaks(ca={"key_usage": {"crl_sign"}}),
    "validity_cap": Breaks(order={"not_after": order().not_before + timedelta(days=1829)}),
    "validity_within_issuer": Breaks(
        order={"not_after": order().not_before + timedelta(days=3651)}, profile={"validity_max_days": 3660}
    ),
    "subject": Breaks(order={"subject_common_name": "Yamada Taro"}),
    "public_key": Breaks(profile={"key_types": ("RSA_2048",)}),
}
"""The builder keeps the other lints whatever it is given; tests/domain breaks every one behind the builder's back."""


def spoilt(certificate: bytes, extensions: Mapping[str, Any]) -> bytes:
    """A CA certificate with other values of these extensions."""
    whole = x509.Certificate.load(certificate)
    for extension in whole["tbs_certificate"]["extensions"]:
        if extension["extn_id"].native in extensions:
            extension["extn_value"] = x509.KeyUsage(extensions[extension["extn_id"].native])
    return bytes(whole.dump(force=True))


def issue(site: Site, shim_module: Path, shim: Shim, breaks: Mapping[str, Breaks]) -> list[str]:
    """What became of an order for each of these and of a good one, all with the P-256 CA."""
    given = {"good": Breaks(), **breaks}
    ca = site.authorities["p256-ca"]
    profiles = [
        (profile(name.replace("_", "-"), "P256-CA", **it.profile), spoilt(ca, it.ca)) for name, it in given.items()
    ]
    orders = [order(profile=name.replace("_", "-"), **it.order) for name, it in given.items()]
    start = (replace(site.module, path=str(shim_module)), [site.issuer()], profiles, PIN)
    done = subprocess.run(
        [sys.executable, "-P", "-c", ISSUE],
        input=pickle.dumps((start, orders)),
        env={**os.environ, **shim.environment(MODULE)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout.decode().splitlines()


def test_order_that_breaks_a_lint_is_refused_before_the_ca_key_signs(
    site: Site, shim_module: Path, tmp_path: Path
) -> None:
    assert set(BREAKS) <= {lint.name for lint in LINTS}
    shim = Shim(tmp_path / "shim")
    outcomes = issue(site, shim_module, shim, BREAKS)
    assert outcomes == ["issued", *(f"CERTIFICATE_REFUSED {name}" for name in BREAKS)]
    calls = shim.log()
    signed = [call for call in calls if call.function == "C_SignInit" and call.mechanism == Mechanism.ECDSA]
    made = [call for call in calls if call.function == "C_GenerateKeyPair"]
    # At the start each profile's CA key proves itself by one signature; then there is the good certificate's.
    assert len(signed) == len(outcomes) + 1
    assert len(made) >= len(outcomes)
