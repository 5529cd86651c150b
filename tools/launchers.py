"""Writes the launchers of this project's programs into the virtual environment that runs this.

pip's own launchers import `re` and look at site-packages first, which takes as long as all that
comes then, and show a traceback when Ctrl-C comes meanwhile.
"""

from __future__ import annotations

import shlex
import sys
import sysconfig
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
TEMPLATE = PROJECT / "tools" / "launcher.in"

#: Characters of a `#!` line that Linux reads (execve(2)).
SHEBANG_MAX = 255
#: What `env -S` does not take for more than it is.
PLAIN = "/._-+"


def shebang(python: str) -> str:
    """The first line of a launcher; where that cannot name `python`, a shell that can."""
    line = f"#!/usr/bin/env -S --block-signal=INT {python} -S"
    is_plain = python.isascii() and python.translate(dict.fromkeys(map(ord, PLAIN))).isalnum()
    if is_plain and len(line) <= SHEBANG_MAX:
        return line
    # Python reads the two lines as a string.
    command = f"exec /usr/bin/env --block-signal=INT {shlex.quote(python)} -S"
    return f"#!/bin/sh\n''':'\n{command} \"$0\" \"$@\"\n'''"


def main() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    folders = project["tool"]["setuptools"]["package-dir"].values()
    path = list(dict.fromkeys(str((PROJECT / folder).parent) for folder in folders))
    path.append(sysconfig.get_path("purelib"))
    for name, entry in project["project"]["scripts"].items():
        file = Path(sysconfig.get_path("scripts")) / name
        module, function = entry.split(":")
        file.write_text(
            TEMPLATE.read_text().format(
                shebang=shebang(sys.executable), path=path, module=module, function=function
            )
        )
        file.chmod(0o755)


if __name__ == "__main__":
    main()
