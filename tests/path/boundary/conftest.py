"""One full run, shared by the tests of this folder: every key type delivered, and what else happens to issuances."""

import os
import secrets
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from google.protobuf.message import Message

from appliance.api.v1 import issuance_pb2 as pb
from appliance.api.v1.issuance_pb2_grpc import IssuanceServiceStub
from appliance.demo import published
from appliance.demo.setup import SOFTHSM
from appliance.vsim.card import VirtualSim
from appliance.vsim.personalisation import Masters
from tests.foreign_ca import ForeignCa
from tests.path.callers import ef_iccid, issue_request, issued, refusal
from tests.path.delivery import new_sim, play, receipt_in
from tests.path.external_ca import begin_submit, leave_certificates_to, submission
from tests.path.programs import WAIT, until
from tests.path.site import Site

from . import known
from .history import History
from .rules import Run, Sealing, header_sha256

Answer = TypeVar("Answer", bound=Message)
KEY_TYPES = (pb.KEY_TYPE_RSA_2048, pb.KEY_TYPE_EC_P256, pb.KEY_TYPE_EC_P384)


@dataclass
class FullRun:
    """A site that has been through everything and is still up, with what is known of it.

    Attributes:
        ca: the external one that certifies its keys; else the token's does.
        secrets: every key, PIN and code in it, by name.
        erased: C1 of every package that was delivered or abandoned.
        kept: C1 of a package that still waits for its delivery.
        responses: every answer of the front.
        backup: of the ledger, made at the end.
        history: what the vaults did, when nothing was in work any more.
    """

    site: Site
    pin: str
    ca: ForeignCa | None = None
    secrets: dict[str, bytes] = field(default_factory=dict)
    erased: list[bytes] = field(default_factory=list)
    kept: list[bytes] = field(default_factory=list)
    responses: list[bytes] = field(default_factory=list)
    sealings: list[Sealing] = field(default_factory=list)
    sims: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.issuer, self.tsm = self.site.caller("issuer"), self.site.caller("tsm")
        self.masters = Masters.load(self.site.demo.masters)
        self.backup = self.site.directory / "backup.db"
        for key, master in (("KM-BIND", self.masters.km_bind), ("KM-CHAN", self.masters.km_chan)):
            self.secrets[key] = master
            self.secrets |= {f"{key} {i}": value for i, value in enumerate(published.component_values(key))}
        self.secrets |= {"PIN": self.pin.encode(), "SO PIN": published.SO_PIN.encode()}

    def play_all(self) -> None:
        """Everything that happens to issuances."""
        for key_type in KEY_TYPES:
            request, issuance = self.issue(key_type)
            self.deliver(request, issuance)
            self.replace_a_vault()
        _, waiting = self.issue(pb.KEY_TYPE_EC_P256)
        self.kept.append(self.erased.pop())
        self.refuse(waiting)
        _, unwanted = self.issue(pb.KEY_TYPE_EC_P384)
        abandon = pb.AbandonRequest(request_id=str(uuid.uuid4()), name=unwanted.name)
        self.take(IssuanceServiceStub(self.issuer.channel).Abandon(abandon, timeout=WAIT))
        self.take(self.site.caller("operator").status())
        done = self.site.run("ledger", "backup", str(self.backup))
        assert done.returncode == 0, done.stderr
        self.history = History(self.site.shim.log())

    def replace_a_vault(self) -> None:
        """One ends in good order, and another takes its slot."""
        vaults = self.site.vaults
        assert vaults
        slot, pid = min(vaults.pids().items(), key=lambda vault: vault[1])
        os.kill(pid, signal.SIGTERM)
        until(lambda: vaults.pids().get(slot, pid) != pid, "another vault takes the slot")
        operator = self.site.caller("operator")
        until(lambda: len(operator.status().vaults) == 2, "both vaults serve")

    def issue(self, key_type: int) -> tuple[pb.IssueRequest, pb.Issuance]:
        """A new issuance, asked for twice, whose package is then known."""
        request = issue_request(key_type)
        self.secrets[f"activation code of {request.iccid}"] = request.activation_code.encode()
        self.sims.add(ef_iccid(request))
        answer = self.issuer.issue(request)
        assert self.issuer.issue(request) == answer
        self.responses.append(answer)
        issuance = issued(answer)
        if self.ca:
            answer = begin_submit(self.issuer, submission(self.ca, issuance)).result()
            issuance = pb.SubmitCertificateResponse.FromString(answer).issuance
            self.responses.append(answer)
        with_package = self.take(self.issuer.get(issuance.name, with_package=True))
        header, wrapped = parts(with_package.package)
        self.sealings.append(Sealing(ef_iccid(request), header_sha256(header), len(wrapped)))
        self.erased.append(wrapped)
        return request, issuance

    def deliver(self, request: pb.IssueRequest, issuance: pb.Issuance) -> None:
        """Into its SIM, whose keys are then known."""
        sim = new_sim(self.site, request)
        script = self.take(self.tsm.fetch_script(issuance.name))
        answers = play(sim, script)
        self.take(self.tsm.report_receipt(issuance.name, receipt_in(script, answers)))
        self.know(sim, known.private_key(sim), known.sim_keys(sim), known.session_keys(sim, script, answers))

    def know(self, sim: VirtualSim, *values: dict[str, bytes]) -> None:
        """Adds what belongs to a SIM."""
        for group in values:
            self.secrets |= {f"{name} of {sim.state.sim.iccid.hex()}": value for name, value in group.items()}

    def refuse(self, waiting: pb.Issuance) -> None:
        """A receipt that is not this SIM's, and a request that is not valid."""
        with pytest.raises(grpc.RpcError) as refused:
            self.tsm.report_receipt(waiting.name, bytes(80))
        assert refusal(refused.value).reason == "RECEIPT_REJECTED"
        with pytest.raises(grpc.RpcError) as refused:
            self.issuer.issue(issue_request(pb.KEY_TYPE_EC_P256, iccid="8981"))
        assert refusal(refused.value).reason == "ICCID_INVALID"

    def take(self, answer: Answer) -> Answer:
        """Remembers an answer."""
        self.responses.append(answer.SerializeToString())
        return answer

    @property
    def asked(self) -> Run:
        """What the vaults were asked for."""
        return Run(
            bind=(f"KM-BIND/{published.SIM_ISSUER}/{published.KVN:02X}", self.masters.km_bind),
            chan=(f"KM-CHAN/{published.SIM_ISSUER}/{published.KVN:02X}", self.masters.km_chan),
            sealings=tuple(self.sealings),
            sims=frozenset(self.sims),
            requesting=len(self.sealings) if self.ca else 0,
        )

    def ledger_files(self) -> list[Path]:
        """The ledger and what lies beside it."""
        return sorted(self.site.directory.glob(f"{self.site.ledger.name}*"))


def parts(package: bytes) -> tuple[bytes, bytes]:
    """E1 (the whole TLV) and C1 (its value) of a SIM package (sim-package.md, Format)."""
    assert package[:2] == b"\xe0\x82"
    length = package[5]
    assert package[4] == 0xE1 and length < 0x80
    header, rest = package[4 : 6 + length], package[6 + length :]
    assert rest[0] == 0xC1
    size = {0x81: 1, 0x82: 2}.get(rest[1], 0)
    count = int.from_bytes(rest[2 : 2 + size]) if size else rest[1]
    return header, rest[2 + size : 2 + size + count]


def change_pin(site: Site, pin: str) -> None:
    """To one that stands in no document, so that finding it means something."""
    old = ["--login", "--pin", published.PIN]
    command = ["pkcs11-tool", "--module", str(SOFTHSM), "--token-label", published.TOKEN_LABEL, *old]
    environment = {**os.environ, "SOFTHSM2_CONF": f"{site.directory}/softhsm2.conf"}
    subprocess.run([*command, "--change-pin", "--new-pin", pin], env=environment, capture_output=True, check=True)


@contextmanager
def full_run(site: Site, ca: ForeignCa | None = None) -> Iterator[FullRun]:
    """Everything, on this site, under a PIN of its own."""
    pin = secrets.token_hex(8)
    try:
        change_pin(site, pin)
        site.start_vaults(pin)
        full = FullRun(site.up(), pin, ca)
        full.play_all()
        yield full
    finally:
        site.end()


@pytest.fixture(scope="session")
def run(demo: Path, shim_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FullRun]:
    """With the issuing CA on the token."""
    directory = tmp_path_factory.mktemp("s") / "s"
    with full_run(Site(demo, directory, shim_module, count=2)) as full:
        yield full


@pytest.fixture(scope="session")
def external_run(demo: Path, shim_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FullRun]:
    """With an external one."""
    site = Site(demo, tmp_path_factory.mktemp("s") / "s", shim_module, count=2)
    ca = ForeignCa()
    leave_certificates_to(ca, site)
    with full_run(site, ca) as full:
        yield full
