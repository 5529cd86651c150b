"""Refuses an assignment that could never start, when it is made and not when the VM starts.

While an assigned device cannot be had, its VM does not start. So an assignment that cannot coexist
with the VM's others is refused with an error that names the other one and the command that removes
it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_protocol.fields import ATTACHMENTS_MAX

from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.errors import QuotaError, failure
from pedos_dom0.tables.assignment import ANY_PORT, slot

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pedos_protocol.errors import CallError

    from pedos_dom0.tables.registry import DeviceKey, Registry
    from pedos_dom0.tables.store import Assignment


def conflict(
    vm: str,
    key: DeviceKey,
    frontend: str | None,
    assigned: Iterable[Assignment],
    registry: Registry,
    own: Collection[str] = (),
    *,
    identity: str = "",
    mode: str = "required",
) -> CallError | None:
    """Why `key`, as `frontend` if that is not None, cannot be assigned to the VM; None if it can.

    `assigned` is what is assigned to it, perhaps this device itself, whose options then change;
    `own` are the names of the VM's own disks, where they are known. `identity` is that of one at
    any port. Only what the VM requires can keep it from starting; the rest must not become too
    many.
    """
    all_others = [each for each in assigned if each.slot != slot(key, identity)]
    is_required = mode == "required"
    others = [each for each in all_others if is_required and each.mode == "required"]
    if is_required and frontend in own:
        return failure(
            "busy", f"{frontend} is a disk of {vm}'s own", hint="name another, or leave it out"
        )
    for other in others:
        asked = class_of(other.key.device_class).asked_name(other.options)
        if frontend is not None and asked == frontend:
            return failure(
                "busy",
                f"{frontend} in {vm} is the name with which {other} is assigned to it",
                hint=f"leave frontend-dev out, or {removal(other)}",
            )
    relatives = {
        each for its in _there(registry, key, identity) for each in registry.relatives(its)
    }
    for other in others:
        if not relatives.isdisjoint(_there(registry, other.key, other.identity)):
            return failure(
                "busy",
                f"{key} shares data with {other}, which is assigned to {vm}",
                hint=removal(other),
            )
    of_class = [each for each in others if each.key.device_class == key.device_class]
    bounds = [(all_others, ATTACHMENTS_MAX, "devices")]
    device_class = class_of(key.device_class)
    if device_class.names:
        what = f"{device_class.named}, one for each name,"
        bounds.append((of_class, len(device_class.names), what))
    for some, most, what in bounds:
        if len(some) >= most:
            return QuotaError(
                vm,
                f"{vm} has {len(some)} {what} assigned to it, and that is the most",
                hint=removal(some[-1]),
            )
    return None


def removal(other: Assignment) -> str:
    """The command that takes an assignment away, with what is attached by it if it has a port."""
    if other.key.device == ANY_PORT:
        return f"qvm-device {other.key.device_class} unassign {other.vm} '{other}'"
    return f"qvm-device {other.key.device_class} detach {other.vm} {other.key}"


def _there(registry: Registry, key: DeviceKey, identity: str) -> Collection[DeviceKey]:
    """The port that is assigned, or the devices that have the identity now."""
    if key.device != ANY_PORT:
        return [key]
    return registry.devices_of(key.backend).identified(key.device_class, identity)
