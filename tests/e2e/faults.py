"""Stops processes at their fault points, so that a test decides which process dies at which
step."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from pedos_host.plain_unix import short_path

Action = Callable[[], None]


class FaultController:
    """The far end of PEDOS_FAULTPOINTS: lets every process continue at once, except at the armed
    step.

    A process that reaches a step sends "WHO STEP" and waits until its connection is closed.  One
    step at a time can be armed; its action runs once, before the process continues.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[str] = []
        self._armed: tuple[str, Action] | None = None
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with short_path(path) as short:
            self._listener.bind(short)
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def arm(self, step: str, action: Action) -> None:
        with self._lock:
            self.seen.clear()
            self._armed = (step, action)

    def disarm(self) -> None:
        with self._lock:
            self._armed = None

    def forget(self) -> None:
        with self._lock:
            self.seen.clear()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            # A process that dies here closes its end; one that is alive always sends its line.
            connection.settimeout(10)
            with connection, contextlib.suppress(OSError):
                self._reached(connection.makefile().readline().strip())

    def _reached(self, line: str) -> None:
        action: Action | None = None
        with self._lock:
            self.seen.append(line)
            if self._armed is not None and line.endswith(f" {self._armed[0]}"):
                action = self._armed[1]
                self._armed = None
        if action is not None:
            action()
