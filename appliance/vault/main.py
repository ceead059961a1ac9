"""The vault's composition root: PIN from stdin, engine in its thread, service on its socket, status on stdout.

stdin is the lifeline: its end, like SIGTERM, ends the vault after the item in hand. The exit code tells the supervisor
whether to start another one: 0 (asked for, or due for recycling), FINAL, RETRY, or UNEXPLAINED.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc

from appliance import config, logs, supervisor
from appliance.config import Settings
from appliance.errors import ApplianceError, Reason
from appliance.hsm.engine import Engine
from appliance.hsm.orders import ModuleParameters
from appliance.pin import read_pin, wipe
from appliance.supervisor import FINAL, LOGIN, RETRY
from appliance.vault.hsm_thread import HsmThread, Stamps
from appliance.vault.service import VaultService
from appliance.vault.slot import claimed, socket_mode
from appliance.vault.v1.vault_pb2_grpc import add_VaultServiceServicer_to_server

UNEXPLAINED = 1
"""Exit code that is final only until a login has succeeded (the supervisor's rule)."""
STATUS_SECONDS = 0.5
FLUSH_SECONDS = 2.0
"""How long answers that are made may take to leave."""
TURN_SECONDS = 0.5
"""A vault that is recycled refuses for so long, politely, while the front, which looks every 0.2 s, turns away."""
LAST_SECONDS = 60
"""After these an ending vault is ended by the kernel, if its module hangs and no supervisor is left to do it."""

_EXIT = {
    # Final at the first start; once a vault has served, somebody is editing them.
    Reason.SETTINGS_INVALID: UNEXPLAINED,
    Reason.DEMO_IN_PRODUCTION: UNEXPLAINED,
    Reason.TOKEN_ABSENT: RETRY,
    Reason.TOKEN_FAULT: RETRY,
    Reason.DRAINING: RETRY,
    Reason.INTERNAL: UNEXPLAINED,
}
"""Exit code by reason; all others need a person: FINAL."""


def exit_code(error: ApplianceError | None) -> int:
    """What the end of the HSM thread, or of the start, means for the next vault."""
    if error is None:
        return 0
    if error.reason is Reason.TOKEN_FAULT and error.facts.get("call") == LOGIN:
        return UNEXPLAINED  # it may have spent a PIN try
    return _EXIT.get(error.reason, FINAL)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one vault until it is told to end or cannot go on."""
    parser = argparse.ArgumentParser(prog="python -m appliance.vault", description=main.__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--slot", type=int, required=True)
    parser.add_argument("--generation", type=int, required=True)
    arguments = parser.parse_args(argv)
    supervisor.harden()
    status = _take_stdout()
    name = f"v{arguments.slot}-{arguments.generation}"
    logs.configure(f"vault {name}")
    pin = read_pin(sys.stdin.fileno())
    try:
        settings = config.load(arguments.config)
        os.environ.update(settings.module.environment)
        with claimed(settings.vault.socket_directory, arguments.slot, arguments.generation) as path:
            error = asyncio.run(_run(name, path, settings, pin, status))
    except ApplianceError as refusal:
        error = refusal
    finally:
        wipe(pin)
    if error is not None:
        told = {"reason": error.reason, "field": error.field, "detail": error.detail, "hint": error.hint}
        logs.get().error("vault cannot go on", **told)
    return exit_code(error)


def _take_stdout() -> int:
    """A descriptor of stdout for the status lines; whatever a module prints goes to stderr from now on."""
    status = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.set_blocking(status, False)
    return status


async def _run(name: str, path: Path, settings: Settings, pin: bytearray, status: int) -> ApplianceError | None:
    """Serves until the end, and answers its cause."""
    stop = _stop_asked()
    stamps = Stamps()
    reporting = asyncio.create_task(_report(stamps, status))
    profiles = [(profile, config.ca_certificate(profile)) for profile in settings.profiles.values()]

    def start() -> Engine:
        module = settings.module
        parameters = ModuleParameters(str(module.path), module.token_label, module.token_serial, module.arguments)
        issuers = tuple(settings.sim_issuers.values())
        try:
            return Engine.start(parameters, issuers, profiles, _text(pin), clock=_utc_now, stamp=stamps)
        finally:
            wipe(pin)

    thread = HsmThread(start, capacity=settings.vault.queue_capacity, recycle_after=settings.vault.recycle_after)
    await _first(thread.started, thread.ended, stop)
    if thread.started.done():
        issuers = {profile.name: certificate for profile, certificate in profiles}
        engine = thread.started.result()
        if engine.deviations:
            logs.get().warning("module deviates", how="; ".join(engine.deviations))
        server = grpc.aio.server()
        service = VaultService(name, engine, thread, stamps, issuers)
        add_VaultServiceServicer_to_server(service, server)
        with socket_mode():
            server.add_insecure_port(f"unix:{path}")
            await server.start()
        _say(status, state="ready")
        await _first(thread.ended, stop)
        path.unlink(missing_ok=True)
        thread.end()
        signal.alarm(LAST_SECONDS)
        if not stop.done():
            await asyncio.sleep(TURN_SECONDS)
        await thread.ended
        await server.stop(FLUSH_SECONDS)
    thread.end()
    signal.alarm(LAST_SECONDS)
    error = await thread.ended
    reporting.cancel()
    return error


async def _first(*futures: "asyncio.Future[Any]") -> None:
    """Returns when one of them is done."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _stop_asked() -> "asyncio.Future[None]":
    """Done at the end of the lifeline, or at SIGTERM."""
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[None] = loop.create_future()
    lifeline = sys.stdin.fileno()

    def ask() -> None:
        if not asked.done():
            asked.set_result(None)

    def heard() -> None:
        if not os.read(lifeline, 64):
            loop.remove_reader(lifeline)
            ask()

    loop.add_signal_handler(signal.SIGTERM, ask)
    loop.add_reader(lifeline, heard)
    return asked


async def _report(stamps: Stamps, status: int) -> None:
    """Status lines, from the event loop: they stop if it does, and the supervisor then ends this process."""
    while True:
        call, age = stamps.current()
        _say(status, call=call, age=round(age, 3))
        await asyncio.sleep(STATUS_SECONDS)


def _say(status: int, **message: str | float) -> None:
    with suppress(OSError):  # nobody reads: then the lifeline says so, or it was only late
        os.write(status, json.dumps(message).encode() + b"\n")


def _text(pin: bytearray) -> str:
    try:
        return pin.decode()
    except UnicodeDecodeError:
        raise ApplianceError(
            Reason.PIN_REJECTED, "The PIN is not UTF-8.", hint="Check where it is read from."
        ) from None


def _utc_now() -> datetime:
    return datetime.now(UTC)
