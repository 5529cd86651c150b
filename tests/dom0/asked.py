"""Shared by the tests of `ask`: the rules, the VMs, and what a denial must leave behind."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import trio

from tests.dom0.fakes import Params, World, fails

ASK = """
device.attach.block  +sys-usb:keys   @adminvm  @anyvm  ask  default_target=work
device.attach.block  +sys-usb:ro     @adminvm  work    ask  read-only=yes
device.attach.block  +sys-usb:stick  work      work    ask
device.detach.block  +sys-usb:stick  work      work    ask
device.assign.block  +sys-usb:keys   @adminvm  work    ask
device.*.block       *               @adminvm  @anyvm  allow
"""


async def asking_world(folder: Path, nursery: trio.Nursery) -> World:
    world = World(folder, nursery, ASK)
    world.vm("sys-usb", "keys", "ro", "stick")
    world.vm("work")
    world.vm("vault")
    world.vm("halted", running=False)
    world.dom0_agent()
    await world.start()
    return world


def answered(world: World) -> Params:
    """The last question's end, as the audit log has it."""
    return world.audit("answered")[-1]


@contextlib.contextmanager
def denied(world: World, reason: str) -> Any:
    """The block is denied, the audit log has the reason, and nothing is left over."""
    with fails("denied"):
        yield
    assert (answered(world)["verdict"], answered(world)["target"]) == ("deny", None)
    assert reason in answered(world)["reason"]
    assert answered(world)["request"] == world.audit("decision")[-1]["request"]
    world.assert_nothing_left()
    assert world.api.prompters.prompts.standing() == 0
