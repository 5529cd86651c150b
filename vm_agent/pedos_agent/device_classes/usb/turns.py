"""Whose turn it is with each USB port of this VM: one thread at a time takes the device there from
its driver, or gives it back. What could not be given back is tried again in the background.

Those who take turns are threads, and some of them are late (`pedos_host.in_time`). The kernel knows
a device by its port alone, so nothing but the turns keeps one that gives a device back late from
taking it away from the VM that has it by then (docs/decisions/0038-each-usb-port-has-turns.md).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Final

import attrs
from pedos_host.backoff import Backoff
from pedos_protocol.errors import CallError

from pedos_agent.system.reading import words

log = logging.getLogger(__name__)

# Well below the time of a step (kernel.STEP_SECONDS): a turn that came after that would be a
# caller's who has given up. A device that is not free by then hangs, or is about to come back.
TURN_SECONDS: Final = 3.0
# Twelve minutes, with `Backoff`. A kernel that has refused for so long does so until the device is
# unplugged. Then the next who takes it, or the next agent, gives it back.
TRIES_MAX: Final = 30
#: Of the threads that repeat.
THREAD_NAME: Final = "giving back"


@attrs.define(eq=False)
class _Port:
    turn: threading.Lock = attrs.field(factory=threading.Lock)
    loan: int = 0  # goes up with each device that is taken there
    over: threading.Event | None = None  # set when what is repeated is not to be any more


class Turns:
    """By the names of devices, which are those of ports: there are as many as the machine has."""

    def __init__(self) -> None:
        """Nobody has a turn, and nothing was lent."""
        self._ports: dict[str, _Port] = {}
        # Held for steps that wait for nothing.
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def at(self, name: str) -> Iterator[None]:
        """Within, it is the caller's turn. CallError(busy) if it is not in time."""
        turn = self._port(name).turn
        if not turn.acquire(timeout=TURN_SECONDS):
            why = f"{name} is still being lent or given back: the kernel does not answer"
            raise CallError("busy", why)
        try:
            yield
        finally:
            turn.release()

    def begin(self, name: str) -> int:
        """In one's turn: begin a loan, which is given a number. Nothing is given back any more for
        an earlier one."""
        port = self._port(name)
        with self._lock:
            port.loan += 1
            if port.over is not None:
                port.over.set()
                port.over = None
            return port.loan

    def last(self, name: str) -> int:
        """The number of the last loan there, that is over or not; 0: there was none."""
        return self._port(name).loan

    def is_owed(self, name: str) -> bool:
        """Whether something is being repeated there."""
        return self._port(name).over is not None

    def repeat(self, name: str, loan: int, work: Callable[[], None]) -> None:
        """Do it in turns of its own until it raises neither OSError nor CallError, or until another
        loan begins; a turn that does not come is a failure, too, and too many of those are logged.
        Nothing if another loan has begun, or it is repeated already."""
        port = self._port(name)
        with self._lock:
            if port.loan != loan or port.over is not None:
                return
            port.over = over = threading.Event()
        # It ends with the program: the next agent looks for what was left.
        arguments = (name, port, over, work)
        thread = threading.Thread(
            target=self._repeat, args=arguments, name=THREAD_NAME, daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            self._end(port, over)
            log.error("%s is not given back: no thread can be started", name)

    def _repeat(
        self, name: str, port: _Port, over: threading.Event, work: Callable[[], None]
    ) -> None:
        backoff, why = Backoff(), ""
        try:
            for _ in range(TRIES_MAX):
                if over.wait(backoff.after_failure()):
                    return
                try:
                    with self.at(name):
                        if not over.is_set():
                            work()
                            log.info("%s is released, or gone", name)
                        return
                except CallError as error:
                    why = error.message
                except OSError as error:
                    why = words(error)
            log.error("%s does not come back, which is not tried any more: %s", name, why)
        finally:
            self._end(port, over)

    def _end(self, port: _Port, over: threading.Event) -> None:
        with self._lock:
            if port.over is over:
                port.over = None

    def _port(self, name: str) -> _Port:
        with self._lock:
            return self._ports.setdefault(name, _Port())
