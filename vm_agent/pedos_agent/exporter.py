"""The source's side of a lent disk: the file, nbdkit in front of it, and the channel to the target.

nbdkit serves one client on a socket that is its stdin and stdout; the pump moves bytes between that
socket and the ring. What the peer VM sends reaches nbdkit alone: nothing here reads it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio
from pedos_protocol.errors import CallError
from pedos_protocol.messages import ExportStart
from pedos_vchan import shm
from pedos_vchan.faultpoints import reach
from pedos_vchan.pump import pump

from .found import Found, Inode
from .lifetime import Lifetime
from .settings import Settings
from .tool import Tool

log = logging.getLogger(__name__)

# dom0 tells the target to connect as soon as we listen; this is for a target that died meanwhile.
CLIENT_SECONDS: Final = 30.0
# nbdkit greets within milliseconds of its start; a loaded machine may take longer to load it.
GREETING_SECONDS: Final = 10.0
# What nbdkit has accepted it finishes before it exits; a slow disk may take seconds to flush.
EXIT_SECONDS: Final = 5.0
# 256 KiB each way: most of the speed of larger rings at a quarter of their memory.
RING_ORDER: Final = 18


@contextmanager
def opened_source(found: Found) -> Iterator[int]:
    """Hold the file that discovery saw, as an O_PATH fd: opening it so has no effect on a device.

    CallError `not_found` when the name leads nowhere or elsewhere by now.
    """
    if found.path is None or found.inode is None:
        raise CallError("failed", f"{found.device.device} can be listed but not lent")
    gone = CallError("not_found", f"{found.device.device} was unplugged or replaced just now")
    try:
        fd = os.open(found.path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise gone from error
    try:
        if Inode.of(os.fstat(fd)) != found.inode:
            raise gone
        yield fd
    finally:
        os.close(fd)


async def export_block(
    lifetime: Lifetime, params: ExportStart, found: Found, settings: Settings
) -> None:
    """Lend `found` to the peer domain until something ends `lifetime`; leaves nothing behind."""
    read_only = params.read_only or found.device.read_only
    with opened_source(found) as source:
        await reach("export.opened")
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                kit = Tool(
                    _nbdkit(source, read_only),
                    pass_fds=[source],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kit.relay_log)
                try:
                    await _serve(lifetime, params, settings, kit, ours)
                finally:
                    # Its end of input: nbdkit finishes what it was told and exits by itself. If
                    # this task was cancelled, `finish` kills it at once.
                    ours.close()
                    await kit.finish(EXIT_SECONDS)
                nursery.cancel_scope.cancel()
    if lifetime.reason is not None:
        await reach("export.stopped")


def _nbdkit(source: int, read_only: bool) -> list[str]:
    # nbdkit resolves /dev/fd/N to the file's present name and opens that when the client comes.
    # Should another file get the name in between, discovery sees it and ends this export.
    return ["nbdkit", "-s", "-f", *(["-r"] if read_only else []), "file", f"/dev/fd/{source}"]


async def _serve(
    lifetime: Lifetime, params: ExportStart, settings: Settings, kit: Tool, ours: socket.socket
) -> None:
    listener = await shm.listen(
        settings.vchan,
        settings.domid,
        params.peer,
        params.port,
        order_left=RING_ORDER,
        order_right=RING_ORDER,
    )
    try:
        await reach("export.listening")
        await _greeted(kit, ours)
        lifetime.ready({})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kit.end_with, lifetime)
            nursery.start_soon(_carry, lifetime, listener, ours)
            await lifetime.ending()
            nursery.cancel_scope.cancel()
    finally:
        listener.close()


async def _greeted(kit: Tool, ours: socket.socket) -> None:
    """Wait until nbdkit has something to say to its client; CallError when it ends instead."""
    with trio.move_on_after(GREETING_SECONDS):
        await trio.lowlevel.wait_readable(ours)
        if ours.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            return
        await kit.ended()
    raise CallError("failed", f"the disk cannot be served: {kit.how_it_ended()}")


async def _carry(lifetime: Lifetime, listener: shm.Listener, ours: socket.socket) -> None:
    """Take the one client and move its bytes until either side ends."""
    channel = None
    with trio.move_on_after(CLIENT_SECONDS):
        channel = await listener.accept()
    if channel is None:
        lifetime.end(f"the target did not connect within {CLIENT_SECONDS:g} s")
        return
    try:
        await reach("export.connected")
        result = await pump(channel, ours.fileno(), ours.fileno())
        log.info("sent %d and received %d bytes", result.bytes_to_ring, result.bytes_to_fd)
        await lifetime.end_after_pump(result.why)
    finally:
        channel.close()
