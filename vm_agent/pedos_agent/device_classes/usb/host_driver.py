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

import contextlib
import errno
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, Literal

import attrs
from pedos_protocol.errors import CallError
from pedos_protocol.frozen import frozen

from pedos_agent.device_classes.usb.turns import Turns
from pedos_agent.device_classes.usb.usb_device import (
    HOST,
    UsbDevice,
    folder_of,
    is_name,
    marks_of,
    usb_device,
)
from pedos_agent.inventory.local_device import Pin
from pedos_agent.system.reading import (
    is_gone,
    is_starved,
    is_there,
    link_target,
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
class Lent:
    """A device that is to be given back, and what it was before."""

    name: str
    marks: tuple[str, ...]  # see marks_of
    loan: int  # see Turns
    was_authorized: bool
    had_driver: bool


@frozen
class Taken(Lent):
    """One that usbip-host has now, as it is there, with the file that begins and ends its
    connection. That file accepts nothing any more when usbip-host has released the device, also if
    the next one has one of the same name by then."""

    device: UsbDevice
    connection: Pin


class HostDriver:
    """usbip-host under this root of sysfs. All that share `turns` take and give back a device one
    after the other. Without `gives_back` a device that a VM had is left to no driver, and
    deauthorised: else a module that is loaded later would get the interfaces that the VM has
    configured."""

    def __init__(
        self, sys_root: Path, *, gives_back: bool = True, turns: Turns | None = None
    ) -> None:
        self.gives_back: Final = gives_back
        self._turns = Turns() if turns is None else turns
        self._sys = sys_root
        self._folder = f"{sys_root}/bus/usb/drivers/{HOST}"

    def is_loaded(self) -> bool:
        """Whether the kernel has it. OSError if that cannot be told."""
        return is_there(self._folder)

    def device(self, name: str) -> UsbDevice | None:
        """See usb_device."""
        return usb_device(self._sys, name)

    def is_idle(self, name: str) -> bool:
        """Whether it has no connection for a device, or does not have it. Unlike `device`, this
        waits for nobody who has locked the device, as the kernel does while it resets it. OSError.
        """
        return read_field(f"{folder_of(self._sys, name)}/usbip_status") != str(USED)

    def left(self) -> list[str]:
        """The ports where a device may be that was lent before. OSError."""
        return [name for name in lent_before(self._sys) if is_name(name)]

    def leftover(self, name: str) -> Lent | None:
        """The device there, as if it had been taken, if usbip-host has it, or if it was to be taken
        there or back and has no driver; None if it is as this agent leaves it. OSError.

        Like `is_idle`, this waits for nobody who has locked the device.
        """
        # First: a loan that begins meanwhile is not to be ended.
        loan = self._turns.last(name)
        folder = folder_of(self._sys, name)
        marks, driver = marks_of(folder), _driver_of(folder)
        if not marks or driver not in (None, HOST) or (driver is None and not self.gives_back):
            return None
        return Lent(name, marks, loan, self.is_authorized_by_default(name), had_driver=True)

    def take(self, name: str, is_it: Callable[[UsbDevice], bool]) -> Taken:
        """Take a device from its driver, authorised.

        `is_it` tells, before and after, whether it is the device of the decision. CallError,
        OSError; then it is as before, or will be, but that one which usbip-host has already goes to
        the drivers of this VM, or, as a VM may have had it, to none without `gives_back`.
        """
        folder = folder_of(self._sys, name)
        with self._turns.at(name):
            marks = marks_of(folder)
            before = self._right_one(name, is_it)
            if before.status == USED:
                raise CallError("busy", f"{name} is lent by another program, with usbip-host")
            was_authorized = before.is_authorized
            had_driver = before.driver is not None
            if is_lent := before.driver == HOST:  # an earlier loan has authorised it
                was_authorized = self.is_authorized_by_default(name)
            elif self._turns.is_owed(name):  # what is repeated ends with this, half done
                was_authorized = self.is_authorized_by_default(name)
                had_driver = True
            loan = self._turns.begin(name)
            lent = Lent(name, marks, loan, was_authorized, had_driver)
            try:
                now, connection = self._take(before, is_it)
                marks = marks_of(folder)  # of the one that `is_it` has seen
            except (CallError, OSError) as error:
                self._undo(lent, was_lent=is_lent)
                if isinstance(error, OSError) and not is_starved(error):
                    raise self._why_not_taken(before, error) from error
                raise
            return Taken(name, marks, loan, was_authorized, had_driver, now, connection)

    def _why_not_taken(self, before: UsbDevice, error: OSError) -> CallError:
        with contextlib.suppress(OSError):  # what cannot be looked at may be there still
            after = self.device(before.name)
            if after is None or after.number != before.number:
                return _replaced(before.name)
        why = f"{before.name} cannot be taken from its driver: {words(error)}"
        return CallError("failed", why)

    def _undo(self, lent: Lent, *, was_lent: bool) -> None:
        """Give back what is in the port now: that may be another device, which was taken in the
        place of this one."""
        with contextlib.suppress(OSError):  # then only the one that was to be taken
            lent = attrs.evolve(lent, marks=marks_of(folder_of(self._sys, lent.name)))
        self._now_or_later(lent, was_lent=was_lent)

    def give_back(self, lent: Lent) -> None:
        """Give a device back as it was before `take`; nothing if it was unplugged, or was taken
        again since. What cannot be done now is logged and tried again in the background."""
        name = lent.name
        try:
            with self._turns.at(name):
                if self._turns.last(name) == lent.loan:
                    self._now_or_later(lent)
        except CallError as error:  # it is not its turn
            log.error("%s", error.message)
            self.give_back_later(lent)

    def give_back_later(self, lent: Lent, *, when_idle: bool = False) -> None:
        """Do that in the background alone, and no more often than `turns.TRIES_MAX`; with
        `when_idle` only once usbip-host has no connection for it."""

        def work() -> None:
            if when_idle and not self.is_idle(lent.name):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), lent.name)
            self._give_back(lent)

        self._turns.repeat(lent.name, lent.loan, work)

    def _now_or_later(self, lent: Lent, *, was_lent: bool = True) -> None:
        name, work = lent.name, partial(self._give_back, lent, was_lent=was_lent)
        try:
            work()
        except OSError as error:
            log.error("%s is not back yet, which is tried again: %s", name, words(error))
            self._turns.repeat(name, lent.loan, work)

    def _give_back(self, lent: Lent, *, was_lent: bool = True) -> None:
        is_as_before = self.gives_back or not was_lent
        self.release(
            lent.name,
            marks=lent.marks,
            is_authorized=lent.was_authorized and is_as_before,
            give_back=lent.had_driver and is_as_before,
        )

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

    def _take(self, before: UsbDevice, is_it: Callable[[UsbDevice], bool]) -> tuple[UsbDevice, Pin]:
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
        connection = self._connection_of(name)  # before the look, so it is of the one seen there
        now = self._right_one(name, is_it)
        if connection is None or now.driver != HOST or now.status != AVAILABLE:
            raise CallError("failed", f"usbip-host does not take {name}: {_state(now)}")
        return now, connection

    def _connection_of(self, name: str) -> Pin | None:
        try:
            return Pin(f"{folder_of(self._sys, name)}/usbip_sockfd")
        except OSError as error:
            if not is_gone(error):
                raise
            return None

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

    def connect(self, taken: Taken, socket: int) -> None:
        """Have the kernel serve it on a socket, to which it keeps a reference. CallError,
        OSError."""
        name = taken.name
        if self._turns.last(name) != taken.loan:
            raise CallError("failed", f"{name} was taken again meanwhile")
        try:
            self._write(taken.connection.path, str(socket))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise CallError("busy", f"usbip-host does not serve {name}: it is in use") from error

    def disconnect(self, taken: Taken) -> None:
        """Have the kernel stop serving it: that takes a while. Nothing if it does not, or if it was
        taken again since. OSError."""
        # Not in a turn, so a thread may be late between this look and the write. What usbip-host
        # has released since, the pinned file refuses. What is left: a device that it could not
        # release, and that was taken again as it was, just then.
        if self._turns.last(taken.name) != taken.loan:
            return
        try:
            self._write(taken.connection.path, "-1")
        except OSError as error:
            if error.errno != errno.EINVAL and not is_gone(error):
                raise

    def release(
        self,
        name: str,
        *,
        marks: tuple[str, ...] | None = None,
        is_authorized: bool = True,
        give_back: bool = True,
    ) -> None:
        """Give a device back to the drivers of this VM, or, without `give_back`, to none. One that
        was unplugged meanwhile is no error, and one that is back already neither; with `marks`, one
        that has others is left alone. OSError.

        Nothing here but the writes themselves waits for who has locked the device.
        """
        folder = folder_of(self._sys, name)

        def is_it() -> bool:
            now = marks_of(folder)
            return bool(now) and marks in (None, now)

        driver = _driver_of(folder)
        if not is_name(name) or not is_it() or driver not in (None, HOST):
            return
        if not is_authorized:
            # While usbip-host has the port: after the unbind a module that is loaded just then gets
            # the interfaces that the VM has configured.
            self._ignore_gone(lambda: self._write(f"{folder}/authorized", "0"))
        if driver == HOST:
            self._ignore_gone(lambda: self._command("unbind", name))
            if is_it() and _driver_of(folder) == HOST:
                raise OSError(errno.EBUSY, "usbip-host does not release it", name)
        if give_back and is_it():
            self._ignore_gone(lambda: self._write(f"{self._sys}/bus/usb/drivers_probe", name))
        if is_authorized and is_it() and read_field(f"{folder}/authorized") == "0":
            # One that an agent with another setting has left to no driver.
            self._ignore_gone(lambda: self._write(f"{folder}/authorized", "1"))

    def is_authorized_by_default(self, name: str) -> bool:
        """Whether a device may be used at once when it is plugged in there. OSError."""
        bus = name.partition("-")[0]
        root = folder_of(self._sys, f"usb{bus}")
        default = read_field(f"{root}/authorized_default")
        if default == _BUILT_IN_ALONE:
            port = f"{folder_of(self._sys, name)}/port"
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


def _driver_of(folder: str) -> str | None:
    driver = link_target(f"{folder}/driver")
    return None if driver is None else driver.rpartition("/")[2]


def _replaced(name: str) -> CallError:
    return CallError("not_found", f"{name} was unplugged or replaced just now")


def _state(device: UsbDevice) -> str:
    if device.driver != HOST:
        return "no driver has it" if device.driver is None else f"{device.driver} has it"
    return f"its status is {device.status}"
