"""Where a key claims to come from, and who sees or uses it without the PIN."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from pkcs11 import Attribute, Mechanism, exceptions

from appliance.hsm.check import foreign
from appliance.hsm.check.attack import Try
from appliance.hsm.check.bench import ATTACK, Bench
from appliance.hsm.derive import ZERO_BLOCK
from appliance.hsm.keys import TEMPLATES, Role, differences

_ORIGIN: Final = TEMPLATES[Role.ISSUING_CA].origin.keys()


def _imported(*claimed: Attribute) -> Try:
    """A private key from outside; whether it passes for a CA key that was made here and hidden ever since."""

    def claim(bench: Bench) -> bool:
        own, _ = foreign.private_key(bench.key_type)
        template = own | bench.template(Role.ISSUING_CA) | dict.fromkeys(claimed, True)
        key = bench.keep(bench.session.call(ATTACK if claimed else "create", bench.session.raw.create_object, template))
        return _ORIGIN.isdisjoint(differences(bench.session, Role.ISSUING_CA, key))

    return claim


def _session_key_after_logout(bench: Bench, *, use: bool) -> bool:
    """A second session, opened while its process was logged in, looks for a private key or uses its handle."""
    session = bench.session
    other = session.call("open", session.raw.token.open, rw=True)
    try:
        template = bench.template(Role.CMAC) | {Attribute.VALUE: bench.value}
        key = session.call("create", other.create_object, template)
        bench.log_out()
        if use:
            return bool(bench.sign(key, ZERO_BLOCK, Mechanism.AES_CMAC))
        return bool(bench.attack(lambda: list(other.get_objects({Attribute.PRIVATE: True}))))
    finally:
        with suppress(exceptions.PKCS11Error):
            other.close()


def _token_keys_after_logout(bench: Bench) -> bool:
    session = bench.session
    token = session.raw.token
    bench.log_out()
    other = session.call("open", token.open)
    try:
        return bool(bench.attack(lambda: list(other.get_objects({Attribute.PRIVATE: True}))))
    finally:
        with suppress(exceptions.PKCS11Error):
            other.close()


CLAIM_ORIGIN: Final[Mapping[str, Try]] = {
    "claiming nothing": _imported(),
    **{f"claiming {attribute.name}": _imported(attribute) for attribute in _ORIGIN},
    "claiming everything": _imported(*_ORIGIN),
}
SEE_WITHOUT_LOGIN: Final[Mapping[str, Try]] = {
    "private keys on the token": _token_keys_after_logout,
    "private session key": lambda bench: _session_key_after_logout(bench, use=False),
}
USE_AFTER_LOGOUT: Final[Mapping[str, Try]] = {
    "private session key": lambda bench: _session_key_after_logout(bench, use=True),
}
