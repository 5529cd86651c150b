"""Starting the system: the lock, leftovers of a killed run, and a dom0 that does not come up."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio
from pedos_dom0.local.bringup import (
    CannotComeUp,
    LocalPrograms,
    Lock,
    LockHeld,
    bring_up,
    read_lock,
    service,
    tail,
)
from pedos_dom0.local.config import Config, VmConfig
from pedos_dom0.local.layout import LOG_KEEP, Layout, sweep
from pedos_dom0.local.machine import Machine
from pedos_host.mounts import fuse_mounts, make_placeholder
from pedos_host.plain_unix import short_path
from pedos_host.unix import listen_unix
from pedos_protocol.errors import CallError
from pedos_vchan.refusal import refuse

from tests.failing_calls import Failing

from .conftest import PATIENCE, FakePrograms

CONFIG = Config(vms=(VmConfig("sys-usb"), VmConfig("work", verbose=True)))


def test_the_lock_has_one_holder_and_names_it(layout: Layout) -> None:
    with Lock.hold(layout) as lock:
        with pytest.raises(LockHeld) as caught, Lock.hold(layout):
            pass
        assert (caught.value.pid, caught.value.ready) == (os.getpid(), False)
        lock.set_ready(True)
        assert read_lock(layout.lock) == (os.getpid(), True)
        lock.set_ready(False)
        assert read_lock(layout.lock) == (os.getpid(), False)
    with Lock.hold(layout):
        pass


@pytest.mark.parametrize("what", ["lock", "users", "all of run/"])
def test_the_lock_stays_whatever_is_deleted(layout: Layout, what: str) -> None:
    with Lock.hold(layout) as lock:
        lock.set_ready(True)
        for path in layout.run.iterdir() if what == "all of run/" else [layout.run / what]:
            if not path.is_dir():
                path.unlink(missing_ok=True)
        with pytest.raises(LockHeld) as caught, Lock.hold(layout):
            pass
        assert caught.value.pid == os.getpid()
        # It cannot be known whether that one is ready, so no one joins it.
        assert caught.value.ready == (what == "users")


def test_who_may_only_read_the_folder_cannot_keep_a_machine_from_it(layout: Layout) -> None:
    layout.root.chmod(0o755)
    layout.vms.chmod(0o755)
    stranger = os.open(layout.root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(stranger, fcntl.LOCK_EX)
        with Lock.hold(layout):
            assert stat.S_IMODE(layout.vms.stat().st_mode) == 0o700
    finally:
        os.close(stranger)


def test_the_lock_of_a_killed_holder_is_free_and_its_ready_does_not_count(
    layout: Layout,
) -> None:
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pedos_dom0.local.bringup import Lock
        from pedos_dom0.local.layout import Layout
        with Lock.hold(Layout.of(sys.argv[1])) as lock:
            lock.set_ready(True)
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    ended = subprocess.run([sys.executable, "-c", program, str(layout.root)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert "ready" in layout.lock.read_text()
    assert read_lock(layout.lock) == (None, False)
    with Lock.hold(layout):
        pass


@pytest.mark.parametrize("text", ["", "17", "x\nready\n", f"{10**30}\nready\n"])
def test_a_lock_file_that_names_no_process_is_of_no_holder(layout: Layout, text: str) -> None:
    layout.run.mkdir(parents=True, exist_ok=True)
    layout.lock.write_text(text)
    assert read_lock(layout.lock) == (None, False)


def test_a_lock_file_that_cannot_be_read_is_an_error_and_not_a_machine_that_comes_up(
    layout: Layout,
) -> None:
    with Lock.hold(layout):
        layout.lock.unlink()
        layout.lock.mkdir()
        with pytest.raises(IsADirectoryError) as caught, Lock.hold(layout):
            pass
        assert caught.value.filename == str(layout.lock)
        layout.lock.rmdir()


def test_sweeping_takes_stale_sockets_and_placeholders_and_nothing_of_the_users(
    layout: Layout,
) -> None:
    stale = [layout.machine_socket, layout.vchan / "1-0-1.sock", layout.run / "vms" / "work.sock"]
    for path in stale:
        with socket.socket(socket.AF_UNIX) as sock, short_path(path) as short:
            sock.bind(short)
    placeholder = layout.dev("work") / "xvdi"
    make_placeholder(placeholder)
    kept = [layout.dev("work") / "notes", layout.devices("work") / "block" / "empty.img"]
    for path in kept:
        path.touch()
    found = sweep(layout)
    assert len(found) == len(stale)
    assert not any(path.exists() for path in (*stale, placeholder))
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize("call", ["listdir", "lstat"])
def test_what_cannot_be_swept_is_said_and_hinders_nothing_else(
    layout: Layout, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    paths = [layout.dev(name) / "xvdi" for name in ("sys-usb", "work")]
    for path in paths:
        make_placeholder(path)
    of = layout.dev("sys-usb") if call == "listdir" else paths[0]
    with Failing(None, errno.EMFILE, always=str(of)) as failing:
        assert sweep(layout) == []
    assert failing.failed == f"{call}({of})"
    assert [path.exists() for path in paths] == [True, False]
    what = "look into" if call == "listdir" else "clear away"
    assert f"cannot {what} {of}" in caplog.text and "Too many open files" in caplog.text


def test_only_fuse_mounts_inside_of_the_folder_are_ours(tmp_path: Path) -> None:
    dev = tmp_path / "a b" / "dev"
    dev.mkdir(parents=True)
    escaped = str(dev).replace(" ", "\\040")
    table = "".join(
        f"36 35 0:{number} / {point} rw,nosuid shared:1 - {kind} nbdfuse rw\n"
        for number, (point, kind) in enumerate(
            [
                (f"{escaped}/xvdi", "fuse"),
                (f"{escaped}/xvdj", "fuse.nbdfuse"),
                (f"{escaped}/disk", "ext4"),
                (f"{escaped}-other/xvdi", "fuse"),
            ]
        )
    )
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(table)
    assert fuse_mounts(dev, str(mountinfo)) == [f"{dev}/xvdj", f"{dev}/xvdi"]


def test_a_log_that_has_grown_makes_way(layout: Layout) -> None:
    layout.log("dom0").write_bytes(b"x" * (LOG_KEEP + 1))
    layout.log("work").write_text("short")
    layout.rotate_logs()
    assert not layout.log("dom0").exists()
    assert (layout.root / "log" / "dom0.log.1").exists()
    assert layout.log("work").read_text() == "short"


def test_the_command_lines_are_those_of_the_programs(layout: Layout) -> None:
    programs = LocalPrograms(layout, CONFIG)
    dom0 = list(programs.dom0().argv)
    assert dom0[:4] == [sys.executable, "-P", "-m", "pedos_dom0"]
    assert dom0[dom0.index("--machine") + 1] == str(layout.machine_socket)
    assert "-v" not in dom0
    work = list(programs.agent("work", 7).argv)
    assert work[work.index("--domid") + 1] == "7"
    assert work[-1] == "-v"
    assert "--control-socket" not in work
    assert work[work.index("--keeper") + 1] == str(layout.keeper_socket("work"))
    keeper = programs.keeper("work", 9)
    assert list(keeper.argv[:4]) == [sys.executable, "-P", "-m", "pedos_keeper"]
    assert keeper.argv[keeper.argv.index("--listen") + 1] == "9"
    assert keeper.env["HOME"] == str(layout.home("work"))
    assert keeper.env["PEDOS_SOCKET"] == str(layout.client_socket("work"))
    own = programs.dom0_agent()
    assert own.env["PEDOS_FAULTNAME"] == "agent:dom0"
    assert str(layout.dom0_agent_socket) in own.argv


async def test_a_dom0_that_does_not_start_is_reported_with_its_last_words(
    layout: Layout, programs: FakePrograms
) -> None:
    programs.bodies["dom0"] = "sys.exit('dom0: the database is broken')"
    with Lock.hold(layout) as lock, pytest.raises(CannotComeUp) as caught:
        async with bring_up(layout, CONFIG, programs, lock):
            raise AssertionError("it came up")
    assert str(caught.value) == (
        "dom0 does not start: it exited with status 1\n  dom0.log: dom0: the database is broken"
    )


async def test_coming_up_can_be_cancelled_and_leaves_nothing(
    layout: Layout, programs: FakePrograms
) -> None:
    programs.bodies["dom0"] = "while True: signal.pause()"  # never ready
    machines = []
    with Lock.hold(layout) as lock, trio.CancelScope() as scope:

        async def cancel_when_started() -> None:
            await machines[0].dom0_agent.ready.wait()
            await machines[0].start(machines[0].domains["work"])
            scope.cancel()

        async with trio.open_nursery() as nursery:

            def started(machine: object) -> None:
                machines.append(machine)
                nursery.start_soon(cancel_when_started)

            async with bring_up(layout, CONFIG, programs, lock, started):
                raise AssertionError("it came up")
    assert scope.cancelled_caught
    assert machines[0].domains["work"].state == "Halted"
    assert machines[0].dom0.ended.is_set()
    assert machines[0].dom0_agent.ended.is_set()


@pytest.mark.parametrize("text", [None, "", "x\n", "-1\n", "0\n", "32753\n", "1_0\n", "100000\n"])
async def test_a_machine_that_cannot_know_the_next_domain_number_does_not_come_up(
    layout: Layout, programs: FakePrograms, text: str | None
) -> None:
    if text is None:
        layout.next_domid.mkdir()
        why = "Is a directory"
    else:
        layout.next_domid.write_text(text)
        why = "this is no domain number: write one into it that no VM has had lately, as 1000"
    machines: list[Machine] = []
    with Lock.hold(layout) as lock, pytest.raises(CannotComeUp) as caught:
        async with bring_up(layout, CONFIG, programs, lock, machines.append):
            raise AssertionError("it came up")
    assert machines[0].dom0.starts == 0
    assert str(caught.value) == f"{layout.next_domid}: {why}"


class LockOnAFullDisk(Lock):
    """Can be held, but "not ready" cannot be written into it at the end."""

    def set_ready(self, ready: bool) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_a_full_disk_does_not_keep_it_from_going_down(
    layout: Layout, programs: FakePrograms
) -> None:
    machines: list[Machine] = []
    with trio.fail_after(PATIENCE), pytest.raises(CannotComeUp):
        # The tiny dom0 gets ready, but serves no client: that ends the start.
        async with bring_up(layout, CONFIG, programs, LockOnAFullDisk(-1), machines.append):
            raise AssertionError("it came up")
    assert machines[0].dom0.ended.is_set()
    assert machines[0].dom0_agent.ended.is_set()


async def test_a_service_that_refuses_to_serve_is_heard_why(layout: Layout) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await refuse(stream, "dom0", CallError("quota", "it takes no more"))

    listener = await listen_unix(layout.dom0_socket, 0o600)
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        with pytest.raises(CannotComeUp, match="dom0's service says: it takes no more"):
            async with service(layout) as dom0:
                await dom0.call("vm.list", {}, timeout=PATIENCE)
        nursery.cancel_scope.cancel()


def test_a_log_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    assert tail(tmp_path / "none.log", 0) == ""
    assert tail(tmp_path, 0) == f"\n  ({tmp_path}: Is a directory)"
