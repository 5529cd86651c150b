"""The environment after a login, and the session that a service may wait for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pedos_keeper.environment import LOGIN_SECONDS
from pedos_keeper.sessions import has_session

from tests.patience import PATIENCE

# In a process of its own, since `Children` reaps whatever child its process has.
READ = """
import json, os, sys
from pedos_keeper import environment
from pedos_keeper.children import Children
environment.LOGIN_SECONDS = float(sys.argv[1])
login = environment.LoginEnvironment(
    Children(), environment.without_own(environment.as_started())
)
assert login.get() is login.get()
print(json.dumps(login.get()))
"""


def after_login(
    home: Path, profile: str, seconds: float = LOGIN_SECONDS
) -> tuple[dict[str, str], str]:
    """The environment, and what the log says."""
    (home / ".profile").write_text(profile)
    own = {"HOME": str(home), "PATH": os.environ["PATH"], "LISTEN_FDS": "1", "INVOCATION_ID": "x"}
    ran = subprocess.run(
        [sys.executable, "-c", READ, str(seconds)],
        env=own,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return json.loads(ran.stdout), ran.stderr


def test_a_profile_is_heeded_whatever_it_says_and_starts(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    profile = f"echo hello\nexport COLOUR='a\nb'\nsleep 1000 >/dev/null 2>&1 &\necho $! >{note}"
    found, said = after_login(tmp_path, profile)
    os.kill(int(note.read_text()), signal.SIGKILL)  # it is there
    assert found["COLOUR"] == "a\nb"
    assert found["HOME"] == str(tmp_path)
    assert "hello" in said
    assert not found.keys() & {"LISTEN_FDS", "INVOCATION_ID", "PWD", "SHLVL", "_"}


AGAIN = """
import json, os, sys
from pedos_keeper import environment
from pedos_keeper.children import Children
now = [0.0]
login = environment.LoginEnvironment(Children(), dict(os.environ), lambda: now[0])
found = [login.get().get("READ")]
with open(os.environ["HOME"] + "/.profile", "w") as profile:
    profile.write("export READ=yes")
for now[0] in (environment.AGAIN_SECONDS - 1, environment.AGAIN_SECONDS):
    found.append(login.get().get("READ"))
print(json.dumps(found))
"""


def test_a_profile_that_failed_is_read_again_after_a_while(tmp_path: Path) -> None:
    (tmp_path / ".profile").write_text("exit 1")
    ran = subprocess.run(
        [sys.executable, "-c", AGAIN],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=PATIENCE,
    )
    assert json.loads(ran.stdout) == [None, None, "yes"]


@pytest.mark.parametrize(
    ("profile", "seconds", "words"),
    [
        ("exit 1", LOGIN_SECONDS, "the profile ends the shell"),
        ("sleep 1000", 0.1, "it takes longer than 0 s"),
        ("exec yes >&3", LOGIN_SECONDS, "it says more than"),
    ],
)
def test_a_profile_that_fails_is_told_and_services_run_without(
    tmp_path: Path, profile: str, seconds: float, words: str
) -> None:
    found, said = after_login(tmp_path, profile, seconds)
    assert words in said
    assert found == {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}


SESSION = "UID=1000\nSTATE=active\nTYPE=wayland\nCLASS=user\n"


def test_a_session_with_a_screen_of_that_user_counts(tmp_path: Path) -> None:
    (tmp_path / "1").write_text(SESSION)
    assert has_session(1000, tmp_path)
    assert not has_session(1001, tmp_path)


@pytest.mark.parametrize(
    ("ours", "others"),
    [
        ("CLASS=user", "CLASS=greeter"),
        ("TYPE=wayland", "TYPE=tty"),
        ("STATE=active", "STATE=closing"),
    ],
)
def test_another_session_does_not(tmp_path: Path, ours: str, others: str) -> None:
    (tmp_path / "c2").write_text(SESSION.replace(ours, others))
    assert not has_session(1000, tmp_path)


def test_without_logind_nobody_has_a_session(tmp_path: Path) -> None:
    assert not has_session(1000, tmp_path / "nothing")
