"""qvm-device watch: what it prints, how it goes on without a service, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pedos_cli import answers, device_watch
from pedos_cli.qvm_device import main, main_usb
from pedos_cli.watch_model import Model, vm_changes
from pedos_protocol.errors import CallError, ProtocolError

if TYPE_CHECKING:
    from conftest import FakeService

Listed = Callable[..., dict[str, Any]]
Captured = pytest.CaptureFixture[str]
Reply = dict[str, Any] | CallError

PATIENCE_S = 60  # a program starts in a moment, on a machine with other work in some
LENT = [{"vm": "work", "options": {}}]
THE_END = CallError("failed", "the test is over")


def vm(name: str, state: str = "Running", domid: int | None = 1, *, agent: bool = True) -> Any:
    return {"name": name, "state": state, "domid": domid, "agent": agent}


def answer(
    number: int, *, devices: Any = (), vms: Any = (), gap: str | None = None, **more: Any
) -> dict[str, Any]:
    """An answer of the service; the changes are numbered up to `number`."""
    first = number - len(devices) - len(vms)
    return {
        "numbering": "one",
        "number": number,
        "begun": 0,
        "complete": True,
        "gap": gap,
        "devices": [
            {
                "number": first + place,
                "device_class": each["device_class"],
                "backend": each["backend"],
                "device": each["device"],
                "now": None if each.get("gone") else each,
            }
            for place, each in enumerate(devices, 1)
        ],
        "vms": [
            {
                "number": first + place,
                "vm": each["name"],
                "now": None if each.get("gone") else each,
            }
            for place, each in enumerate(vms, 1 + len(devices))
        ],
        **more,
    }


def say(service: FakeService, *replies: Reply) -> None:
    """The service's answers, one after the other, and then the end of the test."""
    left: Iterator[Reply] = iter((*replies, THE_END))
    service.replies["watch.next"] = lambda _params: next(left)


def lines(text: str) -> list[str]:
    """The cells of each line."""
    return [" | ".join(re.split(r" {2,}", line)) for line in text.splitlines()]


def test_a_line_says_what_happened_and_goes_on_like_a_line_of_a_list(
    service: FakeService, listed: Listed, capsys: Captured
) -> None:
    used = listed("sys-usb:sda", attachments=[{"vm": "work", "options": {}}])
    say(
        service,
        answer(2, devices=[listed("sys-usb:sda")], vms=[vm("work", "Halted", None, agent=False)]),
        answer(4, devices=[used], vms=[vm("work")]),
        answer(5, devices=[{**used, "gone": True}]),
    )
    assert main(["watch"]) == 1
    told = capsys.readouterr()
    assert lines(told.out) == [
        "vm | work | Halted | - | - | present",
        "present | sys-usb:sda | a disk",
        "changed | sys-usb:sda | a disk | work (attached)",
        "vm | work | Running | 1 | yes | started, agent connected",
        "removed | sys-usb:sda | a disk",
    ]
    assert told.err == "qvm-device: failed: the test is over\n"


def test_each_line_of_json_is_one_event(
    service: FakeService, listed: Listed, capsys: Captured
) -> None:
    sda, gone = listed("sys-usb:sda"), {**listed("sys-usb:sda"), "gone": True}
    say(service, answer(1, devices=[sda]), answer(3, devices=[gone], vms=[vm("work")]))
    assert main(["watch", "--json"]) == 1
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"event": "device.present", "number": 1, "device": sda},
        {"event": "ready", "number": 1, "numbering": "one"},
        {"event": "device.removed", "number": 2, "device": sda},
        {"event": "vm.added", "number": 3, "vm": vm("work")},
    ]


@pytest.mark.parametrize(
    ("run", "words", "asked"),
    [
        (main, ["watch"], None),
        (main, ["watch", "usb"], "usb"),
        (main, ["-q", "watch", "--json", "usb"], "usb"),
        (main, ["usb", "watch"], "usb"),
        (main_usb, ["--json", "watch"], "usb"),
    ],
)
def test_all_classes_are_watched_or_one(
    service: FakeService, run: Callable[[list[str]], int], words: list[str], asked: str | None
) -> None:
    say(service)
    assert run(words) == 1
    assert service.asked("watch.next") == {
        "device_class": asked, "numbering": None, "number": 0, "begun": 0,
    }  # fmt: skip


@pytest.mark.parametrize("words", [["watch", "floppy"], ["watch", "block", "work"]])
def test_what_is_no_class_is_not_watched(
    no_service: Path, capsys: Captured, words: list[str]
) -> None:
    assert main(words) == 2
    assert "usage" in capsys.readouterr().err


def test_the_next_request_goes_on_where_the_last_answer_ended(
    service: FakeService, listed: Listed
) -> None:
    say(
        service,
        answer(3, devices=[listed("a:b")], complete=False, begun=9),
        answer(9, devices=[listed("a:c")]),
    )
    main(["watch", "block"])
    asked = [{**params, "device_class": None} for _, params in service.calls]
    assert [(each["numbering"], each["number"], each["begun"]) for each in asked] == [
        (None, 0, 0), ("one", 3, 9), ("one", 9, 0),
    ]  # fmt: skip


def test_nothing_is_shown_before_everything_is_told(
    service: FakeService, listed: Listed, capsys: Captured
) -> None:
    say(service, answer(3, devices=[listed("sys-usb:sda")], complete=False, begun=9))
    main(["watch", "--json"])
    assert capsys.readouterr().out == ""


def test_after_a_gap_the_differences_are_shown(
    service: FakeService, listed: Listed, capsys: Captured
) -> None:
    sda, sdb, sdc = (listed(f"sys-usb:sd{letter}") for letter in "abc")
    larger = {**sdb, "size": 1}
    say(
        service,
        answer(2, devices=[sda, sdb]),
        answer(7, devices=[larger], gap="too late", complete=False, begun=9),
        answer(9, devices=[sdc], vms=[vm("work")]),
        answer(9),
    )
    main(["watch", "--json"])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()][3:]
    assert events == [
        {"event": "gap", "number": 7, "reason": "too late"},
        {"event": "vm.added", "number": 9, "vm": vm("work")},
        {"event": "device.removed", "number": 9, "device": sda},
        {"event": "device.changed", "number": 9, "device": larger, "changes": ["size"]},
        {"event": "device.added", "number": 9, "device": sdc},
        {"event": "ready", "number": 9, "numbering": "one"},
    ]


def test_a_service_that_goes_away_is_waited_for(
    service: FakeService, listed: Listed, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    replies = iter([answer(1, devices=[listed("sys-usb:sda")])])

    def reply(_params: dict[str, Any]) -> Reply:
        service.leaves = True
        return next(replies)

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 6:
            service.leaves = False
            say(service, answer(1, devices=[listed("sys-usb:sdb")], gap="restarted"))

    monkeypatch.setattr(device_watch, "wait_while_read", sleep)
    service.replies["watch.next"] = reply
    assert main(["watch"]) == 1
    told = capsys.readouterr()
    assert pauses == [0.25, 0.5, 1, 2, 4, 5]
    assert told.err.splitlines()[:3] == [
        "qvm-device: no service answers: the service has closed the connection; "
        "trying again until it does",
        "qvm-device: the service answers again",
        "qvm-device: some changes were missed: restarted; what is different now follows",
    ]
    assert lines(told.out) == [
        "present | sys-usb:sda | a disk",
        "removed | sys-usb:sda | a disk",
        "added | sys-usb:sdb | a disk",
    ]


@pytest.mark.parametrize("code", ["unavailable", "quota", "timeout"])
def test_what_passes_by_itself_ends_only_a_watch_that_has_not_begun(
    service: FakeService, capsys: Captured, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(device_watch, "wait_while_read", lambda _seconds: None)
    say(service, answer(0), CallError(code, "not now"), answer(0))
    assert main(["watch", "--json"]) == 1
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[1:] == [{"event": "unreachable", "reason": "not now"}, {"event": "reachable"}]
    say(service, CallError(code, "not now"))
    assert main(["watch"]) != 0
    assert "the test is over" not in capsys.readouterr().err


def test_without_a_service_it_does_not_begin(no_service: Path, capsys: Captured) -> None:
    assert main(["watch"]) == 5
    assert "no service answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("inside", "who"),
    [("", "dom0's service is"), ("work", "this VM's agent, or dom0's service, is")],
)
def test_an_older_service_is_said_to_be_older(
    service: FakeService,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    inside: str,
    who: str,
) -> None:
    monkeypatch.setattr(answers, "inside_vm", lambda: bool(inside))
    assert main(["watch", "usb"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"qvm-device: failed: {who} of an older version and cannot tell of changes",
        "  try:  qvm-device usb list",
    ]


def test_ctrl_c_ends_it_without_a_word(
    service: FakeService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(device_watch, "wait_while_read", interrupted)
    say(service, answer(0), CallError("unavailable", "gone"))
    assert main(["watch", "--json"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("flags", "fields", "line"),
    [
        ("", {"instance": "b-1"}, "a disk | - | (perhaps another device)"),
        ("", {"size": 1, "instance": "b-1"}, "a disk | - | (perhaps another device, size)"),
        ("-v", {"size": 1, "instance": "b-1"}, "a disk | 1 B | - | (perhaps another device)"),
        ("", {"description": "a stick", "read_only": True}, "a stick | - | (read only)"),
        (
            "",
            {"busy": "mounted", "shares": ["sdb"]},
            "a disk | sys-usb (in use: mounted) | (shares data with other devices)",
        ),
        ("", {"attachments": LENT}, "a disk | work (attached)"),
        ("", {"attachments": LENT, "busy": "lent"}, "a disk | work (attached) | (busy)"),
    ],
)
def test_a_change_that_a_line_does_not_show_is_named_behind_it(
    service: FakeService,
    listed: Listed,
    capsys: Captured,
    flags: str,
    fields: dict[str, Any],
    line: str,
) -> None:
    before = listed("sys-usb:sda", instance="a-1")
    say(service, answer(1, devices=[before]), answer(2, devices=[{**before, **fields}]))
    assert main(["watch", *flags.split()]) == 1
    assert lines(capsys.readouterr().out)[1] == f"changed | sys-usb:sda | {line}"


def test_the_end_of_its_reader_is_its_end(service: FakeService, listed: Listed) -> None:
    reader, writer = os.pipe()
    read: list[bytes] = []
    has_ended = threading.Event()

    def reply(params: dict[str, Any]) -> Reply:
        if params["number"] == 0:
            return answer(1, devices=[listed("sys-usb:sda")])
        read.append(os.read(reader, 4096))  # the first answer is printed before the next question
        os.close(reader)
        has_ended.wait(PATIENCE_S)  # nothing changes any more
        return answer(1)

    service.replies["watch.next"] = reply
    code = "from pedos_cli.qvm_device import main\nraise SystemExit(main(['watch']))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=writer, stderr=subprocess.PIPE, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    finally:
        has_ended.set()
        os.close(writer)
    assert lines(read[0].decode()) == ["present | sys-usb:sda | a disk"]
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("before", "now", "changes"),
    [
        (vm("a"), vm("a", "Halted", None, agent=False), ["stopped"]),
        (vm("a", "Halted", None, agent=False), vm("a", agent=False), ["started"]),
        (vm("a"), vm("a", agent=False), ["agent lost"]),
        (vm("a", agent=False), vm("a"), ["agent connected"]),
        (vm("a"), vm("a", domid=2), ["restarted"]),
        (vm("a"), vm("a", "Transient"), ["is transient"]),
    ],
)
def test_what_happens_to_a_vm_has_words(before: Any, now: Any, changes: list[str]) -> None:
    assert vm_changes(before, now) == changes


@pytest.mark.parametrize(
    "broken",
    [
        {"number": "1"},
        {"numbering": None},
        {"complete": 1},
        {"devices": [{}]},
        {"vms": [{"number": 1, "vm": "work", "now": []}]},
    ],
)
def test_an_answer_that_is_malformed_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        Model().take({**answer(1), **broken})


def test_a_device_s_text_cannot_pass_for_another_column(
    service: FakeService, listed: Listed, capsys: Captured
) -> None:
    say(service, answer(1, devices=[listed("sys-usb:sda", description="x  work (attached)\n")]))
    main(["watch"])
    assert lines(capsys.readouterr().out) == ["present | sys-usb:sda | x \\x20work (attached)\\n"]
