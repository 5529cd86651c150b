"""What one author may have written whole: nothing that was done is left out, and nothing of others
is pushed out of the log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from pedos_dom0.access.callers import Caller, desktop_user
from pedos_dom0.audit import allowance
from pedos_dom0.audit.allowance import LINE_SECONDS, LINES, OWED_MAX, Allowances
from pedos_dom0.audit.log import FILE_MAX, FILES_KEPT
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.fakes import ALLOW_DOM0, NO, Params, World, fails, filled_in, named, yes

FEW = 20
ANNA, BERT = desktop_user(1000), desktop_user(1001)


@pytest.fixture
async def world(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setattr(allowance, "LINES", FEW)
    world = World(tmp_path, nursery, "device.*.block * work work allow\n" + ALLOW_DOM0)
    world.vm("sys-usb", "sda", "sdb")
    world.vm("work")
    world.vm("vault")
    world.vm("halted", running=False)
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


async def ask(world: World, caller: Caller, method: str, params: Params) -> Params:
    async with world.client.connected() as peer:
        return await world.api.dispatch(caller, peer, method, filled_in(method, params))


async def fail(_params: Params) -> Params:
    raise CallError("failed", "no")


async def outcome(world: World, caller: Caller, method: str, params: Params) -> str:
    """The code of the error; "" if it was done."""
    try:
        await ask(world, caller, method, params)
    except CallError as error:
        return error.code
    return ""


def lines(world: World) -> int:
    return len((world.folder / "audit.jsonl").read_text().splitlines())


# The allowance alone


def test_one_has_some_lines_and_gets_them_back_one_by_one() -> None:
    of = Allowances()
    for _ in range(LINES - 1):
        of.spend("work", 100)
    assert of.wait("work", 100) == 0
    of.spend("work", 100)
    assert of.wait("work", 100) == pytest.approx(LINE_SECONDS)
    assert of.wait("vault", 100) == 0
    assert of.wait("work", 100 + LINE_SECONDS) == 0
    of.spend("work", 100 + LINE_SECONDS)
    assert of.wait("work", 100 + LINE_SECONDS) == pytest.approx(LINE_SECONDS)


def test_what_is_owed_is_bounded_and_who_owes_nothing_is_forgotten() -> None:
    of = Allowances()
    for _ in range(10 * LINES):
        of.spend("work", 0)
    assert of.wait("work", 0) == pytest.approx((OWED_MAX + 1) * LINE_SECONDS)
    later = (LINES + OWED_MAX) * LINE_SECONDS
    of.spend("vault", later)
    assert list(of._whole_at) == ["vault"]


def test_one_author_cannot_fill_the_log_in_a_week() -> None:
    week, line, its_sum = 7 * 24 * 3600, 600, 300  # bytes, as most are
    kinds = 3  # what it did, what it was refused, what it called
    size = kinds * ((LINES + week / LINE_SECONDS) * line + week / LINE_SECONDS * its_sum)
    assert size < FILE_MAX * FILES_KEPT


# In the service


@pytest.mark.parametrize("what", ["attach", "assign", "a failing attach"])
async def test_a_member_who_does_much_is_stopped_and_root_and_others_are_not(
    world: World, autojump_clock: Clock, what: str
) -> None:
    stick = named("halted" if what == "assign" else "work", "sys-usb:sda")
    first = ("device.attach", stick)
    if what == "assign":
        first = ("device.assign", {**stick, "identity": None, "mode": "required", "match": "port"})
    elif what == "a failing attach":
        world.driver.agents["work"].on["import.start"] = fail
    before = lines(world)
    codes: list[str] = []
    while "quota" not in codes and len(codes) < 3 * FEW:
        codes.append(await outcome(world, ANNA, *first))
        if what != "a failing attach":
            codes.append(await outcome(world, ANNA, "device.detach", stick))
    assert 2 < codes.index("quota") <= 2 * FEW
    assert FEW <= lines(world) - before < 2 * FEW + 8
    with fails("quota", "dom0 (uid 1000)", "push what others did out", "it can go on in"):
        await ask(world, ANNA, *first)
    # Nothing that was done was left out.
    if what == "a failing attach":
        assert len(world.audit("undone")) == codes.count("failed")
        return
    done = [*world.audit("attach"), *world.audit("assign"), *world.audit("detach")]
    assert len([line for line in done if ":" not in line["outcome"]]) == codes.count("")
    # Another user has its own lines, and root has no bound.
    other = named("work", "sys-usb:sdb")
    await ask(world, BERT, "device.attach", other)
    for _ in range(FEW):
        await world.client.detach("work", "sys-usb:sdb")
        await world.client.attach("work", "sys-usb:sdb")
    # What was refused is counted.
    for _ in range(50):
        with fails("quota"):
            await ask(world, ANNA, *first)
    world.state.audit_throttle.flush_all()
    (summed,) = world.audit("summed_up")
    assert summed["vm"] == "dom0 (uid 1000)"
    refused = len(world.audit("refused")) + summed["events"]["refused"]
    assert refused == codes.count("quota") + 51
    # After a while it may go on.
    await trio.sleep(8 * LINE_SECONDS)
    await ask(world, ANNA, *first)


async def test_what_takes_something_away_is_never_refused_and_is_bounded_all_the_same(
    world: World, autojump_clock: Clock
) -> None:
    stick, mute = named("work", "sys-usb:sda"), {"device_class": "mic", "vm": "work"}
    assigned = {**stick, "vm": "halted", "identity": None, "mode": "required", "match": "port"}
    await ask(world, ANNA, "device.attach", stick)
    await ask(world, ANNA, "device.assign", assigned)
    for _ in range(2 * FEW):
        world.state.audit_throttle._done.spend(ANNA.audited, trio.current_time())
    for method, params in (
        ("device.attach", named("work", "sys-usb:sdb")),
        ("device.assign", assigned),
        ("device.mute", {**mute, "muted": False}),
    ):
        assert await outcome(world, ANNA, method, params) == "quota", method
    await ask(world, ANNA, "device.detach", stick)
    await ask(world, ANNA, "device.unassign", {**named("halted", "sys-usb:sda"), "identity": None})
    await ask(world, ANNA, "device.mute", {**mute, "muted": True})
    world.assert_nothing_left()
    (detached,) = world.audit("detach")
    assert (detached["outcome"], detached["caller"]) == ("detached", ANNA.audited)
    assert len(world.audit("unassign")) == len(world.audit("mute")) == 1
    # A second time it takes nothing away, and is counted.
    before = lines(world)
    for _ in range(FEW):
        assert await outcome(world, ANNA, "device.detach", stick) == "not_found"
        await ask(world, ANNA, "device.mute", {**mute, "muted": True})
    assert lines(world) - before <= FEW
    world.state.audit_throttle.flush_all()
    (summed,) = world.audit("summed_up")[-1:]
    assert min(summed["events"][event] for event in ("mute", "detach")) > FEW / 2


async def test_a_yes_that_takes_nothing_away_does_not_fill_the_log_either(
    world: World, autojump_clock: Clock
) -> None:
    async def in_use(_params: Params) -> Params:
        raise CallError("busy", "it is mounted")

    world.policy.set("device.detach.block * @adminvm @anyvm ask\n" + ALLOW_DOM0)
    stick = named("work", "sys-usb:sda")
    await ask(world, ANNA, "device.attach", stick)
    world.driver.agents["work"].on["import.stop"] = in_use
    async with world.client.prompter(yes("work")):
        codes = [await outcome(world, ANNA, "device.detach", stick) for _ in range(2 * FEW)]
    world.state.audit_throttle.flush_all()
    assert lines(world) < 3 * FEW + 10
    assert len(codes) == 2 * FEW and "quota" not in codes


async def test_a_vm_that_does_much_is_stopped_with_words_about_itself_alone(
    world: World, autojump_clock: Clock
) -> None:
    agent, stick = world.driver.agents["work"], named("work", "sys-usb:sda")
    with pytest.raises(CallError) as refused:
        for _ in range(FEW):
            await agent.ask("device.attach", **stick)
            await agent.ask("device.detach", **stick)
    assert refused.value.code == "quota"
    assert refused.value.message.startswith("work has done so much lately")
    assert set(refused.value.data) == {"request"}
    await world.client.attach("vault", "sys-usb:sdb")


async def test_a_yes_that_a_member_gives_itself_is_paid_for(
    world: World, autojump_clock: Clock
) -> None:
    """Otherwise a question that it answers, and an attach that fails then, cost nothing."""
    world.policy.set("device.attach.block * @adminvm @anyvm ask\n" + ALLOW_DOM0)

    world.driver.agents["work"].on["import.start"] = fail
    async with world.client.prompter(yes("work")):
        stick = named("work", "sys-usb:sda")
        codes = [await outcome(world, ANNA, "device.attach", stick) for _ in range(2 * FEW)]
    assert set(codes) == {"failed", "quota"}
    assert lines(world) < 3 * FEW + 10


async def test_denials_below_the_throttles_bound_do_not_last_for_ever_either(
    world: World, autojump_clock: Clock
) -> None:
    """A program that stays just below it would fill the log with whole lines."""
    world.policy.set("device.attach.block * work work deny\n" + ALLOW_DOM0)
    before = lines(world)
    for _ in range(10 * FEW):
        with pytest.raises(CallError):
            await world.driver.agents["work"].ask("device.attach", **named("work", "sys-usb:sda"))
        await trio.sleep(10)
    world.state.audit_throttle.flush_all()
    minutes = 10 * FEW * 10 / 60
    assert lines(world) - before <= FEW + 3 * minutes + 8


async def test_a_prompter_that_says_no_costs_its_asker(world: World, autojump_clock: Clock) -> None:
    world.policy.set("device.attach.block * @adminvm @anyvm ask\n" + ALLOW_DOM0)
    async with world.client.prompter(NO):
        stick = named("work", "sys-usb:sda")
        codes = [await outcome(world, ANNA, "device.attach", stick) for _ in range(2 * FEW)]
    assert set(codes) == {"denied"}, "what is refused keeps from nothing"
    assert lines(world) < FEW + 10
