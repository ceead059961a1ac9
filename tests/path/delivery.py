"""What must hold of an issuance, however it came about, and its delivery into a SIM."""

from cryptography import x509

from appliance.api.v1 import delivery_pb2, issuance_pb2
from appliance.domain.package import SimPackage
from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import Memory, State
from appliance.vsim.personalisation import Masters

from .callers import Caller, ef_iccid, issued
from .site import Site


def assert_issued_once(
    site: Site, issuer: Caller, request: issuance_pb2.IssueRequest, answer: bytes, *, attempts: int
) -> issuance_pb2.Issuance:
    """The answer is the newest attempt's, it is the person's only live issuance, and nothing was used twice."""
    issuance = issued(answer)
    assert issuance.state == issuance_pb2.ISSUANCE_STATE_READY
    assert issuer.issue(request) == answer, "the same call again gets the same bytes"

    live = "SELECT id FROM issuances WHERE person_id = ? AND state IN ('RESERVED', 'READY', 'ACTIVE')"
    assert [f"issuances/{row[0]}" for row in site.query(live, request.person_id)] == [issuance.name]

    of_issuance = "SELECT number, counter, serial FROM attempts WHERE issuance = ? ORDER BY number"
    opened = site.query(of_issuance, issuance.name.removeprefix("issuances/"))
    numbers, counters, serials = zip(*opened, strict=True)
    assert list(numbers) == list(range(1, attempts + 1))
    assert sorted(set(counters)) == list(counters), "each counter is higher than the last"
    [(all_attempts, all_serials)] = site.query("SELECT count(*), count(DISTINCT serial) FROM attempts")
    assert all_attempts == all_serials

    assert issuance.certificate_serial == serials[-1]
    certificate = x509.load_der_x509_certificate(issuance.certificate)
    assert certificate.serial_number == int.from_bytes(serials[-1], "big")
    package = SimPackage.decode(issuer.get(issuance.name, with_package=True).package)
    assert package.header.counter == issuance.package_counter == counters[-1]
    assert package.certificate == issuance.certificate

    numbered = [number for (number,) in site.query("SELECT number FROM audit ORDER BY number")]
    assert numbered == list(range(1, len(numbered) + 1))
    assert site.query("SELECT last FROM audit_head") == [(len(numbered),)]
    return issuance


def new_sim(site: Site, request: issuance_pb2.IssueRequest) -> VirtualSim:
    """The SIM of a request, as its issuer's bureau made it."""
    return VirtualSim(Memory(State(Masters.load(site.demo.masters).personalise(ef_iccid(request)))))


def play(sim: VirtualSim, script: delivery_pb2.FetchScriptResponse) -> list[bytes]:
    """Plays a script; answers the SIM's response to each command, without its status word."""
    responses = []
    for command in script.commands:
        response = sim.transmit(command.apdu)
        assert int.from_bytes(response[-2:], "big") in command.expected_status_words, (command.purpose, sim.refusal)
        responses.append(response[:-2])
    return responses


def receipt_in(script: delivery_pb2.FetchScriptResponse, responses: list[bytes]) -> bytes:
    """The receipt among the responses to a script: the joined data of its GET DATA (80 CA) commands."""
    return b"".join(
        response
        for command, response in zip(script.commands, responses, strict=True)
        if command.apdu[:2] == b"\x80\xca"
    )


def assert_delivered(site: Site, request: issuance_pb2.IssueRequest, issuance: issuance_pb2.Issuance) -> VirtualSim:
    """The issuance reaches its SIM and is ACTIVE then; the SIM has its counter and certificate."""
    tsm, sim = site.caller("tsm"), new_sim(site, request)
    script = tsm.fetch_script(issuance.name)
    receipt = receipt_in(script, play(sim, script))
    assert tsm.report_receipt(issuance.name, receipt).state == issuance_pb2.ISSUANCE_STATE_ACTIVE
    assert sim.state.package_counter == issuance.package_counter
    assert sim.state.installed is not None and sim.state.installed.certificate == issuance.certificate
    return sim
