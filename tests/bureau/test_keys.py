"""Static keys through a descriptor: what is understood, what is refused and how, and that they are wiped."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.apdu.scp03 import kcv, kdf3
from appliance.bureau import keys
from appliance.bureau.keys import ChannelKeys
from appliance.domain.derivation import CHANNEL_ENC, CHANNEL_MAC
from appliance.errors import ApplianceError, Reason
from tests.bureau.samples import KVN, ROOT, iccid, route
from tests.vsim.packages import KM_CHAN

SIM = iccid(5)
NAME = "example-mno", KVN
K_ENC, K_MAC = bytes(range(16)), bytes(range(16, 32))


@contextmanager
def given(document: bytes) -> Iterator[ChannelKeys]:
    reader, writer = os.pipe()
    os.write(writer, document)
    os.close(writer)
    with keys.given(reader) as found:
        yield found


def refusal(document: bytes) -> ApplianceError:
    with pytest.raises(ApplianceError) as caught, given(document) as found:
        found.check([route()])
    return caught.value


def test_the_master_of_a_key_set_derives_each_sims_keys() -> None:
    for bits in (128, 192, 256):
        with given(b"# bureau 7\n\n  example-mno 0x30 %b  # KM-CHAN\r\n" % KM_CHAN.hex().upper().encode()) as found:
            found.check([route()])
            assert found.of(NAME, SIM.ef_coding, bits) == tuple(
                kdf3(KM_CHAN, constant, SIM.ef_coding, bits) for constant in (CHANNEL_ENC, CHANNEL_MAC)
            )


def test_a_sims_own_keys_go_before_its_master() -> None:
    document = f"{SIM.digits} {K_ENC.hex()} {K_MAC.hex()}\nexample-mno {KVN:x} {KM_CHAN.hex()}"
    with given(document.encode()) as found:
        found.check([route()])
        assert found.of(NAME, SIM.ef_coding, 128) == (K_ENC, K_MAC)
        assert found.of(NAME, iccid(6).ef_coding, 128)[0] == kdf3(KM_CHAN, CHANNEL_ENC, iccid(6).ef_coding, 128)
        with pytest.raises(ApplianceError, match="128 bits, not 256"):
            found.of(NAME, SIM.ef_coding, 256)


def test_a_sim_without_keys_is_told() -> None:
    with given(f"{SIM.digits} {K_ENC.hex()} {K_MAC.hex()}".encode()) as found:
        found.check([route()])
        with pytest.raises(ApplianceError, match="no keys for this SIM"):
            found.of(NAME, iccid(6).ef_coding, 128)


def test_another_key_than_the_exports_is_refused_by_its_check_value() -> None:
    error = refusal(f"example-mno {KVN:x} {bytes(32).hex()}".encode())
    assert error.reason is Reason.KCV_MISMATCH
    assert error.facts == {"sim_issuer": "example-mno", "kvn": KVN}
    for named in (kcv(KM_CHAN), kcv(bytes(32))):
        assert named.hex().upper() in error.detail


@pytest.mark.parametrize("document", [b"", b"# nothing", f"other-mno {KVN:x} {KM_CHAN.hex()}".encode()])
def test_a_key_set_without_a_key_is_named(document: bytes) -> None:
    error = refusal(document)
    assert error.field == "--keys-fd"
    assert "example-mno, key set 30" in error.detail


@pytest.mark.parametrize(
    "line",
    [
        "example-mno 30",
        "example-mno 30 SECRETxx",
        "example-mno 30 " + "ab" * 31,
        "example-mno 30 " + "ab" * 33,
        "example-mno 80 " + "ab" * 32,
        "example-mno 00 " + "ab" * 32,
        "Example 30 " + "ab" * 32,
        "example-mno 30 " + "ab" * 32 + " more",
        "example-mno 31 " + "ab" * 32 + "\nexample-mno 31 " + "ab" * 32,
        SIM.digits + " " + "ab" * 16,
        SIM.digits + " " + "ab" * 16 + " " + "ab" * 24,
        SIM.digits + " " + "ab" * 15 + " " + "ab" * 15,
        "\n".join([SIM.digits + " " + "ab" * 16 + " " + "ab" * 16] * 2),
        str(int(SIM.digits) - 1) + " " + "ab" * 16 + " " + "ab" * 16,
        SIM.digits + " " + "ab" * 16 + " SECRETxx",
        SIM.digits + " SECRETxx " + "ab" * 16,
    ],
)
def test_a_line_that_is_none_is_told_by_its_number_and_not_by_its_content(line: str) -> None:
    error = refusal(b"# first\n" + line.encode())
    assert error.reason is Reason.FIELD_INVALID
    assert f"Line {2 + line.count(chr(10))} " in error.detail
    assert error.__suppress_context__
    for secret in ("SECRET", "ab" * 8):
        assert secret not in f"{error} {error!r} {error.facts}"


def test_what_is_no_text_is_told_alike() -> None:
    assert "Line 1 " in refusal(bytes(range(200))).detail


def test_a_document_that_has_no_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MAX_BYTES", 100)
    assert "more than 100 bytes" in refusal(b"#" * 101).detail


def test_a_descriptor_that_is_not_open_is_told() -> None:
    with pytest.raises(ApplianceError, match="Descriptor 999 cannot be read"), keys.given(999):
        pass


def test_keys_are_wiped_and_never_shown() -> None:
    document = f"{SIM.digits} {K_ENC.hex()} {K_MAC.hex()}\nexample-mno {KVN:x} {KM_CHAN.hex()}".encode()
    with pytest.raises(KeyError), given(document) as found:
        assert found.masters == {NAME: bytearray(KM_CHAN)}
        assert repr(found) == "ChannelKeys()"
        raise KeyError
    assert found.masters == {NAME: bytearray(32)}
    assert found.sims == {SIM.ef_coding: (bytearray(16), bytearray(16))}


HOLDER = """
import sys
from appliance.bureau import keys
with keys.given(int(sys.argv[1])):
    print(flush=True)
    input()
print(flush=True)
input()
"""


def in_memory(pid: int, what: Sequence[bytes]) -> list[int]:
    """How often each of these is in the writable memory of a process."""
    counts = [0] * len(what)
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text("utf-8").splitlines():
            place, rights, *_ = line.split()
            if rights.startswith("rw") and not line.endswith("[vvar]"):
                first, last = (int(end, 16) for end in place.split("-"))
                memory.seek(first)
                region = memory.read(last - first)
                counts = [count + region.count(one) for count, one in zip(counts, what, strict=True)]
    return counts


def test_no_copy_of_a_key_is_in_the_process_but_the_one_that_is_wiped() -> None:
    given_keys = [os.urandom(size) for size in (32, 24, 24)]
    master, k_enc, k_mac = (key.hex() for key in given_keys)
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(reader)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[reader],
        cwd=ROOT,
    ) as holder:
        os.close(reader)
        os.write(writer, f"example-mno 30 {master}\n{SIM.digits} {k_enc} {k_mac}\n".encode())
        os.close(writer)
        assert holder.stdin
        assert holder.stdout
        holder.stdout.readline()
        written = [key.hex()[8:].encode() for key in given_keys]  # freed memory begins with a pointer or two
        assert in_memory(holder.pid, [*given_keys, *written]) == [1, 1, 1, 0, 0, 0]
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        holder.stdout.readline()
        assert in_memory(holder.pid, [*(key[16:] for key in given_keys), *written]) == [0] * 6
        holder.stdin.close()


@pytest.mark.parametrize("document", [b"example-mno 30 " + b"ab" * 31, b"ab" * 60])
def test_a_document_that_is_refused_is_wiped_too(document: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MAX_BYTES", 100)
    documents: list[bytearray] = []
    fill = keys._fill

    def seen(descriptor: int, view: memoryview) -> int:
        assert isinstance(view.obj, bytearray)
        documents.append(view.obj)
        return fill(descriptor, view)

    monkeypatch.setattr(keys, "_fill", seen)
    refusal(document)
    assert documents == [bytearray(101)]


def test_the_document_is_wiped_as_soon_as_it_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    documents: list[bytearray] = []
    parse = keys._parse

    def seen(document: memoryview, found: ChannelKeys) -> None:
        assert isinstance(document.obj, bytearray)
        documents.append(document.obj)
        parse(document, found)

    monkeypatch.setattr(keys, "_parse", seen)
    with given(f"example-mno {KVN:x} {KM_CHAN.hex()}".encode()) as found:
        assert found.masters == {NAME: bytearray(KM_CHAN)}
        assert not any(documents[0])
