"""The source's side of a lent USB device: usbip-host has it, and the pump joins that to the
target."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Final

import trio
from pedos_host.faultpoints import reach
from pedos_protocol.agent_messages import ExportStart
from pedos_protocol.errors import CallError
from pedos_protocol.reasons import UNPLUGGED, why_replaced
from pedos_vchan.channel import Channel
from pedos_vchan.pump import Why
from pedos_vchan.transport import DATA_ORDERS

from pedos_agent.device_classes import kernel
from pedos_agent.device_classes.base import Host
from pedos_agent.device_classes.data_channel import serve_target
from pedos_agent.device_classes.lifetime import Lifetime
from pedos_agent.device_classes.usb.disks_below import held_below
from pedos_agent.device_classes.usb.handover import Handover
from pedos_agent.device_classes.usb.host_driver import HostDriver, Lent, Taken
from pedos_agent.device_classes.usb.identity import identity_of
from pedos_agent.device_classes.usb.stream import carry_checked
from pedos_agent.device_classes.usb.usb_device import HOST, UsbDevice, folder_of, marks_of
from pedos_agent.inventory.local_device import LocalDevice

log = logging.getLogger(__name__)

# dom0 waits 20 s for the end of an export (STOP_TIMEOUT). The steps that may be under way when it
# asks, a connect or a look, and all those that give the device back end within less, also where
# each of them hangs; the last of these has the time of any step (kernel.STEP_SECONDS).
CONNECT_SECONDS: Final = 3.0  # usbip-host takes a socket at once
LOOK_SECONDS: Final = 2.0  # and a look waits for nothing, unless the kernel holds the device
DISCONNECT_SECONDS: Final = 2.0  # usbip-host only begins that
# It resets the device when its connection ends: 0.3 to 0.9 s were seen.
IDLE_SECONDS: Final = 4.0
LEFT_IDLE_SECONDS: Final = 6.0  # after a killed agent's connection, of which dom0 waits for nothing


async def export_usb(
    lifetime: Lifetime, params: ExportStart, found: LocalDevice, host: Host, driver: HostDriver
) -> None:
    """Lend `found` to the peer domain until an event ends `lifetime`; gives it back then."""
    await kernel.load(HOST, driver.is_loaded)
    name = found.device.device

    def is_it(_device: UsbDevice) -> bool:
        folder = folder_of(host.roots.sys, name)
        return marks_of(folder) == found.marks and identity_of(folder) == found.device.identity

    def why_gone() -> str | None:
        now = driver.device(name)
        if now is None:
            return UNPLUGGED
        if is_it(now):
            return None
        identity = identity_of(folder_of(host.roots.sys, name)) or ""
        return why_replaced(params.device_class, found.device.identity, identity)

    def take() -> Taken:
        with held_below(name, host.roots):  # until no driver of this VM has it
            return driver.take(name, is_it)

    with trio.CancelScope(shield=True):  # a thread cannot be stopped in the middle
        taken = await kernel.step(f"lend {name}", take, late=driver.give_back)
    try:
        await reach("export.opened")
        assert taken.device.speed is not None
        handover = str(Handover(taken.device.devid, taken.device.speed))
        use = partial(_serve, lifetime, driver, taken, why_gone)
        await serve_target(
            lifetime, host.transport, params, DATA_ORDERS, {"handover": handover}, use
        )
    finally:
        # Each step has its own bound.
        with trio.CancelScope(shield=True):
            await _take_back(driver, taken)
    await reach("export.stopped")


async def _serve(
    lifetime: Lifetime,
    driver: HostDriver,
    taken: Taken,
    why_gone: Callable[[], str | None],
    channel: Channel,
) -> None:
    """Move the target's bytes until either side ends."""
    device = taken.device
    try:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                connect = partial(driver.connect, taken)
                work = partial(kernel.with_socket, theirs, connect)
                await kernel.step(f"connect {device.name}", work, seconds=CONNECT_SECONDS)
            why, reason = await carry_checked(channel, ours, device.devid, is_source=True)
    except CallError as error:
        lifetime.end(error.message)
        return
    if why is not Why.REFUSED:
        # What cannot be looked at may be there still: the pump's reason has to do.
        with contextlib.suppress(CallError):
            what = f"look at {device.name}"
            gone = await kernel.step(what, why_gone, seconds=LOOK_SECONDS)
            reason = gone or reason
    lifetime.end(reason)


async def _take_back(driver: HostDriver, taken: Taken) -> None:
    """Take a device from usbip-host, once that is done with it, and give it to its driver; nothing
    if it was unplugged. The attachment is over also if that cannot be done now. A step that hangs
    keeps none of the next from being tried."""
    name = taken.device.name
    try:
        await kernel.step(
            f"end the connection of {name}",
            partial(driver.disconnect, taken),
            kind="give-back",
            seconds=DISCONNECT_SECONDS,
        )
        is_idle = await _is_idle(driver, name, IDLE_SECONDS)
        why = f"it is in use for {IDLE_SECONDS:g} s more"
    except CallError as error:
        is_idle, why = False, error.message
    if not is_idle:  # the unbind ends a connection, too
        log.warning("%s is taken from usbip-host with its connection: %s", name, why)
    await _give_back(driver, taken)


async def _is_idle(driver: HostDriver, name: str, seconds: float) -> bool:
    """Whether usbip-host is done with a device within a while. CallError if that cannot be told."""
    look, done = f"look who has {name}", partial(driver.is_idle, name)
    return await kernel.until(look, done, seconds, kind="give-back", look_seconds=LOOK_SECONDS)


async def _give_back(driver: HostDriver, lent: Lent) -> None:
    """Now, or later if the kernel does not answer in time."""
    name = lent.name
    try:
        await kernel.step(f"take back {name}", partial(driver.give_back, lent), kind="give-back")
    except CallError as error:
        why = "it is not known whether %s is back, which is tried again: %s"
        log.error(why, name, error.message)
        driver.give_back_later(lent)


async def clean_leftovers(driver: HostDriver) -> None:
    """Give back what a killed predecessor has lent, all at once: one that hangs, that cannot be
    looked at or given back, or that another program lends, keeps none of the others. CallError if
    it cannot be told from which ports devices were lent."""
    names = await kernel.step("look for lent devices", driver.left, kind="give-back")
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(_give_back_leftover, driver, name)


async def _give_back_leftover(driver: HostDriver, name: str) -> None:
    """Give one back. One that is still in use after a while is another program's, or hangs: what
    is looked at again in the background."""
    try:
        look = partial(driver.leftover, name)
        lent = await kernel.step(f"look what is left of {name}", look, kind="give-back")
        if lent is None:
            return
        if not await _is_idle(driver, name, LEFT_IDLE_SECONDS):
            why = "%s is lent by another program, with usbip-host, or a connection of it still ends"
            log.warning(why, name)
            driver.give_back_later(lent, when_idle=True)
            return
    except CallError as error:
        log.warning("a device that a predecessor lent may not be back: %s", error.message)
        return
    log.info("giving %s back, which a predecessor of this agent had lent", name)
    await _give_back(driver, lent)
