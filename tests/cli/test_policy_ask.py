"""check, explain, eval, test, get, graph and status: the read-only actions."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pedos_cli import policy_eval, qvm_policy
from pedos_cli.policy_engine import error_lines
from pedos_cli.policy_graph import quoted
from pedos_cli.policy_unit_tests import ERRORS_MAX, parse
from pedos_cli.qvm_policy import main
from pedos_dom0.policy.model import PolicyError
from pedos_protocol.errors import CallError

if TYPE_CHECKING:
    from conftest import FakeService

Captured = pytest.CaptureFixture[str]

NAME = "30-user.policy"
POLICY = """\
# the policy of the tests
device.attach.block  +sys-usb:sd*  @adminvm  work      allow  read-only=yes
device.attach.usb    +*:*:*:u03*   *         *         deny
app.Open             *             @anyvm    @default  ask    default_target=vault
app.Open             *             work      @tag:safe allow  user=root notify=yes
"""
SYSTEM = {
    "domains": {
        "work": {"type": "AppVM", "power_state": "Running"},
        "vault": {"type": "AppVM", "tags": ["safe"], "power_state": "Halted"},
        "sys-usb": {"type": "DispVM", "power_state": "Running"},
    }
}
DECISION = {
    "argument": "+sys-usb:sda:0781:5583",
    "verdict": "deny",
    "rule": "30-user.policy:3",
    "text": "device.attach.usb * * * deny",
    "default": False,
    "target": None,
    "user": None,
    "autostart": True,
    "notify": True,
    "read_only": False,
    "candidates": [],
    "default_target": None,
    "reason": "30-user.policy:3 says deny",
    "trace": [{"rule": "30-user.policy:1", "text": "a rule", "why": "source is not \x1b[31m"}],
}


@pytest.fixture
def folder(tmp_path: Path, no_service: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "policy.d"
    made.mkdir()
    (made / NAME).write_text(POLICY)
    monkeypatch.setenv("PEDOS_POLICY_PATH", f"{tmp_path / 'run'}:{made}")
    return made


@pytest.fixture
def system(tmp_path: Path) -> str:
    path = tmp_path / "vms.json"
    path.write_text(json.dumps(SYSTEM))
    return str(path)


# check


def test_check_counts_rules_and_files(folder: Path, capsys: Captured) -> None:
    assert main(["check"]) == 0
    assert capsys.readouterr().out == "4 rules of 1 file, no errors\n"


def test_check_shows_every_error_of_every_file_with_a_caret(folder: Path, capsys: Captured) -> None:
    (folder / "10-a.policy").write_text("app.Open * work vault alow\n")
    (folder / "20-b.policy").write_text("# fine\napp.Open + work vault\n")
    assert main(["check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("10-a.policy:1:23: ")
    assert any(line.startswith("20-b.policy:2:") for line in lines)
    assert any(line.strip().startswith("^") for line in lines)
    assert lines[-1] == "2 errors"
    assert main(["check", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert [error["line"] for error in answer["errors"]] == [1, 2]
    assert answer["ok"] is False
    assert all(error["message"] for error in answer["errors"])


def test_check_tries_a_file_that_is_not_in_place_yet(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "draft").write_text("app.Open\n")
    assert main(["check", "--with", f"{NAME}={tmp_path / 'draft'}"]) == 1
    assert main(["check", "--without", NAME]) == 0
    assert "0 rules of 0 files" in capsys.readouterr().out
    assert main(["check", "--with", NAME]) == 2


def test_the_caret_stands_under_its_column_behind_tabs(folder: Path, capsys: Captured) -> None:
    (folder / NAME).write_text("app.Open\t*\twork\tvault\talow\n")
    assert main(["check"]) == 1
    place, text, caret, *_ = capsys.readouterr().out.splitlines()
    assert place.startswith(f"{NAME}:1:23: ")
    assert caret.index("^") == text.index("alow")


# explain


def test_explain_asks_the_service(service: FakeService, capsys: Captured) -> None:
    service.replies["policy.explain"] = DECISION
    assert main(["explain", "-v", "device.attach.usb", "+sys-usb:sda", "work", "vault"]) == 0
    assert service.asked("policy.explain") == {
        "service": "device.attach.usb",
        "argument": "+sys-usb:sda",
        "source": "work",
        "target": "vault",
    }
    assert capsys.readouterr().out.splitlines() == [
        "deny: device.attach.usb +sys-usb:sda:0781:5583 work -> vault",
        "  rule: 30-user.policy:3   device.attach.usb * * * deny",
        "  interface: u-unknown  not known",
        "  looked at: 30-user.policy:1   a rule  (source is not \\x1b[31m)",
    ]
    assert main(["explain", "--json", "app.Open", "+", "work"]) == 0
    assert json.loads(capsys.readouterr().out) == DECISION


def test_explain_of_files_needs_no_service(folder: Path, system: str, capsys: Captured) -> None:
    argv = ["explain", "--system", system, "device.attach.block", "+sys-usb:sda:", "dom0", "work"]
    assert main(argv) == 0
    assert capsys.readouterr().out.splitlines() == [
        "allow: device.attach.block +sys-usb:sda: dom0 -> work",
        "  rule: 30-user.policy:2   "
        "device.attach.block +sys-usb:sd* @adminvm work allow read-only=yes",
        "  target: work",
        "  with: read-only=yes",
    ]
    assert main(["explain", "--system", system, "app.Open", "+x", "work", "vault"]) == 0
    assert "with: user=root notify=yes" in capsys.readouterr().out


def test_explain_says_how_much_the_answer_has_no_room_for(
    service: FakeService, capsys: Captured
) -> None:
    service.replies["policy.explain"] = {
        **DECISION, "verdict": "ask", "candidates": ["vault"], "candidates_left_out": 9,
        "trace_left_out": 2791,
    }  # fmt: skip
    assert main(["explain", "-v", "device.attach.usb", "+sys-usb:1-2", "work"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  to choose from: vault, 9 more" in lines
    assert lines[-1] == "  looked at: 2791 more, for which the answer has no room"


def test_explain_shows_what_there_is_to_choose_from(
    folder: Path, tmp_path: Path, system: str, capsys: Captured
) -> None:
    draft = tmp_path / "draft"
    draft.write_text("app.Open * work @anyvm ask default_target=vault\n")
    argv = ["--system", system, "--with", f"{NAME}={draft}", "app.Open", "+", "work", "vault"]
    assert main(["explain", *argv]) == 0
    assert "to choose from: sys-usb, vault (the default)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["app.Open", "x", "work", "vault"], "does not begin with +"),
        (["app.Open", "+x"], "who asks is not said"),
        (["app.Open", "*", "work"], "one request has one argument"),
        (["--mine", "app.Open", "+x"], "is not device.VERB.CLASS"),
        (["--mine", "device.attach.block", "+sys-usb:sda", "work"], "for this VM alone"),
        (["--policy-dir", ".", "device.attach.block", "+a:b", "dom0", "c"], "IDENTITY is left out"),
    ],
)
def test_explain_says_what_is_wrong_with_the_request(
    no_service: Path, capsys: Captured, argv: list[str], said: str
) -> None:
    assert main(["explain", *argv]) == 2
    assert said in capsys.readouterr().err


def test_explain_of_a_broken_policy_says_where(folder: Path, system: str, capsys: Captured) -> None:
    (folder / NAME).write_text("app.Open\n")
    assert main(["explain", "--system", system, "app.Open", "+x", "work"]) == 1
    assert f"the policy has an error: {NAME}:1:9" in capsys.readouterr().err


def test_without_service_and_file_the_vms_are_not_known(folder: Path, capsys: Captured) -> None:
    assert main(["eval"]) == 5
    assert "no --system FILE is given" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["+sys-usb:sda", "sys-usb:sda"])
def test_mine_tells_a_vm_its_own_verdict(
    service: FakeService, capsys: Captured, monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    monkeypatch.setenv("PEDOS_VM", "work")
    service.replies["policy.mine"] = {"verdict": "deny"}
    assert main(["explain", "--mine", "device.attach.block", argument]) == 0
    assert capsys.readouterr().out == "deny: attach sys-usb:sda\n"
    assert service.calls == [
        (
            "policy.mine",
            {"verb": "attach", "device_class": "block", "backend": "sys-usb", "device": "sda"},
        )
    ]


def test_mine_in_dom0_says_what_to_use(service: FakeService, capsys: Captured) -> None:
    assert main(["explain", "--mine", "device.attach.block", "+sys-usb:sda"]) == 1
    assert "qvm-policy explain SERVICE ARGUMENT SOURCE TARGET" in capsys.readouterr().err


def test_in_a_vm_without_dom0s_package_it_says_what_a_vm_can_do(
    folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pedos_dom0.policy.reading", None)
    assert main(["check"]) == 5
    assert "install the package of dom0's service" in capsys.readouterr().err
    monkeypatch.setenv("PEDOS_VM", "work")
    assert main(["check"]) == 5
    assert "explain --mine" in capsys.readouterr().err


# eval


def evaluate(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, lines: bytes, *argv: str
) -> tuple[int, list[dict[str, Any]]]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    status = main(["eval", *argv])
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_eval_answers_every_line_in_its_place(
    folder: Path, system: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = b'{"service": "app.Open", "arg": "+x", "source": "work", "target": "vault"}'
    bad = [
        b"{",
        b"",
        b"[1]",
        b'{"service": "app.Open", "arg": 1, "source": "work"}',
        b'{"service": "app.Open"}',
        b"\xff",
        b"[" * 10_000,
        b'{"service": "' + b"x" * policy_eval.LINE_MAX + b'"}',
        b"1" * 5000,
    ]
    lines = [good, *(line for each in bad for line in (each, good))]
    status, answers = evaluate(monkeypatch, capsys, b"\n".join(lines), "--system", system)
    assert status == 1
    assert len(answers) == len(lines)
    assert [answer.get("verdict") for answer in answers[::2]] == ["allow"] * (len(bad) + 1)
    assert all(set(answer) == {"error"} for answer in answers[1::2])


def test_eval_of_strange_texts_is_a_deny_and_plain_ascii(
    folder: Path, system: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = json.dumps({"service": "\ud800", "arg": "\x7f", "source": "\x1b", "target": "\u202e"})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line.encode())))
    assert main(["eval", "--system", system, "--trace"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["verdict"] == "deny"
    assert all(" " <= char <= "~" or char == "\n" for char in out)


def test_eval_answers_each_request_before_the_next_one_comes(folder: Path, system: str) -> None:
    request = b'{"service": "app.Open", "arg": "+x", "source": "work", "target": "vault"}\n'
    with subprocess.Popen(
        [sys.executable, "-m", "pedos_cli.qvm_policy", "eval", "--system", system],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as program:  # fmt: skip
        assert program.stdin is not None
        assert program.stdout is not None
        for _ in range(3):
            program.stdin.write(request)
            program.stdin.flush()
            assert json.loads(program.stdout.readline())["rule"] == f"{NAME}:5"
        program.stdin.close()
        assert program.wait(20) == 0


def test_facts_come_from_the_service_page_by_page(
    folder: Path, service: FakeService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEDOS_SOCKET", str(service.path))
    pages = {
        None: {"vms": [{"name": "vault", "tags": ["safe"]}], "more": True},
        "vault": {"vms": [{"name": "work"}], "more": False},
    }
    service.replies["policy.system"] = lambda params: pages[params["after"]]
    line = b'{"service": "app.Open", "arg": "+x", "source": "work", "target": "vault"}'
    status, answers = evaluate(monkeypatch, capsys, line)
    assert (status, answers[0]["verdict"]) == (0, "allow")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"domains": 1}', '{"domains": {"a": {"tags": 1}}}']
)
def test_a_file_of_facts_that_is_none_is_told(
    folder: Path, tmp_path: Path, capsys: Captured, text: str
) -> None:
    (tmp_path / "bad.json").write_text(text)
    assert main(["eval", "--system", str(tmp_path / "bad.json")]) == 1
    assert "bad.json" in capsys.readouterr().err


# test

TESTS = """\
# who may open what
!vm work   state=Running
!vm vault  tags=safe,quiet  state=Halted
app.Open             +x             work  vault  allow  user=root notify=yes rule=30-user.policy:5
app.Open             +x             vault work   deny   rule=none
app.Open             +x             work  @default  ask  default_target=vault candidates=vault
device.attach.block  +sys-usb:sda:  dom0  work   allow  read-only=yes rule=30-user.policy
"""


def run_tests(folder: Path, text: str, *argv: str) -> int:
    path = folder.parent / "my.tests"
    path.write_text(text)
    return main(["test", str(path), *argv])


def test_tests_that_pass(folder: Path, capsys: Captured) -> None:
    (folder / NAME).write_text(POLICY.replace("@adminvm", "dom0    "))
    text = TESTS.replace("app.Open             +x             work  @default", "#")
    assert run_tests(folder, text) == 0, capsys.readouterr()
    assert capsys.readouterr().out == "3 passed, 0 failed\n"


def test_a_failure_says_file_line_and_what_was_expected(folder: Path, capsys: Captured) -> None:
    text = "!vm work\n\napp.Open + work dom0 allow notify=no\n"
    assert run_tests(folder, text) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("my.tests:3: app.Open + work dom0")
    assert "  verdict is deny, expected allow" in lines
    assert "  rule: none matched (default deny)" in lines
    assert lines[-1] == "0 passed, 1 failed"
    assert run_tests(folder, text, "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert [answer["failed"], answer["results"][0]["line"]] == [1, 3]


def test_a_change_can_be_tested_before_it_is_made(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "draft").write_text("app.Open * work dom0 allow\n")
    text = "!vm work\napp.Open + work dom0 allow\n"
    assert run_tests(folder, text, "--with", f"{NAME}={tmp_path / 'draft'}") == 0


def test_tests_use_the_known_vms_when_they_make_none(
    folder: Path, system: str, capsys: Captured
) -> None:
    assert run_tests(folder, "app.Open + work vault allow\n", "--system", system) == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("app.Open + work", "TARGET, VERDICT missing"),
        ("app.Open + work vault maybe", "'maybe' is no verdict"),
        ("app.Open x work vault deny", "does not begin with +"),
        ("app.Open + work vault deny user", "'user' is none of"),
        ("app.Open + work vault deny colour=red", "'colour=red' is none of"),
        ("app.Open + work vault deny user=a user=b", "user is given twice"),
        ("app.Open + work vault deny notify=1", "can only be yes or no"),
        ("!vm", "'!vm NAME [FACT=VALUE ...]'"),
        ("!include x", "'!include'"),
        ("!vm a\n!vm a", "a is made twice"),
        ("!vm a internal=x", "can only be yes or no"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_a_file_that_is_no_test_file_is_refused_with_its_line(
    folder: Path, capsys: Captured, line: str, said: str
) -> None:
    path = folder.parent / "my.tests"
    path.write_bytes(b"# first\n" + line.encode("utf-8", "surrogateescape") + b"\n")
    assert main(["test", str(path)]) == 2
    error = capsys.readouterr().err
    assert "my.tests:" in error
    assert said in error


def test_of_more_errors_in_a_file_of_tests_than_are_shown_the_rest_is_counted(
    folder: Path, capsys: Captured
) -> None:
    path = folder.parent / "my.tests"
    path.write_text("app.Open x work vault deny\n" * (ERRORS_MAX + 7))
    assert main(["test", str(path)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len([line for line in told if "my.tests:" in line]) == ERRORS_MAX
    assert "and 7 more errors" in told


def test_the_tests_in_the_documentation_are_tests() -> None:
    text = (Path(__file__).parents[2] / "docs" / "policy.md").read_text()
    (block,) = (part for part in text.split("\n\n- ") if "    !vm work " in part)
    example = [line for line in block.split("### Unit tests")[1].splitlines() if line[:4] == "    "]
    cases, vms, errors = parse("\n".join(example).encode())
    assert (len(cases), sorted(vms or {}), errors) == (3, ["vault", "work"], [])


# get


def test_get_lists_the_files_in_reading_order_with_what_hides_them(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for path in (run / NAME, run / "35-x.policy", folder / "90-z.policy", folder / ".30.policy"):
        path.write_text("")
    assert main(["get"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        [NAME, str(run), "in", "use"],
        [NAME, str(folder), "hidden", "by", "that", "in", str(run)],
        ["35-x.policy", str(run), "in", "use"],
        ["90-z.policy", str(folder), "in", "use"],
    ]
    assert main(["get", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [each["used"] for each in answer["files"]] == [True, False, True, True]


def test_get_prints_a_file_byte_by_byte(
    folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (folder / NAME).write_bytes(b"# \xff\x1b\r\n")
    assert main(["get", NAME]) == 0
    assert capfdbinary.readouterr().out == b"# \xff\x1b\r\n"


def test_get_on_a_terminal_is_harmless(
    folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / NAME).write_bytes(b"# \xff\x1b[2J\n")
    monkeypatch.setattr("pedos_cli.output.on_terminal", lambda: True)
    assert main(["get", NAME]) == 0
    assert capsys.readouterr().out == "# \\xff\\x1b[2J\n\n"


def test_get_gives_the_hash_that_replace_takes(folder: Path, capsys: Captured) -> None:
    assert main(["get", NAME, "--sha256"]) == 0
    token = capsys.readouterr().out.strip()
    assert main(["-q", "remove", NAME, token]) == 0
    assert main(["get", NAME]) == 4


# graph


def test_the_graph_has_what_is_decided_and_not_what_is_written(
    folder: Path, system: str, capsys: Captured
) -> None:
    (folder / "20-first.policy").write_text("app.Open +no work vault deny\n")
    assert main(["graph", "--system", system, "--json"]) == 0
    edges = json.loads(capsys.readouterr().out)["edges"]
    assert {
        "source": "work", "target": "vault", "verdict": "allow", "services": ["app.Open *"],
    } in edges  # fmt: skip
    assert {
        "source": "dom0", "target": "work", "verdict": "allow",
        "services": ["device.attach.block +sys-usb:sd*"],
    } in edges  # fmt: skip
    assert not any("usb" in label for each in edges for label in each["services"][1:])


def test_the_graph_is_dot(folder: Path, system: str, capsys: Captured) -> None:
    assert main(["graph", "--system", system, "--vm", "dom0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[-1]) == ("digraph policy {", "}")
    arrow = '  "dom0" -> "work" [style=solid, label="device.attach.block +sys-usb:sd*\\l"];'
    assert arrow in lines


@pytest.mark.parametrize("text", ['a"b', "a\\N", "<b>", "\x1b", "\n", 'x" -> "y'])
def test_a_text_in_the_graph_is_never_markup(text: str) -> None:
    shown = quoted(text)
    assert shown[0] == shown[-1] == '"'
    inner = shown[1:-1].replace("\\\\", "").replace('\\"', "")
    assert '"' not in inner
    assert "\\" not in inner
    assert all(" " <= char <= "~" for char in shown)


# status, and the program itself


def test_the_caret_of_check_and_status_stands_under_its_column_behind_wide_letters(
    service: FakeService, capsys: Captured
) -> None:
    text = "* * \u6f22\u5b57 \x1b alow"
    column = text.index("alow") + 1
    # Two letters take two columns each, and what cannot be shown takes four.
    caret = " " * (column - 1 + 2 + 3) + "^"
    error = {"file": NAME, "line": 1, "column": column, "message": "no", "text": text}
    policy = {"ok": False, "loaded_at": "", "rules": 0, "errors": [error]}
    service.replies["service.status"] = {"policy": policy}
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"      {caret}"
    *_, last = error_lines([PolicyError(NAME, 1, column, "no", text=text)])
    assert last == f"    {caret}"


def test_status_shows_folders_text_caret_and_help(service: FakeService, capsys: Captured) -> None:
    error = {
        "file": NAME, "line": 2, "column": 3, "message": "no action alow", "help": "use allow",
        "text": "a alow",
    }  # fmt: skip
    service.replies["service.status"] = {
        "policy": {
            "ok": False, "loaded_at": "2025-01-02", "rules": 7, "files": 2,
            "folders": ["/run/p", "/etc/p"], "errors": [error],
        }
    }  # fmt: skip
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "policy: in force since 2025-01-02, 7 rules of 2 files",
        "  read from: /run/p /etc/p",
        "a newer policy was not taken, because of:",
        "  30-user.policy:2:3: no action alow",
        "      a alow",
        "        ^",
        "    help: use allow",
    ]


def test_status_says_how_much_the_answer_has_no_room_for(
    service: FakeService, capsys: Captured
) -> None:
    error = {"file": NAME, "line": 2, "column": 0, "message": "no action alow"}
    policy = {"ok": False, "loaded_at": "", "rules": 0, "folders": ["/etc/p"], "errors": [error]}
    policy |= {"folders_left_out": 3, "errors_left_out": 36}
    service.replies["service.status"] = {"policy": policy}
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  read from: /etc/p and 3 more",
        "a newer policy was not taken, because of:",
        "  30-user.policy:2: no action alow",
        "  and 36 more",
    ]


@pytest.mark.parametrize("action", qvm_policy.MODULES)
def test_every_action_has_help_with_examples_and_json(action: str, capsys: Captured) -> None:
    assert main([action, "--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"qvm-policy {action}" in text
    assert "--json" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("argv", [[], ["-v"], ["frobnicate"], ["check", "--frobnicate"]])
def test_a_wrong_command_line_says_what_would_be_right(argv: list[str], capsys: Captured) -> None:
    assert main(argv) == 2
    assert "  try:  qvm-policy " in capsys.readouterr().err


def test_a_service_that_says_no_is_told(service: FakeService, capsys: Captured) -> None:
    service.replies["policy.explain"] = CallError("usage", "argument is not +BACKEND:PORT")
    assert main(["explain", "device.attach.usb", "+x", "work"]) == 2
    assert "argument is not +BACKEND:PORT" in capsys.readouterr().err


def test_the_files_are_read_without_trio(folder: Path) -> None:
    code = (
        "import sys\nfrom pedos_cli import qvm_policy\n"
        "status = qvm_policy.main(['-q', 'check'])\n"
        "sys.exit(status or 'trio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=20, check=False)
    assert done.returncode == 0


# What check says beyond the language


def test_check_refuses_a_user_that_no_linux_user_can_have(folder: Path, capsys: Captured) -> None:
    (folder / NAME).write_text("app.Open * work vault allow user=a:b\n")
    assert main(["check"]) == 1
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"{NAME}:1:1: no Linux user can be called 'a:b': it has ':'"
    assert last == "1 error"
    assert main(["check", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["ok"], len(answer["errors"]), answer["warnings"]) == (False, 1, [])


def test_check_warns_of_rules_that_can_never_match(folder: Path, capsys: Captured) -> None:
    (folder / NAME).write_text("app.Open * * vault deny\napp.Open * work vault allow\n")
    assert main(["check"]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{NAME}:2:1: warning: this rule is never reached: {NAME}:1 matches")
    assert last == "2 rules of 1 file, no errors, 1 warning"
    assert main(["check", "--json"]) == 0
    (warning,) = json.loads(capsys.readouterr().out)["warnings"]
    assert (warning["line"], warning["message"].startswith("this rule is never")) == (2, True)


def test_a_write_tells_the_same_of_the_file_that_is_written(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "new").write_text("app.Open * * vault allow user=-x\n* * work vault deny\n")
    assert main(["replace", "10-new.policy", "new", str(tmp_path / "new")]) == 0
    said = capsys.readouterr().err
    assert "warning: 10-new.policy:1:1: no Linux user can be called '-x'" in said
    assert f"warning: {NAME}" not in said
