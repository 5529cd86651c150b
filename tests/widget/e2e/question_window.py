"""Programs for the test of the question's window, each with a window of its own:

`... question_window typing` writes down what is typed into it; `... question_window question` asks
one question of dom0 and says what came of it.
"""

from __future__ import annotations

import sys

import trio
from pedos_widget import guest
from pedos_widget.qt import QtWidgets
from pedos_widget.questions.desk import QuestionDesk

from tests.asked_question import ASK

QUESTION = {**ASK, "default": "work", "timeout_s": 300}


def say(word: str) -> None:
    print(word, flush=True)


def typing(application: QtWidgets.QApplication) -> None:
    field = QtWidgets.QLineEdit()
    field.textChanged.connect(lambda text: say(f"typed: {text}"))
    field.resize(400, 40)
    field.show()
    guest.run(application, trio.sleep_forever)


def question(application: QtWidgets.QApplication) -> None:
    application.setQuitOnLastWindowClosed(False)
    desk = QuestionDesk(clock=lambda: 0.0)  # it is never armed, however slow the test is
    desk.dialog.activated.connect(lambda active: say("in front" if active else "behind"))

    async def ask() -> None:
        answer = await desk.ask("prompt.ask", QUESTION)
        say(f"answer: {answer['verdict']} {answer['target']}")

    guest.run(application, ask)


def main() -> None:
    """The window's class on the screen is the first argument."""
    name = sys.argv[1]
    {"typing": typing, "question": question}[name](QtWidgets.QApplication([name]))


if __name__ == "__main__":
    main()
