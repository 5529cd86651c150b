"""Notes of `qvm-policy` beside an answer: a name in the question does not exist."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pedos_cli.qvm_policy import main
from pedos_protocol.errors import CallError

if TYPE_CHECKING:
    from conftest import FakeService

Captured = pytest.CaptureFixture[str]

ALLOW = {
    "argument": "+sys-usb:sda:",
    "verdict": "allow",
    "rule": "30-user.policy:3",
    "text": "device.attach.block * * * allow",
    "target": "work",
    "candidates": [],
    "trace": [],
}


@pytest.fixture
def explained(service: FakeService, listed: Callable[..., dict[str, Any]]) -> FakeService:
    service.replies["policy.explain"] = ALLOW
    service.replies["vm.list"] = {"vms": [{"name": name} for name in ("work", "sys-usb")]}
    service.replies["device.list"] = {"devices": [listed("sys-usb:sda")], "policy": None}
    return service


@pytest.fixture
def files(tmp_path: Path, no_service: Path) -> list[str]:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "30-user.policy").write_text("app.Open * work @default deny\n")
    (tmp_path / "vms.json").write_text(json.dumps({"domains": {"work": {}}}))
    return ["--policy-dir", str(tmp_path / "p"), "--system", str(tmp_path / "vms.json")]


@pytest.mark.parametrize(
    ("argv", "notes"),
    [
        ("device.attach.block +sys-usb:sda work work", []),
        ("device.attach.block +sys-usb:sdb work work", ["sys-usb has no block device sdb now"]),
        ("device.attach.block +sys-net:sda work work", ["there is no VM sys-net, so it lends"]),
        ("app.Open + wrok dom0", ["there is no VM wrok that could ask"]),
        ("app.Open + work valt", ["there is no VM valt: to ask for it is to ask for @default"]),
        ("app.Open + work", []),
        ("app.Open + work @dispvm:valt", []),
    ],
)
def test_what_does_not_exist_is_said(
    explained: FakeService, argv: str, notes: list[str], capsys: Captured
) -> None:
    assert main(["explain", *argv.split()]) == 0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(notes), said
    for line, note in zip(said, notes, strict=True):
        assert note in line


def test_no_note_makes_a_failure_of_an_answer(explained: FakeService, capsys: Captured) -> None:
    explained.replies["vm.list"] = CallError("failed", "no")
    assert main(["explain", "app.Open", "+", "wrok"]) == 0
    assert capsys.readouterr().err == ""


def test_of_files_the_facts_tell_it(files: list[str], capsys: Captured) -> None:
    assert main(["explain", "app.Open", "+", "work", "valt", *files]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("deny: ")
    assert "there is no VM valt" in err
    assert "why:" not in out, "it says no more than the rule"


def test_what_dom0s_user_sees_needs_no_rule_of_files_either(
    files: list[str], capsys: Captured
) -> None:
    asked = ["device.list.block", "+work:sda:", "dom0", "dom0"]
    assert main(["explain", *asked, *files]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "allow: device.list.block +work:sda: dom0 -> dom0",
        "  rule: none is needed",
        "  why:  dom0's user sees every device that no rule hides",
    ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["app.Open+x", "work"], "try:  qvm-policy explain app.Open +x SOURCE TARGET"),
        (["app.Open+x", "work", "vault"], "try:  qvm-policy explain app.Open +x SOURCE TARGET"),
        (["app Open", "+", "work"], "is not a service's name"),
        (["app.Open", "+", "wo rk"], "neither a VM's name nor a word"),
        (["app.Open", "+", "work", "\x1b[m"], "neither a VM's name nor a word"),
    ],
)
def test_what_can_be_no_request_is_a_usage_error_with_a_way_out(
    no_service: Path, argv: list[str], said: str, capsys: Captured
) -> None:
    assert main(["explain", *argv]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "\n  try:  " in err


def test_a_broken_draft_is_to_be_checked_as_a_draft(
    files: list[str], tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "a draft").write_text("app.Open\n")
    draft = f"30-user.policy={tmp_path / 'a draft'}"
    assert main(["explain", "app.Open", "+", "work", *files, "--with", draft]) == 1
    folder = tmp_path / "p"
    assert f"qvm-policy check --policy-dir {folder} --with '{draft}'" in capsys.readouterr().err


def test_a_graph_of_no_vm_says_so(files: list[str], capsys: Captured) -> None:
    assert main(["graph", "--vm", "wrok", *files]) == 0
    assert "warning: there is no VM wrok" in capsys.readouterr().err


def test_a_vm_of_a_test_needs_a_vm_s_name(
    files: list[str], tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "my.tests").write_text("!vm wo/rk\n")
    assert main(["test", str(tmp_path / "my.tests"), *files]) == 2
    assert "my.tests:1: !vm: 'wo/rk' is not a VM name" in capsys.readouterr().err


def test_places_that_an_error_has_not_are_not_shown(service: FakeService, capsys: Captured) -> None:
    errors = [
        {"file": "/etc/pedos/policy.d", "line": 0, "column": 0, "message": "it is gone"},
        {"file": "vms.d/50.toml", "line": 3, "column": 0, "message": "not valid TOML"},
    ]
    service.replies["service.status"] = {
        "policy": {"ok": False, "loaded_at": None, "rules": 0, "errors": errors}
    }
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "  /etc/pedos/policy.d: it is gone\n" in out
    assert "  vms.d/50.toml:3: not valid TOML\n" in out


def test_a_name_that_no_policy_file_may_have_is_not_in_use(
    files: list[str], tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "p" / "a b.policy").touch()
    assert main(["get", *files[:2]]) == 0
    good, bad = capsys.readouterr().out.splitlines()
    assert good.endswith("in use")
    assert bad.endswith("an error: no policy file may have this name")


def test_in_a_vm_it_is_told_what_can_be_asked(
    no_service: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("PEDOS_VM", "work")
    assert main(["explain", "device.attach.block", "+sys-usb:sda", "vault", "vault"]) == 1
    err = capsys.readouterr().err
    assert "and here is work" in err
    assert "try:  qvm-policy explain --mine device.attach.block +sys-usb:sda\n" in err
