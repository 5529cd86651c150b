"""Translations: found where they are, and no reason not to start where they are not."""

from __future__ import annotations

import gettext
from pathlib import Path

import pytest
from pedos_widget.i18n import DOMAIN, catalogue

#: Not in the environment: Qt has set the locale of this process, so that the C library would tell
#: errors in that language, and remember the words for all later tests.
GERMAN = ("de_AT", "de")


def catalogue_file(folder: Path) -> Path:
    file = folder / "de/LC_MESSAGES" / f"{DOMAIN}.mo"
    file.parent.mkdir(parents=True)
    return file


def test_without_a_catalogue_texts_are_as_they_stand_in_the_code(tmp_path: Path) -> None:
    assert type(catalogue([tmp_path], GERMAN)) is gettext.NullTranslations
    assert catalogue([tmp_path], GERMAN).ngettext("{n} device", "{n} devices", 2) == "{n} devices"


@pytest.mark.parametrize("damaged", [b"", b"\xde\x12\x04\x95", b"\xde\x12\x04\x95" + b"\xff" * 40])
def test_a_damaged_catalogue_is_logged_and_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: bytes
) -> None:
    catalogue_file(tmp_path).write_bytes(damaged)
    assert catalogue([tmp_path], GERMAN).gettext("Quit") == "Quit"
    assert str(tmp_path) in caplog.text
