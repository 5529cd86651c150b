"""`qvm-audit show` tells a call of a service as one story."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pedos_cli.audit_text import row, sentences
from pedos_cli.qvm_audit import main

Captured = pytest.CaptureFixture[str]

REQUEST, CALL = "3f9c01ab77de", "ab" * 16
SUBJECT = {"service": "app.Sign", "argument": "+letters", "source": "work", "target": "vault"}


def at(second: int, event: str, **fields: Any) -> dict[str, Any]:
    return {
        "time": f"2026-01-02T03:04:{second:02}.000Z", "event": event, "request": REQUEST,
        **SUBJECT, **fields,
    }  # fmt: skip


STARTED = at(
    2, "call", call=CALL, requested="@default", user="signer", outcome="started", channel="new",
    seconds=1.25, stages={"decide": 0.0002, "autostart": 0, "channel": 0.06, "start": 0.01},
)  # fmt: skip
ENDED = at(
    9, "call_ended", call=CALL, kind="exited", status=3, text="", stdin=7, stdout=1, stderr=0,
    seconds=7.0, by="dom0 (uid 1000)",
)  # fmt: skip
STORY = [
    at(1, "decision", caller="work", target="@default", verdict="ask", rule="30-user.policy:2",
       reason=None),
    at(1, "asked", candidates=["vault"], default=None),
    at(2, "answered", verdict="allow", reason=None, seconds=1.0),
    STARTED,
    at(3, "call_adopted", call=CALL, reason=""),
    ENDED,
]  # fmt: skip


@pytest.mark.parametrize("name", [REQUEST, CALL, CALL[:12]])
def test_a_call_is_told_from_its_request_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, name: str
) -> None:
    log = tmp_path / "audit.jsonl"
    log.write_text("".join(json.dumps(record) + "\n" for record in STORY))
    monkeypatch.setenv("PEDOS_AUDIT", str(log))
    assert main(["show", name]) == 0
    told = [line[27:] for line in capsys.readouterr().out.splitlines()]
    by_call = [
        "app.Sign+letters -> vault was started as signer after 1.2 s, over a new channel.",
        "The caller had named @default.",
        "Of that: deciding 0.2 ms, making the channel 60.0 ms, starting the service 10.0 ms.",
        "The call of app.Sign+letters -> vault went on while dom0's service was restarted.",
        "app.Sign+letters -> vault ended with status 3 after 7.0 s.",
        "dom0 (uid 1000) ended it.",
        "It was sent 7 bytes, and wrote 1 byte to standard output and 0 bytes to error.",
    ]
    assert told[1] == "work asked: app.Sign+letters -> @default."
    assert told[-len(by_call) :] == by_call


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("signalled", 9, "was ended by signal 9"),
        ("problem", 125, "failed, with status 125 for the caller"),
        ("refused", 126, "was refused in the target, with status 126"),
        ("not_found", 127, "was not found in the target, with status 127"),
        ("aborted", 0, "ended as its caller went away"),
        ("lost", 125, "ended as the other VM, or its agent, went away"),
        ("of_a_newer_version", 1, "ended (of_a_newer_version)"),
    ],
)
def test_how_it_ended_is_said(kind: str, status: int, said: str) -> None:
    first, *_ = sentences({**ENDED, "kind": kind, "status": status, "text": "no such key"})
    assert said in first
    assert "It was said: no such key" in sentences({**ENDED, "text": "no such key"})


def test_a_call_that_did_not_begin_says_why() -> None:
    [said, *_] = sentences({**STARTED, "outcome": "busy: 64 calls of work run", "stages": None})
    assert said == (
        "The call of app.Sign+letters -> vault did not begin after 1.2 s: busy: 64 calls of work "
        "run."
    )


def test_a_list_has_a_row_for_each_line() -> None:
    assert row(ENDED)[1:4] == (REQUEST, "call_ended", "work")
    assert "app.Sign+letters -> vault" in row(ENDED)[5]
    assert "stdin=7" in row(ENDED)[5] and f"call={CALL}" in row(ENDED)[5]


@pytest.mark.parametrize("event", ["call", "call_ended", "call_adopted"])
def test_a_line_that_lacks_everything_or_lies_is_shown_all_the_same(event: str) -> None:
    hostile: dict[str, Any] = dict.fromkeys((*STARTED, *ENDED), "\x1b[2J\u202e")
    for record in ({}, dict.fromkeys(hostile, 5), dict.fromkeys(hostile), hostile):
        said = "".join(sentences({**record, "event": event}))
        assert said and "\x1b" not in said and "\u202e" not in said
    assert sentences({"event": "call", "stages": {"decide": "x", "\x1b": 1, "start": True}})


# Sums. The ids of a call are in one if its lines are not written.

COUNTED, OF_CALL = "0123456789ab", "cd" * 16
SUM: dict[str, Any] = {
    "time": "2026-01-02T03:04:10.000Z", "event": "summed_up", "vm": "work",
    "events": {"decision": 4, "call": 4, "call_ended": 5},
    "calls": [
        {"service": "app.Sign", "argument": "+letters", "target": "vault", "calls": 3,
         "outcomes": {"exited 0": 2, "exited 3": 1}},
        {"service": "app.Sign", "target": "vault", "calls": 1, "outcomes": {}},
        {"service": "qubes.VMShell", "argument": "+", "target": "web", "calls": 0,
         "outcomes": {"problem, dom0 (uid 1000)": 1}},
    ],
    "not_named": {"calls": 7, "outcomes": {"other": 7}},
    "not_begun": {"calls": 9, "outcomes": {"not_found": 9}},
    "first_request": "aaaaaaaaaaaa", "last_request": "bbbbbbbbbbbb",
    "ids": [f"aaaaaaaaaaaa {'ee' * 6}", f"{COUNTED} {OF_CALL[:12]}"], "ids_left_out": 2,
    "seconds": 600.0,
}  # fmt: skip
IS_ONE = "The call that was asked for is one of these."
SAID = [
    "work did more of the same within 600.0 s, which was only counted: 4 decision, 4 call, 5 "
    "call_ended.",
    "3 calls of app.Sign+letters -> vault: 2 exited 0, 1 exited 3.",
    "1 call of app.Sign with other arguments -> vault.",
    "qubes.VMShell -> web, called before: 1 problem, dom0 (uid 1000).",
    "7 calls of services that had no room here: 7 other.",
    "9 calls that started nothing: 9 not_found.",
    "The first was request aaaaaaaaaaaa, the last bbbbbbbbbbbb.",
]


@pytest.fixture
def summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log with a story and a sum; dom0's user has ended a call that the sum counts."""
    end = {**ENDED, "request": COUNTED, "call": OF_CALL, "by": "dom0"}
    log = tmp_path / "audit.jsonl"
    log.write_text("".join(json.dumps(record) + "\n" for record in [*STORY, end, SUM]))
    monkeypatch.setenv("PEDOS_AUDIT", str(log))
    return log


@pytest.mark.parametrize("name", [COUNTED, OF_CALL, OF_CALL[:12]])
def test_a_call_that_is_only_counted_is_said_to_be_in_its_sum(
    summed: Path, capsys: Captured, name: str
) -> None:
    assert main(["show", name]) == 0
    told = [line.split("  ")[-1].strip() for line in capsys.readouterr().out.splitlines()]
    assert told[0] == f"request {COUNTED}" or name == COUNTED
    assert told[2] == "dom0 ended it."
    first, *others = SAID
    assert told[-8:] == [first, IS_ONE, *others]


def test_a_sum_of_which_a_call_is_the_first_only_says_so_too(
    summed: Path, capsys: Captured
) -> None:
    assert main(["show", "aaaaaaaaaaaa"]) == 0
    assert IS_ONE in capsys.readouterr().out


def test_a_call_without_an_id_in_a_sum_is_said_to_be_possible(
    summed: Path, capsys: Captured
) -> None:
    assert main(["show", "f" * 12]) == 4
    said = f"no record of the request {'f' * 12} in {summed}; sums that count calls without "
    assert said in capsys.readouterr().err


def test_a_sum_of_calls_is_a_row_about_its_vms_and_no_denial(
    summed: Path, capsys: Captured
) -> None:
    assert main(["--vm", "web"]) == 0
    (row_,) = capsys.readouterr().out.splitlines()
    words = "(3 app.Sign+letters -> vault, 1 app.Sign with other arguments -> vault, 0 qubes"
    assert words in row_ and COUNTED not in row_
    assert main(["--denied"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("field", ["calls", "ids", "not_named", "not_begun"])
@pytest.mark.parametrize("value", [None, 5, "x", [5, None, {}], {"calls": {}, "outcomes": 5}])
def test_a_sum_of_any_content_is_shown(field: str, value: object) -> None:
    for record in ({**SUM, field: value}, {**SUM, "calls": [{**SUM["calls"][0], "target": value}]}):
        assert sentences(record) and row(record)
