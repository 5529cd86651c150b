"""The services of this VM that others call: each call from dom0's word to its end."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import trio
from pedos_host.faultpoints import reach
from pedos_host.passed import closer
from pedos_protocol.agent_messages import parse_params
from pedos_protocol.call_messages import RunningCall, ServiceEnded, ServiceStart
from pedos_protocol.errors import CallError
from pedos_protocol.keeper_link import (
    EXITED,
    SIGNALLED,
    Connected,
    Ended,
    NotFound,
    Problem,
    Run,
    Spawned,
    Waiting,
)
from pedos_protocol.schema import to_wire
from pedos_vchan.call_pump import LOST, CallEnd, CallPump, Event, EventKind
from pedos_vchan.channel import Channel
from pedos_vchan.peer import Handler, Peer

from pedos_agent.calls.channels import Channels, Tell
from pedos_agent.calls.keepers import KeeperCall, Keepers
from pedos_agent.settings import Settings
from pedos_agent.system.reading import words

log = logging.getLogger(__name__)

# Exit statuses of programs that call (docs/services.md).
PROBLEM, NOT_FOUND = 125, 127
_NONE: Final = -1  # no descriptor
_BOTH: Final = frozenset((EventKind.STDIN_ENDED, EventKind.STDOUT_ENDED))
# Ends by which the caller, or its VM, is gone.
_GONE: Final = frozenset((LOST, "aborted"))


Begin: TypeAlias = Callable[..., None]


class Streams(NamedTuple):
    """A descriptor for each stream of a service; -1 where there is none."""

    stdin: int
    stdout: int
    stderr: int

    def close(self) -> None:
        """Close those that there are."""
        for each in self:
            if each != _NONE:
                os.close(each)


_NOTHING: Final = Streams(_NONE, _NONE, _NONE)


def make_streams(with_stderr: bool) -> tuple[Streams, Streams]:
    """Ours, and those of the service: two socket pairs and a pipe. OSError."""
    made: list[int] = []
    try:
        for _ in range(2):
            made += [each.detach() for each in socket.socketpair()]
        made += os.pipe() if with_stderr else (_NONE, _NONE)
    except OSError:
        for each in made:
            os.close(each)
        raise
    ours_in, stdin, ours_out, stdout, ours_err, stderr = made
    return Streams(ours_in, ours_out, ours_err), Streams(stdin, stdout, stderr)


class Serving:
    """The calls that run here."""

    def __init__(self, settings: Settings, channels: Channels, tell: Tell) -> None:
        """`tell` gets the notices for dom0."""
        self._keepers = Keepers(only=settings.keeper)
        # What a caller has named is for dom0 to know: policy may have led it elsewhere.
        self._tells_target = settings.control_socket is not None
        self._channels = channels
        self._tell = tell
        self._calls: dict[str, ServedCall] = {}
        self._nursery: trio.Nursery | None = None

    def handlers(self) -> Mapping[str, Handler]:
        """What dom0 may ask for."""
        return {"service.start": self._start}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def kill(self, call: str, kind: str, status: int, text: str) -> bool:
        """End a call; whether there is such a one here."""
        await trio.lowlevel.checkpoint()
        found = self._calls.get(call)
        if found is not None:
            found.kill(kind, status, text)
        return found is not None

    def running(self) -> list[RunningCall]:
        """The calls that run here."""
        return [each.state() for each in self._calls.values()]

    async def _start(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        """Answered when the service runs, or will not, or waits. CallError if the channel cannot
        be used: then nothing else is told of the call."""
        wanted = parse_params("service.start", params)
        if wanted.call in self._calls:
            raise CallError("busy", f"the call {wanted.call} runs here already")
        if self._nursery is None:
            raise CallError("unavailable", "this VM's agent ends")
        target = wanted.requested_target if self._tells_target else ""
        call = self._calls[wanted.call] = ServedCall(
            wanted, target, self._keepers, self._tell, self._nursery.start_soon
        )
        try:
            channel = await self._channel(wanted)
        except BaseException:
            del self._calls[wanted.call]
            raise
        self._nursery.start_soon(self._serve, call, channel)
        await call.known.wait()
        return {"started": call.is_started}

    async def _channel(self, wanted: ServiceStart) -> Channel:
        if wanted.new:
            channel = await self._channels.connect(wanted.peer, wanted.port)
        else:
            channel = await self._channels.take(wanted.peer, wanted.port)
        try:
            await reach("serving.connected")
        except BaseException:  # dom0's service has ended
            self._channels.give_back(channel, "its call was not begun")
            raise
        return channel

    async def _serve(self, call: ServedCall, channel: Channel) -> None:
        reason = "the agent ended"
        try:
            end = await call.serve(channel)
            reason = end.reason
            await reach("serving.ended")
        finally:
            call.known.set()
            del self._calls[call.wanted.call]
            self._channels.give_back(channel, reason)
        self._tell("service.ended", to_wire(call.told(end)))


class ServedCall:
    """One call of a service here. `known` is set when it runs, or will not, or waits."""

    def __init__(
        self, wanted: ServiceStart, target: str, keepers: Keepers, tell: Tell, begin: Begin
    ) -> None:
        """`target` is what the service is told that its caller has asked for, if anything. `begin`
        starts a task beside this one's: a nursery for each call would cost more than the task."""
        self._begin = begin
        self.wanted = wanted
        self._target = target
        self.known = trio.Event()
        self.is_started = False
        self._keepers = keepers
        self._tell = tell
        self._since = trio.current_time()
        self._started_s: float | None = None
        self._pump: CallPump | None = None
        self._keeper: KeeperCall | None = None
        # Of what its keeper passes, and what it sends into our streams.
        self._owner = f"services of {wanted.user or 'the first user'}"
        self._killed: tuple[str, int, str] | None = None
        self._ended: set[EventKind] = set()
        self._is_caller_gone = False
        # Our end of the service's streams, and streams that were made and are not the service's:
        # until the pump has them.
        self._ours = self._unused = _NOTHING

    def state(self) -> RunningCall:
        """It as dom0 is told of it."""
        wanted = self.wanted
        counts = (0, 0, 0) if self._pump is None else self._pump.counts()
        stdin, stdout, stderr = counts
        return RunningCall(
            call=wanted.call,
            side="service",
            service=wanted.service,
            argument=wanted.argument,
            user=wanted.user,
            peer=wanted.peer,
            port=wanted.port,
            seconds=trio.current_time() - self._since,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )

    def told(self, end: CallEnd) -> ServiceEnded:
        """Its end as dom0 is told of it."""
        return ServiceEnded(
            call=self.wanted.call,
            kind=end.kind,  # type: ignore[arg-type]
            status=end.status if end.kind in (EXITED, SIGNALLED) else 0,
            text=end.text,
            stdin=end.stdin,
            stdout=end.stdout,
            stderr=end.stderr,
            started_s=self._started_s,
            seconds=trio.current_time() - self._since,
            reusable=end.is_reusable,
            reason=end.reason,
            breach=end.is_breach,
        )

    def kill(self, kind: str, status: int, text: str) -> None:
        """End it: the service at once, and for the caller as this says. A service that has only
        lost its caller ends as it is configured."""
        self._killed = self._killed or (kind, status, text)
        if kind == LOST:
            self._caller_is_gone()
        elif self._keeper is not None:
            self._keeper.signal(signal.SIGKILL)
        if self._pump is not None:
            self._end(self._pump, *self._killed)

    async def serve(self, channel: Channel) -> CallEnd:
        """Carry it over the channel until its end. Its errors are ends of the call."""
        try:
            return await self._serve(channel)
        except Exception as error:
            # The attachments of this VM are none of this call's business.
            if not isinstance(error, OSError):
                log.exception("a call of %s breaks off", self.wanted.service)
            reason = words(error) if isinstance(error, OSError) else "the agent failed"
            text = f"the call cannot be carried: {reason}"
            return CallEnd("problem", PROBLEM, text, 0, 0, 0, is_reusable=False, reason=reason)

    async def _serve(self, channel: Channel) -> CallEnd:
        call = bytes.fromhex(self.wanted.call)
        self._pump = pump = CallPump(channel, "service", call, self._on_event)
        try:
            await self._start(pump)
            pump.wanted = _wanted(self._answer())
            self._follow(pump)
            ours, unused = self._ours, self._unused
            self._ours = self._unused = _NOTHING
            # Others may have a socket of the service's open, and one may be two of these.
            end = await pump.run(*ours, shutdown=True, owner=self._owner, done_with=unused)
            if self._keeper is not None and end.kind not in _GONE and not self._is_caller_gone:
                self._keeper.finish()
            return end
        finally:
            self._pump = None  # which refers to this, and has descriptors
            closer.close(self._owner, (*self._ours, *self._unused))
            if self._keeper is not None:
                self._keeper.close()

    def _answer(self) -> object:
        return None if self._keeper is None else self._keeper.answer

    async def _start(self, pump: CallPump) -> None:
        """Has the service started. If it does not run, it has no streams; the pump knows why."""
        wanted = self.wanted
        if self._killed is not None:  # before it was begun
            self._end(pump, *self._killed)
            return
        run = Run(
            call=wanted.call,
            service=wanted.service,
            argument=wanted.argument,
            source=wanted.source,
            target=self._target,
            is_forced=False,
        )
        try:
            self._ours, theirs = make_streams(wanted.stderr)
        except OSError as error:
            pump.exit("problem", PROBLEM, f"the service has no streams: {words(error)}")
            return
        try:
            passed = [each for each in theirs if each != _NONE]
            self._keeper = keeper = await self._keepers.run(run, wanted.user, passed)
        finally:
            theirs.close()
        if isinstance(keeper.answer, Waiting):
            self.known.set()
            await keeper.next_answer()
        if isinstance(keeper.answer, Connected):
            self._unused, service = self._ours, keeper.take_service()
            self._ours = Streams(service, _NONE, _NONE)
            # One socket as stdin and as stdout.
            self._ours = Streams(service, os.dup(service), _NONE)
            keeper.finish()
        elif not isinstance(keeper.answer, Spawned):
            closer.close(self._owner, self._ours)
            self._ours = _NOTHING
            self._not_started(pump, keeper.answer)
        if self._ours != _NOTHING:
            await self._note_start()
        if self._killed is not None:  # while it was being started
            if self._killed[0] != LOST:
                keeper.signal(signal.SIGKILL)
            self._end(pump, *self._killed)

    async def _note_start(self) -> None:
        await reach("serving.spawned")
        self.is_started = True
        self._started_s = trio.current_time() - self._since
        if self.known.is_set():
            self._tell("service.started", {"call": self.wanted.call})
        self.known.set()

    def _not_started(self, pump: CallPump, answer: object) -> None:
        if self._killed is not None:
            self._end(pump, *self._killed)
        elif isinstance(answer, NotFound):
            pump.exit("not_found", NOT_FOUND, answer.text)
        elif isinstance(answer, Problem):
            pump.exit("problem", PROBLEM, answer.text)
        else:
            pump.exit("problem", PROBLEM, "its keeper does not keep to the protocol")

    def _follow(self, pump: CallPump) -> None:
        """Have the call end as the main process does. OSError."""
        if self._keeper is None or self._is_caller_gone:  # then it is hung up on
            return
        if isinstance(self._keeper.answer, Spawned):
            self._keeper.when_ended(partial(self._main_ended, pump), self._begin)

    def _main_ended(self, pump: CallPump, ended: Ended | None) -> None:
        if self._is_caller_gone or self._pump is not pump:  # it is over
            return
        if ended is None:
            pump.exit("problem", PROBLEM, "the keeper of the service has ended", now=True)
        elif ended.kind == EXITED:
            pump.main_exited(ended.status)
            pump.exit("exited", ended.status)
        else:
            pump.main_exited(128 + ended.status)
            pump.exit("signalled", ended.status)

    def _on_event(self, event: Event) -> None:
        pump, answer = self._pump, self._answer()
        if pump is None:
            return
        if event.kind is EventKind.CALLER_GONE:
            self._caller_is_gone()
        if not isinstance(answer, Spawned | Connected):
            return
        self._ended.add(event.kind)
        if event.kind is EventKind.SIGNAL and answer.forward_signals and self._keeper is not None:
            self._keeper.signal(event.number)
        is_over = (event.kind is EventKind.STDIN_ENDED and answer.exit_on_client_eof) or (
            event.kind is EventKind.STDOUT_ENDED and answer.exit_on_service_eof
        )
        if is_over:
            pump.exit("exited", 0, now=True)
        elif isinstance(answer, Connected) and self._ended >= _BOTH:
            pump.exit("exited", 0)

    def _caller_is_gone(self) -> None:
        """Have the keeper do what the service's configuration says of that."""
        self._is_caller_gone = True
        if self._keeper is not None:
            self._keeper.close()

    def _end(self, pump: CallPump, kind: str, status: int, text: str) -> None:
        """End it for the caller, at once."""
        try:
            pump.exit(kind, status, text, now=True)
        except (KeyError, ValueError):  # not every kind of end is one that a service can have
            pump.abort(text)


def _wanted(answer: object) -> frozenset[EventKind]:
    """What is to be told of a call's run."""
    wanted = {EventKind.CALLER_GONE}
    if isinstance(answer, Connected):
        wanted |= _BOTH
    if isinstance(answer, Spawned | Connected):
        if answer.exit_on_client_eof:
            wanted.add(EventKind.STDIN_ENDED)
        if answer.exit_on_service_eof:
            wanted.add(EventKind.STDOUT_ENDED)
        if answer.forward_signals:
            wanted.add(EventKind.SIGNAL)
    return frozenset(wanted)
