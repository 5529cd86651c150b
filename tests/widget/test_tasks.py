"""The tasks of a window: what they raise is a sentence, and they end with it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import trio
import trio.testing
from pedos_cli.client import Unreachable
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_widget.qt import BINDING
from pedos_widget.tasks import Tasks

from tests.patience import PATIENCE

# A slot runs while trio waits for its sockets, in a thread: what it starts must not wait for those.
SLOTS = """
import sys
if {binding!r} == "PyQt6":
    sys.modules["PySide6"] = None
import trio
from pedos_widget import guest, qt
from pedos_widget.tasks import Tasks
application = qt.QtCore.QCoreApplication(sys.argv)
async def main():
    done = trio.Event()
    async def second():
        done.set()
    async def first():
        try:
            await trio.sleep_forever()
        finally:
            print("ended")
    async with trio.open_nursery() as nursery:
        tasks = Tasks(nursery.start_soon, print, lambda: None)
        scope = tasks.start(first)
        await trio.testing.wait_all_tasks_blocked()
        qt.QtCore.QTimer.singleShot(0, scope.cancel)
        qt.QtCore.QTimer.singleShot(10, lambda: tasks.start(second))
        await done.wait()
        qt.QtCore.QTimer.singleShot(0, tasks.close)
    print("over")
import trio.testing
guest.run(application, main)
"""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CallError("busy", "it is taken", {"hint": "qvm-ls"}), "it is taken (try: qvm-ls)"),
        (Unreachable("/x", "there is none"), "The service does not answer: there is none"),
        (
            RemoteProtocolError("no proper 'vms'"),
            "The service's answer cannot be understood: no proper 'vms'",
        ),
        (KeyError("x"), "Internal error: the log has more."),
    ],
)
async def test_what_a_task_raises_is_said_and_ends_nothing_else(
    nursery: trio.Nursery, error: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    tasks = Tasks(nursery.start_soon, told.append, lambda: told.append("ended"))

    async def fails() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    with caplog.at_level(logging.CRITICAL):
        tasks.start(fails)
        await trio.testing.wait_all_tasks_blocked()
    assert told == [said]
    tasks.close()
    await trio.testing.wait_all_tasks_blocked()
    assert told == [said]


async def test_a_window_that_is_closed_starts_nothing(nursery: trio.Nursery) -> None:
    ran: list[str] = []
    tasks = Tasks(nursery.start_soon, ran.append, lambda: ran.append("ended"))
    tasks.close()

    async def runs() -> None:
        await trio.lowlevel.checkpoint()
        ran.append("ran")

    tasks.start(runs)
    await trio.testing.wait_all_tasks_blocked()
    assert ran == []


async def test_a_window_is_told_that_the_program_ends() -> None:
    told: list[str] = []
    async with trio.open_nursery() as nursery:
        Tasks(nursery.start_soon, told.append, lambda: told.append("ended"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert told == ["ended"]


def test_a_slot_starts_and_ends_tasks_at_once() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SLOTS.format(binding=BINDING)],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen"},
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "ended\nover\n", "")
