"""The tools know rules about kinds of interfaces, and devices that are not fully known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pedos_cli.qvm_policy import main
from pedos_protocol.names import IDENTITY_MAX

Captured = pytest.CaptureFixture[str]

POLICY = """\
device.attach.usb +sys-usb:*:only=u08* dom0 work allow
device.attach.usb +*:*:*:*:*:*u03* dom0 work ask
device.attach.usb  *  dom0  work  deny
"""
UNKNOWN = "+sys-usb:1-2:1234:5678:S:u080650u-unknown"


@pytest.fixture
def folder(tmp_path: Path, no_service: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "policy.d"
    made.mkdir()
    (made / "30-user.policy").write_text(POLICY)
    vms = {"domains": {name: {} for name in ("work", "sys-usb")}}
    (tmp_path / "vms.json").write_text(json.dumps(vms))
    monkeypatch.setenv("PEDOS_POLICY_PATH", str(made))
    return made


def system(folder: Path) -> tuple[str, str]:
    return "--system", str(folder.parent / "vms.json")


def test_check_and_fmt_take_only_these_kinds(folder: Path, capsys: Captured) -> None:
    assert main(["check"]) == 0
    assert main(["fmt"]) == 0
    assert (folder / "30-user.policy").read_text().splitlines() == [
        "device.attach.usb  +sys-usb:*:only=u08*  dom0  work  allow",
        "device.attach.usb  +*:*:*:*:*:*u03*      dom0  work  ask",
        "device.attach.usb  *                     dom0  work  deny",
    ]
    (folder / "30-user.policy").write_text(POLICY.replace("u08*", "08"))
    capsys.readouterr()
    assert main(["check"]) == 1
    out = capsys.readouterr().out
    assert "'08' is not a kind of interface" in out
    assert "only=u08*,u03*" in out


def test_explain_says_what_is_not_known(folder: Path, capsys: Captured) -> None:
    command = ["explain", "-v", *system(folder), "device.attach.usb", UNKNOWN, "dom0", "work"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("deny: ")
    assert "30-user.policy:3" in out
    assert "is not fully known, so it may or may not match 'only=u08*'" in out


@pytest.mark.parametrize(
    "argument",
    [UNKNOWN, "+sys-usb:1-2:1234:5678", "+sys-usb:1-2:", f"+sys-usb:1-2:{'a' * IDENTITY_MAX}"],
)
def test_a_rule_for_what_is_not_known_can_be_suggested(
    folder: Path, capsys: Captured, argument: str
) -> None:
    log = folder.parent / "audit.jsonl"
    record = {
        "time": "2026-01-02T03:04:05.678Z",
        "event": "decision",
        "request": "0123456789ab",
        "service": "device.attach.usb",
        "argument": argument,
        "source": "dom0",
        "target": "work",
        "device_class": "usb",
        "vm": "work",
        "verdict": "deny",
    }
    log.write_text(json.dumps(record) + "\n")
    assert main(["suggest", "--json", "--audit", str(log), *system(folder)]) == 0
    (suggestion,) = json.loads(capsys.readouterr().out)["suggestions"]
    # Half an identity gives no rule certainty.
    selector = UNKNOWN if argument == UNKNOWN else "+sys-usb:1-2"
    rule = f"device.attach.usb {selector} dom0 work allow"
    assert (suggestion["rule"], suggestion["works"]) == (rule, True)


def test_check_notes_a_rule_that_allows_a_keyboard_beside_what_it_names(
    folder: Path, capsys: Captured
) -> None:
    (folder / "30-user.policy").write_text("device.attach.usb +sys-usb:*:*u08* dom0 work allow\n")
    assert main(["check"]) == 0
    first, *_, help_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("30-user.policy:1:1: note: this rule also allows a USB device that has")
    assert "help: +sys-usb:*:only=u08* is one with nothing else" in help_
    assert last == "1 rule of 1 file, no errors, 1 note"
    assert main(["check", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (note,) = answer["notes"]
    assert (answer["ok"], answer["warnings"], note["line"]) == (True, [], 1)
    (folder.parent / "new").write_text("device.attach.usb +sys-usb:*:*u0e* dom0 work allow\n")
    assert main(["replace", "10-new.policy", "new", str(folder.parent / "new")]) == 0
    said = capsys.readouterr().err
    assert "note: 10-new.policy:1:1: this rule also allows" in said
    assert "30-user.policy:1" not in said


def test_a_device_that_is_not_there_can_be_tried_by_its_kinds(
    folder: Path, capsys: Captured
) -> None:
    def tried(kinds: str) -> str:
        argument = f"+sys-usb:1-2:0000:0000:x:{kinds}"
        command = ["explain", "-v", *system(folder), "device.attach.usb", argument, "dom0", "work"]
        assert main(command) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    assert tried("u080650").startswith("allow: ")
    said = tried("u080650u030101")
    assert said.startswith("ask: ")
    assert "  interface: u080650  mass storage\n  interface: u030101  HID: keyboard\n" in said
    assert tried("u0e0100").startswith("deny: ")
    assert "  interface: u-unknown  more that is not known\n" in tried("u080650u-unknown")


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        ("u080650", "has not the four parts of an identity"),
        ("0781:5581", "0000:0000:x:u080650"),
        ("0781:5581:x:", "it has no kind of interface"),
        ("0781:5581:x:u080650,u030101", ",u030101 is no kind of interface"),
        ("0781:5581:x:u08", "u08 is no kind of interface"),
        ("0781:5581:x:080650", "080650 is no kind of interface"),
    ],
)
def test_an_identity_that_is_not_whole_is_told_so(
    folder: Path, capsys: Captured, identity: str, said: str
) -> None:
    asked = ["device.attach.usb", f"+sys-usb:1-2:{identity}", "dom0", "work"]
    assert main(["explain", *system(folder), *asked]) == 0
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("qvm-policy: note: ")
    assert said in note
    assert main(["explain", *system(folder), "device.attach.block", *asked[1:]]) == 0
    assert capsys.readouterr().err == ""


def test_many_devices_that_are_not_there_can_be_tried_at_once(
    folder: Path, capsys: Captured
) -> None:
    """By `eval`, and by unit tests of the policy."""
    verdicts = {"u080650": "allow", "u080650u030101": "ask", "u0e0100": "deny", "u-unknown": "deny"}
    asked = [
        {
            "service": "device.attach.usb",
            "arg": f"+sys-usb:1-2:0000:0000:x:{kinds}",
            "source": "dom0",
            "target": "work",
        }
        for kinds in verdicts
    ]
    requests = folder.parent / "requests"
    requests.write_text("".join(f"{json.dumps(each)}\n" for each in asked))
    assert main(["eval", *system(folder), str(requests)]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["verdict"] for each in answers] == list(verdicts.values())
    tests = folder.parent / "tests"
    lines = (" ".join([*each.values(), verdicts[each["arg"].rpartition(":")[2]]]) for each in asked)
    tests.write_text("".join(f"{line}\n" for line in lines))
    assert main(["test", *system(folder), str(tests)]) == 0
