"""devices.suspend and devices.resume: what does not survive the machine's sleep ends before it, and
is made again after it.

The store has each such attachment from before its end until it is made again, so that whatever is
killed or fails in between loses none; docs/decisions has what was weighed. Of these rows each is
tried in every `resume`, and voided by the next `suspend` if it was tried before that: a device that
did not come back from one sleep must not go to a VM after another one, days later. A `resume` that
a killed service had begun is finished by the next one, as nobody asks for it a second time.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import attrs
import trio
from pedos_protocol.codec import FRAME_MAX
from pedos_protocol.errors import CallError
from pedos_protocol.messages import ErrorInfo, SleepItem, SleepResult
from pedos_protocol.names import printable_text

from pedos_dom0 import errors
from pedos_dom0.access.callers import DOM0_USER
from pedos_dom0.access.recorded import recorded
from pedos_dom0.attachments.ways import SUSPENDED
from pedos_dom0.audit.log import new_request_id
from pedos_dom0.device_classes.registered import class_of
from pedos_dom0.requests.fitting import ENVELOPE_MAX, fitting
from pedos_dom0.tables.leases import ATTACHED, DETACHING
from pedos_dom0.tables.registry import DeviceKey
from pedos_dom0.tables.store import StoreError, Suspended

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from pedos_protocol.messages import Device

    from pedos_dom0.attachments.reconcile import Reconciler
    from pedos_dom0.attachments.teardown import Teardown
    from pedos_dom0.requests.attach import Attach
    from pedos_dom0.state import State
    from pedos_dom0.tables.leases import Lease

logger = logging.getLogger(__name__)

REASON = "the machine is going to sleep"
# Right after the sleep a source still reports what it had before. A hub and what is behind it are
# set up anew within a second; a device that does not come back is noticed in that time.
WAKE_SECONDS = 2.0
# For a device to come back: a hub behind a hub, and a driver domain that is slow after the sleep.
RETURN_SECONDS = 20.0
# Of an error in an answer: all about one device is then below 2 KiB.
MESSAGE_MAX = 512


class VoidError(CallError):
    """Trying again is of no use."""


class Sleep:
    """Serves both methods; dom0's user alone may call them."""

    def __init__(
        self,
        state: State,
        teardown: Teardown,
        reconciler: Reconciler,
        attach: Attach,
    ) -> None:
        self._state = state
        self._teardown = teardown
        self._reconciler = reconciler
        self._attach = attach
        self._resuming = trio.Lock()

    def has_in_mind(self, key: DeviceKey, identity: str) -> bool:
        """Whether a device has ended for the sleep and is to be made again, so that nothing else
        attaches it before. Nothing is made again for a VM that has ended since."""
        state, of = self._state, (key.device_class, key.backend)
        return any(
            (row.key == key or row.identity == identity != "")
            and (row.key.device_class, row.key.backend) == of
            and not row.tried
            and row.boot == state.boot
            and state.runs(row.vm, row.vm_domid)
            for row in state.store.suspended()
        )

    # Before

    async def suspend(self, request: str) -> SleepResult:
        """Ends everything that does not survive a sleep, all at once, and returns when it has
        ended, or why it stays. The caller need not wait: it goes on, also after the sleep."""
        state = self._state
        for row in state.store.suspended():
            if row.tried or row.boot != state.boot:
                await self._forget(row.attachment)
        leases = [
            lease for lease in state.leases if not class_of(lease.key.device_class).survives_sleep
        ]
        done: list[SleepItem] = []

        async def end(lease: Lease) -> None:
            if (item := await self._suspend(lease, request)) is not None:
                done.append(item)

        await _each(end, leases)
        return _result(done, request)

    async def _suspend(self, lease: Lease, request: str) -> SleepItem | None:
        """None if something else is ending it."""
        if lease.state == DETACHING:
            return None
        error: CallError | None = None
        try:
            with recorded(
                self._state, "suspend", DOM0_USER, request, **_names(lease.key, lease.vm)
            ) as ending:
                if not await self._end(lease, request):
                    ending.outcome = "ended meanwhile"
                    return None
                ending.outcome, ending.changed = "detached", True
        except CallError as failed:
            error = failed
        return _item(lease.key, lease.vm, error)

    async def _end(self, lease: Lease, request: str) -> bool:
        """False if it has ended by itself. CallError, StoreError; then it stays attached."""
        state, attachment = self._state, lease.attachment
        if self._teardown.is_in_the_making(lease):
            raise errors.taken(lease.key, lease)
        identity = lease.identity or ""
        row = Suspended(
            attachment=attachment,
            key=lease.key,
            identity=identity,
            vm=lease.vm,
            vm_domid=lease.vm_domid,
            options=lease.options,
            boot=state.boot,
            had_twins=self._may_have_twins(lease.key, identity),
        )
        await state.store.suspended_put(row)
        await state.reach("suspend.noted")
        now = state.leases.get(attachment)
        if now is None or now.state != ATTACHED:  # somebody detaches it, who wants it detached
            await self._forget(attachment)
            return False
        try:
            await self._teardown.end(attachment, REASON, way=SUSPENDED, request=request)
        except CallError:
            await self._forget(attachment)
            raise
        await state.reach("suspend.ended")
        if (held := self._teardown.why_held(attachment)) is not None:
            raise held  # the VM does not have it any more: it is to have it again
        return True

    # After

    async def resume(self, request: str) -> SleepResult:
        """Makes again what was ended, all at once, and returns when each is attached, or why not.
        It takes a while; the caller need not wait."""
        done: list[SleepItem] = []

        async def make(row: Suspended) -> None:
            done.append(await self._resume(row, request))

        async with self._resuming:
            rows = self._rows()
            untouched = await self._note_twins(rows)
            for row in rows:
                if row.attachment in untouched:
                    done.append(_item(row.key, row.vm, _unnoted(), again=True))
            rows = [row for row in rows if row.attachment not in untouched]
            if rows:
                await self._note_begun(rows)
                await trio.sleep(WAKE_SECONDS)
            await _each(make, rows)
        return _result(done, request)

    async def finish(self) -> None:
        """At the start of the service: goes on with what the last one was making again, and says
        what still waits for a `resume`."""
        rows = [row for row in self._rows() if row.boot == self._state.boot]
        for row in rows:
            if not row.begun and not row.tried:
                text = "%s was detached from %s for the sleep of the machine; after it: %s"
                logger.warning(text, row.key, row.vm, "qvm-sleep resume")
        begun = [row for row in rows if row.begun and not row.tried]
        request = new_request_id()

        def tell(row: Suspended, why: str, *, again: bool) -> None:
            text = "%s was not attached to %s again after the sleep: %s%s"
            hint = "; qvm-sleep resume tries again" if again else ""
            logger.warning(text, row.key, row.vm, why, hint)

        async def make(row: Suspended) -> None:
            item = await self._resume(row, request)
            if item.error is not None:
                tell(row, item.error.message, again=item.again)

        async with self._resuming:
            try:
                untouched = await self._note_twins(self._rows()) if begun else set()
                for row in begun:
                    if row.attachment in untouched:
                        tell(row, _unnoted().message, again=True)
                await _each(make, [row for row in begun if row.attachment not in untouched])
            except Exception:
                logger.exception("what a killed service began after the sleep was not finished")

    def _rows(self) -> list[Suspended]:
        """What is to be made again. A device for which another row waits at another port is a twin,
        though the two may never have been there together: it must not go to the wrong VM, neither
        now nor, as each row is noted with that, when the other row is gone."""
        rows = self._state.store.suspended()

        def has_twins(row: Suspended) -> bool:
            return row.had_twins or any(_are_twins(row, each) for each in rows)

        return [attrs.evolve(row, had_twins=has_twins(row)) for row in rows]

    async def _note_twins(self, rows: list[Suspended]) -> set[str]:
        """Notes of each row that it has twins, before any is worked on: a row is forgotten when it
        is done, and the service may be killed then. Returns the attachments that must stay,
        as one of their twins could not be noted."""
        unnoted = []
        for row in rows:
            # A suspend may have put or deleted others meanwhile.
            stored = {each.attachment: each for each in self._state.store.suspended()}
            now = stored.get(row.attachment)
            if now is None or now.had_twins or not row.had_twins:
                continue
            try:
                await self._state.store.suspended_put(attrs.evolve(now, had_twins=True))
            except StoreError as error:
                logger.error("that %s has twins after the sleep is not noted: %s", row.key, error)
                unnoted.append(row)
        return {row.attachment for row in rows if any(_are_twins(row, each) for each in unnoted)}

    async def _resume(self, row: Suspended, request: str) -> SleepItem:
        error: CallError | None = None
        try:
            with recorded(
                self._state, "resume", DOM0_USER, request, **_names(row.key, row.vm)
            ) as ending:
                ending.fields["device"] = str(await self._make(row, request))
                ending.outcome, ending.changed = "attached", True
        except CallError as failed:
            error = failed
        again = error is not None and not isinstance(error, VoidError) and error.code != "denied"
        if again:
            await self._note_tried(row)
        else:
            await self._forget(row.attachment)
        for key in {row.key, *self._with_identity(row.key, row.identity)}:
            self._state.registry.touch(key)  # nothing keeps it from an assignment any more
        return _item(row.key, row.vm, error, again=again)

    async def _make(self, row: Suspended, request: str) -> DeviceKey:
        """Attaches it again, by the identity that it had; returns what it is called now.
        CallError."""
        state, vm = self._state, row.vm
        await self._reconciler.wait_settled(row.key.backend, vm)
        await self._teardown.no_longer_ending(row.attachment)
        lease = state.leases.get(row.attachment)
        if lease is not None and lease.state == ATTACHED:  # the sleep, or its end, was never begun
            return lease.key
        if (held := self._teardown.why_held(row.attachment)) is not None:
            raise held
        if row.boot != state.boot or not state.runs(vm, row.vm_domid):
            raise VoidError("failed", f"{vm} has ended since")
        key, device = await self._come_back(row)
        # A question that nobody waits for is a question all the same, and its time is bounded.
        await self._attach(
            *(DOM0_USER, request, key, vm, _asked(row), False, trio.Event(), device.identity),
            may_redirect=False,
        )
        return key

    async def _come_back(self, row: Suspended) -> tuple[DeviceKey, Device]:
        """The device with that identity: at the port where it was, or, if it does not come back
        there in time, the only one of its source, if it was that before. CallError if there is
        none, or more than one."""
        state, identity = self._state, row.identity
        found: dict[DeviceKey, Device] = {}
        with trio.move_on_after(RETURN_SECONDS):
            while True:
                found = self._with_identity(row.key, identity)
                if row.key in found:
                    return row.key, found[row.key]
                await state.registry.changed()
        if len(found) == 1 and not row.had_twins:
            return next(iter(found.items()))
        if found:
            names = ", ".join(sorted(map(str, found)))
            text = (
                f"it is not at its port, and several devices had the identity '{identity}': {names}"
            )
            raise VoidError("failed", text)
        raise errors.failure("not_found", f"{row.key} ('{identity}') has not come back")

    def _may_have_twins(self, key: DeviceKey, identity: str) -> bool:
        """Whether its source has others with its identity, as far as it has looked at all."""
        if self._state.registry.missing(key.backend, key.device_class) is not None:
            return True
        return not self._with_identity(key, identity, or_had=True).keys() <= {key}

    def _with_identity(
        self, key: DeviceKey, identity: str, *, or_had: bool = False
    ) -> dict[DeviceKey, Device]:
        """What the source of a device has with its identity; `or_had`: or had when it was last
        looked at."""
        state = self._state
        lasting = class_of(key.device_class).lasting_identity
        return {
            other: device
            for other, device in state.registry.items(key.device_class)
            if other.backend == key.backend
            and (or_had or device.stale is None)
            and lasting(device.identity) == lasting(identity) != ""
        }

    async def _note_begun(self, rows: list[Suspended]) -> None:
        """If that cannot be written, a service that is killed now leaves them to a `resume`."""
        for row in rows:
            with contextlib.suppress(StoreError):
                await self._state.store.suspended_put(attrs.evolve(row, begun=True))

    async def _note_tried(self, row: Suspended) -> None:
        """If that cannot be written, it counts as not tried: nothing else attaches the device."""
        try:
            await self._state.store.suspended_put(attrs.evolve(row, tried=True))
        except StoreError as error:
            logger.error("what was not attached after the sleep is not noted: %s", error)

    async def _forget(self, attachment: str) -> None:
        """If that cannot be written, the row stays; it is looked at in the next `resume`."""
        try:
            await self._state.store.suspended_delete(attachment)
        except StoreError as error:
            logger.error("what was detached for the sleep stays noted: %s", error)


def _unnoted() -> CallError:
    return CallError("failed", "it could not be noted that another VM's device has its identity")


def _are_twins(row: Suspended, other: Suspended) -> bool:
    """Whether two were of one identity, and not at one port."""
    source, other_source = ((each.key.device_class, each.key.backend) for each in (row, other))
    if source != other_source or row.key == other.key:
        return False
    lasting = class_of(row.key.device_class).lasting_identity
    return lasting(row.identity) == lasting(other.identity) != ""


async def _each(work: Callable[..., Awaitable[None]], of: Iterable[object]) -> None:
    async with trio.open_nursery() as nursery:
        for each in of:
            nursery.start_soon(work, each)


def _asked(row: Suspended) -> dict[str, str]:
    """The options of an attachment that can be asked for: others come from rules and devices."""
    described = class_of(row.key.device_class).description
    return {
        name: value for name, value in row.options.items() if described.option(name) is not None
    }


def _names(key: DeviceKey, vm: str) -> dict[str, str]:
    return {"device_class": key.device_class, "device": str(key), "vm": vm}


def _item(key: DeviceKey, vm: str, error: CallError | None, *, again: bool = False) -> SleepItem:
    told = None
    if error is not None:
        hint = error.data.get("hint")
        data = {} if hint is None else {"hint": hint}
        told = ErrorInfo(error.code, printable_text(error.message, MESSAGE_MAX), data)
    return SleepItem(key.device_class, key.backend, key.device, vm, told, again)


def _result(done: list[SleepItem], request: str) -> SleepResult:
    done.sort(key=lambda item: (item.vm, item.backend, item.device))
    told = fitting(done, FRAME_MAX - ENVELOPE_MAX)
    return SleepResult(results=told, request=request, left_out=len(done) - len(told))
