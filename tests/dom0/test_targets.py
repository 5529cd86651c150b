"""device.targets: for each VM what an attach would come to, as the attach itself says then."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_dom0.access.authorizer import Authorizer
from pedos_dom0.access.callers import LOCAL, Caller
from pedos_dom0.drivers.base import DriverError
from pedos_dom0.drivers.carrier import CarriedByAgents, lacking
from pedos_dom0.requests.targets import Targets
from pedos_dom0.tables.registry import DeviceKey
from pedos_protocol.codec import FRAME_MAX, encode
from pedos_protocol.errors import CallError
from pedos_protocol.fields import ATTACHMENTS_MAX
from pedos_protocol.messages import Target, TargetsTold, parse_result
from trio.abc import Clock, Instrument

from tests.dom0.fakes import ALLOW_DOM0, WITH_FAKE, World, fails, yes

POLICY = """
device.attach.block  +sys-usb:sdb  @adminvm  vault     deny
device.attach.block  +sys-usb:sdb  @adminvm  bank      ask
device.attach.block  +sys-usb:sdb  @adminvm  mail      allow  target=work
device.attach.block  +sys-usb:sdb  @adminvm  web       allow  target=halted
device.attach.block  +sys-usb:sdb  @adminvm  chat      allow  read-only=yes
device.attach.block  +sys-usb:sdb  @adminvm  lost      allow  target=dom0
device.attach.block  +sys-usb:sdb  @adminvm  back      allow  target=sys-usb
device.attach.block  +sys-usb:sdb  @adminvm  later     ask
device.attach.block  +sys-usb:sdb  @adminvm  other     allow  autostart=no
device.attach.block  +sys-usb:none *         *         deny
"""
VMS = ("work", "vault", "bank", "mail", "web", "chat", "lost", "back", "vm2", "vm10")


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery, POLICY + ALLOW_DOM0)
    world.driver.carriers = {**WITH_FAKE, "mic": CarriedByAgents()}
    source = world.vm("sys-usb", "sdb")
    source.plug("sda")
    source.plug("sda1", parent="sda")
    source.plug("mic", "mic")
    for name in VMS:
        world.vm(name)
    for name in ("halted", "later", "other"):
        world.vm(name, running=False)
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


async def asked(world: World, device: str, device_class: str = "block") -> TargetsTold:
    backend, _, name = device.partition(":")
    params = {"device_class": device_class, "backend": backend, "device": name}
    found: TargetsTold = parse_result(
        "device.targets", await world.client.call("device.targets", **params)
    )
    return found


async def by_vm(world: World, device: str, device_class: str = "block") -> dict[str, Target]:
    return {each.vm: each for each in (await asked(world, device, device_class)).targets}


def block(device: str, vm: str, device_class: str = "block") -> dict[str, Any]:
    backend, _, name = device.partition(":")
    return {"device_class": device_class, "vm": vm, "backend": backend, "device": name}


async def test_each_vm_but_dom0_and_the_source_is_told_in_natural_order(
    world: World, autojump_clock: Clock
) -> None:
    told = await asked(world, "sys-usb:sdb")
    names = [each.vm for each in told.targets]
    assert names == [
        *("back", "bank", "chat", "halted", "later", "lost", "mail", "other"),
        *("vault", "vm2", "vm10", "web", "work"),
    ]
    assert (told.identity, told.unfit, told.left_out) == ("046d:c52b", (), 0)


async def test_the_policy_says_allow_ask_deny_or_another_vm(
    world: World, autojump_clock: Clock
) -> None:
    found = await by_vm(world, "sys-usb:sdb")
    told = {vm: (each.verdict, each.rule, each.target) for vm, each in found.items()}
    assert told["vault"] == ("deny", "30-test.policy:2", None)
    assert told["bank"] == ("ask", "30-test.policy:3", None)
    assert told["mail"] == ("allow", "30-test.policy:4", "work")
    assert told["chat"] == ("allow", "30-test.policy:6", None)
    assert told["work"] == ("allow", "30-test.policy:12", None)
    assert found["vault"].reason == "30-test.policy:2 says deny"
    assert [found[vm].read_only for vm in ("chat", "work")] == [True, False]


async def test_a_rule_that_sends_it_where_it_cannot_be_is_a_refusal_with_the_reason(
    world: World, autojump_clock: Clock
) -> None:
    found = await by_vm(world, "sys-usb:sdb")
    assert (found["web"].verdict, found["web"].target) == ("deny", "halted")
    assert found["web"].reason == "halted is halted"
    assert found["lost"].verdict == "deny"
    assert "dom0 cannot be given a device" in found["lost"].reason
    assert found["back"].verdict == "deny"
    assert "sys-usb has this device already" in found["back"].reason


async def test_a_vm_that_is_halted_is_refused_also_where_a_rule_asks(
    world: World, autojump_clock: Clock
) -> None:
    found = await by_vm(world, "sys-usb:sdb")
    for vm in ("halted", "later", "other"):
        assert found[vm].verdict == "deny", vm
        assert found[vm].state == "Halted"
    assert found["halted"].reason == "halted is halted"
    assert found["later"].reason == "later is halted"
    assert "'other' would have to be started" in found["other"].reason


async def test_a_device_that_a_vm_has_is_refused_to_the_others_and_said_to_be_there(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sdb")
    found = await by_vm(world, "sys-usb:sdb")
    assert (found["work"].verdict, found["work"].reason) == ("allow", "work has it already")
    assert found["vm2"].verdict == "deny"
    assert found["vm2"].reason == "sys-usb:sdb is attached to work"
    assert found["vault"].reason == "30-test.policy:2 says deny"  # as an attach would say


async def test_a_device_whose_partition_a_vm_has_is_refused_with_both_named(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.attach("work", "sys-usb:sda1")
    told = await asked(world, "sys-usb:sda")
    why = "sys-usb:sda shares data with sys-usb:sda1, which is attached to work"
    assert told.unfit == (why,)
    running = [each for each in told.targets if each.state == "Running"]
    assert {(each.verdict, each.reason) for each in running} == {("deny", why)}


async def test_what_its_source_uses_is_refused_to_all(world: World, autojump_clock: Clock) -> None:
    source = world.driver.agents["sys-usb"]
    source.plug("sdb", busy="it is mounted")
    await source.report()
    told = await asked(world, "sys-usb:sdb")
    why = "sys-usb:sdb is in use in sys-usb: it is mounted"
    assert told.unfit == (why,)
    found = {each.vm: each.reason for each in told.targets}
    assert found["work"] == found["bank"] == why
    assert found["vault"] == "30-test.policy:2 says deny"


async def test_what_its_source_cannot_identify_is_refused_before_any_rule_is_asked(
    world: World, autojump_clock: Clock
) -> None:
    source = world.driver.agents["sys-usb"]
    source.plug("sdb", stale="udev does not answer")
    await source.report()
    told = await asked(world, "sys-usb:sdb")
    why = "sys-usb cannot tell what sys-usb:sdb is: udev does not answer"
    assert told.unfit == (why,)
    assert {(each.verdict, each.reason, each.rule) for each in told.targets} == {
        ("deny", why, None)
    }


async def test_a_class_that_cannot_be_attached_is_refused_to_all(
    world: World, autojump_clock: Clock
) -> None:
    world.driver.carriers = {**WITH_FAKE, "block": lacking("block", "there is no blkback")}
    told = await asked(world, "sys-usb:sdb")
    assert told.unfit == ("block: there is no blkback",)
    assert {each.reason for each in told.targets} == {"block: there is no blkback"}


@pytest.mark.parametrize("fault", [False, True])
async def test_a_class_that_this_vm_gets_at_its_start_alone_is_refused_now(
    world: World, autojump_clock: Clock, fault: bool
) -> None:
    class AtStart(CarriedByAgents):
        def can_give_live(self, domid: int) -> bool:
            if fault:
                raise DriverError("xenstore does not answer")
            return domid == world.driver.infos["vm2"].domid

    world.driver.carriers = {**WITH_FAKE, "block": AtStart()}
    found = await by_vm(world, "sys-usb:sdb")
    assert found["vm2"].verdict == ("deny" if fault else "allow")
    expected = "xenstore does not answer" if fault else "only when it starts"
    assert (found["work"].verdict, expected in found["work"].reason) == ("deny", True)
    with fails("failed", expected):
        await world.client.attach("work", "sys-usb:sdb")
    if fault:
        return
    await world.client.attach("vm2", "sys-usb:sdb")
    found = await by_vm(world, "sys-usb:sdb")
    assert found["work"].reason == "sys-usb:sdb is attached to vm2"  # which says more
    with fails("busy", "attached to vm2"):
        await world.client.attach("work", "sys-usb:sdb")


async def test_a_vm_without_an_agent_or_on_its_way_down_is_refused(
    world: World, autojump_clock: Clock
) -> None:
    world.driver.agents["vm2"].listens = False
    world.driver.agents["vm2"].kill()
    await trio.testing.wait_all_tasks_blocked()
    with world.state.going_down("vm10"):
        found = await by_vm(world, "sys-usb:sdb")
    assert found["vm2"].reason == "vm2 is running, but its agent is not connected"
    assert found["vm10"].reason == "vm10 is being shut down"
    assert {found[vm].verdict for vm in ("vm2", "vm10")} == {"deny"}


async def test_a_microphone_that_one_vm_has_is_there_for_the_others(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.call("device.attach", **block("sys-usb:mic", "work", "mic"))
    found = await by_vm(world, "sys-usb:mic", "mic")
    assert {found[vm].verdict for vm in ("work", "vm2", "vm10")} == {"allow"}


async def test_a_device_that_is_not_there_is_an_error_and_no_empty_answer(
    world: World, autojump_clock: Clock
) -> None:
    with fails("not_found", "sys-usb has no block device named 'sdz'"):
        await asked(world, "sys-usb:sdz")
    with fails("not_found", "halted is halted"):
        await asked(world, "halted:sda")
    with fails("not_found", "no VM named 'nobody'"):
        await asked(world, "nobody:sda")
    with fails("usage", "malformed"):
        await asked(world, "sys-usb:sda", "printer")


async def test_a_device_that_is_replaced_while_it_is_looked_at_is_an_error(
    world: World, autojump_clock: Clock
) -> None:
    source, state = world.driver.agents["sys-usb"], world.state

    async def turn() -> None:
        source.plug("sdb", identity="dead:beef")
        await source.report()

    caller = Caller(kind=LOCAL, name="dom0", turn=turn)
    targets = Targets(state, Authorizer(state, world.api.prompters))
    with fails("not_found", "'dead:beef' by now, and not '046d:c52b'"):
        await targets(caller, DeviceKey("block", "sys-usb", "sdb"))


async def test_it_says_for_each_vm_what_the_attach_then_comes_to(
    world: World, autojump_clock: Clock
) -> None:
    for device in ("sys-usb:sdb", "sys-usb:sda"):
        for vm, told in (await by_vm(world, device)).items():
            async with world.client.prompter(yes(vm)) as prompter:
                try:
                    result = await world.client.attach(vm, device)
                except CallError as error:
                    assert told.verdict == "deny", (vm, error)
                    assert told.reason in error.message or "says deny" in told.reason, vm
                else:
                    assert told.verdict == ("ask" if prompter.asked else "allow"), vm
                    assert result["vm"] == (told.target or vm)
                    assert (result["options"]["read-only"] == "yes") is told.read_only
                    await world.client.detach(result["vm"], device)


async def test_nothing_is_recorded_reserved_or_asked(world: World, autojump_clock: Clock) -> None:
    before = (world.folder / "audit.jsonl").read_text()
    async with world.client.prompter(yes("bank")) as prompter:
        await asked(world, "sys-usb:sdb")
        assert prompter.asked == []
    world.assert_nothing_left()
    assert (world.folder / "audit.jsonl").read_text() == before


async def test_a_vm_that_has_all_it_may_have_is_refused(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ATTACHMENTS_MAX > 1
    monkeypatch.setattr("pedos_dom0.attachments.transaction.ATTACHMENTS_MAX", 1)
    await world.client.attach("work", "sys-usb:sda1")
    found = await by_vm(world, "sys-usb:sdb")
    assert found["work"].reason == "work has 1 devices already"
    assert found["vm2"].reason == "sys-usb lends 1 devices already"


async def test_of_2000_vms_those_that_run_fit_into_the_answer_and_the_rest_is_counted(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    world = World(tmp_path, nursery)
    world.vm("sys-usb", "sda")
    for number in range(1990):
        world.vm(f"a-vm-with-a-long-name-{number:04}", running=False)
    for number in range(10):
        world.vm(f"zz{number}")
    world.dom0_agent()
    await world.start()
    params = {"device_class": "block", "backend": "sys-usb", "device": "sda"}
    answer = await world.client.call("device.targets", **params)
    assert len(encode([1, 1, None, answer])) <= FRAME_MAX
    told: TargetsTold = parse_result("device.targets", answer)
    assert told.left_out == 2000 - len(told.targets) > 1000
    assert [each.vm for each in told.targets[-10:]] == [f"zz{number}" for number in range(10)]
    assert told.targets[0].vm.endswith("-0000")
    await world.kill()


class Decided(Instrument):
    """The most VMs that one step of a task has decided about."""

    count = most = before = 0

    def before_task_step(self, task: object) -> None:
        self.most = max(self.most, self.count - self.before)
        self.before = self.count


async def test_ten_thousand_rules_and_fifty_vms_are_looked_at_vm_by_vm(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = "".join(
        f"device.attach.block +sys-usb:* @adminvm other{number} deny\n" for number in range(10000)
    )
    world = World(tmp_path, nursery, rules + ALLOW_DOM0)
    world.vm("sys-usb", "sda")
    for number in range(50):
        world.vm(f"vm{number}")
    world.dom0_agent()
    await world.start()
    decided, foresee = Decided(), Authorizer.foresee

    def counted(*arguments: Any) -> Any:
        decided.count += 1
        return foresee(*arguments)

    monkeypatch.setattr(Authorizer, "foresee", counted)
    trio.lowlevel.add_instrument(decided)
    found = await by_vm(world, "sys-usb:sda")
    trio.lowlevel.remove_instrument(decided)
    assert len(found) == decided.count == 50
    assert decided.most == 1
    await world.kill()
