"""`qvm-device mic mute` and `unmute`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pedos_cli.qvm_device import main, main_block, main_mic
from pedos_protocol.errors import CallError

from .conftest import FakeService

Captured = pytest.CaptureFixture[str]

MAY_HEAR = {
    "code": "failed",
    "message": "work MAY STILL HEAR dom0:mic: dom0 does not confirm that it is muted (it hangs)",
    "data": {"hint": "qvm-device mic detach work dom0:mic"},
}


def answer(
    service: FakeService, outcome: str, *devices: str, error: dict[str, Any] | None = None
) -> None:
    results = [
        {"backend": "dom0", "device": each, "error": error if each == devices[-1] else None}
        for each in devices
    ]
    service.replies["device.mute"] = {"outcome": outcome, "results": results, "request": "ab12"}


@pytest.mark.parametrize(
    ("action", "outcome", "devices", "said"),
    [
        ("mute", "muted", [], "work is muted: it will hear nothing of what it gets"),
        (
            "mute",
            "muted",
            ["mic", "cam"],
            "work is muted: it hears nothing of dom0:mic, dom0:cam, nor of what it gets",
        ),
        (
            "mute",
            "already",
            ["mic"],
            "work is muted already: it hears nothing of dom0:mic, nor of what it gets",
        ),
        ("unmute", "unmuted", ["mic"], "work is unmuted: it may hear dom0:mic"),
        ("unmute", "unmuted", [], "work is unmuted"),
        ("unmute", "already", ["mic"], "work is not muted: it may hear dom0:mic"),
    ],
)
def test_it_says_what_happened_and_to_what(
    service: FakeService,
    capsys: Captured,
    action: str,
    outcome: str,
    devices: list[str],
    said: str,
) -> None:
    answer(service, outcome, *devices)
    assert main(["mic", action, "work"]) == 0
    assert capsys.readouterr().out == f"{said}\n"
    assert service.asked("device.mute") == {
        "device_class": "mic",
        "vm": "work",
        "muted": action == "mute",
    }


def test_a_source_that_does_not_confirm_is_named_with_what_to_do(
    service: FakeService, capsys: Captured
) -> None:
    answer(service, "muted", "cam", "mic", error=MAY_HEAR)
    assert main_mic(["mute", "work"]) == 1
    said = capsys.readouterr()
    assert said.out == "work is muted: it hears nothing of dom0:cam, nor of what it gets\n"
    assert "qvm-mic: failed: work MAY STILL HEAR dom0:mic" in said.err
    assert "try:  qvm-device mic detach work dom0:mic" in said.err


def test_in_a_vm_it_is_refused_in_plain_words(
    service: FakeService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEDOS_VM", "work")
    assert main_mic(["unmute", "work"]) == 3
    assert "only dom0's user may unmute a VM, and here is work" in capsys.readouterr().err


def test_a_service_that_is_too_old_says_so(service: FakeService, capsys: Captured) -> None:
    assert main_mic(["mute", "work"]) == 1
    error = capsys.readouterr().err
    assert "dom0's service is of an older version and cannot mute a VM" in error
    assert "try:  qvm-mic detach work" in error


def test_an_unknown_vm_is_an_error(service: FakeService, capsys: Captured) -> None:
    service.replies["device.mute"] = CallError(
        "not_found", "no VM named 'wrok'", {"hint": "qvm-ls"}
    )
    assert main_mic(["mute", "wrok"]) == 4
    assert "no VM named 'wrok'" in capsys.readouterr().err
    assert main_mic(["mute", "-x"]) == 2


@pytest.mark.parametrize("line", ["mute work", "unmute work", "-q mute work"])
def test_what_cannot_be_listened_to_has_no_mute(
    service: FakeService, capsys: Captured, line: str
) -> None:
    assert main_block(line.split()) == 2
    error = capsys.readouterr().err
    assert "block devices are nothing to listen to, so there is no" in error
    assert service.calls == []
    assert main_block(["--help"]) == 0
    assert "mute" not in capsys.readouterr().out


def test_the_list_names_all_that_are_muted(service: FakeService, capsys: Captured) -> None:
    service.replies["device.list"] = {"devices": [], "policy": None, "muted": ["spare", "work"]}
    assert main_mic([]) == 0
    assert "qvm-mic: muted, whatever they get: spare, work" in capsys.readouterr().err
    assert main_mic(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["muted"] == ["spare", "work"]
