"""The master keys of a key set: found on the token, held against their template and declared check values."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from itertools import combinations

from pkcs11 import Attribute, KeyType, ObjectClass

from appliance.domain.keyset import KeySet, MasterKey, SimIssuer
from appliance.errors import ApplianceError, Reason
from appliance.hsm import derive
from appliance.hsm.keys import Role, verify_attributes
from appliance.hsm.module import TokenSession
from appliance.hsm.objects import Key
from appliance.hsm.orders import LoadedKeySet

MASTER_BYTES = 32
_AES_KEYS = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES}


class Master:
    """One master key and its CMAC subkey K1, which is computed in the token at every start and never stored."""

    def __init__(self, session: TokenSession, role: Role, declared: MasterKey, field: str) -> None:
        """Find and check the key.

        Args:
            field: where the settings declare it.

        Raises:
            ApplianceError: KEY_MISSING, KEY_ATTRIBUTES_DIFFER, KCV_MISMATCH.
        """
        self._session = session
        self.label = declared.label
        self._key = session.find(_AES_KEYS, declared.label, field=f"{field}.label")
        verify_attributes(session, role, self._key, length=MASTER_BYTES, field=field)
        self.kcv = derive.kcv(session, self._key)
        self._require(self.kcv, declared.kcv, f"{field}.kcv")
        self._k1 = derive.subkey_k1(session, self._key)
        kdf_kcv = derive.kdf_check(session, self._key, self._k1, role)
        self._require(kdf_kcv, declared.kdf_kcv, f"{field}.kdf_kcv")

    def kdf3(self, role: Role, constant: int, kdd: bytes, bits: int = 256) -> AbstractContextManager[Key]:
        """A key derived from this master."""
        return derive.kdf3(self._session, self._key, self._k1, role, constant, kdd, bits)

    def _require(self, found: bytes, declared: str, field: str) -> None:
        if found != bytes.fromhex(declared):
            raise ApplianceError(
                Reason.KCV_MISMATCH,
                f"Key {self.label} has check value {found.hex().upper()}, but {declared.upper()} is declared.",
                hint="Correct the declaration from the ceremony's transcript, or find out who changed the key.",
                field=field,
                label=self.label,
            )


class HeldKeySet:
    """A declared key set and its two masters on the token."""

    def __init__(self, session: TokenSession, issuer: SimIssuer, declared: KeySet) -> None:
        field = f"sim_issuers.{issuer.name}.key_sets[{declared.kvn:02X}]"
        self.issuer = issuer
        self.declared = declared
        self.bind = Master(session, Role.KM_BIND, declared.bind, f"{field}.bind")
        self.chan = Master(session, Role.KM_CHAN, declared.chan, f"{field}.chan")
        self.loaded = LoadedKeySet(issuer.name, declared.kvn, self.bind.kcv, self.chan.kcv)


class KeySets:
    """Every key set of every SIM issuer, found at start and again after each renewal of the session."""

    def __init__(self, session: TokenSession, issuers: Iterable[SimIssuer]) -> None:
        """Find them all.

        Raises:
            ApplianceError: KEY_MISSING, KEY_ATTRIBUTES_DIFFER, KCV_MISMATCH, also where two masters are one key.
        """
        self._issuers = {issuer.name: issuer for issuer in issuers}
        self._held = {
            (issuer.name, key_set.kvn): HeldKeySet(session, issuer, key_set)
            for issuer in self._issuers.values()
            for key_set in issuer.key_sets
        }
        self.loaded = tuple(held.loaded for held in self._held.values())
        masters = [master for held in self._held.values() for master in (held.bind, held.chan)]
        for one, other in combinations(masters, 2):
            if one.kcv == other.kcv:
                raise ApplianceError(
                    Reason.KCV_MISMATCH,
                    f"Keys {one.label} and {other.label} have the same check value {one.kcv.hex().upper()}.",
                    hint="No master key may serve in two places: form one of them anew.",
                    field="sim_issuers",
                    label=other.label,
                )

    def get(self, sim_issuer: str, kvn: int, *, to_seal: bool = False) -> HeldKeySet:
        """The key set of this SIM issuer and version number.

        Args:
            to_seal: refuse one whose state does not permit sealing; channels and receipts are served in every state.

        Raises:
            ApplianceError: SIM_ISSUER_UNKNOWN, KEY_SET_UNKNOWN, KEY_SET_NOT_USABLE.
        """
        issuer = self._issuers.get(sim_issuer)
        if issuer is None:
            raise ApplianceError(
                Reason.SIM_ISSUER_UNKNOWN,
                f"This vault knows no SIM issuer {sim_issuer}.",
                hint="Restart the vaults after changing hsm_config/sim_issuers.",
                field="sim_issuer",
            )
        declared = issuer.sealing_key_set(kvn) if to_seal else issuer.key_set(kvn)
        return self._held[sim_issuer, declared.kvn]
