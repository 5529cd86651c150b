"""What one agent says of the devices that it lends and that are listened to.

Reports and notices tell the same, and a report may be looked at later than a notice that was sent
after it: its rate is limited. `mark` is taken when a report arrives, and what has changed since
then is not undone by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from pedos_protocol.frozen import frozen

from pedos_dom0.device_classes.registered import class_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pedos_protocol.messages import ExportState


@frozen
class Heard:
    """An export as its agent has it: the target gets silence; somebody there records."""

    muted: bool
    listening: bool = False


class HeardTable:
    """Those of one connection, by attachment: no more than the agent has exports."""

    __slots__ = ("_at", "_count", "_of")

    def __init__(self) -> None:
        self._of: dict[str, Heard] = {}
        self._at: dict[str, int] = {}  # the count at the last change beside reports
        self._count = 0

    def get(self, attachment: str) -> Heard | None:
        """None if the agent has not said it yet."""
        return self._of.get(attachment)

    def mark(self) -> int:
        """The present, for `reported`."""
        return self._count

    def started(self, attachment: str, *, muted: bool) -> None:
        """The agent has begun to lend it."""
        self._set(attachment, Heard(muted))

    def was_muted(self, attachment: str, muted: bool) -> None:
        """The agent has confirmed that the target gets silence, or what there is to hear."""
        known = self._of.get(attachment) or Heard(muted)
        self._set(attachment, attrs.evolve(known, muted=muted))

    def says_listening(self, attachment: str, listening: bool) -> bool:
        """A notice; False if it is nothing new, or about what the agent was not known to lend."""
        known = self._of.get(attachment)
        if known is None or known.listening == listening:
            return False
        self._set(attachment, attrs.evolve(known, listening=listening))
        return True

    def reported(self, exports: Iterable[ExportState], mark: int) -> list[str]:
        """A whole report, which arrived at that mark; returns the attachments of which it says
        something else about who listens."""
        later = {each for each, at in self._at.items() if at > mark}
        before, self._of = self._of, {each: self._of[each] for each in later}
        self._at = {each: self._at[each] for each in later}
        for export in exports:
            if export.attachment not in later and class_of(export.device_class).description.heard:
                self._of[export.attachment] = Heard(export.muted, export.listening)
        return [
            each
            for each, heard in self._of.items()
            if heard.listening != (each in before and before[each].listening)
        ]

    def _set(self, attachment: str, heard: Heard) -> None:
        self._count += 1
        self._at[attachment] = self._count
        self._of[attachment] = heard
