"""A delivery script as a good Python programmer writes it with `cryptography`: S8, level 03, AES-128.

A key is made once for a script, and one encryptor makes all ICVs; there is a Cipher for each command, a CMAC for each
MAC. Of the rest of `apdu.script` there is nothing: no checks, no objects.
"""

from collections.abc import Iterable

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, ECB
from cryptography.hazmat.primitives.cmac import CMAC

from appliance.apdu.engine import Order

CAPACITY = 239
"""Plaintext bytes in one STORE DATA."""
RECEIPT_PARTS = (0x21, 0x22, 0x23)
"""Of an RSA key's receipt."""


def script(order: Order) -> list[bytes]:
    """Every command of the order, which brings session keys and an RSA key's package."""
    assert isinstance(order.opening, bytes)
    ssd, applet = order.route.ssd_aid, order.route.applet_aid
    install = bytes((0, 0, len(applet))) + applet + bytes(3)
    blocks = [order.package[start : start + CAPACITY] for start in range(0, len(order.package), CAPACITY)]
    last = len(blocks) - 1
    plain = [(b"\x84\xe6\x20\x00", install, b"\x00")]
    plain += [(bytes((0x84, 0xE2, 0xB0 if n == last else 0x30, n)), block, b"") for n, block in enumerate(blocks)]
    return [
        b"\x00\xa4\x04\x00" + bytes((len(ssd),)) + ssd + b"\x00",
        b"\x80\x50" + bytes((order.route.kvn, 0, 8)) + order.host_challenge + b"\x00",
        *_session(order.enc, order.mac, order.host_challenge + order.opening, plain),
        b"\x00\xa4\x04\x0c" + bytes((len(applet),)) + applet,
        *(bytes((0x80, 0xCA, 0xDF, part, 0)) for part in RECEIPT_PARTS),
    ]


def _session(s_enc: bytes, s_mac: bytes, challenges: bytes, plain: list[tuple[bytes, bytes, bytes]]) -> Iterable[bytes]:
    """EXTERNAL AUTHENTICATE and the commands, each given as header, data and Le, wrapped."""
    enc, mac = AES(s_enc), AES(s_mac)
    cryptogram = _cmac(mac, bytes(11) + b"\x01\x00\x00\x40\x01" + challenges)
    command = b"\x84\x82\x03\x00\x10" + cryptogram[:8]
    chain = _cmac(mac, bytes(16) + command)
    yield command + chain[:8]
    icvs = Cipher(enc, ECB()).encryptor()  # noqa: S305 - one block each, no mode is wanted
    for number, (header, data, le) in enumerate(plain, 1):
        encryptor = Cipher(enc, CBC(icvs.update(number.to_bytes(16, "big")))).encryptor()
        secret = encryptor.update(data + b"\x80" + bytes(-(len(data) + 1) % 16)) + encryptor.finalize()
        command = header + bytes((len(secret) + 8,)) + secret
        chain = _cmac(mac, chain + command)
        yield command + chain[:8] + le


def _cmac(key: AES, message: bytes) -> bytes:
    cmac = CMAC(key)
    cmac.update(message)
    return cmac.finalize()
