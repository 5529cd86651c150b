"""Calls of services between guests: a program of one, a service of another, dom0's policy."""

from __future__ import annotations

import concurrent.futures
import itertools
import re
from typing import TYPE_CHECKING

import pytest

from .conftest import run_driver_domain
from .driving import POLICY, START_LIMIT, is_there, wait_for, wait_until
from .figures import tell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .bench import Bench, Result

CALLER, SERVER, HALTED = "work", "sys-usb", "vault"
PROBLEM, REFUSED, NOT_FOUND = 125, 126, 127
#: What bench.Echo is in the target: it says who called, passes its input on, and ends with 7.
ECHO = """#!/bin/sh
echo "$QREXEC_REMOTE_DOMAIN calls $QREXEC_SERVICE_FULL_NAME: ${1-}"
cat
echo to be seen >&2
exit 7
"""
#: It runs until its input ends.
WAITS = "#!/bin/sh\necho running\ncat\n"
WARM_ROUNDS = 10

#: Answers one question as a person at a terminal would.
ANSWER = """
import os, pty, re, sys
child, terminal = pty.fork()
if child == 0:
    os.execvp("qvm-prompt", ["qvm-prompt", "--once"])
said, answered = b"", False
while True:
    try:
        said += os.read(terminal, 4096)
    except OSError:
        break
    open("/run/asking-" + sys.argv[1], "w").close()  # it is registered, and says so
    if not answered and re.search(rb"\\[[^]]*s\\][^:]*: $", said):
        os.write(terminal, sys.argv[1].encode() + b"\\n")
        answered = True
os.waitpid(child, 0)
sys.stdout.buffer.write(said)
"""


@pytest.fixture(scope="module", autouse=True)
def services(bench: Bench) -> Iterator[None]:
    run_driver_domain(bench)
    serve(bench, SERVER, "bench.Echo", ECHO)
    serve(bench, SERVER, "bench.Wait", WAITS)
    yield
    bench.run("dom0", f"rm -f {POLICY}").check()


def serve(bench: Bench, vm: str, service: str, script: str) -> None:
    path = f"/etc/pedos/services.d/{service}"
    write = f"mkdir -p /etc/pedos/services.d; cat > {path}; chmod 755 {path}"
    bench.run(vm, write, given=script).check()


def rules(bench: Bench, *lines: str) -> None:
    """These are the bench's rules when this returns."""
    given = "".join(f"{each}\n" for each in lines)
    bench.run("dom0", f"cat > {POLICY}; qvm-policy status > /dev/null", given=given).check()


def call(bench: Bench, target: str, service: str, given: str = "", limit: float = 60.0) -> Result:
    return bench.run(CALLER, f"qvm-call {target} {service}", given=given, limit=limit)


def served(service: str = "bench.Echo+", given: str = "") -> str:
    return f"{CALLER} calls {service}: {service.partition('+')[2]}\n{given}"


def started(bench: Bench, target: str) -> None:
    """A call of bench.Wait in the caller, which ends when /run/go is there; returns when the
    service runs. What it wrote and its status come to /run/said and /run/status."""
    script = (
        "rm -f /run/go /run/said /run/status; "
        "((until [ -e /run/go ]; do sleep 0.2; done; echo last words) | "
        f"qvm-call {target} bench.Wait > /run/said 2>&1; echo $? > /run/status) > /dev/null 2>&1 &"
    )
    bench.run(CALLER, script).check()
    wait_until(bench, CALLER, "grep -qs running /run/said", limit=START_LIMIT)


def test_a_call_that_is_allowed_has_streams_and_a_status(bench: Bench) -> None:
    rules(bench, f"bench.Echo  *  {CALLER}  {SERVER}  allow")
    said = call(bench, SERVER, "bench.Echo", "one\ntwo\n")
    assert (said.status, said.out) == (7, served(given="one\ntwo\n")), said.text
    assert said.err == "to be seen\n"
    said = call(bench, SERVER, "bench.Echo+of-it")
    assert (said.status, said.out) == (7, served("bench.Echo+of-it")), said.text


def test_how_long_a_call_takes(bench: Bench) -> None:
    """Printed; the first call waits for a channel, unless a call before has left one."""
    rules(bench, f"bench.Echo  *  {CALLER}  {SERVER}  allow")
    script = (
        f"for i in $(seq {WARM_ROUNDS}); do date +%s%N; "
        f"qvm-call {SERVER} bench.Echo < /dev/null > /dev/null 2>&1; done; date +%s%N"
    )
    at = [int(each) for each in bench.run(CALLER, script, limit=120).check().split()]
    took = [(after - before) / 1e6 for before, after in itertools.pairwise(at)]
    assert len(took) == WARM_ROUNDS
    tell(f"calls: the first of {WARM_ROUNDS} {took[0]:.0f} ms, the fastest {min(took):.0f} ms")


def test_a_call_that_no_rule_allows_says_a_request_id_and_nothing_else(bench: Bench) -> None:
    rules(bench)
    refused = call(bench, SERVER, "bench.Echo")
    assert (refused.status, refused.out) == (REFUSED, ""), refused.text
    assert "denied" in refused.err
    assert ".policy" not in refused.err, "a VM must not learn the rules"
    (request,) = re.findall(r"request:? ([0-9a-f]{8,})", refused.err)
    story = bench.run("dom0", f"qvm-audit show {request}").check()
    assert "bench.Echo" in story
    assert SERVER in story


def test_dom0s_user_is_asked_and_the_answer_decides(bench: Bench) -> None:
    rules(bench, f"bench.Echo  *  {CALLER}  {SERVER}  ask")
    for answer, status in (("1", 7), ("n", REFUSED)):
        with concurrent.futures.ThreadPoolExecutor() as threads:
            script = f"cat > /run/answer; exec python3 /run/answer {answer}"
            asked = threads.submit(bench.run, "dom0", script, given=ANSWER, limit=60.0)
            wait_until(bench, "dom0", f"[ -e /run/asking-{answer} ]")
            said = call(bench, SERVER, "bench.Echo")
        assert said.status == status, said.text + asked.result().text
        assert "bench.Echo" in asked.result().out


def test_the_policy_sends_a_call_elsewhere(bench: Bench) -> None:
    rules(
        bench,
        f"bench.Echo  *  {CALLER}  @default   allow target={SERVER}",
        f"bench.Echo  *  {CALLER}  {HALTED}  allow target={SERVER}",
    )
    for target in ("@default", HALTED):
        said = call(bench, f"'{target}'", "bench.Echo")
        assert (said.status, said.out) == (7, served()), said.text
    assert not is_there(bench, HALTED)


def test_a_call_outlives_dom0s_service(bench: Bench) -> None:
    """Installed anew, as by an upgrade, and killed."""
    rules(bench, f"bench.Wait  *  {CALLER}  {SERVER}  allow")
    started(bench, SERVER)
    bench.run("dom0", "dpkg -i /var/tmp/debs/pedos-dom0_*.deb", limit=240).check()
    wait_for(bench, f"agent {CALLER}", f"agent {SERVER}")
    bench.run("dom0", "systemctl kill -s KILL pedos-dom0").check()
    wait_for(bench, f"agent {CALLER}", f"agent {SERVER}")
    wait_until(bench, "dom0", "qvm-calls | grep -q bench.Wait")
    bench.run(CALLER, "touch /run/go").check()
    wait_until(bench, CALLER, "[ -s /run/status ]")
    said = bench.run(CALLER, "cat /run/status /run/said").check()
    assert said == "0\nrunning\nlast words\n"
    wait_until(bench, "dom0", "! qvm-calls | grep -q bench.Wait")


def test_a_halted_target_is_started_once_and_its_end_ends_its_calls(bench: Bench) -> None:
    rules(
        bench,
        f"bench.Wait  *  {CALLER}  {HALTED}  allow",
        f"bench.Echo  *  {CALLER}  {HALTED}  allow",
    )
    with concurrent.futures.ThreadPoolExecutor() as threads:
        # Nobody has put a service there: that it is missing is said by a VM that runs.
        two = [
            threads.submit(call, bench, HALTED, "bench.Echo", limit=START_LIMIT) for _ in range(2)
        ]
    for each in two:
        assert each.result().status == NOT_FOUND, each.result().text
    assert is_there(bench, HALTED)
    serve(bench, HALTED, "bench.Wait", WAITS)
    started(bench, HALTED)
    bench.run("dom0", f"xl destroy {HALTED}").check()
    wait_until(bench, CALLER, "! pgrep -x qvm-call")
    bench.run(CALLER, "touch /run/go").check()  # its input was not at an end until now
    wait_until(bench, CALLER, "[ -s /run/status ]")
    said = bench.run(CALLER, "cat /run/status /run/said").check()
    assert said.startswith(f"{PROBLEM}\nrunning\nqvm-call: "), said
    wait_until(bench, "dom0", "! qvm-calls | grep -q bench.Wait")
    assert not is_there(bench, HALTED)
