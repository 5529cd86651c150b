"""The files of a local folder (DIR), and the clean-up after a killed machine.

pedos.toml               the VMs; policy.d/*.policy  what they may do
vms.d/*.toml             facts about the VMs that the policy uses
vms/NAME/devices/CLASS/  a file put here is a device plugged into that VM
vms/NAME/dev/            what that VM has imported, as block files
vms/NAME/services.d/     the services of that VM, configured in services.conf.d/
vms/NAME/home/           where these services begin
state/                   assignments, audit log, the domain number counter
log/NAME.log             what each program said
run/                     sockets and channels of the running machine; nothing in it is kept
run/desktop/             the socket of dom0's desktop, which may ask for less than root
run/sound/NAME/          the sound server of that VM, if it has one
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from pedos_host.mounts import fuse_mounts, remove_placeholder, unmount_now
from pedos_protocol.device_classes import class_names

logger = logging.getLogger(__name__)

# A log that exceeds this (bytes) at a start becomes NAME.log.1, so that a machine which is used for
# months does not fill the disk. 1 MiB is about ten thousand lines.
LOG_KEEP = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one DIR. `root` is absolute."""

    root: Path

    @classmethod
    def of(cls, directory: str | Path) -> Layout:
        return cls(Path(os.path.abspath(directory)))

    @property
    def config(self) -> Path:
        return self.root / "pedos.toml"

    @property
    def policy(self) -> Path:
        return self.root / "policy.d"

    @property
    def facts(self) -> Path:
        return self.root / "vms.d"

    @property
    def audit(self) -> Path:
        return self.state / "audit.jsonl"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def next_domid(self) -> Path:
        return self.state / "next-domid"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def lock(self) -> Path:
        return self.run / "lock"

    @property
    def users(self) -> Path:
        return self.run / "users"

    @property
    def machine_socket(self) -> Path:
        return self.run / "machine.sock"

    @property
    def dom0_socket(self) -> Path:
        return self.run / "dom0.sock"

    @property
    def desktop_socket(self) -> Path:
        """Where dom0's service has less authority to give than at `dom0_socket`."""
        return self.run / "desktop" / "dom0.sock"

    @property
    def dom0_agent_socket(self) -> Path:
        return self.run / "dom0-agent.sock"

    @property
    def vchan(self) -> Path:
        return self.run / "vchan"

    @property
    def vms(self) -> Path:
        return self.root / "vms"

    def vm(self, name: str) -> Path:
        return self.vms / name

    def devices(self, name: str) -> Path:
        return self.vm(name) / "devices"

    def dev(self, name: str) -> Path:
        return self.vm(name) / "dev"

    def services(self, name: str) -> Path:
        return self.vm(name) / "services.d"

    def configurations(self, name: str) -> Path:
        """The folder of its services' configurations."""
        return self.vm(name) / "services.conf.d"

    def home(self, name: str) -> Path:
        """The home of its services: two VMs are not to share one, as users of two machines do
        not."""
        return self.vm(name) / "home"

    def keeper_socket(self, name: str) -> Path:
        """Where the VM's agent has services run. No VM has a dot in its name."""
        return self.run / "vms" / f"{name}.keeper"

    def client_socket(self, name: str) -> Path:
        """Where `qvm-*` finds its service, seen from this VM (or from dom0)."""
        if name == "dom0":
            return self.dom0_socket
        return self.run / "vms" / f"{name}.sock"

    def call_socket(self, name: str) -> Path:
        """Where programs of this VM (or of dom0) call services: the client socket's path, with
        another ending, as they look for it."""
        return self.client_socket(name).with_suffix(".calls")

    def sound_socket(self, name: str) -> Path:
        """Where the VM's pedos-sound finds the agent. No VM has a dot in its name."""
        return self.run / "vms" / f"{name}.sound"

    def sound(self, name: str) -> Path:
        """The folder of the VM's own sound server."""
        return self.run / "sound" / name

    def log(self, name: str) -> Path:
        return self.root / "log" / f"{name}.log"

    def make_folders(self, vms: tuple[str, ...]) -> None:
        """Makes missing folders; OSError. `vms` without dom0, which always has its folders."""
        for folder in (self.policy, self.facts, self.root / "log"):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.state, self.run, self.vchan, self.run / "vms"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.users.touch(mode=0o600)
        for name in ("dom0", *vms):
            self.make_vm_folders(name)

    def make_vm_folders(self, name: str) -> None:
        for device_class in class_names():
            (self.devices(name) / device_class).mkdir(parents=True, exist_ok=True)
        for folder in (self.services(name), self.configurations(name), self.home(name)):
            folder.mkdir(exist_ok=True)
        # A dead FUSE mount in dev/ must not matter here, so nothing below dev/ is looked at.
        self.dev(name).mkdir(parents=True, exist_ok=True)

    def rotate_logs(self) -> None:
        """Before any program writes to them; OSError. One old log of each is kept."""
        for log in (self.root / "log").glob("*.log"):
            if log.stat().st_size > LOG_KEEP:
                log.replace(log.with_name(log.name + ".1"))


def sweep(layout: Layout) -> list[str]:
    """Removes what a killed machine left: its sockets, and mounts under every vms/*/dev.

    Only for the holder of the lock. Returns what it found, one line each, for the log.
    """
    found = []
    for folder in (layout.run, layout.desktop_socket.parent, layout.vchan, layout.run / "vms"):
        if not folder.is_dir():
            continue
        for entry in sorted(folder.iterdir()):
            if stat.S_ISSOCK(entry.lstat().st_mode):
                entry.unlink(missing_ok=True)
                found.append(f"removed the stale socket {entry.relative_to(layout.root)}")
    servers = layout.run / "sound"
    if servers.is_dir():
        shutil.rmtree(servers, ignore_errors=True)
        found.append(f"removed {servers.relative_to(layout.root)}, which sound servers left")
    if layout.vms.is_dir():
        for vm in sorted(layout.vms.iterdir()):
            found += clear_dev(vm / "dev")
    return found


def clear_dev(dev: Path) -> list[str]:
    """Unmounts every FUSE mount under a VM's dev/ and removes the files it was mounted on; the log
    names those that stay. OSError if the mounts cannot be listed."""
    done = []
    for point in fuse_mounts(dev):
        try:
            unmount_now(point)
            done.append(f"unmounted {point}, which its program had left")
        except OSError as error:
            logger.error("cannot unmount %s: %s", point, error.strerror)
            continue
    try:
        entries = os.listdir(dev)
    except (FileNotFoundError, NotADirectoryError):
        return done
    except OSError as error:
        logger.error("cannot look into %s for what a program has left: %s", dev, error.strerror)
        return done
    for entry in entries:
        try:
            remove_placeholder(dev / entry)
        except OSError as error:
            logger.error("cannot clear away %s: %s", dev / entry, error.strerror)
    return done
