"""What devices there are: the union of what the live agents report, with a revision.

Agents' reports are the only source and replace each other whole; nothing here calls out to a VM.
Every change of a device is one event with a number of its own. Who reads a snapshot and then the
events has everything, and who falls behind is told so with one gap event instead of being waited
for: it takes a new snapshot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType

import trio
from attrs import frozen
from pedos_protocol.messages import Device

# Events that a subscriber may be behind. A VM has at most 128 devices, so that one agent's arrival
# or death (all added or removed at once) is not yet a gap.
SUBSCRIPTION_MAX = 256

ADDED, REMOVED, CHANGED, GAP = "added", "removed", "changed", "gap"


@frozen(order=True)
class DeviceKey:
    """Which device: unique in the system."""

    device_class: str
    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}:{self.device}"


def lasting_identity(device: Device) -> str:
    """What tells a device from another one that has its id tomorrow; "" if nothing does. A file
    system's UUID, which stands behind two colons where there is nothing else, is another one after
    formatting."""
    return "" if device.identity.startswith("::") else device.identity


@frozen
class Changes:
    """What one report changed, each in order of the keys."""

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
        self._wake = trio.Event()
        self._closed = False

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while not self._events and not self._closed:
            await self._wake.wait()
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
        self._wake.set()

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
            self._events.clear()
            event = (event[0], GAP, None)
        self._events.append(event)
        self._wake.set()
        self._wake = trio.Event()


def _whole(part: DeviceKey, parent: str) -> DeviceKey:
    return DeviceKey(part.device_class, part.backend, parent)


class Registry:
    """The devices of all live agents."""

    def __init__(self) -> None:
        self.revision = 0
        self._backends: dict[str, dict[DeviceKey, Device]] = {}
        self._since: dict[DeviceKey, int] = {}
        self._subscriptions: set[Subscription] = set()

    def replace(self, backend: str, devices: Sequence[Device]) -> Changes:
        """Takes an agent's whole report in place of its last one.

        Of two devices with the same class and id the first counts: an agent that reports such has
        only itself to blame, and one key must not mean two things.
        """
        old = self._backends.get(backend, {})
        new: dict[DeviceKey, Device] = {}
        for device in devices:
            new.setdefault(DeviceKey(device.device_class, backend, device.device), device)
        if new:
            self._backends[backend] = new
        else:
            self._backends.pop(backend, None)
        changes = Changes(
            added=tuple(sorted(new.keys() - old.keys())),
            removed=tuple(sorted(old.keys() - new.keys())),
            changed=tuple(sorted(k for k in new.keys() & old.keys() if new[k] != old[k])),
        )
        for key in changes.removed:
            self._since.pop(key, None)
        for key in changes.added:
            self._since[key] = self.revision + 1
        # Removed first: a subscriber that counts never sees a disk and its successor at once.
        self._announce(REMOVED, changes.removed)
        self._announce(ADDED, changes.added)
        self._announce(CHANGED, changes.changed)
        return changes

    def remove_backend(self, backend: str) -> Changes:
        """Its agent is gone, and with it all its devices."""
        return self.replace(backend, ())

    def touch(self, key: DeviceKey) -> None:
        """Announces a change of what stands beside the device: who has it, or is to have it."""
        self._announce(CHANGED, (key,))

    def get(self, key: DeviceKey) -> Device | None:
        return self._backends.get(key.backend, {}).get(key)

    def since(self, key: DeviceKey) -> int | None:
        """A number that is another one after the device was away; None if it is not there."""
        return self._since.get(key)

    def items(self, device_class: str | None = None) -> list[tuple[DeviceKey, Device]]:
        """All devices (of a class), ordered by class, backend and id."""
        found = [
            (key, device)
            for devices in self._backends.values()
            for key, device in devices.items()
            if device_class in (None, key.device_class)
        ]
        return sorted(found, key=lambda item: item[0])

    def of_backend(self, backend: str, device_class: str) -> list[DeviceKey]:
        """The devices of a class that one VM has; costs what that VM has, not what others have."""
        return [key for key in self._backends.get(backend, {}) if key.device_class == device_class]

    def family(self, key: DeviceKey) -> set[DeviceKey]:
        """The devices that hold the same data: `key`, what it is a part of, and its parts.

        Two partitions of one disk are not of one family. Parents are what the backend's agent
        says, so that they may lead in a circle or nowhere.
        """
        devices = self._backends.get(key.backend, {})
        parts: dict[DeviceKey, list[DeviceKey]] = {}
        for other, device in devices.items():
            if device.parent is not None:
                parts.setdefault(_whole(other, device.parent), []).append(other)

        below, rest = {key}, [key]
        while rest:
            for part in parts.get(rest.pop(), ()):
                if part not in below:
                    below.add(part)
                    rest.append(part)
        above, at = {key}, devices.get(key)
        while at is not None and at.parent is not None:
            whole = _whole(key, at.parent)
            if whole in above:
                break
            above.add(whole)
            at = devices.get(whole)
        return below | above

    def subscribe(self) -> Subscription:
        """Events from now on: read `items()` in the same moment, before anything is awaited."""
        subscription = Subscription(self)
        self._subscriptions.add(subscription)
        return subscription

    def subscribers(self) -> int:
        return len(self._subscriptions)

    def __iter__(self) -> Iterator[DeviceKey]:
        return iter([key for key, _ in self.items()])

    def _announce(self, kind: str, keys: tuple[DeviceKey, ...]) -> None:
        for key in keys:
            self.revision += 1
            for subscription in self._subscriptions:
                subscription._put((self.revision, kind, key))
