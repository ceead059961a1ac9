"""The throwaway tokens: private, side by side, and gone at the end."""

from pathlib import Path

import pytest

from tests.hsm.modules.provision import TOKENS


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_of_a_module_stand_side_by_side_and_are_gone_at_the_end(name: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for directory in (here, there):
        directory.mkdir()
    with TOKENS[name](here) as one, TOKENS[name](there) as other:
        one.job("bring", label="ONE")
        assert (one.job("labels"), other.job("labels")) == (["ONE"], [])
    if one.prefix:
        assert one.run("true").returncode != 0, "what the prefix leads into has not ended"


@pytest.mark.parametrize("name", TOKENS)
def test_pin_is_the_users_and_another_one_is_refused_as_a_pin(name: str, tmp_path: Path) -> None:
    with TOKENS[name](tmp_path) as token:
        refusal = token.job("labels", pin="0" + token.pin[1:])["refusal"]
        assert refusal["reason"] == "PIN_REJECTED"
        assert token.pin not in str(refusal)
        assert token.job("labels") == []
