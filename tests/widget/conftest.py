"""Shared by the tests of the widget. PYTEST_QT_API=pyqt6 runs them with the other binding."""

from __future__ import annotations

import os
import sys

# No window appears on the screen of who runs the tests, and texts are those that stand in the code.
os.environ["QT_QPA_PLATFORM"] = "offscreen"
os.environ["LANGUAGE"] = "C"

if os.environ.get("PYTEST_QT_API") == "pyqt6":
    sys.modules["PySide6"] = None  # type: ignore[assignment]  # not to be imported
