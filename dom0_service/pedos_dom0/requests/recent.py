"""audit.recent: the last lines of the audit log, for a window of dom0's user."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pedos_host.system_errors import what_is_wrong
from pedos_protocol.codec import FRAME_MAX
from pedos_protocol.messages import AuditTold

from pedos_dom0.errors import failure
from pedos_dom0.requests.fitting import ENVELOPE_MAX

if TYPE_CHECKING:
    from pedos_dom0.access.callers import Caller
    from pedos_dom0.audit.queue import AuditQueue

# Requests that are served at once, of root and as many of dom0's desktop, each of which has a
# thread: a window asks one at a time, and a disk that hangs holds them all. No program of the
# desktop takes root's places.
READERS_MAX = 4
# Bytes of the lines; each needs three more than its text.
LINES_BYTES = FRAME_MAX - ENVELOPE_MAX


class Recent:
    """Serves audit.recent."""

    def __init__(self, audit: AuditQueue) -> None:
        self._audit = audit
        self._readers: Counter[str] = Counter()  # by the kind of the caller

    async def __call__(self, caller: Caller, count: int, device: str | None) -> AuditTold:
        """Raises CallError if the log cannot be read, or if too many read it."""
        kind = caller.kind.name
        if self._readers[kind] >= READERS_MAX:
            raise failure("busy", f"{READERS_MAX} programs read the audit log already")
        self._readers[kind] += 1
        try:
            found = await self._audit.recent(count, LINES_BYTES - 3 * count, device)
        except OSError as error:
            message = f"the audit log cannot be read: {what_is_wrong(error)}"
            raise failure("failed", message) from error
        finally:
            self._readers[kind] -= 1
        return AuditTold(lines=found.lines, more=found.more)
