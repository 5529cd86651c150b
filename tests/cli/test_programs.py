"""qvm-ls, qvm-start, qvm-shutdown and qvm-policy."""

from __future__ import annotations

import importlib
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pedos_cli import output, qvm_device, qvm_ls, qvm_policy, qvm_shutdown, qvm_sleep, qvm_start
from pedos_protocol import VERSION
from pedos_protocol.device_classes import class_names
from pedos_protocol.errors import CallError

if TYPE_CHECKING:
    from conftest import FakeService

Captured = pytest.CaptureFixture[str]

VMS = {
    "vms": [
        {"name": "work10", "state": "Halted", "domid": None, "agent": False},
        {"name": "work2", "state": "Running", "domid": 4, "agent": True},
        {"name": "dom0", "state": "Running", "domid": 0, "agent": True},
    ]
}


def test_ls_shows_every_vm_in_natural_order(service: FakeService, capsys: Captured) -> None:
    service.replies["vm.list"] = VMS
    assert qvm_ls.main([]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "dom0    Running  0  yes",
        "work2   Running  4  yes",
        "work10  Halted   -  -",
    ]


def test_ls_has_a_header_on_a_terminal(
    service: FakeService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.replies["vm.list"] = VMS
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    assert qvm_ls.main(["work2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "NAME   STATE    DOMID  AGENT",
        "work2  Running  4      yes",
    ]


def test_ls_of_an_unknown_vm_shows_the_others_and_fails(
    service: FakeService, capsys: Captured
) -> None:
    service.replies["vm.list"] = VMS
    assert qvm_ls.main(["work10", "play"]) == 4
    assert capsys.readouterr() == (
        "work10  Halted  -  -\n",
        "qvm-ls: not found: no VM named 'play'\n  try:  qvm-ls\n",
    )


def test_ls_speaks_json(service: FakeService, capsys: Captured) -> None:
    service.replies["vm.list"] = VMS
    assert qvm_ls.main(["--json", "dom0"]) == 0
    assert json.loads(capsys.readouterr().out) == {"vms": [VMS["vms"][2]]}


def test_what_is_not_served_is_said_in_the_words_of_the_one_who_was_asked(
    service: FakeService, capsys: Captured
) -> None:
    service.replies["vm.list"] = CallError("unknown_method", "it is served in dom0 alone")
    assert qvm_ls.main([]) == 1
    assert capsys.readouterr().err == "qvm-ls: failed: it is served in dom0 alone\n"


def test_start_tells_what_was_attached(service: FakeService, capsys: Captured) -> None:
    service.replies["vm.start"] = {"domid": 7, "attached": ["sys-usb:sda", "sys-usb:sdb"]}
    assert qvm_start.main(["work"]) == 0
    assert capsys.readouterr().out == (
        "work started (domain 7); attached: sys-usb:sda, sys-usb:sdb\n"
    )
    assert qvm_start.main(["-q", "work"]) == 0
    assert capsys.readouterr().out == ""


def test_start_goes_on_past_a_failure_and_exits_with_the_first(
    service: FakeService, capsys: Captured
) -> None:
    def reply(params: dict[str, Any]) -> dict[str, Any] | CallError:
        if params["vm"] == "a":
            return CallError("busy", "sys-usb:sda is attached to b", {"hint": "qvm-block list"})
        if params["vm"] == "b":
            return CallError("failed", "no")
        return {"domid": 1, "attached": []}

    service.replies["vm.start"] = reply
    assert qvm_start.main(["a", "b", "c"]) == 6
    assert capsys.readouterr() == (
        "c started (domain 1)\n",
        "qvm-start: busy: sys-usb:sda is attached to b\n"
        "  try:  qvm-block list\n"
        "qvm-start: failed: no\n",
    )


@pytest.mark.parametrize(("flags", "force"), [([], False), (["--force", "--wait"], True)])
def test_shutdown_says_what_it_did(
    service: FakeService, capsys: Captured, flags: list[str], force: bool
) -> None:
    service.replies["vm.shutdown"] = {}
    assert qvm_shutdown.main([*flags, "work"]) == 0
    assert service.asked("vm.shutdown") == {"vm": "work", "force": force}
    assert capsys.readouterr().out == "work shut down\n"


def test_shutdown_goes_on_past_a_failure(service: FakeService, capsys: Captured) -> None:
    service.replies["vm.shutdown"] = lambda params: (
        {} if params["vm"] == "b" else CallError("not_found", "no VM named 'a'")
    )
    assert qvm_shutdown.main(["a", "b"]) == 4
    assert capsys.readouterr().out == "b shut down\n"


def slept(error: dict[str, object] | None = None, *, again: bool = False) -> dict[str, object]:
    device = {"device_class": "usb", "backend": "sys-usb", "device": "1-2", "vm": "work"}
    results = [
        {**device, "error": error, "again": again},
        {**device, "error": None, "again": False},
    ]
    return {"results": results, "request": "3f9c01ab77de", "left_out": 0}


def test_sleep_says_what_it_detached_and_what_stays(service: FakeService, capsys: Captured) -> None:
    error = {"code": "busy", "message": "work uses sys-usb:1-2", "data": {"hint": "unmount it"}}
    service.replies["devices.suspend"] = slept(error)
    assert qvm_sleep.main(["suspend"]) == 6
    assert capsys.readouterr() == (
        "sys-usb:1-2 detached from work for the sleep\n",
        "qvm-sleep: busy: sys-usb:1-2 stays attached to work in the sleep, and may not work after "
        "it: work uses sys-usb:1-2\n  try:  unmount it\n",
    )


@pytest.mark.parametrize("again", [True, False])
def test_sleep_says_what_it_attached_again_and_what_not(
    service: FakeService, capsys: Captured, again: bool
) -> None:
    error = {"code": "not_found", "message": "it has not come back", "data": {}}
    service.replies["devices.resume"] = {**slept(error, again=again), "left_out": 2}
    assert qvm_sleep.main(["--seconds", "30", "resume"]) == 4
    out, err = capsys.readouterr()
    assert out == "sys-usb:1-2 attached to work\n"
    lines = err.splitlines()
    assert lines[0] == (
        "qvm-sleep: not found: sys-usb:1-2 is not attached to work again: it has not come back"
    )
    assert ("  try:  qvm-sleep resume tries again" in lines) == again
    assert lines[-1] == "qvm-sleep: and 2 more, see: qvm-audit show 3f9c01ab77de"


def test_sleep_does_not_wait_for_a_vm_that_hangs(service: FakeService, capsys: Captured) -> None:
    service.replies["devices.suspend"] = CallError("timeout", "no answer")
    assert qvm_sleep.main(["suspend"]) == 1
    assert capsys.readouterr().err == (
        "qvm-sleep: the detach before the sleep takes longer than 15 s: it goes on; see: "
        "qvm-usb list\n"
    )


@pytest.mark.parametrize("seconds", ["0", "-1", "x", "3601", "1e3"])
def test_sleep_takes_a_number_of_seconds(capsys: Captured, seconds: str) -> None:
    assert qvm_sleep.main([f"--seconds={seconds}", "suspend"]) == 2
    assert "is no number from 1 to 3600" in capsys.readouterr().err


def test_policy_status_of_a_good_policy(service: FakeService, capsys: Captured) -> None:
    assert qvm_policy.main(["status"]) == 0
    assert capsys.readouterr().out == (
        "policy: in force since 2025-01-02T03:04:05+00:00, 3 rules\n"
    )


def test_policy_status_tells_file_line_column_and_why(
    service: FakeService, capsys: Captured
) -> None:
    error = {"file": "30-user.policy", "line": 12, "column": 5, "message": "unknown \x1b action"}
    policy = {"ok": False, "loaded_at": "", "rules": 0, "errors": [error]}
    service.replies["service.status"] = {"policy": policy}
    assert qvm_policy.main(["status"]) == 0
    assert capsys.readouterr().out == (
        "policy: none in force, everything is denied\n"
        "a newer policy was not taken, because of:\n"
        "  30-user.policy:12:5: unknown \\x1b action\n"
    )
    assert qvm_policy.main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == policy


SCRIPTS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
    "scripts"
]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_program_tells_its_version(name: str, capsys: Captured) -> None:
    module, function = SCRIPTS[name].split(":")
    main = getattr(importlib.import_module(module), function)
    try:
        status = main(["--version"])
    except SystemExit as leaving:
        status = leaving.code
    assert (status, capsys.readouterr().out) == (0, f"{name} {VERSION}\n")


@pytest.mark.parametrize("words", [[], ["block"], ["-v"]])
def test_qvm_device_lists_the_device_classes(words: list[str], capsys: Captured) -> None:
    assert qvm_device.main([*words, "--list-device-classes"]) == 0
    assert capsys.readouterr().out.split("\n") == [*class_names(), ""]


def test_the_device_classes_are_json_for_those_who_ask_for_that(capsys: Captured) -> None:
    assert qvm_device.main(["--json", "--list-device-classes"]) == 0
    assert json.loads(capsys.readouterr().out) == {"device_classes": list(class_names())}


@pytest.mark.parametrize("words", [["block", "--version"], ["--version", "floppy"]])
def test_the_version_is_told_whatever_else_is_asked_for(words: list[str], capsys: Captured) -> None:
    assert qvm_device.main(words) == 0
    assert capsys.readouterr().out == f"qvm-device {VERSION}\n"
