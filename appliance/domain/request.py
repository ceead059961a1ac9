"""Requests as values: every check of what a client sends, and the digest that tells a repeated call from another one.

`RequestedIssue` is what arrived; `validate` makes an `IssueOrder` of it or says which field breaks which rule. The
digest is taken over what arrived, not over the order: the order depends on the clock and the settings, and a repeated
call must be known again years later. It is keyed, so that a short activation code cannot be guessed from a stolen
ledger.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509

from appliance.domain.keyset import SimIssuer
from appliance.domain.package import KeyType, activation_message
from appliance.domain.profile import CertificateProfile
from appliance.domain.sim import Iccid, validate_aid, validate_kvn
from appliance.errors import ApplianceError, Reason

MIN_VALIDITY: Final = timedelta(days=1)
"""A certificate that ends sooner would be dead before the SIM has it."""
MAX_CARD_ISSUER: Final = 256
MAX_CARD_SERIAL: Final = 20
"""RFC 5280, 4.1.2.2."""

_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_REQUEST_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ISSUANCE: Final = re.compile(r"issuances/([0-9a-f]{32})")
_SIM_ISSUER: Final = re.compile(r"simIssuers/([a-z][a-z0-9-]{0,30}[a-z0-9])")
_PERSON_ID: Final = re.compile(r"[\x21-\x7E]{1,64}")


@dataclass(frozen=True)
class RequestedCard:
    """CardCertificate of issuance.proto as it arrived; `not_after` in seconds since 1970, None where it is absent."""

    issuer: str
    serial: bytes
    not_after: int | None


@dataclass(frozen=True)
class RequestedIssue:
    """IssueRequest of issuance.proto as it arrived, under the proto's names.

    Times are whole seconds since 1970; `not_after` and `card_certificate` are None where they are absent.
    """

    request_id: str
    person_id: str
    subject_common_name: str
    not_after: int | None
    card_certificate: RequestedCard | None
    sim_issuer: str
    iccid: str
    kvn: int
    applet_aid: bytes
    key_type: int
    activation_code: str = field(repr=False)


@dataclass(frozen=True)
class IssueOrder:
    """A request that broke no rule, with every default resolved.

    Args:
        not_after: aware; the wished end, capped by the card certificate and the profile.
        sim_issuer: bare name.
        kvn: of a key set that may seal.
        profile: name of the certificate profile.
    """

    request_id: str
    person_id: str
    subject_common_name: str
    not_after: datetime
    card_issuer: str
    card_serial: bytes
    card_not_after: datetime
    sim_issuer: str
    iccid: Iccid
    kvn: int
    applet_aid: bytes
    key_type: KeyType
    activation_code: str = field(repr=False)
    profile: str


def validate(
    fields: RequestedIssue,
    issuers: Mapping[str, SimIssuer],
    profile: CertificateProfile,
    now: datetime,
    *,
    ca_end: datetime | None = None,
) -> IssueOrder:
    """The order that a request makes.

    Args:
        fields: what arrived.
        issuers: the declared SIM issuers by name.
        profile: the certificate profile that serves.
        now: aware.
        ca_end: last second of the issuing CA's certificate, which no other outlives; None where an external CA decides.

    Raises:
        ApplianceError: the first broken rule, with `field` as in issuance.proto.
    """
    request_id = validate_request_id(fields.request_id)
    if not _PERSON_ID.fullmatch(fields.person_id):
        raise _invalid("person_id", "The person's identifier is not 1 to 64 visible ASCII characters.")
    if not profile.allows_common_name(fields.subject_common_name):
        raise ApplianceError(
            Reason.NAME_INVALID,
            f"The common name has not the form that profile {profile.name} wants.",
            hint=f"It matches {profile.common_name_pattern}; it carries no name, address, birth date or sex.",
            field="subject_common_name",
        )
    wished_end = _time(fields.not_after, "not_after", now)
    card_issuer, card_serial, card_end = _validate_card(fields.card_certificate, now)
    end = min(wished_end, card_end, now.replace(microsecond=0) + timedelta(days=profile.validity_max_days))
    if ca_end is not None and end > ca_end:
        raise ApplianceError(
            Reason.TIME_INVALID,
            f"The certificate would end at {end:{_TIME}}, after its CA, which ends at {ca_end:{_TIME}}.",
            hint="The operator puts a CA of longer validity into the profile; until then, ask for an earlier end.",
            field="not_after",
        )
    issuer = _find_issuer(fields.sim_issuer, issuers)
    if fields.kvn:
        validate_kvn(fields.kvn, "kvn")
    activation_message(fields.activation_code)  # the format of the code is the package's
    return IssueOrder(
        request_id=request_id,
        person_id=fields.person_id,
        subject_common_name=fields.subject_common_name,
        not_after=end,
        card_issuer=card_issuer,
        card_serial=card_serial,
        card_not_after=card_end,
        sim_issuer=issuer.name,
        iccid=Iccid.parse(fields.iccid),
        kvn=issuer.sealing_key_set(fields.kvn).kvn,
        applet_aid=validate_aid(fields.applet_aid, "applet_aid") if fields.applet_aid else issuer.applet_aid_bytes,
        key_type=_validate_key_type(fields.key_type, profile),
        activation_code=fields.activation_code,
        profile=profile.name,
    )


def validate_request_id(request_id: str) -> str:
    """`request_id`, if it is a UUID of 36 characters in lower case; else REQUEST_ID_INVALID."""
    if not _REQUEST_ID.fullmatch(request_id):
        raise ApplianceError(
            Reason.REQUEST_ID_INVALID,
            "The request_id is not a UUID.",
            hint="Send a fresh UUID with each new request, 36 characters, hexadecimal in lower case.",
            field="request_id",
        )
    return request_id


def validate_issuance_name(name: str, field: str) -> str:
    """The id of `issuances/{id}`, 32 lower-case hex digits; else NAME_INVALID for `field`."""
    if not (match := _ISSUANCE.fullmatch(name)):
        raise ApplianceError(
            Reason.NAME_INVALID,
            "This is not the name of an issuance.",
            hint="Use the name that Issue answered: issuances/ and 32 lower-case hexadecimal digits.",
            field=field,
        )
    return match[1]


def canonical(fields: RequestedIssue) -> bytes:
    """Everything that the client chose but the request_id, in bytes that differ where the content differs."""
    card = fields.card_certificate
    return _framed(
        b"Issue",
        fields.person_id.encode(),
        fields.subject_common_name.encode(),
        _optional(fields.not_after),
        *((card.issuer.encode(), card.serial, _optional(card.not_after)) if card else ()),
        fields.sim_issuer.encode(),
        fields.iccid.encode(),
        str(fields.kvn).encode(),
        fields.applet_aid,
        str(fields.key_type).encode(),
        fields.activation_code.encode(),
    )


def content_digest(fields: RequestedIssue, content_key: bytes) -> bytes:
    """32 bytes: HMAC-SHA256 of `canonical(fields)`."""
    return hmac.digest(content_key, canonical(fields), hashlib.sha256)


def call_digest(content_key: bytes, method: str, *parts: bytes) -> bytes:
    """32 bytes: HMAC-SHA256 of another call's method and the parts of its content."""
    return hmac.digest(content_key, _framed(method.encode(), *parts), hashlib.sha256)


def _validate_card(card: RequestedCard | None, now: datetime) -> tuple[str, bytes, datetime]:
    if card is None:
        raise _invalid("card_certificate", "The card certificate on which the application rests is missing.")
    if not 1 <= len(card.issuer) <= MAX_CARD_ISSUER:
        raise _invalid("card_certificate.issuer", "The card certificate's issuer is not 1 to 256 characters.")
    try:
        x509.Name.from_rfc4514_string(card.issuer)
    except ValueError as error:
        raise _invalid(
            "card_certificate.issuer", "The card certificate's issuer is no distinguished name of RFC 4514."
        ) from error
    if not 1 <= len(card.serial) <= MAX_CARD_SERIAL or card.serial[0] == 0:
        raise _invalid(
            "card_certificate.serial",
            "The card certificate's serial number is not 1 to 20 bytes, big-endian, without leading zeros.",
        )
    return card.issuer, card.serial, _time(card.not_after, "card_certificate.not_after", now)


def _find_issuer(name: str, issuers: Mapping[str, SimIssuer]) -> SimIssuer:
    if not (match := _SIM_ISSUER.fullmatch(name)):
        raise ApplianceError(
            Reason.NAME_INVALID,
            "This is not the name of a SIM issuer.",
            hint="Write simIssuers/ and the issuer's name: lower-case letters, digits, hyphens.",
            field="sim_issuer",
        )
    if match[1] not in issuers:
        raise ApplianceError(
            Reason.SIM_ISSUER_UNKNOWN,
            f"No SIM issuer {match[1]} is declared.",
            hint="Use a declared SIM issuer; an operator without SIMs of its own uses its host's.",
            field="sim_issuer",
            sim_issuer=match[1],
        )
    return issuers[match[1]]


def _validate_key_type(key_type: int, profile: CertificateProfile) -> KeyType:
    if key_type not in set(KeyType) or not profile.allows(KeyType(key_type)):
        raise ApplianceError(
            Reason.KEY_TYPE_INVALID,
            f"Key type {key_type} is none that profile {profile.name} certifies.",
            hint=f"Choose among {', '.join(profile.key_types)}.",
            field="key_type",
            key_type=key_type,
        )
    return KeyType(key_type)


def _time(seconds: int | None, field: str, now: datetime) -> datetime:
    if seconds is None:
        raise _time_invalid(field, "The time is missing.")
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise _time_invalid(field, "The time lies outside the years 1 to 9999.") from error
    if moment - now < MIN_VALIDITY:
        raise _time_invalid(field, f"{moment:{_TIME}} is not at least one day in the future.")
    return moment


def _time_invalid(field: str, detail: str) -> ApplianceError:
    return ApplianceError(
        Reason.TIME_INVALID, detail, hint="Send an end of validity at least one day from now.", field=field
    )


def _invalid(field: str, detail: str) -> ApplianceError:
    return ApplianceError(
        Reason.FIELD_INVALID, detail, hint="Correct the field; the API's description gives its limits.", field=field
    )


def _framed(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4) + part for part in parts)


def _optional(seconds: int | None) -> bytes:
    return b"" if seconds is None else str(seconds).encode()
