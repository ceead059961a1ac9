"""The vpcd protocol at the card's end: lengths, control bytes, APDUs."""

import socket
import threading
from collections.abc import Iterator

import pytest

from appliance.vsim import vpcd

from .packages import P256, blank_sim, octets


class Reader:
    """vpcd's end of the connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, body: bytes) -> None:
        # In two writes, as vpcd does.
        self._connection.sendall(len(body).to_bytes(2))
        self._connection.sendall(body)

    def ask(self, body: bytes) -> bytes:
        self.send(body)
        size = int.from_bytes(self._connection.recv(2, socket.MSG_WAITALL))
        return self._connection.recv(size, socket.MSG_WAITALL)


@pytest.fixture
def reader() -> Iterator[Reader]:
    """A reader with a card in it that has a package."""
    card = blank_sim(P256)
    card.install(octets(P256, "package"))

    def attend(port: int) -> None:
        with vpcd.connect("127.0.0.1", port, patience=5) as connection:
            vpcd.attend(card, connection)

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        thread = threading.Thread(target=attend, args=(server.getsockname()[1],))
        thread.start()
        connection, _ = server.accept()
        with connection:
            connection.settimeout(10)
            yield Reader(connection)
        thread.join(10)
        assert not thread.is_alive(), "the card did not notice that its reader went away"


def test_card_answers_its_atr_and_apdus(reader: Reader) -> None:
    atr = reader.ask(bytes([vpcd.GET_ATR]))
    assert atr[0] == 0x3B
    assert _xor(atr[1:]) == 0
    assert reader.ask(bytes.fromhex("00A4040C0AD392F000260100000001")).hex() == "9000"
    assert reader.ask(bytes.fromhex("00B08A0001")).hex() == "309000"


@pytest.mark.parametrize("control", [vpcd.POWER_OFF, vpcd.POWER_ON, vpcd.RESET])
def test_power_and_reset_take_the_selection_back(reader: Reader, control: int) -> None:
    assert reader.ask(bytes.fromhex("00A4040C0AD392F000260100000001")).hex() == "9000"
    reader.send(bytes([control]))
    assert reader.ask(bytes.fromhex("00B08A0001")).hex() == "6a82"


def test_nobody_listening_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        vpcd.connect("127.0.0.1", port, patience=0)


def _xor(data: bytes) -> int:
    result = 0
    for byte in data:
        result ^= byte
    return result
