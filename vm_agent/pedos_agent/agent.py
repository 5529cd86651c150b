"""Connects the agent's parts, and runs them from start to SIGTERM."""

from __future__ import annotations

import errno
import logging
import resource
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import trio
from pedos_host import notify
from pedos_host.folder_lock import hold_folder, make_private
from pedos_host.passed import OF_ALL_MAX

from pedos_agent.attachments.table import Attachments
from pedos_agent.calls.callers import CALLERS_MAX
from pedos_agent.calls.calls import Calls
from pedos_agent.connections.control import CONTROL_SOCKET_MODE, Control
from pedos_agent.connections.local_socket import FORWARD_SECONDS, SOCKET_MODE, LocalSocket
from pedos_agent.connections.restored import end_when_restored
from pedos_agent.device_classes import in_folder, on_machine
from pedos_agent.device_classes.base import DeviceClass
from pedos_agent.device_classes.registered import CLASSES
from pedos_agent.inventory.inventory import Inventory
from pedos_agent.inventory.report import TOO_MANY
from pedos_agent.settings import Settings
from pedos_agent.system import closing
from pedos_agent.system.revision import Revision

log = logging.getLogger(__name__)

# The names of the discoveries for all classes, in the log.
FOLDER: Final = "folder"
MACHINE: Final = "sysfs"
# The needs of attachments and connections.
RESERVED: Final = 512
# Those of calls, if the system gives as many: some ten for each that dom0 lets a VM have, 64 as
# their source and 128 as their target, and five for each program that waits; and what was passed
# for them and is being closed. Fewer are fewer calls.
FOR_CALLS: Final = 10 * (64 + 128) + 5 * CALLERS_MAX + OF_ALL_MAX
# In local mode a descriptor holds each listed file, and another one while discovery looks.
PER_NAME: Final = 2
# If the system gives fewer, fewer files are looked at. On Xen nothing is held, and systemd's 1024
# are ample; more do no harm.
DESCRIPTORS: Final = PER_NAME * in_folder.NAMES_MAX + RESERVED + FOR_CALLS
# With fewer than this no file could be listed.
DESCRIPTORS_LEAST: Final = PER_NAME + RESERVED


async def run(
    settings: Settings,
    classes: Sequence[DeviceClass] = CLASSES,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Be the agent of one VM until cancelled; then take down all attachments first.

    started() when dom0 and local clients can connect. OSError if a socket or folder of `settings`
    cannot be used, or another agent has it, or too few files may be open.
    """
    # The VM's users can reach the socket, and therefore its folder, and nothing else.
    own = settings.socket.parent / "agent" if settings.xen else settings.dev
    make_private(own)
    # Before the clean-up, which could remove what another agent holds.
    with hold_folder(own):
        await _run(settings, classes, task_status)


async def _run(
    settings: Settings, classes: Sequence[DeviceClass], task_status: trio.TaskStatus[None]
) -> None:
    names_max = names_with(allow_descriptors(DESCRIPTORS))
    closing.get_ready()
    revision = Revision()
    attachments = Attachments(settings, revision, classes)
    attachments.host.transport.clear_data_ports()
    await attachments.clean_leftovers()
    names = [each.name for each in classes]
    of_machines = [each.name for each in on_machine.of_machines(classes)]
    inventory = Inventory(
        revision, attachments.check_sources, names, {FOLDER: names, MACHINE: of_machines}
    )
    attachments.inventory = inventory
    inventory.priority.lent = attachments.lent
    calls = Calls(settings, attachments.host.transport)
    control = Control(
        settings,
        attachments.host.transport,
        attachments=attachments,
        calls=calls,
        inventory=inventory,
        revision=revision,
    )
    attachments.ended = control.notify_ended
    calls.dom0 = control

    async def forward(method: str, params: dict[str, Any]) -> dict[str, Any]:
        return await control.call(method, params, timeout=FORWARD_SECONDS)

    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(attachments.run)
            await _discover(nursery, settings, classes, attachments, inventory, names_max)
            await nursery.start(calls.run)
            await nursery.start(control.run)
            # In dom0 a user has the service's own socket: dom0's agent speaks for dom0 as a whole.
            mode = SOCKET_MODE if settings.control_socket is None else CONTROL_SOCKET_MODE
            await nursery.start(LocalSocket(settings.socket, forward, mode).run)
            if settings.xen and settings.control_socket is None:  # dom0 is not restored
                nursery.start_soon(end_when_restored, settings.domid)
            log.info("the agent of %s (domain %d) is ready", settings.vm, settings.domid)
            task_status.started()
            await trio.sleep_forever()
        finally:
            # Every step of taking down has its own bound.
            with trio.CancelScope(shield=True):
                await attachments.close()
            nursery.cancel_scope.cancel()


async def _discover(
    nursery: trio.Nursery,
    settings: Settings,
    classes: Sequence[DeviceClass],
    attachments: Attachments,
    inventory: Inventory,
    names_max: int,
) -> None:
    """Start all discoveries; returns when each has looked once."""
    for each in classes:
        if (watch := each.watch(attachments.host)) is not None:
            await nursery.start(
                partial(watch, failed=partial(inventory.failed, each.name)),
                partial(inventory.replace, each.name),
                partial(attachments.carried, each.name),
            )
    if not settings.xen:
        in_folders = partial(
            in_folder.watch,
            at_most=names_max,
            classes=classes,
            failed=partial(inventory.failed, FOLDER),
            release_removed=partial(inventory.release_removed, FOLDER),
        )
        deliver = partial(inventory.replace, FOLDER, why=_why_not_more(names_max))
        await nursery.start(
            in_folders, settings.devices, deliver, inventory.priority, attachments.carried
        )
    if settings.xen or settings.control_socket is not None:
        # In local mode only dom0 holds the machine's own controllers.
        failed = partial(inventory.failed, MACHINE)
        deliver = partial(inventory.replace, MACHINE)
        await nursery.start(partial(on_machine.watch, failed=failed), deliver, classes)


def names_with(descriptors: int) -> int:
    """How many names an agent with so many open files can look at. OSError if none."""
    if descriptors < DESCRIPTORS_LEAST:
        raise OSError(
            errno.EMFILE,
            f"it may have only {descriptors} files open, and needs {DESCRIPTORS_LEAST} at least: "
            "raise the limit (LimitNOFILE= of its unit, or ulimit -n) and start it again",
        )
    return min((descriptors - RESERVED) // PER_NAME, in_folder.NAMES_MAX)


def _why_not_more(names: int) -> str:
    if names == in_folder.NAMES_MAX:
        return TOO_MANY
    return f"its agent may have so few files open that it looks at {names} names"


def allow_descriptors(number: int) -> int:
    """Raise this process's own limit to that many, as far as the system allows; returns the
    resulting limit, at most `number`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return number if soft == resource.RLIM_INFINITY else min(soft, number)


async def run_until_signal(settings: Settings) -> None:
    """Be the agent until SIGTERM or SIGINT, and tell the service manager when it is ready."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at_signal, signals, nursery.cancel_scope)
            await nursery.start(partial(run, settings))
            try:
                notify.ready()
            except OSError as error:
                # The service manager will wait in vain; a dom0 that connects must not.
                log.warning("the service manager cannot be told that this is ready: %s", error)


async def _cancel_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for number in signals:
        log.info("ending because of %s", signal.Signals(number).name)
        scope.cancel()
