"""Why a device that a request names is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_dom0 import errors

if TYPE_CHECKING:
    from pedos_protocol.errors import CallError

    from pedos_dom0.state import State
    from pedos_dom0.tables.registry import DeviceKey


def why_absent(state: State, key: DeviceKey) -> CallError:
    """The error about a device that the registry does not have, with what helps."""
    source = state.domain(key.backend)
    if source is None:
        return errors.no_vm(key.backend)
    if source.domid is None:
        return errors.backend_halted(key.backend)
    if state.agents.get(key.backend) is None:
        return errors.agent_missing(key.backend, "not_found")
    return errors.no_device(key, state.registry.missing(key.backend, key.device_class))
