"""Closes descriptors that others have passed, or may have passed: that may wait, even for ever.

Whoever passes a descriptor chooses what it is: a TCP socket whose data lingers, a file of a file
system that does not answer, a pipe whose lock is held. close(2) waits for these, and so does
whatever drops the last reference: recv(2) without room for a descriptor that comes along, and the
end of a connection in which one is still under way. So a thread does it, one for each owner, who
keeps nobody else waiting.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import Counter, deque
from collections.abc import Hashable, Iterable
from typing import Final

# Descriptors of one owner that are being closed, beyond which nothing more is taken of it. It is
# more than a user's programs can pass for calls at once, as the thread may be late.
OF_ONE_MAX: Final = 512
#: Those of all, beyond which nobody is let in: they take up this process's table of descriptors.
OF_ALL_MAX: Final = 1024
# Owners with a thread of their own. The others, who take part in an attack by many, share one.
THREADS_MAX: Final = 32
# Seconds for which a thread stays without work: to start one costs more than to wake it.
IDLE_SECONDS: Final = 5.0


class Closer:
    """The threads. To ask it takes no time, in any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, deque[tuple[Hashable, int]]] = {}  # by owner; None: shared
        self._threads: set[Hashable] = set()
        self._open: Counter[Hashable] = Counter()

    def close(self, owner: Hashable, descriptors: Iterable[int]) -> None:
        """Close what this owner, a user's id mostly, has passed."""
        given = [each for each in descriptors if each >= 0]
        if not given:
            return
        with self._changed:
            self._open[owner] += len(given)
            whose = owner
            if owner not in self._waiting and len(self._waiting) >= THREADS_MAX:
                whose = None
            queue = self._waiting.setdefault(whose, deque())
            queue.extend((owner, each) for each in given)
            if whose in self._threads:
                self._changed.notify_all()
                return
            # Without a thread, the next one that is asked for may start.
            with contextlib.suppress(RuntimeError):
                threading.Thread(
                    target=self._work, args=(whose, queue), name="closing", daemon=True
                ).start()
                self._threads.add(whose)

    def has_room(self, owner: Hashable) -> bool:
        """Whether something that this owner passes may be taken."""
        return self._open[owner] < OF_ONE_MAX

    def is_full(self) -> bool:
        """Whether nobody may be let in."""
        return sum(self._open.values()) >= OF_ALL_MAX

    def hang_up(self, owner: Hashable, connection: socket.socket) -> None:
        """End a connection of Unix sockets, and close it."""
        with contextlib.suppress(OSError):  # it has none any more
            connection.shutdown(socket.SHUT_RDWR)  # nothing can be passed from now on
        try:
            is_empty = _is_empty(connection)
        except OSError:
            is_empty = False
        if is_empty:
            connection.close()
        else:
            self.close(owner, (connection.detach(),))

    def _work(self, whose: Hashable, queue: deque[tuple[Hashable, int]]) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: queue, IDLE_SECONDS):
                    self._threads.discard(whose)
                    del self._waiting[whose]
                    return
                owner, descriptor = queue.popleft()
            with contextlib.suppress(OSError):  # it is closed all the same (close(2))
                os.close(descriptor)
            with self._changed:
                self._open[owner] -= 1
                if not self._open[owner]:
                    del self._open[owner]


def _is_empty(connection: socket.socket) -> bool:
    """Whether there is no message any more in what was shut down. OSError."""
    if connection.type == socket.SOCK_SEQPACKET:
        # With this, the flags tell an empty message from the end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    data, _, flags, _ = connection.recvmsg(1, 0, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return not data and not flags & socket.MSG_CTRUNC


#: The one of this process.
closer: Final = Closer()
