"""Reads one configuration file, whole or not at all: bounded, never waiting, and never half of it.

A file that is written in place (`cat >`, many editors) is for a while one that says something else:
the first rules without the rest, or half of a name that is a name too. As long as a program has it
open for writing it is therefore not read, and there is a wake-up when it is closed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from pathlib import Path

BEING_WRITTEN = "is being written, and counts when it is closed"
# Bytes read at once: a fraction of a millisecond, also when they are not in memory yet.
_CHUNK = 64 * 1024
# Errors that are an answer: the name leads nowhere. All others may be over in a moment.
_NOWHERE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG))
# F_SETSIG of fcntl(2), which the standard library does not name.
_F_SETSIG = 10


def read_whole(path: Path, limit: int) -> bytes | str:
    """The content, or why there is none, as a sentence about the file; raises nothing.

    Of a file with more than `limit` bytes it is one byte more than that, for the parser to
    refuse. Never waits: a FIFO is opened without its writer.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        return f"cannot be read: {why(error)}"
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return "is not a regular file"
        if _is_being_written(fd):
            return BEING_WRITTEN
        chunks, left = [], limit + 1
        while left > 0 and (chunk := os.read(fd, min(left, _CHUNK))):
            chunks.append(chunk)
            left -= len(chunk)
    except OSError as error:
        return f"cannot be read: {why(error)}"
    finally:
        os.close(fd)
    return b"".join(chunks)


def _is_being_written(fd: int) -> bool:
    """Does any process have the file open for writing?

    A read lease is granted only if none has. It is given back at once; a writer who comes in
    between waits for that some microseconds, and causes a signal, which is one that is ignored
    and not the SIGIO that would end the process. Where there are no leases (network file systems,
    files of other users) nothing is known, and then what is there is read.
    """
    try:
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def is_there(path: Path) -> bool:
    """Whether there is such a name, be it a link that leads nowhere. What cannot be told is: who
    reads it then hears why."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno not in _NOWHERE
    return True


def real_path(path: Path) -> Path:
    """The path without symbolic links, as far as there is one. OSError when that cannot be told."""
    try:
        return Path(os.path.realpath(path, strict=True))
    except OSError as error:
        if error.errno not in _NOWHERE:
            raise
    return Path(os.path.realpath(path))


def why(error: OSError) -> str:
    """The reason for people."""
    if error.errno == errno.ELOOP:
        return "its symbolic links lead in a circle"
    return error.strerror or type(error).__name__
