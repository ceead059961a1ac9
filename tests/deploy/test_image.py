"""The Dockerfile holds its rules, and what it installs is what pyproject.toml permits."""

import json
import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .program import PROGRAM, check

ROOT = Path(__file__).parents[2]
TARGETS = {"vaults": "vaults", "front": "serve"}
"""And the command that each is for."""


class Instruction(NamedTuple):
    """One of a stage."""

    name: str
    text: str


def stages() -> dict[str, tuple[str, list[Instruction]]]:
    """What each stage begins from, and its instructions."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, tuple[str, list[Instruction]]] = {}
    for line in filter(None, text.splitlines()):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            base, _, stage = rest.partition(" AS ")
            found[stage] = (base, [])
        else:
            list(found.values())[-1][1].append(Instruction(name, " ".join(rest.split())))
    return found


def texts(stage: str, name: str) -> list[str]:
    return [instruction.text for instruction in stages()[stage][1] if instruction.name == name]


def test_two_stages_begin_from_debian_and_what_runs_from_the_second() -> None:
    assert {stage: base for stage, (base, _) in stages().items()} == {
        "build": "debian:bookworm-slim",
        "runtime": "debian:bookworm-slim",
        "vaults": "runtime",
        "front": "runtime",
    }


def test_compilers_are_in_the_first_stage_alone_and_softhsm_only_where_it_is_asked_for() -> None:
    installed = {
        stage: [re.findall(r"--no-install-recommends ([\w .-]+)", text) for text in texts(stage, "RUN")]
        for stage in ("runtime", *TARGETS)
    }
    assert installed == {"runtime": [["python3 libssl3 "]], "vaults": [["libsofthsm2 "]], "front": []}
    (softhsm,) = texts("vaults", "RUN")
    assert softhsm.startswith('if [ -n "$WITH_SOFTHSM" ]; then ')
    assert texts("vaults", "ARG") == ["WITH_SOFTHSM="]


def test_the_targets_run_as_two_users_that_are_not_root() -> None:
    users = [texts(target, "USER") for target in TARGETS]
    assert users == [["10001:10001"], ["10002:10002"]]


@pytest.mark.parametrize("target", TARGETS)
def test_commands_and_health_checks_are_commands_of_the_program(target: str) -> None:
    assert [json.loads(text) for text in texts("runtime", "ENTRYPOINT")] == [[PROGRAM]]
    (run,) = [json.loads(text) for text in texts(target, "CMD")]
    (health,) = [json.loads(text.partition(" CMD ")[2]) for text in texts(target, "HEALTHCHECK")]
    assert run[0] == TARGETS[target]
    assert health[:3] == [PROGRAM, "health", target]
    check(*run)
    check(*health[1:])


def test_the_context_has_what_is_copied_and_nothing_else() -> None:
    copied = {name for text in texts("build", "COPY") for name in text.split()[:-1]} | {"hsm_config"}
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == copied


def test_the_lock_has_every_dependency_in_a_permitted_version_with_hashes() -> None:
    lock = (ROOT / "requirements.lock").read_text("utf-8").replace("\\\n", " ")
    pins = dict(re.findall(r"^([\w.-]+)==(\S+) +--hash=sha256:[0-9a-f]{64}", lock, flags=re.MULTILINE))
    assert len(pins) == len(re.findall(r"^[\w.-]+==", lock, flags=re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    needed = map(Requirement, [*project["project"]["dependencies"], *project["build-system"]["requires"]])
    wrong = [str(need) for need in needed if not need.specifier.contains(pins.get(canonicalize_name(need.name), "0"))]
    assert wrong == [], "make lock"
