"""The whole service: start, readiness, end by a signal, and obstacles to its start."""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from pedos_dom0.__main__ import main
from pedos_dom0.service import Config, run
from pedos_host import logs
from pedos_host.folder_lock import FolderHeld
from pedos_host.plain_unix import short_path
from pedos_host.unix import connect_unix
from pedos_vchan.peer import open_peer

from tests.dom0.fakes import ALLOW_DOM0, FakeDriver
from tests.patience import PATIENCE


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """`main` sets up the log of a process; here it is one of many tests in one."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    policy = tmp_path / "policy.d"
    policy.mkdir()
    (tmp_path / "vms.d").mkdir()
    (policy / "30-test.policy").write_text(ALLOW_DOM0)
    return Config(
        socket=tmp_path / "dom0.sock",
        state=tmp_path / "state",
        policy=[policy],
        vms=tmp_path / "vms.d",
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_says_ready_serves_and_ends_cleanly(
    config: Config,
    tmp_path: Path,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    ended = trio.Event()

    async def service() -> None:
        await run(config, FakeDriver())
        ended.set()

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        with short_path(tmp_path / "notify") as short:
            manager.bind(short)
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        nursery.start_soon(service)
        with trio.fail_after(PATIENCE):
            await trio.lowlevel.wait_readable(manager)
        assert manager.recv(100) == b"READY=1"
    # Ready means that this works at once.
    stream = await connect_unix(config.socket)
    async with open_peer(stream, program="test", handlers={}) as peer:
        status = await peer.call("service.status", {}, timeout=PATIENCE)
    assert status["policy"]["ok"] and status["policy"]["rules"] == 1
    signal.raise_signal(number)
    with trio.fail_after(PATIENCE):
        await ended.wait()
    assert not config.socket.exists()


def arguments(tmp_path: Path) -> list[str]:
    names = ("machine", "vchan", "socket", "dom0-agent", "state", "policy", "vms-dir")
    paths = [word for name in names for word in (f"--{name}", str(tmp_path / name))]
    return ["--driver", "local", *paths]


def test_no_machine_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path)) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("pedos-dom0: critical: no machine at ")
    assert not (tmp_path / "socket").exists()


def test_a_damaged_database_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "dom0.sqlite").write_text("this is no database" * 100)
    assert main(arguments(tmp_path)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pedos-dom0: critical: ") and "dom0.sqlite" in line


@pytest.mark.parametrize("deleted", [(), ("dom0.sock",), ("dom0.sock", "state/dom0.sqlite")])
async def test_two_services_never_have_one_state_folder(
    config: Config, tmp_path: Path, deleted: tuple[str, ...]
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(run, config, FakeDriver())
        for name in deleted:
            (tmp_path / name).unlink()
        with pytest.raises(FolderHeld, match=f"process {os.getpid()} has this folder"):
            await run(config, FakeDriver())
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
async def test_nobody_else_gets_into_a_state_folder_that_existed_before(
    config: Config, mode: int
) -> None:
    config.state.mkdir()
    config.state.chmod(mode)
    async with trio.open_nursery() as nursery:
        await nursery.start(run, config, FakeDriver())
        assert stat.S_IMODE(config.state.stat().st_mode) == 0o700
        assert stat.S_IMODE((config.state / "dom0.sqlite").stat().st_mode) & 0o077 == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("journal", [True, False])
def test_log_lines_are_for_whoever_reads_them(
    journal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    if journal:
        monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    logs.set_up("pedos-dom0", verbose=False)
    logging.getLogger("x").warning("two\nlines")
    logging.getLogger("x").debug("not shown")
    expected = "<4>two\\nlines\n" if journal else "pedos-dom0: warning: two\\nlines\n"
    assert capsys.readouterr().err == expected
