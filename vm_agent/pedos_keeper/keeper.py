"""The keeper's main thread: takes calls, reaps processes, and ends when there is nothing to do."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
from typing import Final

from pedos_host.plain_unix import uid_at
from pedos_protocol import keeper_link
from pedos_protocol.keeper_link import Problem, said

from pedos_keeper.call import Call, Place

log = logging.getLogger(__name__)

# dom0 lets a VM run 128 calls at once; some more of them wait for a session, or for their agent to
# hang up. Each has a thread and two descriptors of the usual 1024.
CALLS_MAX: Final = 256
# Bytes of a thread's stack. The usual 8 MiB are only reserved, but count against limits.
STACK: Final = 512 * 1024
# Seconds without a call and without a process. A program that calls once a minute finds a keeper;
# systemd starts one again with the next call.
IDLE_SECONDS: Final = 300.0
# Seconds for services to end after SIGTERM; the unit's time-out is longer.
STOP_SECONDS: Final = 3.0
_STOP_LOOK: Final = 0.02  # seconds between two looks whether they have


class Keeper:
    """Serves calls that come to a listening socket."""

    def __init__(
        self, listener: socket.socket, place: Place, *, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        """Nothing is accepted before `run`."""
        self._listener = listener
        self._place = place
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._running = 0
        self._stopping = False
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> None:
        """Serve until SIGTERM, or until it has been idle; in the main thread. OSError."""
        self._listener.setblocking(False)
        threading.stack_size(STACK)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # it only wakes up
        signal.signal(signal.SIGTERM, self._stop)
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        idle_since = time.monotonic()
        while not self._stopping:
            is_ready = poll.poll(self._idle_seconds * 1000)
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 4096)
            has_children = self._place.children.reap()
            if any(file == self._listener.fileno() for file, _ in is_ready):
                self._accept()
            with self._lock:
                is_busy = self._running > 0 or has_children
            if is_ready or is_busy:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= self._idle_seconds:
                log.info("there were no calls for %.0f s", self._idle_seconds)
                return
        self._end_services()

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:  # it has hung up
            return
        connection.setblocking(True)
        uid = uid_at(connection)
        if uid not in (0, os.geteuid()):
            log.warning("refused a client: its user id is %d", uid)
            connection.close()
            return
        with self._lock:
            is_full = self._running >= CALLS_MAX
            self._running += not is_full
        if is_full:
            self._refuse(connection, f"its keeper has {CALLS_MAX} calls, the most that it takes")
            return
        call = threading.Thread(target=self._serve, args=(connection,), name="call", daemon=True)
        try:
            call.start()
        except RuntimeError:
            with self._lock:
                self._running -= 1
            self._refuse(connection, "its keeper can start no thread for it")

    def _serve(self, connection: socket.socket) -> None:
        try:
            Call(connection, self._place).run()
        finally:
            with self._lock:
                self._running -= 1
            with contextlib.suppress(BlockingIOError):  # it is woken already
                os.write(self._waker, b"\0")  # idle time counts from now on

    def _refuse(self, connection: socket.socket, text: str) -> None:
        log.warning("refused a call: %s", text)
        with connection, contextlib.suppress(OSError):
            with contextlib.suppress(BlockingIOError):
                # Left unread, it would have the kernel throw the answer away.
                connection.recv(keeper_link.PACKET_MAX, socket.MSG_DONTWAIT)
            connection.send(keeper_link.build(Problem(said(text))), socket.MSG_DONTWAIT)

    def _end_services(self) -> None:
        """Ask what runs to end, and then leave no choice."""
        children = self._place.children
        asked: set[int] = set()
        until = time.monotonic() + STOP_SECONDS
        while children.reap() and time.monotonic() < until:
            children.ask_to_end(asked)
            time.sleep(_STOP_LOOK)
        children.kill_all()
