"""Calls of services in a whole system: what callers, services and dom0's user see."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.keeper.keeper_client import wait_for_end

from .calls import Done, call, calling, running, serve, shell, told
from .conftest import Prepare
from .prompter import Prompter
from .system import PATIENCE_S, LocalSystem

PROBLEM, REFUSED, NO_SERVICE = 125, 126, 127

RULES = """\
test.Denied     *     work   vault     deny
test.Ask        *     work   vault     ask
test.Elsewhere  *     work   sys-usb   allow target=vault
test.Default    *     work   @default  allow target=vault
test.Start      *     work   later     allow
test.NoStart    *     work   later     allow autostart=no
test.Dom0       *     work   dom0      allow
test.Missing    *     work   vault     allow
test.Only       +one  work   vault     allow
test.Only       *     *      *         deny
*               *     work   vault     allow
"""

SERVICES = {
    "test.Echo": shell("exec cat"),
    "test.Ask": shell('echo "asked for $1"'),
    "test.Elsewhere": shell('echo "$QREXEC_REMOTE_DOMAIN $QREXEC_SERVICE_FULL_NAME"'),
    "test.Default": shell("echo here"),
    "test.Words": shell(
        'printf "%s|" "$#" "$@" "$QREXEC_REMOTE_DOMAIN" "$QREXEC_SERVICE_FULL_NAME" '
        '"$QREXEC_SERVICE_ARGUMENT"',
    ),
    "test.Status": shell('exit "$1"'),
    "test.Signal": shell('kill -"$1" $$'),
    "test.Both": shell("echo to-output", "echo to-error >&2", "exit 7"),
    # Its output may be closed before it writes there.
    "test.Unread": shell("trap '' PIPE", "echo out 2>&-", "echo to-error >&2", "exit 7"),
    "test.Only": shell('echo "$1"'),
    # Reads all, and only then answers.
    "test.Count": shell("wc -c"),
    # Answers, and goes on to read: half-closed the other way.
    "test.Late": shell("echo first", "exec >&-", 'wc -c >"$HOME/late"', "exit 5"),
    # Runs until its input ends, and notes that it has ended.
    "test.Wait": shell("echo ready", "cat >/dev/null", 'echo ended >"$HOME/waited"'),
    # Runs whatever its caller does.
    "test.Stays": shell('echo $$ >"$HOME/stays"', "echo ready", "exec sleep 1000"),
    "test.Flood": shell("exec yes"),
}


@pytest.fixture(scope="module")
def prepare() -> Prepare:
    def prepared(system: LocalSystem) -> dict[str, str]:
        (system.folder / "policy.d" / "10-calls.policy").write_text(RULES)
        with (system.folder / "pedos.toml").open("a") as config:
            config.write("\n[vm.later]\nautostart = false\n")
        for vm in ("vault", "later"):
            for name, text in SERVICES.items():
                serve(system.folder, vm, name, text)
        serve(system.folder, "later", "test.Start", shell("echo started"))
        serve(system.folder, "dom0", "test.Dom0", shell("echo to-vm", "echo secret >&2", "exit 3"))
        return {}

    return prepared


@pytest.fixture(autouse=True)
def nothing_runs_afterwards(system: LocalSystem) -> None:
    system.wait_until(lambda: running(system) == [], "no call of the last test runs")


def home(system: LocalSystem, vm: str) -> Path:
    return system.folder / "vms" / vm / "home"


def states(system: LocalSystem) -> list[str]:
    return [each["state"] for each in running(system)]


def request_in(done: Done) -> str:
    """The request id that a denied caller was told, and nothing of the rule."""
    said = done.stderr.decode()
    found = re.search(r"\b[0-9a-f]{12}\b", said)
    assert found is not None, said
    assert "policy" not in said.replace("dom0's policy", "") and ".policy:" not in said, said
    return found.group()


# What a caller gets


def test_an_allowed_call_carries_all_bytes_and_its_status(system: LocalSystem) -> None:
    sent = os.urandom(1 << 20)
    done = call(system, "vault", "test.Echo", send=sent)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == sent


def test_the_service_is_told_who_calls_what(system: LocalSystem) -> None:
    done = call(system, "vault", "test.Words+an-argument")
    said = "1|an-argument|work|test.Words+an-argument|an-argument|"
    assert done.stdout.decode() == said
    done = call(system, "vault", "test.Words")
    assert done.stdout.decode() == "0|work|test.Words+||"


def test_standard_error_is_a_stream_of_its_own(system: LocalSystem) -> None:
    done = call(system, "vault", "test.Both")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"to-output\n", b"to-error\n")


@pytest.mark.parametrize("status", [0, 1, 3, 124, 255])
def test_the_exit_status_is_the_services(system: LocalSystem, status: int) -> None:
    assert call(system, "vault", f"test.Status+{status}").returncode == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_service_that_a_signal_ends_has_that_status(system: LocalSystem, number: int) -> None:
    assert call(system, "vault", f"test.Signal+{int(number)}").returncode == 128 + number


def test_a_service_that_is_not_there_is_no_failure_of_another_kind(system: LocalSystem) -> None:
    done = call(system, "vault", "test.Missing")
    assert done.returncode == NO_SERVICE
    assert b"test.Missing" in done.stderr


# Half of a call


def test_the_end_of_input_reaches_the_service_while_its_output_is_open(system: LocalSystem) -> None:
    done = call(system, "vault", "test.Count", send=b"x" * 100_000)
    assert done.stdout.split() == [b"100000"]


def test_the_end_of_output_reaches_the_caller_while_input_goes_on(system: LocalSystem) -> None:
    with calling(system, "vault", "test.Late") as command:
        assert command.stdin is not None and command.stdout is not None
        assert command.stdout.read() == b"first\n"
        assert command.poll() is None
        command.stdin.write(b"x" * 1000)
        command.stdin.close()
        assert command.wait(PATIENCE_S) == 5
    assert (home(system, "vault") / "late").read_text().split() == ["1000"]


def test_what_nobody_reads_is_thrown_away_and_the_call_goes_on(system: LocalSystem) -> None:
    with calling(system, "vault", "test.Unread") as command:
        assert command.stdout is not None and command.stderr is not None
        command.stdout.close()
        assert command.stderr.read() == b"to-error\n"
        assert command.wait(PATIENCE_S) == 7


def test_the_local_program_is_the_other_end_of_both_streams(system: LocalSystem) -> None:
    program = 'echo to-service; exec 1>&-; read -r back; echo "back: $back" >&"$SAVED_FD_1"'
    done = call(system, "vault", "test.Count", "--", "sh", "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [b"back:", b"11"]


# Policy


def test_a_denied_caller_learns_an_id_and_dom0_the_rule(system: LocalSystem) -> None:
    done = call(system, "vault", "test.Denied")
    assert (done.returncode, done.stdout) == (REFUSED, b"")
    story = told(system, request_in(done))
    assert story[0]["rule"] == "10-calls.policy:1"
    assert (story[0]["source"], story[0]["service"]) == ("work", "test.Denied")


def test_the_argument_is_part_of_what_is_decided(system: LocalSystem) -> None:
    assert call(system, "vault", "test.Only+one").stdout == b"one\n"
    assert call(system, "vault", "test.Only+two").returncode == REFUSED


def test_without_a_rule_nothing_is_allowed(system: LocalSystem) -> None:
    done = call(system, "work", "test.Echo", vm="vault")
    assert done.returncode == REFUSED
    assert told(system, request_in(done))[0].get("rule") is None


@pytest.mark.parametrize(("verdict", "status"), [("allow", 0), ("deny", REFUSED)])
def test_dom0s_user_is_asked(system: LocalSystem, verdict: str, status: int) -> None:
    answer = {"verdict": verdict, "target": "vault" if verdict == "allow" else None}
    socket = system.environment()["PEDOS_SOCKET"]
    with Prompter(socket, lambda _question: answer) as prompter:
        done = call(system, "vault", "test.Ask+this")
    assert done.returncode == status
    [question] = prompter.asked
    asked = {name: question[name] for name in ("source", "service", "argument", "candidates")}
    assert asked == {
        "source": "work", "service": "test.Ask", "argument": "+this", "candidates": ["vault"],
    }  # fmt: skip
    assert done.stdout == (b"asked for this\n" if verdict == "allow" else b"")


def test_a_caller_that_ends_takes_its_question_back(system: LocalSystem) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def answer(_question: dict[str, object]) -> dict[str, object]:
        asked.set()
        may_answer.wait(PATIENCE_S)
        return {"verdict": "deny", "target": None}

    with Prompter(system.environment()["PEDOS_SOCKET"], answer):
        try:
            with calling(system, "vault", "test.Ask"):
                assert asked.wait(PATIENCE_S)
                assert [each["state"] for each in running(system)] == ["asking"]
            system.wait_until(lambda: running(system) == [], "the question is taken back")
        finally:
            may_answer.set()


def test_a_rule_sends_a_call_elsewhere(system: LocalSystem) -> None:
    done = call(system, "sys-usb", "test.Elsewhere")
    assert done.stdout == b"work test.Elsewhere+\n"
    done = call(system, "", "test.Default")
    assert done.stdout == b"here\n"
    assert call(system, "@default", "test.Default").stdout == b"here\n"


def test_two_calls_at_once_make_one_start_of_a_target_that_does_not_run(
    system: LocalSystem,
) -> None:
    system.run("qvm-shutdown", "later")
    before = len([each for each in audit(system) if each["event"] == "start"])
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(call, system, "later", "test.Start") for _ in range(2)]
    assert [each.result().stdout for each in both] == [b"started\n"] * 2
    assert len([each for each in audit(system) if each["event"] == "start"]) == before + 1
    system.ok("qvm-shutdown", "later")
    assert call(system, "later", "test.NoStart").returncode == REFUSED
    assert "later" not in system.agents()


def audit(system: LocalSystem) -> list[dict[str, Any]]:
    lines = (system.folder / "state" / "audit.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# dom0


def test_a_service_of_dom0_returns_no_standard_error_to_a_vm(system: LocalSystem) -> None:
    done = call(system, "dom0", "test.Dom0")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"to-vm\n", b"")


def test_dom0_calls_a_service_by_qvm_run(system: LocalSystem) -> None:
    done = call(
        system, "-p", "--service", "vault", "test.Count", vm="dom0", program="qvm-run", send=b"four"
    )
    assert (done.returncode, done.stdout.split()) == (0, [b"4"]), done.stderr
    done = call(system, "--service", "vault", "test.Both", vm="dom0", program="qvm-run")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"", b"")


def test_dom0_sees_what_runs_and_ends_it(system: LocalSystem) -> None:
    with calling(system, "vault", "test.Wait") as command:
        assert command.stdout is not None and command.stderr is not None
        assert command.stdout.readline() == b"ready\n"
        system.wait_until(lambda: states(system) == ["running"], "dom0 is told what is ready")
        [listed] = running(system)
        assert (listed["source"], listed["target"]) == ("work", "vault")
        assert (listed["service"], listed["argument"]) == ("test.Wait", "+")
        shown = system.ok("qvm-calls")
        assert "test.Wait" in shown and listed["call"][:12] in shown
        [one] = json.loads(system.ok("qvm-calls", "list", "--json"))["calls"]
        assert one["call"] == listed["call"]
        system.ok("qvm-calls", "end", listed["call"][:12])
        assert command.wait(PATIENCE_S) == PROBLEM
        assert command.stderr.read() != b"", "it is said why"
    system.wait_until(
        lambda: told(system, listed["call"])[-1]["event"] == "call_ended", "its story has its end"
    )


def test_a_call_that_is_ended_ends_though_its_callers_agent_obeys_first(
    system: LocalSystem,
) -> None:
    """The service's agent hangs, is told that the caller has gone, and only then what dom0 says."""
    pid_of = home(system, "vault") / "stays"
    pid_of.unlink(missing_ok=True)
    [agent] = system.victim("agent:vault")
    with calling(system, "vault", "test.Stays") as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"ready\n"
        [listed] = running(system)
        os.kill(agent, signal.SIGSTOP)
        try:
            with system.started("qvm-calls", "end", listed["call"]):
                assert command.wait(PATIENCE_S) == PROBLEM
        finally:
            os.kill(agent, signal.SIGCONT)
    wait_for_end(int(pid_of.read_text()))


def test_a_call_is_one_story_in_the_audit_log(system: LocalSystem) -> None:
    def stories() -> list[str]:
        its = [each for each in audit(system) if each.get("service") == "test.Both"]
        ends = [each for each in its if each["event"] == "call_ended"]
        # One of dom0's that another test has made may only end now.
        return [each["request"] for each in ends if each["source"] == "work"]

    before = len(stories())
    call(system, "vault", "test.Both", send=b"abc")
    system.wait_until(lambda: len(stories()) > before, "its end is in the log")
    story = system.ok("qvm-audit", "show", stories()[-1])
    assert "work asked: test.Both+ -> vault." in story
    assert "by the rule 10-calls.policy:" in story
    assert "test.Both+ -> vault was started" in story
    assert "test.Both+ -> vault ended with status 7" in story
    assert "wrote 10 bytes to standard output and 9 bytes to error" in story


# Ends


def test_a_killed_caller_is_an_end_for_the_service(system: LocalSystem) -> None:
    waited = home(system, "vault") / "waited"
    waited.unlink(missing_ok=True)
    with calling(system, "vault", "test.Wait") as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"ready\n"
        command.kill()
    system.wait_until(waited.exists, "the service has seen the end of its input")


def test_calls_go_on_while_dom0s_service_is_restarted(system: LocalSystem) -> None:
    with calling(system, "vault", "test.Echo") as command:
        assert command.stdin is not None and command.stdout is not None
        command.stdin.write(b"before")
        assert command.stdout.read(6) == b"before"
        [listed] = running(system)
        [service] = system.victim("dom0")
        os.kill(service, signal.SIGKILL)
        command.stdin.write(b"during")
        assert command.stdout.read(6) == b"during"
        system.wait_until(lambda: {"work", "vault"} <= system.agents(), "the agents are back")
        system.wait_until(
            lambda: [each["call"] for each in running(system)] == [listed["call"]],
            "the new service knows the call",
        )
        command.stdin.close()
        assert command.wait(PATIENCE_S) == 0
