"""The vaults of this machine as the front sees them: which serve, which has room, and one item to one of them.

A vault is one incarnation of a process: `v<slot>-<generation>.sock` in the socket directory, with a channel of its own
(`link`) for as long as that socket is the newest of its slot. Session keys are asked for in batches (`channels`), all
else alone.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeVar

from appliance import logs
from appliance.apdu.scp03 import SessionKeys
from appliance.domain.issuance import Attempt, IssuanceRecord
from appliance.domain.package import Header, PendingPackage, SimPackage
from appliance.domain.sim import Iccid
from appliance.errors import ApplianceError, Reason
from appliance.issuing.channels import Channels
from appliance.issuing.link import CALL_TIMEOUT, NOT_TAKEN, Link, VaultLost, refusal, responses
from appliance.vault.v1 import vault_pb2 as pb

if TYPE_CHECKING:
    from appliance.vault.v1.vault_pb2_grpc import VaultServiceAsyncStub

SCAN_SECONDS: Final = 0.2
MAX_LOST: Final = 3
"""Vaults that may die over one call that makes nothing, as for an issuance."""
PATIENCE: Final = 30.0
"""How long work that is already reserved waits for a vault: enough for one to be restarted and to log in."""

_SOCKET: Final = re.compile(r"v([0-9]+)-([0-9]+)\.sock")

Response = TypeVar("Response", pb.IssueResponse, pb.CompletePackagesResponse, pb.VerifyReceiptsResponse)
T = TypeVar("T")


class OpenChannel(NamedTuple):
    """A secure channel that can be rendered: the card's challenge and the session keys, S-RMAC where asked for."""

    card_challenge: bytes
    keys: SessionKeys


class Vaults:
    """Watches the socket directory and sends items to the least loaded vault. Use within one event loop.

    Args:
        directory: where the vaults' sockets appear.
        patience: seconds that an item waits for a vault with room.
    """

    def __init__(self, directory: Path, *, patience: float = PATIENCE) -> None:
        self._directory = directory
        self._patience = patience
        self._links: dict[str, Link] = {}
        self._channels = Channels(self._links.values, self._none)
        self._admitted = 0
        self._changed = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self._scanning: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if not self._directory.is_dir():
            logs.get().warning("the directory of the vaults' sockets is not there", directory=str(self._directory))
        self._scanning = asyncio.create_task(self._scan())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._scanning:
            self._scanning.cancel()
        for name in list(self._links):
            self._retire(name)
        await self._channels.close()
        await asyncio.gather(*self._closing)

    @property
    def ready(self) -> bool:
        """Whether at least one vault serves."""
        return any(link.serving for link in self._links.values())

    async def wait_ready(self, timeout: float | None = None) -> None:
        """Returns when a vault serves; waits `timeout` seconds, or as long as an item would.

        Raises:
            ApplianceError: VAULTS_UNAVAILABLE.
        """
        until = asyncio.get_running_loop().time() + (self._patience if timeout is None else timeout)
        while not self.ready:
            await self._change(until)
            if asyncio.get_running_loop().time() >= until:
                raise self._none()

    async def change(self, timeout: float) -> None:
        """Returns when something about the vaults may have changed, or after `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._changed.wait()

    def status(self) -> list[pb.GetStatusResponse]:
        """The last status of every vault that answers, in the order of their slots."""
        return [link.status for _, link in sorted(self._links.items()) if link.status]

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """A place for one item, held until the context ends: so that what is reserved finds a vault with room.

        Raises:
            ApplianceError: VAULTS_UNAVAILABLE, VAULTS_BUSY.
        """
        if sum(link.capacity for link in self._links.values()) <= self._admitted:
            raise self._none()
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    async def issue(
        self, record: IssuanceRecord, attempt: Attempt, activation_code: str, not_before: datetime
    ) -> bytes | PendingPackage:
        """The SIM package of one attempt at what was reserved, or, under an external CA, what waits for a certificate.

        Raises:
            VaultLost: the attempt's counter and serial may be spent; another attempt needs its own.
            ApplianceError: the vault's refusal, or VAULTS_BUSY, VAULTS_UNAVAILABLE.
        """
        item = pb.IssueItem(
            sim_issuer=record.sim_issuer,
            kvn=record.kvn,
            iccid=Iccid.parse(record.iccid).ef_coding,
            applet_aid=record.applet_aid,
            key_type=record.key_type,
            package_counter=attempt.counter,
            activation_code=activation_code,
            profile=record.profile,
            certificate_serial=attempt.serial,
            subject_common_name=record.subject_common_name,
            not_before_seconds=int(not_before.timestamp()),
            not_after_seconds=int(record.not_after.timestamp()),
        )
        request = pb.IssueRequest(items=[item])
        made = await self._send(lambda stub: stub.Issue(request, timeout=CALL_TIMEOUT))
        return _pending(made.pending) if made.HasField("pending") else _package(made.package)

    async def complete(self, record: IssuanceRecord, certificate: bytes) -> bytes:
        """The SIM package of what waits, with its certificate (DER). Raises as `issue`."""
        assert record.pending  # noqa: S101 (the caller has looked)
        item = pb.CompletionItem(
            sim_issuer=record.sim_issuer,
            header=record.pending.header.encode(),
            wrapped_key=record.pending.wrapped,
            interim_mac=record.pending.interim_mac,
            certificate=certificate,
            profile=record.profile,
            subject_common_name=record.subject_common_name,
            latest_end_seconds=int(record.card_not_after.timestamp()),
        )
        request = pb.CompletePackagesRequest(items=[item])
        return _package((await self._send(lambda stub: stub.CompletePackages(request, timeout=CALL_TIMEOUT))).package)

    async def open_channel(
        self, record: IssuanceRecord, sequence_counter: int, host_challenge: bytes, *, with_s_rmac: bool = False
    ) -> OpenChannel:
        """SCP03 session keys for one SIM and one value of its sequence counter. Raises as `issue`.

        What is asked for at once goes to a vault together.
        """
        item = pb.ChannelItem(
            sim_issuer=record.sim_issuer,
            kvn=record.kvn,
            iccid=Iccid.parse(record.iccid).ef_coding,
            sequence_counter=sequence_counter,
            host_challenge=host_challenge,
            with_s_rmac=with_s_rmac,
        )
        keys = await self._channels.open(item, asyncio.get_running_loop().time() + self._patience)
        return OpenChannel(keys.card_challenge, SessionKeys(keys.s_enc, keys.s_mac, keys.s_rmac))

    async def verify_receipt(self, record: IssuanceRecord, receipt: bytes) -> None:
        """Returns only if the receipt is the SIM's, for this package and certificate. Raises as `issue`."""
        item = pb.ReceiptItem(
            sim_issuer=record.sim_issuer,
            header=record.header or b"",
            certificate=record.certificate or b"",
            receipt=receipt,
        )
        request = pb.VerifyReceiptsRequest(items=[item])
        await self._send(lambda stub: stub.VerifyReceipts(request, timeout=CALL_TIMEOUT))

    async def _send(self, call: "Callable[[VaultServiceAsyncStub], AsyncIterable[Response]]") -> Response:
        until = asyncio.get_running_loop().time() + self._patience
        while True:
            link = await self._choose(until)
            link.in_flight += 1
            try:
                return await _only(call(link.stub))
            except ApplianceError as refused:
                if refused.reason not in NOT_TAKEN:
                    raise
                link.full()
            except VaultLost:
                link.lost()
                logs.get().warning("vault lost with an item in hand", vault=link.name)
                raise
            finally:
                link.in_flight -= 1
                self._notify()

    async def _choose(self, until: float) -> Link:
        while True:
            open_links = [link for link in self._links.values() if link.room > 0]
            if open_links:
                return min(open_links, key=lambda link: link.load)
            if asyncio.get_running_loop().time() >= until:
                raise self._none()
            await self._change(until)

    async def _scan(self) -> None:
        blind = False
        while True:
            try:
                present = {path.stem: path for path in newest_sockets(self._directory)}
            except OSError as error:
                # Out of descriptors, say: what serves goes on serving.
                if not blind:
                    logs.get().warning("vaults' sockets cannot be listed", error=type(error).__name__)
                blind = True
            else:
                blind = False
                for name in self._links.keys() - present.keys():
                    self._retire(name)
                for name in present.keys() - self._links.keys():
                    self._links[name] = Link(present[name], self._notify)
            await asyncio.sleep(SCAN_SECONDS)

    def _retire(self, name: str) -> None:
        closing = asyncio.create_task(self._links.pop(name).close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._channels.dispatch()

    async def _change(self, until: float) -> None:
        await self.change(until - asyncio.get_running_loop().time())

    def _none(self) -> ApplianceError:
        if self.ready:
            return ApplianceError(
                Reason.VAULTS_BUSY, "Every vault's queue is full.", hint="Send the same call again a little later."
            )
        return ApplianceError(
            Reason.VAULTS_UNAVAILABLE, "No vault is serving.", hint="Send the same call again; tell the operator."
        )


async def retried(ask: Callable[[], Awaitable[T]]) -> T:
    """The vault's answer; where a vault is lost, another one's: for calls that make nothing, which are safe to repeat.

    Raises:
        ApplianceError: VAULTS_UNAVAILABLE when several are lost in a row.
    """
    for _ in range(MAX_LOST):
        with contextlib.suppress(VaultLost):
            return await ask()
    raise ApplianceError(
        Reason.VAULTS_UNAVAILABLE, "The vaults died over this call.", hint="Tell the operator before sending it again."
    )


def newest_sockets(directory: Path) -> list[Path]:
    """The socket of the highest generation of each slot; none while the directory is not there.

    Raises:
        OSError: it cannot be read.
    """
    if not directory.exists():
        return []
    found = sorted(
        (int(form[1]), int(form[2])) for path in directory.iterdir() if (form := _SOCKET.fullmatch(path.name))
    )
    return [directory / f"v{slot}-{generation}.sock" for slot, generation in dict(found).items()]


async def _only(call: AsyncIterable[Response]) -> Response:
    """The response to the one item of a call.

    Raises:
        VaultLost, ApplianceError
    """
    made = [response async for response in responses(call)]
    if len(made) != 1:
        raise VaultLost
    if made[0].HasField("failure"):
        raise refusal(made[0].failure)
    return made[0]


def _package(package: bytes) -> bytes:
    try:
        SimPackage.decode(package)
    except ApplianceError as error:
        raise _senseless("no SIM package") from error
    return package


def _pending(answered: pb.PendingPackage) -> PendingPackage:
    try:
        return PendingPackage(
            Header.decode(answered.header), answered.wrapped_key, answered.certificate_request, answered.interim_mac
        )
    except ApplianceError as error:
        raise _senseless("nothing that a certificate completes") from error


def _senseless(what: str) -> ApplianceError:
    return ApplianceError(Reason.INTERNAL, f"The vault answered something that is {what}.", hint="Tell the operator.")
