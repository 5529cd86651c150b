"""Opens `qvm-policy edit` in a terminal. Run as a program, this is what runs inside that terminal:
it keeps the terminal open until a person has read what went wrong."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys

from pedos_cli.place import policy_path
from pedos_protocol.errors import CallError

from pedos_widget.i18n import _

TERMINAL = "x-terminal-emulator"
"""Debian's name for the terminal that the user has chosen; `-e` and an argument list is part of its
interface."""

EDIT = ("qvm-policy", "edit")


def terminal_command() -> list[str] | None:
    """The command that opens the terminal; None if there is none."""
    terminal = shutil.which(TERMINAL)
    return None if terminal is None else [terminal, "-e", sys.executable, "-I", "-m", __name__]


def no_terminal() -> str:
    """What to do without one."""
    what = _("There is no {terminal} here. In a terminal of yours, run: {command}")
    return what.format(terminal=TERMINAL, command=" ".join(EDIT))


def edit_command() -> list[str]:
    """`qvm-policy edit`, by sudo where this user may not write the policy."""
    may_write = os.geteuid() == 0
    if not may_write:
        try:
            may_write = os.access(policy_path().rpartition(":")[2], os.W_OK)
        except CallError:
            may_write = True  # the command says what is wrong
    sudo = None if may_write else shutil.which("sudo")
    return list(EDIT) if sudo is None else [sudo, *EDIT]


def main() -> int:
    """Edit, in the terminal that this runs in."""
    try:
        status = subprocess.run(edit_command(), check=False).returncode
    except OSError as error:
        print(f"{EDIT[0]}: {error.strerror}", file=sys.stderr)
        status = 1
    if status:
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            input(_("It ended with status {status}. Press Enter to close.").format(status=status))
    return status


if __name__ == "__main__":
    sys.exit(main())
