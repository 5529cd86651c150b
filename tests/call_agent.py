"""An agent as far as programs that call services can tell: the test says what it answers."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pedos_protocol.call_link import (
    DATAGRAM_MAX,
    DESCRIPTORS,
    PROGRAM,
    Call,
    Ended,
    Message,
    Started,
    build,
    exit_status,
    parse,
)

from tests.patience import PATIENCE

CALL_ID = "00112233445566778899aabbccddeeff"


class Asked:
    """One call that a program has asked for, with its three descriptors."""

    def __init__(self, connection: socket.socket, message: Call, descriptors: list[int]) -> None:
        self.connection = connection
        self.message = message
        self.stdin, self.stdout, self.stderr = descriptors

    def started(self) -> None:
        """Says so."""
        self.connection.send(build(Started(CALL_ID, "17")))

    def close(self, *names: str) -> None:
        """Closes these of the three; all if none is named."""
        for name in names or ("stdin", "stdout", "stderr"):
            if (descriptor := getattr(self, name)) >= 0:
                os.close(descriptor)
                setattr(self, name, -1)

    def ended(
        self, kind: str = "exited", status: int = 0, text: str = "", rule: str = "", hint: str = ""
    ) -> None:
        """Says so; the three are closed before, as they always are."""
        self.close()
        end = Ended(kind, status, exit_status(kind, status), text, rule, hint, "17")
        self.connection.send(build(end))

    def hear(self) -> Message | None:
        """What the program says next; None when it hangs up."""
        raw = self.connection.recv(DATAGRAM_MAX)
        return parse(raw, PROGRAM) if raw else None

    def read_input(self) -> bytes:
        """All of it."""
        found = b""
        while more := os.read(self.stdin, 1 << 16):
            found += more
        return found


class FakeAgent:
    """Listens at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.settimeout(PATIENCE)
        self._listener.bind(str(path))
        self._listener.listen()
        self._open: list[socket.socket] = [self._listener]
        self._asked: list[Asked] = []

    def accept(self) -> socket.socket:
        """The next program."""
        connection, _ = self._listener.accept()
        connection.settimeout(PATIENCE)
        self._open.append(connection)
        return connection

    def asked(self, connection: socket.socket | None = None) -> Asked:
        """The next call, of the next program if none is named."""
        connection = connection or self.accept()
        raw, descriptors, _, _ = socket.recv_fds(connection, DATAGRAM_MAX, DESCRIPTORS)
        message = parse(raw, PROGRAM)
        assert isinstance(message, Call)
        self._asked.append(Asked(connection, message, descriptors))
        return self._asked[-1]

    def close(self) -> None:
        """Goes away."""
        for asked in self._asked:
            asked.close()
        for each in self._open:
            each.close()
        self._open.clear()
        self.path.unlink(missing_ok=True)


__all__ = ["CALL_ID", "Asked", "FakeAgent"]
