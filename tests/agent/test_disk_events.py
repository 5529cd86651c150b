"""Uses of disks elsewhere on the machine are noticed when they begin and when they end."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from pedos_agent.device_classes import in_folder as discovery_folder
from pedos_agent.device_classes.block import disk_events
from pedos_agent.inventory.local_device import LocalDevice
from pedos_agent.inventory.priority import Priority
from pedos_agent.settings import Settings
from pedos_agent.system import uevents
from pedos_agent.system.revision import Revision
from pedos_agent.system.roots import ROOTS
from pedos_vchan import running
from pedos_vchan.ready import ready

from tests.patience import PATIENCE

from .conftest import ATTACHMENT, FakeDom0, needs_fuse
from .loops import looped
from .test_used_elsewhere import bound, needs_root

Start = Callable[[Settings], Awaitable[FakeDom0]]


@needs_fuse
async def test_a_file_whose_loop_device_is_taken_down_can_be_lent_without_another_change(
    settings: Settings, start: Start
) -> None:
    image = settings.devices / "block/image"
    image.write_bytes(bytes(1 << 20))
    dom0 = await start(settings)
    with looped(image) as loop:
        used = f"used by {os.path.basename(loop)}"
        await dom0.until(lambda report: report.devices[0].busy == used)
    await dom0.until(lambda report: report.devices[0].busy is None)
    await dom0.lend(ATTACHMENT, "image", 3)


async def test_what_uses_disks_is_heard_of_by_those_that_have_some(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uevents, "SETTLE_SECONDS", 0)
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    monkeypatch.setattr(disk_events, "opened", lambda _groups, **_words: ours)
    looks: list[object] = []
    looked = Revision()

    def deliver(found: list[LocalDevice], _left_out: object) -> None:
        looks.append([item.key for item in found])
        looked.bump()

    with kernel:
        async with trio.open_nursery() as nursery:
            await nursery.start(discovery_folder.watch, settings.devices, deliver, Priority())
            kernel.send(b"change@/devices/virtual/block/loop0\0SUBSYSTEM=block\0")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert looks == [[]], "there is no disk that a loop device could use"
            seen = looked.number
            (settings.devices / "block/x.img").write_bytes(b"x")
            seen = await looked.after(seen)
            await trio.testing.wait_all_tasks_blocked(0.01)
            seen = looked.number
            kernel.send(b"change@/devices/virtual/block/loop0\0SUBSYSTEM=block\0")
            with trio.fail_after(PATIENCE):
                await looked.after(seen)
            assert looks[-1] == [("block", "x.img")]
            nursery.cancel_scope.cancel()


@needs_root
def test_a_mount_and_its_end_are_heard_of_in_a_program(tmp_path: Path) -> None:
    """The kernel tells a change of this table once, to the first who looks."""
    running.run(mount_thrice, tmp_path)


async def mount_thrice(folder: Path) -> None:
    (file := folder / "file").touch()
    mounts, point = Revision(), folder / "point"
    ready()  # as in an agent with channels
    async with trio.open_nursery() as nursery:
        await nursery.start(disk_events.follow, ROOTS, 0, Revision(), mounts, Revision())
        with trio.fail_after(PATIENCE):
            for _ in range(3):
                await trio.sleep(2 * uevents.SETTLE_SECONDS)  # the loop waits, all others too
                seen = mounts.number
                with bound(file, point):
                    seen = await mounts.after(seen)
                await mounts.after(seen)
        nursery.cancel_scope.cancel()
