"""Stand-ins for the scale benchmark: a machine with many domains, and agents for all of them.

The service, the channels and the protocol are real. An agent here has one disk and does at once
what it is told; hundreds of them share a process. `_run_agents` takes commands over standard input,
a word and a number per line, and prints a line when one is done.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import trio
from pedos_host.unix import listen_unix
from pedos_protocol.errors import CallError, RemoteProtocolError
from pedos_vchan import shm
from pedos_vchan.peer import Peer
from pedos_vchan.stream import VchanStream

Params = dict[str, Any]
DEVICE = "disk"
FRONTEND = "xvdi"


def name_of(domid: int) -> str:
    return "dom0" if domid == 0 else f"vm{domid:04}"


class _Opened:
    """A task status that only remembers that both sides said hello."""

    def __init__(self) -> None:
        self.event = trio.Event()

    def started(self, value: None = None) -> None:
        self.event.set()


class Agent:
    """One simulated agent."""

    def __init__(self, domid: int) -> None:
        self.domid = domid
        self.connections = 0
        self.reported = trio.Event()
        self._peer: Peer | None = None
        self._revision = 0

    async def serve_channels(self, folder: Path) -> None:
        """Listens for dom0 and serves it, again and again."""
        async with trio.open_nursery() as nursery:
            while True:
                listener = await shm.listen(folder, self.domid, 0, shm.CONTROL_PORT)
                channel = await listener.accept()
                nursery.start_soon(self.serve, VchanStream(channel))

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serves one connection until it ends."""

        async def nothing(_peer: Peer, _params: Params) -> Params:
            return {}

        async def import_start(_peer: Peer, _params: Params) -> Params:
            return {"frontend": FRONTEND}

        opened = _Opened()
        peer = Peer(
            stream,
            program="bench-agent",
            handlers={
                "export.start": nothing,
                "export.stop": nothing,
                "import.start": import_start,
                "import.stop": nothing,
            },
        )
        self._peer = peer
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report, peer, opened.event)
            with contextlib.suppress(trio.BrokenResourceError, RemoteProtocolError):
                await peer.run(task_status=cast("trio.TaskStatus[None]", opened))
            nursery.cancel_scope.cancel()

    async def _report(self, peer: Peer, opened: trio.Event) -> None:
        await opened.wait()
        device = {
            "device_class": "block",
            "device": DEVICE,
            "identity": "",
            "description": f"the disk of {name_of(self.domid)}",
            "size": 1 << 30,
            "parent": None,
            "read_only": False,
            "busy": None,
        }
        self._revision += 1
        report = {"revision": self._revision, "devices": [device], "exports": [], "imports": []}
        with contextlib.suppress(CallError):
            await peer.call("agent.report", report, timeout=60)
            self.connections += 1
            self.reported.set()

    async def reconnect(self) -> None:
        """Drops the connection and returns when the service has accepted the next first report."""
        assert self._peer is not None
        self.reported = trio.Event()
        self._peer.close()
        await self.reported.wait()


async def _run_agents(folder: Path, first: int, last: int) -> None:
    agents = [Agent(domid) for domid in range(first, last + 1)]
    async with trio.open_nursery() as nursery:
        for agent in agents:
            nursery.start_soon(agent.serve_channels, folder)
        async for verb, count in _commands():
            if verb == "connected":
                for agent in agents:
                    await agent.reported.wait()
            elif verb == "reconnect":
                await _reconnect(agents, count)
            print("done", flush=True)
        nursery.cancel_scope.cancel()


async def _commands() -> Any:
    async with trio.lowlevel.FdStream(0) as stream:
        rest = b""
        async for data in stream:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                verb, count = line.decode().split()
                yield verb, int(count)


async def _reconnect(agents: list[Agent], count: int) -> None:
    """So many reconnections in all; each agent does its own one after the other."""
    left = count

    async def turns(agent: Agent) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await agent.reconnect()

    async with trio.open_nursery() as nursery:
        for agent in agents:
            nursery.start_soon(turns, agent)


async def _run_machine(folder: Path, domains: int) -> None:
    """The part of `pedos-local` that the service uses, and dom0's own agent."""

    async def domain_list(_peer: Peer, _params: Params) -> Params:
        return {
            "domains": [
                {"name": name_of(domid), "domid": domid, "state": "Running", "autostart": False}
                for domid in range(1, domains + 1)
            ]
        }

    async def machine(stream: trio.SocketStream) -> None:
        await Peer(stream, program="bench-machine", handlers={"domain.list": domain_list}).run()

    own = Agent(0)
    async with trio.open_nursery() as nursery:
        for path, handler in (("machine.sock", machine), ("dom0-agent.sock", own.serve)):
            listener = await listen_unix(folder / path, 0o600)
            nursery.start_soon(trio.serve_listeners, handler, [listener])
        print("done", flush=True)
        async for _ in _commands():
            pass
        nursery.cancel_scope.cancel()


def main() -> None:
    """usage: python -m benchmarks.simulated machine FOLDER DOMAINS | agents FOLDER FIRST LAST"""
    kind, folder, *numbers = sys.argv[1:]
    run: Callable[..., Any] = {"machine": _run_machine, "agents": _run_agents}[kind]
    trio.run(run, Path(folder), *map(int, numbers), strict_exception_groups=True)


if __name__ == "__main__":
    main()
