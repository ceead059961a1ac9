"""The certificate profile."""

from dataclasses import replace
from pathlib import Path

import pytest

from appliance.domain.package import KeyType
from appliance.domain.profile import CaMode, CertificateProfile
from appliance.errors import ApplianceError, Reason

PROFILE = CertificateProfile(
    name="user-authentication",
    policy_oid="1.2.392.200149.8.5.1.3.30",
    key_types=("RSA_2048", "EC_P256"),
    common_name_pattern="[0-9A-Z]{10,32}",
    validity_max_days=1828,
    crl_url="http://crl.example.jp/a.crl",
    ocsp_url="",
    ca_issuers_url="",
    ca_label="CA",
    ca_certificate=Path("ca.pem"),
)


def test_a_profile_allows_only_the_key_types_it_names() -> None:
    assert [key_type for key_type in KeyType if PROFILE.allows(key_type)] == [KeyType.RSA_2048, KeyType.EC_P256]


def test_the_common_name_matches_in_full() -> None:
    assert PROFILE.allows_common_name("997794E9AGCIEG13221003A")
    assert not PROFILE.allows_common_name("997794E9AGCIEG13221003A\n")
    assert not PROFILE.allows_common_name("997794E9")


@pytest.mark.parametrize("oid", ["1.2", "0.39.0", f"2.25.{(1 << 128) - 81}", f"2.{(1 << 128) - 81}"])
def test_an_object_identifier_that_certificates_can_have_is_accepted(oid: str) -> None:
    assert replace(PROFILE, policy_oid=oid, extended_key_usage=(oid,)).policy_oid == oid


def test_a_common_name_is_no_longer_and_no_shorter_than_x509_permits() -> None:
    lax = replace(PROFILE, common_name_pattern="9*")
    assert [lax.allows_common_name("9" * length) for length in (0, 1, 64, 65)] == [False, True, True, False]


@pytest.mark.parametrize(
    "url",
    [
        "http://crl.example.jp",
        "http://crl-2.example.jp:8080/",
        "http://10.0.0.1/a?b=c&d=%20e",
        "http://a/~B;c%5B1%5D",
    ],
)
def test_an_http_url_in_normal_form_is_accepted(url: str) -> None:
    assert replace(PROFILE, crl_url=url).crl_url == url


def test_an_external_ca_needs_no_label() -> None:
    assert replace(PROFILE, ca_mode=CaMode.EXTERNAL, ca_label="").ca_mode is CaMode.EXTERNAL


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("name", {"name": "User"}),
        ("policy_oid", {"policy_oid": "1.2.392."}),
        ("policy_oid", {"policy_oid": "3.1"}),
        ("policy_oid", {"policy_oid": "1.40"}),
        ("policy_oid", {"policy_oid": "1.2" + ".1" * 31}),
        ("policy_oid", {"policy_oid": f"2.25.{1 << 128}"}),
        ("extended_key_usage", {"extended_key_usage": ("clientAuth",)}),
        ("crl_url", {"crl_url": "https://crl.example.jp/a.crl"}),
        ("ocsp_url", {"ocsp_url": "http://"}),
        ("ca_issuers_url", {"ca_issuers_url": "http://ca.example.jp/a b"}),
        ("crl_url", {"crl_url": "http:///a.crl"}),
        ("crl_url", {"crl_url": "http://["}),
        ("crl_url", {"crl_url": "http://crl..example.jp/"}),
        ("crl_url", {"crl_url": f"http://{'a' * 64}.jp/"}),
        ("crl_url", {"crl_url": "http://crl.example.jp:port/"}),
        ("crl_url", {"crl_url": "http://CRL.example.jp/"}),
        ("crl_url", {"crl_url": "http://xn--wgv71a119e.jp/"}),
        ("crl_url", {"crl_url": "http://crl.example.jp/%zz"}),
        ("crl_url", {"crl_url": "http://crl.example.jp/%41"}),
        ("crl_url", {"crl_url": "http://crl.example.jp/%e3%81%82"}),
        ("crl_url", {"crl_url": "http://crl.example.jp/a?"}),
        ("cps_url", {"cps_url": "ftp://example.jp"}),
        ("key_types", {"key_types": ()}),
        ("key_types", {"key_types": ("RSA_1024",)}),
        ("validity_max_days", {"validity_max_days": 0}),
        ("validity_max_days", {"validity_max_days": 10_000}),
        ("subject_country", {"subject_country": "Japan"}),
        ("key_usage", {"key_usage": ("digital_signature", "key_encipherment")}),
        ("key_usage", {"key_usage": ()}),
        ("common_name_pattern", {"common_name_pattern": "[0-9"}),
        ("ca_label", {"ca_label": ""}),
        ("ca_label", {"ca_mode": CaMode.EXTERNAL}),
    ],
)
def test_a_profile_that_could_not_be_kept_is_refused(field: str, changes: dict[str, object]) -> None:
    with pytest.raises(ApplianceError) as refused:
        replace(PROFILE, **changes)  # type: ignore[arg-type]  # wrong values are the point
    assert (refused.value.reason, refused.value.field) == (Reason.SETTINGS_INVALID, field)
