"""The window of dom0's questions: what it shows, and above all what does not answer it."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from pedos_cli.prompt_waiting import ARMING_AFTER_WITHDRAWAL_S
from pedos_widget.qt import QtCore, QtGui, QtWidgets
from pedos_widget.questions.desk import ARMING_S, NO_AFTER_S
from pedos_widget.questions.texts import ElidedLabel, WholeLabel
from pytestqt.qtbot import QtBot

from tests.widget.question_table import Key, Table, labels


@pytest.fixture
async def table(qtbot: QtBot, nursery: trio.Nursery) -> Table:
    await trio.lowlevel.checkpoint()
    return Table(qtbot, nursery)


# What is shown


async def test_a_question_shows_who_asks_for_what_and_every_choice(table: Table) -> None:
    await table.ask()
    shown = labels(table.dialog)
    assert "work asks to attach a device" in shown
    assert {"Kind", "Device", "Identity", "Says it is", "Size", "Access", "Request"} <= set(shown)
    assert {"block device", "sys-usb:sda", "0781:5581:4C53", "64.0 MiB", "read-only"} <= set(shown)
    choices = table.dialog.choices
    assert [choices.item(row).text() for row in range(choices.count())] == ["work", "vault"]
    assert table.dialog.time_left.text() == "60 seconds left"


async def test_a_question_about_a_call_shows_service_and_argument_whole(table: Table) -> None:
    argument = "+" + "w" * 400 + "<b>&"
    await table.ask("prompt.call", argument=argument)
    assert "work asks to call a service" in labels(table.dialog)
    wholes: list[WholeLabel] = table.dialog.findChildren(WholeLabel)
    assert [each.whole for each in wholes] == [argument, "demo.Backup"]
    long = wholes[0]
    table.qtbot.waitUntil(lambda: long.height() >= long.heightForWidth(long.width()))
    line = long.fontMetrics().height()
    assert long.height() > 3 * line  # it does not fit one line of the window


async def test_an_assignment_that_asks_is_named_as_such(table: Table) -> None:
    await table.ask(assigned="ask")
    assert "An assignment in mode “ask” asks to attach a device" in labels(table.dialog)


async def test_nothing_is_chosen_but_what_the_rule_chose(table: Table) -> None:
    await table.ask()
    assert table.dialog.chosen is None
    table.desk.gone()
    await table.ask(default="vault")
    assert table.dialog.chosen == "vault"
    assert table.dialog.choices.item(1).text() == "vault (the rule's default)"


async def test_a_window_that_appears_does_not_take_the_keyboard(table: Table) -> None:
    attribute = QtCore.Qt.WidgetAttribute.WA_ShowWithoutActivating
    assert table.dialog.testAttribute(attribute)
    assert table.dialog.windowFlags() & QtCore.Qt.WindowType.WindowStaysOnTopHint
    await table.ask()
    assert table.dialog.isVisible()
    for button in (table.dialog.allow, table.dialog.deny):
        assert not button.isDefault()
        assert not button.autoDefault()


HOSTILE = "<b>bold</b><img src='http://x/'> &amp; &Allow"


async def test_texts_from_outside_are_shown_as_they_are(table: Table) -> None:
    await table.ask("prompt.call", service=HOSTILE.replace(" ", ""), argument="+<b>&Deny</b>")
    texts: list[QtWidgets.QLabel] = table.dialog.findChildren(QtWidgets.QLabel)
    assert texts
    for each in texts:
        assert each.textFormat() == QtCore.Qt.TextFormat.PlainText
        assert each.buddy() is None


def test_a_long_text_is_elided_in_its_middle_and_whole_in_the_tooltip(qtbot: QtBot) -> None:
    text = "begin " + "<i>x</i>" * 40 + " end"
    label = ElidedLabel(text)
    qtbot.addWidget(label)
    label.resize(200, 20)
    label.show()
    assert label.text().startswith("begin")
    assert label.text().endswith("end")
    assert "…" in label.text()
    assert "<i>" not in label.toolTip()
    assert "&lt;i&gt;" in label.toolTip()
    assert label.accessibleDescription() == text
    label.resize(label.fontMetrics().horizontalAdvance(text) + 10, 20)
    qtbot.waitUntil(lambda: label.text() == text)
    assert label.toolTip() == ""


async def test_a_text_that_is_wider_than_the_screen_does_not_make_the_window_so(
    table: Table,
) -> None:
    await table.ask(identity="x" * 256, description="W" * 128)
    assert table.dialog.width() <= 600
    table.qtbot.waitUntil(lambda: any("…" in text for text in labels(table.dialog)))


# What counts as an answer


async def test_a_person_chooses_a_vm_and_allows_it(table: Table) -> None:
    await table.ask()
    table.arm()
    table.choose(1)
    table.click(table.dialog.allow)
    assert await table.ended() == [{"verdict": "allow", "target": "vault"}]
    assert not table.dialog.isVisible()


async def test_the_button_denies(table: Table) -> None:
    await table.ask(default="vault")
    table.arm()
    table.click(table.dialog.deny)
    assert await table.ended() == [{"verdict": "deny", "target": None}]
    assert not table.dialog.isVisible()


@pytest.mark.parametrize("armed", [False, True])
async def test_escape_denies_at_any_time(table: Table, armed: bool) -> None:
    await table.ask()
    table.activate()
    if armed:
        table.wait(ARMING_S)
    table.press(Key.Key_Escape)
    assert await table.ended() == [{"verdict": "deny", "target": None}]


async def test_closing_the_window_denies(table: Table) -> None:
    await table.ask()
    table.dialog.close()
    assert await table.ended() == [{"verdict": "deny", "target": None}]
    assert not table.dialog.isVisible()


async def test_the_keyboard_alone_chooses_and_allows(table: Table) -> None:
    await table.ask()
    table.arm()
    table.press(Key.Key_Down)
    assert table.dialog.chosen == "work"
    table.press(Key.Key_Down)
    assert table.dialog.chosen == "vault"
    table.dialog.allow.setFocus()
    table.press(Key.Key_Space, widget=table.dialog.allow)
    assert await table.ended() == [{"verdict": "allow", "target": "vault"}]


@pytest.mark.parametrize("key", [Key.Key_Return, Key.Key_Enter])
async def test_return_never_allows(table: Table, key: Key) -> None:
    await table.ask(default="vault")
    table.arm()
    assert table.dialog.allow.isEnabled()
    for widget in (table.dialog.choices, table.dialog.allow, table.dialog.deny, table.dialog):
        widget.setFocus()
        table.press(key, widget=widget)
    assert await table.ended() == []
    assert table.dialog.isVisible()


async def test_without_a_choice_it_cannot_be_allowed(table: Table) -> None:
    await table.ask()
    table.arm()
    assert not table.dialog.allow.isEnabled()
    assert table.dialog.state.text() == "Choose a VM to allow it."
    table.dialog.allow.click()
    assert await table.ended() == []


# What does not


async def test_it_is_armed_a_second_after_the_window_got_the_keyboard(table: Table) -> None:
    await table.ask(default="vault")
    table.wait(10)
    assert not table.dialog.allow.isEnabled()
    assert "Click here" in table.dialog.state.text()
    table.activate()
    table.wait(ARMING_S - 0.01)
    assert not table.dialog.allow.isEnabled()
    table.dialog.allow.click()
    table.wait(0.01)
    assert table.dialog.allow.isEnabled()
    assert await table.ended() == []


async def test_every_key_before_that_restarts_the_second_and_does_nothing_else(
    table: Table,
) -> None:
    await table.ask()
    table.activate()
    for key in (Key.Key_V, Key.Key_Down, Key.Key_Space, Key.Key_Tab, Key.Key_Return):
        table.wait(0.9)
        table.press(key)
    assert table.dialog.chosen is None
    assert table.dialog.choices.hasFocus()
    table.wait(0.9)
    assert not table.desk._waiting.is_armed
    table.wait(0.1)
    assert table.desk._waiting.is_armed
    assert await table.ended() == []


async def test_a_shortcut_before_that_does_nothing(table: Table) -> None:
    await table.ask()
    table.activate()
    for key in (Key.Key_D, Key.Key_A):
        table.qtbot.keyClick(table.dialog.choices, key, QtCore.Qt.KeyboardModifier.AltModifier)
        override = QtGui.QKeyEvent(
            QtCore.QEvent.Type.ShortcutOverride, key, QtCore.Qt.KeyboardModifier.AltModifier
        )
        override.ignore()
        QtWidgets.QApplication.sendEvent(table.dialog.choices, override)
        assert override.isAccepted()  # so that Qt looks for no shortcut
    assert await table.ended() == []


async def test_a_click_before_that_restarts_the_second(table: Table) -> None:
    await table.ask(default="vault")
    table.activate()
    table.wait(0.9)
    table.click(table.dialog.allow)
    table.wait(0.9)
    table.click(table.dialog.allow)
    assert await table.ended() == []
    table.wait(ARMING_S)
    table.click(table.dialog.allow)
    assert await table.ended() == [{"verdict": "allow", "target": "vault"}]


async def test_another_window_with_the_keyboard_disarms(table: Table) -> None:
    await table.ask(default="vault")
    table.arm()
    assert table.dialog.allow.isEnabled()
    table.deactivate()
    assert not table.dialog.allow.isEnabled()
    table.wait(10)
    assert not table.dialog.allow.isEnabled()
    table.arm()
    assert table.dialog.allow.isEnabled()


async def test_the_next_question_is_not_answered_by_the_click_on_the_one_before(
    table: Table,
) -> None:
    await table.ask(default="vault")
    await table.ask(default="work", request="2")
    table.arm()
    assert table.dialog.others.text() == "1 more question waits"
    table.click(table.dialog.allow)
    table.click(table.dialog.allow)
    table.wait(ARMING_S - 0.01)
    table.click(table.dialog.allow)
    assert await table.ended() == [{"verdict": "allow", "target": "vault"}]
    assert table.dialog.isVisible()
    assert not table.dialog.others.isVisible()
    table.wait(ARMING_S)
    table.click(table.dialog.allow)
    assert (await table.ended())[1:] == [{"verdict": "allow", "target": "work"}]


async def test_the_next_question_is_not_denied_by_a_double_click_on_the_one_before(
    table: Table,
) -> None:
    await table.ask()
    await table.ask(request="2")
    table.arm()
    table.click(table.dialog.deny)
    table.click(table.dialog.deny)
    table.wait(NO_AFTER_S - 0.01)
    table.press(Key.Key_Escape)
    assert await table.ended() == [{"verdict": "deny", "target": None}]
    assert table.dialog.isVisible()
    table.wait(0.02)
    table.click(table.dialog.deny)
    assert await table.ended() == [{"verdict": "deny", "target": None}] * 2


@pytest.mark.parametrize("button", ["allow", "deny"])
async def test_a_button_that_is_held_answers_no_question_that_comes_meanwhile(
    table: Table, button: str
) -> None:
    await table.ask(default="vault", request="1")
    table.arm()
    held: QtWidgets.QPushButton = getattr(table.dialog, button)
    left, place = QtCore.Qt.MouseButton.LeftButton, held.rect().center()
    table.qtbot.mousePress(held, left, pos=place)
    await table.ask(default="vault", request="2")
    table.desk.cancel("1", "it ended")
    table.wait(ARMING_AFTER_WITHDRAWAL_S)
    assert table.dialog.allow.isEnabled()
    there, kind = QtCore.QPointF(place), QtCore.QEvent.Type.MouseMove
    none, no_key = QtCore.Qt.MouseButton.NoButton, QtCore.Qt.KeyboardModifier.NoModifier
    moves = QtGui.QMouseEvent(kind, there, held.mapToGlobal(there), none, left, no_key)
    QtWidgets.QApplication.sendEvent(held, moves)
    table.qtbot.mouseRelease(held, left, pos=place)
    assert await table.ended() == ["timeout"]
    assert not held.isDown()
    table.wait(ARMING_AFTER_WITHDRAWAL_S)
    table.click(held)
    assert len(await table.ended()) == 2


async def test_escape_that_is_held_down_denies_one_question(table: Table) -> None:
    await table.ask()
    await table.ask(request="2")
    table.activate()
    table.press(Key.Key_Escape)
    table.wait(NO_AFTER_S)
    kind, none = QtCore.QEvent.Type.KeyPress, QtCore.Qt.KeyboardModifier.NoModifier
    held = QtGui.QKeyEvent(kind, Key.Key_Escape.value, none, "", True)
    QtWidgets.QApplication.sendEvent(table.dialog.choices, held)
    assert await table.ended() == [{"verdict": "deny", "target": None}]
