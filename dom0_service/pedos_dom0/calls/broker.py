"""A call as a transaction: policy, a place, a target that runs, a channel, the start, the answer.

`call` has the caller's request; the work is a task of the service, so that a question to dom0's
user is withdrawn in an orderly way when the caller gives up. The caller is answered as soon as it
can use the channel, and the service is started at the same time. What fails before the answer is
the answer, and leaves nothing; what fails after it is told to the caller's agent by `service.kill`.

From then on dom0 has no part in the call, until its end (ends.py).
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.messages import (
    ServiceCalled,
    parse_result,
    to_wire,
)
from pedos_protocol.names import END_TEXT_MAX, harmless_text, is_vm_name
from pedos_protocol.words import request_to

from pedos_dom0 import errors
from pedos_dom0.access.authorizer import Grant
from pedos_dom0.access.callers import DOM0_USER, VM, Caller, as_told
from pedos_dom0.access.subjects import ServiceSubject
from pedos_dom0.audit.log import new_request_id
from pedos_dom0.calls import story
from pedos_dom0.calls.call import Call, CallTable, ended_without_a_word
from pedos_dom0.calls.channels import Channels
from pedos_dom0.calls.ends import Ends
from pedos_dom0.calls.ready import Ready
from pedos_dom0.calls.slots import Slots
from pedos_dom0.calls.starts import Starts
from pedos_dom0.calls.wire import end_kind, outcome_of, start_of, user_of
from pedos_dom0.drivers.base import DOM0_NAME
from pedos_dom0.errors import DeniedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pedos_protocol.messages import RunningCall, ServiceCall

    from pedos_dom0.access.authorizer import Authorizer
    from pedos_dom0.calls.channels import CallChannel, Permit
    from pedos_dom0.calls.ready import StartVm
    from pedos_dom0.state import State
    from pedos_dom0.tables.agents import AgentLink

logger = logging.getLogger(__name__)

# Seconds for which a call waits for a place, and for the channels that are set up before its own.
WAIT_TIMEOUT = 10.0
# Seconds for the service's agent to connect a channel and to reach its keeper: milliseconds, unless
# it hangs.
START_TIMEOUT = 10.0
# How often policy is asked again because the call had to wait: rules and VMs may be others then.
ROUNDS_MAX = 4

DEFAULT_TARGET = "@default"
GAVE_UP = "the caller gave up"
MALFORMED = "it gave a malformed answer"


class Broker:
    """Begins all calls."""

    def __init__(
        self, state: State, nursery: trio.Nursery, authorizer: Authorizer, start_vm: StartVm
    ) -> None:
        self._state = state
        self._nursery = nursery
        self._authorizer = authorizer
        self._ready = Ready(state, nursery, start_vm)
        self.slots = Slots()
        self._starts: Starts[Call] = Starts()
        # When the next turn comes by itself, while some wait; whether they are given now.
        self._timer: trio.CancelScope | None = None
        self._are_passed_on = False
        self.table = CallTable()
        self.channels = Channels(state, nursery)
        self.ends = Ends(state, nursery, self.table, self.slots, self.channels, self._turn_is_over)

    # The beginning

    async def call(self, caller: Caller, request: str, asked: ServiceCall) -> ServiceCalled:
        """Serves a request of the agent of the VM `caller.name`. Raises CallError.

        If it is cancelled, nothing stays of the call.
        """
        source = self._state.agents.get(caller.name)
        if source is None:
            raise errors.agent_not_known_yet()
        call = Call(
            request=request,
            source=source,
            caller=caller,
            subject=ServiceSubject(asked.service, asked.argument),
            requested=asked.target or DEFAULT_TARGET,
            began=self._state.time(),
            user=asked.user,
        )
        has_task = False
        try:
            await self._state.reach("call.asked")
            await self._decide_at_once(call)
            if not call.decided.is_set:
                has_task = True
                call.gone = trio.Event()
                self._nursery.start_soon(self._work, call, caller)
                await call.decided.wait()
            # No answer is sent before the log has the decision.
            if self._state.audit.owes(request):
                await self._state.audit.written(request)
            await self._state.reach("call.granted")
        except trio.Cancelled:
            call.stop(GAVE_UP)
            if call.channel is not None:
                self._abandon(call, GAVE_UP)
            elif not has_task and not call.decided.is_set:
                self._withdraw(call, self._why_stopped(call))
            raise
        if call.failure is not None:
            if call.channel is not None:
                self._abandon(call, call.failure.message)
                raise call.failure
            raise call.take_failure()
        # No checkpoint from here to the answer: whatever is told to the agent later comes after it.
        self._answered(call)
        assert call.channel is not None
        return ServiceCalled(
            call=call.id,
            request=request,
            peer=call.channel.client.domid,
            port=call.channel.port,
            new=call.had_new_channel,
            target=call.target if caller.kind.sees_all else None,
        )

    async def _decide_at_once(self, call: Call) -> None:
        """Grants or denies a call that has to wait for nothing, without a task of its own. Any
        other is left as it is, for `_work`."""
        try:
            answer = self._authorizer.answer(
                call.caller, call.subject, call.requested, call.request, call.consents
            )
            if isinstance(answer, CallError):  # and the table of calls never has it
                self._fail(call, self._no_such_vm(call) or answer)
                return
            self.table.add(call)
            if isinstance(answer, Grant) and call.user is None and answer.user is None:
                await self._state.reach("call.decided")
                self._grant_at_once(call, answer)
        except Exception as raised:
            self._fail(call, self._as_failure(call, raised))

    def _no_such_vm(self, call: Call) -> CallError | None:
        """Why policy finds no rule: there is no such VM, which dom0's user may know."""
        name = call.requested
        if call.caller.kind.sees_all and is_vm_name(name) and self._state.is_gone(name):
            return errors.no_vm_to_call(name)
        return None

    def _fail(self, call: Call, failure: CallError) -> None:
        """It is not granted."""
        call.failure = failure
        self._withdraw(call, failure)
        call.decided.set()

    def _grant_at_once(self, call: Call, grant: Grant) -> None:
        if call.stopped is not None or not self.slots.is_free(call.source.name, grant.vm):
            return
        target = self._ready.at_once(grant.vm)
        channel = None if target is None else self.channels.take_idle(call.source, target)
        if target is None or channel is None:
            return
        call.stage_over("decide", now := self._state.time())
        self.slots.take_anyway(call.source.name, grant.vm)
        call.has_places, call.target = True, grant.vm
        self._begin(call, target, channel, None, now)
        call.decided.set()

    async def _work(self, call: Call, caller: Caller) -> None:
        """All that is to be done before the answer."""
        throttled = caller.kind.throttled
        paid = self._state.audit_throttle.paid_by(caller.audited, call.request, throttled=throttled)
        try:
            with errors.store_failures(), paid:
                await self._grant(call, caller)
        except Exception as raised:
            self._fail(call, self._as_failure(call, raised))
        call.decided.set()

    def _as_failure(self, call: Call, raised: Exception) -> CallError:
        """The answer; a mistake of this program ends this call alone."""
        if isinstance(raised, CallError):
            return raised
        logger.error("call of %s by %s", call.subject, call.source.name, exc_info=raised)
        return errors.failure("failed", "an internal error; the service's log has it")

    async def _grant(self, call: Call, caller: Caller) -> None:
        target = await self._admit(call, caller)
        await self._state.reach("call.decided")
        permit: Permit | None = None
        channel = self.channels.take_idle(call.source, target)
        try:
            if channel is None:
                with self._waiting(call):
                    permit = await self.channels.permit(call.source, target, WAIT_TIMEOUT)
                    channel = self.channels.take_idle(call.source, target)
                    if channel is None:
                        permit.waits_for = call.source
                        channel = await self._make_channel(call, target)
                        permit.waits_for = None
                await self._state.reach("call.listening")
            if call.stopped is not None:
                raise self._why_stopped(call)
        except BaseException:
            if permit is not None:
                permit.release()
            if channel is not None:
                self.channels.unused(channel)
            raise
        self._begin(call, target, channel, permit, self._state.time())

    def _begin(
        self,
        call: Call,
        target: AgentLink,
        channel: CallChannel,
        permit: Permit | None,
        now: float,
    ) -> None:
        """It is granted, and has its channel."""
        call.state = "starting"
        call.channel, call.server, call.had_new_channel = channel, target, channel.is_new
        channel.is_new = False
        call.stage_over("channel", now)
        self._start(call, permit, now)

    async def _admit(self, call: Call, caller: Caller) -> AgentLink:
        """Returns the agent of the VM that policy has chosen, when that VM can serve the call and
        there is a place for it. CallError."""
        if call.user is not None and not caller.kind.sees_all:
            raise errors.usage("only dom0 chooses the user of a service")
        asked_for = call.user
        for _ in range(ROUNDS_MAX):
            call.state = "asking"
            grant = await self._allowed(call, caller)
            if call.stopped is not None:
                raise self._why_stopped(call)
            call.stage_over("decide", self._state.time())
            call.state, call.user = "waiting", user_of(grant, asked_for)
            with self._waiting(call):
                waited = await self._take_place(call, grant)
                target, had_to_wait = await self._ready.agent(grant.vm, call.request)
            if not (waited or had_to_wait):
                return target
            # Rules, facts and the answer of dom0's user are about the VMs as they are now.
            call.stage_over("wait", self._state.time())
        raise errors.failure("busy", "policy and VMs kept changing", hint="try again")

    async def _allowed(self, call: Call, caller: Caller) -> Grant:
        """The permission, after a question if there is to be one. CallError."""
        assert call.gone is not None
        try:
            return await self._authorizer.allow(
                caller, call.subject, call.requested, call.request, call.gone, call.consents
            )
        except DeniedError:
            # Nobody has said no to a question that was withdrawn.
            if call.stopped is not None:
                raise self._why_stopped(call) from None
            raise

    async def _take_place(self, call: Call, grant: Grant) -> bool:
        """Whether it had to wait for a place."""
        if grant.vm.startswith("@"):
            raise errors.no_disposables(grant.vm)
        if call.has_places and call.target == grant.vm:
            return False
        self._give_places_back(call)
        waited = await self.slots.take(call.source.name, grant.vm, WAIT_TIMEOUT)
        call.has_places, call.target = True, grant.vm
        return waited

    def _give_places_back(self, call: Call) -> None:
        """Of a call that has not begun."""
        if call.has_places and call.target is not None:
            self.slots.caller_ended(call.source.name)
            self.slots.service_ended(call.source.name, call.target)
        call.has_places, call.target = False, None

    async def _make_channel(self, call: Call, target: AgentLink) -> CallChannel:
        try:
            return await self.channels.make(call.source, target)
        except CallError as error:
            said = harmless_text(error.message, END_TEXT_MAX)
            raise errors.no_channel(call.source.name, error.code, said) from error

    @contextmanager
    def _waiting(self, call: Call) -> Iterator[None]:
        """Within this, the call waits for something, until `Call.stop`: CallError then."""
        if call.stopped is not None:
            raise self._why_stopped(call)
        try:
            with trio.CancelScope() as call.scope:
                yield
        finally:
            call.scope = None
        if call.stopped is not None:
            raise self._why_stopped(call)

    def _why_stopped(self, call: Call) -> CallError:
        return errors.call_stopped(call.stopped or GAVE_UP)

    def _withdraw(self, call: Call, error: CallError) -> None:
        """It has come to nothing before any agent was told of it."""
        self._give_places_back(call)
        self.table.remove(call)
        story.began(self._state, call, outcome_of(error))
        call.answered.set()

    def _abandon(self, call: Call, why: str) -> None:
        """The service is being started, and the caller does not get to know of it."""
        assert call.channel is not None
        if "caller" not in call.ends:
            self.ends.side_over(call, "caller", ended_without_a_word(call, "aborted", why))
            if "service" not in call.ends and call.server is not None:
                self.ends.kill_soon(call.server, call, "aborted", why)
            self.channels.close(call.channel)
        self._answered(call)

    def _answered(self, call: Call) -> None:
        """The caller's agent gets its answer, or never will."""
        call.answered.set()
        if call.has_started or call.not_started is not None:
            self._told_of_start(call)

    # The service

    def _start(self, call: Call, permit: Permit | None, now: float) -> None:
        """Has the service started, when it is its turn among those of its source."""
        call.permit, call.start_by = permit, now + START_TIMEOUT
        if self._starts.begin(call.pair, call, now):
            self._ask_to_start(call)
            return
        if self._timer is None:
            self._timer = trio.CancelScope()
            self._nursery.start_soon(self._turns, self._timer)
        self._next_turns()

    def _ask_to_start(self, call: Call) -> None:
        assert call.server is not None
        if call.ends or call.ended_by is not None:  # while it waited
            self._not_asked(call)
            self._turn_is_over(call)
            return
        try:
            timeout = call.start_by - self._state.time()
            if timeout <= 0:
                raise CallError("timeout", "the services before it were not started in time")
            if call.permit is not None:
                call.permit.waits_for = call.server
            params = to_wire(start_of(call))
            then = partial(self._start_told, call, call.server)
            call.server.ask("service.start", params, timeout=timeout, then=then)
        except CallError as error:
            self._start_told(call, call.server, error)

    def _start_told(
        self, call: Call, target: AgentLink, untrusted_answer: dict[str, Any] | CallError
    ) -> None:
        """The answer to that."""
        if call.permit is not None:
            call.permit.release()
        self._take_start(call, target, untrusted_answer)
        self._starts.started(call.pair, call, self._state.time())
        self._next_turns()

    def _turn_is_over(self, call: Call) -> None:
        if call.permit is not None:
            call.permit.release()
        self._starts.over(call.pair, call, self._state.time())
        self._next_turns()

    def _next_turns(self) -> None:
        """Those begin whose turn it is."""
        if self._timer is None or self._are_passed_on:  # one that does not start ends its turn here
            return
        self._are_passed_on = True
        try:
            while (call := self._starts.next(self._state.time())) is not None:
                self._ask_to_start(call)
        finally:
            self._are_passed_on = False
        if (due := self._starts.next_due()) is not None:
            self._timer.deadline = due

    async def _turns(self, timer: trio.CancelScope) -> None:
        """While some wait: turns and rests are over by themselves, too."""
        while len(self._starts):
            with timer:
                await trio.sleep_forever()
            timer = self._timer = trio.CancelScope()
            self._next_turns()
        self._timer = None

    def _take_start(
        self, call: Call, target: AgentLink, untrusted_answer: dict[str, Any] | CallError
    ) -> None:
        try:
            if isinstance(untrusted_answer, CallError):
                raise untrusted_answer
            if parse_result("service.start", untrusted_answer).started:
                call.has_started = True
        except RemoteProtocolError as wrong:
            target.disconnect(f"its answer to {request_to('service.start')} is malformed: {wrong}")
            self._not_started(call, errors.target_unreachable(target.name, MALFORMED))
        except CallError as failed:
            said = harmless_text(failed.message, END_TEXT_MAX)
            self._not_started(call, errors.not_served(target.name, failed.code, said))
        self._told_of_start(call)

    def _told_of_start(self, call: Call) -> None:
        """What the service's agent has said about the start counts once the caller's has its
        answer."""
        if not call.answered.is_set:
            return
        if call.has_started:
            self._has_started(call)
        elif call.not_started is not None and "caller" not in call.ends:
            error, call.not_started = call.not_started, None
            told = as_told(call.caller, error, call.request).message
            self.ends.kill_soon(call.source, call, end_kind(error), told)

    def _not_started(self, call: Call, error: CallError) -> None:
        """The service's agent cannot use the channel, or may have done so too late."""
        assert call.channel is not None
        call.not_started = error
        call.failure = call.failure or error
        if call.server is not None and call.server.connected:
            self.ends.kill_soon(call.server, call, "aborted", error.message)
        self.ends.side_over(
            call, "service", ended_without_a_word(call, end_kind(error), error.message)
        )
        self.channels.close(call.channel)

    def _not_asked(self, call: Call) -> None:
        """The service's agent does not know of the call."""
        assert call.channel is not None
        self.ends.side_over(call, "service", ended_without_a_word(call, "aborted", GAVE_UP))
        self.channels.close(call.channel)

    def _has_started(self, call: Call) -> None:
        if call.state == "starting" and not call.ends:
            call.state = "running"
        if not call.began_is_told:
            call.stage_over("start", self._state.time())
        story.began(self._state, call, "started")

    def started(self, link: AgentLink, call_id: str) -> None:
        """The service's agent says that it runs now."""
        call = self.table.get(call_id)
        if call is None:
            return
        if call.side_of(link) != "service":
            link.disconnect("it says that a service has started which it does not have")
        else:
            call.has_started = True
            self._told_of_start(call)

    def adopt(self, source: AgentLink, server: AgentLink, running: RunningCall) -> None:
        """A call that an earlier run of this service has begun, as both agents tell."""
        is_dom0 = source.name == DOM0_NAME
        call = Call(
            request=new_request_id(),
            source=source,
            caller=DOM0_USER if is_dom0 else Caller(kind=VM, name=source.name),
            subject=ServiceSubject(running.service, running.argument),
            requested=server.name,
            user=running.user,
            id=running.call,
            target=server.name,
            server=server,
            state="running",
            channel=self.channels.adopt(running.port, source, server),
            began=self._state.time() - running.seconds,
        )
        call.decided.set()
        call.answered.set()
        self.slots.take_anyway(source.name, server.name)
        self.table.add(call)
        story.adopted(self._state, call)
