"""qvm-device watch, with real processes: in dom0, in a VM, and across a restart of the service."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .conftest import needs_fuse
from .system import PATIENCE_S, LocalSystem

pytestmark = needs_fuse

DEVICE = "sys-usb:stick.img"
INTERRUPTED = 130


@pytest.fixture(autouse=True)
def disk(system: LocalSystem) -> Iterator[None]:
    system.plugged("sys-usb", "stick.img", 1 << 16)
    yield
    system.detach_all("work", "vault")


class Events:
    """The events of a command that watches, each waited for."""

    def __init__(self, command: subprocess.Popen[str]) -> None:
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=[command], daemon=True).start()

    def _read(self, command: subprocess.Popen[str]) -> None:
        assert command.stdout is not None
        for line in command.stdout:
            self._lines.put(line)

    def until(self, is_it: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """All events up to the one that is waited for."""
        events: list[dict[str, Any]] = []
        while not events or not is_it(events[-1]):
            events.append(json.loads(self._lines.get(timeout=PATIENCE_S)))
        return events


def is_ready(event: dict[str, Any]) -> bool:
    return bool(event["event"] == "ready")


def attached(event: dict[str, Any]) -> list[str]:
    return [to["vm"] for to in event.get("device", {}).get("attachments", [])]


def test_dom0_and_the_vm_see_a_device_come_and_go_and_others_do_not(system: LocalSystem) -> None:
    words = ("qvm-device", "watch", "block", "--json")
    with (
        system.started(*words) as in_dom0,
        system.started(*words, vm="work") as in_work,
        system.started(*words, vm="vault") as in_vault,
    ):
        dom0, work, vault = (Events(each) for each in (in_dom0, in_work, in_vault))
        names = [
            f"{event['device']['backend']}:{event['device']['device']}"
            for event in dom0.until(is_ready)
            if "device" in event
        ]
        assert DEVICE in names
        work.until(is_ready)
        assert [event["event"] for event in vault.until(is_ready)] == ["ready"]
        system.ok("qvm-device", "block", "attach", "work", DEVICE)
        dom0.until(lambda event: attached(event) == ["work"])
        (added,) = work.until(lambda event: attached(event) == ["work"])
        assert added["event"] == "device.added"
        system.ok("qvm-device", "block", "detach", "work", DEVICE)
        dom0.until(lambda event: "device" in event and attached(event) == [])
        work.until(lambda event: event["event"] == "device.removed")
        for command in (in_dom0, in_work, in_vault):
            command.send_signal(signal.SIGINT)
            _, said = command.communicate(timeout=PATIENCE_S)
            assert (command.returncode, said) == (INTERRUPTED, "")


@pytest.mark.parametrize("vm", ["dom0", "work"])
def test_a_watch_survives_the_service(system: LocalSystem, vm: str) -> None:
    with system.started("qvm-device", "watch", "--json", vm=vm) as command:
        events = Events(command)
        events.until(is_ready)
        (pid,) = system.victim("dom0")
        os.kill(pid, signal.SIGKILL)
        kinds = [event["event"] for event in events.until(is_ready)]
        assert kinds[0] == "unreachable" and {"reachable", "gap"} < {*kinds}
        system.wait_until(lambda: system.agents() >= {"sys-usb", "work"}, "the agents are back")
        system.ok("qvm-device", "block", "attach", "work", DEVICE)
        events.until(lambda event: attached(event) == ["work"])
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=PATIENCE_S)
        assert command.returncode == INTERRUPTED
