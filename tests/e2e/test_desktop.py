"""A user of dom0's desktop works with the ordinary commands, over the second socket."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from .conftest import needs_fuse
from .system import LocalSystem

pytestmark = needs_fuse

DEVICE = "sys-usb:stick.img"
DONE, FAILED, USAGE, DENIED = range(4)


@pytest.fixture(autouse=True)
def disk(system: LocalSystem) -> Path:
    return system.plugged("sys-usb", "stick.img", 1 << 16)


def test_a_member_lists_attaches_and_detaches_and_the_log_names_the_user(
    system: LocalSystem,
) -> None:
    at = ("qvm-device", "block")
    assert DEVICE in system.ok(*at, "list", vm="desktop")
    assert "xvdi" in system.ok(*at, "attach", "work", DEVICE, vm="desktop")
    assert "work (attached" in system.ok("qvm-block")
    refused = system.run(*at, "detach", "--force", "work", DEVICE, vm="desktop")
    assert (refused.returncode, "only root in dom0" in refused.stderr) == (USAGE, True)
    system.ok(*at, "detach", "work", DEVICE, vm="desktop")
    lines = (system.folder / "state" / "audit.jsonl").read_text().splitlines()
    who = f"dom0 (uid {os.getuid()})"
    attach = [json.loads(line) for line in lines if '"event": "attach"' in line][-1]
    assert (attach["caller"], attach["outcome"]) == (who, "attached")
    # The log of the same system is found from that socket, too.
    assert who in system.ok("qvm-audit", vm="desktop")


def test_a_member_is_told_what_root_alone_may_do(system: LocalSystem) -> None:
    for command in (("qvm-start", "work"), ("qvm-shutdown", "work")):
        done = system.run(*command, vm="desktop")
        assert done.returncode == FAILED
        assert "for root alone" in done.stderr
        assert "try:  the same command with sudo" in done.stderr
    denied = system.run("qvm-device", "block", "attach", "vault", DEVICE, vm="desktop")
    assert (denied.returncode, "50-local.policy:" in denied.stderr) == (DENIED, True)
    assert "in force" in system.ok("qvm-policy", "status", vm="desktop")
