"""How many whole lines of the audit log one author may have: a VM, or a user of dom0's desktop.

Lines about what was refused can be counted instead of written (throttle.py). Lines about what was
done cannot: who may have what, and who has had it, is what the log is for. So an author who has
used up its lines may give nothing to any VM for a while, and the log keeps what others did. Taking
away is always possible: what can be taken away was given before, and paid for. Each author begins
with some lines, and gets one back every LINE_SECONDS.

No I/O and no clock here.
"""

from __future__ import annotations

# Lines that an author may have at once. A device that is attached and detached again takes five:
# this is 400 devices in a row, which no person and hardly a script has, and 2 MiB of the log's 80.
LINES = 2048
# Seconds for one line more: 2,880 a day, which is far more than a desktop needs. An author who uses
# all of each kind (what it did, what it was refused, what it called), and has the rest summed up,
# fills the log in about two weeks.
LINE_SECONDS = 30.0
# Lines that may be owed: an operation that has begun writes what it has to, and one that detaches
# all of a class has many. What is owed beyond this is forgiven, so that an author waits for two
# hours at most.
OWED_MAX = 240


class Allowances:
    """What each author has used up; nothing is kept of one that has all its lines.

    Times are in seconds of any one clock.
    """

    def __init__(self) -> None:
        # By author, the time at which it will have all its lines again.
        self._whole_at: dict[str, float] = {}

    def spend(self, author: str, now: float) -> None:
        """One line of this author was written."""
        if author not in self._whole_at:
            self._whole_at = {each: at for each, at in self._whole_at.items() if at > now}
        at = max(self._whole_at.get(author, now), now) + LINE_SECONDS
        self._whole_at[author] = min(at, now + (LINES + OWED_MAX) * LINE_SECONDS)

    def wait(self, author: str, now: float) -> float:
        """Seconds until it has a line; 0 if it has one."""
        used = self._whole_at.get(author, now) - now
        return max(0.0, used - (LINES - 1) * LINE_SECONDS)
