"""The lock by which a test has the machine for itself, among the workers of pytest-xdist."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


class Turns:
    """One worker's side of it. The folder is the run's, and of all its workers.

    Who wants to be alone would wait for ever for a moment in which no other worker runs a test: so
    it closes a gate first, through which each goes before a test. None keeps the lock while it
    waits for the gate.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = (folder / "alone.lock").open("w")
        self._gate = (folder / "alone.gate").open("w")
        self.is_alone = False

    def close(self) -> None:
        self._lock.close()
        self._gate.close()

    def share(self) -> None:
        """Returns when no other is alone."""
        with self._through_the_gate():
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    def have_it_alone(self) -> None:
        """Returns when all others stand between two tests, where they stay until `leave`."""
        self.leave()
        with self._through_the_gate():
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.is_alone = True

    def leave(self) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        self.is_alone = False

    @contextlib.contextmanager
    def _through_the_gate(self) -> Iterator[None]:
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)
