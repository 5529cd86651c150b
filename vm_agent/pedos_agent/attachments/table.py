"""The table of devices that this VM lends and borrows now, and the task of each entry."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import attrs
import trio
from pedos_protocol.agent_messages import (
    ExportStart,
    ExportStarted,
    ExportState,
    ImportStart,
    ImportState,
)
from pedos_protocol.device_classes import UNNAMED, class_named
from pedos_protocol.errors import CallError
from pedos_protocol.fields import ATTACHMENTS_MAX
from pedos_protocol.names import harmless_text
from pedos_protocol.reasons import UNPLUGGED, why_replaced

from pedos_agent.device_classes.base import Borrowing, Carried, Carrier, DeviceClass, Host
from pedos_agent.device_classes.lifetime import Lifetime
from pedos_agent.device_classes.registered import CLASSES
from pedos_agent.inventory.inventory import Inventory
from pedos_agent.inventory.local_device import LocalDevice
from pedos_agent.settings import Settings
from pedos_agent.system.revision import Revision

log = logging.getLogger(__name__)

State = TypeVar("State", ExportState, ImportState)
Ended = Callable[[str, str, str], Awaitable[None]]  # attachment, side, reason


@attrs.define(eq=False)
class Export:
    """An entry of the table: a device of this VM that another domain uses."""

    params: ExportStart
    found: LocalDevice
    lifetime: Lifetime = attrs.field(factory=Lifetime)

    def state(self) -> ExportState:
        """Say it as dom0 is told."""
        hearing = self.lifetime.hearing
        muted = self.params.muted if hearing is None else hearing.muted
        listening = hearing is not None and hearing.listening
        instance = self.found.device.instance
        return _state(ExportState, self.params, instance=instance, muted=muted, listening=listening)


@attrs.define(eq=False)
class Import:
    """An entry of the table: a device of another domain that this VM uses."""

    params: ImportStart
    borrowing: Borrowing
    lifetime: Lifetime = attrs.field(factory=Lifetime)

    def state(self) -> ImportState:
        """Say it as dom0 is told."""
        return _state(ImportState, self.params, frontend=self.borrowing.name)


def _state(said: type[State], params: ExportStart | ImportStart, **own: Any) -> State:
    """An attachment in its form for dom0: its `own` fields, and all others as it was started."""
    fields = attrs.fields_dict(said).keys() - own.keys()
    return said(**{name: getattr(params, name) for name in fields}, **own)


class Attachments:
    """Starts, stops and watches exports and imports. An entry stays while any part of it is left.

    They run in this table's own tasks, not in those of the request that started them: dom0's
    service may disconnect and reconnect while data flows.
    """

    def __init__(
        self, settings: Settings, revision: Revision, classes: Sequence[DeviceClass] = CLASSES
    ) -> None:
        """The agent sets `inventory` and `ended` before it serves any client."""
        self.inventory: Inventory | None = None
        self.ended: Ended | None = None
        self.host = Host(settings)
        carriers = {each.name: each.carrier(self.host) for each in classes}
        self._carriers = {name: each for name, each in carriers.items() if each is not None}
        self._revision = revision
        self._nursery: trio.Nursery | None = None
        self._exports: dict[str, Export] = {}
        self._imports: dict[str, Import] = {}
        self._closing = False
        self._scope = trio.CancelScope(shield=True)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be the parent of all attachments' tasks until `close`, which must be called.

        Shielded: when the agent ends, they end in order and not all at once.
        """
        with self._scope:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()

    def exports(self) -> list[ExportState]:
        """All exports, also those that are just starting or ending."""
        return [entry.state() for entry in self._exports.values()]

    def imports(self) -> list[ImportState]:
        """All imports, likewise."""
        return [entry.state() for entry in self._imports.values()]

    def lent(self) -> set[tuple[str, str]]:
        """Class and id of all devices that are exported."""
        return {entry.found.key for entry in self._exports.values()}

    def carried(self, device_class: str) -> Carried:
        """The devices of a class that are lent and borrowed, for discovery."""
        exports = (e for e in self._exports.values() if e.params.device_class == device_class)
        return Carried(
            {(entry.params.device, entry.params.peer) for entry in exports},
            self._names(device_class),
        )

    def _names(self, device_class: str) -> set[str]:
        """The names of the borrowed devices of a class in this VM."""
        imports = (e for e in self._imports.values() if e.params.device_class == device_class)
        return {name for entry in imports if (name := entry.borrowing.name) is not None}

    async def clean_leftovers(self) -> None:
        """Remove what a killed predecessor left; called once, before any attachment starts."""
        for carrier in self._carriers.values():
            await carrier.clean_leftovers()

    async def start_export(self, params: ExportStart) -> ExportStarted:
        """Lend a device; returns when the target can connect. CallError if it cannot be lent."""
        carrier = self._carrier(params.attachment, params.device_class, self._exports)
        found = self.inventory and self.inventory.get(params.device_class, params.device)
        if not found:
            raise CallError("not_found", f"no {params.device_class} device {params.device} here")
        instance = found.device.instance  # "": unknown; see below
        if instance and params.instance not in ("", instance):
            raise CallError(
                "not_found", f"{params.device} is another device by now than was decided about"
            )
        # What is lent already was identified then, and is the same device.
        if found.device.stale is not None and not params.again:
            why = f"{params.device} cannot be looked at now: {found.device.stale}"
            raise CallError("busy", why)
        if found.device.busy is not None and not params.again:
            raise CallError("busy", f"{params.device} is in use here: {found.device.busy}")
        shared = (described := class_named(params.device_class)) is not None and described.shared
        for other in self._exports.values():
            # What several VMs may have at once goes to each of them once.
            if shared and other.params.peer != params.peer:
                continue
            # Two names of the same data are one device, and two writers would destroy it.
            if other.found.shares_data(found):
                which = "" if other.found.key == found.key else f", as {other.params.device}"
                raise CallError("busy", f"{params.device} is already exported{which}")
        entry = Export(params, found)
        self._exports[params.attachment] = entry
        body = partial(carrier.lend, entry.lifetime, params, found)
        self._start("export", params.attachment, entry.lifetime, body)
        started = await entry.lifetime.started()
        return ExportStarted(number=carrier.number(found), handover=started.get("handover"))

    async def start_import(self, params: ImportStart) -> str | None:
        """Borrow a device; returns its name here, if it has one, when it can be used; CallError."""
        carrier = self._carrier(params.attachment, params.device_class, self._imports)
        _check_name(params)
        entry = Import(params, carrier.borrow(params, self._names(params.device_class)))
        self._imports[params.attachment] = entry
        body = partial(entry.borrowing.run, entry.lifetime)
        self._start("import", params.attachment, entry.lifetime, body)
        await entry.lifetime.started()
        return entry.borrowing.name

    def note_of(self, attachment: str) -> str | None:
        """What a user should know of a borrowed device here, if anything."""
        entry = self._imports.get(attachment)
        result = None if entry is None else entry.lifetime.result
        return None if result is None else result.get("note")

    async def stop_export(self, attachment: str) -> None:
        """End an export; returns when nothing of it is left. An unknown one is already gone."""
        if entry := self._exports.get(attachment):
            entry.lifetime.end("dom0 asked for it", requested=True)
            await entry.lifetime.gone()

    async def mute_export(self, attachment: str, muted: bool) -> None:
        """Give the target of an export silence, or again what there is to hear; returns when it is
        so, or the export has ended. CallError if there is no such, or it cannot be."""
        entry = self._exports.get(attachment)
        if entry is None:
            raise CallError("not_found", f"no attachment {attachment} is lent here")
        if entry.lifetime.hearing is None:
            await entry.lifetime.started()  # by then it is known
        if entry.lifetime.hearing is None:
            raise CallError("failed", f"{entry.params.device_class} devices cannot be muted")
        await entry.lifetime.hearing.mute(muted)
        if entry.lifetime.reason is not None:
            await entry.lifetime.gone()

    def heard(self) -> dict[str, bool]:
        """By attachment, whether somebody listens to what is exported."""
        hearings = {name: entry.lifetime.hearing for name, entry in self._exports.items()}
        return {name: each.listening for name, each in hearings.items() if each is not None}

    async def stop_import(
        self,
        attachment: str,
        frontend: str | None = None,
        device_class: str | None = None,
        *,
        may_refuse: bool = False,
        still_asked: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        """End an import; returns when nothing of it is left. An unknown one is already gone, or it
        is one of a predecessor's that outlives an agent: `frontend` says what it is called, and
        `device_class`, or UNNAMED, of which class it is. `still_asked` is cancelled if this is not
        wanted any more; it is awaited last before something changes.

        CallError(busy) if it is used: where it cannot be taken away then, and elsewhere if this VM
        may refuse.
        """
        borrowing, lifetime = self._borrowed(attachment, frontend, device_class)
        if borrowing is not None:
            await borrowing.give_back(lifetime, may_refuse=may_refuse, still_asked=still_asked)
        if entry := self._imports.get(attachment):
            entry.lifetime.end("dom0 asked for it", requested=True)
            await entry.lifetime.gone()

    async def check_import(
        self, attachment: str, frontend: str | None = None, device_class: str | None = None
    ) -> None:
        """CallError(busy) if `stop_import` would refuse because of a visible use; with the same
        parameters. An import that is just ending is never refused."""
        borrowing, lifetime = self._borrowed(attachment, frontend, device_class)
        if borrowing is not None and (reason := await borrowing.why_busy(lifetime)):
            raise CallError("busy", reason)

    def _borrowed(
        self, attachment: str, name: str | None, device_class: str | None
    ) -> tuple[Borrowing | None, Lifetime]:
        """What an attachment has in this VM, and its life; a predecessor's has begun none here."""
        if entry := self._imports.get(attachment):
            return entry.borrowing, entry.lifetime
        carrier = self._carriers.get(device_class or UNNAMED)
        left = None if carrier is None or name is None else carrier.of_predecessor(name)
        return left, Lifetime()

    def check_sources(self) -> None:
        """End the exports whose device is gone or is another one by now.

        A device that could not be looked at is neither.
        """
        for entry in self._exports.values():
            found = self.inventory and self.inventory.get(*entry.found.key)
            if not found:
                entry.lifetime.end(UNPLUGGED)
            elif found.device.instance != entry.found.device.instance:
                now, before = found.device.identity, entry.found.device.identity
                entry.lifetime.end(why_replaced(found.device.device_class, before, now))

    async def close(self) -> None:
        """End all of them in order, and refuse new ones."""
        self._closing = True
        # Imports first: what this VM wrote passes while the channels still exist.
        for table in (self._imports, self._exports):
            lifetimes = [entry.lifetime for entry in table.values()]
            for lifetime in lifetimes:
                lifetime.end("the VM's agent ends", requested=True)
            for lifetime in lifetimes:
                await lifetime.gone()
        self._scope.cancel()

    def _carrier(self, attachment: str, device_class: str, table: Mapping[str, object]) -> Carrier:
        """The carrier for a device of this class, if there is room for one more attachment."""
        if self._closing:
            raise CallError("unavailable", "this VM's agent is shutting down")
        carrier = self._carriers.get(device_class)
        if carrier is None:  # also of a class that only dom0 knows
            where = "on Xen" if self.host.settings.xen else "in local mode"
            raise CallError("failed", f"{device_class} devices cannot be lent {where}")
        if attachment in table:
            raise CallError("busy", f"attachment {attachment} exists already")
        if len(table) >= ATTACHMENTS_MAX:
            raise CallError("quota", f"this VM has {ATTACHMENTS_MAX} attachments, the most it may")
        return carrier

    def _changed(self) -> None:
        """The set of attachments changed: dom0 is told, and discovery must know."""
        self._revision.bump()
        self.host.rescan.bump()

    def _start(
        self,
        side: str,
        attachment: str,
        lifetime: Lifetime,
        body: Callable[[], Awaitable[None]],
    ) -> None:
        assert self._nursery is not None
        self._changed()
        self._nursery.start_soon(self._live, side, attachment, lifetime, body)

    async def _live(
        self,
        side: str,
        attachment: str,
        lifetime: Lifetime,
        body: Callable[[], Awaitable[None]],
    ) -> None:
        """Run one attachment from its start until nothing of it is left."""
        log.info("%s %s starts", side, attachment)
        failure: CallError | None = None
        try:
            with lifetime.scope:
                await body()
        except Exception as error:
            failure = explain(error)
            lifetime.end(failure.message)
        finally:
            table: dict[str, Export] | dict[str, Import]
            table = self._exports if side == "export" else self._imports
            del table[attachment]
            self._changed()
            lifetime.finish(failure)
        log.info("%s %s ended: %s", side, attachment, lifetime.reason)
        if lifetime.result is not None and not lifetime.requested and self.ended is not None:
            await self.ended(attachment, side, harmless_text(lifetime.reason or "unknown"))


def _check_name(params: ImportStart) -> None:
    """CallError if dom0 wishes for a name that no device of the class has."""
    described = class_named(params.device_class)
    if params.frontend is None or described is None or described.may_be_called(params.frontend):
        return
    raise CallError("failed", f"no {described.one} is called {params.frontend}")


def explain(error: Exception) -> CallError:
    """Make an error answer of an error; the log has an unexpected one in full."""
    if isinstance(error, ExceptionGroup):
        first, *others = error.exceptions
        for other in others:
            log.warning("an attachment failed in another way too: %s", explain(other).message)
        return explain(first)
    if isinstance(error, CallError):
        return error
    if isinstance(error, OSError):
        what = f": {harmless_text(str(error.filename))}" if error.filename else ""
        return CallError("failed", f"{error.strerror or error}{what}")
    log.error("an attachment failed unexpectedly", exc_info=error)
    return CallError("failed", f"unexpected {type(error).__name__}; the agent's log has more")
