"""device.mute: a VM hears nothing of what it has and will get of a class, until it is unmuted.

The table in the store is written first, so that what is attached from then on is muted, whatever
happens to this service; then the sources of what the VM has are asked, all at once. The answer says
of each whether it has confirmed that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from pedos_protocol.errors import CallError
from pedos_protocol.messages import ErrorInfo, MuteItem, MuteResult
from pedos_protocol.mute_messages import MUTED_MAX
from pedos_protocol.names import natural_key

from pedos_dom0 import errors
from pedos_dom0.access.recorded import recorded
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.drivers.base import DOM0_NAME

if TYPE_CHECKING:
    from pedos_protocol.messages import DeviceMute

    from pedos_dom0.access.callers import Caller
    from pedos_dom0.attachments.muting import Muting
    from pedos_dom0.attachments.reconcile import Reconciler
    from pedos_dom0.state import State
    from pedos_dom0.tables.leases import Lease


class Mute:
    """Serves device.mute; dom0's user alone may call it."""

    def __init__(self, state: State, muting: Muting, reconciler: Reconciler) -> None:
        self._state = state
        self._muting = muting
        self._reconciler = reconciler

    async def __call__(self, caller: Caller, request: str, asked: DeviceMute) -> MuteResult:
        """Returns when the table says it, and each source has confirmed it or failed to. Raises
        CallError; then nothing has changed."""
        self._check(asked)
        event = "mute" if asked.muted else "unmute"
        names = {"device_class": asked.device_class, "vm": asked.vm}
        with recorded(self._state, event, caller, request, **names) as ending:
            changed = await self._note(asked)
            await self._state.reach(f"{event}.noted")
            ending.outcome = f"{event}d" if changed else "already"
            ending.changed = changed
            # After a restart the agents are back in a moment, and say what they do.
            await self._reconciler.wait_settled(asked.vm)
            results = await self._apply(asked)
            await self._state.reach(f"{event}.applied")
            failed = [f"{each.backend}:{each.device}" for each in results if each.error is not None]
            ending.fields["devices"] = len(results)
            ending.fields["not_confirmed"] = failed
        if not changed:
            return MuteResult("already", results, request)
        return MuteResult("muted" if asked.muted else "unmuted", results, request)

    def _check(self, asked: DeviceMute) -> None:
        described = class_of(asked.device_class).description
        if not described.heard:
            raise errors.usage(f"{described.many} are nothing to listen to, so no VM is muted")
        if asked.vm == DOM0_NAME:
            raise errors.target_is_dom0()
        # A VM that was removed stays muted, and so would one that is made with its name.
        if asked.muted or not self._state.store.is_muted(asked.device_class, asked.vm):
            self._state.known_domain(asked.vm)

    async def _note(self, asked: DeviceMute) -> bool:
        store, device_class = self._state.store, asked.device_class
        if not asked.muted:
            return await store.unmute(device_class, asked.vm)

        def check() -> None:
            if len(store.muted(device_class)) >= MUTED_MAX:
                raise errors.too_many_muted(device_class, MUTED_MAX)

        return await store.mute(device_class, asked.vm, check)

    async def _apply(self, asked: DeviceMute) -> tuple[MuteItem, ...]:
        done: list[MuteItem] = []

        async def apply(lease: Lease) -> None:
            error = None
            try:
                await self._muting.apply(lease)
            except CallError as failed:
                error = ErrorInfo.of(failed)
            done.append(MuteItem(lease.key.backend, lease.key.device, error))

        async with trio.open_nursery() as nursery:
            for lease in self._state.leases.of_vm(asked.vm):
                # One whose source has not been asked yet is lent as the table says.
                is_begun = self._state.agents.heard(lease) is not None
                if lease.key.device_class == asked.device_class and (is_begun or lease.is_made):
                    nursery.start_soon(apply, lease)
        return tuple(sorted(done, key=lambda item: natural_key(f"{item.backend}:{item.device}")))
