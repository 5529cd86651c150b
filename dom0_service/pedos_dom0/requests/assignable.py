"""What can never start together is refused when it is assigned, and not when the VM starts.

An assignment keeps its VM from starting until it can be had. So what cannot be had beside the
others that the VM has is refused with an error that names the other one and the command that
removes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_protocol.fields import ATTACHMENTS_MAX
from pedos_protocol.names import frontend_names

from pedos_dom0.errors import QuotaError, failure
from pedos_dom0.options import frontend_of_options

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
        if frontend is not None and frontend_of_options(other.options) == frontend:
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
                f"{key} shares its blocks with {other.key}, which is assigned to {vm}",
                hint=_removal(other),
            )
    of_class = [each for each in others if each.key.device_class == key.device_class]
    # A disk has a name in the VM, and there are not more of them.
    for some, most, what in (
        (others, ATTACHMENTS_MAX, "devices"),
        (of_class, len(frontend_names()), "disks, one for each name,"),
    ):
        if len(some) >= most and (some is others or key.device_class == "block"):
            return QuotaError(
                vm,
                f"{vm} has {len(some)} {what} assigned to it, and that is the most",
                hint=_removal(some[-1]),
            )
    return None


def _removal(other: Assignment) -> str:
    return f"qvm-device {other.key.device_class} detach {other.vm} {other.key}"
