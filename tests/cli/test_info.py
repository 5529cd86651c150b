"""`qvm-device CLASS info`: what is known of a device, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from pedos_cli.qvm_device import main, main_usb
from pedos_protocol.errors import CallError

if TYPE_CHECKING:
    from conftest import FakeService

Captured = pytest.CaptureFixture[str]
Listed = Callable[..., dict[str, Any]]

RULE = {
    "verdict": "ask",
    "rule": "90-default.policy:83",
    "text": "device.attach.usb +*:*:*u03* @adminvm @anyvm ask",
    "default": False,
    "reason": "90-default.policy:83 says ask",
    "read_only": False,
    "target": None,
}
DENIED = {
    **RULE,
    "verdict": "deny",
    "rule": "30-user.policy:1",
    "text": "device.attach.usb * * vault allow target=@dispvm",
    "reason": "30-user.policy:1 says allow, but there is no template",
}


@pytest.fixture
def stick(listed: Listed) -> dict[str, Any]:
    identity = "0781:5581:4C53:u080650u030101"
    device = listed(
        "sys-usb:1-2",
        device_class="usb",
        identity=identity,
        description="SanDisk Ultra",
        size=None,
        attachments=[{"vm": "work", "options": {}}],
        assignments=[{"vm": "vault", "options": {}, "mode": "ask"}],
    )
    return {
        "device": device,
        "argument": f"+sys-usb:1-2:{identity}",
        "lasting": identity,
        "unfit": ["sys-usb:1-2 shares data with sys-usb:sda, which is attached to mail"],
        "relatives": [
            {"device_class": "block", "device": "sda", "vms": ["mail"]},
            {"device_class": "block", "device": "sda1", "vms": []},
        ],
        "relatives_left_out": 3,
        "decided": [{**RULE, "vms": ["mail", "work"]}, {**DENIED, "vms": ["vault"]}],
        "vms_left_out": 2,
    }


def test_everything_is_shown_to_people(
    service: FakeService, stick: dict[str, Any], capsys: Captured
) -> None:
    service.replies["device.info"] = stick
    assert main(["usb", "info", "sys-usb:1-2"]) == 0
    assert service.asked("device.info") == {
        "device_class": "usb",
        "backend": "sys-usb",
        "device": "1-2",
    }
    assert capsys.readouterr().out.splitlines() == [
        "sys-usb:1-2  SanDisk Ultra",
        "  class:           USB device",
        "  identity:        0781:5581:4C53:u080650u030101",
        "    vendor:        0781",
        "    product:       5581",
        "    serial number: 4C53",
        "  interfaces:      u080650  mass storage",
        "                   u030101  HID: keyboard",
        "  in rules:        +sys-usb:1-2:0781:5581:4C53:u080650u030101",
        "  recognised by:   0781:5581:4C53:u080650u030101",
        "  used by:         work (attached)",
        "                   *vault (assigned, ask)",
        "  cannot be lent:  sys-usb:1-2 shares data with sys-usb:sda, which is attached to mail",
        "  not beside:      block sys-usb:sda (attached to mail)",
        "                   block sys-usb:sda1",
        "                   3 more",
        "  options:         none",
        "  if dom0's user attaches it:",
        "    ask    mail, work",
        "           90-default.policy:83   device.attach.usb +*:*:*u03* @adminvm @anyvm ask",
        "    deny   vault",
        "           30-user.policy:1   device.attach.usb * * vault allow target=@dispvm",
        "           30-user.policy:1 says allow, but there is no template",
        "    2 VMs more, for which the answer has no room",
    ]


def test_programs_get_the_answer_with_the_parts_and_the_words(
    service: FakeService, stick: dict[str, Any], capsys: Captured
) -> None:
    service.replies["device.info"] = stick
    assert main_usb(["i", "--json", "sys-usb:1-2"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["devices"]
    assert {key: told[key] for key in stick} == stick
    assert told["identity_parts"] == {"vendor": "0781", "product": "5581", "serial number": "4C53"}
    assert told["interfaces"] == [
        {"kind": "u080650", "words": "mass storage"},
        {"kind": "u030101", "words": "HID: keyboard"},
    ]


def test_what_is_not_known_is_said(
    service: FakeService, stick: dict[str, Any], listed: Listed, capsys: Captured
) -> None:
    stick["device"] |= {"identity": "0781:5581"}
    service.replies["device.info"] = stick
    assert main(["usb", "info", "sys-usb:1-2"]) == 0
    out = capsys.readouterr().out
    assert "  interfaces:      u-unknown  not known\n" in out
    assert "vendor" not in out
    gone = listed("sys-usb:1-2", device_class="usb", present=False, description="(not present)")
    service.replies["device.info"] = {**stick, "device": gone, "lasting": ""}
    assert main(["usb", "info", "sys-usb:1-2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("sys-usb:1-2  (not present)\n")
    assert "  recognised by:   its place alone\n" in out
    assert "interfaces" not in out


def test_of_a_disk_its_size_its_access_and_its_options_are_shown(
    service: FakeService, stick: dict[str, Any], listed: Listed, capsys: Captured
) -> None:
    disk = listed("sys-usb:sda", identity="S:P:F", read_only=True)
    plain = {"relatives": [], "relatives_left_out": 0, "unfit": [], "decided": []}
    service.replies["device.info"] = {**stick, **plain, "device": disk, "vms_left_out": 0}
    assert main(["block", "info", "sys-usb:sda"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "    partition:     P" in lines
    assert "  size:            64.0 MiB" in lines
    assert "  access:          read-only" in lines
    assert lines[-1] == (
        "  options:         read-only=yes|no, frontend-dev=xvde..xvdz, devtype=disk|cdrom"
    )
    assert not any("attaches it" in line or "interfaces" in line for line in lines)


def test_texts_of_a_device_begin_no_line_and_imitate_no_column(
    service: FakeService, stick: dict[str, Any], capsys: Captured
) -> None:
    stick["device"] |= {"description": "x\n  in rules:  y", "busy": "a\x1b[31m"}
    stick["device"]["attachments"] = []
    service.replies["device.info"] = stick
    assert main(["usb", "info", "sys-usb:1-2"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert sum(line.startswith("  in rules:") for line in out.splitlines()) == 1
    assert out.startswith("sys-usb:1-2  x\\n ")


def test_without_a_device_each_of_the_class_is_shown(
    service: FakeService, stick: dict[str, Any], listed: Listed, capsys: Captured
) -> None:
    """One that is unplugged between the two questions is left out."""
    names = ["sys-usb:1-2", "sys-usb:1-3", "sys-usb:1-4"]
    devices = [listed(name, device_class="usb") for name in names]
    service.replies["device.list"] = {"devices": devices, "policy": None}

    def reply(params: dict[str, Any]) -> dict[str, Any] | CallError:
        if params["device"] == "1-3":
            return CallError("not_found", "unplugged")
        return {**stick, "device": {**stick["device"], "device": params["device"]}}

    service.replies["device.info"] = reply
    assert main(["usb", "info"]) == 0
    out = capsys.readouterr().out
    assert [line.split("  ")[0] for line in out.splitlines() if line.startswith("sys-usb")] == [
        *("sys-usb:1-2", "sys-usb:1-4"),
    ]
    assert "\n\nsys-usb:1-4" in out
    missing = [{"device_class": "usb", "backend": "sys-usb", "count": None, "reason": "no agent"}]
    listing = {"devices": [], "policy": None, "missing": missing, "missing_vms": 1}
    service.replies["device.list"] = listing
    assert main(["usb", "info", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"devices": []}
    assert "sys-usb may have usb devices that are not listed: no agent" in err
    service.replies["device.list"] = {"devices": [], "policy": None}
    assert main(["usb", "info"]) == 0
    assert "there are no usb devices here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (CallError("not_found", "sys-usb has no usb device named '9'"), 4, "no usb device named"),
        (CallError("denied", "no", {"rule": "a.policy:1", "text": "x"}), 3, "rule: a.policy:1"),
        (CallError("unknown_method", "?"), 1, "older version and tells of a device only in the"),
    ],
)
def test_errors_are_those_of_the_service(
    service: FakeService, error: CallError, status: int, said: str, capsys: Captured
) -> None:
    service.replies["device.info"] = error
    assert main(["usb", "info", "sys-usb:9"]) == status
    assert said in capsys.readouterr().err


def test_a_wrong_name_is_a_usage_error(no_service: object, capsys: Captured) -> None:
    assert main(["usb", "info", "work"]) == 2
    assert "'work' is not" in capsys.readouterr().err
