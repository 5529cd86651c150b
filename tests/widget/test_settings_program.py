"""`qvm-settings` as a program: what it says without a window, and that its window ends in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_protocol.errors import CallError
from pedos_widget.qt import BINDING
from pedos_widget.qvm_settings import SCREENS, main

from tests.cli.conftest import FakeService as BlockingService
from tests.patience import PATIENCE
from tests.widget.fake_service import FakeService, vm
from tests.widget.settings_service import Service, assigned, listed

Captured = pytest.CaptureFixture[str]

LOADED = """
import sys
from pedos_widget.qvm_settings import build_parser
build_parser().format_help()
print(*(name for name in ("PySide6", "PyQt6", "trio", "pedos_vchan") if name in sys.modules))
"""
START = """
import sys
if {binding!r} == "PyQt6":
    sys.modules["PySide6"] = None
from pedos_widget.qvm_settings import main
sys.exit(main(["work"]))
"""


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BlockingService]:
    fake = BlockingService(tmp_path / "pedos.sock")
    fake.replies["device.assignments"] = {"assignments": [], "more": False, "policy": None}
    monkeypatch.setenv("PEDOS_SOCKET", str(fake.path))
    monkeypatch.setenv("PEDOS_VM", "dom0")
    yield fake
    fake.close()


@pytest.mark.parametrize("words", [[], ["a b"], ["work", "vault"], ["dom0"]])
def test_a_wrong_command_line_is_said_as_by_the_other_commands(
    words: list[str], capsys: Captured
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("qvm-settings: usage: ")


def test_help_has_examples(capsys: Captured) -> None:
    assert main(["--help"]) == 0
    assert "qvm-settings work\n      the devices of the VM work" in capsys.readouterr().out


def test_the_manual_is_made_without_qt() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert ran.stdout.split() == []


def test_a_vm_that_does_not_exist_is_said_as_by_the_other_commands(
    service: BlockingService, capsys: Captured
) -> None:
    missing = CallError("not_found", "no VM named 'nowhere'", {"hint": "qvm-ls"})
    service.replies["device.assignments"] = missing
    assert main(["nowhere"]) == 4
    assert capsys.readouterr().err == (
        "qvm-settings: not found: no VM named 'nowhere'\n  try:  qvm-ls\n"
    )


def test_without_a_service_nothing_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("PEDOS_SOCKET", str(tmp_path / "none.sock"))
    assert main(["work"]) == 5
    assert capsys.readouterr().err.startswith("qvm-settings: unavailable: no service answers at ")


def test_without_a_screen_it_says_what_else_to_do(
    service: BlockingService, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    for name in SCREENS:
        monkeypatch.delenv(name, raising=False)
    assert main(["work"]) == 1
    said = capsys.readouterr().err
    assert "there is no screen to show a window on" in said
    assert "list --assignments work" in said


async def test_the_window_is_filled_and_ends_with_the_session(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    fake, own, is_filled = FakeService(tmp_path / "pedos.sock"), Service(), trio.Event()
    fake.put_vms(vm("work"), vm("sys-usb"))
    own.devices = [listed("sys-usb:1-2")]
    own.stored = {"usb": [assigned("sys-usb:1-2")]}

    async def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
        told = await own.call(method, params, timeout_s=1)
        if method == "device.list" and params["device_class"] == "mic":  # the last one
            is_filled.set()
        return told

    for method in ("device.assignments", "device.list", "vm.list"):
        fake.answers[method] = partial(answer, method)
    await nursery.start(fake.serve)
    start = [sys.executable, "-c", START.format(binding=BINDING)]
    environment = {
        **os.environ, "QT_QPA_PLATFORM": "offscreen", "PEDOS_SOCKET": str(fake.path),
        "PEDOS_VM": "dom0", "XDG_STATE_HOME": str(tmp_path), "HOME": str(tmp_path),
    }  # fmt: skip
    process = await trio.lowlevel.open_process(
        start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    try:
        with trio.fail_after(PATIENCE):
            await is_filled.wait()
            process.send_signal(signal.SIGTERM)
            said = b"".join([part async for part in process.stdout])
            assert await process.wait() == 0, said
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()
    assert b"error" not in said and b"Traceback" not in said
    nursery.cancel_scope.cancel()
