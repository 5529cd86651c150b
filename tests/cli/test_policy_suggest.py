"""suggest: the narrowest rules for what was denied, tried before they are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pedos_cli.policy_suggest import DISTINCT_MAX, REQUESTS_MAX, read_log
from pedos_cli.qvm_policy import main

Captured = pytest.CaptureFixture[str]

NAME = "30-user.policy"
SYSTEM = {"domains": {name: {"type": "AppVM"} for name in ("work", "vault", "sys-usb")}}
POLICY = "device.attach.block  +sys-usb:sdz  work  work  ask\ndevice.attach.* * @anyvm * deny\n"


def denial(port: str = "sda", identity: str = "", **fields: Any) -> dict[str, Any]:
    return {
        "time": "2026-01-02T03:04:05.678Z",
        "event": "decision",
        "request": "0123456789ab",
        "caller": "work",
        "service": "device.attach.block",
        "argument": f"+sys-usb:{port}:{identity}",
        "source": "work",
        "target": "work",
        "device_class": "block",
        "verb": "attach",
        "device": f"sys-usb:{port}",
        "vm": "work",
        "verdict": "deny",
        "rule": "30-user.policy:2",
        "reason": "30-user.policy:2 says deny",
        **fields,
    }


class Log:
    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "policy.d"
        self.folder.mkdir()
        (self.folder / NAME).write_text(POLICY)
        (tmp_path / "vms.json").write_text(json.dumps(SYSTEM))
        self.path = tmp_path / "audit.jsonl"
        self.system = str(tmp_path / "vms.json")

    def write(self, *records: dict[str, Any]) -> None:
        self.path.write_text("".join(json.dumps(each) + "\n" for each in records))

    def suggest(self, *argv: str) -> int:
        return main(["suggest", "--system", self.system, *argv])


@pytest.fixture
def log(tmp_path: Path, no_service: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    made = Log(tmp_path)
    monkeypatch.setenv("PEDOS_POLICY_PATH", str(made.folder))
    monkeypatch.setenv("PEDOS_AUDIT", str(made.path))
    return made


def test_each_kind_of_denial_is_one_rule_with_its_requests(log: Log, capsys: Captured) -> None:
    log.write(
        denial(request="00000000000a"),
        denial("1-2", "1050:0407:123:u03", request="00000000000b"),
        denial(request="00000000000c", time="2026-02-02T00:00:00.000Z"),
        denial(verdict="allow"),
        {"time": "2026", "event": "attached"},
    )
    assert log.suggest() == 0
    assert capsys.readouterr().out.splitlines() == [
        "# denied 2 times, last 2026-02-02T00:00:00.000Z: request 00000000000a, 00000000000c",
        "device.attach.block  +sys-usb:sda  work  work  allow",
        "# denied once, last 2026-01-02T03:04:05.678Z: request 00000000000b",
        "device.attach.block  +sys-usb:1-2:1050:0407:123:u03  work  work  allow",
    ]


def test_what_is_suggested_does_it_when_it_is_put_first(log: Log, capsys: Captured) -> None:
    log.write(denial("1-2", "1050:0407:123:u03"))
    assert log.suggest() == 0
    rules = capsys.readouterr().out
    (log.folder / NAME).write_text(rules + POLICY)
    ask = ["explain", "--system", log.system, "device.attach.block"]
    assert main([*ask, "+sys-usb:1-2:1050:0407:123:u03", "work", "work"]) == 0
    assert capsys.readouterr().out.startswith("allow")
    for other in ("+sys-usb:1-2:1050:0407:124:u03", "+sys-usb:1-3:1050:0407:123:u03"):
        assert main([*ask, other, "work", "work"]) == 0
        assert capsys.readouterr().out.startswith("deny")
    assert log.suggest() == 0
    assert capsys.readouterr().out == ""


def test_nothing_is_suggested_for_what_is_no_proper_request(log: Log, capsys: Captured) -> None:
    log.write(
        denial(reason="malformed request: service is not device.VERB.CLASS"),
        denial(argument="+sys-usb:*:"),
        denial(argument="+sys-usb:sda: x * * allow\n* * * * allow"),
        denial(source="work allow\n*"),
        denial(source="@anyvm"),
        denial(service=["x"]),
        denial(vm=None),
        denial(argument="*"),
    )
    assert log.suggest("--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["suggestions"] == []
    assert sum(answer["skipped"].values()) == 8


def test_what_no_rule_can_allow_is_left_out(log: Log, capsys: Captured) -> None:
    log.write(denial(source="ghost", vm="ghost", caller="ghost"))
    assert log.suggest("--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["suggestions"] == []
    assert sum(answer["skipped"].values()) == 1


def test_a_no_to_a_question_is_made_an_allow_only_when_asked_for(
    log: Log, capsys: Captured
) -> None:
    log.write(denial("sdz", reason="no prompter is running to ask dom0's user"))
    assert log.suggest() == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "1 denial asked about by now" in err
    assert log.suggest("--asked") == 0
    assert capsys.readouterr().out.endswith("+sys-usb:sdz  work  work  allow\n")


def test_ask_can_be_suggested_instead(log: Log, capsys: Captured) -> None:
    log.write(denial())
    assert log.suggest("--ask") == 0
    assert capsys.readouterr().out.endswith("device.attach.block  +sys-usb:sda  work  work  ask\n")


def test_a_rule_in_a_file_before_is_named(log: Log, capsys: Captured) -> None:
    (log.folder / "10-first.policy").write_text("device.*.* * @anyvm @anyvm deny\n")
    log.write(denial())
    assert log.suggest() == 0
    assert "# without effect here: 10-first.policy:1 comes before it" in capsys.readouterr().out
    assert log.suggest("--into", "05-mine.policy") == 0
    assert "without effect" not in capsys.readouterr().out


def test_only_what_one_vm_asked_for(log: Log, capsys: Captured) -> None:
    log.write(denial(), denial(source="vault", vm="vault"))
    assert log.suggest("--vm", "vault") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "device.attach.block  +sys-usb:sda  vault  vault  allow"
    ]


def test_what_was_only_counted_is_told(log: Log, capsys: Captured) -> None:
    summed = {"time": "2026", "event": "summed_up", "vm": "work", "events": {"decision": 40}}
    allowed = {**summed, "events": {"decision": 700}, "calls": []}  # calls of services
    log.write(denial(), summed, allowed)
    with log.path.open("a") as file:
        file.write("torn\n")
    assert log.suggest() == 0
    error = capsys.readouterr().err
    assert "40 denials only counted" in error
    assert "1 lines of the log could not be read" in error


def test_without_facts_the_rules_are_shown_untried(log: Log, capsys: Captured) -> None:
    log.write(denial())
    assert main(["suggest"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("device.attach.block  +sys-usb:sda  work  work  allow\n")
    assert "the rules were not tried" in err


def test_a_log_that_is_not_there_is_told(log: Log, capsys: Captured) -> None:
    assert log.suggest() == 1
    assert "--audit FILE" in capsys.readouterr().err


def test_in_a_vm_it_says_that_it_is_for_dom0(
    log: Log, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEDOS_VM", "work")
    assert log.suggest() == 1
    assert "only dom0 has the audit log, and here is work" in capsys.readouterr().err


def test_a_vm_that_asks_for_everything_fills_no_memory() -> None:
    records = (denial(f"d{number}") for number in range(DISTINCT_MAX + 50))
    found = read_log(records, None)
    assert len(found.denied) == DISTINCT_MAX
    assert found.beyond == 50
    found = read_log((denial(request=f"{number:012x}") for number in range(1000)), None)
    (denied,) = found.denied.values()
    assert denied.count == 1000
    assert len(denied.requests) == REQUESTS_MAX
    assert denied.requests[-1] == f"{999:012x}"


def test_an_id_that_is_none_does_not_get_into_a_comment() -> None:
    records = [denial(request="x\n* * * * allow"), denial(request=7), denial(request="a" * 99)]
    (denied,) = read_log(records, None).denied.values()
    assert (denied.count, denied.requests) == (3, [])


def test_what_a_person_denied_is_suggested_on_request(log: Log, capsys: Captured) -> None:
    answered = {
        "time": "2026-01-02T03:04:07.000Z",
        "event": "answered",
        "request": "00000000000a",
        "verdict": "deny",
        "reason": "no prompter is running to ask dom0's user",
    }
    asked = denial("sdz", request="00000000000a", verdict="ask")
    granted = denial("sdz", request="00000000000b", verdict="ask")
    log.write(asked, answered, granted, {**answered, "request": "00000000000b", "verdict": "allow"})
    assert log.suggest() == 0
    assert "1 denial asked about by now (--asked suggests" in capsys.readouterr().err
    assert log.suggest("--asked") == 0
    assert capsys.readouterr().out.splitlines() == [
        "# denied once, last 2026-01-02T03:04:07.000Z: request 00000000000a",
        "device.attach.block  +sys-usb:sdz  work  work  allow",
    ]
    assert log.suggest("--asked", "--ask") == 0  # to ask is what the policy does
    assert capsys.readouterr().out == ""


def test_what_no_vm_can_lend_is_left_out(log: Log, capsys: Captured) -> None:
    log.write(denial(argument="+invented:sda:", device="invented:sda"))
    assert log.suggest() == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "1 denial of what no rule can allow" in err
