"""Calls of services as the rest of the agent sees them: what dom0 may ask for, and what is run.

It joins the two halves, the programs of this VM that call (`callers`, `calling`) and the services
that it has (`serving`), with the channels that both use.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio
from pedos_host.threads import to_thread
from pedos_host.throttle import throttle
from pedos_protocol.agent_messages import parse_params
from pedos_protocol.call_messages import RUNNING_PAGE_MAX, RunningCall
from pedos_protocol.schema import to_wire
from pedos_vchan.peer import Handler, Peer
from pedos_vchan.transport import Transport

from pedos_agent.calls import members
from pedos_agent.calls.asking import Dom0, Questions
from pedos_agent.calls.callers import CallSocket, MayCall
from pedos_agent.calls.calling import Calling, Kill
from pedos_agent.calls.channels import Channels
from pedos_agent.calls.serving import Serving
from pedos_agent.settings import Settings

log = logging.getLogger(__name__)

# Calls that dom0 has ended before they knew that they were granted: its two messages follow each
# other. Beyond this the oldest ends when its channel does not come.
KILLED_EARLY_MAX: Final = 64
# Calls that end while dom0's service is away: as many as can have run when it went, of a caller and
# of a target, and some. Nothing new begins without it.
UNTOLD_MAX: Final = 256


class Calls:
    """All calls of this VM, in both directions."""

    def __init__(self, settings: Settings, transport: Transport) -> None:
        """`dom0` is to be set before `run`. In an event loop."""
        self.dom0: Dom0 | None = None
        self.time: Final[Callable[[], float]] = trio.lowlevel.current_clock().current_time
        self.channels = Channels(transport, self.tell)
        self.serving = Serving(settings, self.channels, self.tell)
        self._settings = settings
        self._running: dict[str, Calling] = {}
        self._killed_early: dict[str, Kill] = {}
        self._untold: deque[dict[str, Any]] = deque()  # ends, while dom0 was away
        self._nursery: trio.Nursery | None = None
        #: Asks dom0 for calls: see `Questions.ask`.
        self.ask: Final = Questions(lambda: self.dom0, self.begin).ask
        #: What dom0 may ask for; each changes something unless it is in `harmless`.
        self.handlers: Mapping[str, Handler] = {
            "channel.listen": self._listen,
            "channel.close": self._close,
            "service.kill": self._kill,
            **self.serving.handlers(),
        }
        self.harmless: Mapping[str, Handler] = {"call.running": self._tell_running}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started() when programs can call. OSError: none ever can."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self.channels.run)
            await nursery.start(self.serving.run)
            if self._settings.calls is not None:
                may_call: MayCall = members.anybody
                if self._settings.control_socket is not None:
                    may_call = await to_thread(members.in_dom0)
                socket = CallSocket(self._settings.calls, self, may_call)
                await nursery.start(socket.run)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None  # before it is closed to new tasks

    # What the two halves need.

    def tell(self, method: str, params: dict[str, Any]) -> None:
        """Tell dom0, if it is connected: one that comes later asks what runs, and is told then of
        what has ended meanwhile."""
        is_told = self.dom0 is not None and self.dom0.tell(method, params)
        if is_told or method != "service.ended":
            return
        if len(self._untold) >= UNTOLD_MAX:
            lost = self._untold.popleft()
            if (more := throttle.more("the end of a call is not told")) is not None:
                log.warning("dom0 will not hear how the call %s ended%s", lost["call"], more)
        self._untold.append(params)

    def alone(self) -> None:
        """The connection to dom0 has ended."""
        self.channels.alone()

    def begin(self, task: Callable[..., Any], *arguments: Any) -> None:
        """Start a task; none starts when the agent ends."""
        if self._nursery is not None:
            self._nursery.start_soon(task, *arguments)

    def granted(self, call: str, calling: Calling) -> Kill | None:
        """dom0 has granted the call; how it has ended it already, if it has."""
        self._running[call] = calling
        return self._killed_early.pop(call, None)

    def over(self, call: str) -> None:
        """The call is over."""
        self._running.pop(call, None)

    # Requests of dom0.

    async def _listen(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        wanted = parse_params("channel.listen", params)
        orders = (wanted.left_order, wanted.right_order)
        await self.channels.listen(wanted.peer, wanted.port, orders)
        return {}

    async def _close(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        self.channels.close(parse_params("channel.close", params).port)
        return {}

    async def _kill(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        asked = parse_params("service.kill", params)
        kill = Kill(asked.kind, asked.status, asked.text)
        calling = self._running.get(asked.call)
        if calling is not None:
            calling.kill(kill)
        elif not await self.serving.kill(asked.call, kill.kind, kill.status, kill.text):
            # The answer that names it may have come just before, and not be taken yet.
            while len(self._killed_early) >= KILLED_EARLY_MAX:
                del self._killed_early[next(iter(self._killed_early))]
            self._killed_early[asked.call] = kill
        return {}

    async def _tell_running(self, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        after = parse_params("call.running", params).after or ""
        found = [state for each in self._running.values() if (state := each.state()) is not None]
        found += self.serving.running()
        found = sorted((each for each in found if each.call > after), key=_by_call)
        page, more = found[:RUNNING_PAGE_MAX], len(found) > RUNNING_PAGE_MAX
        if self._untold and not more and self._nursery is not None:
            self._nursery.start_soon(self._tell_again)  # once this is answered
        return {
            "calls": [to_wire(each) for each in page],
            "ports": list(self.channels.idle()),
            "more": more,
        }

    async def _tell_again(self) -> None:
        again, self._untold = self._untold, deque()
        for params in again:
            self.tell("service.ended", params)


def _by_call(running: RunningCall) -> str:
    return running.call
