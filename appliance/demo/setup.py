"""Set-up of the demo: token, masters, issuing CA, TLS identities and settings, all under one directory."""

import datetime
import json
import os
import secrets
import shutil
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.ceremony.authority import make_issuing_ca
from appliance.ceremony.masters import form_masters
from appliance.demo import published
from appliance.demo.identities import make_identities
from appliance.domain.keyset import MasterKey
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from appliance.hsm.making import initialise_token
from appliance.hsm.module import TokenSession
from appliance.hsm.orders import ModuleParameters

MARKER = "DEMO-ONLY.txt"
_MARK = """Everything in this directory is for demonstration. Its PIN and its master keys are published in the
program's source, so whatever was issued here can be read by anybody. Production settings refuse all of it.
"""
SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
CLIENTS = {
    "issuer": "urn:appliance:role:issuer:demo",
    "tsm": "urn:appliance:role:tsm:demo",
    "operator": "urn:appliance:role:operator:demo",
}
MAX_SOCKET_DIRECTORY = 80
CA_VALIDITY = datetime.timedelta(days=3650)

_SETTINGS = """# Settings of the demo. hsm_config/appliance.toml of the source explains each of them.
environment = "demo"

[module]
path = {module}
token_label = {label}
token_serial = {serial}
environment = {{ SOFTHSM2_CONF = {softhsm_conf} }}

[vault]
socket_directory = {sockets}
count = {vaults}

[front]
listen = "127.0.0.1:{port}"
ledger = "sqlite:///ledger.db"
content_key_file = "content.key"
profile = {profile}
health_socket = {health_socket}

[front.tls]
certificate = "tls/server.pem"
key = "tls/server.key"
client_ca = "tls/ca.pem"
{clients}"""

_CLIENT = """
[front.clients."{uri}"]
role = "{role}"
sim_issuers = {sim_issuers}
"""

_SIM_ISSUER = """# The demo's SIM issuer; its masters are published, so nothing it seals is secret.
name = "{name}"
demo = true
applet_aid = "D392F000260100000001"
ssd_aid = "A0000001515350534F"

[[key_sets]]
kvn = {kvn}
state = "ACTIVE"
bind = {bind}
chan = {chan}
channel = {{ kvn = {kvn}, key_bits = 128, i = "70", security_level = "03" }}
"""

_MASTERS = """# The demo SIM issuer's masters, as its personalisation bureau holds them. Published: virtual SIMs only.
km_bind = "{bind}"
km_chan = "{chan}"
kvn = {kvn}
"""


@dataclass(frozen=True)
class DemoSite:
    """Where everything of a demo stands."""

    directory: Path

    @property
    def settings(self) -> Path:
        """appliance.toml."""
        return self.directory / "appliance.toml"

    @property
    def log(self) -> Path:
        """What vaults and front log."""
        return self.directory / "appliance.log"

    @property
    def target(self) -> str:
        """host:port of the public API."""
        return str(tomllib.loads(self.settings.read_text(encoding="utf-8"))["front"]["listen"])

    @property
    def masters(self) -> Path:
        """The SIM issuer's masters, for `appliance vsim new`."""
        return self.directory / "masters.toml"

    @property
    def ca_certificate(self) -> Path:
        """The issuing CA's certificate, PEM."""
        return self.directory / "issuing-ca.pem"

    def tls(self, name: str) -> tuple[Path, Path, Path]:
        """CA, certificate and key of a client (a name of `CLIENTS`)."""
        tls = self.directory / "tls"
        return tls / "ca.pem", tls / f"{name}.pem", tls / f"{name}.key"


def set_up(directory: Path, profile: Path, *, port: int, vaults: int = 2, module: Path = SOFTHSM) -> DemoSite:
    """Make a demo in a new directory, or in place of an older demo.

    Args:
        directory: where; refused if it holds anything but a demo.
        profile: settings file of the certificate profile to use.
        port: of the front on loopback.
        vaults: how many vault processes.
        module: SoftHSM's PKCS#11 module.

    Raises:
        ApplianceError: SETTINGS_INVALID where the directory is not a demo's or there is no such profile; what the
            token says.
    """
    site = DemoSite(directory.absolute())
    profile_text, ca_label = _read_profile(profile)
    _clear(site.directory)
    token = _make_token_directory(site.directory, module)
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    bind, chan = _make_keys(site, token, ca_label, now)
    make_identities(site.directory / "tls", CLIENTS, now)
    content_key = site.directory / "content.key"
    content_key.touch(mode=0o600)
    content_key.write_bytes(secrets.token_bytes(32))
    _write_settings(site, token, port, vaults, bind, chan)
    _write_profile(site, profile_text)
    return site


def _read_profile(path: Path) -> tuple[str, str]:
    """A profile's settings file and the label of its CA's key."""
    try:
        text = path.read_text(encoding="utf-8")
        return text, str(tomllib.loads(text)["ca_label"])
    except (OSError, ValueError, KeyError) as error:
        raise ApplianceError(
            Reason.SETTINGS_INVALID,
            f"{path} is not a certificate profile that can be read.",
            hint="Name one with --profile, such as those of hsm_config/profiles in the source.",
            field="profile",
        ) from error


def _clear(directory: Path) -> None:
    if directory.exists() and any(directory.iterdir()):
        if not (directory / MARKER).exists():
            raise ApplianceError(
                Reason.SETTINGS_INVALID,
                f"{directory} is not empty and was not made by the demo.",
                hint="Name another directory, or empty this one yourself.",
                field="directory",
            )
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    (directory / MARKER).write_text(_MARK, encoding="utf-8")


def _make_token_directory(directory: Path, module: Path) -> ModuleParameters:
    tokens = directory / "token"
    tokens.mkdir()
    conf = directory / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(conf)
    return initialise_token(str(module), published.TOKEN_LABEL, published.SO_PIN, published.PIN)


def _make_keys(
    site: DemoSite, token: ModuleParameters, ca_label: str, now: datetime.datetime
) -> tuple[MasterKey, MasterKey]:
    session = TokenSession(token, published.PIN, lambda _: None)
    try:
        bind, chan = form_masters(
            session,
            published.SIM_ISSUER,
            published.KVN,
            published.components("KM-BIND"),
            published.components("KM-CHAN"),
        )
        certificate = make_issuing_ca(
            session, ca_label, KeyType.RSA_2048, "DEMO ONLY", "DEMO ONLY - Issuing CA", now, now + CA_VALIDITY
        )
    finally:
        session.close()
    site.ca_certificate.write_bytes(x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM))
    return bind, chan


def _write_settings(
    site: DemoSite, token: ModuleParameters, port: int, vaults: int, bind: MasterKey, chan: MasterKey
) -> None:
    clients = "".join(
        _CLIENT.format(uri=uri, role=role, sim_issuers=json.dumps([published.SIM_ISSUER] if role == "tsm" else []))
        for role, uri in CLIENTS.items()
    )
    sockets = _socket_directory(site.directory)
    site.settings.write_text(
        _SETTINGS.format(
            module=_string(token.path),
            label=_string(token.token_label),
            serial=_string(token.token_serial),
            softhsm_conf=_string(site.directory / "softhsm2.conf"),
            sockets=_string(sockets),
            health_socket=_string(sockets / "front.sock"),
            vaults=vaults,
            port=port,
            profile=_string(published.PROFILE),
            clients=clients,
        ),
        encoding="utf-8",
    )
    issuers = site.directory / "sim_issuers"
    issuers.mkdir()
    (issuers / f"{published.SIM_ISSUER}.toml").write_text(
        _SIM_ISSUER.format(
            name=published.SIM_ISSUER,
            kvn=published.KVN,
            bind=_inline({"label": bind.label, "kcv": bind.kcv, "kdf_kcv": bind.kdf_kcv}),
            chan=_inline({"label": chan.label, "kcv": chan.kcv, "kdf_kcv": chan.kdf_kcv}),
        ),
        encoding="utf-8",
    )
    site.masters.write_text(
        _MASTERS.format(
            bind=published.master("KM-BIND").hex(), chan=published.master("KM-CHAN").hex(), kvn=published.KVN
        ),
        encoding="utf-8",
    )


def _write_profile(site: DemoSite, text: str) -> None:
    """The profile under the demo's name, with the demo's CA."""
    profiles = site.directory / "profiles"
    profiles.mkdir()
    replaced = {"name": published.PROFILE, "ca_certificate": str(site.ca_certificate)}
    lines = [
        f"{key} = {_string(replaced[key])}" if (key := line.partition("=")[0].strip()) in replaced else line
        for line in text.splitlines()
    ]
    (profiles / f"{published.PROFILE}.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _socket_directory(directory: Path) -> Path:
    """In the demo's directory, or where its path would be too long for a socket (sun_path, 107 bytes), elsewhere."""
    sockets = directory / "sockets"
    if len(os.fsencode(sockets)) > MAX_SOCKET_DIRECTORY:
        return Path(tempfile.mkdtemp(prefix="appliance-demo-"))
    sockets.mkdir(mode=0o700)
    return sockets


def _inline(table: Mapping[str, str]) -> str:
    return "{ " + ", ".join(f"{key} = {_string(value)}" for key, value in table.items()) + " }"


def _string(value: str | Path) -> str:
    """A TOML basic string; JSON writes the same escapes."""
    return json.dumps(str(value), ensure_ascii=False)
