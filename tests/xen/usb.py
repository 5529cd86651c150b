"""USB devices that one guest borrows from another, seen from both: see test_usb.py."""

from __future__ import annotations

import concurrent.futures
import json
import re
import time
from collections import Counter
from typing import TYPE_CHECKING

from .driving import PAUSE, WAIT_LIMIT, domid, is_there, wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .bench import Bench, Result

SOURCE, TARGET = "sys-usb", "work"

#: Sets `disk`, to the name of the last disk of a borrowed device; to nothing if there is none. With
#: quotes, as the disk may come between two looks, and the pattern itself would be its name then.
DISK = (
    "disk=; for each in /sys/devices/platform/vhci_hcd.*/usb*/*/*/host*/target*/*/block/sd*; "
    'do [ ! -b "/dev/${each##*/}" ] || disk=${each##*/}; done'
)
#: Waits for it.
WAIT = f"{DISK}; until [ $disk ]; do sleep 0.1; {DISK}; done"
#: Reads it again and again, until it ends in an error; returns when it is in the middle of that.
READING = (
    f"{WAIT}; (while dd if=/dev/$disk of=/dev/null bs=64K iflag=direct; do :; done) "
    "> /dev/null 2>&1 & "
    f"{WAIT}; before=$(awk '{{print $3}}' /sys/block/$disk/stat); "
    "until [ $(awk '{print $3}' /sys/block/$disk/stat) -gt $((before + 4096)) ]; "
    "do sleep 0.1; done"
)

#: What nothing is to be left of in a guest: devices at usbip-host, ports in use, the kernel's
#: threads of both, and programs that use a device; and how many descriptors the agent has.
KERNEL = r"""
for each in /sys/bus/usb/drivers/usbip-host/*-*; do
    [ ! -e "$each" ] || echo "lent: ${each##*/}"
done
set -- /sys/devices/platform/vhci_hcd.*/status*
[ ! -e "$1" ] || grep -hE '^(hs|ss) +[0-9]+ 00[^4] ' "$@"
ps -e -o comm= | grep -E '^(stub_[rt]x|vhci_[rt]x|dd)$'
pid=$(systemctl show -p MainPID --value pedos-agent)
[ $pid = 0 ] || { set -- /proc/$pid/fd/*; echo "descriptors: $#"; }
"""

#: Where agents say which step they have reached, and what is there when one was killed at it.
STEPS, KILLED = "/run/steps.sock", "/run/killed"
KILLER = f"""
import os, signal, socket, struct, sys
listening = socket.socket(socket.AF_UNIX)
listening.bind({STEPS!r})
listening.listen(16)
while True:
    agent, _ = listening.accept()
    if agent.makefile().readline().split()[-1:] == sys.argv[1:]:
        pid, *_ = struct.unpack("3i", agent.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        os.kill(pid, signal.SIGKILL)
        open({KILLED!r}, "w").close()
        break
    agent.close()
"""


def kill_at(bench: Bench, where: str, step: str) -> None:
    """The agent there is killed when it reaches that step, once."""
    begin = (
        f"rm -f {STEPS} {KILLED}; cat > /run/killer; "
        f"python3 -SI /run/killer {step} > /dev/null 2>&1 & "
        f"until [ -e {STEPS} ]; do sleep 0.1; done"
    )
    bench.run(where, begin, given=KILLER).check()


def disk_of(port: str) -> str:
    """Waits for the disk of a USB device, in its source, and sets `disk` to its name."""
    look = f"set -- /sys/bus/usb/devices/{port}/*/host*/*/*/block/*"
    return f'{look}; until [ -e "$1" ]; do sleep 0.1; {look}; done; disk=${{1##*/}}'


def speed(bench: Bench, mib: int, vm: str = TARGET) -> float:
    """MB/s of reading so much from the borrowed disk: the faster of two times."""
    read = f"dd if=/dev/$disk of=/dev/null bs=1M count={mib} iflag=direct 2>&1"
    said = bench.run(vm, f"{WAIT}; {read}; {read}").check()
    seconds = [float(each) for each in re.findall(r"copied, ([0-9.e-]+) s", said)]
    return mib * (1 << 20) / min(seconds) / 1e6


#: Prints what is below a path in xenstore.
VCHANS = 'look() { xenstore-ls -f $1 2> /dev/null | sed "s|$1||; s/ = .*//"; }; look'


def attach(bench: Bench, device: str, vm: str = TARGET, *, limit: float = WAIT_LIMIT) -> None:
    """Returns when the VM's kernel has configured the device."""
    bench.run("dom0", f"qvm-device usb attach {vm} {device}", limit=limit).check()


def detach(bench: Bench, device: str, vm: str = TARGET) -> Result:
    """A detach as a user asks for it."""
    return bench.run("dom0", f"qvm-device usb detach {vm} {device}")


def read_on(bench: Bench, vm: str = TARGET) -> None:
    """Something there reads a borrowed disk when this returns, and goes on."""
    bench.run(vm, READING).check()


def driver(bench: Bench, device: str) -> str:
    """The driver that has a device in its source: `usb` is no one's but the kernel's own."""
    shown = bench.run(SOURCE, f"readlink /sys/bus/usb/devices/{device.partition(':')[2]}/driver")
    return shown.out.strip().rpartition("/")[2]


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


def more(now: str, before: str) -> bool:
    """Whether there is a line that was not there before, or an agent with more descriptors. What a
    domain that has ended takes along is fine."""
    (now, many), (before, few) = (_apart(text) for text in (now, before))
    return bool(Counter(now.splitlines()) - Counter(before.splitlines())) or many > few


def _apart(text: str) -> tuple[str, int]:
    rest, _, number = text.partition("descriptors: ")
    return rest, int(number or 0)


def assert_nothing_left(
    bench: Bench, before: Mapping[str, str], *, limit: float = WAIT_LIMIT
) -> None:
    """That all is as it was, in the guests that still run, at the latest in so many seconds."""
    guests = [name for name in (SOURCE, TARGET) if is_there(bench, name)]
    wait_for(bench, *(f"agent {name}" for name in guests))
    end = time.monotonic() + limit
    while True:
        now = picture(bench, *guests)
        left = {
            what: (text, before[what]) for what, text in now.items() if more(text, before[what])
        }
        if not left:
            return
        assert time.monotonic() < end, left
        time.sleep(PAUSE)
