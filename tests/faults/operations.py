"""What a vault does with its token, each with the check that its answer is the right one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from cryptography import x509

from appliance.apdu import scp03
from appliance.domain.derivation import CHANNEL_ENC, CHANNEL_MAC
from appliance.domain.package import KeyType, SimPackage
from appliance.errors import ApplianceError, Reason
from appliance.hsm.orders import ChannelOrder, CompletionOrder, ReceiptOrder
from tests.hsm.site import ICCID, ISSUER, KM_CHAN, SSD_AID, order, virtual_sim
from tests.hsm.test_external_ca import completion
from tests.hsm.test_receipts import Forger

from .bench import CA, EXTERNAL, INTERNAL, Bench

Check = Callable[[], None]
CHANNEL: Final = ChannelOrder(ISSUER, 1, ICCID, 7, bytes(range(8)), with_s_rmac=True)


@dataclass(frozen=True)
class Operation:
    """One of them.

    Attributes:
        act: does it; answers the check of what it made, which no fault meets.
        prepare: what comes before it.
        anew: it is a process's first.
    """

    act: Callable[[Bench], Check]
    prepare: Callable[[Bench], object] = Bench.ready
    anew: bool = False


def _start(bench: Bench) -> Check:
    bench.engine = None
    engine = bench.start()

    def check() -> None:
        declared = bench.site.key_set()
        [loaded] = engine.key_sets
        assert (loaded.bind_kcv.hex().upper(), loaded.chan_kcv.hex().upper()) == (declared.bind.kcv, declared.chan.kcv)
        assert engine.wrap_mechanism.name == "AES_KEY_WRAP_PAD"
        assert engine.deviations == ()

    return check


def _renew(bench: Bench) -> None:
    bench.ready().close()


def _issue(key_type: KeyType) -> Operation:
    def act(bench: Bench) -> Check:
        package = bench.ready().issue(order(key_type, profile=INTERNAL))
        return lambda: _opens(package, bench.site.authorities[INTERNAL])

    return Operation(act)


def _opens(package: bytes, issuer: bytes) -> None:
    """Its SIM takes the package, and the certificate in it is this CA's."""
    sim = virtual_sim()
    sim.install(package)
    assert sim.state.installed is not None
    certificate = x509.load_der_x509_certificate(sim.state.installed.certificate)
    certificate.verify_directly_issued_by(x509.load_der_x509_certificate(issuer))


def _open_channel(bench: Bench) -> Check:
    keys = bench.ready().open_channel(CHANNEL)

    def check() -> None:
        k_enc, k_mac = (scp03.kdf3(KM_CHAN, constant, ICCID, 128) for constant in (CHANNEL_ENC, CHANNEL_MAC))
        card_challenge = scp03.card_challenge(k_enc, CHANNEL.sequence_counter, SSD_AID, scp03.Mode.S8)
        wanted = scp03.derive_session_keys(k_enc, k_mac, CHANNEL.host_challenge, card_challenge)
        assert keys.card_challenge == card_challenge
        assert (keys.s_enc, keys.s_mac, keys.s_rmac) == (wanted.s_enc, wanted.s_mac, wanted.s_rmac)

    return check


def _nothing() -> None:
    """What was to be refused or accepted has been."""


def _verify_receipt(bench: Bench) -> Check:
    bench.ready().verify_receipt(_receipt(bench))
    return _nothing


def _verify_false_receipt(bench: Bench) -> Check:
    """Its signature is right, so only the token can tell."""
    receipt = _receipt(bench)
    return _refused(
        Reason.RECEIPT_REJECTED, lambda: bench.ready().verify_receipt(Forger(receipt, receipt, receipt).flipped(-1))
    )


def _request(bench: Bench) -> Check:
    pending = bench.ready().request(order(profile=EXTERNAL))

    def check() -> None:
        certificate = CA.issue(pending.certificate_request, eku=(), policy_critical=False)
        _opens(bench.ready().complete(completion(pending, certificate)), CA.der)

    return check


def _complete(bench: Bench) -> Check:
    package = bench.ready().complete(_completion(bench))
    return lambda: _opens(package, CA.der)


def _complete_false(bench: Bench) -> Check:
    false = replace(_completion(bench), wrapped_key=bytes(80))
    return _refused(Reason.SEAL_REJECTED, lambda: bench.ready().complete(false))


def _refused(reason: Reason, act: Callable[[], object]) -> Check:
    try:
        act()
    except ApplianceError as error:
        if error.reason is reason:
            return _nothing
        raise
    raise AssertionError(f"accepted, where {reason} is right")


def _receipt(bench: Bench) -> ReceiptOrder:
    """The receipt of a SIM that has installed a package; one for all of a bench."""
    engine = bench.ready()
    if "receipt" not in bench.samples:
        encoded = engine.issue(order(profile=INTERNAL))
        sim, package = virtual_sim(), SimPackage.decode(encoded)
        sim.install(encoded)
        assert sim.state.installed is not None
        bench.samples["receipt"] = ReceiptOrder(
            ISSUER, package.header.encode(), package.certificate, sim.state.installed.receipt
        )
    found = bench.samples["receipt"]
    assert isinstance(found, ReceiptOrder)
    return found


def _completion(bench: Bench) -> CompletionOrder:
    """What waits, and its certificate; one for all of a bench."""
    engine = bench.ready()
    if "completion" not in bench.samples:
        pending = engine.request(order(profile=EXTERNAL))
        certificate = CA.issue(pending.certificate_request, eku=(), policy_critical=False)
        bench.samples["completion"] = completion(pending, certificate)
    found = bench.samples["completion"]
    assert isinstance(found, CompletionOrder)
    return found


OPERATIONS: Final = {
    "start-up": Operation(_start, Bench.forget, anew=True),
    "renewal": Operation(_open_channel, _renew),
    "issue P-256": _issue(KeyType.EC_P256),
    "issue P-384": _issue(KeyType.EC_P384),
    "issue RSA-2048": _issue(KeyType.RSA_2048),
    "certificate request": Operation(_request),
    "completion": Operation(_complete, _completion),
    "false completion": Operation(_complete_false, _completion),
    "session keys": Operation(_open_channel),
    "receipt": Operation(_verify_receipt, _receipt),
    "false receipt": Operation(_verify_false_receipt, _receipt),
}
