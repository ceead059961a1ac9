"""The master keys of a key set: found on the token, held against their template and declared check values."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pkcs11 import Attribute, KeyType, ObjectClass

from appliance.domain import derivation
from appliance.domain.keyset import KeySet, MasterKey, SimIssuer
from appliance.errors import ApplianceError, Reason
from appliance.hsm import derive
from appliance.hsm.keys import Role, verify_attributes
from appliance.hsm.module import TokenSession
from appliance.hsm.orders import LoadedKeySet

_AES_KEYS = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES}


class Master:
    """One master key and its CMAC subkey K1, which is computed in the token at every start and never stored."""

    def __init__(self, session: TokenSession, role: Role, declared: MasterKey, where: str) -> None:
        """Find and check the key.

        Raises:
            ApplianceError: KEY_MISSING, KEY_ATTRIBUTES_DIFFER, KCV_MISMATCH.
        """
        self._session = session
        self._key = session.find(_AES_KEYS, declared.label)
        verify_attributes(session, role, self._key, VALUE_LEN=32)
        self.kcv = derive.encrypt_block(session, self._key, derive.KCV_BLOCK)[: derive.KCV_BYTES]
        _compare(self.kcv, declared.kcv, declared.label, f"{where}.kcv")
        self._k1 = derivation.cmac_subkey_k1(derive.encrypt_block(session, self._key, derive.ZERO_BLOCK))
        constant = derivation.K_SIM if role is Role.KM_BIND else derivation.CHANNEL_ENC
        _compare(
            derive.kdf_check(session, self._key, self._k1, constant),
            declared.kdf_kcv,
            declared.label,
            f"{where}.kdf_kcv",
        )

    @contextmanager
    def kdf3(self, role: Role, constant: int, kdd: bytes, bits: int = 256) -> Iterator[Any]:
        """A key derived from this master."""
        with derive.kdf3(self._session, self._key, self._k1, role, constant, kdd, bits) as key:
            yield key


class HeldKeySet:
    """A declared key set and its two masters on the token."""

    def __init__(self, session: TokenSession, issuer: SimIssuer, declared: KeySet) -> None:
        where = f"sim_issuers.{issuer.name}.key_sets[{declared.kvn:02X}]"
        self.declared = declared
        self.bind = Master(session, Role.KM_BIND, declared.bind, f"{where}.bind")
        self.chan = Master(session, Role.KM_CHAN, declared.chan, f"{where}.chan")
        self.loaded = LoadedKeySet(issuer.name, declared.kvn, self.bind.kcv, self.chan.kcv)


class KeySets:
    """Every key set of every SIM issuer, found at start and again after each renewal of the session."""

    def __init__(self, session: TokenSession, issuers: Iterable[SimIssuer]) -> None:
        issuers = tuple(issuers)
        self._held = {(i.name, s.kvn): HeldKeySet(session, i, s) for i in issuers for s in i.key_sets}
        self.loaded = tuple(held.loaded for held in self._held.values())
        kcvs = [kcv for held in self.loaded for kcv in (held.bind_kcv, held.chan_kcv)]
        if len(set(kcvs)) != len(kcvs):
            raise ApplianceError(
                Reason.KCV_MISMATCH,
                "Two master keys on the token have the same check value.",
                hint="KM-BIND and KM-CHAN of every key set must differ: form the doubled one anew.",
            )

    def get(self, sim_issuer: str, kvn: int) -> HeldKeySet:
        """The key set of this SIM issuer and version number.

        Raises:
            ApplianceError: KEY_SET_UNKNOWN.
        """
        try:
            return self._held[sim_issuer, kvn]
        except KeyError:
            raise ApplianceError(
                Reason.KEY_SET_UNKNOWN,
                f"This vault holds no key set {kvn:02X} of SIM issuer {sim_issuer}.",
                hint="Restart the vaults after changing hsm_config/sim_issuers.",
                field="kvn",
            ) from None


def _compare(found: bytes, declared: str, label: str, field: str) -> None:
    if found.hex() != declared.lower():
        raise ApplianceError(
            Reason.KCV_MISMATCH,
            f"Key {label} has check value {found.hex().upper()}, but {declared.upper()} is declared.",
            hint="Correct the declaration from the ceremony's transcript, or find out who changed the key.",
            field=field,
            label=label,
        )
