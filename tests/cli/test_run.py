"""How programs end: every error has a sentence and a status, and nothing ends in a traceback."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pedos_cli import client, device_list, output
from pedos_cli import run as run_module
from pedos_cli.qvm_device import main
from pedos_protocol.codec import FRAME_MAX
from pedos_protocol.errors import CODES, EXIT_STATUS, CallError, LocalProtocolError

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
    assert lines[:2] == [f"qvm-device: {code.replace('_', ' ')}: it is so", "  try:  qvm-ls"]
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
    monkeypatch.setattr(run_module, "HYPERVISOR", str(tmp_path))
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
    """Makes Ctrl-C work in programs that are started here: one that was itself started in the
    background by a shell ignores it, and hands that down."""
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
    assert all(" " <= char <= "~" for char in shown)
    assert output.show(shown, len(shown)) == shown
    assert output.show("a" * 600) == "a" * 509 + "..."
    assert len(output.show("\x00" * 512)) == 512
    assert output.show("sys-usb:sda \\ 'x'") == "sys-usb:sda \\ 'x'"


def test_a_standard_error_that_is_gone_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    assert main(["floppy"]) == 2
