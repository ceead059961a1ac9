"""A throwaway SoftHSM token as ceremonies leave it, and what a test may do to it behind the appliance's back."""

import ctypes
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pkcs11
from pkcs11 import Attribute

from appliance.ceremony.authority import make_issuing_ca
from appliance.ceremony.masters import form_masters
from appliance.demo import published
from appliance.domain.keyset import Channel, KeySet, KeySetState, MasterKey, SimIssuer
from appliance.domain.package import KeyType
from appliance.domain.profile import CaMode, CertificateProfile
from appliance.domain.sim import Iccid
from appliance.hsm.engine import Engine
from appliance.hsm.keys import TEMPLATES, Role
from appliance.hsm.making import initialise_token
from appliance.hsm.module import TokenSession, load
from appliance.hsm.orders import ModuleParameters, SealOrder
from appliance.vsim.card import VirtualSim
from appliance.vsim.memory import Memory, State
from appliance.vsim.personalisation import Masters

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
PIN = published.PIN
LABEL = published.TOKEN_LABEL
ISSUER = published.SIM_ISSUER
KM_BIND, KM_CHAN = published.master("KM-BIND"), published.master("KM-CHAN")
BIND_LABEL, CHAN_LABEL = f"KM-BIND/{ISSUER}/01", f"KM-CHAN/{ISSUER}/01"
ICCID = Iccid.parse("8981309114170753644").ef_coding
OTHER_ICCID = Iccid.parse("8981100000000000002").ef_coding
APPLET_AID = bytes.fromhex("D392F000260100000001")
SSD_AID = bytes.fromhex("A0000001515350534F")
CODE = "ACTIVATE7CODE"
POLICY = "1.2.392.200149.8.5.1.3.30"
PROFILES = {"rsa-ca": KeyType.RSA_2048, "p256-ca": KeyType.EC_P256, "p384-ca": KeyType.EC_P384}

_counters = count(1)


def profile(name: str, ca_label: str = "", **changes: Any) -> CertificateProfile:
    """A profile like the real one; its CA's label is its name in capitals."""
    values: dict[str, Any] = {
        "name": name,
        "policy_oid": POLICY,
        "key_types": tuple(KeyType.__members__),
        "common_name_pattern": "[0-9A-Z]{8,32}",
        "validity_max_days": 1828,
        "crl_url": "http://crl.example.jp/a.crl",
        "ocsp_url": "http://ocsp.example.jp/a",
        "ca_issuers_url": "http://ca.example.jp/a.cer",
        "ca_label": ca_label or name.upper(),
        "ca_certificate": Path("unused.pem"),
    }
    return CertificateProfile(**{**values, **changes})


def external_profile(name: str) -> CertificateProfile:
    """The same under an external CA."""
    return dataclasses.replace(profile(name), ca_mode=CaMode.EXTERNAL, ca_label="")


def order(key_type: KeyType = KeyType.EC_P256, **changes: Any) -> SealOrder:
    """An order that breaks no rule, for a fresh attempt."""
    start = datetime.now(UTC).replace(microsecond=0)
    values: dict[str, Any] = {
        "sim_issuer": ISSUER,
        "kvn": published.KVN,
        "iccid": ICCID,
        "applet_aid": APPLET_AID,
        "key_type": key_type,
        "package_counter": next(_counters),
        "activation_code": CODE,
        "profile": "rsa-ca",
        "certificate_serial": b"\x40" + os.urandom(15),
        "subject_common_name": "USER0123456789",
        "not_before": start,
        "not_after": start + timedelta(days=1800),
    }
    return SealOrder(**{**values, **changes})


def virtual_sim(iccid: bytes = ICCID) -> VirtualSim:
    """A SIM of the demo's SIM issuer."""
    masters = Masters(KM_BIND, KM_CHAN, published.KVN, ssd_aid=SSD_AID, applet_aid=APPLET_AID)
    return VirtualSim(Memory(State(masters.personalise(iccid))))


class Calls:
    """The kinds of the module calls so far; can do something just before one that is to come."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self._trap: tuple[str | int, Callable[[], None]] | None = None

    def before(self, which: str | int, action: Callable[[], None]) -> None:
        """Do it once, before the next call of this kind, or the call of this number from now (the next is 1)."""
        self._trap = (which if isinstance(which, str) else len(self.kinds) + which, action)

    def __call__(self, kind: str) -> None:
        if not kind:
            return
        self.kinds.append(kind)
        if self._trap and self._trap[0] in (kind, len(self.kinds)):
            (_, action), self._trap = self._trap, None
            action()


@dataclass(frozen=True)
class Site:
    """The module's settings directory, and what the ceremonies made on its token."""

    directory: Path
    module: ModuleParameters
    bind: MasterKey
    chan: MasterKey
    authorities: Mapping[str, bytes]
    pin: str = PIN

    def issuer(self, *key_sets: KeySet) -> SimIssuer:
        """The SIM issuer with these key sets, else with its own."""
        return SimIssuer(ISSUER, APPLET_AID.hex(), SSD_AID.hex(), key_sets or (self.key_set(),), demo=True)

    def key_set(self, **changes: Any) -> KeySet:
        """Its key set."""
        values: dict[str, Any] = {
            "kvn": published.KVN,
            "state": KeySetState.ACTIVE,
            "bind": self.bind,
            "chan": self.chan,
            "channel": Channel(1),
        }
        return KeySet(**{**values, **changes})

    @contextmanager
    def engine(
        self,
        *issuers: SimIssuer,
        profiles: Mapping[str, bytes] | None = None,
        external: Mapping[str, bytes] | None = None,
        pin: str | None = None,
        module: ModuleParameters | None = None,
        calls: Calls | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Iterator[Engine]:
        """An engine on this token; `profiles` by name with their CA certificates, `external` those of external CAs."""
        certificates = self.authorities if profiles is None else profiles
        declared = [(profile(name), certificate) for name, certificate in certificates.items()]
        declared += [(external_profile(name), certificate) for name, certificate in (external or {}).items()]
        engine = Engine.start(
            module or self.module,
            issuers or (self.issuer(),),
            declared,
            self.pin if pin is None else pin,
            clock=clock,
            stamp=calls or Calls(),
        )
        try:
            yield engine
        finally:
            engine.close()

    @contextmanager
    def session(self, calls: Calls | None = None) -> Iterator[TokenSession]:
        """A ceremony's session."""
        session = TokenSession(self.module, self.pin, calls or Calls())
        try:
            yield session
        finally:
            session.close()

    @contextmanager
    def backstage(self) -> Iterator[pkcs11.Session]:
        """Another session of this process, which sees every session object; logged in as the process is, or newly."""
        token = load(self.module).get_token(token_label=self.module.token_label)
        try:
            session = token.open(rw=True, user_pin=self.pin)
        except pkcs11.UserAlreadyLoggedIn:
            session = token.open(rw=True)
        with session:
            yield session

    def session_objects(self) -> int:
        """How many session objects the module holds."""
        with self.backstage() as session:
            return len(list(session.get_objects({Attribute.TOKEN: False})))

    def destroy_session_objects(self) -> None:
        """Pull the keys from under whoever uses them."""
        with self.backstage() as session:
            for key in list(session.get_objects({Attribute.TOKEN: False})):
                key.destroy()

    def close_all_sessions(self) -> None:
        """Pull the session from under whoever uses it."""
        slot = pkcs11.lib(MODULE).get_token(token_label=self.module.token_label).slot.slot_id
        assert ctypes.CDLL(MODULE).C_CloseAllSessions(ctypes.c_ulong(slot)) == 0

    def log_out(self) -> None:
        """Log out whoever is logged in; a process is as a whole, and sessions stay open."""
        with self.backstage() as session:
            compiled: Any = session  # its stub leaves `handle` out
            assert ctypes.CDLL(MODULE).C_Logout(ctypes.c_ulong(compiled.handle)) == 0

    def replace_master(self, label: str, value: bytes, **attributes: Any) -> None:
        """Put in place of a master one of the same label with this value and other attributes than its template."""
        self.destroy_key(label)
        changes = {Attribute[name]: value for name, value in attributes.items()}
        template = {**TEMPLATES[Role.KM_BIND].attributes, Attribute.LABEL: label, Attribute.VALUE: value, **changes}
        with self.backstage() as session:
            session.create_object(template)

    def destroy_key(self, label: str) -> None:
        """Take a key from the token."""
        with self.backstage() as session:
            (key,) = session.get_objects({Attribute.LABEL: label})
            key.destroy()

    def copied(self, directory: Path) -> "Site":
        """The same token in another directory."""
        shutil.copytree(self.directory / "tokens", directory / "tokens")
        return dataclasses.replace(self, directory=directory)


def use(directory: Path, environment: Callable[[str, str], None]) -> None:
    """Make the module of this process serve the tokens of this directory.

    SoftHSM reads its settings when it is initialised, and a process has it once.
    """
    (directory / "tokens").mkdir(exist_ok=True)
    settings = directory / "softhsm2.conf"
    settings.write_text(
        f"directories.tokendir = {directory / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    environment("SOFTHSM2_CONF", str(settings))
    pkcs11.lib(MODULE).reinitialize()


def build(directory: Path) -> Site:
    """Hold the ceremonies on a new token."""
    return hold_ceremonies(directory, initialise_token(MODULE, LABEL, published.SO_PIN, PIN), PIN)


def hold_ceremonies(directory: Path, token: ModuleParameters, pin: str) -> Site:
    """Make every key on an initialised token."""
    session = TokenSession(token, pin, Calls())
    try:
        bind, chan = form_masters(
            session, ISSUER, published.KVN, published.components("KM-BIND"), published.components("KM-CHAN")
        )
        now = datetime.now(UTC).replace(microsecond=0)
        authorities = {
            name: make_issuing_ca(
                session, name.upper(), key_type, "TEST", name, now - timedelta(days=1), now + timedelta(days=3650)
            )
            for name, key_type in PROFILES.items()
        }
    finally:
        session.close()
    return Site(directory, token, bind, chan, authorities, pin)
