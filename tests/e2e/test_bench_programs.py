"""The programs with which tests/xen asks dom0's service work here, too.

They speak with it by the command line's own modules, and only a booted Xen would notice otherwise.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .conftest import needs_fuse
from .system import LocalSystem

pytestmark = needs_fuse

INSIDE = Path(__file__).parents[1] / "xen" / "inside"


def run(system: LocalSystem, name: str, *words: str) -> str:
    program = (
        f"import runpy, sys; sys.path.insert(0, {str(INSIDE)!r}); import {name}; {name}.main()"
    )
    return system.ok(sys.executable, "-c", program, *words)


def test_the_benchs_look_and_its_rounds(system: LocalSystem) -> None:
    system.plugged("sys-usb", "bench.img", 1 << 16)
    device = "sys-usb:bench.img"
    run(
        system,
        "look",
        "until",
        "agent work",
        f"listed {device}",
        f"free {device}",
        f"idle {device}",
    )
    run(system, "look", "until", f"listed {device} block", f"gone {device} usb")
    assert device in json.loads(run(system, "look", "devices"))
    assert device not in json.loads(run(system, "look", "devices", "usb"))
    said = json.loads(run(system, "rounds", "2", "work", *device.split(":")))
    assert said["rounds"] == 2
    assert system.attached_to(device) == []
