"""The machine's own usb, pci and sound devices, as dom0's agent lists them.

Read from sysfs and /proc/asound, whose roots are parameters so that tests bring their own tree.
Serial numbers and product names come from the hardware: they are a stranger's text. What does not
give its name is called as Debian's hwdata has it.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final

import trio
from pedos_protocol.agent_messages import Device
from pedos_protocol.kinds import with_kinds
from pedos_protocol.names import harmless_text, natural_key

from .found import Found, unseen_class
from .hardware_names import HardwareNames
from .identities import part
from .looking import Looking, Untold, seen
from .reading import names_in, read_bytes, read_field, read_note, read_table
from .revision import Revision
from .uevents import KERNEL, heard, keep_hearing, opened
from .usb_kinds import DESCRIPTORS_BYTES, kinds_of

_SUBSYSTEMS: Final = ("usb", "pci", "sound")

_USB_DEVICE: Final = re.compile(r"[0-9]+-[0-9]+(\.[0-9]+)*")
_PCI_DEVICE: Final = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2}\.[0-7])")
_HEX: Final = re.compile(r"[0-9a-f]{1,8}")
_USB_HUB: Final = "09"

# PCI base classes, PCI Code and ID Assignment Specification 1.11, appendix D.
_PCI_CLASSES: Final = {
    "00": "Unclassified device",
    "01": "Mass storage controller",
    "02": "Network controller",
    "03": "Display controller",
    "04": "Multimedia controller",
    "05": "Memory controller",
    "06": "Bridge",
    "07": "Communication controller",
    "08": "System peripheral",
    "09": "Input device controller",
    "0a": "Docking station",
    "0b": "Processor",
    "0c": "Serial bus controller",
    "0d": "Wireless controller",
    "0e": "Intelligent controller",
    "0f": "Satellite communications controller",
    "10": "Encryption controller",
    "11": "Signal processing controller",
    "12": "Processing accelerator",
}
_PCI_SUBCLASSES: Final = {
    "0101": "IDE interface",
    "0106": "SATA controller",
    "0108": "NVMe controller",
    "0200": "Ethernet controller",
    "0280": "Wireless network controller",
    "0300": "VGA compatible controller",
    "0403": "Audio device",
    "0600": "Host bridge",
    "0601": "ISA bridge",
    "0604": "PCI bridge",
    "0c03": "USB controller",
    "0c05": "SMBus",
}


def scan(
    sys_root: Path = Path("/sys"),
    proc_root: Path = Path("/proc"),
    names: HardwareNames = HardwareNames(()),  # noqa: B008 - without folders it knows nothing
) -> list[Found]:
    """Look at the machine once. A device, or a class, that cannot be looked at is `unseen`; OSError
    when this process lacks something for all of them."""
    looks: dict[str, Callable[[], list[Found]]] = {
        "mic": partial(_scan_mic, proc_root),
        "usb": partial(_scan_usb, sys_root, names),
        "pci": partial(_scan_pci, sys_root, names),
    }
    found, untold = [], Untold()
    try:
        for device_class, look in looks.items():
            with untold.at(device_class):
                found += look()
    finally:
        names.forget_files()
    return [*found, *(unseen_class(*each) for each in untold.items())]


async def watch(
    deliver: Callable[[list[Found]], None],
    *,
    failed: Callable[[str], None] = lambda _why: None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Deliver what is there, now and after every kernel event; started() after the first time.

    A look that failed is made again in a while; `failed` is told why.
    """
    looking = Looking(deliver, failed)
    names = HardwareNames()
    news = Revision()

    def sources() -> contextlib.closing[socket.socket]:
        return contextlib.closing(opened(KERNEL, missing="usb and pci are listed once"))

    async def hear(events: socket.socket) -> None:
        while True:
            await heard(events, _SUBSYSTEMS)
            news.bump()

    async with trio.open_nursery() as nursery:
        await nursery.start(keep_hearing, sources, hear, [news])
        while True:
            seen = news.number
            again = await looking.look(partial(scan, names=names))
            task_status.started()
            task_status = trio.TASK_STATUS_IGNORED
            with trio.move_on_after(again):
                await news.after(seen)


def _hex(folder: str, name: str) -> str:
    text = read_field(f"{folder}/{name}").lower().removeprefix("0x")
    return text if _HEX.fullmatch(text) else ""


def _names(folder: str) -> list[str]:
    return sorted(names_in(folder), key=natural_key)


def _listed(
    device_class: str, device_id: str, identity: str, description: str, *marks: str
) -> Found:
    return Found(
        Device(
            device_class=device_class,
            device=device_id,
            identity=identity,
            description=harmless_text(description),
            size=None,
            parent=None,
            read_only=False,
            busy=None,
        ),
        marks=marks,
    )


def _scan_usb(sys_root: Path, hardware: HardwareNames) -> list[Found]:
    root = str(sys_root / "bus/usb/devices")
    names = _names(root)
    looks = (
        seen("usb", name, partial(_usb_device, root, name, names, hardware))
        for name in names
        if _USB_DEVICE.fullmatch(name)
    )
    return [item for item in looks if item is not None]


def _usb_device(
    root: str, name: str, names: Iterable[str], hardware: HardwareNames
) -> Found | None:
    folder = f"{root}/{name}"
    if _hex(folder, "bDeviceClass") == _USB_HUB:
        return None
    vendor, product = _hex(folder, "idVendor"), _hex(folder, "idProduct")
    if not vendor or not product:
        return None  # unplugged while it was being read
    serial = part(_serial(folder))
    # What the device calls itself, where it does.
    maker, model = hardware.of("usb", vendor, product)
    maker = read_note(f"{folder}/manufacturer") or maker
    model = read_note(f"{folder}/product") or model
    text = " ".join(filter(None, (maker, model)))
    kinds = _usb_kinds(root, name, names)
    identity = with_kinds(f"{vendor}:{product}:{serial}", "usb", kinds)
    # The kernel counts up with each device that is plugged into the bus.
    number = read_field(f"{folder}/devnum")
    return _listed("usb", name, identity, text or f"USB device {vendor}:{product}", number)


def _serial(folder: str) -> str:
    """As it is, blanks at its ends and all: two that differ in them are two."""
    serial = read_bytes(f"{folder}/serial") or b""
    return serial.removesuffix(b"\n").decode("utf-8", "surrogateescape")


def _usb_kinds(root: str, name: str, names: Iterable[str]) -> list[str | None]:
    """The kinds of its interfaces; None among them if there may be more."""
    try:
        descriptors = read_bytes(f"{root}/{name}/descriptors", DESCRIPTORS_BYTES)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        return [None]
    if descriptors is not None:
        return list(kinds_of(descriptors))
    # As the kernel has it, of the configuration that is in use.
    folders = [f"{root}/{other}" for other in names if other.startswith(name + ":")]
    return ["u" + "".join(_hex(each, field) for field in _INTERFACE) for each in folders]


_INTERFACE: Final = ("bInterfaceClass", "bInterfaceSubClass", "bInterfaceProtocol")


def _scan_pci(sys_root: Path, hardware: HardwareNames) -> list[Found]:
    root = str(sys_root / "bus/pci/devices")
    found = []
    for name in _names(root):
        address = _PCI_DEVICE.fullmatch(name)
        if address is None:
            continue
        domain, bus, slot = address.groups()
        # Most machines have one PCI domain, 0000, which is left out as in lspci.
        device_id = f"{bus}_{slot}" if domain == "0000" else f"{domain}_{bus}_{slot}"
        look = partial(_pci_device, f"{root}/{name}", device_id, hardware)
        if (item := seen("pci", device_id, look)) is not None:
            found.append(item)
    return found


def _pci_device(folder: str, device_id: str, hardware: HardwareNames) -> Found | None:
    vendor, device, kind = (_hex(folder, field) for field in ("vendor", "device", "class"))
    if not vendor or not device:
        return None
    what = _PCI_SUBCLASSES.get(kind[:4]) or _PCI_CLASSES.get(kind[:2]) or "PCI device"
    maker, model = hardware.of("pci", vendor, device)
    label = f"{maker} {model or device}" if maker else read_note(f"{folder}/label")
    text = f"{what}: {label or f'{vendor}:{device}'}"
    identity = with_kinds(f"{vendor}:{device}:", "pci", [f"p{kind}"])
    return _listed("pci", device_id, identity, text)


def _scan_mic(proc_root: Path) -> list[Found]:
    # One line a PCM: "00-00: ALC3246 Analog : ALC3246 Analog : playback 1 : capture 1"
    for line in read_table(f"{proc_root}/asound/pcm").split("\n"):
        fields = [field.strip() for field in line.split(":")]
        if any(field.startswith("capture") for field in fields):
            name = fields[1] if len(fields) > 1 else ""
            return [_listed("mic", "mic", "", name or "Microphone")]
    return []
