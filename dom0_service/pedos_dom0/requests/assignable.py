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
) -> CallError | None:
    """Why `key`, as `frontend` if that is not None, cannot be assigned to the VM; None if it can.

    `assigned` is what is assigned to it, perhaps this device itself, whose options then change;
    `own` are the names of the VM's own disks, where they are known.
    """
    others = [each for each in assigned if each.key != key]
    if frontend in own:
        return failure(
            "busy", f"{frontend} is a disk of {vm}'s own", hint="name another, or leave it out"
        )
    for other in others:
        asked = class_of(other.key.device_class).asked_name(other.options)
        if frontend is not None and asked == frontend:
            return failure(
                "busy",
                f"{frontend} in {vm} is the name with which {other.key} is assigned to it",
                hint=f"leave frontend-dev out, or {_removal(other)}",
            )
    relatives = registry.relatives(key)
    for other in others:
        if other.key in relatives:
            return failure(
                "busy",
                f"{key} shares data with {other.key}, which is assigned to {vm}",
                hint=_removal(other),
            )
    of_class = [each for each in others if each.key.device_class == key.device_class]
    bounds = [(others, ATTACHMENTS_MAX, "devices")]
    device_class = class_of(key.device_class)
    if device_class.names:
        what = f"{device_class.named}, one for each name,"
        bounds.append((of_class, len(device_class.names), what))
    for some, most, what in bounds:
        if len(some) >= most:
            return QuotaError(
                vm,
                f"{vm} has {len(some)} {what} assigned to it, and that is the most",
                hint=_removal(some[-1]),
            )
    return None


def _removal(other: Assignment) -> str:
    return f"qvm-device {other.key.device_class} detach {other.vm} {other.key}"
