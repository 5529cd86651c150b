"""A command that did its work but could not print says that it is done."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pedos_protocol.errors import CallError

if TYPE_CHECKING:
    from conftest import FakeService

ATTACHED = {"outcome": "attached", "options": {}, "request": "r", "vm": "work"}
DETACHED = {
    "results": [{"backend": "sys-usb", "device": "sda", "detached": True, "unassigned": False}],
    "request": "r",
}
COMMANDS: dict[str, tuple[list[str], str]] = {
    "attach": (["qvm_device", "block", "attach", "work", "sys-usb:sda"], "sys-usb:sda attached to"),
    "detach": (["qvm_device", "block", "detach", "work"], "sys-usb:sda detached from work"),
    "start": (["qvm_start", "work", "home"], "home started (domain 3)"),
    "shutdown": (["qvm_shutdown", "work", "home"], "home shut down"),
    "replace": (["qvm_policy", "replace", "30-user.policy", "new"], "30-user.policy written"),
    "replace --json": (
        ["qvm_policy", "replace", "30-user.policy", "new", "--json"], "30-user.policy written",
    ),
    "fmt": (["qvm_policy", "fmt"], "50-old.policy aligned"),
    "fmt --json": (["qvm_policy", "fmt", "--json"], "50-old.policy aligned"),
    "remove": (["qvm_policy", "remove", "50-old.policy", "any"], "50-old.policy removed"),
}  # fmt: skip


@contextmanager
def full() -> Iterator[int]:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


@contextmanager
def closed_pipe() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def run(module: str, *argv: str, stdout: int, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"pedos_cli.{module}", *argv],
        stdout=stdout, stderr=-1, text=True, timeout=20, check=False,
        input="* * work work allow\n", env={**os.environ, **env},
    )  # fmt: skip


@pytest.fixture
def policy(tmp_path: Path) -> str:
    folder = tmp_path / "policy.d"
    folder.mkdir()
    (folder / "50-old.policy").write_text("* *   work    work    deny\n")
    return str(folder)


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["at the end", "at the first write"])
@pytest.mark.parametrize("output", [full, closed_pipe])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_could_not_print_says_what_is_done(
    service: FakeService, policy: str, name: str, output: Any, unbuffered: str
) -> None:
    service.replies["device.attach"] = ATTACHED
    service.replies["device.detach"] = DETACHED
    service.replies["vm.start"] = {"domid": 3, "attached": []}
    service.replies["vm.shutdown"] = {}
    # A change of these files, on which no command waits for the service's word.
    status = service.replies["service.status"]
    service.replies["service.status"] = {"policy": {**status["policy"], "folders": ["/elsewhere"]}}
    argv, said = COMMANDS[name]
    with output() as stdout:
        done = run(*argv, stdout=stdout, PYTHONUNBUFFERED=unbuffered, PEDOS_POLICY_PATH=policy)
    why = "No space left on device" if output is full else "Broken pipe"
    first, *rest = done.stderr.splitlines()
    prog = argv[0].replace("_", "-")
    assert first == f"{prog}: standard output takes nothing ({why}), but this is done:"
    assert any(line.startswith(f"  {said}") for line in rest)
    assert done.returncode == 0


def test_the_status_stays_that_of_what_was_done(service: FakeService) -> None:
    service.replies["vm.start"] = lambda params: (
        {"domid": 3, "attached": []} if params["vm"] == "home" else CallError("busy", "it is taken")
    )
    with full() as stdout:
        done = run("qvm_start", "home", "work", stdout=stdout)
    assert done.returncode == 6
    assert done.stderr.splitlines()[-1] == "  home started (domain 3)"


def test_quiet_has_nothing_to_print_and_so_says_nothing(service: FakeService) -> None:
    service.replies["vm.shutdown"] = {}
    with full() as stdout:
        done = run("qvm_shutdown", "-q", "work", stdout=stdout)
    assert (done.returncode, done.stderr) == (0, "")


@contextmanager
def closed() -> Iterator[None]:
    yield None


TELLING = [
    ["qvm_device", "--version"], ["qvm_device", "--help"], ["qvm_device", "--list-device-classes"],
    ["qvm_policy", "fmt", "--help"], ["qvm_device", "block"], ["qvm_ls"], ["qvm_ls", "--json"],
    ["qvm_policy", "get", "50-old.policy"], ["qvm_policy", "fmt", "-"],
]  # fmt: skip


@pytest.mark.parametrize("output", [full, closed])
@pytest.mark.parametrize("argv", TELLING, ids=" ".join)
def test_what_only_tells_fails_if_it_cannot(
    service: FakeService, policy: str, argv: list[str], output: Any, listed: Any
) -> None:
    vm = {"name": "work", "state": "Running", "domid": 2, "agent": True}
    service.replies["vm.list"] = {"vms": [vm]}
    service.replies["device.list"] = {"devices": [listed("sys-usb:sda")], "policy": None}
    command = [sys.executable, "-m", f"pedos_cli.{argv[0]}", *argv[1:]]
    with output() as stdout:
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" >&-', "sh", *command] if stdout is None else command,
            stdout=stdout, stderr=-1, text=True, timeout=20, check=False,
            input="* * work work allow\n",
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PEDOS_POLICY_PATH": policy},
        )  # fmt: skip
    why = "standard output is closed" if stdout is None else "No space left on device"
    assert (done.returncode, done.stderr) == (1, f"{argv[0].replace('_', '-')}: failed: {why}\n")
