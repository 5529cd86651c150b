"""The icons: all there, in every size, and drawn from their sources."""

from __future__ import annotations

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
from pedos_widget import icons
from pytestqt.qtbot import QtBot

NAMES = ("disk", "partition", "usb", "keyboard", "camera", "mic", "pci", "eject", "ask")
DRAWN = [*(f"pedos-{name}" for name in NAMES), "pedos-devices"]
#: Of 255, on average: versions of Qt smooth edges a little differently.
ALIKE = 6


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    """tools/draw-icons, which is no module of any package."""
    pytest.importorskip("PySide6.QtSvg", reason="the other binding is under test")
    script = str(Path(__file__).resolve().parents[2] / "tools/draw-icons")
    loader = SourceFileLoader("draw_icons", script)
    spec = importlib.util.spec_from_loader("draw_icons", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_there_is_a_source_for_each_name_and_no_other() -> None:
    assert sorted(path.stem for path in icons.FOLDER.glob("scalable/*/*")) == sorted(DRAWN)


@pytest.mark.parametrize("name", DRAWN)
def test_every_size_is_drawn_from_the_source(name: str, drawing: ModuleType) -> None:
    from PySide6.QtGui import QImage

    [source] = icons.FOLDER.glob(f"scalable/*/{name}.svg")
    for size in drawing.SIZES:
        wanted = bytes(drawing.drawn(source, size).constBits())
        file = icons.FOLDER / f"{size}x{size}" / source.parent.name / f"{name}.png"
        kept = QImage(str(file)).convertToFormat(QImage.Format.Format_ARGB32)
        found = bytes(kept.constBits())
        assert (kept.width(), kept.height()) == (size, size)
        apart = sum(abs(a - b) for a, b in zip(wanted, found, strict=True)) / len(found)
        assert apart <= ALIKE, f"{file.name}, size {size}: run tools/draw-icons"


@pytest.mark.parametrize("name", NAMES)
def test_a_kind_of_device_has_its_icon(qtbot: QtBot, name: str) -> None:
    assert {size.width() for size in icons.icon(name).availableSizes()} >= {16, 24, 48}


def test_what_has_no_icon_has_an_empty_one(qtbot: QtBot) -> None:
    assert icons.icon("mouse-trap").isNull()


def test_the_icon_of_the_tray_is_yellow(qtbot: QtBot) -> None:
    middle = icons.application_icon().pixmap(32, 32).toImage().pixelColor(16, 16)
    assert middle.red() > 200 and middle.green() > 150 and middle.blue() < 100
