"""The services of this VM that others call: what dom0 may ask for, and the calls that run here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import trio
from pedos_host.faultpoints import pass_by, reach
from pedos_protocol.agent_messages import parse_params
from pedos_protocol.call_messages import RunningCall, ServiceStart
from pedos_protocol.errors import CallError
from pedos_protocol.schema import to_wire
from pedos_vchan.call_pump import LOST, CallEnd
from pedos_vchan.channel import Channel
from pedos_vchan.later import Later
from pedos_vchan.peer import Handler, Peer

from pedos_agent.calls.channels import Channels, Tell
from pedos_agent.calls.keepers import Keepers, end_left
from pedos_agent.calls.served_call import ServedCall
from pedos_agent.settings import Settings

# Calls whose callers have gone, of which it is known who keeps what they have left running: as many
# as run. dom0 may have said that it ends one, and this VM has first heard that its caller is gone.
LEFT_MAX: Final = 128


class Serving:
    """The calls that run here."""

    def __init__(self, settings: Settings, channels: Channels, tell: Tell) -> None:
        """`tell` gets the notices for dom0."""
        self.keepers = Keepers(only=settings.keeper)
        # What a caller has named is for dom0 to know: policy may have led it elsewhere.
        self._tells_target = settings.control_socket is not None
        self._channels = channels
        self.tell = tell
        self._calls: dict[str, ServedCall] = {}
        self._left: dict[str, bytes] = {}  # the keepers of the last ones
        # What is being ended, and when that is over.
        self._ending: dict[str, trio.Event] = {}
        self._nursery: trio.Nursery | None = None
        self._fewer = trio.Event()

    def handlers(self) -> Mapping[str, Handler]:
        """What dom0 may ask for."""
        return {"service.start": self._start}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    self._nursery = None  # before it is closed to new tasks
        finally:
            for each in list(self._calls.values()):
                each.cancel()
            with trio.CancelScope(shield=True):  # a cancelled pump ends at once
                while self._calls:
                    self._fewer = trio.Event()
                    await self._fewer.wait()

    async def kill(self, call: str, kind: str, status: int, text: str) -> bool:
        """End a call, or what it has left running; whether there is such a one here."""
        await trio.lowlevel.checkpoint()
        found, left = self._calls.get(call), self._left.get(call)
        if found is not None:
            found.kill(kind, status, text)
        if left is not None and kind != LOST:  # that is no news to it
            with contextlib.suppress(OSError):
                self.begin(self.end_left, call, left)
        return found is not None or left is not None

    def running(self) -> list[RunningCall]:
        """The calls that run here."""
        return [each.state() for each in self._calls.values()]

    async def _start(self, _peer: Peer, params: dict[str, Any]) -> Later:
        """Answered when the service runs, or will not, or waits. CallError if the channel cannot
        be used: then nothing else is told of the call."""
        wanted = parse_params("service.start", params)
        if wanted.call in self._calls:
            raise CallError("busy", f"the call {wanted.call} runs here already")
        if self._nursery is None:
            raise CallError("unavailable", "this VM's agent ends")
        target = wanted.requested_target if self._tells_target else ""
        call = self._calls[wanted.call] = ServedCall(self, wanted, target)
        try:
            channel = await self._channel(wanted)
            if self._nursery is None:  # it may have come in a thread that is not cancelled
                self._channels.give_back(channel, "its call was not begun")
                raise CallError("unavailable", "this VM's agent ends")
        except BaseException:
            del self._calls[wanted.call]
            self._fewer.set()
            raise
        call.begin(channel)
        return call.answer

    async def _channel(self, wanted: ServiceStart) -> Channel:
        peer, port = wanted.peer, wanted.port
        if wanted.new:
            channel = await self._channels.connect(peer, port)
        else:
            idle = self._channels.take_idle(peer, port)
            channel = await self._channels.take(peer, port) if idle is None else idle
        try:
            await reach("serving.connected")
        except BaseException:  # dom0's service has ended
            self._channels.give_back(channel, "its call was not begun")
            raise
        return channel

    # What a call needs.

    def begin(self, task: Callable[..., Any], *arguments: Any) -> None:
        """Start a task. OSError if the agent ends."""
        if self._nursery is None:
            raise OSError("this VM's agent ends")
        self._nursery.start_soon(task, *arguments)

    def left(self, call: str, keeper: bytes) -> None:
        """The keeper may have something running of a call whose caller has gone."""
        if not keeper:
            return  # none was asked
        self._left[call] = keeper
        if len(self._left) > LEFT_MAX:
            del self._left[next(iter(self._left))]

    async def end_left(self, call: str, keeper: bytes) -> None:
        """See keepers.end_left; who wants the same waits for the same."""
        over = self._ending.get(call)
        if over is not None:
            await over.wait()
            return
        over = self._ending[call] = trio.Event()
        try:
            await end_left(keeper, call)
            self._left.pop(call, None)
        finally:
            del self._ending[call]
            over.set()

    def over(
        self, call: ServedCall, channel: Channel, end: CallEnd, *, is_known: bool = True
    ) -> None:
        """The call is over, and has let go of the channel. dom0 is told if that is known, and not
        only because the agent ends."""
        del self._calls[call.wanted.call]
        self._channels.give_back(channel, end.reason)
        if self._nursery is None or not is_known:  # the agent ends
            self._fewer.set()
        else:
            pass_by("serving.ended", self._nursery.start_soon, partial(self._say, call, end))

    def _say(self, call: ServedCall, end: CallEnd) -> None:
        # If it is not answered yet, both go together.
        call.answer.answer({"started": call.is_started}, more=True)
        self.tell("service.ended", to_wire(call.told(end)))
