"""A USB device goes from one VM to another and back, over a data channel of ours, between kernels
that are made for the tests. Nothing is left in either, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from pedos_agent.attachments.table import Attachments
from pedos_agent.device_classes import data_channel, kernel
from pedos_agent.device_classes.on_machine import scan
from pedos_agent.device_classes.usb import (
    disks_below,
    exporter,
    host_driver,
    importer,
    turns,
    vhci,
)
from pedos_agent.device_classes.usb.driverless import in_words
from pedos_agent.device_classes.usb.handover import Handover, parse_handover
from pedos_agent.device_classes.usb.vhci import Vhci
from pedos_agent.inventory.inventory import Inventory
from pedos_agent.settings import Settings, xen_settings
from pedos_agent.system.revision import Revision
from pedos_agent.system.roots import Roots
from pedos_host.backoff import Backoff
from pedos_protocol.agent_messages import ExportStart, ImportStart
from pedos_protocol.errors import CallError
from pedos_vchan.stream import VchanStream
from pedos_vchan.transport import Listener, SharedMemory, Transport

from tests.native.usbip_stream import IN, submit, submitted
from tests.patience import PATIENCE

from .conftest import ATTACHMENT
from .usb_kernel import FakeKernel, Stick, real_path

SOURCE, TARGET, PORT = 2, 3, 16


@attrs.frozen
class OnXen(Settings):
    """As on Xen in all but its channels."""

    def transport(self) -> Transport:
        return SharedMemory(self.vchan, self.domid)


class Vm:
    """The part of an agent that lends and borrows, on a kernel of its own."""

    def __init__(self, root: Path, name: str, domid: int, **more: Any) -> None:
        (root / name).mkdir()
        self.kernel = FakeKernel(root / name)
        settings = xen_settings(name, domid, root / f"{name}.sock", None)
        changed = attrs.evolve(settings, vchan=root / "vchan", **more)
        self.revision = Revision()
        on_xen = OnXen(**attrs.asdict(changed, recurse=False))
        self.attachments = Attachments(on_xen, self.revision)
        where = self.kernel.root
        self.attachments.host.roots = Roots(
            self.kernel.sys, where / "proc", where / "udev", where / "dev"
        )
        self.inventory = Inventory(Revision(), self.attachments.check_sources)
        self.attachments.inventory = self.inventory
        self.ended: dict[str, str] = {}
        self.attachments.ended = self._note
        self._noted = trio.Event()

    async def _note(self, _attachment: str, side: str, reason: str) -> None:
        self.ended[side] = reason
        self._noted.set()

    async def one_ended(self) -> None:
        await self._noted.wait()

    def look(self) -> None:
        """Discovery looks, as after an event of the kernel."""
        self.inventory.replace("sysfs", scan(self.kernel.sys, self.kernel.root / "proc"))


class Pair:
    """A source with a stick at 1-2, and a target."""

    def __init__(self, root: Path, **more: Any) -> None:
        (root / "vchan").mkdir()
        self.source = Vm(root, "sys-usb", SOURCE, **more)
        self.target = Vm(root, "work", TARGET)
        self.stick = self.source.kernel.plug(Stick("1-2", disk="sda"))
        self.source.look()

    def write(self, path: str, text: str) -> None:
        """An agent's write_attribute."""
        path = real_path(path)
        of = self.source if path.startswith(f"{self.source.kernel.sys}/") else self.target
        of.kernel.write(path, text)

    async def lend(
        self, device: str = "1-2", attachment: str = ATTACHMENT, port: int = PORT
    ) -> str:
        params = ExportStart(attachment, "usb", device, port, TARGET, False)
        started = await self.source.attachments.start_export(params)
        assert started.handover is not None
        return started.handover

    async def borrow(
        self,
        handover: str | None,
        attachment: str = ATTACHMENT,
        port: int = PORT,
        device: str = "1-2",
    ) -> None:
        params = ImportStart(
            attachment, "usb", "sys-usb", device, port, SOURCE, False, handover=handover
        )
        assert await self.target.attachments.start_import(params) is None

    async def attach(self) -> None:
        await self.borrow(await self.lend())

    async def detach(self, **more: Any) -> None:
        await self.target.attachments.stop_import(ATTACHMENT, **more)
        await self.source.attachments.stop_export(ATTACHMENT)

    def left(self) -> list[str]:
        return self.source.kernel.left() + self.target.kernel.left()

    async def idle(self) -> None:
        """Both sides have ended what they had."""
        for each in (self.source, self.target):
            while each.attachments.exports() or each.attachments.imports():
                await each.revision.after(each.revision.number)

    def is_back(self) -> bool:
        return self.stick.driver == "usb" and (self.source.kernel.sys / "class/block/sda").exists()


@pytest.fixture
async def pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[Pair]:
    made = Pair(tmp_path, **getattr(request, "param", {}))
    for module in (host_driver, vhci):
        monkeypatch.setattr(module, "write_attribute", made.write)
    monkeypatch.setattr(kernel, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(turns, "Backoff", partial(Backoff, 0.001))
    before = set(os.listdir("/proc/self/fd"))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for each in (made.source, made.target):
                await nursery.start(each.attachments.run)
            yield made
            for each in (made.target, made.source):
                await each.attachments.close()
    assert made.left() == []
    assert made.source.kernel.crimes + made.target.kernel.crimes == []
    for each in (made.source, made.target):
        each.kernel.close()
    left = set(os.listdir("/proc/self/fd")) - before
    assert not [each for each in left if is_socket(each)]


def is_socket(name: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    except OSError:
        return False


async def test_a_device_is_configured_in_the_target_when_it_is_attached(pair: Pair) -> None:
    await pair.attach()
    (port,) = [each for each in Vhci(pair.target.kernel.sys).ports() if each.state != vhci.FREE]
    assert (port.state, port.devid) == (vhci.USED, 1 << 16 | pair.stick.number)
    assert (pair.stick.driver, pair.stick.status) == ("usbip-host", 2)
    pair.source.look()  # and discovery takes none of this for an unplug
    assert [state.device for state in pair.source.attachments.exports()] == ["1-2"]
    await pair.detach()
    assert pair.is_back()


async def test_parts_of_a_device_that_have_no_driver_in_the_target_are_told(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "DRIVER_SECONDS", 0.05)
    pair.target.kernel.interfaces = {
        "1.0": ("03", "01", "01", True),
        "1.1": ("0b", "00", "00", False),
        "1.2": ("fe", "01", "02", False),
    }
    await pair.attach()
    assert pair.target.attachments.note_of(ATTACHMENT) == (
        "no driver here has this part of it: smart card reader or security key (u0b0000), "
        "firmware update (DFU) (ufe0102)"
    )
    await pair.detach()
    assert pair.target.attachments.note_of(ATTACHMENT) is None
    pair.target.kernel.interfaces = {"1.0": ("03", "01", "01", True)}
    await pair.attach()
    assert pair.target.attachments.note_of(ATTACHMENT) is None
    await pair.detach()


def test_many_parts_without_a_driver_are_counted() -> None:
    said = in_words([f"uff00{number:02x}" for number in range(30)])
    assert said.endswith(", 26 more")
    assert len(said) < 200


async def test_thirty_rounds_leave_nothing(pair: Pair) -> None:
    for _ in range(30):
        await pair.attach()
        await pair.detach()
        assert (pair.left(), pair.is_back()) == ([], True)
    assert pair.source.kernel.names == ["1-2"]


async def test_several_devices_at_once(pair: Pair) -> None:
    fast = pair.source.kernel.plug(Stick("2-1.4", serial="S2", speed="5000"))
    pair.source.look()
    await pair.attach()
    another = "ff" * 8
    await pair.borrow(await pair.lend("2-1.4", another, PORT + 1), another, PORT + 1)
    ports = [n for n, row in pair.target.kernel.ports.items() if row[0] != vhci.FREE]
    assert ports == [0, 15]
    await pair.target.attachments.stop_import(another)
    await pair.source.attachments.stop_export(another)
    assert (fast.driver, pair.stick.status) == ("usb", 2)
    await pair.detach()


async def test_no_step_of_a_device_is_one_of_another(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that one which hangs refuses none to the other."""
    pair.source.kernel.plug(Stick("1-3", serial="S2"))
    pair.source.look()
    asked: set[str] = set()
    real = kernel.in_time

    def in_time(what: str, *arguments: Any, **more: Any) -> Any:
        asked.add(what)
        return real(what, *arguments, **more)

    monkeypatch.setattr(kernel, "in_time", in_time)

    for device in ("1-2", "1-3"):
        asked.clear()
        await pair.borrow(await pair.lend(device), device=device)
        await pair.target.attachments.check_import(ATTACHMENT)
        await pair.detach(may_refuse=True)
        of_all = {each for each in asked if device not in each}
        assert of_all == {"look for usbip-host", "look for vhci-hcd"}


async def test_a_device_that_is_pulled_ends_on_both_sides_with_the_reason(pair: Pair) -> None:
    await pair.attach()
    pair.source.kernel.pull("1-2")
    pair.source.look()
    await pair.source.one_ended()
    await pair.target.one_ended()
    assert pair.source.ended == {"export": "the device was unplugged"}
    assert pair.target.ended == {"import": "the source has ended the connection"}
    await pair.idle()
    assert pair.left() == []


async def test_a_device_that_is_plugged_again_is_another_one_and_stays_here(pair: Pair) -> None:
    await pair.attach()
    pair.source.kernel.pull("1-2")
    again = pair.source.kernel.plug(Stick("1-2", disk="sda"))
    pair.source.look()
    await pair.idle()
    assert pair.source.ended == {"export": "the device was plugged in again, or has reset itself"}
    assert again.driver == "usb"


async def test_another_device_in_the_port_is_told_as_that(pair: Pair) -> None:
    await pair.attach()
    pair.source.kernel.pull("1-2")
    pair.source.kernel.plug(Stick("1-2", serial="S2"))
    pair.source.look()
    await pair.idle()
    assert pair.source.ended == {"export": "the device was replaced by another one"}


async def test_a_device_that_resets_itself_ends_visibly_and_can_be_lent_again(pair: Pair) -> None:
    """It goes from the bus for a moment. Discovery does not look meanwhile, nor after it."""
    await pair.attach()
    pair.source.kernel.pull("1-2")
    pair.source.kernel.plug(pair.stick)
    await pair.source.one_ended()
    assert pair.source.ended == {"export": "the device was plugged in again, or has reset itself"}
    await pair.idle()
    assert pair.left() == []
    pair.source.look()
    await pair.attach()
    await pair.detach()


async def test_the_end_of_the_target_gives_the_device_back(pair: Pair) -> None:
    await pair.attach()
    await pair.target.attachments.close()
    await pair.idle()
    assert pair.is_back()


async def test_the_end_of_the_source_frees_the_port(pair: Pair) -> None:
    await pair.attach()
    await pair.source.attachments.close()
    await pair.idle()
    assert (pair.left(), pair.is_back()) == ([], True)


async def test_a_device_that_cannot_be_looked_at_ends_for_the_reason_of_its_connection(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_folder: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    await pair.attach()
    monkeypatch.setattr(exporter, "identity_of", fails)
    pair.target.kernel.write(f"{pair.target.kernel.sys}/devices/platform/vhci_hcd.0/detach", "0")
    await pair.idle()
    assert pair.source.ended == {"export": "the target has ended the connection"}
    assert pair.is_back()


async def test_a_port_that_is_freed_by_hand_ends_both_sides(pair: Pair) -> None:
    await pair.attach()
    pair.target.kernel.write(f"{pair.target.kernel.sys}/devices/platform/vhci_hcd.0/detach", "0")
    await pair.idle()
    assert pair.target.ended == {"import": "vhci-hcd has ended the connection"}
    assert pair.source.ended == {"export": "the target has ended the connection"}
    assert pair.is_back()


async def test_a_target_that_never_connects_leaves_nothing(pair: Pair) -> None:
    await pair.lend()
    await pair.source.attachments.stop_export(ATTACHMENT)
    assert (pair.left(), pair.is_back()) == ([], True)


async def test_a_source_that_does_not_answer_is_given_up(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "CONFIGURE_SECONDS", 0.2)
    monkeypatch.setattr(FakeKernel, "_serve", lambda *_: None)  # its usbip-host is silent
    handover = await pair.lend()
    with pytest.raises(CallError, match=r"the device did not answer within 0\.2 s"):
        await pair.borrow(handover)
    assert pair.target.kernel.left() == []
    await pair.source.attachments.stop_export(ATTACHMENT)
    assert pair.is_back()


async def test_a_target_that_is_not_told_what_it_gets_is_refused(pair: Pair) -> None:
    await pair.lend()
    with pytest.raises(CallError, match="did not say which device it lends"):
        await pair.borrow(None)


@pytest.mark.parametrize(
    "text",
    ["", "65538", "65538 6", "65538 0", "65538 3 1", "0 3", "65536 3", "-1 3", "4294967296 3"],
)
def test_what_a_source_says_is_bounded(text: str) -> None:
    with pytest.raises(CallError):
        parse_handover(text)
    assert parse_handover(str(Handover(65538, 5))) == Handover(65538, 5)


# Uses


def in_use(name: str) -> Callable[[str], int | None]:
    def hold(path: str) -> int | None:
        return None if path.endswith(f"/{name}") else os.open(path, os.O_RDONLY)

    return hold


async def test_a_mounted_disk_is_not_lent(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disks_below, "open_exclusively", in_use("sda"))
    with pytest.raises(CallError, match="1-2 is in use here: its disk sda is mounted") as caught:
        await pair.lend()
    assert caught.value.code == "busy"
    assert pair.source.kernel.writes == []


async def test_a_borrowed_disk_in_use_is_not_let_go_but_by_force(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pair.attach()
    kernel_of = pair.target.kernel
    local = os.readlink(kernel_of.sys / "bus/usb/devices/9-1").removeprefix("../../../")
    inner = kernel_of.sys / local / "9-1:1.0/host0/block/sdb"
    inner.mkdir(parents=True)
    (inner / "dev").write_text("8:16\n")
    (kernel_of.sys / "class/block/sdb").symlink_to(f"../../{local}/9-1:1.0/host0/block/sdb")
    (kernel_of.root / "dev/sdb").touch()
    monkeypatch.setattr(disks_below, "open_exclusively", in_use("sdb"))
    with pytest.raises(CallError, match="9-1 is in use here: its disk sdb is mounted"):
        await pair.target.attachments.check_import(ATTACHMENT)
    with pytest.raises(CallError, match="9-1 is in use here"):
        await pair.detach(may_refuse=True)
    assert pair.stick.status == 2
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(disks_below, "open_exclusively", in_use("sdz"))
    await pair.detach(may_refuse=True)
    assert len(synced) == 1
    assert pair.is_back()


# The rest of what the kernel may do


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("unbind", "1-2 cannot be taken from its driver"),
        ("bind", "1-2 cannot be taken from its driver"),
        ("match_busid", "1-2 cannot be taken from its driver"),
    ],
)
async def test_what_usbip_host_refuses_is_told_and_undone(pair: Pair, name: str, why: str) -> None:
    pair.source.kernel.refuse[name] = errno.EBUSY
    with pytest.raises(CallError, match=why):
        await pair.lend()
    assert pair.is_back()


async def test_a_port_that_cannot_be_had_is_told_and_undone(pair: Pair) -> None:
    pair.target.kernel.refuse["attach"] = errno.EINVAL
    handover = await pair.lend()
    with pytest.raises(CallError, match="vhci-hcd refuses the device"):
        await pair.borrow(handover)
    await pair.source.attachments.stop_export(ATTACHMENT)
    assert pair.is_back()


@pytest.mark.parametrize("pair", [{"give_back": False}], indirect=True)
async def test_a_source_may_leave_a_device_without_a_driver(pair: Pair) -> None:
    await pair.attach()
    await pair.detach()
    assert (pair.stick.driver, pair.left()) == (None, [])
    # Nor to one whose module is loaded later: the VM has configured its interfaces.
    assert (pair.stick.authorized, pair.stick.configured) == (False, False)
    writes = [(path.rpartition("/")[2], text) for path, text in pair.source.kernel.writes]
    assert writes[-2:] == [("authorized", "0"), ("unbind", "1-2")]
    await pair.source.attachments.clean_leftovers()  # and a restarted agent leaves it so
    assert (pair.stick.driver, pair.stick.authorized) == (None, False)

    def listed() -> str:
        pair.source.look()
        (device,) = pair.source.inventory.devices()
        return device.description

    assert listed() == "Maker Stick; a VM had it"
    product = pair.source.kernel.sys / "bus/usb/devices/1-2/product"
    product.write_text("x" * 200)
    assert listed().endswith("x...; a VM had it")
    product.write_text("Stick\n")
    await pair.attach()  # another VM can have it
    await pair.detach()
    assert pair.stick.driver is None
    pair.source.kernel.pull("1-2")
    pair.source.kernel.plug(pair.stick)
    assert listed() == "Maker Stick"


@pytest.mark.parametrize("pair", [{"give_back": False}], indirect=True)
async def test_a_device_that_was_left_without_a_driver_has_one_when_that_is_not_wished_any_more(
    pair: Pair,
) -> None:
    await pair.attach()
    await pair.detach()
    settings = pair.source.attachments.host.settings
    pair.source.attachments.host.settings = attrs.evolve(settings, give_back=True)
    await pair.source.attachments.clean_leftovers()  # as a restarted agent does
    assert pair.is_back()
    assert (pair.stick.authorized, pair.stick.configured) == (True, True)


async def test_a_module_that_is_not_there_is_told(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_tool(_argv: list[str]) -> str:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(kernel, "_said_by", no_tool)
    monkeypatch.setattr(host_driver.HostDriver, "is_loaded", lambda _self: False)
    with pytest.raises(CallError, match="the kernel of this VM has no module usbip-host"):
        await pair.lend()
    assert pair.source.kernel.writes == []


async def test_what_a_killed_predecessor_had_is_given_back(pair: Pair) -> None:
    driver = host_driver.HostDriver(pair.source.kernel.sys)
    driver.take("1-2", lambda _: True)
    assert pair.left() == ["1-2 at usbip-host"]
    await pair.source.attachments.clean_leftovers()
    assert (pair.left(), pair.is_back()) == ([], True)


async def test_a_leftover_that_cannot_be_given_back_does_not_end_the_agent(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    driver = host_driver.HostDriver(pair.source.kernel.sys)
    driver.take("1-2", lambda _: True)
    pair.source.kernel.refuse["unbind"] = errno.EIO
    await pair.source.attachments.clean_leftovers()
    assert "1-2 is not back yet, which is tried again: Input/output error" in caplog.text
    pair.source.kernel.refuse.clear()
    pair.source.kernel.wait(pair.is_back)


async def test_a_device_that_another_program_lends_is_left_to_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "IDLE_SECONDS", 0.05)
    driver = host_driver.HostDriver(pair.source.kernel.sys)
    taken = driver.take("1-2", lambda _: True)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        driver.connect(taken, theirs.fileno())
        await pair.source.attachments.clean_leftovers()
        assert pair.stick.status == 2
    driver.disconnect(taken)
    driver.give_back(taken)


# Whatever happens, at any step


async def pull(pair: Pair) -> None:
    pair.source.kernel.pull("1-2")
    pair.source.look()


async def free_the_port(pair: Pair) -> None:
    with contextlib.suppress(OSError):
        path = f"{pair.target.kernel.sys}/devices/platform/vhci_hcd.0/detach"
        pair.target.kernel.write(path, "0")


async def take_from_usbip_host(pair: Pair) -> None:
    path = f"{pair.source.kernel.sys}/bus/usb/drivers/usbip-host/unbind"
    with contextlib.suppress(OSError):  # the agent may have been faster, or be about to be
        pair.source.kernel.write(path, "1-2")
        pair.source.kernel.write(f"{pair.source.kernel.sys}/bus/usb/drivers_probe", "1-2")


async def stop_the_export(pair: Pair) -> None:
    await pair.source.attachments.stop_export(ATTACHMENT)


async def stop_the_import(pair: Pair) -> None:
    await pair.target.attachments.stop_import(ATTACHMENT)


async def end_the_source(pair: Pair) -> None:
    await pair.source.attachments.close()


async def end_the_target(pair: Pair) -> None:
    await pair.target.attachments.close()


EVENTS: list[Callable[[Pair], Awaitable[None]]] = [
    pull,
    free_the_port,
    take_from_usbip_host,
    stop_the_export,
    stop_the_import,
    end_the_source,
    end_the_target,
]
STEPS = [
    "export.opened",
    "export.listening",
    "export.connected",
    "import.connected",
    "import.ready",
    "export.stopped",
    "import.stopped",
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
@pytest.mark.parametrize("step", STEPS)
async def test_whatever_happens_at_any_step_leaves_nothing(
    pair: Pair,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    event: Callable[[Pair], Awaitable[None]],
) -> None:
    happened = trio.Event()

    async def reached(name: str) -> None:
        if name == step and not happened.is_set():
            nursery.start_soon(event, pair)
            happened.set()
            await trio.testing.wait_all_tasks_blocked()

    for module in (data_channel, exporter, importer):
        monkeypatch.setattr(module, "reach", reached)
    with contextlib.suppress(CallError):
        await pair.attach()
    await pair.detach()
    await pair.idle()
    assert happened.is_set()
    assert pair.left() == []
    assert pair.is_back() or event is pull


class Death(BaseException):
    """SIGKILL, as far as a kernel sees it."""


@contextlib.contextmanager
def killed_after(writes: int, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Within, the agent is killed instead of one more write to the kernel; yields those it did."""
    done: list[str] = []

    def write(path: str, text: str) -> None:
        if len(done) == writes:
            raise Death
        done.append(path)
        pair.write(path, text)

    with monkeypatch.context() as patch, contextlib.suppress(Death):
        patch.setattr(host_driver, "write_attribute", write)
        yield done


@pytest.mark.parametrize("writes", range(6))
async def test_an_agent_that_is_killed_between_any_two_writes_leaves_nothing_to_the_next(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    driver = host_driver.HostDriver(pair.source.kernel.sys)
    with killed_after(writes, pair, monkeypatch) as done:
        driver.give_back(driver.take("1-2", lambda _: True))
    assert len(done) == min(writes, 5)  # add, unbind, bind; unbind, probe
    await exporter.clean_leftovers(driver)
    assert (pair.left(), pair.is_back()) == ([], True)


@pytest.mark.parametrize("writes", range(8))
async def test_an_agent_that_is_killed_at_any_write_leaves_a_device_deauthorised(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    stick = pair.source.kernel.plug(Stick("1-3", authorized=False))
    (pair.source.kernel.sys / "bus/usb/devices/usb1").mkdir()
    (pair.source.kernel.sys / "bus/usb/devices/usb1/authorized_default").write_text("0\n")
    driver = host_driver.HostDriver(pair.source.kernel.sys)
    with killed_after(writes, pair, monkeypatch) as done:
        driver.give_back(driver.take("1-3", lambda _: True))
    # add, unbind, bind, authorised; deauthorised, unbind, probe
    assert len(done) == min(writes, 7)
    await exporter.clean_leftovers(driver)
    assert (stick.driver, stick.authorized, pair.left()) == ("usb", False, [])


async def test_a_device_that_cannot_be_given_back_is_told_in_the_log(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    await pair.attach()
    pair.source.kernel.refuse["unbind"] = errno.EIO
    await pair.detach()
    assert "1-2 is not back yet, which is tried again: Input/output error" in caplog.text
    pair.source.kernel.refuse.clear()
    await pair.attach()  # it can be lent again
    await pair.detach()
    assert pair.is_back()


async def test_a_device_that_cannot_be_given_back_is_so_in_the_end(pair: Pair) -> None:
    await pair.attach()
    pair.source.kernel.refuse["unbind"] = errno.EIO
    await pair.detach()
    assert pair.source.kernel.left() == ["1-2 at usbip-host"]
    pair.source.kernel.refuse.clear()
    pair.source.kernel.wait(pair.is_back)


async def test_a_connection_that_does_not_end_keeps_no_device(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    await pair.attach()
    pair.source.kernel.refuse["usbip_sockfd"] = errno.EIO
    await pair.detach()
    assert (
        "1-2 is taken from usbip-host with its connection: end the connection of 1-2:"
        in caplog.text
    )
    assert pair.is_back()


async def test_a_source_of_devices_that_are_not_authorised_keeps_them_so(pair: Pair) -> None:
    stick = pair.source.kernel.plug(Stick("1-3", authorized=False))
    pair.source.look()
    before = pair.source.inventory.devices()
    assert [each.device for each in before] == ["1-2", "1-3"]
    await pair.borrow(await pair.lend("1-3"))
    assert (stick.driver, stick.authorized) == ("usbip-host", True)
    pair.source.look()
    assert [each.identity for each in pair.source.inventory.devices()] == [
        each.identity for each in before
    ]
    await pair.detach()
    assert (stick.authorized, stick.configured) == (False, False)
    writes = [(path.rpartition("/")[2], text) for path, text in pair.source.kernel.writes]
    assert writes[-3:] == [("authorized", "0"), ("unbind", "1-3"), ("drivers_probe", "1-3")]


async def test_a_device_that_was_plugged_again_after_the_last_look_is_not_lent(pair: Pair) -> None:
    pair.source.kernel.pull("1-2")
    pair.source.kernel.plug(pair.stick)  # the same one: only its number is another
    with pytest.raises(CallError, match="1-2 was unplugged or replaced just now"):
        await pair.lend()
    assert pair.source.kernel.writes == []


async def test_a_device_without_a_driver_gets_none_and_a_deauthorised_one_stays_so(
    pair: Pair,
) -> None:
    pair.source.kernel.write(f"{pair.source.kernel.sys}/bus/usb/drivers/usb/unbind", "1-2")
    await pair.attach()
    await pair.detach()
    assert pair.stick.driver is None
    another = pair.source.kernel.plug(Stick("1-3", authorized=False))
    pair.source.look()
    await pair.borrow(await pair.lend("1-3"))
    assert another.authorized
    await pair.detach()
    assert (another.driver, another.authorized) == ("usb", False)


async def test_the_data_flows_until_the_target_has_given_it_up(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pair.attach()
    seen: list[int] = []

    def write(path: str, text: str) -> None:
        if path.endswith("/detach"):
            seen.append(pair.stick.status)
        pair.write(path, text)

    monkeypatch.setattr(vhci, "write_attribute", write)
    await pair.detach()
    assert seen == [2]


async def test_held_disks_are_let_go_when_the_detach_is_not_wanted_any_more_and_when_it_is_done(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pair.attach()
    files: list[int] = []

    @contextlib.contextmanager
    def held(_device: str, _roots: Roots) -> Iterator[list[int]]:
        files.append(1)
        yield []
        files.pop()

    async def not_wanted() -> None:
        assert files == [1]
        raise CallError("timeout", "dom0 has given up")

    monkeypatch.setattr(importer, "held_below", held)
    with pytest.raises(CallError, match="dom0 has given up"):
        await pair.target.attachments.stop_import(
            ATTACHMENT, may_refuse=True, still_asked=not_wanted
        )
    assert files == []
    assert pair.stick.status == 2
    await pair.detach(may_refuse=True)
    assert files == []


async def test_a_target_that_does_not_speak_usbip_is_ended_with_the_reason(pair: Pair) -> None:
    await pair.lend()
    transport = SharedMemory(pair.source.attachments.host.settings.vchan, TARGET)
    async with VchanStream(await transport.connect(SOURCE, PORT)) as stream:
        await stream.send_all(submit(1, IN, 8, devid=0x7000700))
        await pair.source.one_ended()
    assert pair.source.ended == {
        "export": "the data channel was ended, as it is not USB/IP: a command is for another device"
    }
    await pair.idle()
    assert pair.is_back()


async def test_a_source_that_does_not_speak_usbip_is_ended_with_the_reason(pair: Pair) -> None:
    transport = SharedMemory(pair.source.attachments.host.settings.vchan, SOURCE)

    async def lie(listener: Listener) -> None:
        async with VchanStream(await listener.accept()) as stream:
            await stream.send_all(submitted(99, 8, data=bytes(8)))
            await stream.receive_some()

    with await transport.listen(TARGET, PORT) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lie, listener)
            with pytest.raises(CallError, match="not USB/IP: a return that no command waits for"):
                await pair.borrow("65538 3")
            nursery.cancel_scope.cancel()
    assert pair.target.kernel.left() == []
