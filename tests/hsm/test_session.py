"""The session: what ends it, that it comes back, and that neither a key nor a PIN outlives what it was for.

What becomes of an order whose calls fail is shown in `tests/faults`, for every call.
"""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import Mock

import pkcs11
import pytest

from appliance.demo import published
from appliance.errors import ApplianceError, Reason
from appliance.hsm.engine import Engine
from appliance.hsm.making import initialise_token
from appliance.hsm.module import TokenSession, token_fault
from appliance.hsm.orders import ModuleParameters
from tests.hsm.site import LABEL, MODULE, PIN, Calls, Site, order, use

ONE_CA = "p256-ca"
NOW = datetime.now(UTC)
T = TypeVar("T")


def refused_order(engine: Engine) -> ApplianceError:
    with pytest.raises(ApplianceError) as refused:
        engine.issue(order(profile=ONE_CA))
    return refused.value


def test_description_names_module_and_token(site: Site) -> None:
    with site.engine(profiles={}) as engine:
        assert engine.description.token_label == LABEL
        assert engine.description.token_serial == site.module.token_serial
        assert engine.description.module.startswith("SoftHSM")


class StuckModule(TokenSession):
    """The real module, but wrapping fails and then the session does not close; a fake, as SoftHSM always logs out."""

    def call(self, kind: str, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        if kind == "wrap":
            self.broken = True
            raise token_fault(kind, pkcs11.GeneralError())
        return super().call(kind, function, *arguments, **options)

    def _leave(self, session: pkcs11.Session | None) -> None:
        super()._leave(Mock(**{"close.side_effect": pkcs11.GeneralError}) if session else None)


def test_keys_do_not_outlive_a_session_that_does_not_close(site: Site) -> None:
    session = StuckModule(site.module, PIN, Calls())
    with pytest.raises(ApplianceError) as fault:
        Engine(session, (site.issuer(),), (), lambda: NOW)
    assert (fault.value.reason, fault.value.facts["call"]) == (Reason.TOKEN_FAULT, "wrap")
    assert not session.is_open
    assert site.session_objects() == 0


def test_keys_are_checked_again_after_a_renewal(site: Site, calls: Calls) -> None:
    with site.engine(profiles={ONE_CA: site.authorities[ONE_CA]}, calls=calls) as engine:
        calls.before("wrap", site.close_all_sessions)
        refused_order(engine)
        site.destroy_key(site.chan.label)
        assert refused_order(engine).reason is Reason.KEY_MISSING
        assert site.session_objects() == 0
        assert refused_order(engine).reason is Reason.KEY_MISSING


def test_wrong_pin_is_tried_once(site: Site, calls: Calls) -> None:
    with pytest.raises(ApplianceError) as refused, site.engine(pin="not-the-pin", calls=calls):
        pass
    assert refused.value.reason is Reason.PIN_REJECTED
    assert calls.kinds.count("login") == 1


@pytest.mark.parametrize("pin", ["", "1", "9" * 300])
def test_pin_of_impossible_length_is_rejected_as_a_pin(site: Site, pin: str) -> None:
    with pytest.raises(ApplianceError) as refused, site.engine(pin=pin):
        pass
    assert refused.value.reason is Reason.PIN_REJECTED


def test_pin_that_was_refused_at_a_renewal_is_never_tried_again(site: Site, calls: Calls) -> None:
    with site.engine(profiles={ONE_CA: site.authorities[ONE_CA]}, calls=calls) as engine:
        with site.backstage() as session:
            session.set_pin(PIN, "changed-by-somebody")
        calls.before("wrap", site.close_all_sessions)
        refused_order(engine)
        calls.kinds.clear()
        assert refused_order(engine).reason is Reason.PIN_REJECTED
        assert calls.kinds.count("login") == 1
        token = pkcs11.lib(MODULE).get_token(token_label=LABEL)
        with token.open(rw=True, user_pin="changed-by-somebody") as session:
            session.set_pin("changed-by-somebody", PIN)
        assert refused_order(engine).reason is Reason.PIN_REJECTED
        assert calls.kinds.count("login") == 1, "a PIN that was refused was tried again"


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"token_label": "ABSENT"}, Reason.TOKEN_ABSENT, "module.token_label"),
        ({"token_serial": "0123456789abcdef"}, Reason.TOKEN_CHANGED, "module.token_serial"),
        ({"path": "/nowhere/module.so"}, Reason.TOKEN_ABSENT, "module.path"),
        ({"path": "/etc/passwd"}, Reason.TOKEN_ABSENT, "module.path"),
    ],
)
def test_token_that_is_not_the_declared_one_is_named_and_gets_no_pin(
    site: Site, calls: Calls, changes: dict[str, str], reason: Reason, field: str
) -> None:
    declared = {"path": MODULE, "token_label": LABEL, "token_serial": site.module.token_serial}
    with (
        pytest.raises(ApplianceError) as refused,
        site.engine(module=ModuleParameters(**{**declared, **changes}), calls=calls),
    ):
        pass
    assert (refused.value.reason, refused.value.field) == (reason, field)
    assert "login" not in calls.kinds


def test_two_tokens_of_one_label_are_refused(
    site: Site, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other")
    use(other, monkeypatch.setenv)
    initialise_token(MODULE, LABEL, published.SO_PIN, PIN)
    shutil.copytree(other / "tokens", site.directory / "tokens", dirs_exist_ok=True)
    use(site.directory, monkeypatch.setenv)
    with pytest.raises(ApplianceError) as refused, site.engine():
        pass
    assert (refused.value.reason, refused.value.field) == (Reason.TOKEN_ABSENT, "module.token_label")
    assert "2 tokens" in refused.value.detail


def test_token_that_vanished_is_reported_and_serves_again_when_it_is_back(
    site: Site, calls: Calls, tmp_path: Path
) -> None:
    tokens, away = site.directory / "tokens", tmp_path / "away"

    def vanish() -> None:
        site.close_all_sessions()
        tokens.rename(away)
        tokens.mkdir()

    with site.engine(profiles={ONE_CA: site.authorities[ONE_CA]}, calls=calls) as engine:
        calls.before("wrap", vanish)
        assert refused_order(engine).reason is Reason.TOKEN_FAULT
        for _ in range(2):
            assert refused_order(engine).reason is Reason.TOKEN_ABSENT
        tokens.rmdir()
        away.rename(tokens)
        assert engine.issue(order(profile=ONE_CA))


def test_token_that_was_exchanged_gets_no_pin(
    site: Site, calls: Calls, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other")
    use(other, monkeypatch.setenv)
    initialise_token(MODULE, LABEL, published.SO_PIN, PIN)
    use(site.directory, monkeypatch.setenv)
    with site.engine(profiles={ONE_CA: site.authorities[ONE_CA]}, calls=calls) as engine:
        calls.before("wrap", site.close_all_sessions)
        refused_order(engine)
        shutil.rmtree(site.directory / "tokens")
        shutil.copytree(other / "tokens", site.directory / "tokens")
        calls.kinds.clear()
        fault = refused_order(engine)
    assert (fault.reason, fault.field) == (Reason.TOKEN_CHANGED, "module.token_serial")
    assert "login" not in calls.kinds


def test_closed_engine_opens_again_for_the_next_order(site: Site) -> None:
    with site.engine() as engine:
        engine.close()
        assert engine.issue(order())
