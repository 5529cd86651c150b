"""All devices of this VM, merged from the discoveries, bounded to what one report may carry."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from pedos_protocol import codec
from pedos_protocol.agent_messages import Device
from pedos_protocol.fields import DEVICES_MAX
from pedos_protocol.names import natural_key
from pedos_protocol.schema import to_wire

from .found import Found
from .revision import Revision

log = logging.getLogger(__name__)

# A report is one frame of at most 64 KiB: half for devices, half for what is attached.
DEVICES_BYTES_MAX: Final = 32 * 1024


class Inventory:
    """What this VM has now; every change bumps the revision and tells `changed`."""

    def __init__(self, revision: Revision, changed: Callable[[], None]) -> None:
        """Start empty. `changed` is called after each change, before any task runs."""
        self._revision = revision
        self._changed = changed
        self._sources: dict[str, list[Found]] = {}
        self._devices: dict[tuple[str, str], Found] = {}
        self._left_out = 0

    def get(self, device_class: str, device: str) -> Found | None:
        """Find one device, None when this VM has it not (or no more)."""
        return self._devices.get((device_class, device))

    def devices(self) -> list[Device]:
        """All devices as dom0 is told of them."""
        return [found.device for found in self._devices.values()]

    def replace(self, source: str, found: list[Found]) -> None:
        """Take a discovery's whole new result in place of its last one."""
        if self._sources.get(source) == found:
            return  # most looks find nothing new, and the rest of this is not free
        self._sources[source] = found
        devices = self._bounded(
            {item.key: item for items in reversed(self._sources.values()) for item in items}
        )
        if devices != self._devices:
            for key in devices.keys() - self._devices.keys():
                log.info("device plugged in: %s %s", *key)
            for key in self._devices.keys() - devices.keys():
                log.info("device gone: %s %s", *key)
            self._devices = devices
            self._revision.bump()
            self._changed()

    def _bounded(self, found: dict[tuple[str, str], Found]) -> dict[tuple[str, str], Found]:
        # What is known stays known: plugging in one more must not push an attached one out.
        known = [key for key in self._devices if key in found]
        new = [key for key in found if key not in self._devices]
        kept: dict[tuple[str, str], Found] = {}
        size = 0
        for key in known + new:
            size += len(codec.encode([to_wire(found[key].device)]))
            if len(kept) == DEVICES_MAX or size > DEVICES_BYTES_MAX:
                break
            kept[key] = found[key]
        left_out = len(found) - len(kept)
        if left_out > self._left_out:
            log.warning(
                "%d devices are not listed: a VM may have %d, described in %d bytes",
                left_out,
                DEVICES_MAX,
                DEVICES_BYTES_MAX,
            )
        self._left_out = left_out
        return dict(sorted(kept.items(), key=lambda item: (item[0][0], natural_key(item[0][1]))))
