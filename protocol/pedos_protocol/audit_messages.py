"""The messages about the audit log: its last lines, for a window of dom0's user.

`messages` says which method carries which, and reads them all.
"""

# Annotations are read when these classes are prepared, so they are not postponed here.

from typing import Annotated

from .fields import RECORDS_MAX, AtMost, DeviceName, Record, RecordCount
from .frozen import frozen


@frozen
class AuditRecent:
    """Tell the last `count` lines of the audit log, or of those about `device` (SOURCE:ID)."""

    count: RecordCount
    device: DeviceName | None = None


@frozen
class AuditTold:
    """The lines, oldest first, each as it stands in the log: one JSON object.

    `more`: there are earlier ones, or there may be, because only so much of the log is looked at,
    and an answer is one frame.
    """

    lines: Annotated[tuple[Record, ...], AtMost(RECORDS_MAX)]
    more: bool
