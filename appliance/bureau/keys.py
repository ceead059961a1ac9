"""Static channel keys as a bureau has them: KM-CHAN of a key set, or K-ENC and K-MAC of single SIMs.

They come through a descriptor, stand in wiped buffers, and go to the workers through pipes alone.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from string import hexdigits
from typing import Final

from appliance.apdu import engine
from appliance.api.v1 import bureau_pb2 as pb
from appliance.domain.derivation import CHANNEL_ENC, CHANNEL_MAC
from appliance.domain.setting import SETTING_NAME
from appliance.domain.sim import KVN_RANGE, Iccid
from appliance.errors import ApplianceError, Reason

MASTER_BYTES: Final = 32
SIM_BYTES: Final = (16, 24, 32)
MAX_BYTES: Final = 1 << 24
"""Of the whole document: some 100,000 SIMs, each of which costs every worker a quarter of a KB."""
FIELD: Final = "--keys-fd"

_STDERR: Final = 2
_LINE: Final = re.compile(
    rb"""[^\S\n]*+
    (?: (?: (?P<iccid> [0-9]{19,20}+) [^\S\n]++ (?P<k_enc> [0-9A-Fa-f]++)
          | (?:simIssuers/)? (?P<issuer> %b) [^\S\n]++ (?:0[xX])? (?P<kvn> [0-9A-Fa-f]{1,2}+)
        ) [^\S\n]++ (?P<key> [0-9A-Fa-f]++)
    )?+
    [^\S\n]*+ (?: [#] [^\n]*+ )?+ (?: \n | \Z )"""
    % SETTING_NAME.pattern.encode(),
    re.VERBOSE,
)
"""One that is right in form, or empty. Only the names in it are ever taken out as objects that cannot be wiped."""
_PAIRS: Final = {
    int.from_bytes((high + low).encode(), sys.byteorder): int(high + low, 16) for high in hexdigits for low in hexdigits
}
"""What two hex digits say that are read as one number of the machine."""

Name = tuple[str, int]
"""SIM issuer and KVN of a key set."""


@dataclass(frozen=True)
class ChannelKeys:
    """What was given, by key set and by SIM (EF.ICCID coding)."""

    masters: dict[Name, bytearray] = field(repr=False)
    sims: dict[bytes, tuple[bytearray, bytearray]] = field(repr=False)

    def check(self, routes: Sequence[pb.ExportRoute]) -> None:
        """Holds the masters against the check values in an export.

        Raises:
            ApplianceError: KCV_MISMATCH or FIELD_INVALID, naming the key set.
        """
        for route in routes:
            name = name_of_key_set(route)
            if name not in self.masters:
                if self.sims:
                    continue  # each of them may be there by itself
                raise _invalid(
                    f"There is no key for {name[0]}, key set {name[1]:02X}.",
                    f"Add the line: {name[0]} {name[1]:02X} and KM-CHAN in hex.",
                )
            found = engine.kcv(bytes(self.masters[name]))
            if found != route.km_chan_kcv:
                raise ApplianceError(
                    Reason.KCV_MISMATCH,
                    f"The key for {name[0]}, key set {name[1]:02X}, has check value {found.hex().upper()}; "
                    f"the export was made for KM-CHAN with {route.km_chan_kcv.hex().upper()}.",
                    hint="Give KM-CHAN of that SIM issuer and key set; KM-BIND or another set's opens no channel.",
                    field=FIELD,
                    sim_issuer=name[0],
                    kvn=name[1],
                )

    def of(self, name: Name, kdd: bytes, bits: int) -> tuple[bytes, bytes]:
        """K-ENC and K-MAC of the SIM with this EF.ICCID coding, of so many bits.

        Raises:
            ApplianceError: FIELD_INVALID where neither the SIM's keys nor its master were given, or of another length.
        """
        if own := self.sims.get(kdd):
            if len(own[0]) != bits // 8:
                raise _invalid(f"The SIM's keys have {8 * len(own[0])} bits, not {bits}.", "Correct the SIM's line.")
            return bytes(own[0]), bytes(own[1])
        master = self.masters.get(name)
        if master is None:
            raise _invalid("There are no keys for this SIM.", "Add its line, or the one of its key set.")
        key = bytes(master)
        return engine.kdf3(key, CHANNEL_ENC, kdd, bits), engine.kdf3(key, CHANNEL_MAC, kdd, bits)

    def wipe(self) -> None:
        """Overwrites all of them."""
        for key in (*self.masters.values(), *(key for pair in self.sims.values() for key in pair)):
            key[:] = bytes(len(key))


@contextmanager
def given(descriptor: int) -> Iterator[ChannelKeys]:
    """The keys behind a descriptor, which is read to its end and closed; wiped at the end.

    Raises:
        ApplianceError: FIELD_INVALID naming the line, and never what stands in it.
    """
    keys = ChannelKeys({}, {})
    try:
        with memoryview(bytearray(MAX_BYTES + 1)) as document:
            try:
                _parse(document[: _fill(descriptor, document)], keys)
            finally:
                document[:] = bytes(len(document))
        yield keys
    finally:
        keys.wipe()


def _fill(descriptor: int, view: memoryview) -> int:
    used = 0
    try:
        while used < len(view) and (count := os.readv(descriptor, [view[used:]])):
            used += count
        if descriptor > _STDERR:  # a standard one stays: another file would take its number
            os.close(descriptor)
    except OSError as error:
        raise _invalid(f"Descriptor {descriptor} cannot be read: {error.strerror}.", "Open it: 3< <(...)") from error
    if used > MAX_BYTES:
        raise _invalid(
            f"There are more than {MAX_BYTES} bytes.", "Give KM-CHAN instead of the SIMs' keys, or split the export."
        )
    return used


def _parse(document: memoryview, keys: ChannelKeys) -> None:
    at = number = 0
    while at < len(document):
        line, number = _LINE.match(document, at), number + 1
        try:
            if not line:
                raise ValueError
            _take(line, document, keys)
        except (ValueError, ApplianceError):
            # Without the cause: its text may hold what stands in the line.
            raise _invalid(
                f"Line {number} is none that names a key set or a SIM.",
                "Write SIM-ISSUER KVN KM-CHAN or ICCID K-ENC K-MAC, KVN and keys in hex, each once.",
            ) from None
        at = line.end()


def _take(line: re.Match[bytes], document: memoryview, keys: ChannelKeys) -> None:
    size = _digits(line, "key") / 2
    if line["iccid"]:
        kdd = Iccid.parse(line["iccid"].decode()).ef_coding
        if _digits(line, "k_enc") / 2 != size or size not in SIM_BYTES or kdd in keys.sims:
            raise ValueError
        keys.sims[kdd] = _key(line, "k_enc", document), _key(line, "key", document)
    elif line["issuer"]:
        name = line["issuer"].decode(), int(line["kvn"], 16)
        if name[1] not in KVN_RANGE or size != MASTER_BYTES or name in keys.masters:
            raise ValueError
        keys.masters[name] = _key(line, "key", document)


def _digits(line: re.Match[bytes], key: str) -> int:
    begin, end = line.span(key)
    return end - begin


def _key(line: re.Match[bytes], key: str, document: memoryview) -> bytearray:
    """What these hex digits say, and no copy of them."""
    begin, end = line.span(key)
    pairs = document[begin:end].cast("H")
    found = bytearray(len(pairs))
    for index, pair in enumerate(pairs):
        found[index] = _PAIRS[pair]
    return found


def name_of_key_set(route: pb.ExportRoute) -> Name:
    """Of the key set behind a route."""
    return route.sim_issuer.removeprefix("simIssuers/"), route.kvn


def _invalid(problem: str, hint: str) -> ApplianceError:
    return ApplianceError(Reason.FIELD_INVALID, problem, hint=hint, field=FIELD)
