"""Driving the booted system as its users do: by commands in dom0 and in guests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bench import Bench, Result

DENIED, BUSY = 3, 6  # exit codes of qvm-*
POLICY = "/etc/pedos/policy.d/20-bench.policy"
#: A stick in the driver domain that can really be pulled out: 32 MiB, two partitions.
STICK = "sys-usb:sda"
HOSTS = "/sys/bus/pseudo/drivers/scsi_debug/add_host"
START_LIMIT = 240.0  # seconds; a guest boots in it
WAIT_LIMIT = 90.0  # seconds; for what takes a second or two on hardware


def domid(bench: Bench, name: str) -> int:
    """The number of a domain that is there."""
    return 0 if name == "dom0" else int(bench.run_argv("dom0", ["domid", name]).check())


def is_there(bench: Bench, name: str) -> bool:
    """Whether there is such a guest."""
    return bench.run_argv("dom0", ["domid", name]).status == 0


def wait_until(bench: Bench, where: str, condition: str, limit: float = WAIT_LIMIT) -> None:
    """Until a shell's condition holds in a domain; fails when it does not in `limit` seconds.

    Each look that starts a program takes time from what is waited for: not for a domain's boot.
    """
    done = bench.run(where, f"until {condition}; do sleep 1; done", limit=limit)
    assert done.status == 0, f"not so within {limit:g} s in {where}: {condition}\n{done.text}"


def devices(bench: Bench) -> dict[str, dict[str, Any]]:
    """What dom0 lists of block devices, by their names, SOURCE:ID."""
    said = bench.run("dom0", "qvm-device block list --json").check()
    return {f"{each['backend']}:{each['device']}": each for each in json.loads(said)["devices"]}


def holders(bench: Bench, name: str) -> list[str]:
    """The VMs that a listed device is attached to."""
    return [attachment["vm"] for attachment in devices(bench)[name]["attachments"]]


def listed(name: str, *, attached: bool | None = None) -> str:
    """A condition for dom0's shell: the device is in the list (and attached to a VM or not)."""
    found = f"qvm-block list 2>/dev/null | grep '^{name} '"
    if attached is None:
        return f"{found} >/dev/null"
    return f"{found} | grep {'' if attached else '-v '}-q attached:"


def connected(*names: str) -> str:
    """A condition for dom0's shell: the agents of these VMs are connected."""
    found = " && ".join(f"echo \"$vms\" | grep -q '^{name} .* yes$'" for name in names)
    return f"vms=$(qvm-ls 2>/dev/null) && {found}"


def plug(bench: Bench) -> None:
    """Puts the stick into the driver domain; returns when dom0 lists it."""
    bench.run(
        "sys-usb", f"modprobe scsi_debug dev_size_mb=32 num_parts=2 add_host=0; echo 1 > {HOSTS}"
    ).check()
    wait_until(bench, "dom0", f"{listed(STICK)} && {listed(STICK + '2')}")


def unplug(bench: Bench) -> None:
    """Pulls it out, whoever uses it. What is written on it stays."""
    bench.run("sys-usb", f"echo -1 > {HOSTS}").check()


def refuse(result: Result, status: int, *words: str) -> None:
    """That a command ended so, and said all of these."""
    assert result.status == status, result.text
    for word in words:
        assert word in result.err, result.text


def traces(bench: Bench, vm: str) -> str:
    """What xenstore has of disks that a VM got from the driver domain, if any."""
    return bench.run(
        "dom0",
        f"xenstore-ls -f /local/domain/{domid(bench, 'sys-usb')}/backend 2>/dev/null "
        f"| grep '/vbd/{domid(bench, vm)}/' | sed 's/ = .*//'",
    ).out


def run_personal(bench: Bench) -> None:
    """The third VM runs, and its agent is connected."""
    if not is_there(bench, "personal"):
        bench.run("dom0", "qvm-start personal", limit=START_LIMIT).check()
        bench.wait_for_boot("personal")
    wait_until(bench, "dom0", connected("personal"))


def reboot(bench: Bench, name: str) -> None:
    """Returns when the VM's next domain has booted, and its agent is connected."""
    before = domid(bench, name)
    bench.run("dom0", f"xl reboot {name}").check()
    # Its console, over which the bench speaks with it, comes a moment after its number.
    again = (
        f'd=$(xl domid {name} 2>/dev/null) && [ "$d" -gt {before} ] '
        "&& xenstore-read /local/domain/$d/console/tty >/dev/null 2>&1"
    )
    wait_until(bench, "dom0", again, START_LIMIT)
    bench.wait_for_boot(name)
    wait_until(bench, "dom0", connected(name))
