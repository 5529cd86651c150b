"""One call of a service by a program of this VM, from its request to how it ended.

dom0 decides. If it allows the call it names a channel, at whose other end the service's VM is by
then or soon; the pump carries the three streams. A program may give up at any time: dom0 is told,
and if it has granted the call meanwhile, the service is begun and aborted at once, so that dom0,
the other VM and the channel see an ordinary end.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple, Protocol, cast

import trio
from pedos_host.faultpoints import pass_by
from pedos_protocol.agent_messages import SCHEMA, parse_params
from pedos_protocol.call_frames import SIGNAL_MAX
from pedos_protocol.call_link import (
    HINT_MAX,
    ID_MAX,
    RULE_MAX,
    TEXT_MAX,
    Call,
    Ended,
    exit_status,
    fitting,
)
from pedos_protocol.call_messages import (
    CALL_TIMEOUT,
    EndKind,
    RunningCall,
    ServiceCalled,
    ServiceEnded,
)
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_protocol.names import END_TEXT_MAX, harmless_text
from pedos_protocol.schema import to_wire
from pedos_vchan.call_pump import CallEnd, CallPump, Event, EventKind
from pedos_vchan.channel import Channel

from pedos_agent.calls.asking import Asking, Then
from pedos_agent.calls.channels import Channels

log = logging.getLogger(__name__)

#: Seconds in which dom0 answers a request that was given up. It does at once.
GIVEN_UP_SECONDS: Final = 10.0

GIVEN_UP: Final = "the calling program has ended"
# What is to be told of a call's run.
_STARTED: Final = frozenset((EventKind.STARTED,))


class Asked(NamedTuple):
    """What a program has asked for. `streams` are its three descriptors."""

    call: Call
    uid: int
    streams: tuple[int, int, int]


class Kill(NamedTuple):
    """How dom0 has ended a call."""

    kind: str
    status: int
    text: str


class Desk(Protocol):
    """What a call needs of the agent."""

    channels: Channels

    @property
    def time(self) -> Callable[[], float]:
        """trio.current_time, without two calls on the way to the clock."""
        ...

    def tell(self, method: str, params: dict[str, Any]) -> None:
        """Tell dom0 something, if it is connected."""
        ...

    def ask(self, params: dict[str, Any], *, timeout: float, then: Then) -> Asking:
        """Have `then` called with dom0's answer to service.call, later. CallError."""
        ...

    def begin(self, task: Callable[..., Any], *arguments: Any) -> None:
        """Start a task."""
        ...

    def granted(self, call: str, calling: Calling) -> Kill | None:
        """dom0 knows the call by this name now; if dom0 has ended it already, how."""
        ...

    def over(self, call: str) -> None:
        """It is over."""
        ...


class Calling:
    """One call, which takes no task unless its channel is not there yet: its steps are `begin`,
    dom0's answer, the pump's run, and the end. Whatever goes wrong in one, dom0 and the program
    hear of an end."""

    def __init__(
        self,
        desk: Desk,
        asked: Asked,
        started: Callable[[str, str], None],
        over: Callable[[Ended], None],
    ) -> None:
        """`started` is called with its id and the request's when the service runs, and `over` once
        with its end, perhaps already in `begin`."""
        self._desk = desk
        self._asked = asked
        self._started = started
        self._over = over
        #: Those of the streams that no pump has taken, for whoever runs this to close at its end.
        self.streams = list(asked.streams)
        self._begun = desk.time()
        self._started_s: float | None = None  # after so many seconds
        self._has_given_up = False
        self._kill: Kill | None = None
        # What it waits for, in this order:
        self._asking: Asking | None = None
        self._waiting: trio.CancelScope | None = None  # for its channel
        self._pump: CallPump | None = None
        # What it has got:
        self._answer: ServiceCalled | None = None  # dom0's, once it has granted the call
        self._channel: Channel | None = None
        self._is_told = False  # dom0 knows the end
        self._is_over = False

    # What happens to it from outside

    def begin(self) -> None:
        """Ask dom0."""
        try:
            params = self._params()
            self._asking = self._desk.ask(
                params, timeout=CALL_TIMEOUT + GIVEN_UP_SECONDS, then=self._answered
            )
        except CallError as error:
            self._end(refusal(error))

    def give_up(self) -> None:
        """The program has gone: nobody wants the rest of the call."""
        self._has_given_up = True
        if self._asking is not None:
            self._asking.cancel()
        elif self._pump is not None:
            self._pump.abort(GIVEN_UP)

    def kill(self, kill: Kill) -> None:
        """dom0 ends the call."""
        if self._kill is not None:
            return
        self._kill = kill
        if self._waiting is not None:
            self._waiting.cancel()
        if self._pump is not None:
            self._pump.abort(kill.text)

    def cancel(self) -> None:
        """The agent ends: the call is lost, at once or when the pump has let go of it."""
        if self._pump is not None and not self.streams:
            self._pump.cancel()
        else:
            self._end(_ended("lost", 0, "the agent of this VM has ended"))

    def signal(self, number: int) -> None:
        """A signal for the service; one before its start is lost, as it is for a program that does
        not run yet."""
        if self._pump is not None and self._started_s is not None and 0 < number <= SIGNAL_MAX:
            self._pump.signal(number)

    def state(self) -> RunningCall | None:
        """What dom0 is told when it asks what runs; None if it has not granted the call."""
        if self._answer is None:
            return None
        stdin, stdout, stderr = (0, 0, 0) if self._pump is None else self._pump.counts()
        call = self._asked.call
        return RunningCall(
            call=self._answer.call,
            side="caller",
            service=call.service,
            argument=call.argument,
            user=call.user or None,
            peer=self._answer.peer,
            port=self._answer.port,
            seconds=self._desk.time() - self._begun,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )

    # Its steps

    def _params(self) -> dict[str, Any]:
        """CallError if the program has named what cannot be."""
        call = self._asked.call
        params = {
            "service": call.service,
            "argument": call.argument,
            "target": call.target,
            "user": call.user or None,
            "uid": self._asked.uid,
        }
        try:
            parse_params("service.call", params)
        except RemoteProtocolError as error:
            _, _, why = str(error).partition(": ")
            raise CallError("usage", why) from None
        return params

    def _step(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:
            self._break_off(error)

    def _answered(self, untrusted_answer: dict[str, Any] | CallError) -> None:
        self._asking = None
        if not self._is_over:
            self._step(partial(self._take_answer, untrusted_answer))

    def _take_answer(self, untrusted_answer: dict[str, Any] | CallError) -> None:
        if isinstance(untrusted_answer, CallError):
            if self._has_given_up:
                self._end(_ended("aborted", 0, "it was given up before dom0 had decided"))
            else:
                self._end(refusal(untrusted_answer))
            return
        try:
            answer: ServiceCalled = SCHEMA.parse_result("service.call", untrusted_answer)
        except RemoteProtocolError as error:
            self._end(refusal(CallError("failed", f"dom0's answer makes no sense: {error}")))
            return
        self._answer = answer
        self._kill = self._desk.granted(answer.call, self)
        channel = self._desk.channels.take_idle(answer.peer, answer.port)
        if channel is None:
            self._waiting = trio.CancelScope()
            if self._kill is not None:
                self._waiting.cancel()
            self._desk.begin(self._wait_for_channel, answer, self._waiting)
        else:
            self._has_channel(channel)

    async def _wait_for_channel(self, answer: ServiceCalled, scope: trio.CancelScope) -> None:
        try:
            with scope:
                channel = await self._desk.channels.take(answer.peer, answer.port)
            self._waiting = None
            if scope.cancelled_caught:
                raise CallError("failed", "dom0 has ended it")
            self._has_channel(channel)
        except Exception as error:
            self._break_off(error)

    def _has_channel(self, channel: Channel) -> None:
        assert self._answer is not None
        if self._is_over:  # the agent ends
            self._desk.channels.give_back(channel, "its call was not carried")
            return
        self._channel = channel
        call = bytes.fromhex(self._answer.call)
        self._pump = pump = CallPump(channel, "caller", call, self._hear)
        pump.wanted, pump.lazily = (), _STARTED
        if self._has_given_up:
            pump.abort(GIVEN_UP)
        elif self._kill is not None:
            pump.abort(self._kill.text)
        pass_by("calling.granted", self._desk.begin, partial(self._step, self._carry))

    def _carry(self) -> None:
        assert self._pump is not None
        stdin, stdout, stderr = self.streams
        self.streams.clear()  # the pump closes them
        self._pump.begin(
            *(stdin, stdout, stderr),
            then=self._carried,
            shutdown=self._asked.call.may_shut_down,
            owner=self._asked.uid,
        )

    def _hear(self, event: Event) -> None:
        if event.kind is EventKind.STARTED:
            self._say_started()

    def _say_started(self) -> None:
        if self._started_s is None and not self._is_over and self._answer is not None:
            self._started_s = self._desk.time() - self._begun
            self._started(self._answer.call, self._answer.request)

    def _carried(self, end: CallEnd) -> None:
        self._step(partial(self._conclude, end))

    def _conclude(self, end: CallEnd) -> None:
        self._give_back(end.reason)
        if self._kill is not None:
            kill = self._kill
            end = end._replace(kind=kill.kind, status=kill.status, text=kill.text)
        assert self._answer is not None
        self._is_told = True
        self._tell_ended(self._answer, end)
        pass_by("calling.ended", self._desk.begin, partial(self._step, partial(self._say, end)))

    def _say(self, end: CallEnd) -> None:
        assert self._answer is not None
        if end.kind in ("exited", "signalled"):
            self._say_started()  # before its end, whatever came first
        self._end(_ended(end.kind, end.status, _words(end), request=self._answer.request))

    def _break_off(self, error: Exception) -> None:
        if not isinstance(error, CallError | OSError):
            log.exception("a call of %s breaks off", self._asked.call.service, exc_info=error)
        if self._answer is None or self._is_told or self._is_over:
            self._end(refusal(CallError("failed", "the agent of this VM failed")))
        else:
            end = _not_carried(f"the call could not be carried: {_reason(error)}")
            self._step(partial(self._conclude, end))

    def _give_back(self, reason: str) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            self._desk.channels.give_back(channel, reason)

    def _end(self, end: Ended) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._pump = None  # it holds a descriptor, and refers to this object as well
        if self._answer is not None:
            self._desk.over(self._answer.call)
        self._over(end)

    def _tell_ended(self, answer: ServiceCalled, end: CallEnd) -> None:
        ended = ServiceEnded(
            call=answer.call,
            kind=cast("EndKind", end.kind),
            status=end.status,
            text=end.text and harmless_text(end.text, END_TEXT_MAX),
            stdin=end.stdin,
            stdout=end.stdout,
            stderr=end.stderr,
            started_s=self._started_s,
            seconds=self._desk.time() - self._begun,
            reusable=end.is_reusable,
            reason=end.reason and harmless_text(end.reason, END_TEXT_MAX),
            breach=end.is_breach,
        )
        self._desk.tell("service.ended", to_wire(ended))


def refusal(error: CallError) -> Ended:
    """What a program is told of dom0's refusal, or of this agent's."""
    data = error.data
    word = error.code.replace("_", " ")
    rule = f"{data['rule']}: {data.get('text', '')}" if data.get("rule") else ""
    return _ended(
        "refused" if error.code == "denied" else "problem",
        0,
        f"{word}: {error.message}",
        rule=rule,
        hint=str(data.get("hint") or ""),
        request=str(data.get("request") or ""),
    )


def _ended(
    kind: str, status: int, text: str, *, rule: str = "", hint: str = "", request: str = ""
) -> Ended:
    return Ended(
        kind,
        status,
        exit_status(kind, status),
        text and fitting(text, TEXT_MAX),
        rule and fitting(rule, RULE_MAX),
        hint and fitting(hint, HINT_MAX),
        fitting(request, ID_MAX),
    )


def _reason(error: Exception) -> str:
    if isinstance(error, CallError):
        return error.message
    return str(error) if isinstance(error, OSError) else "the agent of this VM failed"


def _not_carried(text: str) -> CallEnd:
    """The end of a call whose channel was none."""
    return CallEnd("problem", 0, text, 0, 0, 0, is_reusable=False, reason=text)


def _words(end: CallEnd) -> str:
    """The sentence about how it ended, for people; "" if the exit status says it all."""
    if end.kind == "exited":
        return ""
    if end.kind == "signalled" and end.status == signal.SIGPIPE:
        return ""  # whoever reads here wants no more, as head in a pipeline
    if end.kind == "signalled":
        return f"the service was killed by {_signal_name(end.status)}"
    if end.kind == "lost":
        return f"lost: {end.text or end.reason or 'the other VM, or its agent, has ended'}"
    word = {"problem": "failed", "refused": "denied", "not_found": "not found"}
    return f"{word.get(end.kind, end.kind)}: {end.text}" if end.text else word.get(end.kind, "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
