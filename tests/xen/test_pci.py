"""PCI controllers of dom0 in VMs: what is given, what is refused, and what comes back.

QEMU's controllers: one on bus 0 that cannot be reset, one alone behind a root port that can, and
two behind one bridge to PCI. One VM boots for all tests here: it takes a minute.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from . import usb
from .driving import BUSY, START_LIMIT, holders, is_there, refuse, wait_for, wait_until
from .machine import ALONE, DOM0_DISK, ON_BUS_0, SIBLINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .bench import Bench
    from .machine import Controller

#: What dom0 lists these as: the way through bridges.
PORTS = {
    ALONE: "dom0:00_06.0-00.0",
    ON_BUS_0: "dom0:00_05.0",
    SIBLINGS[0]: "dom0:00_07.0-01.0",
    SIBLINGS[1]: "dom0:00_07.0-02.0",
}
LOOSE = "-o no-strict-reset=yes"
FAILED = 1
STICK_MIB = 4  # plugged into a given controller
# xl takes the devices of a domain away one by one, each in up to 10 s.
SHUTDOWN_LIMIT = 240.0


def pci(bench: Bench, words: str) -> str:
    return bench.run("dom0", f"qvm-pci {words}", limit=START_LIMIT).check()


def by_address(controller: Controller) -> str:
    """The name of a device that goes by its address."""
    return f"dom0:{controller.address.removeprefix('0000:').replace(':', '_')}"


def driver_of(bench: Bench, controller: Controller) -> str:
    link = f"/sys/bus/pci/devices/{controller.address}/driver"
    return bench.run("dom0", f"basename $(readlink {link} || echo none)").check().strip()


@pytest.fixture(scope="module")
def vault(bench: Bench) -> Iterator[str]:
    """A VM that was started with the controller that is alone."""
    assert "assigned to vault" in pci(bench, f"attach --persistent vault {PORTS[ALONE]}")
    bench.run("dom0", "qvm-start vault", limit=START_LIMIT).check()
    yield "vault"
    if is_there(bench, "vault"):
        bench.run("dom0", "qvm-shutdown --force vault", limit=SHUTDOWN_LIMIT).check()


def test_a_vm_starts_with_a_controller_and_has_what_is_plugged_into_it(
    bench: Bench, vault: str
) -> None:
    assert holders(bench, PORTS[ALONE], "pci") == [vault]
    assert driver_of(bench, ALONE) == "pciback"
    bench.run(vault, "modprobe xhci-pci").check()
    bench.qmp.add("usb-tablet", "tablet", bus=ALONE.bus)
    wait_until(bench, vault, "grep -qs Tablet /sys/bus/usb/devices/*/product")
    bench.qmp.remove("tablet")


def test_what_is_plugged_into_a_given_controller_is_lent_on(bench: Bench, vault: str) -> None:
    """dom0 gives the controller to one VM, and that one lends the stick to another."""
    content = os.urandom(STICK_MIB << 20)
    file = bench.folder / "chain"
    file.write_bytes(content)
    bench.qmp.add_file("chain", file)
    bench.qmp.add("usb-storage", "chained", bus=ALONE.bus, drive="chain", serial="chain")
    try:
        look = "grep -lsx chain /sys/bus/usb/devices/*/serial"
        seen = bench.run(vault, f"until {look}; do sleep 0.2; done").check()
        stick = f"{vault}:{seen.strip().rpartition('/serial')[0].rpartition('/')[2]}"
        wait_for(bench, f"idle {stick} usb")
        usb.attach(bench, stick)
        read = f"{usb.WAIT}; dd if=/dev/$disk bs=64K iflag=direct 2> /dev/null | sha256sum"
        assert bench.run("work", read).check().split()[0] == hashlib.sha256(content).hexdigest()
        usb.read_on(bench)
    finally:
        bench.qmp.remove("chained")
        bench.qmp.remove_file("chain")
    wait_for(bench, f"gone {stick} usb")
    wait_until(bench, "work", "! pgrep -x dd")


def test_no_other_vm_gets_it_by_whichever_name(bench: Bench, vault: str) -> None:
    for name in (PORTS[ALONE], by_address(ALONE)):
        refuse(bench.run("dom0", f"qvm-pci attach work {name}"), BUSY, vault)


def test_a_vm_keeps_its_controller_when_all_agents_are_restarted(bench: Bench, vault: str) -> None:
    bench.run(vault, "systemctl restart pedos-agent").check()
    bench.run("dom0", "systemctl restart pedos-dom0-agent pedos-dom0").check()
    wait_for(bench, f"agent {vault}", "agent work", f"listed {PORTS[ALONE]} pci")
    assert holders(bench, PORTS[ALONE], "pci") == [vault]
    wait_until(bench, vault, "ls /sys/bus/pci/devices/0000:00:00.0/driver/0000:00:00.0")


def test_a_vm_that_has_one_gets_another_while_it_runs(bench: Bench, vault: str) -> None:
    second = PORTS[ON_BUS_0]
    refuse(bench.run("dom0", f"qvm-pci attach work {second} {LOOSE}"), FAILED, "when it starts")
    refuse(bench.run("dom0", f"qvm-pci attach {vault} {second}"), FAILED, "cannot be reset")
    assert driver_of(bench, ON_BUS_0) != "pciback"
    pci(bench, f"attach {vault} {second} {LOOSE} -o give-back=yes -o permissive=yes")
    assert holders(bench, second, "pci") == [vault]
    listed = bench.run("dom0", "cat /sys/bus/pci/drivers/pciback/permissive").check()
    assert ON_BUS_0.address in listed
    pci(bench, f"detach {vault} {second}")
    assert holders(bench, second, "pci") == []
    assert driver_of(bench, ON_BUS_0) != "pciback"


def test_two_behind_one_bridge_are_not_given_to_two_vms(bench: Bench, vault: str) -> None:
    one, two = (PORTS[each] for each in SIBLINGS)
    pci(bench, f"attach {vault} {one} {LOOSE}")
    pci(bench, f"attach --persistent personal {two} {LOOSE}")
    refuse(bench.run("dom0", "qvm-start personal"), BUSY, "kept apart", f"which {vault} has")
    assert not is_there(bench, "personal")
    assert driver_of(bench, SIBLINGS[1]) != "pciback"
    pci(bench, f"detach personal {two}")
    pci(bench, f"detach {vault} {one}")


def test_what_plain_xl_has_given_is_not_given_again(bench: Bench, vault: str) -> None:
    """And it is free when that domain has ended, though its record in xenstore stays."""
    wanted, address = PORTS[SIBLINGS[1]], SIBLINGS[1].address
    create = f"xl create -p /etc/xen/personal.cfg 'pci=[ \"{address}\" ]'"
    bench.run("dom0", f"xl pci-assignable-add {address} && {create}", limit=START_LIMIT).check()
    refuse(bench.run("dom0", f"qvm-pci attach {vault} {wanted} {LOOSE}"), BUSY, "personal has it")
    bench.run("dom0", "xl destroy personal", limit=SHUTDOWN_LIMIT).check()
    pci(bench, f"attach {vault} {wanted} {LOOSE}")
    pci(bench, f"detach {vault} {wanted}")


def test_what_dom0_uses_is_not_taken_from_it(bench: Bench) -> None:
    """xl would say nothing: of dom0's root, and of the disk that guests have from dom0."""
    disk = f"dom0:{DOM0_DISK.removeprefix('0000:').replace(':', '_')}"
    pci(bench, f"attach --persistent personal {disk}")
    said = bench.run("dom0", "qvm-start personal")
    # Which of the two disks is dom0's own, the order of their probes decides.
    refuse(said, BUSY, "personal was not started", "in use in dom0: its disk nvme")
    pci(bench, f"detach personal {disk}")
    assert not is_there(bench, "personal")


def test_a_bridge_is_not_even_assigned(bench: Bench) -> None:
    for bridge in ("dom0:00_00.0", "dom0:00_06.0"):
        said = bench.run("dom0", f"qvm-pci attach --persistent personal {bridge}")
        refuse(said, FAILED, "it is a bridge")


def test_after_the_vm_its_controller_stays_away_from_dom0(bench: Bench, vault: str) -> None:
    bench.run("dom0", f"qvm-shutdown {vault}", limit=SHUTDOWN_LIMIT).check()
    wait_for(bench, f"free {PORTS[ALONE]} pci")
    assert driver_of(bench, ALONE) == "pciback"
    assert "no longer assigned" in pci(bench, f"detach {vault} {PORTS[ALONE]}")
    bench.run("dom0", f"xl pci-assignable-remove -r {ALONE.address}").check()
