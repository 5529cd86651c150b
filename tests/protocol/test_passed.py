"""What others pass keeps nobody waiting but themselves, however long close(2) takes for it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trio
from pedos_host import passed, taking
from pedos_host.packets import PacketSocket
from pedos_host.passed import Closer, closer
from pedos_host.unix import listen_packets, listen_unix
from pedos_host.unix_stream import UnixStream

from tests.lingering import Lingering, closing, descriptors, held, until
from tests.patience import PATIENCE

KINDS = (socket.SOCK_SEQPACKET, socket.SOCK_STREAM)


def pair() -> tuple[PacketSocket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return PacketSocket(ours), theirs


async def test_what_comes_unasked_is_closed_apart(lingering: Lingering) -> None:
    ours, theirs = pair()
    before = descriptors()
    lingering.pass_by(theirs)
    assert await ours.receive(10) == b"x"
    assert closing() == 1
    lingering.release()
    await until(lambda: not closing())
    assert descriptors() == before - 2
    ours.close()
    theirs.close()


async def test_what_comes_beyond_what_is_asked_for_is_closed_apart(lingering: Lingering) -> None:
    ours, theirs = pair()
    lingering.pass_by(theirs, times=100)
    before = descriptors()
    message, given = await ours.receive_passing(10, 3)
    assert (message, len(given)) == (b"x", 4)
    await until(lambda: not closing())
    assert descriptors() == before + 4
    ours.discard(given)
    await until(lambda: closing() == 1)
    lingering.release()
    await until(lambda: not closing())
    ours.close()
    theirs.close()


@pytest.mark.parametrize("first", [None, b"", b"more"])
async def test_a_connection_ends_with_something_under_way_in_it(
    lingering: Lingering, first: bytes | None
) -> None:
    ours, theirs = pair()
    if first is not None:
        theirs.send(first)
    before = descriptors()
    lingering.pass_by(theirs)
    ours.close()
    assert closing() == 1
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        theirs.send(b"x")
    lingering.release()
    await until(lambda: not closing())
    assert descriptors() == before - 3
    theirs.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_gone", [True, False])
def test_an_empty_connection_is_closed_at_once(kind: socket.SocketKind, is_gone: bool) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    if is_gone:
        theirs.close()
    apart = Closer()
    number = ours.detach()
    apart.hang_up("somebody", number, b"the last word")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    assert is_gone or theirs.recv(100) == b"the last word"
    assert not apart._lines  # no thread had to
    theirs.close()


async def test_one_who_holds_up_too_much_is_not_heard_any_more(
    lingering: Lingering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passed, "OF_ONE_MAX", 1)
    monkeypatch.setattr(taking, "BUSY_SECONDS", 0.05)
    ours, theirs = pair()
    lingering.pass_by(theirs)
    assert await ours.receive(10) == b"x"
    theirs.send(b"y")
    with pytest.raises(OSError, match="still being closed"):
        await ours.receive(10)
    others, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    of_another = PacketSocket(others, "another")
    sender.send(b"z")
    assert await of_another.receive(10) == b"z"
    lingering.release()
    await until(lambda: closer.has_room(os.getuid()))
    assert await ours.receive(10) == b"y"
    for each in (ours, of_another, theirs, sender):
        each.close()


async def test_nobody_is_let_in_while_all_hold_up_too_much(
    lingering: Lingering,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("s") / "s"
    listener = await listen_packets(path, 0o600)
    monkeypatch.setattr(passed, "OF_ALL_MAX", 1)
    ours, theirs = pair()
    lingering.pass_by(theirs)
    await ours.receive(10)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(path))
        with pytest.raises(OSError, match="still being closed"):
            await listener.accept_socket()
        lingering.release()
        await until(lambda: not closer.is_full())
        (await listener.accept_socket()).close()
    listener.close()
    ours.close()
    theirs.close()


def test_beyond_the_threads_of_their_own_owners_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passed, "THREADS_MAX", 1)
    monkeypatch.setattr(passed, "IDLE_MS", 0)
    apart = Closer()
    ends = []
    for owner in ("one", "two", "three"):
        reader, writer = os.pipe()
        apart.close(owner, (-1, writer))
        ends.append(reader)
    for each in ends:
        assert os.read(each, 1) == b""  # it is closed
        os.close(each)


#: Without room for a stack there is no thread.
WITHOUT_A_THREAD = """
import os, resource
from pedos_host.passed import Closer
apart = Closer()
(reader, writer), (other, last) = os.pipe(), os.pipe()
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (4096, before[1]))
apart.close("one", (writer,))
resource.setrlimit(resource.RLIMIT_AS, before)
os.set_blocking(reader, False)
try:
    print(os.read(reader, 1))
except BlockingIOError:
    print("open")
os.set_blocking(reader, True)
apart.close("one", (last,))
print(os.read(reader, 1), os.read(other, 1))
"""


def test_without_a_thread_it_is_closed_when_there_is_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_THREAD],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.stdout, done.stderr) == ("open\nb'' b''\n", "")


def test_each_of_many_is_closed() -> None:
    """Given at once, of several owners, from several threads."""
    apart = Closer()
    with socket.socket() as one:
        before = held(one.fileno())
        copies = [os.dup(one.fileno()) for _ in range(700)]

        def give(part: list[int], owner: str) -> None:
            for start in range(0, len(part), 50):
                apart.close(owner, part[start : start + 50])

        threads = [
            threading.Thread(target=give, args=(copies[i::4], f"owner {i % 3}")) for i in range(4)
        ]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        deadline = time.monotonic() + PATIENCE
        while before() > 1:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert all(apart.has_room(f"owner {i}") for i in range(3))


def test_owners_with_nothing_left_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passed, "LINES_KEPT", 2)
    apart = Closer()
    for owner in range(10):
        apart.close(owner, ())
    assert len(apart._lines) <= 2


async def stream_pair(path: Path) -> tuple[UnixStream, socket.socket]:
    listener = await listen_unix(path, 0o600)
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    stream = await listener.accept()
    listener.close()
    return stream, client


async def test_what_comes_with_the_bytes_of_a_stream_is_closed_apart(
    lingering: Lingering, tmp_path: Path
) -> None:
    stream, client = await stream_pair(tmp_path / "s")
    lingering.pass_by(client)
    assert await stream.receive_some() == b"x"
    assert closing() == 1
    client.send(b"more")
    assert await stream.receive_some(2) == b"mo"
    assert await stream.receive_some(2) == b"re"
    client.close()
    assert await stream.receive_some() == b""
    await stream.aclose()


async def test_what_comes_out_of_band_is_closed_apart(lingering: Lingering, tmp_path: Path) -> None:
    stream, client = await stream_pair(tmp_path / "s")
    pass_out_of_band(lingering, client)
    client.send(b"more")
    received = b""
    while received != b"xmore":
        received += await stream.receive_some()
    assert closing() == 1
    client.close()
    await stream.aclose()


def pass_out_of_band(lingering: Lingering, client: socket.socket) -> None:
    try:
        lingering.pass_by(client, flags=socket.MSG_OOB)
    except OSError as error:
        pytest.skip(f"this kernel has no such bytes for Unix sockets: {error}")


@pytest.mark.parametrize("out_of_band", [False, True])
async def test_a_stream_ends_with_something_under_way_in_it(
    lingering: Lingering, tmp_path: Path, out_of_band: bool
) -> None:
    stream, client = await stream_pair(tmp_path / "s")
    client.send(b"before")
    if out_of_band:
        pass_out_of_band(lingering, client)
    else:
        lingering.pass_by(client)
    await trio.aclose_forcefully(stream)
    assert closing() == 1
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()
    client.close()


async def test_a_stream_ends_with_all_that_was_sent(tmp_path: Path) -> None:
    stream, client = await stream_pair(tmp_path / "s")
    client.send(b"unread")
    await stream.send_all(b"the last word")
    await stream.send_eof()
    await stream.aclose()
    await stream.aclose()
    with client:
        assert client.recv(100) == b"the last word"
    await until(lambda: not closing())


async def test_the_reset_of_a_stream_is_the_end_of_it(tmp_path: Path) -> None:
    stream, client = await stream_pair(tmp_path / "s")
    await stream.send_all(b"x")
    client.close()  # with bytes unread
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    await stream.aclose()
