"""Forming a SIM issuer's master keys, KM-BIND and KM-CHAN, from components."""

from collections.abc import Sequence

from appliance.ceremony.components import Component, combined, wiped
from appliance.domain.keyset import MasterKey
from appliance.errors import ApplianceError, Reason
from appliance.hsm.keys import Role
from appliance.hsm.making import complete_or_gone, import_master
from appliance.hsm.module import TokenSession
from appliance.hsm.probe import prove_mechanisms


def label(role: Role, sim_issuer: str, kvn: int) -> str:
    """CKA_LABEL of a master key, such as KM-BIND/demo-mno/01."""
    return f"{role.name.replace('_', '-')}/{sim_issuer}/{kvn:02X}"


def form_masters(
    session: TokenSession, sim_issuer: str, kvn: int, bind: Sequence[Component], chan: Sequence[Component]
) -> tuple[MasterKey, MasterKey]:
    """Combine both keys' components and put both on the token, or neither; the components are wiped.

    Raises:
        ApplianceError: COMPONENT_INVALID (also where both keys would be equal), MECHANISM_MISSING where the module
            cannot use them, KEY_EXISTS, KEY_ATTRIBUTES_DIFFER, TOKEN_FAULT.
    """
    bind_label, chan_label = (label(role, sim_issuer, kvn) for role in (Role.KM_BIND, Role.KM_CHAN))
    with wiped((*bind, *chan)), combined(bind) as km_bind, combined(chan) as km_chan:
        if km_bind == km_chan:
            raise ApplianceError(
                Reason.COMPONENT_INVALID,
                "KM-BIND and KM-CHAN would be the same key.",
                hint="A TSM may hold KM-CHAN and must never hold KM-BIND: form them from different components.",
                field="components",
            )
        prove_mechanisms(session)
        with complete_or_gone(session, bind_label, chan_label):
            return (
                import_master(session, Role.KM_BIND, bind_label, km_bind),
                import_master(session, Role.KM_CHAN, chan_label, km_chan),
            )
