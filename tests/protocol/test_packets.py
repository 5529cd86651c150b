"""Connections of whole messages: what one end sends is what the other receives, or nothing."""

from __future__ import annotations

import array
import errno
import os
import socket
import stat
from pathlib import Path

import pytest
import trio
import trio.testing
from pedos_host import unix
from pedos_host.packets import PacketSocket
from pedos_host.plain_unix import short_path
from pedos_host.unix import listen_packets, listen_unix

from tests.lingering import held, until


def pair() -> tuple[PacketSocket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    return PacketSocket(ours), theirs


async def test_a_client_s_messages_arrive_one_by_one_and_it_is_known(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    listener = await listen_packets(path, 0o640)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        with short_path(path) as short:
            client.connect(short)
        client.send(b"one")
        client.send(b"two")
        server = PacketSocket(await listener.accept_socket())
        assert server.uid == os.getuid()
        assert [await server.receive(10) for _ in range(2)] == [b"one", b"two"]
    assert await server.receive(10) == b""
    server.close()
    listener.close()
    assert not path.exists()


async def test_descriptors_come_with_their_message_and_no_more_than_were_asked_for() -> None:
    server, client = pair()
    reader, writer = os.pipe()
    ours = held(writer)
    assert ours() == 2
    for count in (0, 1, 2, 100):
        rights = array.array("i", [writer] * count)
        client.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if count else [])
        message, passed = await server.receive_passing(10, 2)
        assert (message, len(passed)) == (b"x", min(count, 3))
        assert not any(map(os.get_inheritable, passed))
        for each in passed:
            assert os.path.sameopenfile(each, writer)
            os.close(each)
    os.close(reader)
    os.close(writer)
    await until(lambda: ours() == 0)
    client.close()
    assert await server.receive_passing(10, 2) == (b"", [])
    server.close()
    with pytest.raises(trio.ClosedResourceError):
        await server.receive_passing(10, 2)


async def test_the_groups_of_the_other_end_are_known() -> None:
    server, client = pair()
    assert server.credentials == unix.Peer(os.getuid(), frozenset((os.getgid(), *os.getgroups())))
    client.close()
    server.close()


async def test_one_is_accepted_without_waiting(tmp_path: Path) -> None:
    listener = await listen_packets(tmp_path / "sock", 0o600)
    with pytest.raises(BlockingIOError):
        listener.accept_now()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        with short_path(tmp_path / "sock") as short:
            client.connect(short)
        with listener.accept_now() as accepted:
            assert not os.get_blocking(accepted.fileno()) and accepted.gettimeout() == 0
            assert not os.get_inheritable(accepted.fileno())
            with pytest.raises(BlockingIOError):
                accepted.recv(1)
    listener.close()
    assert listener.fileno() == -1
    with pytest.raises(trio.ClosedResourceError):
        listener.accept_now()


async def test_a_socket_that_was_deleted_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    monkeypatch.setattr(unix, "NAME_LOOK", 0.01)
    listener = await listen_packets(tmp_path / "sock", 0o600)
    (tmp_path / "sock").unlink()
    accepted: list[socket.socket] = []

    async def accept() -> None:
        accepted.append(await listener.accept_socket())

    nursery.start_soon(accept)
    while not (tmp_path / "sock").exists():
        await trio.lowlevel.checkpoint()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        with short_path(tmp_path / "sock") as short:
            client.connect(short)
        while not accepted:
            await trio.lowlevel.checkpoint()
    accepted[0].close()
    listener.close()


async def test_a_live_listener_of_either_kind_is_not_replaced(tmp_path: Path) -> None:
    first = await listen_packets(tmp_path / "sock", 0o600)
    for listen in (listen_packets, listen_unix):
        with pytest.raises(OSError) as caught:
            await listen(tmp_path / "sock", 0o600)
        assert caught.value.errno in (errno.EADDRINUSE, errno.EPROTOTYPE)
    first.close()


async def test_a_long_message_is_told_from_one_that_fits() -> None:
    ours, theirs = pair()
    with theirs:
        for length in (9, 10, 11, 1000):
            theirs.send(b"x" * length)
            assert len(await ours.receive(10)) == min(length, 11)
    ours.close()


async def test_descriptors_go_with_a_message_and_never_come() -> None:
    ours, theirs = pair()
    reading, writing = os.pipe()
    ours.send_now(b"take", [writing])
    os.close(writing)
    message, ancillary, _, _ = theirs.recvmsg(10, socket.CMSG_SPACE(16))
    (got,) = array.array("i", ancillary[0][2])
    os.write(got, b"!")
    assert (message, os.read(reading, 1)) == (b"take", b"!")
    open_here = held(got)
    assert open_here() == 2  # it, and the end to read
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [got] * 50))]
    theirs.sendmsg([b"yours"], rights)
    assert await ours.receive(10) == b"yours"
    await until(lambda: open_here() == 2)
    for fd in (reading, got):
        os.close(fd)
    theirs.close()
    ours.close()


async def test_who_does_not_read_is_not_waited_for() -> None:
    ours, theirs = pair()
    with theirs, pytest.raises(BlockingIOError):
        for _ in range(100_000):
            ours.send_now(b"x" * 100)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        ours.send_now(b"x")
    ours.close()


async def test_the_last_message_arrives_before_the_end() -> None:
    ours, theirs = pair()
    theirs.send(b"unread")
    ours.send_now(b"goodbye")
    ours.finish()
    assert await ours.receive(10) == b"unread"
    ours.close()
    with theirs:
        assert [theirs.recv(10), theirs.recv(10)] == [b"goodbye", b""]


async def test_a_task_that_waits_is_woken_when_it_is_closed(nursery: trio.Nursery) -> None:
    ours, theirs = pair()

    async def receive() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await ours.receive(10)

    nursery.start_soon(receive)
    await trio.testing.wait_all_tasks_blocked()
    ours.close()
    ours.close()
    with pytest.raises(trio.ClosedResourceError):
        ours.send_now(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await ours.receive(10)
    theirs.close()
