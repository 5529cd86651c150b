"""assign, unassign, list --assignments, and the identity in attach."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from pedos_cli import output
from pedos_cli.qvm_device import main, main_pci, main_usb
from pedos_protocol.errors import CallError
from pedos_protocol.messages import (
    Assigned,
    AssignedNow,
    AssignmentsListed,
    AssignResult,
    Conflict,
    ErrorInfo,
    Holder,
    UnassignItem,
    UnassignResult,
    parse_params,
    to_wire,
)

if TYPE_CHECKING:
    from conftest import FakeService

Listed = Callable[..., dict[str, Any]]
Captured = pytest.CaptureFixture[str]

STICK = "0781:5567:4C53:u080650"
PRESENT = AssignedNow(matches=("1-2",), verdict="allow", rule="30-user.policy:3", runs=True)


def assigned(service: FakeService, **fields: Any) -> None:
    whole = {
        "outcome": "assigned", "options": {}, "request": "0123ab", "vm": "work", "device": "1-2",
        "identity": STICK, "now": PRESENT, **fields,
    }  # fmt: skip
    service.replies["device.assign"] = to_wire(AssignResult(**whole))


def asked(service: FakeService, method: str) -> dict[str, Any]:
    """The parameters of the one call of `method`, which the service can read."""
    params = service.asked(method)
    parse_params(method, params)
    return params


# assign


@pytest.mark.parametrize(
    ("words", "device", "identity", "match"),
    [
        ("sys-usb:1-2", "1-2", None, "both"),
        (f"sys-usb:1-2:{STICK}", "1-2", STICK, "both"),
        ("sys-usb:1-2 --port", "1-2", None, "port"),
        ("sys-usb:1-2:*", "1-2", None, "port"),
        ("--only-port sys-usb:1-2:*", "1-2", None, "port"),
        (f"sys-usb:1-2:{STICK} --port", "1-2", STICK, "port"),
        ("sys-usb:1-2 --device", "1-2", None, "device"),
        (f"sys-usb:1-2:{STICK} --only-device", "1-2", STICK, "device"),
        (f"sys-usb:*:{STICK}", None, STICK, "device"),
        (f"sys-usb:*:{STICK} --device", None, STICK, "device"),
    ],
)
def test_an_assignment_is_to_a_port_to_a_device_or_to_both(
    service: FakeService, words: str, device: str | None, identity: str | None, match: str
) -> None:
    assigned(service)
    assert main(["usb", "assign", "work", *words.split()]) == 0
    assert asked(service, "device.assign") == {
        "device_class": "usb",
        "vm": "work",
        "backend": "sys-usb",
        "device": device,
        "identity": identity,
        "match": match,
        "mode": "auto-attach",
        "options": {},
        "dry_run": False,
    }


@pytest.mark.parametrize(
    ("device_class", "words", "mode"),
    [
        ("usb", "", "auto-attach"),
        ("pci", "", "required"),
        ("pci", "--auto", "auto-attach"),
        ("usb", "--auto-attach", "auto-attach"),
        ("usb", "--ask", "ask"),
        ("usb", "--ask-to-attach", "ask"),
        ("usb", "-r", "required"),
        ("usb", "--required", "required"),
    ],
)
def test_a_mode_can_be_chosen_and_depends_on_the_class(
    service: FakeService, device_class: str, words: str, mode: str
) -> None:
    assigned(service)
    assert main([device_class, "s", "work", "sys-usb:1-2", *words.split()]) == 0
    assert asked(service, "device.assign")["mode"] == mode


@pytest.mark.parametrize(
    ("device_class", "flag", "runs", "then"),
    [
        ("usb", "--ask", True, "dom0's user would be asked at once"),
        ("usb", "--ask", False, "dom0's user would be asked when work starts"),
        ("pci", "-r", True, "would be attached when work starts"),
    ],
)
def test_what_would_happen_depends_on_the_mode_and_the_class(
    service: FakeService, capsys: Captured, device_class: str, flag: str, runs: bool, then: str
) -> None:
    assigned(service, now=AssignedNow(matches=("1-2",), verdict="allow", runs=runs))
    assert main([device_class, "assign", "--dry-run", flag, "work", "sys-usb:1-2"]) == 0
    assert capsys.readouterr().out == f"now: sys-usb:1-2 is present, and {then}\n"


def test_options_are_those_of_an_attach(service: FakeService, capsys: Captured) -> None:
    assigned(service, options={"frontend-dev": "xvdj", "read-only": "yes"})
    assert main(["block", "assign", "work", "a:b", "--ro", "-o", "frontend-dev=xvdj"]) == 0
    options = {"frontend-dev": "xvdj", "read-only": "yes"}
    assert asked(service, "device.assign")["options"] == options
    assert "assigned to work (frontend-dev=xvdj, read-only=yes); " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "what"),
    [
        ("--auto", "it is attached when work starts, and when it appears while work runs"),
        ("-r", "work does not start without it"),
    ],
)
def test_assign_says_what_it_means(
    service: FakeService, capsys: Captured, flag: str, what: str
) -> None:
    assigned(service)
    assert main_usb(["assign", "work", "sys-usb:1-2", flag]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"sys-usb:1-2:{STICK} assigned to work; {what}",
        "  now: sys-usb:1-2 is present, and will be attached to work at once",
    ]
    assert main_usb(["assign", "work", "sys-usb:1-2", flag, "-q"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, f"sys-usb:1-2:{STICK} assigned to work; work "),
        ({"outcome": "changed"}, f"sys-usb:1-2:{STICK} is now assigned to work; work "),
        ({"outcome": "already"}, f"sys-usb:1-2:{STICK} is already assigned to work; work "),
        ({"identity": ""}, "sys-usb:1-2 assigned to work; work "),
        ({"device": None}, f"sys-usb:*:{STICK} assigned to work; work "),
        ({"vm": "vault"}, f"sys-usb:1-2:{STICK} assigned to vault, and not to work, as "),
        ({"vm": None, "now": None}, f"sys-usb:1-2:{STICK} assigned to another VM, as dom0's "),
    ],
)
def test_assign_says_what_came_of_it(
    service: FakeService, capsys: Captured, fields: dict[str, Any], text: str
) -> None:
    assigned(service, **fields)
    assert main_usb(["assign", "-r", "work", "sys-usb:1-2"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(text)
    assert told.err == ""


@pytest.mark.parametrize(
    ("now", "lines"),
    [
        ({}, ["sys-usb:1-2 is present, and would be attached to work at once"]),
        ({"runs": False}, ["sys-usb:1-2 is present, and would be attached when work starts"]),
        ({"matches": (), "absent": "no such device is there"}, ["no such device is there"]),
        (
            {"verdict": "deny", "rule": "30-user.policy:12"},
            ["sys-usb:1-2 is present", "denied by policy (30-user.policy:12)"],
        ),
        (
            {"verdict": "deny", "rule": None},
            ["sys-usb:1-2 is present", "denied by policy (no rule allows it)"],
        ),
        (
            {"verdict": "ask", "rule": "90-default.policy:4"},
            [
                "sys-usb:1-2 is present, and dom0's user would be asked at once, as "
                "90-default.policy:4 wants it",
            ],
        ),
        (
            {"held_by": "work", "held": "1-2"},
            ["sys-usb:1-2 is present, and is attached to work already"],
        ),
        (
            {"held_by": "work", "held": "1-2.1"},
            ["sys-usb:1-2 is present", "work has sys-usb:1-2.1, which shares data with it"],
        ),
        ({"held_by": "vault", "held": "1-2"}, ["sys-usb:1-2 is present", "vault has it"]),
        (
            {"held_by": "vault", "held": "1-2.1"},
            ["sys-usb:1-2 is present", "vault has sys-usb:1-2.1, which shares data with it"],
        ),
        ({"unfit": "it is mounted"}, ["sys-usb:1-2 is present", "it is mounted"]),
        ({"name_taken": "xvdj is taken"}, ["sys-usb:1-2 is present", "xvdj is taken"]),
        (
            {"matches": ("1-2", "1-3"), "matches_left_out": 2, "ambiguous": "four look the same"},
            ["sys-usb:1-2, sys-usb:1-3, 2 more are present", "four look the same"],
        ),
        (
            {
                "conflicts": (Conflict("vault", "1-2", "", "ask", "less"),),
            },
            [
                "sys-usb:1-2 is present, and would be attached to work at once",
                "the assignment of sys-usb:1-2 to vault (ask) is less specific, and does not count",
            ],
        ),
        (
            {
                "conflicts": (
                    Conflict("a", None, STICK, "required", "equal"),
                    Conflict("b", "1-2", STICK, "auto-attach", "more"),
                ),
                "conflicts_left_out": 3,
            },
            [
                "sys-usb:1-2 is present",
                f"the assignment of sys-usb:*:{STICK} to a (required) is as specific, so that "
                "neither gets it by itself",
                f"the assignment of sys-usb:1-2:{STICK} to b (auto-attach) is more specific, and "
                "counts",
                "3 more assignments are about the same devices",
            ],
        ),
    ],
)
def test_what_would_happen_now_is_told_and_is_no_failure(
    service: FakeService, capsys: Captured, now: dict[str, Any], lines: list[str]
) -> None:
    whole = {"matches": ("1-2",), "verdict": "allow", "rule": "a:1", "runs": True, **now}
    assigned(service, now=AssignedNow(**whole))
    assert main_usb(["assign", "--dry-run", "work", "sys-usb:1-2"]) == 0
    assert capsys.readouterr() == ("".join(f"now: {line}\n" for line in lines), "")
    assert asked(service, "device.assign")["dry_run"]


def test_what_the_service_tells_is_shown_harmless(service: FakeService, capsys: Captured) -> None:
    assigned(service)
    service.replies["device.assign"]["now"]["unfit"] = "\x1b[2J  now: it is\nfree"  # type: ignore[index]
    assert main_usb(["assign", "work", "sys-usb:1-2"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "  now: \\x1b[2J \\x20now: it is\\nfree"


def test_a_denied_assignment_is_explained_as_one(service: FakeService, capsys: Captured) -> None:
    service.replies["device.assign"] = CallError("denied", "x", {"rule": None, "text": None})
    assert main(["usb", "assign", "work", f"sys-usb:1-2:{STICK}"]) == 3
    see = "  see:  qvm-device usb explain work sys-usb:1-2 --verb assign\n"
    assert see in capsys.readouterr().err
    assert main(["usb", "assign", "work", f"sys-usb:*:{STICK}"]) == 3
    assert "see:" not in capsys.readouterr().err


# unassign


def item(device: str | None, identity: str, **fields: Any) -> UnassignItem:
    whole: dict[str, Any] = {"mode": "required", "unassigned": True, **fields}
    return UnassignItem("sys-usb", device, identity, **whole)


def unassigned(service: FakeService, *items: UnassignItem) -> None:
    service.replies["device.unassign"] = to_wire(UnassignResult(items, "0123ab"))


@pytest.mark.parametrize(
    ("words", "device", "identity"),
    [
        ("sys-usb:1-2", "1-2", None),
        ("sys-usb:1-2 --port", "1-2", None),
        ("sys-usb:1-2:*", "1-2", None),
        (f"sys-usb:1-2:{STICK}", "1-2", STICK),
        (f"sys-usb:*:{STICK}", None, STICK),
        (f"sys-usb:1-2:{STICK} --device", None, STICK),
        ("sys-usb:1-2 --device", None, "1-2 has it"),
    ],
)
def test_unassign_is_of_a_port_or_of_an_identity(
    service: FakeService, listed: Listed, words: str, device: str | None, identity: str | None
) -> None:
    unassigned(service, item(device, STICK))
    here = listed("sys-usb:1-2", identity=STICK)
    other = listed("sys-usb:1-3", identity="0000:0000")
    service.replies["device.list"] = {"devices": [other, here], "policy": None}
    assert main_usb(["unassign", "work", *words.split()]) == 0
    assert asked(service, "device.unassign") == {
        "device_class": "usb",
        "vm": "work",
        "backend": "sys-usb",
        "device": device,
        "identity": STICK if identity == "1-2 has it" else identity,
    }


@pytest.mark.parametrize(
    ("identity", "why"),
    [
        ("", "sys-usb:1-2 has no identity now"),
        (None, "sys-usb:1-2 is not there, so its identity is not known"),
    ],
)
def test_a_device_without_an_identity_is_not_unassigned_by_it(
    service: FakeService, listed: Listed, capsys: Captured, identity: str | None, why: str
) -> None:
    devices = [] if identity is None else [listed("sys-usb:1-2", identity=identity)]
    service.replies["device.list"] = {"devices": devices, "policy": None}
    assert main_usb(["u", "work", "sys-usb:1-2", "--device"]) == 4
    assert capsys.readouterr().err == (
        f"qvm-usb: not found: {why}\n  try:  qvm-usb list --assignments work\n"
    )
    assert [method for method, _ in service.calls] == ["device.list"]


def test_unassign_of_all_goes_on_past_a_failure_and_exits_with_the_first(
    service: FakeService, capsys: Captured
) -> None:
    denied = ErrorInfo("denied", "sys-usb:1-3 -> work", {"rule": "a:1", "text": None})
    failed = ErrorInfo("failed", "no space left")
    unassigned(
        service,
        item("1-2", ""),
        item("1-3", STICK, unassigned=False, error=denied),
        item(None, STICK, unassigned=False, error=failed),
        item(None, "0000:1111"),
    )
    assert main(["usb", "unassign", "work"]) == 3
    params = asked(service, "device.unassign")
    assert {params[key] for key in ("backend", "device", "identity")} == {None}
    out, err = capsys.readouterr()
    assert out == (
        "sys-usb:1-2 no longer assigned to work\nsys-usb:*:0000:1111 no longer assigned to work\n"
    )
    assert err == (
        "qvm-device: denied: sys-usb:1-3 -> work\n"
        "  rule: a:1\n"
        "  see:  qvm-device usb explain work sys-usb:1-3 --verb assign\n"
        "qvm-device: failed: no space left\n"
    )


def test_unassign_names_what_stays_attached(
    service: FakeService, listed: Listed, capsys: Captured
) -> None:
    unassigned(service, item("1-2", ""), item(None, STICK), item("1-5", "", unassigned=False))
    lent = [{"vm": "work", "options": {}}]
    devices = [
        listed("sys-usb:1-2", attachments=lent),
        listed("sys-usb:1-3", attachments=lent, identity=STICK),
        listed("sys-usb:1-4", attachments=lent, identity="0000:1111"),
        listed("sys-usb:1-5", attachments=lent),
        listed("other:1-2", attachments=lent),
        listed("sys-usb:1-6", identity=STICK),
    ]
    service.replies["device.list"] = {"devices": devices, "policy": None}
    assert main_usb(["unassign", "work"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "  sys-usb:1-2 stays attached to work until it is detached",
        "  sys-usb:1-3 stays attached to work until it is detached",
    ]
    assert service.asked("device.list")["vms"] == ["work"]
    assert main_usb(["unassign", "-q", "work"]) == 0
    assert [method for method, _ in service.calls].count("device.list") == 1
    service.replies["device.list"] = {"devices": 5}  # the result stands, whatever is with this
    assert main_usb(["unassign", "work"]) == 0


def test_unassign_of_nothing_says_so_and_is_done(service: FakeService, capsys: Captured) -> None:
    unassigned(service)
    assert main(["usb", "unassign", "work"]) == 0
    assert capsys.readouterr().out == "no usb device is assigned to work\n"


# list --assignments


def test_assignments_are_listed_with_what_has_become_of_them(
    service: FakeService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    ro = {"read-only": "yes"}
    service.replies["device.assignments"] = to_wire(
        AssignmentsListed(
            (
                Assigned("work", "sys-usb", None, STICK, "auto-attach", {}, matches=("1-3", "1-4"),
                         matches_left_out=1, conflict="three have this identity"),
                Assigned("work", "sys-usb", "1-10", "", "required", ro),
                Assigned("vault", "sys-usb", "1-2", STICK, "ask", {}, matches=("1-2",)),
                Assigned("work", "sys-usb", "1-2", "", "auto-attach", {}, matches=("1-2",),
                         holders=(Holder("1-2", "work"),)),
                Assigned("web", "sys-usb", "1-2", "", "auto-attach", {}, matches=("1-2",),
                         holders=(Holder("1-2", "work"),)),
                Assigned("gone", "dom0", "mic", "", "required", {}, orphaned=True),
            )
        )
    )  # fmt: skip
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    assert main(["usb", "list", "--assignments"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [re.split("  +", line) for line in printed] == [
        ["BACKEND:DEVID[:IDENTITY]", "VM", "MODE", "OPTIONS", "NOW"],
        ["dom0:mic", "gone", "required", "-", "the VM was removed"],
        ["sys-usb:1-2", "web", "auto-attach", "-", "attached to work"],
        ["sys-usb:1-2", "work", "auto-attach", "-", "attached"],
        [f"sys-usb:1-2:{STICK}", "vault", "ask", "-", "present"],
        ["sys-usb:1-10", "work", "required", "read-only=yes", "not present"],
        [
            f"sys-usb:*:{STICK}", "work", "auto-attach", "-",
            "present (1-3); present (1-4); 1 more present; three have this identity",
        ],
    ]  # fmt: skip
    assert len({line.index("  -  ") for line in printed[1:5]}) == 1


def test_assignments_are_asked_for_until_there_are_no_more(
    service: FakeService, capsys: Captured
) -> None:
    first = Assigned("work", "sys-usb", None, STICK, "ask", {})
    second = Assigned("work", "sys-usb", "1-2", "", "ask", {})

    def answer(params: dict[str, Any]) -> dict[str, Any]:
        parse_params("device.assignments", params)
        is_first = params["after"] is None
        return to_wire(AssignmentsListed((first if is_first else second,), more=is_first))

    service.replies["device.assignments"] = answer
    assert main_usb(["-s", "--all", "--exclude", "vault", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["device"] for each in told["assignments"]] == ["1-2", None]
    assert told["policy"] is None
    (_, one), (_, two) = service.calls
    last = {"vm": "work", "backend": "sys-usb", "device": None, "identity": STICK}
    assert (one["vms"], one["exclude"], one["after"], two["after"]) == (None, ["vault"], None, last)


def test_no_assignment_is_said_beside_the_output(service: FakeService, capsys: Captured) -> None:
    service.replies["device.assignments"] = to_wire(AssignmentsListed(()))
    assert main_pci(["list", "-s", "work"]) == 0
    assert asked(service, "device.assignments")["vms"] == ["work"]
    assert capsys.readouterr() == ("", "qvm-pci: no pci device is assigned to a VM here\n")


def test_hostile_text_in_an_assignment_stays_in_its_cell(
    service: FakeService, capsys: Captured
) -> None:
    answer = to_wire(AssignmentsListed((Assigned("work", "sys-usb", "1-2", "", "ask", {}),)))
    answer["assignments"][0] |= {"conflict": "a  b\x1b", "identity": "x  y", "vm": "w\n"}
    service.replies["device.assignments"] = answer
    assert main_usb(["list", "-s"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert re.split("  +", line) == ["sys-usb:1-2:x \\x20y", "w\\n", "ask", "-", "a \\x20b\\x1b"]


# list, with modes


@pytest.mark.parametrize(
    ("fields", "users"),
    [
        ({"assignments": [{"vm": "work", "options": {}, "mode": "required"}]}, "*work (assigned)"),
        (
            {"assignments": [{"vm": "work", "options": {"a": "b"}, "mode": "auto-attach"}]},
            "*work (assigned, auto-attach: a=b)",
        ),
        (
            {"conflict": "two VMs (claim) it"},
            "attached to none by itself (two VMs \\x28claim\\x29 it)",
        ),
        ({"conflict": None}, ""),
    ],
)
def test_a_list_tells_the_mode_of_an_assignment_and_a_conflict(
    service: FakeService, listed: Listed, capsys: Captured, fields: dict[str, Any], users: str
) -> None:
    service.replies["device.list"] = {"devices": [listed("a:b", **fields)], "policy": None}
    assert main(["usb"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == f"a:b  a disk  {users}".rstrip()


# an older service


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (
            "assign work sys-usb:1-2:ab:cd",
            "assigns devices only by port",
            "qvm-usb attach --persistent work sys-usb:1-2",
        ),
        (
            "unassign work sys-usb:1-2",
            "knows only assignments by port, which detach takes away",
            "qvm-usb detach work sys-usb:1-2",
        ),
        (
            "list --assignments",
            "tells of assignments only in the list of devices",
            "qvm-usb list",
        ),
    ],
)
def test_an_older_service_is_said_to_be_older(
    service: FakeService, capsys: Captured, words: str, message: str, hint: str
) -> None:
    assert main_usb(words.split()) == 1
    assert capsys.readouterr().err == (
        f"qvm-usb: failed: dom0's service is of an older version and {message}\n  try:  {hint}\n"
    )


# the identity in attach


@pytest.mark.parametrize(("named", "identity"), [(f":{STICK}", STICK), (":*", None), ("", None)])
def test_an_attach_can_name_the_identity_that_is_expected(
    service: FakeService, capsys: Captured, named: str, identity: str | None
) -> None:
    service.replies["device.attach"] = {"outcome": "attached", "options": {}, "request": "0123ab"}
    assert main_usb(["attach", "work", f"sys-usb:1-2{named}"]) == 0
    params = asked(service, "device.attach")
    assert params["device"] == "1-2"
    assert params.get("identity") == identity
    assert ("identity" in params) == (identity is not None)  # an older service knows no such key
    assert capsys.readouterr().out == "sys-usb:1-2 attached to work\n"


def test_a_broken_policy_is_warned_of_after_an_assignment(
    service: FakeService, capsys: Captured
) -> None:
    error = {"file": "30-user.policy", "line": 12, "column": 4, "message": "unknown action"}
    status = {"ok": False, "loaded_at": "2025", "rules": 3, "errors": [error]}
    service.replies["service.status"] = {"policy": status}
    assigned(service, policy_ok=False)
    unassigned(service)
    service.replies["device.unassign"]["policy_ok"] = False  # type: ignore[index]
    for verb in ("assign", "unassign"):
        assert main_usb([verb, "work", "sys-usb:1-2"]) == 0
        assert "warning: 30-user.policy:12 has an error" in capsys.readouterr().err
