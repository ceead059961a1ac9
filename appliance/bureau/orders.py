"""What an exported package asks of the engine: an order for each of its scripts."""

import os
from typing import Final, NamedTuple

from appliance.apdu import engine
from appliance.apdu.scp03 import Mode
from appliance.api.v1 import bureau_pb2 as pb
from appliance.bureau.export import MAX_WINDOW, Export, channel_of, package_of
from appliance.bureau.keys import FIELD, ChannelKeys, Name, name_of_key_set
from appliance.bureau.records import Record
from appliance.domain.derivation import MAX_SEQUENCE_COUNTER
from appliance.domain.package import KeyType
from appliance.domain.request import validate_issuance_name
from appliance.domain.sim import EF_ICCID_LENGTH, ICCID_LENGTHS, ef_coding, validate_aid
from appliance.domain.tlv import encode
from appliance.errors import ApplianceError, Reason

_RANDOM: Final = 4096
_HEADER: Final = b"\x80\x01\x01\x81" + bytes((EF_ICCID_LENGTH,))
"""Suite and the head of the ICCID, with which the header's value begins (sim-package.md, Format)."""
_COUNTER: Final = 4
_LENGTHS: Final = 6
"""Most bytes that E0 and E1 have with their lengths."""


class Planned(NamedTuple):
    """One script that is to be made; `record` says where it comes from."""

    record: Record
    issuance: str
    iccid: str
    sequence_counter: int
    order: engine.Order


class _Challenges:
    """Random bytes of the operating system, fetched many at a time."""

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def __call__(self, size: int) -> bytes:
        if len(self._bytes) < self._at + size:
            self._bytes, self._at = os.urandom(_RANDOM), 0
        self._at += size
        return self._bytes[self._at - size : self._at]


class _Way(NamedTuple):
    """What packages of the same route, applet and key type have in common."""

    route: engine.Route
    key_set: Name
    key_bits: int
    before_counter: bytes
    """What stands in their headers from the ICCID to the counter, and behind the counter."""
    behind_counter: bytes


class Plan:
    """Takes the packages of an export.

    Args:
        head: of the export.
        keys: where it brings no session keys.
        window: scripts for each package, instead of what the export says; 0 leaves it at that.
    """

    def __init__(self, head: pb.ExportHead, keys: ChannelKeys | None, window: int) -> None:
        self._session_keys = head.session_keys
        self._routes = list(head.routes)
        self._keys = keys
        self._challenges = _Challenges()
        self._window = window
        self._ways: dict[tuple[int, bytes, int], _Way] = {}

    def of(self, record: Record) -> list[Planned]:
        """The orders of a package.

        Raises:
            ApplianceError: what is wrong with it; others can be taken all the same.
        """
        package = package_of(record)
        name = package.issuance
        validate_issuance_name(name, "issuance")
        known = package.route, package.applet_aid, package.key_type
        way = self._ways.get(known) or self._ways.setdefault(known, self._way(*known))
        iccid, content = package.iccid, package.package
        if not (iccid.isascii() and iccid.isdigit() and len(iccid) in ICCID_LENGTHS):
            raise _invalid("iccid", "The ICCID is not 19 or 20 digits.", "Write it as it is printed on the SIM.")
        kdd = ef_coding(iccid)
        _check_header(content, kdd, way)
        if bool(len(package.sessions)) != self._session_keys:
            raise _invalid(
                "sessions",
                "The head says otherwise about session keys than the package.",
                "Give every package of an export session keys, or none.",
            )
        orders = _sessions(package, content, way) if self._session_keys else self._static(package, content, way, kdd)
        return [Planned(record, name, iccid, counter, order) for counter, order in orders]

    def _static(
        self, package: pb.ExportedPackage, content: bytes, way: _Way, kdd: bytes
    ) -> list[tuple[int, engine.Order]]:
        first, window = package.sequence_counter, self._window or package.window or 1
        if window > MAX_WINDOW or not 1 <= first <= MAX_SEQUENCE_COUNTER - window + 1:
            raise _invalid(
                "sequence_counter",
                f"The counters {first} to {first + window - 1} are not all within 1 to {MAX_SEQUENCE_COUNTER}, "
                f"or more than {MAX_WINDOW}.",
                "Begin with the SIM's last counter plus one; a fresh SIM's first is 1.",
            )
        if self._keys is None:
            raise RuntimeError("an export without session keys wants static keys")
        route, challenge = way.route, self._challenges
        k_enc, k_mac = self._keys.of(way.key_set, kdd, way.key_bits)
        return [
            (counter, engine.Order(route, content, challenge(route.mode), counter, k_enc, k_mac, static=True))
            for counter in range(first, first + window)
        ]

    def _way(self, number: int, aid: bytes, key_type: int) -> _Way:
        if number >= len(self._routes):
            raise _invalid(
                "route",
                f"There is no route {number}; the head has {len(self._routes)}.",
                "Count routes from 0, in the head's order.",
            )
        try:
            kind = KeyType(key_type)
        except ValueError:
            raise _invalid("key_type", f"Key type {key_type} is not known.", "Use a value of KeyType.") from None
        route = self._routes[number]
        mode = Mode(channel_of(route).challenge_length)
        return _Way(
            engine.Route(route.ssd_aid, aid, route.channel_kvn, route.security_level, mode, kind),
            name_of_key_set(route),
            route.channel_key_bits,
            encode(0x82, validate_aid(aid, "applet_aid")) + bytes((0x83, 1, route.kvn, 0x84, _COUNTER)),
            bytes((0x85, 1, kind)),
        )


def _sessions(package: pb.ExportedPackage, content: bytes, way: _Way) -> list[tuple[int, engine.Order]]:
    size, orders, last = way.key_bits // 8, [], 0
    for number, session in enumerate(package.sessions):
        counter, s_enc, s_mac = session.sequence_counter, session.s_enc, session.s_mac
        if number >= MAX_WINDOW or not last < counter <= MAX_SEQUENCE_COUNTER:
            raise _invalid(
                f"sessions[{number}].sequence_counter",
                f"The counter {counter} lies outside {last + 1} to {MAX_SEQUENCE_COUNTER}, "
                f"or there are more than {MAX_WINDOW} sessions.",
                "Give each session the counter that its keys were derived for, in ascending order.",
            )
        last = counter
        if not len(s_enc) == len(s_mac) == size:
            raise _invalid(
                f"sessions[{number}]",
                f"The session keys have not {8 * size} bits each, as the route says.",
                "Give S-ENC and S-MAC of the length of the key set's keys.",
            )
        order = engine.Order(way.route, content, session.host_challenge, session.card_challenge, s_enc, s_mac)
        orders.append((counter, order))
    return orders


def require_keys(export: Export, keys: ChannelKeys) -> None:
    """Each SIM has keys. A line that was forgotten shows before anything is made, since what is made stays.

    Where there are only masters, `ChannelKeys.check` has found them for every route.

    Raises:
        ApplianceError: FIELD_INVALID naming the first SIM without keys of its channel's length.
    """
    plan, first, lacking = Plan(export.head, keys, 1), None, 0
    for record in export.records() if keys.sims else ():
        try:
            plan.of(record)
        except ApplianceError as error:
            if error.field == FIELD:
                first, lacking = first or (record, error), lacking + 1
    if first is not None:
        record, lack = first
        raise ApplianceError(
            lack.reason,
            f"SIM {package_of(record).iccid}, record {record.number}: {lack.detail} "
            f"So it is with {lacking:,} of {export.head.packages:,} packages.",
            hint=lack.hint,
            field=FIELD,
        )


def name_of(record: Record) -> str:
    """The issuance of a record, for people; "" where it cannot be read."""
    try:
        return package_of(record).issuance
    except ApplianceError:
        return ""


def _check_header(content: bytes, kdd: bytes, way: _Way) -> None:
    """Refuses a package whose header tells of another SIM, applet, key set or key (sim-package.md, Format)."""
    head = _HEADER + kdd + way.before_counter
    end = content.find(head, 0, len(head) + _LENGTHS) + len(head) + _COUNTER
    if end < len(head) + _COUNTER or not content.startswith(way.behind_counter, end):
        raise _invalid(
            "package",
            "The package's header names another ICCID, applet AID, key set or key type than the record.",
            "Copy them from the issuance that the package belongs to.",
        )


def _invalid(field: str, problem: str, hint: str) -> ApplianceError:
    return ApplianceError(Reason.EXPORT_INVALID, problem, hint=hint, field=field)
