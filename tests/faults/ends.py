"""A call that never returns, or takes the vault with it, or fails: what callers of the front are answered in the end.

There is one vault, so that it is the next one that answers: a client hears nothing of the one that died.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from appliance.api.status import ParsedError
from appliance.api.v1.delivery_pb2 import FetchScriptRequest, FetchScriptResponse, ReportReceiptRequest
from appliance.api.v1.delivery_pb2_grpc import DeliveryServiceStub
from appliance.api.v1.issuance_pb2 import ISSUANCE_STATE_ACTIVE, KEY_TYPE_EC_P256, Issuance
from appliance.supervisor import FINAL
from appliance.vsim.card import VirtualSim
from tests.path.callers import issue_request, issued, refusal
from tests.path.delivery import assert_issued_once, new_sim, play, receipt_in
from tests.path.programs import WAIT, until
from tests.path.site import Site
from tests.shim import Call, End, Fault, Shim

from .calls import RIGHT

SETTINGS: Final[dict[str, Any]] = {"count": 1, "limits": "{ other = 4 }"}
"""Of the site: one vault, and little patience with a call that hangs."""


class Appliance:
    """A front and one vault that serve."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.issuer, self.tsm = site.up().caller("issuer"), site.caller("tsm")
        self.delivery: Any = DeliveryServiceStub(self.tsm.channel)
        self.told = ""
        """What the first call under the last fault was answered: the reason of its error, or RIGHT."""
        self._waiting: Installed | None = None
        self._counter = 1

    def under(self, fault: Fault, ask: Callable[[], Any]) -> tuple[Any, int]:
        """The answer in the end, and how many attempts it has cost."""
        vaults = self.site.vaults
        assert vaults
        self.issuer.wait_ready()
        before = vaults.pids()
        with _due(self.site.shim, fault):
            answer = _answer(ask)
        self.told = answer.reason if isinstance(answer, ParsedError) else RIGHT
        if isinstance(fault.what, End):
            assert vaults.pids() != before
            return answer, 2
        assert vaults.pids() == before
        if isinstance(answer, ParsedError) and answer.reason == "TOKEN_FAULT":
            assert answer.retry_seconds and answer.metadata["call"] and answer.metadata["error"]
            return _answer(ask), 2
        return answer, 1

    def waiting(self) -> "Installed":
        """An issuance that stays READY; its SIM has it already."""
        self._waiting = self._waiting or self.installed()
        return self._waiting

    def installed(self) -> "Installed":
        """A new issuance in its SIM, whose receipt is not reported."""
        self.issuer.wait_ready()
        request = issue_request(KEY_TYPE_EC_P256)
        issuance = issued(self.issuer.issue(request))
        sim = new_sim(self.site, request)
        script = self.fetch(FetchScriptRequest(request_id=_id(), issuance=issuance.name, sequence_counter=1))
        return Installed(issuance, sim, receipt_in(script, play(sim, script)))

    def resources(self) -> dict[str, int]:
        """What may not grow: descriptors of supervisor and front, and files of the token."""
        site = self.site
        assert site.vaults and site.front
        pids = {"supervisor": site.vaults.process.pid, "front": site.front.process.pid}
        descriptors = {name: len(list(Path(f"/proc/{pid}/fd").iterdir())) for name, pid in pids.items()}
        return {**descriptors, "token": len(list((site.directory / "token").rglob("*")))}

    def assert_nothing_has_grown(self, before: Mapping[str, int]) -> None:
        """Soon none is more than it was; what a process closes late is waited for."""

        def grown() -> dict[str, int]:
            return {name: number for name, number in self.resources().items() if number > before[name]}

        with suppress(AssertionError):
            until(lambda: not grown(), "nothing has grown")
        assert not grown(), f"{grown()}, where there were {before}"

    def next_counter(self) -> int:
        """A sequence counter for a script that is not played."""
        self._counter += 1
        return self._counter

    def fetch(self, request: FetchScriptRequest) -> FetchScriptResponse:
        """The script."""
        answer = self.delivery.FetchScript(request, timeout=WAIT)
        assert isinstance(answer, FetchScriptResponse)
        return answer

    def report(self, request: ReportReceiptRequest) -> Issuance:
        """The issuance after its receipt."""
        answer = self.delivery.ReportReceipt(request, timeout=WAIT).issuance
        assert isinstance(answer, Issuance)
        return answer


@dataclass(frozen=True)
class Installed:
    """An issuance in its SIM."""

    issuance: Issuance
    sim: VirtualSim
    receipt: bytes


@contextmanager
def _due(shim: Shim, fault: Fault) -> Iterator[None]:
    """Within it some process comes to this fault."""
    shim.arm(fault)
    try:
        yield
        assert not shim.armed, "the call did not come"
    finally:
        shim.disarm()


def _id() -> str:
    return str(uuid.uuid4())


def _answer(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except grpc.RpcError as error:
        return refusal(error)


def _issue(appliance: Appliance, fault: Fault) -> None:
    request = issue_request(KEY_TYPE_EC_P256)
    answer, attempts = appliance.under(fault, lambda: appliance.issuer.issue(request))
    assert isinstance(answer, bytes), answer
    assert_issued_once(appliance.site, appliance.issuer, request, answer, attempts=attempts)


def _fetch(appliance: Appliance, fault: Fault) -> None:
    name, counter = appliance.waiting().issuance.name, appliance.next_counter()
    request = FetchScriptRequest(request_id=_id(), issuance=name, sequence_counter=counter)
    answer, _ = appliance.under(fault, lambda: appliance.fetch(request))
    assert answer == appliance.fetch(request), "the same call again gets the same script"


def _report(appliance: Appliance, fault: Fault) -> None:
    installed = appliance.installed()
    request = ReportReceiptRequest(request_id=_id(), issuance=installed.issuance.name, receipt=installed.receipt)
    answer, _ = appliance.under(fault, lambda: appliance.report(request))
    assert isinstance(answer, Issuance), answer
    assert answer.state == ISSUANCE_STATE_ACTIVE
    assert answer == appliance.report(request), "the same call again gets the same answer"


def _report_false(appliance: Appliance, fault: Fault) -> None:
    """The signature is right, so only the token can tell."""
    installed = appliance.waiting()
    false = bytes((*installed.receipt[:-1], installed.receipt[-1] ^ 1))
    request = ReportReceiptRequest(request_id=_id(), issuance=installed.issuance.name, receipt=false)
    answer, _ = appliance.under(fault, lambda: appliance.report(request))
    assert isinstance(answer, ParsedError), "a false receipt was taken"
    assert answer.reason == "RECEIPT_REJECTED"


CALLS: Final[dict[str, Callable[[Appliance, Fault], None]]] = {
    "issue P-256": _issue,
    "session keys": _fetch,
    "receipt": _report,
    "false receipt": _report_false,
}
"""Public calls by the vault's work in them; each is made while a fault is due, and its answer looked at."""

WORK: Final[dict[str, Callable[[Appliance], object]]] = {
    "issue P-256": lambda appliance: appliance.issuer.issue(issue_request(KEY_TYPE_EC_P256)),
    "session keys": lambda appliance: appliance.fetch(
        FetchScriptRequest(
            request_id=_id(), issuance=appliance.waiting().issuance.name, sequence_counter=appliance.next_counter()
        )
    ),
}


def calls_of(appliance: Appliance, name: str) -> int:
    """How many calls the work makes when nothing fails; a false receipt makes as many as a true one."""
    installed = appliance.installed()
    appliance.waiting()
    appliance.site.shim.clear_log()
    if work := WORK.get(name):
        work(appliance)
    else:
        appliance.report(
            ReportReceiptRequest(request_id=_id(), issuance=installed.issuance.name, receipt=installed.receipt)
        )
    return len(appliance.site.shim.log())


def start_calls(site: Site) -> Sequence[Call]:
    """The calls of a vault that starts; not those of one that did not get ready on a busy machine."""
    site.shim.clear_log()
    vaults = site.start_vaults()
    vaults.next("vault ready")
    calls = site.shim.log()
    vaults.end()
    return [call for call in calls if call.pid == calls[-1].pid]


class Started:
    """How the vaults have come up, or not, although a call of the first one went wrong.

    Attributes:
        final: no vault is started any more.
        again: the first vault was not the one that serves.
        logins: how many PIN tries that has cost.
    """

    def __init__(self, site: Site, fault: Fault) -> None:
        site.shim.clear_log()
        with _due(site.shim, fault):
            vaults = site.start_vaults()
            until(lambda: bool(vaults.ready()) or not vaults.running, "the vaults are up, or given up")
        self.final = not vaults.running
        answers = [call.rv for call in site.shim.log() if call.function == "C_Login"]
        assert not any(answer != 0 for answer in answers[:-1]), "a login was tried again that had not succeeded"
        self.logins = len(answers)
        events = [event["event"] for event in vaults.events()]
        self.again = events.count("vault started") > 1
        assert not (self.final and self.again)
        assert not self.final or vaults.wait() == FINAL
        vaults.end()


def end_is_final(calls: Sequence[Call], fault: Fault) -> bool:
    """The supervisor's rule: before the first vault serves, an end that may have spent a PIN try is not repeated.

    What a vault says of an error, and the kind of call that it hung in, tells that it has spent none: unless that was
    the login.
    """
    at_login = calls[fault.which.n - 1].function in {"C_OpenSession", "C_Login"}
    return at_login if fault.what is End.HANG or not isinstance(fault.what, End) else True
