"""The HSM as the vault sees it: five orders and nothing else. One thread only."""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TypeVar

from appliance.domain.keyset import SimIssuer
from appliance.domain.package import Header, KeyType, PendingPackage
from appliance.domain.profile import CaMode, CertificateProfile
from appliance.domain.submission import ExternalCa
from appliance.errors import ApplianceError, Reason
from appliance.hsm import probe
from appliance.hsm.authority import Authority
from appliance.hsm.channel import open_channel
from appliance.hsm.completion import complete
from appliance.hsm.masters import KeySets
from appliance.hsm.module import TokenSession
from appliance.hsm.orders import (
    ChannelKeys,
    ChannelOrder,
    CompletionOrder,
    LoadedKeySet,
    ModuleParameters,
    ReceiptOrder,
    SealOrder,
    TokenDescription,
)
from appliance.hsm.receipts import verify_receipt
from appliance.hsm.sealing import seal, seal_pending

T = TypeVar("T")


class Engine:
    """A logged-in token with every declared key found, checked and proved.

    After a PKCS#11 error the session is closed at once, which destroys its objects; the next order opens a new one,
    finds the keys again and repeats every check.

    `wrap_mechanism` is the one that proved to be RFC 5649; `deviations` is what the module's keys do not tell of
    themselves as the standard has it.
    """

    def __init__(
        self,
        session: TokenSession,
        issuers: Iterable[SimIssuer],
        profiles: Iterable[tuple[CertificateProfile, bytes]],
        clock: Callable[[], datetime],
    ) -> None:
        self._session = session
        self._issuers = tuple(issuers)
        self._profiles = tuple(profiles)
        self._clock = clock
        self._load()

    @classmethod
    def start(
        cls,
        module: ModuleParameters,
        issuers: Iterable[SimIssuer],
        profiles: Iterable[tuple[CertificateProfile, bytes]],
        pin: str,
        *,
        clock: Callable[[], datetime],
        stamp: Callable[[str], None],
    ) -> "Engine":
        """Log in, prove the mechanisms, find and check every declared key.

        Args:
            profiles: each with its CA certificate (DER).
            stamp: told the kind of each module call before it ("keypair_rsa", "wrap", …) and "" after it.

        Raises:
            ApplianceError: PIN_REJECTED, TOKEN_ABSENT, TOKEN_CHANGED, KEY_MISSING, KCV_MISMATCH, MECHANISM_MISSING,
                KEY_ATTRIBUTES_DIFFER, CA_KEY_MISMATCH, TOKEN_FAULT; SETTINGS_INVALID for an external CA's
                certificate.
        """
        return cls(TokenSession(module, pin, stamp), issuers, profiles, clock)

    def _load(self) -> None:
        session = self._session
        try:
            permitted = {name for profile, _ in self._profiles for name in profile.key_types}
            key_types = [key_type for key_type in KeyType if key_type.name in permitted]
            self.wrap_mechanism = probe.prove_mechanisms(session, key_types)
            self.deviations = session.dialect.deviations
            self._key_sets = KeySets(session, self._issuers)
            self._authorities = {
                profile.name: Authority(session, profile, certificate)
                if profile.ca_mode is CaMode.INTERNAL
                else ExternalCa(profile, certificate)
                for profile, certificate in self._profiles
            }
        except BaseException:
            session.close()
            raise

    @property
    def description(self) -> TokenDescription:
        """Module and token in use."""
        return self._session.description

    @property
    def key_sets(self) -> tuple[LoadedKeySet, ...]:
        """The key sets held, with their check values."""
        return self._key_sets.loaded

    def has_external_ca(self, profile: str) -> bool:
        """Whether keys of this profile are to be sealed with `request` and `complete` instead of `issue`.

        Raises:
            ApplianceError: NODE_INCONSISTENT for a profile that is not served.
        """
        return isinstance(self._authority(profile), ExternalCa)

    def issue(self, order: SealOrder) -> bytes:
        """Make, certify, seal and destroy one key pair; answers its SIM package.

        Raises:
            ApplianceError: SIM_ISSUER_UNKNOWN, KEY_SET_UNKNOWN, KEY_SET_NOT_USABLE, and what `seal` raises.
        """

        def work() -> bytes:
            key_set = self._key_sets.get(order.sim_issuer, order.kvn, to_seal=True)
            authority = self._authority(order.profile)
            if isinstance(authority, ExternalCa):
                raise _inconsistent(f"Profile {order.profile} has an external CA.")
            return seal(self._session, order, key_set, authority, self.wrap_mechanism, self._clock())

        return self._run(work)

    def request(self, order: SealOrder) -> PendingPackage:
        """Make and seal one key pair, destroy it, and answer what waits for the external CA's certificate.

        Raises:
            ApplianceError: as `issue`, and what `seal_pending` raises.
        """
        return self._run(
            lambda: seal_pending(
                self._session,
                order,
                self._key_sets.get(order.sim_issuer, order.kvn, to_seal=True),
                self._external_ca(order.profile).profile,
                self.wrap_mechanism,
            )
        )

    def complete(self, order: CompletionOrder) -> bytes:
        """The SIM package of what waited and its certificate.

        Raises:
            ApplianceError: TLV_INVALID and others for the header, SIM_ISSUER_UNKNOWN, KEY_SET_UNKNOWN,
                NODE_INCONSISTENT, and what `completion.complete` raises.
        """
        header = Header.decode(order.header)
        return self._run(
            lambda: complete(
                self._session,
                order,
                header,
                self._key_sets.get(order.sim_issuer, header.kvn),
                self._external_ca(order.profile),
                self._clock(),
            )
        )

    def open_channel(self, order: ChannelOrder) -> ChannelKeys:
        """Session keys of one SCP03 channel.

        Raises:
            ApplianceError: SIM_ISSUER_UNKNOWN, KEY_SET_UNKNOWN, and what `channel.open_channel` raises.
        """
        return self._run(lambda: open_channel(self._session, order, self._key_sets.get(order.sim_issuer, order.kvn)))

    def verify_receipt(self, order: ReceiptOrder) -> None:
        """Return only if the receipt verifies.

        Raises:
            ApplianceError: TLV_INVALID and others for the header, SIM_ISSUER_UNKNOWN, KEY_SET_UNKNOWN, and what
                `receipts.verify_receipt` raises.
        """
        header = Header.decode(order.header)
        self._run(
            lambda: verify_receipt(self._session, order, header, self._key_sets.get(order.sim_issuer, header.kvn))
        )

    def close(self) -> None:
        """Log out and destroy every session object."""
        self._session.close()

    def _authority(self, profile: str) -> Authority | ExternalCa:
        try:
            return self._authorities[profile]
        except KeyError:
            raise _inconsistent(f"This vault serves no certificate profile {profile}.") from None

    def _external_ca(self, profile: str) -> ExternalCa:
        found = self._authority(profile)
        if not isinstance(found, ExternalCa):
            raise _inconsistent(f"Profile {profile} has no external CA.")
        return found

    def _run(self, work: Callable[[], T]) -> T:
        if not self._session.is_open:
            self._session.renew()
            self._load()
        try:
            return work()
        finally:
            if self._session.broken:
                self._session.close()


def _inconsistent(detail: str) -> ApplianceError:
    return ApplianceError(
        Reason.NODE_INCONSISTENT,
        detail,
        hint="The operator restarts front and vaults on the same settings; then the same call completes.",
    )
