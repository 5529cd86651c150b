"""What a keeper does with calls, as a process and over its link."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from pedos_host.plain_unix import bind_unix
from pedos_keeper.keeper import CALLS_MAX, SPARE_MAX, Keeper
from pedos_protocol.keeper_link import Connected, Ended, NotFound, Problem, Spawned

from tests.patience import PATIENCE

from .keeper_client import (
    Called,
    Place,
    children_of,
    keeper_below,
    not_answering,
    read_all,
    wait_for_end,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A keeper for all tests of this file but those that end it. Each has services of its own."""
    place = Place(tmp_path_factory.mktemp("keeper"))
    with place.running({"QREXEC_REMOTE_DOMAIN": "nobody", "LISTEN_FDNAMES": "x", "COLOUR": "red"}):
        yield place


# What a service is given


def test_a_service_reads_its_stdin_and_its_end_is_told(place: Place) -> None:
    place.service("test.Echo", "cat; echo said >&2; exit 7")
    with place.run("test.Echo") as call:
        assert call.next(Spawned) == Spawned(False, False, False)
        assert call.output(b"hello") == b"hello"
        assert call.stderr.read() == b"said\n"
        assert call.next(Ended) == Ended("exited", 7)
        call.finish()
        assert call.packet() is None


def test_a_service_gets_its_argument_only_if_there_is_one(place: Place) -> None:
    place.service("test.Args", 'echo $# "$@"')
    with place.run("test.Args") as call:
        assert call.output() == b"0\n"
    with place.run("test.Args", "a+b.c") as call:
        assert call.output() == b"1 a+b.c\n"


def environment_of(call: Called) -> dict[str, str]:
    pairs = (line.partition("=") for line in call.output().decode().splitlines())
    return {name: value for name, _, value in pairs}


def test_a_service_is_told_of_its_call_and_of_no_other(place: Place) -> None:
    place.service("test.Env", "/usr/bin/env")
    with place.run("test.Env", "arg") as call:
        found = environment_of(call)
    assert {name: found[name] for name in found if name.startswith("QREXEC_")} == {
        "QREXEC_REMOTE_DOMAIN": "work",
        "QREXEC_SERVICE_FULL_NAME": "test.Env+arg",
        "QREXEC_SERVICE_ARGUMENT": "arg",
        "QREXEC_REQUESTED_TARGET_TYPE": "",
    }
    assert "LISTEN_FDNAMES" not in found
    assert (found["COLOUR"], found["HOME"]) == ("red", str(place.home))
    with place.run("test.Env", target="@adminvm") as call:
        found = environment_of(call)
    assert found["QREXEC_REQUESTED_TARGET_TYPE"] == "keyword"
    assert found["QREXEC_REQUESTED_TARGET_KEYWORD"] == "adminvm"
    assert found["QREXEC_SERVICE_FULL_NAME"] == "test.Env+"
    with place.run("test.Env", target="vault") as call:
        found = environment_of(call)
    assert found["QREXEC_REQUESTED_TARGET_TYPE"] == "name"
    assert found["QREXEC_REQUESTED_TARGET"] == "vault"


def test_a_service_begins_at_home_in_a_session_of_its_own_with_no_signal_ignored(
    place: Place,
) -> None:
    place.service(
        "test.State",
        "pwd; ps -o sid= -p $$; echo $$; grep -E '^Sig(Blk|Ign)' /proc/self/status",
    )
    with place.run("test.State") as call:
        home, session, pid, *signals = call.output().decode().split("\n")[:-1]
    assert home == str(place.home)
    assert session.strip() == pid
    # The C library ignores two of its own in what it spawns, from 32 on.
    assert [int(line.split()[1], 16) & 0x7FFFFFFF for line in signals] == [0, 0]


def test_stdin_and_stdout_are_sockets_stderr_is_a_pipe_and_nothing_else_is_open(
    place: Place,
) -> None:
    place.service("test.Files", "exec ls -l /proc/self/fd")
    with place.run("test.Files") as call:
        lines = call.output().decode().splitlines()
    opened = {line.split()[-3]: line.split()[-1] for line in lines if "->" in line}
    assert opened.pop("3").startswith("/proc/")  # that of ls
    assert {number: where.split(":")[0] for number, where in opened.items()} == {
        "0": "socket",
        "1": "socket",
        "2": "pipe",
    }


def test_without_a_third_descriptor_stderr_goes_to_the_log(place: Place) -> None:
    place.service("test.Quiet", "readlink /proc/self/fd/2")
    with place.run("test.Quiet", with_stderr=False) as call:
        assert call.output().decode().strip() == os.readlink("/proc/self/fd/2")


def test_a_script_without_a_first_line_is_one_of_sh(place: Place) -> None:
    place.service("test.Plain", 'echo "plain $1"', first="")
    with place.run("test.Plain", "x") as call:
        assert call.output() == b"plain x\n"


# What is no service


def test_what_there_is_not_is_not_found(place: Place) -> None:
    with place.run("test.Nothing", "x") as call:
        assert call.next(NotFound).text == "there is no service test.Nothing+x"
        assert call.packet() is None
        assert read_all(call.stdout) == b""  # its descriptors are at their end


def test_a_program_that_cannot_be_run_is_a_problem_that_names_it(place: Place) -> None:
    path = place.service("test.Bad", "", first="#!/nowhere/sh")
    with place.run("test.Bad") as call:
        assert call.next(Problem).text == (f"{path} cannot be run: its interpreter does not exist")
    path.chmod(0o644)
    with place.run("test.Bad") as call:
        assert call.next(Problem).text.startswith(f"{path} is not executable")


def test_an_error_in_its_configuration_is_said_at_once_with_file_and_line(place: Place) -> None:
    place.service("test.Wrong", "exit 0")
    path = place.configure("test.Wrong", "# this", "wait-for-sesion = true")
    with place.run("test.Wrong") as call:
        text = call.next(Problem).text
        assert text.startswith(f"{path}:2: 'wait-for-sesion' is not a key")


def test_options_are_told_to_the_agent(place: Place) -> None:
    place.service("test.Options", "exit 0")
    place.configure("test.Options", "exit-on-client-eof = true", "forward-signals = true")
    with place.run("test.Options") as call:
        assert call.next(Spawned) == Spawned(True, False, True)


# Services that listen


def test_a_service_at_a_socket_is_connected_to_and_told_of_the_call(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.services / "test.Socket"))
        listener.listen()
        with place.run("test.Socket", "x", target="@dispvm") as call:
            assert call.next(Connected) == Connected(False, False, False)
            service, _ = listener.accept()
            with service, socket.socket(fileno=call.passed.pop()) as ours:
                ours.sendall(b"hello")
                ours.shutdown(socket.SHUT_WR)
                assert read_all(service) == b"test.Socket+x work keyword dispvm\0hello"
                service.sendall(b"back")
                service.close()
                assert ours.getblocking()
                assert read_all(ours) == b"back"


def test_a_service_at_a_port_is_connected_to_and_told_nothing_if_so_configured(
    place: Place,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        (place.services / "test.Port").symlink_to("/dev/tcp/127.0.0.1")
        place.configure("test.Port", "skip-service-descriptor = true")
        with place.run("test.Port", str(port)) as call:
            call.next(Connected)
            service, _ = listener.accept()
            with service, socket.socket(fileno=call.passed.pop()) as ours:
                ours.sendall(b"hello")
                assert service.recv(100) == b"hello"


def test_a_service_that_does_not_listen_is_a_problem_that_says_where(place: Place) -> None:
    path = place.services / "test.Dead"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    with place.run("test.Dead") as call:
        text = call.next(Problem).text
    assert text == f"test.Dead: cannot connect to {path}: Connection refused"


# Ends


def test_a_grandchild_that_holds_stdout_outlives_the_main_process(place: Place) -> None:
    place.service("test.Daemon", "{ read line; echo late $line; } & exit 3", first="#!/bin/bash")
    with place.run("test.Daemon") as call:
        call.next(Spawned)
        assert call.next(Ended) == Ended("exited", 3)


def test_a_signal_is_told_as_one(place: Place) -> None:
    place.service("test.Signal", "kill -SEGV $$")
    with place.run("test.Signal") as call:
        call.next(Spawned)
        assert call.next(Ended) == Ended("signalled", signal.SIGSEGV)


def test_the_agent_may_signal_a_service(place: Place) -> None:
    place.service("test.Waits", "trap 'echo caught; exit 5' TERM; echo ready; read line")
    with place.run("test.Waits") as call:
        call.next(Spawned)
        assert call.stdout.recv(100) == b"ready\n"
        call.signal(signal.SIGTERM)
        assert read_all(call.stdout) == b"caught\n"
        assert call.next(Ended) == Ended("exited", 5)


STAYS = "trap '' HUP; sleep 1000 & echo $!; setsid sleep 1000 & echo $!; trap 'exit 4' HUP; wait"


def started_by(call: Called) -> list[int]:
    """The pids that the service above says: of its session, and of one beyond."""
    call.next(Spawned)
    said = b""
    while said.count(b"\n") < 2:
        said += call.stdout.recv(100)
    return [int(line) for line in said.split()]


def test_sigkill_ends_all_that_the_service_has_started(place: Place) -> None:
    place.service("test.Family", STAYS)
    with place.run("test.Family") as call:
        inside, beyond = started_by(call)
        call.signal(signal.SIGKILL)
        assert call.next(Ended) == Ended("signalled", signal.SIGKILL)
        wait_for_end(inside)
        wait_for_end(beyond)


def test_sigkill_ends_nothing_of_another_call(place: Place) -> None:
    place.service("test.Family", STAYS)
    with place.run("test.Family", call="f" * 32) as other, place.run("test.Family") as call:
        others = started_by(other)
        started_by(call)
        call.signal(signal.SIGKILL)
        assert call.next(Ended) == Ended("signalled", signal.SIGKILL)
        for pid in others:
            os.kill(pid, 0)
        other.signal(signal.SIGKILL)
        for pid in others:
            wait_for_end(pid)


@pytest.mark.parametrize("way", ["close", "hup", "kill"])
def test_what_becomes_of_a_service_whose_caller_has_gone_is_configured(
    place: Place, way: str
) -> None:
    note = place.home / f"gone-{way}"
    place.service(
        f"test.Gone-{way}",
        f"trap 'echo hup >{note}; exit' HUP; echo $$; while read line; do :; done\n"
        f"echo end >{note}",
    )
    place.configure(f"test.Gone-{way}", f"on-caller-gone = {way}")
    with place.run(f"test.Gone-{way}") as call:
        call.next(Spawned)
        pid = int(call.stdout.recv(100))
        call.link.close()
        if way == "close":
            call.stdin.close()
        wait_for_end(pid)
    assert (note.read_text() if note.exists() else "") == {
        "close": "end\n",
        "hup": "hup\n",
        "kill": "",
    }[way]


@pytest.mark.parametrize("how", ["deaf", "not understood"])
def test_an_agent_that_hears_or_says_nothing_more_has_lost_the_caller(
    place: Place, how: str
) -> None:
    place.service("test.Lost", "sleep 1000 >/dev/null 2>&1 </dev/null & echo $!; read line")
    place.configure("test.Lost", "on-caller-gone = kill")
    with place.run("test.Lost") as call:
        call.next(Spawned)
        pid = int(call.stdout.recv(100))
        if how == "deaf":  # it goes as the main process ends, whose end cannot be told
            call.link.shutdown(socket.SHUT_RD)
            call.stdin.close()
        else:
            call.link.send(b"\x91\x63")
        wait_for_end(pid)


@pytest.mark.parametrize("main", ["runs", "has ended"])
def test_what_a_call_has_left_can_be_ended_when_its_caller_has_gone(
    place: Place, main: str
) -> None:
    place.service(
        "test.Stays",
        "sleep 1000 & echo $!; setsid sleep 1000 & echo $!; [ $1 = runs ] && wait; exit 0",
    )
    call, other = f"{len(main):032x}", "b" * 32
    with place.run("test.Stays", "runs", call=other) as another:
        others = started_by(another)
        with place.run("test.Stays", main.split()[0], call=call) as gone:
            left = started_by(gone)
            if main != "runs":
                gone.next(Ended)
        place.kill(call)
        for pid in left:
            wait_for_end(pid)
        for pid in others:
            os.kill(pid, 0)
        place.kill(other)
        for pid in others:
            wait_for_end(pid)


def test_a_call_that_is_finished_leaves_what_it_has_started(place: Place) -> None:
    place.service("test.Leaves", "sleep 1000 >/dev/null 2>&1 </dev/null & echo $!")
    place.configure("test.Leaves", "on-caller-gone = kill")
    with place.run("test.Leaves") as call:
        pid = int(call.output())
        call.next(Spawned)
        call.next(Ended)
        call.finish()
        assert call.packet() is None
    os.kill(pid, signal.SIGKILL)  # it is there
    wait_for_end(pid)


# Others


def test_a_service_on_a_disk_that_does_not_answer_holds_up_its_own_call_alone(
    own_place: Place,
) -> None:
    own_place.service("test.Goes", "echo went")
    path = own_place.service("test.Hangs", "echo late")
    with own_place.running() as process, not_answering(path) as is_asked:
        with own_place.run("test.Hangs") as hanging:
            assert is_asked.wait(PATIENCE)
            with own_place.run("test.Goes") as call:
                call.next(Spawned)
                assert call.output() == b"went\n"
                assert call.next(Ended) == Ended("exited", 0)
            hanging.link.setblocking(False)
            with pytest.raises(BlockingIOError):
                hanging.packet()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


def test_a_caller_that_goes_before_the_service_has_begun_has_gone(place: Place) -> None:
    """Its service is one whose caller has gone, from its beginning."""
    path = place.service("test.Late", "exec sleep 1000")
    place.configure("test.Late", "on-caller-gone = kill")
    with place.run("test.Late") as call:
        with not_answering(path) as is_asked:
            assert is_asked.wait(PATIENCE)
            call.link.close()
        poll = select.poll()
        poll.register(call.stderr, 0)  # POLLHUP: nobody has the other end
        assert poll.poll(PATIENCE * 1000)


def test_what_is_no_call_is_cut_off_and_others_go_on(place: Place) -> None:
    place.service("test.Goes", "cat")
    with place.run("test.Goes") as call:
        call.next(Spawned)
        with place.run("test.Goes") as other:
            other.next(Spawned)
            other.link.send(b"\x91\x63")
            assert other.packet() is None
        assert call.output(b"on") == b"on"


def test_a_thread_that_could_not_be_started_is_not_counted_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as listener:
        keeper = Keeper(listener, cast("Any", None))

        def fail(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            keeper._start_thread()
        assert keeper._waiting == 0
        os.close(keeper._woken)
        os.close(keeper._waker)


def test_many_calls_run_at_once(place: Place) -> None:
    place.service("test.Many", "read line; echo $line")
    calls = [place.run("test.Many") for _ in range(64)]
    for number, call in enumerate(calls):
        with call:
            call.next(Spawned)
            assert call.output(b"%d\n" % number) == b"%d\n" % number
            call.next(Ended)


def test_one_call_too_many_is_refused_in_words(place: Place) -> None:
    place.service("test.Full", "read line")
    calls: list[Called] = []
    try:
        for _ in range(CALLS_MAX):
            call = place.run("test.Full")
            calls.append(call)
            call.next(Spawned)
            for each in (call.stdin, call.stdout, call.stderr):  # only so many may be open here
                each.close()
        with place.run("test.Full") as more:
            text = more.next(Problem).text
        assert text == f"its keeper has {CALLS_MAX} calls, the most that it takes"
    finally:
        for call in calls:
            call.__exit__()


def threads_and_files(pid: int) -> tuple[int, int]:
    return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))


@pytest.fixture
def own_place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_calls_leave_no_descriptor_no_thread_and_no_zombie(own_place: Place) -> None:
    own_place.service("test.Short", "sleep 0 & exit 0")

    def call() -> None:
        with own_place.run("test.Short") as call:
            call.next(Spawned)
            call.next(Ended)
            call.finish()
            assert call.packet() is None

    with own_place.running() as process:
        call()
        keeper = keeper_below(process.pid)
        before = threads_and_files(keeper)
        workers = [threading.Thread(target=lambda: [call() for _ in range(10)]) for _ in range(4)]
        for each in workers:
            each.start()
        for each in workers:
            each.join()
        call()
        until = time.monotonic() + PATIENCE
        while (now := threads_and_files(keeper))[1] > before[1] or children_of(keeper):
            # The last call is about to be over, and the last sleep.
            assert time.monotonic() < until, (now, before)
            time.sleep(0.001)
        assert now[0] <= before[0] + SPARE_MAX


@pytest.mark.parametrize("victim", ["guard", "keeper"])
def test_nothing_outlives_a_keeper_that_is_killed(own_place: Place, victim: str) -> None:
    own_place.service("test.Family", STAYS)
    with own_place.running() as process, own_place.run("test.Family") as call:
        pids = started_by(call)
        keeper = keeper_below(process.pid)
        os.kill(process.pid if victim == "guard" else keeper, signal.SIGKILL)
        assert call.packet() in (None, Ended("signalled", signal.SIGTERM))
        for pid in (keeper, *pids):
            wait_for_end(pid)


def test_nothing_outlives_a_keeper_that_is_asked_to_end(own_place: Place) -> None:
    own_place.service("test.Family", STAYS)
    with own_place.running() as process:
        with own_place.run("test.Family") as call:
            pids = started_by(call)
            process.send_signal(signal.SIGTERM)
            for pid in pids:
                wait_for_end(pid)
        assert process.wait() == 0


IDLE = """
import socket, sys
from pathlib import Path
from pedos_keeper.call import Place
from pedos_keeper.children import Children, become_subreaper
from pedos_keeper.environment import Environment
from pedos_keeper.keeper import Keeper
become_subreaper()
services = [sys.argv[2]]
place = Place(None, services, ["/nonexistent"], Children(), lambda: Environment({}), None)
Keeper(socket.socket(fileno=int(sys.argv[1])), place, idle_seconds=0.05).run()
"""


def test_a_keeper_ends_when_nothing_runs_and_not_before(own_place: Place) -> None:
    own_place.service("test.Leaves", "sleep 1000 >/dev/null 2>&1 </dev/null & echo $!")
    with bind_unix(own_place.path, 0o600, kind=socket.SOCK_SEQPACKET) as listener:
        number = listener.fileno()
        argv = [sys.executable, "-c", IDLE, str(number), str(own_place.services)]
        process = subprocess.Popen(argv, pass_fds=[number])
        try:
            with own_place.run("test.Leaves") as call:
                pid = int(call.output())
                call.next(Spawned)
                call.next(Ended)
                call.finish()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)  # six times as long as it would be idle
            os.kill(pid, signal.SIGKILL)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait()
