"""What one person's calls may be answered, whatever dies meanwhile; every answer is held against it and the ledger.

The rules: a request has one answer for ever; one issuance of the person lives; an issuance goes RESERVED, READY,
ACTIVE or ABANDONED and never back; the SIM's package counters rise; and what is answered stands in the ledger.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import Message

from appliance.api.v1 import delivery_pb2, issuance_pb2
from appliance.api.v1.issuance_pb2 import (
    ISSUANCE_STATE_ABANDONED,
    ISSUANCE_STATE_ACTIVE,
    ISSUANCE_STATE_READY,
    ISSUANCE_STATE_RESERVED,
    IssueRequest,
)
from appliance.errors import Reason

PASSING: Final = frozenset(
    {
        Reason.VAULTS_UNAVAILABLE,
        Reason.VAULTS_BUSY,
        Reason.LEDGER_UNAVAILABLE,
        Reason.NODE_BUSY,
        Reason.DRAINING,
        Reason.TOKEN_FAULT,
        Reason.SIM_BUSY,
        "",  # no answer at all: the connection broke
    }
)
"""Reasons after which the same call is sent again, and which may come at any time."""


class Violation(AssertionError):  # noqa: N818 (what was found, not an error of the run)
    """An answer that no order of events explains."""


@dataclass
class Sent:
    """A call with a request_id of its own, sent once or often."""

    method: str
    message: Message
    answer: bytes | None = None
    ended: str = ""
    """The reason that it is refused with for ever."""

    @property
    def open(self) -> bool:
        """Whether nobody knows what became of it."""
        return self.answer is None and not self.ended

    @property
    def request_id(self) -> str:
        """Its own."""
        return str(self.message.request_id)  # type: ignore[attr-defined]  # every message that is Sent has one


@dataclass
class Issue(Sent):
    """An Issue call, and what is known of its issuance."""

    name: str = ""
    certificate: bytes = b""
    package_sha256: bytes = b""
    state: int = ISSUANCE_STATE_RESERVED
    scripts: list[Sent] = field(default_factory=list)
    receipt: bytes = b""

    @property
    def iccid(self) -> str:
        """Of the SIM that it is for."""
        return str(self.message.iccid)  # type: ignore[attr-defined]  # it is an IssueRequest


Stored = Callable[[str], bytes | None]
"""The answer that the ledger holds for a request_id."""


class Person:
    """The requests of one person, for one SIM after the other.

    Args:
        stored: reads the ledger.
    """

    def __init__(self, stored: Stored) -> None:
        self.issues: list[Issue] = []
        self.others: list[Sent] = []
        """Abandon and ReportReceipt calls."""
        self._stored = stored
        self._counters: dict[str, int] = {}

    @property
    def live(self) -> Issue | None:
        """The issuance that is known to live."""
        living = [i for i in self.issues if i.state in {ISSUANCE_STATE_READY, ISSUANCE_STATE_ACTIVE}]
        return living[0] if living else None

    @property
    def all(self) -> list[Sent]:
        """Every call that has an answer for ever."""
        return [*self.issues, *self.others]

    def answered(self, sent: Sent, answer: bytes) -> None:
        """An answer came.

        Raises:
            Violation
        """
        if sent.answer is not None:
            _require(answer == sent.answer, sent, "it was answered otherwise before")
        _require(not sent.ended, sent, f"it was refused for ever before: {sent.ended}")
        _require(self._stored(sent.request_id) == answer, sent, "the ledger does not hold this answer")
        if sent.answer is None:
            sent.answer = answer
            {"Issue": self._issued, "Abandon": self._abandoned, "ReportReceipt": self._active}[sent.method](sent)

    def refused(self, sent: Sent, reason: str, issuance: str) -> None:
        """A refusal came; `issuance` is the one that it names.

        Raises:
            Violation
        """
        if reason in PASSING:
            return
        if sent.ended:
            _require(reason == sent.ended, sent, f"{reason}, and before {sent.ended}")
            return
        _require(sent.answer is None, sent, f"{reason}, and it was answered before")
        if isinstance(sent, Issue):
            self._issue_refused(sent, reason, issuance)
        elif (sent.method, reason) == ("Abandon", Reason.ISSUANCE_ENDED):
            name = getattr(sent.message, "name", "")
            _require(all(i.name != name for i in self.issues if i is self.live), sent, "it lives")
            sent.ended = reason  # it had failed before it could be abandoned
        else:
            raise Violation(f"{sent.method} {sent.request_id}: {reason}")

    def script(self, issue: Issue, sent: Sent, answer: bytes) -> None:
        """FetchScript answered this.

        Raises:
            Violation
        """
        _require(issue.state == ISSUANCE_STATE_READY, sent, "there is no package any more")
        _require(sent.answer in {None, answer}, sent, "it was answered otherwise before")
        sent.answer = answer

    def seen(self, issue: Issue, issuance: issuance_pb2.Issuance) -> None:
        """GetIssuance answered this of an issuance whose state is known.

        Raises:
            Violation
        """
        _require(issuance.state == issue.state, issue, f"it is in state {issuance.state}, not {issue.state}")
        ready = issue.state == ISSUANCE_STATE_READY
        digest = hashlib.sha256(issuance.package).digest()
        _require(bool(issuance.package) == ready, issue, "a package is there while READY, and only then")
        _require(not ready or digest == issue.package_sha256, issue, "the package is not the one that was issued")

    def _issue_refused(self, issue: Issue, reason: str, issuance: str) -> None:
        live = self.live
        waiting = [i for i in self.issues if i is not issue and i.open and i.state == ISSUANCE_STATE_RESERVED]
        match reason:
            case Reason.PERSON_HAS_LIVE_ISSUANCE:
                _require(bool(live or waiting), issue, "no other issuance lives")
                _require(live is None or live.name == issuance, issue, f"{issuance} is not the one that lives")
            case Reason.ISSUANCE_FAILED:
                issue.ended = reason  # whether three vaults were lost with it, the ledger tells in the end
            case Reason.ISSUANCE_ENDED:
                _require(issue.state == ISSUANCE_STATE_ABANDONED, issue, "nobody abandoned it")
                issue.ended = reason
            case _:
                raise Violation(f"Issue {issue.request_id}: {reason}")

    def _issued(self, issue: Any) -> None:
        issuance = issuance_pb2.IssueResponse.FromString(issue.answer).issuance
        request: IssueRequest = issue.message
        _require(issuance.state == ISSUANCE_STATE_READY, issue, "it is not READY")
        same = ("request_id", "person_id", "iccid", "sim_issuer", "key_type")
        _require(all(getattr(issuance, n) == getattr(request, n) for n in same), issue, "it is not what was asked for")
        last = self._counters.get(request.iccid, 0)
        _require(issuance.package_counter > last, issue, "its counter is not above the SIM's last")
        self._counters[request.iccid] = issuance.package_counter
        if issue.state == ISSUANCE_STATE_ABANDONED:  # its first answer got lost, and it was abandoned by its name
            _require(issuance.name == issue.name, issue, "another issuance was abandoned")
            return
        _require(self.live is None, issue, "another issuance lives")
        issue.name, issue.package_sha256 = issuance.name, issuance.package_sha256
        issue.certificate = issuance.certificate
        issue.state = ISSUANCE_STATE_READY

    def _abandoned(self, sent: Sent) -> None:
        self._left(sent, issuance_pb2.AbandonResponse.FromString(sent.answer or b"").issuance, ISSUANCE_STATE_ABANDONED)

    def _active(self, sent: Sent) -> None:
        answer = delivery_pb2.ReportReceiptResponse.FromString(sent.answer or b"")
        self._left(sent, answer.issuance, ISSUANCE_STATE_ACTIVE)

    def _left(self, sent: Sent, issuance: issuance_pb2.Issuance, state: int) -> None:
        [issue] = [issue for issue in self.issues if issue.request_id == issuance.request_id]
        _require(issuance.state == state, sent, "the state is not what was asked for")
        issue.name, issue.state = issuance.name, state


def _require(holds: bool, sent: Sent, otherwise: str) -> None:
    if not holds:
        raise Violation(f"{sent.method} {sent.request_id}: {otherwise}")
