"""A menu that holds still: nothing in it moves while it is open, and typing searches it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

from pedos_widget.menu import style, texts
from pedos_widget.menu.query import Query
from pedos_widget.qt import QtCore, QtGui, QtWidgets

WIDTH_LEAST = 24
"""Characters of an entry's text at least, so that the hint about searching fits."""

WIDTH_MOST = 72
"""Characters of an entry's text at most; a longer one is elided."""

WHOLE = 40
"""Characters of a text that is never elided: a tooltip that repeats it would only cover others."""

SCREEN_SHARE = 0.45
"""Of the screen's width that one menu takes at most: its submenu has to stand beside it."""

INDENT = "    "
_NOT_TYPED = (
    QtCore.Qt.KeyboardModifier.ControlModifier
    | QtCore.Qt.KeyboardModifier.AltModifier
    | QtCore.Qt.KeyboardModifier.MetaModifier
)
_DISABLED = QtGui.QPalette.ColorGroup.Disabled
_TEXT_ROLES = (
    QtGui.QPalette.ColorRole.Text,
    QtGui.QPalette.ColorRole.WindowText,
    QtGui.QPalette.ColorRole.ButtonText,
)
_Key = QtCore.Qt.Key
_STEP = 120  # of a wheel, in Qt's unit


class Entry(QtGui.QAction):
    """An entry of a menu: `text()` is what a screen reader says, `shown` what stands there."""

    def __init__(self, parent: QtCore.QObject, shown: str = "", *, enabled: bool = True) -> None:
        super().__init__(parent)
        self.shown = ""
        self._said: tuple[object, ...] = ()
        self.searched: str | None = None  # casefolded; None: it stays, whatever is typed
        self.setEnabled(enabled)
        self.say(shown)

    def say(
        self, shown: str, *, spoken: str = "", detail: str = "", bold: bool = False, indent: int = 0
    ) -> None:
        """Show this text. `detail` is for the tooltip, which otherwise repeats a long text."""
        said = (shown, spoken, detail, bold, indent)
        if said == self._said:
            return
        self._said = said
        self.shown = INDENT * indent + texts.plain(shown)
        self.setText(texts.unmarked(spoken or shown))
        self.setToolTip(texts.tooltip(detail or (shown if len(shown) > WHOLE else "")))
        if bold != self.font().bold():
            font = self.font()
            font.setBold(bold)
            self.setFont(font)


class SteadyMenu(QtWidgets.QMenu):
    """What the menu of devices and its submenus have in common.

    The first entry is a greyed heading; a subclass says what it shows in `heading_text`.
    `on_input` is called at each key and each move, `on_pointer` with the pointer's place in here.
    """

    def __init__(
        self,
        parent: QtWidgets.QWidget | None,
        on_input: Callable[[], None],
        on_pointer: Callable[[QtCore.QPoint], None],
    ) -> None:
        style.install()
        super().__init__(parent)
        self.setToolTipsVisible(True)
        self.text_width = 0  # pixels; MenuStyle reads it
        self.query = Query()
        self._on_input = on_input
        self._on_pointer = on_pointer
        self._heading: Entry | None = None
        self._held: QtCore.QSize | None = None
        self._is_opening = False

    # What a subclass says.

    def heading_text(self) -> str:
        """What the first entry shows."""
        raise NotImplementedError

    # Entries.

    def entries(self) -> list[Entry]:
        """Every entry but separators."""
        return [each for each in self.actions() if isinstance(each, Entry)]

    def begin(self, keep: Container[QtGui.QAction] = ()) -> None:
        """Remove everything, and put the heading there. What is in `keep` may be added again."""
        for action in self.actions():
            self.removeAction(action)
            if action not in keep:
                action.deleteLater()  # later: this may be on behalf of one of them
        self.query.clear()
        self._heading = self.add(Entry(self, enabled=False))
        self.say_heading()

    def add(self, entry: Entry) -> Entry:
        """Add an entry at the end."""
        self.addAction(entry)
        return entry

    def say_heading(self) -> None:
        """Show the heading as it is now."""
        if self._heading is not None:
            self._heading.say(self.heading_text())

    def settle_width(self, reserve: int = 0) -> None:
        """Choose the width of all entries, which stays until the next call. `reserve` is in
        characters, for what may be added to a text while the menu is open."""
        metrics = self.fontMetrics()
        one = max(1, metrics.averageCharWidth())
        most = WIDTH_MOST * one
        if (screen := self.screen()) is not None:
            most = min(most, int(screen.availableGeometry().width() * SCREEN_SHARE))
        bold = QtGui.QFont(self.font())
        bold.setBold(True)
        metrics = QtGui.QFontMetrics(bold)
        widest = max((metrics.horizontalAdvance(each.shown) for each in self.entries()), default=0)
        self.text_width = max(WIDTH_LEAST * one, min(most, widest + reserve * one))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lay the entries out once, at the end: by itself the menu does it after each change, for
        all of them."""
        if not self.isVisible() or self._held is not None:
            yield
            return
        self._held = self.size()
        try:
            yield
        finally:
            before, self._held = self._held, None
            size = self.sizeHint()
            if self._lies_left():  # its right edge is the one at the menu that it belongs to
                self.move(self.x() + before.width() - size.width(), self.y())
            self.resize(size)

    def _lies_left(self) -> bool:
        """Is this the submenu of one that is to the right of it, where there was more room?"""
        of = self.parentWidget()
        return isinstance(of, QtWidgets.QMenu) and of.isVisible() and self.x() < of.x()

    def add_if_it_fits(self, entries: list[QtGui.QAction]) -> bool:
        """Add entries at the end of the open menu, where they move nothing; False if the screen
        ends before."""
        for each in entries:
            self.addAction(each)
        if super().sizeHint().height() <= self._room_below():
            return True
        for each in entries:
            self.removeAction(each)
        return False

    def back_onto_screen(self) -> None:
        """The open menu has been filled anew: let all of it be on the screen."""
        screen = self.screen()
        if screen is None:
            return
        room = screen.availableGeometry()
        size = super().sizeHint().boundedTo(room.size())
        x = min(self.x(), room.right() + 1 - size.width())
        y = min(self.y(), room.bottom() + 1 - size.height())
        self.move(max(room.left(), x), max(room.top(), y))
        self.resize(size)

    # Searching.

    def search(self) -> None:
        """The query has changed: show what fits it, from the beginning."""
        with self.held():
            self.show_found()
            self.say_heading()
            # An active entry would have its submenu opened, which then takes the keys.
            self.setActiveAction(None)  # type: ignore[arg-type]
        if self.isVisible():
            self._lay_out_anew()

    def _lay_out_anew(self) -> None:
        """Only when it opens, a menu finds out whether it scrolls. The arrows of a long one would
        lie over entries when all that are left fit, and be missing when they do not any more."""
        place = self.pos()
        self._is_opening = True
        with QtCore.QSignalBlocker(self):
            self.popup(place)
        self._is_opening = False
        self.move(place)

    def show_found(self) -> None:
        """Show the entries that fit the query, and no heading of a section without any. What is
        not searched, such as a note, is in the way meanwhile."""
        is_searching = bool(self.query.text)
        section: QtGui.QAction | None = None
        for action in self.actions():
            if not isinstance(action, Entry):
                section = action
                _show(action, not is_searching)
            elif action.searched is None:
                _show(action, action is self._heading or not is_searching)
            else:
                fits = self.query.fits(action.searched)
                _show(action, fits)
                if fits and section is not None:
                    _show(section, True)

    @property
    def found(self) -> int:
        """How many entries fit the query."""
        return sum(each.searched is not None and each.isVisible() for each in self.entries())

    # Qt's events.

    def initStyleOption(self, option: Any, action: Any) -> None:  # noqa: N802
        super().initStyleOption(option, action)
        if isinstance(action, Entry):
            elided = option.fontMetrics.elidedText(
                action.shown, QtCore.Qt.TextElideMode.ElideMiddle, self.text_width
            )
            option.text = elided.replace("&", "&&")
            if not action.isEnabled():
                palette = QtGui.QPalette(option.palette)
                for role in _TEXT_ROLES:
                    palette.setColor(_DISABLED, role, style.greyed(palette))
                option.palette = palette

    def sizeHint(self) -> Any:  # noqa: N802
        if self._held is not None:
            return self._held
        hint = super().sizeHint()
        if self.isVisible() and not self._is_opening:
            # It scrolls; Qt would have it leave the screen when an entry changes.
            hint.setHeight(min(hint.height(), self._room_below()))
        return hint

    def _room_below(self) -> int:
        """Pixels from the top of the open menu to the end of the screen."""
        screen = self.screen()
        bottom = self.geometry().bottom() if screen is None else screen.availableGeometry().bottom()
        return int(bottom + 1 - self.y())

    def keyPressEvent(self, event: Any) -> None:  # noqa: N802
        self._on_input()
        key = event.key()
        if (
            (key == _Key.Key_Escape and self.query.clear())
            or (key == _Key.Key_Backspace and self.query.erase())
            or (not event.modifiers() & _NOT_TYPED and self.query.type(event.text()))
        ):
            event.accept()
            self.search()
            return
        super().keyPressEvent(event)
        if key in (_Key.Key_Up, _Key.Key_Down) and self.activeAction() is self._heading:
            super().keyPressEvent(event)  # the heading is this menu's name, said when it opened

    def mouseMoveEvent(self, event: Any) -> None:  # noqa: N802
        self._on_input()
        place = event.position().toPoint()
        is_here = self.rect().contains(place)
        if is_here:
            self._on_pointer(place)
        if is_here and self._is_on_its_way(place):
            event.accept()
        else:
            super().mouseMoveEvent(event)

    def _is_on_its_way(self, place: QtCore.QPoint) -> bool:
        """Is the pointer on another entry than the one whose submenu is open?

        The style's hints alone do not do: on the last pixel of an entry Qt takes the next one to be
        meant, and opens its submenu.
        """
        active = self.activeAction()
        submenu = active.menu() if active is not None else None
        is_open = isinstance(submenu, QtWidgets.QMenu) and submenu.isVisible()
        return is_open and self.actionAt(place) is not active

    def mousePressEvent(self, event: Any) -> None:  # noqa: N802
        self._on_input()
        if _is_covered(event):
            self._close_all()
        else:
            super().mousePressEvent(event)

    def mouseReleaseEvent(self, event: Any) -> None:  # noqa: N802
        if not _is_covered(event):
            super().mouseReleaseEvent(event)

    def _close_all(self) -> None:
        menu = self
        while isinstance(below := menu.parent(), SteadyMenu):
            menu = below
        menu.close()

    def wheelEvent(self, event: Any) -> None:  # noqa: N802
        self._on_input()
        place = event.position().toPoint()
        below = self.parent()
        if self.rect().contains(place):
            super().wheelEvent(event)
            self._on_pointer(place)  # which is on another entry now
        elif isinstance(below, SteadyMenu):
            # The menu that was opened last gets all turns of the wheel, and this one is not meant.
            self.hide()
            below.wheelEvent(_moved(event, below))

    def mark_in_place(self, action: QtGui.QAction, place: QtCore.QPoint) -> None:
        """Let the entry at this place be the active one. Qt scrolls a long menu to an entry that is
        made so, and then the pointer would be on another one: it is scrolled back."""
        self.setActiveAction(action)
        for _row in self.actions():
            entry = self.actionGeometry(action)
            if entry.top() <= place.y() <= entry.bottom():
                break
            super().wheelEvent(_turn(self, place, down=entry.top() > place.y()))
        submenu = action.menu()
        if isinstance(submenu, SteadyMenu) and submenu.isVisible():
            submenu.move(submenu.x(), self.mapToGlobal(self.actionGeometry(action).topLeft()).y())
            submenu.back_onto_screen()

    def paintEvent(self, event: Any) -> None:  # noqa: N802
        super().paintEvent(event)
        active = self.activeAction()
        if active is not None and not active.isEnabled() and not active.isSeparator():
            # Styles mark no greyed entry, and the keyboard's user must see where it stands.
            painter = QtGui.QPainter(self)
            painter.setPen(self.palette().color(QtGui.QPalette.ColorRole.Highlight))
            painter.drawRect(self.actionGeometry(active).adjusted(0, 0, -1, -1))
            painter.end()


def _is_covered(event: Any) -> bool:
    """Is a window of this program, a question of dom0, above the menu there? An open menu gets all
    clicks, and would take one for what is below that window."""
    above = QtWidgets.QApplication.topLevelAt(event.globalPosition().toPoint())
    return above is not None and above.windowType() != QtCore.Qt.WindowType.Popup


def _moved(event: Any, widget: QtWidgets.QWidget) -> QtGui.QWheelEvent:
    """The same turn of the wheel, as this widget is told of it."""
    place = event.globalPosition()
    return QtGui.QWheelEvent(
        QtCore.QPointF(widget.mapFromGlobal(place.toPoint())), place, event.pixelDelta(),
        event.angleDelta(), event.buttons(), event.modifiers(), event.phase(), event.inverted(),
    )  # fmt: skip


def _turn(widget: QtWidgets.QWidget, place: QtCore.QPoint, *, down: bool) -> QtGui.QWheelEvent:
    """One step of the wheel."""
    return QtGui.QWheelEvent(
        QtCore.QPointF(place), QtCore.QPointF(widget.mapToGlobal(place)), QtCore.QPoint(),
        QtCore.QPoint(0, -_STEP if down else _STEP), QtCore.Qt.MouseButton.NoButton,
        QtCore.Qt.KeyboardModifier.NoModifier, QtCore.Qt.ScrollPhase.NoScrollPhase, False,
    )  # fmt: skip


def _show(action: QtGui.QAction, visible: bool) -> None:
    if action.isVisible() != visible:
        action.setVisible(visible)
