"""An issuance: its states, the moves between them, its attempts and what is kept of it.

The rules, which the ledger applies and its database enforces where it can:

- `TRANSITIONS` is the whole life of an issuance. What it does not list is refused, and nothing changes.
- A person has at most one live issuance of a kind (`LIVE`; 二重発行の禁止).
- Before the HSM is asked an attempt is committed, with a package counter and a certificate serial of its own. Only the
  newest attempt can complete; the values of any other are spent.
- The wrapped key is kept while the issuance is AWAITING_CERTIFICATE or READY and at no other time (sim-package.md,
  After delivery).
- What waits for an external CA's certificate waits until it is due, then it is ABANDONED.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from appliance.domain.package import MAX_COUNTER, KeyType, PendingPackage
from appliance.errors import ApplianceError, Reason

KIND = "user-authentication"
"""The certificate's kind (利用者証明用電子証明書); one live issuance of each kind for a person."""
MAX_LOST_ATTEMPTS = 3
"""Attempts whose vault died; then FAILED, so that a request that kills the module does not walk through all vaults."""
RESERVATION_IDLE = timedelta(minutes=10)
"""A RESERVED issuance without a new attempt for so long gives way to a new request for its person."""
COUNTER_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""Where the clock's share of the package counter starts; its 4 bytes last until 2162."""
COUNTER_LEAD = 60
"""No package counter is so far ahead of the clock's share, in seconds: so long after the last write to a lost ledger,
the clock alone is above all that it gave, and a restored one repeats none. Bursts of retries for a SIM are far shorter.
"""


class State(StrEnum):
    """Where an issuance stands."""

    RESERVED = "RESERVED"
    AWAITING_CERTIFICATE = "AWAITING_CERTIFICATE"
    READY = "READY"
    ACTIVE = "ACTIVE"
    ABANDONED = "ABANDONED"
    FAILED = "FAILED"


LIVE = frozenset({State.RESERVED, State.AWAITING_CERTIFICATE, State.READY, State.ACTIVE})


class Move(StrEnum):
    """What can happen to an issuance."""

    COMPLETE = "COMPLETE"
    REQUEST_CERTIFICATE = "REQUEST_CERTIFICATE"
    CERTIFY = "CERTIFY"
    EXPIRE = "EXPIRE"
    ACTIVATE = "ACTIVATE"
    ABANDON = "ABANDON"
    SUPERSEDE = "SUPERSEDE"
    FAIL = "FAIL"


TRANSITIONS: Mapping[tuple[State, Move], State] = {
    (State.RESERVED, Move.COMPLETE): State.READY,
    (State.RESERVED, Move.REQUEST_CERTIFICATE): State.AWAITING_CERTIFICATE,
    (State.RESERVED, Move.ABANDON): State.ABANDONED,
    (State.RESERVED, Move.SUPERSEDE): State.ABANDONED,
    (State.RESERVED, Move.FAIL): State.FAILED,
    (State.AWAITING_CERTIFICATE, Move.CERTIFY): State.READY,
    (State.AWAITING_CERTIFICATE, Move.ABANDON): State.ABANDONED,
    (State.AWAITING_CERTIFICATE, Move.EXPIRE): State.ABANDONED,
    (State.READY, Move.CERTIFY): State.READY,  # the same certificate submitted twice
    (State.READY, Move.ACTIVATE): State.ACTIVE,
    (State.READY, Move.ABANDON): State.ABANDONED,
    (State.ACTIVE, Move.CERTIFY): State.ACTIVE,  # the same certificate submitted twice
    (State.ACTIVE, Move.ACTIVATE): State.ACTIVE,  # a receipt reported twice
}


_WAYS_TO_READY: Mapping[State, str] = {
    State.RESERVED: "Its issuer completes it by repeating its Issue call.",
    State.AWAITING_CERTIFICATE: "Its issuer completes it with SubmitCertificate.",
}


def next_state(state: State, move: Move) -> State:
    """The state after `move`.

    Raises:
        ApplianceError: ISSUANCE_NOT_READY for a receipt before there is a package, CERTIFICATE_NOT_AWAITED for a
            certificate before there is a key, ISSUANCE_ENDED for every other move that the state does not permit.
    """
    after = TRANSITIONS.get((state, move))
    if after is not None:
        return after
    if move is Move.ACTIVATE and state in LIVE:
        raise not_ready(state)
    if move is Move.CERTIFY and state in LIVE:
        raise not_awaited(state)
    raise ApplianceError(
        Reason.ISSUANCE_ENDED,
        f"An issuance that is {state} cannot {move.lower()}.",
        hint="Look at its state; a new request starts another issuance.",
        state=state,
    )


def not_found(issuance: str) -> ApplianceError:
    """The refusal for an issuance that is not there, or that this client must not know of: word for word the same."""
    return ApplianceError(
        Reason.ISSUANCE_NOT_FOUND,
        "There is no such issuance.",
        hint="Use the name that Issue answered.",
        issuance=f"issuances/{issuance}",
    )


def not_ready(state: State) -> ApplianceError:
    """The refusal for work that needs a package when there is none, yet or any more."""
    return ApplianceError(
        Reason.ISSUANCE_NOT_READY,
        f"The issuance is {state} and has no package to deliver.",
        hint=_WAYS_TO_READY.get(state, "It is delivered or has ended; a new request starts another one."),
        state=state,
    )


def not_awaited(state: State) -> ApplianceError:
    """The refusal for a certificate that nothing waits for: there is no request for it yet, or another one came."""
    return ApplianceError(
        Reason.CERTIFICATE_NOT_AWAITED,
        f"The issuance is {state} and does not wait for this certificate.",
        hint="Repeat the Issue call of a RESERVED one; else keep the certificate that it has, and revoke this one.",
        state=state,
    )


def overdue(issuance: str) -> ApplianceError:
    """The refusal for the certificate of an issuance that has waited too long for it."""
    return ApplianceError(
        Reason.CERTIFICATE_OVERDUE,
        "The certificate did not come in time; the issuance was abandoned and its key erased.",
        hint="Have the CA revoke the certificate, and issue anew with another request_id.",
        issuance=f"issuances/{issuance}",
    )


def next_counter(last: int, now: datetime) -> int:
    """The package counter of a new attempt for one SIM: higher than `last` (0: none yet), and no lower than the clock.

    The clock makes a ledger that was restored from a backup repeat none (ARCHITECTURE.md, Reserve, attempt, act,
    record).

    Raises:
        ApplianceError: SIM_BUSY when it would be `COUNTER_LEAD` or more ahead of the clock; INTERNAL when 4 bytes do
            not hold it.
    """
    share = (now - COUNTER_EPOCH) // timedelta(seconds=1)
    counter = max(last + 1, share)
    if counter >= share + COUNTER_LEAD:
        raise ApplianceError(
            Reason.SIM_BUSY,
            "This SIM has had too many attempts in a short time.",
            hint="Send the same call again after wait_seconds; if they are many, the appliance's clock is wrong.",
            wait_seconds=counter - share - COUNTER_LEAD + 1,
        )
    if counter > MAX_COUNTER:
        raise ApplianceError(
            Reason.INTERNAL, "The package counter of this SIM is exhausted.", hint="Check the clock.", last=last
        )
    return counter


@dataclass(frozen=True, slots=True)
class Attempt:
    """One asking of the HSM, committed before it is asked; `counter` and `serial` belong to it alone."""

    issuance: str
    number: int
    counter: int
    serial: bytes
    """Certificate serial number, 16 bytes, big-endian, positive, first byte 40..7F: 126 random bits."""


@dataclass(frozen=True, slots=True)
class IssuanceRecord:
    """What the ledger knows of one issuance. Times are aware, UTC."""

    id: str
    """32 hexadecimal digits; its resource name is issuances/{id}."""
    client: str
    request_id: str
    state: State
    person_id: str
    sim_issuer: str
    iccid: str
    """Digits as requested."""
    kvn: int
    applet_aid: bytes
    key_type: KeyType
    profile: str
    subject_common_name: str
    not_after: datetime
    card_issuer: str
    card_serial: bytes
    card_not_after: datetime
    created: datetime
    updated: datetime
    """When its state last changed."""
    counter: int | None = None
    """Package counter; this and the header from AWAITING_CERTIFICATE or READY on."""
    header: bytes | None = field(default=None, repr=False)
    """E1 TLV, tag and length included."""
    certificate_serial: bytes | None = None
    """This and the next two from READY on."""
    certificate: bytes | None = field(default=None, repr=False)
    package_sha256: bytes | None = None
    package: bytes | None = field(default=None, repr=False)
    """The SIM package; only while READY."""
    certificate_request: bytes | None = field(default=None, repr=False)
    """PKCS#10, DER; this and the next two only while AWAITING_CERTIFICATE."""
    certificate_due: datetime | None = None
    """When it is abandoned unless its certificate has come."""
    pending: PendingPackage | None = field(default=None, repr=False)
    """What the certificate completes."""
    end_reason: str = ""
    """Reason of `REASONS` that ended it; only when ABANDONED or FAILED."""
    end_detail: str = ""
