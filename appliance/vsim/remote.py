"""Remote management (ETSI TS 102 226, 5.2): a command template for one application in, a response template out.

The carrier around it (SMS, HTTPS) is not here; as its agent does, `execute` selects the application first.
"""

from appliance.vsim.apdu import Status
from appliance.vsim.card import VirtualSim
from appliance.vsim.tlv import elements, first

# TS 101 220, tables 7.18 to 7.20.
DEFINITE, INDEFINITE = 0xAA, 0xAE
ANSWERS = {DEFINITE: 0xAB, INDEFINITE: 0xAF}
C_APDU, R_APDU, EXECUTED, BAD_FORMAT = 0x22, 0x23, 0x80, 0x90
UNKNOWN_TAG, WRONG_LENGTH = 0x01, 0x02
GOES_ON = {0x90, 0x62, 0x63}  # SW1 that is no error


def execute(sim: VirtualSim, aid: bytes, template: bytes) -> bytes:
    """Execute the commands until one fails; the response template is of the same coding.

    Raises:
        ValueError: no such application, or no command template at all; a UICC's carrier says so in its own way.
    """
    coding, commands = _opened(template)
    if sim.transmit(bytes([0x00, 0xA4, 0x04, 0x0C, len(aid)]) + aid) != Status.OK.to_bytes(2):
        raise ValueError(f"there is no application {aid.hex().upper()}")
    answers: list[bytes] = []
    try:
        for element in elements(commands):
            if element.tag != C_APDU:
                return _answer(coding, answers, bytes([BAD_FORMAT, 1, UNKNOWN_TAG]))
            answers.append(sim.transmit(element.value))
            if answers[-1][-2] not in GOES_ON:
                break
    except ValueError:
        return _answer(coding, answers, bytes([BAD_FORMAT, 1, WRONG_LENGTH]))
    return _answer(coding, answers)


def _opened(template: bytes) -> tuple[int, bytes]:
    if template[:2] == bytes([INDEFINITE, 0x80]) and template[-2:] == b"\x00\x00":
        return INDEFINITE, template[2:-2]
    outer = first(template)
    if outer.tag != DEFINITE or outer.encoded != template:
        raise ValueError("neither AA, length and commands nor AE 80, commands and 00 00")
    return DEFINITE, outer.value


def _answer(coding: int, answers: list[bytes], fault: bytes = b"") -> bytes:
    content = b"".join(_tlv(R_APDU, answer) for answer in answers) + fault
    if coding == INDEFINITE:
        return bytes([ANSWERS[coding], 0x80]) + content + b"\x00\x00"
    executed = len(answers).to_bytes(1 if len(answers) < 0x100 else 2)
    return _tlv(ANSWERS[coding], _tlv(EXECUTED, executed) + content)


def _tlv(tag: int, value: bytes) -> bytes:
    length = len(value)
    if length < 0x80:
        return bytes([tag, length]) + value
    size = (length.bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + length.to_bytes(size) + value
