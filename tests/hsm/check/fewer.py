"""The expendable process with some of the attacks alone, for tests of the process itself."""

from typing import Any, Final

import pytest

from appliance.hsm.check import attacks, examination, mechanisms, process

SOME: Final = {"read-unextractable", "copy-weaker", "see-without-login", "use-after-logout"}
_take = process._take


def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the child plan fewer steps, and so the parent."""
    monkeypatch.setattr(process, "_take", take)
    monkeypatch.setattr(examination, "ATTACKS", _some())
    monkeypatch.setattr(mechanisms, "behaviours", lambda _: ())


def take(*arguments: Any) -> None:
    """In the child."""
    with pytest.MonkeyPatch.context() as patch:
        fewer(patch)
        _take(*arguments)


def defective(*_: Any) -> None:
    """In the child: what no module does."""
    raise RuntimeError("a defect")


def _some() -> tuple[Any, ...]:
    return tuple(attack for attack in attacks.ATTACKS if attack.name in SOME)
