"""The existing devices: the union of the connected agents' reports, with a revision.

Agents' reports are the only source and replace each other whole; the registry never calls a VM.
Every change of a device is one event with a number of its own. A client that reads a snapshot and
then the events has everything. A client that falls behind is not waited for: it gets one gap event
and takes a new snapshot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

import trio
from attrs import frozen
from pedos_protocol.messages import Device, Missing

from pedos_dom0.tables.device_set import (
    DeviceKey as DeviceKey,  # noqa: PLC0414 - it is named by this module's users
)
from pedos_dom0.tables.device_set import DeviceSet

# Events that a subscriber may be behind. A larger change at once (the arrival or death of an agent
# that has many devices) is a gap at once.
SUBSCRIPTION_MAX = 256

ADDED, REMOVED, CHANGED, GAP = "added", "removed", "changed", "gap"


@frozen
class Changes:
    """The changes of one report, each in order of the keys, unless there are very many."""

    added: tuple[DeviceKey, ...] = ()
    removed: tuple[DeviceKey, ...] = ()
    changed: tuple[DeviceKey, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


Event = tuple[int, str, DeviceKey | None]


class Subscription:
    """Events in order, as an async iterator of (revision, kind, key).

    After a gap event, key is None and revision the registry's at that time: what the subscriber
    then reads from the registry holds everything up to there. Close it when done (or use `with`).
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._events: deque[Event] = deque()
        self._waiting = trio.lowlevel.ParkingLot()
        self._closed = False

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while not self._events and not self._closed:
            await self._waiting.park()
        await trio.lowlevel.checkpoint()
        if not self._events:
            raise StopAsyncIteration
        event = self._events.popleft()
        if event[1] == GAP:
            # As of now, not of when it fell behind: the snapshot that follows is this one.
            return (self._registry.revision, GAP, None)
        return event

    def close(self) -> None:
        """No more events; a waiting iterator ends. Safe to call twice."""
        self._closed = True
        self._events.clear()
        self._registry._subscriptions.discard(self)
        self._waiting.unpark_all()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _put(self, event: Event) -> None:
        if self._events and self._events[0][1] == GAP:
            return  # nothing is lost that the gap does not announce already
        if len(self._events) >= SUBSCRIPTION_MAX:
            self._fall_behind(event[0])
            return
        self._events.append(event)
        self._waiting.unpark_all()

    def _fall_behind(self, revision: int) -> None:
        self._events.clear()
        self._events.append((revision, GAP, None))
        self._waiting.unpark_all()


class Registry:
    """The devices of all live agents."""

    def __init__(self) -> None:
        self.revision = 0
        self._backends: dict[str, DeviceSet] = {}
        self._missing: dict[str, tuple[Missing, ...]] = {}
        self._since: dict[DeviceKey, int] = {}
        self._subscriptions: set[Subscription] = set()
        self._followers: list[Callable[[Sequence[DeviceKey]], None]] = []

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
        for key in changes.removed:
            self._since.pop(key, None)
        for key in changes.added:
            self._since[key] = self.revision + 1
        # Removed devices first: a subscriber that counts never sees a disk and its successor at
        # once.
        self._announce(REMOVED, changes.removed)
        self._announce(ADDED, changes.added)
        self._announce(CHANGED, changes.changed)
        return changes

    def remove_backend(self, backend: str) -> Changes:
        """Its agent is gone, and so are all its devices."""
        return self.replace(backend, ())

    def touch(self, key: DeviceKey) -> None:
        """Announces a change beside the device: who has it, or is to have it."""
        self._announce(CHANGED, (key,))

    def get(self, key: DeviceKey) -> Device | None:
        return self.devices_of(key.backend).get(key.device_class, key.device)

    def since(self, key: DeviceKey) -> int | None:
        """A number that changes when the device was absent; None if it is absent now."""
        return self._since.get(key)

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

    def subscribe(self) -> Subscription:
        """Events from now on: read `items()` in the same moment, before anything is awaited."""
        subscription = Subscription(self)
        self._subscriptions.add(subscription)
        return subscription

    def follow(self, follower: Callable[[Sequence[DeviceKey]], None]) -> None:
        """Calls `follower` with the keys of each change, once the registry shows it."""
        self._followers.append(follower)

    def subscribers(self) -> int:
        return len(self._subscriptions)

    def __iter__(self) -> Iterator[DeviceKey]:
        return iter([key for key, _ in self.items()])

    def _announce(self, kind: str, keys: tuple[DeviceKey, ...]) -> None:
        if keys:
            for follower in self._followers:
                follower(keys)
        if len(keys) > SUBSCRIPTION_MAX:
            self.revision += len(keys)
            for subscription in self._subscriptions:
                subscription._fall_behind(self.revision)
            return
        for key in keys:
            self.revision += 1
            for subscription in self._subscriptions:
                subscription._put((self.revision, kind, key))


def _in_order(keys: Sequence[DeviceKey]) -> tuple[DeviceKey, ...]:
    """In the order of their events; the order does not matter for more changes than have events."""
    return tuple(keys) if len(keys) > SUBSCRIPTION_MAX else tuple(sorted(keys))
