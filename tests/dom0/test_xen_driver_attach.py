"""Attach, detach and start where the hypervisor carries the device: the same steps and undoing."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import trio
from pedos_dom0.drivers.base import DriverError
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.fake_carrier import FakeCarrier, mounted
from tests.dom0.fakes import World, fails, hang, named

STEPS = ("attach.leased", "attach.exported", "attach.carried", "attach.imported")


@pytest.fixture
def world(carried: World) -> World:
    return carried


def orders(world: World, carrier: FakeCarrier, *names: str) -> None:
    """Lets agents record in the carrier's list what they are told."""
    for name in names:
        for method in ("export.start", "export.stop", "import.start", "import.stop"):

            async def note(_params: Any, what: str = f"{name} {method}") -> None:
                carrier.did.append(what)

            world.driver.agents[name].on[method] = note


async def fails_somehow(_params: Any) -> None:
    raise CallError("failed", "no idea")


async def test_the_device_is_plugged_between_the_two_agents(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    orders(world, carrier, "sys-usb", "work")
    answer = await world.client.attach("work", "sys-usb:sda")
    assert answer["options"]["frontend-dev"] == "xvdi"
    await world.client.detach("work", "sys-usb:sda")
    assert carrier.did == [
        "sys-usb export.start",
        "attach xvdi",
        "work import.start",
        "work import.stop",
        "detach xvdi",
        "sys-usb export.stop",
    ]
    world.assert_nothing_left()


async def test_a_name_is_given_once(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    answer = await world.client.attach("work", "sys-usb:sdb")
    assert answer["options"]["frontend-dev"] == "xvdj"


async def test_a_toolstack_that_fails_leaves_nothing(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    carrier.refuse_attach = DriverError("no: xl says so", hint="look at it")
    with fails("failed", "no: xl says so", "look at it"):
        await world.client.attach("work", "sys-usb:sda")
    world.assert_nothing_left()


async def test_a_target_that_never_sees_it_loses_it(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    async def refuse(_params: Any) -> None:
        raise CallError("failed", "xvdi did not appear")

    world.driver.agents["work"].on["import.start"] = refuse
    with fails("failed", "xvdi did not appear"):
        await world.client.attach("work", "sys-usb:sda")
    assert carrier.attached == {}
    world.assert_nothing_left()


async def test_a_device_in_use_is_not_detached(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    world.driver.agents["work"].on["import.stop"] = mounted
    with fails("busy", "it stays attached to work: xvdi is mounted at /mnt", "unmount it in work"):
        await world.client.detach("work", "sys-usb:sda")
    (lease,) = world.state.leases
    assert lease.state == "attached"
    assert [row.state for row in world.state.store.journal()] == ["attached"]
    assert carrier.did == ["attach xvdi"]
    del world.driver.agents["work"].on["import.stop"]
    await world.client.detach("work", "sys-usb:sda")
    world.assert_nothing_left()


@pytest.mark.parametrize("answer", [hang, fails_somehow])
async def test_a_target_that_does_not_say_whether_it_uses_it_keeps_it(
    world: World, carrier: FakeCarrier, autojump_clock: Clock, answer: Any
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    agent = world.driver.agents["work"]
    agent.on["import.stop"] = answer
    with fails("busy", "stays attached to work, whose agent does not say", "detach --force"):
        await world.client.detach("work", "sys-usb:sda")
    assert [lease.state for lease in world.state.leases] == ["attached"]
    assert carrier.did == ["attach xvdi"]
    assert agent.connections == 1
    await world.client.call("device.detach", **named("work", "sys-usb:sda"), force=True)
    assert carrier.did == ["attach xvdi", "detach xvdi by force"]
    assert len(world.state.leases) == 0


async def test_a_service_that_dies_before_the_target_has_let_go_leaves_it_attached(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    agent = world.driver.agents["work"]
    agent.on["import.stop"] = hang
    async with trio.open_nursery() as nursery:
        nursery.start_soon(detach_in_vain, world)
        await trio.sleep(5)
        assert [lease.state for lease in world.state.leases] == ["detaching"]
        await world.kill()
    del agent.on["import.stop"]
    await world.start()
    await trio.sleep(60)
    assert [lease.state for lease in world.state.leases] == ["attached"]
    assert carrier.did == ["attach xvdi"]


async def detach_in_vain(world: World) -> None:
    with contextlib.suppress(CallError, trio.BrokenResourceError):
        await world.client.detach("work", "sys-usb:sda")


async def test_a_kernel_that_refuses_is_reported_and_all_stays(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    carrier.refuse_detach = DriverError("work does not release it", code="busy")
    with fails("busy", "work does not release it"):
        await world.client.detach("work", "sys-usb:sda")
    (lease,) = world.state.leases
    assert lease.state == "attached"
    assert len(world.driver.agents["work"].imports) == 1  # the target knows of it again
    carrier.refuse_detach = None
    await world.client.detach("work", "sys-usb:sda")
    world.assert_nothing_left()


async def test_an_unplugged_device_is_taken_away_by_force(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    world.driver.agents["work"].on["import.stop"] = mounted
    await world.driver.agents["sys-usb"].unplug("sda")
    await trio.testing.wait_all_tasks_blocked()
    assert carrier.did[-1] == "detach xvdi by force"
    assert list(world.state.leases) == []


async def test_unplugging_is_not_forgotten_while_a_detach_is_refused(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    async def slow_and_mounted(params: Any) -> None:
        await trio.sleep(1)
        await mounted(params)

    await world.client.attach("work", "sys-usb:sda")
    world.driver.agents["work"].on["import.stop"] = slow_and_mounted
    async with trio.open_nursery() as nursery:

        async def detach() -> None:
            with fails("busy", "it stays attached to work"):
                await world.client.detach("work", "sys-usb:sda")

        nursery.start_soon(detach)
        await trio.sleep(0.5)
        await world.driver.agents["sys-usb"].unplug("sda")
    await trio.sleep(5)
    assert carrier.did[-1] == "detach xvdi by force"
    assert list(world.state.leases) == []


async def says_its_number(_params: Any) -> Any:
    return {"number": "8:a"}


OTHER_DISK = "sys-usb serves another disk under that name"


@pytest.mark.parametrize(
    ("serves", "words"),
    [
        ("8:b", OTHER_DISK),
        (None, OTHER_DISK),  # nothing says that it is the same one
        (DriverError("xenstore fails"), "xenstore fails"),
    ],
)
async def test_a_source_that_serves_another_disk_under_that_name_lends_none(
    world: World, carrier: FakeCarrier, autojump_clock: Clock, serves: Any, words: str
) -> None:
    world.driver.agents["sys-usb"].on["export.start"] = says_its_number
    carrier.serves = serves
    with fails("failed", words):
        await world.client.attach("work", "sys-usb:sda")
    assert "import.start" not in world.driver.agents["work"].calls, "the target is told nothing"
    assert carrier.did[0] == "attach xvdi"
    assert carrier.did[-1].startswith("detach xvdi")
    assert carrier.attached == {}
    world.assert_nothing_left()


async def test_another_disk_under_that_name_is_taken_from_a_target_that_uses_it(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    world.driver.agents["sys-usb"].on["export.start"] = says_its_number
    world.driver.agents["work"].on["import.stop"] = mounted
    carrier.serves = "8:b"
    carrier.refuse_detach = DriverError("it is in use", code="busy")
    with fails("failed", OTHER_DISK):
        await world.client.attach("work", "sys-usb:sda")
    assert carrier.did[-1] == "detach xvdi by force"
    world.assert_nothing_left()


async def test_a_vm_does_not_start_with_another_disk_under_that_name(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    world.driver.agents["sys-usb"].on["export.start"] = says_its_number
    await world.client.attach("vault", "sys-usb:sda", persistent=True)
    carrier.serves = "8:b"
    with fails("failed", OTHER_DISK):
        await world.client.call("vm.start", vm="vault")
    assert "resume vault" not in carrier.did
    world.assert_nothing_left()


async def test_a_source_that_serves_the_disk_that_its_agent_holds_lends_it(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    world.driver.agents["sys-usb"].on["export.start"] = says_its_number
    carrier.serves = "8:a"
    answer = await world.client.attach("work", "sys-usb:sda")
    assert answer["outcome"] == "attached"


@pytest.mark.parametrize("step", STEPS)
async def test_a_service_that_is_killed_leaves_what_the_next_one_undoes(
    world: World, carrier: FakeCarrier, autojump_clock: Clock, step: str
) -> None:
    killed = world.kill_at(step)
    async with trio.open_nursery() as nursery:

        async def attach() -> None:
            with pytest.raises((CallError, trio.BrokenResourceError)):
                await world.client.attach("work", "sys-usb:sda")

        nursery.start_soon(attach)
        await killed.wait()
    await world.restart()
    await trio.sleep(60)
    assert carrier.attached == {}
    world.assert_nothing_left()


async def test_after_a_restart_what_xenstore_has_is_kept_and_all_else_ended(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    await world.client.attach("work", "sys-usb:sdb")
    (gone,) = (a for a, lease in carrier.attached.items() if lease.key.device == "sdb")
    await world.kill()
    del carrier.attached[gone]  # an administrator ran `xl block-detach`
    await world.start()
    assert {str(lease.key) for lease in carrier.adopted} == {"sys-usb:sda", "sys-usb:sdb"}
    await trio.sleep(60)
    assert [str(lease.key) for lease in world.state.leases] == ["sys-usb:sda"]
    assert len(carrier.attached) == 1


async def test_a_vm_that_gives_its_disk_another_name_does_not_keep_it(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    (imported,) = world.driver.agents["work"].imports.values()
    imported["frontend"] = "xvdk"
    await world.restart()
    await trio.sleep(60)
    assert carrier.did[-1] == "detach xvdi by force"
    assert not carrier.attached
    assert len(world.state.leases) == 0


async def test_a_borrowed_disk_is_not_offered_by_an_agent_that_knows_nothing_of_it(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    carrier.refuse_force = DriverError("xl hangs")
    agent = world.driver.agents["work"]
    await world.client.attach("work", "sys-usb:sda")
    agent.plug("xvdi", parent=None)
    agent.plug("xvdi1", parent="xvdi")
    agent.plug("xvdj")
    agent.kill()
    await trio.sleep(10)
    assert [lease.state for lease in world.state.leases] == ["detaching"]
    assert [str(key) for key, _ in world.state.registry.items() if key.backend == "work"] == [
        "work:xvdj"
    ]


async def assign(world: World) -> None:
    await world.client.attach("vault", "sys-usb:sda", persistent=True)


async def test_a_vm_gets_its_devices_before_it_is_let_go(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await assign(world)
    orders(world, carrier, "sys-usb", "vault")
    answer = await world.client.call("vm.start", vm="vault")
    assert answer["attached"] == ["sys-usb:sda"]
    assert carrier.did == [
        "sys-usb export.start",
        "attach xvdi",
        "resume vault",
        "vault import.start",
    ]
    (lease,) = world.state.leases
    assert (lease.state, lease.vm_domid) == ("attached", answer["domid"])
    assert world.state.store.starts() == []


@pytest.mark.parametrize("what", ["attach", "resume", "import"])
async def test_a_start_that_fails_leaves_nothing_half_made(
    world: World, carrier: FakeCarrier, autojump_clock: Clock, what: str
) -> None:
    async def refuse(_params: Any) -> None:
        raise CallError("failed", "it does not work")

    await assign(world)
    if what == "import":
        world.driver.agents["vault"].on["import.start"] = refuse
    else:
        setattr(carrier, f"refuse_{what}", DriverError("it does not work"))
    with fails("failed", "vault was stopped again", "it does not work"):
        await world.client.call("vm.start", vm="vault")
    assert carrier.attached == {}
    assert world.driver.infos["vault"].domid is None
    assert world.state.store.starts() == []
    world.assert_nothing_left()


async def is_killed_while_it_starts_vault(world: World, step: str) -> None:
    """The service does not live to answer."""

    async def start() -> None:
        with pytest.raises((CallError, trio.BrokenResourceError)):
            await world.client.call("vm.start", vm="vault")

    killed = world.kill_at(step)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await killed.wait()


async def test_an_interrupted_start_leaves_no_vm_that_waits_for_ever(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await assign(world)
    world.driver.agents["vault"].listens = False
    await is_killed_while_it_starts_vault(world, "start.carried")
    await world.restart()
    await trio.sleep(100)
    assert world.driver.shutdowns == [("vault", True)], "it would not hear a polite one"
    assert world.driver.infos["vault"].domid is None
    assert carrier.attached == {}
    world.assert_nothing_left()


async def test_a_vm_that_runs_already_is_asked_to_shut_down(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await assign(world)
    await is_killed_while_it_starts_vault(world, "start.agent")
    del carrier.attached[next(iter(carrier.attached))]  # it was pulled out meanwhile
    await world.restart()
    await trio.sleep(100)
    assert world.driver.shutdowns == [("vault", False)]
    world.assert_nothing_left()


async def test_dom0s_user_can_take_away_what_a_vm_does_not_let_go(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    world.driver.agents["work"].on["import.stop"] = mounted
    of = {"device_class": "block", "vm": "work", "backend": "sys-usb", "device": "sda"}
    with fails("usage", "only dom0's user"):
        await world.driver.agents["work"].ask("device.detach", **of, force=True)
    with fails("busy", "it stays attached to work"):
        await world.client.call("device.detach", **of)
    answer = await world.client.call("device.detach", **of, force=True)
    assert answer["results"][0]["detached"]
    assert carrier.attached == {}
    assert list(world.state.leases) == []
    (ended,) = world.audit("ended")
    assert ended["reason"] == "dom0 detached it by force"


async def test_what_the_toolstack_does_not_take_away_is_given_to_nobody_and_tried_again(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    carrier.refuse_force = DriverError("xl did not answer within 30 s", code="timeout")
    orders(world, carrier, "sys-usb")
    carrier.did.clear()
    await world.driver.agents["sys-usb"].unplug("sda")
    await trio.sleep(100)
    assert carrier.did == ["detach xvdi by force", "detach xvdi by force"]
    (lease,) = world.state.leases
    assert lease.state == "detaching"
    (listed,) = await world.client.list(vms=["work"])
    assert listed["attachments"][0]["left_over"] == "the toolstack does not take it away"
    assert [row.attachment for row in world.state.store.journal()] == [lease.attachment]
    carrier.refuse_force = None
    await trio.sleep(60)
    assert carrier.did[2:] == ["detach xvdi by force", "sys-usb export.stop"]
    assert carrier.attached == {}
    assert len(world.audit("left_over")) == 1, "the log is for events, not for tries"
    world.assert_nothing_left()


async def test_what_is_left_over_when_the_service_is_killed_is_not_lost(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda")
    carrier.refuse_force = DriverError("xl did not answer within 30 s", code="timeout")
    await world.driver.agents["sys-usb"].unplug("sda")
    await trio.sleep(10)
    await world.kill()
    world.driver.agents["sys-usb"].plug("sda")
    await world.restart()
    await trio.sleep(100)
    with fails("busy", "work"):
        await world.client.attach("work", "sys-usb:sda")
    (lease,) = world.state.leases
    assert lease.state == "detaching"
    carrier.refuse_force = None
    await trio.sleep(60)
    assert carrier.attached == {}
    world.assert_nothing_left()
    await world.client.attach("work", "sys-usb:sda")


@pytest.mark.parametrize("step", ["start.reserved", "start.started"])
async def test_an_interrupted_start_of_a_vm_without_devices_is_finished(
    world: World, carrier: FakeCarrier, autojump_clock: Clock, step: str
) -> None:
    await is_killed_while_it_starts_vault(world, step)
    await world.restart()
    await trio.sleep(100)
    is_made = world.driver.infos["vault"].domid is not None
    assert carrier.did == (["resume vault"] if is_made else [])
    assert is_made == (step == "start.started")
    world.assert_nothing_left()


async def test_a_domain_that_may_be_half_made_is_not_let_go(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    world.driver.agents["vault"].listens = False
    await is_killed_while_it_starts_vault(world, "start.reserved")
    await world.driver.start("vault")  # the toolstack has come so far
    await world.restart()
    await trio.sleep(100)
    assert carrier.did == []
    assert world.driver.shutdowns == [("vault", True)]
    world.assert_nothing_left()


async def test_an_interrupted_start_is_tried_again_when_the_toolstack_hangs(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await is_killed_while_it_starts_vault(world, "start.started")
    carrier.refuse_resume = DriverError("xl hangs", code="timeout")
    await world.restart()
    await trio.sleep(100)
    assert world.driver.infos["vault"].domid is not None
    assert [row.vm for row in world.state.store.starts()] == ["vault"]
    assert carrier.did == ["resume vault"] * 2
    (told,) = (record for record in world.audit("start") if record["request"] is None)
    assert told["outcome"].startswith("failed: it was interrupted"), "once, and not at each try"
    carrier.refuse_resume = DriverError("it is not paused")
    await trio.sleep(60)
    assert carrier.did == ["resume vault"] * 3
    assert world.audit("start")[-1]["outcome"] == "started"
    world.assert_nothing_left()


async def test_an_interrupted_start_that_is_tried_again_leaves_a_new_life_of_the_vm_alone(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await is_killed_while_it_starts_vault(world, "start.started")
    carrier.refuse_resume = DriverError("xl hangs", code="timeout")
    await world.restart()
    await trio.sleep(10)
    world.driver.die("vault")
    carrier.refuse_resume = None
    await world.client.call("vm.start", vm="vault")
    did = list(carrier.did)
    await trio.sleep(200)
    assert carrier.did == did
    assert world.driver.infos["vault"].domid is not None
    world.assert_nothing_left()


async def test_a_vm_without_devices_is_let_go_too(
    world: World, carrier: FakeCarrier, autojump_clock: Clock
) -> None:
    await world.client.call("vm.start", vm="vault")
    assert carrier.did == ["resume vault"]
