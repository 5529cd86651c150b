"""A kernel's usbip-host and vhci-hcd for tests: a tree as sysfs has it, and what writes to it do.

Reads are of real files and links below `root`. Writes of the agent's (`write_attribute`) come here:
`FakeKernel.write`. It behaves as Linux 6.1 was seen to, also where that does harm: what would crash
it, or take a port out of use, is in `crimes`.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

from tests.patience import PATIENCE

DISK: Final = bytes.fromhex(
    "12010002000000400951 6616 0001 010203 01"
    "0902200001010080fa 0904000002080650 00 0705810200020007050202000200"
)

REMOVED: Final = " (deleted)"  # what Linux appends to the name of a file that an open one had


@attrs.define(eq=False)
class Stick:
    """A device that can be plugged in."""

    port: str
    vendor: str = "0951"
    product: str = "1666"
    serial: str = "S1"
    product_name: str = "Stick"
    speed: str = "480"
    device_class: str = "00"
    descriptors: bytes = DISK
    disk: str | None = None  # its name among block devices
    number: int = 0
    driver: str | None = None
    authorized: bool = True
    status: int = 1
    configured: bool = True
    peer: socket.socket | None = None


class FakeKernel:
    """The kernel of one VM."""

    def __init__(self, root: Path, *, host: bool = True, vhci: bool = True) -> None:
        self.root = root
        self.sys = root / "sys"
        self.devices: dict[str, Stick] = {}
        self.names: list[str] = []
        self.removed: set[str] = set()
        self.crimes: list[str] = []
        self.writes: list[tuple[str, str]] = []
        self.refuse: dict[str, int] = {}  # name of a file -> errno of writes to it
        # Of borrowed devices: interface -> class, subclass, protocol; whether it has a driver.
        self.interfaces: dict[str, tuple[str, str, str, bool]] = {}
        self.ports: dict[int, tuple[int, int, str, socket.socket | None]] = {}
        self._numbers = 1
        self._lock = threading.RLock()
        for folder in ("bus/usb/devices", "bus/usb/drivers/usb", "class/block", "dev/block"):
            (self.sys / folder).mkdir(parents=True)
        for folder in ("proc/self", "dev", "udev"):
            (root / folder).mkdir(parents=True)
        self._file("bus/usb/drivers_probe", "")
        self._file("bus/usb/drivers/usb/unbind", "")
        if host:
            self.load_host()
        if vhci:
            self.load_vhci()

    # The tree

    def _file(self, name: str, text: str | bytes) -> None:
        path = self.sys / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + "~")
        new.write_bytes(text.encode() if isinstance(text, str) else text)
        new.replace(path)

    def load_host(self) -> None:
        for name in ("bind", "unbind", "match_busid", "rebind"):
            self._file(f"bus/usb/drivers/usbip-host/{name}", "")

    def load_vhci(self) -> None:
        for number in range(60):
            self.ports[number] = (4, 0, "0-0", None)
        self._show_ports()
        for name in ("attach", "detach"):
            self._file(f"devices/platform/vhci_hcd.0/{name}", "")

    def _show_ports(self) -> None:
        head = "hub port sta spd dev      sockfd local_busid\n"
        for half in (0, 1):
            rows = []
            for number in range(30 * half, 30 * half + 30):
                state, devid, name, peer = self.ports[number]
                if state != 6:  # the kernel keeps it to itself until then
                    devid, name, peer = 0, "0-0", None
                hub = "hs" if number % 30 < 15 else "ss"
                fd = 0 if peer is None else peer.fileno()
                rows.append(
                    f"{hub}  {number:04d} {state:03d} {3:03d} {devid:08x} {fd:06d} {name}\n"
                )
            suffix = f".{half}" if half else ""
            self._file(f"devices/platform/vhci_hcd.0/status{suffix}", head + "".join(rows))

    def plug(self, stick: Stick) -> Stick:
        with self._lock:
            self._numbers += 1
            stick.number = self._numbers
            stick.driver, stick.status, stick.configured = "usb", 1, stick.authorized
            self.devices[stick.port] = stick
            bus = stick.port.split("-")[0]
            where = f"devices/pci0000:00/usb{bus}/{stick.port}"
            fields = {
                "busnum": bus,
                "devnum": str(stick.number),
                "idVendor": stick.vendor,
                "idProduct": stick.product,
                "serial": stick.serial,
                "speed": stick.speed,
                "bDeviceClass": stick.device_class,
                "manufacturer": "Maker",
                "product": stick.product_name,
                "authorized": str(int(stick.authorized)),
            }
            for name, text in fields.items():
                self._file(f"{where}/{name}", text + "\n")
            self._file(f"{where}/descriptors", stick.descriptors)
            link = self.sys / "bus/usb/devices" / stick.port
            link.symlink_to(f"../../../{where}")
            self._show(stick)
            return stick

    def _show(self, stick: Stick) -> None:
        """Driver, status, interfaces and disk, as they are now. What is there before and after is
        there all the while: nobody who reads meanwhile is told that no driver has the device."""
        folder = self.sys / "bus/usb/devices" / stick.port
        driver = folder / "driver"
        if driver.is_symlink() and driver.readlink().name != stick.driver:
            driver.unlink()
        if stick.driver is not None and not driver.is_symlink():
            driver.symlink_to(f"../../../../bus/usb/drivers/{stick.driver}")
        where = f"bus/usb/devices/{stick.port}"
        if stick.driver == "usbip-host":
            self._file(f"{where}/usbip_status", f"{stick.status}\n")
            (folder / "usbip_sockfd").touch()
        else:
            (folder / "usbip_status").unlink(missing_ok=True)
            (folder / "usbip_sockfd").unlink(missing_ok=True)
        self._file(f"{where}/bConfigurationValue", "1\n" if stick.configured else "\n")
        entry = self.sys / "bus/usb/drivers/usbip-host" / stick.port
        if stick.driver == "usbip-host" and not entry.is_symlink():
            entry.symlink_to("../../../../nowhere")
        elif stick.driver != "usbip-host":
            entry.unlink(missing_ok=True)
        if stick.disk is not None:
            block = self.sys / "class/block" / stick.disk
            if stick.driver == "usb" and stick.configured and not block.is_symlink():
                inner = folder / f"{stick.port}:1.0/host0/block" / stick.disk
                inner.mkdir(parents=True, exist_ok=True)
                (inner / "dev").write_text("8:0\n")
                (inner / "size").write_text("2048\n")
                real = os.path.realpath(inner)
                block.symlink_to(os.path.relpath(real, block.parent))
                (self.root / "dev" / stick.disk).touch()
            elif stick.driver != "usb":
                block.unlink(missing_ok=True)
                (self.root / "dev" / stick.disk).unlink(missing_ok=True)
                shutil.rmtree(folder / f"{stick.port}:1.0", ignore_errors=True)

    def pull(self, port: str) -> None:
        with self._lock:
            stick = self.devices.pop(port)
            self._close(stick)
            stick.driver = None
            self._show(stick)
            link = self.sys / "bus/usb/devices" / port
            real = os.path.realpath(link)
            link.unlink()
            shutil.rmtree(real)

    def _close(self, stick: Stick) -> None:
        if stick.peer is not None:
            stick.peer.shutdown(socket.SHUT_RDWR)
            stick.peer.close()
            stick.peer = None

    # Writes

    def write(self, path: str, text: str) -> None:
        """What write_attribute does; OSError as the kernel has it."""
        with self._lock:
            path = real_path(path)
            name = path.rpartition("/")[2]
            self.writes.append((path.removeprefix(f"{self.sys}/"), text))
            if path.endswith(REMOVED):  # though one of the same name may be there again
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), path)
            if not os.path.exists(path):
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            number = self.refuse.get(name)
            if number is None:
                number = self._act(path, name, text)
            if number:
                raise OSError(number, os.strerror(number), path)

    def _act(self, path: str, name: str, text: str) -> int:
        """0 or an errno."""
        of_the_modules: dict[str, Callable[[str], int]] = {
            "attach": self._attach,
            "detach": lambda port: self._detach(int(port)),
            "rebind": self._rebind,
            "match_busid": self._match,
        }
        if name in of_the_modules:
            return of_the_modules[name](text)
        if name in ("usbip_sockfd", "authorized"):
            stick = self.devices[path.split("/")[-2]]
            return {"usbip_sockfd": self._sockfd, "authorized": self._authorize}[name](stick, text)
        if text not in self.devices:
            return errno.ENODEV
        stick, driver = self.devices[text], os.path.realpath(path).split("/")[-2]
        if name == "unbind":
            return self._unbind(stick, driver)
        return {"bind": self._bind, "drivers_probe": self._probe}[name](stick)

    def _rebind(self, text: str) -> int:
        self.crimes.append(f"rebind {text}")
        return 0

    def _authorize(self, stick: Stick, text: str) -> int:
        stick.authorized = stick.configured = text == "1"
        self._file(f"bus/usb/devices/{stick.port}/authorized", text + "\n")
        self._show(stick)
        return 0

    def _probe(self, stick: Stick) -> int:
        if stick.driver is None:
            stick.driver, stick.configured = "usb", stick.authorized
            self._show(stick)
        return 0

    def _match(self, text: str) -> int:
        verb, _, name = text.partition(" ")
        if verb != "add":
            self.crimes.append(f"match_busid {text}")
            return 0
        if "\n" in name:
            self.crimes.append(f"match_busid {text!r}")
        if name not in self.names:
            if len(self.names) == 16:
                self.crimes.append("a seventeenth name")
                return errno.EBUSY
            self.names.append(name)
            self._file("bus/usb/drivers/usbip-host/match_busid", " ".join(self.names) + "\n")
        return 0

    def _unbind(self, stick: Stick, driver: str) -> int:
        if stick.driver != driver:
            return errno.ENODEV
        self._close(stick)
        stick.driver, stick.status = None, 1
        self._show(stick)
        return 0

    def _bind(self, stick: Stick) -> int:
        if stick.driver is not None or stick.port not in self.names or stick.device_class == "09":
            return errno.ENODEV
        stick.driver, stick.status, stick.configured = "usbip-host", 1, False
        self._show(stick)
        return 0

    def _sockfd(self, stick: Stick, text: str) -> int:
        number = int(text)
        if (number == -1) != (stick.status == 2) or stick.driver != "usbip-host":
            return errno.EINVAL
        if number == -1:
            self._serve_no_more(stick)
            return 0
        stick.peer = socket.socket(fileno=os.dup(number))
        stick.peer.setblocking(True)
        stick.status = 2
        self._show(stick)
        threading.Thread(target=self._serve, args=(stick, stick.peer), daemon=True).start()
        return 0

    def _serve_no_more(self, stick: Stick) -> None:
        self._close(stick)
        stick.status = 1
        self._show(stick)

    def _serve(self, stick: Stick, peer: socket.socket) -> None:
        """Answers each CMD_SUBMIT for input with as many bytes."""
        try:
            while len(header := peer.recv(48, socket.MSG_WAITALL)) == 48:
                length = int.from_bytes(header[24:28], "big")
                peer.sendall(_answer(header[4:8], b"s" * length))
                with self._lock:
                    if stick.driver == "usbip-host":
                        stick.configured = True
                        self._show(stick)
        except OSError:
            pass
        with self._lock:
            if stick.peer is peer:
                self._serve_no_more(stick)

    def _attach(self, text: str) -> int:
        port, number, devid, speed = map(int, text.split())
        if port >= len(self.ports) or speed not in (1, 2, 3, 5):
            return errno.EINVAL
        port = port // 30 * 30 + port % 15 + (15 if speed >= 5 else 0)
        if self.ports[port][0] != 4:
            return errno.EBUSY
        peer = socket.socket(fileno=os.dup(number))
        peer.setblocking(True)
        self.ports[port] = (5, devid, "0-0", peer)
        self._show_ports()
        threading.Thread(target=self._use, args=(port, devid, speed, peer), daemon=True).start()
        return 0

    def _use(self, port: int, devid: int, speed: int, peer: socket.socket) -> None:
        """Asks for 18 bytes, and then has the device until its socket ends."""
        ask = b"".join(n.to_bytes(4, "big") for n in (1, 1, devid, 1, 0, 0, 18)) + bytes(20)
        name = f"9-{port + 1}"
        try:
            peer.sendall(ask)
            if len(peer.recv(48 + 18, socket.MSG_WAITALL)) == 48 + 18:
                with self._lock:
                    if self.ports[port][3] is peer:
                        folder = f"devices/platform/vhci_hcd.0/usb9/{name}"
                        fields = {"busnum": "9", "devnum": str(port), "bConfigurationValue": "1"}
                        for field, text in fields.items():
                            self._file(f"{folder}/{field}", text + "\n")
                        for inner in self.interfaces:
                            self._show_interface(f"{folder}/{name}:{inner}", inner)
                        link = self.sys / "bus/usb/devices" / name
                        link.symlink_to(f"../../../{folder}")
                        self.ports[port] = (6, devid, name, peer)
                        self._show_ports()
                peer.recv(1)
        except OSError:
            pass
        with self._lock:
            if self.ports[port][3] is peer:
                self._detach(port)

    def _show_interface(self, folder: str, inner: str) -> None:
        *kind, has_driver = self.interfaces[inner]
        for what, text in zip(("Class", "SubClass", "Protocol"), kind, strict=True):
            self._file(f"{folder}/bInterface{what}", f"{text}\n")
        if has_driver:
            (self.sys / folder / "driver").symlink_to("../../../bus/usb/drivers/usbhid")

    def _detach(self, port: int) -> int:
        _, _, name, peer = self.ports[port]
        if peer is None:
            return errno.EINVAL
        peer.shutdown(socket.SHUT_RDWR)
        peer.close()
        self.ports[port] = (4, 0, "0-0", None)
        self._show_ports()
        link = self.sys / "bus/usb/devices" / name
        if link.is_symlink():
            real = os.path.realpath(link)
            link.unlink()
            shutil.rmtree(real)
        return 0

    def answer(self, source: socket.socket) -> None:
        """As a source does: gives the device's description, for which vhci-hcd asks."""
        asked = source.recv(48, socket.MSG_WAITALL)
        source.sendall(_answer(asked[4:8], bytes(18)))

    def wait(self, done: Callable[[], bool]) -> None:
        """Until a thread of the kernel has done it."""
        end = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < end
            time.sleep(0.001)

    def close(self) -> None:
        """Give up all that it has with other programs."""
        with self._lock:
            for stick in self.devices.values():
                self._close(stick)
            for port in self.ports:
                self._detach(port)

    # What is left

    def left(self) -> list[str]:
        """What an attachment has left here; nothing should be."""
        with self._lock:
            bound = [p for p, stick in self.devices.items() if stick.driver == "usbip-host"]
            ports = [n for n, row in self.ports.items() if row[0] != 4]
            return [f"{p} at usbip-host" for p in bound] + [f"port {n}" for n in ports]


def real_path(path: str) -> str:
    """Of a file that an agent writes to: what a descriptor leads to is what it was opened as."""
    return os.readlink(path) if path.startswith("/proc/self/fd/") else path


def _answer(seqnum: bytes, data: bytes) -> bytes:
    """RET_SUBMIT with data."""
    head = (3).to_bytes(4, "big") + seqnum + bytes(16)
    return head + len(data).to_bytes(4, "big") + bytes(20) + data
