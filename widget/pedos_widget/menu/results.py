"""What became of the clicks, in words for the rows of their devices. No Qt."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pedos_widget.i18n import _
from pedos_widget.model.device_rows import BETWEEN, in_row

if TYPE_CHECKING:
    from pedos_widget.model.view import DeviceRef, DeviceRow, Result

RESULTS_MAX = 256
"""Devices of which a result is kept: more than fit in a menu; the oldest one goes."""

NAME_MAX = 20
"""Characters of a device's name before what became of it: less than a third of a menu's width."""

WORKING, DONE, DENIED = "working", "done", "denied"


class Results:
    """The latest result of each device, until it has been seen."""

    def __init__(self) -> None:
        self._latest: dict[DeviceRef, Result] = {}

    def take(self, result: Result) -> None:
        """Note it. What is done needs no words unless it was done in another way than asked: the
        row itself says who has the device."""
        self._latest.pop(result.ref, None)
        if result.state == DONE and not result.reason:
            return
        self._latest[result.ref] = result
        while len(self._latest) > RESULTS_MAX:
            self._latest.pop(next(iter(self._latest)))

    def seen(self) -> None:
        """Somebody has looked: forget what has ended, which would be old news the next time."""
        self._latest = {ref: each for ref, each in self._latest.items() if each.state == WORKING}

    def is_working(self, ref: DeviceRef) -> bool:
        """Is the device being attached or detached?"""
        latest = self._latest.get(ref)
        return latest is not None and latest.state == WORKING

    def words(self, ref: DeviceRef, *, short: bool = False) -> str:
        """Why the device was not attached or detached; "" if there is nothing to say, also while it
        is being done, which the row itself says. `short` is for a row, which is elided in the
        middle: a long reason would leave nothing of what has failed."""
        latest = self._latest.get(ref)
        if latest is None or latest.state == WORKING:
            return ""
        return result_words(replace(latest, reason=in_row(latest.reason)) if short else latest)


def result_words(result: Result) -> str:
    """What has ended, as a sentence."""
    attach = result.verb == "attach"
    if result.state == DONE:
        text = _("done: {reason}")
    elif result.state == DENIED:
        text = (
            _("denied: not attached to {vm}: {reason}")
            if attach
            else _("denied: not detached from {vm}: {reason}")
        )
    else:
        text = (
            _("not attached to {vm}: {reason}") if attach else _("not detached from {vm}: {reason}")
        )
    return text.format(vm=result.vm, reason=result.reason)


def row_with_result(text: str, words: str) -> str:
    """A device's row, and what became of the last click on it. A row is elided in the middle: of
    the device it then has the name alone, or the "not" would be what is left out."""
    if not words:
        return text
    name = text.split(BETWEEN, 1)[0]
    if len(name) > NAME_MAX:
        name = f"{name[: NAME_MAX // 2]}…{name[1 - NAME_MAX // 2 :]}"
    return with_result(name, words)


def with_result(text: str, words: str) -> str:
    """The same where there is room."""
    return _("{device} - {result}").format(device=text, result=words) if words else text


def gone_text(row: DeviceRow) -> str:
    """The row of a device that has gone while the menu is open."""
    return _("{device} - not there any more").format(device=row.text)
