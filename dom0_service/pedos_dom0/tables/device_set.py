"""The devices of one VM: by key, and in natural order by class.

A VM may have thousands, so a set is made in steps, none of which holds up the event loop. Equal
devices are the same object as in the predecessor, so that comparing two sets is fast.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from attrs import frozen
from pedos_protocol.messages import Device
from pedos_protocol.names import natural_key

from pedos_dom0.device_classes.registered import class_of


@frozen(order=True)
class DeviceKey:
    """Identifies a device: unique in the system."""

    device_class: str
    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}:{self.device}"


#: Class and id: unique in a VM. Plain tuples, which compare and hash quickly.
Name = tuple[str, str]
#: The place of a device in the list of its class.
Place = tuple[tuple[str, str], DeviceKey]


class DeviceSet:
    """Devices of `backend`. Made with `add` and `finish`, and immutable after that."""

    __slots__ = ("_devices", "_identified", "_in_order", "_parts", "_sharers", "backend")

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self._devices: dict[Name, tuple[DeviceKey, Device]] = {}
        self._in_order: dict[str, list[Place]] = {}
        # The parts by their parent, and by each shared device those that share it. Some of these
        # may be in the set that this one was made from and not in this one.
        self._parts: dict[Name, list[Name]] = {}
        self._sharers: dict[Name, list[Name]] = {}
        # By class and lasting identity; made when it is first asked for.
        self._identified: dict[Name, dict[DeviceKey, None]] | None = None

    @classmethod
    def of(
        cls, backend: str, devices: Iterable[Device], like: DeviceSet | None = None
    ) -> DeviceSet:
        """A set that is made in one step."""
        made = cls(backend)
        made.add(devices, like)
        made.finish()
        return made

    def __len__(self) -> int:
        return len(self._devices)

    @property
    def by_name(self) -> Mapping[Name, tuple[DeviceKey, Device]]:
        return self._devices

    def get(self, device_class: str, device: str) -> Device | None:
        found = self._devices.get((device_class, device))
        return None if found is None else found[1]

    def add(self, devices: Iterable[Device], like: DeviceSet | None = None) -> None:
        """Adds some; a device that is equal to one in `like` becomes the same object.

        Of two devices with the same class and id the first counts: the agent that reports both is
        at fault, and one key must not mean two things.
        """
        before = {} if like is None else like._devices
        for device in devices:
            name = (device.device_class, device.device)
            if name in self._devices:
                continue
            known = before.get(name)
            if known is None:
                key = DeviceKey(device.device_class, self.backend, device.device)
                known = (key, device)
            elif known[1] != device:
                known = (known[0], device)
            self._devices[name] = known
            places = self._in_order.setdefault(device.device_class, [])
            places.append((natural_key(device.device), known[0]))
            if device.parent is not None and (parent := _parent(device)) is not None:
                self._parts.setdefault(parent, []).append(name)
            # Shares are of the device's own class.
            for share in device.shares:
                self._sharers.setdefault((name[0], share), []).append(name)

    def finish(self) -> None:
        """All are added. An agent reports them roughly in order, so that this is fast."""
        for places in self._in_order.values():
            places.sort()

    def in_order(self, device_class: str) -> Sequence[Place]:
        """The places of a class's devices, in natural order."""
        return self._in_order.get(device_class, ())

    def called(self, device_class: str, alias: str) -> DeviceKey | None:
        """The one device of the class with this alias; None if there is none, or more than one."""
        found = [
            key
            for _, key in self.in_order(device_class)
            if self._devices[_name(key)][1].alias == alias
        ]
        return found[0] if len(found) == 1 else None

    def identified(self, device_class: str, identity: str) -> Collection[DeviceKey]:
        """The devices of a class with this lasting identity."""
        if self._identified is None:
            self._identified = {}
            for key, device in self._devices.values():
                its = class_of(key.device_class).lasting_identity(device.identity)
                self._identified.setdefault((key.device_class, its), {})[key] = None
        return self._identified.get((device_class, identity), {})

    def without(self, device_class: str, ids: Collection[str]) -> DeviceSet:
        """The same set less these devices."""
        names = {(device_class, device) for device in ids}
        if names.isdisjoint(self._devices):
            return self
        other = DeviceSet(self.backend)
        other._devices = {name: each for name, each in self._devices.items() if name not in names}
        other._in_order = {
            name: [place for place in places if (name, place[1].device) not in names]
            for name, places in self._in_order.items()
        }
        other._parts, other._sharers = self._parts, self._sharers
        return other

    def family(self, name: Name) -> set[Name]:
        """See Registry.family; it takes as many steps as the family has members and shares."""
        below = self._below(name)
        return below | self._above({name}) | self._sharing(below)

    def relatives(self, name: Name) -> set[Name]:
        """Its family, and the devices whose families it is in."""
        return self.family(name) | self._above(self._sharing({name}))

    def _below(self, name: Name) -> set[Name]:
        found, rest = {name}, [name]
        while rest:
            for part in self._parts.get(rest.pop(), ()):
                if part in self._devices and part not in found:
                    found.add(part)
                    rest.append(part)
        return found

    def _above(self, names: set[Name]) -> set[Name]:
        found: set[Name] = set()
        for name in names:
            at: Name | None = name
            while at is not None and at not in found:
                found.add(at)
                device = self.get(*at)
                at = None if device is None else _parent(device)
        return found

    def _sharing(self, names: set[Name]) -> set[Name]:
        found: set[Name] = set()
        for name in names:
            device = self.get(*name)
            if device is not None:
                found.update((name[0], share) for share in device.shares)
            found.update(each for each in self._sharers.get(name, ()) if each in self._devices)
        return found


def _name(key: DeviceKey) -> Name:
    return key.device_class, key.device


def _parent(device: Device) -> Name | None:
    return class_of(device.device_class).parent(device)
