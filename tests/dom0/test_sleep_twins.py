"""Two VMs had devices of one identity before the sleep: whatever is killed or fails after it,
none gets the other one's."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio
from pedos_dom0.tables.store import StoreError, Suspended
from pedos_protocol.errors import CallError
from trio.abc import Clock

from tests.dom0.fakes import World
from tests.dom0.test_sleep import (
    OTHER,
    SERIAL,
    STICK,
    attach,
    has,
    resume,
    rows,
    suspend,
    usb,
    world,
)

__all__ = ["world"]  # the fixture


async def two_sleeps(world: World) -> None:
    """Two rows that wait for one identity at two ports, of devices that were never there together;
    neither of the two is there now, and the VM of the first has ended."""
    await attach(world)
    await suspend(world)
    del usb(world).devices["1-2"]
    usb(world).plug("1-3", "usb", identity=SERIAL, instance="9")
    await usb(world).report()
    await attach(world, "vault", OTHER)
    await suspend(world)
    del usb(world).devices["1-3"]
    await usb(world).report()
    world.driver.die("work")
    assert rows(world) == [STICK, OTHER]


async def assert_no_vm_gets_it(world: World) -> None:
    """It is the device of the VM that has ended, at another port."""
    usb(world).plug("3-1", "usb", identity=SERIAL, instance="10")
    await usb(world).report()
    assert OTHER in rows(world)
    error, *_ = (error for _, vm, error, _ in await resume(world) if vm == "vault")
    assert "not at its port, and several devices had the identity" in error[1]
    assert has(world) == []


@pytest.mark.parametrize("puts", [1, 2, 3, 4])
async def test_a_service_that_is_killed_while_it_notes_rows_loses_no_twin(
    world: World, autojump_clock: Clock, puts: int
) -> None:
    await two_sleeps(world)
    put, done = world.state.store.suspended_put, []

    async def killed(row: Suspended) -> None:
        await put(row)
        done.append(row)
        if len(done) == puts:
            assert world._scope is not None
            world._scope.cancel()
            await trio.sleep_forever()

    world.state.store.suspended_put = killed  # type: ignore[method-assign]
    with pytest.raises((CallError, trio.BrokenResourceError)):
        await resume(world)
    assert len(done) == puts
    await world.restart()
    await trio.sleep(60)
    await assert_no_vm_gets_it(world)


async def test_neither_does_the_next_service_which_finishes_only_what_was_begun(
    world: World, autojump_clock: Clock
) -> None:
    """A version that noted no twins beforehand may have been killed."""
    await two_sleeps(world)
    first, _ = world.state.store.suspended()
    await world.state.store.suspended_put(attrs.evolve(first, begun=True))
    await world.restart()
    await trio.sleep(60)
    assert rows(world) == [OTHER]
    await assert_no_vm_gets_it(world)


def fail_to_note(world: World, key: str) -> None:
    """The disk is full as long as this store is open, for the row of one device."""
    file = world.state.store._file
    put = file.suspended_put

    def full(row: Suspended) -> None:
        if str(row.key) == key:
            raise StoreError(Path("dom0.sqlite"), "no space left on device", "")
        put(row)

    file.suspended_put = full  # type: ignore[method-assign]


async def test_a_row_whose_twin_cannot_be_noted_stays(world: World, autojump_clock: Clock) -> None:
    await two_sleeps(world)
    fail_to_note(world, OTHER)
    of_work, of_vault = sorted(await resume(world))
    assert of_work == (
        STICK,
        "work",
        ("failed", "it could not be noted that another VM's device has its identity"),
        True,
    )
    assert of_vault[2][0] == "not_found"
    assert rows(world) == [STICK, OTHER]
    await world.restart()
    await assert_no_vm_gets_it(world)


async def test_neither_does_the_next_service_finish_it(
    world: World,
    autojump_clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await two_sleeps(world)
    first, _ = world.state.store.suspended()
    await world.state.store.suspended_put(attrs.evolve(first, begun=True))
    await world.kill()
    start = type(world)._store

    def store(self: World) -> object:
        made = start(self)
        put = made._file.suspended_put

        def full(row: Suspended) -> None:
            if str(row.key) == OTHER:
                raise StoreError(Path("dom0.sqlite"), "no space left on device", "")
            put(row)

        made._file.suspended_put = full  # type: ignore[method-assign]
        return made

    with monkeypatch.context() as patched:
        patched.setattr(type(world), "_store", store)
        await world.start()
        await trio.sleep(60)
    assert rows(world) == [STICK, OTHER]
    assert f"{STICK} was not attached to work again after the sleep: it could not be" in caplog.text
    await world.restart()
    await assert_no_vm_gets_it(world)
