"""watch.next: what has changed since the previous answer, as soon as there is something.

A watch is a chain of requests, and between two of them the service keeps nothing for the client:
the numbers of an answer are all that the next request needs. So a client that does not ask costs
nothing and delays no other. See view.py for what is remembered, for each caller and not for each
client.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio
from pedos_protocol.messages import VmInfo
from pedos_vchan.first_step import seconds_left

from pedos_dom0.drivers.base import DOM0_NAME
from pedos_dom0.errors import QuotaError, failure
from pedos_dom0.requests.view import View

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pedos_protocol.messages import Watched, WatchNext

    from pedos_dom0.access.authorizer import Authorizer
    from pedos_dom0.access.callers import Caller
    from pedos_dom0.requests.listing import Listing
    from pedos_dom0.state import State
    from pedos_dom0.tables.registry import DeviceKey

# Requests of root that wait at once, and as many of dom0's desktop: a tray widget for every user of
# a machine, and some scripts.
DOM0_WATCHERS_MAX = 32
# Those of one VM: a widget and some scripts. It leaves most of the places that the agent has for
# requests to others.
VM_WATCHERS_MAX = 4
# Those of all VMs, each of which costs a task (some KiB); and so the number of VMs that watch, each
# of which costs a copy of its list.
VMS_WATCHERS_MAX = 64
# Of the time that the caller waits, what passes before an answer without a change; the rest is for
# that answer to arrive. How long is the caller's choice: one that nobody looks at, as a script, may
# want to know soon that the service hangs, and one in a tray must not wake up for it.
QUIET_SHARE = 0.5
# Seconds for which a view is kept without a watcher: a client asks again in milliseconds, or in
# seconds if its machine is busy. One that comes later takes everything anew.
KEEP_SECONDS = 60.0

NEW_NUMBERS = "the service was restarted, or no program watched for a while"
TOO_LATE = "more has gone away meanwhile than the service remembers"


def vms_now(state: State) -> list[VmInfo]:
    """All VMs, dom0 first."""
    vms = []
    for name in (DOM0_NAME, *state.driver.domains()):
        domain = state.domain(name)
        if domain is not None:
            agent = state.agents.get(name) is not None
            vms.append(VmInfo(name=name, state=domain.state, domid=domain.domid, agent=agent))
    return vms


class Watch:
    """Serves watch.next; follows the tables of `state` by itself, and the hypervisor in `run`."""

    def __init__(self, state: State, authorizer: Authorizer, listing: Listing) -> None:
        self._state = state
        self._authorizer = authorizer
        self._listing = listing
        self._views: dict[tuple[str, str], View] = {}  # by kind and name of the caller
        state.registry.follow(self._devices_changed)
        state.agents.follow(self._vms_changed)
        state.policy.follow(self._rules_changed)
        state.facts.follow(self._rules_changed)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follows the hypervisor's domains until cancelled, or until their events end."""
        with self._state.driver.events() as events:
            task_status.started()
            async for _ in events:
                self._vms_changed()
                # The facts that rules can name are others now, so everything is looked at again:
                # also the assignments to a VM that was removed.
                self._rules_changed()

    async def next(self, caller: Caller, asked: WatchNext) -> Watched:
        """The changes after those of the previous answer, or everything if it cannot tell."""
        with self._place(caller) as view:
            if caller.kind.sees_all and asked.numbering != view.numbering:
                # As for a list: after a restart of the service the agents are back in a moment.
                await self._state.agents.wait_expected()
            await view.look()
            device_class = asked.device_class
            if asked.numbering != view.numbering:
                gap = None if asked.numbering is None else NEW_NUMBERS
                return view.after(0, view.number, device_class, gap)
            answer = _since(view, asked.number, asked.begun, device_class)
            with trio.move_on_after(QUIET_SHARE * seconds_left()):
                while answer.complete and not (answer.devices or answer.vms or answer.gap):
                    await view.changed()
                    await view.look()
                    answer = _since(view, answer.number, 0, device_class)
            return answer

    @contextmanager
    def _place(self, caller: Caller) -> Iterator[View]:
        """A place for a request that waits, and the view of its caller."""
        self._drop_idle()
        name, sees_all = (caller.kind.name, caller.name), caller.kind.sees_all
        view = self._views.get(name)
        most = DOM0_WATCHERS_MAX if sees_all else VM_WATCHERS_MAX
        if view is not None and view.watchers >= most:
            raise QuotaError(caller.name, f"{most} programs of {caller.name} watch already")
        is_one_more = view is None or view.watchers > 0
        if not sees_all and is_one_more and self._vms_places() >= VMS_WATCHERS_MAX:
            raise failure("quota", f"{VMS_WATCHERS_MAX} programs of VMs watch already")
        if view is None:
            vms = partial(vms_now, self._state) if sees_all else None
            view = View(caller, self._listing, vms, self._authorizer.rules)
            self._views[name] = view
        view.watchers += 1
        try:
            yield view
        finally:
            view.watchers -= 1
            view.left_at = trio.current_time()

    def _vms_places(self) -> int:
        """Places that VMs have taken: one for each request, and one for a view between two."""
        return sum(max(1, view.watchers) for view in self._views.values() if not view.sees_all)

    def _drop_idle(self) -> None:
        now = trio.current_time()
        for name, view in list(self._views.items()):
            if not view.watchers and now - view.left_at > KEEP_SECONDS:
                del self._views[name]

    def _devices_changed(self, keys: Sequence[DeviceKey]) -> None:
        if not self._views:
            return
        self._drop_idle()
        # Found once: a VM may change thousands of devices while all others watch.
        of_vm = self._listing.by_vm(keys)
        changed = set(keys)
        for view in self._views.values():
            if view.sees_all:
                view.devices_changed(keys)
            else:
                view.devices_changed([*of_vm.get(view.name, ()), *view.shown_of(changed)])

    def _vms_changed(self) -> None:
        for view in self._views.values():
            view.vms_changed()

    def _rules_changed(self) -> None:
        for view in self._views.values():
            view.wake()


def _since(view: View, number: int, begun: int, device_class: str | None) -> Watched:
    """The changes after that number, or everything if the view does not remember all of them: one
    look may find more gone than it remembers."""
    if view.reaches(number, begun):
        return view.after(number, begun, device_class)
    return view.after(0, view.number, device_class, TOO_LATE)
