"""How often the log says what others can cause at will: a few times a minute, and then a number."""

from __future__ import annotations

import trio

#: Lines (with their tracebacks) of one key in MINUTE. A person reads no more, and a peer that
#: causes one with each frame would otherwise fill gigabytes a day.
LINES = 10
MINUTE = 60.0  # seconds

#: Keys that are remembered. They name a VM or a kind of client and what it did, of which there are
#: some hundreds; over the bound all are forgotten, which costs LINES more of each.
KEYS_MAX = 1024


class Throttle:
    """Counts what is said about each key, so that one peer takes no other one's lines away."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, int]] = {}  # since when, and how often since

    def more(self, key: str) -> str | None:
        """What to put behind a line about `key`: "", or how many were left out before it. None:
        leave it out, too. Needs trio's clock."""
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


#: Of this process.
throttle = Throttle()
