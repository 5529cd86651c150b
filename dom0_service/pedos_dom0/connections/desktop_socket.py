"""The second socket of dom0's service: for the users of its desktop, who are members of a group.

It gives less authority than root's own (access/callers.py), and has clients of its own, so that no
number of them keeps root out. Three things are checked, each of which would do: the mode of the
folder, that of the socket, and the groups of the peer as the kernel noted them when it connected.
What cannot be told is refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from functools import partial
from typing import TYPE_CHECKING

from pedos_host.desktop_group import desktop_group
from pedos_host.system_errors import what_is_wrong
from pedos_host.throttle import throttle
from pedos_host.unix import peer_credentials
from pedos_host.unix_stream import UnixStream
from pedos_protocol.frozen import frozen
from pedos_vchan.clients import serve_clients

from pedos_dom0 import PROGRAM
from pedos_dom0.access.callers import desktop_user
from pedos_dom0.connections.client import serve_client, too_many_clients
from pedos_dom0.connections.desktop_turns import DesktopTurns
from pedos_dom0.connections.local_socket import listening
from pedos_dom0.errors import failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pedos_host.unix import UnixListener
    from pedos_protocol.errors import CallError

    from pedos_dom0.requests.api import Api

logger = logging.getLogger(__name__)

# The group's members reach the socket, and nobody else; they can make no file beside it.
FOLDER_MODE = 0o750
SOCKET_MODE = 0o660
# A widget for each session, and some commands and scripts. Root's own socket has places of its own.
CLIENTS_MAX = 64


@frozen
class Desktop:
    """Where it is, and whose: `group` is a name, or a number."""

    socket: Path
    group: str


@contextlib.asynccontextmanager
async def desktop_socket(desktop: Desktop | None) -> AsyncIterator[DesktopSocket | None]:
    """The listening socket; None, with the reason in the log, if there is to be none, or if there
    can be none: the service works without it, for root."""
    async with contextlib.AsyncExitStack() as stack:
        served = None
        if desktop is not None:
            try:
                gid = desktop_group(desktop.group)
                _make_folder(desktop.socket.parent, gid)
                listener = await stack.enter_async_context(
                    listening(str(desktop.socket), SOCKET_MODE, gid)
                )
                served = DesktopSocket(listener, gid)
            except KeyError:
                logger.warning(
                    "there is no group '%s', so dom0's desktop has no socket (docs/desktop.md)",
                    desktop.group,
                )
            except OSError as error:
                logger.error("dom0's desktop has no socket: %s", what_is_wrong(error))
        yield served


def _make_folder(folder: Path, gid: int) -> None:
    """Makes the folder, or takes the one that is there, with its group and mode. OSError, also if
    it is no folder, or another user's, who could put another socket there."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid():
            raise PermissionError(1, f"it belongs to uid {status.st_uid}", str(folder))
        # In this order nobody gets in who has no business there.
        if status.st_gid != gid:
            os.fchmod(descriptor, 0o700)
            os.fchown(descriptor, -1, gid)
        if stat.S_IMODE(status.st_mode) != FOLDER_MODE or status.st_gid != gid:
            os.fchmod(descriptor, FOLDER_MODE)
    finally:
        os.close(descriptor)


class DesktopSocket:
    """Serves the clients of `listener` that are in the group `gid`."""

    def __init__(self, listener: UnixListener, gid: int) -> None:
        self._listener = listener
        self._gid = gid

    async def serve(self, api: Api) -> None:
        """Accepts until cancelled."""
        turns = DesktopTurns()

        async def serve_member(stream: UnixStream) -> None:
            uid = peer_credentials(stream).uid
            caller = desktop_user(uid, partial(turns.more, uid))
            await serve_client(api, caller, stream, partial(turns.request, uid))

        await serve_clients(self._listener, PROGRAM, self._refusal, serve_member)

    def _refusal(self, stream: UnixStream, served: int) -> CallError | None:
        """Why a client is not served; None if it is."""
        try:
            peer = peer_credentials(stream)
        except OSError as error:  # of more groups than a peer can tell, or an old kernel
            return _stranger(f"its groups cannot be told: {what_is_wrong(error)}")
        if self._gid not in peer.groups:
            return _stranger(f"uid {peer.uid} is not in the group {self._gid}")
        if served >= CLIENTS_MAX:
            if (more := throttle.more("a client of the desktop is refused")) is not None:
                logger.warning(
                    "a client of the desktop is refused: %d are connected%s", served, more
                )
            return too_many_clients(CLIENTS_MAX)
        return None


def _stranger(why: str) -> CallError:
    if (more := throttle.more("a stranger to the desktop is refused")) is not None:
        logger.warning("a process is refused: %s%s", why, more)
    return failure("denied", "dom0's service serves members of its group alone here")
