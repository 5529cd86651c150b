"""Scale: a thousand agents on one service: memory, time to list, attach rate, reconnections.

The service is the program pedos-dom0; simulated.py plays the machine and the agents. Everything is
measured with ten agents and with a thousand, to show what grows.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
from pedos_host.unix import connect_unix
from pedos_protocol.messages import SCHEMA, to_wire
from pedos_vchan.peer import open_peer

from .effort import EFFORT
from .processes import ROOT, guarded, status_kib
from .row import Row, median_of_rounds
from .simulated import DEVICE, name_of

FEW = 10
AGENT_PROCESSES = 4
# Descriptors of the service for one control channel: two events, the epoll over them and the
# connection that reports the agent's death; and one more while the channel is being made.
FDS_PER_AGENT = 5
FDS_BESIDE = 200
ATTACHES = 10  # of different devices, in one measurement
UP_TIMEOUT = 120.0
# Own memory moves in steps of up to a megabyte, as the allocator takes and returns its arenas. One
# object kept for each of 5,000 reconnections (with a coroutine or a frame in it) would be more.
DRIFT_KIB = 1024
POLICY = "device.*.*  *  @adminvm  *  allow\n"


def agents_possible() -> int:
    """Raises this process's limit of descriptors; returns how many agents, at most EFFORT.agents,
    fit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY:
        return EFFORT.agents
    return min(EFFORT.agents, (hard - FDS_BESIDE) // FDS_PER_AGENT)


@dataclass
class Helper:
    """A process of simulated.py."""

    process: subprocess.Popen[str]

    def tell(self, verb: str, count: int = 0) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{verb} {count}\n")
        self.process.stdin.flush()

    def wait_done(self) -> None:
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "done\n":
            raise RuntimeError("a simulated process ended early")


@dataclass
class System:
    """A service with its agents."""

    folder: Path
    service: int
    agents: int
    helpers: list[Helper]

    def all_agents(self, verb: str, count: int = 0) -> None:
        """Tells all processes of agents, each its share, and waits for them."""
        for helper in self.helpers:
            helper.tell(verb, -(-count // len(self.helpers)))
        for helper in self.helpers:
            helper.wait_done()

    def own_kib(self) -> int:
        return status_kib(self.service, "RssAnon")

    def rings_kib(self) -> int:
        return status_kib(self.service, "RssShmem")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.service}/fd"))


@contextlib.contextmanager
def _process(argv: list[str | Path], **options: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(guarded(argv), cwd=ROOT, text=True, **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def _helper(*words: str | Path | int) -> Iterator[Helper]:
    argv = [sys.executable, "-m", "benchmarks.simulated", *map(str, words)]
    with _process(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Helper(process)


SERVICE = (str(Path(sys.executable).with_name("pedos-dom0")),)


@contextlib.contextmanager
def system(agents: int, program: Sequence[str] = SERVICE) -> Iterator[tuple[System, float]]:
    """A service, `program`, with so many agents connected, and the seconds from its start until
    then."""
    with (
        tempfile.TemporaryDirectory(prefix="pedos-bench-") as name,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name)
        for part in ("vchan", "policy", "vms.d", "state"):
            (folder / part).mkdir()
        (folder / "policy" / "bench.policy").write_text(POLICY)
        machine = stack.enter_context(_helper("machine", folder, agents))
        machine.wait_done()
        count = min(AGENT_PROCESSES, agents)
        edges = [agents * i // count for i in range(count + 1)]
        helpers = [
            stack.enter_context(_helper("agents", folder / "vchan", first + 1, last))
            for first, last in itertools.pairwise(edges)
        ]
        ready = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        ready.bind(str(folder / "ready"))
        ready.settimeout(UP_TIMEOUT)
        start = time.perf_counter()
        service = stack.enter_context(
            _process(
                [
                    *program,
                    *("--driver", "local", "--machine", folder / "machine.sock"),
                    *("--vchan", folder / "vchan", "--socket", folder / "dom0.sock"),
                    *("--dom0-agent", folder / "dom0-agent.sock", "--state", folder / "state"),
                    *("--policy", folder / "policy"),
                    *("--vms-dir", folder / "vms.d"),
                ],
                env={**os.environ, "NOTIFY_SOCKET": str(folder / "ready")},
                stderr=subprocess.DEVNULL,
            )
        )
        ready.recv(64)
        running = System(folder, service.pid, agents, helpers)
        running.all_agents("connected")
        yield running, time.perf_counter() - start


def _filled(method: str, **params: object) -> dict[str, Any]:
    return to_wire(SCHEMA[method].params(**params))


def list_seconds(running: System) -> float:
    """How long dom0's user waits for the list of all devices, with every page of it."""

    async def client() -> float:
        async with open_peer(
            await connect_unix(running.folder / "dom0.sock"), program="bench", handlers={}
        ) as peer:
            start, after, found = trio.current_time(), None, 0
            while True:
                params = _filled("device.list", device_class="block", after=after)
                answer = await peer.call("device.list", params, timeout=60)
                found += len(answer["devices"])
                if not answer["more"]:
                    break
                last = answer["devices"][-1]
                after = f"{last['backend']}:{last['device']}"
            if found != running.agents + 1:  # dom0 has one as well
                raise RuntimeError(f"{found} devices were listed of {running.agents + 1}")
            return trio.current_time() - start

    return trio.run(client)


def attach_seconds(running: System) -> float:
    """Seconds for one attach with everything but the data, the mean of ATTACHES."""

    async def client() -> float:
        pairs = [
            (name_of(1 + i * (running.agents // ATTACHES)), name_of((2 + i) % running.agents + 1))
            for i in range(ATTACHES)
        ]
        pairs = [(a, b) for a, b in pairs if a != b]
        async with open_peer(
            await connect_unix(running.folder / "dom0.sock"), program="bench", handlers={}
        ) as peer:
            start = trio.current_time()
            for backend, vm in pairs:
                named = {"device_class": "block", "vm": vm, "backend": backend, "device": DEVICE}
                await peer.call("device.attach", _filled("device.attach", **named), timeout=60)
            seconds = (trio.current_time() - start) / len(pairs)
            for backend, vm in pairs:
                named = {"device_class": "block", "vm": vm, "backend": backend, "device": DEVICE}
                await peer.call("device.detach", _filled("device.detach", **named), timeout=60)
            return seconds

    return trio.run(client)


def _figures(running: System, up: float) -> dict[str, float]:
    return {
        "up_s": up,
        "own_kib": running.own_kib(),
        "rings_kib": running.rings_kib(),
        "descriptors": running.descriptors(),
        "list_ms": median_of_rounds(lambda: list_seconds(running)) * 1e3,
        "attaches_per_s": 1 / median_of_rounds(lambda: attach_seconds(running)),
    }


def _drift(running: System) -> Row:
    """Own memory over the second half of the reconnections: during the first half, allocations that
    are made once per agent appear, since each agent has to reconnect several times."""
    half = EFFORT.reconnects // 2
    start = time.perf_counter()
    running.all_agents("reconnect", half)
    kib, descriptors = running.own_kib(), running.descriptors()
    running.all_agents("reconnect", half)
    detail = {
        "per_s": 2 * half / (time.perf_counter() - start),
        "descriptors_more": running.descriptors() - descriptors,
    }
    if detail["descriptors_more"] > 0:
        raise RuntimeError(f"reconnecting agents leave descriptors behind: {detail}")
    what = f"the service grows in the second half of {2 * half:,} reconnections"
    return Row("M1", what, running.own_kib() - kib, DRIFT_KIB, "KiB", detail)


def measure() -> list[Row]:
    many = agents_possible()
    with system(FEW) as (running, up):
        small = _figures(running, up)
    with system(many) as (running, up):
        large = _figures(running, up)
        drift = _drift(running)
    detail = {f"{name}_{FEW}": value for name, value in small.items()}
    detail |= {f"{name}_{many}": value for name, value in large.items()}

    def each(name: str) -> float:
        return (large[name] - small[name]) / (many - FEW)

    def row(what: str, figure: float, unit: str) -> Row:
        return Row("scale", what, figure, None, unit, detail)

    with_many = f"with {many:,} agents"
    return [
        row("the service's own memory for an agent", each("own_kib"), "KiB"),
        row("the rings of an agent, in dom0", each("rings_kib"), "KiB"),
        row("descriptors of an agent, in dom0", each("descriptors"), ""),
        row(f"agents connected a second, {many:,} at the start", many / large["up_s"], "/s"),
        row(f"all devices listed, with {FEW} agents", small["list_ms"], "ms"),
        row(f"all devices listed, {with_many}", large["list_ms"], "ms"),
        row(f"attaches a second, with {FEW} agents", small["attaches_per_s"], "/s"),
        row(f"attaches a second, {with_many}", large["attaches_per_s"], "/s"),
        drift,
    ]
