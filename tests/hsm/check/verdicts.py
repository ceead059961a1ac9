"""What each attack is on the three modules, as they are in Debian 12: SoftHSM 2.6.1, NSS 3.87, openCryptoki 3.8.1."""

from collections.abc import Mapping
from typing import Final

from appliance.hsm.check.finding import Verdict

_CONFLICTS: Final = {"wrap-decrypt", "encrypt-unwrap", "reimport-readable", "reimport-class", "derive-encrypt"}
POSSIBLE: Final[Mapping[str, set[str]]] = {
    "softhsm": {
        *_CONFLICTS,
        "change-session-key",
        "sign-derive",
        "wrap-foreign-secret",
        "wrap-weak",
        "derive-readable",
        "derive-other-use",
        "derive-short",
    },
    "nss": {
        *_CONFLICTS,
        "read-unextractable",
        "use-beyond-template",
        "change-session-key",
        "set-trusted",
        "copy-weaker",
        "sign-derive",
        "wrap-foreign-secret",
        "wrap-foreign-public",
        "wrap-unextractable",
        "wrap-weak",
        "wrap-untrusted",
        "derive-readable",
        "derive-other-use",
        "derive-short",
        "derive-bits",
    },
    "opencryptoki": {
        *_CONFLICTS,
        "change-session-key",
        "copy-weaker",
        "wrap-foreign-secret",
        "wrap-weak",
    },
}
NOT_OFFERED: Final[Mapping[str, set[str]]] = {
    "softhsm": {"derive-bits"},
    "nss": set(),
    "opencryptoki": {
        "sign-derive",
        "wrap-untrusted",
        "derive-readable",
        "derive-other-use",
        "derive-short",
        "derive-bits",
    },
}


def expected(module: str, attack: str) -> Verdict:
    """Its verdict; what is in neither table is blocked."""
    if attack in POSSIBLE[module]:
        return Verdict.POSSIBLE
    return Verdict.NOT_OFFERED if attack in NOT_OFFERED[module] else Verdict.BLOCKED
