"""qvm-audit: what it shows of a log, and what it says when there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import tzset
from typing import Any

import pytest
from pedos_cli import output, place, qvm_audit
from pedos_cli.audit_text import row, sentences
from pedos_cli.qvm_audit import TAIL_MAX, main

Captured = pytest.CaptureFixture[str]

A, B, C, D = "3f9c01ab77de", "aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"


def at(second: int, event: str, **fields: Any) -> dict[str, Any]:
    return {"time": f"2026-01-02T03:04:{second:02}.000Z", "event": event, **fields}


DEVICE = {"device_class": "block", "device": "sys-usb:sda"}
RECORDS = [
    at(0, "service", what="started"),
    at(1, "decision", request=A, caller="work", verb="attach", **DEVICE, vm="work",
       verdict="deny", rule="30-user.policy:12", reason=None),
    at(1, "attach", request=A, caller="work", **DEVICE, vm="work", options={}, persistent=False,
       outcome="denied: sys-usb:sda -> work", seconds=0.0),
    at(2, "decision", request=B, caller="dom0", verb="attach", **DEVICE, vm="vault",
       verdict="ask", rule="30-user.policy:14", reason="30-user.policy:14 says ask"),
    at(2, "asked", request=B, caller="dom0", service="device.attach.block", device="sys-usb:sda",
       identity="0781:5581", candidates=["vault", "work"], default=None),
    at(5, "answered", request=B, caller="dom0", service="device.attach.block",
       device="sys-usb:sda", verdict="allow", target="vault", reason="dom0's user chose vault",
       seconds=3.25),
    at(6, "attach", request=B, caller="dom0", **DEVICE, vm="vault",
       options={"read-only": "yes", "frontend-dev": "xvdi"}, persistent=True,
       outcome="attached", seconds=3.5),
    at(7, "summed_up", vm="work", events={"decision": 84, "attach": 84}, first_request=C,
       last_request=D, seconds=60.1),
    at(8, "ended", request=None, attachment="0f11d95fbc753499", **DEVICE, vm="vault",
       reason="sys-usb is gone: it closed the connection", seconds=0.1),
    at(9, "disconnected", vm="sys-usb", domid=1, reason="it closed the connection", broke=False),
]  # fmt: skip


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TZ", "UTC")
    tzset()
    yield
    monkeypatch.undo()
    tzset()


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "audit.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    monkeypatch.setenv("PEDOS_AUDIT", str(path))
    return path


def shown(capsys: Captured, *argv: str) -> list[str]:
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_the_list_has_aligned_columns_from_the_oldest_on(log: Path, capsys: Captured) -> None:
    assert shown(capsys) == [
        "2026-01-02 03:04:00.000  -             service       -        started",
        "2026-01-02 03:04:01.000  3f9c01ab77de  decision      work     deny      "
        "attach block sys-usb:sda -> work [30-user.policy:12]",
        "2026-01-02 03:04:01.000  3f9c01ab77de  attach        work     denied    "
        "block sys-usb:sda -> work",
        "2026-01-02 03:04:02.000  aaaaaaaaaaaa  decision      dom0     ask       "
        "attach block sys-usb:sda -> vault [30-user.policy:14]",
        "2026-01-02 03:04:02.000  aaaaaaaaaaaa  asked         dom0     -         "
        "sys-usb:sda identity=0781:5581, candidates=[vault, work]",
        "2026-01-02 03:04:05.000  aaaaaaaaaaaa  answered      dom0     allow     "
        "sys-usb:sda -> vault dom0's user chose vault",
        "2026-01-02 03:04:06.000  aaaaaaaaaaaa  attach        dom0     attached  "
        "block sys-usb:sda -> vault (frontend-dev=xvdi, read-only=yes) persistent=yes",
        "2026-01-02 03:04:07.000  -             summed_up     work     -         "
        "events={decision: 84, attach: 84}, first_request=bbbbbbbbbbbb, "
        "last_request=cccccccccccc",
        "2026-01-02 03:04:08.000  -             ended         vault    -         "
        "block sys-usb:sda -> vault sys-usb is gone: it closed the connection "
        "attachment=0f11d95fbc753499",
        "2026-01-02 03:04:09.000  -             disconnected  sys-usb  -         "
        "it closed the connection domid=1",
    ]


def test_a_terminal_gets_a_header(
    log: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    first, *others = shown(capsys, "tail", "-n", "1")
    assert first.split() == ["TIME", "REQUEST", "EVENT", "WHO", "RESULT", "WHAT"]
    assert len(others) == 1


def test_json_is_the_log_itself(log: Path, capsys: Captured) -> None:
    assert [json.loads(line) for line in shown(capsys, "--json")] == RECORDS
    assert [json.loads(line) for line in shown(capsys, "tail", "--json", "-n2")] == RECORDS[-2:]


def test_denied_shows_denials_and_what_may_hide_some(log: Path, capsys: Captured) -> None:
    found = [json.loads(line) for line in shown(capsys, "--denied", "--json")]
    assert found == [RECORDS[1], RECORDS[2], RECORDS[7]]


@pytest.mark.parametrize(
    ("vm", "expected"),
    [
        ("work", [1, 2, 7]),
        ("vault", [3, 5, 6, 8]),
        ("sys-usb", [1, 2, 3, 4, 5, 6, 8, 9]),
        ("dom0", [3, 4, 5, 6]),
        ("wor", []),
    ],
)
def test_vm_shows_what_it_asked_for_got_or_lent(
    log: Path, capsys: Captured, vm: str, expected: list[int]
) -> None:
    found = [json.loads(line) for line in shown(capsys, "--json", "--vm", vm)]
    assert found == [RECORDS[index] for index in expected]


def test_filters_add_up_and_the_action_may_stand_anywhere(log: Path, capsys: Captured) -> None:
    expected = shown(capsys, "list", "--denied", "--vm", "work", "--since", "2026-01-02T03:04:02")
    assert len(expected) == 1
    assert expected == shown(
        capsys, "--since", "2026-01-02T03:04:02", "--denied", "list", "--vm", "work"
    )
    assert shown(capsys, "--vm", "work", "tail", "-n", "1", "--denied") == expected


@pytest.mark.parametrize("number", ["0", "1", "3", "10", str(TAIL_MAX)])
def test_tail_shows_the_last_ones_that_are_wanted(log: Path, capsys: Captured, number: str) -> None:
    found = [json.loads(line) for line in shown(capsys, "tail", "--json", "-n", number)]
    assert found == (RECORDS[-int(number) :] if number != "0" else [])


EVERY_EVENT = [
    at(0, "start", request=A, caller="dom0", vm="vault", outcome="started", seconds=1.0),
    at(0, "shutdown", request=A, caller="dom0", vm="vault", outcome="failed: it hangs", seconds=1),
    at(0, "assign", request=A, caller="dom0", **DEVICE, vm="vault", outcome="assigned", mode="ask"),
    at(0, "unassign", request=A, caller="dom0", **DEVICE, vm="vault", outcome="unassigned"),
    at(0, "not_attached", **DEVICE, vms=["vault", "work"], reason="they are equally specific"),
    at(0, "orphaned", vm="vault", devices=["sys-usb:sda"]),
    at(0, "disconnected", vm="vault", domid=3, reason="it closed the connection", broke=False),
    at(0, "leftovers", vm="vault", exports=1, imports=0),
    at(0, "kept", attachment="0f11d95fbc753499", **DEVICE, vm="vault", reason="in use"),
    at(0, "undone", **DEVICE, vm="vault", reason="it is gone"),
    at(0, "left_over", **DEVICE, vm="vault", reason="it is gone"),
]


def test_who_holds_what_is_left_over_is_named() -> None:
    record = at(0, "left_over", **DEVICE, vm="vault", holder="sys-usb", reason="it is gone")
    (said,) = [line for line in sentences(record) if "should end" in line]
    assert "the agent of sys-usb does not say that it has ended its part" in said


@pytest.mark.parametrize("record", EVERY_EVENT, ids=lambda record: record["event"])
def test_every_event_names_the_vm_that_it_is_about(record: dict[str, Any]) -> None:
    *_, who, result, what = row(record)
    assert "vault" in [who, *what.split()]
    said = " ".join(sentences(record))
    assert "vault" in said
    for field in ("reason", "outcome"):
        assert str(record.get(field, "")).rpartition(": ")[2] in f"{result} {what}"
        assert str(record.get(field, "")) in said


# One request


def test_a_denial_is_explained_in_words(log: Path, capsys: Captured) -> None:
    assert shown(capsys, "show", A) == [
        f"request {A}",
        "  2026-01-02 03:04:01.000  work asked: attach the block device sys-usb:sda to work.",
        "                           The policy denied it, by the rule 30-user.policy:12.",
        "  2026-01-02 03:04:01.000  "
        "The attach of block sys-usb:sda -> work ended after 0.0 s: denied.",
    ]


def test_a_question_and_its_answer_are_explained_in_words(log: Path, capsys: Captured) -> None:
    assert [line[27:] for line in shown(capsys, "show", B)[1:]] == [
        "dom0 asked: attach the block device sys-usb:sda to vault.",
        "The policy said that a person be asked, by the rule 30-user.policy:14.",
        "A person was asked about sys-usb:sda.",
        "(identity=0781:5581, candidates=[vault, work])",
        "The answer after 3.2 s was yes, for vault. Reason: dom0's user chose vault.",
        "The attach of block sys-usb:sda -> vault (frontend-dev=xvdi, read-only=yes) "
        "ended after 3.5 s: attached.",
        "(persistent=yes)",
    ]


@pytest.mark.parametrize("request_id", [C, D])
def test_a_request_that_was_only_counted_is_found_by_the_first_and_last_id(
    log: Path, capsys: Captured, request_id: str
) -> None:
    words = " ".join(shown(capsys, "show", request_id))
    assert "work did more of the same within 60.1 s, which was only counted" in words
    assert "84 decision, 84 attach" in words


def test_show_speaks_json(log: Path, capsys: Captured) -> None:
    assert main(["show", A, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"request": A, "records": RECORDS[1:3]}


def test_a_request_that_is_not_there_is_not_found(log: Path, capsys: Captured) -> None:
    assert main(["show", "0123456789ab"]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"qvm-audit: not found: no record of the request 0123456789ab in {log}\n")


# Time


@pytest.mark.parametrize(
    "since", ["2026-01-02T03:04:07Z", "2026-01-02 03:04:07", "2026-01-02T05:04:07+02:00"]
)
def test_since_takes_iso_times(log: Path, capsys: Captured, since: str) -> None:
    assert len(shown(capsys, "--since", since)) == 3


@pytest.mark.parametrize(("since", "number"), [("90s", 0), ("10m", 1), ("2h", 2), ("3d", 3)])
def test_since_takes_spans(log: Path, capsys: Captured, since: str, number: int) -> None:
    now = datetime.now(UTC)
    lines = [
        {"time": (now - ago).isoformat(timespec="milliseconds")[:23] + "Z", "event": "e"}
        for ago in (timedelta(days=2), timedelta(hours=1), timedelta(minutes=5))
    ]
    log.write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert len(shown(capsys, "--since", since)) == number


def test_what_is_shown_as_a_time_can_be_given_as_one(
    log: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    tzset()
    time = shown(capsys, "tail", "-n", "3")[0].split("  ")[0]
    assert time == "2026-01-02 08:34:07.000"
    assert len(shown(capsys, "--since", time)) == 3


@pytest.mark.parametrize(
    "since", ["", "10", "h", "-5m", "5y", "1000000h", "\u0665m", "now", "2026-13-01", "0001-01-01"]
)
def test_any_other_time_is_a_usage_error(
    log: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, since: str
) -> None:
    monkeypatch.setenv("TZ", "UTC-14")
    tzset()
    assert main([f"--since={since}"]) == 2
    assert "is not a time" in capsys.readouterr().err


# What goes wrong


def test_no_log_says_where_it_was_looked_for(tmp_path: Path, capsys: Captured) -> None:
    for argv in (["list"], ["tail"], ["tail", "-f"], ["show", A]):
        assert main([*argv, "--file", str(tmp_path / "none")]) == 4
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"qvm-audit: not found: there is no audit log {tmp_path}/none\n")


def test_a_log_that_cannot_be_read_is_an_error(tmp_path: Path, capsys: Captured) -> None:
    assert main(["--file", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"qvm-audit: failed: the audit log {tmp_path} cannot be read: it is not a file\n"
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["look"],
        ["tail", "list"],
        ["tail", "-n", "-1"],
        ["tail", "-n", "x"],
        ["tail", "-n", str(TAIL_MAX + 1)],
        ["tail", "-n", "\u0665"],
        ["show"],
        ["show", ""],
        ["show", "../x"],
        ["show", A, B],
        ["show", A, "--denied"],
        ["--vm", "a b"],
        ["--vm"],
        ["-f"],
    ],
)
def test_usage_errors_say_so(log: Path, capsys: Captured, argv: list[str]) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("qvm-audit: usage: ")


def test_torn_lines_are_counted_on_standard_error(log: Path, capsys: Captured) -> None:
    with log.open("ab") as file:
        file.write(b'{"time": "2026\nfoo\n')
    for argv in ([], ["tail", "-n", "20"], ["show", A]):
        assert main(argv) == 0
        assert capsys.readouterr().err == (
            "qvm-audit: warning: 2 lines are torn or not the service's, and passed over\n"
        )
    assert main(["-q"]) == 0
    assert capsys.readouterr().err == ""


HOSTILE: list[Any] = [
    "\x1b]0;x\x07\u202e\n\r\x9b\x7f", "x" * 700, 5, -1.5, True, None, [], {}, ["\x1b"] * 40,
    {"\x1b": {"\n": "\x07"}}, "\ud800",
]  # fmt: skip
FIELDS = [
    "request", "caller", "source", "target", "vm", "verb", "device_class", "device", "verdict",
    "outcome", "rule", "reason", "seconds", "options", "service", "argument", "what", "events",
    "first_request", "\x1b[2J", "domid",
]  # fmt: skip
EVENTS = [
    "decision", "asked", "answered", "attach", "detach", "start", "ended", "undone", "summed_up",
    "disconnected", "leftovers", "service", "suspend", "resume", "\x1b[2J",
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS)
def test_a_record_of_any_shape_is_shown_harmless(log: Path, capsys: Captured, event: str) -> None:
    whole = [at(0, event, **dict.fromkeys(FIELDS, value)) for value in HOSTILE]
    single = [at(0, event, **{field: value}) for field in FIELDS for value in HOSTILE]
    log.write_text("".join(json.dumps(each) + "\n" for each in [*whole, *single]))
    lines = shown(capsys) + shown(capsys, "--denied", "--vm", "work") + shown(capsys, "--json")
    assert len(lines) >= 2 * len([*whole, *single])
    assert all(" " <= char <= "~" for line in lines for char in line)
    for record in [*whole, *single]:
        assert len(row(record)) == 6
        assert sentences(record)


def test_a_record_that_is_not_like_the_service_s_stays_json(log: Path, capsys: Captured) -> None:
    fits = '{"time": "t", "event": "\x7f\u20ac"}'
    grows = '{"time": "t", "event": "' + "\u20ac" * 5000 + '"}'
    log.write_text(f"{fits}\n{grows}\n", encoding="utf-8")
    assert main(["--json"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [json.loads(fits, strict=False)]
    assert out.isascii()
    assert out[:-1].isprintable()
    assert "1 line is torn" in err


# Following


def test_following_shows_what_comes_until_interrupted(
    log: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: Path, *records: dict[str, Any]) -> None:
        with name.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    def rotate() -> None:
        log.rename(f"{log}.1")
        write(log, RECORDS[2], RECORDS[3])

    def interrupt() -> None:
        raise KeyboardInterrupt

    steps = iter([lambda: None, lambda: write(log, RECORDS[1]), rotate, interrupt])
    monkeypatch.setattr(qvm_audit, "wait", lambda: next(steps)())
    assert main(["tail", "-f", "-n", "1", "--denied", "--json"]) == 130
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found == [RECORDS[7], RECORDS[1], RECORDS[2]]


def test_a_reader_that_goes_away_is_no_error(log: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as nobody:
        done = subprocess.run(
            [sys.executable, "-m", "pedos_cli.qvm_audit"],
            stdout=nobody, stderr=subprocess.PIPE, timeout=20, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_is_not_called_a_log_that_cannot_be_read(log: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-u", "-m", "pedos_cli.qvm_audit"],
            stdout=full, stderr=subprocess.PIPE, timeout=20, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, b"qvm-audit: failed: No space left on device\n")


# Starting

HEAVY = {"trio", "attr", "typing", "json", "datetime", "signal", "enum", "socket", "pathlib"}


@pytest.mark.parametrize("module", ["qvm_audit", "qvm_prompt"])
def test_help_imports_nothing_heavy(module: str) -> None:
    import pedos_cli
    import pedos_protocol

    path = [str(Path(str(each.__file__)).parents[1]) for each in (pedos_cli, pedos_protocol)]
    code = (
        f"import sys; sys.path[:0] = {path!r}; from pedos_cli import {module}\n"
        f"assert {module}.main(['--help']) == 0\n"
        f"print(*set(sys.modules) & {HEAVY!r}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    # argparse's own imports are everybody's.
    assert set(done.stderr.split()) <= {"enum"}


def test_an_id_alone_is_a_request_to_show(capsys: Captured) -> None:
    assert main([A]) == 2
    assert capsys.readouterr().err.endswith(f"  try:  qvm-audit show {A}\n")


def test_that_no_rule_matched_is_said_once() -> None:
    record = at(1, "decision", request=A, caller="work", verb="attach", **DEVICE, vm="work",
                verdict="deny", rule=None, reason="no rule matched (default deny)")  # fmt: skip
    assert row(record)[-1] == "attach block sys-usb:sda -> work [no rule matched]"
    assert len(sentences(record)) == 2


def test_a_vm_has_no_audit_log(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.delenv("PEDOS_AUDIT", raising=False)
    monkeypatch.setenv("PEDOS_VM", "work")
    monkeypatch.setattr(place, "DEFAULT_AUDIT", "/nowhere/audit.jsonl")
    assert main([]) == 1
    assert "only dom0 has the audit log, and here is work" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        ("today", "2026-01-31T00:00:00.000Z"),
        ("yesterday", "2026-01-30T00:00:00.000Z"),
        ("14:05", "2026-01-31T14:05:00.000Z"),
        ("14:05:06", "2026-01-31T14:05:06.000Z"),
    ],
)
def test_since_takes_days_and_times_of_today(
    since: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Then(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Then:
            return cls(2026, 1, 31, 15, 0, 0, tzinfo=tz)

    monkeypatch.setattr("datetime.datetime", Then)
    assert qvm_audit.since_text(since) == expected
