"""How a menu with submenus reacts to the pointer, and how wide its entries are."""

from __future__ import annotations

from typing import Any

from pedos_widget.qt import QtCore, QtGui, QtWidgets

_Hint = QtWidgets.QStyle.StyleHint
_HINTS = {
    # On its way to an entry of a submenu, the pointer crosses other devices. By default the menu
    # opens the submenu of one of them when the pointer is slow, and the click then attaches that
    # device: 3 of 3 times in a way of 1.4 s.
    _Hint.SH_Menu_SubMenuSloppySelectOtherActions: 0,
    # Milliseconds after which the submenu closes, and another may open, however the pointer moves.
    # The menu itself does that when the pointer rests (`Menu`); this is as good as never.
    _Hint.SH_Menu_SubMenuSloppyCloseTimeout: 30_000,
    # By default, a menu that is higher than the screen gets columns beyond its edge.
    _Hint.SH_Menu_Scrollable: 1,
    # Some desktops act on a single click in a list. In the window, that would attach a device.
    _Hint.SH_ItemView_ActivateItemOnSingleClick: 0,
    # A greyed entry says why it is greyed: keyboard and screen reader must reach it.
    _Hint.SH_Menu_AllowActiveAndDisabled: 1,
}


GREYED = 0.6
"""How much of the text's colour is in what is greyed; the rest is the ground's. Themes take less,
for what need not be read. Here it says why it is greyed, and has to be."""


def greyed(palette: QtGui.QPalette) -> QtGui.QColor:
    """The colour of a text that is greyed, on the ground of lists and menus."""
    group, role = QtGui.QPalette.ColorGroup.Active, QtGui.QPalette.ColorRole
    text, ground = palette.color(group, role.Text), palette.color(group, role.Base)
    return QtGui.QColor(
        _between(text.red(), ground.red()),
        _between(text.green(), ground.green()),
        _between(text.blue(), ground.blue()),
    )


def _between(text: int, ground: int) -> int:
    return round(GREYED * text + (1 - GREYED) * ground)


class MenuStyle(QtWidgets.QProxyStyle):
    """The desktop's style, with other answers about menus."""

    def styleHint(  # noqa: N802 - Qt's name
        self,
        hint: Any,
        option: Any = None,
        widget: Any = None,
        returnData: Any = None,  # noqa: N803 - Qt's name
    ) -> int:
        answer = _HINTS.get(hint)
        return super().styleHint(hint, option, widget, returnData) if answer is None else answer

    def sizeFromContents(  # noqa: N802 - Qt's name
        self, kind: Any, option: Any, size: Any, widget: Any = None
    ) -> Any:
        if kind == QtWidgets.QStyle.ContentsType.CT_MenuItem and hasattr(widget, "text_width"):
            size = QtCore.QSize(widget.text_width, size.height())
        return super().sizeFromContents(kind, option, size, widget)


def install() -> None:
    """Make it the application's. A menu asks for its hints while it is constructed, so a style that
    it is given afterwards comes too late."""
    application = QtWidgets.QApplication.instance()
    assert isinstance(application, QtWidgets.QApplication)
    if not isinstance(application.style(), MenuStyle):
        application.setStyle(MenuStyle())
