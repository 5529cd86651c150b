"""PCI devices: those of dom0, but for bridges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_protocol.kinds import kinds_in

from pedos_dom0.device_classes.base import DeviceClass

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pedos_protocol.messages import Device

_BRIDGE = "p06"  # the base class of PCI Code and ID Assignment Specification 1.11
_OWNER = "dom0"


class Pci(DeviceClass):
    """The rules for PCI devices alone."""

    # A VM that says these could carry something over to the next VM, or to dom0.
    for_dom0 = frozenset(("no-strict-reset", "permissive", "give-back"))

    def why_never(self, backend: str, device: Device) -> str | None:
        if backend != _OWNER:
            return f"only {_OWNER}'s PCI devices can be given to a VM, and {backend} is none"
        if any(kind.startswith(_BRIDGE) for kind in kinds_in(device.identity)[1]):
            return "it is a bridge, which stays with dom0; what is behind it can be given to a VM"
        return None

    def borrowed(self, ids: Iterable[str], names: Collection[str]) -> set[str]:
        return set(ids).intersection(names)
