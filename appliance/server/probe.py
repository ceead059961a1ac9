"""`appliance health`: whether a part of this node serves, as its exit status; for containers, monitoring and people.

It asks over Unix sockets, so it needs no certificate: whoever runs it must be allowed to reach them.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance import config
from appliance.config import Settings
from appliance.domain.setting import SettingError
from appliance.issuing.vaults import newest_sockets
from appliance.server.health import FOLLOWING
from appliance.vault.v1.vault_pb2 import GetStatusRequest
from appliance.vault.v1.vault_pb2_grpc import VaultServiceStub

TIMEOUT: Final = 3.0
"""Seconds for each answer; none of them waits for the HSM."""


def main(argv: Sequence[str] | None = None) -> int:
    """Tell whether the front would serve an Issue call now, or how many vaults serve; exit status 1 where none does."""
    parser = argparse.ArgumentParser(prog="appliance health", description=main.__doc__)
    parser.add_argument("part", choices=("front", "vaults"), help="what is asked; as its user, or root")
    parser.add_argument("--config", type=Path, required=True, help="the appliance's settings, appliance.toml")
    arguments = parser.parse_args(argv)
    settings = config.load(arguments.config)
    healthy, told = asyncio.run((_front if arguments.part == "front" else _vaults)(settings))
    sys.stdout.write(f"{told}\n")
    return 0 if healthy else 1


async def _front(settings: Settings) -> tuple[bool, str]:
    if settings.front.health_socket is None:
        raise SettingError(
            "appliance.toml: front.health_socket",
            "The front has no health socket.",
            "Name one in a directory that only the front's user may write to, and restart the front.",
        )
    socket = settings.front.health_socket
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        try:
            answers = [await check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT) for name in FOLLOWING]
        except grpc.aio.AioRpcError:
            return False, f"front: does not answer; does it run, and may this user reach {socket}?"
    serves = all(answer.status == health_pb2.HealthCheckResponse.SERVING for answer in answers)
    return serves, "front: serves" if serves else "front: answers, but has no vault that serves or no ledger"


async def _vaults(settings: Settings) -> tuple[bool, str]:
    vault = settings.vault
    try:
        sockets = newest_sockets(vault.socket_directory)
    except OSError as error:
        return False, f"vaults: {vault.socket_directory}: {error.strerror}"
    answers = await asyncio.gather(*map(_answers, sockets))
    serving = ", ".join(socket.stem for socket, answer in zip(sockets, answers, strict=True) if answer)
    return any(answers), f"vaults: {sum(answers)} of {vault.count} serve{serving and f' ({serving})'}"


async def _answers(socket: Path) -> bool:
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        try:
            await VaultServiceStub(channel).GetStatus(GetStatusRequest(), timeout=TIMEOUT)
        except grpc.aio.AioRpcError:
            return False
    return True
