"""Programs as other users: as root by changing to them, else in a user namespace of our own subordinate ids.

Whoever runs the tests owns what they make; the other users are numbers without names.
"""

import os
import shutil
import subprocess
from typing import Final

FRONT: Final = 10_002
"""User and group that may reach the vaults."""
STRANGER: Final = 10_003
"""User and group that nobody has told about."""
PYTHON: Final = "/usr/bin/python3"
"""One that every user may run, as a virtual environment in somebody's home is not."""


def run_as(user: int, group: int, *command: str) -> "subprocess.CompletedProcess[bytes]":
    """Runs a program as this user, of this group alone, with no capability."""
    changed = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--bounding-set=-all"]
    return _run(*changed, *command)


def give_to_group(path: os.PathLike[str], group: int, mode: int) -> None:
    """Changes group and mode, in this order: a change of the group clears the set-group-id bit."""
    for change in (("chgrp", str(group)), ("chmod", f"{mode:o}")):
        done = _run(*change, os.fspath(path))
        assert done.returncode == 0, _text(done)


def _run(*command: str) -> "subprocess.CompletedProcess[bytes]":
    inside = [] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--map-auto", "--"]
    assert not inside or shutil.which("newuidmap"), "Other users need root, or newuidmap: apt install uidmap"
    done = subprocess.run([*inside, *command], capture_output=True, check=False, cwd="/")
    assert b"unshare:" not in done.stderr, (
        f"Other users need root, or a line for this user in /etc/subuid and /etc/subgid: {_text(done)}"
    )
    assert b"setpriv:" not in done.stderr, _text(done)
    return done


def _text(done: "subprocess.CompletedProcess[bytes]") -> str:
    return done.stderr.decode("utf-8", "replace")
