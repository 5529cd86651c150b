"""list, attach, detach and explain: what is asked of the service, and what people see."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from pedos_cli import output
from pedos_cli.device_list import _details, size_text
from pedos_cli.qvm_device import main, main_block, main_mic
from pedos_protocol.errors import CallError

if TYPE_CHECKING:
    from conftest import FakeService

Listed = Callable[..., dict[str, Any]]
Captured = pytest.CaptureFixture[str]

ATTACHED = {"frontend-dev": "xvdi", "read-only": "no"}
STATUS = {"ok": True, "loaded_at": "2025-01-02T03:04:05+00:00", "rules": 3, "errors": []}
BROKEN = {
    **STATUS,
    "ok": False,
    "errors": [
        {"file": "30-user.policy", "line": 12, "column": 4, "message": "unknown action"},
        {"file": "30-user.policy", "line": 14, "column": 1, "message": "too few columns"},
    ],
}


def answer_list(service: FakeService, *devices: dict[str, Any], policy: Any = STATUS) -> None:
    service.replies["device.list"] = {"devices": list(devices), "policy": policy}


# list


def test_a_list_goes_on_until_there_is_no_more(
    service: FakeService, listed: Listed, capsys: Captured
) -> None:
    pages = {
        None: [listed("sys-usb:sda"), listed("sys-usb:sdb")],
        "sys-usb:sdb": [listed("sys-usb:sdc")],
    }

    def answer(params: dict[str, Any]) -> dict[str, Any]:
        more = params["after"] is None
        return {"devices": pages[params["after"]], "more": more, "policy": STATUS}

    service.replies["device.list"] = answer
    assert main_block([]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "sys-usb:sda",
        "sys-usb:sdb",
        "sys-usb:sdc",
    ]


def test_list_shows_three_columns_in_natural_order_and_no_header_in_a_pipe(
    service: FakeService, listed: Listed, capsys: Captured
) -> None:
    answer_list(
        service,
        listed("sys-usb:sda10", description="tenth"),
        listed("sys-usb:sda2", description="a longer description", attachments=[
            {"vm": "work", "options": ATTACHED},
        ]),
        listed("dom0:sr0", description=""),
    )  # fmt: skip
    assert main(["block"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "dom0:sr0       -",
        "sys-usb:sda2   a longer description  work (attached: frontend-dev=xvdi, read-only=no)",
        "sys-usb:sda10  tenth",
    ]


def test_list_says_how_many_devices_are_missing_and_why(
    service: FakeService, listed: Listed, capsys: Captured
) -> None:
    missing = [
        {"backend": "sys-usb", "device_class": "block", "count": 5, "reason": "too many"},
        {"backend": "work", "device_class": "block", "count": None, "reason": "no files left"},
    ]
    devices = [listed("sys-usb:sda")]
    answer = {"devices": devices, "policy": None, "missing": missing, "missing_vms": 3}
    service.replies["device.list"] = answer
    assert main(["block"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "sys-usb:sda  a disk\n"
    assert printed.err.splitlines() == [
        "qvm-device: sys-usb has 5 block devices that are not listed: too many",
        "qvm-device: work may have block devices that are not listed: no files left",
        "qvm-device: 1 more VMs have devices that are not listed",
    ]
    assert main(["block", "list", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["missing"] == missing
    assert json.loads(printed.out)["missing_vms"] == 3


def test_list_marks_what_its_source_cannot_look_at(
    service: FakeService, listed: Listed, capsys: Captured
) -> None:
    answer_list(service, listed("sys-usb:sda", stale="Too many open files"))
    assert main_block([]) == 0
    assert "cannot look at it now: Too many open files" in capsys.readouterr().out


def test_list_has_a_header_on_a_terminal(
    service: FakeService, listed: Listed, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_list(service, listed("sys-usb:sda", description="disk"))
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    assert main_block([]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "BACKEND:DEVID  DESCRIPTION  USED BY",
        "sys-usb:sda    disk",
    ]


@pytest.mark.parametrize(
    ("fields", "used_by"),
    [
        ({}, ""),
        ({"assignments": [{"vm": "work", "options": {}}]}, "*work (assigned)"),
        (
            {"assignments": [{"vm": "work", "options": {}}], "orphans": ["work"]},
            "*work (assigned to a VM that was removed)",
        ),
        (
            {"assignments": [{"vm": "work", "options": {}}], "assignments_left_out": 6},
            "*work (assigned), 6 more (assigned, not listed)",
        ),
        (
            {"assignments": [{"vm": "work", "options": {"read-only": "yes"}}]},
            "*work (assigned: read-only=yes)",
        ),
        (
            {
                "attachments": [{"vm": "work", "options": ATTACHED}],
                "assignments": [{"vm": "work", "options": {}}],
            },
            "*work (attached: frontend-dev=xvdi, read-only=no)",
        ),
        (
            {
                "attachments": [{"vm": "vm10", "options": {}}, {"vm": "vm2", "options": {}}],
                "assignments": [{"vm": "a", "options": {}}, {"vm": "vm10", "options": {}}],
            },
            "vm2 (attached), *vm10 (attached), *a (assigned)",
        ),
        (
            {
                "attachments": [
                    {"vm": "work", "options": {"read-only": "no"}, "left_over": "it\x1b is"},
                    {"vm": "vault", "options": {}, "left_over": None},
                ],
                "assignments": [{"vm": "work", "options": {}}],
            },
            "vault (attached), *work (left over, as it\\x1b is: read-only=no)",
        ),
        (
            {
                "attachments": [
                    {"vm": "a", "options": {}, "listening": True, "muted": False},
                    {"vm": "b", "options": {}, "listening": False, "muted": True},
                    {"vm": "c", "options": {}, "listening": None, "muted": False},
                    {
                        **{"vm": "d", "options": {}, "listening": True, "muted": True},
                        "unconfirmed": "dom0 does not\x1b confirm it",
                    },
                    {
                        **{"vm": "e", "options": {}, "muted": False},
                        "unconfirmed": "dom0 does not confirm it",
                    },
                ],
            },
            "a (attached, listening), b (attached, muted), c (attached), "
            "d (attached, listening, to be muted, and MAY STILL HEAR, as dom0 does not\\x1b "
            "confirm it), e (attached, may still be muted, as dom0 does not confirm it)",
        ),
        ({"busy": "mounted on /media"}, "sys-usb (in use: mounted on /media)"),
        (
            {"device_class": "mic", "busy": "nobody is logged in"},
            "sys-usb (cannot record it: nobody is logged in)",
        ),
    ],
)
def test_used_by_tells_attached_from_assigned(
    service: FakeService, listed: Listed, capsys: Captured, fields: dict[str, Any], used_by: str
) -> None:
    answer_list(service, listed("sys-usb:sda", **fields))
    assert main_block([]) == 0
    assert capsys.readouterr().out.rstrip("\n") == f"sys-usb:sda  a disk  {used_by}".rstrip()


def test_a_device_that_is_gone_but_assigned_is_listed(
    service: FakeService, listed: Listed, capsys: Captured
) -> None:
    assigned = [{"vm": "work", "options": {}}]
    answer_list(service, listed("sys-usb:sda", present=False, assignments=assigned))
    assert main_block([]) == 0
    assert capsys.readouterr().out == "sys-usb:sda  (not present)  *work (assigned)\n"


def test_verbose_list_adds_size_and_identity(
    service: FakeService, listed: Listed, capsys: Captured
) -> None:
    answer_list(
        service, listed("sys-usb:sda1", read_only=True, parent="sda", identity="0781:5567:12")
    )
    assert main_block(["-v"]) == 0
    assert capsys.readouterr().out == (
        "sys-usb:sda1  a disk  64.0 MiB, read-only, part of sda, identity 0781:5567:12\n"
    )


SPOOFS = [
    "disk          work (attached: frontend-dev=xvdi, read-only=yes)",
    "  work (attached)",
    "disk  ",
    "(not present)",
    "(in use: mounted)  *work (assigned)",
    "",
]


@pytest.mark.parametrize("spoof", SPOOFS)
@pytest.mark.parametrize("verbose", [[], ["-v"]])
def test_device_text_cannot_imitate_the_columns_of_list(
    service: FakeService, listed: Listed, capsys: Captured, spoof: str, verbose: list[str]
) -> None:
    answer_list(service, listed("sys-usb:sda", description=spoof, size=None))
    assert main([*verbose, "block"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    name, description, *details = re.split("  +", line)
    assert (name, details) == ("sys-usb:sda", ["-"] if verbose else [])
    assert description != "(not present)"
    assert description.replace("\\x20", " ").replace("\\x28", "(") == (spoof or "-")


@pytest.mark.parametrize(("mark", "word"), [("busy", "in use"), ("stale", "cannot look at it now")])
def test_what_a_vm_says_of_a_use_stays_within_its_parentheses(
    service: FakeService, listed: Listed, capsys: Captured, mark: str, word: str
) -> None:
    answer_list(service, listed("sys-usb:sda", **{mark: "mounted),  work (attached"}))
    assert main(["block"]) == 0
    assert capsys.readouterr().out == (
        f"sys-usb:sda  a disk  sys-usb ({word}: mounted\\x29, \\x20work \\x28attached)\n"
    )


@pytest.mark.parametrize("action", ["attach", "detach", "explain"])
def test_a_devices_text_in_an_error_cannot_imitate_columns_either(
    service: FakeService, capsys: Captured, action: str
) -> None:
    service.replies[f"device.{action}"] = CallError("busy", "in use: a    try:  it", {"hint": " b"})
    assert main(["block", action, "work", "sys-usb:sda"]) == 6
    assert capsys.readouterr().err == (
        "qvm-device: busy: in use: a \\x20 \\x20try: \\x20it\n  try:  \\x20b\n"
    )


def test_sizes_are_shown_for_people() -> None:
    shown = [size_text(size) for size in (0, 1023, 1024, 1024**2 * 3 // 2, 2**60)]
    assert shown == ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "1024.0 PiB"]


@pytest.mark.parametrize(
    ("line", "vms", "exclude"),
    [
        ("", None, []),
        ("list", None, []),
        ("--all", None, []),
        ("ls work vault work", ["work", "vault"], []),
        ("l --all --exclude work vault --exclude sys-usb", None, ["work", "vault", "sys-usb"]),
    ],
)
def test_list_asks_for_the_named_vms(
    service: FakeService, line: str, vms: list[str] | None, exclude: list[str]
) -> None:
    answer_list(service)
    assert main_mic(line.split()) == 0
    asked = {"device_class": "mic", "vms": vms, "exclude": exclude, "after": None}
    assert service.asked("device.list") == asked


def test_an_empty_list_says_so_beside_the_output(service: FakeService, capsys: Captured) -> None:
    answer_list(service)
    assert main(["usb"]) == 0
    assert capsys.readouterr() == ("", "qvm-device: there are no usb devices here\n")
    assert main(["usb", "-q"]) == 0
    assert capsys.readouterr() == ("", "")


def test_json_carries_devices_and_policy_and_no_byte_that_a_terminal_obeys(
    service: FakeService, listed: Listed, capsys: Captured
) -> None:
    hostile = "\x1b]0;pwned\x07 \u202e \x7f é"
    answer_list(service, listed("sys-usb:sda", description=hostile), policy=BROKEN)
    assert main(["block", "--json"]) == 0
    out, err = capsys.readouterr()
    assert all(" " <= char <= "~" or char == "\n" for char in out)
    answer = json.loads(out)
    assert answer["devices"][0]["description"] == hostile
    assert answer["policy"]["errors"][0]["line"] == 12
    assert "warning" in err


def test_hostile_descriptions_are_shown_harmless(
    service: FakeService, listed: Listed, capsys: Captured
) -> None:
    answer_list(service, listed("sys-usb:sda", description="\x1b[2J\u202eexe\n\rx", busy="\x9b1m"))
    assert main(["block"]) == 0
    assert capsys.readouterr().out == (
        r"sys-usb:sda  \x1b[2J\u202eexe\n\rx  sys-usb (in use: \x9b1m)" + "\n"
    )


def test_a_policy_with_errors_is_warned_of(service: FakeService, capsys: Captured) -> None:
    answer_list(service, policy=BROKEN)
    assert main(["block"]) == 0
    assert (
        "qvm-device: warning: 30-user.policy:12 has an error (and 1 more), the policy "
        "of 2025-01-02T03:04:05+00:00 stays in force (qvm-policy status)\n"
    ) in capsys.readouterr().err
    answer_list(service, policy={**BROKEN, "errors_left_out": 298})
    assert main(["block"]) == 0
    assert "30-user.policy:12 has an error (and 299 more), the" in capsys.readouterr().err
    assert main(["block", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_read_is_not_called_a_file(
    service: FakeService, capsys: Captured
) -> None:
    error = {"file": "/etc/p/vms.d", "line": 0, "column": 0, "message": "it cannot be read"}
    answer_list(service, policy={**BROKEN, "errors": [error]})
    assert main(["block"]) == 0
    assert (
        "qvm-device: warning: /etc/p/vms.d: it cannot be read, the policy of "
    ) in capsys.readouterr().err


def test_a_first_start_with_a_broken_policy_is_warned_of(
    service: FakeService, capsys: Captured
) -> None:
    answer_list(service, policy={**BROKEN, "loaded_at": "", "rules": 0})
    assert main(["block"]) == 0
    assert "no policy is in force, so everything is denied" in capsys.readouterr().err


# attach


def attach(service: FakeService, outcome: str, options: dict[str, str] | None = None) -> None:
    shown = ATTACHED if options is None else options
    service.replies["device.attach"] = {"outcome": outcome, "options": shown, "request": "0123ab"}


def test_attach_sends_everything_that_was_said(service: FakeService) -> None:
    attach(service, "attached")
    line = "block a work sys-usb:stick.img -p -o frontend-dev=xvdj -o x-y=a=b --ro"
    assert main(line.split()) == 0
    assert service.asked("device.attach") == {
        "device_class": "block",
        "vm": "work",
        "backend": "sys-usb",
        "device": "stick.img",
        "options": {"frontend-dev": "xvdj", "x-y": "a=b", "read-only": "yes"},
        "persistent": True,
    }


def test_an_attached_microphone_has_no_frontend_to_tell(
    service: FakeService, capsys: Captured
) -> None:
    attach(service, "attached", {})
    assert main_mic(["attach", "work", "dom0:mic"]) == 0
    assert capsys.readouterr().out == "dom0:mic attached to work\n"


@pytest.mark.parametrize(
    ("outcome", "flags", "text"),
    [
        ("attached", [], "attached to work as xvdi (read-only=no)"),
        ("already", [], "is already attached to work as xvdi (read-only=no)"),
        ("assigned", ["-p"], "assigned to work; it will be attached when work starts"),
        (
            "attached",
            ["-p"],
            "attached to work as xvdi (read-only=no); assigned too, so it will be attached "
            "whenever work starts",
        ),
    ],
)
def test_attach_says_what_came_of_it(
    service: FakeService, capsys: Captured, outcome: str, flags: list[str], text: str
) -> None:
    attach(service, outcome)
    assert main(["block", "attach", "work", "sys-usb:stick.img", *flags]) == 0
    assert capsys.readouterr() == (f"sys-usb:stick.img {text}\n", "")
    assert main(["block", "attach", "work", "sys-usb:stick.img", *flags, "-q"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("asked", "stays"),
    [
        (["--ro"], "read-only=no"),
        (["-o", "frontend-dev=xvdj"], "frontend-dev=xvdi"),
        (["-o", "frontend-dev=xvdj", "-o", "read-only=on"], "frontend-dev=xvdi, read-only=no"),
        (["-o", "frontend-dev=xvdi", "-o", "read-only=OFF"], None),
        (["-o", "devtype=disk"], None),
        (["-o", "devtype=cdrom"], "devtype=disk"),
        ([], None),
    ],
)
@pytest.mark.parametrize("outcome", ["already", "assigned"])
def test_a_device_that_stays_attached_otherwise_than_asked_is_warned_of(
    service: FakeService, capsys: Captured, asked: list[str], stays: str | None, outcome: str
) -> None:
    attach(service, outcome)
    assert main_block(["attach", "work", "sys-usb:sda", *asked]) == 0
    warning = (
        f"qvm-block: warning: sys-usb:sda stays attached with {stays}, which is not what was asked "
        "for; to change it: qvm-block detach work sys-usb:sda\n"
    )
    assert capsys.readouterr().err == ("" if stays is None else warning)


def test_a_device_that_is_attached_otherwise_than_asked_is_warned_of(
    service: FakeService, capsys: Captured
) -> None:
    attach(service, "attached")
    flags = ["-o", "read-only=yes", "-o", "frontend-dev=xvdi"]
    assert main_block(["attach", "work", "sys-usb:sda", *flags]) == 0
    assert capsys.readouterr().err == (
        "qvm-block: warning: sys-usb:sda is attached with read-only=no, as the device itself or "
        "the policy wants it\n"
    )


def test_verbose_attach_tells_the_request(service: FakeService, capsys: Captured) -> None:
    attach(service, "attached")
    assert main(["-v", "block", "attach", "work", "sys-usb:stick.img"]) == 0
    assert capsys.readouterr().out.endswith("\nrequest: 0123ab\n")


def test_a_denial_in_dom0_shows_the_rule_and_how_to_learn_more(
    service: FakeService, capsys: Captured
) -> None:
    service.replies["device.attach"] = CallError(
        "denied",
        'sys-usb:1-2 (046d:c52b "USB Receiver") -> work',
        {
            "request": "0123ab",
            "rule": "30-user.policy:12",
            "text": "device.attach.usb * @anyvm work deny",
            "device": "sys-usb:1-2",
            "vm": "work",
        },
    )
    assert main(["usb", "attach", "work", "sys-usb:1-2"]) == 3
    assert capsys.readouterr() == (
        "",
        'qvm-device: denied: sys-usb:1-2 (046d:c52b "USB Receiver") -> work\n'
        "  rule: 30-user.policy:12   device.attach.usb * @anyvm work deny\n"
        "  see:  qvm-device usb explain work sys-usb:1-2\n",
    )


def test_a_denial_by_default_says_that_no_rule_matched(
    service: FakeService, capsys: Captured
) -> None:
    service.replies["device.attach"] = CallError(
        "denied", "sys-usb:1-2 -> work", {"request": "0123ab", "rule": None, "text": None}
    )
    assert main_block(["attach", "work", "sys-usb:1-2"]) == 3
    assert capsys.readouterr().err == (
        "qvm-block: denied: sys-usb:1-2 -> work\n"
        "  rule: none matched (default deny)\n"
        "  see:  qvm-block explain work sys-usb:1-2\n"
    )


def test_a_denial_in_a_vm_shows_the_request_alone(service: FakeService, capsys: Captured) -> None:
    service.replies["device.attach"] = CallError("denied", "policy", {"request": "0123ab"})
    assert main(["usb", "attach", "work", "sys-usb:1-2"]) == 3
    assert capsys.readouterr().err == "qvm-device: denied: policy\n  request: 0123ab\n"


@pytest.mark.parametrize("verb", ["attach", "detach", "explain"])
def test_a_broken_policy_is_warned_of_whatever_is_done(
    service: FakeService, capsys: Captured, verb: str
) -> None:
    attach(service, "attached")
    service.replies["device.attach"] |= {"policy_ok": False}
    service.replies["device.detach"] = {"results": [], "request": "0123ab", "policy_ok": False}
    service.replies["device.explain"] = EXPLANATION
    service.replies["service.status"] = {"policy": BROKEN}
    assert main(["block", verb, "work", "sys-usb:sda"]) == 0
    assert capsys.readouterr().err.startswith("qvm-device: warning: 30-user.policy:12")


def test_a_policy_that_is_in_order_costs_no_further_question(
    service: FakeService, capsys: Captured
) -> None:
    attach(service, "attached")
    service.replies["device.attach"] |= {"policy_ok": True}
    service.replies["device.detach"] = {"results": [], "request": "0123ab", "policy_ok": True}
    for verb in ("attach", "detach"):
        assert main(["block", verb, "work", "sys-usb:sda"]) == 0
    assert [method for method, _ in service.calls] == ["device.attach", "device.detach"]
    assert "warning" not in capsys.readouterr().err


# detach


def result(device: str, **fields: Any) -> dict[str, Any]:
    base = {"backend": "sys-usb", "device": device, "detached": True, "unassigned": False}
    return {**base, "error": None, **fields}


@pytest.mark.parametrize("force", [False, True])
def test_detach_of_one_device_asks_for_it(
    service: FakeService, capsys: Captured, force: bool
) -> None:
    service.replies["device.detach"] = {"results": [result("sda")], "request": "0123ab"}
    assert main(["block", "dt", "work", *["--force"] * force, "sys-usb:sda"]) == 0
    assert service.asked("device.detach") == {
        "device_class": "block",
        "vm": "work",
        "backend": "sys-usb",
        "device": "sda",
        "force": force,
    }
    assert capsys.readouterr().out == "sys-usb:sda detached from work\n"


def test_detach_of_one_device_can_name_what_it_is(service: FakeService, capsys: Captured) -> None:
    service.replies["device.detach"] = {"results": [result("sda")], "request": "0123ab"}
    assert main(["block", "detach", "work", "sys-usb:sda:0781:5581"]) == 0
    asked = service.asked("device.detach")
    assert (asked["device"], asked["identity"]) == ("sda", "0781:5581")
    service.calls.clear()
    assert main(["block", "detach", "work", "sys-usb:sda:*"]) == 0
    assert "identity" not in service.asked("device.detach")
    capsys.readouterr()
    assert main(["block", "detach", "work", "sys-usb:*:0781:5581"]) == 2
    assert "'*' is no device that can be detached" in capsys.readouterr().err


def test_detach_of_all_goes_on_past_a_failure_and_exits_with_the_first(
    service: FakeService, capsys: Captured
) -> None:
    busy = {"code": "busy", "message": "sys-usb:sda is in use", "data": {"hint": "umount it"}}
    gone = {"code": "not_found", "message": "sys-usb:sdb is gone", "data": {}}
    service.replies["device.detach"] = {
        "results": [
            result("sda", detached=False, error=busy),
            result("sdb", detached=False, error=gone),
            result("sdc", unassigned=True),
            result("sdd", detached=False, unassigned=True),
        ],
        "request": "0123ab",
    }
    assert main(["block", "detach", "work"]) == 6
    asked = service.asked("device.detach")
    assert (asked["backend"], asked["device"]) == (None, None)
    out, err = capsys.readouterr()
    assert out == (
        "sys-usb:sdc detached from work, and no longer assigned to it\n"
        "sys-usb:sdd no longer assigned to work\n"
    )
    assert err == (
        "qvm-device: busy: sys-usb:sda is in use\n"
        "  try:  umount it\n"
        "qvm-device: not found: sys-usb:sdb is gone\n"
    )


def test_detach_of_all_tells_of_assignments_to_what_is_not_there(
    service: FakeService, capsys: Captured
) -> None:
    gone = {"backend": "sys-usb", "device": None, "mode": "ask", "unassigned": True, "error": None}
    denied = {"code": "denied", "message": "x", "data": {}}
    service.replies["device.detach"] = {
        "results": [],
        "request": "0123ab",
        "unassigned": [
            {**gone, "identity": "1050:0407::u030101"},
            {**gone, "identity": "46f4:1::", "unassigned": False, "error": denied},
        ],
        "unassigned_left_out": 3,
    }
    assert main(["usb", "detach", "work"]) == 3
    assert capsys.readouterr().out == (
        "sys-usb:*:1050:0407::u030101 no longer assigned to work\n"
        "3 more, for which the answer has no room, no longer assigned to work\n"
    )


def test_detach_of_nothing_says_so_and_is_done(service: FakeService, capsys: Captured) -> None:
    service.replies["device.detach"] = {"results": [], "request": "0123ab"}
    assert main(["usb", "detach", "work"]) == 0
    assert capsys.readouterr().out == "no usb device is attached or assigned to work\n"


def test_a_denied_detach_is_explained_as_a_detach(service: FakeService, capsys: Captured) -> None:
    service.replies["device.detach"] = CallError("denied", "x", {"rule": None, "text": None})
    assert main(["usb", "detach", "work", "sys-usb:1-2"]) == 3
    assert (
        "  see:  qvm-device usb explain work sys-usb:1-2 --verb detach\n" in capsys.readouterr().err
    )


# explain

EXPLANATION = {
    "verdict": "deny",
    "rule": "30-user.policy:12",
    "text": "device.attach.usb * @anyvm work deny",
    "default": False,
    "parameters": {"notify": "yes"},
    "trace": [
        {"rule": "10-a.policy:1", "text": "device.attach.block * * * allow", "why": "other class"},
    ],
}


def test_explain_shows_verdict_rule_and_with_v_the_trace(
    service: FakeService, capsys: Captured
) -> None:
    service.replies["device.explain"] = EXPLANATION
    brief = (
        "deny: attach sys-usb:1-2 -> work\n"
        "  rule: 30-user.policy:12   device.attach.usb * @anyvm work deny\n"
        "  with: notify=yes\n"
    )
    assert main(["usb", "explain", "work", "sys-usb:1-2"]) == 0
    assert capsys.readouterr().out == brief
    assert service.asked("device.explain") == {
        "verb": "attach",
        "device_class": "usb",
        "vm": "work",
        "backend": "sys-usb",
        "device": "1-2",
        "source": "dom0",
    }
    assert main(["usb", "explain", "work", "sys-usb:1-2", "-v"]) == 0
    assert capsys.readouterr().out == brief + (
        "  looked at: 10-a.policy:1   device.attach.block * * * allow  (other class)\n"
    )


def test_explain_says_in_which_mode_the_device_is_assigned(
    service: FakeService, capsys: Captured
) -> None:
    service.replies["device.explain"] = {**EXPLANATION, "assigned": "ask"}
    assert main(["usb", "explain", "work", "sys-usb:1-2"]) == 0
    assert capsys.readouterr().out.splitlines()[2] == "  assigned: to work (ask)"


def test_explain_says_how_many_rules_the_answer_has_no_room_for(
    service: FakeService, capsys: Captured
) -> None:
    service.replies["device.explain"] = {**EXPLANATION, "trace_left_out": 2791}
    assert main(["usb", "explain", "work", "sys-usb:1-2", "-v"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "  looked at: 2791 more, for which the answer has no room"


def test_explain_says_of_what_needs_no_rule_why(service: FakeService, capsys: Captured) -> None:
    without = {"rule": None, "text": None, "default": False, "parameters": {}, "trace": []}
    service.replies["device.explain"] = {
        **without, "verdict": "allow", "reason": "it is only assigned"
    }  # fmt: skip
    assert main(["usb", "explain", "work", "sys-usb:1-2", "--verb", "detach"]) == 0
    assert capsys.readouterr().out == (
        "allow: detach sys-usb:1-2 -> work\n  rule: none is needed\n  why:  it is only assigned\n"
    )


def test_explain_can_ask_as_a_vm(service: FakeService, capsys: Captured) -> None:
    service.replies["device.explain"] = EXPLANATION
    assert main(["usb", "explain", "work", "sys-usb:1-2", "--as", "work"]) == 0
    assert service.asked("device.explain")["source"] == "work"
    assert capsys.readouterr().out.startswith("deny: attach sys-usb:1-2 -> work (asked by work)\n")
    assert main(["usb", "explain", "work", "sys-usb:1-2", "--as", "no/vm"]) == 2


def test_explain_speaks_json(service: FakeService, capsys: Captured) -> None:
    service.replies["device.explain"] = EXPLANATION
    assert main(["usb", "explain", "work", "sys-usb:1-2", "--json", "--verb", "detach"]) == 0
    assert json.loads(capsys.readouterr().out) == EXPLANATION
    assert service.asked("device.explain")["verb"] == "detach"


@pytest.mark.parametrize(
    ("parent_class", "text"),
    [(None, "part of 1-2"), ("block", "part of 1-2"), ("usb", "part of usb 1-2")],
)
def test_details_name_the_class_of_a_parent_if_it_is_another(
    parent_class: str | None, text: str
) -> None:
    device = {"device_class": "block", "parent": "1-2", "parent_class": parent_class}
    assert _details(device) == text
