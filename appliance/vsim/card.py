"""`VirtualSim`: APDUs in, responses out. It selects the master file, the security domain or the JPKI applet."""

from pathlib import Path
from typing import Protocol

from appliance.vsim.apdu import CardError, Command, Status
from appliance.vsim.applet import JpkiApplet
from appliance.vsim.files import Files
from appliance.vsim.memory import FileMemory, Memory, State
from appliance.vsim.package import PackageError
from appliance.vsim.security_domain import SecurityDomain

SELECT = 0xA4
BY_FILE, BY_NAME = 0x00, 0x04
MASTER_FILE, EF_ICCID = b"\x3f\x00", 0x2FE2
CHANNEL_BITS = 0x03


class _Application(Protocol):
    def process(self, command: Command) -> bytes: ...


class _MasterFile:
    """What TS 102 221 selects after a reset; of its files only EF.ICCID is here."""

    def __init__(self, memory: Memory) -> None:
        self._files = Files({EF_ICCID: lambda: memory.state.sim.iccid})

    def process(self, command: Command) -> bytes:
        if command.cla != 0x00:
            raise CardError(Status.CLASS_UNKNOWN)
        if command.ins == 0xB0:
            return self._files.read(command)
        if command.ins != SELECT:
            raise CardError(Status.INSTRUCTION_UNKNOWN)
        if command.p1 != BY_FILE:
            raise CardError(Status.PARAMETERS_WRONG)
        self._files.select(command)
        return b""


class VirtualSim:
    """A SIM with one security domain and the JPKI applet.

    >>> sim = VirtualSim(Memory(State(masters.personalise(iccid.encode("8981309114170753644")))))
    >>> sim.transmit(bytes.fromhex("00A4040C0AD392F000260100000001")).hex()
    '9000'
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._security_domain = SecurityDomain(memory)
        self._applet = JpkiApplet(memory)
        self.reset()

    @classmethod
    def load(cls, path: Path) -> "VirtualSim":
        """The SIM of a state file."""
        return cls(FileMemory(path))

    @property
    def state(self) -> State:
        """What the SIM remembers, keys included."""
        return self._memory.state

    @property
    def refusal(self) -> PackageError | None:
        """Why the last package that STORE DATA brought was refused; a real SIM would not say."""
        return self._security_domain.refusal

    def reset(self) -> None:
        """Power off and on: the master file is selected, the session and the PIN state are gone."""
        self._select(_MasterFile(self._memory))

    def install(self, package: bytes) -> None:
        """Open a package without a secure channel around it, and reset.

        Raises:
            PackageError: nothing was changed.
        """
        self._security_domain.install(package)
        self.reset()

    def transmit(self, apdu: bytes) -> bytes:
        """Answer one command APDU with response data and status word. Changes are stored before this returns."""
        try:
            return self._route(Command.parse(apdu)) + Status.OK.to_bytes(2)
        except CardError as error:
            return error.status.to_bytes(2)
        except OSError:
            return Status.MEMORY_FAILURE.to_bytes(2)

    def _route(self, command: Command) -> bytes:
        if command.cla & CHANNEL_BITS:
            raise CardError(Status.CHANNEL_UNSUPPORTED)
        if (command.cla, command.ins, command.p1) == (0x00, SELECT, BY_NAME):
            return self._select_by_name(command)
        if (command.cla, command.ins, command.p1, command.data) == (0x00, SELECT, BY_FILE, MASTER_FILE):
            if command.p2 != 0x0C:
                raise CardError(Status.PARAMETERS_WRONG)
            self._select(_MasterFile(self._memory))
            return b""
        return self._current.process(command)

    def _select_by_name(self, command: Command) -> bytes:
        """GPC 2.3.1, 11.9: P2 00 asks for the FCI, 0C for nothing. A failed SELECT leaves everything as it was."""
        sim = self._memory.state.sim
        applications: dict[bytes, _Application] = {sim.ssd_aid: self._security_domain, sim.applet_aid: self._applet}
        if command.data not in applications:
            raise CardError(Status.NOT_FOUND)
        if command.p2 not in (0x00, 0x0C):
            raise CardError(Status.PARAMETERS_WRONG)
        self._select(applications[command.data])
        if command.p2 == 0x0C or command.le is None:
            return b""
        name = bytes([0x84, len(command.data)]) + command.data
        return bytes([0x6F, len(name) + 2]) + name + b"\xa5\x00"

    def _select(self, application: _Application) -> None:
        self._security_domain.deselect()
        self._applet.select()
        self._current = application
