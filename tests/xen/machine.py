"""The emulated machine: QEMU's command line, and what stands where on its PCI bus.

An IOMMU is always there, as giving PCI devices to guests needs one. So are the controllers that are
given; USB devices come and go by QMP while it runs (qmp.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from . import image as images

if TYPE_CHECKING:
    from pathlib import Path

    from .image import Image

MEMORY_MIB = 4096
DOM0_MIB = 1024
#: A plain one: vectors and `rep movsb` are slow to emulate, and emulated SMAP kills dom0's kernel.
#: Xen drives an Intel IOMMU on a processor of Intel's alone.
CPU = "qemu64,vendor=GenuineIntel"
IOMMU = "intel-iommu,intremap=on"


class Controller(NamedTuple):
    """A USB controller: its bus for QEMU, its address in dom0, and its port for dom0's service."""

    bus: str
    address: str
    port: str


#: On bus 0, so it has no reset. Devices at its ports 1 to 4 have super speed if they can, at 5 to 8
#: high speed at most.
ON_BUS_0 = Controller("xhci.0", "0000:00:05.0", "00_05.0")
#: Alone behind a root port, so that its bus can be reset.
ALONE = Controller("alone.0", "0000:01:00.0", "00_06.0-00.0")
#: These two stand behind one bridge from PCI Express to PCI, and cannot be given to two guests. The
#: first has a reset that fails, because it would reset the other's bus, and the second has none.
SIBLINGS = (
    Controller("first.0", "0000:02:01.0", "00_07.0-01.0"),
    Controller("second.0", "0000:02:02.0", "00_07.0-02.0"),
)
#: dom0's own disk, which is its root as well.
DOM0_DISK = "0000:00:02.0"

#: What a sound card plays into.
SILENCE = "silence"

# The firmware numbers the buses behind bridges in the order of the bridges.
PCI_DEVICES = (
    "qemu-xhci,id=xhci,addr=05.0,p2=8,p3=4",
    "pcie-root-port,id=alone-port,addr=06.0,chassis=1",
    "qemu-xhci,id=alone,bus=alone-port,p2=4,p3=4",
    "pcie-pci-bridge,id=bridge,addr=07.0",
    "nec-usb-xhci,id=first,bus=bridge,addr=01.0",
    "nec-usb-xhci,id=second,bus=bridge,addr=02.0",
)


class Sockets(NamedTuple):
    """Where QEMU listens: dom0's console, which is logged too, dom0's bench-link, and QMP."""

    console: Path
    console_log: Path
    link: Path
    qmp: Path


def command(image: Image, sockets: Sockets) -> list[str]:
    """How QEMU is started. It ends with its parent."""
    xen = (
        f"console=com1 com1=115200,8n1 dom0_mem={DOM0_MIB}M,max:{DOM0_MIB}M dom0_max_vcpus=2 "
        # Lazy switching of the FPU goes wrong under emulation: programs of busy guests abort.
        "loglvl=warning guest_loglvl=warning spec-ctrl=no,eager-fpu conring_size=1M"
    )
    linux = (
        f"console=hvc0 {images.KERNEL} root=/dev/nvme0n1 systemd.show_status=0 "
        "systemd.hostname=dom0"
    )
    words = ["setpriv", "--pdeathsig", "KILL", "nice", "-n", "5", "qemu-system-x86_64"]
    words += ["-M", "q35,kernel-irqchip=split", "-cpu", CPU]
    words += ["-accel", "tcg,thread=multi", "-smp", "2", "-m", str(MEMORY_MIB)]
    words += ["-display", "none", "-no-reboot", "-monitor", "none", "-net", "none"]
    console = f"socket,id=console,path={sockets.console},server=on,wait=off"
    words += ["-chardev", f"{console},logfile={sockets.console_log}"]
    words += ["-serial", "chardev:console"]
    words += ["-chardev", f"socket,id=link,path={sockets.link},server=on,wait=off"]
    words += ["-serial", "chardev:link"]
    words += ["-audiodev", f"none,id={SILENCE}"]
    words += ["-qmp", f"unix:{sockets.qmp},server=on,wait=off"]
    words += ["-kernel", str(image.xen), "-append", xen]
    words += ["-initrd", f"{image.kernel} {linux},{image.initramfs}"]
    # Twice the root image: one is dom0's own, the other goes to the guests.
    for number in range(2):
        drive = f"file={image.root},if=none,id=d{number},format=raw,readonly=on"
        words += ["-drive", f"{drive},file.locking=off"]
        words += ["-device", f"nvme,drive=d{number},serial=bench{number},addr=0{number + 2}.0"]
    for device in (*PCI_DEVICES, IOMMU):  # AMD's is a PCI device too, and takes a free address
        words += ["-device", device]
    return words
