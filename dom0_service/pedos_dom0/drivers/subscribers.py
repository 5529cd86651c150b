"""The subscribers of a driver's domain events."""

from __future__ import annotations

import trio

from pedos_dom0.drivers.base import DomainInfo

# A subscriber that is this many events behind has hung: a domain makes three events in its life. No
# later event repairs what it misses, so the whole service restarts.
EVENTS_MAX = 4096


class Subscribers:
    """Sends every change to each subscriber, in order, and never waits for one."""

    def __init__(self) -> None:
        self._channels: list[trio.MemorySendChannel[DomainInfo]] = []

    def add(self) -> trio.MemoryReceiveChannel[DomainInfo]:
        """A new subscription, from now on."""
        send, receive = trio.open_memory_channel[DomainInfo](EVENTS_MAX)
        self._channels.append(send)
        return receive

    def tell(self, domain: DomainInfo) -> bool:
        """False if one was EVENTS_MAX behind: its subscription has ended then."""
        kept_up = True
        for channel in list(self._channels):
            try:
                channel.send_nowait(domain)
            except trio.BrokenResourceError:
                self._channels.remove(channel)
            except trio.WouldBlock:
                # Its reader must notice the end.
                channel.close()
                self._channels.remove(channel)
                kept_up = False
        return kept_up

    def close(self) -> None:
        """Ends all subscriptions."""
        for channel in self._channels:
            channel.close()
