"""Waits until new devices are identified: an agent lists a device before it can identify it.

A disk that was just plugged in is listed before udev has identified it; or a look at it failed, and
is repeated. A decision at that moment would be about another identity than the device has. So every
operation that gives a device to a VM waits for the identity, and refuses a device that stays
unidentified before dom0's user is asked about it. A leased device was identified when it was
decided about.
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

# udev looks at a new disk for some 30 ms, and for a second under emulation. Failed looks are
# repeated after 0.2, 0.4, 0.8 and 1.6 s. Longer delays have other causes.
KNOWN_TIMEOUT = 5.0


def unknown(state: State, key: DeviceKey) -> Device | None:
    """The device if its source cannot identify it now."""
    device = state.registry.get(key)
    if device is None or device.stale is None or state.leases.of_device(key):
        return None
    return device


async def wait_until_known(state: State, keys: Collection[DeviceKey]) -> None:
    """Returns when their sources can identify all of these devices, or time is up."""
    with trio.move_on_after(KNOWN_TIMEOUT):
        while waited_for := [key for key in keys if unknown(state, key) is not None]:
            progress.at("look", waited_for[0].backend, waited_for[0])
            await state.registry.changed()
