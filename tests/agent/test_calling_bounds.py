"""Programs that call: what a bad one cannot do, how many there may be, and who may in dom0."""

from __future__ import annotations

import array
import errno
import os
import socket
from pathlib import Path

import pytest
import trio
import trio.testing
from pedos_agent.calls import callers, members
from pedos_host.unix import PacketListener
from pedos_protocol.call_link import (
    DATAGRAM_MAX,
    Started,
    build,
)
from pedos_vchan.call_crew import crew

from .calling_world import CALL, World, until_aborted
from .conftest import make_settings


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "raw",
    [
        b"\x01",
        b"\x63",
        build(Started("", "")),
        build(CALL) + b"x",
        b"\x01" + b"x" * 5000,
        build(CALL),
    ],
    ids=["cut", "unknown", "an agent's", "left over", "too long", "without descriptors"],
)
async def test_a_breach_ends_that_connection_alone(world: World, raw: bytes) -> None:
    before = descriptors()
    for passed in (0, 2, 4, 100):
        client = world.connect()
        rights = array.array("i", [client.packets.fileno()] * passed)
        with client.plain() as plain:
            plain.sendmsg([raw], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] * bool(passed))
        assert await client.hear() is None
        client.close()
    await world.until(lambda: descriptors() <= before)
    assert not world.asked
    assert (await world.run())[0].exit_status == 3


async def test_a_second_call_at_once_is_a_breach(world: World) -> None:
    world.behave = until_aborted
    client = world.connect()
    client.call()
    assert isinstance(await client.hear(), Started)
    client.send(CALL, *[client.packets.fileno()] * 3)
    await world.until(world.ended)
    assert world.ended()[0]["kind"] == "aborted"
    assert len(world.asked) == 1


async def test_the_wrong_end_of_a_pipe_is_refused_in_words(world: World, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    readable, writable = os.pipe()
    nothing = os.open(tmp_path / "fifo", os.O_PATH)
    both = os.open(tmp_path / "fifo", os.O_RDWR)
    for place, bad in ((0, writable), (1, readable), (2, readable), (0, nothing), (1, nothing)):
        client = world.connect()
        three = [both] * 3
        three[place] = bad
        client.send(CALL, *three)
        end = await client.end()
        said = f"usage: {callers.STREAMS[place]} is the wrong end of a pipe"
        assert (end.exit_status, end.text) == (125, said)
        client.close()
    assert not world.asked
    for each in (readable, writable, nothing, both):
        os.close(each)


async def test_no_descriptor_is_carried_that_could_make_the_agent_wait(
    world: World, tmp_path: Path
) -> None:
    file = os.open(tmp_path, os.O_RDONLY)
    good, other = socket.socketpair()
    datagrams, last = socket.socketpair(type=socket.SOCK_DGRAM)
    listening = socket.socket()
    listening.listen()
    before = descriptors()
    for bad, what in (
        (file, "neither a pipe nor a socket"),
        (datagrams.fileno(), "a socket that carries no stream"),
        (listening.fileno(), "a socket that carries no stream"),
    ):
        for place, name in enumerate(callers.STREAMS):
            client = world.connect()
            three = [good.fileno()] * 3
            three[place] = bad
            client.send(CALL, *three)
            end = await client.end()
            assert (end.exit_status, end.text) == (125, f"usage: {name} is {what}")
            client.close()
    await world.until(lambda: descriptors() <= before)
    os.close(file)
    for each in (good, other, datagrams, last, listening):
        each.close()
    assert not world.asked


async def test_the_agent_hangs_up_after_a_last_call_that_it_does_not_carry(world: World) -> None:
    nothing = os.open("/dev/null", os.O_RDWR)
    client = world.connect()
    client.send(CALL._replace(is_last=True), *[nothing] * 3)
    assert (await client.end()).exit_status == 125
    assert await client.hear() is None
    os.close(nothing)


async def test_places_are_bounded_and_one_user_leaves_some_to_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "OF_ONE_USER_MAX", 2)
    silent = [world.connect() for _ in range(2)]
    end, _, _ = await world.run()
    assert end.text == "quota: 2 programs of this user call services, which is the most"
    assert end.hint == "end some of them: ss -xp shows which they are"
    monkeypatch.setattr(callers, "CALLERS_MAX", 2)
    end, _, _ = await world.run()
    assert end.text == "quota: 2 programs of this VM call services, which is the most"
    silent[0].close()
    monkeypatch.undo()
    assert (await world.run())[0].exit_status == 3


async def test_a_connection_without_calls_is_closed(
    world: World, autojump_clock: trio.abc.Clock
) -> None:
    client = world.connect()
    with trio.fail_after(2 * callers.IDLE_SECONDS):
        assert await client.packets.receive(DATAGRAM_MAX) == b""


async def test_one_that_cannot_be_accepted_is_later(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(callers, "ACCEPT_RETRY", 0.001)
    accept, lacks = PacketListener.take_now, [OSError(errno.EMFILE, "too many open files")]

    def lacking(listener: PacketListener) -> tuple[int, int]:
        if lacks:
            raise lacks.pop()
        return accept(listener)

    monkeypatch.setattr(PacketListener, "take_now", lacking)
    assert (await world.run())[0].exit_status == 3
    assert "a program could not call: too many open files" in caplog.text


async def test_the_socket_comes_back_if_its_name_is_taken(
    world: World, autojump_clock: trio.abc.Clock
) -> None:
    world.path.unlink()
    with trio.fail_after(2 * callers.NAME_LOOK):
        while not world.path.exists():  # noqa: ASYNC110 - it is the agent's
            await trio.sleep(0.1)
    client = world.connect()
    client.send(CALL)  # without descriptors, which is the end
    assert await client.hear() is None


async def test_calls_leave_nothing(world: World) -> None:
    client = world.connect()
    before = 0
    for number in range(50):
        await client.run(CALL, b"x")
        await world.until(world.theirs.idle)  # so that there is one channel
        if number == 0:
            before = descriptors()
    await world.until(lambda: descriptors() <= before)
    assert not world.calls._running and not world.calls._killed_early


async def test_what_the_agent_s_end_cuts_off_is_closed(tmp_path: Path) -> None:
    crew()  # the loop's, which has a descriptor
    before = descriptors()
    async with trio.open_nursery() as nursery:
        world = World(make_settings(tmp_path, "work", 2), nursery)
        await nursery.start(world.theirs.run)
        await nursery.start(world.calls.run)
        world.behave = until_aborted
        client = world.connect()
        client.call()
        assert isinstance(await client.hear(), Started)
        nursery.cancel_scope.cancel()
    end = await client.end()
    assert end.exit_status == 125
    assert await client.hear() is None
    for each in world.services:
        each.close()
    world.close()
    assert descriptors() <= before
    assert not world.path.exists()


# In dom0


class Somebody:
    """The other end of a connection, as far as `members` looks."""

    def __init__(self, uid: int, *groups: int) -> None:
        self.uid = uid
        self.groups = groups

    @property
    def credentials(self) -> Somebody:
        return self


@pytest.mark.parametrize(
    ("uid", "groups", "why"),
    [
        (0, [], None),
        (os.geteuid(), [], None),
        (1000, [7, 4711], None),
        (1000, [7], "only root and members of the group pedos may call services from dom0"),
    ],
)
def test_in_dom0_root_and_the_desktop_s_users_call(
    monkeypatch: pytest.MonkeyPatch, uid: int, groups: list[int], why: str | None
) -> None:
    class Group:
        gr_gid = 4711

    monkeypatch.setattr("grp.getgrnam", lambda name: Group)
    assert members.in_dom0()(Somebody(uid, *groups)) == why  # type: ignore[arg-type]


def test_without_the_group_dom0_s_services_are_root_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr("grp.getgrnam", unknown)
    why = members.in_dom0()(Somebody(1000, 4711))  # type: ignore[arg-type]
    assert why == (
        "only root may call services from dom0: "
        "there was no group pedos when pedos-dom0-agent started"
    )


def test_the_own_group_of_a_user_called_like_the_group_is_nobody_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Entry:
        gr_gid = pw_gid = 4711

    monkeypatch.setattr("grp.getgrnam", lambda name: Entry)
    monkeypatch.setattr("pwd.getpwnam", lambda name: Entry)
    why = members.in_dom0()(Somebody(1000, 4711))  # type: ignore[arg-type]
    assert why == (
        "only root may call services from dom0: "
        "the group 'pedos' is the own one of the user 'pedos' (docs/desktop.md)"
    )
    assert members.in_dom0()(Somebody(0)) is None  # type: ignore[arg-type]
