"""Unix sockets at paths of any length, for programs with and without an event loop.

`sockaddr_un` holds 107 bytes of path, and the folder of a test or a user is easily deeper than
that. The parent folder, opened O_PATH, has a short name while it is open: /proc/self/fd/N.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from typing import Protocol

#: Bytes of path in a sockaddr_un, less the final NUL (unix(7)).
SUN_PATH_MAX = 107

#: Connections that wait to be accepted. The kernel caps this at net.core.somaxconn (usually 4096).
BACKLOG = 4096

#: struct ucred of unix(7): pid, uid, gid.
UCRED = struct.Struct("iII")


class Connected(Protocol):
    """A socket, of Python's or of trio's."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes: ...


@contextlib.contextmanager
def short_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """A name of `path` that fits into a socket's address, valid within the `with`.

    OSError if the parent folder cannot be opened, or if the last part alone is too long.
    """
    whole = os.fspath(path)
    if len(os.fsencode(whole)) <= SUN_PATH_MAX:
        yield whole
        return
    parent, name = os.path.split(whole)
    folder = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{folder}/{name}"
        if len(os.fsencode(short)) > SUN_PATH_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), whole)
        yield short
    finally:
        os.close(folder)


def _refuse_unless_stale(path: str, kind: socket.SocketKind) -> None:
    """OSError if the file at `path` must not be replaced: it is no socket, or a program listens
    there, or may do so for clients of another kind."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "there is a file that is not a socket", path)
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            with short_path(path) as short:
                probe.connect(short)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass  # its backlog is full: it has a listener
    raise OSError(errno.EADDRINUSE, "another program already listens there", path)


def bind_unix(
    path: str | os.PathLike[str],
    mode: int,
    backlog: int = BACKLOG,
    *,
    kind: socket.SocketKind = socket.SOCK_STREAM,
    gid: int | None = None,
) -> socket.socket:
    """The listening socket of `unix.listen_unix`, with the same errors."""
    whole = os.fspath(path)
    _refuse_unless_stale(whole, kind)
    parent, name = os.path.split(whole)
    new = os.path.join(parent, f".{name[:32]}.{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX, kind)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        # Bound under another name and renamed once it listens: a client finds no server or a ready
        # one, never one that refuses.
        with short_path(new) as short:
            listener.bind(short)
        try:
            if gid is not None:
                os.chown(new, -1, gid)
            os.chmod(new, mode)
            listener.listen(backlog)
            os.rename(new, whole)
        except BaseException:
            os.unlink(new)
            raise
        return listener
    except BaseException:
        listener.close()
        raise


def uid_at(connected: Connected) -> int:
    """The user of the process at the other end, as the kernel noted it at the connection."""
    uid: int = UCRED.unpack(
        connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    )[1]
    return uid
