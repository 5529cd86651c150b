"""How programs end: every error has a sentence and a status, and nothing ends in a traceback."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import category

import pytest
from pedos_cli import client, device_list, output, place
from pedos_cli import run as run_module
from pedos_cli.qvm_device import main
from pedos_protocol.codec import FRAME_MAX
from pedos_protocol.connection import Connection
from pedos_protocol.errors import CODES, EXIT_STATUS, CallError, LocalProtocolError
from pedos_protocol.events import Closed, NeedData, Request

if TYPE_CHECKING:
    from conftest import FakeService

Captured = pytest.CaptureFixture[str]
LIST = {"devices": [], "policy": None}


def program(*argv: str) -> list[str]:
    return [sys.executable, "-m", "pedos_cli.qvm_device", *argv]


@pytest.mark.parametrize("code", CODES)
def test_every_error_code_has_its_word_and_its_status(
    service: FakeService, capsys: Captured, code: str
) -> None:
    service.replies["device.list"] = CallError(code, "it is so", {"hint": "qvm-ls", "request": "r"})
    assert main(["block"]) == EXIT_STATUS[code]
    lines = capsys.readouterr().err.splitlines()
    word = {"unknown_method": "failed"}.get(code, code.replace("_", " "))
    assert lines[:2] == [f"qvm-device: {word}: it is so", "  try:  qvm-ls"]
    assert lines[2:] == (["  request: r"] if code == "denied" else [])


def test_verbose_errors_tell_the_request(service: FakeService, capsys: Captured) -> None:
    service.replies["device.list"] = CallError("failed", "it is so", {"request": "0123ab"})
    assert main(["-v", "block"]) == 1
    assert "  request: 0123ab\n" in capsys.readouterr().err


def test_a_hostile_error_is_shown_harmless(service: FakeService, capsys: Captured) -> None:
    service.replies["device.list"] = CallError(
        "failed", "\x1b[31m\nrm: \u202e" + "x" * 900, {"hint": "\x07" * 2000, "request": {"a": 1}}
    )
    assert main(["block"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert all(" " <= char <= "~" or char == "\n" for char in err)
    assert len(err.splitlines()) == 2
    assert len(err) < 2000


def test_no_service_says_where_and_how_to_start_it(no_service: Path, capsys: Captured) -> None:
    assert main(["block"]) == 5
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("qvm-device: unavailable: no service answers at ")
    assert first.endswith(": there is no such socket")
    assert second == "  try:  systemctl start pedos-dom0  (or, in local mode: pedos-local up DIR)"


def test_a_socket_that_one_may_not_use_is_not_answered_with_start_it(
    no_service: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> client.Client:
        raise client.Unreachable(str(no_service), "permission denied") from PermissionError()

    monkeypatch.setattr(client, "connect", refuse)
    assert main(["block"]) == 5
    assert capsys.readouterr().err.endswith(
        ": permission denied\n  try:  as root, or as the user that the service runs as\n"
    )


def test_no_service_in_a_vm_names_the_agent(
    no_service: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEDOS_VM", "work")
    assert main(["block"]) == 5
    assert "  try:  systemctl start pedos-agent" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("features", "vm"), [("00002705", True), ("00002f05", False), ("", False), (None, False)]
)
def test_a_guest_of_xen_is_known_by_what_its_kernel_says(
    no_service: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    features: str | None,
    vm: bool,
) -> None:
    (tmp_path / "properties").mkdir()
    if features is not None:
        (tmp_path / "properties/features").write_text(f"{features}\n")
    monkeypatch.setattr(place, "HYPERVISOR", str(tmp_path))
    assert main(["block"]) == 5
    unit = "pedos-agent" if vm else "pedos-dom0"
    assert f"  try:  systemctl start {unit}" in capsys.readouterr().err


def test_a_service_that_goes_away_may_have_done_it(service: FakeService, capsys: Captured) -> None:
    service.leaves = True
    assert main(["block", "attach", "work", "sys-usb:sda"]) == 5
    assert capsys.readouterr().err == (
        "qvm-device: unavailable: the service has closed the connection before it answered: what "
        "was asked for may be done, or not\n"
        "  try:  look whether it is, and at systemctl status pedos-dom0\n"
    )


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\0",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        (FRAME_MAX + 1).to_bytes(4, "little"),
        b"\x01\0\0\0\xc1",
    ],
)
def test_a_service_that_talks_nonsense_is_an_error_and_no_crash(
    service: FakeService, capsys: Captured, garbage: bytes
) -> None:
    service.garbage = garbage
    assert main(["block"]) in (1, 5)
    err = capsys.readouterr().err
    assert err.startswith("qvm-device: ")
    assert "internal error" not in err


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"devices": 5},
        {"devices": [5]},
        {"devices": [{}]},
        {"devices": [{"backend": "a", "device": "b"}]},
        {"devices": [{"backend": "a", "device": "b", "attachments": [{}], "assignments": []}]},
    ],
)
def test_an_answer_without_what_belongs_in_it_is_an_error_and_no_crash(
    service: FakeService, capsys: Captured, answer: dict[str, Any]
) -> None:
    service.replies["device.list"] = answer
    assert main(["block"]) == 1
    assert capsys.readouterr().err.startswith(
        "qvm-device: failed: the service's answer cannot be understood: "
    )


def test_a_request_that_is_too_large_is_not_called_an_answer(
    service: FakeService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise LocalProtocolError("70000 bytes, and 65536 is the most")

    monkeypatch.setattr(client.Client, "call", too_large)
    assert main(["block"]) == 1
    assert capsys.readouterr().err == (
        "qvm-device: failed: the request cannot be sent: 70000 bytes, and 65536 is the most\n"
    )


def test_what_was_done_is_done_even_if_the_state_of_the_policy_cannot_be_read(
    service: FakeService, capsys: Captured
) -> None:
    def nonsense(_: dict[str, Any]) -> dict[str, Any]:
        service.garbage = b"\x01\0\0\0\xc1"
        return {"outcome": "attached", "options": {}, "request": "r"}

    service.replies["device.attach"] = nonsense
    assert main(["block", "attach", "work", "sys-usb:sda"]) == 0
    assert capsys.readouterr() == ("sys-usb:sda attached to work\n", "")


def break_it(*_: object) -> int:
    raise ZeroDivisionError("\x1b[31mboom")


def test_an_internal_error_is_one_line_and_its_traceback_is_for_vv(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_list, "run", break_it)
    line = "qvm-device: internal error: ZeroDivisionError: \\x1b[31mboom\n"
    assert main(["block", "-v"]) == 1
    assert capsys.readouterr() == ("", line)
    assert main(["block", "-v", "list", "-v"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith(line)
    assert "\x1b" not in err


def test_an_interrupt_is_quiet(
    service: FakeService, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(device_list, "run", interrupt)
    assert main(["block"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def heeded_interrupt() -> Iterator[None]:
    """Makes Ctrl-C work in programs that are started here: a process that a shell started in the
    background ignores it, and its children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_interrupt")
def test_control_c_while_waiting_for_the_service_is_quiet(service: FakeService) -> None:
    running: list[subprocess.Popen[bytes]] = []

    def interrupt(_: dict[str, Any]) -> dict[str, Any]:
        running[0].send_signal(signal.SIGINT)
        running[0].wait(10)
        return LIST

    service.replies["device.list"] = interrupt
    with subprocess.Popen(program("block"), stdout=-1, stderr=-1) as process:
        running.append(process)
        assert process.communicate(timeout=10) == (b"", b"")
    assert process.returncode == 130


def test_a_closed_pipe_is_quiet(service: FakeService) -> None:
    service.replies["device.list"] = LIST
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as nobody:
        done = subprocess.run(
            program("block", "--json"), stdout=nobody, stderr=-1, timeout=10, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["at the end", "at the first write"])
def test_a_full_disk_is_told(service: FakeService, unbuffered: str) -> None:
    service.replies["device.list"] = LIST
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            program("block", "--json"), stdout=full, stderr=-1, timeout=10, check=False, env=env
        )
    assert (done.returncode, done.stderr) == (1, b"qvm-device: failed: No space left on device\n")


def test_closed_outputs_do_not_matter(service: FakeService) -> None:
    service.replies["device.list"] = LIST
    command = " ".join(program("block", ">&-", "2>&-"))
    assert subprocess.run(command, shell=True, timeout=10, check=False).returncode == 0


def test_showing_is_harmless_bounded_and_the_same_the_second_time() -> None:
    every = "".join(map(chr, range(0x3000))) + "\udc80\U0001f600\\"
    shown = output.show(every, len(every) * 12)
    letters = {char for char in shown if not " " <= char <= "~"}
    assert all(char.isalnum() or category(char)[0] == "M" for char in letters)
    assert not letters & set("\u115f\u1160\u034f\u200b\u200e\u202e\u2800\u3000\xa0\xad")
    assert output.show(shown, len(shown)) == shown
    assert output.show("a" * 600) == "a" * 509 + "..."
    assert len(output.show("\x00" * 512)) == 512
    assert output.show("sys-usb:sda \\ 'x'") == "sys-usb:sda \\ 'x'"


LETTERS = "\u041c\u043e\u0438 \u0444\u043e\u0442\u043e \u5199\u771f n\u0303"


def written(line: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> str:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    output.put(line)
    output.finish()
    return raw.getvalue().decode(encoding).rstrip("\n")


def test_letters_of_all_scripts_are_shown_where_the_output_can_show_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert output.show(LETTERS) == LETTERS
    assert written(LETTERS, "utf-8", monkeypatch) == LETTERS
    in_ascii = written(LETTERS, "ascii", monkeypatch)
    assert in_ascii.isascii()
    assert in_ascii.encode().decode("unicode_escape") == LETTERS
    in_latin = written("\xe9\u041c", "latin-1", monkeypatch)
    assert in_latin == "\xe9\\u041c"
    assert written("\u0628 1", "utf-8", monkeypatch) == "\u200e\u0628\u200e 1"
    assert written("\u0628 1", "iso-8859-6", monkeypatch) == "\\u0628 1"  # without such a mark


@pytest.mark.parametrize(
    "char",
    ["\x1b", "\x9b", "\u202e", "\u200f", "\u200b", "\u2800", "\u3164", "\xa0", "\u3000", "\xad"],
)
def test_controls_bidi_marks_and_confusing_blanks_are_not(
    char: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"\u041c{char}x"
    escape = char.encode("unicode_escape").decode()
    assert output.show(text) == f"\u041c{escape}x"
    assert written(text, "utf-8", monkeypatch) == f"\u041c{escape}x"  # also if it was not shown


def test_columns_stay_in_line_and_in_order_whatever_the_script(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
    rows = [("a:1", "\u5199\u771f", "5"), ("a:2", "n\u0303o", "6"), ("a:3", "\u05d0\u05d1", "7")]
    output.table(rows, ())
    output.finish()
    assert raw.getvalue().decode().splitlines() == [
        "a:1  \u5199\u771f  5",
        "a:2  n\u0303o    6",
        "a:3  \u05d0\u05d1\u200e    7",  # what follows is not drawn before them
    ]


def test_a_standard_error_that_is_gone_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    assert main(["floppy"]) == 2


def test_after_a_request_that_was_sent_in_part_nothing_more_is_said_on_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `qvm-start a b`: the service would read the next request as the rest of this one."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(2)
        listener.settimeout(10)
        monkeypatch.setenv("PEDOS_SOCKET", str(tmp_path / "socket"))
        monkeypatch.setattr(client, "GRACE", 0.0)
        session = run_module.Session("qvm-start")
        used: list[client.Client | None] = []
        while len(set(used)) < 2 and len(used) < 100:  # until the first takes no more
            with pytest.raises(CallError):
                session.call("vm.start", {"vm": "x" * (FRAME_MAX // 2)}, 0.01)
            used.append(session._client)
        session.close()
        first, _ = listener.accept()
        second, _ = listener.accept()
        with first, second:
            first.settimeout(10)
            parser, requests = Connection(), 0
            while data := first.recv(1 << 20):
                parser.receive_data(data)
                while not isinstance(event := parser.next_event(), NeedData | Closed):
                    requests += isinstance(event, Request)
        # All but the one that was sent in part, and nothing behind it.
        assert requests == len(used) - 2
