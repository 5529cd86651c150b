"""A command that waits longer than a second prints on a terminal what it waits for, and Ctrl-C
prints what continues without it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from pedos_cli import client, output, qvm_device, qvm_shutdown, qvm_start, run, waiting
from pedos_protocol.messages import Step

if TYPE_CHECKING:
    from conftest import FakeService

STARTED = {"domid": 3, "attached": []}
Notify = Callable[[str, dict[str, Any]], None]


class Screen:
    """Standard error, a terminal: its lines, for which the service can wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        monkeypatch.setattr(run, "complain", self.write)
        monkeypatch.setattr(output, "complain", self.write)
        monkeypatch.setattr(waiting.sys.stderr, "isatty", lambda: True)
        monkeypatch.setattr(client, "LONG", 0.01)

    def write(self, line: str) -> None:
        with self._changed:
            self.lines.append(line)
            self._changed.notify_all()

    def wait_for(self, line: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: line in self.lines, timeout=10), self.lines


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    return Screen(monkeypatch)


def step(step: str, vm: str = "work", device: str = "") -> dict[str, Any]:
    return {"request": "r", "step": step, "vm": vm, "device": device}


def test_a_start_says_made_disks_agent(service: FakeService, screen: Screen) -> None:
    def before(notify: Notify) -> None:
        notify("operation.step", step("make"))
        screen.wait_for("qvm-start: waiting for work to be made ...")
        notify("operation.step", step("attach", "work", "sys-usb:sda"))
        notify("operation.step", step("attach", "work", "sys-usb:sda"))
        screen.wait_for("qvm-start: waiting for the toolstack to attach sys-usb:sda to work ...")
        notify("operation.step", step("boot"))
        screen.wait_for("qvm-start: waiting for work to boot, and its agent to connect ...")

    service.replies["vm.start"] = STARTED
    service.before_answer = before
    assert qvm_start.main(["work"]) == 0
    steps = [line for line in screen.lines if "the start of work" not in line]  # if it is slow
    assert len(steps) == 3  # one line a step


def test_of_a_service_that_says_nothing_the_command_says_what_it_knows(
    service: FakeService, screen: Screen
) -> None:
    said = "qvm-device: waiting for the attach of sys-usb:sda to work ..."
    service.replies["device.attach"] = {"outcome": "attached", "options": {}, "vm": "work"}
    service.before_answer = lambda notify: screen.wait_for(said) if not screen.lines else None
    assert qvm_device.main(["block", "attach", "work", "sys-usb:sda"]) == 0
    assert screen.lines == [said]


def test_a_step_that_is_not_known_yet_is_no_error(service: FakeService, screen: Screen) -> None:
    def before(notify: Notify) -> None:
        notify("operation.step", step("levitate"))
        notify("operation.step", {"step": 5})
        screen.wait_for("qvm-shutdown: waiting for the shutdown of work ...")

    service.replies["vm.shutdown"] = {}
    service.before_answer = before
    assert qvm_shutdown.main(["work"]) == 0


@pytest.mark.parametrize(("quiet", "terminal"), [(["-q"], True), ([], False)])
def test_nothing_is_said_in_a_script_or_with_q(
    service: FakeService,
    screen: Screen,
    monkeypatch: pytest.MonkeyPatch,
    quiet: list[str],
    terminal: bool,
) -> None:
    told = threading.Event()

    class Wait(waiting.Wait):
        def told(self, step: Any, is_long: bool) -> None:
            super().told(step, is_long)
            told.set()

    monkeypatch.setattr(waiting, "Wait", Wait)
    monkeypatch.setattr(waiting.sys.stderr, "isatty", lambda: terminal)
    service.replies["vm.start"] = STARTED
    service.before_answer = lambda notify: (notify("operation.step", step("make")), told.wait(10))  # type: ignore[assignment, func-returns-value]
    assert qvm_start.main([*quiet, "work"]) == 0
    assert told.is_set()
    assert screen.lines == []


@pytest.mark.parametrize(
    ("main", "argv", "goes_on"),
    [
        (qvm_start.main, ["work"], "the start of work goes on without this command"),
        (qvm_shutdown.main, ["work"], "the shutdown of work goes on without this command"),
        (
            qvm_device.main,
            ["block", "attach", "work", "sys-usb:sda"],
            "the attach of sys-usb:sda to work goes on without this command",
        ),
        (
            qvm_device.main,
            ["block", "detach", "work"],
            "the detach of all block devices from work goes on without this command",
        ),
    ],
)
@pytest.mark.parametrize("last", [None, "attach", "answer"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_says_what_goes_on_without_it(
    service: FakeService,
    screen: Screen,
    monkeypatch: pytest.MonkeyPatch,
    main: Any,
    argv: list[str],
    goes_on: str,
    last: str | None,
    number: int,
) -> None:
    class Wait(waiting.Wait):
        def told(self, step: Any, is_long: bool) -> None:
            super().told(step, is_long)
            signal.raise_signal(number)

    monkeypatch.setattr(waiting, "Wait", Wait)
    if last is None:
        goes_on = f"a question to dom0's user is taken back; else {goes_on}"
        goes_on = goes_on.removesuffix(" without this command")
    else:
        # It is known at once, long before a person would be told.
        monkeypatch.setattr(client, "LONG", 60)
    if last == "answer":
        goes_on = "the question to dom0's user is taken back"
    service.leaves = False
    hold = threading.Event()

    def before(notify: Notify) -> None:
        if last is not None:
            notify("operation.step", step(last))
        hold.wait(10)

    service.before_answer = before
    assert main(argv) == 128 + number
    hold.set()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert f"interrupted: {goes_on}; to see how it ended: qvm-" in screen.lines[-1]


def test_every_step_has_a_sentence() -> None:
    assert waiting.STEPS.keys() == set(Step.__args__)  # type: ignore[attr-defined]
