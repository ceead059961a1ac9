"""What a ledger must tell after a run, as a table of named checks: each answers what it finds, none where all is well.

Together with `appliance ledger check` it holds the file against the model of every request that was sent.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.api.v1.issuance_pb2 import IssuanceState
from appliance.domain.issuance import MAX_LOST_ATTEMPTS, TRANSITIONS, Move, State

from .model import Person
from .site import Site

Check = Callable[[Site, Sequence[Person]], Iterator[str]]
_MOVES: Final = {
    "COMPLETED": Move.COMPLETE,
    "ACTIVATED": Move.ACTIVATE,
    "ABANDONED": Move.ABANDON,
    "SUPERSEDED": Move.SUPERSEDE,
    "FAILED": Move.FAIL,
}


def _command(site: Site, _persons: Sequence[Person]) -> Iterator[str]:
    check = site.run("ledger", "check")
    if check.returncode != 0:
        yield check.stdout + check.stderr


def _answers(site: Site, persons: Sequence[Person]) -> Iterator[str]:
    stored = dict(site.query("SELECT request_id, answer FROM requests"))
    for sent in (sent for person in persons for sent in person.all):
        if sent.answer is not None and stored.get(sent.request_id) != sent.answer:
            yield f"{sent.method} {sent.request_id}"


def _known(site: Site, persons: Sequence[Person]) -> Iterator[str]:
    sent = {call.request_id for person in persons for call in person.all}
    for request_id, issuance in site.query("SELECT request_id, id FROM issuances"):
        if request_id not in sent:
            yield f"{issuance} for {request_id}"


def _states(site: Site, persons: Sequence[Person]) -> Iterator[str]:
    stored = dict(site.query("SELECT request_id, state FROM issuances"))
    for issue in (issue for person in persons for issue in person.issues):
        state = stored.get(issue.request_id)
        if issue.answer is not None and IssuanceState.Value(f"ISSUANCE_STATE_{state}") != issue.state:
            yield f"{issue.name} is {state}, not {issue.state}"
        if issue.answer is None and state in {"READY", "ACTIVE"}:
            yield f"{issue.request_id} is {state}, and was never answered"


def _one_live(site: Site, _persons: Sequence[Person]) -> Iterator[str]:
    live = "SELECT person_id FROM issuances WHERE state IN ('RESERVED', 'READY', 'ACTIVE')"
    for person, count in Counter(row[0] for row in site.query(live)).items():
        if count > 1:
            yield f"{person}: {count}"


def _entries(site: Site) -> list[dict[str, Any]]:
    return [json.loads(entry) for (entry,) in site.query("SELECT entry FROM audit ORDER BY number")]


def _numbers(site: Site, _persons: Sequence[Person]) -> Iterator[str]:
    for expected, entry in enumerate(_entries(site), start=1):
        if entry["number"] != expected:
            yield f"{entry['number']} in place of {expected}"
            return


def _counters(site: Site, _persons: Sequence[Person]) -> Iterator[str]:
    sims = dict(site.query("SELECT id, iccid FROM issuances"))
    last: dict[str, int] = defaultdict(int)
    for entry in _entries(site):
        if entry["event"] == "ATTEMPTED":
            iccid, counter = sims[entry["issuance"]], int(entry["facts"]["counter"])
            if counter <= last[iccid]:
                yield f"{iccid}: {counter} after {last[iccid]}"
            last[iccid] = counter


def _unique(site: Site, _persons: Sequence[Person]) -> Iterator[str]:
    serials = [serial.hex() for (serial,) in site.query("SELECT serial FROM attempts")]
    certificates = [
        x509.load_der_x509_certificate(der)
        for (der,) in site.query("SELECT certificate FROM issuances WHERE certificate IS NOT NULL")
    ]
    keys = [
        certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()
        for certificate in certificates
    ]
    for value, count in Counter([*serials, *keys]).items():
        if count > 1:
            yield f"{value}: {count} times"
    for certificate in certificates:
        if f"{certificate.serial_number:032x}" not in serials:
            yield f"a certificate with the serial {certificate.serial_number:x} of no attempt"


def _told(site: Site, _persons: Sequence[Person]) -> Iterator[str]:
    states: dict[str, State] = {}
    attempts = Counter[str]()
    for entry in _entries(site):
        issuance, event = entry["issuance"], entry["event"]
        if event == "RESERVED":
            states[issuance] = State.RESERVED
        elif event in _MOVES:
            after = TRANSITIONS.get((states[issuance], _MOVES[event]))
            if after is None or after is states[issuance]:
                yield f"{issuance}: {event} while {states[issuance]}"
            else:
                states[issuance] = after
        attempts[issuance] += event == "ATTEMPTED"
    for issuance, state, attempt in site.query("SELECT id, state, attempt FROM issuances"):
        if states.pop(issuance, None) != state:
            yield f"{issuance} is {state}"
        if attempts[issuance] != attempt:
            yield f"{issuance} has {attempt} attempts, and {attempts[issuance]} are told"
    yield from states


def _failures(site: Site, _persons: Sequence[Person]) -> Iterator[str]:
    lost = "SELECT issuance, sum(lost) FROM attempts GROUP BY issuance"
    failed = {issuance for (issuance,) in site.query("SELECT id FROM issuances WHERE state = 'FAILED'")}
    for issuance, count in site.query(lost):
        if (count >= MAX_LOST_ATTEMPTS) != (issuance in failed):
            yield f"{issuance}: {count} attempts lost"


def _wrapped(site: Site, _persons: Sequence[Person]) -> Iterator[str]:
    wrong = "SELECT id, state FROM issuances WHERE (state = 'READY') <> (wrapped_key IS NOT NULL)"
    yield from (f"{issuance} {state}" for issuance, state in site.query(wrong))


CHECKS: Final[dict[str, Check]] = {
    "appliance ledger check finds nothing": _command,
    "every answer is stored as it was given": _answers,
    "every issuance was asked for": _known,
    "every state is the model's": _states,
    "a person has one live issuance": _one_live,
    "audit entries are numbered without gaps": _numbers,
    "counters rise from attempt to attempt of a SIM": _counters,
    "no serial and no key is there twice": _unique,
    "the audit log tells the states and the attempts": _told,
    "three lost attempts end an issuance, and nothing else": _failures,
    "a wrapped key is there while READY, and only then": _wrapped,
}


def findings(site: Site, persons: Sequence[Person]) -> list[str]:
    """What is wrong, each with the name of its check; run it while nothing is in work."""
    return [f"{name}: {found}" for name, check in CHECKS.items() for found in check(site, persons)]
