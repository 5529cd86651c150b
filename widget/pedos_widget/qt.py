"""Qt, by the binding that is installed: PySide6, or PyQt6, which is all that Debian 12 has.

Nothing else imports a binding, so that the few differences between the two stay here.
"""

from __future__ import annotations

try:
    from PySide6 import QtCore, QtGui, QtWidgets
    from PySide6.QtCore import Signal, Slot

    BINDING = "PySide6"
except ImportError as _error:
    try:
        from PyQt6 import QtCore, QtGui, QtWidgets  # type: ignore[no-redef]
        from PyQt6.QtCore import pyqtSignal as Signal  # type: ignore[no-redef]
        from PyQt6.QtCore import pyqtSlot as Slot  # type: ignore[no-redef]
    except ModuleNotFoundError as _other:
        if isinstance(_error, ModuleNotFoundError):
            raise
        raise _error from _other  # PySide6 is there, and something that it needs is not

    BINDING = "PyQt6"

__all__ = ["BINDING", "QtCore", "QtGui", "QtWidgets", "Signal", "Slot"]
