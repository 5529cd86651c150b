"""USB devices of a driver domain in another guest, and what is left of that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import usb
from .conftest import run_driver_domain
from .driving import (
    BUSY,
    devices,
    holders,
    plug_gadget,
    refuse,
    wait_for,
    wait_until,
)
from .usb import SOURCE, TARGET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .bench import Bench

STICK_MIB, SERIAL = 64, "usb-stick"


@pytest.fixture(scope="module", autouse=True)
def quick_disks(bench: Bench) -> None:
    """A disk is there at once. By itself usb-storage waits a second for it to settle."""
    run_driver_domain(bench)
    for guest in (SOURCE, TARGET):
        bench.run(
            guest,
            "echo options usb-storage delay_use=0 > /etc/modprobe.d/bench.conf; "
            "modprobe usb-storage; echo 0 > /sys/module/usb_storage/parameters/delay_use",
        ).check()


@pytest.fixture
def stick(bench: Bench) -> str:
    """A stick of super speed in the driver domain, which nobody has. Its name for dom0."""
    run_driver_domain(bench)
    return plugged(bench)


def plugged(bench: Bench) -> str:
    """It is plugged in when this returns, if it was not."""
    for name, device in devices(bench, "usb").items():
        if device["present"] and f":{SERIAL}:" in device["identity"]:
            return name
    options = (f"size={STICK_MIB}", f"serial={SERIAL}")
    name = f"{SOURCE}:{plug_gadget(bench, 0, *options)}"
    wait_for(bench, f"idle {name} usb")
    return name


@pytest.fixture(scope="module")
def before(bench: Bench) -> dict[str, str]:
    """What there is when a stick was lent once and given back: modules are loaded by then."""
    name = plugged(bench)
    # Under emulation modules may take longer to load than dom0 waits for an attach.
    bench.run("dom0", f"qvm-device usb attach {TARGET} {name}")
    if holders(bench, name, "usb") != [TARGET]:
        usb.attach(bench, name)
    usb.detach(bench, name).check()
    wait_until(bench, SOURCE, f"[ -e /sys/bus/usb/devices/{name.partition(':')[2]}/driver ]")
    found = usb.picture(bench, SOURCE, TARGET)
    assert "lent" not in found[SOURCE]
    assert "ss " not in found[TARGET]
    assert found["users"] == "{}"
    return found


@pytest.fixture(autouse=True)
def nothing_left(bench: Bench, before: dict[str, str]) -> Iterator[None]:
    """After each test, all is as it was."""
    yield
    usb.assert_nothing_left(bench, before)


def test_a_stick_and_its_disk_exclude_each_other(bench: Bench, stick: str) -> None:
    port = stick.partition(":")[2]
    disk = bench.run(SOURCE, f"{usb.disk_of(port)}; echo $disk").check().strip()
    disk_name = f"{SOURCE}:{disk}"
    wait_for(bench, f"idle {disk_name}")
    listed = devices(bench)[disk_name]
    assert (listed["parent_class"], listed["parent"]) == ("usb", port)
    bench.run("dom0", f"qvm-block attach {TARGET} {disk_name}").check()
    refuse(bench.run("dom0", f"qvm-device usb attach {TARGET} {stick}"), BUSY, disk_name)
    bench.run("dom0", f"qvm-block detach {TARGET} {disk_name}").check()
    usb.attach(bench, stick)
    wait_for(bench, f"gone {disk_name}")
    usb.detach(bench, stick).check()
    wait_for(bench, f"idle {disk_name}")


MOUNT = "mkdir -p /run/m && mount /dev/$disk /run/m"


def test_what_is_mounted_is_neither_lent_nor_taken_away(bench: Bench, stick: str) -> None:
    port = stick.partition(":")[2]
    here = usb.disk_of(port)
    bench.run(SOURCE, f"{here}; mkfs.ext4 -q /dev/$disk && {MOUNT}").check()
    refused = bench.run("dom0", f"qvm-device usb attach {TARGET} {stick}")
    refuse(refused, BUSY, "in use")
    bench.run(SOURCE, "umount /run/m").check()
    usb.attach(bench, stick)
    bench.run(TARGET, f"{usb.WAIT}; {MOUNT} && hostname > /run/m/name").check()
    refuse(usb.detach(bench, stick), BUSY, "in use")
    assert holders(bench, stick, "usb") == [TARGET]
    assert bench.run(TARGET, "cat /run/m/name; umount /run/m").check() == f"{TARGET}\n"
    usb.detach(bench, stick).check()
    name = bench.run(SOURCE, f"{here}; {MOUNT} && cat /run/m/name; umount /run/m").check()
    assert name == f"{TARGET}\n"
