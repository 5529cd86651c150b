"""Starts a program when somebody connects to its socket, as systemd does by socket activation."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from pedos_host.children import Child, describe_exit, start_child
from pedos_host.plain_unix import bind_unix
from pedos_host.system_errors import what_is_wrong

from pedos_dom0.local.supervise import STOP_GRACE

if TYPE_CHECKING:
    from collections.abc import Callable

    from pedos_dom0.local.supervise import Program

logger = logging.getLogger(__name__)


class Activation:
    """A program that runs from a connection to `path` until it ends by itself, again and again."""

    def __init__(self, path: Path, program: Callable[[int], Program]) -> None:
        """`program` gets the number of the listening socket, which the program inherits."""
        self._path = path
        self._program = program
        self._child: Child | None = None
        self._stopping = trio.Event()
        self._ended = trio.Event()

    @property
    def pid(self) -> int | None:
        """Of the program, while it runs."""
        return None if self._child is None else self._child.pid

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until `stop`; started() when clients can connect. When cancelled, it kills the program.
        OSError if it cannot listen."""
        try:
            with bind_unix(self._path, 0o600, kind=socket.SOCK_SEQPACKET) as listener:
                listener.setblocking(False)
                task_status.started()
                try:
                    await self._serve(listener)
                finally:
                    self._path.unlink(missing_ok=True)
        finally:
            self._ended.set()

    async def _serve(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_at_stop, nursery.cancel_scope)
                await trio.lowlevel.wait_readable(listener)
                nursery.cancel_scope.cancel()
            if self._stopping.is_set():
                return
            code = await self._run_once(listener)
            if code != 0 and not self._stopping.is_set():
                _flush(listener)

    async def _cancel_at_stop(self, scope: trio.CancelScope) -> None:
        await self._stopping.wait()
        scope.cancel()

    def _start(self, listener: socket.socket) -> Child | None:
        """The program's process; None, and the log says why, if it cannot be started."""
        program = self._program(listener.fileno())
        try:
            with open(program.log, "ab") as log:
                child = start_child(
                    program.argv,
                    pass_fds=[listener.fileno()],
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **program.env},
                    new_session=True,
                    deathsig="TERM",  # it ends what it has started
                )
        except OSError as error:
            logger.error("%s cannot be started: %s", program.name, what_is_wrong(error))
            return None
        logger.debug("%s started (pid %d)", program.name, child.pid)
        return child

    async def _run_once(self, listener: socket.socket) -> int:
        """Run the program until it ends; its exit status."""
        self._child = child = self._start(listener)
        if child is None:
            return 1
        try:
            code = await child.wait()
        finally:
            if child.returncode is None:
                child.kill()
                with trio.CancelScope(shield=True):
                    await child.wait()
            self._child = None
        if code != 0:
            logger.warning("%s (pid %d) %s", self._path.name, child.pid, describe_exit(code))
        return code

    async def stop(self, *, force: bool = False) -> None:
        """End the program, if it runs, and stop listening: SIGTERM, and SIGKILL after a time or
        with `force`."""
        self._stopping.set()
        if self._child is not None:
            self._child.send_signal(signal.SIGKILL if force else signal.SIGTERM)
        with trio.move_on_after(STOP_GRACE):
            await self._ended.wait()
            return
        self.end_now()
        await self._ended.wait()

    def end_now(self) -> None:
        """Kill the program for good."""
        self._stopping.set()
        if self._child is not None:
            self._child.kill()


def _flush(listener: socket.socket) -> None:
    """Let go of clients for whom the program has not started: they hear it at once, and it is not
    tried again without end."""
    # The program shares the socket's flags, and may have made it one that waits.
    listener.setblocking(False)
    waiting = []
    with contextlib.suppress(BlockingIOError):
        while True:
            waiting.append(listener.accept()[0])
    # Not before: one that tries again when it hears this is a client of the program's next run.
    for each in waiting:
        each.close()
