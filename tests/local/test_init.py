"""`pedos-local init`."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from pedos_dom0.local import config, templates
from pedos_dom0.local.cli import main
from pedos_dom0.local.init import InitError, init
from pedos_dom0.policy.parser import parse_file
from pedos_dom0.vms.facts_file import parse as parse_facts
from pedos_protocol.names import escaped_text


def test_it_makes_the_folder_with_its_parents_and_everything_in_it(tmp_path: Path) -> None:
    layout = init(str(tmp_path / "a" / "b"))
    assert config.load(layout.config).names == ("sys-usb", "work", "vault")
    for name in ("dom0", "sys-usb", "work", "vault"):
        assert (layout.devices(name) / "block").is_dir()
        assert layout.dev(name).is_dir()
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["b"]


def test_a_folder_that_is_one_already_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path)]) == 0
    (tmp_path / "pedos.toml").write_text("[vm.mine]\n")
    assert main(["init", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "already holds a pedos.toml" in said
    assert "pedos-local up" in said
    assert (tmp_path / "pedos.toml").read_text() == "[vm.mine]\n"


def test_files_that_are_there_stay(tmp_path: Path) -> None:
    (tmp_path / "policy.d").mkdir()
    (tmp_path / "policy.d" / "50-local.policy").write_text("# mine\n")
    (tmp_path / "notes").write_text("x")
    init(str(tmp_path))
    assert (tmp_path / "policy.d" / "50-local.policy").read_text() == "# mine\n"
    assert (tmp_path / "notes").read_text() == "x"


def test_a_failure_leaves_nothing_half_done(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "vms").write_text("in the way")
    with pytest.raises(InitError, match="cannot make"):
        init(str(tmp_path / "lab"))
    assert [entry.name for entry in (tmp_path / "lab").iterdir()] == ["vms"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lab").write_text("")
    with pytest.raises(InitError, match="Not a directory"):
        init(str(tmp_path / "lab"))


def test_facts_about_vms_can_be_written_where_init_says(tmp_path: Path) -> None:
    layout = init(str(tmp_path / "lab"))
    file = layout.facts / "50-local.toml"
    example = file.read_text()
    assert parse_facts(file.name, example.encode()) == ({}, [])
    # Its comments are an example that works once the # is taken away.
    said, errors = parse_facts(file.name, re.sub(r"(?m)^#(?=\S)", "", example).encode())
    assert not errors
    assert said["work"].facts.tags == {"office"}
    (layout.root / "pedos.toml").unlink()
    file.write_text("[work]\n")
    init(str(layout.root))
    assert file.read_text() == "[work]\n"


def test_the_policy_of_init_has_no_mistakes() -> None:
    rules, errors = parse_file("50-local.policy", templates.POLICY)
    assert not errors
    assert rules


@pytest.mark.parametrize("verb", ["init", "up", "run"])
def test_an_empty_name_is_no_folder(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([verb, "", *(["true"] if verb == "run" else [])])
    assert ended.value.code == 2
    assert "DIR is empty" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["plain", "it's a lab", "l\x1b[31mab", "l\udcff\n\\'ab", "\u202ex"]
)
def test_what_init_says_to_try_can_be_tried_in_a_shell_whatever_the_folder_is_called(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = str(tmp_path / name)
    assert main(["init", lab]) == 0
    first, plug, look, *_ = capsys.readouterr().out.splitlines()
    assert all(escaped_text(line) == line for line in (first, plug, look))
    command = plug.partition("cp IMAGE ")[2]
    shown = subprocess.run(["bash", "-c", f"printf %s {command}"], capture_output=True, check=True)
    assert shown.stdout == os.fsencode(f"{lab}/vms/sys-usb/devices/block/")
    assert main(["init", lab]) == 1
    assert "\x1b" not in capsys.readouterr().err
