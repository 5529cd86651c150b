"""The table of what this VM lends and borrows now, and the task that each entry lives in."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import attrs
import trio
from pedos_protocol.agent_messages import ExportStart, ExportState, ImportStart, ImportState
from pedos_protocol.errors import CallError
from pedos_protocol.fields import ATTACHMENTS_MAX
from pedos_protocol.names import frontend_names, harmless_text

from . import mounts, xen_block
from .block_use import Roots
from .borrowed import Borrowed, folder_is_gone
from .discovery_block import Carried
from .exporter import export_block
from .found import Found
from .importer import import_block
from .inventory import Inventory
from .lifetime import Lifetime
from .reading import is_gone
from .revision import Revision
from .settings import Settings

log = logging.getLogger(__name__)

Ended = Callable[[str, str, str], Awaitable[None]]  # attachment, side, reason


@attrs.define(eq=False)
class Export:
    """An entry of the table: a device of this VM that another domain uses."""

    params: ExportStart
    found: Found
    lifetime: Lifetime = attrs.field(factory=Lifetime)

    def state(self) -> ExportState:
        """Say it as dom0 is told."""
        params = self.params
        return ExportState(
            attachment=params.attachment,
            device_class=params.device_class,
            device=params.device,
            peer=params.peer,
            port=params.port,
            read_only=params.read_only,
            instance=self.found.device.instance,
        )


@attrs.define(eq=False)
class Import:
    """An entry of the table: a device of another domain that this VM uses."""

    params: ImportStart
    frontend: str
    disk: Borrowed | None = None  # in local mode
    lifetime: Lifetime = attrs.field(factory=Lifetime)

    def state(self) -> ImportState:
        """Say it as dom0 is told."""
        params = self.params
        return ImportState(
            attachment=params.attachment,
            device_class=params.device_class,
            backend=params.backend,
            device=params.device,
            peer=params.peer,
            port=params.port,
            read_only=params.read_only,
            frontend=self.frontend,
        )


class Attachments:
    """Starts, stops and watches exports and imports. An entry stands while anything of it does.

    They live in this table's own tasks, not in those of the request that started them: dom0's
    service may come and go while data flows.
    """

    def __init__(self, settings: Settings, revision: Revision) -> None:
        """`inventory` and `ended` are set by the agent before it serves anyone."""
        self.inventory: Inventory | None = None
        self.ended: Ended | None = None
        # Something may be another than at discovery's last look; where it looks is for tests.
        self.news = Revision()
        self.roots = Roots()
        self._settings = settings
        self._revision = revision
        self._nursery: trio.Nursery | None = None
        self._exports: dict[str, Export] = {}
        self._imports: dict[str, Import] = {}
        self._closing = False
        self._scope = trio.CancelScope(shield=True)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be the parent of all attachments' tasks until `close`, which must be called.

        Shielded: when the agent ends, they are taken down in order and not all at once.
        """
        with self._scope:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()

    def exports(self) -> list[ExportState]:
        """All exports, also those that are just starting or ending: something of them is there."""
        return [entry.state() for entry in self._exports.values()]

    def imports(self) -> list[ImportState]:
        """All imports, likewise."""
        return [entry.state() for entry in self._imports.values()]

    def lent(self) -> set[tuple[str, str]]:
        """Class and id of all devices that are exported."""
        return {entry.found.key for entry in self._exports.values()}

    def carried(self) -> Carried:
        """Which block devices are lent and borrowed, for discovery."""
        return Carried(
            {(entry.params.device, entry.params.peer) for entry in self._exports.values()},
            {entry.frontend for entry in self._imports.values()},
        )

    async def start_export(self, params: ExportStart) -> str | None:
        """Lend a device; returns when the target can connect. CallError when it cannot be.

        The result is the number of a block device, MAJOR:MINOR as blkback has it.
        """
        self._check_room(params.attachment, params.device_class, self._exports)
        found = self.inventory and self.inventory.get(params.device_class, params.device)
        if not found:
            raise CallError("not_found", f"no {params.device_class} device {params.device} here")
        instance = found.device.instance  # "": it cannot tell; see below
        if instance and params.instance not in ("", instance):
            raise CallError(
                "not_found", f"{params.device} is another device by now than was decided about"
            )
        # What is lent already was known when it was, and is the same one.
        if found.device.stale is not None and not params.again:
            why = f"{params.device} cannot be looked at now: {found.device.stale}"
            raise CallError("busy", why)
        if found.device.busy is not None and not params.again:
            raise CallError("busy", f"{params.device} is in use here: {found.device.busy}")
        for other in self._exports.values():
            # Two names of the same data are one disk, and two writers would ruin it.
            if other.found.shares_data(found):
                which = "" if other.found.key == found.key else f", as {other.params.device}"
                raise CallError("busy", f"{params.device} is already exported{which}")
        entry = Export(params, found)
        self._exports[params.attachment] = entry
        if self._settings.xen:
            body = partial(
                xen_block.export_block, entry.lifetime, params, found, self.roots, self.news
            )
        else:
            body = partial(export_block, entry.lifetime, params, found, self._settings)
        self._start("export", params.attachment, entry.lifetime, body)
        await entry.lifetime.started()
        return found.inode.disk_number if found.inode is not None else None

    async def start_import(self, params: ImportStart) -> str:
        """Borrow a device; returns the frontend's name when its file is there, or CallError."""
        self._check_room(params.attachment, params.device_class, self._imports)
        settings = self._settings
        if settings.xen:
            entry = Import(params, self._given_frontend(params.frontend))
            body = partial(
                xen_block.import_block, entry.lifetime, entry.frontend, self.roots, self.news
            )
        else:
            try:
                frontend = self._free_frontend(params.frontend)
                disk = Borrowed(settings.dev, frontend)
            except OSError as error:
                if is_gone(error):
                    raise folder_is_gone(settings.dev) from error
                raise
            entry = Import(params, frontend, disk)
            body = partial(import_block, entry.lifetime, params, disk, settings)
        self._imports[params.attachment] = entry
        self._start("import", params.attachment, entry.lifetime, body)
        await entry.lifetime.started()
        return entry.frontend

    async def stop_export(self, attachment: str) -> None:
        """End an export; returns when nothing of it is left. An unknown one is already gone."""
        if entry := self._exports.get(attachment):
            entry.lifetime.end("dom0 asked for it", requested=True)
            await entry.lifetime.gone()

    async def stop_import(
        self,
        attachment: str,
        frontend: str | None = None,
        *,
        may_refuse: bool = False,
        still_asked: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        """End an import; returns when nothing of it is left. An unknown one is already gone; on Xen
        it may be one of a predecessor's, and `frontend` says where. `still_asked` is cancelled if
        this is not wanted any more; it is awaited last before something changes.

        CallError(busy) if it is used: on Xen, where only the toolstack can take the disk away, and
        elsewhere if this VM may refuse.
        """
        entry = self._imports.get(attachment)
        if self._settings.xen:
            await self.check_import(attachment, frontend)
        elif entry is not None and may_refuse and entry.disk and entry.lifetime.reason is None:
            await self._unmount(entry, entry.disk, still_asked)
        if entry := self._imports.get(attachment):
            entry.lifetime.end("dom0 asked for it", requested=True)
            await entry.lifetime.gone()

    async def check_import(self, attachment: str, frontend: str | None = None) -> None:
        """CallError(busy) if `stop_import` would refuse because it is used, as far as is seen; with
        the same parameters. What is just ending is refused to none."""
        entry = self._imports.get(attachment)
        if self._settings.xen:
            name = frontend if entry is None else entry.frontend
            reason = name and await xen_block.why_in_use(name, self.roots)
        elif entry is not None and entry.disk and entry.lifetime.reason is None:
            # One that is just closing it is as little in the way of this as of `_unmount`.
            end = trio.current_time() + mounts.BUSY_SECONDS
            while reason := await entry.disk.why_in_use():
                if trio.current_time() >= end:
                    break
                await trio.sleep(mounts.BUSY_RETRY_SECONDS)
        else:
            reason = None
        if reason:
            raise CallError("busy", reason)

    async def _unmount(
        self, entry: Import, disk: Borrowed, still_asked: Callable[[], Awaitable[None]]
    ) -> None:
        """Takes the mount away if it is not used: from then on it cannot be. CallError(busy)."""
        entry.lifetime.requested = True  # the end of nbdfuse, which this brings about
        let_go = False
        try:
            await disk.let_go(still_asked)
            let_go = True
        finally:
            if not let_go:  # or who asks has given up: dom0 is told of what ends by itself
                entry.lifetime.requested = False

    def check_sources(self) -> None:
        """End the exports whose device is gone or is another one by now.

        One that could not be looked at is neither.
        """
        for entry in self._exports.values():
            found = self.inventory and self.inventory.get(*entry.found.key)
            if not found:
                entry.lifetime.end("the device was unplugged")
            elif found.device.instance != entry.found.device.instance:
                entry.lifetime.end("the device was replaced by another one")

    async def close(self) -> None:
        """End all of them, orderly, and refuse new ones."""
        self._closing = True
        # Imports first: what this VM wrote goes through while the channels still stand.
        for table in (self._imports, self._exports):
            lifetimes = [entry.lifetime for entry in table.values()]
            for lifetime in lifetimes:
                lifetime.end("the VM's agent ends", requested=True)
            for lifetime in lifetimes:
                await lifetime.gone()
        self._scope.cancel()

    def _check_room(self, attachment: str, device_class: str, table: Mapping[str, object]) -> None:
        if self._closing:
            raise CallError("unavailable", "this VM's agent is shutting down")
        if device_class != "block":
            where = "on Xen" if self._settings.xen else "in local mode"
            raise CallError("failed", f"{device_class} devices cannot be lent {where}")
        if attachment in table:
            raise CallError("busy", f"attachment {attachment} exists already")
        if len(table) >= ATTACHMENTS_MAX:
            raise CallError("quota", f"this VM has {ATTACHMENTS_MAX} attachments, the most it may")

    def _given_frontend(self, given: str | None) -> str:
        """dom0 has attached it already, under a name that its toolstack found free."""
        if given is None:
            raise CallError("failed", "dom0 did not say as what it has attached it")
        if any(entry.frontend == given for entry in self._imports.values()):
            raise CallError("busy", f"{given} is already used in {self._settings.vm}")
        return given

    def _free_frontend(self, asked: str | None) -> str:
        taken = {entry.frontend for entry in self._imports.values()}
        if asked is not None:
            if asked in taken or self._name_exists(asked):
                raise CallError("busy", f"{asked} is already used in {self._settings.vm}")
            return asked
        for name in frontend_names():
            if name not in taken and not self._name_exists(name):
                return name
        raise CallError("busy", f"all block device names are used in {self._settings.vm}")

    def _name_exists(self, name: str) -> bool:
        # By the folder's list alone: to look at a dead mount gives an error, at a stuck one hangs.
        dev = self._settings.dev
        if name in os.listdir(dev) and not mounts.is_mounted(dev / name):
            mounts.clear_placeholder(dev / name)  # one that could not be removed when it was used
        return name in os.listdir(dev)

    def _changed(self) -> None:
        """What is carried is another: dom0 is told, and discovery must know."""
        self._revision.bump()
        self.news.bump()

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


def explain(error: Exception) -> CallError:
    """Make an error answer of what went wrong; an unforeseen one goes to the log in full."""
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
