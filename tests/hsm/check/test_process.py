"""The expendable process: a module that crashes, hangs or loses its token, at a login or later."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pkcs11 import Attribute, Mechanism

from appliance.errors import ApplianceError, Reason
from appliance.hsm.check import process
from appliance.hsm.check.examination import Order
from appliance.hsm.check.finding import Finding, Section, Status, Verdict
from appliance.hsm.check.process import LIMIT_SECONDS, examine
from tests.hsm.check.fewer import defective, fewer
from tests.hsm.site import BIND_LABEL, CHAN_LABEL, MODULE, PIN, Site, profile
from tests.shim import End, Fault, Shim, When, Which

DEVICE_ERROR = 0x30
LIMIT = 6
"""Seconds for a step without RSA keys; the test that lets a call hang waits so long."""


@dataclass(frozen=True)
class Examined:
    """A site whose module is the shim."""

    site: Site
    shim: Shim
    order: Order

    def examine(self, pin: str = PIN, limit: int = LIMIT_SECONDS) -> list[Finding]:
        return examine(self.order, bytearray(pin, "ascii"), limit=limit)


@pytest.fixture
def examined(site: Site, shim_module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examined:
    shim = Shim(tmp_path / "shim")
    for name, value in shim.environment(MODULE).items():
        monkeypatch.setenv(name, value)
    profiles = ((profile("p256-ca", key_types=("EC_P256",)), site.authorities["p256-ca"]),)
    return Examined(site, shim, Order(replace(site.module, path=str(shim_module)), (site.issuer(),), profiles))


def contents(site: Site) -> set[tuple[object, ...]]:
    """Everything on the token, by what can be told of it."""
    told = (Attribute.CLASS, Attribute.LABEL, Attribute.EXTRACTABLE, Attribute.SENSITIVE, Attribute.MODIFIABLE)
    with site.backstage() as session:
        return {tuple(thing[attribute] for attribute in told) for thing in session.get_objects({Attribute.TOKEN: True})}


def test_a_module_that_crashes_and_hangs_is_found_out_and_every_other_step_is_taken(
    examined: Examined, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer(monkeypatch)
    before = contents(examined.site)
    examined.shim.arm(Fault(End.SEGV, When.BEFORE, Which(2, "C_CopyObject")))
    with examined.shim.hold(Which(1, "C_SignInit", Mechanism.AES_CMAC)):  # it is never released
        findings = examined.examine(limit=LIMIT)
    broken = [f for f in findings if f.verdict in {Verdict.CRASHED, Verdict.HUNG}]
    assert [(f.name, f.part, f.verdict, f.found) for f in broken] == [
        (BIND_LABEL, "", Verdict.HUNG, "the module hung, and was ended by SIGALRM"),
        ("copy-weaker", "master key EXTRACTABLE", Verdict.CRASHED, "the module crashed: SIGSEGV"),
    ]
    assert {f.demands for f in broken} == {Status.UNFIT}
    assert {f.verdict for f in findings if f.name == CHAN_LABEL} == {Verdict.RIGHT}
    copies = [f.verdict for f in findings if f.name == "copy-weaker"]
    assert copies == [Verdict.BLOCKED, Verdict.CRASHED, *[Verdict.BLOCKED] * (len(copies) - 2)]
    assert findings[-1].section is Section.OBJECTS
    assert contents(examined.site) == before


def test_a_wrong_pin_is_tried_once(examined: Examined) -> None:
    with pytest.raises(ApplianceError) as refused:
        examined.examine("not-the-pin")
    assert refused.value.reason is Reason.PIN_REJECTED
    assert examined.shim.logins() == 1


def test_a_module_that_crashes_at_the_login_has_no_second_try(examined: Examined) -> None:
    examined.shim.arm(Fault(End.SEGV, When.AFTER, Which(1, "C_Login")))
    with pytest.raises(ApplianceError) as refused:
        examined.examine()
    assert (refused.value.reason, refused.value.facts["error"]) == (Reason.TOKEN_FAULT, "CRASHED")
    assert "PIN try" in refused.value.hint
    assert examined.shim.logins() == 1


def test_a_defect_of_the_program_is_not_blamed_on_the_module(
    examined: Examined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_take", defective)
    with pytest.raises(ApplianceError) as refused:
        examined.examine()
    assert refused.value.reason is Reason.INTERNAL


def test_a_token_that_is_lost_meanwhile_ends_the_examination_with_what_was_found(examined: Examined) -> None:
    examined.shim.arm(Fault(DEVICE_ERROR, When.BEFORE, Which(2, "C_Login")))
    findings = examined.examine()
    assert findings[0].section is Section.TOKEN
    lost = findings[-1]
    assert (lost.section, lost.name, lost.verdict, lost.demands) == (
        Section.MODULE, "login", Verdict.WRONG, Status.UNFIT,
    )  # fmt: skip
    assert lost.found.startswith("The HSM answered DeviceError to a login call.")
    assert lost.found.endswith("steps were not taken.")
