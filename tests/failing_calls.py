"""Makes each system call of a look fail in turn: with every error that is no answer.

    for failing in each_call_failing(scan):
        with failing:
            ...

A test then shows that a reader returns the truth, or an error, and never less.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

from pedos_agent.system import reading
from pedos_host.in_time import THREAD_NAME

#: Through these, files are looked at.
CALLS: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("open", "read", "stat", "fstat", "lstat", "lseek")),
    *((os, name) for name in ("listdir", "scandir", "readlink")),
    (fcntl, "ioctl"),
    (builtins, "open"),
    (reading, "access"),
)
#: No descriptor (here, in the machine), no memory: what this process lacks.
STARVED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
#: A device that fails, no permission, a file system whose server is gone.
BROKEN = (errno.EIO, errno.EACCES, errno.ESTALE, errno.ENOTCONN)
CODES = (*STARVED, *BROKEN)


class Failing:
    """A context in which call number `at` (from 0) of this thread fails with `code`; or each that
    is about a file whose path ends as `always` says."""

    def __init__(self, at: int | None, code: int = 0, *, always: str | None = None) -> None:
        self.at = at
        self.code = code
        self._always = always
        self.calls = 0
        self.failed: str | None = None  # which call that was
        self.path = ""  # and of which file
        self._readlink = os.readlink
        self._patches = contextlib.ExitStack()
        self._thread = threading.get_ident()

    def __str__(self) -> str:
        return f"{self.failed} fails with {errno.errorcode.get(self.code)}"

    def __enter__(self) -> Failing:
        for module, name in CALLS:
            real = getattr(module, name)
            # A patch of unittest.mock takes longer than most looks.
            self._patches.callback(setattr, module, name, real)
            setattr(module, name, self._wrapper(name, real))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def _path_of(self, arguments: tuple[Any, ...]) -> str:
        """A descriptor is called as what it leads to, also where it stands as a path."""
        what = os.fspath(arguments[0]) if arguments and not isinstance(arguments[0], int) else ""
        if arguments and isinstance(arguments[0], int):
            what = f"/proc/self/fd/{arguments[0]}"
        with contextlib.suppress(OSError):
            return self._readlink(what) if "/proc/self/fd/" in str(what) else str(what)
        return str(what)

    def _wrapper(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            # In the thread of this, and in those in which that asks what may hang.
            thread = threading.current_thread()
            if thread.ident == self._thread or thread.name == THREAD_NAME:
                number, self.calls = self.calls, self.calls + 1
                # Only then is it asked which file that is: of hundreds of calls, one fails.
                path = self._path_of(arguments) if number == self.at or self._always else ""
                if number == self.at or (self._always and path.endswith(self._always)):
                    self.path, self.failed = path, f"{name}({path})"
                    raise OSError(self.code, os.strerror(self.code), *arguments[:1])
            return real(*arguments, **more)

        return call


def each_call_failing(
    look: Callable[[], object], codes: Collection[int] = CODES
) -> Iterator[Failing]:
    """A context for each call that `look` makes and each of these errors."""
    with Failing(None) as counted:
        look()
    assert counted.calls, "it makes no system call that can fail here"
    for at in range(counted.calls):
        for code in codes:
            yield Failing(at, code)
