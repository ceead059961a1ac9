"""The one error type of the appliance and the table of every reason it can give.

An error says what is wrong (`detail`), what to do (`hint`), where (`field`, a path in the request or the settings)
and with which values (`facts`). `proto/appliance/api/v1/errors.proto` publishes the same reasons.
"""

from enum import StrEnum
from typing import NamedTuple


class Code(StrEnum):
    """Status codes of the error model, by their gRPC names."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"


class Rule(NamedTuple):
    """What a reason means on the wire; `retry_seconds` > 0 where the same call can succeed later."""

    code: Code
    meaning: str
    retry_seconds: float = 0.0


class Reason(StrEnum):
    """Why the appliance refused or failed; the members of `REASONS`."""

    FIELD_INVALID = "FIELD_INVALID"
    REQUEST_ID_INVALID = "REQUEST_ID_INVALID"
    ICCID_INVALID = "ICCID_INVALID"
    AID_INVALID = "AID_INVALID"
    KVN_INVALID = "KVN_INVALID"
    NAME_INVALID = "NAME_INVALID"
    TIME_INVALID = "TIME_INVALID"
    KEY_TYPE_INVALID = "KEY_TYPE_INVALID"
    ACTIVATION_CODE_INVALID = "ACTIVATION_CODE_INVALID"
    TLV_INVALID = "TLV_INVALID"
    SCP03_INVALID = "SCP03_INVALID"
    RECEIPT_INVALID = "RECEIPT_INVALID"
    RECEIPT_REJECTED = "RECEIPT_REJECTED"
    RESPONSE_REJECTED = "RESPONSE_REJECTED"
    SCRIPT_INCOMPLETE = "SCRIPT_INCOMPLETE"
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID"
    CERTIFICATE_REFUSED = "CERTIFICATE_REFUSED"
    CERTIFICATE_NOT_AWAITED = "CERTIFICATE_NOT_AWAITED"
    CERTIFICATE_OVERDUE = "CERTIFICATE_OVERDUE"
    SIM_ISSUER_UNKNOWN = "SIM_ISSUER_UNKNOWN"
    KEY_SET_UNKNOWN = "KEY_SET_UNKNOWN"
    KEY_SET_NOT_USABLE = "KEY_SET_NOT_USABLE"
    ISSUANCE_NOT_FOUND = "ISSUANCE_NOT_FOUND"
    ISSUANCE_NOT_READY = "ISSUANCE_NOT_READY"
    ISSUANCE_ENDED = "ISSUANCE_ENDED"
    ISSUANCE_FAILED = "ISSUANCE_FAILED"
    PERSON_HAS_LIVE_ISSUANCE = "PERSON_HAS_LIVE_ISSUANCE"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    CLIENT_IDENTITY_INVALID = "CLIENT_IDENTITY_INVALID"
    ROLE_NOT_ALLOWED = "ROLE_NOT_ALLOWED"
    DEADLINE_TOO_SHORT = "DEADLINE_TOO_SHORT"
    SIM_BUSY = "SIM_BUSY"
    VAULTS_BUSY = "VAULTS_BUSY"
    VAULTS_UNAVAILABLE = "VAULTS_UNAVAILABLE"
    NODE_BUSY = "NODE_BUSY"
    NODE_INCONSISTENT = "NODE_INCONSISTENT"
    LEDGER_UNAVAILABLE = "LEDGER_UNAVAILABLE"
    DRAINING = "DRAINING"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    TOKEN_FAULT = "TOKEN_FAULT"
    SEAL_REJECTED = "SEAL_REJECTED"
    INTERNAL = "INTERNAL"
    SETTINGS_INVALID = "SETTINGS_INVALID"
    DEMO_IN_PRODUCTION = "DEMO_IN_PRODUCTION"
    PIN_REJECTED = "PIN_REJECTED"
    TOKEN_ABSENT = "TOKEN_ABSENT"
    TOKEN_CHANGED = "TOKEN_CHANGED"
    KEY_MISSING = "KEY_MISSING"
    KEY_EXISTS = "KEY_EXISTS"
    KCV_MISMATCH = "KCV_MISMATCH"
    KEY_ATTRIBUTES_DIFFER = "KEY_ATTRIBUTES_DIFFER"
    CA_KEY_MISMATCH = "CA_KEY_MISMATCH"
    MECHANISM_MISSING = "MECHANISM_MISSING"
    LEDGER_SCHEMA_MISMATCH = "LEDGER_SCHEMA_MISMATCH"
    COMPONENT_INVALID = "COMPONENT_INVALID"
    EXPORT_INVALID = "EXPORT_INVALID"
    FILE_UNUSABLE = "FILE_UNUSABLE"


_BAD = Code.INVALID_ARGUMENT
_STATE = Code.FAILED_PRECONDITION

REASONS: dict[Reason, Rule] = {
    Reason.FIELD_INVALID: Rule(_BAD, "A field is missing, too long, or outside its permitted values."),
    Reason.REQUEST_ID_INVALID: Rule(_BAD, "request_id is not a UUID in its 36-character form."),
    Reason.ICCID_INVALID: Rule(_BAD, "The ICCID is not 19 or 20 digits ending in their Luhn check digit."),
    Reason.AID_INVALID: Rule(_BAD, "An application identifier is not 5 to 16 bytes."),
    Reason.KVN_INVALID: Rule(_BAD, "A key version number lies outside 01..7F."),
    Reason.NAME_INVALID: Rule(_BAD, "A name is empty, too long, or has characters that its form does not permit."),
    Reason.TIME_INVALID: Rule(_BAD, "A time is missing, in the past, or beyond what the profile permits."),
    Reason.KEY_TYPE_INVALID: Rule(_BAD, "The key type is unspecified, unknown, or not permitted by the profile."),
    Reason.ACTIVATION_CODE_INVALID: Rule(_BAD, "The activation code is not 8 to 16 digits or capital letters."),
    Reason.TLV_INVALID: Rule(_BAD, "A TLV is truncated, doubled, over-long, out of order, or not minimal."),
    Reason.SCP03_INVALID: Rule(_BAD, "A secure channel parameter, response or MAC is not valid."),
    Reason.RECEIPT_INVALID: Rule(_BAD, "The receipt has not the length of the issuance's key type."),
    Reason.RECEIPT_REJECTED: Rule(_BAD, "The receipt's signature or CMAC does not verify for this issuance."),
    Reason.RESPONSE_REJECTED: Rule(_BAD, "A response to a script is malformed, another session's, or does not verify."),
    Reason.SCRIPT_INCOMPLETE: Rule(_BAD, "The SIM refused a command of the script, or the script was cut off."),
    Reason.PAGE_TOKEN_INVALID: Rule(_BAD, "The page token was not made by this method."),
    Reason.CERTIFICATE_REFUSED: Rule(
        _BAD, "The certificate breaks its profile or a lint, or is another key's; it was neither made nor taken."
    ),
    Reason.CERTIFICATE_NOT_AWAITED: Rule(_STATE, "The issuance waits for no certificate, or has got another one."),
    Reason.CERTIFICATE_OVERDUE: Rule(_STATE, "The CA's certificate did not come in time; the issuance was abandoned."),
    Reason.SIM_ISSUER_UNKNOWN: Rule(Code.NOT_FOUND, "No SIM issuer of this name is declared."),
    Reason.KEY_SET_UNKNOWN: Rule(Code.NOT_FOUND, "The SIM issuer has no key set of this version number."),
    Reason.KEY_SET_NOT_USABLE: Rule(_STATE, "The key set's state does not permit sealing."),
    Reason.ISSUANCE_NOT_FOUND: Rule(Code.NOT_FOUND, "No such issuance, or none that this client may see."),
    Reason.ISSUANCE_NOT_READY: Rule(_STATE, "The issuance has no package to deliver (yet, or any more)."),
    Reason.ISSUANCE_ENDED: Rule(_STATE, "The issuance's state does not permit this move."),
    Reason.ISSUANCE_FAILED: Rule(_STATE, "The issuance ended in failure; a new request_id starts another."),
    Reason.PERSON_HAS_LIVE_ISSUANCE: Rule(Code.ALREADY_EXISTS, "The person already has a live issuance."),
    Reason.REQUEST_ID_REUSED: Rule(Code.ALREADY_EXISTS, "The request_id was used before with other content."),
    Reason.CLIENT_IDENTITY_INVALID: Rule(
        Code.UNAUTHENTICATED, "The client certificate has not exactly one URI SAN that the settings know."
    ),
    Reason.ROLE_NOT_ALLOWED: Rule(Code.PERMISSION_DENIED, "The client's role may not call this method."),
    Reason.DEADLINE_TOO_SHORT: Rule(Code.DEADLINE_EXCEEDED, "Too little time is left for this key type."),
    Reason.SIM_BUSY: Rule(Code.RESOURCE_EXHAUSTED, "The SIM has had too many attempts in a short time.", 1.0),
    Reason.VAULTS_BUSY: Rule(Code.RESOURCE_EXHAUSTED, "Every vault's queue is full; nothing was reserved.", 1.0),
    Reason.VAULTS_UNAVAILABLE: Rule(Code.UNAVAILABLE, "No vault is serving.", 2.0),
    Reason.NODE_BUSY: Rule(Code.RESOURCE_EXHAUSTED, "This node has as many calls in work as it takes.", 1.0),
    Reason.NODE_INCONSISTENT: Rule(
        Code.UNAVAILABLE, "Front and vaults disagree on time or settings; an operator must act first.", 5.0
    ),
    Reason.LEDGER_UNAVAILABLE: Rule(Code.UNAVAILABLE, "The ledger could not commit or read.", 2.0),
    Reason.DRAINING: Rule(Code.UNAVAILABLE, "This node is stopping; another one, or a later call, will answer.", 1.0),
    Reason.MESSAGE_TOO_LARGE: Rule(Code.RESOURCE_EXHAUSTED, "The message is larger than the server accepts."),
    Reason.TOKEN_FAULT: Rule(Code.UNAVAILABLE, "The HSM gave an error; the session was renewed.", 1.0),
    Reason.SEAL_REJECTED: Rule(Code.INTERNAL, "What waited for its certificate is not what the HSM has sealed."),
    Reason.INTERNAL: Rule(Code.INTERNAL, "A defect of the appliance; the log has it under the request id."),
    Reason.SETTINGS_INVALID: Rule(_STATE, "A settings file cannot be used."),
    Reason.DEMO_IN_PRODUCTION: Rule(_STATE, "Production settings name something made for demonstration."),
    Reason.PIN_REJECTED: Rule(_STATE, "The token refused the PIN; it is never tried again by itself."),
    Reason.TOKEN_ABSENT: Rule(_STATE, "The PKCS#11 module shows no token of the declared label."),
    Reason.TOKEN_CHANGED: Rule(_STATE, "The token has another serial number than declared."),
    Reason.KEY_MISSING: Rule(_STATE, "A declared key is not on the token, or is there more than once."),
    Reason.KEY_EXISTS: Rule(_STATE, "A key of this label is already on the token."),
    Reason.KCV_MISMATCH: Rule(_STATE, "A key's check value differs from the declared one."),
    Reason.KEY_ATTRIBUTES_DIFFER: Rule(_STATE, "A key's attributes differ from its template."),
    Reason.CA_KEY_MISMATCH: Rule(_STATE, "The issuing CA's key on the token is not that of its certificate."),
    Reason.MECHANISM_MISSING: Rule(_STATE, "The module lacks a mechanism, or it behaves otherwise than needed."),
    Reason.LEDGER_SCHEMA_MISMATCH: Rule(_STATE, "The ledger's schema is of another version than this program."),
    Reason.COMPONENT_INVALID: Rule(_BAD, "A key component or its check value is not valid."),
    Reason.EXPORT_INVALID: Rule(_BAD, "An export of packages is damaged, or says what cannot be."),
    Reason.FILE_UNUSABLE: Rule(_STATE, "A file or directory that a command was given cannot be read or written."),
}


class ApplianceError(Exception):
    """A refusal or failure with a reason of `REASONS`.

    Args:
        reason: which rule was broken.
        detail: one sentence that a person can act on; never a secret.
        hint: the way out, one sentence.
        field: path of the offending field in the request or settings, or "".
        facts: the values that change from case to case; they become ErrorInfo metadata.
    """

    def __init__(self, reason: Reason, detail: str, *, hint: str, field: str = "", **facts: str | int) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.hint = hint
        self.field = field
        self.facts = facts

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        return f"{self.reason}: {where}{self.detail} {self.hint}"
