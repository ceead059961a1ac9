"""Exports of packages that are well formed, for SIMs whose channel keys come from a published master."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from appliance.apdu import engine, scp03
from appliance.apdu.scp03 import Mode, kcv
from appliance.api.v1 import bureau_pb2 as pb
from appliance.api.v1 import issuance_pb2
from appliance.bureau.export import write
from appliance.bureau.records import delimited
from appliance.domain.derivation import CHANNEL_ENC, CHANNEL_MAC
from appliance.domain.package import Header, KeyType, SimPackage
from appliance.domain.sim import Iccid, luhn_check_digit
from tests.vsim.packages import KM_CHAN

ROOT = Path(__file__).parents[2]
SSD_AID = bytes.fromhex("A0000001515350534F")
APPLET_AID = bytes.fromhex("D392F000260100000001")
KVN = 0x30
WRAPPED, CERTIFICATE = 1232, 1110
"""Bytes of C1 and C2: such a package has 2,480 bytes, 11 STORE DATA in S8."""


def route(level: int = 0x03, i: int = 0x70, bits: int = 128) -> pb.ExportRoute:
    return pb.ExportRoute(
        sim_issuer="simIssuers/example-mno",
        kvn=KVN,
        ssd_aid=SSD_AID,
        channel_kvn=0x31,
        channel_i=i,
        channel_key_bits=bits,
        security_level=level,
        km_chan_kcv=kcv(KM_CHAN),
    )


def iccid(number: int) -> Iccid:
    digits = f"8981309{number:011d}"
    return Iccid(digits + luhn_check_digit(digits))


def sealed(number: int) -> bytes:
    """A package for the SIM of this number: right in form, random in content."""
    header = Header(
        iccid=iccid(number).ef_coding,
        applet_aid=APPLET_AID,
        kvn=KVN,
        counter=1 + number,
        key_type=KeyType.RSA_2048,
        spki_sha256=os.urandom(32),
        activation_check=os.urandom(8),
    )
    return SimPackage(header, os.urandom(WRAPPED), os.urandom(CERTIFICATE), os.urandom(16)).encode()


def package(
    number: int, *, counter: int = 1, window: int = 0, name: str = "", content: bytes = b""
) -> pb.ExportedPackage:
    content = content or sealed(number)
    return pb.ExportedPackage(
        issuance=name or f"issuances/{number:032x}",
        iccid=iccid(number).digits,
        key_type=issuance_pb2.KEY_TYPE_RSA_2048,
        applet_aid=APPLET_AID,
        route=0,
        package=content,
        package_sha256=hashlib.sha256(content).digest(),
        sequence_counter=counter,
        window=window,
    )


def with_session(made: pb.ExportedPackage, way: pb.ExportRoute, by: ModuleType = scp03) -> pb.ExportedPackage:
    """The same, with the session keys that the static ones give for its counter, by reference or engine."""
    mode, bits = Mode(16 if way.channel_i & 1 else 8), way.channel_key_bits
    kdd = Iccid(made.iccid).ef_coding
    k_enc, k_mac = (by.kdf3(KM_CHAN, constant, kdd, bits) for constant in (CHANNEL_ENC, CHANNEL_MAC))
    host = os.urandom(mode)
    card = by.card_challenge(k_enc, made.sequence_counter, SSD_AID, mode)
    keys = by.derive_session_keys(k_enc, k_mac, host, card)
    made.sessions.add(
        sequence_counter=made.sequence_counter,
        host_challenge=host,
        card_challenge=card,
        s_enc=keys.s_enc,
        s_mac=keys.s_mac,
    )
    made.ClearField("sequence_counter")
    return made


def export(path: Path, packages: Sequence[pb.ExportedPackage], *, way: pb.ExportRoute | None = None) -> Path:
    sessions = bool(packages and packages[0].sessions)
    write(path, pb.ExportHead(packages=len(packages), routes=[way or route()], session_keys=sessions), packages)
    return path


def by_hand(path: Path, packages: Sequence[pb.ExportedPackage], told: int) -> Path:
    """An export as another program might write it: its digest is right, whatever it says."""
    head = pb.ExportHead(format="sim-packages-1", packages=told, routes=[route()])
    content = b"".join(delimited(message.SerializeToString()) for message in (head, *packages))
    path.write_bytes(content + delimited(pb.ExportEnd(sha256=hashlib.sha256(content).digest()).SerializeToString()))
    return path


def many(path: Path, count: int, *, static: bool = True) -> Path:
    """An export of `count` packages, made in a stream."""
    content, way = sealed(0), route()

    def stream() -> Iterator[pb.ExportedPackage]:
        coding = iccid(0).ef_coding
        for number in range(count):
            made = package(number, content=content.replace(coding, iccid(number).ef_coding, 1))
            yield made if static else with_session(made, way, by=engine)

    write(path, pb.ExportHead(packages=count, routes=[way], session_keys=not static), stream())
    return path


def keys(master: bytes = KM_CHAN) -> bytes:
    """The document for --keys-fd."""
    return f"example-mno {KVN:02X} {master.hex()}\n".encode()


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "appliance", "scripts", *map(str, arguments)]


def run(*arguments: object, given: bytes = b"") -> "subprocess.CompletedProcess[str]":
    """The whole command; static keys come through descriptor 0."""
    done = subprocess.run(command(*arguments), input=given, capture_output=True, cwd=ROOT, check=False)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
