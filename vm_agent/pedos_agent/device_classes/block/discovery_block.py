"""The block devices of a Xen domain: disks and partitions from sysfs, described by udev's database.

A device's id is the kernel's name (`sda1`), which is also its node in /dev: dom0 has the toolstack
open that. Beside it the device has an identity that survives replugging:
`SERIAL:PARTITION-UUID:FILE-SYSTEM-UUID`, of which the last is only used if there is no other. The
VM's own disks (xvda to xvdd) and those that it has borrowed are not offered. Of the other xvd disks
only those are that existed when the agent started: a later one is being lent to this VM.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import trio
from pedos_host.exclusive import IN_USE, is_held
from pedos_protocol.agent_messages import Device
from pedos_protocol.fields import SHARES_MAX
from pedos_protocol.frozen import frozen
from pedos_protocol.names import frontend_of, harmless_text, is_device_id, natural_key

from pedos_agent.device_classes.base import Carried
from pedos_agent.device_classes.block import disk_events
from pedos_agent.device_classes.block.areas import SECTOR, Area, Areas, Disks, sharing, why_unknown
from pedos_agent.device_classes.block.block_use import (
    backing_file,
    held,
    is_number,
    looped,
    made_of,
    mounted,
    swapped,
    volume,
)
from pedos_agent.device_classes.block.disk import (
    Disk,
    disk_marks,
    with_held_sharers,
)
from pedos_agent.device_classes.block.drives import has_disc
from pedos_agent.device_classes.block.identity import identity_of
from pedos_agent.device_classes.sysfs import boot_of, usb_device_of
from pedos_agent.device_classes.xen_backends import connecting, lent, lent_to
from pedos_agent.inventory.local_device import Inode, LocalDevice, unseen
from pedos_agent.inventory.looking import Looking, Untold, seen
from pedos_agent.system.reading import (
    is_there,
    lines_of,
    link_target,
    names_in,
    read_bytes,
    read_field,
    read_note,
    read_table,
)
from pedos_agent.system.revision import Revision
from pedos_agent.system.roots import ROOTS, Roots
from pedos_agent.system.udev_text import as_words, udev_properties
from pedos_agent.system.uevents import KERNEL, UDEV

log = logging.getLogger(__name__)

# This VM's system disks, memory, and devices that are never disks.
_NOT_OFFERED: Final = re.compile(r"(xvd[a-d]|ram|zram|fd|mtdblock|nbd)[0-9p]*")
_UDEV_BYTES: Final = 64 * 1024
# A disk that was just plugged in: its identity, and therefore the rule that applies, is not known
# yet.
NOT_KNOWN: Final = "udev has not looked at it yet"

_BACKENDS: Final = "xen-backend"  # of the kernel's blkback
# A backend gets its device without an event; until then the agent looks again at this interval.
# libxl gives up after 40 s.
CONNECT_SECONDS: Final = 1.0
CONNECT_LOOKS: Final = 45


@frozen
class _Raw:
    """A block device as sysfs has it."""

    name: str
    number: str
    parent: str | None
    size: int
    read_only: bool
    usb: str | None = None  # the USB device of which it is a part


def scan(
    carried: Carried = Carried(),  # noqa: B008 - it is immutable
    roots: Roots = ROOTS,
    is_held: Callable[[str], bool] = is_held,
) -> list[LocalDevice]:
    """Look at all block devices once; those that disappear meanwhile are not listed.

    OSError if that fails; a single device that cannot be looked at is `unseen`.
    """

    def is_offered(name: str) -> bool:
        is_ours = _NOT_OFFERED.fullmatch(name) or frontend_of(name) in carried.borrowed
        return is_device_id(name) and not is_ours

    # Nothing else is read, and most VMs have nothing else: they only borrow.
    raw, untold = _raw_devices(roots.sys, is_offered)
    if not raw:
        return []
    areas, shares = _data(roots, raw, untold)
    reasons = _reasons(roots, raw, carried.lent, shares, untold)
    ours = {name for name, _ in carried.lent}
    boot = boot_of(roots.proc)

    def look(name: str) -> LocalDevice | None:
        each, path = raw[name], f"{roots.dev}/{name}"
        status = os.stat(path)
        marks = disk_marks(f"{roots.sys}/class/block/{name}")
        busy = reasons.get(name)
        # The agent itself holds what it lends, and with it its disk.
        if busy is None and not _is_family(name, ours, raw) and is_held(path):
            busy = IN_USE
        database = read_bytes(f"{roots.udev}/b{each.number}", _UDEV_BYTES)
        said = udev_properties((database or b"").decode("utf-8", "replace"))
        if not _has_medium(said, path):
            return None
        device = _device(each, busy, roots, said, shares.get(name, ()))
        if database is None and is_there(roots.udev):
            device = attrs.evolve(device, stale=NOT_KNOWN)
        # Without the kernel's own number for the disk, only an agent that has watched all the time
        # can tell.
        lasts = boot if marks[0] else ""
        return Disk(device, path, Inode.of(status), marks, boot=lasts, areas=areas[name])

    found = [
        unseen("block", name, untold[name])
        if name in untold
        else seen("block", name, partial(look, name))
        for name in sorted(raw, key=natural_key)
    ]
    return with_held_sharers([item for item in found if item is not None])


async def watch(
    deliver: Callable[[list[LocalDevice]], None],
    carried: Callable[[], Carried],
    rescan: Revision,
    roots: Roots = ROOTS,
    *,
    failed: Callable[[str], None] = lambda _why: None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Deliver the present devices, now and whenever a device, a mount or swap space appears or
    disappears.

    Each time it bumps `rescan`. Others bump it too, to trigger a look: the agent, when `carried`
    has changed. A failed look is repeated later; `failed` gets the reason. OSError if it cannot
    begin.
    """
    own = _frontends(roots)
    looks_left = CONNECT_LOOKS
    is_connecting = False
    looking = Looking(deliver, failed)

    def look(now: Carried) -> list[LocalDevice]:
        nonlocal own, is_connecting
        there = _frontends(roots)
        own &= there
        is_connecting = connecting(roots.sys)  # before: it may connect meanwhile
        return scan(attrs.evolve(now, borrowed={*now.borrowed, *(there - own)}), roots)

    async with trio.open_nursery() as nursery:
        await nursery.start(
            disk_events.follow, roots, KERNEL | UDEV, rescan, rescan, rescan, [_BACKENDS]
        )
        while True:
            seen = rescan.number
            again = await looking.look(partial(look, carried()))
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            connects = CONNECT_SECONDS if looks_left and is_connecting else math.inf
            with trio.move_on_after(min(again, connects)) as waited:
                await rescan.after(seen)
            looks_left = max(0, looks_left - 1) if waited.cancelled_caught else CONNECT_LOOKS


def _frontends(roots: Roots) -> set[str]:
    names = map(frontend_of, names_in(f"{roots.sys}/class/block"))
    return {name for name in names if name is not None}


def reasons_for(name: str, roots: Roots, exports: Collection[tuple[str, int]] = ()) -> str | None:
    """Why this one device, offered or not, is in use, by others than `exports` (device id and
    domain); None if it is not."""
    return _all_reasons(roots, exports).get(name)


def uses(roots: Roots) -> dict[str, str]:
    """Number of a device -> why it is in use, for all devices of this machine."""
    found, untold = {}, Untold()
    for name, reason in _all_reasons(roots).items():
        with untold.at(name):  # it has no number then, so no request can name it
            found[read_field(f"{roots.sys}/class/block/{name}/dev")] = reason
    return found


def _all_reasons(roots: Roots, exports: Collection[tuple[str, int]] = ()) -> dict[str, str]:
    raw, untold = _raw_devices(roots.sys, lambda _: True)
    shares = _data(roots, raw, untold)[1]
    return _reasons(roots, raw, exports, shares, untold)


def _data(
    roots: Roots, raw: dict[str, _Raw], untold: Untold
) -> tuple[dict[str, Areas], dict[str, set[str]]]:
    """Where each has its data, and which others share some of it: without a disk and its
    partitions, which `parent` tells."""
    disks = Disks(roots)
    areas: dict[str, Areas] = {}
    for name, each in raw.items():
        areas[name] = (Area(f"disk:{each.number}"),) if each.number else ()
        with untold.at(name):
            areas[name] = disks.areas(name)
            if (why := why_unknown(areas[name])) is not None:
                untold.setdefault(name, why)
    shares = {
        name: {other for other in others if name != raw[other].parent and other != raw[name].parent}
        for name, others in sharing(areas).items()
    }
    return areas, {name: others for name, others in shares.items() if others}


def _raw_devices(
    sys_root: Path, is_wanted: Callable[[str], bool]
) -> tuple[dict[str, _Raw], Untold]:
    """Those that have a size, which a drive without a disk lacks, by their names; also those that
    cannot be looked at, as far as possible."""
    folder = f"{sys_root}/class/block"
    names = names_in(folder)
    found, untold = {}, Untold()
    for name in filter(is_wanted, names):
        with untold.at(name):
            if (each := _raw_device(folder, name, names)) is not None:
                found[name] = each
        if name in untold:
            found[name] = _raw_untold(f"{folder}/{name}", name, names, untold)
    return found, untold


def _raw_untold(where: str, name: str, names: Collection[str], untold: Untold) -> _Raw:
    number = parent = target = None
    with untold.at(name):
        number = read_field(f"{where}/dev")
    with untold.at(name):
        target = link_target(where)
        parent = target and _folder_above(target)
    usb = usb_device_of(target or "")
    return _Raw(name, number or "", parent if parent in names else None, 0, True, usb)


def _folder_above(target: str) -> str:
    """The name of what a device lies in: if it is a partition, of its disk."""
    return os.path.basename(os.path.dirname(target))


def _raw_device(folder: str, name: str, names: Collection[str]) -> _Raw | None:
    where = f"{folder}/{name}"
    size = read_field(f"{where}/size")
    if size == "0" or not size.isdecimal():
        return None
    number = read_field(f"{where}/dev")
    if not is_number(number):
        return None
    target = link_target(where)
    if target is None:
        return None  # unplugged
    parent = _folder_above(target)
    # A disk may be below a disk too: the boot areas of a memory card.
    is_partition = parent in names and is_there(f"{where}/partition")
    return _Raw(
        name=name,
        number=number,
        parent=parent if is_partition else None,
        size=int(size) * SECTOR,
        read_only=read_field(f"{where}/ro") == "1",
        usb=usb_device_of(target),
    )


def _reasons(
    roots: Roots,
    raw: dict[str, _Raw],
    exports: Collection[tuple[str, int]],
    shares: Mapping[str, set[str]],
    untold: Untold,
) -> dict[str, str]:
    """Name -> why it is in use: itself, its disk as a whole, a partition of it, or its data by
    another name. An `untold` device may be in use."""
    numbers = _node_numbers(roots, raw, untold)
    by_number = {
        **looped(roots.sys, raw, numbers),
        **swapped(read_table(f"{roots.proc}/swaps"), numbers),
        **mounted(lines_of(f"{roots.proc}/self/mountinfo"), numbers),
    }
    served = lent(roots.sys, numbers)
    own: dict[str, str] = {}
    made_into: dict[str, set[str]] = {}
    for name, each in raw.items():
        others = {domid for domid in served.get(each.number, ()) if (name, domid) not in exports}
        with untold.at(name):
            if each.number in by_number:
                own[name] = by_number[each.number]
            elif (reason := held(roots.sys, name)) is not None:
                own[name] = reason
                made_into[name] = made_of(roots.sys, name)
            elif others:
                own[name] = lent_to(others)
    for name, why in untold.items():
        own.setdefault(name, f"perhaps in use, as it cannot be looked at: {why}")
    result = dict(own)
    for name, each in raw.items():
        if each.parent is None:
            continue
        if name in own:
            result.setdefault(each.parent, f"{name} is {own[name]}")
        elif each.parent in own:
            result.setdefault(name, f"{each.parent} is {own[each.parent]}")
    for name, sharers in shares.items():
        # A disk that a loop device or a volume is made of reports that itself: that device is its
        # user. Of two volumes on it neither uses the other.
        used = {
            other
            for other in sharers & own.keys()
            if own[other] != f"used by {name}" and name not in made_into.get(other, ())
        }
        for other in sorted(used, key=natural_key):
            result.setdefault(name, f"its data is that of {other}, which is {own[other]}")
        if len(sharers) > SHARES_MAX:
            result.setdefault(name, f"its data is that of {len(sharers)} other devices")
    return result


def _node_numbers(roots: Roots, raw: dict[str, _Raw], untold: Untold) -> dict[str, str]:
    """Path of a device node -> its number; also by the names of volumes, as mounts have them."""
    numbers = {}
    for name, each in raw.items():
        if not each.number:
            continue
        numbers[f"/dev/{name}"] = each.number
        with untold.at(name):
            if mapped := volume(roots.sys, name):
                numbers[f"/dev/mapper/{mapped}"] = each.number
    return numbers


def _is_family(name: str, ours: Collection[str], raw: dict[str, _Raw]) -> bool:
    parent = raw[name].parent
    return (
        name in ours
        or parent in ours
        or any(raw[each].parent == name for each in ours if each in raw)
    )


def _has_medium(said: Mapping[str, str], path: str) -> bool:
    """Whether a drive for discs has one in it: an empty drive has an invented size of a gigabyte or
    two."""
    if not said:
        return has_disc(path)
    return "ID_CDROM" not in said or said.get("ID_CDROM_MEDIA") == "1"


def _device(
    each: _Raw, busy: str | None, roots: Roots, said: Mapping[str, str], shares: Collection[str]
) -> Device:
    return Device(
        device_class="block",
        device=each.name,
        identity=identity_of(said),
        description=harmless_text(_description(each, said, roots.sys)),
        size=each.size,
        parent=each.parent or each.usb,
        parent_class="usb" if each.parent is None and each.usb is not None else None,
        read_only=each.read_only,
        busy=None if busy is None else harmless_text(busy),
        shares=tuple(sorted(shares, key=natural_key)[:SHARES_MAX]),
    )


def _description(each: _Raw, said: Mapping[str, str], sys_root: Path) -> str:
    """The text by which a person recognises it: maker and model, or the image; file system, label
    and UUID."""
    if each.parent is not None:
        what = as_words(said.get("ID_PART_ENTRY_NAME", ""))
    else:
        folder = f"{sys_root}/class/block/{each.name}"
        maker = _said(said, "ID_VENDOR") or _text(read_note(f"{folder}/device/vendor"))
        model = _said(said, "ID_MODEL") or _text(read_note(f"{folder}/device/model"))
        what = " ".join(filter(None, (maker, model)))
        what = what or backing_file(sys_root, each.name) or volume(sys_root, each.name)
    system = [
        said.get("ID_FS_TYPE", ""),
        as_words(said.get("ID_FS_LABEL_ENC", "")) or said.get("ID_FS_LABEL", ""),
        said.get("ID_FS_UUID", ""),
    ]
    parts = [what, " ".join(filter(None, system))]
    return "; ".join(filter(None, parts)) or ("partition" if each.parent else "disk")


def _said(said: Mapping[str, str], name: str) -> str:
    """A property of which udev has two: as it was read, and with `_` for blanks and many other
    characters."""
    return as_words(said.get(f"{name}_ENC", "")) or said.get(name, "").replace("_", " ")


def _text(field: str) -> str:
    """Some buses have a number there, which means nothing to a person."""
    return "" if field.startswith("0x") else field
