"""What a service is: the file that a call's service and argument lead to.

A name with the argument in all folders goes before one without it in any. A file that is found and
cannot be a service is an error, and the search does not go on: it may have been put there to take
the place of one in a later folder.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

from pedos_host._open import first_of, plain_service

#: In order: the administrator's, and three where programs that were written for qrexec put theirs.
FOLDERS: Final = (
    "/etc/pedos/services.d",
    "/run/qubes-rpc",
    "/usr/local/etc/qubes-rpc",
    "/etc/qubes-rpc",
)
#: A link to it names a TCP service; nothing is there (bash and others use the same name).
_TCP: Final = "/dev/tcp/"
_PORT_MAX: Final = 65535
# A name that is too long for a file system is the name of no file there.
_MISSING: Final = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG))


class Unusable(Exception):  # noqa: N818 - says what is wrong with it
    """The file cannot be a service; `str()` names it and says why."""


class Program(NamedTuple):
    """An executable file."""

    path: str


class UnixSocket(NamedTuple):
    """A socket on which a service listens."""

    path: str


class TcpPort(NamedTuple):
    """A port on which a service listens; `host` is a number."""

    host: str
    port: int
    family: socket.AddressFamily


Service: TypeAlias = Program | UnixSocket | TcpPort


def first_file(
    service: str, argument: str, folders: Sequence[str], *, follow: bool
) -> tuple[str, int] | None:
    """The path and the mode of a service's file, or of what its link leads to; None if there is
    none. OSError."""
    return first_of(tuple(folders), (service + argument, service), follow)


def find_plain(
    service: str, argument: str, configurations: Sequence[str], folders: Sequence[str]
) -> Service | None:
    """The service, if it is a program or a socket, not by a link, and has no configuration: as
    nearly all are, and in one step. None: look for both."""
    names = (service + argument, service)
    found = plain_service(tuple(configurations), tuple(folders), names)
    if found is None:
        return None
    path, mode = found
    return UnixSocket(path) if stat.S_ISSOCK(mode) else Program(path)


def find(service: str, argument: str, folders: Sequence[str] = FOLDERS) -> Service | None:
    """The service; None if there is none, or if a link to /dev/null switches it off. Unusable,
    OSError."""
    found = first_file(service, argument, folders, follow=False)
    return None if found is None else _service_at(*found, argument[1:])


def _service_at(path: str, mode: int, argument: str) -> Service | None:
    if stat.S_ISLNK(mode):
        target = os.readlink(path)
        if target.startswith(_TCP):
            return _tcp_port(path, target, argument)
        if target == os.devnull:
            return None
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            if error.errno in _MISSING:
                raise Unusable(f"{path} is a link to {target}, which does not exist") from None
            raise
    if stat.S_ISSOCK(mode):
        return UnixSocket(path)
    if not stat.S_ISREG(mode):
        raise Unusable(f"{path} is neither a program, nor a socket, nor a link to {_TCP}HOST/PORT")
    if not os.access(path, os.X_OK):
        raise Unusable(f"{path} is not executable for this user: chmod 755 {path}")
    return Program(path)


def _tcp_port(path: str, target: str, argument: str) -> TcpPort:
    """`/dev/tcp/HOST/PORT`, or `/dev/tcp/HOST` for the port that is the argument."""
    host, slash, port = target.removeprefix(_TCP).partition("/")
    family = _family(host)
    if family is None:
        raise Unusable(f"{path} leads to {target}: the host has to be a number, as in 127.0.0.1")
    where = "its link" if slash else "the argument"
    number = port if slash else argument
    # Python's own int() takes blanks, underscores and digits of all scripts.
    digits = number.lstrip("0")  # however many there are, they fit in an int
    is_number = digits.isascii() and digits.isdecimal() and len(digits) <= len(str(_PORT_MAX))
    if not is_number or int(digits) > _PORT_MAX:
        raise Unusable(f"{path}: {where} has to say a port from 1 to {_PORT_MAX}")
    return TcpPort(host, int(digits), family)


def _family(host: str) -> socket.AddressFamily | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return family
    return None
