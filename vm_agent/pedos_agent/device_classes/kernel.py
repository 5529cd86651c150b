"""Asks the kernel for what takes it a while: modules, and steps that have no event of their own."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import trio
from pedos_host.in_time import GIVING_BACK_MAX, Kind, in_time
from pedos_host.threads import to_thread
from pedos_protocol.errors import CallError
from pedos_protocol.names import harmless_text

from pedos_agent.system.reading import is_there, words

T = TypeVar("T")

# An unbind of a USB device waits for its driver: two seconds were seen with a disk in the middle of
# a transfer.
STEP_SECONDS: Final = 8.0
# vhci-hcd registers sixteen buses: one to three seconds under emulation.
MODULE_SECONDS: Final = 6.0
LOOK_SECONDS: Final = 0.05  # between two looks at what has no event

# A step has a thread of trio's until its time is over. Trio has forty at once for all who name no
# limiter, and whoever waits for one of those does so in addition to the times of its steps, which
# dom0 does not know of. So those that give devices back do not share them.
_giving_back: Final = trio.CapacityLimiter(GIVING_BACK_MAX)


def _nothing_to_free(_result: object) -> None:
    pass


async def step(
    what: str,
    work: Callable[[], T],
    *,
    kind: Kind = "attach",
    seconds: float | None = None,
    late: Callable[[T], object] = _nothing_to_free,
) -> T:
    """Do one step in a thread. CallError if the kernel does not answer within `seconds`
    (STEP_SECONDS), or refuses; the thread is then left behind, and `late` undoes what it does after
    all."""
    seconds = STEP_SECONDS if seconds is None else seconds
    ask = partial(in_time, what, work, kind=kind, seconds=seconds, late=late)
    try:
        return await to_thread(ask, limiter=_giving_back if kind == "give-back" else None)
    except TimeoutError as error:
        raise CallError("failed", f"{what}: the kernel does not answer") from error
    except OSError as error:
        raise CallError("failed", f"{what}: {words(error)}") from error


def with_socket(theirs: socket.socket, work: Callable[[int], T]) -> T:
    """`work`, in a step, with the number of a socket that stays open until it is done: the step's
    caller may have given up and closed its own, and the number could be another file's by then."""
    with theirs.dup() as kept:
        return work(kept.fileno())


async def until(
    what: str,
    done: Callable[[], bool],
    seconds: float,
    *,
    kind: Kind = "attach",
    look_seconds: float | None = None,
) -> bool:
    """Whether `done`, which only reads, is true within so many seconds. CallError if it cannot be
    told; a look that hangs at the end of the time takes `look_seconds` more (STEP_SECONDS)."""
    look = partial(step, what, done, kind=kind, seconds=look_seconds)
    with trio.move_on_after(seconds):
        while not await look():  # noqa: ASYNC110 - there is no event to wait for
            await trio.sleep(LOOK_SECONDS)
        return True
    return False


async def load(module: str, is_loaded: Callable[[], bool]) -> None:
    """Have a module of the kernel. CallError if it is not there then.

    The agent may not load modules. Where systemd runs it is asked for this one alone, as it is at
    the start of the agent for others.
    """
    if await step(f"look for {module}", is_loaded):
        return
    if await step("look for systemd", partial(is_there, "/run/systemd/system")):
        command = ["systemctl", "start", f"modprobe@{module.replace('-', '_')}.service"]
    else:
        command = ["modprobe", "-q", module]
    said = ""
    try:
        said = await _said_by(command)
    except OSError as error:
        said = f"{command[0]}: {words(error)}"
    if not await step(f"look for {module}", is_loaded):
        why = f" ({said})" if said else ""
        raise CallError("failed", f"the kernel of this VM has no module {module}{why}")


async def _said_by(command: list[str]) -> str:
    """Run a short program to its end; what it said on stderr. OSError.

    Not as a `Tool`: setpriv fails in the agent's sandbox, as it has no capabilities to set.
    """
    with trio.move_on_after(MODULE_SECONDS):
        done = await trio.run_process(command, capture_stderr=True, check=False)
        return harmless_text(done.stderr.decode("utf-8", "replace").strip(), 300)
    return f"{command[0]} takes too long"
