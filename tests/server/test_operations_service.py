"""OperationsService over mutual TLS."""

import datetime

from appliance.client import IssuerClient, OperatorClient

from .fake_vault import CAPACITY, FakeVault
from .site import Front, request, until_ready


async def test_status_shows_front_vaults_key_sets_and_ledger(front: Front) -> None:
    async with front.channel("issuer") as issuer, front.channel("operator") as operator:
        await IssuerClient(issuer).issue(request())
        status = await OperatorClient(operator).status()
    assert (status.ready, status.draining) == (True, False)
    age = datetime.datetime.now(datetime.UTC) - status.start_time.ToDatetime(datetime.UTC)
    assert datetime.timedelta(0) < age < datetime.timedelta(minutes=5)
    (vault,) = status.vaults
    assert (vault.vault, vault.token_label, vault.queue_capacity) == ("v0-1", "DEMO", CAPACITY)
    (key_set,) = vault.key_sets
    assert (key_set.name, key_set.state) == ("simIssuers/mno-a/keySets/48", "ACTIVE")
    assert (key_set.bind_kcv, key_set.chan_kcv) == ("0102AB", "040506")
    assert status.ledger.issuances["READY"] == 1
    assert status.ledger.audit_entries == 3  # reserved, attempted, completed


async def test_status_answers_without_a_vault(front: Front, vault: FakeVault) -> None:
    await vault.die()
    await until_ready(front, ready=False)
    async with front.channel("operator") as operator:
        status = await OperatorClient(operator).status()
    assert (status.ready, list(status.vaults)) == (False, [])
