"""The existing devices: the union of the connected agents' reports.

Agents' reports are the only source and replace each other whole; the registry never calls a VM. Who
follows it is told at once which devices have changed, and looks at them when it has time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import trio
from pedos_protocol.frozen import frozen
from pedos_protocol.messages import Device, Missing

from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.tables.device_set import (
    DeviceKey as DeviceKey,  # noqa: PLC0414 - it is named by this module's users
)
from pedos_dom0.tables.device_set import DeviceSet

# Changes that are put in order for people who watch: the arrival or death of an agent that has many
# devices would take a tenth of a second.
ORDERED_MAX = 256


@frozen
class Changes:
    """The changes of one report, each in order of the keys, unless there are very many."""

    added: tuple[DeviceKey, ...] = ()
    removed: tuple[DeviceKey, ...] = ()
    changed: tuple[DeviceKey, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


class Registry:
    """The devices of all live agents."""

    def __init__(self) -> None:
        self._backends: dict[str, DeviceSet] = {}
        self._missing: dict[str, tuple[Missing, ...]] = {}
        self._reports = 0
        self._since: dict[DeviceKey, int] = {}
        self._followers: list[Callable[[Sequence[DeviceKey]], None]] = []
        self._waiting = trio.lowlevel.ParkingLot()

    def replace(
        self,
        backend: str,
        devices: DeviceSet | Sequence[Device],
        missing: tuple[Missing, ...] = (),
    ) -> Changes:
        """Replaces an agent's report: its devices, and which ones it has beside them."""
        before = self.devices_of(backend)
        if not isinstance(devices, DeviceSet):
            devices = DeviceSet.of(backend, devices, before)
        self._backends[backend], self._missing[backend] = devices, missing
        if not devices and not missing:
            del self._backends[backend], self._missing[backend]
        old, new = before.by_name, devices.by_name
        changes = Changes(
            added=_in_order([new[name][0] for name in new.keys() - old.keys()]),
            removed=_in_order([old[name][0] for name in old.keys() - new.keys()]),
            # What is equal is the same object.
            changed=_in_order([new[n][0] for n, e in old.items() if new.get(n, e)[1] is not e[1]]),
        )
        self._reports += 1
        for key in changes.removed:
            self._since.pop(key, None)
        for key in changes.added:
            self._since[key] = self._reports
        if changes:
            # Removed devices first, as their successors come after them.
            self._announce((*changes.removed, *changes.added, *changes.changed))
        return changes

    def remove_backend(self, backend: str) -> Changes:
        """Its agent is gone, and so are all its devices."""
        return self.replace(backend, ())

    def touch(self, key: DeviceKey) -> None:
        """Announces a change beside the device: who has it, or is to have it."""
        self._announce((key,))

    def get(self, key: DeviceKey) -> Device | None:
        return self.devices_of(key.backend).get(key.device_class, key.device)

    def by_any_name(self, key: DeviceKey) -> DeviceKey:
        """The key of the device that a person calls so, by id or by alias; `key` if none is."""
        if self.get(key) is not None:
            return key
        return self.devices_of(key.backend).called(key.device_class, key.device) or key

    def since(self, key: DeviceKey) -> int | None:
        """A number that changes when the device was absent; None if it is absent now."""
        return self._since.get(key)

    def lasting_identity(self, key: DeviceKey) -> str | None:
        """The part of its identity that an assignment can be to; None if the device is absent."""
        device = self.get(key)
        if device is None:
            return None
        return class_of(key.device_class).lasting_identity(device.identity)

    def items(self, device_class: str | None = None) -> list[tuple[DeviceKey, Device]]:
        """All devices (of a class), ordered by class, backend and id."""
        found = [
            (key, device)
            for devices in self._backends.values()
            for key, device in devices.by_name.values()
            if device_class in (None, key.device_class)
        ]
        return sorted(found, key=lambda item: item[0])

    def backends(self) -> list[str]:
        """The VMs that have devices, or report that they have more."""
        return [*self._backends]

    def devices_of(self, backend: str) -> DeviceSet:
        """The devices of one VM, as an immutable set."""
        return self._backends.get(backend) or DeviceSet(backend)

    def missing(self, backend: str, device_class: str) -> Missing | None:
        """The devices of a class that the VM has and does not report; None if it reports all."""
        found = (each for each in self._missing.get(backend, ()))
        return next((each for each in found if each.device_class == device_class), None)

    def family(self, key: DeviceKey) -> set[DeviceKey]:
        """The devices that hold the same data: `key`, the device that it is a part of, its parts,
        and those that share data with it or one of its parts.

        Two partitions of one disk are not of one family. Parents and shares come from the backend's
        agent, so they may form a circle or lead nowhere, and only one of two devices may report
        them.
        """
        names = self.devices_of(key.backend).family((key.device_class, key.device))
        return {DeviceKey(device_class, key.backend, device) for device_class, device in names}

    def relatives(self, key: DeviceKey) -> set[DeviceKey]:
        """Its family, and the devices whose families it is in: none of them can be lent beside
        it."""
        names = self.devices_of(key.backend).relatives((key.device_class, key.device))
        return {DeviceKey(device_class, key.backend, device) for device_class, device in names}

    def follow(self, follower: Callable[[Sequence[DeviceKey]], None]) -> None:
        """Calls `follower` with the keys of each change, once the registry shows it."""
        self._followers.append(follower)

    async def changed(self) -> None:
        """Returns after the next change."""
        await self._waiting.park()

    def __iter__(self) -> Iterator[DeviceKey]:
        return iter([key for key, _ in self.items()])

    def _announce(self, keys: Sequence[DeviceKey]) -> None:
        for follower in self._followers:
            follower(keys)
        self._waiting.unpark_all()


def _in_order(keys: Sequence[DeviceKey]) -> tuple[DeviceKey, ...]:
    return tuple(keys) if len(keys) > ORDERED_MAX else tuple(sorted(keys))
