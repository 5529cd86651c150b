"""One nbdkit, nbdfuse or fusermount3: its log lines, its end, and how to end it in time."""

from __future__ import annotations

import logging
import os
import signal
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Final

import trio
from pedos_host.children import File, describe_exit, start_child
from pedos_protocol.names import harmless_text

from pedos_agent.device_classes.lifetime import Lifetime

log = logging.getLogger(__name__)

LINE_MAX: Final = 400  # bytes of one line that are kept; a tool's real messages are shorter
LINES_MAX: Final = 100  # lines logged per tool: a peer that causes errors must not fill the log
TAIL_LINES: Final = 3  # kept for the error answer: nbdfuse explains itself in its last lines
READ_SIZE: Final = 4096
TERM_SECONDS: Final = 2.0  # between SIGTERM and SIGKILL
# A grandchild that inherited stderr may keep it open long after the tool's own end.
LAST_WORDS_SECONDS: Final = 0.5


class Tool:
    """A running helper program whose stderr goes to the agent's log."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        stdin: File = None,
        stdout: File = None,
    ) -> None:
        """Start it; FileNotFoundError or OSError if that is impossible."""
        with ExitStack() as undo:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            undo.callback(os.close, reader)
            try:
                self.child = start_child(
                    argv, pass_fds=pass_fds, stdin=stdin, stdout=stdout, stderr=writer
                )
            finally:
                os.close(writer)
            undo.pop_all()
        self._stderr = trio.lowlevel.FdStream(reader)
        self._silent = trio.Event()  # set when it has closed stderr and everything is logged
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._lines = 0

    @property
    def said(self) -> str:
        """Its last lines of stderr joined, made harmless; "" if it printed nothing."""
        return harmless_text("; ".join(self._tail), 300)

    def how_it_ended(self) -> str:
        """One clause, such as "nbdkit was killed by SIGKILL (its last words)"."""
        if self.child.returncode is None:
            return f"{self.child.name} did not get ready in time"
        ending = f"{self.child.name} {describe_exit(self.child.returncode)}"
        return f"{ending} ({self.said})" if self.said else ending

    async def relay_log(self) -> None:
        """Log its output until it closes stderr; output beyond the bounds is dropped."""
        pending = b""
        try:
            # A closed stream: the tool is gone, and `finish` did not wait for its grandchildren.
            with suppress(trio.ClosedResourceError):
                while chunk := await self._stderr.receive_some(READ_SIZE):
                    *lines, pending = (pending + chunk).split(b"\n")
                    for line in lines:
                        self._note(line)
                    pending = pending[:LINE_MAX]
            if pending:
                self._note(pending)
        finally:
            self._silent.set()

    def _note(self, untrusted_line: bytes) -> None:
        text = harmless_text(untrusted_line.decode("utf-8", "replace"), LINE_MAX)
        self._tail.append(text)
        self._lines += 1
        if self._lines <= LINES_MAX:
            log.info("%s[%d]: %s", self.child.name, self.child.pid, text)
        elif self._lines == LINES_MAX + 1:
            log.info("%s[%d]: more lines are not logged", self.child.name, self.child.pid)

    async def end_with(self, lifetime: Lifetime) -> None:
        """Wait for its end, which ends `lifetime`; `relay_log` must be running."""
        await self.ended()
        lifetime.end(self.how_it_ended())

    async def ended(self) -> None:
        """Wait for its end and, for a moment, for its last words to be read."""
        await self.child.wait()
        with trio.move_on_after(LAST_WORDS_SECONDS):
            await self._silent.wait()

    async def finish(self, grace_seconds: float) -> None:
        """Give it that time to exit by itself, then SIGTERM, then SIGKILL; return when reaped.

        A cancelled caller still gets a reaped child: at once, by SIGKILL. Closes its log.
        """
        steps = ((grace_seconds, signal.SIGTERM), (TERM_SECONDS, signal.SIGKILL))
        try:
            for seconds, number in steps:
                with trio.move_on_after(seconds):
                    await self.child.wait()
                if self.child.returncode is not None:
                    return
                log.info("%s[%d] is slow to end: %s", self.child.name, self.child.pid, number.name)
                self.child.send_signal(number)
        finally:
            self.child.kill()
            with trio.CancelScope(shield=True):
                await self.child.wait()
                await trio.aclose_forcefully(self._stderr)


async def run_tool(argv: Sequence[str], *, seconds: float) -> tuple[int, str]:
    """Run a short program to its end; its status and its output. Killed after `seconds`."""
    tool = Tool(argv)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tool.relay_log)
        try:
            with trio.move_on_after(seconds):
                await tool.ended()
        finally:
            await tool.finish(0)
        nursery.cancel_scope.cancel()
    return await tool.child.wait(), tool.said
