"""Worlds that several files of tests use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.dom0.fake_carrier import FakeCarrier, let_carry
from tests.dom0.fakes import World


@pytest.fixture
def carrier(monkeypatch: pytest.MonkeyPatch) -> FakeCarrier:
    """The hypervisor carries the device, in every world of this test."""
    carrier = FakeCarrier()
    let_carry(carrier, monkeypatch)
    return carrier


@pytest.fixture
async def world_with_a_stick(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    """sys-usb has one device to lend; work and vault run, and one VM is halted."""
    world = World(tmp_path, nursery)
    world.vm("sys-usb", "stick")
    world.vm("work")
    world.vm("vault")
    world.vm("halted", running=False)
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


@pytest.fixture
async def local(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    """Local mode: the agents carry the data."""
    world = World(tmp_path, nursery)
    world.vm("sys-usb", "sda", "sdb")
    world.vm("work")
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


@pytest.fixture
async def carried(
    tmp_path: Path, nursery: trio.Nursery, carrier: FakeCarrier
) -> AsyncIterator[World]:
    """The hypervisor carries the devices: sys-usb has two to lend, work runs, vault does not."""
    world = World(tmp_path, nursery)
    world.vm("sys-usb", "sda", "sdb")
    world.vm("work")
    world.vm("vault", running=False)
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()
