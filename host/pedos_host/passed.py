"""Closes descriptors that others have passed, or may have passed: that may wait, even for ever.

Whoever passes a descriptor chooses what it is: a TCP socket whose data lingers, a file of a file
system that does not answer, a pipe whose lock is held. close(2) waits for these, and so does
whatever drops the last reference: recv(2) without room for a descriptor that comes along, and the
end of a connection in which one is still under way. So a thread does it, one for each owner, who
keeps nobody else waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from typing import Final

from ._closing import Line, open_in_all
from ._packets import hang_up

# Descriptors of one owner that are being closed, beyond which nothing more is taken of it. It is
# more than a user's programs can pass for calls at once, as the thread may be late.
OF_ONE_MAX: Final = 512
#: Those of all, beyond which nobody is let in: they take up this process's table of descriptors.
OF_ALL_MAX: Final = 1024
# Owners with a thread of their own. The others, who take part in an attack by many, share one.
THREADS_MAX: Final = 32
# Milliseconds for which a thread stays without work: to start one costs more than to wake it.
IDLE_MS: Final = 5000
# Owners that are remembered although all of theirs is closed.
LINES_KEPT: Final = 2 * THREADS_MAX


class Closer:
    """The threads, in C: no interpreter runs in them. To ask it takes no time, in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[Hashable, Line] = {}  # by owner

    def close(self, owner: Hashable, descriptors: Sequence[int]) -> None:
        """Close what this owner, a user's id mostly, has passed; -1 is none."""
        with self._lock:
            line = self._lines.get(owner)
            if line is None:
                line = self._new(owner)
            line.close(descriptors, THREADS_MAX, IDLE_MS)

    def has_room(self, owner: Hashable) -> bool:
        """Whether something that this owner passes may be taken."""
        line = self._lines.get(owner)
        return line is None or line.open < OF_ONE_MAX

    def is_full(self) -> bool:
        """Whether nobody may be let in."""
        return open_in_all() >= OF_ALL_MAX

    def hang_up(self, owner: Hashable, connection: int, last: bytes = b"") -> None:
        """End a connection of Unix sockets, after this message if there is one, and close it."""
        if not hang_up(connection, last):
            self.close(owner, (connection,))

    def _new(self, owner: Hashable) -> Line:
        if len(self._lines) >= LINES_KEPT:
            self._lines = {each: line for each, line in self._lines.items() if line.open}
        line = self._lines[owner] = Line()
        return line


#: The one of this process.
closer: Final = Closer()
