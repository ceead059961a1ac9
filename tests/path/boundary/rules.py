"""What must hold of a call log, as a table: the boundary of the token (SECURITY.md, Claims).

What a derivation or a wrap must look like is computed here from the published masters and the delivered packages, with
`cryptography` and the virtual SIM's KDF input: nothing of the appliance has a say in it.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from pkcs11 import Attribute, Mechanism, ObjectClass

from .history import SECRET_VALUES, History, Key

ZEROS: Final = bytes(16)
ONES: Final = b"\x01" * 16
"""What an AES key's check value encrypts (GlobalPlatform Card Specification 2.3.1, B.6)."""
NO_SIM: Final = b"\xff" * 10
"""Diversification data of the derivation's check value."""
K_SIM, K_AUTH, K_RCPT, K_ENC, K_MAC = 0x10, 0x11, 0x12, 0x01, 0x02
FUNCTIONS: Final = frozenset(
    {
        *("C_Initialize", "C_Finalize", "C_GetInfo", "C_GetSlotList", "C_GetSlotInfo", "C_GetTokenInfo"),
        *("C_GetMechanismList", "C_GetMechanismInfo", "C_OpenSession", "C_CloseSession", "C_Login", "C_Logout"),
        *("C_FindObjectsInit", "C_FindObjects", "C_FindObjectsFinal", "C_GetAttributeValue"),
        *("C_CreateObject", "C_GenerateKey", "C_GenerateKeyPair", "C_DeriveKey", "C_WrapKey", "C_DestroyObject"),
        *("C_SignInit", "C_Sign"),
    }
)
"""All that a vault calls: nothing that unwraps, copies, decrypts, changes an attribute or saves its state."""
MECHANISMS: Final[Mapping[str, frozenset[int]]] = {
    "C_GenerateKey": frozenset({Mechanism.AES_KEY_GEN}),
    "C_GenerateKeyPair": frozenset({Mechanism.RSA_PKCS_KEY_PAIR_GEN, Mechanism.EC_KEY_PAIR_GEN}),
    "C_DeriveKey": frozenset({Mechanism.AES_ECB_ENCRYPT_DATA, Mechanism.AES_CBC_ENCRYPT_DATA}),
    "C_WrapKey": frozenset({Mechanism.AES_KEY_WRAP_PAD, Mechanism.AES_KEY_WRAP_KWP}),
    "C_SignInit": frozenset({Mechanism.AES_CMAC, Mechanism.SHA256_RSA_PKCS, Mechanism.ECDSA}),
}


@dataclass(frozen=True)
class Sealing:
    """A package that left the appliance: its SIM (EF.ICCID), the SHA-256 of its header, the length of its C1."""

    iccid: bytes
    header_sha256: bytes
    wrapped_length: int


@dataclass(frozen=True)
class Run:
    """What the run asked for.

    Attributes:
        bind, chan: the masters' labels on the token, and their values.
        sealings: every package that there was.
        sims: EF.ICCID of every SIM that anything was asked for.
        requesting: key pairs that signed a certificate request of their own.
    """

    bind: tuple[str, bytes]
    chan: tuple[str, bytes]
    sealings: tuple[Sealing, ...]
    sims: frozenset[bytes]
    requesting: int = 0


Rule = Callable[[History, Run], Iterator[str]]


def functions(history: History, _: Run) -> Iterator[str]:
    """Only functions of the closed list are called."""
    yield from (f"{call.function} {call.sequence}" for call in history.calls if call.function not in FUNCTIONS)


def mechanisms(history: History, _: Run) -> Iterator[str]:
    """Only mechanisms of the closed list are used."""
    for call in history.calls:
        if call.mechanism is not None and call.mechanism not in MECHANISMS.get(call.function, ()):
            yield f"{call.function} {call.sequence} with {call.mechanism:#x}"


def one_thread(history: History, _: Run) -> Iterator[str]:
    """One thread of a process touches the module."""
    for pid, calls in history.by_process().items():
        if len({call.tid for call in calls}) != 1:
            yield f"process {pid}"


def one_login(history: History, _: Run) -> Iterator[str]:
    """Each session logs in once, and no PIN goes to a token that has refused one."""
    for pid, calls in history.by_process().items():
        logins = [call for call in calls if call.function == "C_Login"]
        opened = [call for call in calls if call.function == "C_OpenSession"]
        if len(logins) > len(opened) or any(login.rv != 0 for login in logins[:-1]):
            yield f"process {pid}: {len(logins)} logins in {len(opened)} sessions"


def in_session(history: History, _: Run) -> Iterator[str]:
    """Nothing is made on the token: every key is its session's."""
    yield from (str(key) for key in history.made() if not key.states(Attribute.TOKEN, False))


def hidden(history: History, _: Run) -> Iterator[str]:
    """Private keys, and secret keys that do anything, are SENSITIVE; only a subscriber's key is EXTRACTABLE.

    Named exception: the start-up's known throwaway key, made from a value of the vault's own.
    """
    for key in history.made():
        if key.kind is ObjectClass.PUBLIC_KEY or known_throwaway(key):
            continue
        if key.kind is ObjectClass.PRIVATE_KEY or key.may:
            extractable = key.kind is ObjectClass.PRIVATE_KEY
            if not (key.states(Attribute.SENSITIVE, True) and key.states(Attribute.EXTRACTABLE, extractable)):
                yield str(key)


def one_purpose(history: History, run: Run) -> Iterator[str]:
    """A secret key derives, or wraps, or signs; a subscriber's key does nothing, or signs its own request once."""
    signing = 0
    for key in history.made():
        if key.kind is ObjectClass.SECRET_KEY and not known_throwaway(key):
            if not (len(key.may) <= 1 and key.may <= {Attribute.DERIVE, Attribute.WRAP, Attribute.SIGN}):
                yield str(key)
        elif key.kind is ObjectClass.PRIVATE_KEY and key.may:
            signing += 1
            signatures = [call for call, _ in key.uses if call.function == "C_SignInit"]
            if key.may != {Attribute.SIGN} or len(signatures) > 1:
                yield str(key)
    if signing != run.requesting:
        yield f"{signing} subscribers' keys that sign, of {run.requesting}"


def reads(history: History, _: Run) -> Iterator[str]:
    """No secret value is read. Named exceptions: throwaway keys that can do nothing else (probes, K1, check values)."""
    for key in history.keys:
        if key.kind not in {ObjectClass.PRIVATE_KEY, ObjectClass.SECRET_KEY}:
            continue
        throwaway = key.base is not None and not key.may and key.states(Attribute.SENSITIVE, False)
        for call, _parameter in key.uses:
            if not throwaway and any(asked.type in SECRET_VALUES for asked in call.asked):
                yield f"{key}, by {call.function} {call.sequence}"


def derivations(history: History, run: Run) -> Iterator[str]:
    """Every derivation is one that the run calls for: its base, data and purpose are those of a SIM or a package."""
    called_for = set(_called_for(run))
    for key in history.made():
        base = key.base
        if base is None or known_throwaway(base):
            continue
        of = base.label if base.found else f"K_SIM {_sim_of(base, run).hex()}"
        if (of, key.made.mechanism, key.made.parameter, frozenset(key.may)) not in called_for:
            yield str(key)


def sealings(history: History, run: Run) -> Iterator[str]:
    """Each package is one key pair's, wrapped once, under the key of that package's own header and SIM."""
    expected = {ZEROS + sealing.header_sha256: sealing for sealing in run.sealings}
    sealed: list[Sealing] = []
    for key in history.made():
        for wrapping in key.wrappings:
            under = history.key(wrapping, "wrapping_key")
            if under is not None and known_throwaway(under):
                continue  # the start-up probe
            sealing = expected.get(under.made.parameter) if under and under.base else None
            if sealing is None or key.made.function != "C_GenerateKeyPair":
                yield f"{key}, by {wrapping.function} {wrapping.sequence}"
            elif not wrapping.query and wrapping.rv == 0:
                sealed.append(sealing)
                if wrapping.numbers["wrapped_key_len"] != sealing.wrapped_length:
                    yield f"{key}: another length than its package's"
        if sum(not wrapping.query for wrapping in key.wrappings) > 1:
            yield f"{key}: sealed twice"
    for sealing in run.sealings:
        if sealed.count(sealing) != 1:
            yield f"package {sealing.header_sha256.hex()} has {sealed.count(sealing)} sealings"


def destroyed(history: History, _: Run) -> Iterator[str]:
    """Every key that was made has ended."""
    yield from (str(key) for key in history.made() if key.ended is None)


def promptly(history: History, _: Run) -> Iterator[str]:
    """No key outlives its order: when a key pair or a SIM's key is made next, all of the order before have ended."""
    for pid, calls in history.by_process().items():
        for call in calls:
            if call.function != "C_GenerateKeyPair":
                continue
            for key in history.made():
                began, ended = key.made.sequence, key.ended.sequence if key.ended else call.sequence + 1
                if key.made.pid == pid and began < call.sequence < ended and not known_throwaway(key):
                    yield f"{key} lives at C_GenerateKeyPair {call.sequence}"


RULES: Final[Mapping[str, Rule]] = {
    rule.__name__: rule
    for rule in (
        *(functions, mechanisms, one_thread, one_login, in_session, hidden, one_purpose),
        *(reads, derivations, sealings, destroyed, promptly),
    )
}


def known_throwaway(key: Key) -> bool:
    """The key that every start makes from random bytes of the vault's own, to see what the mechanisms do."""
    return key.made.function == "C_CreateObject"


def _called_for(run: Run) -> Iterator[tuple[str, int, bytes, frozenset[Attribute]]]:
    """Base, mechanism, data and purpose of every derivation that a run may hold."""
    ecb, cbc = Mechanism.AES_ECB_ENCRYPT_DATA, Mechanism.AES_CBC_ENCRYPT_DATA
    nothing, sign = frozenset[Attribute](), frozenset({Attribute.SIGN})
    for (label, master), constant in ((run.bind, K_SIM), (run.chan, K_ENC)):
        for data in (ZEROS, ONES):  # K1 and check value: read
            yield label, ecb, data, nothing
        yield label, ecb, masked(master, constant, NO_SIM, 256), sign
    (bind, bind_master), (chan, chan_master) = run.bind, run.chan
    for sim in run.sims:
        yield bind, ecb, masked(bind_master, K_SIM, sim, 256), frozenset({Attribute.DERIVE})
        for constant in (K_AUTH, K_RCPT):
            yield bind, ecb, masked(bind_master, constant, sim, 256), sign
        for constant in (K_ENC, K_MAC):
            yield chan, ecb, masked(chan_master, constant, sim, 128), sign
    for sealing in run.sealings:
        under = frozenset({Attribute.WRAP})
        yield f"K_SIM {sealing.iccid.hex()}", cbc, ZEROS + sealing.header_sha256, under


def _sim_of(key: Key, run: Run) -> bytes:
    """The SIM whose K_SIM this is."""
    label, master = run.bind
    if key.base is None or key.base.label != label:
        return b""
    return next((sim for sim in run.sims if key.made.parameter == masked(master, K_SIM, sim, 256)), b"")


def masked(master: bytes, constant: int, kdd: bytes, bits: int) -> bytes:
    """What is encrypted under a master to give KDF3: each block XORed with CMAC's subkey K1 (RFC 4493, 2.3)."""
    zeros = int.from_bytes(Cipher(AES(master), ECB()).encryptor().update(ZEROS))  # noqa: S305 - RFC 4493's L
    k1 = (zeros << 1) % (1 << 128) ^ (0x87 if zeros >> 127 else 0)
    blocks = (bytes((i, 0, 0, 0, constant, 0)) + kdd for i in range(1, bits // 128 + 1))
    return b"".join((int.from_bytes(block) ^ k1).to_bytes(16) for block in blocks)


def header_sha256(header: bytes) -> bytes:
    """H of sim-package.md."""
    return hashlib.sha256(header).digest()
