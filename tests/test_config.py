"""Settings files: the exemplary ones load, and every slip of the pen is refused with its file and key."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.config import CALL_LIMITS, Environment, Role, Settings, load
from appliance.domain.keyset import KeySetState
from appliance.errors import ApplianceError, Reason

EXAMPLE = Path(__file__).parents[1] / "hsm_config"
MAIN, MNO, PROFILE = (
    "appliance.toml",
    "sim_issuers/example-mno.toml",
    "profiles/jpki-user-authentication.toml",
)

Edit = Callable[[str, str, str], None]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The exemplary settings, to be spoilt."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "settings"))


@pytest.fixture
def edit(copy: Path) -> Edit:
    """Replaces one text that stands in a file once or more, the first time it stands there."""

    def replace(file: str, old: str, new: str) -> None:
        text = (copy / file).read_text()
        assert old in text
        (copy / file).write_text(text.replace(old, new, 1))

    return replace


def refused(copy: Path, reason: Reason = Reason.SETTINGS_INVALID) -> ApplianceError:
    """The error with which the settings are refused."""
    with pytest.raises(ApplianceError) as caught:
        load(copy / MAIN)
    assert caught.value.reason is reason
    assert caught.value.hint
    return caught.value


def test_the_exemplary_settings_load() -> None:
    settings = load(EXAMPLE / MAIN)
    assert settings.environment is Environment.PRODUCTION
    assert [key_set.state for key_set in settings.sim_issuers["example-mno"].key_sets] == [
        KeySetState.ACTIVE,
        KeySetState.OLD,
    ]
    assert settings.front.clients["urn:appliance:role:tsm:example"].role is Role.TSM
    assert settings.profiles[settings.front.profile].policy_oid == "1.2.392.200149.8.5.1.3.30"


def test_relative_paths_are_relative_to_the_settings_file(
    copy: Path, edit: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(MAIN, '"sqlite:////var/lib/jpki/ledger.db"', '"sqlite:///data/ledger.db"')
    edit(MAIN, '"/run/jpki/vaults"', '"run"')
    edit(MAIN, '"/etc/jpki/tls/server.key"', '"server.key"')
    monkeypatch.chdir(copy.parent)
    settings = load(Path("settings") / MAIN)
    assert settings.front.ledger == f"sqlite:///{copy}/data/ledger.db"
    assert settings.vault.socket_directory == copy / "run"
    assert settings.front.tls.key == copy / "server.key"
    assert settings.front.tls.certificate == Path("/etc/jpki/tls/server.pem")
    profile = settings.profiles["jpki-user-authentication"]
    assert profile.ca_certificate == copy / "jpki-user-authentication-ca.pem"


def test_an_absolute_ledger_path_stays_as_it_is(copy: Path) -> None:
    assert load(copy / MAIN).front.ledger == "sqlite:////var/lib/jpki/ledger.db"


def test_limits_that_are_not_named_have_their_defaults(copy: Path, edit: Edit) -> None:
    edit(MAIN, "keypair_rsa = 60\nother = 10\n", "wrap = 2.5\n")
    assert load(copy / MAIN).vault.limits == {**CALL_LIMITS, "wrap": 2.5}


@pytest.mark.parametrize(
    ("file", "old", "new", "field"),
    [
        (MAIN, "queue_capacity", "queue_capasity", "vault.queue_capasity"),
        (MAIN, 'environment = "production"', 'environment = "test"', "environment"),
        (MAIN, "count = 2", "count = 0", "vault.count"),
        (MAIN, "count = 2", 'count = "2"', "vault.count"),
        (MAIN, "other = 10", "other = 0", "vault.limits[...]"),
        (MAIN, 'token_serial = "0123456789abcdef"', "", "module"),
        (MAIN, 'token_label = "JPKI-ISSUANCE-1"', 'token_label = ""', "module.token_label"),
        (MAIN, 'arguments = ""', "arguments = 7", "module.arguments"),
        (MAIN, 'path = "/usr/lib/softhsm/libsofthsm2.so"', 'path = ""', "module.path"),
        (MAIN, "[vault]", "[vaults]", "vault"),
        (MAIN, 'environment = "production"', "", ""),
        (MAIN, '"0.0.0.0:7443"', '"7443"', "front.listen"),
        (MAIN, '"0.0.0.0:7443"', '"127.0.0.1:65536"', "front.listen"),
        (MAIN, '"sqlite:////var/lib/jpki/ledger.db"', '"sqlite://"', "front.ledger"),
        (MAIN, '"sqlite:////var/lib/jpki/ledger.db"', '"sqlite:///:memory:"', "front.ledger"),
        (MAIN, '"sqlite:////var/lib/jpki/ledger.db"', '"ledger.db"', "front.ledger"),
        (MAIN, "urn:appliance:role:operator:desk-1", "desk one", "front.clients"),
        (MAIN, 'role = "operator"', 'role = "root"', "front.clients[...].role"),
        (
            MAIN,
            'role = "operator"',
            'role = "operator"\nsim_issuers = ["example-mno"]',
            "front.clients[...].sim_issuers",
        ),
        (MAIN, 'sim_issuers = ["example-mno"]', "", "front.clients[...].sim_issuers"),
        (
            MAIN,
            'sim_issuers = ["example-mno"]',
            'sim_issuers = ["other-mno"]',
            "front.clients.urn:appliance:role:tsm:example.sim_issuers",
        ),
        (MAIN, 'profile = "jpki-user-authentication"', 'profile = "other"', "front.profile"),
        (MNO, 'name = "example-mno"', 'name = "other-mno"', "name"),
        (MNO, "kvn = 0x01", "kvn = 0x80", "key_sets[1].kvn"),
        (MNO, "kvn = 0x01", "kvn = 0x02", "key_sets"),
        (MNO, 'kcv = "9B03E7"', 'kcv = "9B03E"', "key_sets[1].bind.kcv"),
        (MNO, 'kcv = "9B03E7"', 'kcv = "9B03E7"\nkvc = "9B03E7"', "key_sets[1].bind.kvc"),
        (MNO, 'state = "OLD"', 'state = "RETIRED"', "key_sets[1].state"),
        (MNO, 'state = "OLD"', 'state = "ACTIVE"', "key_sets"),
        (MNO, 'security_level = "03"', 'security_level = "99"', "key_sets[0].channel.security_level"),
        (MNO, 'applet_aid = "D392F000260100000001"', 'applet_aid = "D392"', "applet_aid"),
        (PROFILE, "policy_critical = true", 'policy_critical = "yes"', "policy_critical"),
        (PROFILE, "validity_max_days", "validity_days", ""),
        (PROFILE, "crl_url", "crl_urls", ""),
        (PROFILE, '["digital_signature"]', '["key_agreement"]', "key_usage"),
    ],
)
def test_a_slip_of_the_pen_is_refused_with_file_and_key(
    file: str, old: str, new: str, field: str, copy: Path, edit: Edit
) -> None:
    edit(file, old, new)
    assert refused(copy).field == (f"{file}: {field}" if field else file)


def test_a_file_that_is_not_toml_is_refused_with_the_line(copy: Path) -> None:
    (copy / MNO).write_text('name = "example-mno"\nkvn 1\n')
    error = refused(copy)
    assert (error.field, "line 2" in error.detail) == (MNO, True)


def test_bytes_that_are_no_text_are_refused(copy: Path) -> None:
    (copy / PROFILE).write_bytes(b"\xff\xfe")
    assert refused(copy).field == PROFILE


def test_missing_settings_are_refused(copy: Path) -> None:
    (copy / MAIN).unlink()
    assert refused(copy).field == MAIN


def other_issuer(copy: Path, *same: str) -> None:
    """A second SIM issuer that shares these values with the first and no other ones."""
    text = (copy / MNO).read_text()
    for old, new in {
        "example-mno": "other-mno",
        '"7C1F0A"': '"000001"',
        '"41D2C8"': '"000002"',
        '"9B03E7"': '"000003"',
        '"D6710C"': '"000004"',
    }.items():
        if old not in same:
            text = text.replace(old, new)
    (copy / "sim_issuers" / "other-mno.toml").write_text(text.replace('name = "example-mno"', 'name = "other-mno"'))


def test_two_sim_issuers_with_keys_of_their_own_are_accepted(copy: Path) -> None:
    other_issuer(copy)
    assert set(load(copy / MAIN).sim_issuers) == {"example-mno", "other-mno"}


@pytest.mark.parametrize("same", ["example-mno", '"7C1F0A"'], ids=["label", "check value"])
def test_a_master_key_of_two_sim_issuers_is_refused(same: str, copy: Path) -> None:
    other_issuer(copy, same)
    assert refused(copy).field == "sim_issuers/other-mno.toml: key_sets"


@pytest.mark.parametrize(
    ("file", "old", "new", "field"),
    [
        (MAIN, "JPKI-ISSUANCE-1", "DEMO-JPKI", "module.token_label"),
        (MAIN, "JPKI-ISSUANCE-1", "demo token", "module.token_label"),
        (MNO, 'name = "example-mno"', 'name = "example-mno"\ndemo = true', "demo"),
        (MNO, '"7C1F0A"', '"A5AE31"', "key_sets"),
        (MNO, '"D6710C"', '"6204f8"', "key_sets"),
    ],
    ids=["token", "token in lower case", "SIM issuer", "KM-BIND", "KM-CHAN"],
)
def test_production_refuses_what_is_made_for_demonstration(
    file: str, old: str, new: str, field: str, copy: Path, edit: Edit
) -> None:
    edit(file, old, new)
    assert refused(copy, Reason.DEMO_IN_PRODUCTION).field == f"{file}: {field}"
    edit(MAIN, 'environment = "production"', 'environment = "demo"')
    assert isinstance(load(copy / MAIN), Settings)
