"""The tray widget: what opening its menu takes, that it grows by nothing and does nothing while
nothing happens, and that each binding to Qt takes many events."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.e2e.system import LocalSystem, wait_until
from tests.widget.e2e.desktop import Desktop, lacking

from .row import Row

BINDINGS = ("PySide6", "PyQt6")
PART_S = 600  # seconds until a part that hangs is ended: each takes a few
IDLE_S = 60
# Until the time-outs of what is asked at the start are over, and Qt has thrown away the pictures
# that it keeps: after 30 s it begins to, and looks three more times, 80 s in all.
SETTLE_S = 100
# Milliseconds of the processor: nothing wakes it up.
IDLE_MS = 0.0
MORE_MS = 50.0  # beside twice the time of a menu with one row
# KiB over 10,000 events. An object of 64 bytes that each of them left behind would be 625.
GROWTH_KIB = 512.0


def _part(part: str, binding: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.widget_parts", part, binding],
        capture_output=True, text=True, timeout=PART_S, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"{part} with {binding} ended with {done.returncode}: {done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _processor_ms(pid: int) -> float:
    """What all threads of a process have used."""
    spent = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e6


def _idle_ms() -> float:
    """The processor's time in a minute of the program in the tray of a real desktop, with a real
    system in which nothing happens."""
    with tempfile.TemporaryDirectory(prefix="pedos-bench-") as folder:
        system = LocalSystem(Path(folder) / "system")
        system.init()
        system.up()
        try:
            (Path(folder) / "desktop").mkdir()
            with Desktop(Path(folder) / "desktop") as desktop:
                socket = system.environment()["PEDOS_SOCKET"]
                program = str(Path(sys.executable).parent / "pedos-widget")
                pid = desktop.start(program, more={"PEDOS_SOCKET": socket})
                wait_until(desktop.tray_items, "the widget is in the tray")
                time.sleep(SETTLE_S)
                before = _processor_ms(pid)
                time.sleep(IDLE_S)
                return _processor_ms(pid) - before
        finally:
            system.kill()


def measure() -> list[Row]:
    rows = []
    for binding in BINDINGS:
        found = _part("opening", binding)
        limit = 2 * found["empty"] + MORE_MS
        rows.append(
            Row(
                "widget",
                f"opening 200 devices, 50 VMs ({binding})",
                found["full"],
                limit,
                "ms",
                found,
            )
        )
        rows.append(
            Row("widget", f"opening a menu of one row ({binding})", found["empty"], None, "ms")
        )
        rows.append(Row("widget", f"opening 50 VMs ({binding})", found["submenu"], None, "ms"))
        found = _part("posted", binding)
        rows.append(
            Row("widget", f"100,000 posted events ({binding})", found["seconds"], None, "s")
        )
        found = _part("growth", binding)
        grown = found["after"] - found["before"]
        rows.append(
            Row("widget", f"growth over 10,000 events ({binding})", grown, GROWTH_KIB, "KiB", found)
        )
    if missing := lacking():
        raise RuntimeError(f"no virtual desktop: {', '.join(missing)} (tools/setup desktop)")
    rows.append(Row("widget", "the processor's time in 60 s of idling", _idle_ms(), IDLE_MS, "ms"))
    return rows
