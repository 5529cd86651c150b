"""A whole system in local mode, driven from outside like a user would."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pedos_agent.device_classes.block.folder_disks import IDENTITY
from pedos_cli import client
from pedos_cli.devices import device_name, list_devices
from pedos_dom0.local.init import init
from pedos_dom0.local.supervise import GIVEN_UP
from pedos_host.plain_unix import short_path
from pedos_protocol.errors import CallError
from pedos_protocol.messages import SCHEMA, to_wire

from tests import warm
from tests.patience import PATIENCE

BIN = Path(sys.executable).parent
PATIENCE_S = PATIENCE
# A condition outside our reach (another process's state) is looked at again after the first of
# these, or after twice the time that a look took, but not more than the second: a look may start a
# program, and what is waited for needs a processor, too.
LOOK_AGAIN_S = 0.02
LOOK_AGAIN_AT_MOST_S = 0.1


# A fast machine kills and starts a program again some ten times a second.
RESTARTS = 1000


ProcessTable = dict[int, tuple[int, list[str]]]


def wait_until(
    condition: Callable[[], object], what: str, lost: Callable[[], str | None] = lambda: None
) -> None:
    """Returns as soon as `condition` holds; fails with `what` if it does not in PATIENCE_S, or at
    once if it cannot any more: `lost` says why."""
    began = time.monotonic()
    deadline = began + PATIENCE_S
    while not condition():
        why = lost()
        assert why is None, f"never: {what}\n{why}"
        now = time.monotonic()
        assert now < deadline, f"still not so after {PATIENCE_S} s: {what}"
        pause = max(LOOK_AGAIN_S, min(2 * (now - began), LOOK_AGAIN_AT_MOST_S))
        select.select([], [], [], pause)
        began = time.monotonic()


def wait_ready(ready: socket.socket, child: subprocess.Popen[bytes]) -> None:
    """Returns when the child says on `ready` that it is; AssertionError at once when it ends, and
    when it has not in PATIENCE_S."""
    ended = os.pidfd_open(child.pid)
    try:
        readable, _, _ = select.select([ready, ended], [], [], PATIENCE_S)
    finally:
        os.close(ended)
    assert readable, f"{child.args!r} is not ready after {PATIENCE_S} s"
    assert ready in readable, f"{child.args!r} ended with {child.wait()}"
    assert ready.recv(100).startswith(b"READY=1")


class LocalSystem:
    """`pedos-local up` on a folder, with the command line to talk to it."""

    def __init__(self, folder: Path, *, is_warm: bool = False) -> None:
        """With `is_warm` its programs and commands start as tests/warm.py says, in a tenth of the
        time."""
        self.folder = folder
        self._pedos_local: Sequence[str | Path] = warm.LOCAL if is_warm else [BIN / "pedos-local"]
        self._start: type[subprocess.Popen[Any]] = warm.Popen if is_warm else subprocess.Popen
        self._up: subprocess.Popen[bytes] | None = None

    def init(self, restarts: int = RESTARTS) -> None:
        init(str(self.folder))  # the command's own words are tests/local's
        with (self.folder / "pedos.toml").open("a") as config:
            config.write(f"\n[machine]\nrestarts = {restarts}\n")

    def up(self, env: dict[str, str] | None = None) -> None:
        """Starts the machine and returns when every VM has reported."""
        ready_path = self.folder / "ready.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            with short_path(ready_path) as short:
                ready.bind(short)
            with (self.folder / "up.log").open("ab") as log:
                self._up = self._start(
                    [*self._pedos_local, "up", self.folder],
                    env={**os.environ, "NOTIFY_SOCKET": str(ready_path), **(env or {})},
                    stdout=log,
                    stderr=log,
                )
            try:
                wait_ready(ready, self._up)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{self.log()}") from None
        ready_path.unlink()

    @property
    def is_up(self) -> bool:
        """Its machine was started, and nobody has waited for its end."""
        return self._up is not None

    def lost(self) -> str | None:
        """Why nothing can be expected of it any more: its machine has ended, or has given up a
        program. None while it is well."""
        if self._up is None or self._up.poll() is not None:
            status = self._up.returncode if self._up else None
            return f"the system is down (status {status})\n{self.log()}"
        said = (self.folder / "up.log").read_text(errors="replace")
        return f"a program was given up\n{self.log()}" if GIVEN_UP in said else None

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """See wait_until: a lost system keeps no test waiting."""
        wait_until(condition, what, self.lost)

    def down(self) -> int:
        """Ends the machine as Ctrl-C does; its exit status."""
        assert self._up is not None
        self._up.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        """The exit status of the machine, which ends by itself."""
        assert self._up is not None
        status = self._up.wait(PATIENCE_S)
        self._up = None
        return status

    def kill(self) -> None:
        """All of it, at once: no program outlives its machine."""
        assert self._up is not None
        self._up.kill()
        self._up.wait(PATIENCE_S)
        self._up = None

    def log(self) -> str:
        parts = [self.folder / "up.log", *sorted((self.folder / "log").glob("*.log"))]
        return "\n".join(
            f"--- {part.name}\n{part.read_text(errors='replace')}"
            for part in parts
            if part.exists()
        )

    def environment(self, vm: str = "dom0") -> dict[str, str]:
        """That of a command in a VM, or in dom0: of root or, as "desktop", of a user there."""
        run = self.folder / "run"
        in_dom0 = {"dom0": run / "dom0.sock", "desktop": run / "desktop" / "dom0.sock"}
        path = in_dom0.get(vm, run / "vms" / f"{vm}.sock")
        name = "dom0" if vm in in_dom0 else vm
        return {**os.environ, "PEDOS_SOCKET": str(path), "PEDOS_VM": name}

    @contextlib.contextmanager
    def started(self, *argv: str, vm: str = "dom0") -> Iterator[subprocess.Popen[str]]:
        """A command that runs meanwhile. It ends with the block at the latest: the child of a test
        that has failed must not fail the ones after it."""
        with self._start(
            [BIN / argv[0], *argv[1:]],
            env=self.environment(vm),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as command:
            try:
                yield command
            finally:
                command.kill()

    def run(self, *argv: str, vm: str = "dom0") -> subprocess.CompletedProcess[str]:
        with self.started(*argv, vm=vm) as command:
            out, err = command.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(argv, command.returncode, out, err)

    def ok(self, *argv: str, vm: str = "dom0") -> str:
        """Runs a command that must succeed; its output."""
        done = self.run(*argv, vm=vm)
        assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stderr}\n{self.log()}"
        return done.stdout

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """What a command asks, without a process of its own; errors as from a client."""
        with self.client() as dom0:
            return dom0.call(method, to_wire(SCHEMA[method].params(**params)), PATIENCE_S)

    def client(self) -> client.Client:
        """A connection to dom0's service, as `qvm-*` in dom0 have it: what is looked at again and
        again need not start a program each time. Unreachable while there is no service."""
        return client.connect(self.environment()["PEDOS_SOCKET"])

    def devices(self, device_class: str = "block") -> dict[str, dict[str, object]]:
        """What `list --json` says, by BACKEND:DEVICE."""
        with self.client() as dom0:
            listed, _, _ = list_devices(
                lambda method, params: dom0.call(method, params, PATIENCE_S), device_class
            )
        return {device_name(device): device for device in listed}

    def attached_to(self, name: str) -> list[str]:
        device = self.devices().get(name, {"attachments": []})
        return [held["vm"] for held in device["attachments"]]  # type: ignore[attr-defined,index]

    def agents(self) -> set[str]:
        """The VMs whose agents are connected to dom0's service, which may be down for a moment."""
        try:
            with self.client() as dom0:
                vms = dom0.call("vm.list", {}, PATIENCE_S)["vms"]
        except (client.Unreachable, CallError):
            return set()
        return {vm["name"] for vm in vms if vm["agent"]}

    def policy_status(self) -> dict[str, Any]:
        """What `qvm-policy status --json` says. Unreachable while there is no service."""
        with self.client() as dom0:
            status: dict[str, Any] = dom0.call("service.status", {}, PATIENCE_S)["policy"]
        return status

    def detach_all(self, *vms: str) -> None:
        """Takes back what these VMs have borrowed."""
        held = {each["vm"] for device in self.devices().values() for each in device["attachments"]}  # type: ignore[attr-defined]
        for vm in held.intersection(vms):
            self.run("qvm-device", "block", "detach", vm)

    def device_file(self, vm: str, name: str) -> Path:
        """The file that is, or will be, that block device."""
        return self.folder / "vms" / vm / "devices" / "block" / name

    def plugged(self, vm: str, name: str, size: int) -> Path:
        """As `plug`, with any content; a device that is there already is left as it is."""
        path = self.device_file(vm, name)
        return path if path.exists() else self.plug(vm, name, os.urandom(size))

    def plug(self, vm: str, name: str, content: bytes) -> Path:
        """Puts a device into a VM, whole at once as a real one is, and waits until it is listed."""
        path = self.put(vm, name, content)
        self.wait_until(lambda: f"{vm}:{name}" in self.devices(), f"{vm}:{name} is listed")
        return path

    def put(self, vm: str, name: str, content: bytes, identity: str = "") -> Path:
        """As `plug`, without a wait. OSError if the file system cannot keep the identity."""
        path = self.device_file(vm, name)
        partial = path.with_name(f".{name}")
        partial.write_bytes(content)
        if identity:
            os.setxattr(partial, IDENTITY, identity.encode())
        partial.rename(path)
        return path

    def frontends(self, vm: str) -> list[str]:
        return sorted(os.listdir(self.folder / "vms" / vm / "dev"))

    def processes(self, *words: str, table: ProcessTable | None = None) -> list[int]:
        """The pids of this system's processes whose command line holds all `words`."""
        table = table if table is not None else process_table()
        folder = str(self.folder)

        def names_our_folder(pid: int) -> bool:
            return any(folder in word for word in table[pid][1])

        # nbdkit is given a descriptor and not a path: it is ours when its parent is.
        return [
            pid
            for pid, (parent, argv) in table.items()
            if {*words} <= {*argv}
            and (names_our_folder(pid) or (parent in table and names_our_folder(parent)))
        ]

    def helpers(self) -> list[int]:
        """The nbdkit and nbdfuse processes of this system."""
        table = process_table()
        return self.victim("nbdkit", table) + self.victim("nbdfuse", table)

    def victim(self, name: str, table: ProcessTable | None = None) -> list[int]:
        """The pids behind a part of the system: `dom0`, `agent:VM`, `nbdkit` or `nbdfuse`."""
        table = table if table is not None else process_table()
        if name == "dom0":
            found = self.processes("--dom0-agent", table=table)
        elif name.startswith("agent:"):
            found = self.processes("--vm", name.removeprefix("agent:"), table=table)
        else:
            found = self.processes(name, table=table)
        # What it is about to start has its command line until it becomes another program.
        return [pid for pid in found if table[pid][0] not in found]


def kill_and_wait(pids: list[int]) -> None:
    """Kills them, and waits for their end: until then nobody can have noticed it."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            ended = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(ended, signal.SIGKILL)
                select.select([ended], [], [], PATIENCE)
            finally:
                os.close(ended)


def process_table() -> ProcessTable:
    """Every process of this machine that has a command line, which it is told by, and its parent;
    so none of the kernel's, which are most."""
    table = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            raw = read_at_once(f"/proc/{entry}/cmdline")
            if not raw:
                continue
            stat = read_at_once(f"/proc/{entry}/stat")
            parent = int(stat.rpartition(b")")[2].split()[1])
            # Behind those of tests/warm.py stand thousands of zeros.
            words = raw.rstrip(b"\0").decode(errors="replace").split("\0")
            # The program by its bare name, however it was called.
            table[int(entry)] = (parent, [*map(os.path.basename, words[:1]), *words])
    return table


def read_at_once(path: str) -> bytes:
    """A file of /proc, of which there are hundreds in each look: a buffer each would be most of the
    work. Of a long command line what comes first."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)
