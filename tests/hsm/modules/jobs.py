"""What a child process does with a module: `python -m tests.hsm.modules.jobs NAME`, an order on stdin, JSON on stdout.

A refusal of the appliance is an answer too: {"refusal": {"reason": …, "detail": …}}.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pkcs11
from pkcs11 import Attribute

from appliance.ceremony.authority import make_issuing_ca
from appliance.domain.keyset import MasterKey
from appliance.domain.package import KeyType, SimPackage
from appliance.errors import ApplianceError
from appliance.hsm import cryptoki, making, pairs
from appliance.hsm.engine import Engine
from appliance.hsm.keys import Role, attributes
from appliance.hsm.module import TokenSession
from appliance.hsm.orders import ChannelOrder, ModuleParameters, ReceiptOrder
from tests.hsm import site
from tests.hsm.site import Calls, Site

_OPENCRYPTOKI_FACTORY_SO_PIN: Final = "87654321"


@dataclass(frozen=True)
class Given:
    """The token to work with."""

    module: ModuleParameters
    pin: str
    so_pin: str

    def site(self, keys: Mapping[str, Any]) -> Site:
        """The token after `hold_ceremonies`, which answered these keys."""
        authorities = {name: bytes.fromhex(der) for name, der in keys["authorities"].items()}
        return Site(Path(), self.module, MasterKey(**keys["bind"]), MasterKey(**keys["chan"]), authorities, self.pin)


def initialise(given: Given) -> Any:
    """As the product does it."""
    module = given.module
    return asdict(
        making.initialise_token(module.path, module.token_label, given.so_pin, given.pin, arguments=module.arguments)
    )


def initialise_opencryptoki(given: Given) -> Any:
    """The security officer must change the factory's PIN first, and the user the officer's."""
    library = pkcs11.lib(given.module.path)
    [slot] = library.get_slots(token_present=True)
    cryptoki.init_token(given.module.path, slot.slot_id, _OPENCRYPTOKI_FACTORY_SO_PIN, given.module.token_label)
    library.reinitialize()
    token = library.get_token(token_label=given.module.token_label)
    with token.open(rw=True, so_pin=_OPENCRYPTOKI_FACTORY_SO_PIN) as session:
        session.set_pin(_OPENCRYPTOKI_FACTORY_SO_PIN, given.so_pin)
        session.init_pin(given.so_pin)
    with token.open(rw=True, user_pin=given.so_pin) as session:
        session.set_pin(given.so_pin, given.pin)
    return asdict(replace(given.module, token_serial=token.serial.decode().strip()))


def labels(given: Given, pin: str = "") -> Any:
    """Labels of all objects on the token."""
    session = TokenSession(given.module, pin or given.pin, Calls())
    found = [made.label for made in session.find_all({Attribute.TOKEN: True})]
    session.close()
    return sorted(found)


def bring(given: Given, label: str) -> Any:
    """Put a key on the token."""
    session = TokenSession(given.module, given.pin, Calls())
    template = {**attributes(session, Role.KM_BIND), Attribute.LABEL: label, Attribute.VALUE: bytes(32)}
    session.call("create", session.raw.create_object, template)
    session.close()


def point_length(given: Given) -> Any:
    """Bytes of a P-256 key's EC_POINT."""
    session = TokenSession(given.module, given.pin, Calls())
    public, _ = pairs.generate(session, KeyType.EC_P256, Role.SUBSCRIBER)
    length = len(public[Attribute.EC_POINT])
    session.close()
    return length


def hold_ceremonies(given: Given) -> Any:
    """Make the demo's masters and an issuing CA of each key type; answers what is declared of them."""
    made = site.hold_ceremonies(Path(), given.module, given.pin)
    authorities = {name: der.hex() for name, der in made.authorities.items()}
    return {"bind": asdict(made.bind), "chan": asdict(made.chan), "authorities": authorities}


def make_authority(given: Given, key_type: str) -> Any:
    """Make an issuing CA."""
    session = TokenSession(given.module, given.pin, Calls())
    now = datetime.now(UTC)
    return make_issuing_ca(session, "CA", KeyType[key_type], "TEST", "CA", now, now + timedelta(days=1)).hex()


def start(given: Given) -> Any:
    """Start an engine that has no keys; answers what it says of the module."""
    engine = Engine.start(given.module, (), (), given.pin, clock=lambda: datetime.now(UTC), stamp=Calls())
    engine.close()
    return {"module": engine.description.module, "deviations": engine.deviations, "wrap": engine.wrap_mechanism.name}


def issue(given: Given, keys: Any) -> Any:
    """Issue a key of each type under each CA, install it in a virtual SIM and check its receipt and another SIM's."""
    this = given.site(keys)
    answer = []
    with this.engine() as engine:
        for name, key_type in [(name, key_type) for name in site.PROFILES for key_type in KeyType]:
            encoded = engine.issue(site.order(key_type, profile=name))
            assert isinstance(encoded, bytes)
            sim = site.virtual_sim()
            sim.install(encoded)
            assert sim.state.installed
            package = SimPackage.decode(encoded)
            receipt = ReceiptOrder(
                site.ISSUER, package.header.encode(), package.certificate, sim.state.installed.receipt
            )
            engine.verify_receipt(receipt)
            forged = replace(receipt, receipt=receipt.receipt[:-1] + bytes([receipt.receipt[-1] ^ 1]))
            answer.append(
                {
                    "profile": name,
                    "key_type": key_type.name,
                    "package": encoded.hex(),
                    "forged receipt": _refusal(lambda order=forged: engine.verify_receipt(order)),
                    "session objects": this.session_objects(),
                }
            )
    return answer


def recover(given: Given, keys: Any) -> Any:
    """Take the keys from under an issuance; answers how it ends, and the next one."""
    this, calls = given.site(keys), Calls()
    with this.engine(calls=calls) as engine:
        calls.before("wrap", this.destroy_session_objects)
        fault = _refusal(lambda: engine.issue(site.order()))
        calls.kinds.clear()
        package = engine.issue(site.order())
        assert isinstance(package, bytes)
        return {"fault": fault, "logins": calls.kinds.count("login"), "package": package.hex()}


def open_channel(given: Given, keys: Any, sequence_counter: int, host_challenge: str) -> Any:
    """Session keys of one channel."""
    with given.site(keys).engine() as engine:
        challenge = bytes.fromhex(host_challenge)
        order = ChannelOrder(site.ISSUER, 1, site.ICCID, sequence_counter, challenge, with_s_rmac=True)
        keys_of_session = engine.open_channel(order)
        return {name: value.hex() for name, value in asdict(keys_of_session).items()}


def _refusal(work: Any) -> str:
    try:
        work()
    except ApplianceError as error:
        return error.reason
    return ""


def main() -> None:
    """Do the job that the first argument names."""
    order = json.load(sys.stdin)
    given = Given(ModuleParameters(**order["module"]), order["pin"], order["so_pin"])
    try:
        answer = globals()[sys.argv[1]](given, **order["arguments"])
    except ApplianceError as error:
        answer = {"refusal": {"reason": error.reason, "field": error.field, "detail": error.detail, **error.facts}}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
