"""Random kills: applicants issue, deliver, abandon and repeat while processes die; a model checks every answer.

`python -m tests.path.random_kills --seconds 600 --seed 7` sets up a demo, and prints what it did and what was wrong.
The seed decides what each applicant and the killer do in which order, and not how they meet.
"""

import argparse
import errno
import random
import secrets
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from tests.ledger.disk import LOG, Action, Disk, compile_disk
from tests.ledger.disk import Fault as DiskFault
from tests.shim import End, Fault, When, Which, compile_module

from .aftermath import findings
from .applicant import DELIVERED, Life, Office
from .model import Person
from .programs import WAIT, until
from .site import Site, set_up

VAULTS: Final = 2
APPLICANTS: Final = 4
"""Threads, each with one person after the other."""
ERRORS: Final = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT)


class Run:
    """One appliance, its applicants and its killer.

    Args:
        site: with two vaults; its programs are started here.
        disk: beneath the front's ledger.
    """

    def __init__(self, site: Site, disk: Disk, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self._site, self._disk, self._seed = site, disk, seed
        self._random = random.Random(f"{seed} killer")  # noqa: S311 (no secret)
        self._over = threading.Event()
        self._lives: list[tuple[Person, Life]] = []
        self._offices: list[Office] = []

    def go(self, seconds: float, deliveries: int = 0) -> None:
        """Runs for so long and so many, lets everything come to its end, and holds the ledger against the model."""
        self._site.up()
        threads = [threading.Thread(target=self._guarded, args=(self._apply, n)) for n in range(APPLICANTS)]
        for thread in threads:
            thread.start()
        self._guarded(self._kill_until, time.monotonic() + seconds, deliveries)
        self._over.set()
        self._site.up()
        for thread in threads:
            thread.join()
        for _, life in self._lives:
            self._guarded(life.settle)
            self._guarded(life.check_sims)
        persons = [person for person, _ in self._lives]
        self.violations += findings(self._site, persons)
        for office in self._offices:
            self.counts += office.counts
        self.counts["persons"] = len(persons)
        self.counts["requests"] = sum(len(person.all) for person in persons)

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except Exception:  # noqa: BLE001 (told with everything else that is seen)
            self.violations.append(traceback.format_exc())
            self._over.set()

    def _apply(self, number: int) -> None:
        chance, office = random.Random(f"{self._seed} {number}"), Office(self._site)  # noqa: S311 (no secret)
        self._offices.append(office)
        while not self._over.is_set():
            person = Person(self._stored)
            life = Life(self._site, office, person, chance)
            self._lives.append((person, life))
            while life.steps_left and not self._over.is_set():
                life.step()

    def _stored(self, request_id: str) -> bytes | None:
        found = self._site.query("SELECT answer FROM requests WHERE request_id = ?", request_id)
        return found[0][0] if found else None

    def _kill_until(self, deadline: float, deliveries: int) -> None:
        kinds: dict[str, tuple[int, Callable[[], None]]] = {
            "killed: a vault": (30, lambda: self._kill_vaults(1)),
            "killed: both vaults": (8, lambda: self._kill_vaults(2)),
            "killed: a vault at a PKCS#11 call": (20, self._kill_at_module_call),
            "killed: the front": (14, self._site.kill_front),
            "killed: the front at a disk call": (14, self._kill_at_disk_call),
            "killed: the supervisor": (5, self._site.kill_supervisor),
            "failed: the disk": (8, self._fail_disk),
            "locked: the ledger": (4, self._lock_ledger),
        }
        while not self._over.is_set() and (time.monotonic() < deadline or self._delivered() < deliveries):
            [kind] = self._random.choices(list(kinds), [weight for weight, _ in kinds.values()])
            kinds[kind][1]()
            self.counts[kind] += 1
            self._start_what_is_missing()
            if self._random.random() < 0.8:  # else the next one meets what is starting
                self._wait_for_a_vault()
            self._over.wait(self._random.uniform(0.0, 0.8))

    def _delivered(self) -> int:
        return sum(office.counts[DELIVERED] for office in self._offices)

    def _start_what_is_missing(self) -> None:
        site = self._site
        assert site.front and site.vaults
        if not site.front.running:
            self._disk.forget()
            site.start_front()
        if not site.vaults.running:
            until(lambda: not site.vaults or not site.vaults.orphans(), "the vaults have ended by themselves")
            site.start_vaults()
            self.counts["started: a supervisor"] += 1

    def _wait_for_a_vault(self) -> None:
        vaults = self._site.vaults
        assert vaults
        until(lambda: bool(vaults.ready()) or not vaults.running, "a vault serves")

    def _kill_vaults(self, count: int) -> None:
        vaults = self._site.vaults
        assert vaults
        pids = list(vaults.pids().values())
        vaults.kill_vault(*self._random.sample(pids, min(count, len(pids))))

    def _kill_at_module_call(self) -> None:
        """Wherever that call is: in a start-up, an issuance, a channel or a receipt."""
        number, when = self._random.randint(1, 120), self._random.choice(list(When))
        self._site.shim.clear_log()
        self._site.shim.disarm()
        self._site.shim.arm(Fault(End.KILL, when, Which(number)))

    def _kill_at_disk_call(self) -> None:
        action = self._random.choice((Action.KILL_BEFORE, Action.KILL_AFTER))
        number = self._random.randint(1, 80)
        self._disk.arm(DiskFault(action, number, number))
        front, deadline = self._site.front, time.monotonic() + 2
        while front and front.running and time.monotonic() < deadline:
            time.sleep(0.01)
        if front and front.running:
            self._disk.disarm()

    def _fail_disk(self) -> None:
        action, error = self._random.choice((Action.FAIL_BEFORE, Action.FAIL_AFTER)), self._random.choice(ERRORS)
        self._disk.arm(DiskFault(action, self._random.randint(1, 20), kinds="wsc", files=LOG, error=error))
        time.sleep(self._random.uniform(0.05, 0.5))
        self._disk.disarm()

    def _lock_ledger(self) -> None:
        with closing(sqlite3.connect(self._site.ledger, timeout=WAIT, isolation_level=None)) as ledger:
            ledger.execute("BEGIN EXCLUSIVE")
            time.sleep(self._random.uniform(0.05, 0.5))
            ledger.execute("ROLLBACK")


def main() -> int:
    """Runs, and prints counts and violations; 1 where there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="k") as place:
        directory = Path(place)
        set_up(directory / "demo")
        site = Site(directory / "demo", directory / "s", compile_module(directory), count=VAULTS)
        try:
            run = Run(site, site.on(compile_disk(directory)), arguments.seed)
            run.go(arguments.seconds)
        finally:
            site.end()
        counts = [f"{count:8} {what}" for what, count in sorted(run.counts.items())]
        found = [f"VIOLATION {violation}" for violation in run.violations]
        print("\n".join([f"seed {arguments.seed}, {arguments.seconds:g} s", *counts, *found]))
        if run.violations:
            kept = Path(tempfile.mkdtemp(prefix="violated-"))
            for path in (*site.directory.glob("*.log"), *site.directory.glob("ledger.db*")):
                path.rename(kept / path.name)
            print(f"logs and ledger: {kept}")
    print(f"{len(run.violations)} violations")
    return 1 if run.violations else 0


if __name__ == "__main__":
    sys.exit(main())
