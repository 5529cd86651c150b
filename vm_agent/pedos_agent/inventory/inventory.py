"""All devices of this VM, merged from the discoveries, bounded to what one report may contain."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Final

import attrs
from pedos_host.in_time import in_time
from pedos_host.threads import to_thread
from pedos_protocol.agent_messages import Device, Missing
from pedos_protocol.device_classes import class_names
from pedos_protocol.names import harmless_text, natural_key

from pedos_agent.inventory.local_device import LocalDevice, Pin
from pedos_agent.inventory.priority import Priority
from pedos_agent.inventory.report import TOO_MANY, Key, those_that_fit
from pedos_agent.system.revision import Revision

log = logging.getLogger(__name__)

# Devices that appear or disappear at once and have a line each in the log.
LOGGED_MAX: Final = 32


class Inventory:
    """The devices of this VM now; every change bumps the revision and calls `changed`."""

    def __init__(
        self,
        revision: Revision,
        changed: Callable[[], None],
        classes: Collection[str] | None = None,
        discoveries: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> None:
        """Start empty. `changed` is called after each change, before any task runs. `classes`, by
        default all, are reported in their order. `discoveries` are those that look for several
        classes, and for which; any other has the name of the class that it looks for."""
        self._revision = revision
        self._changed = changed
        self._classes = class_names() if classes is None else classes
        self._discoveries = discoveries
        self._unknown: set[str] = set()  # of dom0's
        self.priority = Priority()
        self.priority.known = lambda: self._devices
        self._sources: dict[str, list[LocalDevice]] = {}
        self._not_looked_at: dict[str, tuple[dict[str, int], str]] = {}
        self._devices: dict[Key, LocalDevice] = {}
        self._missing: tuple[Missing, ...] = ()
        # Instances of this agent's life; one of an earlier life is none of this one.
        self._life = secrets.token_hex(8)
        self._instances = 0
        self._failures: dict[str, str] = {}
        # The classes that each discovery could not look at last time, and why.
        self._blind: dict[str, dict[str, str]] = {}
        self._made_of: object = None

    def get(self, device_class: str, device: str) -> LocalDevice | None:
        """Find one device, None if this VM does not have it (any more)."""
        return self._devices.get((device_class, device))

    def devices(self) -> list[Device]:
        """All devices in their form for dom0."""
        return [found.device for found in self._devices.values()]

    def missing(self) -> tuple[Missing, ...]:
        """What this VM has, or may have, and is not in `devices`."""
        return self._missing

    async def prefer(self, keys: Collection[Key]) -> int:
        """List these before others from now on; returns the first revision that does so. Those of
        classes that this agent does not know, because dom0 may be newer, are left out."""
        unknown = {device_class for device_class, _ in keys}.difference(self._classes)
        if added := ", ".join(sorted(unknown - self._unknown)):
            log.info("dom0 knows device classes that this agent does not: %s", added)
        self._unknown |= unknown
        await self.priority.prefer([key for key in keys if key[0] not in unknown])
        self._merge()
        return self._revision.number

    def replace(
        self,
        source: str,
        found: list[LocalDevice],
        left_out: Mapping[str, int] | None = None,
        *,
        why: str = TOO_MANY,
    ) -> None:
        """Take a discovery's whole new result in place of its last one.

        For a device that it could not look at, or a class, what was known before stays, and is
        stale. `left_out` is how many more there are by class that it has not looked at, and `why`.
        """
        last = {item.key: item for item in self._sources.get(source, ())}
        self._note(source, next((item.unseen for item in found if item.unseen), None))
        self._not_looked_at[source] = (dict(left_out or {}), why)
        # What stands for a class has no id; see local_device.unseen_class.
        blind = {item.device.device_class: item.unseen or "" for item in found if not item.key[1]}
        self._blind[source] = blind
        kept = [_stale(item, blind[item.key[0]]) for item in last.values() if item.key[0] in blind]
        told = [self._settled(item, last.get(item.key)) for item in found if item.key[1]]
        self._take(source, [*told, *kept])

    def failed(self, source: str, why: str) -> None:
        """A discovery could not look: everything that it found last stays, and is stale."""
        why = harmless_text(why)
        self._note(source, why)
        self._blind[source] = dict.fromkeys(self._discoveries.get(source, (source,)), why)
        self._take(source, [_stale(item, why) for item in self._sources.get(source, ())])

    async def release_removed(self, source: str) -> None:
        """Stop holding files without a name, so that their file systems get their space back,
        although a discovery cannot tell that they are gone. The next file with such a name is
        another one."""
        found = self._sources.get(source, [])
        pins = [item.pin for item in found]
        removed = await to_thread(lambda: [_is_removed(pin) for pin in pins])
        if any(removed):
            pairs = zip(found, removed, strict=True)
            self._take(
                source, [item.released() if is_removed else item for item, is_removed in pairs]
            )

    def _note(self, source: str, why: str | None) -> None:
        """Log once that looks fail, and that they work again."""
        before = self._failures.get(source)
        if why is not None and why != before:
            log.warning(
                "the devices (%s) cannot all be looked at: %s; what was known of them stays, and "
                "they are looked at again",
                *(source, why),
            )
            self._failures[source] = why
        elif why is None and self._failures.pop(source, None) is not None:
            log.info("the devices (%s) can be looked at again", source)

    def _take(self, source: str, found: list[LocalDevice]) -> None:
        self._sources[source] = found
        self._merge()

    def _merge(self) -> None:
        """Make one list of the results of all discoveries, and report it if it has changed."""
        sources, names = [*self._sources.values()], dict(self._not_looked_at)
        made_of = (self.priority.wishes.number, sources, names, dict(self._blind))
        if made_of == self._made_of:
            return  # most looks find nothing new, and the rest of this is not free
        self._made_of = made_of
        found = {item.key: item for items in reversed(self._sources.values()) for item in items}
        fitting = those_that_fit(found, self.priority.ranks())
        devices = {
            key: found[key]
            for key in sorted(fitting, key=lambda key: (key[0], natural_key(key[1])))
        }
        missing = self._missing_of(Counter(key[0] for key in found if key not in fitting))
        if (devices, missing) == (self._devices, self._missing):
            return
        _log_changes("plugged in", devices.keys() - self._devices.keys())
        _log_changes("gone", self._devices.keys() - devices.keys())
        before = {(each.device_class, each.reason) for each in self._missing}
        for each in missing:
            if (each.device_class, each.reason) not in before:
                many = "an unknown number of" if each.count is None else each.count
                log.warning(
                    "%s devices are not listed (%s): %s", *(many, each.device_class, each.reason)
                )
        self._devices, self._missing = devices, missing
        self._revision.bump()
        self._changed()

    def _missing_of(self, unfitting: Counter[str]) -> tuple[Missing, ...]:
        """The devices that are not listed, by class: those that do not fit, those that were not
        looked at, and possible ones where nothing could be looked at."""
        missing = []
        for device_class in self._classes:
            count = unfitting[device_class]
            reasons = {TOO_MANY: None} if count else {}
            for names, why in self._not_looked_at.values():
                if device_class in names:
                    count += names[device_class]
                    reasons[why] = None
            blind = [whys[device_class] for whys in self._blind.values() if device_class in whys]
            reasons.update(dict.fromkeys(blind))
            if reasons:
                reason = harmless_text("; ".join(reasons))
                missing.append(Missing(device_class, None if blind else count, reason))
        return tuple(missing)

    def _settled(self, item: LocalDevice, before: LocalDevice | None) -> LocalDevice:
        """What to believe of it now."""
        if item.unseen is not None and before is not None and before.unseen is None:
            return _stale(before, item.unseen)
        told = self._told_apart(item, before)
        if item.device.stale is None or before is None or not before.is_same_thing(item):
            return told
        # It cannot be identified just now: it is what it was.
        known = before.device
        device = attrs.evolve(told.device, identity=known.identity, description=known.description)
        return attrs.evolve(told, device=device)

    def _told_apart(self, item: LocalDevice, before: LocalDevice | None) -> LocalDevice:
        """The item as its instance: that of the last look, or a new one.

        The earlier find stays held (see Pin), so that what looks the same is the same.
        """
        if before is not None and before.is_same_thing(item):
            instance, pin = before.device.instance, before.pin
        else:
            self._instances += 1
            counted = f"{self._life}-{self._instances}"
            # Its instance is not known, either, if it cannot be looked at.
            new = counted if item.unseen is None else ""
            instance, pin = item.lasting_instance() or new, item.pin
        return attrs.evolve(item, pin=pin, device=attrs.evolve(item.device, instance=instance))


def _is_removed(pin: Pin | None) -> bool:
    """A file that cannot be looked at is not known, and its space may not be free."""
    with contextlib.suppress(OSError):
        if pin is not None:
            where = os.readlink(pin.path)
            return not in_time(pin.path, pin.status, path=where).st_nlink
    return False


def _stale(item: LocalDevice, why: str) -> LocalDevice:
    return attrs.evolve(item, device=attrs.evolve(item.device, stale=harmless_text(why)))


def _log_changes(what: str, keys: Collection[Key]) -> None:
    if len(keys) > LOGGED_MAX:
        log.info("%d devices %s", len(keys), what)
        return
    for key in sorted(keys):
        log.info("device %s: %s %s", what, *key)
