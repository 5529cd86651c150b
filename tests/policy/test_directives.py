"""What directives include, what replaces a file before it is written, and what is watched."""

from __future__ import annotations

from pathlib import Path

import pytest
from pedos_dom0.policy import compat, files, reading
from pedos_dom0.policy.evaluate import Request, evaluate
from pedos_dom0.policy.reading import Loaded, read_policy
from pedos_dom0.policy.system import System, VmFacts

SYSTEM = System({name: VmFacts(name, tags=frozenset({"t"})) for name in ("work", "mail", "vault")})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "policy.d"
    folder.mkdir()
    return folder


def messages(loaded: Loaded) -> list[str]:
    return [str(error) for error in loaded.errors]


def put(folder: Path, **contents: str) -> None:
    for name, text in contents.items():
        (folder / f"{name}.policy").write_text(text)


def test_a_file_that_is_replaced_or_taken_away_is_so_only_in_the_last_folder(
    tmp_path: Path, folder: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    put(run, a="s.A * * * allow user=run\n")
    put(folder, a="s.A * * * allow user=etc\n", b="s.B * * * deny\n")
    replaced = {"a.policy": b"broken\n", "b.policy": None, "c.policy": b"s.C * * * ask\n"}
    loaded = read_policy([run, folder], replaced=replaced)
    assert messages(loaded) == []
    assert loaded.files == ("a.policy", "c.policy")
    assert [rule.text for rule in loaded.rules] == ["s.A * * * allow user=run", "s.C * * * ask"]
    assert (folder / "b.policy").exists()


def test_a_replaced_file_has_its_errors_and_a_bad_name_too(folder: Path) -> None:
    loaded = read_policy([folder], replaced={"a.policy": b"s.A * *\n", "Bad.policy": b""})
    assert messages(loaded) == [
        "'Bad.policy':0:0: a policy file's name has only 0-9 a-z _ . -",
        "a.policy:1:8: TARGET, ACTION missing",
    ]


def test_an_included_file_can_be_replaced_or_taken_away(folder: Path) -> None:
    put(folder, a="!include inc/x\n!include-dir more\n")
    (folder / "inc").mkdir()
    (folder / "inc" / "x").write_text("s.A * * * allow\n")
    (folder / "more").mkdir()
    replaced = {"inc/x": b"s.B * * * allow\n", "more/y.policy": b"s.C * * * deny\n"}
    loaded = read_policy([folder], replaced=replaced)
    assert [rule.text for rule in loaded.rules] == ["s.B * * * allow", "s.C * * * deny"]
    gone = read_policy([folder], replaced={"inc/x": None})
    assert messages(gone) == ["a.policy:1:1: there is no file inc/x"]


def test_a_missing_folder_of_overlays_is_no_error_but_the_administrators_is(
    tmp_path: Path, folder: Path
) -> None:
    put(folder, a="s.A * * * allow\n")
    assert messages(read_policy([tmp_path / "run", folder])) == []
    (message,) = messages(read_policy([folder, tmp_path / "etc"]))
    assert message.endswith("etc:0:0: the folder cannot be read: No such file or directory")


def test_everything_that_is_included_is_watched(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "x").write_text("s.A * * * allow\n")
    (folder / "link").symlink_to(elsewhere / "x")
    put(folder, a=f"!include link\n!include inc/none\n!include-dir more\n!include {elsewhere}/x\n")
    watched = read_policy([folder], legacy=tmp_path / "old").watched
    assert {folder, elsewhere, folder / "inc", folder / "more"} <= set(watched)


def test_the_same_content_has_the_same_digest_wherever_it_changes(folder: Path) -> None:
    put(folder, a="!include x\n")
    (folder / "x").write_text("s.A * * * allow\n")
    first = read_policy([folder]).digest
    assert read_policy([folder]).digest == first
    (folder / "x").write_text("s.A * * * deny\n")
    assert read_policy([folder]).digest != first


def test_files_that_include_each_other_over_and_over_come_to_an_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two lines in each of fifteen files would be sixteen thousand readings of the last."""
    monkeypatch.setattr(reading, "FILES_MAX", 50)
    put(folder, a="!include d1\n")
    for n in range(1, 15):
        (folder / f"d{n}").write_text(f"!include d{n + 1}\n" * 2)
    (folder / "d15").write_text("s.A * * * allow\n")
    assert messages(read_policy([folder]))[-1].endswith(
        "more than 50 files are read, counting each inclusion"
    )


def test_so_many_bytes_in_all_are_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BYTES_MAX", 100)
    put(folder, a="#" * 60, b="#" * 60)
    assert messages(read_policy([folder])) == ["b.policy:0:0: more than 100 bytes of policy"]


def test_a_link_that_leads_to_itself_is_a_cycle_by_its_real_name(folder: Path) -> None:
    put(folder, a="!include one\n")
    (folder / "one").write_text("!include two\n")
    (folder / "two").symlink_to("one")
    assert messages(read_policy([folder])) == [
        "one:1:1: two includes itself: a.policy:1 -> one:1 -> two"
    ]


def verdict(loaded: Loaded, service: str, argument: str, source: str, target: str) -> str:
    return evaluate(Request(service, argument, source, target), loaded.snapshot, SYSTEM).verdict


def test_files_of_release_4_are_read_in_their_own_format(folder: Path, tmp_path: Path) -> None:
    put(folder, a="!compat-4.0\ns.A * * * allow\ns.B * * * allow\n")
    old = tmp_path / "old"
    old.mkdir()
    (old / "s.A").write_text(
        "# of old\n$tag:t $adminvm allow,user=root\n$anyvm $default ask,target=vault\n"
    )
    (old / "s.A+x").write_text("work $anyvm allow\n")
    (old / ".hidden").write_text("nonsense\n")
    loaded = read_policy([folder], legacy=old)
    assert messages(loaded) == []
    asked = Request("s.A", "+", "work", "dom0")
    decision = evaluate(asked, loaded.snapshot, SYSTEM)
    assert (decision.verdict, decision.user) == ("allow", "root")
    assert decision.rule is not None
    assert decision.rule.where == f"{old}/s.A:2"
    assert verdict(loaded, "s.A", "+", "work", "@default") == "ask"
    assert verdict(loaded, "s.A", "+", "work", "vault") == "allow"  # the policy goes on
    assert verdict(loaded, "s.A", "+x", "work", "mail") == "allow"
    assert verdict(loaded, "s.A", "+x", "work", "dom0") == "deny"  # the rest is denied
    assert verdict(loaded, "s.B", "+", "work", "mail") == "allow"


def test_no_folder_of_release_4_is_no_rules(folder: Path, tmp_path: Path) -> None:
    put(folder, a="!compat-4.0\n")
    loaded = read_policy([folder], legacy=tmp_path / "old")
    assert (messages(loaded), loaded.rules) == ([], ())


def test_more_files_of_release_4_than_are_read_are_an_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, a="!compat-4.0\n")
    old = tmp_path / "old"
    old.mkdir()
    for service in ("s.A", "s.B", "s.C"):
        (old / service).write_text("* * deny\n")
    monkeypatch.setattr(compat, "FILES_MAX", 2)
    loaded = read_policy([folder], legacy=old)
    assert messages(loaded) == [f"{old}:0:0: more than 2 policy files in one folder"]


def test_an_error_in_a_file_of_release_4_has_its_place(folder: Path, tmp_path: Path) -> None:
    put(folder, a="!compat-4.0\n")
    old = tmp_path / "old"
    old.mkdir()
    (old / "s.A").write_text("work $nobody allow\n")
    (old / "s,B").write_text("")
    (old / "s.C+a b").write_text("")
    (old / "s.D+\udcff").write_text("")  # a byte that is no text
    assert sorted(messages(read_policy([folder], legacy=old))) == sorted(
        [
            f"{old}/s,B:0:0: 's,B' is not a service",
            f"{old}/s.C+a b:0:0: argument '+a b' has a character that no argument has",
            f"{old}/s.D+_:0:0: argument '+\\udcff' has a character that no argument has",
            f"{old}/s.A:1:6: '@nobody' is not a VM word",
        ]
    )


def test_what_is_wrong_with_an_included_folder_is_said_of_the_line_that_includes_it(
    folder: Path,
) -> None:
    put(folder, a="s.A * * * allow\n!include-dir x\n!include-dir y\n")
    (folder / "x").write_text("")
    (folder / "y").mkdir()
    (folder / "y" / "Bad.policy").write_text("")
    assert messages(read_policy([folder])) == [
        f"a.policy:2:1: {folder}/x: the folder cannot be read: Not a directory",
        "a.policy:3:1: 'Bad.policy': a policy file's name has only 0-9 a-z _ . -",
    ]


def test_a_folder_with_too_many_files_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "FILES_MAX", 2)
    put(folder, a="", b="", c="")
    (message,) = messages(read_policy([folder]))
    assert message == f"{folder}:0:0: more than 2 policy files in one folder"
