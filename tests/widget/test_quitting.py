"""Windows learn whether a person closes them or the program is to quit: with each binding to Qt."""

from __future__ import annotations

from tests.patience import PATIENCE
from tests.widget.test_guest import binding, start

__all__ = ["binding"]  # a fixture

APPLICATION = """
from pedos_widget.quitting import Application, is_quitting
application = Application(["test"])
"""
SCRIPT = """
class Window(qt.QtWidgets.QWidget):
    def closeEvent(self, event):
        print("quitting" if is_quitting() else "closed")
        event.setAccepted(self.may_close)

window = Window()
window.may_close = False
window.show()
window.close()
qt.QtCore.QTimer.singleShot(0, application.quit)  # which the window prevents

def again():
    print("goes on" if not is_quitting() else "quits still")
    window.may_close = True
    application.quit()

qt.QtCore.QTimer.singleShot(50, again)
application.exec()
print("ended")
"""


def test_a_window_knows_why_it_is_closed(binding: str) -> None:
    process = start(binding, SCRIPT, APPLICATION)
    said, _errors = process.communicate(timeout=PATIENCE)
    assert said.split("\n") == ["closed", "quitting", "goes on", "quitting", "ended", ""]
    assert process.returncode == 0
