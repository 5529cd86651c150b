"""device.info: all that is known of one device, and no more to a VM than a list tells it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from pedos_dom0.drivers.carrier import CarriedByAgents, lacking
from pedos_dom0.requests import info
from pedos_protocol.errors import CallError
from pedos_protocol.messages import DeviceTold, parse_result
from trio.abc import Clock

from tests.dom0.fakes import ALLOW_DOM0, WITH_FAKE, World, named

POLICY = """
device.list.usb    +sys-usb:hidden  *         *         deny
device.list.*      *                @anyvm    @anyvm    allow
device.attach.usb  +*:*:*u03*       @adminvm  vault     deny
device.attach.usb  +*:*:*u03*       @adminvm  @anyvm    ask
device.attach.usb  *                @adminvm  mail      allow  target=work
device.attach.usb  *                @adminvm  vault     allow  read-only=yes
"""
STICK = {"device_class": "usb", "identity": "0781:5581:4C53:u080650", "description": "Ultra"}
KEYBOARD = {"device_class": "usb", "identity": "046d:c31c::u030101", "description": "Keys"}


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery, POLICY + ALLOW_DOM0)
    world.driver.carriers = {**WITH_FAKE, "usb": CarriedByAgents()}
    source = world.vm("sys-usb", "sdb")
    source.plug("1-2", **STICK)
    source.plug("1-3", **KEYBOARD)
    source.plug("hidden", **KEYBOARD)
    source.plug("sda", parent="1-2", parent_class="usb")
    source.plug("sda1", parent="sda")
    for name in ("work", "vault", "mail"):
        world.vm(name)
    world.vm("halted", running=False)
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


async def told(
    world: World, device: str, device_class: str = "usb", asker: str | None = None
) -> DeviceTold:
    backend, _, name = device.partition(":")
    params = {"device_class": device_class, "backend": backend, "device": name}
    if asker is None:
        answer = await world.client.call("device.info", **params)
    else:
        answer = await world.driver.agents[asker].ask("device.info", **params)
    found: DeviceTold = parse_result("device.info", answer)
    return found


async def refused(world: World, device: str, device_class: str, asker: str | None) -> CallError:
    with pytest.raises(CallError) as caught:
        await told(world, device, device_class, asker)
    return caught.value


async def test_dom0s_user_is_told_what_rules_see_and_say(
    world: World, autojump_clock: Clock
) -> None:
    stick = await told(world, "sys-usb:1-2")
    assert stick.argument == "+sys-usb:1-2:0781:5581:4C53:u080650"
    assert (stick.device.description, stick.lasting) == ("Ultra", "0781:5581:4C53:u080650")
    decided = [(each.vms, each.verdict, each.rule, each.target) for each in stick.decided]
    assert decided == [
        (("mail",), "allow", "30-test.policy:6", "work"),
        (("vault",), "allow", "30-test.policy:7", None),
        (("work",), "allow", "30-test.policy:8", None),
    ]
    assert [each.read_only for each in stick.decided] == [False, True, False]
    keyboard = await told(world, "sys-usb:1-3")
    decided = [(each.vms, each.verdict, each.rule, each.target) for each in keyboard.decided]
    assert decided == [
        (("mail", "work"), "ask", "30-test.policy:5", None),
        (("vault",), "deny", "30-test.policy:4", None),
    ]


async def test_it_says_what_explain_says(world: World, autojump_clock: Clock) -> None:
    for device in ("1-2", "1-3"):
        for group in (await told(world, f"sys-usb:{device}")).decided:
            for vm in group.vms:
                asked = {**named(vm, f"sys-usb:{device}"), "device_class": "usb"}
                said = await world.client.call("device.explain", verb="attach", **asked)
                assert (said["verdict"], said["rule"], said["text"], said["reason"]) == (
                    *(group.verdict, group.rule, group.text, group.reason),
                )


async def test_without_a_rule_it_is_denied_by_default(world: World, autojump_clock: Clock) -> None:
    world.policy.set("device.attach.usb +sys-usb:9 dom0 work allow")
    (group,) = (await told(world, "sys-usb:1-2")).decided
    assert (group.verdict, group.default, group.rule) == ("deny", True, None)
    assert group.vms == ("mail", "vault", "work")


async def test_its_relatives_are_told_and_who_has_them(world: World, autojump_clock: Clock) -> None:
    stick = await told(world, "sys-usb:1-2")
    assert stick.unfit == ()
    relatives = [(each.device_class, each.device, each.vms) for each in stick.relatives]
    assert relatives == [("block", "sda", ()), ("block", "sda1", ())]
    await world.client.attach("work", "sys-usb:sda1")
    stick = await told(world, "sys-usb:1-2")
    assert [each.vms for each in stick.relatives] == [(), ("work",)]
    (why,) = stick.unfit
    assert why == "sys-usb:1-2 shares data with sys-usb:sda1, which is attached to work"
    part = await told(world, "sys-usb:sda1", "block")
    assert [to.vm for to in part.device.attachments] == ["work"]
    assert part.unfit == ()


async def test_what_keeps_it_from_being_lent_is_told(world: World, autojump_clock: Clock) -> None:
    source = world.driver.agents["sys-usb"]
    source.plug("1-2", **STICK, busy="mounted on /mnt")
    await source.report()
    world.driver.carriers = {**WITH_FAKE, "usb": lacking("usb", "not here")}
    lack, busy = (await told(world, "sys-usb:1-2")).unfit
    assert lack == "usb: not here"
    assert busy == "sys-usb:1-2 is in use in sys-usb: mounted on /mnt"
    source.plug("1-2", **STICK, stale="udev does not answer")
    await source.report()
    assert "udev does not answer" in (await told(world, "sys-usb:1-2")).unfit[1]


async def test_a_device_that_is_only_assigned_is_told_with_why_it_is_not_there(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.call("device.attach", **named("halted", "sys-usb:sdb"), persistent=True)
    await world.driver.agents["sys-usb"].unplug("sdb")
    gone = await told(world, "sys-usb:sdb", "block")
    assert not gone.device.present
    assert [to.vm for to in gone.device.assignments] == ["halted"]
    assert gone.unfit == ("sys-usb has no block device named 'sdb'",)
    assert gone.decided == ()


@pytest.mark.parametrize(
    ("device", "code", "said"),
    [
        ("sys-usb:9", "not_found", "sys-usb has no usb device named '9'"),
        ("nobody:9", "not_found", "no VM named 'nobody'"),
        ("halted:9", "not_found", "halted is halted"),
        ("sys-usb:hidden", "denied", "sys-usb:hidden"),
    ],
)
async def test_dom0s_user_learns_why_there_is_nothing_to_tell(
    world: World, autojump_clock: Clock, device: str, code: str, said: str
) -> None:
    error = await refused(world, device, "usb", None)
    assert error.code == code
    assert said in error.message
    if code == "denied":
        assert error.data["rule"] == "30-test.policy:2"


@pytest.mark.parametrize(
    ("device", "device_class"),
    [
        ("sys-usb:sdb", "block"),  # there, and not its own
        ("sys-usb:nothing", "block"),
        ("nobody:sdb", "block"),
        ("halted:sdb", "block"),
        ("sys-usb:hidden", "usb"),
        ("sys-usb:02_00.0", "pci"),  # what its owner also calls so
    ],
)
async def test_to_a_vm_what_it_may_not_see_does_not_exist(
    world: World, autojump_clock: Clock, device: str, device_class: str
) -> None:
    source = world.driver.agents["sys-usb"]
    source.plug("00_1c.0-00.0", "pci", alias="02_00.0")
    await source.report()
    error = await refused(world, device, device_class, "work")
    assert (error.code, error.data.keys()) == ("not_found", {"request"})
    assert error.message == f"this VM sees no {device_class} device {device}"


async def test_a_vm_is_told_of_its_own_device_and_not_who_has_it(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda1")
    stick = await told(world, "sys-usb:1-2", asker="sys-usb")
    assert stick.argument == "+sys-usb:1-2:0781:5581:4C53:u080650"
    assert [(each.device, each.vms) for each in stick.relatives] == [("sda", ()), ("sda1", ())]
    assert (stick.decided, stick.vms_left_out, stick.unfit) == ((), 0, ())
    part = await told(world, "sys-usb:sda1", "block", "sys-usb")
    assert part.device.attachments == ()


async def test_a_vm_is_told_of_what_it_has_and_not_of_what_belongs_to_it(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda1")
    part = await told(world, "sys-usb:sda1", "block", "work")
    assert [to.vm for to in part.device.attachments] == ["work"]
    assert (part.relatives, part.relatives_left_out, part.decided) == ((), 0, ())
    assert (await refused(world, "sys-usb:sda", "block", "work")).code == "not_found"


async def test_who_is_to_have_it_by_its_identity_is_told(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.call(
        "device.assign",
        device_class="usb",
        vm="halted",
        backend="sys-usb",
        device="1-2",
        identity=None,
        match="device",
        mode="auto-attach",
    )
    (assigned,) = (await told(world, "sys-usb:1-2")).device.assignments
    assert (assigned.vm, assigned.mode) == ("halted", "auto-attach")


async def test_a_person_s_name_for_a_device_is_good_too(
    world: World, autojump_clock: Clock
) -> None:
    dom0 = world.driver.agents["dom0"]
    dom0.plug("00_1c.0-00.0", "pci", identity="8086:15d3::p0c0330", alias="02_00.0")
    await dom0.report()
    card = await told(world, "dom0:02_00.0", "pci")
    assert (card.device.device, card.device.alias) == ("00_1c.0-00.0", "02_00.0")
    assert card.argument == "+dom0:00_1c.0-00.0:8086:15d3::p0c0330"


async def test_what_does_not_fit_is_counted(world: World, autojump_clock: Clock) -> None:
    source = world.driver.agents["sys-usb"]
    for number in range(info.RELATIVES_MAX + 40):
        source.plug(f"sda{number + 2}", parent="sda")
    await source.report()
    for number in range(300):
        world.driver.add(f"vm{number}")
    each_its_own = (f"device.attach.usb * dom0 vm{number} allow\n" for number in range(300))
    world.policy.set("".join(each_its_own) + POLICY + ALLOW_DOM0)
    world.state.facts.reload()
    stick = await told(world, "sys-usb:1-2")
    assert len(stick.relatives) + stick.relatives_left_out == info.RELATIVES_MAX + 42
    assert 0 < len(stick.relatives) <= info.RELATIVES_MAX
    shown = sum(len(each.vms) for each in stick.decided)
    assert 30 < shown < 303
    assert shown + stick.vms_left_out == 303


async def test_many_vms_of_one_answer_are_told_in_few_groups(
    world: World, autojump_clock: Clock
) -> None:
    for number in range(200):
        world.driver.add(f"vm{number}")
    world.state.facts.reload()
    keyboard = await told(world, "sys-usb:1-3")
    assert keyboard.vms_left_out == 0
    assert sum(len(each.vms) for each in keyboard.decided) == 203
    assert len(keyboard.decided) < 7


async def test_others_get_their_turn_between_the_decisions(
    world: World, autojump_clock: Clock
) -> None:
    """A large policy and many VMs hold up nobody: the answer is made in steps."""

    async def turns_of_others() -> int:
        turns, done = 0, trio.Event()

        async def other() -> None:
            nonlocal turns
            while not done.is_set():
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await told(world, "sys-usb:1-3")
            done.set()
        return turns

    with_few = await turns_of_others()
    for number in range(20 * info.STEP):
        world.driver.add(f"vm{number}")
    world.state.facts.reload()
    assert await turns_of_others() - with_few >= 15
