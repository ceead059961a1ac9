"""The target that is the public door: a whole front over mutual TLS, with a ledger and a fake vault behind it.

An input is the name of a method, a line's end, and the request's bytes. Some values only a running front knows; for
these an input has stand-ins of the same length.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from appliance.api.status import parse
from appliance.api.v1 import delivery_pb2, issuance_pb2, operations_pb2
from appliance.domain.package import SimPackage
from appliance.domain.sim import luhn_check_digit
from appliance.ledger import migrate
from tests.fuzz.certificates import authority
from tests.fuzz.protobufs import beside
from tests.fuzz.target import Run, Target, require_documented
from tests.server import site
from tests.server.fake_vault import FakeVault, good_receipt

ISSUANCE: Final = b"issuances/" + b"0" * 32
WAITING: Final = b"issuances/" + b"1" * 32
RECEIPT: Final = b"R" * 80
TOKEN: Final = b"T" * 100
"""Stand-ins: for an issuance that is READY, one that waits for its certificate, the receipt of the first, and the token
of a second page."""
REQUEST_ID: Final = "01234567-89ab-cdef-0123-456789abcdef"
IDENTITIES: Final = {"IssuanceService": "issuer", "DeliveryService": "tsm-a", "OperationsService": "operator"}


class Method(NamedTuple):
    """A method of the public API, who may call it, and its answer."""

    path: str
    identity: str
    answer: type[Message]


METHODS: Final = {
    method.name.encode(): Method(
        f"/{service.full_name}/{method.name}", IDENTITIES[service.name], GetMessageClass(method.output_type)
    )
    for api in (issuance_pb2, delivery_pb2, operations_pb2)
    for service in api.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class Door:
    """A front, its clients and its vault, an issuance that can be delivered, and one that waits for a certificate."""

    def __init__(self, channels: dict[str, grpc.aio.Channel], vault: FakeVault) -> None:
        self._channels = channels
        self._vault = vault
        self._numbers = count(1)
        self._known: dict[bytes, bytes] = {}

    async def call(self, name: bytes, message: bytes) -> bytes:
        """The answer; AioRpcError where there is none."""
        method = METHODS[name]
        made: Any = self._channels[method.identity].unary_unary(method.path)  # without serializers: bytes to bytes
        return bytes(await made(message, timeout=site.WAIT))

    async def prepare(self) -> None:
        """Make issuances for the stand-ins."""
        waiting, ready = await self._issue(external=True), await self._issue(external=False)
        shown = issuance_pb2.GetIssuanceRequest(name=ready, view=issuance_pb2.ISSUANCE_VIEW_WITH_PACKAGE)
        answer = await self.call(b"GetIssuance", shown.SerializeToString())
        package = SimPackage.decode(issuance_pb2.GetIssuanceResponse.FromString(answer).issuance.package)
        receipt = good_receipt(package.header.encode(), package.certificate)
        self._known |= {WAITING: waiting.encode(), ISSUANCE: ready.encode(), RECEIPT: receipt}

    async def _issue(self, *, external: bool) -> str:
        number = next(self._numbers)
        digits = f"8981{number:014}"
        wanted = site.request(f"waiting-{number}", iccid=digits + luhn_check_digit(digits))
        self._vault.external = external
        answer = await self.call(b"Issue", wanted.SerializeToString())
        return issuance_pb2.IssueResponse.FromString(answer).issuance.name

    async def page(self) -> None:
        """Find a token for its stand-in; there are two issuances."""
        answer = await self.call(b"ListIssuances", issuance_pb2.ListIssuancesRequest(page_size=1).SerializeToString())
        token = issuance_pb2.ListIssuancesResponse.FromString(answer).next_page_token.encode()
        assert len(token) == len(TOKEN)
        self._known[TOKEN] = token

    async def try_(self, data: bytes) -> None:
        """One input."""
        name, _, message = data.partition(b"\n")
        if name not in METHODS:
            name = list(METHODS)[len(name) % len(METHODS)]
        for stand_in, value in self._known.items():
            message = message.replace(stand_in, value)
        try:
            METHODS[name].answer.FromString(await self.call(name, message))
        except grpc.aio.AioRpcError as error:
            failed = parse(error)
            require_documented(failed.reason, failed.detail, failed.hint)
        else:
            if name in {b"Abandon", b"ReportReceipt", b"SubmitCertificate"}:
                await self.prepare()


@asynccontextmanager
async def door() -> AsyncIterator[Door]:
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="f-")))
        for name in ("tls", "v"):
            (directory / name).mkdir()
        site.make_identities(directory / "tls")
        declared = site.settings(directory, directory / "tls", directory / "v")
        migrate(declared.front.ledger)
        vault = await stack.enter_async_context(FakeVault(directory / "v"))
        front = await stack.enter_async_context(site.serving(declared))
        await site.until_ready(front)
        channels = {name: await stack.enter_async_context(front.channel(name)) for name in set(IDENTITIES.values())}
        opened = Door(channels, vault)
        await opened.prepare()
        await opened.page()
        yield opened


@contextmanager
def open_calls() -> Iterator[Run]:
    with asyncio.Runner() as runner:
        opening = door()
        opened = runner.run(opening.__aenter__())
        try:
            yield lambda data: runner.run(opened.try_(data))
        finally:
            runner.run(opening.__aexit__(None, None, None))


def calls() -> Iterator[bytes]:
    """Good requests of each method, and what is beside them."""
    name, receipt = ISSUANCE.decode(), RECEIPT
    played = delivery_pb2.PlayedScript(request_id=REQUEST_ID, sequence_counter=1, responses=[b"\x90\x00"] * 3)
    messages: dict[str, list[Any]] = {
        "Issue": [
            site.request(request_id=REQUEST_ID),
            site.request(request_id=REQUEST_ID, validate_only=True, kvn=0x30, applet_aid=b"applet"),
        ],
        "GetIssuance": [issuance_pb2.GetIssuanceRequest(name=name, view=issuance_pb2.ISSUANCE_VIEW_WITH_PACKAGE)],
        "ListIssuances": [
            issuance_pb2.ListIssuancesRequest(page_size=1, page_token=TOKEN.decode()),
            issuance_pb2.ListIssuancesRequest(person_id="waiting-1", state=issuance_pb2.ISSUANCE_STATE_READY),
        ],
        "SubmitCertificate": [
            issuance_pb2.SubmitCertificateRequest(
                request_id=REQUEST_ID, name=WAITING.decode(), certificate=authority().issued
            )
        ],
        "Abandon": [issuance_pb2.AbandonRequest(request_id=REQUEST_ID, name=name)],
        "FetchScript": [delivery_pb2.FetchScriptRequest(request_id=REQUEST_ID, issuance=name, sequence_counter=1)],
        "ReportReceipt": [
            delivery_pb2.ReportReceiptRequest(request_id=REQUEST_ID, issuance=name, receipt=receipt),
            delivery_pb2.ReportReceiptRequest(request_id=REQUEST_ID, issuance=name, played=played),
        ],
        "GetStatus": [operations_pb2.GetStatusRequest()],
    }
    assert {method.encode() for method in messages} == set(METHODS)
    for method, requests in messages.items():
        for request in chain.from_iterable((request, *beside(request)) for request in requests):
            yield method.encode() + b"\n" + request.SerializeToString()


CALLS = Target(open_calls, calls, 2048)
