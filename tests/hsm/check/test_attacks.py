"""Every attack: what it is on SoftHSM, and that its verdict follows from what the module does, in both directions."""

import re

import pytest
from pkcs11 import Attribute, exceptions

from appliance.hsm import keys
from appliance.hsm.check.attack import Attack, attempt, joined
from appliance.hsm.check.attacks import ATTACKS
from appliance.hsm.check.finding import Finding, Section, Status, Verdict
from appliance.hsm.keys import Role, Template
from appliance.hsm.module import TokenSession
from tests.hsm.check.answers import FakeLogout, FakeNonsense, FakeObedience, FakeRefusals
from tests.hsm.check.verdicts import POSSIBLE, expected
from tests.hsm.site import Site

BY_FAKES = {
    "read-hidden", "clear-sensitive", "set-extractable", "change-fixed-key", "claim-origin", "see-without-login",
    "use-after-logout",
}  # fmt: skip
"""Attacks that no module at hand permits: fakes below show that they would be seen."""
TABLE = {attack.name: attack for attack in ATTACKS}
every_attack = pytest.mark.parametrize("name", TABLE)


def tried(session: TokenSession, attack: Attack) -> Finding:
    findings = []
    for variant in attack.tries:
        if session.broken or not session.is_open:
            session.renew()
        findings.append(attempt(session, attack, variant))
    return joined(findings)


@every_attack
def test_an_attack_on_softhsm_has_its_verdict_and_leaves_nothing(site: Site, name: str) -> None:
    with site.session() as session:
        found = tried(session, TABLE[name])
        if session.broken or not session.is_open:
            session.renew()
        assert site.session_objects() == 0
    assert found.verdict is expected("softhsm", name), found.found


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (exceptions.TemplateInconsistent(), Verdict.BLOCKED),
        (exceptions.MechanismInvalid(), Verdict.NOT_OFFERED),
        (exceptions.DeviceError(), Verdict.UNKNOWN),
    ],
    ids=["refused", "absent", "unclear"],
)
def test_an_error_is_a_refusal_only_if_it_says_so(site: Site, error: exceptions.PKCS11Error, verdict: Verdict) -> None:
    session = FakeRefusals(site, error)
    for attack in ATTACKS:
        if session.broken or not session.is_open:
            session.renew()
        found = attempt(session, attack, list(attack.tries)[-1])
        assert (found.verdict, found.found) == (verdict, type(error).__name__), attack.name
    session.close()


def test_a_refusal_before_the_attack_begins_says_nothing_of_the_attack(site: Site) -> None:
    session = FakeRefusals(site, exceptions.TemplateInconsistent(), kinds=("create",))
    found = attempt(session, TABLE["clear-sensitive"], "master key")
    session.close()
    assert found.verdict is Verdict.UNKNOWN
    assert found.found == "TemplateInconsistent to a create call"
    assert found.demands is Status.OPEN


@pytest.mark.parametrize("name", sorted(POSSIBLE["softhsm"]))
def test_an_attack_has_worked_only_where_its_effect_is_seen(site: Site, name: str) -> None:
    session = FakeNonsense(site)
    found = tried(session, TABLE[name])
    session.close()
    assert found.verdict is not Verdict.POSSIBLE, found.found


@pytest.mark.parametrize("name", ["clear-sensitive", "set-extractable", "change-fixed-key"])
def test_a_module_that_lets_attributes_be_changed_is_found_out(site: Site, name: str) -> None:
    session = FakeObedience(site)
    found = tried(session, TABLE[name])
    session.close()
    assert (found.verdict, found.found) == (Verdict.POSSIBLE, f"worked: {', '.join(TABLE[name].tries)}")


@pytest.mark.parametrize("name", ["see-without-login", "use-after-logout"])
def test_a_logout_that_is_none_is_found_out(site: Site, name: str) -> None:
    session = FakeLogout(site)
    found = attempt(session, TABLE[name], "private session key")
    session.close()
    assert found.verdict is Verdict.POSSIBLE


def test_a_module_that_shows_hidden_values_is_found_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that are not hidden at all stand for hidden ones of such a module."""
    shown = {Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True}
    for role in (Role.KM_BIND, Role.WRAP_DERIVER, Role.WRAP, Role.ISSUING_CA, Role.SUBSCRIBER):
        monkeypatch.setitem(keys.TEMPLATES, role, Template({**keys.TEMPLATES[role].attributes, **shown}))
    with site.session() as session:
        found = tried(session, TABLE["read-hidden"])
    assert (found.verdict, found.found) == (Verdict.POSSIBLE, f"worked: {', '.join(TABLE['read-hidden'].tries)}")


def test_a_private_key_from_outside_that_passes_for_one_made_here_is_found_out(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role that asks for no origin stands for a module that tells a false one."""
    role = keys.TEMPLATES[Role.ISSUING_CA]
    with site.session() as session:
        assert tried(session, TABLE["claim-origin"]).verdict is Verdict.BLOCKED
        session.renew()
        monkeypatch.setitem(keys.TEMPLATES, Role.ISSUING_CA, Template(role.attributes))
        assert attempt(session, TABLE["claim-origin"], "claiming nothing").verdict is Verdict.POSSIBLE


def test_every_attack_has_been_seen_to_work_somewhere() -> None:
    assert set().union(*POSSIBLE.values()) | BY_FAKES == set(TABLE)


@every_attack
def test_an_attack_says_what_it_means_and_how_it_is_closed(name: str) -> None:
    attack = TABLE[name]
    assert re.fullmatch(r"[a-z]+(-[a-z]+)+", name)
    assert attack.tries
    for sentence in (attack.means, attack.defence, attack.closing):
        assert sentence[0].isupper(), sentence
        assert sentence.endswith("."), sentence
    assert attack.tried[0].islower()
    assert attack.source


def test_names_of_attacks_are_unique() -> None:
    assert len(TABLE) == len(ATTACKS)


def finding(part: str, verdict: Verdict, found: str, demands: Status = Status.FIT) -> Finding:
    return Finding(Section.ATTACKS, "read-hidden", part, verdict, found, demands)


def test_variants_are_joined_under_the_worst_of_them() -> None:
    variants = [
        finding("a", Verdict.BLOCKED, "Refused"),
        finding("b", Verdict.NOT_OFFERED, "Absent"),
        finding("c", Verdict.POSSIBLE, "worked", Status.OPEN),
        finding("d", Verdict.BLOCKED, "Refused"),
        finding("e", Verdict.CRASHED, "the module crashed: SIGSEGV", Status.UNFIT),
    ]
    whole = joined(variants)
    assert whole.verdict is Verdict.POSSIBLE
    assert whole.found == "worked: c; the module crashed: SIGSEGV: e; Refused: a, d; Absent (1)"
    assert whole.demands is Status.UNFIT
    assert joined(variants[:2]).verdict is Verdict.BLOCKED
    assert joined(variants[:3]).demands is Status.OPEN
