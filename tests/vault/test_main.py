"""The vault's process with a real token: what it serves, how it starts, and how it ends."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from appliance.demo import published
from appliance.domain.package import KeyType, SimPackage
from appliance.domain.sim import Iccid
from appliance.errors import REASONS, ApplianceError, Reason
from appliance.supervisor import FINAL, RETRY
from appliance.vault.main import UNEXPLAINED, exit_code
from appliance.vault.v1 import vault_pb2 as pb
from appliance.vault.v1.vault_pb2_grpc import VaultServiceStub
from tests.vault.conftest import PIN, Site, Start, Vault

if TYPE_CHECKING:  # the stub for aio channels is a type alone
    from appliance.vault.v1.vault_pb2_grpc import VaultServiceAsyncStub

WAIT = 60.0
ICCID = Iccid.parse("8981100000000000002")
CODE = "AB12CD34"


def item(**change: Any) -> pb.IssueItem:
    now = int(time.time())
    fields: dict[str, Any] = {
        "sim_issuer": published.SIM_ISSUER,
        "kvn": published.KVN,
        "iccid": ICCID.ef_coding,
        "applet_aid": bytes.fromhex("D392F000260100000001"),
        "key_type": KeyType.EC_P256,
        "package_counter": 1,
        "activation_code": CODE,
        "profile": published.PROFILE,
        "certificate_serial": b"\x40" + os.urandom(15),
        "subject_common_name": "0123456789ABCDEF",
        "not_before_seconds": now,
        "not_after_seconds": now + 86400,
    }
    return pb.IssueItem(**(fields | change))


@pytest.fixture
async def stub(vault: Vault) -> AsyncIterator["VaultServiceAsyncStub"]:
    async with grpc.aio.insecure_channel(f"unix:{vault.socket}") as channel:
        yield VaultServiceStub(channel)


async def issue(stub: "VaultServiceAsyncStub", *items: pb.IssueItem) -> list[pb.IssueResponse]:
    return [response async for response in stub.Issue(pb.IssueRequest(items=items), timeout=WAIT)]


async def test_keys_of_every_type_are_sealed_and_a_bad_item_fails_alone(stub: "VaultServiceAsyncStub") -> None:
    responses = await issue(
        stub,
        *(item(index=number, key_type=key_type) for number, key_type in enumerate(KeyType, 1)),
        item(index=9, kvn=0x55),
    )
    by_index = {response.index: response for response in responses}
    for number, key_type in enumerate(KeyType, 1):
        header = SimPackage.decode(by_index[number].package).header
        assert (header.key_type, header.iccid, header.kvn) == (key_type, ICCID.ef_coding, published.KVN)
    assert by_index[9].failure.reason == "KEY_SET_UNKNOWN"
    assert by_index[9].failure.hint
    assert len(responses) == 4


async def test_a_channel_is_opened_and_a_wrong_receipt_rejected(stub: "VaultServiceAsyncStub") -> None:
    channel = pb.ChannelItem(
        sim_issuer=published.SIM_ISSUER,
        kvn=published.KVN,
        iccid=ICCID.ef_coding,
        sequence_counter=1,
        host_challenge=b"\1" * 8,
        with_s_rmac=True,
    )
    (opened,) = [response async for response in stub.OpenChannels(pb.OpenChannelsRequest(items=[channel]))]
    assert {len(opened.keys.s_enc), len(opened.keys.s_mac), len(opened.keys.s_rmac)} == {16}
    (made,) = await issue(stub, item())
    package = SimPackage.decode(made.package)
    receipt = pb.ReceiptItem(
        sim_issuer=published.SIM_ISSUER,
        header=package.header.encode(),
        certificate=package.certificate,
        receipt=bytes(64 + 16),
    )
    (verdict,) = [response async for response in stub.VerifyReceipts(pb.VerifyReceiptsRequest(items=[receipt]))]
    assert verdict.failure.reason == "RECEIPT_REJECTED"


async def test_status_names_token_key_sets_and_issuing_ca(
    stub: "VaultServiceAsyncStub", vault: Vault, site: Site
) -> None:
    status = await stub.GetStatus(pb.GetStatusRequest())
    (key_set,) = site.settings.sim_issuers[published.SIM_ISSUER].key_sets
    assert status.vault == vault.name
    assert (status.token_label, status.token_serial) == (published.TOKEN_LABEL, site.settings.module.token_serial)
    assert status.key_sets == [
        pb.KeySet(
            sim_issuer=published.SIM_ISSUER,
            kvn=published.KVN,
            bind_kcv=key_set.bind.kcv_bytes,
            chan_kcv=key_set.chan.kcv_bytes,
        )
    ]
    assert list(status.issuers) == [published.PROFILE]


def test_the_socket_is_for_owner_and_group(vault: Vault) -> None:
    assert stat.S_IMODE(vault.socket.stat().st_mode) == 0o660


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_user_cannot_connect(vault: Vault, site: Site) -> None:
    # As nobody, started where the socket's directory is open already: the socket's own mode must refuse.
    connect = f"import os, socket; os.chdir({str(vault.socket.parent)!r}); os.setgid(65534); os.setuid(65534); "
    connect += f"socket.socket(socket.AF_UNIX).connect({vault.socket.name!r})"
    mode = stat.S_IMODE(site.sockets.stat().st_mode)
    site.sockets.chmod(0o755)
    try:
        tried = subprocess.run([sys.executable, "-c", connect], capture_output=True, text=True, check=False)
    finally:
        site.sockets.chmod(mode)
    assert "PermissionError" in tried.stderr


def test_the_pin_is_in_no_argv_environment_or_log(vault: Vault) -> None:
    assert PIN.encode() not in Path(f"/proc/{vault.process.pid}/cmdline").read_bytes()
    try:
        assert PIN.encode() not in Path(f"/proc/{vault.process.pid}/environ").read_bytes()
    except PermissionError:  # not dumpable, and this is not root
        assert os.geteuid() != 0
    assert PIN not in vault.log()
    assert CODE not in vault.log()


def test_it_leaves_no_core_and_cannot_be_attached_to(vault: Vault) -> None:
    limits = Path(f"/proc/{vault.process.pid}/limits").read_text(encoding="ascii")
    assert next(line for line in limits.splitlines() if line.startswith("Max core file size")).split()[4:6] == [
        "0",
        "0",
    ]
    assert Path(f"/proc/{vault.process.pid}/mem").stat().st_uid == 0  # PR_SET_DUMPABLE 0: proc(5)


def test_the_end_of_the_lifeline_ends_it(start: Start) -> None:
    vault = start().ready()
    vault.close_lifeline()
    assert vault.ended() == 0
    assert not vault.socket.exists()


def test_sigterm_ends_it(start: Start) -> None:
    vault = start().ready()
    vault.process.send_signal(signal.SIGTERM)
    assert vault.ended() == 0
    assert not vault.socket.exists()


async def test_the_item_in_hand_is_finished_and_the_others_are_told_that_nothing_was_done(start: Start) -> None:
    vault = start().ready()
    async with grpc.aio.insecure_channel(f"unix:{vault.socket}") as channel:
        stub = VaultServiceStub(channel)
        # RSA keys take long enough for the lifeline to end in one of them; each response is one item's answer.
        call = stub.Issue(pb.IssueRequest(items=[item(index=n, key_type=KeyType.RSA_2048) for n in range(20)]))
        responses = [await anext(aiter(call))]
        vault.close_lifeline()
        responses += [response async for response in call]
    assert vault.ended() == 0
    assert len(responses) == 20
    assert responses[0].package
    assert {response.failure.reason for response in responses if not response.package} == {"DRAINING"}


async def test_it_is_recycled_when_it_has_done_so_many_items(start: Start, site: Site) -> None:
    variant = site.variant("recycling", lambda text: text.replace("[vault]", "[vault]\nrecycle_after = 2"))
    vault = start(at=variant).ready()
    async with grpc.aio.insecure_channel(f"unix:{vault.socket}") as channel:
        responses = await issue(VaultServiceStub(channel), item(index=1), item(index=2), item(index=3))
    assert [bool(response.package) for response in sorted(responses, key=lambda r: r.index)] == [True, True, False]
    assert vault.ended() == 0


def test_a_wrong_pin_is_final_and_tried_once(start: Start) -> None:
    vault = start(pin="not-the-pin-4711")
    assert vault.ended() == FINAL
    (line,) = [json.loads(line) for line in vault.log().splitlines()]
    assert line["reason"] == "PIN_REJECTED"
    assert "not-the-pin-4711" not in vault.log()


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "code", "reason"),
    [
        ("absent", "appliance.toml", '"DEMO-JPKI"', '"DEMO-OTHER"', RETRY, "TOKEN_ABSENT"),
        ("serial", "appliance.toml", 'token_serial = "', 'token_serial = "00" # "', FINAL, "TOKEN_CHANGED"),
        ("module", "appliance.toml", "libsofthsm2.so", "libabsent.so", RETRY, "TOKEN_ABSENT"),
        ("label", "sim_issuers/demo-mno.toml", "KM-BIND/", "KM-LOST/", FINAL, "KEY_MISSING"),
        ("unknown", "appliance.toml", "count = 2", "cuont = 2", UNEXPLAINED, "SETTINGS_INVALID"),
        ("production", "appliance.toml", '"demo"', '"production"', UNEXPLAINED, "DEMO_IN_PRODUCTION"),
        (
            "ca",
            "profiles/jpki-user-authentication.toml",
            "issuing-ca.pem",
            "absent.pem",
            UNEXPLAINED,
            "SETTINGS_INVALID",
        ),
    ],
)
def test_what_cannot_be_served_is_said_and_decides_whether_to_try_again(
    start: Start, site: Site, name: str, file: str, old: str, new: str, code: int, reason: str
) -> None:
    variant = site.variant(name, lambda text: text.replace(old, new, 1), file)
    vault = start(at=variant)
    assert vault.ended() == code
    assert json.loads(vault.log().splitlines()[-1])["reason"] == reason
    assert PIN not in vault.log()


def test_a_key_of_another_value_than_declared_is_refused(start: Start, site: Site) -> None:
    bind = site.settings.sim_issuers[published.SIM_ISSUER].key_sets[0].bind
    file = f"sim_issuers/{published.SIM_ISSUER}.toml"
    vault = start(at=site.variant("kcv", lambda text: text.replace(bind.kdf_kcv, "000000"), file))
    assert vault.ended() == FINAL
    assert json.loads(vault.log().splitlines()[-1])["reason"] == "KCV_MISMATCH"


def test_a_slot_is_held_by_one_vault_and_its_socket_left_alone(start: Start, vault: Vault) -> None:
    second = start(slot=0, generation=os.getpid() + 1)
    assert second.ended() == RETRY
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(vault.socket))


NOISY = """
import os, sys
from appliance import config
from appliance.vault.main import main
load = config.load
def noisy(path):
    os.write(1, b"noise of a module\\n")
    return load(path)
config.load = noisy
sys.exit(main())
"""


def test_what_a_module_prints_is_not_a_status_line(start: Start) -> None:
    vault = start("-c", NOISY).ready()
    vault.close_lifeline()
    assert vault.ended() == 0
    assert "noise of a module" in vault.log()


def test_a_vault_loads_no_database() -> None:
    listing = "import sys, appliance.vault.main; print(*{name.partition('.')[0] for name in sys.modules})"
    shown = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    loaded = set(shown.stdout.split())
    assert "pkcs11" in loaded
    assert not loaded & {"sqlalchemy", "alembic", "sqlite3", "psycopg"}


@pytest.mark.parametrize("reason", list(REASONS))
def test_every_reason_has_an_exit_code(reason: Reason) -> None:
    again = {Reason.TOKEN_ABSENT, Reason.TOKEN_FAULT, Reason.DRAINING}
    unclear = {Reason.SETTINGS_INVALID, Reason.DEMO_IN_PRODUCTION, Reason.INTERNAL}
    expected = RETRY if reason in again else UNEXPLAINED if reason in unclear else FINAL
    assert exit_code(ApplianceError(reason, "What.", hint="How.")) == expected


def test_a_login_that_failed_for_no_clear_reason_is_unexplained() -> None:
    assert exit_code(ApplianceError(Reason.TOKEN_FAULT, "What.", hint="How.", call="login")) == UNEXPLAINED
    assert exit_code(None) == 0
