"""Limits log lines that others can cause at will: a few a minute, and then a count."""

from __future__ import annotations

import trio

#: Lines (with their tracebacks) of one key in MINUTE. A person reads no more, and a peer that
#: causes one with each frame would otherwise fill gigabytes a day.
LINES = 10
MINUTE = 60.0  # seconds

#: Keys that are remembered. A key names a VM or a kind of client and what it did; there are some
#: hundreds. Beyond the bound all are forgotten, which costs LINES more of each.
KEYS_MAX = 1024


class Throttle:
    """Counts lines per key, so that one peer does not use up another one's lines."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, int]] = {}  # the minute's begin, and the count

    def more(self, key: str) -> str | None:
        """What to append to a line about `key`: "", or how many were left out before it. None:
        leave the line out, too. Needs trio's clock."""
        now = trio.current_time()
        since, count = self._counts.get(key, (now, 0))
        left_out = max(0, count - LINES)
        if now - since >= MINUTE:
            since, count = now, 0
        else:
            left_out = 0
        if len(self._counts) >= KEYS_MAX and key not in self._counts:
            self._counts.clear()
        self._counts[key] = since, count + 1
        if count >= LINES:
            return None
        return f" ({left_out} more like it were left out)" if left_out else ""


#: The one of this process.
throttle = Throttle()
