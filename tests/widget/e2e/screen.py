"""What is on a virtual screen: its pixels, read from the X server's own memory.

Xvfb writes its screen to a file in XWD's format (`-fbdir`). So a look costs no program, and what
holds the pointer, as an open menu does, cannot prevent it.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

#: XWD's header: 25 words, of which these are used (XWDFile.h).
HEADER = struct.Struct(">25I")
HEADER_SIZE, WIDTH, HEIGHT, BITS_PER_PIXEL, BYTES_PER_LINE, COLOURS = 0, 4, 5, 11, 12, 19
COLOUR_BYTES = 12
#: Files of an Xvfb with one screen.
SCREEN = "Xvfb_screen0"

Pixel = tuple[int, int, int]


class Area(NamedTuple):
    """A rectangle of the screen, in pixels."""

    x: int
    y: int
    width: int
    height: int

    @property
    def middle(self) -> tuple[int, int]:
        return self.x + self.width // 2, self.y + self.height // 2


class Screen:
    """Looks at the screen whose file is in `folder`."""

    def __init__(self, folder: Path) -> None:
        with (folder / SCREEN).open("rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = HEADER.unpack_from(self._memory)
        assert header[BITS_PER_PIXEL] == 32, "start Xvfb with a depth of 24"
        self.width, self.height = header[WIDTH], header[HEIGHT]
        self._line = header[BYTES_PER_LINE]
        self._start = header[HEADER_SIZE] + header[COLOURS] * COLOUR_BYTES

    @property
    def whole(self) -> Area:
        return Area(0, 0, self.width, self.height)

    def pixel(self, x: int, y: int) -> Pixel:
        """Red, green, blue."""
        at = self._start + y * self._line + x * 4
        blue, green, red = self._memory[at : at + 3]
        return red, green, blue

    def rows(self, area: Area) -> Iterator[bytes]:
        """The lines of an area, as blue, green, red and nothing a pixel."""
        for y in range(area.y, min(area.y + area.height, self.height)):
            at = self._start + y * self._line + area.x * 4
            yield self._memory[at : at + min(area.width, self.width - area.x) * 4]

    def found(self, is_wanted: Callable[[Pixel], bool], area: Area) -> Area | None:
        """The smallest area that holds all pixels of one kind; None where there is none."""
        columns: set[int] = set()
        lines: list[int] = []
        for y, row in enumerate(self.rows(area), area.y):
            here = [
                area.x + at // 4
                for at in range(0, len(row), 4)
                if is_wanted((row[at + 2], row[at + 1], row[at]))
            ]
            if here:
                columns |= {here[0], here[-1]}
                lines.append(y)
        if not lines:
            return None
        left, top = min(columns), lines[0]
        return Area(left, top, max(columns) - left + 1, lines[-1] - top + 1)

    def keep(self, file: Path, area: Area | None = None) -> None:
        """Writes a picture of the screen, or of an area of it, as PNG."""
        from pedos_widget.qt import QtGui

        area = area or self.whole
        data = b"".join(self.rows(area))
        width, height = min(area.width, self.width - area.x), len(data) // 4 // area.width
        kind = QtGui.QImage.Format.Format_RGB32
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = QtGui.QImage(data, width, height, width * 4, kind).save(str(file))
        assert kept, f"cannot write {file}"
