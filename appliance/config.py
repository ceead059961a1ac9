"""The settings: appliance.toml, with sim_issuers/*.toml and profiles/*.toml beside it. Nothing is read from elsewhere.

A key that is not known is an error, so that a slip of the pen is never a default. Relative paths are relative to the
directory of appliance.toml. No setting is a secret; secrets are in files that the settings name.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.domain.keyset import SimIssuer
from appliance.domain.lints import UNREADABLE
from appliance.domain.profile import CertificateProfile
from appliance.domain.setting import SettingError
from appliance.errors import ApplianceError, Reason

CALL_LIMITS: Final = {"keypair_rsa": 60.0, "other": 10.0}
"""Seconds that one module call may take, by kind: RSA key generation is a search, everything else is quick."""

_SQLITE: Final = "sqlite:///"
_LEDGER: Final = re.compile(r"sqlite:///(?!:memory:)[^?]+")
_URI: Final = re.compile(r"[a-z][a-z0-9+.-]*:[\x21-\x7E]+")
_LISTEN: Final = re.compile(r"(?:\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}")

_Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_Days = Annotated[int, msgspec.Meta(ge=1, le=90)]
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]
_T = TypeVar("_T")


class Environment(StrEnum):
    """What the appliance is run for."""

    PRODUCTION = "production"
    DEMO = "demo"


class Role(StrEnum):
    """Who a client is; server/access.py says which calls each may make."""

    ISSUER = "issuer"
    TSM = "tsm"
    OPERATOR = "operator"
    AUDITOR = "auditor"


@dataclass(frozen=True)
class ModuleSettings:
    """The PKCS#11 module and the one token that is used.

    Args:
        path: the module's shared library.
        token_label: as C_GetTokenInfo shows it, without padding.
        token_serial: likewise; another serial number means another token under the same label.
        environment: variables that the module reads, as they are (SOFTHSM2_CONF, for example).
        arguments: what the module wants of C_Initialize (NSS, for example); "" for most.
    """

    path: Path
    token_label: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    token_serial: Annotated[str, msgspec.Meta(min_length=1, max_length=16)]
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: str = ""


@dataclass(frozen=True)
class VaultSettings:
    """The vault processes.

    Args:
        socket_directory: of their sockets; its mode is the access control. All in all a socket's path has at most
            107 bytes.
        count: how many; one for each core or HSM partition.
        queue_capacity: items that may wait in each.
        recycle_after: items after which a vault is replaced by a fresh one.
        limits: seconds that one module call may take, by kind; kinds not named have `CALL_LIMITS`.
    """

    socket_directory: Path
    count: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    queue_capacity: _Count = 64
    recycle_after: _Count = 100_000
    limits: Mapping[str, _Seconds] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", CALL_LIMITS | dict(self.limits))


@dataclass(frozen=True)
class Tls:
    """Identity of the public server and the CA of its clients, all PEM."""

    certificate: Path
    key: Path
    client_ca: Path


@dataclass(frozen=True)
class Client:
    """A client by the one URI SAN of its certificate.

    Args:
        role: what it may call.
        sim_issuers: for a TSM, those whose deliveries it sees; for others none.
    """

    role: Role
    sim_issuers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.role is Role.TSM) != bool(self.sim_issuers):
            raise SettingError(
                "sim_issuers",
                "A TSM names the SIM issuers that it serves; no other role names any.",
                "Add sim_issuers to the TSM, or remove them from the other role.",
            )


@dataclass(frozen=True)
class FrontSettings:
    """The public server and the ledger.

    Args:
        content_key_file: at least 32 random bytes; keys the digests by which repeated requests are known again.
        profile: name of the certificate profile that serves.
        tls: identity and client CA.
        clients: by URI.
        listen: host:port.
        ledger: SQLAlchemy URL.
        max_concurrent: calls in work at once; more are refused.
        drain_seconds: how long calls in work may go on when the server stops.
        certificate_wait_days: how long a sealed key waits for an external CA's certificate; then it is erased.
        health_socket: Unix socket for `appliance health front`; none without it.
    """

    content_key_file: Path
    profile: str
    tls: Tls
    clients: Mapping[str, Client]
    listen: str = "127.0.0.1:7443"
    ledger: str = "sqlite:///ledger.db"
    max_concurrent: _Count = 256
    drain_seconds: _Seconds = 30
    certificate_wait_days: _Days = 14
    health_socket: Path | None = None

    def __post_init__(self) -> None:
        if not _LISTEN.fullmatch(self.listen) or int(self.listen.rpartition(":")[2]) > 0xFFFF:
            raise SettingError("listen", f"{self.listen!r} is not host:port.", 'Write it as "127.0.0.1:7443".')
        if not _LEDGER.fullmatch(self.ledger):
            raise SettingError("ledger", "The ledger's URL names no SQLite file.", 'Write it as "sqlite:///ledger.db".')
        for uri in self.clients:
            if not _URI.fullmatch(uri):
                raise SettingError("clients", f"{uri!r} is not a URI.", "Copy the URI SAN of the client's certificate.")


@dataclass(frozen=True)
class Settings:
    """Everything that is declared; each part valid by itself, and all parts together.

    Raises:
        ApplianceError: SETTINGS_INVALID, DEMO_IN_PRODUCTION.
    """

    environment: Environment
    module: ModuleSettings
    vault: VaultSettings
    front: FrontSettings
    sim_issuers: Mapping[str, SimIssuer]
    profiles: Mapping[str, CertificateProfile]

    def __post_init__(self) -> None:
        if self.front.profile not in self.profiles:
            raise SettingError(
                "appliance.toml: front.profile",
                f"No profile {self.front.profile!r} is declared.",
                f"Choose among {', '.join(self.profiles) or 'files that you put into profiles/'}.",
            )
        for uri, client in self.front.clients.items():
            if unknown := set(client.sim_issuers) - set(self.sim_issuers):
                raise SettingError(
                    f"appliance.toml: front.clients.{uri}.sim_issuers",
                    f"Not declared: {', '.join(sorted(unknown))}.",
                    "Name SIM issuers of sim_issuers/, without their .toml.",
                )
        self._refuse_shared_masters()
        if self.environment is Environment.PRODUCTION:
            for where, what in self._demo_evidence():
                raise ApplianceError(
                    Reason.DEMO_IN_PRODUCTION,
                    f"{what}, and the environment is production.",
                    hint="Run a ceremony with secret components on a production token, and declare what it made.",
                    field=where,
                )

    def _refuse_shared_masters(self) -> None:
        places: dict[tuple[str, object], str] = {}
        for name, issuer in self.sim_issuers.items():
            for master in (master for key_set in issuer.key_sets for master in key_set.masters):
                for identity in (("label", master.label), ("check value", master.kcv_bytes)):
                    other = places.setdefault(identity, name)
                    if other != name:
                        raise SettingError(
                            f"sim_issuers/{name}.toml: key_sets",
                            f"The {identity[0]} of {master.label!r} stands also in sim_issuers/{other}.toml.",
                            "Every SIM issuer has master keys of its own.",
                        )

    def _demo_evidence(self) -> Iterator[tuple[str, str]]:
        if self.module.token_label.upper().startswith("DEMO"):
            yield "appliance.toml: module.token_label", f"Token {self.module.token_label} is a demo's"
        for name, issuer in self.sim_issuers.items():
            if issuer.demo:
                yield f"sim_issuers/{name}.toml: demo", f"SIM issuer {name} is a demo's"
            for key_set in issuer.key_sets:
                for master in key_set.masters:
                    if master.is_demo:
                        yield (
                            f"sim_issuers/{name}.toml: key_sets",
                            f"Master key {master.label} has the check value of a published demo key",
                        )


@dataclass(frozen=True)
class _Appliance:
    """What stands in appliance.toml itself."""

    environment: Environment
    module: ModuleSettings
    vault: VaultSettings
    front: FrontSettings


def load(path: Path) -> Settings:
    """Read appliance.toml and the directories beside it.

    Raises:
        ApplianceError: SETTINGS_INVALID, its field naming file and key; DEMO_IN_PRODUCTION.
    """
    base = path.absolute().parent
    main = _read(base / path.name, _Appliance, base)
    return Settings(
        environment=main.environment,
        module=main.module,
        vault=main.vault,
        front=replace(main.front, ledger=_absolute(main.front.ledger, base)),
        sim_issuers=_read_all(base / "sim_issuers", SimIssuer, base),
        profiles=_read_all(base / "profiles", CertificateProfile, base),
    )


def ca_certificate(profile: CertificateProfile) -> bytes:
    """The certificate of a profile's issuing CA, DER.

    Raises:
        SettingError: SETTINGS_INVALID.
    """
    try:
        certificate = x509.load_pem_x509_certificate(profile.ca_certificate.read_bytes())
        _ = certificate.extensions  # read only when they are asked for
        return certificate.public_bytes(Encoding.DER)
    except (OSError, *UNREADABLE) as error:
        raise SettingError(
            f"profiles/{profile.name}.toml: ca_certificate",
            f"{profile.ca_certificate} is not a readable PEM certificate.",
            "Name the certificate that the ceremony made, or that the external CA has published.",
        ) from error


def _absolute(url: str, base: Path) -> str:
    return f"{_SQLITE}{base / url.removeprefix(_SQLITE)}" if url.startswith(_SQLITE) else url


_Named = TypeVar("_Named", SimIssuer, CertificateProfile)


def _read_all(directory: Path, kind: type[_Named], base: Path) -> dict[str, _Named]:
    found = {}
    for path in sorted(directory.glob("*.toml")):
        declared = _read(path, kind, base)
        if declared.name != path.stem:
            raise SettingError(
                f"{path.relative_to(base)}: name",
                f"The file is called {path.stem}, but declares {declared.name}.",
                "Give both the same name, so that the directory's listing tells the truth.",
            )
        found[declared.name] = declared
    return found


def _read(path: Path, kind: type[_T], base: Path) -> _T:
    where = path.relative_to(base).as_posix()
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(
            where, f"{path} cannot be read: {error.strerror}.", "Check --config and the file's mode."
        ) from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise SettingError(where, f"The file is not TOML: {error}.", "Correct the line that is named.") from error

    def decode(type_: type[Any], value: object) -> object:
        if type_ is Path and isinstance(value, str) and value:
            return base / value
        raise ValueError("Expected a path")

    try:
        decoded = msgspec.convert(raw, kind, dec_hook=decode)
    except msgspec.ValidationError as error:
        raise _located(where, error) from error
    known = msgspec.to_builtins(decoded, enc_hook=str)
    if unknown := next(_unknown(raw, known), ""):
        raise SettingError(f"{where}: {unknown}", "There is no such key.", "Correct its spelling or remove it.")
    return decoded


def _located(where: str, error: msgspec.ValidationError) -> SettingError:
    """The decoder's refusal: what is wrong and at which path, `… - at `$.vault.count``."""
    detail, _, path = str(error).partition(" - at `$")
    path = path.removeprefix(".").removesuffix("`")
    if isinstance(error.__cause__, SettingError):
        cause = error.__cause__
        return SettingError(f"{where}: {'.'.join(filter(None, (path, cause.field)))}", cause.detail, cause.hint)
    return SettingError(
        ": ".join(filter(None, (where, path))), f"{detail}.", "See the commented example in hsm_config/."
    )


def _unknown(raw: object, known: object, path: str = "") -> Iterator[str]:
    """Paths of keys that stand in the file and that nothing read."""
    if isinstance(raw, dict) and isinstance(known, dict):
        for key, value in raw.items():
            inner = f"{path}.{key}" if path else key
            if key in known:
                yield from _unknown(value, known[key], inner)
            else:
                yield inner
    elif isinstance(raw, list) and isinstance(known, list | tuple):
        for index, (value, other) in enumerate(zip(raw, known, strict=True)):
            yield from _unknown(value, other, f"{path}[{index}]")
