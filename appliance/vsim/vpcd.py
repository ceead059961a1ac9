"""The SIM in a reader: vpcd's protocol (vsmartcard), spoken by the card's end of its TCP connection.

Each message is a 2-byte length and a body; a body of one byte is control, any other a command APDU.
"""

import functools
import operator
import socket
import time

from appliance.vsim.card import VirtualSim

PORT = 35963
POWER_OFF, POWER_ON, RESET, GET_ATR = 0x00, 0x01, 0x02, 0x04
_HISTORICAL = b"JPKI VSIM"
# ISO/IEC 7816-3: TS, T0, TD1 (T=1: responses come with their command), historical bytes, TCK.
_ATR_BODY = bytes([0x80 | len(_HISTORICAL), 0x01]) + _HISTORICAL
ATR = b"\x3b" + _ATR_BODY + bytes([functools.reduce(operator.xor, _ATR_BODY)])


def connect(host: str, port: int, patience: float) -> socket.socket:
    """Connect to vpcd, waiting up to `patience` seconds for it to listen.

    Raises:
        OSError: nobody listens there.
    """
    give_up = time.monotonic() + patience
    while True:
        try:
            return socket.create_connection((host, port))
        except ConnectionRefusedError:
            if time.monotonic() > give_up:
                raise
        time.sleep(0.05)


def attend(sim: VirtualSim, reader: socket.socket) -> None:
    """Be the card in a reader until the reader goes away."""
    while (body := _receive(reader)) is not None:
        if body == bytes([GET_ATR]):
            _send(reader, ATR)
        elif len(body) == 1:
            if body[0] in (POWER_OFF, POWER_ON, RESET):
                sim.reset()
        elif body:
            _send(reader, sim.transmit(body))


def _send(reader: socket.socket, body: bytes) -> None:
    reader.sendall(len(body).to_bytes(2) + body)


def _receive(reader: socket.socket) -> bytes | None:
    head = _exactly(reader, 2)
    return None if head is None else _exactly(reader, int.from_bytes(head))


def _exactly(reader: socket.socket, count: int) -> bytes | None:
    """`count` bytes, or None where the reader closed."""
    data = b""
    while len(data) < count:
        try:
            chunk = reader.recv(count - len(data))
        except ConnectionResetError:
            return None
        if not chunk:
            return None
        # vpcd writes length and body apart; without an ACK at once, Nagle holds the body back for 40 ms.
        reader.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        data += chunk
    return data
