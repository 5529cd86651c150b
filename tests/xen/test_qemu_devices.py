"""QEMU's USB devices, plugged into a controller of dom0, and lent from there.

There are more kinds than gadgets can be, at all speeds, and behind hubs, which can be pulled too.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, NamedTuple

import pytest
from pedos_protocol.kinds import kinds_in

from .driving import NOT_FOUND, POLICY, devices, holders, refuse, wait_for, wait_until
from .machine import ON_BUS_0, SILENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .bench import Bench

TARGET = "work"
MIB = 1 << 20
STICK_MIB = 4

#: What sysfs calls the device at a port of a controller: one of its two root hubs has it.
NAME = (
    "for hub in /sys/bus/pci/devices/{address}/usb*; do name=$(cat $hub/busnum)-{port}; "
    "[ ! -e /sys/bus/usb/devices/$name/descriptors ] || echo $name; done"
)
#: The folder of a borrowed device in the target, by its serial number.
BORROWED = (
    "here=; until [ $here ]; do for each in /sys/devices/platform/vhci_hcd.*/usb*/*-*; do "
    '[ "$(cat "$each/serial" 2>/dev/null)" != {serial} ] || here=$each; done; sleep 0.1; done'
)
DISK = f"{BORROWED}; until disk=$(ls $here/*/host*/target*/*/block 2>/dev/null); do sleep 0.1; done"


class Plugged(NamedTuple):
    """A device of QEMU, `name` for dom0; `file` is what a stick has on it."""

    name: str
    serial: str
    file: Path | None = None


class Ports:
    """Plugs devices into a controller of dom0."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._there: list[str] = []
        self._files: list[str] = []

    def hub(self, port: str) -> str:
        """One of eight ports, full speed; its name in the domain's kernel."""
        return self._add("usb-hub", port)

    def plug(self, driver: str, port: str, **properties: object) -> Plugged:
        """Any other; returns when dom0 lists it, and it can be lent."""
        serial = f"bench-{port}"
        name = f"dom0:{self._add(driver, port, serial=serial, **properties)}"
        wait_for(self._bench, f"idle {name} usb")
        return Plugged(name, serial)

    def stick(self, port: str) -> Plugged:
        """Full of noise. What is written on it stands in the file."""
        file = self._bench.folder / f"stick-{port}"
        file.write_bytes(os.urandom(STICK_MIB * MIB))
        content = f"content-{port}"
        self._bench.qmp.add_file(content, file)
        self._files.append(content)
        return self.plug("usb-storage", port, drive=content)._replace(file=file)

    def pull(self, port: str) -> None:
        """Whoever uses it; with all that is behind it, if it is a hub."""
        self._bench.qmp.remove(f"at-{port}")
        self._there = [each for each in self._there if not f"{each}.".startswith(f"{port}.")]

    def clear(self) -> None:
        """The last one first."""
        while self._there:
            self.pull(self._there[-1])
        while self._files:
            self._bench.qmp.remove_file(self._files.pop())

    def _add(self, driver: str, port: str, **properties: object) -> str:
        self._bench.qmp.add(driver, f"at-{port}", bus=ON_BUS_0.bus, port=port, **properties)
        self._there.append(port)
        name = NAME.format(address=ON_BUS_0.address, port=port)
        seen = f'until name=$({name}); [ "$name" ]; do sleep 0.2; done; echo $name'
        return self._bench.run("dom0", seen).check().strip()


@pytest.fixture
def ports(bench: Bench) -> Iterator[Ports]:
    """Nothing of what was plugged in there is left, lent or borrowed afterwards."""
    ports = Ports(bench)
    try:
        yield ports
    finally:
        bench.run("dom0", f"qvm-device usb detach {TARGET}")
        ports.clear()
    wait_until(bench, "dom0", f"! {LENT}")
    wait_until(bench, TARGET, f"! {USED_PORTS}")
    left = [name for name, each in devices(bench, "usb").items() if each["attachments"]]
    assert not left


def attach(bench: Bench, stick: Plugged) -> None:
    bench.run("dom0", f"qvm-device usb attach {TARGET} {stick.name}").check()


#: Nothing of these is left behind.
LENT = "ls -d /sys/bus/usb/drivers/usbip-host/*-* 2> /dev/null"
USED_PORTS = "cat /sys/devices/platform/vhci_hcd.*/status* | grep -E '^(hs|ss)' | grep -v ' 004 '"


def content(bench: Bench, stick: Plugged) -> str:
    """What the target reads from a borrowed stick."""
    read = f"{DISK.format(serial=stick.serial)}; dd if=/dev/$disk bs=64K iflag=direct | sha256sum"
    return bench.run(TARGET, f"({read}) 2>/dev/null").check().split()[0]


def on_stick(stick: Plugged) -> str:
    assert stick.file is not None
    return hashlib.sha256(stick.file.read_bytes()).hexdigest()


#: What a borrowed keyboard types here: `input` is the name of its events. A press has three events
#: of 24 bytes: a scan code, a key, and the end of the report.
EVENTS = (
    f"{BORROWED}; until input=$(cd $here/*/*/input/input*/ && ls -d event*); do sleep 0.1; done"
)
HEAR = f"{EVENTS}; head -c 72 /dev/input/$input | od -An -tx2 -v > /run/heard"
PRESSES_MAX = 30


def speed(bench: Bench, device: Plugged) -> int:
    """In the target, in Mb/s."""
    look = f"{BORROWED.format(serial=device.serial)}; cat $here/speed"
    return int(bench.run(TARGET, look).check())


def test_dom0_lists_devices_behind_hubs_by_what_they_are_and_no_hubs(
    bench: Bench, ports: Ports
) -> None:
    ports.hub("1")
    plugged = {
        "keyboard": ports.plug("usb-kbd", "1.1"),
        "stick": ports.stick("1.2"),
        "tablet": ports.plug("usb-tablet", "2"),
        "audio": ports.plug("usb-audio", "3", audiodev=SILENCE),
    }
    listed = devices(bench, "usb")
    kinds = {what: kinds_in(listed[each.name]["identity"])[1] for what, each in plugged.items()}
    assert kinds["keyboard"] == ("u030101",)
    assert kinds["stick"] == ("u080650",)
    assert kinds["tablet"] == ("u030000",)
    assert set(kinds["audio"]) == {"u010104", "u010200"}, kinds
    assert {each.name for each in plugged.values()} == {
        name for name in listed if name.startswith("dom0:")
    }


def test_sticks_of_all_speeds_are_lent_at_once(bench: Bench, ports: Ports) -> None:
    ports.hub("7")
    ports.hub("7.1")
    sticks = {5000: ports.stick("4"), 480: ports.stick("5"), 12: ports.stick("7.1.2")}
    for stick in sticks.values():
        attach(bench, stick)
    for mbits, stick in sticks.items():
        assert speed(bench, stick) == mbits
        assert content(bench, stick) == on_stick(stick)
        write = f"{DISK.format(serial=stick.serial)}; dd of=/dev/$disk bs=64K oflag=direct"
        noise = "dd if=/dev/urandom bs=64K count=16"
        before = on_stick(stick)
        bench.run(TARGET, f"({noise} | ({write} iflag=fullblock)) 2>/dev/null").check()
        assert on_stick(stick) != before
        assert content(bench, stick) == on_stick(stick)
    for stick in sticks.values():
        bench.run("dom0", f"qvm-device usb detach {TARGET} {stick.name}").check()
        wait_for(bench, f"idle {stick.name} usb")
        assert holders(bench, stick.name, "usb") == []


READING = (
    f"{DISK}; (while dd if=/dev/$disk of=/dev/null bs=64K iflag=direct; do :; done) "
    ">/dev/null 2>&1 & sleep 1"
)


def test_a_hub_pulled_in_mid_transfer_ends_the_attachments_behind_it_alone(
    bench: Bench, ports: Ports
) -> None:
    ports.hub("7")
    stick, other = ports.stick("7.2"), ports.stick("4")
    for each in (stick, other):
        attach(bench, each)
        bench.run(TARGET, READING.format(serial=each.serial)).check()
    ports.pull("7")
    wait_for(bench, f"gone {stick.name} usb")
    wait_until(bench, TARGET, f"[ $({USED_PORTS} | wc -l) = 1 ]")
    assert holders(bench, other.name, "usb") == [TARGET]
    # A dd ends at the end of the stick, and the next one begins.
    wait_until(bench, TARGET, "pgrep -x dd")


def test_a_stick_pulled_in_mid_transfer_ends_its_attachment(bench: Bench, ports: Ports) -> None:
    stick = ports.stick("4")
    attach(bench, stick)
    bench.run(TARGET, READING.format(serial=stick.serial)).check()
    ports.pull("4")
    wait_for(bench, f"gone {stick.name} usb")
    wait_until(bench, TARGET, f"! {USED_PORTS} && ! pgrep -x dd")


def test_a_hub_is_not_lent_though_its_name_is_known(bench: Bench, ports: Ports) -> None:
    hub = ports.hub("7")
    stick = ports.stick("7.1")
    refuse(bench.run("dom0", f"qvm-device usb attach {TARGET} dom0:{hub}"), NOT_FOUND, hub)
    assert f"dom0:{hub}" not in devices(bench, "usb")
    assert stick.name in devices(bench, "usb")


def test_what_a_lent_keyboard_types_is_heard_in_the_target(bench: Bench, ports: Ports) -> None:
    keyboard = ports.plug("usb-kbd", "5")
    # The shipped policy asks dom0's user, and nothing asks here.
    rule = f"device.attach.usb  +dom0:*:only=u030101  @adminvm  {TARGET}  allow"
    bench.run("dom0", f"echo '{rule}' > {POLICY}; qvm-policy status > /dev/null").check()
    attach(bench, keyboard)
    bench.run("dom0", f"rm {POLICY}").check()
    bench.run(TARGET, f"({HEAR.format(serial=keyboard.serial)}) > /dev/null 2>&1 &").check()
    wait_until(bench, TARGET, "pgrep -x head")
    for _ in range(PRESSES_MAX):
        bench.qmp.type_keys("h")
        if bench.run(TARGET, "sleep 1; ! pgrep -x head").status == 0:
            break
    heard = bench.run(TARGET, "cat /run/heard").check().split()
    assert heard[20:23] == ["0001", "0023", "0001"]  # KEY_H, pressed
