"""Reads small files and folders of the kernel and of udev: "gone" is an answer, an error is none.

A missing file reads as empty. Every other error (no descriptor or memory left, a device or a file
system that fails, no permission) says nothing of what exists, so it is raised: a caller that took
it for empty would report a lent device as unplugged.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from typing import Final

TABLE_BYTES: Final = 4 << 20
# Bytes of a table that is read line by line. A user may mount a thousand file systems with FUSE,
# and a line may have two paths of 4096 characters, each of which is written as four.
STREAM_BYTES: Final = 64 << 20
FIELD_BYTES: Final = 4096  # a page: no attribute of sysfs has more
_CHUNK: Final = 64 * 1024

# The name leads nowhere, or the device behind it has gone.
_GONE: Final = frozenset(
    (
        *(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM),
    )
)
# This process or the machine lacks something for the moment; the file is not the cause.
_STARVED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))
# access(2)'s errors for an existing file that this process may not write.
_MAY_NOT: Final = frozenset((errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY))
_libc: Final = ctypes.CDLL(None, use_errno=True)


def is_gone(error: OSError) -> bool:
    """Whether `error` answers the question: the file does not exist."""
    return error.errno in _GONE


def is_starved(error: OSError) -> bool:
    """Whether this process lacks something, so that no other file can be looked at either."""
    return error.errno in _STARVED


def words(error: OSError | MemoryError) -> str:
    """The reason, for people."""
    if isinstance(error, MemoryError):
        return "out of memory"
    return error.strerror or type(error).__name__


def read_field(path: str, limit: int = FIELD_BYTES) -> str:
    """The text of a small file, "" if it does not exist. OSError as below."""
    return (read_bytes(path, limit) or b"").decode("utf-8", "replace").strip()


def read_bytes(path: str, limit: int = FIELD_BYTES) -> bytes | None:
    """The content of a small file, None if it does not exist. OSError if it cannot be read, or has
    more than `limit` bytes: a cut content could mean something else.

    A look reads dozens of them, so not with a file object, which takes four calls more each.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if is_gone(error):
            return None
        raise
    chunks, left = [], limit + 1
    try:
        # The kernel delivers a table a page at a time, an attribute of sysfs at once.
        while left > 0 and (chunk := os.read(file, min(left, _CHUNK))):
            chunks.append(chunk)
            left -= len(chunk)
    except OSError as error:
        if is_gone(error):
            return None
        error.filename = error.filename or path
        raise
    finally:
        os.close(file)
    if left <= 0:
        raise OSError(errno.EFBIG, f"more than {limit} bytes", path)
    return b"".join(chunks)


def read_table(path: str) -> str:
    """The text of a table of the kernel, such as that of mounts; as `read_field`."""
    return read_field(path, TABLE_BYTES)


class TableTooLong(OSError):  # noqa: N818 - says what happened
    """A table has more than is read of it."""


def lines_of(path: str, limit: int = STREAM_BYTES) -> Iterator[str]:
    """The lines of a table of the kernel that users can make long, one at a time; none if it does
    not exist. OSError as above; TableTooLong after the lines within `limit` bytes."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - what is not there has no lines
    except OSError as error:
        if is_gone(error):
            return
        raise
    with file:
        left = limit
        # A user's text in it may contain any line end but this one.
        while line := file.readline(left + 1):
            left -= len(line)
            if left < 0:
                raise TableTooLong(errno.EFBIG, f"more than {limit} bytes", path)
            yield line.removesuffix(b"\n").decode("utf-8", "replace")


def read_note(path: str) -> str:
    """The text of a field that only describes a device to people, "" if it has none.

    Some drivers always refuse to give it (EIO, EPERM): that is an answer here.
    """
    try:
        return read_field(path)
    except OSError as error:
        if is_starved(error):
            raise
        return ""


def names_in(folder: str | os.PathLike[str]) -> list[str]:
    """The names in a folder, sorted; none if it does not exist. OSError if it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        if is_gone(error):
            return []
        raise


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether the name leads to something. OSError if unknown."""
    try:
        os.stat(path)
    except OSError as error:
        if is_gone(error):
            return False
        raise
    return True


def may_write(path: str) -> bool:
    """Whether this process may write to a file. OSError if unknown."""
    try:
        access(path, os.W_OK)
    except OSError as error:
        if error.errno in _MAY_NOT:
            return False
        raise
    return True


def access(path: str, mode: int) -> None:
    """access(2), with an OSError for every error. (`os.access` makes a no of each.)"""
    if _libc.access(os.fsencode(path), mode) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def link_target(path: str | os.PathLike[str]) -> str | None:
    """The target of a symbolic link; None if there is none. OSError if unknown."""
    try:
        return os.readlink(path)
    except OSError as error:
        if is_gone(error) or error.errno == errno.EINVAL:  # another kind of file
            return None
        raise
