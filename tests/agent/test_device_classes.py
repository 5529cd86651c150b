"""The interface of device classes: one that is in no folder of the agent, and one that it lacks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

import attrs
import pytest
import trio
from pedos_agent import agent
from pedos_agent.device_classes.base import Borrowing, Carrier, DeviceClass, Host
from pedos_agent.device_classes.lifetime import Lifetime
from pedos_agent.device_classes.registered import CLASSES
from pedos_agent.inventory.local_device import LocalDevice
from pedos_agent.settings import Settings
from pedos_protocol.agent_messages import ExportStart, ImportStart
from pedos_protocol.errors import CallError

from .conftest import ATTACHMENT, FakeDom0

Start = Callable[[Settings], Awaitable[FakeDom0]]


@attrs.frozen(eq=False)
class Toy:
    """A borrowed one: it is in use as long as a test says so."""

    name: str
    in_use: list[str]

    async def run(self, lifetime: Lifetime) -> None:
        lifetime.ready({})
        await lifetime.ending()

    async def why_busy(self, _lifetime: Lifetime) -> str | None:
        return self.in_use[0] if self.in_use else None

    async def give_back(
        self,
        lifetime: Lifetime,
        *,
        may_refuse: bool,
        still_asked: Callable[[], Awaitable[None]],
    ) -> None:
        if may_refuse and (reason := await self.why_busy(lifetime)):
            raise CallError("busy", reason)


@attrs.frozen(eq=False)
class Toys:
    in_use: list[str]

    async def lend(self, lifetime: Lifetime, params: ExportStart, found: LocalDevice) -> None:
        lifetime.ready({})
        await lifetime.ending()

    def number(self, found: LocalDevice) -> str | None:
        return None

    def borrow(self, params: ImportStart, taken: Collection[str]) -> Borrowing:
        return Toy("xvdz", self.in_use)

    def of_predecessor(self, name: str) -> Borrowing | None:
        return Toy(name, self.in_use)

    async def clean_leftovers(self) -> None:
        pass


class Fake(DeviceClass):
    name = "fake"

    def __init__(self) -> None:
        self.in_use: list[str] = []

    def carrier(self, host: Host) -> Carrier:
        return Toys(self.in_use)


async def test_a_class_is_one_row_of_the_table(settings: Settings, nursery: trio.Nursery) -> None:
    folder = settings.devices / "fake"
    folder.mkdir()
    (folder / "toy").write_text("A toy\nidentity=toy:1\n")
    fake = Fake()
    await nursery.start(agent.run, settings, [*CLASSES, fake])
    dom0 = FakeDom0(settings, nursery)
    await dom0.connect()
    (device,) = dom0.report.devices
    assert (device.device_class, device.identity, device.description) == ("fake", "toy:1", "A toy")

    await dom0.lend(ATTACHMENT, "toy", 3, device_class="fake")
    report = await dom0.until(lambda report: report.exports)
    assert [each.device_class for each in report.exports] == ["fake"]
    with pytest.raises(CallError, match="toy is already exported"):
        await dom0.lend("f" * 16, "toy", 4, device_class="fake")
    with pytest.raises(CallError, match="fake devices cannot be muted"):
        await dom0.call("export.mute", attachment=ATTACHMENT, muted=True)
    (folder / "toy").unlink()
    assert (await dom0.ended()).reason == "the device was unplugged"

    assert await dom0.borrow(ATTACHMENT, "toy", 5, device_class="fake") == {"frontend": "xvdz"}
    fake.in_use.append("a child plays with it")
    with pytest.raises(CallError, match="a child plays with it"):
        await dom0.call("import.stop", attachment=ATTACHMENT, may_refuse=True)
    fake.in_use.clear()
    await dom0.call("import.stop", attachment=ATTACHMENT, may_refuse=True)
    await dom0.until(lambda report: not report.imports)


async def test_what_a_predecessor_borrowed_is_looked_for_in_its_class_alone(
    settings: Settings, nursery: trio.Nursery
) -> None:
    (settings.devices / "fake").mkdir()
    fake = Fake()
    fake.in_use.append("a child plays with it")
    await nursery.start(agent.run, settings, [*CLASSES, fake])
    dom0 = FakeDom0(settings, nursery)
    await dom0.connect()
    left = {"attachment": ATTACHMENT, "frontend": "toy0"}
    for device_class in (None, "block", "usb", "printer"):
        await dom0.call("import.check", **left, device_class=device_class)
    await dom0.call("import.check", **left)  # as dom0 says it of a disk
    with pytest.raises(CallError, match="a child plays with it"):
        await dom0.call("import.check", **left, device_class="fake")
    with pytest.raises(CallError, match="a child plays with it"):
        await dom0.call("import.stop", **left, device_class="fake", may_refuse=True)


async def test_a_name_that_the_class_does_not_have_is_refused(
    settings: Settings, start: Start
) -> None:
    dom0 = await start(settings)
    with pytest.raises(CallError, match="no block device is called toy0"):
        await dom0.borrow(ATTACHMENT, "stick.img", 3, frontend="toy0")
    assert dom0.peer.is_open


async def test_a_class_that_only_dom0_knows_is_left_out_with_one_line(
    settings: Settings, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    dom0 = await start(settings)
    wanted = [{"device_class": "printer", "device": "inkjet"}]
    for _ in range(2):
        await dom0.call("report.prefer", devices=wanted)
    said = [line for line in caplog.messages if "printer" in line]
    assert said == ["dom0 knows device classes that this agent does not: printer"]
    with pytest.raises(CallError, match="printer devices cannot be lent in local mode"):
        await dom0.lend(ATTACHMENT, "inkjet", 3, device_class="printer")
    with pytest.raises(CallError, match="printer devices cannot be lent in local mode"):
        await dom0.borrow(ATTACHMENT, "inkjet", 3, device_class="printer")
    assert dom0.peer.is_open
