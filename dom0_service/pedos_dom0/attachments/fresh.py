"""Waiting for what a VM has just got: its agent lists a device before it can tell what it is.

A disk that was plugged in this moment is there, and its udev has not said yet which one it is; or a
look at it failed, and is made again. What is decided about it then would be decided about another
identity than it has. So all that gives a device to a VM waits for that, and refuses what stays
unknown before dom0's user is asked about it. What has a lease was decided about when it was known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from pedos_dom0.tasks import progress

if TYPE_CHECKING:
    from collections.abc import Collection

    from pedos_protocol.messages import Device

    from pedos_dom0.state import State
    from pedos_dom0.tables.registry import DeviceKey

# udev looks at a new disk for some 30 ms, and for a second where all is emulated. Looks that failed
# are made again after 0.2, 0.4, 0.8 and 1.6 s. What takes longer has other troubles.
KNOWN_TIMEOUT = 5.0


def unknown(state: State, key: DeviceKey) -> Device | None:
    """The device if it is one of which its source cannot tell now what it is."""
    device = state.registry.get(key)
    if device is None or device.stale is None or state.leases.of_device(key):
        return None
    return device


async def wait_until_known(state: State, keys: Collection[DeviceKey]) -> None:
    """Returns when their sources can tell what all of these are, or do not in time."""
    with trio.move_on_after(KNOWN_TIMEOUT), state.registry.subscribe() as events:
        while waited_for := [key for key in keys if unknown(state, key) is not None]:
            progress.at("look", waited_for[0].backend, waited_for[0])
            await anext(events)
