"""One measurement of the widget in a process of its own, with one binding to Qt:

    python -m benchmarks.widget_parts opening|posted|growth PySide6|PyQt6

It prints what it has measured as JSON. No window appears: Qt draws into memory.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import trio

#: As many of each as a large machine has.
DEVICES, VMS = 200, 50
#: Openings, of which the quickest counts.
ROUNDS = 9
#: What once aborted one release of one binding, and no shorter run did.
POSTED = 100_000
#: Changes of devices, after those in which caches fill.
EVENTS, WARM_UP = 10_000, 2_000
# Devices that come and go: more than one, so that something is always shown.
CHANGING = 20


def opening() -> dict[str, float]:
    """Milliseconds of the processor from the click until a menu is drawn: Qt's own with one row,
    ours with 200 devices, and a submenu of 50 VMs."""
    from pedos_widget.menu.devices_menu import Menu
    from pedos_widget.qt import QtCore, QtWidgets

    from tests.widget.recording_controller import RecordingController, device_row, vm_row

    application = QtWidgets.QApplication(sys.argv[:1])
    vms = tuple(vm_row(f"vm{number}") for number in range(VMS))
    empty = QtWidgets.QMenu()
    empty.addAction("Nothing")
    full = Menu(
        RecordingController(*(device_row(f"sda{n}", vms=vms) for n in range(1, 1 + DEVICES)))
    )
    first = next(iter(full.entries()), None)

    def quickest(menu: QtWidgets.QMenu) -> float:
        least = float("inf")
        for _ in range(ROUNDS):
            before = time.process_time()
            menu.popup(QtCore.QPoint(0, 0))
            application.processEvents()
            least = min(least, time.process_time() - before)
            menu.close()
            application.processEvents()
        return least * 1e3

    before = time.process_time()
    full.popup(QtCore.QPoint(0, 0))
    application.processEvents()
    at_first = (time.process_time() - before) * 1e3
    full.close()
    found = {"empty": quickest(empty), "at_first": at_first, "full": quickest(full)}
    first = next(entry for entry in full.entries() if entry.menu() is not None)
    found["submenu"] = quickest(first.menu())
    return found


def posted() -> dict[str, float]:
    """Seconds of the processor for steps of trio that other threads ask for: each is an event that
    is posted to Qt."""
    from pedos_widget import guest
    from pedos_widget.qt import QtWidgets

    application = QtWidgets.QApplication(sys.argv[:1])
    count = 0

    def step() -> None:
        nonlocal count
        count += 1

    async def main() -> None:
        token = trio.lowlevel.current_trio_token()

        def ask() -> None:
            for _ in range(POSTED // 2):
                token.run_sync_soon(step)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, ask)
            for _ in range(POSTED // 2):
                await trio.lowlevel.checkpoint()
        while (
            count < POSTED // 2
        ):  # what came in one go is done by now, but that is trio's business
            await trio.lowlevel.checkpoint()

    before = time.process_time()
    guest.run(application, main)
    return {"seconds": time.process_time() - before, "steps": count}


def growth() -> dict[str, float]:
    """KiB by which the process grows over 10,000 changes of devices, from a service to the menu."""
    from pedos_widget import guest
    from pedos_widget.controller import Controller
    from pedos_widget.menu.devices_menu import Menu
    from pedos_widget.qt import QtCore, QtWidgets

    from tests.widget.fake_service import FakeService, device, vm

    application = QtWidgets.QApplication(sys.argv[:1])
    found: dict[str, float] = {}

    async def main() -> None:
        with tempfile.TemporaryDirectory(prefix="pedos-bench-") as folder:
            service = FakeService(Path(folder) / "socket")
            service.put_vms(vm("dom0", domid=0), vm("sys-usb"), vm("work"))
            controller = Controller(service.path)
            menu = Menu(controller)
            changed = trio.Event()

            def on_change() -> None:
                nonlocal changed
                changed.set()
                changed = trio.Event()

            controller.on_change(on_change)
            async with trio.open_nursery() as nursery:
                await nursery.start(service.serve)
                nursery.start_soon(controller.run)
                while not controller.view.connected:
                    await changed.wait()
                menu.popup_at(QtCore.QPoint(0, 0))
                for number in range((WARM_UP + EVENTS) // CHANGING):
                    if number == WARM_UP // CHANGING:
                        found["before"] = resident_kib()
                    awaited = changed
                    for disk in range(CHANGING):
                        name = f"sys-usb:sd{chr(97 + disk)}"
                        service.put(device(name, description=f"Stick {number}"))
                    with trio.move_on_after(1):
                        await awaited.wait()
                    _ = controller.view
                found["after"] = resident_kib()
                nursery.cancel_scope.cancel()

    guest.run(application, main)
    return found


def resident_kib() -> float:
    """The memory of this process that is in use, without what is shared with others."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return float(line.split()[1])
    raise ValueError("no Private_Dirty")


PARTS = {"opening": opening, "posted": posted, "growth": growth}


def main() -> None:
    part, binding = sys.argv[1:]
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    os.environ["LANGUAGE"] = "C"
    if binding == "PyQt6":
        sys.modules["PySide6"] = None  # type: ignore[assignment]  # not to be imported
    from pedos_widget.qt import BINDING

    if binding != BINDING:
        sys.exit(f"{binding} is not installed; {BINDING} is")
    print(json.dumps(PARTS[part]()))


if __name__ == "__main__":
    main()
