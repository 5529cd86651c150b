"""fmt: the columns are aligned, nothing is lost, and the meaning stays."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pedos_cli.policy_engine import meaning
from pedos_cli.policy_fmt import RULE_MAX, align
from pedos_cli.qvm_policy import main

Captured = pytest.CaptureFixture[str]

NAME = "30-user.policy"
ROOT = Path(__file__).parents[2]
CORPORA = sorted(
    path
    for folder in (ROOT / "tests" / "policy", ROOT / "dom0_service")
    for path in folder.rglob("*.policy")
)
SHARED = ROOT.parent / "shared" / "conformance" / "policy-cases.jsonl.gz"
CASES = Path(os.environ.get("PEDOS_POLICY_CASES") or SHARED)

BEFORE = """\
# a comment,   kept as it is
app.Open * work vault allow user=root   notify=yes
   # an indented one
device.attach.block\t+sys-usb:*   @adminvm @tag:work deny

  !include   include/common
*  *  *  *  deny"""

AFTER = """\
# a comment,   kept as it is
app.Open             *           work      vault      allow user=root notify=yes
   # an indented one
device.attach.block  +sys-usb:*  @adminvm  @tag:work  deny

!include include/common
*  *  *  *  deny
"""


def test_columns_are_aligned_within_a_block_and_comments_stay() -> None:
    assert align(BEFORE) == AFTER


@pytest.mark.parametrize(
    ("text", "aligned"),
    [
        ("", ""),
        ("\n", "\n"),
        ("# x \t\r\n\r\n", "# x\n\n"),
        ("a * b c allow\r\n", "a  *  b  c  allow\n"),
        ("#", "#\n"),
        ("\n\n# x\n\n\n", "\n\n# x\n\n\n"),
    ],
)
def test_blank_lines_and_ends_of_lines(text: str, aligned: str) -> None:
    assert align(text) == aligned
    assert align(aligned) == aligned


def test_no_line_becomes_longer_than_a_rule_may_be() -> None:
    long = "+" + "x" * 450
    text = f"a {long} b c allow\n{'s' * 100} * b c allow\n"
    aligned = align(text)
    assert max(map(len, aligned.splitlines())) <= RULE_MAX
    assert meaning(aligned) == meaning(text) is not None
    assert align(aligned) == aligned


def stays_itself(text: str) -> None:
    aligned = align(text)
    assert align(aligned) == aligned
    before = meaning(text)
    if before is not None:
        assert meaning(aligned) == before


@pytest.mark.parametrize("path", CORPORA, ids=lambda path: path.name)
def test_the_meaning_of_the_corpora_stays(path: Path) -> None:
    data = path.read_bytes()
    try:
        stays_itself(data.decode("utf-8"))
    except UnicodeDecodeError:
        assert "\ufffd" in data.decode("utf-8", "replace")  # fmt refuses it before it looks


@pytest.mark.skipif(not CASES.exists(), reason="there is no file of conformance cases")
def test_the_meaning_of_the_conformance_cases_stays() -> None:
    opened = gzip.open if CASES.suffix == ".gz" else open
    with opened(CASES, "rt", encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            stays_itself(json.loads(line)["policy"])


WORDS = st.sampled_from(
    ["app.Open", "device.attach.usb", "*", "+", "+a:b:c*", "work", "@tag:x", "allow", "ask", "deny",
     "notify=yes", "user=root", "#", "#x", "!include", "!compat-4.0", "\x0b", "é", "\u2028"]
)  # fmt: skip
GAPS = st.text(" \t", min_size=1, max_size=3)
LINES = st.one_of(
    st.lists(WORDS, max_size=7).flatmap(
        lambda words: st.lists(GAPS, min_size=len(words), max_size=len(words)).map(
            lambda gaps: "".join(map("".join, zip(words, gaps, strict=True)))
        )
    ),
    st.text(max_size=8),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(LINES, max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_any_text_is_aligned_once_and_for_all(lines: list[str], end: str) -> None:
    stays_itself(end.join(lines))


# The command


@pytest.fixture
def folder(tmp_path: Path, no_service: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "policy.d"
    (made / "include").mkdir(parents=True)
    (made / "include" / "common").write_text("")
    (made / NAME).write_text(BEFORE)
    (made / "90-good.policy").write_text("# fine\n")
    monkeypatch.setenv("PEDOS_POLICY_PATH", str(made))
    return made


def test_check_only_tells(folder: Path, capsys: Captured) -> None:
    assert main(["fmt", "--check"]) == 1
    assert capsys.readouterr().out == f"{NAME} is not aligned\n"
    assert (folder / NAME).read_text() == BEFORE
    assert main(["fmt", "--check", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["files"] == [
        {"name": NAME, "changed": True},
        {"name": "90-good.policy", "changed": False},
    ]


def test_fmt_writes_what_has_changed(folder: Path, capsys: Captured) -> None:
    assert main(["fmt"]) == 0
    assert (folder / NAME).read_text() == AFTER
    assert capsys.readouterr().out.startswith(f"{NAME} aligned\n")
    assert main(["fmt", "--check"]) == 0


def test_a_file_with_an_error_is_left_as_it_is(folder: Path, capsys: Captured) -> None:
    for content in (b"app.Open  *\n", b"# \xff\n"):
        (folder / NAME).write_bytes(content)
        assert main(["fmt", NAME]) == 1
        assert (folder / NAME).read_bytes() == content
        assert "qvm-policy check" in capsys.readouterr().err


def test_a_name_that_is_not_there_is_told(folder: Path, capsys: Captured) -> None:
    assert main(["fmt", "31-none.policy"]) == 4
    assert "there is no 31-none.policy" in capsys.readouterr().err


def test_fmt_is_a_filter(
    folder: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(BEFORE.encode())))
    assert main(["fmt", "-"]) == 0
    assert capfdbinary.readouterr().out == AFTER.encode()


# Files that others include


SERVICE_FILE = "# of one service\n*   work allow user=root   notify=yes\n@tag:office  vault deny\n"
SERVICE_ALIGNED = (
    "# of one service\n*            work   allow user=root notify=yes\n@tag:office  vault  deny\n"
)


@pytest.fixture
def including(folder: Path) -> Path:
    (folder / "include").mkdir(exist_ok=True)
    (folder / NAME).write_text(
        "!include include/common\n!include-service app.Open * include/open\n"
        "!include-service device.attach.block * include/disks\n"
    )
    (folder / "include/common").write_text("app.Open * work   vault deny\n")
    (folder / "include/open").write_text(SERVICE_FILE)
    (folder / "include/disks").write_text(
        "work   work allow read-only=yes\n!include include/more\n"
    )
    (folder / "include/more").write_text("vault   work deny\n")
    return folder / "include"


@pytest.mark.parametrize(
    ("name", "aligned"),
    [
        ("common", "app.Open  *  work  vault  deny\n"),
        ("open", SERVICE_ALIGNED),
        ("disks", "work  work  allow read-only=yes\n!include include/more\n"),
        ("more", "vault  work  deny\n"),
    ],
)
def test_an_included_file_is_aligned_by_its_own_columns(
    including: Path, capsys: Captured, name: str, aligned: str
) -> None:
    assert main(["fmt", "--check", f"include/{name}"]) == 1
    assert main(["fmt", f"include/{name}"]) == 0
    assert (including / name).read_text() == aligned
    assert main(["fmt", "--check", f"include/{name}"]) == 0


@pytest.mark.parametrize(
    ("text", "aligned"),
    [
        (SERVICE_FILE, SERVICE_ALIGNED),
        ("work   work allow read-only=yes\n", "work  work  allow read-only=yes\n"),
        ("app.Open * work   vault deny\n", "app.Open  *  work  vault  deny\n"),
    ],
)
def test_of_a_file_that_none_includes_yet_its_lines_tell(
    including: Path, text: str, aligned: str
) -> None:
    (including / "new").write_text(text)
    assert main(["fmt", "include/new"]) == 0
    assert (including / "new").read_text() == aligned


def test_an_included_file_with_an_error_is_left(including: Path, capsys: Captured) -> None:
    (including / "open").write_text("app.Open * work vault deny\n")
    assert main(["fmt", "include/open"]) == 1
    assert "include/open has an error, and is left as it is" in capsys.readouterr().err
