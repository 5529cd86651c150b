"""The target of a call, ready to serve it: running, started if it is halted, its agent connected.

All calls that find a VM halted wait for one start of it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import attrs
import trio
from pedos_protocol.errors import CallError
from pedos_protocol.messages import VmStarted

from pedos_dom0 import errors
from pedos_dom0.access.callers import AUTOSTART
from pedos_dom0.drivers.base import DOM0_NAME

if TYPE_CHECKING:
    from pedos_dom0.access.callers import Caller
    from pedos_dom0.state import State
    from pedos_dom0.tables.agents import AgentLink

logger = logging.getLogger(__name__)

# Seconds for which a call waits for the agent of a VM that runs: one that was just restarted is
# back within a second. A VM that is started gets the time of its boot besides.
AGENT_TIMEOUT = 10.0


class StartVm(Protocol):
    """Starts a VM with what is assigned to it, see requests/vm_start.py. CallError."""

    async def __call__(
        self, vm: str, request: str, asker_gone: trio.Event, caller: Caller
    ) -> VmStarted: ...


@attrs.define(eq=False)
class _Start:
    """The start of a VM, which goes on when no call waits for it any more."""

    done: trio.Event = attrs.field(factory=trio.Event)
    error: CallError | None = None


class Ready:
    """Waits for targets, and starts them in `nursery`."""

    def __init__(self, state: State, nursery: trio.Nursery, start_vm: StartVm) -> None:
        self._state = state
        self._nursery = nursery
        self._start_vm = start_vm
        self._starts: dict[str, _Start] = {}

    async def agent(self, vm: str, request: str) -> tuple[AgentLink, bool]:
        """The connection to the VM's agent, and whether this had to wait for it. CallError."""
        if (link := self.at_once(vm)) is not None:
            return link, False
        domain = self._state.domain(vm)
        if domain is None:  # since policy has decided
            raise errors.target_unreachable(vm, "it does not exist any more")
        timeout = AGENT_TIMEOUT
        if domain.state == "Halted" or vm in self._state.facts.starting:
            timeout += self._state.driver.boot_timeout
            await self._started(vm, request)
        link = await self._state.agents.wait_for(
            vm, timeout=timeout, worthwhile=lambda: self._may_come(vm)
        )
        if link is None:
            raise errors.target_unreachable(vm, "its agent is not connected")
        return self._able(link), True

    def at_once(self, vm: str) -> AgentLink | None:
        """The connection, if the VM can serve now; CallError if it will not."""
        if vm in self._state.closing:
            raise errors.target_unreachable(vm, "it is being shut down")
        link = self._state.agents.get(vm)
        return None if link is None or not link.connected else self._able(link)

    def _able(self, link: AgentLink) -> AgentLink:
        if not link.serves("service.start"):
            raise errors.target_unreachable(link.name, "its agent is older, and serves no calls")
        return link

    def _may_come(self, vm: str) -> bool:
        if vm == DOM0_NAME:
            return True
        domain = self._state.domain(vm)
        runs = domain is not None and domain.state != "Halted"
        return vm not in self._state.closing and (runs or vm in self._state.facts.starting)

    async def _started(self, vm: str, request: str) -> None:
        """Returns when the VM has been started; CallError if that fails."""
        start = self._starts.get(vm)
        if start is None:
            if vm in self._state.facts.starting:
                return  # by dom0's user, and it is waited for as any VM that runs
            start = self._starts[vm] = _Start()
            self._nursery.start_soon(self._start, vm, request, start)
        await start.done.wait()
        if start.error is not None:
            raise errors.target_unreachable(vm, f"it could not be started: {start.error.message}")

    async def _start(self, vm: str, request: str, start: _Start) -> None:
        try:
            # Nobody's command waits for it, whose end would withdraw a question.
            await self._start_vm(vm, request, trio.Event(), AUTOSTART)
        except CallError as error:
            start.error = error
        except Exception:
            logger.exception("start of %s for a call", vm)
            start.error = errors.failure("failed", "an internal error; the service's log has it")
        finally:
            del self._starts[vm]
            start.done.set()
