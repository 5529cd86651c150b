"""The pictures of this program: the tray's yellow square, and one for each kind of device.

They are read as files of a few sizes, which works without the SVG part of Qt, that Debian splits
off, and in a checkout, where no theme of the system knows them. tools/draw-icons makes them.
"""

from __future__ import annotations

import functools
from pathlib import Path

from pedos_widget.qt import QtGui

APPLICATION = "pedos-devices"
#: As folders of a theme are laid out: SIZExSIZE/CONTEXT/NAME.png.
FOLDER = Path(__file__).parent / "icons/hicolor"


@functools.cache
def icon(name: str) -> QtGui.QIcon:
    """The icon for a kind of device, or for "eject" or "ask"; an empty one for what has none."""
    return _from_files(f"pedos-{name}")


def application_icon() -> QtGui.QIcon:
    """The yellow square; where it is installed, by its name, so that a panel draws it as its theme
    has it. A QApplication must have been made."""
    return QtGui.QIcon.fromTheme(APPLICATION, _from_files(APPLICATION))


def _from_files(name: str) -> QtGui.QIcon:
    found = QtGui.QIcon()
    for file in sorted(FOLDER.glob(f"*x*/*/{name}.png")):
        found.addFile(str(file))
    return found
