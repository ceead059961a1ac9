"""Where the secrets of a full run are not: logs, ledger, backup, answers, command lines, and the front's memory."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.path.programs import until

from .conftest import FullRun
from .known import WINDOW, forms, found, windows

NOT_IN_THE_FRONT = re.compile(r"(K[_M-]|PIN$|scalar|[dpq] of )")
"""Secrets that never come to the front (every form of a private key holds one of its numbers)."""


def test_the_secrets_are_known(run: FullRun) -> None:
    names = {name.partition(" of ")[0] for name in run.secrets}
    assert names >= {"PIN", "KM-BIND", "activation code", "PKCS#8", "scalar", "d", "p", "K_SIM", "K-ENC", "S-RMAC"}
    assert len(set(run.secrets.values())) == len(run.secrets)


@pytest.mark.parametrize("form", range(len(list(forms(bytes(32))))))
def test_a_secret_is_found_in_every_form(form: int) -> None:
    secret = bytes(range(7, 39))
    text = b"x" + list(forms(secret))[form] + b"y"
    assert found({"secret": secret, "another": bytes(range(8, 40))[::-2] * 2}, text) == {"secret"}


def test_logs_hold_no_secret(run: FullRun) -> None:
    logs = run.site.logs()
    assert b"issuance ready" in logs
    assert found(run.secrets, logs) == set()


def test_the_ledger_and_its_backup_hold_no_secret(run: FullRun) -> None:
    for path in (*run.ledger_files(), run.backup):
        assert found(run.secrets, path.read_bytes()) == set(), path.name


def test_no_answer_holds_a_secret(run: FullRun) -> None:
    assert len(run.responses) > 10
    assert found(run.secrets, b"\n".join(run.responses)) == set()


def test_a_run_with_an_external_ca_leaves_no_secret_either(external_run: FullRun) -> None:
    texts = [external_run.site.logs(), *external_run.responses, external_run.backup.read_bytes()]
    texts += [path.read_bytes() for path in external_run.ledger_files()]
    assert found(external_run.secrets, b"\n".join(texts)) == set()


def test_nothing_else_that_the_programs_wrote_holds_a_secret(run: FullRun) -> None:
    """All files but the token's own and those of the SIM issuer's side."""
    others = {run.site.demo.masters, *run.ledger_files()}
    written = [
        path
        for path in run.site.directory.rglob("*")
        if path.is_file() and path not in others and "token" not in path.parts
    ]
    assert len(written) > 10
    for path in written:
        assert found(run.secrets, path.read_bytes()) == set(), path.name


def test_wrapped_keys_are_erased_from_every_page_once_they_are_delivered_or_abandoned(run: FullRun) -> None:
    def everything() -> bytes:
        return b"".join(path.read_bytes() for path in run.ledger_files())

    assert all(len(wrapped) > 2 * WINDOW for wrapped in run.erased)
    assert all(piece in everything() for wrapped in run.kept for piece in windows(wrapped)), "a kept one is seen"
    pieces = {piece for wrapped in run.erased for piece in windows(wrapped)}
    until(lambda: not any(piece in everything() for piece in pieces), "the write-ahead log has been cut")
    backup = run.backup.read_bytes()
    assert not any(piece in backup for piece in pieces)


def test_the_pin_is_in_no_environment_and_on_no_command_line(run: FullRun) -> None:
    for pid in processes(run):
        command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert str(run.site.directory).encode() in command_line
        assert found(run.secrets, command_line) == set()
        try:
            assert found(run.secrets, Path(f"/proc/{pid}/environ").read_bytes()) == set()
        except PermissionError:  # not dumpable, and this is not root
            assert os.geteuid() != 0


def test_the_fronts_memory_holds_no_pin_no_master_and_no_private_key(run: FullRun) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may look into a process that is not dumpable")
    assert run.site.front
    never = {name: value for name, value in run.secrets.items() if NOT_IN_THE_FRONT.match(name)}
    assert len(never) > 20
    pid = run.site.front.process.pid
    certificate = b"DEMO"
    seen = set[str]()
    for region in memory(pid):
        seen |= {name for name, value in never.items() if value in region}
        seen |= {"what is surely there"} if certificate in region else set()
    assert seen == {"what is surely there"}


def processes(run: FullRun) -> list[int]:
    """The front, the supervisor and every vault."""
    site = run.site
    assert site.front and site.vaults
    return [site.front.process.pid, site.vaults.process.pid, *site.vaults.pids().values()]


def memory(pid: int) -> Iterator[bytes]:
    """The writable regions of a process."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as content:
        for line in maps:
            place, rights, *_ = line.split()
            if not rights.startswith("rw"):
                continue
            start, end = (int(bound, 16) for bound in place.split("-"))
            content.seek(start)
            try:
                yield content.read(end - start)
            except OSError:  # a guard page, or gone since
                continue
