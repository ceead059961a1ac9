"""The demo as a newcomer runs it, and what it leaves behind."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from cryptography import x509

from appliance.config import load
from appliance.demo import published
from appliance.demo.run import Applicant, applicants, write_results
from appliance.domain.keyset import DEMO_KCVS
from appliance.domain.package import KeyType, SimPackage
from appliance.errors import ApplianceError, Reason
from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import Memory, State
from appliance.vsim.personalisation import Masters

KEYS = {"kvn", "key_type", "activation_code", "iccid", "km_bind", "package", "certificate", "receipt", "script"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A demo that ran: its directory and what it printed."""
    directory = tmp_path_factory.mktemp("d") / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "demo", "run", str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return directory, done.stdout


def records(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "issuances.jsonl").read_text("utf-8").splitlines()]


def test_demo_ends_with_its_result(finished: tuple[Path, str]) -> None:
    last = finished[1].splitlines()[-1]
    assert last == "demo: 12 issued, 12 delivered, 12 signatures verified, 0 failed"


def test_demo_leaves_one_record_for_each_issuance(finished: tuple[Path, str]) -> None:
    left = records(finished[0])
    assert Counter(record["key_type"] for record in left) == {1: 4, 2: 4, 3: 4}
    for record in left:
        assert set(record) == KEYS
        assert record["km_bind"] == published.master("KM-BIND").hex()
        package = SimPackage.decode(bytes.fromhex(str(record["package"])))
        assert package.header.iccid.hex() == record["iccid"]
        assert package.header.kvn == record["kvn"]
        assert package.header.key_type == record["key_type"]
        assert package.certificate.hex() == record["certificate"]


def test_each_script_plays_into_a_fresh_sim_and_gives_the_same_package(finished: tuple[Path, str]) -> None:
    masters = Masters.load(finished[0] / "masters.toml")
    for record in records(finished[0]):
        sim = VirtualSim(Memory(State(masters.personalise(bytes.fromhex(str(record["iccid"]))))))
        script = record["script"]
        assert isinstance(script, list)
        for apdu in script:
            assert sim.transmit(bytes.fromhex(apdu))[-2:] == b"\x90\x00"
        installed = sim.state.installed
        assert installed is not None
        assert installed.certificate.hex() == record["certificate"]


def test_every_certificate_has_a_serial_of_its_own(finished: tuple[Path, str]) -> None:
    certificates = [
        x509.load_der_x509_certificate(bytes.fromhex(str(record["certificate"]))) for record in records(finished[0])
    ]
    assert len({certificate.serial_number for certificate in certificates}) == 12


def test_production_refuses_the_demo(finished: tuple[Path, str]) -> None:
    settings = finished[0] / "appliance.toml"
    text = settings.read_text("utf-8")
    assert load(settings).environment == "demo"
    settings.write_text(text.replace('environment = "demo"', 'environment = "production"'), "utf-8")
    try:
        with pytest.raises(ApplianceError) as refused:
            load(settings)
    finally:
        settings.write_text(text, "utf-8")
    assert refused.value.reason is Reason.DEMO_IN_PRODUCTION


def test_the_published_components_form_the_masters_that_production_refuses() -> None:
    from appliance.ceremony.components import combined, key_check_value

    kcvs = set()
    for key in ("KM-BIND", "KM-CHAN"):
        with combined(published.components(key)) as master:
            assert bytes(master) == published.master(key)
            kcvs.add(key_check_value(master))
    assert kcvs == DEMO_KCVS


def test_a_directory_that_is_not_a_demo_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("keep", "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "appliance", "demo", "set-up", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "was not made by the demo" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failed_applicant_makes_the_demo_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    everybody = applicants({KeyType.EC_P256: 2})
    for applicant in everybody:
        _succeed(applicant)
    assert write_results(tmp_path / "all", everybody)
    everybody[0].verified = False
    assert not write_results(tmp_path / "one", everybody)
    assert capsys.readouterr().out.splitlines() == [
        "demo: 2 issued, 2 delivered, 2 signatures verified, 0 failed",
        "demo: 2 issued, 2 delivered, 1 signatures verified, 1 failed",
    ]


def _succeed(applicant: Applicant) -> None:
    applicant.issued = applicant.delivered = applicant.verified = True
