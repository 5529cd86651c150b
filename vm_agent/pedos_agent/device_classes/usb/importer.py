"""The target's side of a borrowed USB device: vhci-hcd has a port for it, which the pump joins to
the source."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import attrs
import trio
from pedos_host.faultpoints import reach
from pedos_protocol.agent_messages import ImportStart
from pedos_protocol.errors import CallError
from pedos_vchan.channel import Channel

from pedos_agent.device_classes import kernel
from pedos_agent.device_classes.base import Host
from pedos_agent.device_classes.data_channel import source_channel
from pedos_agent.device_classes.lifetime import Lifetime
from pedos_agent.device_classes.usb.disks_below import held_below
from pedos_agent.device_classes.usb.driverless import driverless, in_words
from pedos_agent.device_classes.usb.handover import Handover, parse_handover
from pedos_agent.device_classes.usb.stream import carry_checked
from pedos_agent.device_classes.usb.usb_device import folder_of, usb_device
from pedos_agent.device_classes.usb.vhci import FREE, MODULE, USED, Vhci
from pedos_agent.system.closing import close_and_wait

log = logging.getLogger(__name__)

# A device is configured half a second after it is attached. A silent source would have the kernel
# wait for ever. With the rest below the 15 s that dom0 waits.
CONFIGURE_SECONDS: Final = 8.0
DETACH_SECONDS: Final = 10.0
# For drivers to take its interfaces; one whose module has to be loaded needs a second. Less where
# all together would take longer than that: dom0 waits for 15 s.
DRIVER_SECONDS: Final = 1.0
START_SECONDS: Final = 14.0
_NO_NAME: Final = "0-0"


@attrs.define(eq=False)
class BorrowedUsb:
    """A device on a port of vhci-hcd; it has no name that dom0 knows."""

    params: ImportStart
    handover: Handover
    host: Host
    vhci: Vhci
    began: float = 0.0
    port: int | None = None
    held: contextlib.ExitStack = attrs.field(factory=contextlib.ExitStack)
    name: None = None

    @property
    def what(self) -> str:
        """The device, in the name of each step: one that hangs holds up its own steps alone."""
        return f"{self.params.backend}:{self.params.device}"

    async def run(self, lifetime: Lifetime) -> None:
        """See Borrowing."""
        self.began = trio.current_time()
        await kernel.load(MODULE, self.vhci.is_loaded)
        try:
            async with source_channel(self.host.transport, self.params) as channel:
                await self._use(lifetime, channel)
        finally:
            await self._let_go()
        await reach("import.stopped")

    async def _use(self, lifetime: Lifetime, channel: Channel) -> None:
        ours, theirs = socket.socketpair()
        with ours:
            try:
                with theirs, trio.CancelScope(shield=True):
                    devid, speed = self.handover.devid, self.handover.speed
                    attach = partial(self.vhci.attach, devid=devid, speed=speed)
                    work = partial(kernel.with_socket, theirs, attach)
                    self.port = await kernel.step(f"find a port for {self.what}", work)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, lifetime, channel, ours)
                    await self._configured()
                    await reach("import.ready")
                    lifetime.ready({"note": await self._note()})
                    await lifetime.ending()
                    await self._detach()  # while the pump runs: what is under way still ends
                    nursery.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True):
                    await self._detach()

    async def _pump(self, lifetime: Lifetime, channel: Channel, ours: socket.socket) -> None:
        _, reason = await carry_checked(channel, ours, self.handover.devid, is_source=False)
        ours.close()  # the kernel, if it still has the device, sees the end and fails what waits
        lifetime.end(reason)

    async def _configured(self) -> None:
        """Wait until this VM has configured the device. CallError if it cannot."""
        # Not the look at the port: a device that hangs may hold up this one, and has to be freed.
        what = f"look at {self.what}"

        def is_over() -> bool:
            return self._is_free() or self._is_configured()

        if not await kernel.until(what, is_over, CONFIGURE_SECONDS):
            raise CallError("failed", f"the device did not answer within {CONFIGURE_SECONDS:g} s")
        if await kernel.step(what, self._is_free):
            raise CallError("failed", "the source has ended the connection")

    def local_name(self) -> str | None:
        """What the device is called among the USB devices of this VM. OSError."""
        port = None if self.port is None else self.vhci.port(self.port)
        if port is None or port.state == FREE or port.devid != self.handover.devid:
            return None
        return None if port.name == _NO_NAME else port.name

    def _is_free(self) -> bool:
        """Whether the port is not ours any more: free, or another device has it by now."""
        port = None if self.port is None else self.vhci.port(self.port)
        if port is None or port.state == FREE:
            return True
        return port.state == USED and port.devid != self.handover.devid

    def _is_configured(self) -> bool:
        name = self.local_name()
        device = None if name is None else usb_device(self.host.roots.sys, name)
        return device is not None and device.is_configured

    async def _note(self) -> str | None:
        """What a user should know: the parts that have no driver here."""
        what = f"look for drivers for {self.what}"
        try:
            name = await kernel.step(what, self.local_name)
            if name is None:
                return None
            look = partial(driverless, folder_of(self.host.roots.sys, name))
            left = self.began + START_SECONDS - trio.current_time()
            if await kernel.until(what, lambda: not look(), min(DRIVER_SECONDS, max(left, 0))):
                return None
            kinds = await kernel.step(what, look)
        except CallError as error:  # it can be used all the same
            log.warning("%s", error.message)
            return None
        return in_words(kinds) if kinds else None

    async def _detach(self) -> None:
        """Free the port, if it is ours. CallError."""
        if self.port is None:
            return
        await kernel.step(f"free the port of {self.what}", self._free, kind="give-back")
        look = f"look at the port of {self.what}"
        if not await kernel.until(look, self._is_free, DETACH_SECONDS, kind="give-back"):
            raise CallError("failed", f"vhci-hcd does not free port {self.port}")
        self.port = None

    def _free(self) -> None:
        """Have the kernel free the port, if it is ours. OSError."""
        if self.port is not None and not self._is_free():
            self.vhci.detach(self.port)

    async def why_busy(self, lifetime: Lifetime) -> str | None:
        """See Borrowing. An import that is just ending is never refused."""
        if lifetime.reason is not None:
            return None
        try:
            await kernel.step(f"look for uses of {self.what}", self._look, kind="give-back")
        except CallError as error:
            return error.message
        return None

    def _look(self) -> None:
        """CallError(busy) if something uses it. OSError."""
        if (name := self.local_name()) is not None:
            with held_below(name, self.host.roots):
                pass

    def _hold(self) -> contextlib.ExitStack:
        """Hold its disks until what is returned is closed, with all on them that this VM has
        written. CallError(busy), OSError; then none is held."""
        with contextlib.ExitStack() as held:
            if (name := self.local_name()) is not None:
                for file in held.enter_context(held_below(name, self.host.roots)):
                    os.fsync(file)
            return held.pop_all()

    async def give_back(
        self,
        lifetime: Lifetime,
        *,
        may_refuse: bool,
        still_asked: Callable[[], Awaitable[None]],
    ) -> None:
        """Hold its disks, so that nothing begins to use them. CallError(busy) if something does,
        and the VM may refuse."""
        if lifetime.reason is not None:
            return
        try:
            what = f"write what is on the way to the disks of {self.what}"
            self.held = await kernel.step(
                what, self._hold, kind="give-back", late=contextlib.ExitStack.close
            )
        except CallError as error:
            if may_refuse:
                raise
            log.warning("a USB device is taken away in use: %s", error.message)
            with contextlib.suppress(CallError):
                # Of all devices: who asks for it while it hangs would wait for the same disk.
                what = "write what is on the way to all disks"
                await kernel.step(what, os.sync, kind="give-back")
        kept = False
        try:
            await still_asked()
            kept = lifetime.reason is None  # else nobody comes for them any more
        finally:
            if not kept:
                await self._let_go()

    async def _let_go(self) -> None:
        """Hold its disks no more. The last close of a removable one asks the device something."""
        held = self.held.pop_all()
        await close_and_wait(held.close)


def borrow(params: ImportStart, host: Host, vhci: Vhci) -> BorrowedUsb:
    """CallError if the source did not say what it lends."""
    return BorrowedUsb(params, parse_handover(params.handover), host, vhci)
