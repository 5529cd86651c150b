"""The target's side of a lent disk: the channel to the source, nbdfuse behind it, the block file.

The order of the end matters: nbdfuse is unmounted while the pump still runs, so that what the VM
wrote reaches the source; only a dead or stuck one is taken down by force.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import Final

import trio
from pedos_host.faultpoints import reach
from pedos_host.mounts import make_placeholder
from pedos_protocol.agent_messages import ImportStart
from pedos_protocol.errors import CallError
from pedos_vchan.channel import Channel

from pedos_agent.device_classes.base import Host
from pedos_agent.device_classes.block import mounts
from pedos_agent.device_classes.block.borrowed import Borrowed, folder_is_gone
from pedos_agent.device_classes.data_channel import carry, source_channel
from pedos_agent.device_classes.lifetime import Lifetime
from pedos_agent.device_classes.tool import Tool

# From nbdfuse's start to its mount, with the NBD handshake through the channel in between.
READY_SECONDS: Final = 15.0
# An unmounted nbdfuse says goodbye to nbdkit and exits; a stuck source must not delay this longer.
EXIT_SECONDS: Final = 5.0
# After a clean end the pump only has to pass on what is left in the ring.
DRAIN_SECONDS: Final = 5.0


async def import_block(lifetime: Lifetime, params: ImportStart, disk: Borrowed, host: Host) -> None:
    """Show the peer's disk as a file until an event ends `lifetime`; leaves nothing behind."""
    async with source_channel(host.transport, params) as channel:
        try:
            make_placeholder(disk.path)
        except FileExistsError:
            raise CallError("busy", f"{disk.name} is taken by another file in this VM") from None
        except FileNotFoundError as error:
            raise folder_is_gone(host.settings.dev) from error
        try:
            await _show(lifetime, channel, disk, read_only=params.read_only)
        finally:
            # Only now no program can mount any more, so this is the last look at the mounts.
            with trio.CancelScope(shield=True):
                await mounts.unmount_by_force(disk.path)
            mounts.clear_placeholder(disk.path)
    if lifetime.reason is not None:
        await reach("import.stopped")


async def _show(lifetime: Lifetime, channel: Channel, disk: Borrowed, *, read_only: bool) -> None:
    with ExitStack() as held:
        ours, theirs = (held.enter_context(end) for end in socket.socketpair())
        mounted, tell_mounted = os.pipe2(os.O_CLOEXEC)
        held.callback(os.close, mounted)
        argv = ["nbdfuse", *(["-r"] if read_only else []), "-P", f"/dev/fd/{tell_mounted}"]
        argv += [str(disk.path), "--fd", str(theirs.fileno())]
        try:
            disk.fuse = fuse = Tool(argv, pass_fds=[theirs.fileno(), tell_mounted])
        finally:
            os.close(tell_mounted)
            theirs.close()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fuse.relay_log)
                drained = trio.Event()
                nursery.start_soon(_carry, lifetime, channel, ours, drained)
                await reach("import.spawned")
                await _until_mounted(mounted, fuse)
                await reach("import.ready")
                lifetime.ready({"frontend": disk.name})
                nursery.start_soon(fuse.end_with, lifetime)
                await lifetime.ending()
                await _take_down(disk, fuse, drained)
                nursery.cancel_scope.cancel()
        finally:
            await fuse.finish(0)


async def _until_mounted(mounted: int, fuse: Tool) -> None:
    """Wait until nbdfuse has written its pid into the pipe, which it does once the file is
    there."""
    with trio.move_on_after(READY_SECONDS):
        await trio.lowlevel.wait_readable(mounted)
        if os.read(mounted, 1):
            return
        await fuse.ended()
    raise CallError("failed", f"the disk cannot be shown: {fuse.how_it_ended()}")


async def _carry(
    lifetime: Lifetime, channel: Channel, ours: socket.socket, drained: trio.Event
) -> None:
    result = await carry(channel, ours)
    drained.set()
    ours.close()  # nbdfuse, if it still runs, sees the end and answers reads with errors
    await lifetime.end_after_pump(result.why)


async def _take_down(disk: Borrowed, fuse: Tool, drained: trio.Event) -> None:
    # Without the channel or nbdfuse there is nothing left to save by waiting.
    alive = fuse.child.returncode is None and not drained.is_set()
    graceful = alive and await mounts.unmount(disk.path)
    if not graceful:
        await mounts.unmount_by_force(disk.path)
    await reach("import.unmounted")
    await fuse.finish(EXIT_SECONDS if graceful else 0)
    with trio.move_on_after(DRAIN_SECONDS if graceful else 0):
        await drained.wait()
