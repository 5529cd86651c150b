"""How a question in a window ends without an answer, and what it leaves as it was."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from pedos_cli.prompt_waiting import ARMING_AFTER_WITHDRAWAL_S, QUESTIONS_MAX
from pedos_protocol.errors import CallError
from pedos_widget.menu.devices_menu import Menu
from pedos_widget.qt import QtCore, QtWidgets
from pedos_widget.questions import beside, dialog
from pedos_widget.questions.beside import FRAME, free_place
from pedos_widget.questions.desk import FAREWELL_S
from pytestqt.qtbot import QtBot

from tests.asked_question import ASK
from tests.patience import PATIENCE
from tests.widget.pointing import approach, click, entry_of, place_of
from tests.widget.question_table import CALL, Key, Table, labels
from tests.widget.recording_controller import RecordingController, device_row


@pytest.fixture
async def table(qtbot: QtBot, nursery: trio.Nursery) -> Table:
    await trio.lowlevel.checkpoint()
    return Table(qtbot, nursery)


async def test_time_that_is_up_is_an_error_and_not_a_no(table: Table) -> None:
    await table.ask()
    table.wait(30.5)
    assert table.dialog.time_left.text() == "30 seconds left"
    table.wait(29.5)
    assert await table.ended() == ["timeout"]
    assert "no answer came in time" in table.dialog.state.text()
    table.wait(FAREWELL_S)
    assert not table.dialog.isVisible()


async def test_time_passes_without_anybody_doing_anything(table: Table) -> None:
    """The timer is started for the moment at which something changes, and not before."""
    await table.ask()
    assert table.desk._timer.isActive()
    assert table.desk._timer.interval() <= 1000
    table.desk.hide()
    assert not table.desk._timer.isActive()


async def test_the_callers_deadline_counts_if_it_is_earlier(
    table: Table, mock_clock: trio.testing.MockClock
) -> None:
    async def ask() -> None:
        with trio.move_on_after(5):
            await table.desk.ask("prompt.ask", ASK)

    table.nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    assert table.dialog.time_left.text() == "5 seconds left"
    mock_clock.jump(5)
    await trio.testing.wait_all_tasks_blocked()
    assert "whoever asked does not wait any more" in table.dialog.state.text()


async def test_a_question_that_is_withdrawn_says_why_and_goes_away(table: Table) -> None:
    await table.ask(default="vault")
    table.arm()
    table.desk.cancel("another", "a reason")
    assert table.dialog.state.text() == ""
    table.desk.cancel(ASK["request"], "the command that asked has <b>ended</b>")
    assert await table.ended() == ["timeout"]
    assert "Withdrawn: the command that asked has <b>ended</b>." in table.dialog.state.text()
    assert not table.dialog.allow.isEnabled()
    assert not table.dialog.deny.isEnabled()
    table.wait(FAREWELL_S - 0.01)
    assert table.dialog.isVisible()
    table.wait(0.01)
    assert not table.dialog.isVisible()
    assert not table.desk._timer.isActive()


async def test_what_was_withdrawn_can_be_closed_at_once_and_asks_nothing(table: Table) -> None:
    await table.ask()
    table.activate()
    table.desk.cancel(ASK["request"], "it has ended")
    table.press(Key.Key_Escape)
    assert not table.dialog.isVisible()
    assert await table.ended() == ["timeout"]


async def test_a_question_that_comes_in_place_of_a_withdrawn_one_says_so(table: Table) -> None:
    await table.ask()
    table.desk.cancel(ASK["request"], "it has ended")
    await table.ask(request="2")
    assert "The one before was withdrawn: it has ended." in "".join(labels(table.dialog))
    assert "Withdrawn" not in table.dialog.state.text()
    table.desk.hide()
    assert not table.dialog.isVisible()
    await table.ask(request="3")
    assert not any("before was withdrawn" in each for each in labels(table.dialog))


async def test_a_question_closes_no_menu_and_comes_beside_it(table: Table) -> None:
    menu = QtWidgets.QMenu()
    table.qtbot.addWidget(menu)
    menu.addAction("an entry")
    menu.popup(QtCore.QPoint(20, 20))
    table.qtbot.waitExposed(menu)
    await table.ask()
    assert menu.isVisible()
    assert table.dialog.isVisible()
    assert not table.dialog.geometry().intersects(menu.geometry())
    menu.close()
    assert not menu.isVisible()


def test_where_there_is_no_room_the_place_is_left_to_the_desktop() -> None:
    rect, size = QtCore.QRect, QtCore.QSize(300, 300)
    room = rect(0, 30, 1280, 870)
    place = free_place(size, [rect(900, 30, 380, 600)], room)
    assert place is not None
    assert room.contains(rect(place, size))
    assert 900 - FRAME - size.width() == place.x()
    assert free_place(size, [rect(0, 30, 640, 870), rect(640, 30, 640, 870)], room) is None


async def test_after_a_withdrawn_question_the_next_is_armed_later(table: Table) -> None:
    await table.ask()
    await table.ask(default="work", request="2")
    table.arm()
    table.desk.cancel(ASK["request"], "the command that asked has ended")
    table.wait(ARMING_AFTER_WITHDRAWAL_S - 0.01)
    assert not table.dialog.allow.isEnabled()
    table.wait(0.01)
    assert table.dialog.allow.isEnabled()


async def test_a_caller_that_is_cancelled_takes_its_question_along(table: Table) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(table.desk.ask, "prompt.ask", ASK)
            await trio.testing.wait_all_tasks_blocked()
            assert table.dialog.isVisible()
            scope.cancel()
    assert "does not wait any more" in table.dialog.state.text()


async def test_all_questions_go_away_with_the_connection(table: Table) -> None:
    for number in range(3):
        await table.ask(request=str(number))
    table.desk.gone()
    assert await table.ended() == ["unavailable"] * 3
    assert "the connection to dom0's service has ended" in table.dialog.state.text()
    table.wait(FAREWELL_S)
    assert not table.dialog.isVisible()


async def test_a_program_that_is_to_quit_says_no_to_nothing(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And if another window keeps it from quitting, the question is there again."""
    await table.ask()
    await table.ask(request="2")
    table.arm()
    monkeypatch.setattr(dialog, "is_quitting", lambda: True)
    assert table.dialog.close()
    monkeypatch.undo()
    assert await table.ended() == []
    assert not table.dialog.isVisible()
    table.qtbot.waitUntil(table.dialog.isVisible, timeout=PATIENCE * 1000)
    assert not table.dialog.allow.isEnabled()
    table.press(Key.Key_Escape)
    assert await table.ended() == [{"verdict": "deny", "target": None}]


async def test_one_question_too_many_is_refused(table: Table) -> None:
    for _ in range(QUESTIONS_MAX + 1):
        await table.ask()
    assert await table.ended() == ["unavailable"]
    table.desk.gone()


@pytest.mark.parametrize(
    ("method", "wrong", "code"),
    [
        ("prompt.ask", {"candidates": []}, "usage"),
        ("prompt.ask", {"backend": "<b>"}, "usage"),
        ("prompt.ask", {"assigned": "sometimes"}, "usage"),
        ("prompt.call", {"argument": "photos"}, "usage"),
        ("prompt.other", {}, "unknown_method"),
    ],
)
async def test_what_is_no_question_is_refused_and_not_shown(
    table: Table, method: str, wrong: dict[str, object], code: str
) -> None:
    with pytest.raises(CallError) as caught:
        await table.desk.ask(method, {**(ASK if method == "prompt.ask" else CALL), **wrong})
    assert caught.value.code == code
    assert not table.dialog.isVisible()


async def test_a_click_on_a_question_that_lies_over_the_menu_chooses_nothing_in_it(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "free_place", lambda *_arguments: None)  # there is no room
    controller = RecordingController(device_row("sda"))
    menu = Menu(controller)
    table.qtbot.addWidget(menu)
    menu.popup_at(QtCore.QPoint(20, 20))
    table.qtbot.waitExposed(menu)
    [row] = menu._rows.values()
    submenu = row.vms
    approach(menu, row.entry)
    table.qtbot.waitUntil(submenu.isVisible, timeout=PATIENCE * 1000)
    place = place_of(submenu, entry_of(submenu, "work"))
    table.dialog.move(place - QtCore.QPoint(50, 50))
    await table.ask()
    assert QtWidgets.QApplication.topLevelAt(place) is table.dialog
    assert submenu.isVisible()
    click(submenu, place)
    assert controller.done == []
    assert not menu.isVisible()
    assert table.dialog.isVisible()
