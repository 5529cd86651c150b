"""The agent as a program: signals, a killed predecessor, garbage from its clients."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from pedos_agent import agent
from pedos_agent.__main__ import main
from pedos_agent.connections.local_socket import REQUEST_MAX, LocalSocket
from pedos_agent.device_classes.block import mounts
from pedos_agent.settings import Settings
from pedos_cli import client
from pedos_host.children import Child, start_child
from pedos_host.folder_lock import FolderHeld
from pedos_host.unix import UnixListener, connect_unix
from pedos_protocol.errors import CallError
from pedos_vchan import shm
from pedos_vchan.peer import open_peer
from pedos_vchan.quota import BYTES_PER_FRAME, FRAMES_BURST, FRAMES_PER_SECOND
from pedos_vchan.stream import VchanStream
from trio.abc import Clock

from tests.patience import PATIENCE

from .conftest import ATTACHMENT, SECONDS, SIZE, FakeDom0, make_settings, needs_fuse

Params = dict[str, Any]
Start = Callable[[Settings], Awaitable[FakeDom0]]


@asynccontextmanager
async def program(
    settings: Settings, start: Callable[..., Child] = start_child
) -> AsyncIterator[Child]:
    """Runs the agent as a process of its own; it is ready inside the block."""
    argv = [sys.executable, "-P", "-m", "pedos_agent", "--driver", "local", "--vm", settings.vm]
    argv += ["--domid", str(settings.domid), "--vchan", str(settings.vchan)]
    argv += ["--socket", str(settings.socket), "--devices", str(settings.devices)]
    argv += ["--dev", str(settings.dev)]
    if settings.control_socket is not None:
        argv += ["--control-socket", str(settings.control_socket)]
    if settings.sound is not None:
        argv += ["--sound-socket", str(settings.sound)]
    address = f"\0pedos-test-{os.getpid()}-{settings.vm}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notify:
        notify.bind(address)
        child = start(argv, env={**os.environ, "NOTIFY_SOCKET": "@" + address[1:]})
        try:
            with trio.fail_after(SECONDS):
                await trio.lowlevel.wait_readable(notify)
            assert notify.recv(64) == b"READY=1"
            yield child
        finally:
            child.kill()
            with trio.CancelScope(shield=True):
                await child.wait()


async def source_and_target(
    settings: Settings, start: Start, target: FakeDom0
) -> tuple[FakeDom0, Path]:
    """An agent in this process lends stick.img to the one of `target`."""
    (settings.devices / "block" / "stick.img").write_bytes(b"\1" * SIZE)
    source = await start(settings)
    await source.lend(ATTACHMENT, "stick.img", 3)
    answer = await target.borrow(ATTACHMENT, "stick.img", 2)
    return source, target.settings.dev / answer["frontend"]


@needs_fuse
async def test_sigterm_takes_everything_down_and_exits_with_0(
    settings: Settings, tmp_path: Path, start: Start, nursery: trio.Nursery
) -> None:
    target = FakeDom0(make_settings(tmp_path, "work", 3), nursery)
    async with program(target.settings) as process:
        await target.connect()
        source, file = await source_and_target(settings, start, target)
        assert file.stat().st_size == SIZE
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(SECONDS):
            assert await process.wait() == 0
        assert os.listdir(target.settings.dev) == []
        assert mounts.mounted_frontends(target.settings.dev) == []
        assert (await source.ended()).reason == "the data channel ended: peer closed the channel"


@needs_fuse
async def test_what_a_killed_agent_left_is_cleaned_by_the_next_one(
    settings: Settings, tmp_path: Path, start: Start
) -> None:
    # A line break and a space in the path: mountinfo writes them as octal escapes.
    (tmp_path / "odd\n folder").mkdir()
    other = make_settings(tmp_path / "odd\n folder", "work", 3)
    target_settings = Settings(
        vm="work",
        domid=3,
        vchan=settings.vchan,
        socket=tmp_path / "work.sock",
        devices=other.devices,
        dev=other.dev,
    )
    (other.dev / "notes.txt").write_text("the user's own")
    (other.dev / "xvdk").write_text("")  # empty, but not made as a placeholder
    async with trio.open_nursery() as nursery:
        target = FakeDom0(target_settings, nursery)
        async with program(target_settings) as process:
            await target.connect()
            source, _ = await source_and_target(settings, start, target)
            process.kill()
            await process.wait()
            await source.ended()
            assert mounts.mounted_frontends(other.dev) == ["xvdi"]
            nursery.cancel_scope.cancel()
    async with program(target_settings):
        assert sorted(os.listdir(other.dev)) == ["notes.txt", "xvdk"]


@needs_fuse
async def test_helpers_die_with_a_killed_agent(
    settings: Settings, tmp_path: Path, start: Start
) -> None:
    target_settings = make_settings(tmp_path, "work", 3)
    async with trio.open_nursery() as nursery:
        target = FakeDom0(target_settings, nursery)
        async with program(target_settings) as process:
            await target.connect()
            await source_and_target(settings, start, target)
            (fuse,) = [
                int(name)
                for name in filter(str.isdigit, os.listdir("/proc"))
                if is_child_of(name, process.pid)
            ]
            pidfd = os.pidfd_open(fuse)
            process.kill()
            with trio.fail_after(SECONDS):
                await trio.lowlevel.wait_readable(pidfd)
            os.close(pidfd)
            nursery.cancel_scope.cancel()
    await mounts.clean_leftovers(target_settings.dev)
    assert os.listdir(target_settings.dev) == []


def is_child_of(name: str, parent: int) -> bool:
    try:
        return int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1]) == parent
    except OSError:
        return False


async def test_garbage_on_the_control_channel_ends_that_connection_alone(
    settings: Settings, start: Start
) -> None:
    dom0 = await start(settings)
    dom0.peer.close()
    channel = None
    with trio.fail_after(SECONDS):
        while channel is None:
            try:
                channel = await shm.connect(settings.vchan, 0, settings.domid, shm.CONTROL_PORT)
            except (FileNotFoundError, ConnectionRefusedError):
                await trio.sleep(0.005)
        async with VchanStream(channel) as stream:
            await stream.send_all(b"\xff" * 5000)
            while await stream.receive_some():
                pass
    await dom0.connect()


async def test_an_agent_that_cannot_listen_for_a_while_goes_on_and_listens_again(
    settings: Settings, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    dom0 = await start(settings)
    # No folder, as no room or no descriptor, keeps it from listening for the next connection.
    away = settings.vchan.with_name("away")
    settings.vchan.rename(away)
    dom0.peer.close()
    with trio.fail_after(SECONDS):
        while "trying again" not in caplog.text:
            await trio.testing.wait_all_tasks_blocked()
    away.rename(settings.vchan)
    await dom0.connect()


async def test_a_second_agent_of_one_vm_takes_nothing_from_the_first(
    settings: Settings, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nursery.start(agent.run, settings)

    async def cleaned(_dev: Path) -> None:
        raise AssertionError("what the first agent has mounted would be gone")

    monkeypatch.setattr(mounts, "clean_leftovers", cleaned)
    for path in (settings.socket, *settings.vchan.iterdir()):
        path.unlink()
        with pytest.raises(FolderHeld, match=f"process {os.getpid()} has this folder"):
            await agent.run(settings)


@pytest.mark.parametrize("xen", [True, False])
async def test_who_may_only_read_its_vms_folders_cannot_keep_an_agent_from_starting(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, xen: bool
) -> None:
    settings = attrs.evolve(settings, xen=xen)
    readable = settings.socket.parent if xen else settings.dev.parent
    settings.dev.chmod(0o755)
    readable.chmod(0o755)
    held = []

    async def started(*_: object) -> None:
        own = settings.socket.parent / "agent" if xen else settings.dev
        held.append(stat.S_IMODE(own.stat().st_mode))

    monkeypatch.setattr(agent, "_run", started)
    stranger = os.open(readable, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(stranger, fcntl.LOCK_EX)
        await agent.run(settings)
    finally:
        os.close(stranger)
    assert held == [0o700]


async def test_dom0s_own_agent_survives_an_accept_that_fails(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = attrs.evolve(
        make_settings(tmp_path, "dom0", 0), control_socket=tmp_path / "control.sock"
    )
    accept = UnixListener.accept
    failures = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))]

    async def accept_later(listener: UnixListener) -> trio.SocketStream:
        if failures:
            raise failures.pop()
        return await accept(listener)

    monkeypatch.setattr(UnixListener, "accept", accept_later)
    await nursery.start(agent.run, settings)
    await ControlSocketDom0(settings, nursery).connect()
    assert not failures
    # A user may pass through its folder in dom0, for the sake of one other socket.
    assert os.stat(settings.socket).st_mode & 0o777 == 0o600


async def test_an_agent_whose_service_manager_is_gone_serves_all_the_same(
    settings: Settings, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(settings.dev / "gone"))
    nursery.start_soon(agent.run_until_signal, settings)
    await FakeDom0(settings, nursery).connect()
    while "NOTIFY_SOCKET" in os.environ:
        await trio.testing.wait_all_tasks_blocked()
    await trio.testing.wait_all_tasks_blocked()
    assert not nursery.cancel_scope.cancel_called


class ControlSocketDom0(FakeDom0):
    """dom0's end of its own agent's control socket."""

    async def _connect(self) -> trio.abc.Stream:
        assert self.settings.control_socket is not None
        return await connect_unix(self.settings.control_socket)


async def test_dom0s_own_agent_is_controlled_through_a_socket(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    settings = attrs.evolve(
        make_settings(tmp_path, "dom0", 0), control_socket=tmp_path / "control.sock"
    )
    (settings.devices / "block" / "disk.img").write_bytes(b"x" * 512)

    dom0 = ControlSocketDom0(settings, nursery)
    async with program(settings):
        assert os.stat(tmp_path / "control.sock").st_mode & 0o777 == 0o600
        await dom0.connect()
        assert "disk.img" in [device.device for device in dom0.report.devices]
        dom0.peer.close()
        await dom0.connect()


async def test_a_vms_client_may_ask_three_methods_and_gets_dom0s_answers(
    settings: Settings, start: Start
) -> None:
    dom0 = await start(settings)
    denied = CallError("denied", "denied by policy", {"request": "0123456789ab"})
    dom0.answers = {"device.list": {"devices": [], "policy": None}, "device.attach": denied}
    assert os.stat(settings.socket).st_mode & 0o777 == 0o666
    stream = await connect_unix(settings.socket)
    async with open_peer(stream, program="client", handlers={}) as client:
        asked = {"device_class": "block", "vms": None, "exclude": []}
        assert (
            await client.call("device.list", asked, timeout=PATIENCE) == dom0.answers["device.list"]
        )
        assert dom0.served == [("device.list", asked)]
        with pytest.raises(CallError) as refused:
            await client.call("device.attach", {"vm": "work"}, timeout=PATIENCE)
        assert (refused.value.code, refused.value.message) == ("denied", "denied by policy")
        assert refused.value.data == {"request": "0123456789ab"}
        for method in ("vm.start", "device.explain", "agent.report", "export.start"):
            with pytest.raises(CallError) as unknown:
                await client.call(method, {}, timeout=PATIENCE)
            assert unknown.value.code == "unknown_method"


async def test_without_dom0_a_vms_client_hears_that_it_is_unavailable(
    settings: Settings, start: Start
) -> None:
    dom0 = await start(settings)
    dom0.peer.close()
    stream = await connect_unix(settings.socket)
    async with open_peer(stream, program="client", handlers={}) as client:
        with pytest.raises(CallError, match="dom0's service is not reachable") as refused:
            await client.call("device.list", {}, timeout=PATIENCE)
        assert refused.value.code == "unavailable"


async def test_a_client_that_sends_garbage_is_dropped_and_others_are_served(
    settings: Settings, start: Start
) -> None:
    dom0 = await start(settings)
    dom0.answers = {"device.list": {"devices": []}}
    async with await connect_unix(settings.socket) as rude:
        await rude.send_all(b"GET / HTTP/1.1\r\n\r\n")
        while await rude.receive_some():
            pass
    async with open_peer(
        await connect_unix(settings.socket), program="client", handlers={}
    ) as peer:
        assert await peer.call("device.list", {}, timeout=PATIENCE) == {"devices": []}


async def test_a_vms_users_may_ask_for_long_lists_without_a_pause(
    settings: Settings, start: Start
) -> None:
    """What dom0 answers has no limit: the end of its connection would end what is lent."""
    dom0 = await start(settings)
    size = 60_000
    dom0.answers = {"device.list": {"devices": ["x" * size]}}
    times = 2 * FRAMES_BURST * BYTES_PER_FRAME // size
    await trio.to_thread.run_sync(_list_devices, str(settings.socket), times)
    assert dom0.peer.is_open


async def test_requests_of_a_vms_users_that_are_too_long_are_not_passed_on(
    settings: Settings, start: Start
) -> None:
    """More of them could wait for dom0 than may: then the agent would end its connection."""
    dom0 = await start(settings)
    dom0.answers = {"device.list": {}}
    longest = {"exclude": ["x" * (REQUEST_MAX - 100)]}
    stream = await connect_unix(settings.socket)
    async with open_peer(stream, program="client", handlers={}) as peer:
        await peer.call("device.list", longest, timeout=PATIENCE)
        with pytest.raises(CallError, match="is not passed on to dom0") as refused:
            await peer.call("device.list", {"exclude": ["x" * REQUEST_MAX]}, timeout=PATIENCE)
        assert refused.value.code == "usage"
    assert dom0.served == [("device.list", longest)]


async def test_long_requests_of_a_vms_users_are_passed_on_no_faster_than_dom0_allows(
    settings: Settings, autojump_clock: Clock
) -> None:
    passed_on = 0

    async def take(_method: str, params: Params) -> Params:
        nonlocal passed_on
        passed_on += len(params["exclude"])
        return {}

    handle = LocalSocket(settings.socket, take)._handler("device.list")
    with trio.move_on_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(1000):
                nursery.start_soon(handle, None, {"exclude": "x" * (REQUEST_MAX - 100)})
    assert passed_on / BYTES_PER_FRAME < 60 * FRAMES_PER_SECOND / 2


async def test_more_clients_than_the_agent_serves_are_turned_away(
    settings: Settings, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pedos_agent.connections.local_socket.CLIENTS_MAX", 1)
    await start(settings)
    first = await connect_unix(settings.socket)
    async with open_peer(first, program="client", handlers={}):
        for _ in range(20):  # however many they are
            with pytest.raises(CallError, match="1 programs") as refused:
                await trio.to_thread.run_sync(_list_devices, str(settings.socket))
            assert refused.value.code == "quota"


def _list_devices(socket: str, times: int = 1) -> None:
    with client.connect(socket) as connected:
        for _ in range(times):
            connected.call("device.list", {}, SECONDS)


@pytest.mark.parametrize(
    "wrong",
    [["--vm", "-rf"], ["--domid", "0"], ["--domid", "-1"], ["--domid", "x"], ["--driver", "xen"]],
)
def test_wrong_arguments_are_usage_errors(
    wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = ["--driver", "local", "--vm", "work", "--domid", "3", "--vchan", str(tmp_path)]
    right += ["--socket", "s", "--devices", "d", "--dev", "e"]
    with pytest.raises(SystemExit) as ended:
        main(right + wrong)
    assert ended.value.code == 2
    assert "usage: pedos-agent" in capsys.readouterr().err
