"""Why a device cannot be lent to any VM now, as far as a caller may know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_dom0 import errors
from pedos_dom0.attachments.strays import held_by_stray
from pedos_dom0.requests.absent import why_absent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pedos_dom0.access.callers import Caller
    from pedos_dom0.state import State
    from pedos_dom0.tables.registry import DeviceKey


def unfit(state: State, caller: Caller, key: DeviceKey) -> Iterator[str]:
    """Its class, what its source says, who has it without an attachment, and who has a relative of
    it. The VM that it is attached to is told beside this."""
    device = state.registry.get(key)
    if (lack := state.carrier(key.device_class).lack) is not None:
        yield lack
    is_its = caller.kind.sees_all or key.backend == caller.name
    if is_its and device is not None:
        if (error := errors.not_to_be_had(key, device)) is not None:
            yield error.message
    elif caller.kind.sees_all:
        yield why_absent(state, key).message
    if caller.kind.sees_all:
        has = {lease.vm for lease in state.leases.of_device(key)}
        if not has and (stray := held_by_stray(state, key)) is not None:
            yield stray.message
        relatives = state.registry.relatives(key) - {key}
        for lease in state.leases:
            if lease.key in relatives:
                yield errors.taken(key, lease).message
                break
