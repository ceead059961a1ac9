"""`appliance vsim`: a virtual SIM for TSM developers. PIN and code come by prompt or on stdin, never in argv."""

import argparse
import getpass
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from appliance.vsim import iccid, remote, script, vpcd
from appliance.vsim.apdu import CardError, Status, meaning
from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import FileMemory, State
from appliance.vsim.package import CURVES
from appliance.vsim.personalisation import Masters
from appliance.vsim.phone import PhoneApp

OVERVIEW = """\
A virtual SIM with a GlobalPlatform security domain (SCP03) and the JPKI applet.
Make one, play delivery scripts into it, put it into a PC/SC reader, sign with it.
"""

EXAMPLES = """\
masters.toml, a SIM issuer's key set as its personalisation bureau holds it (these values are published: demo only):
  km_bind = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
  km_chan = "404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f"
  kvn = 0x30
  # channel_kvn = 0x30       # key version of the SCP03 keys, if not kvn
  # channel_key_bits = 128   # 128, 192 or 256
  # channel_i = 0x70         # SCP03 i parameter; 0x71 is S16
  # ssd_aid = "A0000001515350534F"
  # applet_aid = "D392F000260100000001"

examples:
  appliance vsim new --state sim.json --iccid 8981309114170753644 --masters masters.toml
  appliance vsim play --state sim.json delivery.txt     # what FetchScript gave; prints the receipt's parts
  appliance vsim execute --state sim.json --aid A0000001515350534F --in script.ber --out answer.ber
  appliance vsim set-pin --state sim.json               # asks for the activation code and the new PIN
  appliance vsim sign --state sim.json --in msg --out sig
  appliance vsim show --state sim.json
  appliance vsim serve --state sim.json                 # pcscd with vpcd is running; then: pkcs11-tool, scriptor

The state file holds the SIM's keys, as the chip would. One program at a time may use it.
Exit status: 0 done, 1 the SIM refused, 2 the input cannot be used.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; `argv` without the words `appliance vsim`."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except CardError as error:
        print(f"vsim: the SIM answers {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"vsim: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="appliance vsim",
        description=OVERVIEW,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, purpose: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")
        made.add_argument("--state", required=True, type=Path, metavar="FILE", help="the SIM's memory (JSON)")
        return made

    new = command("new", "make a state file from an ICCID and a key set")
    new.add_argument("--iccid", required=True, metavar="DIGITS", help="19 or 20 digits with a right check digit")
    new.add_argument("--masters", required=True, type=Path, metavar="TOML", help="see appliance vsim --help")
    new.add_argument("--channel-kdd", type=bytes.fromhex, metavar="HEX", help="10 bytes, if not the EF.ICCID coding")
    new.add_argument("--ca-certificate", type=Path, metavar="DER", help="content of EF 000B, else empty")
    new.set_defaults(run=_new)

    serve = command("serve", "be the card in vpcd's reader until it goes away")
    serve.add_argument("--host", default="127.0.0.1", help="where vpcd listens (%(default)s)")
    serve.add_argument("--port", type=int, default=vpcd.PORT, help="vpcd's port (%(default)s)")
    serve.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="how long to wait for vpcd")
    serve.set_defaults(run=_serve)

    play = command("play", "play a script, one hex APDU a line; stops at the first status not 9000")
    play.add_argument("script", type=Path, metavar="SCRIPT.txt", help="FetchScript's text, or one written by hand")
    play.set_defaults(run=_play)

    execute = command("execute", "execute a command template of ETSI TS 102 226, as over SMS or HTTPS")
    execute.add_argument("--aid", required=True, type=bytes.fromhex, metavar="HEX", help="the application it is for")
    execute.add_argument("--in", dest="template", required=True, type=Path, metavar="FILE", help="the template, binary")
    execute.add_argument("--out", required=True, type=Path, metavar="FILE", help="for the response template, binary")
    execute.set_defaults(run=_execute)

    show = command("show", "tell what the SIM holds, without secrets")
    show.set_defaults(run=_show)

    set_pin = command("set-pin", "set the PIN, once; code and PIN by prompt or two lines on stdin")
    set_pin.set_defaults(run=_set_pin)

    sign = command("sign", "sign a file with the authentication key; PIN by prompt or on stdin")
    sign.add_argument("--in", dest="message", required=True, type=Path, metavar="FILE", help="what to sign")
    sign.add_argument("--out", dest="signature", required=True, type=Path, metavar="FILE", help="the signature's file")
    sign.set_defaults(run=_sign)
    return parser


def _new(arguments: argparse.Namespace) -> int:
    masters = Masters.load(arguments.masters)
    sim = masters.personalise(iccid.encode(arguments.iccid), arguments.channel_kdd)
    ca_certificate = arguments.ca_certificate.read_bytes() if arguments.ca_certificate else b""
    FileMemory.create(arguments.state, State(sim, ca_certificate))
    print(f"{arguments.state}: a virtual SIM with ICCID {arguments.iccid}")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    sim = VirtualSim.load(arguments.state)
    where = f"{arguments.host}:{arguments.port}"
    try:
        reader = vpcd.connect(arguments.host, arguments.port, arguments.wait)
    except OSError as error:
        raise ValueError(f"no reader at {where} ({error.strerror}): start pcscd with vpcd, or give --wait") from error
    with reader:
        print(f"in the reader at {where}", flush=True)
        vpcd.attend(sim, reader)
    return 0


def _play(arguments: argparse.Namespace) -> int:
    sim = VirtualSim.load(arguments.state)
    steps = list(script.read(arguments.script.read_text(encoding="ascii").splitlines()))
    for step in steps:
        if step.apdu is None:
            sim.reset()
            print(f"{step.line:4}  {step.name}")
            continue
        response = sim.transmit(step.apdu)
        data, status = response[:-2], int.from_bytes(response[-2:])
        print(f"{step.line:4}  {step.name:<22}{len(step.apdu):4} bytes   {status:04X} {meaning(status)}")
        if data:
            print(f"      {data.hex()}")
        if status != Status.OK:
            if sim.refusal:
                print(f"      {sim.refusal}")
            return 1
    return 0


def _execute(arguments: argparse.Namespace) -> int:
    sim = VirtualSim.load(arguments.state)
    answer = remote.execute(sim, arguments.aid, arguments.template.read_bytes())
    arguments.out.write_bytes(answer)
    print(f"{arguments.out}: {answer.hex()}")
    if sim.refusal:
        print(f"      {sim.refusal}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    state = VirtualSim.load(arguments.state).state
    sim, installed = state.sim, state.installed
    rows = {
        "ICCID": f"{iccid.decode(sim.iccid)}  (EF.ICCID {sim.iccid.hex()})",
        "security domain": f"{sim.ssd_aid.hex().upper()}",
        "applet": f"{sim.applet_aid.hex().upper()}",
        "binding keys": f"KVN {sim.binding.kvn:02X}",
        "channel keys": f"KVN {sim.channel.kvn:02X}, i {sim.channel.i:02X}, AES-{len(sim.channel.k_enc) * 8}, "
        f"KDD {sim.channel.kdd.hex()}",
        "sequence counter": f"{state.sequence_counter:06X}; a script for {state.sequence_counter + 1:06X} plays next",
        "package counter": f"{state.package_counter}",
        "package": "none"
        if installed is None
        else f"{installed.key_type.name}, header {installed.header_digest.hex()}",
    }
    if installed:
        certificate = x509.load_der_x509_certificate(installed.certificate)
        rows |= {
            "certificate": f"{certificate.subject.rfc4514_string()}, serial {certificate.serial_number:x}",
            "receipt": installed.receipt.hex(),
            "PIN": f"set, {state.pin_tries} tries left"
            if state.pin_check
            else f"not set, {state.code_tries} code tries",
        }
    for name, value in rows.items():
        print(f"{name:<18}{value}")
    return 0


def _set_pin(arguments: argparse.Namespace) -> int:
    sim = VirtualSim.load(arguments.state)
    code, pin = _secret("activation code: "), _secret("new PIN, 4 digits: ")
    if sys.stdin.isatty() and _secret("the same PIN again: ") != pin:
        raise ValueError("the two PINs differ")
    PhoneApp(sim, sim.state.sim.applet_aid).set_pin(code, pin)
    print("the PIN is set")
    return 0


def _sign(arguments: argparse.Namespace) -> int:
    sim = VirtualSim.load(arguments.state)
    message = arguments.message.read_bytes()
    if (installed := sim.state.installed) is None:
        raise ValueError("no package is installed: there is no key to sign with")
    arguments.signature.write_bytes(PhoneApp(sim, sim.state.sim.applet_aid).sign(_secret("PIN: "), message))
    digest = CURVES[installed.key_type].hash().name if installed.key_type in CURVES else "sha256"
    print(f"{arguments.signature}: {installed.key_type.name}, for openssl dgst -{digest} -verify")
    return 0


def _secret(prompt: str) -> bytes:
    """Prompt unseen on a terminal; else take one line of stdin."""
    text = getpass.getpass(prompt) if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    if not text or len(text) > 16 or not text.isascii():
        raise ValueError("a PIN or code is 1 to 16 ASCII characters")
    return text.encode("ascii")


if __name__ == "__main__":
    raise SystemExit(main())
