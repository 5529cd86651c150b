"""One use of `pedos-local`: its folder, its settings, its terminal, and what each signal does."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from pedos_dom0.local import bringup, config
from pedos_dom0.local.bringup import Lock
from pedos_dom0.local.layout import Layout
from pedos_dom0.local.machine import Machine
from pedos_dom0.local.terminal import Terminal

FAILED = 1

# Seconds for cleaning up after killed programs, before this process just ends.
FORCE_TIMEOUT = 2.0

logger = logging.getLogger("pedos_dom0.local")


class Stop(Exception):  # noqa: N818
    """The verb ends here, with a message for the user and this exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Session:
    """The tools of a verb: the folder, its configuration, and the incoming signals."""

    def __init__(
        self,
        options: argparse.Namespace,
        layout: Layout,
        settings: config.Config,
        terminal: Terminal,
    ) -> None:
        self.options = options
        self.layout = layout
        self.settings = settings
        self.terminal = terminal
        self.signals: trio.MemoryReceiveChannel[int]
        self._send: trio.MemorySendChannel[int]
        # A person presses Ctrl-C a few times; what does not fit is a repetition.
        self._send, self.signals = trio.open_memory_channel[int](16)
        self.background: trio.Nursery  # of tasks that end with the verb
        self.coming_up: trio.CancelScope | None = None
        self.machine: Machine | None = None
        self.going_down = False
        self.first_signal: int | None = None
        self.told_to_end = False  # by more than a Ctrl-C, which may be meant for COMMAND alone
        self._forced = False

    async def next_signal(self, timeout: float) -> int | None:
        """The next signal that comes within `timeout` seconds."""
        with trio.move_on_after(timeout):
            return await self.signals.receive()
        return None

    async def watch(self, signals: AsyncIterator[int]) -> None:
        """While starting, a signal ends the start; while stopping, one more kills."""
        async for number in signals:
            self._take(number)

    def _take(self, number: int) -> None:
        if self.first_signal is None:
            self.first_signal = number
        self.told_to_end = self.told_to_end or number != signal.SIGINT
        if self.coming_up is not None:
            scope, self.coming_up = self.coming_up, None
            self.going_down = True
            scope.cancel()
        elif self.going_down:
            self._force(number)
        else:
            with contextlib.suppress(trio.WouldBlock):
                self._send.send_nowait(number)

    def _force(self, number: int) -> None:
        logger.error("%s: killing what is left", signal.Signals(number).name)
        if self.machine is not None:
            self.machine.kill_all()
        if not self._forced:
            self._forced = True
            self.background.start_soon(self._end_by_force, number)

    async def _end_by_force(self, number: int) -> None:
        """Cancelled when the verb ends by itself. Programs that still run die with this process."""
        await trio.sleep(FORCE_TIMEOUT)
        logger.error("still not down %.0f s later; ended by force", FORCE_TIMEOUT)
        self.terminal.close()
        os._exit(128 + number)

    def watch_terminal(self) -> None:
        """The terminal of `up` is gone: for a program in the foreground, that is SIGPIPE.

        Python ignores the real signal, which every broken socket would send as well.
        """
        token = trio.lowlevel.current_trio_token()

        def gone(error: OSError) -> None:  # in the thread of the terminal
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._terminal_gone, error)

        self.terminal.when_gone(gone)

    def _terminal_gone(self, error: OSError) -> None:
        logger.error("the terminal is gone: %s", error.strerror or error)
        if not self.going_down:
            self._take(signal.SIGPIPE)

    @contextlib.asynccontextmanager
    async def up(self, lock: Lock) -> AsyncIterator[bringup.Up]:
        """The whole system is up within the block. Stop if a signal came during the start."""
        programs = bringup.LocalPrograms(self.layout, self.settings, verbose=self.options.verbose)
        came_up = False
        with trio.CancelScope() as scope:
            self.coming_up = scope
            async with bringup.bring_up(
                self.layout, self.settings, programs, lock, self._has_machine
            ) as up:
                self.coming_up = None
                came_up = True
                try:
                    yield up
                finally:
                    self.going_down = True
        if not came_up:
            number = self.first_signal or signal.SIGINT
            raise Stop(f"interrupted by {signal.Signals(number).name}", 128 + number)

    def _has_machine(self, machine: Machine) -> None:
        self.machine = machine


async def with_signals(session: Session, verb: Callable[[Session], Awaitable[int]]) -> int:
    """Runs the verb; its signals go to the session, and its error comes as it was raised."""
    result: int | Exception = FAILED
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            session.background = nursery
            nursery.start_soon(session.watch, signals)
            try:
                result = await verb(session)
            except Exception as error:  # must not pass through the nursery, which would wrap it
                result = error
            nursery.cancel_scope.cancel()
    if isinstance(result, Exception):
        raise result
    return result
