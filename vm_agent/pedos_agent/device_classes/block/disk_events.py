"""When disks, or their uses, may have changed since the last look: events of the kernel and of
udev, and changes of the tables of mounts and of swap space."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

import trio
from pedos_host.waiting import first_of

from pedos_agent.system.revision import Revision
from pedos_agent.system.roots import Roots
from pedos_agent.system.uevents import SETTLE_SECONDS, heard, keep_hearing, opened

Sources = tuple[socket.socket, select.epoll, select.epoll]


@contextlib.contextmanager
def sources(roots: Roots, groups: int) -> Iterator[Sources]:
    """The sources of changes: events of these `groups`, and the tables of mounts and of swap
    space."""
    missing = "plugging in is not noticed, nor that a disk is in use no more"
    with (
        _table(roots.proc / "self/mountinfo") as mounts,
        _table(roots.proc / "swaps") as swaps,
        opened(groups, missing=missing) as events,
    ):
        yield events, mounts, swaps


@contextlib.contextmanager
def _table(path: Path) -> Iterator[select.epoll]:
    """Such a table is always readable, and has an "exceptional" condition when it changes
    (proc(5)); so only that is watched, by an epoll instance that can itself be waited for."""
    with contextlib.ExitStack() as stack:
        table = stack.enter_context(contextlib.closing(select.epoll()))
        # A kernel may lack the table, and a plain file (in tests) never changes so.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            file = stack.enter_context(open(path, "rb"))
            table.register(file, select.EPOLLPRI | select.EPOLLERR | select.EPOLLET)
        yield table


async def follow(
    roots: Roots,
    groups: int,
    uevents: Revision,
    mounts: Revision,
    swaps: Revision,
    of_kernel: Collection[str] = (),
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Bump `uevents`, `mounts` and `swaps` at their changes, for ever; see `keep_hearing`."""

    async def hear(opened_ones: Sources) -> None:
        events, of_mounts, of_swaps = opened_ones
        await first_of(
            partial(_follow_uevents, events, uevents, of_kernel),
            partial(_follow_table, of_mounts, mounts),
            partial(_follow_table, of_swaps, swaps),
        )

    opening = partial(sources, roots, groups)
    await keep_hearing(opening, hear, {uevents, mounts, swaps}, task_status=task_status)


async def _follow_uevents(
    uevents: socket.socket, changes: Revision, of_kernel: Collection[str]
) -> None:
    """Bump `changes` after each event of disks, and of the subsystems `of_kernel`."""
    while True:
        await heard(uevents, ["block"], of_kernel=of_kernel)
        changes.bump()


async def _follow_table(table: select.epoll, changes: Revision) -> None:
    """Bump `changes` after each change of a table."""
    while True:
        await trio.lowlevel.wait_readable(table)
        await trio.sleep(SETTLE_SECONDS)
        table.poll(0)
        changes.bump()
