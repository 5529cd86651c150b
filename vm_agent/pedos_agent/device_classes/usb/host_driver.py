"""The kernel's usbip-host in this VM: takes a device from its driver, and gives it back.

Some writes to it crash Linux, or take a port out of use until the module is loaded again (seen with
Linux 6.1). They cannot be made here, because this module writes to the files of `_FILES` only, and
to `match_busid` only by `_announce`:

- `rebind` is never written: for a name that was never bound the kernel follows a null pointer, and
  for a bound one it fails at the next unbind.
- `del NAME` is never written to `match_busid`: it removes nothing, and a bound name never binds
  again.
- A name has no newline: it would become a part of it.
- No name is added to a full table, or twice.
- The module is never unloaded, which would empty the table: on its way out the kernel probes each
  device that was ever bound, also those that are unplugged since, whose memory it has freed
  (stub_device_rebind, Linux 4.17 to 6.12).

All functions wait for the kernel: they are for a thread.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from pedos_protocol.errors import CallError
from pedos_protocol.frozen import frozen

from pedos_agent.device_classes.usb.usb_device import (
    HOST,
    UsbDevice,
    folder_of,
    is_name,
    usb_device,
)
from pedos_agent.system.reading import (
    is_gone,
    is_starved,
    is_there,
    read_field,
    words,
)
from pedos_agent.system.writing import write_attribute

#: Of `usbip_status` (Linux, drivers/usb/usbip/usbip_common.h).
AVAILABLE, USED = 1, 2
# MAX_BUSID of drivers/usb/usbip/stub.h.
NAMES_MAX: Final = 16
# Of `authorized_default` (Linux, Documentation/ABI/testing/sysfs-bus-usb).
_BUILT_IN_ALONE: Final = "2"

log = logging.getLogger(__name__)

_Verb = Literal["bind", "unbind"]
_FILES: Final[tuple[_Verb, ...]] = ("bind", "unbind")


@frozen
class Taken:
    """A device that usbip-host has now, and what it was before."""

    device: UsbDevice
    was_authorized: bool
    had_driver: bool


class HostDriver:
    """usbip-host under this root of sysfs."""

    def __init__(self, sys_root: Path) -> None:
        self._sys = sys_root
        self._folder = f"{sys_root}/bus/usb/drivers/{HOST}"

    def is_loaded(self) -> bool:
        """Whether the kernel has it. OSError if that cannot be told."""
        return is_there(self._folder)

    def device(self, name: str) -> UsbDevice | None:
        """See usb_device."""
        return usb_device(self._sys, name)

    def left(self) -> list[UsbDevice]:
        """The devices that it has, or that were to be taken to it or back and have no driver.
        OSError."""
        found = map(self.device, filter(is_name, lent_before(self._sys)))
        return [each for each in found if each is not None and each.driver in (None, HOST)]

    def take(
        self, name: str, is_it: Callable[[UsbDevice], bool], *, give_back: bool = True
    ) -> Taken:
        """Take a device from its driver, authorised.

        `is_it` tells, before and after, whether it is the device of the decision. CallError,
        OSError; then it is as before, but that one which usbip-host has already goes to the drivers
        of this VM, or without `give_back`, as a VM may have had it, to none.
        """
        before = self._right_one(name, is_it)
        if before.status == USED:
            raise CallError("busy", f"{name} is lent by another program, with usbip-host")
        had_driver = before.driver is not None
        try:
            now = self._take(before, is_it)
        except (CallError, OSError) as error:
            give_back = had_driver and (give_back or before.driver != HOST)
            try:
                self.release(name, is_authorized=before.is_authorized, give_back=give_back)
            except OSError as failed:
                log.error("%s may still be with usbip-host: %s", name, words(failed))
            if isinstance(error, OSError) and not is_starved(error):
                after = self.device(name)
                if after is None or after.number != before.number:
                    raise _replaced(name) from error
                why = f"{name} cannot be taken from its driver: {words(error)}"
                raise CallError("failed", why) from error
            raise
        return Taken(now, before.is_authorized, had_driver)

    def _right_one(self, name: str, is_it: Callable[[UsbDevice], bool]) -> UsbDevice:
        device = self.device(name) if is_name(name) else None
        if device is None or not is_it(device):
            raise _replaced(name)
        if device.is_hub:
            raise CallError(
                "failed", f"{name} is a hub, which cannot be lent: lend what is behind it"
            )
        if device.is_imported:
            raise CallError("failed", f"{name} is borrowed itself, and cannot be lent on")
        if device.speed is None:
            raise CallError("failed", f"{name} has a speed that USB/IP does not know")
        return device

    def _take(self, before: UsbDevice, is_it: Callable[[UsbDevice], bool]) -> UsbDevice:
        name = before.name
        if before.driver != HOST:
            # First: from now on `left` finds it, in whatever state.
            self._announce(name)
            if before.driver is not None:
                self._write(f"{folder_of(self._sys, name)}/driver/unbind", name)
            self._bind(before)
        if not before.is_authorized:
            # Not before: no driver of this VM is to touch it.
            self._write(f"{folder_of(self._sys, name)}/authorized", "1")
        now = self._right_one(name, is_it)
        if now.driver != HOST or now.status != AVAILABLE:
            raise CallError("failed", f"usbip-host does not take {name}: {_state(now)}")
        return now

    def _bind(self, before: UsbDevice) -> None:
        name = before.name
        try:
            self._command("bind", name)
        except OSError as error:
            now = self.device(name)
            if not is_gone(error) or now is None or now.number != before.number:
                raise
            why = (
                f"usbip-host refuses {name}: another program has taken that port out of its table "
                "(match_busid); restart this VM"
            )
            raise CallError("failed", why) from error

    def connect(self, name: str, socket: int) -> None:
        """Have the kernel serve it on a socket, to which it keeps a reference. CallError,
        OSError."""
        try:
            self._write(f"{folder_of(self._sys, name)}/usbip_sockfd", str(socket))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise CallError("busy", f"usbip-host does not serve {name}: it is in use") from error

    def disconnect(self, name: str) -> None:
        """Have the kernel stop serving it: that takes a while. Nothing if it does not. OSError."""
        try:
            self._write(f"{folder_of(self._sys, name)}/usbip_sockfd", "-1")
        except OSError as error:
            if error.errno != errno.EINVAL and not is_gone(error):
                raise

    def release(self, name: str, *, is_authorized: bool = True, give_back: bool = True) -> None:
        """Give a device back to the drivers of this VM, or, without `give_back`, to none. One that
        was unplugged meanwhile is no error, and one that is back already neither. OSError."""
        device = self.device(name) if is_name(name) else None
        if device is None:
            return
        if device.driver == HOST:
            self._ignore_gone(lambda: self._command("unbind", name))
        elif device.driver is not None:
            return
        if not is_authorized:
            self._ignore_gone(lambda: self._write(f"{folder_of(self._sys, name)}/authorized", "0"))
        if give_back:
            self._ignore_gone(lambda: self._write(f"{self._sys}/bus/usb/drivers_probe", name))

    def is_authorized_by_default(self, device: UsbDevice) -> bool:
        """Whether a device may be used at once when it is plugged in there. OSError."""
        root = folder_of(self._sys, f"usb{device.bus}")
        default = read_field(f"{root}/authorized_default")
        if default == _BUILT_IN_ALONE:
            port = f"{folder_of(self._sys, device.name)}/port"
            return read_field(f"{port}/connect_type") == "hardwired"
        return default != "0"

    def _announce(self, name: str) -> None:
        """Tell usbip-host that it may have it; nothing if it knows that."""
        known = lent_before(self._sys)
        if name in known:
            return
        if len(known) >= NAMES_MAX:
            raise CallError(
                "failed",
                f"usbip-host has lent from {NAMES_MAX} ports of this VM, the most that it can: "
                "plug the device into one of those, or restart this VM",
            )
        self._write(f"{self._folder}/match_busid", f"add {name}")

    def _command(self, verb: _Verb, name: str) -> None:
        assert verb in _FILES
        self._write(f"{self._folder}/{verb}", name)

    def _write(self, path: str, text: str) -> None:
        assert "\n" not in text
        write_attribute(path, text)

    def _ignore_gone(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not is_gone(error):
                raise


def lent_before(sys_root: Path) -> list[str]:
    """The ports from which usbip-host has lent devices since it was loaded. OSError."""
    return read_field(f"{sys_root}/bus/usb/drivers/{HOST}/match_busid").split()


def _replaced(name: str) -> CallError:
    return CallError("not_found", f"{name} was unplugged or replaced just now")


def _state(device: UsbDevice) -> str:
    if device.driver != HOST:
        return "no driver has it" if device.driver is None else f"{device.driver} has it"
    return f"its status is {device.status}"
