"""The kernel's vhci-hcd in this VM: ports for borrowed USB devices.

All functions wait for the kernel: they are for a thread.
"""

from __future__ import annotations

import contextlib
import errno
import re
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Final

from pedos_protocol.errors import CallError
from pedos_protocol.frozen import frozen

from pedos_agent.device_classes.usb.usb_device import SUPER
from pedos_agent.system.reading import is_there, names_in, read_bytes
from pedos_agent.system.writing import write_attribute

#: As modprobe calls it.
MODULE: Final = "vhci-hcd"
#: Of a port (Linux, drivers/usb/usbip/usbip_common.h): VDEV_ST_NULL, _NOTASSIGNED, _USED.
FREE, CONNECTED, USED = 4, 5, 6
# The kernel takes a port in milliseconds, so whoever has the turn longer hangs. Well below the time
# of a step (kernel.STEP_SECONDS): after that, it would be a caller's who has given up.
TURN_SECONDS: Final = 3.0
_STATUS: Final = re.compile(r"status(\.[0-9]+)?")
# hs  0000 004 000 00000000 000000 0-0
_ROW: Final = re.compile(
    r"(hs|ss) +([0-9]+) +([0-9]+) +([0-9]+) +([0-9a-f]{8}) +([0-9-]+) +([0-9]+-[0-9.]+)"
)
_TABLE_BYTES: Final = 16 * 1024  # 30 rows of some fifty characters


@frozen
class Port:
    """A row of a table of ports. `name` is what the device is called here. Until the state is USED
    the kernel shows no device: `devid` 0, `name` "0-0"."""

    number: int
    is_super: bool
    state: int
    devid: int
    name: str


class UnreadableError(OSError):
    """A table that this version cannot read."""


class Claims:
    """Whose each port is. That cannot be told from its contents alone: devices of two sources may
    have one number."""

    def __init__(self) -> None:
        self.of: dict[int, Vhci] = {}
        self._lock = Lock()

    @contextlib.contextmanager
    def in_turn(self, give_up_at: float) -> Iterator[None]:
        """Within, nobody else looks for a free port or takes one: two that found the same one would
        claim it from each other. CallError(busy) if that is not so by then (`time.monotonic`)."""
        if not self._lock.acquire(timeout=max(give_up_at - time.monotonic(), 0)):
            raise CallError("busy", f"{MODULE} is busy with another device, and does not answer")
        try:
            yield
        finally:
            self._lock.release()


class Vhci:
    """vhci-hcd under this root of sysfs, for one borrowed device. All that share `claims` leave
    each other's ports alone, also after the kernel has freed a port and another has it by now."""

    def __init__(self, sys_root: Path, claims: Claims | None = None) -> None:
        self._folder = f"{sys_root}/devices/platform/vhci_hcd.0"
        self._claims = Claims() if claims is None else claims

    def is_loaded(self) -> bool:
        """Whether the kernel has it, and its tables can be read. OSError if that cannot be told."""
        return is_there(f"{self._folder}/status")

    def ports(self) -> list[Port]:
        """All ports; none if the module is not loaded. OSError."""
        found = []
        for name in names_in(self._folder):
            if _STATUS.fullmatch(name):
                text = read_bytes(f"{self._folder}/{name}", _TABLE_BYTES)
                found += ports_in((text or b"").decode("ascii", "replace"))
        return sorted(found, key=lambda port: port.number)

    def port(self, number: int) -> Port | None:
        """The port of that number; None if another has it by now. OSError."""
        if self._is_claimed(number):
            return None
        return next((each for each in self.ports() if each.number == number), None)

    def attach(self, socket: int, devid: int, speed: int) -> int:
        """Have the kernel use a device on a socket, to which it keeps a reference; returns the
        port. CallError, OSError."""
        tried: set[int] = set()
        give_up_at = time.monotonic() + TURN_SECONDS
        while True:
            with self._claims.in_turn(give_up_at):
                port = self._free(speed, tried)
                tried.add(port)
                # Before the kernel shows the device there. The port was free, so whoever had it
                # before has lost it, also if this fails.
                self._claims.of[port] = self
                try:
                    write_attribute(f"{self._folder}/attach", f"{port} {socket} {devid} {speed}")
                except OSError as error:
                    if error.errno == errno.EBUSY:  # another program was faster
                        continue
                    if error.errno == errno.EINVAL:
                        why = "vhci-hcd refuses the device: its speed, or the connection"
                        raise CallError("failed", why) from error
                    raise
            return port  # of the right half: there the kernel takes the number as it is

    def detach(self, port: int) -> None:
        """Take the device away; that takes a while. Nothing if it is gone already, or another has
        the port by now. OSError."""
        if self._is_claimed(port):
            return
        try:
            write_attribute(f"{self._folder}/detach", str(port))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    def _is_claimed(self, number: int) -> bool:
        """Whether the port is another's. The only program that claims is this one."""
        return self._claims.of.get(number, self) is not self

    def _free(self, speed: int, tried: set[int]) -> int:
        is_super = speed >= SUPER  # the other half of the ports is for lower speeds
        ports = [each for each in self.ports() if each.is_super == is_super]
        for each in ports:
            if each.state == FREE and each.number not in tried:
                return each.number
        kind = "super-speed" if is_super else "high-speed"
        raise CallError("busy", f"all {len(ports)} {kind} ports of vhci-hcd are in use here")


def ports_in(table: str) -> list[Port]:
    """The rows of one table; the first line is its head. UnreadableError."""
    found = []
    for line in table.splitlines()[1:]:
        row = _ROW.fullmatch(line.strip())
        if row is None:
            raise UnreadableError(errno.EPROTO, "the ports of vhci-hcd have an unknown form")
        half, number, state, _speed, devid, _socket, name = row.groups()
        found.append(Port(int(number), half == "ss", int(state), int(devid, 16), name))
    return found
