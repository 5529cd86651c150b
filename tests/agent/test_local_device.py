"""Holding a block device, as far as that needs no real block device."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pedos_host import exclusive
from pedos_host._open import open_and_close
from pedos_host.exclusive import is_held, open_exclusively

from tests.patience import PATIENCE

BUSY = OSError(errno.EBUSY, "Device or resource busy")


class Kernel:
    """Answers to open(2), one after the other; the last one for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: OSError | None) -> None:
        self._answers = answers
        self.asked = 0
        self._open = os.open
        monkeypatch.setattr(exclusive.os, "open", self.open)
        monkeypatch.setattr(exclusive, "open_and_close", lambda *how: os.close(self.open(*how)))
        monkeypatch.setattr(exclusive, "HELD_RETRY_SECONDS", 0)

    def open(self, path: str, flags: int) -> int:
        assert flags & os.O_EXCL
        answer = self._answers[min(self.asked, len(self._answers) - 1)]
        self.asked += 1
        if answer is not None:
            raise answer
        return self._open(os.devnull, os.O_RDONLY)


def test_who_only_looks_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, BUSY, BUSY, None)
    file = open_exclusively("/dev/sda")
    assert file is not None
    os.close(file)
    assert kernel.asked == 3
    assert not is_held("/dev/sda")


def test_what_stays_in_use_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, BUSY)
    assert open_exclusively("/dev/sda") is None
    assert kernel.asked == exclusive.HELD_TRIES
    assert is_held("/dev/sda")


def test_what_cannot_be_opened_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, OSError(errno.ENXIO, "No such device or address"))
    with pytest.raises(OSError, match="No such device"):
        is_held("/dev/sda")
    assert kernel.asked == 1


def test_what_is_opened_in_one_step_is_closed_again(tmp_path: Path) -> None:
    file, before = tmp_path / "\udcff disk", len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError) as missing:
        open_and_close(str(file), os.O_RDONLY)
    assert missing.value.filename is not None
    file.touch()
    for _ in range(100):
        assert open_and_close(str(file), os.O_RDONLY | os.O_CLOEXEC) is None
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ValueError, match="null"):
        open_and_close("a\0b", os.O_RDONLY)


def test_other_threads_run_while_a_driver_keeps_it_waiting(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    waits = threading.Thread(target=open_and_close, args=(str(fifo), os.O_RDONLY))
    waits.start()
    with fifo.open("wb"):  # which waits for a reader
        waits.join(PATIENCE)
    assert not waits.is_alive()


def test_a_program_that_holds_a_pin_ends_at_once() -> None:
    """And not only once a thread has started, which no thread does while the interpreter ends."""
    program = "from pedos_agent.inventory.local_device import Pin; pin = Pin('/etc/passwd')"
    ended = subprocess.run(
        [sys.executable, "-c", program], timeout=60, capture_output=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
