"""A lack of descriptors takes no disk away from its VM."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import needs_fuse
from .system import LocalSystem

pytestmark = needs_fuse

DEVICE = "sys-usb:stick.img"
NOFILE = resource.RLIMIT_NOFILE


@pytest.fixture(autouse=True)
def attached(system: LocalSystem) -> Iterator[Path]:
    """The folder of a source whose disk work has borrowed."""
    disk = system.plugged("sys-usb", "stick.img", 1 << 16)
    system.ok("qvm-device", "block", "attach", "work", DEVICE)
    yield disk.parent
    system.run("qvm-device", "block", "detach", "work")


def test_a_source_without_descriptors_for_a_look_keeps_what_it_lends(
    system: LocalSystem, attached: Path
) -> None:
    (agent,) = system.victim("agent:sys-usb")
    before = resource.prlimit(agent, NOFILE)
    resource.prlimit(agent, NOFILE, (3, before[1]))
    try:
        (attached / "another.img").write_bytes(b"x" * 512)
        system.wait_until(
            lambda: system.devices()[DEVICE].get("stale"), "a look that could not be made"
        )
        assert "cannot look at it now: Too many open files" in system.ok("qvm-block")
    finally:
        resource.prlimit(agent, NOFILE, before)
    system.wait_until(lambda: "sys-usb:another.img" in system.devices(), "the next look")
    assert system.attached_to(DEVICE) == ["work"]
    assert system.devices()[DEVICE]["stale"] is None
    (attached / "another.img").unlink()
    system.wait_until(lambda: "sys-usb:another.img" not in system.devices(), "its end")
