"""The `appliance` command: a table of subcommands, each of which is imported when it is called."""

import importlib
import os
import select
import sys
from collections.abc import Sequence
from typing import NamedTuple

from appliance.errors import ApplianceError


class Command(NamedTuple):
    """Where a subcommand's `main(argv) -> exit status` lives, and what it is for."""

    module: str
    purpose: str


COMMANDS = {
    "run": Command("appliance.node", "start vaults and front together as one user (demo and tests)"),
    "vaults": Command("appliance.supervisor", "ask for the PIN and keep the vault processes running"),
    "serve": Command("appliance.server.main", "serve the public API (the front: no PIN, no PKCS#11)"),
    "health": Command("appliance.server.probe", "tell whether the front or the vaults of this node serve"),
    "ledger": Command(
        "appliance.ledger.command", "make, migrate, look at, check or back up the ledger, or export from it"
    ),
    "hsm": Command("appliance.hsm.check.command", "examine the HSM in use, and try the known attacks on it"),
    "scripts": Command("appliance.bureau.command", "render scripts for many SIMs from an export: no ledger, no HSM"),
    "vsim": Command("appliance.vsim.command", "a virtual SIM: personalise, play scripts, sign, attach to pcscd"),
    "demo": Command("appliance.demo.command", "make a throwaway appliance and play the whole path on it"),
}


def usage() -> str:
    """The help text."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.purpose}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: appliance COMMAND [ARGUMENT ...]",
            "",
            "Issues JPKI user authentication keys into SIMs; every private key is made and sealed inside an HSM.",
            "",
            *lines,
            "",
            "'appliance COMMAND --help' explains a command. README.md and hsm_config/README.md tell the rest.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; answers its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        sys.stdout.write(usage() + "\n")
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        sys.stderr.write(f"appliance: there is no command {name!r}\n\n{usage()}\n")
        return 2
    # Else gRPC's core writes lines that are not JSON. It reads this when it is loaded; child processes inherit it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        status: int = importlib.import_module(COMMANDS[name].module).main(rest)
        if sys.stdout:  # None where the descriptor is closed
            sys.stdout.flush()
    except ApplianceError as error:
        sys.stderr.write(f"appliance {name}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        if _is_read():
            raise
        return 141  # as if SIGPIPE had ended it: 128 and the signal's number, as above
    return status


def _is_read() -> bool:
    """Whether standard output goes anywhere; where it does not (`| head`), what was still to be written is dropped."""
    pipe = select.poll()
    pipe.register(sys.stdout, 0)
    if not pipe.poll(0):  # neither POLLERR nor POLLHUP
        return True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return False
