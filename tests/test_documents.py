"""The documents say what is so: every command, option, file, room and reason that they name is there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli import COMMANDS, main
from appliance.demo.run import applicants
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from appliance.supervisor import FINAL, RETRY
from appliance.vault.hsm_thread import ENDING
from appliance.vault.main import exit_code

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "hsm_config").glob("*.md")],
    key=lambda path: path.relative_to(ROOT),
)
ONLY_HERE = {"README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "hsm_config/README.md"}
"""Where a path in code style is one of this repository's; elsewhere it may be a SIM's or a specification's."""
AT_START = ENDING | {Reason.CERTIFICATE_REFUSED}
"""What can keep a vault from starting: faults of the token, and what the settings name."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code(path: Path) -> Iterator[str]:
    """Everything in code style: the lines of fenced blocks, with continued ones joined, and the spans between them."""
    prose, *blocks = re.split(r"^```.*$", path.read_text("utf-8"), flags=re.MULTILINE)
    for number, text in enumerate((prose, *blocks)):
        if number % 2:
            yield from text.replace("\\\n", " ").splitlines()
        else:
            yield from re.findall(r"`([^`\n]+)`", text)


def calls(path: Path, program: str) -> set[tuple[str, ...]]:
    """The argument lists with which a document calls a program."""
    pattern = rf"(?:^|[\s/]){program} ([a-z].*?)(?:\s+#|\s*[;|&]|$)"
    return {tuple(shlex.split(found)) for line in code(path) for found in re.findall(pattern, line)}


CALLS = sorted({(name_of(path), call) for path in DOCUMENTS for call in calls(path, "appliance")})


@pytest.mark.parametrize(("document", "call"), CALLS, ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_command_and_its_options_exist(
    document: str, call: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    name, *arguments = call
    assert name in COMMANDS, document
    action = [word for word in arguments[:1] if not word.startswith("-")]
    with pytest.raises(SystemExit) as ended:
        main([name, *action, "--help"])
    told = capsys.readouterr()
    assert ended.value.code == 0, f"{document}: {told.err}"
    for option in (word for word in arguments if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", told.out), f"{document}: {name} has no {option}"


def test_the_documents_call_every_command() -> None:
    assert {call[0] for _, call in CALLS} == set(COMMANDS)


def test_the_two_commands_of_a_newcomer_come_first_and_alone() -> None:
    first = (ROOT / "README.md").read_text("utf-8").split("```")[1]
    assert [line.partition("#")[0].split() for line in first.strip().splitlines()] == [
        ["make", "demo"],
        ["make", "test"],
    ]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_what_make_is_told_to_make_has_a_rule(path: Path) -> None:
    rules = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
    assert {call[0] for call in calls(path, "make")} <= rules


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_to_files(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", path.read_text("utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("document", sorted(ONLY_HERE))
def test_paths_of_this_repository_exist(document: str) -> None:
    path = ROOT / document
    spans = re.findall(r"`((?:appliance|tests|proto|hsm_config|docs|\.ci)/[\w./-]*)`", path.read_text("utf-8"))
    files = [word for call in calls(path, "pytest") for word in call if "/" in word]
    assert [named for named in (*spans, *files) if not (ROOT / named).exists()] == []


def test_every_claim_of_security_names_tests_that_stand() -> None:
    table = (ROOT / "SECURITY.md").read_text("utf-8").partition("## Claims")[2].partition("\n## ")[0]
    claims = re.findall(r"^\| (?!claim|---)(.*?) \|.*\| ([^|]*) \|$", table, flags=re.MULTILINE)
    assert len(claims) > 10
    assert [claim for claim, shown in claims if "`tests/" not in shown] == []


def test_every_room_is_in_the_table_of_rooms() -> None:
    table = (ROOT / "ARCHITECTURE.md").read_text("utf-8").partition("## Rooms")[2].partition("\n## ")[0]
    rooms = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\|(.*?)\|", table, flags=re.MULTILINE)))
    package = ROOT / "appliance"
    parts = {path for path in package.iterdir() if path.name not in {"__init__.py", "__pycache__", "py.typed"}}
    places = {name_of(path) + "/" * path.is_dir() for path in parts}
    assert {room for room in rooms if room.startswith("appliance/")} == places
    assert len(rooms) == len(set(rooms))


def test_every_folder_of_tests_is_in_the_table_of_tests() -> None:
    told = set(re.findall(r"`tests/(\w+)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8")))
    assert told == {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}


def test_the_readme_explains_every_reason_that_keeps_a_vault_from_starting() -> None:
    section = (
        (ROOT / "README.md").read_text("utf-8").partition("## When a vault will not start")[2].partition("\n## ")[0]
    )
    prose, _, table = section.partition("| final reason")
    final = {Reason(name) for name in re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)}
    codes = {reason: exit_code(ApplianceError(reason, "x", hint="y")) for reason in Reason}
    assert final == {reason for reason in AT_START if codes[reason] == FINAL}
    assert all(f"`{reason}`" in prose for reason in Reason if codes[reason] == RETRY)


def test_the_script_played_by_hand_is_for_the_demos_first_sim() -> None:
    first = applicants({KeyType.RSA_2048: 1})[0].iccid.digits
    assert set(re.findall(r"--iccid (\d+)", (ROOT / "README.md").read_text("utf-8"))) == {first}


def test_the_readme_names_events_that_are_logged() -> None:
    section = (ROOT / "README.md").read_text("utf-8").partition("| event | tells |")[2].partition("\n## ")[0]
    events = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (.*?) \|", section, flags=re.MULTILINE)))
    source = "".join(path.read_text("utf-8") for path in (ROOT / "appliance").rglob("*.py"))
    assert len(events) > 5
    assert [event for event in events if f'"{event}"' not in source and f'"{event}:' not in source] == []
