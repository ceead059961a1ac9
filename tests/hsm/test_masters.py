"""Masters at start: the real token must hold each declared key once, as its template says, with its check values."""

from dataclasses import replace
from typing import Any

import pytest
from pkcs11 import Attribute, KeyType

from appliance.domain.keyset import SimIssuer
from appliance.domain.package import SimPackage
from appliance.errors import ApplianceError, Reason
from appliance.hsm import derive
from appliance.hsm.keys import TEMPLATES, Role
from appliance.hsm.making import import_master
from appliance.hsm.masters import KeySets
from tests.hsm.site import APPLET_AID, BIND_LABEL, CHAN_LABEL, ISSUER, KM_BIND, KM_CHAN, SSD_AID, Site, order

WHERE = f"sim_issuers.{ISSUER}.key_sets[01]"
MASTER = TEMPLATES[Role.KM_BIND].attributes


def refusal(site: Site, *issuers: SimIssuer) -> ApplianceError:
    """Why an engine does not start; afterwards the token is free for the next one."""
    with pytest.raises(ApplianceError) as refused, site.engine(*issuers, profiles={}):
        pass
    with site.backstage() as session:
        assert list(session.get_objects({Attribute.TOKEN: False})) == []
    return refused.value


def test_every_declared_key_set_is_held_with_its_check_values(site: Site) -> None:
    with site.engine() as engine:
        (loaded,) = engine.key_sets
    assert (loaded.sim_issuer, loaded.kvn) == (ISSUER, 1)
    assert (loaded.bind_kcv.hex().upper(), loaded.chan_kcv.hex().upper()) == (site.bind.kcv, site.chan.kcv)


WEAKER: dict[str, dict[str, Any]] = {
    "EXTRACTABLE": {"EXTRACTABLE": True},
    "SENSITIVE": {"SENSITIVE": False},
    "PRIVATE": {"PRIVATE": False},
    "MODIFIABLE": {"MODIFIABLE": True},
    "COPYABLE": {"COPYABLE": True},
    "VALUE_LEN": {"VALUE": KM_BIND[:16]},
    **{use: {use: True} for use in ("ENCRYPT", "DECRYPT", "WRAP", "UNWRAP", "SIGN", "VERIFY")},
}


@pytest.mark.parametrize("weakness", WEAKER)
@pytest.mark.parametrize("place", ["bind", "chan"])
def test_master_with_weaker_attributes_is_refused_by_name(site: Site, place: str, weakness: str) -> None:
    label, value = {"bind": (BIND_LABEL, KM_BIND), "chan": (CHAN_LABEL, KM_CHAN)}[place]
    site.replace_master(label, value, **WEAKER[weakness])
    error = refusal(site)
    assert (error.reason, error.field) == (Reason.KEY_ATTRIBUTES_DIFFER, f"{WHERE}.{place}")
    assert error.facts["attributes"] == weakness


def test_master_of_another_key_type_or_label_is_missing(site: Site) -> None:
    site.replace_master(BIND_LABEL, KM_BIND, KEY_TYPE=KeyType.GENERIC_SECRET)
    error = refusal(site)
    assert (error.reason, error.field, error.facts["label"]) == (Reason.KEY_MISSING, f"{WHERE}.bind.label", BIND_LABEL)
    error = refusal(site, site.issuer(site.key_set(bind=replace(site.bind, label="KM-BIND/other/01"))))
    assert (error.reason, error.field) == (Reason.KEY_MISSING, f"{WHERE}.bind.label")


def test_master_that_is_there_twice_is_refused(site: Site) -> None:
    with site.backstage() as session:
        session.create_object({**MASTER, Attribute.LABEL: CHAN_LABEL, Attribute.VALUE: KM_CHAN})
    error = refusal(site)
    assert (error.reason, error.field) == (Reason.KEY_MISSING, f"{WHERE}.chan.label")
    assert "2 keys" in error.detail


def test_session_object_does_not_stand_in_for_a_master(site: Site) -> None:
    site.destroy_key(BIND_LABEL)
    with site.session() as session:
        template = {**MASTER, Attribute.TOKEN: False, Attribute.LABEL: BIND_LABEL, Attribute.VALUE: KM_BIND}
        session.raw.create_object(template)
        with pytest.raises(ApplianceError) as refused:
            KeySets(session, [site.issuer()])
    assert refused.value.reason is Reason.KEY_ATTRIBUTES_DIFFER
    assert refused.value.facts["attributes"] == "TOKEN"


@pytest.mark.parametrize("place", ["bind", "chan"])
@pytest.mark.parametrize("check", ["kcv", "kdf_kcv"])
def test_other_check_value_than_declared_is_refused(site: Site, place: str, check: str) -> None:
    declared = replace(getattr(site, place), **{check: "00FF00"})
    error = refusal(site, site.issuer(site.key_set(**{place: declared})))
    assert (error.reason, error.field) == (Reason.KCV_MISMATCH, f"{WHERE}.{place}.{check}")
    assert "00FF00" in error.detail


def test_key_that_was_exchanged_for_another_is_refused(site: Site) -> None:
    site.replace_master(CHAN_LABEL, KM_BIND)
    error = refusal(site)
    assert (error.reason, error.field) == (Reason.KCV_MISMATCH, f"{WHERE}.chan.kcv")


def test_check_values_are_declared_in_either_case(site: Site) -> None:
    lower = replace(site.bind, kcv=site.bind.kcv.lower(), kdf_kcv=site.bind.kdf_kcv.lower())
    with site.engine(site.issuer(site.key_set(bind=lower)), profiles={}) as engine:
        assert engine.key_sets


def test_one_key_as_binding_and_channel_master_is_refused(site: Site) -> None:
    """Within a SIM issuer its declaration refuses it; this is a channel master that another issuer binds with."""
    with site.session() as session:
        k1 = derive.subkey_k1(session, session.find({}, CHAN_LABEL))
        kdf_kcv = derive.kdf_check(session, session.find({}, CHAN_LABEL), k1, Role.KM_BIND).hex()
        fresh = import_master(session, Role.KM_CHAN, "KM-CHAN/second/01", bytearray(range(32)))
    borrowed = replace(site.chan, kdf_kcv=kdf_kcv)
    second = SimIssuer("second", APPLET_AID.hex(), SSD_AID.hex(), (site.key_set(bind=borrowed, chan=fresh),))
    error = refusal(site, site.issuer(), second)
    assert (error.reason, error.field) == (Reason.KCV_MISMATCH, "sim_issuers")
    assert error.detail.count(CHAN_LABEL) == 2


def test_key_sets_of_two_sim_issuers_do_not_mix(site: Site) -> None:
    with site.session() as session:
        bind, chan = (
            import_master(session, role, f"{role.name}/second", bytearray([number]) * 32)
            for number, role in enumerate((Role.KM_BIND, Role.KM_CHAN), 1)
        )
    second = SimIssuer("second", APPLET_AID.hex(), SSD_AID.hex(), (site.key_set(kvn=2, bind=bind, chan=chan),))
    with site.engine(site.issuer(), second) as engine:
        package = SimPackage.decode(engine.issue(order(sim_issuer="second", kvn=2)))
        assert package.header.kvn == 2
        for sim_issuer, kvn in ((ISSUER, 2), ("second", 1)):
            with pytest.raises(ApplianceError) as refused:
                engine.issue(order(sim_issuer=sim_issuer, kvn=kvn))
            assert (refused.value.reason, refused.value.field) == (Reason.KEY_SET_UNKNOWN, "kvn")
