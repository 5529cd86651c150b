"""The group of dom0's desktop, as the package makes it: nobody is a member by an installation."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

DEBIAN = Path(__file__).parents[2] / "debian"

# Answers from two files in the place of the system's, and notes what would have been changed.
GETENT = """#!/bin/sh
grep "^$2:" "{folder}/$1" || exit 2
"""
NOTE = """#!/bin/sh
echo "${{0##*/}} $*" >>"{folder}/done"
"""


class System:
    """A system with these users and groups, in which a script of the package runs."""

    def __init__(self, folder: Path, *, users: str = "", groups: str = "") -> None:
        self._folder = folder
        (folder / "passwd").write_text(users)
        (folder / "group").write_text(groups)
        (folder / "done").touch()
        (folder / "bin").mkdir()
        for name, text in [
            ("getent", GETENT),
            *((each, NOTE) for each in ("addgroup", "gpasswd", "rm", "rmdir")),
        ]:
            program = folder / "bin" / name
            program.write_text(text.format(folder=folder))
            program.chmod(0o700)

    def run(self, script: str, *arguments: str) -> str:
        """What the script says."""
        return subprocess.run(
            ["sh", DEBIAN / f"pedos-dom0.{script}", *arguments],
            env={"PATH": f"{self._folder}/bin:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout

    def emptied(self) -> list[str]:
        """What a purge does to the group. Nothing is removed: `rm` is one of the programs here."""
        self.run("postrm", "purge")
        return [line for line in self.done() if line.startswith("gpasswd")]

    def done(self) -> list[str]:
        return (self._folder / "done").read_text().splitlines()


PERSON = "pedos:x:1000:1000:Pedro:/home/pedos:/bin/sh\n"
A_PERSONS = "pedos:x:1000:\n"


def test_the_group_is_made_where_there_is_none(tmp_path: Path) -> None:
    system = System(tmp_path)
    assert system.run("postinst", "configure", "") == ""
    assert system.done() == ["addgroup --quiet --system pedos"]


@pytest.mark.parametrize("before", ["", "0.1.0"])
def test_a_person_of_that_name_becomes_no_member_and_the_installation_says_so(
    tmp_path: Path, before: str
) -> None:
    system = System(tmp_path, users=PERSON, groups=A_PERSONS)
    assert "the own group of a user" in system.run("postinst", "configure", before)
    assert system.done() == []


def test_a_user_of_that_name_in_another_group_is_nothing_special(tmp_path: Path) -> None:
    system = System(tmp_path, users=PERSON.replace(":1000:1000:", ":1000:100:"))
    assert system.run("postinst", "configure", "") == ""
    assert system.done() == ["addgroup --quiet --system pedos"]


def test_members_of_a_group_that_was_there_are_named_once(tmp_path: Path) -> None:
    system = System(tmp_path, groups="pedos:x:1001:alice,bob\n")
    assert "alice,bob" in system.run("postinst", "configure", "")
    assert system.run("postinst", "configure", "0.1.0") == ""
    assert system.done() == []


def test_a_purge_empties_the_group_and_not_that_of_a_person(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    system = System(tmp_path / "one", groups="pedos:x:990:alice\n")
    assert system.emptied() == ["gpasswd --members  pedos"]
    (tmp_path / "two").mkdir()
    assert System(tmp_path / "two", users=PERSON, groups=A_PERSONS).emptied() == []
