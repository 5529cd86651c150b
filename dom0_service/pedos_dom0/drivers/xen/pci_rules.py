"""Which PCI devices a VM may be given, as far as that can be said without asking Xen. Pure.

Xen's toolstack gives away bridges, a controller in use, and two devices that the IOMMU takes for
one to two VMs, without a word: so these are refused here, before it is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_protocol.kinds import kinds_in
from pedos_protocol.names import shown
from pedos_protocol.pci_names import short_address

from pedos_dom0.drivers.base import DriverError
from pedos_dom0.drivers.xen.pci_sysfs import INTEGRATED, ROOT_PORT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pedos_dom0.drivers.xen.pci_sysfs import Function, Picture

# The integrated devices of Intel's processors reach each other by the IOMMU alone (VT-d
# specification 3.1, 3.16); Linux goes by the same (drivers/pci/quirks.c, pci_quirk_rciep_acs).
_INTEL = "8086"


def group_of(picture: Picture, function: Function) -> frozenset[str]:
    """The other devices that must not be in another VM: the IOMMU cannot tell them from this one,
    or they reach its memory past the IOMMU.

    These are the functions of its slot, and everything behind the bridge nearest to the root that
    is no root port: behind a PCI Express-to-PCI bridge all have one requester, and a switch may
    pass data on between its ports.
    """
    shared = next((each for each in function.way[:-1] if _joins(picture, each)), None)

    def is_in(other: Function) -> bool:
        if shared is not None:
            return shared in other.way[:-1]
        if other.slot != function.slot or other.way[:-1] != function.way[:-1]:
            return False
        return not (_is_apart(other) or _is_apart(function))

    return frozenset(
        other.address
        for other in picture.functions.values()
        if other.address != function.address and not other.is_bridge and is_in(other)
    )


def _joins(picture: Picture, address: str) -> bool:
    bridge = picture.functions.get(address)
    return bridge is None or bridge.port_type != ROOT_PORT


def _is_apart(function: Function) -> bool:
    return function.port_type == INTEGRATED and function.vendor == _INTEL


def check_kind(function: Function, name: str) -> None:
    """DriverError if no VM can ever have it."""
    if function.is_bridge:
        raise DriverError(
            f"{name} is a bridge: it stays with dom0, and what is behind it can be given to a VM",
            hint="qvm-device pci list dom0",
        )


def check_identity(function: Function, name: str, allowed: str | None) -> None:
    """DriverError if it is not the device of this identity (pedos_protocol.kinds), but one that is
    at its port since dom0's agent last reported. None: not known, as an older service leased it."""
    if allowed is None:
        return
    head, kinds = kinds_in(allowed)
    # An agent may not have been able to read the kind.
    if head != f"{function.vendor}:{function.device}:" or kinds not in ((), (f"p{function.kind}",)):
        raise DriverError(
            f"{name} is another device by now: '{function.identity}', and {shown(allowed)} was "
            "allowed",
            code="not_found",
            hint="qvm-device pci list dom0",
        )


def check_group(
    picture: Picture, function: Function, name: str, others: Mapping[str, str], vm: str
) -> None:
    """DriverError(busy) if another VM has one of its group. `others` are the VMs that have, or are
    about to have, a device, by address."""
    for address in sorted(group_of(picture, function)):
        holder = others.get(address)
        if holder is not None and holder != vm:
            raise DriverError(
                f"{name} cannot be kept apart from {short_address(address)}, which {holder} has: "
                "they are in one slot or behind one bridge, so both go to the same VM or one stays "
                "unused",
                code="busy",
                hint=f"qvm-pci detach {holder} dom0:{picture.functions[address].id}, or "
                f"qvm-shutdown {holder}",
            )


def check_reset(function: Function, name: str) -> None:
    """DriverError if the kernel knows no way to reset it."""
    if not function.can_reset:
        raise no_reset(name, "dom0's kernel knows no way to reset it")


def no_reset(name: str, why: str) -> DriverError:
    return DriverError(
        f"{name} cannot be reset between two VMs ({why}), so it could carry over what the last "
        "one left in it; so it is for most USB controllers of a chipset",
        hint="-o no-strict-reset=yes gives it all the same, if you trust each VM that has had it",
    )
