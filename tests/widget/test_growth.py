"""Ten thousand changes and clicks leave nothing behind."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pedos_widget.controller
import pytest

from tests.widget.fake_service import device, vm
from tests.widget.widget_system import System, running

EVENTS = 10_000
ROUND = 500


async def some_changes(system: System, first: int) -> None:
    """ROUND changes: other devices, VMs, clicks and connections, and at the end as in the
    beginning."""
    service = system.service
    for number in range(first, first + ROUND // 5):
        name = f"sys-usb:d{number}"  # ids that were never there before
        is_clicked = number % 10 == 0  # always the same device, so that no more are remembered
        service.put(device(name, identity="id-clicked" if is_clicked else f"id-{number}"))
        service.put_vms(vm(f"vm{number}"))
        await system.until(lambda name=name: system.row(name))
        row = system.row(name)
        assert row is not None
        if is_clicked:
            await system.vms(name)
            system.controller.attach(row.ref, "work")
            system.controller.attach(row.ref, "work")
            await system.until(lambda: system.results[-1].state == "done")
        service.attach(name, "vault")
        service.take(name)
        service.take_vm(f"vm{number}")
        await system.until(lambda name=name: system.row(name) is None)
        service.forget()
    service.drop()
    await system.until(lambda: not system.controller.view.connected)
    await system.connected()
    system.results.clear()
    system.happened.clear()
    service.calls.clear()


async def test_nothing_grows_over_ten_thousand_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pedos_widget.controller, "PACE_S", 0)
    async with running(tmp_path) as system:
        await some_changes(system, 0)
        await some_changes(system, ROUND)
        gc.collect()
        before = sys.getallocatedblocks()
        for first in range(2 * ROUND, EVENTS, ROUND):
            await some_changes(system, first)
        gc.collect()
        grown = sys.getallocatedblocks() - before
        known = system.controller._known
        assert len(known.looks) <= 1
        assert len(known.works._expected) <= 1
        assert len(known.picture.devices) == 1
        assert len(known.picture._model.known) == 6
        # Objects. Tables that grow and shrink make the count swing by 3,000 however many events
        # there are: it was the same after 5,000 and after 40,000.
        assert grown < EVENTS // 3
