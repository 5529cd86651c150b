"""The source's side of a lent disk: the file, nbdkit in front of it, and the channel to the target.

nbdkit serves one client on a socket that is its stdin and stdout; the pump moves bytes between that
socket and the ring. Only nbdkit reads the bytes of the peer VM.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio
from pedos_host.faultpoints import reach
from pedos_host.in_time import in_time
from pedos_host.links import walk
from pedos_host.threads import to_thread
from pedos_protocol.agent_messages import ExportStart
from pedos_protocol.errors import CallError
from pedos_vchan.channel import Channel
from pedos_vchan.transport import DATA_ORDERS, Transport

from pedos_agent.device_classes.base import Host
from pedos_agent.device_classes.block.disk import Disk
from pedos_agent.device_classes.block.reserve import reserved
from pedos_agent.device_classes.data_channel import carry, serve_target
from pedos_agent.device_classes.lifetime import Lifetime
from pedos_agent.device_classes.tool import Tool
from pedos_agent.inventory.local_device import Inode, LocalDevice, Pin
from pedos_agent.system.reading import is_gone

# nbdkit greets within milliseconds of its start; a loaded machine may take longer to load it.
GREETING_SECONDS: Final = 10.0
# nbdkit finishes accepted requests before it exits; a slow disk may take seconds to flush.
EXIT_SECONDS: Final = 5.0


@asynccontextmanager
async def opened_source(found: LocalDevice) -> AsyncIterator[int]:
    """Hold the file that discovery saw, as an O_PATH fd; see Pin.

    CallError `not_found` if the name leads nowhere or elsewhere by now, OSError if that is unknown.
    """
    path, inode = found.path, found.inode
    if path is None or inode is None:
        raise CallError("failed", f"{found.device.device} can be listed but not lent")
    gone = CallError("not_found", f"{found.device.device} was unplugged or replaced just now")

    def look() -> tuple[Pin, Inode, Inode]:
        walk(path)
        pin = found.pin or Pin(path)
        return pin, Inode.of(os.stat(path)), Inode.of(pin.status())

    try:
        pin, named, held = await to_thread(partial(in_time, path, look, kind="attach"))
    except OSError as error:
        if is_gone(error):
            raise gone from error
        raise
    if not named == held == inode:
        raise gone
    try:
        yield pin.fd  # which stays as long as this has a reference to it
    except OSError as error:
        if error.filename == pin.path:  # our own name of it, which means nothing to a person
            error.filename = found.device.device
        raise


async def export_block(
    lifetime: Lifetime, params: ExportStart, found: LocalDevice, host: Host
) -> None:
    """Lend `found` to the peer domain until an event ends `lifetime`; leaves nothing behind."""
    read_only = params.read_only or found.device.read_only
    async with opened_source(found) as source:
        assert isinstance(found, Disk)  # as it has a source
        path = f"/proc/self/fd/{source}"
        async with reserved(found, path, read_only) as locked:
            await reach("export.opened")
            ours, theirs = socket.socketpair()
            with ours:
                with theirs:
                    kit = Tool(
                        _nbdkit(source, read_only),
                        pass_fds=[source, *locked],
                        stdin=theirs.fileno(),
                        stdout=theirs.fileno(),
                    )
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(kit.relay_log)
                    try:
                        await _greeted(kit, ours)
                        await _serve(lifetime, params, host.transport, kit, ours)
                    finally:
                        # Its end of input: nbdkit finishes its requests and exits by itself. If
                        # this task was cancelled, `finish` kills it at once.
                        ours.close()
                        await kit.finish(EXIT_SECONDS)
                    nursery.cancel_scope.cancel()
    if lifetime.reason is not None:
        await reach("export.stopped")


def _nbdkit(source: int, read_only: bool) -> list[str]:
    # nbdkit 1.32 resolves a path to a name and opens that when the client connects; it may be
    # another file by then. It opens an entry of a folder as it is, and one of /proc/self/fd leads
    # to the very file that `source` holds. "strict" limits the client to this one entry; the empty
    # name is the default that a client asks for.
    name = f"exportname={source}"
    only = [name, "exportname=", "exportname-strict=true", f"default-export={source}"]
    options = ["-s", "-f", *(["-r"] if read_only else []), "--filter=exportname"]
    return ["nbdkit", *options, "file", "dir=/proc/self/fd", *only]


async def _serve(
    lifetime: Lifetime, params: ExportStart, transport: Transport, kit: Tool, ours: socket.socket
) -> None:
    async def use(channel: Channel) -> None:
        result = await carry(channel, ours)
        await lifetime.end_after_pump(result.why)

    watch = partial(kit.end_with, lifetime)
    await serve_target(lifetime, transport, params, DATA_ORDERS, {}, use, watch)


async def _greeted(kit: Tool, ours: socket.socket) -> None:
    """Wait until nbdkit has data for its client; CallError if it ends instead."""
    with trio.move_on_after(GREETING_SECONDS):
        await trio.lowlevel.wait_readable(ours)
        if ours.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            return
        await kit.ended()
    raise CallError("failed", f"the disk cannot be served: {kit.how_it_ended()}")
