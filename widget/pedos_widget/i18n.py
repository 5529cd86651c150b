"""Texts for people, in their language.

The keys are the English sentences in the code, so that without a catalogue everything is English.
Only whole sentences are translated: the order of words differs between languages, and so does what
a number does to a sentence (`ngettext`).
"""

from __future__ import annotations

import gettext
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

DOMAIN = "pedos-widget"
#: Beside this package in a checkout, and where Debian has those of all programs.
FOLDERS = (Path(__file__).parent / "locale", Path("/usr/share/locale"))


def catalogue(
    folders: Iterable[Path] = FOLDERS, languages: Sequence[str] | None = None
) -> gettext.NullTranslations:
    """The translations into the first of these languages that there are, or into that which the
    environment names (LANGUAGE, LC_ALL, LC_MESSAGES, LANG). One that cannot be read is as good as
    none: a program that speaks English is better than one that does not start."""
    for folder in folders:
        try:
            return gettext.translation(DOMAIN, folder, languages)
        except FileNotFoundError:
            continue
        # What the module raises for a damaged file is nowhere written down.
        except Exception as error:
            logging.getLogger(__name__).warning("translations in %s: %s", folder, error)
    return gettext.NullTranslations()


_chosen = catalogue()
_ = _chosen.gettext
ngettext = _chosen.ngettext
