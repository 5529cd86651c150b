"""Drives the booted system like its users: by commands in dom0 and in guests."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from .bench import RUN_LIMIT

if TYPE_CHECKING:
    from .bench import Bench, Result

DENIED, NOT_FOUND, BUSY = 3, 4, 6  # exit codes of qvm-*
POLICY = "/etc/pedos/policy.d/20-bench.policy"
#: A stick in the driver domain that can really be pulled out: 32 MiB, two partitions.
STICK = "sys-usb:sda"
#: Another disk there, which comes and goes without the stick.
DISK = "sys-usb:loop0"
HOSTS = "/sys/bus/pseudo/drivers/scsi_debug/add_host"
START_LIMIT = 240.0  # seconds; a guest boots in it
WAIT_LIMIT = 90.0  # seconds; for what takes a second or two on hardware
PAUSE = 1.0  # seconds between two looks that cost the bench nearly nothing


def domid(bench: Bench, name: str) -> int:
    """The number of a domain that is there."""
    return 0 if name == "dom0" else int(bench.run_argv("dom0", ["domid", name]).check())


def is_there(bench: Bench, name: str, *, limit: float = RUN_LIMIT) -> bool:
    """Whether there is such a guest."""
    return bench.run_argv("dom0", ["domid", name], limit=limit).status == 0


def wait_until(bench: Bench, where: str, condition: str, limit: float = WAIT_LIMIT) -> None:
    """Until a shell's condition holds in a domain; fails when it does not in `limit` seconds.

    Each look that starts a program takes time from what is waited for: not for a domain's boot.
    """
    done = bench.run(where, f"until {condition}; do sleep 1; done", limit=limit)
    assert done.status == 0, f"not so within {limit:g} s in {where}: {condition}\n{done.text}"


def wait_for(bench: Bench, *conditions: str, limit: float = WAIT_LIMIT) -> None:
    """Until dom0's service says that all of these hold: see inside/look.py."""
    done = bench.run_argv("dom0", ["bench-look", "until", *conditions], limit=limit)
    assert done.status == 0, f"not so within {limit:g} s: {conditions}\n{done.text}"


def devices(bench: Bench, device_class: str = "block") -> dict[str, dict[str, Any]]:
    """What dom0 lists of a class of devices, by their names, SOURCE:ID."""
    found: dict[str, dict[str, Any]] = json.loads(
        bench.run_argv("dom0", ["bench-look", "devices", device_class]).check()
    )
    return found


def holders(bench: Bench, name: str, device_class: str = "block") -> list[str]:
    """The VMs that a listed device is attached to."""
    return [each["vm"] for each in devices(bench, device_class)[name]["attachments"]]


def plug(bench: Bench) -> None:
    """Puts the stick into the driver domain; returns when dom0 lists it, and it can be lent: udev
    has said what it is."""
    bench.run(
        "sys-usb", f"modprobe scsi_debug dev_size_mb=32 num_parts=2 add_host=0; echo 1 > {HOSTS}"
    ).check()
    wait_for(bench, f"idle {STICK}", f"idle {STICK}2")


def unplug(bench: Bench) -> None:
    """Pulls it out, whoever uses it. What is written on it stays."""
    bench.run("sys-usb", f"echo -1 > {HOSTS}").check()


def plug_gadget(bench: Bench, number: int = 0, *options: str, where: str = "sys-usb") -> str:
    """Plugs in a USB device that needs no hardware: see inside/bench-gadget for the options.
    Returns what sysfs calls it there, when the kernel has it; dom0 lists it a moment later."""
    return bench.run_argv(where, ["bench-gadget", "plug", str(number), *options]).check().strip()


def pull_gadget(bench: Bench, number: int = 0, *, where: str = "sys-usb") -> None:
    """Pulls it out, whoever uses it."""
    bench.run_argv(where, ["bench-gadget", "pull", str(number)]).check()


def insert_disk(bench: Bench) -> None:
    """Returns when dom0 lists DISK, and it can be lent."""
    image = "/run/disk.img"
    bench.run(
        "sys-usb",
        f"modprobe loop; truncate -s 8M {image} && losetup /dev/{DISK.partition(':')[2]} {image}",
    ).check()
    wait_for(bench, f"idle {DISK}")


def remove_disk(bench: Bench) -> None:
    """Returns when dom0 says that it is missing where it is assigned."""
    bench.run("sys-usb", f"losetup -d /dev/{DISK.partition(':')[2]}").check()
    wait_for(bench, f"missing {DISK}")


def refuse(result: Result, status: int, *words: str) -> None:
    """That a command ended so, and said all of these."""
    assert result.status == status, result.text
    for word in words:
        assert word in result.err, result.text


def traces(bench: Bench, vm: str) -> str:
    """What xenstore has of disks that a VM got from the driver domain, if any."""
    source, target = domid(bench, "sys-usb"), domid(bench, vm)
    listed = bench.run("dom0", f"xenstore-ls -f /local/domain/{source}").check()
    return "".join(
        line.partition(" = ")[0] + "\n"
        for line in listed.splitlines()
        if f"/backend/vbd/{target}/" in line
    )


def run_personal(bench: Bench) -> None:
    """The third VM runs, and its agent is connected."""
    if not is_there(bench, "personal"):
        bench.run("dom0", "qvm-start personal", limit=START_LIMIT).check()
    wait_for(bench, "agent personal")


def reboot(bench: Bench, name: str) -> None:
    """Returns when the agent of the VM's next domain is connected."""
    before = domid(bench, name)
    bench.run("dom0", f"xl reboot {name}").check()
    end = time.monotonic() + START_LIMIT
    while (now := bench.run_argv("dom0", ["domid", name])).status or int(now.out) == before:
        assert time.monotonic() < end, f"{name} does not come back"
        time.sleep(PAUSE)
    wait_for(bench, f"agent {name}", limit=START_LIMIT)
