"""A dom0 that is older than the last one, and does not know a class of which something is left."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from pedos_dom0.drivers.base import RETRY_SECONDS
from pedos_dom0.drivers.carrier import lacking
from pedos_dom0.drivers.local import CARRIERS
from pedos_protocol.messages import parse_result
from trio.abc import Clock

from tests.dom0.fake_carrier import FakeCarrier
from tests.dom0.fakes import World, fails, named, yes
from tests.fake_class import registered

TOY = named("work", "sys-usb:toy", "fake")


@pytest.fixture
async def older(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[World]:
    """work has the toy of sys-usb, and the robot is assigned to the halted vault; then the service
    comes back without the class."""
    world = World(tmp_path, nursery)
    usb = world.vm("sys-usb", "sda")
    for device in ("toy", "robot"):
        usb.plug(device, "fake")
    world.vm("work")
    world.vm("vault", running=False)
    world.dom0_agent()
    with registered():
        await world.start()
        await world.client.call("device.attach", **named("work", "sys-usb:toy", "fake"))
        robot = named("vault", "sys-usb:robot", "fake")
        await world.client.call("device.attach", **robot, persistent=True)
    world.driver.carriers = CARRIERS
    await world.restart()
    yield world
    await world.kill()


async def test_what_is_attached_stays_and_one_line_says_so(
    older: World, caplog: pytest.LogCaptureFixture
) -> None:
    for agent in ("sys-usb", "work"):
        await older.driver.agents[agent].report()
    (lease,) = older.state.leases
    assert (lease.vm, str(lease.key)) == ("work", "sys-usb:toy")
    assert list(older.driver.agents["work"].imports) == [lease.attachment]
    assert [row.attachment for row in older.state.store.journal()] == [lease.attachment]
    (said,) = [line for line in caplog.messages if "older than the last one" in line]
    assert "does not know, as it is older than the last one: fake. They stay so" in said
    await older.restart()
    assert [each.attachment for each in older.state.leases] == [lease.attachment]


async def test_dom0s_user_sees_it_and_takes_it_away(older: World) -> None:
    answer = await older.client.call("device.classes")
    told = {each.name: each for each in parse_result("device.classes", answer).classes}
    assert told["fake"].lacking == "fake: this dom0 does not know the class"
    listed = {each["device"]: each for each in await older.client.list("fake")}
    assert [each["vm"] for each in listed["toy"]["attachments"]] == ["work"]
    assert [each["vm"] for each in listed["robot"]["assignments"]] == ["vault"]

    toy = await older.client.call("device.detach", **named("work", "sys-usb:toy", "fake"))
    assert [each["detached"] for each in toy["results"]] == [True]
    robot = await older.client.call("device.detach", device_class="fake", vm="vault")
    assert [each["unassigned"] for each in robot["results"]] == [True]
    older.assert_nothing_left()
    assert older.state.store.assignments() == []
    answer = await older.client.call("device.classes")
    assert "fake" not in [each["name"] for each in answer["classes"]]


async def test_nothing_new_is_attached_of_it_and_no_vm_may_name_it(older: World) -> None:
    with fails("usage", "'fake' is not a device class"):
        await older.client.call("device.attach", **named("work", "sys-usb:robot", "fake"))
    work = older.driver.agents["work"]
    assert "fake" not in [each["name"] for each in (await work.ask("device.classes"))["classes"]]
    for method in ("device.list", "device.detach"):
        name = {} if method == "device.list" else named("work", "sys-usb:toy", "fake")
        with fails("usage", "'fake' is not a device class"):
            await work.ask(method, **{"device_class": "fake", **name})
    assert len(list(older.state.leases)) == 1


async def test_a_class_of_which_nothing_is_left_cannot_be_named(older: World) -> None:
    toy = named("work", "sys-usb:toy", "blokc")
    for method, params in (
        ("device.list", {"device_class": "blokc"}),
        ("device.detach", {"device_class": "blokc", "vm": "work"}),
        ("device.explain", {**toy, "source": "dom0", "verb": "detach"}),
    ):
        with fails("usage", "'blokc' is not a device class: one of block, usb, pci, mic is meant"):
            await older.client.call(method, **params)


@pytest.mark.parametrize("service", ["device.detach.*", "device.*.*", "*"])
async def test_a_rule_that_denies_it_holds_and_is_audited(older: World, service: str) -> None:
    older.policy.set(f"{service}  *  @adminvm  @anyvm  deny\n")
    toy = named("work", "sys-usb:toy", "fake")
    with fails("denied", "sys-usb:toy -> work"):
        await older.client.call("device.detach", **toy)
    decision = older.audit("decision")[-1]
    assert (decision["service"], decision["verdict"]) == ("device.detach.fake", "deny")
    assert len(list(older.state.leases)) == 1
    told = await older.client.call("device.explain", **toy, source="dom0", verb="detach")
    assert told["verdict"] == "deny"


async def test_a_rule_hides_it_from_lists(older: World) -> None:
    older.policy.set("device.list.*  *  @adminvm  @adminvm  deny\n")
    assert await older.client.list("fake") == []


async def test_explain_says_that_no_rule_is_needed_and_what_lacks(older: World) -> None:
    older.policy.set("")
    for vm, device in (("work", "toy"), ("vault", "robot")):
        names = named(vm, f"sys-usb:{device}", "fake")
        told = await older.client.call("device.explain", **names, source="dom0", verb="detach")
        assert (told["verdict"], told["rule"]) == ("allow", None)
        assert "this dom0 does not know its class" in told["reason"]
        with fails("failed", "fake: this dom0 does not know the class"):
            await older.client.call("device.explain", **names, source="dom0", verb="attach")


async def test_a_vm_does_not_start_without_it_and_the_cause_is_the_class_and_not_the_device(
    older: World,
) -> None:
    why = (
        "vault was not started: its assigned device sys-usb:robot cannot be attached "
        "(fake: this dom0 does not know the class) | qvm-device fake detach vault sys-usb:robot"
    )
    for _ in ("its source runs", "its source is halted"):
        with fails("failed", why):
            await older.client.call("vm.start", vm="vault")
        older.driver.die("sys-usb")


class Nameless(FakeCarrier):
    """The hypervisor's carrier of devices that have no names in their targets."""

    def name_in_target(self, domid: int, asked: str | None, taken: Collection[str]) -> Any:
        return asked


@pytest.fixture(params=["class", "means"])
async def powerless(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    nursery: trio.Nursery,
) -> AsyncIterator[World]:
    """The hypervisor gave work the toy; then dom0 does not know the class, or lacks its means."""
    world = World(tmp_path, nursery)
    world.vm("sys-usb").plug("toy", "fake")
    world.vm("work")
    world.dom0_agent()
    world.driver.carriers = {"fake": Nameless()}
    with contextlib.ExitStack() as knows:
        knows.enter_context(registered())
        await world.start()
        await world.client.call("device.attach", **TOY)
        if request.param == "class":
            knows.close()
            world.driver.carriers = {}
        else:
            world.driver.carriers = {"fake": lacking("fake", "a cable lacks")}
        await world.restart()
        for agent in ("sys-usb", "work"):
            await world.driver.agents[agent].report()
        yield world
        await world.kill()


async def test_what_the_hypervisor_has_stays_where_dom0_cannot_take_it_back(
    powerless: World, autojump_clock: Clock
) -> None:
    with fails("failed", "sys-usb:toy cannot be taken back from work", "qvm-shutdown work"):
        await powerless.client.call("device.detach", **TOY)
    (lease,) = powerless.state.leases
    assert lease.state == "attached"
    assert list(powerless.driver.agents["work"].imports) == [lease.attachment]
    await powerless.restart()
    assert len(powerless.state.leases) == 1
    powerless.driver.die("work")
    await trio.sleep(1)
    powerless.assert_nothing_left()


@pytest.mark.parametrize("reason", ["force", "the source ends"])
async def test_it_is_left_over_until_its_domain_has_ended(
    powerless: World, autojump_clock: Clock, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    if reason == "force":
        with fails("failed", "sys-usb:toy is still attached to work"):
            await powerless.client.call("device.detach", **TOY, force=True)
    else:
        powerless.driver.die("sys-usb")
    powerless.driver.agents["work"].kill()  # what the agent says does not count
    await trio.sleep(3 * RETRY_SECONDS)
    assert [lease.state for lease in powerless.state.leases] == ["detaching"]
    (listed,) = await powerless.client.list("fake")
    assert listed["attachments"][0]["left_over"] == "the toolstack does not take it away"
    said = [line for line in caplog.messages if line.startswith("sys-usb:toy cannot be taken")]
    assert len(said) == 1, "and not at every try"
    powerless.driver.change("work", None, "Halted")
    await trio.sleep(RETRY_SECONDS + 1)
    powerless.assert_nothing_left()


@pytest.mark.parametrize("noted", [True, False])
async def test_agents_detach_what_they_carried_though_the_hypervisor_would_carry_it_now(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock, noted: bool
) -> None:
    world, carrier = World(tmp_path, nursery), FakeCarrier()
    world.vm("sys-usb", "stick")
    world.vm("work")
    world.dom0_agent()
    await world.start()
    await world.client.attach("work", "sys-usb:stick")
    (lease,) = world.state.leases
    if not noted:  # by a version before this
        await world.state.store.journal_put(attrs.evolve(lease, by_hypervisor=None))
        await world.restart()
        (row,) = world.state.store.journal()
        assert row.by_hypervisor is False
    world.driver.carriers = {"block": carrier}
    await world.restart()
    assert carrier.adopted == []
    answer = await world.client.detach("work", "sys-usb:stick")
    assert [each["detached"] for each in answer["results"]] == [True]
    assert carrier.did == []
    world.assert_nothing_left()
    await world.kill()


async def test_dom0s_user_is_not_asked_about_what_cannot_be_attached(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    world = World(tmp_path, nursery)
    world.vm("sys-usb").plug("toy", "fake")
    world.vm("vault", running=False)
    world.dom0_agent()
    with registered():
        await world.start()
        toy = named("vault", "sys-usb:toy", "fake")
        await world.client.call("device.attach", **toy, persistent=True)
        world.policy.set("device.attach.fake * @adminvm vault ask\n")
        world.driver.carriers = {**CARRIERS, "fake": lacking("fake", "a cable lacks")}

        async def answer(_params: Any) -> Any:
            return yes("vault")

        async with world.client.prompter(answer) as prompter:
            with fails("failed", "sys-usb:toy cannot be attached (fake: a cable lacks)"):
                await world.client.call("vm.start", vm="vault")
            assert prompter.asked == []
            world.driver.die("sys-usb")
            with fails("failed", "fake: a cable lacks"):
                await world.client.call("device.attach", **toy)
        await world.kill()


async def test_it_ends_with_its_vm(older: World) -> None:
    older.driver.change("work", None, "Halted")
    await trio.testing.wait_all_tasks_blocked()
    older.driver.agents["work"].kill()
    await trio.testing.wait_all_tasks_blocked()
    assert list(older.state.leases) == []
