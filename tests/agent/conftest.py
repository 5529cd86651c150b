"""Agents in this process, and a dom0 that does only what the test tells it to."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from pedos_agent import agent
from pedos_agent.device_classes.block import mounts
from pedos_agent.settings import Settings
from pedos_protocol.errors import CallError
from pedos_protocol.messages import parse_params
from pedos_vchan import shm
from pedos_vchan.peer import Peer
from pedos_vchan.stream import VchanStream

from tests.patience import PATIENCE

from .calling_world import World

SECONDS = PATIENCE
SIZE = 1 << 20
needs_fuse = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse")


class FakeDom0:
    """dom0's end of one agent's control channel."""

    def __init__(self, settings: Settings, nursery: trio.Nursery) -> None:
        self.settings = settings
        self._nursery = nursery
        self.report: Any = None  # all pages as one
        self.pages = 0
        self._pages: list[Any] = []
        self.served: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, dict[str, Any] | CallError] = {}
        self._reported = trio.Event()
        self._tell_ended, self._ended = trio.open_memory_channel[Any](100)
        self._tell_heard, self._heard = trio.open_memory_channel[Any](100)

    async def connect(self) -> None:
        """Connects, and serves until the connection ends; returns after the first report."""
        self.report = None
        stream = await self._connect()
        handlers = {
            "agent.report": self._take_report,
            "attachment.ended": self._take_ended,
            "attachment.listening": self._take_heard,
            "device.list": partial(self._serve, "device.list"),
            "device.attach": partial(self._serve, "device.attach"),
            "device.detach": partial(self._serve, "device.detach"),
        }
        self.peer = Peer(stream, program="fake dom0", handlers=handlers, name="agent")
        await self._nursery.start(self._run_peer)
        await self.until(lambda report: True)

    async def _run_peer(self, *, task_status: trio.TaskStatus[None]) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # the test killed the agent
            await self.peer.run(task_status=task_status)

    async def _connect(self) -> VchanStream:
        with trio.fail_after(SECONDS):
            while True:
                try:
                    return VchanStream(
                        await shm.connect(
                            self.settings.vchan, 0, self.settings.domid, shm.CONTROL_PORT
                        )
                    )
                except (FileNotFoundError, ConnectionRefusedError):
                    await trio.sleep(0.005)  # dom0's own pauses between attempts, shorter

    async def _take_report(self, _peer: Peer, params: dict[str, Any]) -> None:
        page = parse_params("agent.report", params)
        self._pages = [page] if page.page == 0 else [*self._pages, page]
        assert [each.page for each in self._pages] == list(range(len(self._pages)))
        assert {each.revision for each in self._pages} == {page.revision}
        if not page.last:
            return
        self.pages = len(self._pages)
        devices = tuple(device for each in self._pages for device in each.devices)
        first = self._pages[0]
        self.report = attrs.evolve(
            page, devices=devices, exports=first.exports, imports=first.imports
        )
        self._reported.set()
        self._reported = trio.Event()

    async def _take_ended(self, _peer: Peer, params: dict[str, Any]) -> None:
        self._tell_ended.send_nowait(parse_params("attachment.ended", params))

    async def _take_heard(self, _peer: Peer, params: dict[str, Any]) -> None:
        self._tell_heard.send_nowait(parse_params("attachment.listening", params))

    async def _serve(self, method: str, _peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
        self.served.append((method, params))
        answer = self.answers[method]
        if isinstance(answer, CallError):
            raise answer
        return answer

    async def until(self, wanted: Callable[[Any], bool]) -> Any:
        """Waits for a report for which `wanted` is true."""
        with trio.fail_after(SECONDS):
            while self.report is None or not wanted(self.report):
                await self._reported.wait()
        return self.report

    async def ended(self) -> Any:
        """Waits for the next `attachment.ended` notice."""
        with trio.fail_after(SECONDS):
            return await self._ended.receive()

    async def heard(self) -> tuple[str, bool]:
        """Waits for the next `attachment.listening` notice."""
        with trio.fail_after(SECONDS):
            said = await self._heard.receive()
        return said.attachment, said.listening

    def all_heard(self) -> list[Any]:
        """The notices of who listens that have come since."""
        return _all_in(self._heard)

    def all_ended(self) -> list[Any]:
        """The notices of what has ended that have come since."""
        return _all_in(self._ended)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Calls the agent."""
        return await self.peer.call(method, params, timeout=SECONDS)

    async def lend(self, attachment: str, device: str, peer: int, **more: Any) -> dict[str, Any]:
        """export.start on this source."""
        params = {"device_class": "block", "port": 7, "read_only": False, **more}
        return await self.call(
            "export.start", attachment=attachment, device=device, peer=peer, **params
        )

    async def borrow(self, attachment: str, device: str, peer: int, **more: Any) -> dict[str, Any]:
        """import.start on this target."""
        params = {"device_class": "block", "port": 7, "read_only": False, "frontend": None, **more}
        return await self.call(
            "import.start",
            attachment=attachment,
            backend="sys-usb",
            device=device,
            peer=peer,
            **params,
        )


def _all_in(channel: trio.MemoryReceiveChannel[Any]) -> list[Any]:
    found = []
    with contextlib.suppress(trio.WouldBlock):
        while True:
            found.append(channel.receive_nowait())
    return found


ATTACHMENT = "00112233aabbccdd"


class Pair:
    """A source (domain 2) and a target (domain 3), each with dom0 connected."""

    def __init__(self, source: FakeDom0, target: FakeDom0) -> None:
        self.source = source
        self.target = target

    @property
    def disk(self) -> Path:
        return self.source.settings.devices / "block" / "stick.img"

    async def attach(self, **more: Any) -> Path:
        """Attaches stick.img; returns the block file in the target."""
        await self.source.lend(ATTACHMENT, "stick.img", 3, **more)
        answer = await self.target.borrow(ATTACHMENT, "stick.img", 2, **more)
        return self.target.settings.dev / answer["frontend"]

    async def detach(self) -> None:
        await self.target.call("import.stop", attachment=ATTACHMENT)
        await self.source.call("export.stop", attachment=ATTACHMENT)


def make_settings(root: Path, vm: str, domid: int) -> Settings:
    """A VM's folders under `root`."""
    settings = Settings(
        vm=vm,
        domid=domid,
        vchan=root / "vchan",
        socket=root / f"{vm}.sock",
        devices=root / vm / "devices",
        dev=root / vm / "dev",
    )
    settings.vchan.mkdir(exist_ok=True)
    settings.dev.mkdir(parents=True)
    for device_class in ("block", "usb", "pci", "mic"):
        (settings.devices / device_class).mkdir(parents=True)
    return settings


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """The calls of one VM, which runs."""
    async with trio.open_nursery() as nursery:
        made = World(make_settings(tmp_path, "work", 2), nursery)
        await nursery.start(made.theirs.run)
        await nursery.start(made.calls.run)
        yield made
        nursery.cancel_scope.cancel()
    made.close()


@pytest.fixture(autouse=True)
def no_mount_is_left(tmp_path: Path) -> Iterator[None]:
    """Unmounts what a failed test left mounted; otherwise its folder could not be removed."""
    yield
    for dev in tmp_path.rglob("dev"):
        for name in mounts.mounted_frontends(dev):
            subprocess.run(["fusermount3", "-u", "-z", str(dev / name)], check=True)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path, "sys-usb", 2)


@pytest.fixture
async def start(nursery: trio.Nursery) -> Callable[[Settings], Awaitable[FakeDom0]]:
    """Starts an agent in this process, and a dom0 that is connected to it."""

    async def start_agent(settings: Settings) -> FakeDom0:
        await nursery.start(agent.run, settings)
        dom0 = FakeDom0(settings, nursery)
        await dom0.connect()
        return dom0

    return start_agent


@pytest.fixture
async def pair(
    tmp_path: Path, settings: Settings, start: Callable[[Settings], Awaitable[FakeDom0]]
) -> AsyncIterator[Pair]:
    before = children().keys()
    (settings.devices / "block" / "stick.img").write_bytes(os.urandom(SIZE))
    target = make_settings(tmp_path, "work", 3)
    result = Pair(await start(settings), await start(target))
    yield result
    with trio.fail_after(SECONDS):
        await result.detach()
    assert os.listdir(target.dev) == []
    assert children().keys() - before == set(), "what another test left is its own failure"


def command_line(pid: str) -> str | None:
    """The name of a child of this process; None for any other process. OSError if it has gone."""
    end = time.monotonic() + SECONDS
    while True:
        stat = Path("/proc", pid, "stat").read_text()
        state, parent, *_ = stat.rpartition(")")[2].split()
        if int(parent) != os.getpid():
            return None
        line = Path("/proc", pid, "cmdline").read_text()
        # A process that is just becoming another program has no command line for a moment.
        if line or state in "ZX" or time.monotonic() > end:
            return line.replace("\0", " ")


def children() -> dict[int, str]:
    """Pids and command lines of this process's children, as the kernel has them."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = command_line(name)
            if line is not None:
                found[int(name)] = line
        except OSError:
            continue  # ended during the look
    return found


def pid_of(program: str) -> int:
    """The pid of this process's one child that runs `program`, or is about to."""
    (pid,) = [pid for pid, line in children().items() if f"/{program} " in line]
    return pid
