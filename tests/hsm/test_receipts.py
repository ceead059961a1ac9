"""Receipts of the virtual SIM, checked with the real module: only both signature and CMAC make one good."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from appliance.domain.keyset import KeySetState
from appliance.domain.package import KeyType, SimPackage
from appliance.errors import ApplianceError, Reason
from appliance.hsm.engine import Engine
from appliance.hsm.orders import ReceiptOrder
from tests.hsm.site import ICCID, ISSUER, OTHER_ICCID, Calls, Site, order, virtual_sim

VERSION_3 = b"\xa0\x03\x02\x01\x02"
"""[0] EXPLICIT INTEGER 2 (RFC 5280, 4.1)."""


def delivered(engine: Engine, key_type: KeyType = KeyType.EC_P256, iccid: bytes = ICCID) -> ReceiptOrder:
    """The receipt of a SIM that installed a package of this engine."""
    encoded = engine.issue(order(key_type, iccid=iccid))
    sim = virtual_sim(iccid)
    sim.install(encoded)
    assert sim.state.installed is not None
    package = SimPackage.decode(encoded)
    return ReceiptOrder(ISSUER, package.header.encode(), package.certificate, sim.state.installed.receipt)


@dataclass(frozen=True)
class Forger:
    """What somebody can do to a receipt, with another one of the same SIM and one of another SIM at hand."""

    receipt: ReceiptOrder
    same_sim: ReceiptOrder
    other_sim: ReceiptOrder

    def flipped(self, at: int) -> ReceiptOrder:
        changed = bytearray(self.receipt.receipt)
        changed[at] ^= 1
        return replace(self.receipt, receipt=bytes(changed))


REFUSED: dict[str, Callable[[Forger], ReceiptOrder]] = {
    "last byte of the CMAC": lambda it: it.flipped(-1),
    "first byte of the CMAC": lambda it: it.flipped(-16),
    "last byte of the signature": lambda it: it.flipped(-17),
    "first byte of the signature": lambda it: it.flipped(0),
    "receipt of another issuance": lambda it: replace(it.receipt, receipt=it.same_sim.receipt),
    "certificate of another issuance": lambda it: replace(it.receipt, certificate=it.same_sim.certificate),
    "header of another issuance": lambda it: replace(it.receipt, header=it.same_sim.header),
    "receipt of another SIM": lambda it: replace(it.receipt, receipt=it.other_sim.receipt),
    "signature of one and CMAC of another": lambda it: replace(
        it.receipt, receipt=it.receipt.receipt[:-16] + it.same_sim.receipt[-16:]
    ),
}


@pytest.mark.parametrize("key_type", KeyType, ids=lambda key_type: key_type.name)
def test_receipt_of_the_sim_verifies_and_leaves_no_session_object(site: Site, key_type: KeyType) -> None:
    with site.engine() as engine:
        engine.verify_receipt(delivered(engine, key_type))
        assert site.session_objects() == 0


@pytest.mark.parametrize("state", KeySetState)
def test_receipts_are_taken_in_every_state_of_the_key_set(site: Site, state: KeySetState) -> None:
    with site.engine() as engine:
        receipt = delivered(engine)
    with site.engine(site.issuer(site.key_set(state=state))) as engine:
        engine.verify_receipt(receipt)


def test_receipt_that_is_not_this_sims_for_this_issuance_is_refused(site: Site) -> None:
    with site.engine() as engine:
        forger = Forger(delivered(engine), delivered(engine), delivered(engine, iccid=OTHER_ICCID))
        engine.verify_receipt(forger.receipt)
        for name, forge in REFUSED.items():
            with pytest.raises(ApplianceError) as refused:
                engine.verify_receipt(forge(forger))
            assert (refused.value.reason, refused.value.field) == (Reason.RECEIPT_REJECTED, "receipt"), name
            assert site.session_objects() == 0


def test_malformed_receipt_order_gets_its_reason_and_no_module_call(site: Site, calls: Calls) -> None:
    with site.engine(calls=calls) as engine:
        good = delivered(engine)
        rsa_header = replace(SimPackage.decode(engine.issue(order())).header, key_type=KeyType.RSA_2048).encode()
        malformed = {
            "short receipt": (replace(good, receipt=good.receipt[:-1]), Reason.RECEIPT_INVALID, "receipt"),
            "long receipt": (replace(good, receipt=good.receipt + b"\0"), Reason.RECEIPT_INVALID, "receipt"),
            "empty receipt": (replace(good, receipt=b""), Reason.RECEIPT_INVALID, "receipt"),
            "length of another key type": (replace(good, header=rsa_header), Reason.RECEIPT_INVALID, "receipt"),
            "truncated header": (replace(good, header=good.header[:-1]), Reason.TLV_INVALID, ""),
            "header with something behind it": (replace(good, header=good.header + b"\0"), Reason.TLV_INVALID, ""),
            "empty header": (replace(good, header=b""), Reason.TLV_INVALID, ""),
            "no certificate": (replace(good, certificate=b""), Reason.FIELD_INVALID, "certificate"),
            "truncated certificate": (
                replace(good, certificate=good.certificate[:-1]), Reason.FIELD_INVALID, "certificate"
            ),
            "certificate of no known version": (
                replace(good, certificate=good.certificate.replace(VERSION_3, b"\xa0\x03\x02\x01\x04", 1)),
                Reason.FIELD_INVALID,
                "certificate",
            ),
            "unknown SIM issuer": (replace(good, sim_issuer="other"), Reason.SIM_ISSUER_UNKNOWN, "sim_issuer"),
            "unknown key version": (
                replace(good, header=good.header.replace(b"\x83\x01\x01", b"\x83\x01\x02")),
                Reason.KEY_SET_UNKNOWN,
                "kvn",
            ),
        }  # fmt: skip
        calls.kinds.clear()
        for name, (receipt, reason, field) in malformed.items():
            with pytest.raises(ApplianceError) as refused:
                engine.verify_receipt(receipt)
            assert refused.value.reason is reason, name
            assert not field or refused.value.field == field, name
        assert calls.kinds == []
