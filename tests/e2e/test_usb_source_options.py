"""What dom0's user sees of USB sources with their own ways: those that leave what a VM had to no
driver, and those whose kernel gives new devices to none.

Dom0's service and its list are the real ones, and so are the two agents' parts that lend and
borrow; the kernels are imitated.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_cli.device_list import detailed_row
from pedos_dom0.drivers.carrier import CarriedByAgents
from pedos_protocol.agent_messages import ExportStart, ImportStart
from pedos_protocol.messages import to_wire

from tests.agent.test_usb_attach import SOURCE, TARGET, Pair, pair
from tests.agent.usb_kernel import Stick
from tests.dom0.fakes import WITH_FAKE, Params, World, named

__all__ = ["pair"]  # the fixture


class Usb:
    """sys-usb and work, whose agents do with their kernels what dom0 asks them to."""

    def __init__(self, world: World, pair: Pair) -> None:
        self.world = world
        self.pair = pair
        self.agent = world.vm("sys-usb")
        target = world.vm("work")
        self.agent.on = {"export.start": self.lend, "export.stop": self.end_lending}
        target.on = {"import.start": self.borrow, "import.stop": self.give_back}

    async def lend(self, params: Params) -> Params:
        asked = (params["attachment"], "usb", params["device"], params["port"], TARGET, False)
        return to_wire(await self.pair.source.attachments.start_export(ExportStart(*asked)))

    async def end_lending(self, params: Params) -> None:
        await self.pair.source.attachments.stop_export(params["attachment"])

    async def borrow(self, params: Params) -> Params:
        named = (params["attachment"], "usb", "sys-usb", params["device"], params["port"], SOURCE)
        asked = ImportStart(*named, False, handover=params["handover"])
        return {"frontend": await self.pair.target.attachments.start_import(asked)}

    async def give_back(self, params: Params) -> None:
        await self.pair.target.attachments.stop_import(params["attachment"])

    async def listed(self) -> dict[str, tuple[str, ...]]:
        """The rows of `qvm-usb list -v`, by device, once the source has looked at its kernel."""
        self.pair.source.look()
        devices = self.pair.source.inventory.devices()
        self.agent.devices = {each.device: to_wire(each) for each in devices}
        if self.agent.peer is not None:
            await self.agent.report()
        rows = map(detailed_row, await self.world.client.list("usb"))
        return {device: (description, users) for device, description, _, users in rows}

    async def attach(self, device: str) -> None:
        await self.world.client.call("device.attach", **named("work", device, "usb"))

    async def detach(self, device: str) -> None:
        await self.world.client.call("device.detach", **named("work", device, "usb"))


@pytest.fixture
async def usb(pair: Pair, tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Usb]:
    world = World(tmp_path, nursery)
    world.driver.carriers = {**WITH_FAKE, "usb": CarriedByAgents()}
    made = Usb(world, pair)
    world.dom0_agent()
    await world.start()
    yield made
    await world.kill()


@pytest.mark.parametrize("pair", [{"give_back": False}], indirect=True)
async def test_a_device_that_a_vm_had_is_listed_as_such_until_it_is_plugged_anew(
    usb: Usb, pair: Any
) -> None:
    assert await usb.listed() == {"sys-usb:1-2": ("Maker Stick", "")}
    for before in ("Maker Stick", "Maker Stick; a VM had it"):  # it can be lent again
        assert (await usb.listed())["sys-usb:1-2"] == (before, "")
        await usb.attach("sys-usb:1-2")
        assert (await usb.listed())["sys-usb:1-2"][1] == "work (attached)"
        await usb.detach("sys-usb:1-2")
    assert pair.stick.driver is None
    pair.source.kernel.pull("1-2")
    assert await usb.listed() == {}
    pair.source.kernel.plug(pair.stick)
    assert await usb.listed() == {"sys-usb:1-2": ("Maker Stick", "")}
    assert pair.stick.driver == "usb"


async def test_a_device_that_is_not_authorised_is_listed_and_lent_like_any_other(
    usb: Usb, pair: Any
) -> None:
    stick = pair.source.kernel.plug(Stick("1-3", authorized=False))
    assert (await usb.listed())["sys-usb:1-3"] == ("Maker Stick", "")
    identity = usb.agent.devices["1-3"]["identity"]
    assert identity
    await usb.attach("sys-usb:1-3")
    assert (await usb.listed())["sys-usb:1-3"] == ("Maker Stick", "work (attached)")
    assert stick.authorized
    await usb.detach("sys-usb:1-3")
    assert (await usb.listed())["sys-usb:1-3"] == ("Maker Stick", "")
    assert usb.agent.devices["1-3"]["identity"] == identity
    assert (stick.driver, stick.authorized) == ("usb", False)
