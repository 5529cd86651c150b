"""Keeps one program running: starts it, waits for READY=1, restarts it when it dies, stops it.

A program that dies unexpectedly starts again at once, as systemd would do with `Restart=always`.
The supervisor gives up a program that keeps dying, and one that ends with an error before it was
ever ready. Each program has a session of its own, so that Ctrl-C in the terminal reaches only the
foreground command, and gets SIGKILL when the machine process dies.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio
from pedos_host.children import Child, describe_exit, start_child
from pedos_host.system_errors import what_is_wrong
from pedos_host.waiting import first_of

from pedos_dom0.local.words import hint_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

# A program that dies more often than this within the window (seconds) is given up: systemd's
# default is 5 starts in 10 s. pedos.toml sets another number where programs are killed on purpose.
RESTARTS = 5
RESTARTS_WINDOW = 10.0
# Part of the message about a program that was given up, for programs that watch the machine's log.
GIVEN_UP = "it is not started again"
# Seconds for a program to clean up after SIGTERM, then SIGKILL.
STOP_GRACE = 5.0
# A readiness datagram is "READY=1"; anything longer is cut, which sd_notify(3) allows.
NOTIFY_MAX = 4096


@dataclass(frozen=True, slots=True)
class Program:
    """The program to run. Its output goes to `log` without passing through this process: even if
    the machine's own terminal hangs, no program can ever block in a write to its log."""

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)  # added to the machine's own environment


class Supervisor:
    """Keeps one program running from `run` until `stop`, or until it was given up."""

    def __init__(
        self,
        program: Program,
        *,
        restarts: int = RESTARTS,
        after_death: Callable[[], object] | None = None,
        stop_grace: float = STOP_GRACE,
    ) -> None:
        """After more than `restarts` within RESTARTS_WINDOW the program is given up.

        `after_death` cleans up after each end of the program, before it starts again.
        """
        self.program = program
        self.ready = trio.Event()  # it said READY=1 at least once
        self.ended = trio.Event()  # it will not run again
        self.gave_up: str | None = None  # why, if it kept dying
        self.hint: str | None = None  # what to try then
        self.starts = 0
        self.log_start: int | None = None  # where its output of this run begins, once it runs
        self._restarts = restarts
        self._after_death = after_death
        self._stop_grace = stop_grace
        self._stopping = False
        self._child: Child | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Returns when the program has ended for good. Reports started after its first start.

        When cancelled, it kills the program and waits for its end.
        """
        deaths: deque[float] = deque()
        name = self.program.name
        try:
            while not self._stopping:
                try:
                    with contextlib.ExitStack() as stack:
                        child, notify = self._start(stack)
                        task_status.started()
                        task_status = trio.TASK_STATUS_IGNORED
                        code = await self._watch(child, notify)
                except OSError as error:
                    self.gave_up = f"{name} cannot be started: {what_is_wrong(error)}"
                    self.hint = hint_for(error)
                    tried = f"; try: {self.hint}" if self.hint else ""
                    logger.error("%s%s", self.gave_up, tried)
                    return
                if self._stopping:
                    logger.debug("%s (pid %d) %s", name, child.pid, describe_exit(code))
                    return
                if code > 0 and not self.ready.is_set() and self.starts == 1:
                    # It refuses to start (a broken database, for example), and would refuse again.
                    self.gave_up = f"{name} does not start: it {describe_exit(code)}"
                    logger.info("%s", self.gave_up)
                    return
                now = trio.current_time()
                deaths.append(now)
                while deaths[0] < now - RESTARTS_WINDOW:
                    deaths.popleft()
                if len(deaths) > self._restarts:
                    self.gave_up = (
                        f"{name} ended {len(deaths)} times within {RESTARTS_WINDOW:.0f} s "
                        f"(at last it {describe_exit(code)}), so {GIVEN_UP}; "
                        f"its own words are in {self.program.log}"
                    )
                    logger.error("%s", self.gave_up)
                    return
                logger.warning(
                    "%s (pid %d) %s; starting it again", name, child.pid, describe_exit(code)
                )
        finally:
            self.ended.set()
            task_status.started()

    def _start(self, stack: contextlib.ExitStack) -> tuple[Child, trio.socket.SocketType]:
        """Starts the program once: the child and its readiness socket."""
        program = self.program
        raw = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        raw.bind("")  # the kernel picks a free abstract name, see unix(7)
        address = raw.getsockname()
        notify = trio.socket.from_stdlib_socket(raw)
        env = {
            **os.environ,
            **program.env,
            "NOTIFY_SOCKET": "@" + os.fsdecode(address[1:]),
        }
        with open(program.log, "ab") as log:
            if self.log_start is None:
                self.log_start = log.tell()
            child = start_child(
                program.argv,
                stdout=log,
                stderr=log,
                env=env,
                new_session=True,
                deathsig="KILL",
            )
        self._child = child
        self.starts += 1
        logger.debug("%s started (pid %d)", program.name, child.pid)
        return child, notify

    async def _watch(self, child: Child, notify: trio.socket.SocketType) -> int:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._await_ready, notify)
                code = await child.wait()
                nursery.cancel_scope.cancel()
            return code
        finally:
            if child.returncode is None:
                child.kill()
                with trio.CancelScope(shield=True):
                    await child.wait()
            self._child = None
            if self._after_death is not None:
                self._after_death()

    async def ready_or_ended(self) -> None:
        """Returns when it was ready once, or will not run again."""
        await first_of(self.ready.wait, self.ended.wait)

    async def _await_ready(self, notify: trio.socket.SocketType) -> None:
        while True:
            datagram = await notify.recv(NOTIFY_MAX)
            if b"READY=1" in datagram.split(b"\n"):
                self.ready.set()

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    def kill(self) -> None:
        """Kills the program like a fault would: unless it is being stopped, it starts again."""
        if self._child is not None:
            self._child.kill()

    def end_now(self) -> None:
        """Kills the program for good; `run` ends. Does not wait, as `stop` does."""
        self._stopping = True
        self.kill()

    async def stop(self, *, force: bool = False) -> None:
        """Ends the program and waits for its end: SIGTERM, and SIGKILL after the grace time."""
        self._stopping = True
        child = self._child
        if child is not None:
            child.send_signal(signal.SIGKILL if force else signal.SIGTERM)
        with trio.move_on_after(self._stop_grace) as patience:
            await self.ended.wait()
        if patience.cancelled_caught:
            logger.warning(
                "%s did not end within %.0f s of SIGTERM; killed",
                self.program.name,
                self._stop_grace,
            )
            if child is not None:
                child.kill()
            await self.ended.wait()
