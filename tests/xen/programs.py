"""Runs the programs that build the image."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

ERROR_SHOWN = 2000  # characters of what a program said last


class NotPossibleError(Exception):
    """The bench cannot be built here; the text says what to do."""


def run(*command: str | Path, **more: object) -> str:
    """What a program writes; NotPossibleError with its errors if it fails."""
    done = subprocess.run(  # type: ignore[call-overload]
        [str(part) for part in command], check=False, capture_output=True, text=True, **more
    )
    if done.returncode:
        raise NotPossibleError(f"{' '.join(map(str, command))}: {done.stderr[-ERROR_SHOWN:]}")
    return str(done.stdout)
