"""trio as the guest of Qt's event loop: both run in the main thread, and neither waits for the
other.

A task of trio must not start a loop of Qt's (`exec()` of a dialog, a menu): trio would stand still
until it ends. Windows are shown with `open()`, `show()` and `popup()`, and answer by signals.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections import deque
from typing import TYPE_CHECKING

import trio

from .qt import QtCore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Any

logger = logging.getLogger(__name__)

#: Seconds in which the tasks end once they are cancelled. All of them wait for sockets or for a
#: thread that writes a small file; one that takes longer must not keep a session from ending.
END_S = 5.0

_STEP = QtCore.QEvent.Type(QtCore.QEvent.registerEventType())


class _Steps(QtCore.QObject):
    """Runs trio's steps, one for each event; any thread may post one.

    The events are empty and the steps wait here: an object of Python that travels in an event would
    have to be kept alive by hand.
    """

    def __init__(self) -> None:
        super().__init__()
        self._steps: deque[Callable[[], object]] = deque()
        self.failure: BaseException | None = None

    def post(self, step: Callable[[], object]) -> None:
        self._steps.append(step)
        QtCore.QCoreApplication.postEvent(self, QtCore.QEvent(_STEP))

    def event(self, event: QtCore.QEvent) -> bool:
        if int(event.type()) != int(_STEP):
            return super().event(event)
        try:
            self._steps.popleft()()
        except BaseException as error:  # must not go through C++: PyQt6 aborts, PySide6 prints it
            self.failure = self.failure or error
            QtCore.QCoreApplication.quit()
        return True


def run(application: QtCore.QCoreApplication, async_main: Callable[[], Awaitable[None]]) -> None:
    """Runs `async_main` and `application` until the first of them ends, or SIGINT or SIGTERM comes;
    both have ended then. Raises what `async_main` raises, as it is. What a slot of Qt's raises
    goes to the log."""
    # Unless a program says what to do then, PyQt6 ends it with a signal.
    before, sys.excepthook = sys.excepthook, _log_uncaught
    try:
        _run(application, async_main)
    finally:
        sys.excepthook = before


def _run(application: QtCore.QCoreApplication, async_main: Callable[[], Awaitable[None]]) -> None:
    steps = _Steps()
    outcomes: list[Any] = []
    scope = trio.CancelScope()
    token: trio.lowlevel.TrioToken | None = None

    async def main() -> None:
        nonlocal token
        token = trio.lowlevel.current_trio_token()
        await _until_signal(async_main, scope)

    def done(outcome: Any) -> None:
        outcomes.append(outcome)
        application.quit()

    trio.lowlevel.start_guest_run(
        main,
        run_sync_soon_threadsafe=steps.post,
        done_callback=done,
        strict_exception_groups=True,
    )
    application.exec()
    if not outcomes and steps.failure is None:
        # Qt was asked to quit: its loop goes on for as long as the tasks take to end.
        if token is not None:
            token.run_sync_soon(scope.cancel)
        else:
            scope.cancel()
        QtCore.QTimer.singleShot(round(END_S * 1000), application.quit)
        application.exec()
    if steps.failure is not None:
        raise steps.failure
    if not outcomes:
        logger.critical("some tasks have not ended within %g s of the request to quit", END_S)
        return
    outcomes[0].unwrap()


async def _until_signal(async_main: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    failure: Exception | None = None

    async def end_by_signal(
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                logger.info("%s: ending", signal.Signals(number).name)
                scope.cancel()
                # If a task does not end, Qt does, as after a request to quit.
                QtCore.QTimer.singleShot(round(END_S * 1000), QtCore.QCoreApplication.quit)

    with scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(end_by_signal)
            try:
                await async_main()
            except Exception as error:
                failure = error  # raised below, and not in a group
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    logger.error(
        "this was not foreseen, and may lack on the screen", exc_info=(kind, error, traceback)
    )
