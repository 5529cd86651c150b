"""What a VM does over and over: written at first, and then counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_dom0.audit.throttle import THROTTLE_AFTER, THROTTLE_INTERVAL
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.fakes import ALLOW_DOM0, World, named


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    rule = "device.attach.block  +sys-usb:free*  work  work  allow\n"
    world = World(tmp_path, nursery, rule + ALLOW_DOM0)
    world.vm("sys-usb", "free1", "secret")
    world.vm("work")
    world.vm("vault")
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


async def refusal(world: World, asker: str, method: str, **params: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        await world.driver.agents[asker].ask(method, **params)
    return caught.value


async def test_refusals_of_a_vm_are_written_whole_and_then_summed_up(
    world: World, autojump_clock: Clock
) -> None:
    async def refused(times: int) -> str:
        for _ in range(times):
            error = await refusal(world, "work", "device.attach", **named("work", "sys-usb:secret"))
        return str(error.data["request"])

    await refused(100)
    whole = world.audit("decision") + world.audit("attach")
    assert len(whole) == THROTTLE_AFTER
    assert world.audit("summed_up") == []
    # Other VMs, and dom0's user, are written as ever.
    await refusal(world, "vault", "device.attach", **named("vault", "sys-usb:secret"))
    await world.client.attach("vault", "sys-usb:secret")
    assert len(world.audit("decision") + world.audit("attach")) == THROTTLE_AFTER + 4
    await trio.sleep(THROTTLE_INTERVAL)
    last = await refused(1)
    (summed,) = world.audit("summed_up")
    assert (summed["vm"], sum(summed["events"].values())) == ("work", 200 - THROTTLE_AFTER)
    # Successes are written, after the sum of the failures.
    await world.driver.agents["work"].ask("device.attach", **named("work", "sys-usb:free1"))
    assert world.audit("attach")[-1]["outcome"] == "attached"
    assert world.audit("summed_up")[-1]["events"] == {"decision": 2, "attach": 1}
    assert world.audit("summed_up")[-1]["first_request"] == last


async def test_after_an_interval_of_quiet_a_vm_is_heard_whole_again(
    world: World, autojump_clock: Clock
) -> None:
    for _ in range(3):
        for _ in range(THROTTLE_AFTER // 2):
            await refusal(world, "work", "device.attach", **named("work", "sys-usb:secret"))
        await trio.sleep(THROTTLE_INTERVAL)
    assert world.audit("summed_up") == []
    assert len(world.audit("decision") + world.audit("attach")) == 3 * THROTTLE_AFTER


async def test_what_was_counted_is_written_when_the_service_ends(
    world: World, autojump_clock: Clock
) -> None:
    for _ in range(THROTTLE_AFTER):
        await refusal(world, "work", "device.attach", **named("work", "sys-usb:secret"))
    world.state.audit_throttle.flush_all()
    world.state.audit_throttle.flush_all()
    (summed,) = world.audit("summed_up")
    assert sum(summed["events"].values()) == THROTTLE_AFTER


async def test_what_a_vm_names_at_random_makes_no_more_lines_than_one_name(
    world: World, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(200):
        await refusal(
            world, "work", "device.attach", **named(f"vm{number}", f"vm{number}:x{number}")
        )
        await refusal(world, "work", "device.detach", **named("vault", f"sys-usb:x{number}"))
    world.state.audit_throttle.flush_all()
    lines = (world.folder / "audit.jsonl").read_text().splitlines()
    assert len(lines) == THROTTLE_AFTER + 1
    assert (
        len([message for message in caplog.messages if "denied" in message]) <= THROTTLE_AFTER + 1
    )
