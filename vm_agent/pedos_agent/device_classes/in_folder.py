"""Local mode's devices: a file in DEVICES/CLASS is a device plugged into this VM.

Its class decides what a file is; by default, a regular file describes a device that can be listed.
Everything else there (folders, FIFOs, sockets, names that start with a dot) is no device.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import trio
from pedos_host.folder_watch import FolderWatch
from pedos_host.mounts import fuse_mounts
from pedos_host.waiting import first_of
from pedos_protocol.fields import DEVICES_MAX
from pedos_protocol.names import natural_key

from pedos_agent.device_classes.base import Carried, DeviceClass, nothing_carried
from pedos_agent.device_classes.pinned import Pinner
from pedos_agent.device_classes.registered import CLASSES
from pedos_agent.inventory.local_device import LocalDevice, device_id_of, unseen_class
from pedos_agent.inventory.looking import Looking, Untold, seen
from pedos_agent.inventory.priority import Priority
from pedos_agent.inventory.report import Key
from pedos_agent.system.reading import names_in
from pedos_agent.system.roots import ROOTS, Roots

log = logging.getLogger(__name__)

CarriedOf = Callable[[str], Carried]

# Between two scans: a file that is being copied in changes thousands of times a second.
SETTLE_SECONDS: Final = 0.02
# Seconds between two looks at folders that cannot be watched: a person who plugs in a disk waits
# that long.
UNWATCHED_SECONDS: Final = 2.0
# A look covers no more names than a VM may report devices, so that it stays short.
NAMES_MAX: Final = DEVICES_MAX


def scan(
    devices: Path,
    carried: CarriedOf = nothing_carried,
    roots: Roots = ROOTS,
    *,
    names: Mapping[str, Sequence[str]] | None = None,
    classes: Sequence[DeviceClass] = CLASSES,
) -> list[LocalDevice]:
    """Look at all folders once, or at these `names` in them by class.

    A file, or a folder, that cannot be looked at is `unseen`; OSError if this process lacks
    something for all of them.
    """
    found: list[LocalDevice] = []
    if names is None:
        names, _, found = chosen(devices, {}, NAMES_MAX, classes)

    def is_borrowed(path: Path) -> bool:
        return any(each.is_borrowed(path) for each in classes)

    for each in classes:
        looked_at = _scan_folder(devices, names.get(each.name, ()), each, is_borrowed)
        found += each.complete(looked_at, carried(each.name), roots)
    return found


def chosen(
    devices: Path,
    ranks: Mapping[Key, int],
    at_most: int,
    classes: Sequence[DeviceClass] = CLASSES,
) -> tuple[dict[str, list[str]], dict[str, int], list[LocalDevice]]:
    """The names to look at by class, how many are left out of each class because of `at_most`, and
    the classes whose folder cannot be read, `unseen`.

    Those whose device has a rank come first, the lowest before the others.
    """
    found, untold = [], Untold()
    for each in classes:
        with untold.at(each.name):
            found += [
                (each.name, name, device_id_of(name))
                for name in names_in(devices / each.name)
                if not name.startswith(".")
            ]

    def order(item: tuple[str, str, str]) -> tuple[bool, object]:
        _, name, device = item
        # Names that are valid ids come first: a cleaned name must not take their place.
        return device != name, natural_key(name)

    found.sort(key=order)
    by_rank = sorted(found, key=lambda item: ranks.get((item[0], item[2]), math.inf))
    taken = set(by_rank[:at_most])
    names: dict[str, list[str]] = {}
    for item in found:
        if item in taken:
            names.setdefault(item[0], []).append(item[1])
    left_out = Counter(device_class for device_class, _, _ in by_rank[at_most:])
    return names, left_out, [unseen_class(*each) for each in untold.items()]


async def watch(
    devices: Path,
    deliver: Callable[[list[LocalDevice], Mapping[str, int]], None],
    priority: Priority,
    carried: CarriedOf = nothing_carried,
    at_most: int = NAMES_MAX,
    classes: Sequence[DeviceClass] = CLASSES,
    *,
    failed: Callable[[str], None] = lambda _why: None,
    release_removed: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Deliver the present devices, now and after every change; started() after the first time.

    A change is one in the folders, and of other uses of the devices, as far as their class knows.
    At most `at_most` names are looked at, by their `priority`; the number of the others is
    delivered, by class. A failed look is repeated later; `failed` gets the reason, and
    `release_removed` releases what was removed meanwhile. If the system has no more watches, it
    looks again every UNWATCHED_SECONDS instead.
    """
    folders = [str(devices / each.name) for each in classes]
    left_out: Mapping[str, int] = {}
    all_uses = [(each.name, uses) for each in classes if (uses := each.uses()) is not None]
    wishes = 0
    said = False

    def scan_chosen(ranks: Mapping[Key, int], now: Mapping[str, Carried]) -> list[LocalDevice]:
        nonlocal left_out
        names, left_out, unseen_classes = chosen(devices, ranks, at_most, classes)
        found = scan(devices, now.__getitem__, names=names, classes=classes)
        return [*unseen_classes, *found]

    def take(found: list[LocalDevice]) -> None:
        for name, uses in all_uses:
            uses.matter_to([item for item in found if item.key[0] == name])
        deliver(found, left_out)

    looking = Looking(take, failed)

    async def look() -> float:
        nonlocal wishes
        wishes = priority.wishes.number
        for _, uses in all_uses:
            uses.begin()
        # Taken here, because the look runs in a thread.
        now = {each.name: carried(each.name) for each in classes}
        again = await looking.look(partial(scan_chosen, priority.ranks(), now))
        priority.heed(wishes)  # also after a failed look: a wish must not wait for a successful one
        if again < math.inf:
            with contextlib.suppress(OSError):  # the next look that fails tries it again
                await release_removed()
        return again

    async with trio.open_nursery() as nursery:
        for _, uses in all_uses:
            await nursery.start(uses.follow)
        while True:
            try:
                with FolderWatch(folders) as changes:
                    await changes.follow_links()
                    while True:
                        again = await look()
                        task_status.started()
                        task_status = trio.TASK_STATUS_IGNORED
                        with trio.move_on_after(again):
                            wish = partial(priority.wishes.after, wishes)
                            waits = [wait for _, uses in all_uses for wait in uses.waits()]
                            await first_of(changes.changed, wish, *waits)
                            await trio.sleep(SETTLE_SECONDS)
            except OSError as error:
                if not said:
                    log.warning(
                        "%s cannot be watched (%s): looking every %g s",
                        *(devices, error, UNWATCHED_SECONDS),
                    )
                said = True
            again = await look()
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            await trio.sleep(min(again, UNWATCHED_SECONDS))


def _scan_folder(
    devices: Path,
    names: Collection[str],
    device_class: DeviceClass,
    is_borrowed: Callable[[Path], bool],
) -> list[LocalDevice]:
    found: dict[str, LocalDevice] = {}
    folder = devices / device_class.name
    mounted = {os.path.basename(point) for point in fuse_mounts(folder)} if names else ()
    pin = Pinner(mounted, is_borrowed)
    for name in names:
        device_id = device_id_of(name)
        look = partial(device_class.in_folder, os.path.join(folder, name), device_id, pin)
        device = seen(device_class.name, device_id, look)
        if device is not None:
            found.setdefault(device_id, device)
    return list(found.values())
