"""Forming a SIM issuer's master keys, KM-BIND and KM-CHAN, from components."""

from collections.abc import Sequence

from appliance.ceremony.components import Component, combined
from appliance.domain.keyset import MasterKey
from appliance.errors import ApplianceError, Reason
from appliance.hsm.keys import Role
from appliance.hsm.making import import_master
from appliance.hsm.module import TokenSession


def label(role: Role, sim_issuer: str, kvn: int) -> str:
    """CKA_LABEL of a master key, such as KM-BIND/demo-mno/01."""
    return f"{role.name.replace('_', '-')}/{sim_issuer}/{kvn:02X}"


def form_masters(
    session: TokenSession, sim_issuer: str, kvn: int, bind: Sequence[Component], chan: Sequence[Component]
) -> tuple[MasterKey, MasterKey]:
    """Combine both keys' components and put them on the token; the components are wiped.

    Raises:
        ApplianceError: COMPONENT_INVALID (also where both keys would be equal), KEY_EXISTS, TOKEN_FAULT.
    """
    with combined(bind) as km_bind, combined(chan) as km_chan:
        if km_bind == km_chan:
            raise ApplianceError(
                Reason.COMPONENT_INVALID,
                "KM-BIND and KM-CHAN would be the same key.",
                hint="A TSM may hold KM-CHAN and must never hold KM-BIND: form them from different components.",
            )
        return (
            import_master(session, Role.KM_BIND, label(Role.KM_BIND, sim_issuer, kvn), km_bind),
            import_master(session, Role.KM_CHAN, label(Role.KM_CHAN, sim_issuer, kvn), km_chan),
        )
