"""Both sides of a disk that Xen itself carries: the agents hold it ready, and report its end.

dom0 has the toolstack attach the device between `export.start` and `import.start`, and detach it
between `import.stop` and `export.stop`. So the source only ensures that nothing else uses the
device meanwhile, and the target only waits for it to appear.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Final

import trio
from pedos_host.backoff import Backoff
from pedos_host.exclusive import IN_USE, open_exclusively
from pedos_host.faultpoints import reach
from pedos_host.threads import to_thread
from pedos_protocol.agent_messages import ExportStart
from pedos_protocol.errors import CallError
from pedos_protocol.names import harmless_text

from pedos_agent.device_classes.block.block_use import untold
from pedos_agent.device_classes.block.discovery_block import reasons_for
from pedos_agent.device_classes.block.disk import disk_marks
from pedos_agent.device_classes.block.exporter import opened_source
from pedos_agent.device_classes.lifetime import Lifetime
from pedos_agent.inventory.local_device import LocalDevice
from pedos_agent.system.closing import close_and_wait
from pedos_agent.system.reading import is_gone, is_there, read_field, words
from pedos_agent.system.revision import Revision
from pedos_agent.system.roots import Roots

log = logging.getLogger(__name__)

# The backend is up when dom0 asks; the two kernels then need milliseconds, and udev a little more.
# Below the 15 s that dom0 waits for this agent.
APPEAR_SECONDS: Final = 12.0
# udev looks at a new disk for some 30 ms, under emulation for a second; longer delays have other
# causes, and the disk is there all the same.
UDEV_LOOKS: Final = 50
UDEV_LOOK_SECONDS: Final = 0.1  # between two looks at udev's queue
# A program that uses a disk which is to be taken away may be about to finish, as udev is.
QUIET_LOOKS: Final = 60
LOOK_SECONDS: Final = 0.05  # between two looks at reads and writes
# A backend that was taken down is gone from sysfs sooner; one that is left after this lends the
# disk.
BACKEND_GONE_SECONDS: Final = 2.0
_ON_THEIR_WAY: Final = 8  # which of the fields of a disk's `stat`
_GONE: Final = "gone"


async def export_block(
    lifetime: Lifetime, params: ExportStart, found: LocalDevice, roots: Roots, rescan: Revision
) -> None:
    """Keep `found` for the peer domain until an event ends `lifetime`.

    It is held open exclusively, for reading, so that it cannot be mounted here meanwhile. That does
    not block the backend, which opens it in another way; nor a backend that an administrator has
    set up, so the agent looks for one.
    """
    async with opened_source(found) as source:
        kept = await to_thread(open_exclusively, f"/proc/self/fd/{source}")
        if kept is None:
            raise CallError("busy", f"{params.device} is {IN_USE}")
        try:
            # Not before it is held: from now on no other disk can get its name.
            if disk_marks(f"{roots.sys}/class/block/{params.device}") != found.marks:
                raise CallError("not_found", f"{params.device} was unplugged or replaced just now")
            await _refuse_used(params, roots, rescan)
            await reach("export.opened")
            lifetime.ready({})
            await lifetime.ending()
        finally:
            await close_and_wait(partial(os.close, kept))  # may flush the disk
    await reach("export.stopped")


async def _refuse_used(params: ExportStart, roots: Roots, rescan: Revision) -> None:
    """CallError(busy) if something uses the device that was not reported yet."""
    device = params.device
    own = {(device, params.peer)} if params.again else ()
    with trio.move_on_after(BACKEND_GONE_SECONDS):
        while True:
            seen = rescan.number
            reason = await to_thread(reasons_for, device, roots, own)
            if reason is None:
                return
            await rescan.after(seen)
    raise CallError("busy", harmless_text(f"{device} is in use here: {reason}"))


async def import_block(lifetime: Lifetime, frontend: str, roots: Roots, rescan: Revision) -> None:
    """Wait for the device that dom0 has attached as `frontend`, and then for its end.

    It is there when udev has looked at it and its partitions, and made the links by which a user
    finds them. `rescan` is bumped after every event of the kernel about disks.
    """
    with trio.move_on_after(APPEAR_SECONDS) as waiting:
        await _until(lambda: _is_there(frontend, roots), rescan)
        for _ in range(UDEV_LOOKS):
            if _udev_is_done(frontend, roots) or not _is_there(frontend, roots):
                break
            await trio.sleep(UDEV_LOOK_SECONDS)
    if not _is_there(frontend, roots):
        raise CallError(
            "failed",
            f"{frontend} did not appear within {APPEAR_SECONDS:g} s: the kernel of this VM "
            "has no xen-blkfront, or the source does not serve it"
            if waiting.cancelled_caught
            else f"{frontend} came and has gone again: the source has taken it back",
        )
    await reach("import.ready")
    lifetime.ready({"frontend": frontend})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_when_gone, lifetime, frontend, roots, rescan)
        await lifetime.ending()
        nursery.cancel_scope.cancel()
    await reach("import.stopped")


async def _end_when_gone(lifetime: Lifetime, frontend: str, roots: Roots, rescan: Revision) -> None:
    await _until(lambda: not _is_there(frontend, roots), rescan)
    lifetime.end(f"{frontend} has gone")


async def _until(done: Callable[[], bool], rescan: Revision) -> None:
    """Wait until `done`. A `done` that fails (OSError) is repeated later."""
    backoff = Backoff()
    while True:
        seen = rescan.number
        try:
            if done():
                return
            wait = backoff.over()
        except OSError as error:
            log.warning("a disk cannot be looked at: %s", words(error))
            wait = backoff.after_failure()
        with trio.move_on_after(wait):
            await rescan.after(seen)


def _is_there(frontend: str, roots: Roots) -> bool:
    return is_there(roots.dev / frontend)


def _udev_is_done(frontend: str, roots: Roots) -> bool:
    """Whether udev has looked at a disk and has nothing else before it; yes if no udev runs."""
    number = read_field(f"{roots.sys}/class/block/{frontend}/dev")
    known = is_there(roots.udev / f"b{number}") or not is_there(roots.udev)
    return known and not _udev_is_busy(roots)


def _udev_is_busy(roots: Roots) -> bool:
    """As `udevadm settle` sees it."""
    return is_there(roots.udev.parent / "queue")


async def why_in_use(frontend: str, roots: Roots) -> str | None:
    """Why this VM cannot release a borrowed disk now; None if it can.

    Linux 6.1 waits for ever for a read or write in progress when the disk is taken away, and gives
    the VM no other device then; 6.12 ends it with an error, and the written data is lost. So this
    waits a moment for those about to finish. (A program that begins afterwards does the same harm,
    or one that reads and writes so seldom that two looks miss it. Only its user, who was asked, can
    prevent that.)
    """
    try:
        return await _why_in_use(frontend, roots)
    except OSError as error:
        return untold(frontend, error)


async def _why_in_use(frontend: str, roots: Roots) -> str | None:
    # The step that takes longest is between the first two looks, which are apart anyway.
    before, began = await _look(frontend, roots), trio.current_time()
    reason = await to_thread(reasons_for, frontend, roots)
    if reason is not None:
        return harmless_text(f"{frontend} is in use: {reason}")
    for left in reversed(range(1, QUIET_LOOKS)):
        if not _is_there(frontend, roots):
            return None
        await trio.sleep(max(0.0, began + LOOK_SECONDS - trio.current_time()))
        began = trio.current_time()
        # Others may keep udev busy all the time; then only what this disk itself reports counts.
        now = await _look(frontend, roots, heeds_udev=left > 2)
        if now is None:
            return f"{frontend} is in use: {IN_USE}"
        if now and now == before:
            return None
        before = now
    return f"{frontend} is in use: a program reads, writes or has locked it"


async def _look(frontend: str, roots: Roots, *, heeds_udev: bool = True) -> str | None:
    """As `_counts_when_idle`; also "" when udev may look at the disk meanwhile."""
    if heeds_udev and _udev_is_busy(roots):
        return ""
    counts = await to_thread(_counts_when_idle, frontend, roots)
    # It may have got an event meanwhile.
    return "" if counts and heeds_udev and _udev_is_busy(roots) else counts


def _counts_when_idle(frontend: str, roots: Roots) -> str | None:
    """The counts of all reads and writes of a disk so far, to be compared with those of a moment
    later; "" while one is in progress (Linux, Documentation/block/stat.rst) or a program has locked
    the disk, as udev does to look (systemd.io, "Locking Block Device Access"); None if it is
    held."""
    try:
        file = open_exclusively(str(roots.dev / frontend))
    except OSError as error:
        if is_gone(error):
            return _GONE
        raise
    if file is None:
        return None
    try:
        # Released at once: udev drops or delays what it finds locked.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ""
    finally:
        os.close(file)
    counts = read_field(f"{roots.sys}/class/block/{frontend}/stat").split()
    if counts[_ON_THEIR_WAY : _ON_THEIR_WAY + 1] not in ([], ["0"]):
        return ""
    return " ".join(counts) or _GONE
