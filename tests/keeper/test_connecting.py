"""Connections to services that listen."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from pedos_host.plain_unix import short_path
from pedos_keeper import connecting
from pedos_keeper.lookup import TcpPort, UnixSocket


def connected(service: connecting.Listening, before: bytes = b"") -> socket.socket:
    return socket.socket(fileno=connecting.connect(service, before))


def test_a_socket_at_a_path_of_any_length_is_reached(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        with short_path(folder / "s") as path:
            listener.bind(path)
        listener.listen()
        with connected(UnixSocket(str(folder / "s")), b"first\0") as ours:
            theirs, _ = listener.accept()
            with theirs:
                assert theirs.recv(100) == b"first\0"
                # As the service's peer has it: blocking, and for as long as it likes.
                assert ours.getblocking()
                assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16) == bytes(16)


def test_a_service_that_accepts_no_more_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "CONNECT_SECONDS", 0.01)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        first.connect(str(tmp_path / "s"))
        with pytest.raises(TimeoutError, match="timed out"):
            connecting.connect(UnixSocket(str(tmp_path / "s")), b"")


def test_a_port_is_reached_at_its_number_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with connected(TcpPort("127.0.0.1", port, socket.AF_INET)) as ours:
            assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            listener.accept()[0].close()
            assert ours.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        connecting.connect(TcpPort("127.0.0.1", port, socket.AF_INET), b"")


def test_where_it_listens_is_said() -> None:
    assert connecting.name_of(UnixSocket("/a/b")) == "/a/b"
    assert connecting.name_of(TcpPort("::1", 80, socket.AF_INET6)) == "port 80 of ::1"
