"""Completion: what a Tab offers, and how the shell is told."""

from __future__ import annotations

import os
import pty
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pedos_cli import qvm_device, qvm_ls, qvm_policy
from pedos_cli.completion import candidates
from pedos_host.plain_unix import short_path
from pedos_protocol.errors import CallError

if TYPE_CHECKING:
    from conftest import FakeService

FILES = Path(__file__).parents[2] / "cli" / "completions"
SCRIPT = FILES / "qvm-device.bash"
PATIENCE_S = 60  # a shell starts in a moment, on a machine with other work in some
STICK = "0781:5567:4C53"
VERBS = ["list", "info", "attach", "detach", "assign", "unassign", "explain", "watch"]
READY = b"ready to complete"
SHELLS = {
    "bash": (["bash", "--norc", "-i"], f". '{SCRIPT}'"),
    "zsh": (
        ["zsh", "-f", "-i"],
        f"fpath=('{FILES}' $fpath); autoload -U compinit; compinit -u -D",
    ),
    "fish": (["fish", "--no-config"], f"source '{FILES}/qvm-device.fish'"),
}
"""How each shell is started without its user's own settings, and what it reads at first."""


@pytest.fixture
def devices(service: FakeService, listed: Callable[..., dict[str, Any]]) -> FakeService:
    attachments = [{"vm": "work", "options": {}}]
    service.replies["device.list"] = {
        "devices": [
            listed("sys-usb:sda10", attachments=attachments),
            listed("sys-usb:sda2", identity="0781:5567:4C53"),
            listed("sys-usb:$(reboot)"),
        ],
        "policy": None,
    }
    service.replies["device.assignments"] = {
        "assignments": [
            {"vm": "work", "backend": "sys-usb", "device": device, "identity": identity}
            for device, identity in (
                ("sda2", ""), ("sda3", "0781:5567:4C53"), (None, "0781:5567:4C53"), ("$(x)", ""),
                ("sda4", "$(reboot)"),
            )
        ],
        "policy": None,
    }  # fmt: skip
    service.replies["vm.list"] = {
        "vms": [
            {"name": name, "state": "Halted", "domid": None, "agent": False}
            for name in ("work", "sys-usb", "a b")
        ]
    }
    return service


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("", ["block", "usb", "pci", "mic", "watch"]),
        ("-v", ["block", "usb", "pci", "mic", "watch"]),
        ("watch", ["block", "usb", "pci", "mic"]),
        ("watch usb", []),
        ("block", VERBS),
        ("mic", [*VERBS[:6], "mute", "unmute", *VERBS[6:]]),
        ("mic mute", ["sys-usb", "work"]),
        ("mic unmute work", []),
        ("block list", ["sys-usb", "work"]),
        ("block list work", ["sys-usb", "work"]),
        ("block info", ["sys-usb:sda2", "sys-usb:sda10"]),
        ("block i sys-usb:sda2", []),
        ("block list --all --exclude", ["sys-usb", "work"]),
        ("block list --all --exclude work", ["sys-usb", "work"]),
        ("block attach", ["sys-usb", "work"]),
        ("block a -p work", ["sys-usb:sda2", "sys-usb:sda10"]),
        ("block attach work -o read-only=yes", ["sys-usb:sda2", "sys-usb:sda10"]),
        ("block detach work", ["sys-usb:sda10"]),
        ("block detach vault", []),
        ("block detach work sys-usb:sda10", []),
        ("block assign", ["sys-usb", "work"]),
        ("block assign work", ["sys-usb:sda2", "sys-usb:sda10"]),
        ("block s --ask -o read-only=yes work", ["sys-usb:sda2", "sys-usb:sda10"]),
        (
            "block unassign work",
            ["sys-usb:sda2", "sys-usb:sda3:0781:5567:4C53", "sys-usb:*:0781:5567:4C53"],
        ),
        ("block unassign vault", []),
        ("block list -s", ["sys-usb", "work"]),
        ("block explain work sys-usb:sda --verb", ["list", "attach", "detach", "assign"]),
        ("floppy drive", []),
    ],
)
def test_what_could_come_next_is_offered(
    devices: FakeService, line: str, offered: list[str]
) -> None:
    assert candidates(qvm_device.build_parser(), line.split(), "") == offered


@pytest.mark.parametrize(
    ("action", "offered"),
    [
        ("attach", ["sys-usb:sda2:0781:5567:4C53"]),
        ("detach", []),  # work does not have it
        ("assign", ["sys-usb:sda2:0781:5567:4C53", "sys-usb:*:0781:5567:4C53"]),
    ],
)
def test_the_identities_of_present_devices_are_offered_behind_the_id(
    devices: FakeService, action: str, offered: list[str]
) -> None:
    parser = qvm_device.build_parser("block")
    assert candidates(parser, [action, "work"], "sys-usb:sda2:") == offered


def test_options_are_offered_after_a_hyphen() -> None:
    parser = qvm_device.build_parser("block")
    assert candidates(parser, ["attach"], "-") == [
        "--help", "--option", "--persistent", "--quiet", "--ro", "--verbose",
    ]  # fmt: skip
    assert candidates(parser, ["assign"], "--a") == [
        "--ask", "--ask-to-attach", "--auto", "--auto-attach", "--device", "--dry-run", "--help",
        "--only-device", "--only-port", "--option", "--port", "--quiet", "--required", "--ro",
        "--verbose",
    ]  # fmt: skip
    assert "read-only=yes" in candidates(parser, ["attach", "-o"], "")
    assert "frontend-dev=xvdi" in candidates(parser, ["attach", "-o"], "")


def test_the_options_of_a_command_without_a_class_are_offered_too() -> None:
    parser = qvm_device.build_parser()
    assert "--json" in candidates(parser, ["watch"], "--")
    assert "--list-device-classes" not in candidates(parser, ["watch"], "--")


def test_the_implied_class_is_the_one_that_is_asked_for(devices: FakeService) -> None:
    candidates(qvm_device.build_parser("usb"), ["attach", "work"], "")
    assert devices.asked("device.list")["device_class"] == "usb"


def test_the_other_programs_complete_too(devices: FakeService) -> None:
    assert candidates(qvm_ls.build_parser(), [], "") == ["sys-usb", "work"]
    assert candidates(qvm_policy.build_parser(), [], "") == list(qvm_policy.MODULES)


def test_without_a_service_nothing_is_offered(no_service: Path) -> None:
    assert candidates(qvm_device.build_parser(), ["block", "attach"], "") == []


def test_a_vm_that_may_not_list_vms_is_offered_nothing(service: FakeService) -> None:
    service.replies["device.assignments"] = {
        "assignments": [
            {"vm": "work", "backend": "sys-usb", "device": device, "identity": identity}
            for device, identity in (
                ("sda2", ""), ("sda3", "0781:5567:4C53"), (None, "0781:5567:4C53"), ("$(x)", ""),
                ("sda4", "$(reboot)"),
            )
        ],
        "policy": None,
    }  # fmt: skip
    service.replies["vm.list"] = CallError("unknown_method", "no method vm.list")
    assert candidates(qvm_device.build_parser(), ["block", "attach"], "") == []


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("qvm-block attach work sys-usb:sda1", b"sda10"),
        ("qvm-block attach work 'sys-usb:sda1", b"sys-usb:sda10"),
        ("qvm-block assign work 'sys-usb:*:0", b"sys-usb:*:0781:5567:4C53"),
    ],
)
def test_the_shell_reads_candidates_from_descriptor_8(
    devices: FakeService, line: str, offered: bytes
) -> None:
    reader, writer = os.pipe()
    code = (
        f"import os; os.dup2({writer}, 8)\n"
        "from pedos_cli.qvm_device import main_block\n"
        "raise SystemExit(main_block())"
    )
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line + " ignored",
        "COMP_POINT": str(len(line)),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment, pass_fds=[writer], capture_output=True, timeout=20, check=False,
    )  # fmt: skip
    os.close(writer)
    with open(reader, "rb") as answer:
        assert answer.read() == offered  # bash takes `sys-usb:` for a word of its own
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_tab_does_not_wait_for_a_service_that_hangs(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, short_path(tmp_path / "sock") as short:
        listener.bind(short)
        listener.listen()
        code = (
            "from pedos_cli import completion\n"
            f"completion.TIMEOUT_S, completion.DEADLINE_S = {2 * PATIENCE_S}, 0.1\n"
            "from pedos_cli.qvm_device import main\n"
            "raise SystemExit(main())"
        )
        line = "qvm-device block list "
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ, "PEDOS_SOCKET": str(tmp_path / "sock"), "_ARGCOMPLETE": "1",
                "COMP_LINE": line, "COMP_POINT": str(len(line)),
            },
            capture_output=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with qvm-device, for a shell's path."""
    program = tmp_path / "bin" / "qvm-device"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nfrom pedos_cli.qvm_device import main\nraise SystemExit(main())\n"
    )
    program.chmod(0o755)
    return program.parent


class Terminal:
    """A shell with a person in front of it."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], argv, env)
        self._shown = b""

    def types(self, keys: bytes) -> None:
        os.write(self._descriptor, keys)

    def until(self, text: bytes) -> None:
        """Returns once it shows `text`."""
        while text not in self._shown:
            assert self._read(), f"it ended after {self._shown!r}"

    def ended(self) -> bytes:
        """Everything that it showed, when it has ended."""
        while self._read():
            pass
        os.waitpid(self.pid, 0)
        os.close(self._descriptor)
        return self._shown

    def _read(self) -> bool:
        ready, _, _ = select.select([self._descriptor], [], [], PATIENCE_S)
        assert ready, f"nothing comes after {self._shown!r}"
        try:
            new = os.read(self._descriptor, 4096)
        except OSError:  # the shell has closed its side
            return False
        self._shown += new
        return bool(new)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_tab_in_a_real_shell_completes_what_the_service_has(
    devices: FakeService, program: Path, tmp_path: Path, shell: str
) -> None:
    argv, first = SHELLS[shell]
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{shell} is not installed here: apt-get install {shell}")
    env = {
        **os.environ, "PATH": f"{program}:{os.environ['PATH']}", "TERM": "dumb",
        "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path),
    }  # fmt: skip
    for method in ("device.attach", "device.assign"):
        devices.replies[method] = CallError("failed", "as far as this test goes")
    terminal = Terminal(argv, env)
    # What is typed is shown too, so the words that are waited for stand nowhere in it.
    terminal.types(first.encode() + b"; echo ready to 'complete'\n")
    terminal.until(READY)
    terminal.types(b"qvm-device bl\tatta\two\tsys-usb:sda1\t\n")
    terminal.types(b"qvm-device bl\tassi\two\tsys-usb:sda2:0\t\n")
    terminal.types(b"qvm-device bl\tassi\two\t'sys-usb:*:0\t\nexit\n")
    shown = terminal.ended()
    made = [
        (params["device"], params.get("identity"))
        for method, params in devices.calls
        if method in ("device.attach", "device.assign") and params["vm"] == "work"
    ]
    assert made == [("sda10", None), ("sda2", STICK), (None, STICK)], shown


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_bash_file_completes_a_device(devices: FakeService, program: Path) -> None:
    line = "qvm-device block attach work sys-usb:"
    script = (
        f'. "{SCRIPT}"\nCOMP_LINE="{line}" COMP_POINT={len(line)}\n'
        '_pedos_complete qvm-device\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, "PATH": f"{program}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["sda2", "sda10"]
