"""Malicious VMs of every kind at once, and two correct ones beside them that notice nothing.

The test plays the machine of local mode for the real dom0 service: the correct VMs have real
agents, and in the malicious ones a raw vchan server takes the agent's place.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import attrs
import pytest
import trio
from pedos_host.plain_unix import short_path
from pedos_host.unix import listen_unix
from pedos_vchan import shm
from pedos_vchan.peer import Peer
from pedos_vchan.stream import VchanStream

from .conftest import needs_fuse
from .hostile import BREACHES, polite_with_ugly_names
from .system import BIN, PATIENCE_S, wait_ready

pytestmark = needs_fuse

GOOD = ("sys-usb", "work")
UGLY = "ugly"
DOMIDS = {name: number for number, name in enumerate((*GOOD, UGLY, *BREACHES), start=1)}
POLICY = "device.*.* * @adminvm * allow\n"


@attrs.frozen
class Outcome:
    """What was seen while all of them ran."""

    rounds: int
    listing: str
    disconnected: dict[str, str]
    service_alive: bool
    log: str


class Bench:
    """A folder, the real programs in it, and the machine that the test plays."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: list[subprocess.Popen[bytes]] = []
        for path in ("vchan", "state", "policy.d", "vms.d", "vms"):
            (folder / path).mkdir()
        (folder / "policy.d" / "50-test.policy").write_text(POLICY)

    def start(self, *argv: str | Path) -> subprocess.Popen[bytes]:
        """Starts a program and returns when it says that it is ready."""
        path = self.folder / f"ready{len(self._children)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            with short_path(path) as short:
                ready.bind(short)
            with (self.folder / "log").open("ab") as log:
                child = subprocess.Popen(
                    [BIN / argv[0], *argv[1:]],
                    env={**os.environ, "NOTIFY_SOCKET": str(path)},
                    stdout=log,
                    stderr=log,
                )
            self._children.append(child)
            wait_ready(ready, child)
        return child

    def start_agent(self, name: str) -> None:
        vm = self.folder / "vms" / name
        (vm / "devices" / "block").mkdir(parents=True)
        (vm / "dev").mkdir()
        self.start(
            *("pedos-agent", "--driver", "local", "--vm", name, "--domid", str(DOMIDS[name])),
            *("--vchan", self.folder / "vchan", "--socket", vm / "sock"),
            *("--devices", vm / "devices", "--dev", vm / "dev"),
        )

    def start_service(self) -> subprocess.Popen[bytes]:
        return self.start(
            *("pedos-dom0", "--driver", "local", "--machine", self.folder / "machine.sock"),
            *("--vchan", self.folder / "vchan", "--socket", self.folder / "dom0.sock"),
            *("--dom0-agent", self.folder / "none.sock", "--state", self.folder / "state"),
            *("--policy", self.folder / "policy.d"),
            *("--vms-dir", self.folder / "vms.d"),
        )

    def end(self) -> None:
        for child in self._children:
            child.terminate()
        for child in self._children:
            child.wait(PATIENCE_S)

    async def qvm(self, *argv: str) -> subprocess.CompletedProcess[str]:
        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [BIN / "qvm-device", "block", *argv],
                env={**os.environ, "PEDOS_SOCKET": str(self.folder / "dom0.sock")},
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )

        return await trio.to_thread.run_sync(run)

    def disconnected(self) -> dict[str, str]:
        """VM -> the first reason for which the audit log says that it was disconnected."""
        audit = self.folder / "state" / "audit.jsonl"
        found: dict[str, str] = {}
        for line in audit.read_text().splitlines():
            entry = json.loads(line)
            if entry["event"] == "disconnected":
                found.setdefault(entry["vm"], entry["reason"])
        return found

    # The machine

    async def serve_machine(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        domains = [
            {"name": name, "domid": domid, "state": "Running", "autostart": True}
            for name, domid in DOMIDS.items()
        ]

        async def list_domains(_peer: Peer, _params: dict[str, object]) -> dict[str, object]:
            return {"domains": domains}

        async def serve(stream: trio.SocketStream) -> None:
            await Peer(stream, program="machine", handlers={"domain.list": list_domains}).run()

        listener = await listen_unix(self.folder / "machine.sock", 0o600)
        await trio.serve_listeners(serve, [listener], task_status=task_status)

    async def serve_vm(self, name: str, behave: Callable[[VchanStream], Awaitable[None]]) -> None:
        """Waits in the agent's place for dom0's service, and then behaves."""
        while True:
            listener = await shm.listen(self.folder / "vchan", DOMIDS[name], 0, shm.CONTROL_PORT)
            try:
                stream = VchanStream(await listener.accept())
            finally:
                listener.close()
            try:
                await behave(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # dom0's service has ended it
            finally:
                await trio.aclose_forcefully(stream)


async def run(bench: Bench) -> Outcome:
    rounds = 0
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.serve_machine)
        for name in GOOD:
            await trio.to_thread.run_sync(bench.start_agent, name)
        disk = bench.folder / "vms" / "sys-usb" / "devices" / "block" / ".disk.img"
        disk.write_bytes(os.urandom(1 << 16))
        disk.rename(disk.with_name("disk.img"))
        shown = trio.Event()

        async def be_ugly(stream: VchanStream) -> None:
            async with polite_with_ugly_names(stream):
                shown.set()
                await trio.sleep_forever()

        nursery.start_soon(bench.serve_vm, UGLY, be_ugly)
        for name, behave in BREACHES.items():
            nursery.start_soon(bench.serve_vm, name, behave)
        service = await trio.to_thread.run_sync(bench.start_service)
        with trio.move_on_after(PATIENCE_S):
            await shown.wait()
            # The good VMs go on with their work for as long as any hostile one is still connected.
            while rounds < 2 or BREACHES.keys() - bench.disconnected().keys():
                for action in ("attach", "detach"):
                    done = await bench.qvm(action, "work", "sys-usb:disk.img")
                    assert done.returncode == 0, done.stderr
                rounds += 1
        listing = (await bench.qvm("list")).stdout
        log = (bench.folder / "log").read_text()
        outcome = Outcome(rounds, listing, bench.disconnected(), service.poll() is None, log)
        nursery.cancel_scope.cancel()
    return outcome


@pytest.fixture(scope="module")
def outcome() -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory(prefix="pedos-hostile-") as folder:
        bench = Bench(Path(folder))
        try:
            yield trio.run(run, bench, strict_exception_groups=True)
        finally:
            bench.end()


@pytest.mark.parametrize("vm", BREACHES)
def test_a_vm_that_breaks_the_protocol_is_disconnected_and_audited(
    outcome: Outcome, vm: str
) -> None:
    assert outcome.disconnected.get(vm), outcome.log


def test_nobody_else_notices(outcome: Outcome) -> None:
    assert outcome.rounds >= 2
    assert outcome.service_alive
    assert not outcome.disconnected.keys() & {*GOOD, UGLY}


def test_ugly_descriptions_are_bounded_and_shown_harmless(outcome: Outcome) -> None:
    lines = [line for line in outcome.listing.splitlines() if line.startswith(f"{UGLY}:")]
    assert len(lines) == 5
    assert re.fullmatch(r"[ -~\n]*", outcome.listing)
    assert not re.search(r"[<>]", outcome.listing)
    assert max(map(len, lines)) < 200
