"""device.unassign: takes assignments away, and nothing that is attached.

dom0's user may do so without a rule, unless one forbids it: it takes nothing from any VM. A VM
needs the rule with which it could assign.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from pedos_protocol.errors import CallError
from pedos_protocol.frozen import frozen
from pedos_protocol.messages import ErrorInfo, UnassignItem, UnassignResult

from pedos_dom0 import errors
from pedos_dom0.access.authorizer import Consents, MustAsk
from pedos_dom0.access.callers import as_told
from pedos_dom0.access.recorded import recorded
from pedos_dom0.access.subjects import AssignmentSubject, DeviceSubject
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.drivers.base import DOM0_NAME
from pedos_dom0.requests.fitting import results_fitting
from pedos_dom0.tables.assignment import ANY_PORT, slot
from pedos_dom0.tables.registry import DeviceKey

if TYPE_CHECKING:
    import trio
    from pedos_protocol.messages import DeviceUnassign, Verb

    from pedos_dom0.access.authorizer import Authorizer
    from pedos_dom0.access.callers import Caller
    from pedos_dom0.state import State
    from pedos_dom0.tables.store import Assignment


@frozen
class Asking:
    """Who asks, under which id, and when the asker has stopped waiting."""

    caller: Caller
    request: str
    gone: trio.Event


class Unassign:
    """Serves device.unassign."""

    def __init__(self, state: State, authorizer: Authorizer) -> None:
        self._state = state
        self._authorizer = authorizer

    async def __call__(
        self, caller: Caller, request: str, params: DeviceUnassign, asker_gone: trio.Event
    ) -> UnassignResult:
        """Takes one assignment away, or all of a class. Raises CallError, for one alone: a failure
        of one of many stands in its item."""
        asking = Asking(caller, request, asker_gone)
        state, vm = self._state, params.vm
        sees_all = caller.kind.sees_all
        if sees_all and state.domain(vm) is None and not state.store.assignments(vm):
            raise errors.no_vm(vm)  # a removed VM may still have assignments
        theirs = state.store.assignments(vm) if sees_all else state.assigned_to(vm)
        if params.backend is not None:
            return await self._one(asking, params, theirs)
        items = []
        for each in theirs:
            if each.key.device_class == params.device_class:
                item = await self.item(asking, each, "assign")
                if item is not None:
                    items.append(item)
        if not items and not sees_all and caller.name != vm:
            about = f"{params.device_class} devices"
            raise errors.DeniedError(f"{about} -> {vm}", "", {"device": about, "vm": vm})
        return UnassignResult(results=results_fitting(items), request=asking.request)

    async def _one(
        self, asking: Asking, params: DeviceUnassign, theirs: list[Assignment]
    ) -> UnassignResult:
        """The named one; a VM that may not know of it is denied as if there were none."""
        assert params.backend is not None
        caller = asking.caller
        key = DeviceKey(params.device_class, params.backend, params.device or ANY_PORT)
        lasting = class_of(params.device_class).lasting_identity(params.identity)
        its = slot(key, lasting)
        found = next((each for each in theirs if each.slot == its), None)
        is_expected = params.device is None or params.identity is None
        if found is None or not (is_expected or found.identity == lasting):
            name = _named(key, params.identity)
            truth = errors.not_assigned(name, params.device_class, params.vm)
            if caller.kind.sees_all or caller.name == params.vm:
                raise truth
            raise self._authorizer.hidden(DeviceSubject("assign", key), params.vm, truth)
        item = await self._unassign(asking, found, "assign")
        return UnassignResult(results=(item,), request=asking.request)

    async def item(self, asking: Asking, each: Assignment, verb: Verb) -> UnassignItem | None:
        """The result for one of many; None if the caller may not learn that it exists. `verb` is
        the operation that policy decides about."""
        caller = asking.caller
        try:
            return await self._unassign(asking, each, verb)
        except CallError as failed:
            error = failed
        if error.code == "denied" and not caller.kind.sees_all and caller.name != each.vm:
            return None
        told = ErrorInfo.of(as_told(caller, error, asking.request))
        return attrs.evolve(_item(each), unassigned=False, error=told)

    async def _unassign(self, asking: Asking, each: Assignment, verb: Verb) -> UnassignItem:
        state, caller = self._state, asking.caller
        with recorded(
            state,
            "unassign",
            caller,
            asking.request,
            device_class=each.key.device_class,
            device=str(each),
            identity=each.identity,
            vm=each.vm,
            mode=each.mode,
        ) as ending:
            await self._allow(asking, each, verb)
            done = await state.store.unassign(each.vm, each.key, each.identity)
            ending.outcome = "unassigned" if done else "already"
            ending.changed = done
        state.touch(each)
        return _item(each)

    async def _allow(self, asking: Asking, each: Assignment, verb: Verb) -> None:
        """CallError unless the policy, or dom0's user, allows it."""
        state, caller, vm = self._state, asking.caller, each.vm
        subject = self._subject(each, verb)
        if caller.kind.may_unassign:
            no_rule = self._authorizer.decide(DOM0_NAME, subject, vm).rule is None
            if no_rule or state.is_orphan(each) or not class_of(each.key.device_class).is_known:
                return
        consents = Consents()
        while True:
            try:
                self._authorizer.require(caller, subject, vm, asking.request, consents)
                return
            except MustAsk as needed:
                await self._authorizer.ask(
                    caller, needed, asking.request, consents, asking.gone, only_present=True
                )

    def _subject(self, each: Assignment, verb: Verb) -> DeviceSubject:
        """What policy is asked about: the device, if it is there; otherwise what is known of it."""
        matches = self._state.matches(each)
        if matches and each.identity:
            return DeviceSubject(verb, matches[0])
        return AssignmentSubject(verb, each.key, each.identity)


def _named(key: DeviceKey, identity: str | None) -> str:
    return f"{key.backend}:*:{identity or ''}" if key.device == ANY_PORT else str(key)


def _item(each: Assignment) -> UnassignItem:
    return UnassignItem(
        backend=each.key.backend,
        device=each.key.device or None,
        identity=each.identity,
        mode=each.mode,
        unassigned=True,
    )
