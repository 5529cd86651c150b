"""A file on an overlay and the one of the layer that has its data are lent as one."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pedos_agent.device_classes import in_folder as discovery_folder
from pedos_agent.device_classes.block.reserve import reserve
from pedos_agent.settings import Settings
from pedos_agent.system.closing import wait_until_closed
from pedos_protocol.errors import CallError

from .test_used_elsewhere import bound

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts an overlay")


@contextlib.contextmanager
def overlay(folder: Path, *, relative: bool = False) -> Iterator[Path]:
    """With f in the lower layer, and names that have to be escaped."""
    names = ("lo,w:e r", "upp,e:r", "work", "merged")
    for name in names:
        (folder / name).mkdir(parents=True)
    (folder / names[0] / "f").write_bytes(bytes(4096))

    def layer(name: str) -> str:
        path = name if relative else str(folder / name)
        return path.replace(",", "\\,").replace(":", "\\:")

    options = f"lowerdir={layer(names[0])},upperdir={layer(names[1])},workdir={layer(names[2])}"
    command = ["mount", "-t", "overlay", "overlay", "-o", options, "merged"]
    ended = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    if ended.returncode:
        pytest.skip(f"no overlay here: {ended.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", "merged"], cwd=folder, check=True)


@contextlib.contextmanager
def lent(settings: Settings, file: Path, *, read_only: bool = False) -> Iterator[None]:
    name = settings.devices / "block/x.img"
    name.symlink_to(file)
    try:
        (found,) = discovery_folder.scan(settings.devices)
    finally:
        name.unlink()
    with contextlib.ExitStack() as held:
        reserve(found, str(file), read_only, held)
        del found
        yield


@pytest.mark.parametrize("upper_first", [False, True])
def test_a_file_on_an_overlay_and_that_of_its_upper_layer_are_not_lent_both(
    settings: Settings, tmp_path: Path, upper_first: bool
) -> None:
    with overlay(tmp_path / "ov") as at:
        with (at / "merged/f").open("r+b"):
            pass  # in the upper layer from now on
        files = [at / "merged/f", at / "upp,e:r/f"]
        first, second = reversed(files) if upper_first else files
        with lent(settings, first):
            for read_only in (False, True):
                with (
                    pytest.raises(CallError, match="is lent by another VM"),
                    lent(settings, second, read_only=read_only),
                ):
                    pass
        with lent(settings, first, read_only=True), lent(settings, second, read_only=True):
            pass


def test_a_file_on_an_overlay_that_is_mounted_by_itself_is_known_too(
    settings: Settings, tmp_path: Path
) -> None:
    with overlay(tmp_path / "ov") as at:
        with (at / "merged/f").open("r+b"):
            pass
        with bound(at / "merged/f", tmp_path / "bound"):
            for read_only in (False, True):
                with (
                    lent(settings, tmp_path / "bound", read_only=read_only),
                    pytest.raises(CallError, match="is lent by another VM"),
                    lent(settings, at / "upp,e:r/f"),
                ):
                    pass
            wait_until_closed()  # what a look held there, or it cannot be unmounted


def test_a_file_that_is_first_written_when_it_is_lent_is_another_than_that_below_it(
    settings: Settings, tmp_path: Path
) -> None:
    with overlay(tmp_path / "ov") as at:
        lower, merged, upper = at / "lo,w:e r/f", at / "merged/f", at / "upp,e:r/f"
        with (
            lent(settings, lower),
            pytest.raises(CallError, match="is lent by another VM"),
            lent(settings, merged, read_only=True),
        ):
            pass
        with (
            lent(settings, merged),
            lent(settings, lower),
            pytest.raises(CallError, match="is lent by another VM"),
            lent(settings, upper),
        ):
            pass


def test_what_cannot_be_told_is_lent_to_read_alone(settings: Settings, tmp_path: Path) -> None:
    with overlay(tmp_path / "ov", relative=True) as at:
        with lent(settings, at / "merged/f", read_only=True):
            pass
        with (
            pytest.raises(CallError, match="mounted with relative paths"),
            lent(settings, at / "merged/f"),
        ):
            pass


def test_an_overlay_whose_layers_are_not_reached_is_lent_as_in_a_container(
    settings: Settings, tmp_path: Path
) -> None:
    with overlay(tmp_path / "ov") as at:
        at.rename(moved := tmp_path / "elsewhere")
        try:
            with lent(settings, moved / "merged/f"):
                pass
        finally:
            moved.rename(at)
