"""Who listens to a microphone and who is muted: told, noted, and confirmed or said not to be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_dom0.attachments.listening import PAUSE
from pedos_dom0.attachments.muting import MUTE_TIMEOUT, RETRY_SECONDS
from pedos_dom0.audit.throttle import THROTTLE_AFTER
from pedos_protocol.errors import CallError
from pedos_protocol.mute_messages import MUTED_MAX
from trio.abc import Clock

from tests.dom0.fakes import Params, World, fails, hang, named
from tests.dom0.watcher import Watcher


@pytest.fixture
async def world(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> AsyncIterator[World]:
    """mike has two microphones and a stick; work and vault run, spare is halted."""
    world = World(tmp_path, nursery)
    mike = world.vm("mike", "stick")
    for device in ("mic", "camera"):
        mike.plug(device, "mic", identity=device, description=device, size=None)
    world.vm("work")
    world.vm("vault")
    world.vm("spare", running=False)
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


def of(vm: str, device: str = "mic") -> Params:
    return named(vm, f"mike:{device}", "mic")


async def attach(world: World, *vms: str, device: str = "mic") -> Params:
    answers = [await world.client.call("device.attach", **of(vm, device)) for vm in vms]
    return answers[-1]


async def mute(world: World, vm: str, muted: bool = True) -> Params:
    return await world.client.call("device.mute", device_class="mic", vm=vm, muted=muted)


def heard_by(world: World) -> list[str]:
    """The VMs that hear something, by what the source really does."""
    domids = {info.domid: name for name, info in world.driver.infos.items()}
    exports = world.driver.agents["mike"].exports.values()
    return sorted(domids[each["peer"]] for each in exports if not each["muted"])


async def uses(world: World, device: str = "mic") -> dict[str, Params]:
    listed = {each["device"]: each for each in await world.client.list("mic")}
    return {each["vm"]: each for each in listed[device]["attachments"]}


async def muted_vms(world: World) -> list[str]:
    answer: list[str] = (await world.client.call("device.list", device_class="mic"))["muted"]
    return answer


async def says(world: World, vm: str, listening: bool) -> None:
    await world.driver.agents["mike"].says_listening(world.driver.infos[vm].domid, listening)
    await trio.testing.wait_all_tasks_blocked()


async def refuse(_params: Params) -> None:
    raise CallError("failed", "pedos-sound does not answer")


# Muting


async def test_a_vm_is_muted_and_unmuted_for_all_that_it_has(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world, "work", "vault")
    await attach(world, "work", device="camera")
    answer = await mute(world, "work")
    assert answer["outcome"] == "muted"
    assert [(each["device"], each["error"]) for each in answer["results"]] == [
        ("camera", None),
        ("mic", None),
    ]
    assert heard_by(world) == ["vault"]
    told = await uses(world)
    assert [(vm, to["muted"], to["unconfirmed"]) for vm, to in told.items()] == [
        ("vault", False, None),
        ("work", True, None),
    ]
    assert await muted_vms(world) == ["work"]
    answer = await mute(world, "work", False)
    assert (answer["outcome"], len(answer["results"])) == ("unmuted", 2)
    assert heard_by(world) == ["vault", "work", "work"]
    assert await muted_vms(world) == []


async def test_what_is_so_already_is_no_error(world: World, autojump_clock: Clock) -> None:
    assert (await mute(world, "work", False))["outcome"] == "already"
    assert (await mute(world, "work"))["outcome"] == "muted"
    assert await mute(world, "work") == {**await mute(world, "work"), **_request(world)}
    assert await muted_vms(world) == ["work"]


def _request(world: World) -> Params:
    return {"request": world.audit("mute")[-2]["request"]}


async def test_what_it_gets_later_is_muted_from_the_start(
    world: World, autojump_clock: Clock
) -> None:
    await mute(world, "work")
    asked: list[bool] = []

    async def note(params: Params) -> None:
        asked.append(params["muted"])

    world.driver.agents["mike"].on["export.start"] = note
    answer = await attach(world, "work")
    assert "work is muted" in answer["note"]
    assert asked == [True] and heard_by(world) == []
    assert "export.mute" not in world.driver.agents["mike"].calls
    assert (await uses(world))["work"]["muted"]


async def test_a_vm_that_starts_or_gets_it_by_itself_is_muted(
    world: World, autojump_clock: Clock
) -> None:
    await mute(world, "spare")
    assigned = {**of("spare"), "identity": None, "match": "port", "options": {}}
    await world.client.call("device.assign", **assigned, mode="required")
    await world.client.call("vm.start", vm="spare")
    (export,) = world.driver.agents["mike"].exports.values()
    assert export["muted"]


@pytest.mark.parametrize("muted", [True, False])
@pytest.mark.parametrize("step", ["attach.leased", "attach.exported", "attach.imported"])
async def test_it_counts_at_every_step_of_an_attach(
    world: World, autojump_clock: Clock, step: str, muted: bool
) -> None:
    if not muted:
        await mute(world, "work")
    reached, go_on = trio.Event(), trio.Event()

    async def reach(name: str) -> None:
        if name == step:
            reached.set()
            await go_on.wait()

    world.reach = reach
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach, world, "work")
        await reached.wait()
        await mute(world, "work", muted)
        go_on.set()
    assert heard_by(world) == ([] if muted else ["work"])


async def test_it_counts_while_the_source_begins_to_lend(
    world: World, autojump_clock: Clock
) -> None:
    asked, answer = trio.Event(), trio.Event()

    async def slow(_params: Params) -> None:
        asked.set()
        await answer.wait()

    world.driver.agents["mike"].on["export.start"] = slow
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach, world, "work")
        await asked.wait()
        assert (await mute(world, "work"))["results"] == []
        answer.set()
    assert heard_by(world) == []


async def test_an_attach_that_cannot_be_muted_in_time_fails(
    world: World, autojump_clock: Clock
) -> None:
    async def then_mute(_params: Params) -> None:
        await mute(world, "work")

    mike = world.driver.agents["mike"]
    mike.on.update({"export.start": then_mute, "export.mute": refuse})
    with fails("failed", "work MAY STILL HEAR mike:mic"):
        await attach(world, "work")
    world.assert_nothing_left()


async def test_the_last_of_two_at_once_counts(world: World, autojump_clock: Clock) -> None:
    await attach(world, "work")
    asked, answer = trio.Event(), trio.Event()

    async def slow(_params: Params) -> None:
        if not asked.is_set():
            asked.set()
            await answer.wait()

    world.driver.agents["mike"].on["export.mute"] = slow
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mute, world, "work")
        await asked.wait()
        nursery.start_soon(mute, world, "work", False)
        await trio.testing.wait_all_tasks_blocked()
        answer.set()
    assert heard_by(world) == ["work"] and await muted_vms(world) == []


# What may not be


@pytest.mark.parametrize(
    ("device_class", "vm", "code", "words"),
    [
        ("mic", "wrok", "not_found", "no VM named 'wrok'"),
        ("mic", "dom0", "usage", "dom0 cannot be given a device"),
        ("block", "work", "usage", "block devices are nothing to listen to"),
        ("floppy", "work", "usage", "'floppy' is not a device class"),
    ],
)
@pytest.mark.parametrize("muted", [True, False])
async def test_what_makes_no_sense_is_refused(
    world: World,
    autojump_clock: Clock,
    device_class: str,
    vm: str,
    code: str,
    words: str,
    muted: bool,
) -> None:
    with fails(code, words):
        await world.client.call("device.mute", device_class=device_class, vm=vm, muted=muted)
    assert world.state.store.muted("mic") == []


async def test_no_vm_may_mute(world: World, autojump_clock: Clock) -> None:
    with fails("unknown_method"):
        await world.driver.agents["work"].ask(
            "device.mute", device_class="mic", vm="work", muted=False
        )


async def test_a_vm_that_was_removed_stays_muted_and_can_be_unmuted(
    world: World, autojump_clock: Clock
) -> None:
    await mute(world, "spare")
    del world.driver.infos["spare"]
    assert await muted_vms(world) == ["spare"]
    assert (await mute(world, "spare", False))["outcome"] == "unmuted"
    with fails("not_found"):
        await mute(world, "spare", False)


async def test_the_table_has_a_bound_that_is_said(world: World, autojump_clock: Clock) -> None:
    for number in range(MUTED_MAX):
        await world.state.store.mute("mic", f"gone{number}")
    with fails("quota", f"{MUTED_MAX} VMs are muted already"):
        await mute(world, "work")
    assert len(await muted_vms(world)) == MUTED_MAX
    assert (await mute(world, "gone0", False))["outcome"] == "unmuted"
    assert (await mute(world, "work"))["outcome"] == "muted"


# What is not confirmed


@pytest.mark.parametrize("how", [refuse, hang])
async def test_a_mute_that_is_not_confirmed_is_said_and_asked_for_again(
    world: World, autojump_clock: Clock, how: Any
) -> None:
    await attach(world, "work", "vault")
    mike = world.driver.agents["mike"]
    mike.on["export.mute"] = how
    began = trio.current_time()
    answer = await mute(world, "work")
    assert trio.current_time() - began <= MUTE_TIMEOUT + 0.1
    assert answer["outcome"] == "muted"
    (item,) = answer["results"]
    assert "work MAY STILL HEAR mike:mic" in item["error"]["message"]
    assert item["error"]["data"]["hint"] == "qvm-device mic detach work mike:mic"
    assert (await uses(world))["work"]["unconfirmed"] == "mike does not confirm it"
    assert world.audit("mute")[-1]["not_confirmed"] == ["mike:mic"]
    del mike.on["export.mute"]
    await trio.sleep(RETRY_SECONDS + MUTE_TIMEOUT + 1)
    assert heard_by(world) == ["vault"]
    assert (await uses(world))["work"]["unconfirmed"] is None


async def test_a_source_that_did_not_confirm_is_asked_again_when_it_reports(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world, "work")
    mike = world.driver.agents["mike"]
    mike.on["export.mute"] = refuse
    await mute(world, "work")
    await trio.sleep(1)
    assert mike.calls.count("export.mute") == 1, "and not at once again"
    del mike.on["export.mute"]
    await mike.report()
    await trio.testing.wait_all_tasks_blocked()
    assert heard_by(world) == []


async def test_what_a_source_does_not_lend_is_not_heard(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world, "work")
    (export,) = world.driver.agents["mike"].exports.values()
    world.driver.agents["mike"].exports.clear()
    (item,) = (await mute(world, "work"))["results"]
    assert item["error"] is None
    assert "export.mute" in world.driver.agents["mike"].calls and not export["muted"]


async def test_an_answer_that_is_malformed_confirms_nothing(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world, "work")

    async def nonsense(_params: Params) -> None:
        mike.exports.clear()
        raise CallError("failed", "\x1b[31mred")

    mike = world.driver.agents["mike"]
    mike.on["export.mute"] = nonsense
    (item,) = (await mute(world, "work"))["results"]
    assert "MAY STILL HEAR" in item["error"]["message"] and "\x1b" not in item["error"]["message"]


async def test_an_older_source_lends_nothing_to_a_muted_vm(
    world: World, autojump_clock: Clock
) -> None:
    mike = world.driver.agents["mike"]
    mike.kill()
    mike.says_version_1 = True
    await trio.sleep(2)
    await mute(world, "work")
    with fails("failed", "the agent of mike is older and cannot mute", "qvm-device mic unmute"):
        await attach(world, "work")
    world.assert_nothing_left()
    await attach(world, "vault")
    (item,) = (await mute(world, "vault"))["results"]
    assert "is older and cannot mute" in item["error"]["message"]


async def test_a_source_that_does_otherwise_is_put_right_when_it_says_so(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world, "work")
    await mute(world, "work")
    mike = world.driver.agents["mike"]
    for export in mike.exports.values():
        export["muted"] = False
    await mike.report()
    await trio.testing.wait_all_tasks_blocked()
    assert heard_by(world) == []


# Restarts


@pytest.mark.parametrize("step", ["mute.noted", "mute.applied"])
async def test_a_service_that_is_killed_while_it_mutes_has_muted(
    world: World, autojump_clock: Clock, step: str
) -> None:
    await attach(world, "work")
    killed = world.kill_at(step)
    with pytest.raises(CallError):
        await mute(world, "work")
    assert killed.is_set()
    await world.restart()
    assert await muted_vms(world) == ["work"]
    assert heard_by(world) == []
    await attach(world, "work", device="camera")
    assert heard_by(world) == []


async def test_a_kill_while_the_source_is_asked_has_muted(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world, "work")
    mike = world.driver.agents["mike"]
    mike.on["export.mute"] = hang
    async with trio.open_nursery() as nursery:

        async def first() -> None:
            with pytest.raises(CallError):
                await mute(world, "work")

        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        del mike.on["export.mute"]
        await world.restart()
    assert heard_by(world) == [] and await muted_vms(world) == ["work"]


@pytest.mark.parametrize("step", ["unmute.noted", "unmute.applied"])
async def test_a_service_that_is_killed_while_it_unmutes_has_unmuted(
    world: World, autojump_clock: Clock, step: str
) -> None:
    await attach(world, "work")
    await mute(world, "work")
    killed = world.kill_at(step)
    with pytest.raises(CallError):
        await mute(world, "work", False)
    assert killed.is_set()
    await world.restart()
    assert heard_by(world) == ["work"] and await muted_vms(world) == []


@pytest.mark.parametrize("step", ["attach.leased", "attach.exported", "attach.imported"])
async def test_a_kill_during_the_attach_of_a_muted_vm_unmutes_nothing(
    world: World, autojump_clock: Clock, step: str
) -> None:
    await mute(world, "work")
    killed = world.kill_at(step)
    with pytest.raises(CallError):
        await attach(world, "work")
    assert killed.is_set()
    await world.restart()
    await trio.sleep(1)
    assert heard_by(world) == []
    await attach(world, "work")
    assert heard_by(world) == []


@pytest.mark.parametrize("which", ["service", "source", "target", "connection"])
async def test_no_restart_unmutes(world: World, autojump_clock: Clock, which: str) -> None:
    await world.client.call(
        "device.assign", **of("work"), identity=None, match="port", mode="auto-attach", options={}
    )
    await mute(world, "work")
    await trio.testing.wait_all_tasks_blocked()
    assert [each["muted"] for each in world.driver.agents["mike"].exports.values()] == [True]
    if which == "service":
        await world.restart()
    elif which == "connection":
        peer = world.driver.agents["mike"].peer
        assert peer is not None
        peer.close()
    else:
        world.driver.agents["mike" if which == "source" else "work"].kill()
    await trio.sleep(5)
    assert heard_by(world) == [] and (await uses(world))["work"]["muted"]


async def test_a_source_that_hears_of_nothing_for_a_restart_is_told_of_it(
    world: World, autojump_clock: Clock
) -> None:
    """It was muted while the source was not connected, and the attachment lives."""
    await attach(world, "work")
    await world.kill()
    world.reach = _pass
    mike = world.driver.agents["mike"]
    mike.listens = False
    await world.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mute, world, "work")
        await trio.sleep(1)
        assert world.state.store.muted("mic") == ["work"]
        mike.listens = True
    assert heard_by(world) == []


async def _pass(_step: str) -> None:
    await trio.lowlevel.checkpoint()


# Who listens


async def test_the_list_says_who_listens_now(world: World, autojump_clock: Clock) -> None:
    await attach(world, "work", "vault")
    assert [to["listening"] for to in (await uses(world)).values()] == [False, False]
    await says(world, "work", True)
    assert {vm: to["listening"] for vm, to in (await uses(world)).items()} == {
        "vault": False,
        "work": True,
    }
    begins = world.audit("listening")[-1]
    assert (begins["vm"], begins["device"], begins["outcome"]) == ("work", "mike:mic", "begins")
    await trio.sleep(PAUSE)
    await says(world, "work", False)
    assert not (await uses(world))["work"]["listening"]
    assert [each["outcome"] for each in world.audit("listening")] == ["begins", "ends"]


async def test_a_vm_sees_whether_it_listens_itself(world: World, autojump_clock: Clock) -> None:
    world.policy.set("device.list.mic * @anyvm @anyvm allow\ndevice.*.* * @adminvm @anyvm allow\n")
    await attach(world, "work", "vault")
    await mute(world, "work")
    await says(world, "vault", True)
    answer = await world.driver.agents["work"].ask("device.list", device_class="mic")
    (device,) = answer["devices"]
    (to,) = device["attachments"]
    assert (to["vm"], to["listening"], to["muted"], to["unconfirmed"]) == (
        "work",
        False,
        True,
        None,
    )
    assert answer["muted"] == []


async def test_a_service_that_is_back_knows_who_listens(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world, "work")
    await says(world, "work", True)
    await world.restart()
    assert (await uses(world))["work"]["listening"]


async def test_nothing_is_made_up_of_a_source_that_does_not_say(
    world: World, autojump_clock: Clock
) -> None:
    await world.client.call("device.attach", **named("work", "mike:stick"))
    (stick,) = await world.client.list("block")
    (to,) = stick["attachments"]
    assert (to["listening"], to["muted"], to["unconfirmed"]) == (None, False, None)


async def test_a_report_that_was_sent_before_a_notice_does_not_undo_it(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world, "work")
    await world.driver.agents["mike"].report()
    link = world.state.agents.get("mike")
    assert link is not None and link.report is not None
    before, mark = link.report.exports, link.heard.mark()
    await says(world, "work", True)
    assert link.heard.reported(before, mark) == []
    assert (await uses(world))["work"]["listening"]
    assert link.heard.reported(before, link.heard.mark()) == [before[0].attachment]


async def test_a_watcher_is_told_and_a_vm_that_toggles_floods_nobody(
    world: World, autojump_clock: Clock
) -> None:
    await attach(world, "work")
    watcher = Watcher(world)
    await watcher.all()
    for number in range(1000):
        await says(world, "work", number % 2 == 0)
        await trio.sleep(0.01)
    await says(world, "work", True)
    await trio.sleep(PAUSE)
    seconds = 1000 * 0.01 + PAUSE
    lines = world.audit("listening")
    assert len(lines) <= seconds / PAUSE + 2
    view = next(iter(world.api.watch._views.values()))
    assert view.number <= 2 * seconds / PAUSE + 10
    assert lines[-1]["outcome"] == "begins", "the last state is told"
    for number in range(2000):
        await says(world, "work", number % 2 == 0)
        await trio.sleep(0.6)
    assert len(world.audit("listening")) <= THROTTLE_AFTER + len(lines)
    assert world.audit("summed_up")[-1]["events"]["listening"] > 1


async def test_one_that_says_who_listens_to_what_it_does_not_lend_is_disconnected(
    world: World,
    autojump_clock: Clock,
) -> None:
    await attach(world, "work")
    (attachment,) = world.driver.agents["mike"].exports
    vault = world.driver.agents["vault"]
    assert vault.peer is not None
    await vault.peer.notify(
        "attachment.listening", {"attachment": "0" * 16, "listening": True}
    )  # one that has just ended
    await trio.testing.wait_all_tasks_blocked()
    assert world.audit("disconnected") == []
    await vault.peer.notify("attachment.listening", {"attachment": attachment, "listening": True})
    await trio.testing.wait_all_tasks_blocked()
    assert world.audit("disconnected")[-1]["vm"] == "vault"
    assert not (await uses(world))["work"]["listening"]
