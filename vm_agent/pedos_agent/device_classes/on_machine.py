"""The machine's own devices of all classes that have such, as dom0's agent lists them.

Read from sysfs and /proc, whose roots are parameters so that tests bring their own tree.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import trio

from pedos_agent.device_classes.base import DeviceClass
from pedos_agent.device_classes.registered import CLASSES
from pedos_agent.inventory.local_device import LocalDevice, unseen_class
from pedos_agent.inventory.looking import Looking, Untold
from pedos_agent.system.hardware_names import HardwareNames
from pedos_agent.system.revision import Revision
from pedos_agent.system.uevents import KERNEL, heard, keep_hearing, opened


def of_machines(classes: Sequence[DeviceClass]) -> list[DeviceClass]:
    """The classes of which a machine has devices of its own."""
    return [each for each in classes if each.subsystem is not None]


def scan(
    sys_root: Path = Path("/sys"),
    proc_root: Path = Path("/proc"),
    names: HardwareNames = HardwareNames(()),  # noqa: B008 - without folders it knows nothing
    classes: Sequence[DeviceClass] = CLASSES,
) -> list[LocalDevice]:
    """Look at the machine once. A device, or a class, that cannot be looked at is `unseen`; OSError
    if this process lacks something for all of them."""
    found, untold = [], Untold()
    try:
        for each in of_machines(classes):
            with untold.at(each.name):
                found += each.on_machine(sys_root, proc_root, names)
    finally:
        names.forget_files()
    return [*found, *(unseen_class(*each) for each in untold.items())]


async def watch(
    deliver: Callable[[list[LocalDevice]], None],
    classes: Sequence[DeviceClass] = CLASSES,
    *,
    failed: Callable[[str], None] = lambda _why: None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Deliver the present devices, now and after every kernel event; started() after the first
    time.

    A failed look is repeated later; `failed` gets the reason.
    """
    subsystems = [each.subsystem for each in classes if each.subsystem is not None]
    looking = Looking(deliver, failed)
    names = HardwareNames()
    rescan = Revision()

    def sources() -> contextlib.closing[socket.socket]:
        return contextlib.closing(opened(KERNEL, missing="usb and pci are listed once"))

    async def hear(events: socket.socket) -> None:
        while True:
            await heard(events, subsystems)
            rescan.bump()

    async with trio.open_nursery() as nursery:
        await nursery.start(keep_hearing, sources, hear, [rescan])
        while True:
            seen = rescan.number
            again = await looking.look(partial(scan, names=names, classes=classes))
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            with trio.move_on_after(again):
                await rescan.after(seen)
