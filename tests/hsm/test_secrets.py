"""PIN, activation code and session keys show in no repr, no message and no traceback."""

import logging
import traceback
from dataclasses import replace

import pytest

from appliance.errors import ApplianceError
from appliance.hsm.orders import ChannelOrder
from tests.hsm.site import CODE, ICCID, ISSUER, PIN, Calls, Site, order


def test_values_of_the_hsm_hide_their_secrets(site: Site) -> None:
    with site.engine() as engine:
        keys = engine.open_channel(ChannelOrder(ISSUER, 1, ICCID, 1, bytes(8), with_s_rmac=True))
        shown = "".join(map(repr, (engine, engine._session, engine.description, keys, order())))
    assert PIN not in shown
    assert CODE not in shown
    for key in (keys.s_enc, keys.s_mac, keys.s_rmac):
        assert key.hex() not in shown
        assert repr(key) not in shown


def test_refusals_and_faults_tell_no_secret(site: Site, calls: Calls, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    errors: list[BaseException] = []
    with site.engine(profiles={"p256-ca": site.authorities["p256-ca"]}, calls=calls) as engine:
        good = order(profile="p256-ca")
        for bad in (
            replace(good, activation_code=CODE.lower()),
            replace(good, iccid=b""),
            replace(good, subject_common_name="?"),
            replace(good, kvn=9),
        ):
            with pytest.raises(ApplianceError) as refused:
                engine.issue(bad)
            errors.append(refused.value)
        for kind in ("sign", "mac", "wrap"):
            calls.before(kind, site.close_all_sessions)
            with pytest.raises(ApplianceError) as refused:
                engine.issue(good)
            errors.append(refused.value)
    with pytest.raises(ApplianceError) as refused, site.engine(pin=PIN + "x"):
        pass
    errors.append(refused.value)
    told = "".join("".join(traceback.format_exception(error)) for error in errors) + caplog.text
    assert told.count("TOKEN_FAULT") >= 3
    assert "closing a broken session" in caplog.text
    assert PIN not in told
    assert CODE not in told
    assert CODE.lower() not in told
