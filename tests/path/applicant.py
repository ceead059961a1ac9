"""One applicant after the other, as issuer, TSM and SIM: what each does is random, and a model checks every answer."""

import random
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from appliance.api.status import ParsedError
from appliance.api.v1.delivery_pb2 import FetchScriptRequest, FetchScriptResponse, ReportReceiptRequest
from appliance.api.v1.issuance_pb2 import (
    ISSUANCE_STATE_ACTIVE,
    KEY_TYPE_EC_P256,
    KEY_TYPE_EC_P384,
    KEY_TYPE_RSA_2048,
    AbandonRequest,
    IssueRequest,
)
from appliance.vsim.card import VirtualSim

from .callers import issue_request, refusal
from .delivery import new_sim, play, receipt_in
from .model import PASSING, Issue, Person, Sent, Violation
from .programs import WAIT
from .site import Site

METHODS: Final = {
    "Issue": ("issuer", "/appliance.api.v1.IssuanceService/Issue"),
    "Abandon": ("issuer", "/appliance.api.v1.IssuanceService/Abandon"),
    "FetchScript": ("tsm", "/appliance.api.v1.DeliveryService/FetchScript"),
    "ReportReceipt": ("tsm", "/appliance.api.v1.DeliveryService/ReportReceipt"),
}
KEY_TYPES: Final = (KEY_TYPE_EC_P256,) * 6 + (KEY_TYPE_EC_P384,) * 2 + (KEY_TYPE_RSA_2048,)
PAUSE: Final = 0.1
"""Seconds before a call that was refused for the time being is sent again."""
DELIVERED: Final = "packages opened by SIMs"
STEPS: Final = range(5, 40)
"""How much is done to one person before the next one's turn."""


class Office:
    """Calls of one thread, counted."""

    def __init__(self, site: Site) -> None:
        self.counts: Counter[str] = Counter()
        self._callers = {role: site.caller(role) for role in ("issuer", "tsm")}

    def begin(self, sent: Sent) -> Any:
        """The call under way."""
        self.counts["calls"] += 1
        role, path = METHODS[sent.method]
        call = self._callers[role].channel.unary_unary(
            path, request_serializer=type(sent.message).SerializeToString, response_deserializer=bytes
        )
        return call.future(sent.message, timeout=WAIT)

    def end(self, call: Any) -> bytes | ParsedError:
        """Its answer, or its refusal; a refusal for the time being is waited for a little."""
        error = call.exception()
        if error is None:
            self.counts["answers"] += 1
            return bytes(call.result())
        said = refusal(error)
        self.counts[f"refused: {said.reason or said.code}"] += 1
        if not said.reason and said.code not in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
            raise Violation(f"{said.code} without a reason")
        if said.reason in PASSING:
            time.sleep(PAUSE)
        return said

    def get(self, name: str) -> Any:
        """The issuance with its package; None while it cannot be had."""
        self.counts["calls"] += 1
        try:
            found = self._callers["issuer"].get(name, with_package=True)
        except grpc.RpcError as error:
            if refusal(error).reason not in PASSING:
                raise
            return None
        self.counts["answers"] += 1
        return found


class Life:
    """One person's requests and SIMs."""

    def __init__(self, site: Site, office: Office, person: Person, chance: random.Random) -> None:
        self._site, self._office, self._person, self._random = site, office, person, chance
        self._id = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        self._sims: dict[str, VirtualSim] = {}
        self.steps_left = chance.choice(STEPS)

    def step(self) -> None:
        """Does one thing, whatever fits."""
        self.steps_left -= 1
        live, undone = self._person.live, [sent for sent in self._person.all if sent.open]
        others = [sent for sent in undone if sent in self._person.others]
        if others:
            self._ask(others[0])
        elif live is None and undone:
            self._choose(
                (8, lambda: self._ask(undone[0], undone[0])),
                (2, lambda: self._ask(undone[0], self._new_issue())),
                (1, self._give_up),
            )
        elif live is None:
            self._ask(self._new_issue())
        else:
            anyway = ((4, self._repeat), (2, lambda: self._ask(self._new_issue())), (2, lambda: self._look(live)))
            if live.state == ISSUANCE_STATE_ACTIVE:
                self._choose(*anyway, (2, lambda: self._report(live)))
            else:
                self._choose(
                    *anyway,
                    (2, lambda: self._reuse(live)),
                    (3, lambda: self._fetch(live)),
                    (3, lambda: self._deliver(live)),
                    (2, lambda: self._abandon(live)),
                )

    def settle(self) -> None:
        """Everything that may have begun comes to its end, and whatever has one is answered the same again."""
        while any(sent.open for sent in self._person.others):
            self._ask(*(sent for sent in self._person.others if sent.open))
        while self._person.live is None and any(sent.open for sent in self._person.all):
            self._ask(*(sent for sent in self._person.all if sent.open))
        for sent in self._person.all:
            while not sent.open and not self._ask(sent):
                pass

    def check_sims(self) -> None:
        """The SIM of an ACTIVE issuance holds what was issued, and could not be brought to take it twice."""
        live = self._person.live
        if live and live.state == ISSUANCE_STATE_ACTIVE:
            state = self._sims[live.iccid].state
            if state.installed is None or state.installed.certificate != live.certificate:
                raise Violation(f"{live.name}: the SIM holds another certificate")

    def _choose(self, *weighted: tuple[int, Callable[[], object]]) -> None:
        weights, choices = zip(*weighted, strict=True)
        self._random.choices(choices, weights)[0]()

    def _ask(self, *calls: Sent) -> bool:
        """Sends these at once; whether the last of them got what is not passing."""
        begun = [(sent, self._office.begin(sent)) for sent in calls]
        settled = False
        # Answers first: they explain what others are refused for.
        for sent, call in sorted(begun, key=lambda each: each[1].exception() is not None):
            came = self._office.end(call)
            if isinstance(came, bytes):
                self._office.counts["answers that repeat one"] += sent.answer is not None
                self._person.answered(sent, came)
            else:
                self._person.refused(sent, came.reason, came.metadata.get("issuance", ""))
            settled = isinstance(came, bytes) or came.reason not in PASSING
        return settled

    def _new_issue(self) -> Issue:
        request = issue_request(self._random.choice(KEY_TYPES), person_id=self._id)
        if self._sims and self._random.random() < 0.7:
            request.iccid = list(self._sims)[-1]
        else:
            self._sims[request.iccid] = new_sim(self._site, request)
        issue = Issue("Issue", request)
        self._person.issues.append(issue)
        return issue

    def _repeat(self) -> None:
        self._ask(self._random.choice([sent for sent in self._person.all if not sent.open]))

    def _look(self, issue: Issue) -> None:
        if (found := self._office.get(issue.name)) is not None:
            self._person.seen(issue, found)

    def _reuse(self, issue: Issue) -> None:
        """Its request_id with other content."""
        other = IssueRequest.FromString(issue.message.SerializeToString())
        other.subject_common_name = other.subject_common_name[::-1] + "X"
        came = self._office.end(self._office.begin(Sent("Issue", other)))
        if isinstance(came, bytes) or came.reason not in {*PASSING, "REQUEST_ID_REUSED"}:
            raise Violation(f"{issue.name}: its request_id was taken with other content: {came!r}")

    def _give_up(self) -> None:
        """Abandons what nobody has an answer to: a rival is told its name."""
        rival = self._new_issue()
        came = self._office.end(self._office.begin(rival))
        if isinstance(came, bytes):
            self._person.answered(rival, came)
            return
        self._person.refused(rival, came.reason, came.metadata.get("issuance", ""))
        if name := came.metadata.get("issuance", ""):
            self._send("Abandon", AbandonRequest(request_id=str(uuid.uuid4()), name=name))

    def _abandon(self, issue: Issue) -> None:
        self._send("Abandon", AbandonRequest(request_id=str(uuid.uuid4()), name=issue.name))
        if issue.scripts and issue.state != ISSUANCE_STATE_ACTIVE and self._person.live is None:
            self._play_too_late(issue)

    def _play_too_late(self, issue: Issue) -> None:
        """A TSM that has not heard of the abandonment brings the package; its receipt counts for nothing."""
        for message in self._playable(issue):
            receipt = receipt_in(message, play(self._sims[issue.iccid], message))
            sent = Sent("ReportReceipt", self._receipt(issue, receipt))
            came = self._office.end(self._office.begin(sent))
            if isinstance(came, bytes) or came.reason not in {*PASSING, "ISSUANCE_ENDED"}:
                raise Violation(f"{issue.name}: a receipt after its end: {came!r}")
            return

    def _fetch(self, issue: Issue) -> None:
        if issue.scripts and self._random.random() < 0.4:
            sent = self._random.choice(issue.scripts)
        else:
            counter = self._sims[issue.iccid].state.sequence_counter + self._random.choice((1, 1, 1, 2))
            request = FetchScriptRequest(request_id=str(uuid.uuid4()), issuance=issue.name, sequence_counter=counter)
            sent = Sent("FetchScript", request)
            issue.scripts.append(sent)
        came = self._office.end(self._office.begin(sent))
        if isinstance(came, bytes):
            self._office.counts["answers that repeat one"] += sent.answer is not None
            self._person.script(issue, sent, came)
        elif came.reason not in PASSING:
            raise Violation(f"{issue.name}: {came.reason} in answer to FetchScript")

    def _playable(self, issue: Issue) -> list[FetchScriptResponse]:
        """Scripts for the value of the SIM's sequence counter that comes next."""
        scripts = [FetchScriptResponse.FromString(sent.answer) for sent in issue.scripts if sent.answer]
        due = self._sims[issue.iccid].state.sequence_counter + 1
        return [script for script in scripts if script.sequence_counter == due]

    def _deliver(self, issue: Issue) -> None:
        playable = self._playable(issue)
        if not playable:
            return self._fetch(issue)
        sim = self._sims[issue.iccid]
        receipt = receipt_in(playable[0], play(sim, playable[0]))
        self._office.counts[DELIVERED] += 1
        issue.receipt = receipt
        before = sim.state.installed
        for command in playable[0].commands:
            sim.transmit(command.apdu)
        if sim.state.installed is not before:
            raise Violation(f"{issue.name}: the SIM took its package twice")
        return self._report(issue)

    def _report(self, issue: Issue) -> None:
        if self._random.random() < 0.3:
            wrong = Sent("ReportReceipt", self._receipt(issue, issue.receipt[::-1]))
            came = self._office.end(self._office.begin(wrong))
            if isinstance(came, bytes) or came.reason not in {*PASSING, "RECEIPT_REJECTED"}:
                raise Violation(f"{issue.name}: a wrong receipt: {came!r}")
        self._send("ReportReceipt", self._receipt(issue, issue.receipt))

    def _receipt(self, issue: Issue, receipt: bytes) -> ReportReceiptRequest:
        return ReportReceiptRequest(request_id=str(uuid.uuid4()), issuance=issue.name, receipt=receipt)

    def _send(self, method: str, message: Message) -> None:
        sent = Sent(method, message)
        self._person.others.append(sent)
        self._ask(sent)
