"""Nothing wakes up a widget in which nothing happens: no timer of Qt's, no deadline of trio's, and
no answer of the service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from pedos_widget.app import Widget
from pedos_widget.qt import QtWidgets

from tests.widget.fake_service import FakeService, device, vm
from tests.widget.idle import Scheduled, periodic_timers

# Until the time-outs of what was asked at the start are over, and what nothing happens in then.
START_S, IDLE_S = 120.0, 3600.0


async def until(is_so: Callable[[], bool]) -> None:
    """Looks again and again, because this clock would pass over what another thread does."""
    while not is_so():
        await trio.lowlevel.checkpoint()


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A session without buses; where its service would be."""
    for name in ("SESSION", "SYSTEM"):
        monkeypatch.setenv(f"DBUS_{name}_BUS_ADDRESS", f"unix:path={tmp_path}/no-{name}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PEDOS_SOCKET", str(tmp_path / "socket"))
    return tmp_path / "socket"


@pytest.mark.parametrize("has_service", [True, False])
async def test_an_idle_widget_is_woken_by_nothing(
    alone: Path, has_service: bool, qapp: QtWidgets.QApplication,
    autojump_clock: trio.testing.MockClock,
) -> None:  # fmt: skip
    widget = Widget(is_window=False)
    service = FakeService(alone)
    service.put_vms(vm("dom0", domid=0), vm("sys-usb"), vm("work"))
    service.put(device("sys-usb:sda"))
    async with trio.open_nursery() as nursery:
        if has_service:
            await nursery.start(service.serve)

        async def run() -> None:
            await widget.run(show=False)

        nursery.start_soon(run)
        await until(lambda: widget.controller._nursery is not None)  # a thread has read its file
        await until(lambda: widget.controller.view.connected == has_service)
        await trio.sleep(START_S)
        assert widget.controller.view.connected == has_service
        qapp.processEvents()  # what is drawn once for all changes of a turn
        assert periodic_timers() == [widget.tray._poll]
        widget.tray._until_missing.stop()
        widget.tray._give_up()  # so the window shows itself, and asks
        qapp.processEvents()
        await trio.sleep(START_S)
        assert periodic_timers() == []
        asked, scheduled = len(service.calls), Scheduled()
        trio.lowlevel.add_instrument(scheduled)
        await trio.sleep(IDLE_S)
        trio.lowlevel.remove_instrument(scheduled)
        assert len(service.calls) == asked
        assert scheduled.names == [trio.lowlevel.current_task().name]  # this test's own
        nursery.cancel_scope.cancel()
    widget.window.close()
    assert periodic_timers() == []
