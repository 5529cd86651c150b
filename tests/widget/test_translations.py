"""Every text of the widget is translated, and what is filled in stands in the translation too."""

from __future__ import annotations

import gettext
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pedos_widget.i18n import DOMAIN

PROJECT = Path(__file__).resolve().parents[2]
SOURCES = sorted((PROJECT / "widget/po").glob("*.po"))

pytestmark = pytest.mark.skipif(shutil.which("xgettext") is None, reason="needs gettext")


def run(*command: str | Path) -> str:
    done = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the code has to translate."""
    file = tmp_path_factory.mktemp("template") / "texts.pot"
    run("tools/translations", "template", file)
    return file


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("locale")
    run("tools/translations", "build", folder)
    return folder


def test_there_is_a_language() -> None:
    assert [source.stem for source in SOURCES] == ["de"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_language_has_all_texts_and_no_others(source: Path, template: Path) -> None:
    merged = template.with_name(f"{source.stem}.po")
    run("msgmerge", "--force-po", "--no-fuzzy-matching", "--output-file", merged, source, template)
    for lacking in ("--untranslated", "--only-fuzzy", "--only-obsolete"):
        found = re.findall(r'^(?:#~ )?msgid (?!"")"?.*', run("msgattrib", lacking, merged), re.M)
        assert found == [], f"{lacking}: run tools/translations update, and edit {source.name}"


def test_a_translation_fills_in_what_the_text_does(built: Path) -> None:
    # `msgfmt --check` sees to it only where xgettext knew a text for one that is filled in.
    names = re.compile(r"\{[^{}]*\}")
    for file in built.rglob("*.mo"):
        with file.open("rb") as opened:
            texts = gettext.GNUTranslations(opened)._catalog  # type: ignore[attr-defined]
        for text, translated in texts.items():
            if text and isinstance(text, str):  # of a plural msgfmt sees to each form
                assert sorted(names.findall(text)) == sorted(names.findall(translated)), text


def test_a_catalogue_is_found_by_the_language_of_the_environment(
    built: Path,
) -> None:
    look = (
        "import sys; from pathlib import Path; from pedos_widget.i18n import catalogue; "
        "print(catalogue([Path(sys.argv[1])]).info()['language'])"
    )
    assert run("env", "LANGUAGE=de_AT", sys.executable, "-c", look, built) == "de\n"
    assert (built / "de/LC_MESSAGES" / f"{DOMAIN}.mo").exists()


def test_texts_are_literals(template: Path) -> None:
    """xgettext finds no others, and they would stay English."""
    for path in (PROJECT / "widget/pedos_widget").rglob("*.py"):
        found = re.findall(r"\b(?:_|ngettext)\(\s*(?![\s\"'])[^)]*\)", path.read_text())
        assert found == [] or path.name == "i18n.py", f"{path.name}: {found}"


def test_a_wheel_has_the_catalogues_and_the_icons() -> None:
    """setup.py compiles them beside the package, and pyproject.toml says what belongs to it."""
    package = PROJECT / "widget/pedos_widget"
    data = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = data["package-data"]["pedos_widget"]
    files = {file for pattern in patterns for file in package.glob(pattern)}
    assert {package / "locale/de/LC_MESSAGES" / f"{DOMAIN}.mo"} <= files
    assert {each.suffix for each in files} >= {".png", ".svg", ".mo"}
