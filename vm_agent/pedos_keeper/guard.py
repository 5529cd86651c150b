"""In local mode: a process above the keeper that leaves nothing of it behind.

systemd ends all processes of a unit whose main process has died. Without systemd, what a killed
keeper has started becomes the guard's, which is a child subreaper as well, and the guard ends it. A
keeper whose guard is killed gets SIGTERM, and ends its services itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from typing import Final

from pedos_keeper.children import Children, become_subreaper

_PR_SET_PDEATHSIG: Final = 1


def stand(children: Children) -> int | None:
    """Become two processes, before there are threads: None in the one that is to be the keeper; in
    the other, when that has ended, its exit status. OSError."""
    above = os.getpid()
    keeper = os.fork()
    if keeper == 0:
        become_subreaper()  # this is not inherited
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != above:  # it has died meanwhile
            os._exit(1)
        return None
    signal.signal(signal.SIGTERM, lambda *_: os.kill(keeper, signal.SIGTERM))
    status = _wait_for(keeper)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a signal would go to a number that is free now
    children.kill_all()
    return os.waitstatus_to_exitcode(status) & 0xFF


def _wait_for(pid: int) -> int:
    """The status of a child that ends; orphans are reaped meanwhile."""
    while True:
        with contextlib.suppress(InterruptedError):
            ended, status = os.waitpid(-1, 0)
            if ended == pid:
                return status
