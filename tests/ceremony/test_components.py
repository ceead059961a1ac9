"""Components: what is combined is their XOR; a wrong one is named; nothing of them stays in memory."""

import os
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from appliance.ceremony.components import Component, combined, key_check_value
from appliance.errors import ApplianceError, Reason


def component(value: bytes) -> Component:
    return Component(bytearray(value), key_check_value(value))


def components(count: int) -> list[Component]:
    return [component(os.urandom(32)) for _ in range(count)]


def wiped(given: list[Component]) -> bool:
    return not any(any(one.value) for one in given)


def refusal(given: list[Component]) -> ApplianceError:
    """Why they are not combined; they are wiped all the same."""
    with pytest.raises(ApplianceError) as refused, combined(given):
        pass
    assert refused.value.reason is Reason.COMPONENT_INVALID
    assert wiped(given)
    return refused.value


def test_check_value_is_that_of_globalplatform() -> None:
    key = bytes(range(32))
    block = Cipher(AES(key), ECB()).encryptor().update(b"\x01" * 16)  # noqa: S305 - one block
    assert key_check_value(key) == key_check_value(bytearray(key)) == block[:3].hex().upper()


@pytest.mark.parametrize("count", range(2, 10))
def test_key_is_the_xor_of_its_components(count: int) -> None:
    given = components(count)
    expected = bytes(32)
    for one in given:
        expected = bytes(a ^ b for a, b in zip(expected, one.value, strict=True))
    with combined(given) as key:
        assert key == expected


def test_key_and_components_are_wiped_at_the_end() -> None:
    given = components(3)
    with combined(given) as key:
        assert any(key)
    assert not any(key)
    assert len(key) == 32
    assert wiped(given)


def test_key_and_components_are_wiped_where_their_use_fails() -> None:
    given = components(3)
    with pytest.raises(ZeroDivisionError), combined(given) as key:
        raise ZeroDivisionError
    assert not any(key)
    assert wiped(given)


@pytest.mark.parametrize("count", [0, 1, 10])
def test_number_of_components_is_two_to_nine(count: int) -> None:
    error = refusal(components(count))
    assert error.field == "components"
    assert f"is {count}" in error.detail


SPOILED: dict[str, Callable[[Component], Component]] = {
    "another check value": lambda one: Component(one.value, "000000"),
    "a check value that is none": lambda one: Component(one.value, "ﾁｪｯｸ"),
    "an empty check value": lambda one: Component(one.value, ""),
    "16 bytes": lambda one: component(bytes(one.value[:16])),
    "33 bytes": lambda one: Component(one.value + b"\x01", one.kcv),
    "no bytes": lambda one: Component(bytearray(), one.kcv),
}


@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_component_that_is_wrong_is_named(number: int, spoiled: str) -> None:
    given = components(3)
    given[number - 1] = SPOILED[spoiled](given[number - 1])
    error = refusal(given)
    assert error.field == f"components[{number}]"
    assert f"Component {number} " in error.detail


def test_component_that_is_given_twice_is_named() -> None:
    one, other = components(2)
    error = refusal([one, other, component(bytes(one.value))])
    assert error.field == "components[3]"


def test_check_value_may_be_written_in_small_letters() -> None:
    given = [Component(one.value, one.kcv.lower()) for one in components(2)]
    with combined(given) as key:
        assert any(key)


def test_component_hides_its_value() -> None:
    (one,) = components(1)
    assert one.kcv in repr(one)
    assert "value" not in repr(one)
    error = refusal([one, Component(bytearray(b"\x5a" * 32), "000000")])
    assert "5a5a5a" not in str(error).lower()
    assert "ZZZ" not in str(error)
