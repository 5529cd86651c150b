"""The command line's blocking client, against a peer."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from pedos_cli import answers, client
from pedos_cli.client import Client, Unreachable, connect, open_socket
from pedos_cli.prompt_link import Link
from pedos_host.plain_unix import short_path
from pedos_host.unix import listen_unix
from pedos_protocol import codec
from pedos_protocol.errors import CallError, LocalProtocolError, RemoteProtocolError
from pedos_protocol.events import REFUSED, Notice
from pedos_vchan.peer import Peer

from tests.patience import PATIENCE


async def echo(_peer: Peer, params: dict[str, Any]) -> dict[str, Any]:
    return params


async def busy(_peer: Peer, _params: dict[str, Any]) -> None:
    raise CallError("busy", "it is attached to work", {"hint": "detach it"})


async def forever(_peer: Peer, _params: dict[str, Any]) -> None:
    await trio.sleep_forever()


async def watch(peer: Peer, _params: dict[str, Any]) -> dict[str, Any]:
    for number in range(3):
        await peer.notify("test.event", {"revision": number})
    return {"revision": 0}


async def leave(peer: Peer, _params: dict[str, Any]) -> None:
    peer.close()
    await trio.sleep_forever()


HANDLERS = {
    "test.echo": echo,
    "test.busy": busy,
    "test.forever": forever,
    "test.leave": leave,
    "test.watch": watch,
}


@contextlib.asynccontextmanager
async def service(path: Path) -> AsyncIterator[None]:
    async def serve(stream: trio.SocketStream) -> None:
        await Peer(stream, program="served 1", handlers=HANDLERS).run()

    listener = await listen_unix(path, 0o600)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            yield
            nursery.cancel_scope.cancel()


async def in_thread(command: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(command)


@pytest.mark.parametrize("folder", ["x", "x" * 200])
async def test_a_command_calls_the_service_at_a_path_of_any_length(
    folder: str, tmp_path: Path
) -> None:
    path = tmp_path / folder / "dom0.sock"
    path.parent.mkdir()

    def command() -> None:
        with connect(str(path)) as client:
            large = {"x": b"x" * 60_000}
            assert client.call("test.echo", large, 5) == large
            assert client.call("test.echo", {}, 5) == {}

    async with service(path):
        await in_thread(command)


async def test_a_command_finds_the_socket_by_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEDOS_SOCKET", str(tmp_path / "sock"))

    def command() -> None:
        with connect() as client:
            assert client.call("test.echo", {"a": 1}, 5) == {"a": 1}

    async with service(tmp_path / "sock"):
        await in_thread(command)


async def test_an_error_answer_is_raised(tmp_path: Path) -> None:
    def command() -> None:
        with connect(str(tmp_path / "sock")) as client:
            with pytest.raises(CallError) as caught:
                client.call("test.busy", {}, 5)
            assert (caught.value.code, caught.value.data) == ("busy", {"hint": "detach it"})
            with pytest.raises(CallError, match="is not served here"):
                client.call("test.unknown", {}, 5)
            with pytest.raises(LocalProtocolError):
                client.call("test.echo", {"x": object()}, 5)
            with pytest.raises(LocalProtocolError):
                client.call("test.echo", {"x": "\udc80"}, 5)  # how Python shows an odd argument
            assert client.call("test.echo", {}, 5) == {}

    async with service(tmp_path / "sock"):
        await in_thread(command)


async def test_the_service_says_that_the_time_is_up(tmp_path: Path) -> None:
    def command() -> None:
        with connect(str(tmp_path / "sock")) as client:
            with pytest.raises(CallError, match="was not done within") as caught:
                client.call("test.forever", {}, 0.05)
            assert caught.value.code == "timeout"

    async with service(tmp_path / "sock"):
        await in_thread(command)


async def test_notices_that_come_before_an_answer_are_passed_over(tmp_path: Path) -> None:
    def command() -> None:
        with connect(str(tmp_path / "sock")) as client:
            assert client.call("test.watch", {}, 5) == {"revision": 0}
            assert client.call("test.echo", {"a": 1}, 5) == {"a": 1}

    async with service(tmp_path / "sock"):
        await in_thread(command)


async def test_a_service_that_goes_away_is_unreachable(tmp_path: Path) -> None:
    def command() -> None:
        with connect(str(tmp_path / "sock")) as client:
            with pytest.raises(Unreachable, match="has closed the connection") as caught:
                client.call("test.leave", {}, 5)
            assert caught.value.path == str(tmp_path / "sock")

    async with service(tmp_path / "sock"):
        await in_thread(command)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing", "there is no such socket"),
        ("x" * 150 + "/missing", "there is no such socket"),
        ("file", "it is no socket"),
        ("file/below", "not a directory"),
        ("x" * 200, "path too long"),
    ],
)
def test_nobody_there(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unreachable, match=why) as caught:
        connect(str(tmp_path / name))
    assert caught.value.path == str(tmp_path / name)


@contextlib.contextmanager
def fake_service(path: Path, says: bytes) -> Any:
    """A service that says this and reads nothing."""
    with socket.socket(socket.AF_UNIX) as server:
        with short_path(path) as short:
            server.bind(short)
        server.listen()
        client = connect(str(path))
        with client, server.accept()[0] as connection:
            connection.sendall(says)
            yield client, connection


def call(client: Client) -> dict[str, Any]:
    return client.call("vm.list", {}, 0.01)


hello = codec.encode([2, "hello", {"versions": [1, 1], "program": "fake"}])


@pytest.mark.parametrize(
    ("says", "error", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", RemoteProtocolError, "is announced"),
        (codec.encode([1, 1, None, {}]), RemoteProtocolError, "in state START"),
        (hello + codec.encode([1, 2, None, {}]), RemoteProtocolError, "to no request"),
        (
            hello + codec.encode([0, 1, "vm.list", {"deadline_ms": 5}]),
            RemoteProtocolError,
            "request of a command",
        ),
        (hello, CallError, "the request to list the VMs was not answered within 0.01 s"),
    ],
)
def test_a_service_that_speaks_something_else(
    says: bytes, error: type[Exception], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pedos_cli.client.GRACE", 0.0)
    with fake_service(tmp_path / "sock", says) as (client, _), pytest.raises(error, match=why):
        call(client)


def test_a_service_that_dies_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    with fake_service(tmp_path / "sock", hello[:-1]) as (client, connection):
        connection.shutdown(socket.SHUT_WR)
        with pytest.raises(RemoteProtocolError, match="within a frame"):
            call(client)
    with fake_service(tmp_path / "sock2", hello) as (client, connection):
        connection.close()  # with the request unread: the client sees a reset
        with pytest.raises(Unreachable, match="connection"):
            call(client)


full = codec.encode([2, "connection.refused", {"code": "quota", "message": "full", "data": {}}])


@pytest.mark.parametrize("asks_before", [False, True])
def test_a_refused_client_hears_why_whatever_becomes_of_its_request(
    asks_before: bool, tmp_path: Path
) -> None:
    with fake_service(tmp_path / "sock", hello + full) as (client, connection):
        if asks_before:
            client._socket.send(b"\x00")  # unread at the end: a reset; else the pipe is broken
        connection.close()
        with pytest.raises(CallError, match="full") as caught:
            call(client)
        assert caught.value.code == "quota"


@pytest.mark.parametrize(("says", "lost"), [(b"", False), (hello, True)])
def test_what_was_asked_for_may_be_done_only_if_the_service_had_said_hello(
    says: bytes, lost: bool, tmp_path: Path
) -> None:
    with fake_service(tmp_path / "sock", says) as (client, connection):
        connection.close()
        with pytest.raises(Unreachable, match="connection") as caught:
            call(client)
        assert caught.value.lost == lost


@pytest.mark.parametrize("params", [{}, {"code": "?", "message": "", "data": {}}, {"code": 1}])
def test_a_refusal_without_a_proper_reason_is_none(params: object, tmp_path: Path) -> None:
    says = hello + codec.encode([2, "connection.refused", params])
    wrong = pytest.raises(RemoteProtocolError, match="without a proper reason")
    with fake_service(tmp_path / "sock", says) as (client, _), wrong:
        call(client)


def test_a_prompter_that_is_refused_hears_why(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as server:
        with short_path(path) as short:
            server.bind(short)
        server.listen()
        link = Link(str(path))
        with contextlib.closing(link):
            with server.accept()[0] as connection:
                connection.sendall(hello + full)  # and the end, with what it asked for unread
            events = link.receive()
    assert isinstance(events[-1], Notice) and events[-1].method == REFUSED


def test_a_service_that_takes_no_connection_is_unreachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pedos_cli.client.CONNECT_PATIENCE", 0)
    monkeypatch.setattr("pedos_cli.client.pack", lambda form, _s, _us: struct.pack(form, 0, 1000))
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as deaf, socket.socket(socket.AF_UNIX) as first:
        with short_path(path) as short:
            deaf.bind(short)
        deaf.listen(0)
        with short_path(path) as short:
            first.connect(short)
        with pytest.raises(Unreachable, match="took no new connection"):
            connect(str(path))


def test_what_is_no_socket_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("/dev/null")
    for path in ("/dev/null", str(tmp_path), str(tmp_path / "file"), str(tmp_path / "link")):
        with pytest.raises(Unreachable, match="it is no socket"):
            connect(path)
    with socket.socket(socket.AF_UNIX) as deaf, short_path(tmp_path / "sock") as short:
        deaf.bind(short)
        with pytest.raises(Unreachable, match="no program listens there"):
            connect(str(tmp_path / "sock"))


def test_who_speaks_the_protocol_by_itself_gets_a_socket_and_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEDOS_SOCKET", str(tmp_path / "dom0.sock"))
    with pytest.raises(Unreachable, match="there is no such socket"):
        open_socket()
    with socket.socket(socket.AF_UNIX) as listener:
        with short_path(tmp_path / "dom0.sock") as short:
            listener.bind(short)
        listener.listen()
        opened, path = open_socket()
        accepted, _ = listener.accept()
        with accepted:
            opened.sendall(b"anything")
            opened.close()
            assert accepted.recv(100) == b"anything"
        assert path == str(tmp_path / "dom0.sock")


def listening_at(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    with short_path(path) as short:
        listener.bind(short)
    listener.listen()
    return listener


@pytest.fixture
def usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The usual places: root's own socket, and the one of dom0's desktop."""
    monkeypatch.delenv("PEDOS_SOCKET", raising=False)
    roots, desktops = tmp_path / "roots.sock", tmp_path / "desktops.sock"
    monkeypatch.setattr(client, "DEFAULT_SOCKET", str(roots))
    monkeypatch.setattr(client, "DESKTOP_SOCKET", str(desktops))
    return roots, desktops


def close_to_us(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """As the modes of folders and files do to a user who is not root."""
    connect_really = client._connect

    def refuse(sock: socket.socket, path: str) -> None:
        if Path(path) in paths:
            raise PermissionError(13, "Permission denied")
        connect_really(sock, path)

    monkeypatch.setattr(client, "_connect", refuse)


def test_root_uses_its_own_socket_though_there_is_the_desktops(usual: tuple[Path, Path]) -> None:
    roots, desktops = usual
    with listening_at(roots), listening_at(desktops):
        opened, path = open_socket()
        opened.close()
    assert path == str(roots)


def test_who_may_not_open_roots_socket_uses_the_desktops(
    usual: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    roots, desktops = usual
    close_to_us(monkeypatch, roots)
    with listening_at(desktops):
        opened, path = open_socket()
        opened.close()
    assert path == str(desktops)


def test_what_is_wrong_with_roots_socket_is_said_where_the_desktop_has_none(
    usual: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    roots, desktops = usual
    with listening_at(desktops), pytest.raises(Unreachable, match="no such socket") as caught:
        open_socket()  # the service does not run: its desktop's socket would be old
    assert caught.value.path == str(roots)
    desktops.unlink()
    close_to_us(monkeypatch, roots)
    with pytest.raises(Unreachable, match="permission denied") as caught:
        open_socket()
    assert caught.value.path == str(roots)
    assert isinstance(caught.value.__cause__, PermissionError)


def test_a_named_socket_is_the_only_one(
    usual: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    roots, desktops = usual
    close_to_us(monkeypatch, roots)
    monkeypatch.setenv("PEDOS_SOCKET", str(roots))
    with listening_at(desktops), pytest.raises(Unreachable, match="permission denied"):
        open_socket()


@pytest.mark.parametrize("has_joined", [False, True])
def test_who_may_open_neither_is_told_of_the_group(
    usual: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, has_joined: bool
) -> None:
    monkeypatch.setattr(answers, "DESKTOP_SOCKET", str(usual[1]))
    monkeypatch.setattr(answers, "_has_joined", lambda _group: has_joined)
    close_to_us(monkeypatch, *usual)
    with pytest.raises(Unreachable) as caught:
        open_socket()
    lines = answers.unreachable_lines("qvm-device", caught.value)
    if has_joined:
        assert lines[1] == "  try:  log out, and in again"
        assert "this session began before" in lines[0]
    else:
        assert "answers root, and members of the group 'pedos'" in lines[0]
        assert lines[1].startswith("  try:  sudo adduser $USER pedos, and log in again: ")
        assert "docs/desktop.md" in lines[1]


def test_who_has_joined_is_told_by_the_group_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not answers._has_joined("no-such-group-here")
