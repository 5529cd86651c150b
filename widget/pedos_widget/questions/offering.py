"""When this desktop offers to be asked: while a dialog can be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pedos_widget.questions.desk import QuestionDesk
    from pedos_widget.screen_lock import ScreenLock

    class Registry(Protocol):
        """The part of a Controller that this needs."""

        def ask_by(self, prompter: QuestionDesk | None) -> None: ...


def offer(desk: QuestionDesk, controller: Registry, lock: ScreenLock) -> None:
    """Registers `desk` as a prompter whenever the screen is not locked. Questions that are open
    when it is locked go to another prompter, a terminal elsewhere for example."""

    def changed(is_locked: bool) -> None:
        controller.ask_by(None if is_locked else desk)
        if is_locked:
            desk.hide()

    lock.on_change(changed)
    changed(lock.is_locked)
