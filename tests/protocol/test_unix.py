from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
import trio
from pedos_host import unix
from pedos_host.plain_unix import SUN_PATH_MAX, short_path
from pedos_host.unix import connect_unix, listen_unix


@pytest.fixture(params=["short", "long"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path if request.param == "short" else tmp_path / ("x" * 100) / ("y" * 100)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "dom0.sock"


async def test_a_client_reaches_a_server_at_a_path_of_any_length(path: Path) -> None:
    listener = await listen_unix(path, 0o640)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    client = await connect_unix(path)
    server = await listener.accept()
    await client.send_all(b"hello")
    assert await server.receive_some() == b"hello"
    for resource in (listener, client, server):
        await resource.aclose()
    assert os.listdir(path.parent) == ["dom0.sock"]


async def test_the_socket_of_a_server_that_died_is_replaced(path: Path) -> None:
    await (await listen_unix(path, 0o600)).aclose()
    with pytest.raises(ConnectionRefusedError):
        await connect_unix(path)
    async with await listen_unix(path, 0o600), await connect_unix(path):
        pass


async def test_the_socket_of_a_server_that_lives_is_not_replaced(path: Path) -> None:
    async with await listen_unix(path, 0o600) as listener:
        with pytest.raises(OSError, match="another program already listens there"):
            await listen_unix(path, 0o600)
        async with await connect_unix(path), await listener.accept():
            pass


@pytest.mark.parametrize("how", ["deleted", "moved away", "replaced by a file", "stale"])
async def test_a_server_keeps_the_name_of_its_socket(
    path: Path, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(unix, "NAME_LOOK", 0.01)
    async with await listen_unix(path, 0o600) as listener, trio.open_nursery() as nursery:
        served = []

        async def serve() -> None:
            for _ in range(2):
                served.append(await listener.accept())

        nursery.start_soon(serve)
        async with await connect_unix(path):
            if how == "deleted":
                path.unlink()
            elif how == "stale":
                path.rename(path.with_name("old"))
                with socket.socket(socket.AF_UNIX) as other, short_path(path) as short:
                    other.bind(short)
            else:
                path.rename(path.with_name("old"))
            if how == "replaced by a file":
                path.write_text("precious")
                while not caplog.records:
                    await trio.lowlevel.checkpoint()
                assert path.read_text() == "precious"
                assert "a new one cannot be made: " in caplog.messages[0]
                path.unlink()
            while not caplog.messages or not caplog.messages[-1].endswith("there is a new one"):
                await trio.lowlevel.checkpoint()
            async with await connect_unix(path):
                pass
        nursery.cancel_scope.deadline = trio.current_time() + 10
    assert len(served) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(caplog.messages) == 1 + (how == "replaced by a file")
    for stream in served:
        await stream.aclose()


async def test_a_server_does_not_take_its_name_from_another_one_that_lives(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(unix, "NAME_LOOK", 0.01)
    async with await listen_unix(path, 0o600) as first, trio.open_nursery() as nursery:
        path.unlink()
        async with await listen_unix(path, 0o600) as second:
            nursery.start_soon(first.accept)
            while not caplog.records:
                await trio.lowlevel.checkpoint()
            assert "another program already listens there" in caplog.messages[0]
            async with await connect_unix(path), await second.accept():
                pass
            nursery.cancel_scope.cancel()


async def test_a_file_that_is_no_socket_is_not_replaced(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="not a socket"):
        await listen_unix(path, 0o600)
    assert path.read_text() == "precious"


async def test_nobody_there(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await connect_unix(path)
    with pytest.raises(FileNotFoundError):
        await connect_unix(path.parent / "missing" / "dom0.sock")
    with pytest.raises(FileNotFoundError):
        await listen_unix(path.parent / "missing" / "dom0.sock", 0o600)


async def test_a_server_whose_backlog_is_full_is_waited_for(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    with short_path(path) as short:
        server.bind(short)
    server.listen(0)
    first = await connect_unix(path)
    second = None

    async def connect_second() -> None:
        nonlocal second
        second = await connect_unix(path)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect_second)
        await trio.testing.wait_all_tasks_blocked()
        assert second is None
        server.accept()[0].close()
    assert second is not None
    await second.aclose()
    await first.aclose()
    server.close()


def test_a_path_is_short_for_as_long_as_it_is_needed(tmp_path: Path) -> None:
    folder = tmp_path / ("z" * 120)
    folder.mkdir()
    before = set(os.listdir("/proc/self/fd"))
    with short_path(folder / "s") as short:
        assert len(short) <= SUN_PATH_MAX
        Path(short).write_text("here")
    assert (folder / "s").read_text() == "here"
    assert set(os.listdir("/proc/self/fd")) == before
    with short_path("relative/s") as short:
        assert short == "relative/s"
    with pytest.raises(OSError, match="too long"), short_path(folder / ("n" * 110)):
        pass
