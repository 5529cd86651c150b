"""A slow disk: only the requests whose writes it has wait for it."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio.testing
from pedos_dom0.audit.log import Audit
from pedos_dom0.policy import loader
from pedos_dom0.service import Config, run
from pedos_dom0.tables.store_file import StoreFile
from pedos_dom0.tasks.disk import in_thread
from pedos_host.unix import connect_unix
from pedos_protocol.errors import CallError
from pedos_vchan.peer import Peer, open_peer
from trio.abc import Clock

from tests.dom0.fakes import ALLOW_DOM0, FakeDriver, World, at_once, fails, filled_in, named
from tests.patience import PATIENCE

T = TypeVar("T")

# Of an attach with --persistent: its journal row, the commit, the assignment. Of a detach: the
# row's state, its end, the end of the assignment.
WRITES = (1, 2, 3)


class SlowDisk:
    """Holds one write until the test continues it. Like a thread, it is not abandoned by the
    waiting task."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.writes = 0
        self.held = trio.Event()
        self.go = trio.Event()

    async def __call__(self, work: Callable[[], T]) -> T:
        self.writes += 1
        if self.writes != self.number:
            return await at_once(work)
        self.held.set()
        with trio.CancelScope(shield=True):
            await self.go.wait()
        return work()


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[World]:
    world = World(tmp_path, nursery, policy=ALLOW_DOM0 + "device.list.* * @anyvm @anyvm allow\n")
    world.vm("sys-usb", "stick", "other")
    world.vm("work")
    world.vm("vault")
    world.dom0_agent()
    await world.start()
    yield world
    await world.kill()


async def others_are_served(world: World) -> None:
    """What does not write is answered without any time passing."""
    began = trio.current_time()
    assert len((await world.client.call("vm.list"))["vms"]) == 4
    assert len(await world.client.list()) == 2
    await world.client.call("service.status")
    vault = world.driver.agents["vault"]
    await vault.ask("device.list", device_class="block", vms=["sys-usb"])
    with fails("denied"):
        await vault.ask("device.attach", **named("vault", "sys-usb:other"))
    assert trio.current_time() == began


@pytest.mark.parametrize("number", WRITES)
async def test_a_slow_disk_delays_no_other_vm_s_call(
    world: World, autojump_clock: Clock, number: int
) -> None:
    async def attach() -> None:
        await world.client.attach("work", "sys-usb:stick", persistent=True)

    async def detach() -> None:
        await world.client.detach("work", "sys-usb:stick")

    for operation in (attach, detach):
        disk = world.disk = SlowDisk(number)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(operation)
            await disk.held.wait()
            await others_are_served(world)
            disk.go.set()
    world.assert_nothing_left()


class HeldThreads:
    """The service's own threads begin work on the disk, which is held until the test continues it.

    Work in the event loop instead would hold the loop, and this reports that.
    """

    def __init__(self) -> None:
        self.begun: set[str] = set()
        self.go = threading.Event()
        self._loop = threading.current_thread()

    def held(self, what: str, work: Callable[..., T]) -> Callable[..., T]:
        def hold(*arguments: Any) -> T:
            if not self.go.is_set():
                assert threading.current_thread() is not self._loop, f"{what}: in the event loop"
                self.begun.add(what)
                assert self.go.wait(20)
            return work(*arguments)

        return hold


async def test_the_whole_service_answers_while_its_threads_wait_for_the_disk(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("policy.d", "vms.d"):
        (tmp_path / folder).mkdir()
    (tmp_path / "policy.d" / "30-test.policy").write_text(ALLOW_DOM0)
    driver = FakeDriver()
    for name in ("sys-usb", "work"):
        driver.add(name).nursery = nursery
    driver.agents["sys-usb"].plug("stick")
    config = Config(
        socket=tmp_path / "dom0.sock",
        state=tmp_path / "state",
        policy=[tmp_path / "policy.d"],
        vms=tmp_path / "vms.d",
    )
    state = await nursery.start(run, config, driver)
    while len(list(state.agents)) < 2:
        await trio.testing.wait_all_tasks_blocked()
    # It has none here, and a list of the VMs would wait for it as long as a request may take.
    state.agents.unexpect("dom0")
    held = HeldThreads()
    for owner, name in ((StoreFile, "_run"), (Audit, "append")):
        monkeypatch.setattr(owner, name, held.held(name, getattr(owner, name)))
    monkeypatch.setattr(loader, "_read_in_thread", held.held("policy", loader._read_in_thread))
    answered = []

    async def attach(peer: Peer) -> None:
        asked = filled_in("device.attach", named("work", "sys-usb:stick"))
        await peer.call("device.attach", asked, timeout=PATIENCE)
        answered.append("attach")

    async with (
        open_peer(await connect_unix(config.socket), program="test", handlers={}) as peer,
        trio.open_nursery() as inner,
    ):
        inner.start_soon(attach, peer)
        (tmp_path / "policy.d" / "40-new.policy").write_text(ALLOW_DOM0)
        with trio.fail_after(PATIENCE):
            while held.begun != {"_run", "append", "policy"}:
                await peer.call("vm.list", {}, timeout=PATIENCE)
                await peer.call("service.status", {}, timeout=PATIENCE)
        assert answered == []
        held.go.set()
    assert answered == ["attach"]


@pytest.mark.alone
async def test_a_write_that_takes_a_second_delays_no_other_vms_call_by_more_than_50_ms(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock on the wall, and in the threads and with the file that the service has."""
    held = HeldThreads()
    monkeypatch.setattr(StoreFile, "_run", held.held("write", StoreFile._run))
    world.disk = in_thread
    vault = world.driver.agents["vault"]

    async def list_own() -> None:
        await vault.ask("device.list", device_class="block")

    async def ask_in_vain() -> None:
        with fails("denied"):
            await vault.ask("device.attach", **named("vault", "sys-usb:other"))

    async def list_all() -> None:
        await world.client.list()

    delays: dict[Callable[[], Any], list[float]] = {list_own: [], ask_in_vain: [], list_all: []}
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(world.client.attach, "work", "sys-usb:stick", persistent=True)
            )
            while not held.begun:
                await trio.testing.wait_all_tasks_blocked()
            began = time.monotonic()
            while time.monotonic() - began < 1:
                for call, took in delays.items():
                    asked = time.monotonic()
                    await call()
                    took.append(time.monotonic() - asked)
            assert [lease.state for lease in world.state.leases] == ["pending"]
            held.go.set()
    finally:
        held.go.set()
    assert [lease.state for lease in world.state.leases] == ["attached"]
    for call, took in delays.items():
        # Most of them: whatever else a machine does, it does not do each time.
        assert statistics.median(took) < 0.05, (call.__name__, len(took))


@pytest.mark.parametrize("number", WRITES[:2])
async def test_a_device_that_is_unplugged_while_the_disk_works_is_not_attached(
    world: World, autojump_clock: Clock, number: int
) -> None:
    async def attach() -> None:
        with fails("failed", "the device was unplugged"):
            await world.client.attach("work", "sys-usb:stick")

    disk = world.disk = SlowDisk(number)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach)
        await disk.held.wait()
        await world.driver.agents["sys-usb"].unplug("stick")
        disk.go.set()
    world.assert_nothing_left()


async def test_a_device_is_not_assigned_when_it_was_detached_before_the_disk_had_it(
    world: World, autojump_clock: Clock
) -> None:
    """The assignment waits for its turn; the detach of both comes first."""

    async def attach() -> None:
        with fails("failed", "was detached from work meanwhile"):
            await world.client.attach("work", "sys-usb:stick", persistent=True)

    await world.client.attach("vault", "sys-usb:other")
    committed = trio.Event()
    go_on = trio.Event()

    async def reach(step: str) -> None:
        if step == "attach.committed":
            committed.set()
            await go_on.wait()

    world.reach = reach
    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach)
        await committed.wait()
        await world.client.detach("work", "sys-usb:stick")
        go_on.set()
    assert world.state.store.assignments() == []
    await world.client.detach("vault", "sys-usb:other")
    world.assert_nothing_left()


@pytest.mark.parametrize("number", WRITES)
async def test_a_service_that_ends_while_the_disk_works_leaves_nothing_half_done(
    world: World, autojump_clock: Clock, number: int
) -> None:
    disk = world.disk = SlowDisk(number)

    async def attach() -> None:
        with pytest.raises((CallError, trio.BrokenResourceError)):
            await world.client.attach("work", "sys-usb:stick", persistent=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach)
        await disk.held.wait()
        nursery.start_soon(world.kill)
        await trio.testing.wait_all_tasks_blocked()
        disk.go.set()
    await world.start()
    await trio.testing.wait_all_tasks_blocked()
    attached = [lease.vm for lease in world.state.leases]
    assert attached == ([] if number == 1 else ["work"])  # the commit is on the disk
    assert len(world.state.store.assignments()) == (number == 3)
    for agent in ("sys-usb", "work"):
        held = world.driver.agents[agent]
        assert len(held.exports) + len(held.imports) == len(attached)


async def test_a_write_waits_for_the_one_before_it_and_then_is_done(
    world: World, autojump_clock: Clock
) -> None:
    disk = world.disk = SlowDisk(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.client.attach, "work", "sys-usb:stick")
        await disk.held.wait()
        nursery.start_soon(world.client.attach, "vault", "sys-usb:other")
        await trio.testing.wait_all_tasks_blocked()
        # Granted, so that no one else gets it; but no step is taken before it is written down.
        assert sorted(lease.vm for lease in world.state.leases) == ["vault", "work"]
        assert world.driver.agents["sys-usb"].calls == []
        disk.go.set()
    assert sorted(lease.vm for lease in world.state.store.journal()) == ["vault", "work"]
