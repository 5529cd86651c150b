"""A source in local mode that does not confirm the end of its part of an attachment."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from pedos_dom0.attachments.stop_timeout import STOP_TIMEOUT
from pedos_dom0.attachments.transaction import IMPORT_TIMEOUT
from pedos_dom0.drivers.base import RETRY_SECONDS, DriverError
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.fake_carrier import mounted
from tests.dom0.fakes import ALLOW_DOM0, World, fails, hang
from tests.dom0.watcher import Watcher

HELD = ("failed", "work has released sys-usb:stick", "sys-usb does not say that it has ended")


@pytest.fixture
def world(world_with_a_stick: World) -> World:
    return world_with_a_stick


@pytest.fixture
async def lending(world: World) -> World:
    """sys-usb lends vault another disk, which would end with the connection to its agent."""
    source = world.driver.agents["sys-usb"]
    source.plug("other")
    await source.report()
    await world.client.attach("vault", "sys-usb:other")
    return world


def held(world: World) -> list[str]:
    return [str(lease.key) for lease in world.state.leases]


async def left_over(world: World) -> None:
    await world.client.attach("work", "sys-usb:stick")
    world.driver.agents["sys-usb"].on["export.stop"] = hang
    with fails(*HELD):
        await world.client.detach("work", "sys-usb:stick")


@pytest.mark.parametrize("fault", ["hangs", "refuses"])
async def test_a_source_that_does_not_confirm_one_end_ends_nothing_else_that_it_lends(
    lending: World, autojump_clock: Clock, fault: str
) -> None:
    source = lending.driver.agents["sys-usb"]
    await lending.client.attach("work", "sys-usb:stick")

    async def misbehave(_params: Any) -> None:
        if fault == "refuses":
            raise CallError("failed", "no")
        await trio.sleep_forever()

    source.on["export.stop"] = misbehave
    with fails(*HELD):
        await lending.client.detach("work", "sys-usb:stick")
    await trio.sleep(3 * RETRY_SECONDS)
    assert lending.audit("disconnected") == []
    with fails("busy", "work"):  # the source may lend it still
        await lending.client.attach("vault", "sys-usb:stick")
    source.on.clear()
    await trio.sleep(RETRY_SECONDS + STOP_TIMEOUT)
    assert held(lending) == ["sys-usb:other"]
    assert len(source.exports) == 1
    (said,) = lending.audit("left_over")
    assert said["holder"] == "sys-usb", "the log is for events, not for tries"


def said_of(devices: list[dict[str, Any]]) -> dict[str, str | None]:
    """By device, what a list says of its one attachment."""
    return {each["device"]: to["left_over"] for each in devices for to in each["attachments"]}


async def test_dom0s_user_sees_what_is_held_and_by_whom_and_a_vm_does_not(
    lending: World, autojump_clock: Clock
) -> None:
    await lending.client.attach("work", "sys-usb:stick")
    assert said_of(await lending.client.list()) == {"stick": None, "other": None}
    watcher = Watcher(lending, of="block")
    await watcher.next()
    lending.driver.agents["sys-usb"].on["export.stop"] = hang
    with fails(*HELD):
        await lending.client.detach("work", "sys-usb:stick")
    why = "sys-usb does not confirm the end"
    assert said_of(await lending.client.list()) == {"stick": why, "other": None}
    changed = [event["device"] for event in await watcher.next() if "device" in event]
    assert said_of(changed) == {"stick": why}
    lending.policy.set("device.list.* * work work allow\n" + ALLOW_DOM0)
    own = await lending.driver.agents["work"].ask("device.list", device_class="block")
    assert said_of(own["devices"]) == {"stick": None}
    lending.driver.agents["sys-usb"].on.clear()
    await trio.sleep(RETRY_SECONDS + STOP_TIMEOUT)
    assert said_of(await lending.client.list()) == {"other": None}


@pytest.mark.parametrize("says", ["ends", "tells"])
async def test_what_a_source_did_not_confirm_is_free_as_soon_as_that_has_ended(
    lending: World, autojump_clock: Clock, says: str
) -> None:
    await left_over(lending)
    source = lending.driver.agents["sys-usb"]
    (lease,) = lending.state.leases.of_vm("work")
    source.on.clear()
    if says == "ends":
        source.kill()
    else:
        await source.ended(lease.attachment, "export")
    await trio.sleep(5)
    assert "sys-usb:stick" not in held(lending)
    assert (await lending.client.attach("work", "sys-usb:stick"))["outcome"] == "attached"


@pytest.mark.parametrize("target", ["uses it", "hangs"])
async def test_a_target_that_has_let_go_is_not_asked_again_and_gets_nothing_back(
    lending: World, autojump_clock: Clock, target: str
) -> None:
    await left_over(lending)
    source, work = lending.driver.agents["sys-usb"], lending.driver.agents["work"]
    work.on["import.stop"] = mounted if target == "uses it" else hang
    await trio.sleep(3 * RETRY_SECONDS)
    assert work.imports == {}
    source.on.clear()
    await trio.sleep(RETRY_SECONDS + STOP_TIMEOUT)
    assert held(lending) == ["sys-usb:other"]
    assert work.imports == {}
    (ended,) = [line for line in lending.audit("ended") if line["vm"] == "work"]
    assert ended["request"], "the one that asked for it"


async def test_an_attach_that_failed_and_is_held_by_its_source_never_comes_about(
    lending: World, autojump_clock: Clock
) -> None:
    source, work = lending.driver.agents["sys-usb"], lending.driver.agents["work"]
    source.on["export.start"] = source.on["export.stop"] = hang
    work.on["import.stop"] = mounted
    with fails("failed", "sys-usb did not answer", "it is asked again every minute"):
        await lending.client.attach("work", "sys-usb:stick")
    await trio.sleep(2 * RETRY_SECONDS)
    source.on.clear()
    await trio.sleep(RETRY_SECONDS + STOP_TIMEOUT)
    assert held(lending) == ["sys-usb:other"]
    assert work.imports == {}
    assert [line["vm"] for line in lending.audit("undone")] == ["work"]
    assert lending.audit("ended") == []


async def test_a_restart_of_the_service_gives_a_target_nothing_back_either(
    lending: World, autojump_clock: Clock
) -> None:
    await left_over(lending)
    work = lending.driver.agents["work"]
    work.on["import.stop"] = hang
    await lending.kill()
    await lending.start()
    await trio.sleep(2 * RETRY_SECONDS)
    assert work.imports == {}
    lending.driver.agents["sys-usb"].on.clear()
    await trio.sleep(2 * RETRY_SECONDS)
    assert held(lending) == ["sys-usb:other"]
    assert work.imports == {}


async def test_a_source_all_of_whose_targets_have_let_go_is_cut_off(
    lending: World, autojump_clock: Clock
) -> None:
    await left_over(lending)
    await lending.client.detach("vault", "sys-usb:other")
    assert [line["vm"] for line in lending.audit("disconnected")] == ["sys-usb"]
    await trio.sleep(5)
    assert held(lending) == []


@pytest.mark.parametrize("before", ["attached", "left over"])
async def test_a_shutdown_of_a_target_waits_once_for_a_source_that_hangs(
    lending: World, autojump_clock: Clock, before: str
) -> None:
    if before == "left over":
        await left_over(lending)
    else:
        await lending.client.attach("work", "sys-usb:stick")
        lending.driver.agents["sys-usb"].on["export.stop"] = hang
    began = trio.current_time()
    await lending.client.call("vm.shutdown", vm="work")
    waited = STOP_TIMEOUT if before == "attached" else 0
    assert waited <= trio.current_time() - began < waited + STOP_TIMEOUT / 2
    assert lending.driver.shutdowns == [("work", False)]
    assert held(lending) == ["sys-usb:other", "sys-usb:stick"]
    lending.driver.agents["sys-usb"].on.clear()
    await trio.sleep(RETRY_SECONDS + STOP_TIMEOUT)
    assert held(lending) == ["sys-usb:other"]


async def test_a_start_that_is_undone_waits_once_for_a_source_that_hangs(
    lending: World, autojump_clock: Clock
) -> None:
    await lending.client.attach("halted", "sys-usb:stick", persistent=True)
    lending.driver.agents["sys-usb"].on["export.stop"] = hang
    lending.driver.agents["halted"].on["import.start"] = hang
    lending.driver.refuse_shutdown = DriverError("it hangs")
    began = trio.current_time()
    with fails("failed", "halted"):
        await lending.client.call("vm.start", vm="halted")
    assert trio.current_time() - began < IMPORT_TIMEOUT + STOP_TIMEOUT * 1.5
    assert len(lending.driver.shutdowns) == 2, "asked, and then by force"


async def test_a_shutdown_of_the_source_by_force_frees_what_it_held(
    lending: World, autojump_clock: Clock
) -> None:
    await left_over(lending)
    await lending.client.call("vm.shutdown", vm="sys-usb", force=True)
    await trio.sleep(1)
    assert held(lending) == []
