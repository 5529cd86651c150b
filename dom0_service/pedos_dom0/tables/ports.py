"""The data channels: which domain listens for which, and on which port.

dom0 assigns the numbers, tells the one domain to listen for the other, and the other to connect;
they exchange the data themselves. The owner of a channel (such as a lease) opens it here and closes
it.
"""

from __future__ import annotations

from pedos_protocol.errors import CallError
from pedos_protocol.fields import DATA_PORT_FIRST
from pedos_protocol.frozen import frozen

PORT_LAST = 65535


@frozen
class Channel:
    """The domain `listener` listens on `port` for the domain `peer` and no other."""

    port: int
    listener: int
    peer: int


class Ports:
    """The open channels, by the id of each one's owner."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}
        self._last = DATA_PORT_FIRST - 1

    def next(self) -> int:
        """A port that no open channel has; CallError(quota) if there is none. Ports are not reused
        at once, so that a lingering end of a channel does not meet a new one."""
        used = {channel.port for channel in self._channels.values()}
        for _ in range(PORT_LAST - DATA_PORT_FIRST + 1):
            self._last = DATA_PORT_FIRST if self._last >= PORT_LAST else self._last + 1
            if self._last not in used:
                return self._last
        raise CallError("quota", "all data ports are in use")

    def open(self, owner: str, channel: Channel) -> None:
        """`owner` has this channel from now on, in place of an earlier one."""
        self._channels[owner] = channel

    def close(self, owner: str) -> None:
        """Its port can be assigned again. Fine if it has none."""
        self._channels.pop(owner, None)

    def of(self, owner: str) -> Channel | None:
        return self._channels.get(owner)
