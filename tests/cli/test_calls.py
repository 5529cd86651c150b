"""`qvm-calls`: what it lists, and which call it ends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pedos_cli import calls, output
from pedos_cli.completion import candidates
from pedos_cli.qvm_calls import build_parser, main
from pedos_protocol.errors import CallError

if TYPE_CHECKING:
    from conftest import FakeService

Captured = pytest.CaptureFixture[str]

A, B, C = "aa11" + "0" * 28, "aa22" + "0" * 28, "bb33" + "0" * 28


def running(call: str, number: int = 1, **fields: Any) -> dict[str, Any]:
    """A call as the service lists it."""
    return {
        "call": call, "number": number, "request": "3f9c01ab77de", "source": "work",
        "target": "vault",
        "requested": "vault", "service": "app.Open", "argument": "+", "user": None,
        "state": "running", "seconds": 75.5, "stdin": 999, "stdout": 2048, "stderr": 0, "by": "",
        **fields,
    }  # fmt: skip


LISTED = [
    running(A, argument="+page", user="root", seconds=90061.0, stdout=5 << 20),
    running(B, source="dom0"),
    running(
        C, source="vault", target=None, requested="@default", state="asking", seconds=0.26,
        stdin=None, stdout=None, stderr=None,
    ),
]  # fmt: skip


@pytest.fixture
def listing(service: FakeService) -> FakeService:
    service.replies["call.list"] = {"calls": LISTED, "more": False}
    service.replies["call.end"] = {}
    return service


def ended(service: FakeService) -> list[str]:
    return [params["call"] for method, params in service.calls if method == "call.end"]


def test_calls_are_listed_with_the_oldest_first(
    listing: FakeService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    assert main([]) == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "ID STATE SOURCE TARGET SERVICE USER AGE IN OUT ERR",
        "aa1100000000 running work vault app.Open+page root 1d 1h 999 5.0M 0",
        "aa2200000000 running dom0 vault app.Open - 1m 15s 999 2.0K 0",
        "bb3300000000 asking vault @default app.Open - 0.3s - - -",
    ]


def test_calls_of_a_vm_are_those_that_it_made_or_serves(
    listing: FakeService, capsys: Captured
) -> None:
    assert main(["list", "dom0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"calls": [LISTED[1]]}
    assert main(["list", "sys-usb"]) == 0
    assert capsys.readouterr() == ("", "qvm-calls: no call runs of or to sys-usb\n")


def test_every_page_is_asked_for(service: FakeService, capsys: Captured) -> None:
    first, second = running(A, 7), running(B, 9)
    pages = {None: {"calls": [first], "more": True}, 7: {"calls": [second], "more": False}}
    service.replies["call.list"] = lambda params: pages[params["after"]]
    assert main(["--json"]) == 0
    assert [each["call"] for each in json.loads(capsys.readouterr().out)["calls"]] == [A, B]


def test_a_call_is_ended_by_the_beginning_of_its_id(listing: FakeService, capsys: Captured) -> None:
    assert main(["end", "aa11", "BB33"]) == 0
    assert ended(listing) == [A, C]
    assert capsys.readouterr().out == (
        "aa1100000000 ended: work called vault: app.Open+page\n"
        "bb3300000000 ended: vault called @default: app.Open\n"
    )


def test_a_call_that_is_named_twice_is_ended_once(listing: FakeService, capsys: Captured) -> None:
    assert main(["end", "aa11", A, "aa110", "bb33"]) == 0
    assert ended(listing) == [A, C]
    assert capsys.readouterr().out.count("ended: ") == 2


def test_what_is_not_one_call_is_not_ended_and_the_others_are(
    listing: FakeService, capsys: Captured
) -> None:
    same = running("aa11" + "f" * 28)
    listing.replies["call.list"] = {"calls": [*LISTED, same], "more": False}
    assert main(["end", "aa11", "cc44", "aa22"]) == 2
    assert ended(listing) == [B]
    said = capsys.readouterr().err
    assert f"the ids of 2 calls begin with aa11: {A}, {same['call']}" in said
    assert "no call runs whose id begins with cc44; what its service has left may" in said


@pytest.mark.parametrize("word", ["aa1", "xyz0", "a" * 33, "-", "aa 11"])
def test_what_is_no_id_is_not_looked_for(service: FakeService, capsys: Captured, word: str) -> None:
    assert main(["end", "--", word]) == 2
    assert service.calls == []
    assert "is not a call's id: 4 to 32 hexadecimal digits" in capsys.readouterr().err


def test_a_call_that_has_just_ended_is_said_to_have(listing: FakeService, capsys: Captured) -> None:
    listing.replies["call.end"] = CallError("not_found", "no such call runs")
    assert main(["end", "aa11"]) == 4
    assert "no such call runs" in capsys.readouterr().err


def test_an_older_service_is_said_to_be_one(service: FakeService, capsys: Captured) -> None:
    assert main([]) == 1
    assert "is of an older version and knows of no calls of services" in capsys.readouterr().err


def test_in_a_vm_it_is_said_whose_program_this_is(
    service: FakeService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEDOS_VM", "work")
    assert main([]) == 3
    said = "qvm-calls: denied: only dom0's user may list and end calls, and here is work\n"
    assert capsys.readouterr().err == said


def test_a_wrong_action_is_told_the_right_ones(service: FakeService, capsys: Captured) -> None:
    assert main(["work"]) == 2
    assert capsys.readouterr().err == (
        "qvm-calls: usage: 'work' is no action: the actions are list, end\n"
        "  try:  qvm-calls list work\n"
    )


def test_hostile_names_are_escaped(service: FakeService, capsys: Captured) -> None:
    hostile = running(A, service="a\x1b[2J  b", source="x\ny", state="run\u202ening")
    service.replies["call.list"] = {"calls": [hostile], "more": False}
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\u202e" not in out and out.count("\n") == 1


def test_ids_are_completed(listing: FakeService) -> None:
    assert candidates(build_parser(), ["end"], "") == [
        "aa1100000000",
        "aa2200000000",
        "bb3300000000",
    ]


@pytest.mark.parametrize(
    ("passed", "said"),
    [
        (0, "0.0s"), (9.94, "9.9s"), (10, "10s"), (59.9, "59s"), (60, "1m 0s"), (3599, "59m 59s"),
        (3600, "1h 0m"), (86399, "23h 59m"), (86400, "1d 0h"), (8640000, "100d 0h"),
    ],
)  # fmt: skip
def test_an_age_has_two_units(passed: float, said: str) -> None:
    assert calls.age(passed) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0"), (999, "999"), (1000, "1.0K"), (1 << 20, "1.0M"), (999 << 20, "999.0M"),
        (5 << 30, "5.0G"), (1 << 60, "1048576.0T"), (None, "-"),
    ],
)  # fmt: skip
def test_a_size_is_short(count: int | None, said: str) -> None:
    assert calls.size(count) == said
