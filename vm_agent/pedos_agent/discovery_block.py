"""The block devices of a Xen domain: disks and partitions from sysfs, described by udev's database.

A device's id is the kernel's name (`sda1`), which is also its node in /dev: that is what dom0 has
the toolstack open. Beside it stands an identity that survives replugging:
`SERIAL:PARTITION-UUID:FILE-SYSTEM-UUID`, of which the last is only used where there is no other.
The VM's own disks (xvda to xvdd) and those that it has borrowed are not offered. Of the other xvd
disks only those that were there when the agent started are: a later one is being lent to this VM.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import select
import socket
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

import attrs
import trio
from pedos_protocol.agent_messages import Device
from pedos_protocol.names import frontend_of, harmless_text, is_device_id, natural_key

from .block_use import (
    ROOTS,
    Roots,
    backing_file,
    connecting,
    held,
    is_number,
    lent,
    looped,
    mounted,
    names_in,
    read_field,
    read_table,
    swapped,
    volume,
)
from .found import HELD, Found, Inode, is_held
from .revision import Revision
from .uevents import KERNEL, SETTLE_SECONDS, UDEV, heard, opened

log = logging.getLogger(__name__)

# What this VM runs from, memory, and what is never a disk.
_NOT_OFFERED: Final = re.compile(r"(xvd[a-d]|ram|zram|fd|mtdblock|nbd)[0-9p]*")
_SECTOR: Final = 512  # of `size` in sysfs, whatever the device's own sectors are
_UDEV_BYTES: Final = 64 * 1024
# Each part of an identity: three and two colons are within names.IDENTITY_MAX.
_SERIAL_MAX: Final = 48
_UUID_MAX: Final = 36
_UNUSUAL: Final = re.compile(r"[^A-Za-z0-9._-]")

_SUBSYSTEM: Final = "block"
_BACKENDS: Final = "xen-backend"  # of the kernel's blkback
# A backend gets its device without an event; until it has it, it is looked again, so often. libxl
# gives up after 40 s.
CONNECT_SECONDS: Final = 1.0
CONNECT_LOOKS: Final = 45


@attrs.frozen
class Carried:
    """What the agent itself does with disks."""

    lent: Collection[tuple[str, int]] = ()  # device id and domain
    borrowed: Collection[str] = ()  # names of frontends


@attrs.frozen
class _Raw:
    """A block device as sysfs has it."""

    name: str
    number: str
    parent: str | None
    size: int
    read_only: bool


def scan(
    carried: Carried = Carried(),  # noqa: B008 - it is immutable
    roots: Roots = ROOTS,
    is_held: Callable[[str], bool] = is_held,
) -> list[Found]:
    """Look at all block devices once; what goes away meanwhile is not listed."""

    def is_offered(name: str) -> bool:
        is_ours = _NOT_OFFERED.fullmatch(name) or frontend_of(name) in carried.borrowed
        return is_device_id(name) and not is_ours

    # Nothing else is read, and in most VMs there is nothing else: they only borrow.
    raw = {each.name: each for each in _raw_devices(roots.sys, is_offered)}
    if not raw:
        return []
    reasons = _reasons(roots, raw, carried.lent)
    ours = {name for name, _ in carried.lent}
    found = []
    for name in sorted(raw, key=natural_key):
        each = raw[name]
        path = f"{roots.dev}/{name}"
        try:
            status = os.stat(path)
            busy = reasons.get(name)
            # The agent itself holds what it lends, and with it its disk.
            if busy is None and not _is_family(name, ours, raw) and is_held(path):
                busy = HELD
        except OSError:
            continue
        found.append(_device(each, busy, roots, path, Inode.of(status)))
    return found


async def watch(
    deliver: Callable[[list[Found]], None],
    carried: Callable[[], Carried],
    news: Revision,
    roots: Roots = ROOTS,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Deliver what is there, now and whenever a device, a mount or swap space comes or goes.

    Each time it bumps `news`. Who bumps it too makes it look: the agent, when `carried` is another.
    """
    own = _frontends(roots)
    looks_left = CONNECT_LOOKS
    with _events(roots) as (uevents, tables):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_follow_uevents, uevents, news)
            nursery.start_soon(_follow_tables, tables, news)
            while True:
                seen = news.number
                there = _frontends(roots)
                own &= there
                now = carried()
                now = attrs.evolve(now, borrowed={*now.borrowed, *(there - own)})
                again = looks_left and connecting(roots.sys)  # before: it may connect meanwhile
                deliver(await trio.to_thread.run_sync(scan, now, roots))
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                with trio.move_on_after(CONNECT_SECONDS if again else math.inf) as waited:
                    await news.after(seen)
                looks_left = looks_left - 1 if waited.cancelled_caught else CONNECT_LOOKS


def _frontends(roots: Roots) -> set[str]:
    names = map(frontend_of, names_in(f"{roots.sys}/class/block"))
    return {name for name in names if name is not None}


def reasons_for(name: str, roots: Roots) -> str | None:
    """Why this one device, offered or not, is in use; None if it is not."""
    raw = {each.name: each for each in _raw_devices(roots.sys, lambda _: True)}
    return _reasons(roots, raw, ()).get(name)


def _raw_devices(sys_root: Path, is_wanted: Callable[[str], bool]) -> Iterator[_Raw]:
    """Those of them that have a size, which a drive without a disk has not."""
    folder = f"{sys_root}/class/block"
    names = names_in(folder)
    for name in filter(is_wanted, names):
        where = f"{folder}/{name}"
        size = read_field(f"{where}/size")
        if size == "0" or not size.isdecimal():
            continue
        number = read_field(f"{where}/dev")
        if not is_number(number):
            continue
        try:
            parent = os.path.basename(os.path.dirname(os.readlink(where)))
        except OSError:
            continue  # unplugged
        # A disk may be below a disk too: the boot areas of a memory card.
        is_partition = parent in names and os.path.exists(f"{where}/partition")
        yield _Raw(
            name=name,
            number=number,
            parent=parent if is_partition else None,
            size=int(size) * _SECTOR,
            read_only=read_field(f"{where}/ro") == "1",
        )


def _reasons(
    roots: Roots, raw: dict[str, _Raw], exports: Collection[tuple[str, int]]
) -> dict[str, str]:
    """Name -> why it is in use: itself, its disk as a whole, or a partition of it."""
    numbers = _node_numbers(roots, raw)
    by_number = {
        **looped(roots.sys, raw, numbers),
        **swapped(read_table(f"{roots.proc}/swaps"), numbers),
        **mounted(read_table(f"{roots.proc}/self/mountinfo"), numbers),
    }
    served = lent(roots.sys, numbers)
    own: dict[str, str] = {}
    for name, each in raw.items():
        reason = by_number.get(each.number) or held(roots.sys, name)
        if reason is None:
            others = {
                domid for domid in served.get(each.number, ()) if (name, domid) not in exports
            }
            if others:
                whom = ", ".join(map(str, sorted(others)))
                reason = f"lent to domain {whom} by the toolstack"
        if reason is not None:
            own[name] = reason
    result = dict(own)
    for name, each in raw.items():
        if each.parent is None:
            continue
        if name in own:
            result.setdefault(each.parent, f"{name} is {own[name]}")
        elif each.parent in own:
            result.setdefault(name, f"{each.parent} is {own[each.parent]}")
    return result


def _node_numbers(roots: Roots, raw: dict[str, _Raw]) -> dict[str, str]:
    """Path of a device node -> its number; also by the names of volumes, as mounts have them."""
    numbers = {}
    for name, each in raw.items():
        numbers[f"/dev/{name}"] = each.number
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


def _device(each: _Raw, busy: str | None, roots: Roots, path: str, inode: Inode) -> Found:
    said = udev_properties(read_field(f"{roots.udev}/b{each.number}", _UDEV_BYTES))
    device = Device(
        device_class="block",
        device=each.name,
        identity=identity_of(said),
        description=harmless_text(_description(each, said, roots.sys)),
        size=each.size,
        parent=each.parent,
        read_only=each.read_only,
        busy=None if busy is None else harmless_text(busy),
    )
    return Found(device, path, inode)


def udev_properties(text: str) -> dict[str, str]:
    """The properties in a file of udev's database: its lines `E:NAME=VALUE`.

    Lines end in a newline and nothing else. A label may have other characters that some call an
    end, and what stands behind them is no property of anybody's.
    """
    found = {}
    for line in text.split("\n"):
        name, is_one, value = line.removeprefix("E:").partition("=")
        if line.startswith("E:") and is_one:
            found[name] = value
    return found


def identity_of(said: dict[str, str]) -> str:
    """SERIAL:PARTITION-UUID:FILE-SYSTEM-UUID, or "" for a device that has none of them.

    The file system's is left out where there is another one: it changes when a disk is formatted,
    and the disk is the same.
    """
    serial = said.get("ID_SERIAL") or said.get("ID_WWN") or ""
    partition = said.get("ID_PART_ENTRY_UUID", "")
    system = "" if serial or partition else said.get("ID_FS_UUID", "")
    parts = (serial[:_SERIAL_MAX], partition[:_UUID_MAX], system[:_UUID_MAX])
    return ":".join(_UNUSUAL.sub("_", part) for part in parts) if any(parts) else ""


def _description(each: _Raw, said: dict[str, str], sys_root: Path) -> str:
    """What a person knows it by: maker and model, or the image; file system, label and UUID."""
    if each.parent is not None:
        what = said.get("ID_PART_ENTRY_NAME", "")
    else:
        folder = f"{sys_root}/class/block/{each.name}"
        maker = said.get("ID_VENDOR") or _text(read_field(f"{folder}/device/vendor"))
        model = said.get("ID_MODEL") or _text(read_field(f"{folder}/device/model"))
        what = " ".join(filter(None, (maker, model))).replace("_", " ")
        what = what or backing_file(sys_root, each.name) or volume(sys_root, each.name)
    system = [said.get(f"ID_FS_{part}", "") for part in ("TYPE", "LABEL", "UUID")]
    words = [what, " ".join(filter(None, system))]
    return "; ".join(filter(None, words)) or ("partition" if each.parent else "disk")


def _text(field: str) -> str:
    """Some buses have a number there, which says nothing to a person."""
    return "" if field.startswith("0x") else field


# Events


@contextlib.contextmanager
def _events(roots: Roots) -> Iterator[tuple[socket.socket, select.epoll]]:
    """The sources of news: udev's and the kernel's, and the tables of mounts and swaps.

    Those tables are always readable, and have "exceptional" news when they change (proc(5)); so
    they are watched for that alone, by an epoll instance that can itself be waited for.
    """
    with contextlib.ExitStack() as stack:
        tables = stack.enter_context(contextlib.closing(select.epoll()))
        for name in ("self/mountinfo", "swaps"):
            with contextlib.suppress(OSError):
                file = stack.enter_context(open(roots.proc / name, "rb"))
                tables.register(file, select.EPOLLPRI | select.EPOLLERR | select.EPOLLET)
        yield (
            stack.enter_context(opened(KERNEL | UDEV, missing="plugging in is not noticed")),
            tables,
        )


async def _follow_uevents(uevents: socket.socket, news: Revision) -> None:
    while True:
        await heard(uevents, [_SUBSYSTEM], of_kernel=[_BACKENDS])
        news.bump()


async def _follow_tables(tables: select.epoll, news: Revision) -> None:
    while True:
        await trio.lowlevel.wait_readable(tables)
        await trio.sleep(SETTLE_SECONDS)
        tables.poll(0)
        news.bump()
