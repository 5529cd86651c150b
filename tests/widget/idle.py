"""What would wake up a program in which nothing happens."""

from __future__ import annotations

import gc

import trio
from pedos_widget.qt import QtCore


def periodic_timers() -> list[QtCore.QTimer]:
    """The timers of Qt's that run, and do not end by themselves."""
    return [each for each in gc.get_objects() if isinstance(each, QtCore.QTimer) and _runs(each)]


def _runs(timer: QtCore.QTimer) -> bool:
    try:
        return timer.isActive() and not timer.isSingleShot()
    except RuntimeError:  # it has ended with the object that it belonged to
        return False


class Scheduled(trio.abc.Instrument):
    """The tasks that trio's loop wakes up, by their names; without those of a service."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if "FakeService" not in task.name:
            self.names.append(task.name)
