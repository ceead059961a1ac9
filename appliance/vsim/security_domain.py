"""The supplementary security domain: it opens the secure channel and personalises the applet with a SIM package."""

from dataclasses import replace

from appliance.vsim.apdu import CardError, Command, Status
from appliance.vsim.memory import CODE_TRIES, PIN_TRIES, Memory
from appliance.vsim.package import LONGEST_PACKAGE, PackageError, open_package
from appliance.vsim.scp03 import Session

PLAIN, PROTECTED = 0x80, 0x84  # CLA
INITIALIZE_UPDATE, EXTERNAL_AUTHENTICATE, INSTALL, STORE_DATA = 0x50, 0x82, 0xE6, 0xE2
LAST_COUNTER = 0xFFFFFF  # three bytes; then the key set must be replaced
# STORE DATA P1 (GPC 2.3.1, 11.11.2.1): application-dependent encryption, BER-TLV; b8 last block, b1 response expected.
LAST_BLOCK, FREE_BITS, BER_TLV_BLOCK = 0x80, 0x81, 0x30


class SecurityDomain:
    """One SSD. What it assembles lives no longer than the session; a session ends with any failed check."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.refusal: PackageError | None = None
        self.deselect()

    def deselect(self) -> None:
        """SELECT of anything, or a reset: the session ends."""
        self._session: Session | None = None
        self._blocks: list[bytes] | None = None  # None unless INSTALL [for personalization] came

    def process(self, command: Command) -> bytes:
        """Answer one command with its response data, protected as the session's level says.

        Raises:
            CardError: any other status than 9000.
        """
        session = self._session
        if command.cla != PROTECTED:
            # In clear there is nothing but the start of a new session; anything else ends the one that is open.
            self.deselect()
            return self._initialize_update(command)
        if session is None:
            raise CardError(Status.SECURITY_NOT_SATISFIED)
        try:
            if command.ins == EXTERNAL_AUTHENTICATE:
                session.authenticate(command)
                return b""
            plain = session.unwrap(command)
        except CardError:
            self.deselect()
            raise
        return session.protect(self._personalise(plain))

    def install(self, package: bytes) -> None:
        """Open a package as the last STORE DATA does.

        Raises:
            PackageError: nothing was changed.
        """
        state = self._memory.state
        installed = open_package(package, state.sim, state.package_counter, state.installed)
        if installed is not state.installed:
            self._memory.store(
                replace(
                    state,
                    installed=installed,
                    package_counter=installed.counter,
                    pin_check=None,
                    pin_tries=PIN_TRIES,
                    code_tries=CODE_TRIES,
                )
            )

    def _initialize_update(self, command: Command) -> bytes:
        if command.cla != PLAIN:
            raise CardError(Status.CLASS_UNKNOWN)
        if command.ins != INITIALIZE_UPDATE:
            raise CardError(
                Status.SECURITY_NOT_SATISFIED if command.ins in (INSTALL, STORE_DATA) else Status.INSTRUCTION_UNKNOWN
            )
        state = self._memory.state
        if command.p2:
            raise CardError(Status.PARAMETERS_WRONG)
        if command.p1 not in (0x00, state.sim.channel.kvn):
            raise CardError(Status.REFERENCE_NOT_FOUND)
        if state.sequence_counter == LAST_COUNTER:
            raise CardError(Status.CONDITIONS_NOT_SATISFIED)
        counter = state.sequence_counter + 1
        session = Session(state.sim.channel, state.sim.ssd_aid, counter, command.data)
        self._memory.store(replace(state, sequence_counter=counter))
        self._session = session
        return session.initialize_update_response

    def _personalise(self, command: Command) -> bytes:
        if command.ins == INSTALL:
            return self._install_for_personalization(command)
        if command.ins == STORE_DATA:
            return self._store_data(command)
        raise CardError(Status.INSTRUCTION_UNKNOWN)

    def _install_for_personalization(self, command: Command) -> bytes:
        """GPC 2.3.1, 11.5.2.3: the data names the application; the answer is one byte 00 where Le asks for it."""
        self._blocks = None
        if (command.p1, command.p2) != (0x20, 0x00):
            raise CardError(Status.PARAMETERS_WRONG)
        aid = command.data[3:-3]
        if command.data != bytes([0, 0, len(aid)]) + aid + bytes(3):
            raise CardError(Status.DATA_WRONG)
        if aid != self._memory.state.sim.applet_aid:
            raise CardError(Status.REFERENCE_NOT_FOUND)
        self._blocks = []
        return b"" if command.le is None else b"\x00"

    def _store_data(self, command: Command) -> bytes:
        if self._blocks is None:
            raise CardError(Status.CONDITIONS_NOT_SATISFIED)
        blocks, self._blocks = self._blocks, None  # any failure drops what was assembled
        if command.p1 & ~FREE_BITS != BER_TLV_BLOCK or command.p2 != len(blocks):
            raise CardError(Status.PARAMETERS_WRONG)
        blocks.append(command.data)
        if sum(map(len, blocks)) > LONGEST_PACKAGE:
            raise CardError(Status.NO_SPACE)
        if not command.p1 & LAST_BLOCK:
            self._blocks = blocks
            return b""
        self.refusal = None
        try:
            self.install(b"".join(blocks))
        except PackageError as refusal:
            self.refusal = refusal
            raise CardError(refusal.status) from None
        return b""
