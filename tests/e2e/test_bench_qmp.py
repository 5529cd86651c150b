"""How tests/xen speaks with QEMU: against the real one, paused before its first instruction."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.xen.qmp import Qmp, QmpError

QEMU = "qemu-system-x86_64"

pytestmark = pytest.mark.skipif(not shutil.which(QEMU), reason=f"needs {QEMU}")


@pytest.fixture
def qmp(tmp_path: Path) -> Iterator[Qmp]:
    path = tmp_path / "qmp.sock"
    command = [QEMU, "-S", "-M", "q35", "-accel", "tcg", "-m", "16", "-nodefaults"]
    command += ["-display", "none", "-device", "qemu-xhci,id=xhci"]
    command += ["-qmp", f"unix:{path},server=on,wait=off"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as qemu:
        try:
            client = connected(path, qemu)
            yield client
            client.close()
        finally:
            qemu.kill()


def connected(path: Path, qemu: subprocess.Popen[bytes]) -> Qmp:
    """Once it listens: its socket is there a moment before."""
    end = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return Qmp(path)
        assert qemu.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)


def test_devices_come_and_go(qmp: Qmp, tmp_path: Path) -> None:
    file = tmp_path / "stick"
    file.write_bytes(bytes(1 << 16))
    qmp.add_file("content", file)
    for _ in range(2):
        qmp.add("usb-hub", "hub", bus="xhci.0", port="1")
        qmp.add("usb-storage", "stick", bus="xhci.0", port="1.2", drive="content")
        with pytest.raises(QmpError, match="stick"):
            qmp.add("usb-kbd", "stick", bus="xhci.0")
        qmp.remove("stick")
        qmp.remove("hub")
    qmp.remove_file("content")


def test_what_qemu_refuses_and_what_does_not_come_are_told(qmp: Qmp) -> None:
    with pytest.raises(QmpError, match=r"device_del.*Device 'nothing' not found"):
        qmp.remove("nothing")
    qmp.add("usb-kbd", "keyboard", bus="xhci.0")
    qmp.execute("device_del", {"id": "keyboard"})
    qmp.type_keys("ctrl", "a")
    qmp.wait_for("DEVICE_DELETED", lambda data: data["device"] == "keyboard")
    with pytest.raises(QmpError, match=r"no DEVICE_DELETED within 0\.01 s"):
        qmp.wait_for("DEVICE_DELETED", lambda data: data["device"] == "keyboard", limit=0.01)


def test_the_end_of_qemu_is_told(qmp: Qmp) -> None:
    with pytest.raises(QmpError, match="QEMU has ended"):
        qmp.execute("quit")
        qmp.execute("query-status")
