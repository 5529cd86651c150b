"""COMMAND of `pedos-local run`: finds it, starts it in the user's terminal, waits for it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence

import trio
from pedos_host.children import Child, start_child

from pedos_dom0.local.words import for_shell

logger = logging.getLogger(__name__)

# A shell's exit status for a command that does not exist, or that cannot be executed.
NOT_FOUND = 127
NOT_EXECUTABLE = 126
# Seconds that COMMAND may continue after a SIGTERM that was passed on to it.
TERM_GRACE = 5.0


class CannotRun(Exception):  # noqa: N818
    """COMMAND does not start; `status` is what a shell would answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def find(command: str, env: Mapping[str, str]) -> None:
    """CannotRun unless `command` can be started with this environment's PATH."""
    if shutil.which(command, path=env.get("PATH")) is not None:
        return
    if "/" not in command:
        raise CannotRun(f"{command}: command not found", NOT_FOUND)
    if not os.path.exists(command):
        raise CannotRun(f"{command}: no such file", NOT_FOUND)
    if os.path.isdir(command):
        raise CannotRun(f"{command}: is a folder", NOT_EXECUTABLE)
    raise CannotRun(
        f"{command}: is not executable; try: chmod +x {for_shell(command)}", NOT_EXECUTABLE
    )


async def run_command(
    argv: Sequence[str],
    env: Mapping[str, str],
    signals: AsyncIterator[int],
    *,
    deathsig: str = "TERM",
) -> int:
    """Runs COMMAND with this process's terminal; its exit status, 128+N if signal N ended it.

    `signals` are those that this process gets meanwhile. Ctrl-C and Ctrl-\\ reach COMMAND by
    themselves, since it stays in the terminal's foreground group; the others are passed on.
    """
    find(argv[0], env)
    try:
        child = start_child(argv, stdin=0, env=env, deathsig=deathsig)
    except OSError as error:
        raise CannotRun(f"{argv[0]}: {error.strerror or error}", NOT_EXECUTABLE) from error
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pass_on, signals, child)
        code = await child.wait()
        nursery.cancel_scope.cancel()
    return 128 - code if code < 0 else code


async def _pass_on(signals: AsyncIterator[int], child: Child) -> None:
    async with trio.open_nursery() as nursery:
        async for number in signals:
            if number == signal.SIGINT:
                continue
            child.send_signal(number)
            nursery.start_soon(_lose_patience, child)


async def _lose_patience(child: Child) -> None:
    await trio.sleep(TERM_GRACE)
    logger.warning("%s goes on %.0f s after it was told to end; killed", child.name, TERM_GRACE)
    child.kill()
