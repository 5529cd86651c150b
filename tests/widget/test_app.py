"""The program: its command line, one instance a session, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pedos_widget.__main__ as program
import pytest
from pedos_widget.qt import BINDING

from tests.patience import PATIENCE
from tests.widget.private_bus import PrivateBus, private_bus

WITHOUT_SCREEN = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
LOADED = """
import sys
from pedos_widget.__main__ import make_parser
make_parser().format_help()
print(*(name for name in ("PySide6", "PyQt6", "trio", "pedos_vchan") if name in sys.modules))
"""
START = """
import sys
if {binding!r} == "PyQt6":
    sys.modules["PySide6"] = None
from pedos_widget.__main__ import main
sys.exit(main())
"""


def test_the_manual_is_made_without_qt() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert ran.stdout.split() == []


def test_the_help_says_what_it_is_and_gives_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        program.main(["--help"])
    said = capsys.readouterr().out
    assert "examples:\n  pedos-widget\n" in said
    for option in ("--show", "--window", "--socket PATH", "--verbose", "--version"):
        assert option in said


def test_without_a_screen_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in WITHOUT_SCREEN:
        monkeypatch.delenv(name, raising=False)
    assert program.main([]) == 1
    assert "there is no screen" in capsys.readouterr().err


class Session:
    """A desktop's session: a bus, and the programs that a test has started in it."""

    def __init__(self, folder: Path, bus: PrivateBus) -> None:
        self._folder = folder
        self._bus = bus
        self.running: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ, "QT_QPA_PLATFORM": "offscreen", "LANGUAGE": "C",
            "DBUS_SESSION_BUS_ADDRESS": self._bus.address,
            "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={self._folder}/none",
        }  # fmt: skip
        started = subprocess.Popen(
            [sys.executable, "-c", START.format(binding=BINDING), "-v",
             "--socket", str(self._folder / "no-service.sock"), *arguments],
            env=environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.running.append(started)
        return started

    def until(self, started: subprocess.Popen[str], words: str) -> None:
        """Until a line of its log has these words."""
        assert started.stderr is not None
        lines: list[str] = []
        for line in started.stderr:
            lines.append(line)
            if words in line:
                return
        pytest.fail("".join(lines))


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with private_bus(tmp_path) as bus:
        session = Session(tmp_path, bus)
        yield session
        for each in session.running:
            if each.poll() is None:
                each.kill()
            each.communicate()


def ended(started: subprocess.Popen[Any]) -> int:
    _, said = started.communicate(timeout=PATIENCE)
    assert "Traceback" not in said, said
    return started.returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(session: Session, number: signal.Signals) -> None:
    widget = session.start()
    session.until(widget, "ready")
    widget.send_signal(number)
    assert ended(widget) == 0


def test_a_second_one_has_the_first_show_itself_and_says_so_by_its_status(
    session: Session,
) -> None:
    first = session.start("--window")
    session.until(first, "ready")
    second = session.start()
    assert ended(second) == 3
    session.until(first, "asked to show")
    third = session.start("--show")
    assert ended(third) == 0
    first.terminate()
    assert ended(first) == 0


def test_it_runs_without_a_bus(session: Session, tmp_path: Path) -> None:
    session._bus.stop()
    widget = session.start("--window", "--show")
    session.until(widget, "ready")
    widget.terminate()
    assert ended(widget) == 0
