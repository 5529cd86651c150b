"""Labels for texts from outside: plain text that is elided in the middle, or shown whole."""

from __future__ import annotations

from pedos_widget.menu.texts import tooltip
from pedos_widget.qt import QtCore, QtGui, QtWidgets

_WRAPPED = int(QtCore.Qt.AlignmentFlag.AlignLeft.value) | int(
    QtCore.Qt.TextFlag.TextWrapAnywhere.value
)
_TALLEST = 10_000  # pixels: no limit


class ElidedLabel(QtWidgets.QLabel):
    """One line of plain text, as much of its ends as there is room for. All of it is in the tooltip
    and in the accessible description."""

    def __init__(self, text: str, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self.whole = text
        self.setTextFormat(QtCore.Qt.TextFormat.PlainText)
        self.setTextInteractionFlags(QtCore.Qt.TextInteractionFlag.NoTextInteraction)
        policy = QtWidgets.QSizePolicy.Policy
        self.setSizePolicy(policy.Ignored, policy.Fixed)
        self.setAccessibleName(text)
        self.setAccessibleDescription(text)
        self.setText(text)

    def resizeEvent(self, event: QtGui.QResizeEvent) -> None:  # noqa: N802 - Qt's name
        super().resizeEvent(event)
        width = self.contentsRect().width()
        elided = self.fontMetrics().elidedText(
            self.whole, QtCore.Qt.TextElideMode.ElideMiddle, width
        )
        self.setText(elided)
        self.setToolTip("" if elided == self.whole else tooltip(self.whole))


class WholeLabel(QtWidgets.QWidget):
    """Plain text in as many lines as it takes, broken anywhere: nothing of it is ever hidden."""

    def __init__(self, text: str, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self.whole = text
        policy = QtWidgets.QSizePolicy(
            QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Minimum
        )
        policy.setHeightForWidth(True)
        self.setSizePolicy(policy)
        self.setAccessibleName(text)
        self.setAccessibleDescription(text)

    def hasHeightForWidth(self) -> bool:  # noqa: N802
        return True

    def heightForWidth(self, width: int) -> int:  # noqa: N802
        room = QtCore.QRect(0, 0, max(1, width), _TALLEST)
        return self.fontMetrics().boundingRect(room, _WRAPPED, self.whole).height()

    def minimumSizeHint(self) -> QtCore.QSize:  # noqa: N802
        return QtCore.QSize(1, self.heightForWidth(self.width()))

    def sizeHint(self) -> QtCore.QSize:  # noqa: N802
        return self.minimumSizeHint()

    def resizeEvent(self, event: QtGui.QResizeEvent) -> None:  # noqa: N802
        super().resizeEvent(event)
        self.updateGeometry()

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:  # noqa: N802
        painter = QtGui.QPainter(self)
        # As labels are, also while the window is not in front and some palettes grey everything.
        colours, roles = QtGui.QPalette.ColorGroup, QtGui.QPalette.ColorRole
        painter.setPen(self.palette().color(colours.Active, roles.WindowText))
        painter.drawText(self.rect(), _WRAPPED, self.whole)
        painter.end()
