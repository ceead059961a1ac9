"""The target that is the vault's door: its service and a real engine on a SoftHSM token, in this process.

An input is the name of a method, a line's end, and the request's bytes.
"""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pkcs11
from cryptography import x509
from google.protobuf.message import DecodeError

from appliance.ceremony.authority import make_issuing_ca
from appliance.ceremony.masters import form_masters
from appliance.demo import published
from appliance.domain.certificate import public_key
from appliance.domain.package import KeyType, SimPackage
from appliance.domain.profile import CaMode
from appliance.errors import Reason
from appliance.hsm.engine import Engine
from appliance.hsm.making import initialise_token
from appliance.hsm.module import TokenSession
from appliance.vault.hsm_thread import HsmThread, Stamps
from appliance.vault.service import VaultService
from appliance.vault.v1 import vault_pb2 as pb
from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import Memory, State
from appliance.vsim.personalisation import Masters
from tests.fuzz.certificates import COMMON_NAME, END, NOW, SERIAL, authority
from tests.fuzz.certificates import PROFILE as REAL_PROFILE
from tests.fuzz.protobufs import beside
from tests.fuzz.target import Run, Target, require_documented
from tests.hsm.site import APPLET_AID, ICCID, ISSUER, KM_BIND, KM_CHAN, MODULE, PIN, SSD_AID, Calls, Site, profile, use
from tests.vsim.packages import P256, cmac, draft, tlv

PROFILE = "p256-ca"
MASTERS = Masters(KM_BIND, KM_CHAN, published.KVN, ssd_aid=SSD_AID, applet_aid=APPLET_AID)
EXTERNAL = replace(REAL_PROFILE, name="external", ca_mode=CaMode.EXTERNAL, ca_label="")
MOST_ITEMS = 3
"""Of one input; a batch is a loop over its items."""
METHODS: dict[bytes, Any] = {
    b"Issue": pb.IssueRequest,
    b"CompletePackages": pb.CompletePackagesRequest,
    b"OpenChannels": pb.OpenChannelsRequest,
    b"VerifyReceipts": pb.VerifyReceiptsRequest,
}


class Vault:
    """The service with its engine in its thread."""

    def __init__(self, service: VaultService, thread: HsmThread[Engine]) -> None:
        self._service = service
        self.thread = thread

    async def try_(self, data: bytes) -> None:
        """One input: each item has one result, which is right or an error of the table."""
        name, _, message = data.partition(b"\n")
        if name not in METHODS:
            return
        try:
            request = METHODS[name].FromString(message)
        except DecodeError:
            return
        del request.items[MOST_ITEMS:]
        for item in request.items:
            if name == b"Issue" and item.key_type == KeyType.RSA_2048:
                item.key_type = KeyType.EC_P256  # the search for primes takes half a second and reads no input
        if not request.items:
            return
        results = [result async for result in getattr(self._service, name.decode())(request, None)]
        assert [result.index for result in results] == [item.index for item in request.items]
        for item, result in zip(request.items, results, strict=True):
            if result.HasField("failure"):
                failure = result.failure
                require_documented(failure.reason, failure.detail, failure.hint)
                assert failure.reason != Reason.TOKEN_FAULT, (
                    f"a message reached the module and hurt it: {failure.detail}"
                )
            elif name == b"Issue" and result.HasField("package"):
                require_installable(item, result.package)
            elif name == b"Issue":
                assert x509.load_der_x509_csr(result.pending.certificate_request).is_signature_valid
            elif name == b"CompletePackages":
                package = SimPackage.decode(result.package)
                assert (package.header.encode(), package.wrapped) == (item.header, item.wrapped_key)
                assert package.certificate == item.certificate


def require_installable(item: pb.IssueItem, package: bytes) -> None:
    """The SIM that the item names installs what was sealed for it."""
    header = SimPackage.decode(package).header
    assert (header.iccid, header.applet_aid, header.counter) == (item.iccid, item.applet_aid, item.package_counter)
    masters = Masters(KM_BIND, KM_CHAN, published.KVN, ssd_aid=SSD_AID, applet_aid=item.applet_aid)
    VirtualSim(Memory(State(masters.personalise(item.iccid)))).install(package)


@contextmanager
def token() -> Iterator[Site]:
    """A token with masters and one CA, for as long as the context lasts; no other may be open in this process."""
    with tempfile.TemporaryDirectory(prefix="f-") as name, patch.dict(os.environ):
        directory = Path(name)
        use(directory, os.environ.__setitem__)
        try:
            parameters = initialise_token(MODULE, published.TOKEN_LABEL, published.SO_PIN, PIN)
            session = TokenSession(parameters, PIN, Calls())
            masters = form_masters(session, ISSUER, published.KVN, *map(published.components, ("KM-BIND", "KM-CHAN")))
            ends = NOW - timedelta(days=1), NOW + timedelta(days=3650)
            ca = make_issuing_ca(session, PROFILE.upper(), KeyType.EC_P256, "TEST", "CA", *ends)
            session.close()
            yield Site(directory, parameters, *masters, {PROFILE: ca})
        finally:
            pkcs11.lib(MODULE).finalize()


@contextmanager
def open_orders() -> Iterator[Run]:
    with token() as site, asyncio.Runner() as runner:
        vault = runner.run(_start(site))
        try:
            yield lambda data: runner.run(vault.try_(data))
        finally:
            runner.run(_end(vault))


async def _start(site: Site) -> Vault:
    stamps = Stamps()
    profiles = [(profile(PROFILE), site.authorities[PROFILE]), (EXTERNAL, authority().certificate)]

    def start() -> Engine:
        return Engine.start(site.module, [site.issuer()], profiles, PIN, clock=lambda: NOW, stamp=stamps)

    thread = HsmThread(start, capacity=64, recycle_after=1 << 62)
    begun: list[asyncio.Future[Any]] = [thread.started, thread.ended]
    await asyncio.wait(begun, return_when=asyncio.FIRST_COMPLETED)
    if thread.ended.done():
        raise AssertionError(f"the engine does not start: {thread.ended.result()}")
    return Vault(VaultService("v0-1", thread.started.result(), thread, stamps, site.authorities), thread)


async def _end(vault: Vault) -> None:
    vault.thread.end()
    assert await vault.thread.ended is None


def completion() -> pb.CompletionItem:
    """Something sealed, as far as its interim MAC says, and its certificate."""
    issued, keys = authority().issued, MASTERS.personalise(ICCID).binding
    fields = draft(P256).with_field(0x81, ICCID).with_field(0x83, bytes([published.KVN])).at(1)
    header = b"".join(tlv(*field) for field in fields.with_field(0x86, sha256(public_key(issued)).digest()).header)
    wrapped = bytes(80)
    return pb.CompletionItem(
        index=5,
        sim_issuer=ISSUER,
        header=tlv(0xE1, header),
        wrapped_key=wrapped,
        interim_mac=cmac(keys.k_auth, b"PENDING" + tlv(0xE1, header) + tlv(0xC1, wrapped)),
        certificate=issued,
        profile=EXTERNAL.name,
        subject_common_name=COMMON_NAME,
        latest_end_seconds=int(END.timestamp()),
    )


def orders() -> Iterator[bytes]:
    """Good requests of each method, and what is beside them."""
    good = (
        pb.IssueRequest(items=[item(PROFILE)]),
        pb.OpenChannelsRequest(
            items=[
                pb.ChannelItem(
                    index=2,
                    sim_issuer=ISSUER,
                    kvn=published.KVN,
                    iccid=ICCID,
                    sequence_counter=1,
                    host_challenge=bytes(8),
                )
            ]
        ),
        pb.CompletePackagesRequest(items=[completion()]),
        pb.VerifyReceiptsRequest(items=[proof()]),
    )
    for request in (pb.IssueRequest(items=[item(EXTERNAL.name)]), *good, *chain.from_iterable(map(beside, good))):
        yield type(request).__name__.removesuffix("Request").encode() + b"\n" + request.SerializeToString()


def item(profile: str) -> pb.IssueItem:
    """A key for the SIM of the published vectors."""
    return pb.IssueItem(
        index=1,
        sim_issuer=ISSUER,
        kvn=published.KVN,
        iccid=ICCID,
        applet_aid=APPLET_AID,
        key_type=KeyType.EC_P256,
        package_counter=1,
        activation_code="12345678",
        profile=profile,
        certificate_serial=SERIAL.to_bytes(16),
        subject_common_name=COMMON_NAME,
        not_before_seconds=int(NOW.timestamp()),
        not_after_seconds=int(END.timestamp()),
    )


def proof() -> pb.ReceiptItem:
    """What a SIM answers to a package that the masters' holder has sealed for it."""
    sealed = draft(P256).with_field(0x81, ICCID).with_field(0x83, bytes([published.KVN])).at(1)
    sim = VirtualSim(Memory(State(MASTERS.personalise(ICCID))))
    package = sealed.sealed(sim.state.sim)
    sim.install(package)
    assert sim.state.installed is not None
    return pb.ReceiptItem(
        index=3,
        sim_issuer=ISSUER,
        header=SimPackage.decode(package).header.encode(),
        certificate=sealed.certificate,
        receipt=sim.state.installed.receipt,
    )


ORDERS = Target(open_orders, orders, 2500)
