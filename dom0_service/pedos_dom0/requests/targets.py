"""device.targets: what an attach of one device would come to now, for each VM.

A menu of VMs needs all of them at once, with the reason beside each that cannot have the device.
Policy and everything else that an attach looks at are asked by the attach's own functions. Nothing
is reserved or recorded, so an attach asks them again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pedos_protocol.codec import FRAME_MAX
from pedos_protocol.errors import CallError
from pedos_protocol.info_messages import UNFIT_MAX
from pedos_protocol.messages import Target, TargetsTold
from pedos_protocol.names import natural_key
from pedos_protocol.schema import Room

from pedos_dom0 import errors
from pedos_dom0.access.subjects import DeviceSubject
from pedos_dom0.drivers.base import DOM0_NAME
from pedos_dom0.requests.absent import why_absent
from pedos_dom0.requests.fitting import ENVELOPE_MAX, bounded_text
from pedos_dom0.requests.obstacles import device_to_lend, held_by, in_the_way
from pedos_dom0.requests.unfit import unfit

if TYPE_CHECKING:
    from pedos_protocol.messages import Device, Verdict

    from pedos_dom0.access.authorizer import Authorizer
    from pedos_dom0.access.callers import Caller
    from pedos_dom0.drivers.base import DomainInfo
    from pedos_dom0.state import State
    from pedos_dom0.tables.registry import DeviceKey


class Targets:
    """Serves device.targets, for callers that see all."""

    def __init__(self, state: State, authorizer: Authorizer) -> None:
        self._state = state
        self._authorizer = authorizer

    async def __call__(self, caller: Caller, key: DeviceKey) -> TargetsTold:
        """Raises CallError(not_found) if the device is not there, or is another one meanwhile.

        It yields after each VM, as the policy may take a while for each. So the answer is about one
        device, but not of one moment.
        """
        identity = self._present(key).identity
        unfitness = tuple(map(bounded_text, unfit(self._state, caller, key)))[:UNFIT_MAX]
        room = Room(FRAME_MAX - ENVELOPE_MAX)
        for text in unfitness:
            room.takes(text)
        # Those that run first, so that these are not the ones that an answer has no room for.
        others = [
            domain
            for name, domain in self._state.driver.domains().items()
            if name not in (DOM0_NAME, key.backend)
        ]
        others.sort(key=lambda each: (each.domid is None, natural_key(each.name)))
        told: list[Target] = []
        for domain in others:
            if told:
                await caller.turn()
            device = self._present(key)
            if device.identity != identity:
                raise errors.another_device(key, identity, device.identity)
            target = self._target(caller, key, device, domain)
            if not room.takes(target):
                break
            told.append(target)
        told.sort(key=lambda each: natural_key(each.vm))
        return TargetsTold(identity, unfitness, tuple(told), len(others) - len(told))

    def _present(self, key: DeviceKey) -> Device:
        device = self._state.registry.get(key)
        if device is None:
            raise why_absent(self._state, key)
        return device

    def _target(self, caller: Caller, key: DeviceKey, device: Device, domain: DomainInfo) -> Target:
        state, vm = self._state, domain.name
        try:
            device_to_lend(state, key)
        except CallError as error:
            return _denied(domain, device, error.message)
        subject = DeviceSubject("attach", key)
        foreseen = self._authorizer.foresee(caller.name, subject, vm)
        decision, refused = foreseen.decision, foreseen.refused
        verdict, reason = decision.verdict, refused or decision.reason
        if refused is None and verdict != "deny":
            against = [in_the_way(state, key, device, vm, each) for each in foreseen.vms]
            if all(against):
                refused = reason = str(against[0])
            elif verdict == "allow" and held_by(state, key, foreseen.vms[0]) is not None:
                reason = f"{foreseen.vms[0]} has it already"
        sent_to = foreseen.vms[0] if verdict == "allow" and foreseen.vms else vm
        return Target(
            vm=vm,
            state=domain.state,
            verdict=cast("Verdict", verdict if refused is None else "deny"),
            reason=bounded_text(reason),
            rule=None if decision.rule is None else bounded_text(decision.rule.where),
            read_only=device.read_only or decision.read_only,
            target=None if sent_to == vm else bounded_text(sent_to),
        )


def _denied(domain: DomainInfo, device: Device, reason: str) -> Target:
    """The device cannot be lent to any VM."""
    return Target(
        vm=domain.name,
        state=domain.state,
        verdict="deny",
        reason=bounded_text(reason),
        rule=None,
        read_only=device.read_only,
        target=None,
    )
