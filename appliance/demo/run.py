"""The demo's main job: twelve applicants, from an Issue call to a signature by each SIM, verified."""

import datetime
import json
import secrets
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from appliance.api.v1 import delivery_pb2, issuance_pb2
from appliance.client import ApiError, IssuerClient, TsmClient
from appliance.demo import published
from appliance.demo.setup import DemoSite
from appliance.domain.package import KeyType
from appliance.domain.sim import Iccid, luhn_check_digit
from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import FileMemory, State
from appliance.vsim.personalisation import Masters
from appliance.vsim.phone import PhoneApp

EACH = 4
"""Issuances of each key type."""
FIRST_SEQUENCE_COUNTER = 1
"""What a fresh SIM's INITIALIZE UPDATE counts."""
STEPS = ("issue", "fetch", "play", "receipt", "sign")
_HASHES = {KeyType.RSA_2048: hashes.SHA256(), KeyType.EC_P256: hashes.SHA256(), KeyType.EC_P384: hashes.SHA384()}
_CODE_ALPHABET = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZ"
T = TypeVar("T")


@dataclass
class Applicant:
    """One made-up person with a SIM, and what became of the issuance."""

    iccid: Iccid
    key_type: KeyType
    activation_code: str = field(repr=False)
    pin: str = field(repr=False)
    seconds: dict[str, float] = field(default_factory=dict)
    issued: bool = False
    delivered: bool = False
    verified: bool = False
    problem: str = ""
    record: dict[str, object] = field(default_factory=dict, repr=False)


def applicants(numbers: Mapping[KeyType, int]) -> list[Applicant]:
    """So many of each key type, each with a SIM of the demo's issuer (89 is telecommunications, 81 Japan)."""
    made = []
    for key_type, count in numbers.items():
        for number in range(count):
            digits = f"89819{key_type}{number:012d}"
            code = "".join(secrets.choice(_CODE_ALPHABET) for _ in range(12))
            pin = f"{secrets.randbelow(10_000):04d}"
            made.append(Applicant(Iccid.parse(digits + luhn_check_digit(digits)), key_type, code, pin))
    return made


def fetch_request(issuance: str) -> delivery_pb2.FetchScriptRequest:
    """Asks for a fresh SIM's script."""
    return delivery_pb2.FetchScriptRequest(
        request_id=str(uuid.uuid4()), issuance=issuance, sequence_counter=FIRST_SEQUENCE_COUNTER
    )


def receipt_request(issuance: str, receipt: bytes) -> delivery_pb2.ReportReceiptRequest:
    """Reports what the SIM answered."""
    return delivery_pb2.ReportReceiptRequest(request_id=str(uuid.uuid4()), issuance=issuance, receipt=receipt)


class DemoRun:
    """Plays J-LIS, the TSM, the SIM and the phone, one applicant after the other."""

    def __init__(self, site: DemoSite, issuer: IssuerClient, tsm: TsmClient) -> None:
        self._site = site
        self._issuer = issuer
        self._tsm = tsm
        self._masters = Masters.load(site.masters)
        self._ca = x509.load_pem_x509_certificate(site.ca_certificate.read_bytes())

    async def play(self, applicant: Applicant) -> None:
        """The whole path for one applicant; a failure is recorded, not raised."""
        try:
            await self._play(applicant)
        except (ApiError, InvalidSignature, ValueError) as error:
            applicant.problem = f"{type(error).__name__}: {error}"

    async def _play(self, applicant: Applicant) -> None:
        issued = await self._timed(applicant, "issue", lambda: self._issuer.issue(self.request(applicant)))
        applicant.issued = True
        package = (
            await self._issuer.get_issuance(
                issuance_pb2.GetIssuanceRequest(name=issued.name, view=issuance_pb2.ISSUANCE_VIEW_WITH_PACKAGE)
            )
        ).package
        script = await self._timed(applicant, "fetch", lambda: self._tsm.fetch_script(fetch_request(issued.name)))
        sim = self.personalised_sim(applicant)
        started = time.perf_counter()
        receipt = deliver(sim, script)
        applicant.seconds["play"] = time.perf_counter() - started
        active = await self._timed(
            applicant, "receipt", lambda: self._tsm.report_receipt(receipt_request(issued.name, receipt))
        )
        applicant.delivered = active.state == issuance_pb2.ISSUANCE_STATE_ACTIVE
        started = time.perf_counter()
        phone = PhoneApp(sim)
        phone.set_pin(applicant.activation_code.encode(), applicant.pin.encode())
        message = secrets.token_bytes(64)
        signature = phone.sign(applicant.pin.encode(), message)
        applicant.seconds["sign"] = time.perf_counter() - started
        self._verify(applicant, issued.certificate, message, signature)
        applicant.verified = True
        applicant.record = {
            "kvn": issued.kvn,
            "key_type": int(applicant.key_type),
            "activation_code": applicant.activation_code,
            "iccid": applicant.iccid.ef_coding.hex(),
            "km_bind": published.master("KM-BIND").hex(),
            "package": package.hex(),
            "certificate": issued.certificate.hex(),
            "receipt": receipt.hex(),
            "script": [command.apdu.hex() for command in script.commands],
        }

    def request(self, applicant: Applicant) -> issuance_pb2.IssueRequest:
        """A fresh request for this applicant."""
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=5 * 365)
        request = issuance_pb2.IssueRequest(
            request_id=str(uuid.uuid4()),
            person_id=f"demo-{applicant.iccid.digits}",
            subject_common_name=f"DEMO{applicant.iccid.digits}",
            sim_issuer=f"simIssuers/{published.SIM_ISSUER}",
            iccid=applicant.iccid.digits,
            key_type=issuance_pb2.KeyType.ValueType(applicant.key_type),
            activation_code=applicant.activation_code,
        )
        request.not_after.FromDatetime(end)
        request.card_certificate.issuer = "C=JP,O=DEMO ONLY,CN=Card CA"
        request.card_certificate.serial = bytes.fromhex(applicant.iccid.digits[1:])
        request.card_certificate.not_after.FromDatetime(end)
        return request

    def personalised_sim(self, applicant: Applicant) -> VirtualSim:
        """The applicant's SIM as its issuer hands it out, its memory in a file."""
        state = self._site.directory / "sims" / f"{applicant.iccid.digits}.json"
        state.parent.mkdir(exist_ok=True)
        FileMemory.create(state, State(self._masters.personalise(applicant.iccid.ef_coding), b""))
        return VirtualSim.load(state)

    def _verify(self, applicant: Applicant, certificate: bytes, message: bytes, signature: bytes) -> None:
        """The certificate is the CA's, and the signature the certificate's."""
        issued = x509.load_der_x509_certificate(certificate)
        issued.verify_directly_issued_by(self._ca)
        key, digest = issued.public_key(), _HASHES[applicant.key_type]
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, message, padding.PKCS1v15(), digest)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, ec.ECDSA(digest))
        else:
            raise ValueError(f"the certificate's key is a {type(key).__name__}")

    async def _timed(self, applicant: Applicant, step: str, call: Callable[[], Awaitable[T]]) -> T:
        started = time.perf_counter()
        try:
            return await call()
        finally:
            applicant.seconds[step] = time.perf_counter() - started


def deliver(sim: VirtualSim, script: delivery_pb2.FetchScriptResponse) -> bytes:
    """Play a script as a TSM does; answers the receipt, the joined data of its GET DATA commands.

    Raises:
        ValueError: a status word that the script does not expect.
    """
    receipt = b""
    for command in script.commands:
        response = sim.transmit(command.apdu)
        status = int.from_bytes(response[-2:], "big")
        if status not in command.expected_status_words:
            raise ValueError(f"the SIM answered {status:04X} to {command.purpose} ({sim.refusal or 'no more is said'})")
        if command.purpose.startswith("GET DATA"):
            receipt += response[:-2]
    return receipt


async def play_all(site: DemoSite, issuer: IssuerClient, tsm: TsmClient, console: Console) -> bool:
    """Play every applicant, print the table, write issuances.jsonl; answers whether everything succeeded."""
    run, everybody = DemoRun(site, issuer, tsm), applicants(dict.fromkeys(KeyType, EACH))
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    with progress:
        task = progress.add_task("issue, deliver, sign", total=len(everybody))
        for applicant in everybody:
            await run.play(applicant)
            progress.advance(task)
    console.print(_table(everybody))
    for applicant in everybody:
        if applicant.problem:
            console.print(f"[red]{applicant.iccid.digits}[/red] {applicant.problem}")
    return write_results(site.directory / "issuances.jsonl", everybody)


def _table(everybody: list[Applicant]) -> Table:
    table = Table(title="milliseconds per step", title_justify="left")
    for heading in ("ICCID", "key"):
        table.add_column(heading)
    for step in STEPS:
        table.add_column(step, justify="right")
    table.add_column("package", justify="right")
    table.add_column("result")
    for applicant in everybody:
        times = [f"{applicant.seconds[s] * 1000:.1f}" if s in applicant.seconds else "-" for s in STEPS]
        size = len(str(applicant.record.get("package", ""))) // 2
        result = "signature verified" if applicant.verified else "[red]failed[/red]"
        table.add_row(applicant.iccid.digits, applicant.key_type.name, *times, f"{size} B" if size else "-", result)
    table.add_section()
    for key_type in KeyType:
        rows = [a.seconds for a in everybody if a.key_type is key_type]
        medians = [
            f"{statistics.median(values) * 1000:.1f}" if (values := [row[s] for row in rows if s in row]) else "-"
            for s in STEPS
        ]
        table.add_row("median", key_type.name, *medians, "", "")
    return table


def write_results(path: Path, everybody: list[Applicant]) -> bool:
    """Write one JSON object for each verified issuance and print the result; answers whether nothing failed."""
    done = [applicant for applicant in everybody if applicant.verified]
    path.write_text("".join(json.dumps(applicant.record) + "\n" for applicant in done), encoding="utf-8")
    issued = sum(applicant.issued for applicant in everybody)
    delivered = sum(applicant.delivered for applicant in everybody)
    failed = sum(not (applicant.verified and applicant.delivered) for applicant in everybody)
    print(f"demo: {issued} issued, {delivered} delivered, {len(done)} signatures verified, {failed} failed")
    return failed == 0
