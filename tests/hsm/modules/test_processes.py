"""The appliance's own processes on other modules: the whole path on NSS, and what operators see where it cannot run."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.api.v1.issuance_pb2 import KEY_TYPE_EC_P256, KEY_TYPE_EC_P384, KEY_TYPE_RSA_2048
from appliance.demo import published
from appliance.supervisor import FINAL
from tests.hsm.modules.provision import TOKENS, Token
from tests.path.callers import issue_request
from tests.path.delivery import assert_delivered, assert_issued_once
from tests.path.site import Site, set_up


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("d") / "demo"
    set_up(directory)
    return directory


@pytest.fixture
def demo(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A demo whose programs have not been started, to be moved to another token."""
    # Not tmp_path: a socket's path is short.
    site = Site(made, tmp_path_factory.mktemp("s") / "s", Path("replaced"))
    yield site
    site.end()


def move(site: Site, token: Token) -> None:
    """Declare this token instead of the demo's; the demo's masters have the same check values on every module."""
    for name, value in (
        ("path", token.module.path),
        ("token_label", token.module.token_label),
        ("token_serial", token.module.token_serial),
        ("arguments", token.module.arguments),
    ):
        site.setting(name, json.dumps(value), within="module")


def test_keys_of_each_type_go_the_whole_way_on_nss(demo: Site, tmp_path: Path) -> None:
    with TOKENS["nss"](tmp_path) as token:
        authority = bytes.fromhex(token.job("hold_ceremonies")["authorities"]["rsa-ca"])
        move(demo, token)
        demo.setting("ca_label", '"RSA-CA"', file=f"profiles/{published.PROFILE}.toml")
        demo.demo.ca_certificate.write_bytes(x509.load_der_x509_certificate(authority).public_bytes(Encoding.PEM))

        issuer = demo.up().caller("issuer")
        for key_type in (KEY_TYPE_RSA_2048, KEY_TYPE_EC_P256, KEY_TYPE_EC_P384):
            request = issue_request(key_type)
            issuance = assert_issued_once(demo, issuer, request, issuer.issue(request), attempts=1)
            assert_delivered(demo, request, issuance)

        [vault] = demo.caller("operator").status().vaults
        assert vault.module.startswith("Mozilla Foundation NSS")
        assert demo.vaults
        [told] = [event for event in demo.vaults.events() if event["event"] == "module deviates"]
        assert told["how"] == "does not know CKA_COPYABLE; does not tell by CKA_LOCAL where a key was born"


def test_vaults_end_for_good_with_one_line_where_a_mechanism_is_missing(demo: Site, tmp_path: Path) -> None:
    with TOKENS["opencryptoki"](tmp_path) as token:
        move(demo, token)
        command = ("vaults", "--config", str(demo.demo.settings), "--pin-fd", "0")
        done = token.run(sys.executable, "-P", "-m", "appliance", *command, stdin=f"{token.pin}\n")
    assert done.returncode == FINAL, done.stderr
    events = [json.loads(line) for line in done.stderr.splitlines()]
    [told] = [event for event in events if event["event"] == "vault cannot go on"]
    assert told["reason"] == "MECHANISM_MISSING"
    assert told["detail"].startswith("CKM_AES_ECB_ENCRYPT_DATA (0x1104) cannot be used")
    assert token.pin not in done.stderr
