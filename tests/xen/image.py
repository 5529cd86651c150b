"""Builds what the bench boots: Xen, a kernel, an initramfs, and one root image for all domains.

Every domain's root is the same read-only ext4 image, as VMs share a template, with a layer of
memory over it. The packages are fetched once; the tarball is kept in build/xen-cache/SUITE until
packages.txt changes. Root and these Debian packages are needed: see NEEDED.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import lzma
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .lighter import drop_in, lighten
from .programs import NotPossibleError, run
from .suite import (
    CACHE,
    HERE,
    ROOT,
    build_packages,
    build_system,
    check_suite,
    compile_program,
    digest,
    fetched,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

INSIDE = HERE / "inside"

#: Each tool, and the Debian package that brings it.
NEEDED = {
    "mmdebstrap": "mmdebstrap",
    "qemu-system-x86_64": "qemu-system-x86",
    "mke2fs": "e2fsprogs",
    "cpio": "cpio",
    "zstd": "zstd",
    "setpriv": "util-linux",
}

#: What the initramfs loads before it can mount the root: dom0's disk, a guest's, the file systems.
# systemd wants autofs, and takes seconds to find it by itself.
MODULES = ("crc32c-intel", "crc32c_generic", "nvme", "xen-blkfront", "ext4", "overlay", "autofs4")
BUSYBOX = ("sh", "mount", "mkdir", "insmod", "switch_root", "sleep", "cat")

#: Programs in Python that run in forks of one process (inside/warm.py): the bench's own, and, for
#: the harness alone, the commands for people.
WARM = ("peer", "proxied", "look", "loopback", "rounds", "tone")
WARM_COMMANDS = ("qvm-block", "qvm-device", "qvm-ls", "qvm-policy", "qvm-start")

#: Half of a stock kernel's modules are for hardware that the bench cannot have.
LEFT_OUT = (
    "drivers/ata",
    "drivers/gpu",
    "drivers/i2c",
    "drivers/infiniband",
    "drivers/input",
    "drivers/media",
    "drivers/mfd",
    "drivers/net/ethernet",
    "drivers/net/wireless",
    "drivers/parport",
    "drivers/staging",
    "drivers/watchdog",
)

#: In these folders, but keyboards and sound cards need them.
KEPT = ("evdev", "mc")
#: What devices that are lent need, and making and lending them. Built in, or there is no bench.
DEVICE_MODULES = (
    "dummy_hcd",
    "evdev",
    "hid-generic",
    "libcomposite",
    "scsi_debug",
    "sd_mod",
    "snd-usb-audio",
    "uas",
    "usb-storage",
    "usb_f_hid",
    "usb_f_mass_storage",
    "usbhid",
    "usbip-host",
    "vhci-hcd",
    "xen-pciback",
    "xen-pcifront",
    "xhci-pci",
)

#: All kernels. On hardware, Linux on Xen reads the clock without a system call, which here only
#: this clock can do; a trip through trio reads it seven times.
KERNEL = "quiet mitigations=off clocksource=tsc tsc=reliable"


#: A test pauses a VM for longer than this. (The usual 30 s would make it half a minute longer.)
HANG_SECONDS = 10
HANG = f"PEDOS_HANG_SECONDS={HANG_SECONDS}"


#: The one person in each domain. Nobody is logged in before a test logs them in.
USER, USER_ID = "user", 1000


class Guest(NamedTuple):
    """A guest of the bench."""

    memory: int  # MiB
    lines: tuple[str, ...] = ()  # more of its xl configuration


GUESTS: Mapping[str, Guest] = {
    "sys-usb": Guest(512, ("driver_domain=1",)),
    "work": Guest(320),
    "personal": Guest(320),
    "vault": Guest(320),
}


class Image(NamedTuple):
    """Files for QEMU."""

    xen: Path
    kernel: Path
    initramfs: Path
    root: Path


def _check_tools() -> None:
    missing = sorted({package for tool, package in NEEDED.items() if not shutil.which(tool)})
    if missing:
        raise NotPossibleError(f"as root: apt-get install -y {' '.join(missing)}")
    if os.geteuid() != 0:
        raise NotPossibleError("the image has files of many owners: run this as root")


def packages() -> list[str]:
    """What packages.txt asks for."""
    lines = (HERE / "packages.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def tarball() -> Path:
    """The root file system as Debian's packages make it; fetched when it is not there."""
    return fetched("root", ".tar", packages())


def _configuration(name: str, guest: Guest) -> str:
    return "\n".join(
        (
            f'name="{name}"',
            'type="pv"',
            'kernel="/boot/vmlinux"',
            'ramdisk="/boot/initrd-bench"',
            f"memory={guest.memory}",
            "vcpus=1",
            'tsc_mode="native"',
            'disk=["format=raw,vdev=xvda,access=ro,script=bench-block,target=/dev/nvme1n1"]',
            f'extra="console=hvc0 {KERNEL} root=/dev/xvda systemd.show_status=0 '
            f'systemd.hostname={name}"',
            'on_crash="destroy"',
            *guest.lines,
            "",
        )
    )


def _install_ours(root: Path, debs: Iterable[Path]) -> None:
    """The project's packages."""
    place = root / "var/tmp/debs"
    place.mkdir()
    for deb in debs:
        shutil.copy(deb, place)
    run("chroot", root, "sh", "-c", "dpkg -i /var/tmp/debs/*.deb")


def _install_inside(root: Path, builder: Path) -> None:
    """What belongs to the bench itself."""
    for name in ("bench-link", "bench-gadget", "in-session", "on"):
        shutil.copy(INSIDE / name, root / "usr/local/sbin" / name)
    # Xen's own hotplug script takes half of `xl create`. By this name it is not the service's.
    shutil.copy(ROOT / "vm_agent/xen/block", root / "etc/xen/scripts/bench-block")
    units = {
        "bench-link.service": "sysinit.target.wants",
        "bench-warm.socket": "sockets.target.wants",
    }
    for name in (*units, "bench-warm.service"):
        shutil.copy(INSIDE / name, root / "etc/systemd/system" / name)
    programs = root / "usr/local/bin"
    programs.mkdir(parents=True, exist_ok=True)
    library = Path("usr/local/lib/bench")
    (root / library).mkdir(parents=True)
    for name in ("warm", "remote", "qvm", *WARM):
        shutil.copy(INSIDE / f"{name}.py", root / library)
    shutil.copy(ROOT / "tests/sound/tones.py", root / library)
    for name in WARM:
        (programs / f"bench-{name}").symlink_to("bench-warm")
    (root / library / "commands").mkdir()
    for name in WARM_COMMANDS:
        (root / library / "commands" / name).symlink_to("/usr/local/bin/bench-warm")
    # Compiling a program at each start takes longer than starting it.
    (root / library / "__main__.py").write_text(
        "import importlib, sys\nimportlib.import_module(sys.argv.pop(1)).main()\n"
    )
    run("chroot", root, "python3", "-m", "compileall", "-q", f"/{library}")
    vchan = ("-lxenvchan", "-lxenevtchn")
    for name, libraries in (("pingpong", vchan), ("liar", vchan), ("warm", ()), ("clock", ())):
        compile_program(builder, name, libraries, programs / f"bench-{name}")
    for name, guest in GUESTS.items():
        (root / "etc/xen" / f"{name}.cfg").write_text(_configuration(name, guest))
    (root / "etc/machine-id").write_text(hashlib.md5(b"bench").hexdigest() + "\n")
    (root / "etc/hostname").write_text("dom0\n")
    (root / "etc/fstab").write_text("")
    with (root / "etc/default/xen").open("a") as settings:
        settings.write("XENCONSOLED_ARGS=--log=guest\n")  # for a guest that does not come up
    (root / "var/log/xen/console").mkdir(parents=True)
    # Anybody who got as far as this console owns the bench.
    drop_in(
        root,
        "serial-getty@hvc0",
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --skip-login --login-program /bin/bash "
        "--noclear --keep-baud 115200,57600,38400,9600 - $TERM\nEnvironment=HOME=/root\n",
    )
    # Python starts a tenth as fast under emulation, and three domains may do so at once.
    for unit in ("pedos-agent", "pedos-dom0", "pedos-dom0-agent"):
        drop_in(root, unit, f"[Service]\nTimeoutStartSec=180s\nEnvironment={HANG}\n")
    for unit, wants in units.items():
        folder = root / "etc/systemd/system" / wants
        folder.mkdir(exist_ok=True)
        (folder / unit).symlink_to(f"../{unit}")


def _zstd(compressed: bytes) -> bytes:
    return subprocess.run(["zstd", "-dqc"], input=compressed, stdout=-1, check=True).stdout


#: How kernels and modules are compressed, by their first bytes. Debian 12: xz and not at all;
#: Debian 13: zstd and xz.
UNPACK: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"\xfd7zXZ\0": lzma.decompress,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\x7fELF": bytes,
}


def _unpacked(data: bytes) -> bytes:
    """An ELF file that may be compressed."""
    for magic, unpack in UNPACK.items():
        if data.startswith(magic):
            return unpack(data)
    raise NotPossibleError(f"compressed in a way that the bench does not know: {data[:6].hex()}")


def _kernel(image: bytes) -> bytes:
    """The ELF file within a bzImage (Documentation/arch/x86/boot.rst of Linux). Unpacking it anew
    for each domain takes seconds under emulation."""
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    return _unpacked(image[start : start + length - 4])  # its length stands after it


def _cut_modules(root: Path, kernel: str) -> None:
    """Removes most of what is in LEFT_OUT."""
    for folder in LEFT_OUT:
        for path in (root / "lib/modules" / kernel / "kernel" / folder).rglob("*.ko*"):
            if path.name.partition(".")[0] not in KEPT:
                path.unlink()
    run("chroot", root, "depmod", kernel)
    # All that is named must be there, with all that it needs.
    run("chroot", root, "modprobe", "--show-depends", "-a", "-S", kernel, *DEVICE_MODULES)


def _initramfs(root: Path, kernel: str, target: Path) -> None:
    """Just what mounts the root: Debian's own costs 15 s a boot here, and 300 MB in a guest."""
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        tree = Path(name)
        for folder in ("bin", "dev", "proc", "sys", "newroot", "below", "above", "modules"):
            (tree / folder).mkdir()
        shutil.copy(root / "bin/busybox", tree / "bin/busybox")
        for tool in BUSYBOX:
            (tree / "bin" / tool).symlink_to("busybox")
        order: list[str] = []
        for module in MODULES:
            shown = run("chroot", root, "modprobe", "--show-depends", "-S", kernel, module)
            for line in shown.splitlines():
                if line.startswith("insmod ") and line.split()[1] not in order:
                    order.append(line.split()[1])
        for path in order:
            module = tree / "modules" / f"{Path(path).name.partition('.')[0]}.ko"
            module.write_bytes(_unpacked((root / path.lstrip("/")).read_bytes()))
            with (tree / "modules/order").open("a") as file:
                file.write(f"{module.name}\n")
        shutil.copy(INSIDE / "init-ramdisk", tree / "init")
        (tree / "init").chmod(0o755)
        script = 'find . | cpio -o -H newc --quiet | zstd -q -9 -f -o "$1"'
        run("sh", "-c", script, "sh", target.absolute(), cwd=tree)


def build() -> Image:
    """The image with the project's packages; only what has changed is made anew."""
    check_suite()
    _check_tools()
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:  # several benches may be booted at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _build()


def _build() -> Image:
    out = CACHE / "boot"
    image = Image(out / "xen", out / "vmlinux", out / "initrd", out / "root.img")
    base, builder = tarball(), build_system()
    debs = build_packages(builder)
    makers = [
        HERE / "image.py",
        HERE / "lighter.py",
        HERE / "suite.py",
        ROOT / "vm_agent/xen/block",
        ROOT / "tests/sound/tones.py",
    ]
    # Not what Python keeps there of what it has compiled.
    inside = [*sorted(path for path in INSIDE.iterdir() if path.is_file()), *makers]
    wanted = digest([base.name.encode(), *(path.read_bytes() for path in (*inside, *debs))])
    stamp = out / "stamp"
    if stamp.exists() and stamp.read_text() == wanted:
        return image
    print("bench: building the root image", flush=True)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        root = Path(name)
        root.chmod(0o755)
        run("tar", "-xf", base, "-C", root)
        kernel = next((root / "lib/modules").iterdir()).name
        _cut_modules(root, kernel)
        # Before the packages, as on a machine: they make its first user one whom services run as.
        run("chroot", root, "useradd", "--create-home", "--uid", str(USER_ID), USER)
        _install_ours(root, debs)
        _install_inside(root, builder)
        lighten(root)
        # QEMU's multiboot loader wants the plain ELF file.
        compressed = next((root / "boot").glob("xen-*.gz"))
        image.xen.write_bytes(gzip.decompress(compressed.read_bytes()))
        image.kernel.write_bytes(_kernel((root / "boot" / f"vmlinuz-{kernel}").read_bytes()))
        _initramfs(root, kernel, image.initramfs)
        shutil.copy(image.initramfs, root / "boot/initrd-bench")
        shutil.copy(image.kernel, root / "boot/vmlinux")
        run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root, image.root, "1600M")
    stamp.write_text(wanted)
    return image
