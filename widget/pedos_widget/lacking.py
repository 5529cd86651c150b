"""What to install when a library cannot be loaded. Nothing here needs one."""

from __future__ import annotations

_QT = "python3-pyside6.qtwidgets, or python3-pyqt6"
_PACKAGES = {
    "PySide6": _QT,
    "PyQt6": _QT,
    "jeepney": "python3-jeepney",
    "trio": "python3-trio",
    "attr": "python3-attr",
}


def what_to_do(error: ImportError) -> str:
    """A sentence: what cannot be loaded, and what to install if that would help."""
    package = _PACKAGES.get((error.name or "").partition(".")[0])
    if package is None:
        return f"{error}: this installation is damaged; install pedos-widget again"
    if isinstance(error, ModuleNotFoundError):
        return f"{error}: install {package}"
    # It is there, and a library that it loads is not, or of another version.
    return f"{error}: install {package} again, with what it depends on"
