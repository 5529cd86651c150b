"""One call of a service here: a keeper starts the service, and the pump carries its streams.

Most calls take no task: the pump's thread hears from the keeper that the service runs, and how it
has ended. A call whose keeper says anything else, or cannot be asked at once, takes one until its
service runs or will not.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import trio
from pedos_host.faultpoints import pass_by
from pedos_host.passed import closer
from pedos_protocol.call_messages import RunningCall, ServiceEnded, ServiceStart
from pedos_protocol.keeper_link import (
    EXITED,
    SIGNALLED,
    Connected,
    ForUser,
    NotFound,
    Problem,
    Run,
    Spawned,
    Waiting,
)
from pedos_vchan.call_pump import LOST, CallEnd, CallPump, Event, EventKind
from pedos_vchan.channel import Channel
from pedos_vchan.event_loop import event_loop
from pedos_vchan.later import Later
from pedos_vchan.service_start import service_streams

from pedos_agent.calls.channels import Tell
from pedos_agent.calls.keepers import FIRST_WORD_SECONDS, KeeperCall, Keepers, silent
from pedos_agent.system.reading import words

log = logging.getLogger(__name__)

# Exit statuses of programs that call (docs/services.md).
PROBLEM, NOT_FOUND = 125, 127
# For the status of a program that has closed its output, with exit-on-service-eof: it is there in a
# few milliseconds if the program exits.
EXIT_SECONDS: Final = 1.0
_NONE: Final = -1  # no descriptor
_STARTED: Final = frozenset((EventKind.STARTED,))
_LITTLE: Final = frozenset((EventKind.CALLER_GONE,))
_BOTH: Final = frozenset((EventKind.STDIN_ENDED, EventKind.STDOUT_ENDED))
# Ends by which the caller, or its VM, is gone.
_GONE: Final = frozenset((LOST, "aborted"))
#: A service without options in its configuration. Whether it is a process or listens on a socket is
#: the business of the pump's thread then.
_PLAIN: Final = Spawned(False, False, False)


# Of stdin, stdout and stderr.
_NOTHING: Final = (_NONE, _NONE, _NONE)


class Desk(Protocol):
    """What a call needs of the agent."""

    keepers: Keepers
    tell: Tell

    def begin(self, task: Callable[..., Any], *arguments: Any) -> None:
        """Start a task. OSError."""
        ...

    def left(self, call: str, keeper: bytes) -> None:
        """The keeper at this path has been told that the caller is gone: what the call has started
        may run on."""
        ...

    async def end_left(self, call: str, keeper: bytes) -> None:
        """Have that keeper end it; returns when nothing that it has started runs."""
        ...

    def over(
        self, call: ServedCall, channel: Channel, end: CallEnd, *, is_known: bool = True
    ) -> None:
        """It is over, and uses the channel no longer. Without `is_known` only the agent knows
        nothing of it any more, as it ends."""
        ...


class ServedCall:
    """One call. `answer` is the one to service.start: given when the service runs, or will not, or
    waits. Whatever goes wrong in the call is its end."""

    def __init__(self, desk: Desk, wanted: ServiceStart, target: str) -> None:
        """`target` is what the service is told that its caller has asked for, if anything."""
        self._desk = desk
        self.wanted = wanted
        self._target = target
        self.answer = Later()
        self._loop = event_loop()
        self._since = self._loop.time()
        self._started_s: float | None = None
        self._channel: Channel | None = None
        self._pump: CallPump | None = None
        self._keeper: KeeperCall | None = None
        #: Until when the keeper has to say its first word.
        self.deadline = 0.0
        # Of what its keeper passes, and what it sends into our streams.
        self._owner = f"services of {wanted.user or 'the first user'}"
        self._killed: tuple[str, int, str] | None = None
        self._ended: set[EventKind] = set()
        self._is_hung_up = False  # on the keeper
        # Our ends of the service's streams, and streams that were made and are not the service's:
        # until the pump has them.
        self._ours: Sequence[int] = _NOTHING
        self._unused: Sequence[int] = ()
        self._is_watched = False  # for that deadline
        # Its end, once that is known, and only the keeper's word on its processes is lacking.
        self._end: CallEnd | None = None

    def state(self) -> RunningCall:
        """It as dom0 is told of it."""
        wanted = self.wanted
        if self._end is not None:
            counts = (self._end.stdin, self._end.stdout, self._end.stderr)
        else:
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
            seconds=self._loop.time() - self._since,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )

    @property
    def is_started(self) -> bool:
        """Whether its service has run."""
        return self._started_s is not None

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
            seconds=self._loop.time() - self._since,
            reusable=end.is_reusable,
            reason=end.reason,
            breach=end.is_breach,
        )

    def begin(self, channel: Channel) -> None:
        """Carry it over the channel until its end."""
        self._channel = channel
        self._step(self._begin)

    def kill(self, kind: str, status: int, text: str) -> None:
        """End it: the service at once, and for the caller as this says. A service that has only
        lost its caller ends as it is configured."""
        if self._killed is None or self._killed[0] == LOST:
            self._killed = (kind, status, text)
        # What a keeper is about to start can be ended only once it runs.
        if self._pump is not None and (self._keeper is None or self._keeper.answer is not None):
            self._obey()

    def cancel(self) -> None:
        """The agent ends."""
        if self._pump is not None:
            self._pump.cancel()

    # Its steps

    def _step(self, step: Callable[..., None], *arguments: Any) -> None:
        try:
            step(*arguments)
        except Exception as error:
            self._break_off(error)

    def _begin(self) -> None:
        assert self._channel is not None
        call = bytes.fromhex(self.wanted.call)
        self._pump = CallPump(self._channel, "service", call, self._on_event)
        if self._killed is not None:  # before it was begun
            self._obey()
            self._carry()
            return
        begun = self._desk.keepers.begin(self._run(), self.wanted.user, self.wanted.stderr)
        if begun is None:
            self._desk.begin(self._start)
            return
        self._keeper, self._ours = begun
        self._await_first_word()
        self._carry(self._not_spawned)

    def _carry(self, otherwise: Callable[..., None] | None = None) -> None:
        """Have the pump run, which has the streams from now on. With `otherwise` it hears the
        keeper's first word, and goes on if that is `_PLAIN`."""
        pump, keeper, ours, unused = self._pump, self._keeper, self._ours, self._unused
        assert pump is not None
        answer = None if keeper is None else keeper.answer
        follows = otherwise is not None or isinstance(answer, Spawned)
        pump.wanted, pump.lazily = _wanted(answer), _STARTED
        self._ours, self._unused = _NOTHING, ()
        # Others may have a socket of the service's open, and one may be two of these.
        pump.begin(
            *ours,
            then=self._carried,
            shutdown=True,
            owner=self._owner,
            done_with=[each for each in unused if each != _NONE],
            keeper=keeper if follows else None,
            otherwise=None if otherwise is None else partial(otherwise, ours),
        )

    def _carried(self, end: CallEnd) -> None:
        self._over(end, is_finished=end.kind not in _GONE and not self._is_hung_up)

    def _await_first_word(self) -> None:
        self.deadline, self._is_watched = self._loop.time() + FIRST_WORD_SECONDS, True
        self._loop.sweeper.watch(self)

    def _has_first_word(self) -> None:
        if self._is_watched:
            self._is_watched = False
            self._loop.sweeper.forget(self)

    def _not_spawned(self, ours: Sequence[int], error: int) -> None:
        """The keeper's first word is another one: what is there, or has come with `error`."""
        self._ours = ours
        self._has_first_word()
        self._step(self._desk.begin, self._start, error)

    def expire(self) -> None:
        """The keeper has said nothing."""
        self._step(self._desk.begin, self._give_up)

    async def _give_up(self) -> None:
        text = await silent(self.wanted.user or "")
        if self._pump is not None and self._keeper is not None and self._keeper.answer is None:
            self._is_hung_up = True
            self._keeper.signal(signal.SIGKILL)  # or it may start the service yet
            self._not_started(Problem(text))

    async def _start(self, error: int = 0) -> None:
        """The task of a call whose service is not started by one word of a keeper."""
        try:
            keeper = await self._ask(error)
            if isinstance(keeper.answer, Waiting):
                self.answer.answer({"started": False})
                if not self._is_hung_up:  # else it has been given up
                    await keeper.next_answer()
            if isinstance(keeper.answer, Connected):
                self._unused, service = self._ours, keeper.take_service()
                self._ours = (service, _NONE, _NONE)
                # One socket as stdin and as stdout.
                self._ours = (service, os.dup(service), _NONE)
                keeper.finish()
            elif not isinstance(keeper.answer, Spawned):
                self._close_streams()
                self._not_started(keeper.answer)
            if self._ours is not _NOTHING:
                self._note_start()
            if self._killed is not None:  # while it was being started
                self._obey()
            self._carry()
        except Exception as wrong:
            self._break_off(wrong)
        except BaseException:
            self._over(_not_carried("the agent ended"))
            raise

    async def _ask(self, error: int) -> KeeperCall:
        """A keeper that has said what becomes of the service."""
        begun, forced = self._keeper, None
        if begun is not None:
            await begun.first_answer(error, self.wanted.user)
            if isinstance(begun.answer, ForUser):
                forced = begun.answer
            elif begun.answer is not None:
                return begun
            self._keeper = None
            begun.close()
            if self._killed is not None:  # no keeper is to begin it any more
                self._keeper = KeeperCall(None, Problem(self._killed[2]))
                return self._keeper
        # The service's ends of the streams are gone with what was asked before.
        self._close_streams()
        made = service_streams(self.wanted.stderr)
        self._ours, theirs = made[:3], [each for each in made[3:] if each != _NONE]
        try:
            self._keeper = await self._desk.keepers.run(
                self._run(), self.wanted.user, theirs, forced
            )
        finally:
            for each in theirs:
                os.close(each)
        return self._keeper

    def _run(self) -> Run:
        wanted = self.wanted
        return Run(
            call=wanted.call,
            service=wanted.service,
            argument=wanted.argument,
            source=wanted.source,
            target=self._target,
            is_forced=False,
        )

    def _note_start(self) -> None:
        self._started_s = self._loop.time() - self._since
        pass_by("serving.spawned", self._desk.begin, self._say_started)

    def _say_started(self) -> None:
        if self._channel is not None and not self.answer.answer({"started": True}):
            self._desk.tell("service.started", {"call": self.wanted.call})

    def _not_started(self, answer: object) -> None:
        pump = self._pump
        assert pump is not None
        if self._killed is not None:
            self._obey()
        elif isinstance(answer, NotFound):
            pump.exit("not_found", NOT_FOUND, answer.text, now=True)
        elif isinstance(answer, Problem):
            pump.exit("problem", PROBLEM, answer.text, now=True)
        else:
            pump.exit("problem", PROBLEM, "its keeper does not keep to the protocol", now=True)

    def _on_event(self, event: Event) -> None:
        pump, keeper = self._pump, self._keeper
        if pump is None or keeper is None:
            return
        if event.kind is EventKind.STARTED:
            self._spawned(keeper)
            return
        if event.kind is EventKind.CALLER_GONE:
            self._hang_up()
        answer = keeper.answer
        if not isinstance(answer, Spawned | Connected):
            return
        self._ended.add(event.kind)
        if event.kind is EventKind.SIGNAL and answer.forward_signals:
            keeper.signal(event.number)
        # By its number: a stream that has come to its end, and not one whose reader has gone.
        if event.kind is EventKind.STDIN_ENDED and answer.exit_on_client_eof and event.number:
            pump.exit("exited", 0, now=True)
        elif event.kind is EventKind.STDOUT_ENDED and answer.exit_on_service_eof and event.number:
            self._exit_on_service_eof(pump, answer)
        elif isinstance(answer, Connected) and self._ended >= _BOTH:
            pump.exit("exited", 0)

    def _exit_on_service_eof(self, pump: CallPump, answer: Spawned | Connected) -> None:
        """A program closes its output as it exits, too: then its status counts, which the keeper is
        about to say."""
        if isinstance(answer, Connected):
            pump.exit("exited", 0, now=True)
        else:
            self._desk.begin(self._exit_unless_it_does, pump)

    async def _exit_unless_it_does(self, pump: CallPump) -> None:
        await trio.sleep(EXIT_SECONDS)
        if self._pump is pump:
            pump.exit("exited", 0, now=True)

    def _spawned(self, keeper: KeeperCall) -> None:
        """The pump has heard the first word."""
        keeper.answer = _PLAIN
        self._has_first_word()
        self._note_start()
        if self._killed is not None:  # while it was being started
            self._obey()

    def _hang_up(self) -> None:
        """Have the keeper do what the service's configuration says of a caller that is gone."""
        self._is_hung_up = True
        if self._keeper is not None:
            self._keeper.hang_up()
            self._desk.left(self.wanted.call, self._keeper.owner)

    def _obey(self) -> None:
        """End it as dom0 has said."""
        assert self._pump is not None and self._killed is not None
        kind, status, text = self._killed
        # First, as the pump's thread hears at once what becomes of the keeper.
        try:
            self._pump.exit(kind, status, text, now=True)
        except (KeyError, ValueError):  # not every kind of end is one that a service can have
            self._pump.abort(text)
        if kind == LOST:
            self._hang_up()
        elif self._keeper is not None:
            self._keeper.signal(signal.SIGKILL)

    def _break_off(self, error: Exception) -> None:
        # The attachments of this VM are none of this call's business.
        if not isinstance(error, OSError):
            log.exception("a call of %s breaks off", self.wanted.service, exc_info=error)
        reason = words(error) if isinstance(error, OSError) else "the agent failed"
        self._over(_not_carried(reason))

    def _over(self, end: CallEnd, *, is_finished: bool = False) -> None:
        channel, self._channel = self._channel, None
        if channel is None:
            return
        self._pump = None  # which refers to this, and has descriptors
        self._has_first_word()
        self._close_streams()
        if self._keeper is not None:
            self._keeper.close(is_finished=is_finished)
            if not is_finished:
                self._desk.left(self.wanted.call, self._keeper.owner)
            if self._is_to_be_confirmed(self._keeper):
                self._end = end
                try:
                    self._desk.begin(self._confirm, self._keeper.owner, channel, end)
                except OSError:  # the agent ends
                    self._desk.over(self, channel, end, is_known=False)
                return
        self._desk.over(self, channel, end)

    def _is_to_be_confirmed(self, keeper: KeeperCall) -> bool:
        """Whether dom0 has ended it, and what it has started may not have been killed yet."""
        is_ended = self._killed is not None and self._killed[0] != LOST
        may_run = keeper.answer is None or isinstance(keeper.answer, Spawned)
        return is_ended and may_run and keeper.owner != b""

    async def _confirm(self, keeper: bytes, channel: Channel, end: CallEnd) -> None:
        """dom0's user is told that it has ended when nothing of it runs."""
        try:
            await self._desk.end_left(self.wanted.call, keeper)
        except BaseException:
            self._desk.over(self, channel, end, is_known=False)
            raise
        self._desk.over(self, channel, end)

    def _close_streams(self) -> None:
        if self._ours is not _NOTHING or self._unused:
            closer.close(self._owner, (*self._ours, *self._unused))
            self._ours, self._unused = _NOTHING, ()


def _not_carried(reason: str) -> CallEnd:
    text = f"the call cannot be carried: {reason}"
    return CallEnd("problem", PROBLEM, text, 0, 0, 0, is_reusable=False, reason=reason)


def _wanted(answer: object) -> frozenset[EventKind]:
    """What is to be told of a call's run."""
    if answer is None:
        return _LITTLE
    wanted = set(_LITTLE)
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
