"""How much one peer may send: a bucket of frames that fills again with time."""

from __future__ import annotations

import trio
from pedos_protocol.errors import RemoteProtocolError

#: Requests and notices a second that a peer may send in the long run, and how many at once before
#: that. A person or a script makes some tens; at the full rate a hostile VM takes about a tenth of
#: one processor. Answers do not count: there are never more of them than requests of ours.
FRAMES_PER_SECOND = 2000
FRAMES_BURST = 8000

#: The rate of a peer that is trusted: of dom0's service for an agent, and in benchmarks.
NO_LIMIT = 1e9

#: Bytes that count as one frame more, answers too: reading a frame of 64 KiB costs some hundred
#: times what reading a short one does.
BYTES_PER_FRAME = 256


class Quota:
    """One peer's bucket; `rate` is in frames a second."""

    __slots__ = ("_left", "_rate", "_since")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._left = float(FRAMES_BURST)
        self._since = trio.current_time()

    def spend(self, frames: float) -> None:
        """Takes so much out; RemoteProtocolError if it is not there.

        The bucket is refilled only when it is empty: so the clock is read once per burst, not once
        per frame.
        """
        self._left -= frames
        if self._left < 0:
            now = trio.current_time()
            refill = (now - self._since) * self._rate
            self._left = min(self._left + refill, FRAMES_BURST)
            self._since = now
            if self._left < 0:
                raise RemoteProtocolError(
                    f"flood: it sends more than {self._rate:g} requests and notices a second "
                    f"({BYTES_PER_FRAME} bytes count as one)"
                )
