"""The terminal's end of SCP03 and a delivery, for tests: it sends through any `transmit`."""

import hmac
from collections.abc import Callable, Iterator

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from appliance.vsim.card import VirtualSim
from appliance.vsim.kdf import cmac, scp03_kdf
from appliance.vsim.memory import Memory
from appliance.vsim.personalisation import Personalisation

Transmit = Callable[[bytes], bytes]
R_MAC_LEVELS = (0x11, 0x13, 0x33)


class Host:
    """One channel session; `open` first."""

    def __init__(self, transmit: Transmit, sim: Personalisation, level: int = 0x03) -> None:
        self._transmit = transmit
        self._sim = sim
        self._level = level
        self._length = 16 if sim.channel.i & 1 else 8
        self._chain = bytes(16)
        self._commands = 0

    def open(self) -> bytes:
        """SELECT, INITIALIZE UPDATE, EXTERNAL AUTHENTICATE; the last status word."""
        self.select()
        return self.external_authenticate(self.initialize_update())

    def select(self) -> None:
        aid = self._sim.ssd_aid
        assert self._transmit(b"\x00\xa4\x04\x00" + bytes([len(aid)]) + aid) == b"\x90\x00"

    def initialize_update(self) -> bytes:
        """Send it and derive the session keys; the host cryptogram. The card's cryptogram is checked."""
        keys, length = self._sim.channel, self._length
        challenge = bytes(range(length))
        answer = self._transmit(b"\x80\x50" + bytes([keys.kvn, 0, length]) + challenge + b"\x00")
        assert answer[-2:] == b"\x90\x00", answer.hex()
        context = challenge + answer[13 : 13 + length]
        bits = len(keys.k_enc) * 8
        self._s_enc = scp03_kdf(keys.k_enc, 4, context, bits)
        self._s_mac = scp03_kdf(keys.k_mac, 6, context, bits)
        self._s_rmac = scp03_kdf(keys.k_mac, 7, context, bits)
        cryptogram = scp03_kdf(self._s_mac, 0, context, length * 8)
        assert hmac.compare_digest(cryptogram, answer[13 + length : 13 + 2 * length])
        return scp03_kdf(self._s_mac, 1, context, length * 8)

    def external_authenticate(self, cryptogram: bytes) -> bytes:
        return self._transmit(self._maced(bytes([0x84, 0x82, self._level, 0x00]), cryptogram))

    def wrap(self, head: str, data: bytes = b"") -> bytes:
        """A wrapped command; `head` is CLA INS P1 P2 in hexadecimal."""
        self._commands += 1
        if data and self._level & 0x02:
            data = self._cbc(0).encryptor().update(data + b"\x80" + bytes(-(len(data) + 1) % 16))
        le = b"\x00" if self._level in R_MAC_LEVELS else b""
        return self._maced(b"\x84" + bytes.fromhex(head)[1:], data) + le

    def send(self, head: str, data: bytes = b"") -> tuple[bytes, str]:
        """Send one command; plain response data and the status word in hexadecimal."""
        answer = self._transmit(self.wrap(head, data))
        body, status = answer[:-2], answer[-2:]
        if status == b"\x90\x00" and self._level in R_MAC_LEVELS:
            body, mac = body[: -self._length], body[-self._length :]
            assert hmac.compare_digest(mac, cmac(self._s_rmac, self._chain + body + status)[: self._length])
            if body and self._level & 0x20:
                body = self._cbc(0x80).decryptor().update(body).rstrip(b"\x00")[:-1]
        return body, status.hex()

    def personalise(self, package: bytes, block: int = 200) -> str:
        """INSTALL [for personalization] and STORE DATA; the last status word."""
        aid = self._sim.applet_aid
        assert self.send("80E62000", bytes([0, 0, len(aid)]) + aid + bytes(3))[1] == "9000"
        status = ""
        for head, data in store_data(package, block, self._level in R_MAC_LEVELS):
            status = self.send(head, data)[1]
            if status != "9000":
                break
        return status

    def _maced(self, head: bytes, data: bytes) -> bytes:
        head += bytes([len(data) + self._length])
        self._chain = cmac(self._s_mac, self._chain + head + data)
        return head + data + self._chain[: self._length]

    def _cbc(self, first: int) -> Cipher[CBC]:
        counter = bytes([first]) + self._commands.to_bytes(15)
        icv = Cipher(AES(self._s_enc), CBC(bytes(16))).encryptor().update(counter)
        return Cipher(AES(self._s_enc), CBC(icv))


def store_data(package: bytes, block: int, response_expected: bool) -> Iterator[tuple[str, bytes]]:
    """Heads and data of the STORE DATA commands that carry a package."""
    pieces = [package[i : i + block] for i in range(0, len(package), block)]
    for number, piece in enumerate(pieces):
        p1 = 0x30 | (0x80 if number == len(pieces) - 1 else 0) | response_expected
        yield f"80E2{p1:02X}{number:02X}", piece


def delivery_script(sim: VirtualSim, package: bytes) -> list[bytes]:
    """The APDUs that carry a package into a SIM, rehearsed on a twin of it: its challenges are pseudo-random."""
    twin, sent = VirtualSim(Memory(sim.state)), []

    def transmit(apdu: bytes) -> bytes:
        sent.append(apdu)
        return twin.transmit(apdu)

    host = Host(transmit, sim.state.sim)
    host.open()
    host.personalise(package)
    aid = sim.state.sim.applet_aid
    sent.append(b"\x00\xa4\x04\x0c" + bytes([len(aid)]) + aid)
    parts = -(-len(twin.state.installed.receipt) // 128) if twin.state.installed else 0
    return sent + [bytes([0x80, 0xCA, 0xDF, 0x21 + part, 0x00]) for part in range(parts)]
