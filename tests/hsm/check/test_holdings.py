"""Declared keys, found right or wrong, each part for itself; and keys that nobody has declared."""

from dataclasses import replace
from pathlib import Path

import pytest
from pkcs11 import Attribute, KeyType

from appliance.hsm.check import holdings
from appliance.hsm.check.examination import Order, Step, balance, steps
from appliance.hsm.check.finding import Finding, Section, Status, Verdict
from appliance.hsm.keys import Role
from tests.hsm.site import BIND_LABEL, CHAN_LABEL, KM_BIND, KM_CHAN, Site, profile

WRONG = (Verdict.WRONG, Status.UNFIT)


def master(site: Site, **declared: str) -> dict[str, Finding]:
    with site.session() as session:
        found = holdings.master(session, Role.KM_BIND, replace(site.bind, **declared), "sim_issuers.x")
    return {finding.part: finding for finding in found}


def ca_key(site: Site, label: str, certificate: bytes) -> dict[str, Finding]:
    with site.session() as session:
        declared = profile("rsa-ca", label, ca_certificate=Path("/etc/jpki/ca.pem"))
        return {finding.part: finding for finding in holdings.ca_key(session, declared, certificate)}


def test_a_key_as_declared_is_right_in_every_part(site: Site) -> None:
    found = master(site)
    assert {part: finding.verdict for part, finding in found.items()} == dict.fromkeys(
        ("attributes", "kcv", "kdf_kcv"), Verdict.RIGHT
    )
    assert {finding.demands for finding in found.values()} == {Status.FIT}
    assert found["kcv"].found == f"{site.bind.kcv}, as declared"


@pytest.mark.parametrize("part", ["kcv", "kdf_kcv"])
def test_a_check_value_that_differs_is_told_beside_the_declared_one(site: Site, part: str) -> None:
    found = master(site, **{part: "00fF00"})
    assert (found[part].verdict, found[part].demands) == WRONG
    assert found[part].found == f"{getattr(site.bind, part)} | 00FF00 is declared"
    assert found["attributes"].verdict is Verdict.RIGHT


def test_attributes_that_differ_are_told_and_check_values_still_compared(site: Site) -> None:
    site.replace_master(BIND_LABEL, KM_BIND, EXTRACTABLE=True, WRAP=True)
    found = master(site)
    assert (found["attributes"].verdict, found["attributes"].demands) == WRONG
    assert set(found["attributes"].found.split("; ")) == {"EXTRACTABLE: true | false", "WRAP: true | false"}
    assert found["kcv"].verdict is Verdict.RIGHT


def test_another_value_under_the_same_label_shows_in_both_check_values(site: Site) -> None:
    site.replace_master(BIND_LABEL, KM_CHAN)
    found = master(site)
    assert {part for part, finding in found.items() if finding.verdict is Verdict.WRONG} == {"kcv", "kdf_kcv"}


def test_a_master_that_cannot_derive_has_no_check_values(site: Site) -> None:
    site.replace_master(BIND_LABEL, KM_BIND, DERIVE=False)
    with site.session() as session:
        found = holdings.master(session, Role.KM_BIND, site.bind, "sim_issuers.x")
    assert [(f.part, f.verdict) for f in found] == [
        ("attributes", Verdict.WRONG),
        ("check values", Verdict.WRONG),
    ]


def test_a_declared_key_that_is_not_there_is_wrong(site: Site) -> None:
    site.destroy_key(BIND_LABEL)
    [found] = master(site).values()
    assert (found.verdict, found.demands) == WRONG
    assert found.found.startswith(f"The token has 0 keys labelled {BIND_LABEL}")


def test_a_ca_key_shows_by_a_signature_that_it_is_its_certificates(site: Site) -> None:
    found = ca_key(site, "P256-CA", site.authorities["p256-ca"])
    assert [(part, f.verdict) for part, f in found.items()] == [
        ("attributes", Verdict.RIGHT),
        ("certificate", Verdict.RIGHT),
    ]
    assert found["certificate"].found == "the key of ca.pem"


def test_the_ca_key_of_another_certificate_is_wrong(site: Site) -> None:
    found = ca_key(site, "P256-CA", site.authorities["p384-ca"])
    assert found["attributes"].verdict is Verdict.RIGHT
    assert (found["certificate"].verdict, found["certificate"].demands) == WRONG


def test_keys_that_no_setting_names_are_noted_with_what_differs_from_their_kinds_template(site: Site) -> None:
    site.replace_master(CHAN_LABEL, KM_CHAN, ENCRYPT=True)
    with site.session() as session:
        found = holdings.undeclared(session, [BIND_LABEL, "RSA-CA", "P384-CA"])
    told = {finding.name: finding for finding in found}
    assert set(told) == {CHAN_LABEL, "P256-CA"}
    assert told[CHAN_LABEL].found.endswith("binding master: ENCRYPT: true | false")
    assert told["P256-CA"].found.endswith("issuing CA key: as the template")
    assert {finding.demands for finding in found} == {Status.FIT}


def test_objects_on_the_token_are_counted_and_session_objects_are_not(site: Site) -> None:
    with site.session() as session:
        session.raw.generate_key(KeyType.AES, 128)
        [found] = holdings.objects(session, "before")
    assert found.found == "3 private_key, 2 secret_key"


def test_the_tokens_flags_are_told_in_words(site: Site) -> None:
    with site.session() as session:
        told = {finding.name: finding.found for finding in holdings.token(session)}
    assert told["PINs"] == "nothing unusual"
    assert "LOGIN_REQUIRED" in told["flags"]
    assert told["serial"] == site.module.token_serial


def test_every_declared_key_and_every_attack_is_a_step(site: Site) -> None:
    profiles = [(profile(name), certificate) for name, certificate in site.authorities.items()]
    planned = steps(Order(site.module, (site.issuer(),), tuple(profiles)))
    keys = [step.name for step in planned if step.section is Section.KEYS]
    assert keys == [BIND_LABEL, CHAN_LABEL, "RSA-CA", "P256-CA", "P384-CA", "other keys"]
    places = [(step.section, step.name, step.part) for step in planned]
    assert len(places) == len(set(places))


def test_a_step_that_the_token_refuses_is_a_finding(site: Site) -> None:
    step = Step(Section.KEYS, "x", "", lambda session: session.find({Attribute.PRIVATE: True}, "nowhere"))
    with site.session() as session:
        [found] = step.take(session)
    assert (found.verdict, found.demands) == (Verdict.UNKNOWN, Status.UNFIT)


@pytest.mark.parametrize(
    ("after", "verdict", "demands"),
    [
        ("2 secret_key", Verdict.RIGHT, Status.FIT),
        ("3 secret_key", Verdict.WRONG, Status.UNFIT),
        (None, Verdict.UNKNOWN, Status.UNFIT),
    ],
)
def test_an_object_more_or_less_in_the_end_is_wrong(after: str | None, verdict: Verdict, demands: Status) -> None:
    counts = [("before", "2 secret_key"), ("after", after)]
    found = [Finding(Section.OBJECTS, "x", part, Verdict.NOTED, text) for part, text in counts if text]
    assert (balance(found)[-1].verdict, balance(found)[-1].demands) == (verdict, demands)
