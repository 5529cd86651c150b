"""Exclusive ownership of a folder by one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from pedos_host.folder_lock import FolderHeld, hold_folder, make_private


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o704, 0o710])
def test_a_folder_that_others_could_lock_is_not_taken_for_a_lock(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(PermissionError, match="0700"), hold_folder(folder):
        pass
    make_private(folder)
    with hold_folder(folder), pytest.raises(FolderHeld), hold_folder(folder):
        pass


def test_a_folder_of_another_user_is_not_taken_for_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    make_private(folder)
    owner = folder.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    with pytest.raises(PermissionError, match="this user's"), hold_folder(folder):
        pass
