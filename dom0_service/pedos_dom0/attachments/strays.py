"""Devices of dom0 that a VM has without an attachment: the toolstack gave them, also to the next
domain of a VM that reboots by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_dom0.drivers.base import DOM0_NAME, DriverError
from pedos_dom0.errors import failure

if TYPE_CHECKING:
    from pedos_protocol.errors import CallError

    from pedos_dom0.state import State
    from pedos_dom0.tables.registry import DeviceKey

# Why it is in use.
STRAY = "{vm} has it, from the toolstack and not from here, or it has rebooted with it"


def held_by_stray(state: State, key: DeviceKey, vm: str | None = None) -> CallError | None:
    """Why no VM but this one can be given the device; None if no VM has it, or this one."""
    if key.backend != DOM0_NAME:
        return None
    try:
        has = state.carrier(key.device_class).strays().get(key.device)
    except DriverError as error:
        what = f"which VM has {key} cannot be told: {error}"
        return failure(error.code, what, hint=error.hint)
    if has is None or has == vm:
        return None
    return failure("busy", f"{key}: {STRAY.format(vm=has)}", hint=f"shut {has} down")
