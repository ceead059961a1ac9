"""The certificate profile: what every certificate issued under it says, and what a request may choose."""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from appliance.domain.package import KeyType
from appliance.domain.setting import SettingError, check_setting_name

KEY_USAGE: Final = ("digital_signature",)
"""A user authentication key signs challenges, nothing else."""
MAX_COMMON_NAME: Final = 64
"""RFC 5280, appendix A: ub-common-name."""

_OID: Final = re.compile(r"(?!.{65})(?:[01]\.[1-3]?[0-9]|2\.(?:0|[1-9][0-9]*))(?:\.(?:0|[1-9][0-9]*))*")
"""ITU-T X.660: below the arcs 0 and 1 stand 0 to 39. Readers of certificates take no longer ones than 63 bytes."""
_ARCS: Final = range((1 << 128) - 80)
"""What readers of certificates hold in an arc; a UUID is one (X.667), and 80 is added to the second."""
_VALIDITY_DAYS: Final = range(1, 3661)
"""Ten years: twice what the law gives a certificate, to catch a slip of the pen."""
_LABEL: Final = r"(?!xn--)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_IN_PATH: Final = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%(?:2[02]|3[CE]|5[B-E]|60|7[B-D]))"
_HTTP_URL: Final = re.compile(
    rf"http://{_LABEL}(?:\.{_LABEL})*(?::(?:[1-9][0-9]{{0,3}}|[1-5][0-9]{{4}}))?(?:/{_IN_PATH}*(?:\?{_IN_PATH}+)?)?"
)
"""RFC 3986 in normal form (6.2.2), with a host name (RFC 5280, 4.2.1.6): the builder, like other programs, would make
another URL of one that is not, or fail."""
_COUNTRY: Final = re.compile(r"[A-Z]{2}")


class CaMode(StrEnum):
    """Whose key signs the certificates."""

    INTERNAL = "internal"
    """The issuing CA's key is on the token."""
    EXTERNAL = "external"
    """Another CA issues from certificate requests; its certificates are submitted."""


@dataclass(frozen=True)
class CertificateProfile:
    """A kind of certificate.

    Args:
        name: equals the name of its settings file.
        policy_oid: the one certificate policy, dotted.
        key_types: names of `KeyType` that may be certified.
        common_name_pattern: regular expression that the whole common name matches; it has at most 64 characters.
        validity_max_days: longest validity, from its first to its last second.
        crl_url, ocsp_url, ca_issuers_url: http URLs (RFC 5280, 4.2.1.13 and 4.2.2.1); an empty one is left out.
        ca_certificate: path of the issuing CA's certificate, PEM.
        ca_mode: whether the issuing CA's key is on the token.
        ca_label: CKA_LABEL of that key; none where the CA is external.
        subject_country: C of the subject.
        key_usage: digital_signature alone.
        extended_key_usage: object identifiers, dotted; none: no extension.
        policy_critical: whether the policy extension is critical.
        cps_url: URL of the certification practice statement, in the policy; an empty one is left out.

    Raises:
        SettingError: SETTINGS_INVALID.
    """

    name: str
    policy_oid: str
    key_types: tuple[str, ...]
    common_name_pattern: str
    validity_max_days: int
    crl_url: str
    ocsp_url: str
    ca_issuers_url: str
    ca_certificate: Path
    ca_mode: CaMode = CaMode.INTERNAL
    ca_label: str = ""
    subject_country: str = "JP"
    key_usage: tuple[str, ...] = KEY_USAGE
    extended_key_usage: tuple[str, ...] = ()
    policy_critical: bool = False
    cps_url: str = ""

    def __post_init__(self) -> None:
        check_setting_name(self.name)
        for field in ("policy_oid", "extended_key_usage"):
            value = getattr(self, field)
            for oid in (value,) if isinstance(value, str) else value:
                if not _OID.fullmatch(oid) or any(int(arc) not in _ARCS for arc in oid.split(".")):
                    raise SettingError(field, f"{oid!r} is no object identifier.", "Write it dotted: 1.2.392.…")
        for field in ("crl_url", "ocsp_url", "ca_issuers_url", "cps_url"):
            url = getattr(self, field)
            if url and not _HTTP_URL.fullmatch(url):
                raise SettingError(
                    field,
                    f"{url!r} is not an http URL in normal form.",
                    "CRLs, OCSP and CA certificates are fetched by plain http; write the host in small letters, and "
                    "%XX for nothing that can stand as it is.",
                )
        unknown = set(self.key_types) - set(KeyType.__members__)
        if unknown or not self.key_types:
            raise SettingError(
                "key_types",
                f"Unknown key types: {', '.join(sorted(unknown))}." if unknown else "No key type is permitted.",
                f"Choose among {', '.join(KeyType.__members__)}.",
            )
        if self.validity_max_days not in _VALIDITY_DAYS:
            raise SettingError(
                "validity_max_days", f"{self.validity_max_days} days is no plausible validity.", "Give 1 to 3,660 days."
            )
        if not _COUNTRY.fullmatch(self.subject_country):
            raise SettingError("subject_country", "The country is not two capital letters.", "Write JP.")
        if self.key_usage != KEY_USAGE:
            raise SettingError("key_usage", "Another key usage is declared.", "Only digital_signature is issued.")
        try:
            re.compile(self.common_name_pattern)
        except re.error as error:
            raise SettingError(
                "common_name_pattern", f"The pattern is no regular expression: {error}.", "Correct the pattern."
            ) from error
        if self.ca_mode is CaMode.INTERNAL and not self.ca_label:
            raise SettingError("ca_label", "The label of the issuing CA's key is empty.", "Copy it from the ceremony.")
        if self.ca_mode is CaMode.EXTERNAL and self.ca_label:
            raise SettingError(
                "ca_label", "An external CA has no key on this token.", 'Remove ca_label, or ca_mode = "external".'
            )

    def allows_common_name(self, common_name: str) -> bool:
        """Whether a subject may be called so: the whole of it matches the pattern, and X.509 has room for it."""
        return 1 <= len(common_name) <= MAX_COMMON_NAME and bool(re.fullmatch(self.common_name_pattern, common_name))

    def allows(self, key_type: KeyType) -> bool:
        """Whether keys of this type are certified."""
        return key_type.name in self.key_types
