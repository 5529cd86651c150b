"""Makes booting the image cheaper: what a domain of the bench does not need is not started.

Everything takes fifty times as long as on hardware, and a run of the tests boots five domains.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from .programs import run

UNITS = Path("etc/systemd/system")
GENERATORS = Path("usr/lib/systemd/system-generators")

#: Started by a plain installation, of no use here, and each a second or more under emulation.
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dbus.service",
    "dbus.socket",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "kmod-static-nodes.service",
    "logrotate.timer",
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-journal-flush.service",
    "systemd-journald-audit.socket",
    "systemd-logind.service",
    "systemd-modules-load.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-sysctl.service",
    "systemd-sysusers.service",
    "systemd-timesyncd.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "xendomains.service",
)
#: Of udev's rules, those for what the bench has; each event is matched against all lines of all.
RULES = (
    "50-udev-default",
    "55-dm",
    "60-block",
    "60-persistent-storage",
    "80-drivers",
    "99-systemd",
)


def lighten(root: Path) -> None:
    """Changes a root that has all its packages."""
    for unit in MASKED:
        (root / UNITS / unit).symlink_to("/dev/null")
    for rules in (root / "usr/lib/udev/rules.d").iterdir():
        if rules.stem not in RULES:
            rules.unlink()
    # Of a thousand devices these are used; each event costs milliseconds.
    trigger = "ExecStart=-udevadm trigger --type=devices --action=add"
    # On "xen" a guest finds the PCI devices that it was given.
    buses = "-s block -s misc -s pci -s usb -s xen"
    drop_in(
        root,
        "systemd-udev-trigger",
        f"[Service]\nExecStart=\n{trigger} {buses}\n{trigger} --sysname-match=hvc0\n",
    )
    # Of all that it would make, Xen's tools want /run/lock.
    create = "ExecStart=systemd-tmpfiles --create --remove --boot --prefix=/run"
    drop_in(root, "systemd-tmpfiles-setup", f"[Service]\nExecStart=\n{create}\n")
    with (root / "etc/xen/oxenstored.conf").open("a") as settings:
        settings.write("access-log-file=/dev/null\n")  # it has a line for each word with anybody
    # Without logind, which is not started: how large a user's folder may be, and where it is.
    folder = "/run/user/%i"
    drop_in(
        root,
        "user-runtime-dir@",
        f"[Service]\nExecStart=\nExecStart=install -d -m 700 -o %i -g %i {folder}\n"
        f"ExecStop=\nExecStop=rm -rf {folder}\n",
    )
    drop_in(root, "user@", f"[Service]\nEnvironment=XDG_RUNTIME_DIR={folder}\n")
    _run_generators(root)


def _run_generators(root: Path) -> None:
    """What systemd's generators find here at each boot and daemon-reload, found once: the console
    of dom0, and Debian's init script of Xen."""
    units = f"/{UNITS}"
    run("chroot", root, f"/{GENERATORS}/systemd-sysv-generator", units, units, units)
    console = "serial-getty@hvc0"
    wants = root / UNITS / "getty.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / f"{console}.service").symlink_to("/lib/systemd/system/serial-getty@.service")
    for unit in ("xen", console):
        drop_in(root, unit, "[Unit]\nConditionVirtualization=!xen\n", name="dom0")
    shutil.rmtree(root / GENERATORS)


def drop_in(root: Path, unit: str, lines: str, name: str = "bench") -> None:
    """Changes a service."""
    folder = root / UNITS / f"{unit}.service.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.conf").write_text(lines)
