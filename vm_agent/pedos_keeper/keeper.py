"""The keeper's threads: some take and serve calls, the main one ends it when there are none."""

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

from pedos_host import _link
from pedos_host.system_errors import what_is_wrong
from pedos_protocol import keeper_link
from pedos_protocol.keeper_link import Problem, said

from pedos_keeper.call import Call, Place

log = logging.getLogger(__name__)

# dom0 lets a VM run 128 calls at once; some more of them wait for a session, or for their agent to
# hang up. Each has a thread and two descriptors of the usual 1024.
CALLS_MAX: Final = 256
# Threads that wait for a call while others serve: to start one takes a good part of what a call may
# cost. Beyond SPARE_MAX, one that has served ends.
SPARE: Final = 1
SPARE_MAX: Final = 8
# Bytes of a thread's stack. The usual 8 MiB are only reserved, but count against limits.
STACK: Final = 512 * 1024
# Seconds without a call and without a process. A program that calls once a minute finds a keeper;
# systemd starts one again with the next call.
IDLE_SECONDS: Final = 300.0
# Seconds between two looks at orphans. Each call takes in those that have ended as well, and a
# signal for each would wake the main thread in the middle of every call.
REAP_SECONDS: Final = 2.0
# Seconds until the next attempt when no connection could be taken: no descriptor was left.
RETRY_SECONDS: Final = 0.1
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
        self._running = 0  # calls
        self._waiting = 0  # threads, for a call
        self._busy = time.monotonic()  # when a call last ran, or a process
        self._is_over = False
        self._users = (0, os.geteuid())  # who may ask it
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> None:
        """Serve until SIGTERM, or until it has been idle; in the main thread. OSError."""
        self._listener.setblocking(True)
        threading.stack_size(STACK)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)  # it only wakes up
        # Ignored, as who starts this may have it, it would have the kernel reap instead of us.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        for _ in range(1 + SPARE):
            self._start_thread()
        while not poll.poll(min(REAP_SECONDS, self._idle_seconds) * 1000):
            has_children = self._place.children.reap()
            with self._lock:
                if self._running or has_children:
                    self._busy = time.monotonic()
                # A call that comes from now on is given back: the agent tries once more.
                self._is_over = time.monotonic() - self._busy >= self._idle_seconds
            if self._is_over:
                log.info("there were no calls for %.0f s", self._idle_seconds)
                return
        self._end_services()

    def _start_thread(self) -> None:
        with self._lock:
            self._waiting += 1
        try:
            threading.Thread(target=self._take_calls, name="calls", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._waiting -= 1  # or no later call would have another one started
            raise

    def _take_calls(self) -> None:
        """One thread: serve a call after the other, while this is one of few that wait."""
        is_wanted = True
        while is_wanted:
            try:
                connection, user = _link.accept(self._listener.fileno())
            except OSError as error:
                log.warning("no call can be taken: %s", what_is_wrong(error))
                time.sleep(RETRY_SECONDS)
                continue
            with self._lock:
                self._waiting -= 1
                self._running += 1
                is_full = self._running > CALLS_MAX
                is_last = self._waiting < SPARE
                is_over = self._is_over
            try:
                if is_last:
                    self._start_thread()
                if not is_over:
                    self._serve(connection, user, is_full=is_full)
            except RuntimeError:
                # No thread is left to wait for calls: this one does, and serves none.
                self._refuse(connection, "its keeper can start no thread for it")
            finally:
                os.close(connection)
                with self._lock:
                    self._busy = time.monotonic()
                    self._running -= 1
                    is_wanted = self._waiting < SPARE_MAX
                    self._waiting += is_wanted

    def _serve(self, connection: int, user: int, *, is_full: bool) -> None:
        if user not in self._users:
            log.warning("refused a client: its user id is %d", user)
        elif is_full:
            self._refuse(connection, f"its keeper has {CALLS_MAX} calls, the most that it takes")
        else:
            Call(connection, self._place).run()

    def _refuse(self, connection: int, text: str) -> None:
        log.warning("refused a call: %s", text)
        with contextlib.suppress(OSError):
            with contextlib.suppress(BlockingIOError):
                # Left unread, it would have the kernel throw the answer away.
                _, passed = _link.first(connection, keeper_link.PACKET_MAX, 0)
                _link.close_all(passed)
            _link.send(connection, keeper_link.build(Problem(said(text))))

    def _end_services(self) -> None:
        """Ask what runs to end, and then leave no choice."""
        children = self._place.children
        asked: set[int] = set()
        until = time.monotonic() + STOP_SECONDS
        while children.reap() and time.monotonic() < until:
            children.ask_to_end(asked)
            time.sleep(_STOP_LOOK)
        children.kill_all()
