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
from pedos_agent.device_classes.usb.host_driver import USED, HostDriver, Taken
from pedos_agent.device_classes.usb.identity import identity_of
from pedos_agent.device_classes.usb.stream import carry_checked
from pedos_agent.device_classes.usb.usb_device import HOST, UsbDevice, folder_of, marks_of
from pedos_agent.inventory.local_device import LocalDevice

log = logging.getLogger(__name__)

# usbip-host resets the device when its connection ends: 0.3 to 0.9 s were seen.
IDLE_SECONDS: Final = 6.0


async def export_usb(
    lifetime: Lifetime, params: ExportStart, found: LocalDevice, host: Host, driver: HostDriver
) -> None:
    """Lend `found` to the peer domain until an event ends `lifetime`; gives it back then."""
    await kernel.load(HOST, driver.is_loaded)
    name = found.device.device

    give_back = host.settings.give_back

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
            return driver.take(name, is_it, give_back=give_back)

    with trio.CancelScope(shield=True):  # a thread cannot be stopped in the middle
        undo = partial(_release, driver, give_back)
        taken = await kernel.step(f"lend {name}", take, late=undo)
    try:
        await reach("export.opened")
        assert taken.device.speed is not None
        handover = str(Handover(taken.device.devid, taken.device.speed))
        use = partial(_serve, lifetime, driver, taken.device, why_gone)
        await serve_target(
            lifetime, host.transport, params, DATA_ORDERS, {"handover": handover}, use
        )
    finally:
        # Each step has its own bound.
        with trio.CancelScope(shield=True):
            try:
                await _take_back(driver, give_back, taken)
            except CallError as error:  # the attachment is over all the same
                log.error("%s may still be with usbip-host: %s", name, error.message)
    await reach("export.stopped")


async def _serve(
    lifetime: Lifetime,
    driver: HostDriver,
    device: UsbDevice,
    why_gone: Callable[[], str | None],
    channel: Channel,
) -> None:
    """Move the target's bytes until either side ends."""
    try:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                connect = partial(driver.connect, device.name)
                work = partial(kernel.with_socket, theirs, connect)
                await kernel.step(f"lend {device.name}", work)
            why, reason = await carry_checked(channel, ours, device.devid, is_source=True)
    except CallError as error:
        lifetime.end(error.message)
        return
    if why is not Why.REFUSED:
        # What cannot be looked at may be there still: the pump's reason has to do.
        with contextlib.suppress(CallError):
            gone = await kernel.step(f"look at {device.name}", why_gone)
            reason = gone or reason
    lifetime.end(reason)


def _release(driver: HostDriver, give_back: bool, taken: Taken) -> None:
    """Give a device back as it was; to none of the drivers if they are not to have it. OSError."""
    driver.release(
        taken.device.name,
        is_authorized=taken.was_authorized,
        give_back=give_back and taken.had_driver,
    )


def _is_idle(driver: HostDriver, name: str) -> bool:
    """Whether usbip-host has no connection for a device, or does not have it. OSError."""
    now = driver.device(name)
    return now is None or now.status != USED


async def _take_back(driver: HostDriver, give_back: bool, taken: Taken) -> None:
    """Take a device from usbip-host, once that is done with it, and wait for its driver. CallError;
    nothing if it was unplugged. A step that hangs keeps none of the next from being tried, and is
    done when the kernel goes on."""
    name = taken.device.name
    look = f"look at {name}"
    try:
        await kernel.step(f"end the connection of {name}", partial(driver.disconnect, name))
        is_idle = await kernel.until(look, partial(_is_idle, driver, name), IDLE_SECONDS)
        why = f"it is in use for {IDLE_SECONDS:g} s more"
    except CallError as error:
        is_idle, why = False, error.message
    if not is_idle:  # the unbind ends a connection, too
        log.warning("%s is taken from usbip-host with its connection: %s", name, why)
    await kernel.step(f"take back {name}", partial(_release, driver, give_back, taken))
    now = await kernel.step(look, partial(driver.device, name))
    if now is not None and now.driver == HOST:
        raise CallError("failed", f"usbip-host does not release {name}")


async def clean_leftovers(driver: HostDriver, *, give_back: bool) -> None:
    """Give back what a killed predecessor has lent, all at once: one that cannot be given back, or
    that another program lends, keeps none of the others. CallError if what is lent cannot be told.
    """
    left = await kernel.step("look for lent devices", driver.left)
    async with trio.open_nursery() as nursery:
        for device in left:
            if device.driver is None and not give_back:
                continue  # as it was left
            nursery.start_soon(_give_back_leftover, driver, device, give_back)


async def _give_back_leftover(driver: HostDriver, device: UsbDevice, give_back: bool) -> None:
    """Give one back; one that is still in use after a while is another program's."""
    name = device.name
    try:
        is_idle = partial(_is_idle, driver, name)
        if not await kernel.until(f"look at {name}", is_idle, IDLE_SECONDS):
            log.warning("%s is lent by another program, with usbip-host", name)
            return
        log.info("giving %s back, which a predecessor of this agent had lent", name)
        is_authorized = await kernel.step(
            f"look at {name}", partial(driver.is_authorized_by_default, device)
        )
        await kernel.step(
            f"take back {name}",
            partial(driver.release, name, is_authorized=is_authorized, give_back=give_back),
        )
    except CallError as error:
        log.warning("a device that a predecessor lent may not be back: %s", error.message)
