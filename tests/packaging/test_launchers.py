"""Ctrl-C in the first tenth of a second is no traceback, and neither is one later."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from .debian_files import PROJECT, load_programs, pyproject

INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
#: A program that is interrupted at its import, when it runs, and again while it tells of that.
PROGRAMS = {
    "import": f"{INTERRUPT}\ndef main(): return 5",
    "run": f"def main():\n    {INTERRUPT}\n    return 5",
    "again": "def main():\n    try:\n        "
    f"{INTERRUPT}\n    except KeyboardInterrupt:\n        {INTERRUPT}\n    return 5",
}


def load_launchers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("launchers", PROJECT / "tools/launchers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


launchers = load_launchers()


def make(folder: Path, code: str, python: str = sys.executable) -> Path:
    (folder / "program.py").write_text(code)
    launcher = folder / "launcher"
    launcher.write_text(
        launchers.TEMPLATE.read_text().format(
            shebang=launchers.shebang(python), path=[str(folder)], module="program", function="main"
        )
    )
    launcher.chmod(0o755)
    return launcher


def heed() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ignore() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def interrupted_already() -> None:
    """As early as can be: the interrupt waits while Python starts."""
    heed()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    os.kill(os.getpid(), signal.SIGINT)


def run(launcher: Path, before: Callable[[], None]) -> tuple[int, bytes]:
    done = subprocess.run(
        [launcher], preexec_fn=before, stdout=-1, stderr=subprocess.STDOUT, timeout=20, check=False
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_control_c_is_no_traceback_whenever_it_comes(tmp_path: Path, program: str) -> None:
    status = -signal.SIGINT if program == "import" else 130
    assert run(make(tmp_path, PROGRAMS[program]), heed) == (status, b"")


def test_control_c_before_python_has_started_is_no_traceback(tmp_path: Path) -> None:
    launcher = make(tmp_path, "def main(): return 5")
    assert run(launcher, interrupted_already) == (-signal.SIGINT, b"")


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_a_shell_started_in_the_background_goes_on(tmp_path: Path, program: str) -> None:
    assert run(make(tmp_path, PROGRAMS[program]), ignore) == (5, b"")


def test_a_termination_is_no_traceback_either(tmp_path: Path) -> None:
    code = PROGRAMS["import"].replace("SIGINT", "SIGTERM")
    assert run(make(tmp_path, code), heed) == (-signal.SIGTERM, b"")


@pytest.mark.parametrize("name", ["a b", "it's", 'quo"te', "very-long" * 20, "dollar$HOME"])
def test_a_checkout_may_stand_anywhere(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    python = folder / ("python" * 20)
    python.symlink_to(sys.executable)
    launcher = make(folder, "import sys\ndef main(): return len(sys.argv) - 1", str(python))
    done = subprocess.run([launcher, "a b", "$c"], timeout=20, check=False)
    assert done.returncode == 2


def test_every_program_is_started_this_way() -> None:
    scripts = pyproject()["project"]["scripts"]  # type: ignore[index]
    for name in scripts:
        text = (Path(sysconfig.get_path("scripts")) / name).read_text()
        assert "tools/launcher.in" in text, f"{name}: run tools/setup"


def test_debians_launchers_are_made_the_same_way() -> None:
    programs = load_programs()
    assert programs.LAUNCHER == launchers.TEMPLATE
    ours = launchers.shebang("/usr/bin/python3").removesuffix(" -S")
    assert f"{ours} -IS" == programs.SHEBANG  # and isolated


def test_a_command_writes_all_that_it_has_said_and_its_status_is_what_it_returns(
    tmp_path: Path,
) -> None:
    said = "import sys\ndef main():\n    print('x' * 9999, end='')\n    return 3"
    assert run(make(tmp_path, said), heed) == (3, b"x" * 9999)


def test_what_does_not_come_to_a_return_ends_as_python_ends_it(tmp_path: Path) -> None:
    assert run(make(tmp_path, "def main(): raise SystemExit('no')"), heed) == (1, b"no\n")


def test_a_daemon_has_the_time_for_its_last_words(tmp_path: Path) -> None:
    logs = (
        "import atexit, logging\ndef main():\n    atexit.register(print, 'last')\n    return None"
    )
    assert run(make(tmp_path, logs), heed) == (0, b"last\n")
