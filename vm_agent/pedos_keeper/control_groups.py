"""A control group a call, where systemd has delegated the keeper's own: all that a call has started
can be ended at once, also what has left its session (cgroups(7), "Delegation").
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Final

from pedos_keeper import spawning

log = logging.getLogger(__name__)

# Looks, and seconds between two: what is killed ends in milliseconds, unless a disk holds it.
_EMPTY_LOOKS: Final = 50
_EMPTY_LOOK: Final = 0.01
_MOUNTED: Final = "/sys/fs/cgroup"
#: systemd marks what it delegates (since 251), for programs that are asked to look.
_DELEGATED: Final = "user.delegate"


def own_group() -> Path | None:
    """The folder of this process's control group, if it may make others in it."""
    try:
        [line] = Path("/proc/self/cgroup").read_text("ascii").splitlines()  # version 2 alone
        hierarchy, _, path = line.split(":", 2)
        folder = Path(_MOUNTED + path)
        is_ours = os.getxattr(folder, _DELEGATED) == b"1" and os.access(folder, os.W_OK)
    except (OSError, ValueError):
        return None
    return folder if is_ours and hierarchy == "0" else None


class CallGroup:
    """The control group of one call."""

    def __init__(self, folder: Path) -> None:
        """Makes it. OSError."""
        folder.mkdir()
        self._folder = folder
        self._file: int | None = None
        if spawning.can_begin_in_group():
            try:
                self._file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                folder.rmdir()
                raise

    @property
    def begin_in(self) -> int | None:
        """The folder for a process that can begin in it."""
        return self._file

    def take(self, pid: int) -> None:
        """Move a process into it that could not begin there: it has run for a moment. OSError."""
        if self._file is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                (self._folder / "cgroup.procs").write_text(f"{pid}\n", "ascii")

    def kill(self) -> bool:
        """End all processes in it; whether these are all that its call has started. They are not if
        it is an old kernel's (Linux 5.14 can end a group), or if its first process did not begin in
        it: what that has started before it was moved, if it was, is elsewhere."""
        try:
            (self._folder / "cgroup.kill").write_text("1\n", "ascii")
        except OSError as error:
            log.warning("%s cannot be ended as a whole: %s", self._folder, error.strerror)
            return False
        return self._file is not None

    def becomes_empty(self) -> bool:
        """Whether nothing runs in it, after a moment if it is just being ended. OSError."""
        for _ in range(_EMPTY_LOOKS):
            try:
                # Of those below it, too.
                if "populated 1" not in (self._folder / "cgroup.events").read_text("ascii"):
                    return True
            except FileNotFoundError:
                return True
            time.sleep(_EMPTY_LOOK)
        return False

    def close(self) -> bool:
        """Remove it, unless something runs in it: then not (False), and this may be tried again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        try:
            self._folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True
