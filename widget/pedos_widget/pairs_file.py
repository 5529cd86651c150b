"""The file of `model.pairs`: small, replaced in one step, and never in the way.

A file that cannot be read is set aside and said of in the log: what it remembers is a convenience,
and no reason not to start.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from pedos_host.threads import to_thread

from .model.pairs import TEXT_MAX, Pairs, parse

if TYPE_CHECKING:
    from typing import NoReturn

logger = logging.getLogger(__name__)

NAME = Path("pedos/widget.json")

LAST_WRITE_S = 2.0
"""Seconds that the last write may take when the program ends: the disk may hang, the session must
not."""


def default_path() -> Path:
    """Where the XDG base directories have it."""
    folder = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(folder):
        return Path(folder) / NAME
    try:
        home = Path.home()
    except RuntimeError:  # of a user who has none: then nothing is remembered
        home = Path("/nonexistent")
    return home / ".local/state" / NAME


class PairsFile:
    """Reads once, and writes in a thread whenever `save` has been called."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text: str | None = None  # to be written
        self._wanted = trio.Event()
        self._complaint = ""

    async def read(self) -> Pairs:
        """What was remembered."""
        try:
            return await to_thread(_read, self._path)
        except OSError as error:
            logger.warning("%s cannot be read: %s", self._path, error)
            return Pairs()

    def save(self, pairs: Pairs) -> None:
        """Have these written soon."""
        self._text = pairs.text()
        self._wanted.set()

    async def run(self) -> NoReturn:
        """Writes until cancelled, and then what is left to write."""
        try:
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                await self._write()
        finally:
            with trio.move_on_after(LAST_WRITE_S) as bound:
                bound.shield = True
                await self._write()

    async def _write(self) -> None:
        text, self._text = self._text, None
        if text is None:
            return
        try:
            await to_thread(_replace, self._path, text)
            self._complaint = ""
        except OSError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.warning("%s cannot be written: %s", self._path, error)


def _read(path: Path) -> Pairs:
    try:
        with path.open(encoding="utf-8") as file:
            return parse(file.read(TEXT_MAX + 1))
    except FileNotFoundError:
        return Pairs()
    except ValueError as error:  # UnicodeDecodeError is one
        aside = path.with_suffix(".broken")
        logger.warning("%s is set aside as %s: %s", path, aside.name, error)
        with contextlib.suppress(OSError):
            path.replace(aside)
        return Pairs()


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        new.unlink()
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
