"""Moves bytes between a channel and file descriptors, in C, in a thread of its own."""

from __future__ import annotations

import enum
import logging
import os
from typing import TYPE_CHECKING, NamedTuple

import trio

from ._native import ffi, lib
from .threads import in_thread

if TYPE_CHECKING:
    from .channel import Channel
    from .usbip import UsbipCheck

# One thread per pump. A VM exports at most 64 devices and imports at most 64, with a pump for each;
# twice that, so that pumps which are still ending do not delay new ones.
PUMPS_MAX = 256

log = logging.getLogger(__name__)

_limiter = trio.CapacityLimiter(PUMPS_MAX)


class Why(enum.StrEnum):
    """What ended a pump: the first thing that happened; the value reads well in a log line."""

    INPUT_ENDED = "input ended"
    INPUT_FAILED = "input failed"
    OUTPUT_FAILED = "output failed"
    PEER_CLOSED = "peer closed the channel"
    PEER_DIED = "peer died"
    PEER_BROKEN = "peer published impossible ring indices"
    PEER_FLOODED = "peer flooded the channel with events"
    CANCELLED = "cancelled"
    FAILED = "pump failed"
    REFUSED = "the check refused what came"


_WHY = {getattr(lib, f"PV_PUMP_{why.name}"): why for why in Why}


_said: set[str] = set()


def _say_once(why: str) -> None:
    if why not in _said:
        _said.add(why)
        log.warning("an agent that is killed may wait for a disk that it has borrowed: %s", why)


class PumpResult(NamedTuple):
    """How a pump ended."""

    bytes_to_ring: int
    bytes_to_fd: int
    why: Why
    error: int  # errno for the three FAILED reasons, else 0


async def pump(
    channel: Channel,
    fd_in: int,
    fd_out: int,
    *,
    check: UsbipCheck | None = None,
    alone: bool = False,
) -> PumpResult:
    """Pumps fd_in to the channel and the channel to fd_out until either side ends.

    Then everything read from fd_in is in the ring, everything that the peer had sent is written to
    fd_out, and the channel is closed. The descriptors may be the same one; they stay open and the
    caller's, and are non-blocking meanwhile. Nothing is raised because of the peer or of the
    descriptors: the result says what happened.

    A `check` sees all bytes of both directions before they go on, in memory that the peer cannot
    change. When it refuses, the pump ends (``Why.REFUSED``) and what was refused is lost. It is for
    one pump.

    With `alone` both descriptors are one, which this process has nowhere else meanwhile: its number
    stands for nothing. So it is closed as soon as the process is killed, even if another thread
    waits in the kernel for what comes through it (csrc/own_files.h). Where that is not possible, it
    is logged once.

    Cancellation wakes the C loop, so it takes effect at once and leaves no thread behind; the
    channel is closed then, too, as it is when the coroutine is closed. Raises ``OSError`` if no
    descriptor is left to start with.
    """
    native = channel.lend()
    try:
        run = ffi.new("struct pv_pump *")
        error = lib.pv_pump_init(run)
        if error < 0:
            raise OSError(-error, os.strerror(-error))
        if check is not None:
            run.check = check.native
        run.alone = alone
        try:
            await in_thread(
                lambda: lib.pv_pump_run(run, native, fd_in, fd_out),
                limiter=_limiter,
                wake=lambda: lib.pv_pump_cancel(run),
            )
        finally:
            lib.pv_pump_done(run)
    finally:
        channel.give_back()
        channel.close()
    if run.unalone:
        _say_once(os.strerror(-run.unalone))
    result = PumpResult(run.to_ring, run.to_fd, _WHY[run.why], run.error)
    if result.why is Why.CANCELLED:
        await trio.lowlevel.checkpoint_if_cancelled()
    return result
