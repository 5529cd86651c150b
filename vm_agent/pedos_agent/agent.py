"""How the agent's parts are wired together, and its life from start to SIGTERM."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import trio
from pedos_vchan import notify

from . import discovery_block, discovery_folder, discovery_sysfs
from .attachments import Attachments
from .control import Control
from .inventory import Inventory
from .local_socket import FORWARD_SECONDS, LocalSocket
from .mounts import clean_leftovers
from .revision import Revision
from .settings import Settings

log = logging.getLogger(__name__)


async def run(
    settings: Settings, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Be the agent of one VM until cancelled; then everything attached is taken down first.

    started() when dom0 and local clients can connect. OSError when a socket or folder of
    `settings` cannot be used.
    """
    if not settings.xen:
        settings.dev.mkdir(parents=True, exist_ok=True)
        await clean_leftovers(settings.dev)
    revision = Revision()
    attachments = Attachments(settings, revision)
    inventory = Inventory(revision, attachments.check_sources)
    attachments.inventory = inventory
    control = Control(settings, attachments=attachments, inventory=inventory, revision=revision)
    attachments.ended = control.notify_ended

    async def forward(method: str, params: dict[str, Any]) -> dict[str, Any]:
        return await control.call(method, params, timeout=FORWARD_SECONDS)

    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(attachments.run)
            if settings.xen:
                deliver = partial(inventory.replace, "block")
                watch = partial(discovery_block.watch, roots=attachments.roots)
                await nursery.start(watch, deliver, attachments.carried, attachments.news)
            else:
                deliver = partial(inventory.replace, "folder")
                await nursery.start(discovery_folder.watch, settings.devices, deliver)
            if settings.xen or settings.control_socket is not None:
                # In local mode only dom0 holds the machine's own controllers.
                await nursery.start(discovery_sysfs.watch, partial(inventory.replace, "sysfs"))
            await nursery.start(control.run)
            await nursery.start(LocalSocket(settings.socket, forward).run)
            log.info("the agent of %s (domain %d) is ready", settings.vm, settings.domid)
            task_status.started()
            await trio.sleep_forever()
        finally:
            # Every step of taking down has its own bound.
            with trio.CancelScope(shield=True):
                await attachments.close()
            nursery.cancel_scope.cancel()


async def run_until_signal(settings: Settings) -> None:
    """Be the agent until SIGTERM or SIGINT, and tell the service manager when it is ready."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at_signal, signals, nursery.cancel_scope)
            await nursery.start(partial(run, settings))
            try:
                notify.ready()
            except OSError as error:
                # Whoever started us will wait in vain; a dom0 that connects must not.
                log.warning("the service manager cannot be told that this is ready: %s", error)


async def _cancel_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for number in signals:
        log.info("ending because of %s", signal.Signals(number).name)
        scope.cancel()
