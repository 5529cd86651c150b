"""A kernel's /sys, /proc and /dev and udev's database, as folders that a test fills."""

from __future__ import annotations

import shutil
from pathlib import Path

from pedos_agent.system.roots import Roots


class Tree:
    """Block devices that exist because a test says so."""

    def __init__(self, root: Path) -> None:
        self.roots = Roots(root / "sys", root / "proc", root / "udev", root / "dev")
        for folder in (
            "sys/class/block",
            "sys/dev/block",
            "sys/bus/xen-backend/devices",
            "proc/self",
            "udev",
            "dev",
        ):
            (root / folder).mkdir(parents=True)
        (root / "proc/self/mountinfo").touch()
        (root / "proc/swaps").write_text("Filename\tType\tSize\tUsed\tPriority\n")
        self._devices = root / "sys/devices"
        self._minor = 0

    def add(
        self,
        name: str,
        *,
        parent: str | None = None,
        below: str = "",
        sectors: int = 2048,
        read_only: bool = False,
        **udev: str,
    ) -> str:
        """Plugs in a disk, or a partition of one; returns its number. `below` is the folder of what
        it is plugged into."""
        self._minor += 1
        number = f"8:{self._minor}"
        folder = self._devices / below / (parent or "") / name
        (folder / "holders").mkdir(parents=True)
        values = {"dev": number, "size": str(sectors), "ro": str(int(read_only))}
        if parent is not None:
            values["partition"] = "1"
        for field, value in values.items():
            (folder / field).write_text(f"{value}\n")
        (self.roots.sys / "class/block" / name).symlink_to(folder)
        (self.roots.sys / "dev/block" / number).symlink_to(folder)
        (self.roots.dev / name).write_bytes(b"a disk")
        lines = [f"E:{key}={value}\n" for key, value in udev.items()]
        (self.roots.udev / f"b{number}").write_text("S:disk/by-id/x\nI:12\n" + "".join(lines))
        return number

    def field(self, name: str, path: str, value: str) -> None:
        """Gives a device another attribute."""
        file = self.roots.sys / "class/block" / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")

    def mount(self, number: str, point: str, source: str = "/dev/x") -> None:
        with (self.roots.proc / "self/mountinfo").open("a") as file:
            file.write(f"36 35 {number} / {point} rw shared:1 - ext4 {source} rw\n")

    def swap(self, path: str) -> None:
        with (self.roots.proc / "swaps").open("a") as file:
            file.write(f"{path}\tpartition\t1024\t0\t-2\n")

    def serve(self, domid: int, number: str) -> None:
        """blkback serves that device to a domain; 0:0 until it has been told which."""
        major, minor = map(int, number.split(":"))
        folder = self.roots.sys / f"bus/xen-backend/devices/vbd-{domid}-51840"
        folder.mkdir(exist_ok=True)
        (folder / "physical_device").write_text(f"{major:x}:{minor:x}\n")

    def serve_no_more(self, domid: int) -> None:
        """The backend is taken down."""
        shutil.rmtree(self.roots.sys / f"bus/xen-backend/devices/vbd-{domid}-51840")
