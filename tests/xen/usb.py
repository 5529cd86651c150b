"""USB devices that one guest borrows from another, seen from both: see test_usb.py."""

from __future__ import annotations

import concurrent.futures
import json
import time
from typing import TYPE_CHECKING

from .driving import PAUSE, WAIT_LIMIT, domid, is_there, wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .bench import Bench, Result

SOURCE, TARGET = "sys-usb", "work"

#: Sets `disk`, to the name of the first disk of a borrowed device; to nothing if there is none.
DISK = (
    "disk=; for each in /sys/devices/platform/vhci_hcd.*/usb*/*/*/host*/target*/*/block/sd*; "
    "do [ ! -b /dev/${each##*/} ] || disk=${each##*/}; done"
)
#: Waits for it.
WAIT = f"{DISK}; until [ $disk ]; do sleep 0.1; {DISK}; done"
#: What nothing is to be left of in a guest: devices at usbip-host, ports in use, the kernel's
#: threads of both, and programs that use a device; and how many descriptors the agent has.
KERNEL = r"""
for each in /sys/bus/usb/drivers/usbip-host/*-*; do [ ! -e $each ] || echo "lent: ${each##*/}"; done
set -- /sys/devices/platform/vhci_hcd.*/status*
[ ! -e $1 ] || grep -hE '^(hs|ss) +[0-9]+ 00[^4] ' "$@"
ps -e -o comm= | grep -E '^(stub_[rt]x|vhci_[rt]x|dd)$'
pid=$(systemctl show -p MainPID --value pedos-agent)
[ $pid = 0 ] || { set -- /proc/$pid/fd/*; echo "descriptors: $#"; }
"""


def disk_of(port: str) -> str:
    """Sets `disk` to the name of the disk of a USB device, in its source."""
    return f"set -- /sys/bus/usb/devices/{port}/*/host*/*/*/block/*; disk=${{1##*/}}"


#: Prints what is below a path in xenstore.
VCHANS = 'look() { xenstore-ls -f $1 2> /dev/null | sed "s|$1||; s/ = .*//"; }; look'


def attach(bench: Bench, device: str, vm: str = TARGET, *, limit: float = WAIT_LIMIT) -> None:
    """Returns when the VM's kernel has configured the device."""
    bench.run("dom0", f"qvm-device usb attach {vm} {device}", limit=limit).check()


def detach(bench: Bench, device: str, vm: str = TARGET) -> Result:
    """A detach as a user asks for it."""
    return bench.run("dom0", f"qvm-device usb detach {vm} {device}")


def picture(bench: Bench, *guests: str) -> dict[str, str]:
    """What there is of lent USB devices, in these guests, in xenstore, and for dom0."""
    looks = {guest: (guest, KERNEL) for guest in guests}
    for guest in guests:
        path = f"/local/domain/{domid(bench, guest)}/data/vchan"
        looks[f"vchans of {guest}"] = ("dom0", f"{VCHANS} {path}")
    looks["users"] = ("dom0", "bench-look devices usb")
    with concurrent.futures.ThreadPoolExecutor() as threads:
        asked = {what: threads.submit(bench.run, *look) for what, look in looks.items()}
        said = {what: each.result().out for what, each in asked.items()}
    uses = {name: each["attachments"] for name, each in json.loads(said["users"]).items()}
    said["users"] = str({name: used for name, used in uses.items() if used})
    return said


def assert_nothing_left(
    bench: Bench, before: Mapping[str, str], *, limit: float = WAIT_LIMIT
) -> None:
    """That all is as it was, in the guests that still run, at the latest in so many seconds."""
    guests = [name for name in (SOURCE, TARGET) if is_there(bench, name)]
    wait_for(bench, *(f"agent {name}" for name in guests))
    end = time.monotonic() + limit
    while True:
        now = picture(bench, *guests)
        left = {name: (text, before[name]) for name, text in now.items() if text != before[name]}
        if not left:
            return
        assert time.monotonic() < end, left
        time.sleep(PAUSE)
