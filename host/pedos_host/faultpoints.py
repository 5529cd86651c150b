"""Named places at which a test can stop this process, to kill it just there.

They have no effect unless the environment says so: PEDOS_FAULTPOINTS is the path of a Unix socket
on which a test listens, PEDOS_FAULTNAME the test's name for this process. At a fault point the
process sends one line `FAULTNAME POINT` and continues when it gets a byte or the test hangs up.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from .unix import connect_unix

#: Seconds after which a process continues by itself: a test that has died must not hang others.
HOLD_MAX = 30

# Read once, as a call of a service passes many points.
ADDRESS = os.environ.get("PEDOS_FAULTPOINTS", "")
PROCESS = os.environ.get("PEDOS_FAULTNAME", "")


async def reach(name: str) -> None:
    """Reports that the point `name` is reached, and waits until the test answers."""
    if not ADDRESS:
        return
    with trio.move_on_after(HOLD_MAX):
        try:
            async with await connect_unix(ADDRESS) as stream:
                await stream.send_all(f"{PROCESS} {name}\n".encode())
                await stream.receive_some(1)
        except (OSError, trio.BrokenResourceError):
            pass  # no test listens any more: continue


def pass_by(name: str, begin: Callable[..., None], then: Callable[[], None]) -> None:
    """As `reach`, for what has no task: `then` is called, at once unless a test stops it here.
    `begin` starts a task for that."""
    if ADDRESS:
        begin(_reach_and, name, then)
    else:
        then()


async def _reach_and(name: str, then: Callable[[], None]) -> None:
    await reach(name)
    then()
