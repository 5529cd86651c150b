"""device.assign: notes that a VM is to have a device, and says what that would come to now.

An assignment is a wish and no permission: policy decides at the moment of each attach. So nothing
that stands against an attach now makes this fail: the device may be absent, lent, or denied. What
could never be, is refused: a VM that could never start with all that it requires.

For the order of the checks, and what a VM may learn from them, see attach.py. A VM can assign only
what it could attach, named by its port: all else is for dom0's user, who knows all devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio
from pedos_protocol.errors import CallError
from pedos_protocol.frozen import frozen
from pedos_protocol.messages import AssignResult

from pedos_dom0 import errors
from pedos_dom0.access.authorizer import Consents, MustAsk
from pedos_dom0.access.recorded import recorded
from pedos_dom0.access.subjects import AssignmentSubject, DeviceSubject
from pedos_dom0.attachments.fresh import unknown, wait_until_known
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.drivers.base import DOM0_NAME, DriverError
from pedos_dom0.requests.assignable import conflict
from pedos_dom0.requests.assigned_now import assigned_now
from pedos_dom0.requests.fitting import bounded_text
from pedos_dom0.tables.assignment import ANY_PORT, Assignment
from pedos_dom0.tables.registry import DeviceKey

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Literal

    from pedos_protocol.messages import AssignedNow, Device, DeviceAssign

    from pedos_dom0.access.authorizer import Authorizer
    from pedos_dom0.access.callers import Caller
    from pedos_dom0.state import State


@frozen
class AssignRequest:
    """Who asks for which assignment. Answers and audit lines share the id `request`."""

    caller: Caller
    request: str
    params: DeviceAssign
    options: dict[str, str]
    asker_gone: trio.Event
    consents: Consents = attrs.field(factory=Consents)

    @property
    def key(self) -> DeviceKey:
        """The port that is named, or none."""
        params = self.params
        return DeviceKey(params.device_class, params.backend, params.device or ANY_PORT)

    @property
    def subject(self) -> DeviceSubject:
        """What a VM that must not know more is told that its request was about."""
        return DeviceSubject("assign", self.key)


@frozen
class Meant:
    """What an assignment is to: a port or none, a lasting identity or "", and what policy is asked
    about."""

    key: DeviceKey
    identity: str
    subjects: tuple[DeviceSubject, ...]


class Assign:
    """Serves device.assign."""

    def __init__(self, state: State, authorizer: Authorizer) -> None:
        self._state = state
        self._authorizer = authorizer

    async def __call__(
        self, caller: Caller, request: str, params: DeviceAssign, asker_gone: trio.Event
    ) -> AssignResult:
        """Returns when the assignment is on the disk, or would be. Raises CallError."""
        parsed = class_of(params.device_class).parse_options(params.options)
        class_of(params.device_class).check_asker(parsed, is_dom0=caller.kind.sees_all)
        options = parsed.canonical()
        asked = AssignRequest(caller, request, params, options, asker_gone)
        self._check_request(asked)
        if params.dry_run:
            return await self._assign(asked)
        with recorded(
            self._state,
            "assign",
            caller,
            request,
            device_class=params.device_class,
            device=str(asked.key) if params.device else f"{params.backend}:*",
            identity=params.identity,
            vm=params.vm,
            options=options,
            match=params.match,
            mode=params.mode,
        ) as ending:
            result = await self._assign(asked)
            ending.outcome = result.outcome
            ending.changed = result.outcome != "already"
        return result

    def _check_request(self, asked: AssignRequest) -> None:
        """Raises CallError for what makes no sense, whatever there is."""
        params = asked.params
        if params.vm == DOM0_NAME:
            raise errors.target_is_dom0()
        if params.vm == params.backend:
            raise errors.target_is_backend(params.vm)
        if params.device is None and (params.match != "device" or not params.identity):
            raise errors.usage("name a port, or an identity for a device at any port")
        if params.device is None and not asked.caller.kind.sees_all:
            raise errors.usage("a VM names the port: only dom0's user assigns to any")
        described = class_of(params.device_class).description
        if not described.live and params.mode != "required":
            raise errors.usage(
                f"a VM gets assigned {described.many} at its start and not later, so the mode of "
                f"their assignments is required and not {params.mode}"
            )

    async def _assign(self, asked: AssignRequest) -> AssignResult:
        state, params = self._state, asked.params
        meant = await self._allowed(asked)
        own = await self._own_frontends(asked)
        domain = state.domain(params.vm)
        if domain is None:  # it was removed while dom0's user thought
            raise self._tell(asked, errors.no_vm(params.vm))
        made = Assignment(
            params.vm,
            meant.key,
            asked.options,
            meant.identity,
            uuid=domain.uuid,
            mode=params.mode,
        )
        outcome: Literal["assigned", "changed", "already"]
        before = next((a for a in state.store.assignments(made.vm) if a.slot == made.slot), None)
        outcome = "assigned" if before is None else "already" if before == made else "changed"
        if outcome != "already":
            self._check_assignable(asked, made, own)
        if not params.dry_run:
            await self._write(asked, made, own)
        result = self._result(asked, made, outcome)
        return attrs.evolve(result, now=result.now and await self._as_told(made, result.now))

    async def _as_told(self, made: Assignment, now: AssignedNow) -> AssignedNow:
        """With what the hypervisor has against it, if nothing else is known to be."""
        if not now.matches or now.held_by is not None or now.unfit is not None:
            return now
        key = attrs.evolve(made.key, device=now.matches[0])
        carrier = self._state.carrier(key.device_class)
        why = await carrier.why_unfit(key, made.vm, made.options)
        return now if why is None else attrs.evolve(now, unfit=bounded_text(why))

    async def _write(self, asked: AssignRequest, made: Assignment, own: Collection[str]) -> None:
        state = self._state

        def check() -> None:
            is_noted = any(row.vm == made.vm for row in state.store.starts())
            if made.mode == "required" and is_noted and made.vm in state.facts.starting:
                raise self._tell(asked, errors.being_started(made.vm))
            self._check_assignable(asked, made, own)

        # Whoever assigns a device wants the VM to have it, also if it was detached a while ago.
        for key in state.matches(made):
            await state.store.let_go(key, made.vm)
        await state.store.assign(
            made.vm,
            made.key,
            made.options,
            made.identity,
            mode=made.mode,
            uuid=made.uuid,
            check=check,
        )
        state.touch(made)

    # Who may, and what is meant

    async def _allowed(self, asked: AssignRequest) -> Meant:
        """What is meant, as of the moment of the return, which the caller may assign."""
        if asked.caller.kind.sees_all:
            self._state.known_domain(asked.params.vm)
            self._state.known_domain(asked.params.backend)
            await self._wait(asked)
        elif self._decide_for_vm(asked) != "deny":
            await self._wait(asked)
        while True:
            if not asked.caller.kind.sees_all:
                self._require_for_vm(asked)
            meant = self._meant(asked)
            try:
                for subject in meant.subjects:
                    self._require(asked, subject)
            except MustAsk as needed:
                await self._authorizer.ask(
                    *(asked.caller, needed, asked.request, asked.consents, asked.asker_gone),
                    only_present=True,
                )
                continue
            return meant

    def _require(self, asked: AssignRequest, subject: DeviceSubject) -> None:
        """As the authorizer does. A dry run of dom0's user asks nobody: it changes nothing, and a
        window makes one for each thing that is edited."""
        try:
            self._authorizer.require(
                asked.caller, subject, asked.params.vm, asked.request, asked.consents
            )
        except MustAsk:
            if not (asked.params.dry_run and asked.caller.kind.sees_all):
                raise

    async def _wait(self, asked: AssignRequest) -> None:
        """Until the source's agent is there after a restart, and the device identified. A VM must
        not learn of others from the duration of an answer."""
        if asked.caller.kind.sees_all:
            await self._state.agents.wait_expected((asked.params.backend,))
        if asked.caller.kind.sees_all or asked.params.backend == asked.caller.name:
            await wait_until_known(self._state, [asked.key])

    def _decide_for_vm(self, asked: AssignRequest) -> str:
        return self._authorizer.decide(asked.caller.name, asked.subject, asked.params.vm).verdict

    def _require_for_vm(self, asked: AssignRequest) -> None:
        """A denial comes before anything is looked up: then nothing can be learnt from it."""
        if self._decide_for_vm(asked) != "ask":
            self._authorizer.require(
                asked.caller, asked.subject, asked.params.vm, asked.request, asked.consents
            )

    def _meant(self, asked: AssignRequest) -> Meant:
        """CallError if it cannot be told, or is not what was expected."""
        try:
            return self._looked_up(asked)
        except CallError as error:
            if error.code == "usage":
                raise
            raise self._tell(asked, error) from error

    def _looked_up(self, asked: AssignRequest) -> Meant:
        state, params, key = self._state, asked.params, asked.key
        state.known_domain(params.vm)
        device_class, expected = class_of(params.device_class), params.identity
        device = None if params.device is None else state.registry.get(key)
        if device is None:
            if not asked.caller.kind.sees_all:
                raise errors.no_device(key, None)
            return self._absent(asked)
        if unknown(state, key) is not None:
            raise errors.not_known(key, device)
        lasting = device_class.lasting_identity(device.identity)
        if expected not in (None, device.identity) and expected != (lasting or None):
            raise errors.another_device(key, expected or "", device.identity)
        if params.match == "port":
            return Meant(key, "", (AssignmentSubject("assign", key, ""),))
        if not lasting:
            raise errors.no_lasting_identity(key)
        if params.match == "both":
            return Meant(key, lasting, (DeviceSubject("assign", key),))
        any_port = attrs.evolve(key, device=ANY_PORT)
        return Meant(any_port, lasting, self._subjects(any_port, lasting, device))

    def _absent(self, asked: AssignRequest) -> Meant:
        """What a device is that is not there, or named by its identity alone."""
        params, key = asked.params, asked.key
        if params.match == "port":
            return Meant(key, "", (AssignmentSubject("assign", key, ""),))
        if not params.identity:
            raise errors.not_there_to_identify(key)
        lasting = class_of(params.device_class).lasting_identity(params.identity)
        if not lasting:
            raise errors.usage(f"'{params.identity}' does not last: no device keeps it")
        if params.match == "device":
            key = attrs.evolve(key, device=ANY_PORT)
        return Meant(key, lasting, self._subjects(key, params.identity))

    def _subjects(
        self, key: DeviceKey, identity: str, device: Device | None = None
    ) -> tuple[DeviceSubject, ...]:
        """One for each device that has the identity, and that of the identity alone if none has."""
        found: Collection[DeviceKey] = ()
        if key.device == ANY_PORT:
            lasting = class_of(key.device_class).lasting_identity(identity)
            found = self._state.registry.devices_of(key.backend).identified(
                key.device_class, lasting
            )
        return tuple(DeviceSubject("assign", each) for each in found) or (
            AssignmentSubject("assign", key, identity),
        )

    # What could never be

    def _check_assignable(
        self, asked: AssignRequest, made: Assignment, own: Collection[str]
    ) -> None:
        """CallError if the VM could never start with it, or has too many already."""
        state = self._state
        frontend = class_of(made.key.device_class).asked_name(made.options)
        others = state.store.assignments(made.vm)
        error = conflict(
            made.vm,
            made.key,
            frontend,
            others,
            state.registry,
            own,
            identity=made.identity,
            mode=made.mode,
        )
        if error is not None:
            raise self._tell(asked, error)

    async def _own_frontends(self, asked: AssignRequest) -> Collection[str]:
        """The names of the VM's own disks, where they matter and the hypervisor knows them."""
        params = asked.params
        if class_of(params.device_class).asked_name(asked.options) is None:
            return ()
        try:
            return await self._state.carrier(params.device_class).own_names(params.vm)
        except DriverError as error:
            what = f"which disks {params.vm} has of its own could not be looked at: {error}"
            raise self._tell(asked, errors.failure(error.code, what)) from error

    # The answer

    def _tell(self, asked: AssignRequest, error: CallError) -> CallError:
        """`error`, unless it would tell a VM about the state of another one."""
        its_own = asked.params.vm == asked.caller.name
        if asked.caller.kind.sees_all or (its_own and error.code != "not_found"):
            return error
        return self._authorizer.hidden(asked.subject, asked.params.vm, error)

    def _result(
        self,
        asked: AssignRequest,
        made: Assignment,
        outcome: Literal["assigned", "changed", "already"],
    ) -> AssignResult:
        sees_all = asked.caller.kind.sees_all
        return AssignResult(
            outcome=outcome,
            options=asked.options,
            request=asked.request,
            vm=made.vm,
            device=made.key.device or None if sees_all else asked.params.device,
            identity=made.identity if sees_all else asked.params.identity or "",
            now=assigned_now(self._state, self._authorizer, made) if sees_all else None,
        )
