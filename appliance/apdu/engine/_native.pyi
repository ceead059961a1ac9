"""The extension of core.c and module.c. A str in place of a result names what is wrong (`PROBLEMS` in core.c)."""

from collections.abc import Iterable, Sequence

from appliance.apdu.engine import Order

def render(orders: Iterable[Order], form: int, /) -> list[bytes | str]: ...
def card_challenge(k_enc: bytes, sequence_counter: int, aid: bytes, mode: int, /) -> bytes | str: ...
def session_keys(
    k_enc: bytes, k_mac: bytes, host_challenge: bytes, card_challenge: bytes, /
) -> tuple[bytes, bytes, bytes] | str: ...
def verify_card_cryptogram(
    s_mac: bytes, host_challenge: bytes, card_challenge: bytes, card_cryptogram: bytes, /
) -> bytes | str: ...
def unwrap(
    s_enc: bytes,
    s_mac: bytes,
    s_rmac: bytes,
    level: int,
    mode: int,
    commands: Sequence[bytes],
    responses: Sequence[bytes],
    /,
) -> list[bytes | str]: ...
def kdf3(master: bytes, constant: int, kdd: bytes, bits: int, /) -> bytes | str: ...
def kcv(key: bytes, /) -> bytes | str: ...
