"""The issuing CA at start: its key is on the token, as strict as its template, and is the certificate's."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pkcs11
import pytest
from asn1crypto.core import ObjectIdentifier
from cryptography.hazmat.primitives.asymmetric import ec
from pkcs11 import Attribute

from appliance.ceremony.authority import make_issuing_ca
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from appliance.hsm.keys import TEMPLATES, Role, Template
from tests.hsm.site import PROFILES, Site

NOW = datetime.now(UTC).replace(microsecond=0)


def refusal(site: Site, name: str, certificate: bytes) -> ApplianceError:
    """Why an engine with this one profile does not start."""
    with pytest.raises(ApplianceError) as refused, site.engine(profiles={name: certificate}):
        pass
    assert site.session_objects() == 0
    return refused.value


def make_ca(site: Site, label: str, key_type: KeyType) -> bytes:
    with site.session() as session:
        return make_issuing_ca(session, label, key_type, "TEST", "other", NOW, NOW + timedelta(days=1))


@pytest.mark.parametrize("name", ["p256-ca", "p384-ca", "rsa-ca"])
def test_ca_certificate_of_another_key_is_refused(site: Site, name: str) -> None:
    error = refusal(site, name, make_ca(site, "OTHER", PROFILES[name]))
    assert (error.reason, error.field) == (Reason.CA_KEY_MISMATCH, f"profiles.{name}.ca_label")
    assert "not the one of its CA certificate" in error.detail


def test_ca_certificate_of_another_curve_is_refused(site: Site) -> None:
    error = refusal(site, "p384-ca", make_ca(site, "OTHER", KeyType.EC_P256))
    assert (error.reason, error.field) == (Reason.CA_KEY_MISMATCH, "profiles.p384-ca.ca_label")


def test_ca_certificate_of_another_algorithm_finds_no_key(site: Site) -> None:
    error = refusal(site, "rsa-ca", make_ca(site, "OTHER", KeyType.EC_P256))
    assert (error.reason, error.field) == (Reason.KEY_MISSING, "profiles.rsa-ca.ca_label")


def test_absent_ca_key_is_named(site: Site) -> None:
    site.destroy_key("P256-CA")
    error = refusal(site, "p256-ca", site.authorities["p256-ca"])
    assert (error.reason, error.field, error.facts["label"]) == (
        Reason.KEY_MISSING,
        "profiles.p256-ca.ca_label",
        "P256-CA",
    )


@pytest.mark.parametrize(
    "weaker",
    [
        {Attribute.EXTRACTABLE: True},
        {Attribute.SENSITIVE: False},
        {Attribute.DECRYPT: True},
        {Attribute.UNWRAP: True},
        {Attribute.DERIVE: True},
        {Attribute.SIGN_RECOVER: True},
        {Attribute.COPYABLE: True},
        {Attribute.MODIFIABLE: True},
    ],
    ids=lambda weaker: next(iter(weaker)).name,
)
def test_ca_key_with_weaker_attributes_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch, weaker: dict[Attribute, Any]
) -> None:
    site.destroy_key("P256-CA")
    strict = TEMPLATES[Role.ISSUING_CA].attributes
    with monkeypatch.context() as loose:
        loose.setitem(TEMPLATES, Role.ISSUING_CA, Template({**strict, **weaker}))
        certificate = make_ca(site, "P256-CA", KeyType.EC_P256)
    error = refusal(site, "p256-ca", certificate)
    assert (error.reason, error.field) == (Reason.KEY_ATTRIBUTES_DIFFER, "profiles.p256-ca.ca_label")
    assert next(iter(weaker)).name in str(error.facts["attributes"]).split(",")


def test_ca_key_that_was_imported_is_refused(site: Site) -> None:
    """Its attributes are right; that it was not born on the token shows from their origin."""
    site.destroy_key("P256-CA")
    secret = ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value.to_bytes(32)
    with site.backstage() as session:
        session.create_object(
            {
                **TEMPLATES[Role.ISSUING_CA].attributes,
                Attribute.KEY_TYPE: pkcs11.KeyType.EC,
                Attribute.LABEL: "P256-CA",
                Attribute.EC_PARAMS: ObjectIdentifier("1.2.840.10045.3.1.7").dump(),
                Attribute.VALUE: secret,
            }
        )
    error = refusal(site, "p256-ca", site.authorities["p256-ca"])
    assert error.reason is Reason.KEY_ATTRIBUTES_DIFFER
    assert error.facts["attributes"] == "ALWAYS_SENSITIVE,LOCAL,NEVER_EXTRACTABLE"
