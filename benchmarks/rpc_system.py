"""A system in local mode whose VMs call services of each other, for benchmarks."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .processes import guarded

BIN = Path(sys.executable).parent
UP_TIMEOUT = 120.0
SERVER = "vault"
POLICY = """\
bench.Denied  *  *     *      deny
*             *  work  vault  allow
*             *  other vault  allow
"""


@dataclass(frozen=True)
class CallSystem:
    """A running one: `folder`, and the processes of its programs."""

    folder: Path

    def environment(self, vm: str) -> dict[str, str]:
        """That of a program in a VM."""
        return {
            **os.environ,
            "PEDOS_SOCKET": str(self.folder / "run" / "vms" / f"{vm}.sock"),
            "PEDOS_VM": vm,
        }

    def programs(self) -> dict[str, int]:
        """The pid of dom0's service, of each agent and of each keeper, by what they are."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            except OSError:  # it has just ended
                continue
            if not any(str(self.folder) in word for word in words):
                continue
            if "-m" in words[:-1]:
                vm = words[words.index("--vm") + 1] if "--vm" in words else ""
                found[f"{words[words.index('-m') + 1]}:{vm}".rstrip(":")] = int(entry.name)
        return found


@contextlib.contextmanager
def call_system(services: Mapping[str, str]) -> Iterator[CallSystem]:
    """A system of work, other and vault, where vault has these services: programs by name."""
    with tempfile.TemporaryDirectory(prefix="pedos-bench-") as name:
        folder = Path(name) / "system"
        subprocess.run([BIN / "pedos-local", "init", folder], check=True, stdout=subprocess.DEVNULL)
        (folder / "pedos.toml").write_text(
            "".join(f"[vm.{vm}]\n" for vm in ("work", "other", SERVER))
        )
        (folder / "policy.d" / "10-bench.policy").write_text(POLICY)
        place = folder / "vms" / SERVER / "services.d"
        place.mkdir(parents=True, exist_ok=True)
        for service, text in services.items():
            (place / service).write_text(text)
            (place / service).chmod(0o755)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(Path(name) / "ready"))
            ready.settimeout(UP_TIMEOUT)
            up = subprocess.Popen(
                guarded([BIN / "pedos-local", "up", folder]),
                env={**os.environ, "NOTIFY_SOCKET": str(Path(name) / "ready")},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                ready.recv(64)
                yield CallSystem(folder)
            finally:
                up.kill()
                up.wait()
