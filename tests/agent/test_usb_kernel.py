"""What the agent reads of USB devices, usbip-host and vhci-hcd, and what it writes to them."""

from __future__ import annotations

import errno
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pedos_agent.device_classes.kernel import STEP_SECONDS
from pedos_agent.device_classes.on_machine import scan
from pedos_agent.device_classes.usb import disks_below, host_driver, turns, usb_device, vhci
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


class Tries:
    """What is repeated is tried as often as the test allows, and without a wait."""

    def __init__(self) -> None:
        self._allowed: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._others = set(threading.enumerate())
        self._idle = threading.Semaphore(0)

    def after_failure(self) -> float:
        self._idle.release()
        self._allowed.get(timeout=PATIENCE)
        return 0

    def allow(self, number: int) -> None:
        self._number = number
        for _ in range(number):
            self._allowed.put(None)

    def until_used(self) -> None:
        """All that were allowed are over."""
        for _ in range(self._number + 1):
            assert self._idle.acquire(timeout=PATIENCE)

    def join(self) -> None:
        """Nothing is repeated any more."""
        for thread in set(threading.enumerate()) - self._others:
            if thread.name == turns.THREAD_NAME:
                thread.join(PATIENCE)
                assert not thread.is_alive()


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> Tries:
    made = Tries()
    monkeypatch.setattr(turns, "Backoff", lambda: made)
    return made


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
    assert driver.is_authorized_by_default("1-1") == (place == "hardwired")


def test_one_that_a_vm_may_have_had_goes_to_no_driver_if_it_cannot_be_taken(
    kernel: FakeKernel, driver: HostDriver
) -> None:
    stick = kernel.plug(Stick("1-1"))
    keeping = HostDriver(kernel.sys, gives_back=False)
    driver.take("1-1", any_device)
    looks = iter((True, False))
    with pytest.raises(CallError):
        keeping.take("1-1", lambda _: next(looks))
    assert stick.driver is None
    kernel.pull("1-1")
    stick = kernel.plug(Stick("1-1"))
    looks = iter((True, False))
    with pytest.raises(CallError):
        keeping.take("1-1", lambda _: next(looks))
    assert stick.driver == "usb"  # no VM has had this one


def test_why_one_cannot_be_taken_is_told_also_if_it_cannot_be_given_back(
    kernel: FakeKernel, driver: HostDriver, caplog: pytest.LogCaptureFixture, tries: Tries
) -> None:
    kernel.plug(Stick("1-1"))

    def until_it_is_taken(device: usb_device.UsbDevice) -> bool:
        if device.driver != "usbip-host":
            return True
        kernel.refuse["unbind"] = errno.EIO
        return False

    with pytest.raises(CallError, match="1-1 was unplugged or replaced just now"):
        driver.take("1-1", until_it_is_taken)
    assert "1-1 is not back yet, which is tried again: Input/output error" in caplog.text
    kernel.refuse.clear()
    tries.allow(1)
    tries.join()
    assert kernel.left() == []


def test_a_device_that_cannot_be_given_back_is_so_in_the_end(
    kernel: FakeKernel, driver: HostDriver, caplog: pytest.LogCaptureFixture, tries: Tries
) -> None:
    caplog.set_level(logging.INFO)
    stick = kernel.plug(Stick("1-1"))
    taken = driver.take("1-1", any_device)
    kernel.refuse["unbind"] = errno.EIO
    driver.give_back(taken)
    driver.give_back(taken)  # again: one repeats it
    tries.allow(3)
    tries.until_used()
    assert stick.driver == "usbip-host"
    kernel.refuse.clear()
    tries.allow(1)
    tries.join()
    assert stick.driver == "usb"
    assert caplog.messages[-1] == "1-1 is released, or gone"


def test_a_device_that_is_lent_again_half_given_back_gets_its_driver_after_that(
    kernel: FakeKernel, driver: HostDriver, tries: Tries
) -> None:
    stick = kernel.plug(Stick("1-1"))
    taken = driver.take("1-1", any_device)
    kernel.refuse["drivers_probe"] = errno.EIO
    driver.give_back(taken)
    assert stick.driver is None
    kernel.refuse.clear()
    driver.give_back(driver.take("1-1", any_device))
    assert stick.driver == "usb"
    tries.allow(1)
    tries.join()


def test_one_whose_connection_ends_late_is_given_back_after_that(
    kernel: FakeKernel, driver: HostDriver, tries: Tries
) -> None:
    stick = kernel.plug(Stick("1-1"))
    predecessor = HostDriver(kernel.sys)
    taken = predecessor.take("1-1", any_device)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        predecessor.connect(taken, theirs.fileno())
        left = driver.leftover("1-1")
        assert left is not None
        driver.give_back_later(left, when_idle=True)
        tries.allow(2)
        tries.until_used()
        assert stick.driver == "usbip-host"
        predecessor.disconnect(taken)
        tries.allow(1)
        tries.join()
    assert stick.driver == "usb"


def test_one_that_is_released_late_to_no_driver_is_not_said_to_be_back(
    kernel: FakeKernel, caplog: pytest.LogCaptureFixture, tries: Tries
) -> None:
    caplog.set_level(logging.INFO)
    stick = kernel.plug(Stick("1-1"))
    driver = HostDriver(kernel.sys, gives_back=False)
    taken = driver.take("1-1", any_device)
    kernel.refuse["unbind"] = errno.EIO
    driver.give_back(taken)
    kernel.refuse.clear()
    tries.allow(1)
    tries.join()
    assert stick.driver is None
    assert caplog.messages[-1] == "1-1 is released, or gone"


def test_a_device_that_does_not_come_back_is_not_tried_for_ever(
    kernel: FakeKernel, driver: HostDriver, caplog: pytest.LogCaptureFixture, tries: Tries
) -> None:
    stick = kernel.plug(Stick("1-1"))
    taken = driver.take("1-1", any_device)
    kernel.refuse["unbind"] = errno.EIO
    driver.give_back(taken)
    tries.allow(turns.TRIES_MAX)
    tries.join()
    assert caplog.messages[-1] == (
        "1-1 does not come back, which is not tried any more: Input/output error"
    )
    kernel.refuse.clear()
    driver.give_back(driver.take("1-1", any_device))  # the next one gives it back
    assert stick.driver == "usb"


def test_what_the_kernel_keeps_without_a_word_is_not_back(
    kernel: FakeKernel, driver: HostDriver, caplog: pytest.LogCaptureFixture, tries: Tries
) -> None:
    kernel.plug(Stick("1-1"))
    taken = driver.take("1-1", any_device)
    kernel.refuse["unbind"] = 0
    driver.give_back(taken)
    assert caplog.messages == [
        "1-1 is not back yet, which is tried again: usbip-host does not release it"
    ]
    kernel.refuse.clear()
    tries.allow(1)
    tries.join()


def test_a_device_that_is_taken_again_is_not_given_back_for_an_earlier_loan(
    kernel: FakeKernel, driver: HostDriver, tries: Tries
) -> None:
    stick = kernel.plug(Stick("1-1"))
    first = driver.take("1-1", any_device)
    kernel.refuse["unbind"] = errno.EIO
    driver.give_back(first)
    kernel.refuse.clear()
    second = driver.take("1-1", any_device)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(CallError, match="1-1 was taken again meanwhile"):
            driver.connect(first, theirs.fileno())
        driver.connect(second, theirs.fileno())
        tries.allow(1)  # of what is repeated, and all that may be late
        tries.join()
        driver.disconnect(first)
        driver.give_back(first)
        driver.give_back_later(first)
        tries.join()
        assert (stick.driver, stick.status) == ("usbip-host", 2)
        driver.disconnect(second)
    driver.give_back(second)
    assert stick.driver == "usb"


@pytest.mark.parametrize("does", ["connect", "disconnect"])
def test_a_thread_that_is_late_by_one_write_does_not_touch_the_next_loan(
    kernel: FakeKernel, driver: HostDriver, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    """Between its look at the loan and its write the device goes back, and to the next VM."""
    stick = kernel.plug(Stick("1-1"))
    first = driver.take("1-1", any_device)
    ours, theirs = socket.socketpair()
    later: list[host_driver.Taken] = []

    def write(path: str, text: str) -> None:
        monkeypatch.setattr(host_driver, "write_attribute", kernel.write)
        driver.give_back(first)
        later.append(driver.take("1-1", any_device))
        if does == "disconnect":
            driver.connect(later[0], theirs.fileno())
        kernel.write(path, text)

    with ours, theirs:
        monkeypatch.setattr(host_driver, "write_attribute", write)
        if does == "disconnect":
            driver.disconnect(first)
            assert stick.status == host_driver.USED
        else:
            with pytest.raises(OSError, match="No such device"):
                driver.connect(first, theirs.fileno())
            assert stick.status == host_driver.AVAILABLE
        driver.give_back(later[0])
    assert stick.driver == "usb"


def test_a_device_in_the_port_of_another_is_not_given_back_in_its_place(
    kernel: FakeKernel, driver: HostDriver
) -> None:
    kernel.plug(Stick("1-1", authorized=False))
    taken = driver.take("1-1", any_device)
    kernel.pull("1-1")
    later = kernel.plug(Stick("1-1"))
    other = HostDriver(kernel.sys)  # another program has it
    lent = other.take("1-1", any_device)
    driver.give_back(taken)
    assert (later.driver, later.authorized) == ("usbip-host", True)
    other.give_back(lent)


def test_the_one_that_is_given_back_is_the_one_that_was_taken(
    kernel: FakeKernel, driver: HostDriver
) -> None:
    kernel.plug(Stick("1-1"))

    def is_it(_device: usb_device.UsbDevice) -> bool:
        """The device of the decision is plugged in just before the first look."""
        if kernel.devices["1-1"].serial != "S2":
            kernel.pull("1-1")
            kernel.plug(Stick("1-1", serial="S2"))
        return True

    driver.give_back(driver.take("1-1", is_it))
    assert kernel.devices["1-1"].driver == "usb"


def test_what_is_replaced_between_two_writes_is_not_given_to_a_driver(
    kernel: FakeKernel, driver: HostDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.plug(Stick("1-1"))
    taken = driver.take("1-1", any_device)

    def write(path: str, text: str) -> None:
        kernel.write(path, text)
        if path.endswith("/unbind"):
            kernel.pull("1-1")
            kernel.plug(Stick("1-1", serial="S2")).driver = None

    monkeypatch.setattr(host_driver, "write_attribute", write)
    driver.give_back(taken)
    assert kernel.devices["1-1"].driver is None


def test_what_an_earlier_loan_has_authorised_is_not_authorised_for_good(
    kernel: FakeKernel, driver: HostDriver
) -> None:
    stick = kernel.plug(Stick("1-1", authorized=False))
    (kernel.sys / "bus/usb/devices/usb1").mkdir()
    (kernel.sys / "bus/usb/devices/usb1/authorized_default").write_text("0\n")
    driver.take("1-1", any_device)
    driver.give_back(driver.take("1-1", any_device))
    assert (stick.driver, stick.authorized) == ("usb", False)


def test_nobody_takes_a_device_that_another_one_takes_or_gives_back(
    kernel: FakeKernel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tries: Tries,
) -> None:
    """The kernel hangs, and all others ask meanwhile, as long as that."""
    stick = kernel.plug(Stick("1-1"))
    kernel.plug(Stick("1-2"))
    shared = turns.Turns()
    first, other = (HostDriver(kernel.sys, turns=shared) for _ in range(2))

    def write(path: str, text: str) -> None:
        if text == "1-1":
            with pytest.raises(CallError, match="1-1 is still being lent or given back") as caught:
                other.take("1-1", any_device)
            assert caught.value.code == "busy"
            other.give_back(other.take("1-2", any_device))
        kernel.write(path, text)

    monkeypatch.setattr(turns, "TURN_SECONDS", 0)
    monkeypatch.setattr(host_driver, "write_attribute", write)
    taken = first.take("1-1", any_device)
    first.give_back(taken)
    monkeypatch.setattr(host_driver, "write_attribute", kernel.write)
    taken = other.take("1-1", any_device)
    with shared.at("1-1"):
        other.give_back(taken)  # not its turn: so later
    assert caplog.messages == ["1-1 is still being lent or given back: the kernel does not answer"]
    assert stick.driver == "usbip-host"
    tries.allow(1)
    tries.join()
    assert stick.driver == "usb"


def test_a_leftover_that_was_taken_meanwhile_is_not_given_back(
    kernel: FakeKernel, driver: HostDriver
) -> None:
    stick = kernel.plug(Stick("1-1"))
    HostDriver(kernel.sys).take("1-1", any_device)  # a predecessor
    left = driver.leftover("1-1")
    assert left is not None
    taken = driver.take("1-1", any_device)
    driver.give_back(left)
    assert stick.driver == "usbip-host"
    driver.give_back(taken)
    assert stick.driver == "usb"


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
    assert driver.left() == ["1-1"]
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
    taken = driver.take("1-1", any_device)
    kernel.pull("1-1")
    driver.disconnect(taken)
    driver.give_back(taken)
    later = kernel.plug(Stick("1-1", serial="other"))
    kernel.write(f"{kernel.sys}/bus/usb/drivers/usb/unbind", "1-1")
    driver.give_back(taken)
    assert later.driver is None  # it is not touched
    assert kernel.left() == []


def test_a_deauthorised_device_is_authorised_only_while_usbip_host_has_it(
    kernel: FakeKernel, driver: HostDriver
) -> None:
    stick = kernel.plug(Stick("1-1", authorized=False))
    (kernel.sys / "bus/usb/devices/usb1").mkdir()
    (kernel.sys / "bus/usb/devices/usb1/authorized_default").write_text("0\n")
    assert not driver.is_authorized_by_default("1-1")
    assert driver.is_authorized_by_default("2-1")
    taken = driver.take("1-1", any_device)
    assert not taken.was_authorized
    assert [path.split("/")[-1] for path, _ in kernel.writes][-2:] == ["bind", "authorized"]
    driver.release("1-1", is_authorized=taken.was_authorized)
    assert not stick.authorized
    assert [path.split("/")[-1] for path, _ in kernel.writes][-3:] == [
        "authorized",
        "unbind",
        "drivers_probe",
    ]


def test_a_device_in_use_by_another_program_is_not_taken(
    kernel: FakeKernel, driver: HostDriver
) -> None:
    kernel.plug(Stick("1-1"))
    taken = driver.take("1-1", any_device)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        driver.connect(taken, theirs.fileno())
        with pytest.raises(CallError, match="by another program"):
            driver.take("1-1", any_device)
        with pytest.raises(CallError, match="it is in use"):
            driver.connect(taken, theirs.fileno())
        driver.disconnect(taken)
        driver.disconnect(taken)  # again: nothing
        driver.release("1-1")
    assert kernel.left() == []


def test_a_look_while_the_status_changes_sees_the_driver_and_a_status(
    kernel: FakeKernel, driver: HostDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the kernel that is made for these tests: a look between any two of its changes."""
    kernel.plug(Stick("1-1"))
    taken = driver.take("1-1", any_device)
    seen: set[tuple[str | None, int | None]] = set()

    def looked_after(change: Callable[..., object]) -> Callable[..., object]:
        def changed(path: Path, *arguments: object, **more: object) -> object:
            done = change(path, *arguments, **more)
            now = driver.device("1-1")
            assert now is not None
            seen.add((now.driver, now.status))
            return done

        return changed

    ours, theirs = socket.socketpair()
    with ours, theirs, monkeypatch.context() as patch:
        for name in ("unlink", "symlink_to", "write_text", "write_bytes", "replace", "touch"):
            patch.setattr(Path, name, looked_after(getattr(Path, name)))
        driver.connect(taken, theirs.fileno())
        driver.disconnect(taken)
    assert seen == {("usbip-host", 1), ("usbip-host", 2)}
    driver.release("1-1")


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

        def acquire(self, *, timeout: float) -> bool:
            if not self._lock.acquire(blocking=False):
                second_came.set()
                return self._lock.acquire(timeout=timeout)
            return True

        def release(self) -> None:
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
    monkeypatch.setattr(vhci, "TURN_SECONDS", PATIENCE)
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


def test_who_waits_too_long_for_a_port_takes_none_later(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = vhci.Claims()
    first, second = Vhci(kernel.sys, claims), Vhci(kernel.sys, claims)
    ours, theirs = socket.socketpair()

    def write(path: str, text: str) -> None:
        """The kernel hangs: another one asks meanwhile, as long as that."""
        monkeypatch.setattr(vhci, "write_attribute", kernel.write)
        with pytest.raises(CallError, match="busy with another device") as caught:
            second.attach(theirs.fileno(), 0x10003, 3)
        assert caught.value.code == "busy"
        kernel.write(path, text)

    monkeypatch.setattr(vhci, "TURN_SECONDS", 0)
    monkeypatch.setattr(vhci, "write_attribute", write)
    with ours, theirs:
        assert first.attach(theirs.fileno(), 0x10002, 3) == 0
        assert [path.rpartition("/")[2] for path, _ in kernel.writes] == ["attach"]
        first.detach(0)
        assert second.attach(theirs.fileno(), 0x10003, 3) == 0  # and the turn is free again
        second.detach(0)
    assert kernel.left() == []


def test_nobody_waits_for_a_turn_longer_than_the_caller() -> None:
    assert max(vhci.TURN_SECONDS, turns.TURN_SECONDS) < STEP_SECONDS / 2


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
