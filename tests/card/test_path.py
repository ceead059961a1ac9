"""The whole path on real parts: SoftHSM, gRPC, pcscd, scriptor, OpenSC and openssl; only the SIM's chip is virtual."""

import asyncio
import re
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.apdu.scp03 import Mode, card_challenge, derive_session_keys, kdf3
from appliance.apdu.script import Channel, render
from appliance.api.v1 import delivery_pb2, issuance_pb2
from appliance.client import ApiError, IssuerClient, OperatorClient, TsmClient, connect
from appliance.demo import published
from appliance.demo.command import DEFAULT_PROFILE, ready, running
from appliance.demo.run import Applicant, DemoRun, applicants, receipt_request
from appliance.demo.setup import DemoSite
from appliance.domain.derivation import CHANNEL_ENC, CHANNEL_MAC
from appliance.domain.package import KeyType, SimPackage
from appliance.vsim import remote
from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import State
from appliance.vsim.personalisation import DEFAULT_SSD_AID
from tests.card.stack import ROOT, CardStack

PIN = "4711"
T = TypeVar("T")


@dataclass
class Appliance:
    """A running demo and a TSM and issuer before it."""

    site: DemoSite

    def call(self, work: Callable[[IssuerClient, TsmClient], Awaitable[T]]) -> T:
        """One conversation over fresh channels."""

        async def talk() -> T:
            async with (
                connect(self.site.target, *self.site.tls("issuer")) as issuer,
                connect(self.site.target, *self.site.tls("tsm")) as tsm,
            ):
                return await work(IssuerClient(issuer), TsmClient(tsm))

        return asyncio.run(talk())

    def issue(self, applicant: Applicant) -> issuance_pb2.Issuance:
        """An issuance with its package."""

        async def work(issuer: IssuerClient, tsm: TsmClient) -> issuance_pb2.Issuance:
            issued = await issuer.issue(DemoRun(self.site, issuer, tsm).request(applicant))
            return await issuer.get_issuance(
                issuance_pb2.GetIssuanceRequest(name=issued.name, view=issuance_pb2.ISSUANCE_VIEW_WITH_PACKAGE)
            )

        return self.call(work)

    def script(self, issuance: str, counter: int) -> str:
        """The delivery script as text."""
        return self.fetch(fetch_request(issuance, counter)).text

    def fetch(self, request: delivery_pb2.FetchScriptRequest) -> delivery_pb2.FetchScriptResponse:
        """The delivery script."""
        return self.call(lambda _, tsm: tsm.fetch_script(request))

    def report(self, fetched: delivery_pb2.FetchScriptRequest, **responses: list[bytes]) -> issuance_pb2.Issuance:
        """The issuance after everything was reported that the SIM answered to a script."""
        played = delivery_pb2.PlayedScript(
            request_id=fetched.request_id, sequence_counter=fetched.sequence_counter, **responses
        )
        request = delivery_pb2.ReportReceiptRequest(
            request_id=str(uuid.uuid4()), issuance=fetched.issuance, played=played
        )
        return self.call(lambda _, tsm: tsm.report_receipt(request))

    def sim(self, applicant: Applicant) -> Path:
        """State file of the applicant's SIM, fresh from its issuer."""

        async def work(issuer: IssuerClient, tsm: TsmClient) -> None:
            DemoRun(self.site, issuer, tsm).personalised_sim(applicant)

        self.call(work)
        return self.site.directory / "sims" / f"{applicant.iccid.digits}.json"


@contextmanager
def set_up(directory: Path, **channel: str) -> Iterator[Appliance]:
    """A demo that runs, its key set's channel with these parameters instead of the demo's."""
    subprocess.run(
        [
            *(sys.executable, "-m", "appliance", "demo", "set-up", str(directory)),
            *("--vaults", "1", "--profile", str(ROOT / DEFAULT_PROFILE)),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    site = DemoSite(directory)
    issuer = directory / f"sim_issuers/{published.SIM_ISSUER}.toml"
    for name, value in channel.items():
        text, changed = re.subn(rf'\b{name} = "[0-9]+"', f'{name} = "{value}"', issuer.read_text("utf-8"))
        assert changed == 1
        issuer.write_text(text, "utf-8")
    if "i" in channel:
        site.masters.write_text(site.masters.read_text("utf-8") + f"channel_i = 0x{channel['i']}\n", "utf-8")

    async def wait(process: "subprocess.Popen[bytes]") -> None:
        async with connect(site.target, *site.tls("operator")) as channel:
            await ready(OperatorClient(channel), site, process)

    with running(site) as process:
        asyncio.run(wait(process))
        yield Appliance(site)


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    with set_up(tmp_path_factory.mktemp("c") / "site") as made:
        yield made


@pytest.fixture(scope="module")
def strictest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """With S16, R-MAC and R-ENC."""
    with set_up(tmp_path_factory.mktemp("c") / "site", i="71", security_level="33") as made:
        yield made


def fetch_request(
    issuance: str,
    counter: int = 1,
    form: delivery_pb2.ScriptForm.ValueType = delivery_pb2.SCRIPT_FORM_UNSPECIFIED,
) -> delivery_pb2.FetchScriptRequest:
    return delivery_pb2.FetchScriptRequest(
        request_id=str(uuid.uuid4()), issuance=issuance, sequence_counter=counter, form=form
    )


def played(card: CardStack, folder: Path, script: str) -> list[str]:
    """Play a script with scriptor; answers what came back to each command, hex with the status word and its meaning."""
    (folder / "script.txt").write_text(script)
    done = card.run("scriptor", "script.txt")
    assert done.returncode == 0, done.stderr
    return ["".join(answer.split()) for answer in re.findall(r"^< ([^>]*)", done.stdout, re.MULTILINE)]


def receipt_in(answers: list[str], parts: int) -> bytes:
    """The joined data of the last GET DATA answers."""
    return b"".join(bytes.fromhex(answer.partition(":")[0])[:-2] for answer in answers[-parts:])


def all_normal(answers: list[str]) -> bool:
    return all("9000:" in answer for answer in answers)


def script_for(applicant: Applicant, package: bytes, counter: int) -> str:
    """A script that the SIM's own channel carries, around any package: what a TSM that holds KM-CHAN could make."""
    header = SimPackage.decode(package).header
    k_enc, k_mac = (
        kdf3(published.master("KM-CHAN"), constant, applicant.iccid.ef_coding, 128)
        for constant in (CHANNEL_ENC, CHANNEL_MAC)
    )
    host, challenge = bytes(8), card_challenge(k_enc, counter, DEFAULT_SSD_AID, Mode.S8)
    keys = derive_session_keys(k_enc, k_mac, host, challenge)
    channel = Channel(DEFAULT_SSD_AID, published.KVN, keys, host, challenge)
    return render(package, header.key_type, bytes.fromhex("D392F000260100000001"), channel).text()


def state_of(file: Path) -> State:
    return VirtualSim.load(file).state


def test_scriptor_delivers_opensc_signs_and_openssl_verifies(appliance: Appliance, tmp_path: Path) -> None:
    [applicant] = applicants({KeyType.RSA_2048: 1})
    issued = appliance.issue(applicant)
    first, third = (appliance.script(issued.name, counter) for counter in (1, 3))
    state = appliance.sim(applicant)
    with CardStack(state, tmp_path) as card:
        answers = played(card, tmp_path, first)
        assert all_normal(answers), answers
        receipt = receipt_in(answers, 3)

        # The same script again: its counter has passed, and trying it moves the SIM's counter to 2.
        refused = played(card, tmp_path, first)
        assert refused[2].startswith("6300"), refused

        # The same package under the next counter changes nothing, and its receipt can be read again.
        again = played(card, tmp_path, third)
        assert all_normal(again), again
        assert receipt_in(again, 3) == receipt

        code = applicant.activation_code.encode()
        body = bytes([len(code)]) + code + PIN.encode()
        set_pin = ["00A4040C0AD392F000260100000001", "00A4020C020018"]
        set_pin.append((b"\x00\x24\x00\x80" + bytes([len(body)]) + body).hex())
        assert all_normal(played(card, tmp_path, "\n".join(set_pin) + "\n"))

        (tmp_path / "message").write_bytes(b"to be signed by the SIM")
        signed = card.pkcs11(
            *("--login", "--pin", PIN, "--sign", "--mechanism", "SHA256-RSA-PKCS", "--id", "01"),
            *("-i", "message", "-o", "signature"),
        )
        assert signed.returncode == 0, signed.stderr
        certificate = x509.load_der_x509_certificate(issued.certificate)
        (tmp_path / "certificate.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        public = certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / "key.pem").write_bytes(public)
        verified = card.run("openssl", "dgst", "-sha256", "-verify", "key.pem", "-signature", "signature", "message")
        assert verified.stdout == "Verified OK\n", verified.stderr
        trusted = card.run("openssl", "verify", "-CAfile", str(appliance.site.ca_certificate), "certificate.pem")
        assert trusted.stdout == "certificate.pem: OK\n", trusted.stderr

    active = appliance.call(lambda _, tsm: tsm.report_receipt(receipt_request(issued.name, receipt)))
    assert active.state == issuance_pb2.ISSUANCE_STATE_ACTIVE


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.EC_P384])
def test_scriptor_delivers_ec_keys_too(appliance: Appliance, tmp_path: Path, key_type: KeyType) -> None:
    [applicant] = applicants({key_type: 1})
    issued = appliance.issue(applicant)
    with CardStack(appliance.sim(applicant), tmp_path) as card:
        answers = played(card, tmp_path, appliance.script(issued.name, 1))
        assert all_normal(answers), answers
    active = appliance.call(lambda _, tsm: tsm.report_receipt(receipt_request(issued.name, receipt_in(answers, 1))))
    assert active.state == issuance_pb2.ISSUANCE_STATE_ACTIVE


def test_scriptor_plays_a_script_of_s16_and_level_33_and_every_answer_is_verified(
    strictest: Appliance, tmp_path: Path
) -> None:
    [applicant] = applicants({KeyType.RSA_2048: 1})
    fetched = fetch_request(strictest.issue(applicant).name)
    script = strictest.fetch(fetched)
    assert script.commands[1].apdu[4] == 16, "a host challenge of S16"
    assert script.commands[2].apdu[2] == 0x33, "the security level"
    with CardStack(strictest.sim(applicant), tmp_path) as card:
        answers = played(card, tmp_path, script.text)
        assert all_normal(answers), answers
    responses = [bytes.fromhex(answer.partition(":")[0]) for answer in answers]
    install = next(at for at, command in enumerate(script.commands) if command.purpose.startswith("INSTALL"))
    assert len(responses[install]) == 16 + 16 + 2, "one encrypted block and the R-MAC"

    changed = [*responses]
    changed[install] = bytes([responses[install][0] ^ 1]) + responses[install][1:]
    with pytest.raises(ApiError) as refused:
        strictest.report(fetched, responses=changed)
    assert (refused.value.reason, refused.value.field) == ("RESPONSE_REJECTED", f"played.responses[{install}]")
    assert strictest.report(fetched, responses=responses).state == issuance_pb2.ISSUANCE_STATE_ACTIVE


def test_sim_executes_the_expanded_form_and_its_answers_are_verified(strictest: Appliance) -> None:
    forms = (delivery_pb2.SCRIPT_FORM_EXPANDED_DEFINITE, delivery_pb2.SCRIPT_FORM_EXPANDED_INDEFINITE)
    keys = {KeyType.EC_P256: 1, KeyType.EC_P384: 1}
    for applicant, form in zip(applicants(keys), forms, strict=True):
        fetched = fetch_request(strictest.issue(applicant).name, form=form)
        script = strictest.fetch(fetched)
        sim = VirtualSim.load(strictest.sim(applicant))
        answers = [remote.execute(sim, part.application_aid, part.template) for part in script.remote_scripts]
        active = strictest.report(fetched, remote_responses=answers)
        assert active.state == issuance_pb2.ISSUANCE_STATE_ACTIVE
        assert sim.state.installed is not None and sim.state.installed.certificate == active.certificate


def test_foreign_older_and_altered_packages_are_refused_and_change_nothing(
    appliance: Appliance, tmp_path: Path
) -> None:
    [applicant, other] = (
        replace(applicant, activation_code="ACTIVATE1") for applicant in applicants({KeyType.EC_P256: 9})[7:]
    )
    older = appliance.issue(applicant)
    appliance.call(
        lambda issuer, _: issuer.abandon(issuance_pb2.AbandonRequest(request_id=str(uuid.uuid4()), name=older.name))
    )
    current, foreign = appliance.issue(applicant), appliance.issue(other)
    assert older.package_counter < current.package_counter
    altered = bytearray(current.package)
    altered[altered.index(current.certificate) + len(current.certificate) - 1] ^= 1
    state = appliance.sim(applicant)
    with CardStack(state, tmp_path) as card:
        assert all_normal(played(card, tmp_path, appliance.script(current.name, 1)))
    installed, package_counter = state_of(state).installed, state_of(state).package_counter
    refused = {"for another SIM": foreign.package, "older counter": older.package, "altered": bytes(altered)}
    for counter, (what, package) in enumerate(refused.items(), 2):
        with CardStack(state, tmp_path) as card:
            answers = played(card, tmp_path, script_for(applicant, package, counter))
        assert all_normal(answers[:4]), f"{what}: the channel opens, {answers}"
        assert not all_normal(answers[4:-2]), f"{what}: the package is refused"
        assert state_of(state).installed == installed, what
        assert state_of(state).package_counter == package_counter, what
