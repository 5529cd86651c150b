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
    return 0 if name == "dom0" else int(bench.run("dom0", f"xl domid {name}").check())


def wait_until(bench: Bench, where: str, condition: str, limit: float = WAIT_LIMIT) -> None:
    """Until a shell's condition holds in a domain; fails when it does not in `limit` seconds."""
    done = bench.run(where, f"until {condition}; do sleep 0.3; done", limit=limit)
    assert done.status == 0, f"not so within {limit:g} s in {where}: {condition}\n{done.text}"


def device(bench: Bench, name: str) -> dict[str, Any] | None:
    """What dom0 lists of a block device, SOURCE:ID; None when it does not."""
    said = bench.run("dom0", "qvm-device block list --json").check()
    for record in json.loads(said)["devices"]:
        if f"{record['backend']}:{record['device']}" == name:
            return dict(record)
    return None


def holders(bench: Bench, name: str) -> list[str]:
    """The VMs that a listed device is attached to."""
    record = device(bench, name)
    assert record is not None, f"{name} is not listed"
    return [attachment["vm"] for attachment in record["attachments"]]


def listed(name: str, *, attached: bool | None = None) -> str:
    """A condition for dom0's shell: the device is in the list (and attached to a VM or not)."""
    found = f"qvm-block list 2>/dev/null | grep '^{name} '"
    if attached is None:
        return f"{found} >/dev/null"
    return f"{found} | grep {'' if attached else '-v '}-q attached:"


def connected(*names: str) -> str:
    """A condition for dom0's shell: the agents of these VMs are connected."""
    return " && ".join(f"qvm-ls | grep -q '^{name} .* yes$'" for name in names)


def plug(bench: Bench, *, wait: bool = True) -> None:
    """Puts the stick into the driver domain."""
    bench.run(
        "sys-usb", f"modprobe scsi_debug dev_size_mb=32 num_parts=2 add_host=0; echo 1 > {HOSTS}"
    ).check()
    if wait:
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
    if bench.run("dom0", "xl domid personal").status != 0:
        bench.run("dom0", "qvm-start personal", limit=START_LIMIT).check()
    wait_until(bench, "dom0", connected("personal"), START_LIMIT)
