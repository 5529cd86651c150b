"""Reads one configuration file, whole or not at all: bounded and without waiting.

A file that is written in place (`cat >`, many editors) says something else for a while: the first
rules without the rest, or half of a name that is a name too. The file is therefore not read while a
program has it open for writing; its closing causes a wake-up.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from pathlib import Path

BEING_WRITTEN = "is being written, and counts when it is closed"
# Bytes to read at once: a fraction of a millisecond, also when they are not in memory yet.
_CHUNK = 64 * 1024
# Errors that are an answer: the name leads nowhere. All others may be temporary.
_NOWHERE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG))
# F_SETSIG of fcntl(2), which the standard library does not name.
_F_SETSIG = 10


def read_whole(path: Path, limit: int) -> bytes | str:
    """The content, or the reason for having none, as a sentence about the file; raises nothing.

    For a file with more than `limit` bytes the content is one byte longer than that, for the parser
    to refuse. Never waits: a FIFO is opened without its writer.
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

    The kernel grants a read lease only if none has. The lease is returned at once; a writer that
    opens the file in between waits some microseconds for that, and causes a signal, which is an
    ignored one instead of SIGIO, which would end the process. Where leases do not exist (network
    file systems, files of other users) the answer is not known, and the file is read as it is.
    """
    try:
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def is_there(path: Path) -> bool:
    """Whether such a name exists, even as a link that leads nowhere. If that cannot be determined,
    yes: reading it then gives the reason."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno not in _NOWHERE
    return True


def real_path(path: Path) -> Path:
    """The path without symbolic links, as far as it exists. OSError if that cannot be
    determined."""
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
