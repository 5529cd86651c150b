"""device.info: everything that is known of one device, and what the rules say to dom0's user.

It answers from dom0's own tables, like a list, and tells a VM nothing that a list would not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import attrs
from pedos_protocol.info_messages import UNFIT_MAX
from pedos_protocol.messages import Decided, DeviceTold, Relative
from pedos_protocol.names import natural_key

from pedos_dom0 import errors
from pedos_dom0.access.authorizer import refusal
from pedos_dom0.access.subjects import DeviceSubject, as_named, device_argument
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.drivers.base import DOM0_NAME
from pedos_dom0.requests.absent import why_absent
from pedos_dom0.requests.fitting import bounded_text, fitting
from pedos_dom0.requests.unfit import unfit

if TYPE_CHECKING:
    from pedos_protocol.errors import CallError
    from pedos_protocol.messages import Verdict

    from pedos_dom0.access.authorizer import Authorizer
    from pedos_dom0.access.callers import Caller
    from pedos_dom0.requests.listing import Listing
    from pedos_dom0.state import State
    from pedos_dom0.tables.registry import DeviceKey

# Relatives that are looked at: a disk's partitions are rarely more, and a VM may report thousands.
RELATIVES_MAX = 64
# Bytes of the relatives, and of the decisions. A list leaves 20 KiB of a frame free beside one
# device with all that it may have (listing.ENVELOPE_MAX).
RELATIVES_BYTES = 5 * 1024
DECIDED_BYTES = 12 * 1024
# VMs in one of the decisions, which are told or left out whole.
GROUP_MAX = 64
# Decisions in one step: some milliseconds, for a device that is not fully known.
STEP = 16


class Info:
    """Serves device.info."""

    def __init__(self, state: State, authorizer: Authorizer, listing: Listing) -> None:
        self._state = state
        self._authorizer = authorizer
        self._listing = listing

    async def __call__(self, caller: Caller, key: DeviceKey) -> DeviceTold:
        """Raises CallError(not_found), the same for a VM whether the device does not exist or the
        VM may not see it; CallError(denied) if a rule hides it from dom0's user."""
        state = self._state
        decided = await self._decided(caller, key)
        # From here on nothing is awaited, so that all parts are of one moment.
        uses = self._listing.uses_of(caller, (key,))
        (device,) = self._listing.shown_to(caller, (key,), uses)
        if device is None:
            raise self._hidden(caller, key)
        told = fitting(decided, DECIDED_BYTES) if decided else ()
        relatives, left_out = self._relatives(caller, key)
        return DeviceTold(
            device=device,
            argument=device_argument(key, state.registry),
            lasting=class_of(key.device_class).lasting_identity(device.identity),
            unfit=tuple(map(bounded_text, unfit(state, caller, key)))[:UNFIT_MAX],
            relatives=relatives,
            relatives_left_out=left_out,
            decided=told,
            vms_left_out=sum(len(each.vms) for each in decided[len(told) :]),
        )

    def _hidden(self, caller: Caller, key: DeviceKey) -> CallError:
        if not caller.kind.sees_all:
            message = f"this VM sees no {key.device_class} device {key}"
            return errors.failure("not_found", message)
        if self._state.registry.get(key) is None:
            return why_absent(self._state, key)
        subject = DeviceSubject("list", key)
        decision = self._authorizer.decide(DOM0_NAME, subject, DOM0_NAME)
        why = refusal(subject, DOM0_NAME, decision)
        return self._authorizer.denied(subject, DOM0_NAME, decision, why)

    def _relatives(self, caller: Caller, key: DeviceKey) -> tuple[tuple[Relative, ...], int]:
        """The others that it cannot be lent beside, and how many more there are."""
        keys = self._state.registry.relatives(key) - {key}
        if not caller.kind.sees_all and key.backend != caller.name:
            # How many of them another VM has is not for this one to know.
            keys &= {lease.key for lease in self._state.leases.of_vm(caller.name)}
        in_order = sorted(keys, key=lambda each: (each.device_class, natural_key(each.device)))
        looked_at = in_order[:RELATIVES_MAX]
        uses = self._listing.uses_of(caller, looked_at)
        seen = [
            Relative(each.device_class, each.device, tuple(to.vm for to in listed.attachments))
            for each, listed in zip(
                looked_at, self._listing.shown_to(caller, looked_at, uses), strict=True
            )
            if listed is not None
        ]
        told = fitting(seen, RELATIVES_BYTES) if seen else ()
        return told, len(seen) - len(told) + len(in_order) - len(looked_at)

    async def _decided(self, caller: Caller, key: DeviceKey) -> list[Decided]:
        """What the rules say about an attach by dom0's user to each VM that runs: those with the
        same answer together. For nobody else; and of a device that is there, as rules need to know
        what it is."""
        state = self._state
        if not caller.kind.sees_rules or state.registry.get(key) is None:
            return []
        running = (
            name
            for name, domain in state.driver.domains().items()
            if domain.domid is not None and name not in (DOM0_NAME, key.backend)
        )
        groups: dict[Decided, list[str]] = {}
        for number, vm in enumerate(sorted(running, key=natural_key), start=1):
            groups.setdefault(self._decide(key, vm), []).append(vm)
            if number % STEP == 0:
                await caller.turn()
        return [
            attrs.evolve(group, vms=tuple(vms[at : at + GROUP_MAX]))
            for group, vms in groups.items()
            for at in range(0, len(vms), GROUP_MAX)
        ]

    def _decide(self, key: DeviceKey, vm: str) -> Decided:
        subject = DeviceSubject("attach", key)
        decision = self._authorizer.decide(DOM0_NAME, subject, vm)
        refused, rule = refusal(subject, vm, decision), decision.rule
        target = None if decision.target is None else as_named(decision.target)
        return Decided(
            vms=(),
            verdict=cast("Verdict", decision.verdict if refused is None else "deny"),
            rule=None if rule is None else bounded_text(rule.where),
            text=None if rule is None else bounded_text(rule.text),
            default=decision.default,
            reason=bounded_text(refused or decision.reason),
            read_only=decision.read_only,
            target=None if target in (None, vm) else bounded_text(str(target)),
        )
