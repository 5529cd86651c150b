"""The connection that is made again: when, and what is said of it meanwhile."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pedos_cli.client
import pedos_widget.link
import pytest
import trio
import trio.testing
from pedos_cli.client import Unreachable
from pedos_host.unix import listen_unix
from pedos_protocol.errors import CallError
from pedos_vchan.peer import Peer
from pedos_vchan.refusal import refuse
from pedos_widget.controller import Controller
from pedos_widget.link import CONNECT_S, RETRY_FIRST_S, RETRY_MAX_S, Link


class User:
    """Of a link: notes when it is connected and why it is not."""

    def __init__(self, path: Path | str | None) -> None:
        place = None if path is None else str(path)
        self.link = Link(place, "test", self.serve, self.lost)
        self.peers: list[Peer] = []
        self.reasons: list[str] = []
        self.times: list[float] = []
        self.something = trio.Event()

    async def serve(self, peer: Peer) -> None:
        self.peers.append(peer)
        self.link.works()
        self._note()
        await trio.sleep_forever()

    def lost(self, why: str) -> None:
        self.reasons.append(why)
        self.times.append(trio.current_time())
        self._note()

    def _note(self) -> None:
        self.something.set()
        self.something = trio.Event()


async def serve_nothing(stream: trio.abc.Stream) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await Peer(stream, program="x", handlers={}).run()


async def test_attempts_are_rarer_and_rarer_and_soon_again_after_a_success(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_there = False

    async def connect(_path: str) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if not is_there:
            raise BlockingIOError
        here, there = trio.testing.memory_stream_pair()

        nursery.start_soon(serve_nothing, there)
        return here

    monkeypatch.setattr(pedos_widget.link, "connect_unix", connect)
    user = User("/nowhere")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(user.link.run)
        await trio.sleep(30)
        gaps = [later - earlier for earlier, later in zip(user.times, user.times[1:], strict=False)]
        assert gaps[:5] == pytest.approx([RETRY_FIRST_S * 2**n for n in range(5)])
        assert gaps[5:]
        assert gaps[5:] == pytest.approx([RETRY_MAX_S] * len(gaps[5:]))
        assert user.reasons[-1].startswith("dom0's service cannot be reached")
        is_there = True
        await trio.sleep(RETRY_MAX_S)
        assert len(user.peers) == 1
        user.peers[0].close()
        await trio.sleep(2 * RETRY_FIRST_S)
        assert len(user.peers) == 2
        nursery.cancel_scope.cancel()


async def test_a_service_that_hangs_is_not_said_to_be_of_another_version(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = b""
    others: list[trio.abc.Stream] = []

    async def connect(_path: str) -> trio.abc.Stream:
        here, there = trio.testing.memory_stream_pair()
        others.append(there)
        await there.send_all(said)
        return here

    monkeypatch.setattr(pedos_widget.link, "connect_unix", connect)
    user = User("/nowhere")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(user.link.run)
        await user.something.wait()
        assert user.reasons == ["dom0's service does not answer."]
        said = bytes(64)
        await user.something.wait()
        assert "perhaps it is of another version" in user.reasons[-1]
        nursery.cancel_scope.cancel()


class Desk:
    async def ask(self, _method: str, _params: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def cancel(self, _request: str, _reason: str) -> None: ...

    def gone(self) -> None: ...


async def test_who_looks_has_both_connections_tried(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    async def connect(path: str) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        tried.append(path)
        raise FileNotFoundError

    monkeypatch.setattr(pedos_widget.link, "connect_unix", connect)
    (tmp_path / "run/pedos").mkdir(parents=True)
    controller = Controller(tmp_path / "run/pedos/socket", memory=tmp_path / "pairs")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(controller.run)
        controller.ask_by(Desk())
        await trio.sleep(60)
        tried.clear()
        await trio.sleep(3600)
        assert not tried
        controller.opened()
        await trio.testing.wait_all_tasks_blocked()
        assert len(tried) == 2
        nursery.cancel_scope.cancel()


async def test_a_service_that_is_not_there_is_seen_to_come(tmp_path: Path) -> None:
    path = tmp_path / "run/pedos/socket"
    (tmp_path / "run").mkdir()
    user = User(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(user.link.run)
        await user.something.wait()
        path.parent.mkdir()
        with contextlib.closing(await listen_unix(path, 0o600)) as listener:
            nursery.start_soon(trio.serve_listeners, serve_nothing, [listener])
            while not user.peers:
                await user.something.wait()
            nursery.cancel_scope.cancel()


async def test_a_link_is_made_again_at_once_when_it_is_given_up(tmp_path: Path) -> None:
    user = User(tmp_path / "socket")
    with contextlib.closing(await listen_unix(tmp_path / "socket", 0o600)) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve_nothing, [listener])
            nursery.start_soon(user.link.run)
            for times in (1, 2):
                while len(user.peers) < times:
                    await user.something.wait()
                user.link.give_up("It hangs.")
                while len(user.reasons) < times:
                    await user.something.wait()
            assert user.reasons == ["It hangs."] * 2
            nursery.cancel_scope.cancel()


NOT_OURS, NONE, DEAF = PermissionError(), FileNotFoundError(), ConnectionRefusedError()


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ([None], ""),
        ([NOT_OURS, None], ""),
        ([NONE], "does not run: there is no socket at root."),
        ([NOT_OURS, NONE], "may not use dom0's service at root; members of group pedos may."),
        ([NOT_OURS, NOT_OURS], "dom0's service at desktop; members of group pedos may."),
        ([NOT_OURS, DEAF], "does not run: nothing listens at desktop."),
    ],
)
async def test_a_user_who_may_not_open_roots_socket_takes_that_of_the_desktop(
    errors: list[OSError | None],
    reason: str,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    async def connect(path: str) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        asked.append(path)
        error = errors[len(asked) - 1]
        if error is not None:
            raise error
        here, there = trio.testing.memory_stream_pair()
        nursery.start_soon(Peer(there, program="x", handlers={}).run)
        return here

    monkeypatch.setattr(pedos_widget.link, "connect_unix", connect)
    monkeypatch.setattr(pedos_cli.client, "DEFAULT_SOCKET", "root")
    monkeypatch.setattr(pedos_cli.client, "DESKTOP_SOCKET", "desktop")
    monkeypatch.delenv("PEDOS_SOCKET", raising=False)
    user = User(None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(user.link.run)
        await user.something.wait()
        nursery.cancel_scope.cancel()
    assert asked == ["root", "desktop"][: len(errors)]
    assert bool(user.peers) == (not reason)
    assert all(each.endswith(reason) for each in user.reasons)


async def test_a_call_says_whether_it_may_have_been_done(tmp_path: Path) -> None:
    path = tmp_path / "dom0.sock"

    async def drop(peer: Peer, _params: dict[str, Any]) -> None:
        peer.close()
        await trio.sleep_forever()

    async def fail(_peer: Peer, _params: dict[str, Any]) -> None:
        raise CallError("unavailable", "the agent of work is not connected")

    async def serve(stream: trio.SocketStream) -> None:
        await Peer(stream, program="x", handlers={"test.drop": drop, "test.fail": fail}).run()

    user = User(path)
    with pytest.raises(Unreachable) as caught:
        await user.link.call("test.drop", {}, timeout_s=60)
    assert not caught.value.lost
    with contextlib.closing(await listen_unix(path, 0o600)) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            nursery.start_soon(user.link.run)
            await user.something.wait()
            with pytest.raises(CallError, match="the agent of work"):
                await user.link.call("test.fail", {}, timeout_s=60)
            with pytest.raises(Unreachable) as caught:
                await user.link.call("test.drop", {}, timeout_s=60)
            assert caught.value.lost
            nursery.cancel_scope.cancel()


async def test_the_services_refusal_is_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "dom0.sock"

    async def serve(stream: trio.SocketStream) -> None:
        await refuse(stream, "x", CallError("denied", "this user is not in the group pedos"))

    user = User(path)
    with contextlib.closing(await listen_unix(path, 0o600)) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            nursery.start_soon(user.link.run)
            while not user.reasons:
                await user.something.wait()
            nursery.cancel_scope.cancel()
    assert user.reasons[0].endswith("refuses this program: this user is not in the group pedos.")


async def test_a_service_that_takes_no_connection_is_given_up_for_a_while(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_path: str) -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(pedos_widget.link, "connect_unix", hang)
    user = User("/nowhere")
    with trio.move_on_after(CONNECT_S + 0.1):
        await user.link.run()
    assert user.reasons == ["dom0's service takes no connection at /nowhere."]


async def test_what_is_no_service_is_said_to_be_another_version(tmp_path: Path) -> None:
    path = tmp_path / "dom0.sock"

    async def serve(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    user = User(path)
    with contextlib.closing(await listen_unix(path, 0o600)) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            nursery.start_soon(user.link.run)
            while not user.reasons:
                await user.something.wait()
            nursery.cancel_scope.cancel()
    assert "cannot be understood" in user.reasons[0]
