"""device.watch: every change of a device from now on, as a notice."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, cast

from pedos_protocol.errors import LocalProtocolError
from pedos_protocol.messages import DeviceEvent, WatchStarted, to_wire

from pedos_dom0.errors import failure
from pedos_dom0.tables.registry import REMOVED

if TYPE_CHECKING:
    import trio
    from pedos_vchan.peer import Peer

    from pedos_dom0.requests.listing import Listing
    from pedos_dom0.tables.registry import Registry, Subscription

logger = logging.getLogger(__name__)

Kind = Literal["added", "removed", "changed", "gap"]

# A tray widget for every user of a machine, and some scripts. Each costs one listing per change.
WATCHERS_MAX = 32
# Bytes of events that may wait for a watcher before the next is held back: a few of the largest. So
# a slow reader gets a gap, when the registry has more for it than SUBSCRIPTION_MAX, and is not
# disconnected for exceeding the peer's own bound (OUT_MAX, sixteen of the largest frames).
WAITING_MAX = 256 * 1024


class Watch:
    """Serves device.watch."""

    def __init__(self, registry: Registry, listing: Listing) -> None:
        self._registry = registry
        self._listing = listing
        self._watchers = 0

    async def start(self, peer: Peer, background: trio.Nursery) -> WatchStarted:
        """Sends events to `peer` until its connection, whose nursery `background` is, ends."""
        if self._watchers >= WATCHERS_MAX:
            raise failure("quota", f"{WATCHERS_MAX} clients watch already")
        # There is no checkpoint between the subscription and the answer, which is therefore sent
        # before the first event.
        subscription = self._registry.subscribe()
        self._watchers += 1
        background.start_soon(self._feed, peer, subscription)
        return WatchStarted(revision=self._registry.revision)

    async def _feed(self, peer: Peer, subscription: Subscription) -> None:
        try:
            with subscription:
                while True:
                    # Taken before the next event is sent, so that the event shows the state at that
                    # time.
                    await peer.drained(WAITING_MAX)
                    revision, kind, key = await anext(subscription)
                    if key is None:
                        event = DeviceEvent(revision=revision, kind="gap", device=None)
                    else:
                        device = self._listing.listed(key)
                        used = device.present or device.attachments or device.assignments
                        event = DeviceEvent(
                            revision=revision,
                            kind=cast("Kind", kind if used else REMOVED),
                            device=device,
                        )
                    await peer.notify("device.event", to_wire(event))
        except StopAsyncIteration:
            pass  # the subscription was closed
        except LocalProtocolError as error:
            logger.error("a watcher is given up: %s", error)
            peer.close()
        finally:
            self._watchers -= 1
