"""What a keeper has C do in one step: to find the first of some files, and to start a process."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from pedos_host._open import first_of
from pedos_host._spawn import spawn


def test_the_first_name_in_any_folder_goes_before_the_next_name(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    folders = (str(tmp_path / "none"), str(one), str(two))
    assert first_of(folders, ("a+", "a"), False) is None
    (one / "a").touch()
    assert first_of(folders, ("a+", "a"), False) == (str(one / "a"), (one / "a").stat().st_mode)
    (two / "a+").mkdir()
    found = first_of(folders, ("a+", "a"), False)
    assert found is not None
    assert (found[0], stat.S_ISDIR(found[1])) == (str(two / "a+"), True)
    assert first_of((), ("a",), False) is first_of(folders, (), False) is None


def test_a_link_is_found_as_itself_or_as_what_it_leads_to(tmp_path: Path) -> None:
    link = tmp_path / "a"
    link.symlink_to("b")
    found = first_of((str(tmp_path),), ("a",), False)
    assert found is not None
    assert stat.S_ISLNK(found[1])
    assert first_of((str(tmp_path),), ("a",), True) is None
    (tmp_path / "b").touch()
    assert first_of((str(tmp_path),), ("a",), True) == (str(link), link.stat().st_mode)


@pytest.mark.parametrize("length", [255, 256, 4095, 4096, 10_000])
def test_a_name_that_is_too_long_is_the_name_of_no_file(tmp_path: Path, length: int) -> None:
    (tmp_path / "a").touch()
    found = first_of((str(tmp_path),), ("x" * length, "a"), False)
    assert found == (str(tmp_path / "a"), (tmp_path / "a").stat().st_mode)


def test_a_file_that_cannot_be_looked_at_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop") as caught:
        first_of((str(tmp_path),), ("loop", "a"), True)
    assert caught.value.errno == errno.ELOOP
    assert os.fspath(caught.value.filename) == str(tmp_path / "loop")
    with pytest.raises(ValueError, match="null"):
        first_of((str(tmp_path),), ("a\0b",), True)


def test_what_is_no_program_is_not_started(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        spawn(str(tmp_path / "none"), ("x",), (), (0, 1, 2), -1)
    with pytest.raises(ValueError, match="null"):
        spawn("/bin/true", ("x", "a\0b"), (), (0, 1, 2), -1)
    with pytest.raises(ValueError, match="null"):
        spawn("/bin/true", ("x",), ("a", b"b\0c"), (0, 1, 2), -1)
    with pytest.raises(ValueError, match="more descriptors"):
        spawn("/bin/true", ("x",), (), (0,) * 9, -1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        spawn("/bin/true", ("x",), (), (-1,), -1)
