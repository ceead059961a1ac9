"""Making tokens and long-lived keys: nothing is overwritten, and what does not pass its checks does not stay."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pkcs11
import pytest
from pkcs11 import Attribute

from appliance.ceremony.authority import make_issuing_ca
from appliance.ceremony.masters import form_masters
from appliance.demo import published
from appliance.domain.package import KeyType
from appliance.errors import ApplianceError, Reason
from appliance.hsm.keys import TEMPLATES, Role, Template
from appliance.hsm.making import generate_ca_key, import_master, initialise_token
from appliance.hsm.module import TokenSession
from tests.hsm.site import BIND_LABEL, LABEL, MODULE, Calls, Site

SO_PIN, PIN = "security-officer", "another-user-pin"


def labels(session: TokenSession) -> set[str]:
    return {key.label for key in session.find_all({Attribute.TOKEN: True})}


def test_new_token_takes_its_pin(site: Site) -> None:
    made = initialise_token(MODULE, "SECOND TOKEN", SO_PIN, PIN)
    session = TokenSession(made, PIN, Calls())
    assert session.description.token_serial == made.token_serial != site.module.token_serial
    assert labels(session) == set()
    session.close()


def test_label_of_a_token_in_use_is_refused_and_the_token_is_as_it_was(site: Site) -> None:
    with pytest.raises(ApplianceError) as refused:
        initialise_token(MODULE, LABEL, SO_PIN, PIN)
    assert (refused.value.reason, refused.value.field) == (Reason.KEY_EXISTS, "token_label")
    with site.engine() as engine:
        assert engine.key_sets


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("label", ["", "A" * 33, "日本語日本語日本語日本語"])
def test_label_that_no_token_can_have_is_refused_before_a_token_is_made(label: str) -> None:
    with pytest.raises(ApplianceError) as refused:
        initialise_token(MODULE, label, SO_PIN, PIN)
    assert (refused.value.reason, refused.value.field) == (Reason.FIELD_INVALID, "token_label")
    assert len([t for t in pkcs11.lib(MODULE).get_tokens() if t.flags & pkcs11.TokenFlag.TOKEN_INITIALIZED]) == 1


def test_module_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(ApplianceError) as refused:
        initialise_token(str(tmp_path / "absent.so"), LABEL, SO_PIN, PIN)
    assert (refused.value.reason, refused.value.field) == (Reason.TOKEN_ABSENT, "module.path")


def test_master_of_an_existing_label_is_refused_and_the_old_one_stays(site: Site) -> None:
    with site.session() as session:
        with pytest.raises(ApplianceError) as refused:
            import_master(session, Role.KM_BIND, BIND_LABEL, bytearray(32))
        assert (refused.value.reason, refused.value.facts["label"]) == (Reason.KEY_EXISTS, BIND_LABEL)
    with site.engine() as engine:
        assert engine.key_sets


NOW = datetime.now(UTC).replace(microsecond=0)


def both_masters(session: TokenSession) -> object:
    return form_masters(session, "new", 1, published.components("KM-BIND"), published.components("KM-CHAN"))


MAKES: dict[str, tuple[Role, Callable[[TokenSession], object]]] = {
    "master": (Role.KM_BIND, lambda session: import_master(session, Role.KM_BIND, "NEW", bytearray(range(32)))),
    "both masters": (Role.KM_CHAN, both_masters),
    "CA key": (Role.ISSUING_CA, lambda session: generate_ca_key(session, "NEW", KeyType.EC_P256)),
    "issuing CA": (
        Role.ISSUING_CA,
        lambda session: make_issuing_ca(session, "NEW", KeyType.EC_P256, "TEST", "NEW", NOW, NOW + timedelta(days=1)),
    ),
}


@pytest.mark.parametrize("kind", MAKES)
def test_key_that_reads_back_otherwise_is_destroyed_again_and_all_that_goes_with_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A real module honours the template, so the expectation is the wrong one: an imported key made on the token…"""
    role, make = MAKES[kind]
    imported = role is not Role.ISSUING_CA
    wrong = {Attribute.LOCAL: imported, Attribute.NEVER_EXTRACTABLE: False}
    monkeypatch.setitem(TEMPLATES, role, Template(TEMPLATES[role].attributes, wrong))
    with site.session() as session:
        before = labels(session)
        with pytest.raises(ApplianceError) as refused:
            make(session)
        assert refused.value.reason is Reason.KEY_ATTRIBUTES_DIFFER
        assert labels(session) == before


# python-pkcs11 ends a search in a destructor, which complains when the session is gone.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", MAKES)
def test_what_loses_the_session_at_any_call_since_its_making_does_not_stay(site: Site, calls: Calls, kind: str) -> None:
    _, make = MAKES[kind]
    with site.session(calls) as session:
        before = labels(session)
        calls.kinds.clear()
        make(session)
        every_call = list(calls.kinds)
        for label in labels(session) - before:
            site.destroy_key(label)
        first = every_call.index("create" if "create" in every_call else "keypair_ec")
        session.renew()  # so that the module is learned anew, as in the first run
        for number, name in enumerate(every_call[first:], first + 1):
            calls.before(number, site.close_all_sessions)
            with pytest.raises(ApplianceError) as fault:
                make(session)
            assert (fault.value.reason, fault.value.facts["call"]) == (Reason.TOKEN_FAULT, name)
            session.renew()
            assert labels(session) == before, (number, name)
            assert site.session_objects() == 0


def test_what_may_have_stayed_is_named_where_the_token_is_gone(site: Site, calls: Calls, tmp_path: Path) -> None:
    def vanish() -> None:
        site.close_all_sessions()
        (site.directory / "tokens").rename(tmp_path / "away")
        (site.directory / "tokens").mkdir()

    with site.session(calls) as session:
        calls.before("create", vanish)
        with pytest.raises(ApplianceError) as refused:
            both_masters(session)
    assert refused.value.reason is Reason.TOKEN_ABSENT
    assert "KM-BIND/new/01, KM-CHAN/new/01" in refused.value.detail
    assert "Destroy" in refused.value.hint
