"""Transparent elementary files: SELECT by file identifier and READ BINARY (ISO/IEC 7816-4)."""

from collections.abc import Callable, Mapping

from appliance.vsim.apdu import CardError, Command, Status

SHORT_IDENTIFIER = 0x80  # bit of P1: the lower five bits name the file, P2 is the offset


class Files:
    """The EFs of one application. None stands for a file that exists and cannot be read: a key or a PIN.

    A short EF identifier is the low five bits of the file identifier, as 0A for 000A and 02 for EF.ICCID.
    """

    def __init__(self, contents: Mapping[int, Callable[[], bytes] | None]) -> None:
        self._contents = contents
        self.current: int | None = None

    def select(self, command: Command) -> None:
        """Make a file current.

        Raises:
            CardError: 6A86 (only "no response data", P2 0C, is supported), 6700, 6A82.
        """
        if command.p2 != 0x0C:
            raise CardError(Status.PARAMETERS_WRONG)
        if len(command.data) != 2:
            raise CardError(Status.LENGTH_WRONG)
        if (identifier := int.from_bytes(command.data)) not in self._contents:
            raise CardError(Status.NOT_FOUND)
        self.current = identifier

    def read(self, command: Command) -> bytes:
        """READ BINARY: up to Le bytes from an offset of 15 bits, or by short EF identifier from one of 8.

        Raises:
            CardError: 6700, 6986, 6A82, 6981 (not readable), 6B00 (nothing there).
        """
        if command.data or command.le is None:
            raise CardError(Status.LENGTH_WRONG)
        offset = command.p1 << 8 | command.p2
        if command.p1 & SHORT_IDENTIFIER:
            short, offset = command.p1 & 0x1F, command.p2
            self.current = next((file for file in self._contents if file & 0x1F == short), None)
            if self.current is None or command.p1 & 0x60:
                raise CardError(Status.NOT_FOUND)
        if self.current is None:
            raise CardError(Status.NO_CURRENT_EF)
        content = self._contents[self.current]
        if content is None:
            raise CardError(Status.FILE_INCOMPATIBLE)
        data = content()
        if offset >= len(data):
            raise CardError(Status.OFFSET_WRONG)
        return data[offset : offset + command.le]
