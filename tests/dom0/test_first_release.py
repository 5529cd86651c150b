"""An agent of the first release, in a VM that has not been started since dom0 was upgraded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_protocol.errors import CallError

from tests.dom0.fakes import FakeAgent, World

BOTH = {"attachment", "device_class", "device", "peer", "port", "read_only"}
KNOWN = {
    "export.start": BOTH,
    "export.stop": {"attachment"},
    "import.start": BOTH | {"backend", "frontend"},
    "import.stop": {"attachment"},
}
UNKNOWN = ("import.check", "report.prefer")


def of_first_release(agent: FakeAgent) -> None:
    """It refuses what it does not know, and says no more than it did."""

    def strictly(method: str) -> Any:
        async def heard(params: dict[str, Any]) -> None:
            if params.keys() != KNOWN.get(method):
                raise CallError("failed", f"parameters of {method}: {sorted(params)}")

        return heard

    async def report() -> None:
        assert agent.peer is not None
        agent.revision += 1
        states = {"exports": [*agent.exports.values()], "imports": [*agent.imports.values()]}
        said = {"revision": agent.revision, "devices": [*agent.devices.values()], **states}
        await agent.peer.call("agent.report", said, timeout=5)

    agent.on |= {method: strictly(method) for method in (*KNOWN, *UNKNOWN)}
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
