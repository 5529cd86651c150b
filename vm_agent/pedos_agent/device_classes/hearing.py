"""Who hears a lent microphone, and who is not to: what dom0 is told of it and may change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs

from pedos_agent.system.revision import Revision


@attrs.define(eq=False)
class Hearing:
    """Of one export. `listening`: somebody in its target records now; `muted`: they get silence.

    `changed` is bumped when `listening` changes. `tell` carries a change of `muted` out, once the
    export has somebody to tell.
    """

    changed: Revision
    muted: bool
    listening: bool = False
    tell: Callable[[bool], Awaitable[None]] | None = None

    def now(self, listening: bool) -> None:
        """Somebody listens, or nobody does."""
        if listening != self.listening:
            self.listening = listening
            self.changed.bump()

    async def mute(self, muted: bool) -> None:
        """Returns when the target gets silence, or is over; and after an unmute at once. CallError
        if that cannot be; then it is as it was."""
        before, self.muted = self.muted, muted
        if self.tell is not None:
            told = False
            try:
                await self.tell(muted)
                told = True
            finally:
                if not told:
                    self.muted = before
