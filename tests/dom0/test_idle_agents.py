"""What dom0's service keeps for an agent that has reported and says nothing more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing
from pedos_dom0.access.callers import CallerKind
from pedos_dom0.connections.agent_session import AgentSession, SharedParts
from pedos_vchan.event_loop import EventLoop, Flusher, Sweeper, event_loop
from trio.abc import Clock

from tests.dom0.fakes import World
from tests.parts import parts


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery)
    world.vm("sys-usb", "stick")
    world.vm("work")
    world.dom0_agent()
    yield world
    await world.kill()


def tasks_of(name: str) -> list[trio.lowlevel.Task]:
    """The tasks of the service for the domain of this name."""
    return [task for task in _below(trio.lowlevel.current_root_task()) if task.name == name]


def _below(task: trio.lowlevel.Task | None) -> Iterator[trio.lowlevel.Task]:
    assert task is not None
    yield task
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _below(child)


def session_of(world: World, name: str) -> AgentSession:
    link = world.state.agents.get(name)
    assert link is not None
    return cast(AgentSession, link._peer)


async def test_an_agent_has_one_task_with_one_nursery(world: World) -> None:
    await world.start()
    (task,) = tasks_of("sys-usb")
    assert [nursery.child_tasks for nursery in task.child_nurseries] == [frozenset()]


async def test_no_deadline_is_watched_for_an_agent_that_has_reported(world: World) -> None:
    world.driver.agents["work"].greets = False
    await world.start()
    assert len(event_loop().sweeper._watched) == 1  # for the report of that one
    await world.driver.agents["work"].report()
    await trio.testing.wait_all_tasks_blocked()
    assert event_loop().sweeper._watched == set()


async def test_no_part_of_a_session_has_a_dict_of_attributes(world: World) -> None:
    await world.start()
    shared = (SharedParts, CallerKind, EventLoop, Sweeper, Flusher)
    kept = list(parts(session_of(world, "sys-usb"), *shared))
    assert "DeviceSet" in {type(part).__name__ for part in kept}
    assert [type(part) for part in kept if hasattr(part, "__dict__")] == []


async def test_sessions_share_their_tables_and_make_what_few_of_them_need_when_it_is_needed(
    world: World,
) -> None:
    await world.start()
    one, other = session_of(world, "sys-usb"), session_of(world, "work")
    assert one._server.handlers is other._server.handlers
    assert one._server._notices is other._server._notices
    assert one._pages._unfinished is None  # no report is in progress
    assert one.link._told is None
    await world.client.attach("work", "sys-usb:stick")
    assert one.link._told is not None and other.link._told is not None


# A VM that ends, whatever its task waits for


@pytest.mark.parametrize("wait", ["a channel", "the next attempt", "the end of a penalty"])
async def test_the_task_of_a_vm_ends_with_it_while_it_waits(
    world: World, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch, wait: str
) -> None:
    async def hang(_name: str, _domid: int) -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    agent = world.driver.agents["work"]
    if wait == "a channel":
        monkeypatch.setattr(world.driver, "connect_control", hang)
    elif wait == "the next attempt":
        agent.listens = False
    else:
        agent.handshake = ConnectionError("it is not a sealed ring")
    await world.start()
    before = trio.current_time()
    assert len(tasks_of("work")) == 1
    world.driver.die("work")
    for _ in range(5):
        await trio.lowlevel.checkpoint()
    assert (tasks_of("work"), trio.current_time()) == ([], before)


async def test_a_channel_that_is_made_as_its_vm_ends_is_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    made = trio.Event()
    connect = world.driver.connect_control

    async def late(name: str, domid: int) -> trio.abc.Stream:
        if name != "late":
            return await connect(name, domid)
        with trio.CancelScope(shield=True):
            await made.wait()
        return ours

    world.driver.add("late").nursery = world.nursery
    monkeypatch.setattr(world.driver, "connect_control", late)
    await world.start()
    world.driver.change("late", None, "Halted")
    await trio.testing.wait_all_tasks_blocked()
    made.set()
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.BrokenResourceError):
        await theirs.send_all(b"x")
    assert tasks_of("late") == []
    assert all(gone["reason"] != "the VM ended" for gone in world.audit("disconnected"))
