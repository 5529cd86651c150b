"""Child processes that never outlive the process that started them.

Each child starts through `setpriv --pdeathsig SIG`, so the kernel sends it SIG when its parent
dies, however the parent dies. This misses a parent that died before setpriv's prctl (on a loaded
machine several milliseconds after Popen returned). Therefore a line of shell between setpriv and
the program checks once that the parent is still the same.

Waiting uses a pidfd, so it needs no SIGCHLD handler, no thread and no polling, and a signal can
never reach another process that was given the same pid later.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any, Final, TypeAlias

import trio

File: TypeAlias = int | IO[Any] | None

# $1 is the parent's pid, the rest the program and its arguments, which no shell parses.
_IF_PARENT_LIVES: Final = 'test "$PPID" = "$1" || exit 125; shift; exec "$@"'

NAME_MAX: Final = 32  # names go into log lines, so a long program path must not fill them


class Child:
    """A running or ended child process; `returncode` is None until `wait` has seen the end."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        """Take over `process`: an unreaped child of this process, so its pid is still its own."""
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)
        self._reaping = trio.Lock()
        self.pid: Final = process.pid
        self.name: Final = name
        self.returncode: int | None = None

    def __repr__(self) -> str:
        """Name, pid and how it ended, for log lines."""
        state = "running" if self.returncode is None else describe_exit(self.returncode)
        return f"<Child {self.name} {self.pid}: {state}>"

    async def wait(self) -> int:
        """Wait for the end; returns the exit status, or minus the signal's number. Many tasks may
        wait."""
        # trio allows one waiter per fd: the first one waits for all; if it is cancelled, another
        # takes over.
        async with self._reaping:
            if self.returncode is None:
                await trio.lowlevel.wait_readable(self._pidfd)
                self.returncode = self._process.wait()
                os.close(self._pidfd)
                self._pidfd = -1
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal; does nothing once the child has ended."""
        if self._pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):  # it has ended, but `wait` does not know yet
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """Send SIGKILL; does nothing once the child has ended."""
        self.send_signal(signal.SIGKILL)


def describe_exit(returncode: int) -> str:
    """Say how a process ended: "exited with status 1", "was killed by SIGKILL"."""
    if returncode >= 0:
        return f"exited with status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"was killed by {name}"


def start_child(
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    stdin: File = None,
    stdout: File = None,
    stderr: File = None,
    env: Mapping[str, str] | None = None,
    new_session: bool = False,
    deathsig: str = "KILL",
) -> Child:
    """Start `argv` (never a shell string) so that it gets SIG`deathsig` when this process dies.

    stdin None is /dev/null: a supervised child has no terminal to read. stdout and stderr None are
    inherited. `pass_fds` keep their numbers. Call it in the main thread: the kernel sends the
    signal at the death of the *thread* that started the child.

    Raises FileNotFoundError if the program or setpriv is missing, OSError if fork fails or no
    descriptor is left to watch the child with; nothing runs then.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("children start from the main thread: PR_SET_PDEATHSIG is tied to it")
    path = env.get("PATH") if env is not None else None
    program = shutil.which(argv[0], path=path)
    if program is None:
        raise FileNotFoundError(f"no program named {argv[0]!r} on the search path")
    setpriv = shutil.which("setpriv", path=path) or shutil.which("setpriv")
    if setpriv is None:
        raise FileNotFoundError("no program named 'setpriv' on the search path (util-linux has it)")
    process = subprocess.Popen(
        [
            *(setpriv, "--pdeathsig", deathsig),
            *("/bin/sh", "-c", _IF_PARENT_LIVES, "start_child", str(os.getpid())),
            *(program, *argv[1:]),
        ],
        pass_fds=tuple(pass_fds),
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=stdout,
        stderr=stderr,
        env=None if env is None else dict(env),
        start_new_session=new_session,
    )
    try:
        return Child(process, os.path.basename(program)[:NAME_MAX])
    except BaseException:  # without a pidfd, the child could neither be waited for nor ended
        process.kill()
        process.wait()
        raise
