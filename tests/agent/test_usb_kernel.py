"""What the agent reads of USB devices, usbip-host and vhci-hcd, and what it writes to them."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from pedos_agent.device_classes.on_machine import scan
from pedos_agent.device_classes.usb import disks_below, host_driver, usb_device, vhci
from pedos_agent.device_classes.usb.host_driver import HostDriver
from pedos_agent.device_classes.usb.identity import identity_of
from pedos_agent.device_classes.usb.vhci import FREE, UnreadableError, Vhci, ports_in
from pedos_agent.system.roots import Roots
from pedos_protocol.errors import CallError

from tests.patience import PATIENCE

from .usb_kernel import FakeKernel, Stick

DISK = "0951:1666:S1:u080650"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKernel]:
    made = FakeKernel(tmp_path)
    monkeypatch.setattr(host_driver, "write_attribute", made.write)
    monkeypatch.setattr(vhci, "write_attribute", made.write)
    yield made
    made.close()
    assert made.crimes == []


@pytest.fixture
def driver(kernel: FakeKernel) -> HostDriver:
    return HostDriver(kernel.sys)


def roots(kernel: FakeKernel) -> Roots:
    root = kernel.root
    return Roots(sys=kernel.sys, proc=root / "proc", udev=root / "udev", dev=root / "dev")


def any_device(_device: usb_device.UsbDevice) -> bool:
    return True


# Reading


def test_the_identity_is_the_same_before_during_and_after_an_export(
    kernel: FakeKernel, driver: HostDriver
) -> None:
    kernel.plug(Stick("1-4.2"))

    def listed() -> tuple[str, tuple[str, ...]]:
        (found,) = scan(kernel.sys, kernel.root)
        return found.device.identity, found.marks

    before = listed()
    assert before[0] == DISK == identity_of(f"{kernel.sys}/bus/usb/devices/1-4.2")
    driver.take("1-4.2", any_device)
    assert listed() == before
    driver.release("1-4.2")
    assert listed() == before


def test_hubs_and_borrowed_devices_are_not_listed(kernel: FakeKernel) -> None:
    kernel.plug(Stick("1-1", device_class="09"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        port = Vhci(kernel.sys).attach(theirs.fileno(), 0x10002, 3)
        kernel.answer(ours)
        kernel.wait(lambda: kernel.ports[port][0] == vhci.USED)
        name = kernel.ports[port][2]
        device = usb_device.usb_device(kernel.sys, name)
        assert device is not None
        assert device.is_imported
        assert scan(kernel.sys, kernel.root) == []


def test_texts_of_a_device_are_made_harmless(kernel: FakeKernel) -> None:
    kernel.plug(Stick("1-2", serial="S\x1b]0;1", product_name="a\x1b[31m stick"))
    (found,) = scan(kernel.sys, kernel.root)
    assert "\x1b" not in found.device.description + found.device.identity
    assert found.device.description.startswith("Maker a_[31m stick")


@pytest.mark.parametrize(
    ("speed", "counted"),
    [("1.5", 1), ("12", 2), ("480", 3), ("5000", 5), ("10000", 5), ("20000", 5), ("unknown", None)],
)
def test_speeds_are_those_of_usbip(kernel: FakeKernel, speed: str, counted: int | None) -> None:
    kernel.plug(Stick("2-1", speed=speed))
    device = usb_device.usb_device(kernel.sys, "2-1")
    assert device is not None
    assert (device.speed, device.devid) == (counted, 2 << 16 | device.number)


@pytest.mark.parametrize(
    "name", ["1-1\n", "", "usb1", "1-1:1.0", "../x", "1-" + "1." * 15 + "1", "1-1 1-2", "add 1-1"]
)
def test_nothing_else_is_a_name_of_a_device(
    kernel: FakeKernel, driver: HostDriver, name: str
) -> None:
    assert not usb_device.is_name(name)
    with pytest.raises(CallError, match="unplugged"):
        driver.take(name, any_device)
    driver.release(name)
    assert kernel.writes == []


def not_permitted(name: str) -> object:
    def opened(path: str, *arguments: int, **named: int) -> int:
        if str(path).endswith(name):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return _open(path, *arguments, **named)

    _open = os.open
    return opened


@pytest.mark.parametrize("name", ["busnum", "speed", "usbip_status", "bDeviceClass"])
def test_what_cannot_be_read_is_an_error_and_no_missing_device(
    kernel: FakeKernel, driver: HostDriver, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kernel.plug(Stick("1-1"))
    driver.take("1-1", any_device)
    assert usb_device.usb_device(kernel.sys, "9-9") is None
    monkeypatch.setattr(os, "open", not_permitted(f"/{name}"))
    with pytest.raises(PermissionError):
        driver.device("1-1")


def test_ports_that_cannot_be_read_are_an_error_and_not_free(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(Vhci(kernel.sys).ports()) == 60
    assert Vhci(kernel.root).ports() == []  # not loaded
    monkeypatch.setattr(os, "open", not_permitted("/status.1"))
    with pytest.raises(PermissionError):
        Vhci(kernel.sys).ports()


HEAD = "hub port sta spd dev      sockfd local_busid\n"


@pytest.mark.parametrize(
    "row",
    [
        "hs  0000 004 000 00000000",
        "prt sta spd bus dev socket local_busid",
        "ws  0000 004 000 00000000 000000 0-0",
        "hs  0000 004 000 0000000g 000000 0-0",
        "hs  0000 004 000 00000000 000000 0-0 more",
    ],
)
def test_a_table_of_another_form_is_an_error(row: str) -> None:
    with pytest.raises(UnreadableError):
        ports_in(HEAD + row + "\n")


def test_a_table_as_linux_writes_it() -> None:
    table = HEAD + (
        "hs  0000 006 003 00010002 000007 17-1.2\n"
        "ss  0015 004 000 00000000 000000 0-0\n"
        "ss  0016 005 005 00020003 -00001 0-0\n"
    )
    assert [(p.number, p.is_super, p.state, p.devid, p.name) for p in ports_in(table)] == [
        (0, False, 6, 0x10002, "17-1.2"),
        (15, True, 4, 0, "0-0"),
        (16, True, 5, 0x20003, "0-0"),
    ]
    assert ports_in("") == []


def test_a_device_is_the_same_for_a_restarted_agent_and_another_one_when_plugged_again(
    kernel: FakeKernel,
) -> None:
    """Or what a person has detached would be attached again by itself."""

    def instance() -> str | None:
        (found,) = scan(kernel.sys, kernel.root)
        return found.lasting_instance()

    boot = kernel.root / "sys/kernel/random"
    boot.mkdir(parents=True, exist_ok=True)
    (boot / "boot_id").write_text("3c5a\n")
    kernel.plug(Stick("1-1"))
    first = instance()
    assert first is not None and instance() == first
    kernel.pull("1-1")
    kernel.plug(Stick("1-1"))
    assert instance() not in (None, first)


# usbip-host


@pytest.mark.parametrize("place", ["hardwired", "hotplug", "unknown", None])
def test_where_built_in_devices_alone_are_authorised_others_are_not(
    kernel: FakeKernel, driver: HostDriver, place: str | None
) -> None:
    kernel.plug(Stick("1-1"))
    (kernel.sys / "bus/usb/devices/usb1").mkdir()
    (kernel.sys / "bus/usb/devices/usb1/authorized_default").write_text("2\n")
    if place is not None:
        port = kernel.sys / "bus/usb/devices/1-1/port"
        port.mkdir()
        (port / "connect_type").write_text(f"{place}\n")
    device = driver.device("1-1")
    assert device is not None
    assert driver.is_authorized_by_default(device) == (place == "hardwired")


def test_one_that_a_vm_may_have_had_goes_to_no_driver_if_it_cannot_be_taken(
    kernel: FakeKernel, driver: HostDriver
) -> None:
    stick = kernel.plug(Stick("1-1"))
    driver.take("1-1", any_device)
    looks = iter((True, False))
    with pytest.raises(CallError):
        driver.take("1-1", lambda _: next(looks), give_back=False)
    assert stick.driver is None
    kernel.pull("1-1")
    stick = kernel.plug(Stick("1-1"))
    looks = iter((True, False))
    with pytest.raises(CallError):
        driver.take("1-1", lambda _: next(looks), give_back=False)
    assert stick.driver == "usb"  # no VM has had this one


def test_why_one_cannot_be_taken_is_told_also_if_it_cannot_be_given_back(
    kernel: FakeKernel, driver: HostDriver, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.plug(Stick("1-1"))

    def until_it_is_taken(device: usb_device.UsbDevice) -> bool:
        if device.driver != "usbip-host":
            return True
        kernel.refuse["unbind"] = errno.EIO
        return False

    with pytest.raises(CallError, match="1-1 was unplugged or replaced just now"):
        driver.take("1-1", until_it_is_taken)
    assert "1-1 may still be with usbip-host: Input/output error" in caplog.text
    kernel.refuse.clear()
    driver.release("1-1")


def test_a_device_is_taken_and_given_back(kernel: FakeKernel, driver: HostDriver) -> None:
    stick = kernel.plug(Stick("1-1", disk="sda"))
    taken = driver.take("1-1", any_device)
    assert (taken.device.driver, taken.device.status) == ("usbip-host", 1)
    assert (taken.was_authorized, taken.had_driver) == (True, True)
    assert kernel.writes == [
        ("bus/usb/drivers/usbip-host/match_busid", "add 1-1"),
        ("bus/usb/devices/1-1/driver/unbind", "1-1"),
        ("bus/usb/drivers/usbip-host/bind", "1-1"),
    ]
    assert [each.name for each in driver.left()] == ["1-1"]
    driver.release("1-1")
    assert stick.driver == "usb"
    assert (kernel.sys / "class/block/sda").exists()
    driver.release("1-1")  # again: nothing
    assert kernel.left() == []


def test_a_device_is_left_to_no_driver_if_so_wished(kernel: FakeKernel, driver: HostDriver) -> None:
    stick = kernel.plug(Stick("1-1"))
    driver.take("1-1", any_device)
    driver.release("1-1", give_back=False)
    assert stick.driver is None
    taken = driver.take("1-1", any_device)  # and it can be lent again
    assert not taken.had_driver


def test_thirty_rounds_use_one_name_of_sixteen(kernel: FakeKernel, driver: HostDriver) -> None:
    kernel.plug(Stick("1-1"))
    for _ in range(30):
        driver.take("1-1", any_device)
        driver.release("1-1")
    assert kernel.names == ["1-1"]
    assert kernel.left() == []


def test_a_seventeenth_port_is_refused_in_words_and_the_device_given_back(
    kernel: FakeKernel, driver: HostDriver
) -> None:
    for number in range(1, 17):
        kernel.plug(Stick(f"1-{number}"))
        driver.take(f"1-{number}", any_device)
        driver.release(f"1-{number}")
    stick = kernel.plug(Stick("2-1"))
    with pytest.raises(CallError, match=r"has lent from 16 ports of this VM.*restart this VM"):
        driver.take("2-1", any_device)
    assert stick.driver == "usb"
    driver.take("1-7", any_device)  # a known one can be lent
    driver.release("1-7")
    assert kernel.left() == []


@pytest.mark.parametrize(
    ("stick", "why"),
    [
        (Stick("1-1", device_class="09"), "is a hub"),
        (Stick("1-1", speed="unknown"), "a speed that USB/IP does not know"),
    ],
)
def test_what_usbip_cannot_lend_is_not_touched(
    kernel: FakeKernel, driver: HostDriver, stick: Stick, why: str
) -> None:
    kernel.plug(stick)
    with pytest.raises(CallError, match=why):
        driver.take("1-1", any_device)
    assert kernel.writes == []


def test_another_device_in_the_port_is_not_touched(kernel: FakeKernel, driver: HostDriver) -> None:
    kernel.plug(Stick("1-1"))
    with pytest.raises(CallError, match="unplugged or replaced") as caught:
        driver.take("1-1", lambda _: False)
    assert (caught.value.code, kernel.writes) == ("not_found", [])


def test_a_device_that_is_replaced_while_it_is_taken_is_given_back(
    kernel: FakeKernel, driver: HostDriver
) -> None:
    stick = kernel.plug(Stick("1-1"))
    answers = iter((True, False))
    with pytest.raises(CallError, match="unplugged or replaced"):
        driver.take("1-1", lambda _: next(answers))
    assert stick.driver == "usb"


@pytest.mark.parametrize("name", ["unbind", "match_busid", "bind"])
def test_a_refusal_of_the_kernel_is_told_in_words_and_undone(
    kernel: FakeKernel, driver: HostDriver, name: str
) -> None:
    stick = kernel.plug(Stick("1-1"))
    kernel.refuse[name] = errno.EBUSY
    with pytest.raises(CallError, match="cannot be taken from its driver: Device or resource busy"):
        driver.take("1-1", any_device)
    assert stick.driver == "usb"
    assert kernel.left() == []


def test_a_port_that_another_program_took_out_of_the_table_is_told(
    kernel: FakeKernel, driver: HostDriver
) -> None:
    stick = kernel.plug(Stick("1-1"))
    kernel.refuse["bind"] = errno.ENODEV
    with pytest.raises(CallError, match=r"refuses 1-1: another program.*\(match_busid\); restart"):
        driver.take("1-1", any_device)
    assert stick.driver == "usb"


@pytest.mark.parametrize("step", ["match_busid", "unbind", "bind", "authorized"])
@pytest.mark.parametrize("plugs_again", [False, True])
def test_a_device_that_is_pulled_while_it_is_taken_is_told_as_that(
    kernel: FakeKernel,
    driver: HostDriver,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    plugs_again: bool,
) -> None:
    kernel.plug(Stick("1-1", authorized=False))

    def write(path: str, text: str) -> None:
        if path.endswith(f"/{step}") and kernel.devices.get("1-1", gone).number == 2:
            kernel.pull("1-1")
            if plugs_again:
                kernel.plug(Stick("1-1"))
        kernel.write(path, text)

    gone = Stick("1-1")
    monkeypatch.setattr(host_driver, "write_attribute", write)
    with pytest.raises(CallError, match="1-1 was unplugged or replaced just now") as caught:
        driver.take("1-1", lambda device: device.number == 2)
    assert caught.value.code == "not_found"
    assert kernel.left() == []
    assert not plugs_again or kernel.devices["1-1"].driver == "usb"


def test_a_device_that_is_pulled_at_any_step_is_no_error_to_give_back(
    kernel: FakeKernel, driver: HostDriver
) -> None:
    kernel.plug(Stick("1-1"))
    driver.take("1-1", any_device)
    kernel.pull("1-1")
    driver.disconnect("1-1")
    driver.release("1-1")
    kernel.plug(Stick("1-1", serial="other"))
    driver.release("1-1")  # a later one in that port is not touched
    assert kernel.devices["1-1"].driver == "usb"
    assert kernel.left() == []


def test_a_deauthorised_device_is_authorised_only_while_usbip_host_has_it(
    kernel: FakeKernel, driver: HostDriver
) -> None:
    stick = kernel.plug(Stick("1-1", authorized=False))
    (kernel.sys / "bus/usb/devices/usb1").mkdir()
    (kernel.sys / "bus/usb/devices/usb1/authorized_default").write_text("0\n")
    device = driver.device("1-1")
    assert device is not None
    assert not driver.is_authorized_by_default(device)
    assert driver.is_authorized_by_default(attrs.evolve(device, bus=2))
    taken = driver.take("1-1", any_device)
    assert not taken.was_authorized
    assert [path.split("/")[-1] for path, _ in kernel.writes][-2:] == ["bind", "authorized"]
    driver.release("1-1", is_authorized=taken.was_authorized)
    assert not stick.authorized
    assert [path.split("/")[-1] for path, _ in kernel.writes][-2:] == [
        "authorized",
        "drivers_probe",
    ]


def test_a_device_in_use_by_another_program_is_not_taken(
    kernel: FakeKernel, driver: HostDriver
) -> None:
    kernel.plug(Stick("1-1"))
    driver.take("1-1", any_device)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        driver.connect("1-1", theirs.fileno())
        with pytest.raises(CallError, match="by another program"):
            driver.take("1-1", any_device)
        with pytest.raises(CallError, match="it is in use"):
            driver.connect("1-1", theirs.fileno())
        driver.disconnect("1-1")
        driver.disconnect("1-1")  # again: nothing
        driver.release("1-1")
    assert kernel.left() == []


# vhci-hcd


def test_each_speed_has_its_half_of_the_ports(kernel: FakeKernel) -> None:
    ports = Vhci(kernel.sys)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        taken = [ports.attach(theirs.fileno(), 0x10002 + n, n) for n in (3, 2, 1, 3, 5)]
        assert taken == [0, 1, 2, 3, 15]
        assert [kernel.ports[port][0] for port in taken] == [5] * 5
        for port in taken:
            ports.detach(port)
            ports.detach(port)  # again: nothing
    assert kernel.left() == []


def test_full_ports_are_refused_in_words(kernel: FakeKernel) -> None:
    ports = Vhci(kernel.sys)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert [ports.attach(theirs.fileno(), 9 << 16 | n, 5) for n in range(1, 31)] == [
            *range(15, 30),
            *range(45, 60),
        ]
        with pytest.raises(CallError, match="all 30 super-speed ports of vhci-hcd are in use"):
            ports.attach(theirs.fileno(), 0x10002, 5)
        ports.attach(theirs.fileno(), 0x10002, 3)
        for port in ports.ports():
            if port.state != FREE:
                ports.detach(port.number)
    assert kernel.left() == []


def test_a_port_that_another_program_took_meanwhile_is_passed_over(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = Vhci(kernel.sys)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stale = ports.ports()
        kernel.write(
            f"{kernel.sys}/devices/platform/vhci_hcd.0/attach", f"0 {theirs.fileno()} 65540 3"
        )
        looks = iter([stale])
        fresh = ports.ports
        monkeypatch.setattr(Vhci, "ports", lambda _self: next(looks, None) or fresh())
        assert ports.attach(theirs.fileno(), 0x10002, 3) == 1
        ports.detach(0)
        ports.detach(1)


def test_ports_of_two_sources_with_one_number_are_told_apart(kernel: FakeKernel) -> None:
    claims = vhci.Claims()
    first, second = Vhci(kernel.sys, claims), Vhci(kernel.sys, claims)
    ours, theirs = socket.socketpair()
    others, another = socket.socketpair()
    with ours, theirs, others, another:
        port = first.attach(theirs.fileno(), 0x10002, 3)
        kernel.wait(lambda: kernel.ports[port][0] != FREE)
        kernel.write(f"{kernel.sys}/devices/platform/vhci_hcd.0/detach", str(port))  # its source
        assert first.port(port) == vhci.Port(port, False, FREE, 0, "0-0")
        assert second.attach(another.fileno(), 0x10002, 3) == port
        kernel.answer(others)
        kernel.wait(lambda: second.ports()[port].state == vhci.USED)
        assert first.port(port) is None
        first.detach(port)  # not its own any more
        found = second.port(port)
        assert found is not None
        assert (found.state, found.devid) == (vhci.USED, 0x10002)
        second.detach(port)
    assert kernel.left() == []


def test_two_that_look_for_a_port_at_once_get_one_each(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has found a port, and goes on when the second waits or has found the same one."""
    second_came, first_is_done = threading.Event(), threading.Event()
    found: dict[str, int] = {}

    class Watched:
        """A lock that tells of the one that waits for it."""

        def __init__(self) -> None:
            self._lock = threading.Lock()

        def __enter__(self) -> None:
            if not self._lock.acquire(blocking=False):
                second_came.set()
                self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()

    def write(path: str, text: str) -> None:
        if second.ident is None:
            second.start()
            assert second_came.wait(PATIENCE)
        elif not second_came.is_set():
            second_came.set()
            assert first_is_done.wait(PATIENCE)
        kernel.write(path, text)

    monkeypatch.setattr(vhci, "Lock", Watched)
    monkeypatch.setattr(vhci, "write_attribute", write)
    claims = vhci.Claims()
    both = {name: Vhci(kernel.sys, claims) for name in ("first", "second")}
    ours, theirs = socket.socketpair()

    def attach(name: str) -> None:
        found[name] = both[name].attach(theirs.fileno(), 0x10002, 3)

    second = threading.Thread(target=attach, args=("second",), daemon=True)
    with ours, theirs:
        attach("first")
        first_is_done.set()
        second.join(PATIENCE)
        assert found == {"first": 0, "second": 1}
        for name, ports in both.items():
            assert ports.port(found[name]) is not None  # still its own
            ports.detach(found[name])
    assert kernel.left() == []


def test_a_refusal_of_vhci_is_told_in_words(kernel: FakeKernel) -> None:
    kernel.refuse["attach"] = errno.EINVAL
    with pytest.raises(CallError, match="vhci-hcd refuses the device"):
        Vhci(kernel.sys).attach(0, 0x10002, 3)


# Disks


def test_a_disk_in_use_below_a_device_is_told(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.plug(Stick("1-1", disk="sda"))
    kernel.plug(Stick("1-1.2", disk="sdb"))  # behind a hub, were 1-1 one
    where = roots(kernel)
    assert disks_below.disks_below("1-1", where) == ["sda"]
    held: list[str] = []

    def hold(path: str) -> int | None:
        held.append(path)
        return None if path.endswith("sdb") else os.open(path, os.O_RDONLY)

    monkeypatch.setattr(disks_below, "open_exclusively", hold)
    with disks_below.held_below("1-1", where) as files:
        assert len(files) == 1
    with pytest.raises(CallError, match="its disk sdb is mounted or otherwise in use"):
        disks_below.held_below("1-1.2", where).__enter__()
    assert held == [f"{where.dev}/sda", f"{where.dev}/sdb"]


def test_a_disk_that_the_toolstack_lends_is_in_use(kernel: FakeKernel) -> None:
    kernel.plug(Stick("1-1", disk="sda"))
    backend = kernel.sys / "bus/xen-backend/devices/vbd-7-51712"
    backend.mkdir(parents=True)
    (backend / "physical_device").write_text("8:0\n")
    with pytest.raises(CallError, match="lent to domain 7 by the toolstack"):
        disks_below.held_below("1-1", roots(kernel)).__enter__()
