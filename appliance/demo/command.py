"""`appliance demo`: set up a throwaway appliance, or set one up and play the whole path on it."""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from appliance.client import ApiError, IssuerClient, OperatorClient, TsmClient, connect
from appliance.demo import published
from appliance.demo.run import play_all
from appliance.demo.setup import DemoSite, set_up
from appliance.errors import ApplianceError, Reason

DEFAULT_PROFILE = Path(__file__).parents[2] / "hsm_config/profiles/jpki-user-authentication.toml"
START_SECONDS = 60.0
POLL_SECONDS = 0.1
TABLE_WIDTH = 110
STOP_SECONDS = 60.0
EXAMPLES = f"""examples:
  appliance demo run build/demo          # what `make demo` does: set up, start, issue 12, verify, stop
  appliance demo set-up build/demo       # only make token, keys, CA, TLS identities and settings
  appliance run --config build/demo/appliance.toml       # then: serve it; the PIN is {published.PIN}

The directory is made anew each time; one that holds anything but a demo is left alone.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; answers its exit status."""
    parser = argparse.ArgumentParser(
        prog="appliance demo",
        description="Set up a throwaway appliance, or set one up and play the whole path on it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("run", "set-up"), help="set up and play everything, or only set up")
    parser.add_argument("directory", type=Path, help="where the demo's files go")
    parser.add_argument("--profile", type=Path, default=DEFAULT_PROFILE, help="certificate profile (hsm_config's)")
    parser.add_argument("--port", type=int, default=0, help="of the API on loopback (a free one, see appliance.toml)")
    parser.add_argument("--vaults", type=int, default=2, help="vault processes (%(default)s)")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the appliance is stopped too
    console = Console()
    if not console.is_terminal:
        console = Console(width=TABLE_WIDTH)
    with console.status("making token, master keys, issuing CA, TLS identities and settings"):
        site = set_up(
            arguments.directory, arguments.profile, port=arguments.port or free_port(), vaults=arguments.vaults
        )
        migrate(site)
    console.print(f"set up: {site.directory} (token {published.TOKEN_LABEL}, for demonstration only)")
    if arguments.action == "set-up":
        return 0
    with running(site) as appliance:
        return asyncio.run(_play(site, console, appliance))


async def _play(site: DemoSite, console: Console, appliance: "subprocess.Popen[bytes]") -> int:
    async with (
        connect(site.target, *site.tls("operator")) as operator,
        connect(site.target, *site.tls("issuer")) as issuer,
        connect(site.target, *site.tls("tsm")) as tsm,
    ):
        with console.status("waiting for the vaults to log in"):
            await ready(OperatorClient(operator), site, appliance)
        succeeded = await play_all(site, IssuerClient(issuer), TsmClient(tsm), console)
    return 0 if succeeded else 1


async def ready(operator: OperatorClient, site: DemoSite, appliance: "subprocess.Popen[bytes]") -> None:
    """Return when the front has vaults that serve.

    Raises:
        ApplianceError: VAULTS_UNAVAILABLE where the appliance ended or took too long.
    """
    until = time.monotonic() + START_SECONDS
    while appliance.poll() is None and time.monotonic() < until:
        with contextlib.suppress(ApiError):
            if (await operator.status()).ready:
                return
        await asyncio.sleep(POLL_SECONDS)
    raise ApplianceError(
        Reason.VAULTS_UNAVAILABLE, "The demo's appliance did not start.", hint=f"Its log {site.log} says why."
    )


def free_port() -> int:
    """A TCP port of loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def migrate(site: DemoSite) -> None:
    """Make the ledger's schema."""
    command = [sys.executable, "-P", "-m", "appliance", "ledger", "migrate", "--config", str(site.settings)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - this program itself


@contextlib.contextmanager
def running(site: DemoSite) -> Iterator["subprocess.Popen[bytes]"]:
    """Vaults and front of the demo, logging into appliance.log; stopped at the end."""
    reader, writer = os.pipe()
    os.write(writer, published.PIN.encode() + b"\n")
    os.close(writer)
    with site.log.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - this program itself
            [sys.executable, "-P", "-m", "appliance", "run", "--config", str(site.settings), "--pin-fd", str(reader)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(reader,),
        )
    os.close(reader)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)
