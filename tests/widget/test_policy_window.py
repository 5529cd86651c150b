"""The policy window: what it says of a decision, of a broken policy and of the audit log."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from pedos_protocol.errors import CallError, ProtocolError
from pedos_protocol.messages import (
    CallInfo,
    CallsListed,
    ExplainResult,
    PolicyErrorInfo,
    PolicyStatus,
    TraceStep,
    to_wire,
)
from pedos_widget.calls import vm_names
from pedos_widget.policy_window import editing, model, window
from pedos_widget.policy_window.window import PolicyWindow
from pedos_widget.qt import QtCore, QtWidgets
from pytestqt.qtbot import QtBot

from tests.widget.settings_service import Service, listed

ALLOWED = ExplainResult(
    verdict="allow",
    rule="30-user.policy:3",
    text="device.attach.usb +sys-usb:1-2 dom0 work allow",
    default=False,
    parameters={"read_only": "yes"},
    trace=(TraceStep("10-first.policy:1", "device.* * vault * deny", "the source is not vault"),),
    assigned="ask",
)
GOOD = PolicyStatus(ok=True, loaded_at="2026-01-02T03:04:05Z", rules=3, errors=(), files=2)
BROKEN = PolicyStatus(
    ok=False,
    loaded_at="2026-01-02T03:04:05Z",
    rules=3,
    errors=(
        PolicyErrorInfo(
            "/etc/pedos/policy.d/30-user.policy", 7, 5, "no such action", "allow, ask or deny",
            "a b \x1b c",
        ),
    ),
)  # fmt: skip
CALLS = tuple(
    CallInfo(
        call=f"{number:032x}", number=number, request="3f9c01ab77de", source="work", by="",
        target="vault", requested="vault", service=service, argument="+", user=None,
        state="running", seconds=75.0, stdin=999, stdout=2000, stderr=48,
    )
    for number, service in enumerate(("app.Open", "app.Sign"))
)  # fmt: skip
DECISION = {
    "time": "2026-01-02T03:04:05.678Z", "event": "decision", "request": "3f9c01ab77de",
    "caller": "dom0", "verb": "attach", "device_class": "usb", "device": "sys-usb:1-2",
    "vm": "work", "verdict": "deny", "rule": "30-user.policy:3",
}  # fmt: skip


def question(source: str = "dom0") -> model.Question:
    device = model.Choice("usb", "sys-usb", "1-2", "sys-usb:1-2, SanDisk Cruzer, usb")
    return model.Question("attach", device, "work", source)


def told(status: PolicyStatus) -> dict[str, Any]:
    return {"policy": to_wire(status), "troubles": []}


# The model


def test_a_decision_is_told_with_its_rule_and_every_rule_that_was_tried() -> None:
    assert model.explanation(question(), to_wire(ALLOWED)) == [
        "allow: attach sys-usb:1-2 -> work",
        "  rule: 30-user.policy:3   device.attach.usb +sys-usb:1-2 dom0 work allow",
        "  assigned: to work (ask)",
        "  with: read_only=yes",
        "  looked at: 10-first.policy:1   device.* * vault * deny  (the source is not vault)",
    ]
    lines = model.explanation(question("vault"), to_wire(ALLOWED))
    assert lines[0] == "allow: attach sys-usb:1-2 -> work (asked by vault)"


def test_a_broken_policy_is_told_with_its_place_its_line_and_its_correction() -> None:
    lines = model.status(told(BROKEN))
    assert lines[:3] == [
        "policy: in force since 2026-01-02T03:04:05Z, 3 rules of 0 files",
        "a newer policy was not taken, because of:",
        "  /etc/pedos/policy.d/30-user.policy:7:5: no such action",
    ]
    assert "\x1b" not in "".join(lines)
    assert lines[-1] == "    help: allow, ask or deny"
    assert lines[4].index("^") == lines[3].index("a b ") + 4


def test_the_audit_log_is_read_newest_first_and_a_torn_line_hides_no_other() -> None:
    later = {**DECISION, "time": "2026-01-02T03:05:05.678Z", "verdict": "allow"}
    lines = [json.dumps(DECISION), "{torn", json.dumps(["no", "record"]), json.dumps(later)]
    audit = model.audit({"lines": lines, "more": True})
    assert [line.cells[1:5] for line in audit.lines] == [
        ("3f9c01ab77de", "decision", "dom0", "allow"), ("3f9c01ab77de", "decision", "dom0", "deny"),
    ]  # fmt: skip
    assert "The policy denied it, by the rule 30-user.policy:3." in audit.lines[1].sentences
    assert audit.note == "2 lines cannot be read. There are earlier ones: qvm-audit shows them."
    assert model.audit({"lines": [], "more": False}).note == "There is none yet."


def test_hostile_records_are_escaped_and_an_answer_without_lines_is_refused() -> None:
    hostile = {**DECISION, "device": "x\x1b[2J\u202e<b>", "reason": "a\nb", "other": [{}]}
    (line,) = model.audit({"lines": [json.dumps(hostile)], "more": False}).lines
    text = "".join(line.cells) + line.sentences
    assert "\x1b" not in text and "\u202e" not in text and "a\nb" not in text
    with pytest.raises(ProtocolError):
        model.audit({"lines": [5], "more": False})
    with pytest.raises(ProtocolError):
        model.audit({"more": False})


def test_vms_are_in_natural_order_and_dom0_gets_no_device() -> None:
    names = [{"name": name} for name in ("vm10", "dom0", "vm2")]
    assert vm_names({"vms": names}) == ["vm2", "vm10"]


# Editing


def test_without_a_terminal_the_command_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert editing.terminal_command() is None
    assert editing.no_terminal().endswith("run: qvm-policy edit")


def test_the_terminal_is_started_by_a_list_of_arguments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    terminal = program(tmp_path, "x-terminal-emulator")
    monkeypatch.setenv("PATH", str(tmp_path))
    command = editing.terminal_command()
    assert command is not None
    assert command[:2] == [str(terminal), "-e"] and command[2] == sys.executable


def program(folder: Path, name: str, text: str = "exit 0") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("may_write", "has_sudo", "first"),
    [(True, True, "qvm-policy"), (False, True, "sudo"), (False, False, "qvm-policy")],
)
def test_who_may_not_write_the_policy_edits_it_by_sudo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, may_write: bool, has_sudo: bool, first: str
) -> None:
    if has_sudo:
        program(tmp_path, "sudo")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PEDOS_POLICY_PATH", f"/run/x:{tmp_path}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    access = os.access

    def no_root(path: Any, mode: int) -> bool:
        return may_write if mode == os.W_OK else access(path, mode)

    monkeypatch.setattr(os, "access", no_root)
    command = editing.edit_command()
    assert Path(command[0]).name == first and command[-2:] == ["qvm-policy", "edit"]


def test_a_terminal_stays_open_until_what_went_wrong_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program(tmp_path, "qvm-policy", "exit 3")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    asked = []
    monkeypatch.setattr("builtins.input", asked.append)
    assert editing.main() == 3 and "status 3" in asked[0]
    program(tmp_path, "qvm-policy", "exit 0")
    assert editing.main() == 0 and len(asked) == 1
    monkeypatch.setenv("PATH", "/nonexistent")
    assert editing.main() == 1
    assert "No such file" in capsys.readouterr().err


# The window


@pytest.fixture
def service() -> Service:
    made = Service()
    made.devices = [
        listed("sys-usb:1-2"), listed("dom0:00_1b.0", "pci", description="<b>Audio</b> &amp"),
    ]  # fmt: skip
    made.answers = {
        "device.explain": to_wire(ALLOWED),
        "service.status": told(GOOD),
        "audit.recent": {"lines": [json.dumps(DECISION)], "more": False},
        "call.list": to_wire(CallsListed(CALLS)),
        "call.end": {},
    }
    return made


class Desk:
    """An open window, and the tasks behind it."""

    def __init__(self, service: Service, nursery: trio.Nursery) -> None:
        self.service = service
        self.window = PolicyWindow(service, nursery.start_soon)  # type: ignore[arg-type]
        self.is_closed = False
        self.window.closed.connect(lambda: setattr(self, "is_closed", True))
        self.window.show()

    async def settle(self) -> None:
        """Until nothing is on its way."""
        await trio.testing.wait_all_tasks_blocked()
        QtWidgets.QApplication.processEvents()
        await trio.testing.wait_all_tasks_blocked()

    async def pick(self, combo: QtWidgets.QComboBox, text: str) -> None:
        combo.setCurrentIndex(next(i for i in range(combo.count()) if text in combo.itemText(i)))
        combo.activated.emit(combo.currentIndex())
        await self.settle()


@pytest.fixture
async def desk(
    service: Service, qtbot: QtBot, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Desk]:
    monkeypatch.setattr(window, "PAUSE_S", 0)
    made = Desk(service, nursery)
    await made.settle()
    yield made
    if not made.is_closed:
        made.window.close()
    await trio.testing.wait_all_tasks_blocked()


async def test_the_window_says_what_is_decided_and_why(desk: Desk) -> None:
    shown = desk.window
    assert shown.decision.toPlainText().startswith("allow: attach sys-usb:1-2 -> vault\n")
    assert [shown.vm.itemText(each) for each in range(shown.vm.count())] == [
        "sys-usb", "vault", "work",
    ]  # fmt: skip
    await desk.pick(shown.vm, "work")
    await desk.pick(shown.device, "00_1b.0")
    await desk.pick(shown.verb, "assign")
    await desk.pick(shown.source, "vault")
    assert desk.service.asked("device.explain")[-1] == {
        "verb": "assign", "device_class": "pci", "vm": "work", "backend": "dom0",
        "device": "00_1b.0", "source": "vault",
    }  # fmt: skip
    desk.service.refuse["device.explain"] = CallError("not_found", "no such device")
    await desk.pick(shown.verb, "detach")
    assert shown.decision.toPlainText() == "no such device"


async def test_a_policy_that_breaks_is_seen_and_the_choice_stays(desk: Desk) -> None:
    await desk.pick(desk.window.device, "00_1b.0")
    desk.service.answers["service.status"] = told(BROKEN)
    desk.service.change()
    await desk.settle()
    assert "30-user.policy:7:5: no such action" in desk.window.policy.toPlainText()
    assert desk.window.device.currentData().device == "00_1b.0"


async def test_the_last_lines_of_the_audit_log_are_shown_and_said_in_sentences(
    desk: Desk,
) -> None:
    shown = desk.window
    assert shown.audit.rowCount() == 1 and shown.sentences.toPlainText() == ""
    shown.audit.selectRow(0)
    assert "The policy denied it" in shown.sentences.toPlainText()
    later = {**DECISION, "time": "2026-01-02T03:05:05.678Z", "verdict": "allow"}
    desk.service.answers["audit.recent"] = {
        "lines": [json.dumps(DECISION), json.dumps(later)], "more": False,
    }  # fmt: skip
    desk.service.change()
    await desk.settle()
    assert shown.audit.rowCount() == 2  # and who reads the older one goes on reading it
    assert "The policy denied it" in shown.sentences.toPlainText()
    shown.only_device.click()
    await desk.settle()
    assert desk.service.asked("audit.recent")[-1] == {"count": 100, "device": "sys-usb:1-2"}
    desk.service.refuse["audit.recent"] = CallError("unknown_method", "it is of another version")
    shown.refresh_button.click()
    await desk.settle()
    assert shown.audit_note.text() == "it is of another version"


async def test_calls_that_run_are_shown_and_the_chosen_one_is_ended(desk: Desk) -> None:
    box = desk.window.calls
    assert [box.table.item(0, column).text() for column in range(box.table.columnCount())] == [
        "app.Open", "work", "vault", "runs", "1m 15s", "999", "2.0K",
    ]  # fmt: skip
    assert not box.end_button.isEnabled()
    box.table.selectRow(1)
    assert box.end_button.isEnabled()
    # The other one has ended: what is chosen stays chosen, wherever it stands now.
    desk.service.answers["call.list"] = to_wire(CallsListed(CALLS[1:]))
    desk.service.change()
    await desk.settle()
    assert box.chosen is not None and box.chosen.id == CALLS[1].call
    desk.service.answers["call.list"] = to_wire(CallsListed(()))
    box.end_button.click()
    await desk.settle()
    assert desk.service.asked("call.end") == [{"call": CALLS[1].call}]
    assert desk.window.status.text() == "Ended: work called vault: app.Sign"
    assert (box.table.rowCount(), box.note.text()) == (0, "No call runs.")
    assert not box.end_button.isEnabled()


async def test_a_call_that_cannot_be_ended_is_said_to_be_one(desk: Desk) -> None:
    desk.service.refuse["call.end"] = CallError("not_found", "no such call runs")
    desk.window.calls.table.selectRow(0)
    desk.window.calls.end_button.click()
    await desk.settle()
    assert desk.window.status.text() == "work called vault: app.Open: no such call runs"
    desk.service.change()  # which is no reason to take that away
    await desk.settle()
    assert desk.window.status.text() == "work called vault: app.Open: no such call runs"


async def test_a_service_that_knows_of_no_calls_shows_none(desk: Desk) -> None:
    desk.service.refuse["call.list"] = CallError("unknown_method", "it is of an older version")
    desk.service.change()
    await desk.settle()
    assert not desk.window.calls.isVisible()
    assert desk.window.audit.rowCount() == 1


async def test_calls_are_looked_at_again_while_the_window_is_in_front(
    desk: Desk, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_active = True
    monkeypatch.setattr(desk.window, "isActiveWindow", lambda: is_active)
    desk.window.changeEvent(QtCore.QEvent(QtCore.QEvent.Type.ActivationChange))
    await desk.settle()
    before = len(desk.service.asked("call.list"))
    await trio.sleep(window.CALLS_S * 3.5)
    assert len(desk.service.asked("call.list")) == before + 3
    is_active = False
    await trio.sleep(window.CALLS_S * 5)
    assert len(desk.service.asked("call.list")) <= before + 4


async def test_a_service_that_goes_away_leaves_what_was_said_and_says_so(desk: Desk) -> None:
    desk.service.view.connected, desk.service.view.status = False, "not connected"
    desk.service.change()
    await desk.settle()
    assert desk.window.status.text() == "not connected"
    assert desk.window.decision.toPlainText().startswith("allow")
    desk.service.view.connected = True
    desk.service.change()
    await desk.settle()
    assert desk.window.status.text() == ""


async def test_the_editor_is_opened_or_the_window_says_how_else(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    desk.window.edit_button.click()
    assert "no x-terminal-emulator here" in desk.window.status.text()
    program(tmp_path, "x-terminal-emulator")
    desk.window.edit_button.click()
    assert desk.window.status.text() == "The policy is open in a terminal."
    broken = tmp_path / "x-terminal-emulator"
    broken.write_text("#!/nonexistent\n")
    desk.window.edit_button.click()
    assert "cannot be started" in desk.window.status.text()


async def test_devices_to_choose_from_are_bounded_and_the_rest_is_counted(desk: Desk) -> None:
    desk.service.devices = [listed(f"sys-usb:2-{number}") for number in range(502)]
    desk.service.change()
    await desk.settle()
    assert desk.window.device.count() == 500
    assert desk.window.status.text().startswith("2 more devices are not in the list")


async def test_texts_are_plain_and_parts_have_names(desk: Desk) -> None:
    labels = desk.window.findChildren(QtWidgets.QLabel)
    assert {each.textFormat() for each in labels} == {QtCore.Qt.TextFormat.PlainText}
    assert "<b>Audio</b> &amp" in desk.window.device.itemText(1)
    kinds = (QtWidgets.QComboBox, QtWidgets.QTableWidget, QtWidgets.QPlainTextEdit)
    parts = [each for kind in kinds for each in desk.window.findChildren(kind)]
    assert len(parts) == 9 and [each for each in parts if not each.accessibleName()] == []


async def test_a_closed_window_asks_nothing_more(desk: Desk, qtbot: QtBot) -> None:
    qtbot.keyClick(desk.window, QtCore.Qt.Key.Key_Escape)
    await desk.settle()
    assert desk.is_closed
    before = len(desk.service.calls)
    desk.service.change()
    await desk.settle()
    assert len(desk.service.calls) == before


async def test_a_window_that_is_closed_is_told_of_no_change(desk: Desk) -> None:
    assert len(desk.service.changed) == 1
    desk.window.close()
    assert desk.service.changed == []


async def test_the_window_fits_on_a_small_screen_with_its_buttons(desk: Desk) -> None:
    shown, room = desk.window, desk.window.screen().availableSize()
    assert window.SIZE[1] > room.height()  # or this shows nothing
    assert shown.height() < room.height()
    assert shown.minimumSizeHint().height() < 600
    assert shown.rect().contains(shown.close_button.geometry())
    shown.resize(shown.width(), 860)  # high enough for the least of all parts: nothing scrolls
    QtWidgets.QApplication.processEvents()
    area = shown.findChild(QtWidgets.QScrollArea)
    assert area is not None
    assert area.verticalScrollBar().maximum() == 0
