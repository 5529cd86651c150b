"""qvm-prompt on a real pseudo-terminal, with a service that is a real socket and a script.

Where timing matters, the loop runs in this process with a clock that the test moves, one turn at a
time. The program as a whole runs as a process of its own.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pedos_cli import qvm_prompt
from pedos_cli.client import Unreachable
from pedos_cli.prompt_link import REGISTER_S, Link
from pedos_cli.prompt_loop import RETRY_FIRST_S, RETRY_MAX_S, Loop
from pedos_cli.prompt_queue import ARMING_S
from pedos_cli.prompt_terminal import Terminal
from pedos_cli.prompt_waiting import ARMING_AFTER_WITHDRAWAL_S
from pedos_host.plain_unix import short_path
from pedos_protocol.connection import Connection
from pedos_protocol.errors import CallError
from pedos_protocol.events import (
    NEED_DATA,
    Answer,
    Closed,
    ErrorAnswer,
    Event,
    Hello,
    Notice,
    Request,
)

from tests import asked_question

Captured = pytest.CaptureFixture[str]

PATIENCE_S = 20  # for a busy machine; no test waits for it to pass

ASK = {**asked_question.ASK, "read_only": False}


class Dom0:
    """dom0's side: it accepts connections, confirms registrations, and asks."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        with short_path(path) as short:
            self._listener.bind(short)
        self._listener.listen()
        self._listener.settimeout(PATIENCE_S)
        self._client: socket.socket | None = None
        self._last_id = 0

    def accept(self, refusal: ErrorAnswer | None = None) -> None:
        """Take a connection, and its registration."""
        self._client, _ = self._listener.accept()
        self._client.settimeout(PATIENCE_S)
        self._connection = Connection()
        assert isinstance(self.next(), Hello)
        request = self.next()
        assert isinstance(request, Request)
        assert (request.method, request.params) == ("prompter.register", {"calls": True})
        self.send(Hello((1, 1), "fake 0.1"))
        self.send(refusal or Answer(request.id, {}))

    def ask(self, *, deadline_ms: int = 60_000, **fields: object) -> int:
        self._last_id += 1
        self.send(Request(self._last_id, "prompt.ask", {**ASK, **fields}, deadline_ms))
        return self._last_id

    def call(self) -> None:
        self._last_id += 1
        params = {
            "request": ASK["request"],
            "source": "work",
            "service": "test.Open",
            "argument": "+page",
            "candidates": ["vault"],
            "default": None,
            "timeout_s": 60,
        }
        self.send(Request(self._last_id, "prompt.call", params, 60_000))

    def cancel(self, reason: str, request: object = ASK["request"]) -> None:
        self.send(Notice("prompt.cancel", {"request": request, "reason": reason}))

    def send(self, event: Event) -> None:
        self.send_bytes(self._connection.send(event))

    def send_bytes(self, data: bytes) -> None:
        assert self._client is not None
        self._client.sendall(data)

    def next(self) -> Event:
        assert self._client is not None
        while (event := self._connection.next_event()) is NEED_DATA:
            self._connection.receive_data(self._client.recv(65536))
        assert isinstance(event, Event)
        return event

    def answer(self) -> dict[str, Any]:
        event = self.next()
        assert isinstance(event, Answer)
        return event.result

    def lapsed(self) -> bool:
        """The next answer is that no prompter may register."""
        event = self.next()
        return isinstance(event, ErrorAnswer) and event.code == "timeout"

    def hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def close(self) -> None:
        self.hang_up()
        self._listener.close()


class Person:
    """The person at the other end of the pseudo-terminal."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.seen = ""
        self._decoder = getincrementaldecoder("utf-8")()
        self._read_to = 0

    def sees(self, text: str) -> str:
        """Wait until `text` is on the screen after the text of the last wait; return the text
        between."""
        while (at := self.seen.find(text, self._read_to)) < 0:
            ready, _, _ = select.select([self.master], [], [], PATIENCE_S)
            assert ready, f"{text!r} is not on the screen: {self.seen[self._read_to :]!r}"
            self.seen += self._decoder.decode(os.read(self.master, 65536))
        between = self.seen[self._read_to : at]
        self._read_to = at + len(text)
        return between

    def types(self, keys: str, *, arrives: bool = False) -> None:
        """Type; if it `arrives`, return when the other end can read it."""
        os.write(self.master, keys.encode())
        if arrives:
            ready, _, _ = select.select([self.slave], [], [], PATIENCE_S)
            assert ready

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    def leave(self) -> None:
        for descriptor in {self.master, self.slave}:
            os.close(descriptor)


@pytest.fixture
def person() -> Iterator[Person]:
    made = Person()
    yield made
    made.leave()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "pedos.sock"
    monkeypatch.setenv("PEDOS_SOCKET", str(path))
    monkeypatch.delenv("PEDOS_VM", raising=False)
    return path


@pytest.fixture
def dom0(path: Path) -> Iterator[Dom0]:
    made = Dom0(path)
    yield made
    made.close()


class Stage:
    """The loop on the terminal, and a clock that stands still until it is moved."""

    def __init__(self, person: Person, dom0: Dom0, terminal: Terminal) -> None:
        self.now = 100.0
        self.person = person
        self.dom0 = dom0
        self.terminal = terminal
        self.tries = 0
        self.reachable = True
        self.loop = Loop(terminal, Link(), self._connect, clock=lambda: self.now)

    def _connect(self) -> Link:
        self.tries += 1
        if not self.reachable:
            raise Unreachable("pedos.sock", "no program listens there")
        return Link()

    def registered(self) -> None:
        self.dom0.accept()
        self.turn()
        self.person.sees("questions of dom0 are shown here")

    def turn(self) -> None:
        self.loop.turn(0)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.turn()

    def asked(self, **fields: object) -> None:
        self.dom0.ask(**fields)
        self.turn()
        self.person.sees("n  none: deny it")

    def types(self, keys: str) -> None:
        self.person.types(keys, arrives=True)
        self.turn()


@pytest.fixture
def stage(person: Person, dom0: Dom0) -> Iterator[Stage]:
    with Terminal(person.slave, person.slave, "utf-8") as terminal:
        made = Stage(person, dom0, terminal)
        yield made
        made.loop.close()


def test_a_question_is_asked_and_answered(stage: Stage) -> None:
    stage.registered()
    stage.asked(default="vault")
    stage.wait(ARMING_S)
    stage.person.sees("1-2, n, or Enter for 2: ")
    stage.types("1")
    stage.types("\r")
    stage.person.sees("3f9c01ab77de: yes, work")
    assert stage.dom0.answer() == {"verdict": "allow", "target": "work"}


def test_a_question_about_a_call_is_answered_too(stage: Stage) -> None:
    stage.registered()
    stage.dom0.call()
    stage.turn()
    stage.person.sees("work asks to call test.Open")
    stage.person.sees("n  none: deny it")
    stage.wait(ARMING_S)
    stage.types("1\r")
    assert stage.dom0.answer() == {"verdict": "allow", "target": "vault"}


def test_an_older_dom0_is_asked_to_register_as_before(stage: Stage) -> None:
    stage.dom0.accept(ErrorAnswer(1, "usage", "malformed: 'calls' is not known", {}))
    stage.turn()
    request = stage.dom0.next()
    assert isinstance(request, Request)
    assert (request.method, request.params) == ("prompter.register", {})
    stage.dom0.send(Answer(request.id, {}))
    stage.turn()
    stage.person.sees("questions of dom0 are shown here")
    stage.asked()


def test_what_was_typed_before_the_question_came_does_not_answer_it(stage: Stage) -> None:
    stage.registered()
    stage.person.types("1\r1\r", arrives=True)  # not read yet
    stage.asked(default="work")
    stage.person.types("1\r", arrives=True)  # while it is being read
    stage.wait(ARMING_S)
    assert "Enter" not in stage.person.sees("..."), "what came with arming puts it off"
    stage.wait(ARMING_S)
    stage.person.sees("Enter for 1: ")
    stage.types("n\r")
    assert stage.dom0.answer() == {"verdict": "deny", "target": None}


def test_what_was_typed_in_the_very_moment_of_arming_is_flushed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.registered()
    stage.asked(default="work")
    flush = stage.terminal.flush_input

    def type_first() -> None:
        stage.person.types("1\r", arrives=True)  # after the look at the keyboard, before arming
        flush()

    monkeypatch.setattr(stage.terminal, "flush_input", type_first)
    stage.wait(ARMING_S)
    monkeypatch.undo()
    stage.person.sees("Enter for 1: ")
    stage.turn()
    stage.types("n\r")
    assert stage.dom0.answer() == {"verdict": "deny", "target": None}


def test_a_paste_answers_nothing(stage: Stage) -> None:
    stage.registered()
    stage.asked(default="work")
    stage.wait(ARMING_S)
    stage.types("1\r1\r")
    stage.person.sees("several lines came at once")
    stage.types("\r")
    stage.wait(ARMING_S)
    stage.types("\x03")
    assert stage.dom0.answer() == {"verdict": "deny", "target": None}


def test_a_question_that_lapses_says_why_and_its_number_is_free_again(stage: Stage) -> None:
    stage.registered()
    stage.asked()
    stage.dom0.cancel("the command that asked has ended")
    stage.turn()
    stage.person.sees("withdrawn: the command that asked has ended")
    assert stage.dom0.lapsed()


@pytest.mark.parametrize("fields", [{"timeout_s": 5}, {"deadline_ms": 5000}])
def test_the_earlier_deadline_counts(stage: Stage, fields: dict[str, int]) -> None:
    stage.registered()
    stage.asked(**fields)
    stage.wait(4)
    stage.person.sees("[1 s]")
    stage.wait(1)
    stage.person.sees("withdrawn: no answer came in time, so it is denied")
    assert stage.dom0.lapsed()


@pytest.mark.parametrize("reason", [None, 5, {"a": 1}])
def test_a_cancel_that_makes_no_sense_is_survived(stage: Stage, reason: Any) -> None:
    stage.registered()
    stage.asked()
    stage.dom0.cancel(reason, request=["3f9c01ab77de"])
    stage.dom0.cancel(reason)
    stage.turn()
    stage.person.sees("withdrawn")
    assert stage.dom0.lapsed()


def test_a_question_that_makes_no_sense_is_refused_and_not_shown(stage: Stage) -> None:
    stage.registered()
    stage.dom0.ask(candidates=["\x1b[2J"])
    stage.turn()
    refusal = stage.dom0.next()
    assert isinstance(refusal, ErrorAnswer)
    assert refusal.code == "usage"
    stage.terminal.line("mark")
    assert "asks to" not in stage.person.sees("mark")


def test_another_call_is_refused(stage: Stage) -> None:
    stage.registered()
    stage.dom0.send(Request(9, "device.list", {}, 1000))
    stage.turn()
    refusal = stage.dom0.next()
    assert isinstance(refusal, ErrorAnswer)
    assert refusal.code == "unknown_method"


def test_no_text_of_a_device_or_of_the_service_reaches_the_terminal_raw(stage: Stage) -> None:
    stage.registered()
    evil = "\x1b]0;x\x07\x1b[2J\u202e\r\n  1  vault"
    stage.asked(description=evil, service=evil)
    stage.dom0.cancel(evil)
    stage.turn()
    stage.person.sees("withdrawn: \\x1b]0;x\\x07\\x1b[2J")
    stage.asked(request=evil)
    stage.wait(ARMING_S)
    stage.terminal.line("mark")
    stage.person.sees("mark")
    assert not set(stage.person.seen) - set(map(chr, range(0x20, 0x7F))) - set("\r\n\b\a")


# The service goes and comes


def test_a_service_that_restarts_is_found_again_and_its_questions_are_gone(stage: Stage) -> None:
    stage.registered()
    stage.asked()
    stage.dom0.hang_up()
    stage.turn()
    stage.person.sees("withdrawn: the service has gone")
    stage.person.sees("it is tried again until it is back")
    stage.wait(RETRY_FIRST_S)
    stage.dom0.accept()
    stage.turn()
    stage.person.sees("connected again: questions are shown here")
    stage.asked(default="work")
    stage.wait(ARMING_AFTER_WITHDRAWAL_S)
    stage.types("\r")
    assert stage.dom0.answer() == {"verdict": "allow", "target": "work"}


def test_a_service_that_stays_away_is_tried_less_and_less_often_and_said_once(
    stage: Stage,
) -> None:
    stage.registered()
    stage.reachable = False
    stage.dom0.hang_up()
    stage.turn()
    gaps = []
    for _ in range(8):
        began, tries = stage.now, stage.tries
        while stage.tries == tries:
            stage.wait(RETRY_FIRST_S)
        gaps.append(stage.now - began)
    assert gaps == [0.25, 0.5, 1.0, 2.0, 4.0, RETRY_MAX_S, RETRY_MAX_S, RETRY_MAX_S]
    stage.terminal.line("mark")
    assert stage.person.sees("mark").count("the service has gone") == 1


@pytest.mark.parametrize("how", ["silent", "garbage"])
def test_a_service_that_is_no_proper_one_after_a_restart_is_tried_again(
    stage: Stage, how: str
) -> None:
    stage.registered()
    stage.dom0.hang_up()
    stage.turn()
    stage.wait(RETRY_FIRST_S)
    if how == "garbage":
        stage.dom0.accept()
        stage.turn()
        stage.dom0.send_bytes(b"\x01\0\0\0\xc1")
        stage.turn()
    else:
        stage.wait(REGISTER_S)
    tries = stage.tries
    stage.wait(RETRY_MAX_S)
    assert stage.tries == tries + 1


def test_a_service_that_refuses_is_not_tried_again(stage: Stage) -> None:
    stage.dom0.accept(refusal=ErrorAnswer(1, "quota", "16 prompters are connected", {}))
    with pytest.raises(CallError, match="16 prompters"):
        stage.turn()


def test_an_answer_that_cannot_be_sent_loses_the_connection_and_nothing_else(
    stage: Stage,
) -> None:
    stage.registered()
    stage.asked()
    stage.dom0.ask()
    stage.turn()
    stage.wait(ARMING_S)
    stage.person.types("n\r", arrives=True)
    stage.dom0.hang_up()
    stage.turn()
    stage.person.sees("it is tried again until it is back")
    assert stage.loop.questions.waiting == 0


def test_no_answer_is_left_for_the_next_connection(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.registered()
    stage.asked(timeout_s=5)
    stage.dom0.ask(timeout_s=5)
    stage.turn()

    def break_off(link: Link, *_: object) -> None:
        raise Unreachable(link.path, "the connection broke")

    with monkeypatch.context() as patch:
        patch.setattr(Link, "refuse", break_off)
        stage.wait(5)
    stage.person.sees("it is tried again until it is back")
    stage.wait(RETRY_FIRST_S)
    stage.dom0.hang_up()
    stage.dom0.accept()
    stage.turn()
    stage.person.sees("connected again")


# The program


@pytest.fixture
def started(person: Person, dom0: Dom0) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts qvm-prompt in front of the person; it is registered when this returns."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*argv: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "pedos_cli.qvm_prompt", *argv],
            stdin=person.slave,
            stdout=person.slave,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        processes.append(process)
        dom0.accept()
        person.sees("questions of dom0 are shown here")
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def end_of(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    _, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, errors


def test_once_serves_one_question_and_puts_the_terminal_back(
    person: Person, dom0: Dom0, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    before = person.settings()
    process = started("--once")
    assert person.settings() != before
    dom0.ask()
    person.sees("1-2 or n: ")
    person.types("2\r")
    person.sees("yes, vault")
    assert dom0.answer() == {"verdict": "allow", "target": "vault"}
    assert end_of(process) == (0, b"")
    assert person.settings() == before


@pytest.mark.parametrize(("key", "status"), [("\x03", 130), ("\x04", 0)])
def test_control_c_and_control_d_at_no_question_end_and_put_the_terminal_back(
    person: Person, started: Callable[..., subprocess.Popen[bytes]], key: str, status: int
) -> None:
    before = person.settings()
    process = started()
    person.types(key)
    assert end_of(process) == (status, b"")
    assert person.settings() == before


def test_control_c_at_a_question_denies_it_and_the_program_goes_on(
    person: Person, dom0: Dom0, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = started()
    dom0.ask()
    person.sees("1-2 or n: ")
    person.types("\x03")
    assert dom0.answer() == {"verdict": "deny", "target": None}
    person.types("\x03")
    assert end_of(process)[0] == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_it_and_the_terminal_is_put_back(
    person: Person,
    dom0: Dom0,
    started: Callable[..., subprocess.Popen[bytes]],
    number: signal.Signals,
) -> None:
    before = person.settings()
    process = started()
    dom0.ask()
    person.sees("1-2 or n: ")
    process.send_signal(number)
    assert end_of(process) == (128 + number, b"")
    assert person.settings() == before
    person.sees("1 question is left")
    assert isinstance(dom0.next(), Closed)


def test_a_stopped_program_takes_the_terminal_again_and_shows_the_question_anew(
    person: Person, dom0: Dom0, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    before = person.settings()
    process = started()
    dom0.ask()
    person.sees("1-2 or n: ")
    taken = person.settings()
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    termios.tcsetattr(person.slave, termios.TCSANOW, before)  # as a shell does
    process.send_signal(signal.SIGCONT)
    person.sees("work asks to attach")
    assert person.settings() == taken
    person.sees("1-2 or n: ")
    person.types("n\r")
    assert dom0.answer()["verdict"] == "deny"


@pytest.mark.parametrize(
    ("encoding", "seen"),
    [
        ("utf-8", "\u0424\u043e\u0442\u043e \u05d0\u200e 1\\u202e\\u2800"),
        ("koi8-r", "\u0424\u043e\u0442\u043e \\u05d0 1\\u202e\\u2800"),
        ("ascii", "\\u0424\\u043e\\u0442\\u043e \\u05d0 1\\u202e\\u2800"),
    ],
)
def test_a_line_has_the_letters_that_the_terminal_has(
    person: Person, encoding: str, seen: str
) -> None:
    terminal = Terminal(person.slave, person.slave, encoding)
    terminal.line("\u0424\u043e\u0442\u043e \u05d0 1\u202e\u2800")
    assert os.read(person.master, 4096).decode(encoding) == f"{seen}\r\n"


def test_an_error_puts_the_terminal_back_too(person: Person) -> None:
    before = person.settings()
    with pytest.raises(ZeroDivisionError), Terminal(person.slave, person.slave, "utf-8"):
        assert person.settings() != before
        raise ZeroDivisionError
    assert person.settings() == before


def test_a_terminal_that_is_closed_ends_it(
    person: Person, started: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = started()
    os.close(person.slave)
    os.close(person.master)
    person.master, person.slave = os.pipe()  # for the clean-up of the fixture
    assert end_of(process) == (0, b"")


def test_without_a_terminal_it_says_so(path: Path, person: Person) -> None:
    for stdin in (subprocess.DEVNULL, person.slave):  # in the second, the output is none
        done = subprocess.run(
            [sys.executable, "-m", "pedos_cli.qvm_prompt"],
            stdin=stdin,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 2
        assert b"is not a terminal, and a person has to answer here" in done.stderr
        assert done.stdout == b""


def test_without_a_service_it_says_so_and_leaves_the_terminal_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(qvm_prompt, "_require_terminal", lambda: None)
    assert qvm_prompt.main([]) == 5
    assert capsys.readouterr().err.startswith("qvm-prompt: unavailable: no service answers at ")


def test_help_is_the_same_without_a_terminal(capsys: Captured) -> None:
    assert qvm_prompt.main(["--help"]) == 0
    assert "--once" in capsys.readouterr().out
