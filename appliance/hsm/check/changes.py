"""Weakening a key that is there: by changing its attributes, or by copying it with others."""

from collections.abc import Mapping
from typing import Final

from pkcs11 import Attribute

from appliance.hsm.check.attack import Try
from appliance.hsm.check.bench import ATTACK, Bench, named
from appliance.hsm.keys import Role


def _changed(role: Role, attribute: str, value: object) -> Try:
    def change(bench: Bench) -> bool:
        key = bench.key(role)
        bench.attack(key.__setitem__, Attribute[attribute], value)
        return bool(bench.read(key, Attribute[attribute]) == value)

    return change


def _copied(role: Role, attribute: str, value: object) -> Try:
    def copy(bench: Bench) -> bool:
        key = bench.key(role)
        duplicate = bench.keep(bench.attack(key.copy, {Attribute.TOKEN: False, **named({attribute: value})}))
        return bool(bench.read(duplicate, Attribute[attribute]) == value)

    return copy


def _trusted_from_the_start(bench: Bench) -> bool:
    return bool(bench.read(bench.secret(Role.WRAP, kind=ATTACK, TRUSTED=True), Attribute.TRUSTED))


CLEAR_SENSITIVE: Final[Mapping[str, Try]] = {
    "master key": _changed(Role.KM_BIND, "SENSITIVE", False),
    "K_SIM": _changed(Role.WRAP_DERIVER, "SENSITIVE", False),
    "K_PKG": _changed(Role.WRAP, "SENSITIVE", False),
    "CA key": _changed(Role.ISSUING_CA, "SENSITIVE", False),
    "subscriber's key": _changed(Role.SUBSCRIBER, "SENSITIVE", False),
}
SET_EXTRACTABLE: Final[Mapping[str, Try]] = {
    "master key": _changed(Role.KM_BIND, "EXTRACTABLE", True),
    "K_SIM": _changed(Role.WRAP_DERIVER, "EXTRACTABLE", True),
    "K_PKG": _changed(Role.WRAP, "EXTRACTABLE", True),
    "CA key": _changed(Role.ISSUING_CA, "EXTRACTABLE", True),
}
CHANGE_FIXED_KEY: Final[Mapping[str, Try]] = {
    "master key ENCRYPT": _changed(Role.KM_BIND, "ENCRYPT", True),
    "master key SIGN": _changed(Role.KM_BIND, "SIGN", True),
    "master key MODIFIABLE": _changed(Role.KM_BIND, "MODIFIABLE", True),
    "CA key DECRYPT": _changed(Role.ISSUING_CA, "DECRYPT", True),
    "subscriber's key SIGN": _changed(Role.SUBSCRIBER, "SIGN", True),
}
CHANGE_SESSION_KEY: Final[Mapping[str, Try]] = {
    "K_SIM ENCRYPT": _changed(Role.WRAP_DERIVER, "ENCRYPT", True),
    "K_PKG DECRYPT": _changed(Role.WRAP, "DECRYPT", True),
    "K_PKG UNWRAP": _changed(Role.WRAP, "UNWRAP", True),
}
SET_TRUSTED: Final[Mapping[str, Try]] = {
    "made so": _trusted_from_the_start,
    "changed to it": _changed(Role.WRAP, "TRUSTED", True),
}
COPY_WEAKER: Final[Mapping[str, Try]] = {
    "master key SENSITIVE": _copied(Role.KM_BIND, "SENSITIVE", False),
    "master key EXTRACTABLE": _copied(Role.KM_BIND, "EXTRACTABLE", True),
    "master key ENCRYPT": _copied(Role.KM_BIND, "ENCRYPT", True),
    "K_SIM SENSITIVE": _copied(Role.WRAP_DERIVER, "SENSITIVE", False),
    "K_PKG EXTRACTABLE": _copied(Role.WRAP, "EXTRACTABLE", True),
    "K_PKG DECRYPT": _copied(Role.WRAP, "DECRYPT", True),
    "CA key EXTRACTABLE": _copied(Role.ISSUING_CA, "EXTRACTABLE", True),
    "subscriber's key SENSITIVE": _copied(Role.SUBSCRIBER, "SENSITIVE", False),
    "subscriber's key SIGN": _copied(Role.SUBSCRIBER, "SIGN", True),
}
