"""`pedos-local up --widget`: the tray widget of this desktop, for the devices of a folder."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path

import pytest
import trio
from pedos_dom0.local import widget
from pedos_dom0.local.cli import main
from pedos_dom0.local.layout import Layout

from tests.patience import PATIENCE


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    assert main(["init", str(tmp_path / "lab")]) == 0
    (tmp_path / "lab/log").mkdir(exist_ok=True)
    return Layout.of(str(tmp_path / "lab"))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a widget that a test writes; nothing else is called so."""
    folder = tmp_path / "programs"
    folder.mkdir()
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", f"{folder}:{os.path.dirname(setpriv)}:/bin")
    monkeypatch.setenv("DISPLAY", ":123")
    return folder


def make_widget(folder: Path, script: str) -> None:
    (folder / widget.PROGRAM).write_text(f"#!/bin/sh\n{script}\n")
    (folder / widget.PROGRAM).chmod(0o755)


def test_without_a_desktop_it_says_so_and_starts_nothing(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in widget.SCREENS:
        monkeypatch.delenv(name, raising=False)
    assert main(["up", "--widget", str(layout.root)]) == 5
    assert "--widget needs a desktop" in capfd.readouterr().err


def test_without_the_program_it_names_its_package(layout: Layout, programs: Path) -> None:
    with pytest.raises(widget.CannotComeUp, match="in the package pedos-widget"):
        widget.check(layout)


async def test_it_is_told_where_the_service_is_and_its_end_ends_nothing_else(
    layout: Layout, programs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    make_widget(programs, 'echo "$PEDOS_SOCKET $DISPLAY"; exit 3')
    widget.check(layout)
    with trio.fail_after(PATIENCE):
        await widget.run(layout)
    assert layout.log("widget").read_text() == f"{layout.dom0_socket} :123\n"
    assert "the widget exited with status 3" in caplog.text


async def test_it_is_told_to_end_with_the_system(layout: Layout, programs: Path) -> None:
    os.mkfifo(programs / "begun")
    trap = f'trap "echo told; exit 0" TERM\necho > {programs}/begun'
    make_widget(programs, f"{trap}\nwhile :; do sleep 0.01; done")
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(widget.run, layout)
            await trio.to_thread.run_sync((programs / "begun").read_text)
            nursery.cancel_scope.cancel()
    assert layout.log("widget").read_text() == "told\n"
