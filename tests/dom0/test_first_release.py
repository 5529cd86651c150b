"""Agents and clients of the first release, which speak version 1 of the protocol: a VM that has not
been started since dom0 was upgraded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_protocol.errors import CallError
from pedos_protocol.messages import SCHEMA

from tests.dom0.fakes import ALLOW_DOM0, FakeAgent, World
from tests.protocol.version_1 import MESSAGES, SaysVersion1, wrong_in_1

SINCE_THEN = ("import.check", "report.prefer")


def of_first_release(agent: FakeAgent) -> None:
    """It refuses what it does not know, and says no more than it did."""
    agent.says_version_1 = True

    def strictly(method: str) -> Any:
        async def heard(params: dict[str, Any]) -> None:
            if (wrong := wrong_in_1(MESSAGES[method]["params"], params)) is not None:
                raise CallError("failed", f"parameters of {method}: {wrong}")

        return heard

    async def report() -> None:
        assert agent.peer is not None
        agent.revision += 1
        states = {"exports": [*agent.exports.values()], "imports": [*agent.imports.values()]}
        said = {"revision": agent.revision, "devices": [*agent.devices.values()], **states}
        said = SCHEMA.params_in(1, "agent.report", said)
        await agent.peer.call("agent.report", said, timeout=5)

    methods = ("export.start", "export.stop", "import.start", "import.stop")
    agent.on |= {method: strictly(method) for method in methods}
    agent.report = report  # type: ignore[method-assign]


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery)
    world.vm("sys-usb", "stick")
    world.vm("work")
    yield world
    await world.kill()


@pytest.mark.parametrize("old", [("sys-usb",), ("work",), ("sys-usb", "work")])
async def test_it_lends_and_borrows_and_gives_back(world: World, old: tuple[str, ...]) -> None:
    for name in old:
        of_first_release(world.driver.agents[name])
    await world.start()
    await world.client.attach("work", "sys-usb:stick")
    assert len(world.driver.agents["work"].imports) == 1
    await world.client.detach("work", "sys-usb:stick")
    for name in ("sys-usb", "work"):
        agent = world.driver.agents[name]
        assert (agent.imports, agent.exports) == ({}, {})


@pytest.mark.parametrize("old", [("sys-usb",), ("work",), ("sys-usb", "work")])
async def test_an_upgrade_of_the_service_keeps_what_it_has(
    world: World, old: tuple[str, ...]
) -> None:
    for name in old:
        of_first_release(world.driver.agents[name])
    await world.start()
    await world.client.attach("work", "sys-usb:stick")
    await world.restart()
    assert len(world.driver.agents["work"].imports) == 1
    assert len(world.driver.agents["sys-usb"].exports) == 1


@pytest.mark.parametrize("old", [("sys-usb",), ("work",), ("sys-usb", "work")])
async def test_what_came_later_is_not_asked_of_it(world: World, old: tuple[str, ...]) -> None:
    for name in old:
        of_first_release(world.driver.agents[name])
    await world.start()
    await world.client.attach("work", "sys-usb:stick")
    if "work" in old:
        # Whether it uses the device cannot be asked.
        with pytest.raises(CallError):
            await world.client.call("vm.shutdown", vm="work")
    await world.client.call("vm.shutdown", vm="work", force=True)
    for name in old:
        assert not set(SINCE_THEN) & set(world.driver.agents[name].calls)


async def test_its_vms_programs_get_answers_that_they_know(world: World) -> None:
    agent = world.driver.agents["sys-usb"]
    of_first_release(agent)
    world.policy.set(ALLOW_DOM0 + "device.list.*  *  @anyvm  @anyvm  allow\n")
    await world.start()
    answer = await agent.ask("device.list", device_class="block")
    assert [device["device"] for device in answer["devices"]] == ["stick"]
    assert wrong_in_1(MESSAGES["device.list"]["result"], answer) is None


def older_ends() -> tuple[trio.abc.Stream, trio.abc.Stream]:
    ours, theirs = trio.testing.memory_stream_pair()
    return SaysVersion1(ours), theirs


async def test_a_client_of_the_first_release_gets_answers_that_it_knows(world: World) -> None:
    await world.start()
    world.client.streams = older_ends
    device = {"device_class": "block", "backend": "sys-usb", "device": "stick", "vm": "work"}
    for method, params in (
        ("device.list", {"device_class": "block"}),
        ("device.attach", device),
        ("device.explain", {**device, "verb": "attach", "source": "dom0"}),
        ("device.detach", device),
        ("service.status", {}),
    ):
        answer = await world.client.call(method, **params)
        assert wrong_in_1(MESSAGES[method]["result"], answer) is None, method
