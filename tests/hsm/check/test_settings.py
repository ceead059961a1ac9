"""What hsm_config/README.md says of modules and their settings is what was seen."""

import re
from pathlib import Path

import pkcs11
import pytest

from appliance.hsm import probe
from appliance.hsm.check.attack import attempt, joined
from appliance.hsm.check.attacks import ATTACKS
from appliance.hsm.check.finding import Verdict
from tests.hsm.check.verdicts import POSSIBLE
from tests.hsm.site import MODULE, Site

README = Path(__file__).parents[3] / "hsm_config/README.md"
SECTION = README.read_text("utf-8").partition("### Attacks that settings close")[2].partition("\n## ")[0]
ROWS = [[cell.strip() for cell in row.split("|")[1:-1]] for row in re.findall(r"^\|.*\|$", SECTION, re.MULTILINE)][2:]
MODULES = ("softhsm", "nss", "opencryptoki")


@pytest.mark.parametrize("module", MODULES)
def test_the_table_of_attacks_is_what_was_seen(module: str) -> None:
    column = MODULES.index(module) + 1
    told = {name for row in ROWS if row[column] for name in re.findall(r"`([a-z-]+)`", row[0])}
    assert told == POSSIBLE[module]


def test_the_attacks_called_inherent_are_those() -> None:
    told = {name for row in ROWS if "inherent" in row[0] for name in re.findall(r"`([a-z-]+)`", row[0])}
    assert told == {attack.name for attack in ATTACKS if attack.inherent}


def test_the_list_of_mechanisms_serves_suite_01_and_closes_what_it_is_said_to_close(site: Site) -> None:
    [listed] = re.findall(r"`(slots\.mechanisms = [\w,]+)`", SECTION)
    with (site.directory / "softhsm2.conf").open("a", encoding="utf-8") as settings:
        settings.write(f"{listed}\n")
    pkcs11.lib(MODULE).reinitialize()
    verdicts = {}
    with site.session() as session:
        probe.prove_mechanisms(session)
        for attack in (attack for attack in ATTACKS if attack.name in POSSIBLE["softhsm"]):
            findings = []
            for variant in attack.tries:
                if session.broken:
                    session.renew()
                findings.append(attempt(session, attack, variant))
            verdicts[attack.name] = joined(findings).verdict
    closed = {name for row in ROWS if "closed" in row[1] for name in re.findall(r"`([a-z-]+)`", row[0])}
    assert {name for name, verdict in verdicts.items() if verdict is not Verdict.POSSIBLE} == closed
