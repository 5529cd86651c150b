"""What stands against an attach, beside policy: the checks of an attach, which device.targets shows
before one.

They read dom0's own tables and change nothing. Each returns or raises the error of the attach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedos_dom0 import errors
from pedos_dom0.attachments.fresh import unknown
from pedos_dom0.attachments.transaction import why_not_leased
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.drivers.base import DOM0_NAME, DriverError
from pedos_dom0.requests.absent import why_absent
from pedos_dom0.tables.leases import ATTACHED, Taken

if TYPE_CHECKING:
    from pedos_protocol.errors import CallError
    from pedos_protocol.messages import Device

    from pedos_dom0.state import State
    from pedos_dom0.tables.leases import Lease
    from pedos_dom0.tables.registry import DeviceKey


def device_to_lend(state: State, key: DeviceKey, identity: str | None = None) -> Device:
    """The device, if it is there and known, of a class that can be lent, and with that identity if
    one is named. Raises CallError."""
    state.known_domain(key.backend)
    if (lack := state.carrier(key.device_class).lack) is not None:
        raise errors.unsupported(lack)
    device = state.registry.get(key)
    if device is None:
        raise why_absent(state, key)
    if unknown(state, key) is not None:
        raise errors.not_known(key, device)
    if (never := class_of(key.device_class).why_never(key.backend, device)) is not None:
        raise errors.never_given(key, never)
    if identity not in (None, device.identity):
        raise errors.another_device(key, identity or "", device.identity)
    return device


def no_recipient(
    state: State, key: DeviceKey, named: str, vm: str, *, may_redirect: bool = True
) -> CallError | None:
    """Why the device of a request that named one VM cannot go to the one that a rule says."""
    if vm == DOM0_NAME:
        return errors.target_is_dom0()
    if vm == key.backend:
        return errors.target_is_backend(vm)
    if vm != named and not may_redirect:
        return errors.sent_elsewhere(key, named, vm)
    if state.domain(vm) is None:
        return errors.no_such_target(vm)
    return None


def held_by(state: State, key: DeviceKey, vm: str) -> Lease | None:
    """The VM's own lease of this device, if it is attached to it."""
    leases = state.leases.of_device(key)
    return next((each for each in leases if each.vm == vm and each.state == ATTACHED), None)


def not_ready(state: State, key: DeviceKey, device: Device, vm: str) -> CallError | None:
    """Why a VM that exists cannot be given the device now, whoever has it."""
    domid = state.known_domain(vm).domid
    if domid is None:
        return errors.target_halted(vm)
    if state.agents.at(vm, domid) is None:
        return errors.agent_missing(vm, "failed")
    if why_not_leased(state, key, device, vm) is not None:
        return None  # who has it says more than what could not be done if nobody had it
    try:
        if state.carrier(key.device_class).can_give_live(domid):
            return None
    except DriverError as error:
        return errors.failure(error.code, str(error), hint=error.hint)
    return errors.only_at_start(key, vm)


def in_the_way(state: State, key: DeviceKey, device: Device, named: str, vm: str) -> str | None:
    """What an attach to `vm`, which a rule or dom0's user chose where `named` was named, would fail
    with, in its order of checks; None if nothing is known to stand against it."""
    if (error := no_recipient(state, key, named, vm)) is not None:
        return error.message
    if held_by(state, key, vm) is not None:
        return None
    if (error := not_ready(state, key, device, vm)) is not None:
        return error.message
    why = why_not_leased(state, key, device, vm)
    if isinstance(why, Taken):
        why = errors.taken(key, why.holder)
    return None if why is None else why.message
