"""What is on the token: its description, the long-lived keys against their templates, declared check values."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from pkcs11 import Attribute, KeyType, ObjectClass, TokenFlag

from appliance.domain.keyset import MasterKey
from appliance.domain.profile import CertificateProfile
from appliance.errors import ApplianceError
from appliance.hsm import derive
from appliance.hsm.authority import Authority
from appliance.hsm.check.attack import answer
from appliance.hsm.check.bench import unbound
from appliance.hsm.check.finding import Finding, Section, Status, Verdict
from appliance.hsm.check.mechanisms import difference_text
from appliance.hsm.keys import Role, differences
from appliance.hsm.masters import MASTER_BYTES
from appliance.hsm.module import TokenSession, load
from appliance.hsm.orders import ModuleParameters

_CLASS_ROLES = {ObjectClass.SECRET_KEY: Role.KM_BIND, ObjectClass.PRIVATE_KEY: Role.ISSUING_CA}
"""Whose template a long-lived key of this class should have."""
_PIN_FLAGS = {
    TokenFlag.USER_PIN_COUNT_LOW: "a wrong PIN has been entered since the last login",
    TokenFlag.USER_PIN_FINAL_TRY: "one more wrong PIN locks the token",
    TokenFlag.USER_PIN_LOCKED: "the PIN is locked",
    TokenFlag.USER_PIN_TO_BE_CHANGED: "the PIN must be changed",
    TokenFlag.SO_PIN_COUNT_LOW: "a wrong SO PIN has been entered since the officer's last login",
    TokenFlag.SO_PIN_FINAL_TRY: "one more wrong SO PIN locks the officer out",
    TokenFlag.SO_PIN_LOCKED: "the SO PIN is locked",
    TokenFlag.ERROR_STATE: "the token is in its error state",
}


def module(session: TokenSession, parameters: ModuleParameters) -> list[Finding]:
    """Manufacturer, versions and path, and how the module deviates from the standard."""
    library = load(parameters)
    told = {
        "path": parameters.path,
        "manufacturer": library.manufacturer_id,
        "description": library.library_description,
        "version": ".".join(map(str, library.library_version)),
        "PKCS #11": ".".join(map(str, library.cryptoki_version)),
    }
    deviations = "; ".join(session.dialect.deviations) or "none seen"
    return [Finding(Section.MODULE, name, "", Verdict.NOTED, str(found)) for name, found in told.items()] + [
        Finding(Section.MODULE, "deviations", "", Verdict.NOTED, deviations)
    ]


def token(session: TokenSession) -> list[Finding]:
    """Label, serial number and flags, as they were before the login."""
    described = session.raw.token
    flags = TokenFlag(described.flags)
    told = {
        "label": described.label,
        "serial": session.description.token_serial,
        "model": f"{described.manufacturer_id} {described.model}".strip(),
        "flags": ", ".join(str(flag.name) for flag in TokenFlag if flag in flags) or "none",
        "PINs": "; ".join(text for flag, text in _PIN_FLAGS.items() if flag in flags) or "nothing unusual",
    }
    return [Finding(Section.TOKEN, name, "", Verdict.NOTED, found) for name, found in told.items()]


def objects(session: TokenSession, when: str) -> list[Finding]:
    """How many objects of each class the token has."""
    found = [_class(thing) for thing in session.find_all({Attribute.TOKEN: True})]
    text = ", ".join(f"{count} {name}" for name, count in sorted(Counter(found).items())) or "none"
    return [Finding(Section.OBJECTS, "on the token", when, Verdict.NOTED, text)]


def master(session: TokenSession, role: Role, declared: MasterKey, field: str) -> list[Finding]:
    """A declared master key: its attributes, and both check values."""
    template = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES}
    found = _found(session, template, declared.label, field)
    if isinstance(found, Finding):
        return [found]
    findings = [_attributes(session, role, found, declared.label, length=MASTER_BYTES)]
    key = unbound(found)  # also one that may not derive: the module says so
    try:
        kcv = derive.kcv(session, key)
        kdf_kcv = derive.kdf_check(session, key, derive.subkey_k1(session, key), role)
    except ApplianceError as error:
        return [*findings, _wrong(declared.label, "check values", answer(error))]
    for name, value, expected in (("kcv", kcv, declared.kcv), ("kdf_kcv", kdf_kcv, declared.kdf_kcv)):
        text, right = value.hex().upper(), value == bytes.fromhex(expected)
        told = f"{text}, as declared" if right else f"{text} | {expected.upper()} is declared"
        findings.append(_right(declared.label, name, told) if right else _wrong(declared.label, name, told))
    return findings


def ca_key(session: TokenSession, profile: CertificateProfile, certificate: bytes) -> list[Finding]:
    """A declared CA key: its attributes, and whether it is its certificate's, which it shows by a signature."""
    field = f"profiles.{profile.name}.ca_label"
    found = _found(session, {Attribute.CLASS: ObjectClass.PRIVATE_KEY}, profile.ca_label, field)
    if isinstance(found, Finding):
        return [found]
    findings = [_attributes(session, Role.ISSUING_CA, found, profile.ca_label)]
    try:
        Authority(session, profile, certificate)
    except ApplianceError as error:
        return [*findings, _wrong(profile.ca_label, "certificate", answer(error))]
    return [*findings, _right(profile.ca_label, "certificate", f"the key of {profile.ca_certificate.name}")]


def undeclared(session: TokenSession, declared: Iterable[str]) -> list[Finding]:
    """Long-lived keys that no setting names, against the template of their class."""
    names, findings = set(declared), []
    for object_class, role in _CLASS_ROLES.items():
        for key in session.find_all({Attribute.TOKEN: True, Attribute.CLASS: object_class}):
            label = session.call("read", key.__getitem__, Attribute.LABEL)
            if label not in names:
                wrong = difference_text(differences(session, role, key)) or "as the template"
                text = f"no setting names it; against the template of the {role}: {wrong}"
                findings.append(Finding(Section.KEYS, label or "(no label)", "attributes", Verdict.NOTED, text))
    return findings


def _found(session: TokenSession, template: dict[Attribute, Any], label: str, field: str) -> Any:
    """The key, or why there is none."""
    try:
        return session.find(template, label, field=field)
    except ApplianceError as error:
        return _wrong(label, "", answer(error))


def _attributes(session: TokenSession, role: Role, key: Any, label: str, *, length: int = 0) -> Finding:
    try:
        wrong = differences(session, role, key, length=length)
    except ApplianceError as error:
        return _wrong(label, "attributes", answer(error))
    if wrong:
        return _wrong(label, "attributes", difference_text(wrong))
    return _right(label, "attributes", f"as the template of the {role}")


def _class(thing: Any) -> str:
    return str(getattr(thing, "object_class", None) and thing.object_class.name.lower()) or "other"


def _right(label: str, part: str, found: str) -> Finding:
    return Finding(Section.KEYS, label, part, Verdict.RIGHT, found)


def _wrong(label: str, part: str, found: str) -> Finding:
    return Finding(Section.KEYS, label, part, Verdict.WRONG, found, Status.UNFIT)
