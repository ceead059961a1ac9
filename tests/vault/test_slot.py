"""A vault's place in the socket directory."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from appliance.errors import ApplianceError, Reason
from appliance.vault.slot import claimed, socket_mode


def refusal(directory: Path) -> ApplianceError:
    with pytest.raises(ApplianceError) as caught, claimed(directory, 0, 1):
        pass
    return caught.value


def test_the_socket_is_named_after_slot_and_generation(tmp_path: Path) -> None:
    with claimed(tmp_path, 3, 42) as path:
        assert path == tmp_path / "v3-42.sock"


def test_stale_sockets_of_the_own_slot_alone_are_removed(tmp_path: Path) -> None:
    for name in ("v1-1.sock", "v1-2.sock", "v11-1.sock", "v0-1.sock"):
        (tmp_path / name).touch()
    with claimed(tmp_path, 1, 3):
        assert {path.name for path in tmp_path.glob("*.sock")} == {"v11-1.sock", "v0-1.sock"}


def test_the_own_socket_is_removed_at_the_end(tmp_path: Path) -> None:
    with claimed(tmp_path, 0, 1) as path:
        path.touch()
    assert not path.exists()


def test_a_slot_is_one_vaults_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path, 0, 1) as path:
        path.touch()
        error = refusal(tmp_path)
        assert (error.reason, error.facts) == (Reason.DRAINING, {"slot": 0})
        assert path.exists(), "the living vault's socket is left alone"
        with claimed(tmp_path, 1, 1):
            pass
    with claimed(tmp_path, 0, 2):
        pass


def test_the_longest_path_can_be_bound_and_a_longer_one_is_refused(tmp_path: Path) -> None:
    room = 107 - len(str(tmp_path)) - len("//v0-1.sock")
    directory = tmp_path / ("d" * room)
    directory.mkdir(mode=0o700)
    with claimed(directory, 0, 1) as path, socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
    longer = tmp_path / ("d" * (room + 1))
    longer.mkdir(mode=0o700)
    error = refusal(longer)
    assert (error.reason, error.field) == (Reason.SETTINGS_INVALID, "vault.socket_directory")
    assert "107 bytes" in error.detail


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o2770, 0o755, 0o751, 0o754])
def test_a_directory_that_others_may_enter_or_its_group_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    assert refusal(tmp_path).reason is Reason.SETTINGS_INVALID


def test_a_directory_that_the_fronts_group_may_enter_is_accepted(tmp_path: Path) -> None:
    tmp_path.chmod(0o2750)
    with claimed(tmp_path, 0, 1):
        pass


def test_another_users_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert refusal(tmp_path).reason is Reason.SETTINGS_INVALID


def test_a_missing_directory_is_refused_with_the_systems_reason(tmp_path: Path) -> None:
    error = refusal(tmp_path / "absent")
    assert error.reason is Reason.SETTINGS_INVALID
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == errno.ENOENT


def test_sockets_are_for_owner_and_group(tmp_path: Path) -> None:
    with socket_mode(), socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "within"))
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "after"))
    assert stat.S_IMODE((tmp_path / "within").stat().st_mode) == 0o660
    assert stat.S_IMODE((tmp_path / "after").stat().st_mode) != 0o660, "the umask is as before"
