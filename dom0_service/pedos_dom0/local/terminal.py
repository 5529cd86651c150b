"""The terminal of `pedos-local`: stderr, where a person reads messages."""

from __future__ import annotations

from pedos_host.line_writer import LineWriter, stderr
from pedos_protocol.names import escaped_text

PROGRAM = "pedos-local"


class Terminal(LineWriter):
    """No call waits for it or fails, also if it is stopped or gone. `close` it last."""

    def __init__(self, fd: int | None = None) -> None:
        """`fd` is borrowed; None is stderr."""
        super().__init__(stderr() if fd is None else fd, _missed)

    def say(self, message: str) -> None:
        """Writes a message of pedos-local. stdout belongs to COMMAND."""
        lines = (escaped_text(line) for line in message.split("\n"))
        self.write(f"{PROGRAM}: " + "\n".join(lines) + "\n")


def _missed(count: int) -> str:
    return f"{PROGRAM}: {count} lines are not shown; DIR/log has them"
