"""Who is the session of a VM, and what it may do: a hostile user of the VM hears nothing, cannot
speak as the microphone, keeps the rightful session out for a moment at most, and costs the agent a
bounded part of what it has."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from pedos_agent.__main__ import main
from pedos_agent.device_classes.mic import link_server, session, who
from pedos_agent.device_classes.mic.link_server import LinkServer
from pedos_agent.device_classes.mic.who import AtSeat, Rule, at_seat
from pedos_agent.settings import Settings, xen_settings
from pedos_host.packets import PacketSocket
from pedos_host.unix import PacketListener
from pedos_protocol import sound_link
from pedos_protocol.errors import CallError
from pedos_protocol.sound_link import (
    DATAGRAM_MAX,
    DEVICES_MAX,
    Device,
    Devices,
    Ended,
    Failed,
    Hello,
    Listening,
    Ready,
    Refused,
    Server,
    Welcome,
)

from tests.lingering import until
from tests.patience import PATIENCE

from .sound_session import HEADSET, MIC, FakeSession

ALICE, BOB, GREETER = 1000, 1001, 113


# Who


@pytest.mark.parametrize(
    ("rule", "uid", "why"),
    [
        (Rule(own=0), 0, None),
        (Rule(own=1000), 0, "another user's"),
        (Rule(own=1000), 1001, "another user's"),
        (Rule(), ALICE, None),
        (Rule(), 0, "root"),
        (Rule(), GREETER, "no person's"),
        (Rule(), 65534, "no person's"),  # nobody
        (Rule(), 61184, "no person's"),  # a service of systemd's
        (Rule(), 60001, None),  # systemd-homed
        (Rule(), 1_234_567, None),  # a directory's
        (Rule(named=ALICE), ALICE, None),
        (Rule(named=ALICE), BOB, "another user is to have"),
        (Rule(named=0), 0, "root"),
        (Rule(named=GREETER), GREETER, None),  # the administrator knows better
        (Rule(seat=AtSeat(ALICE)), ALICE, None),
        (Rule(seat=AtSeat(ALICE)), BOB, "another user is at the screen"),
        (Rule(seat=AtSeat(GREETER, is_program=True)), ALICE, "no user is at the screen"),
        (Rule(seat=AtSeat(GREETER, is_program=True)), GREETER, "no person's"),
    ],
)
def test_who_has_the_microphones(rule: Rule, uid: int, why: str | None) -> None:
    refusal = rule.refusal(uid)
    assert refusal == why or (why is not None and why in str(refusal))


def test_a_locked_screen_takes_nothing_away() -> None:
    locked = Rule(seat=AtSeat(GREETER, is_program=True))
    assert locked.may_keep(ALICE)
    assert not Rule(seat=AtSeat(BOB)).may_keep(ALICE)
    assert Rule(seat=AtSeat(None)).may_keep(ALICE)
    assert not Rule(named=BOB, seat=locked.seat).may_keep(ALICE)


def test_who_is_at_the_seat_is_what_logind_says(tmp_path: Path) -> None:
    assert at_seat(tmp_path) == AtSeat(None)
    for text, expected in [
        ("IS_SEAT0=1\nACTIVE=2\nACTIVE_UID=1000\nSESSIONS=2 1\n", AtSeat(1000)),
        ("ACTIVE_UID=113\n", AtSeat(113, is_program=True)),
        ("IS_SEAT0=1\nCAN_TTY=1\n", AtSeat(None)),
        ("ACTIVE_UID=-1\n", AtSeat(None)),
        ("ACTIVE_UID=\n", AtSeat(None)),
    ]:
        (tmp_path / "seat0").write_text(text)
        assert at_seat(tmp_path) == expected


async def test_a_named_user_may_have_a_name_or_a_number(tmp_path: Path) -> None:
    for user, uid in (("1001", 1001), ("daemon", 1)):
        assert await who.rule(on_xen(tmp_path, sound_user=user)) == Rule(named=uid)
    with pytest.raises(PermissionError, match="nobody-here: there is no such user"):
        await who.rule(on_xen(tmp_path, sound_user="nobody-here"))


async def test_a_seat_that_cannot_be_told_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "seat0").mkdir()
    with pytest.raises(PermissionError, match="cannot be told: Is a directory"):
        await who.rule(on_xen(tmp_path), tmp_path)


LOCAL = [
    *("--driver", "local", "--vm", "a", "--domid", "3", "--vchan", "/v"),
    *("--devices", "/d", "--dev", "/e", "--socket", "/s"),
]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--driver", "xen", "--socket", "/s", "--sound-user", "x"], "needs --sound-socket"),
        ([*LOCAL, "--sound-socket", "/t", "--sound-user", "x"], "only for --driver xen"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert why in capsys.readouterr().err


# One session at a time


def on_xen(root: Path, **more: Any) -> Settings:
    return xen_settings("work", 3, root / "s", None, sound=root / "sound", **more)


@attrs.define(eq=False)
class World:
    """A server of sessions, whose clients may be of any user, and a seat."""

    server: LinkServer
    seats: Path
    nursery: trio.Nursery
    path: Path
    uids: list[int] = attrs.field(factory=list)

    def sit(self, uid: int | None) -> None:
        """Another user comes to the screen, as logind writes it."""
        new = self.seats / ".new"
        new.write_text("" if uid is None else f"ACTIVE_UID={uid}\n")
        new.rename(self.seats / "seat0")

    async def comes(self, uid: int, *devices: Device) -> FakeSession:
        self.uids.append(uid)
        session = FakeSession(self.path)
        with contextlib.suppress(OSError):  # refused already
            session.greet(*devices)
        await self.nursery.start(session.run)
        return session

    async def until(self, wanted: Callable[[], Any]) -> Any:
        with trio.fail_after(PATIENCE):
            while not (result := wanted()):
                await self.server.changed.after(self.server.changed.number)
        return result

    async def usable(self) -> session.Session:
        with trio.fail_after(PATIENCE):
            return await self.server.until_usable()


@pytest.fixture
async def world(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    seats = tmp_path / "seats"
    seats.mkdir()
    made = World(
        LinkServer(tmp_path / "sound", on_xen(tmp_path), seats),
        *(seats, nursery, tmp_path / "sound"),
    )

    def uid(packets: PacketSocket) -> int:
        if "as_if" not in vars(packets):
            vars(packets)["as_if"] = made.uids.pop(0)
        return int(vars(packets)["as_if"])

    monkeypatch.setattr(PacketSocket, "uid", property(uid))
    await nursery.start(made.server.run)
    yield made


@pytest.mark.skipif(os.getuid() != 0, reason="it is told to root")
async def test_any_user_of_the_vm_may_connect_and_is_judged_by_the_kernel_s_word(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    server = LinkServer(tmp_path / "sound", on_xen(tmp_path))
    await nursery.start(server.run)
    assert (tmp_path / "sound").stat().st_mode & 0o777 == 0o666
    client = FakeSession(tmp_path / "sound")
    await nursery.start(client.run)
    assert client.refused == "root has no session with sound"


CLIENT = """
import os, socket, sys
path, hello, uid = sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3])
os.setgid(uid)
os.setuid(uid)
client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
client.connect(path)
client.send(hello)
print(client.recv(1000).hex())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be other users")
@pytest.mark.parametrize(
    ("uid", "answer"),
    [
        (ALICE, Welcome(1)),
        (BOB, Refused("another user is at the screen")),
        (65534, Refused("the user 65534 is a program's and no person's")),
    ],
)
async def test_programs_of_other_users_are_told_apart(
    tmp_path: Path, nursery: trio.Nursery, uid: int, answer: sound_link.Message
) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are for its user alone
        Path(folder).chmod(0o711)
        settings = attrs.evolve(on_xen(tmp_path), sound=Path(folder) / "sound")
        (tmp_path / "seat0").write_text(f"ACTIVE_UID={ALICE}\n")
        await nursery.start(LinkServer(Path(folder) / "sound", settings, tmp_path).run)
        command = [sys.executable, "-c", CLIENT, f"{folder}/sound"]
        words = [sound_link.build(Hello(1, "fake")).hex(), str(uid)]
        with trio.fail_after(PATIENCE):
            done = await trio.run_process([*command, *words], capture_stdout=True)
        assert sound_link.parse(bytes.fromhex(done.stdout.decode()), sound_link.AGENT) == answer
        nursery.cancel_scope.cancel()


async def test_a_second_instance_is_told_and_the_first_goes_on(world: World) -> None:
    first = await world.comes(ALICE, MIC)
    second = await world.comes(ALICE, HEADSET)
    assert second.refused == "pedos-sound of this user is connected already"
    await second.over.wait()
    assert (await world.usable()).device("mic") == MIC
    first.close()
    await world.until(lambda: world.server.session is None)
    third = await world.comes(ALICE, HEADSET)
    assert third.refused is None
    await world.until(lambda: world.server.session.devices)
    assert (await world.usable()).device(HEADSET.id) == HEADSET


async def test_the_first_that_comes_stays_it_where_there_is_no_screen(world: World) -> None:
    await world.comes(ALICE)
    other = await world.comes(BOB)
    assert other.refused == f"the session of user {ALICE} has the microphones"


async def test_whoever_comes_to_the_screen_has_them_at_once(world: World) -> None:
    world.sit(ALICE)
    first = await world.comes(ALICE)
    await first.welcomed()
    assert (await world.comes(BOB)).refused == "another user is at the screen"
    world.sit(BOB)
    await first.over.wait()
    second = await world.comes(BOB)
    await second.welcomed()
    assert (await world.comes(ALICE)).refused == "another user is at the screen"


async def test_a_user_who_was_first_does_not_keep_the_one_at_the_screen_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Also if nobody hears that somebody has come there.
    async def never(*_args: object) -> bool:
        await trio.sleep_forever()
        return True

    monkeypatch.setattr(LinkServer, "_may_keep", never)
    hostile = await world.comes(BOB)
    world.sit(ALICE)
    session = await world.comes(ALICE)
    await session.welcomed()
    await hostile.over.wait()


async def test_a_locked_screen_lets_nobody_in_and_nobody_out(world: World) -> None:
    world.sit(ALICE)
    session = await world.comes(ALICE)
    await session.welcomed()
    world.sit(GREETER)
    assert "a password is being asked for" in str((await world.comes(BOB)).refused)
    assert (await world.usable()).uid == ALICE
    world.sit(ALICE)
    assert (await world.usable()).uid == ALICE


async def test_those_who_may_not_hold_nothing_however_many_they_are(world: World) -> None:
    world.sit(ALICE)
    await trio.testing.wait_all_tasks_blocked()
    before = len(os.listdir("/proc/self/fd"))
    world.uids += [BOB] * 500
    crowd = []
    for _ in range(500):
        crowd.append(FakeSession(world.path))
        await trio.lowlevel.checkpoint()
    session = await world.comes(ALICE)
    await session.welcomed()
    for each in crowd:
        each.close()
    session.close()
    await world.until(lambda: world.server.session is None)
    await trio.testing.wait_all_tasks_blocked()
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_one_that_says_nothing_is_no_session_for_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "HELLO_SECONDS", 0.01)
    world.uids.append(ALICE)
    silent = FakeSession(world.path)
    await world.until(lambda: world.server.session)
    await world.until(lambda: world.server.session is None)
    silent.close()


async def test_what_it_passes_beside_its_messages_fills_no_table(world: World) -> None:
    session = await world.comes(ALICE)
    await session.welcomed()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        session.send_raw(sound_link.build(Server("")), *[session.socket.fileno()] * 100)
    session.send(Devices((MIC,)))
    await world.until(lambda: world.server.session.devices)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


# What it may say

HELLO = sound_link.build(Hello(1, "fake"))
BAD = {
    "no hello": [sound_link.build(Server(""))],
    "a stream before the hello": [sound_link.build(Ready(1))],
    "a version of nobody": [sound_link.build(Hello(0, "old"))],
    "two hellos": [HELLO, HELLO],
    "an agent's message": [HELLO, sound_link.build(Welcome(1))],
    "a stream that was not given": [HELLO, sound_link.build(Ready(1))],
    "the end of one": [HELLO, sound_link.build(Ended(1, ""))],
    "stream 0": [HELLO, sound_link.build(Listening(0, True))],
    "an unknown type": [HELLO, b"\x08\x01"],
    "bytes left over": [HELLO, sound_link.build(Server("")) + b"x"],
    "a cut message": [HELLO, sound_link.build(Server("abc"))[:-1]],
    "too many devices": [HELLO, b"\x03" + (DEVICES_MAX + 1).to_bytes(2, "little")],
    "too long": [HELLO, b"\x02" + bytes(DATAGRAM_MAX)],
    "one too long by a byte": [HELLO, b"\x02\xff\xff" + bytes(DATAGRAM_MAX - 2)],
    "no UTF-8": [HELLO, b"\x02\x01\x00\xff"],
    "an escape sequence": [HELLO, b"\x02\x01\x00\x1b"],
}


@pytest.mark.parametrize("datagrams", BAD.values(), ids=BAD.keys())
async def test_what_is_malformed_ends_the_session(world: World, datagrams: list[bytes]) -> None:
    world.uids.append(ALICE)
    bad = FakeSession(world.path)
    for each in datagrams:
        bad.send_raw(each)
    await world.nursery.start(bad.run)
    await bad.over.wait()
    good = await world.comes(ALICE, MIC)
    assert good.refused is None
    await good.welcomed()


async def test_a_fault_of_the_agent_s_own_ends_that_session_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_arguments: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "_take", fail)
        await (await world.comes(ALICE)).over.wait()
    assert "serving pedos-sound failed unexpectedly" in caplog.text
    await (await world.comes(ALICE)).welcomed()


async def test_a_reason_of_any_length_is_told(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = LinkServer(tmp_path / "sound", on_xen(tmp_path, sound_user="x\n" * 300))
    await nursery.start(server.run)
    client = FakeSession(tmp_path / "sound")
    await nursery.start(client.run)
    assert str(client.refused).startswith("--sound-user x_x_")


def link_of(raw: list[bytes]) -> str:
    """How a session ends that sends these datagrams; it is given a stream first."""

    async def run() -> str:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        served = session.Session(PacketSocket(ours), 1, lambda: None)
        why = ""

        async def serve() -> None:
            nonlocal why
            why = await served.run()

        with theirs:
            theirs.send(HELLO)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                await trio.testing.wait_all_tasks_blocked()
                for _ in range(2):
                    stream = served.lend(MIC, "work", False, theirs.fileno(), ended=str, heard=bool)
                assert stream.id == 2
                for each in raw:
                    with contextlib.suppress(BrokenPipeError):
                        theirs.send(each)
                theirs.shutdown(socket.SHUT_WR)
        return why

    return trio.run(run)


TEXTS = st.text(max_size=40)
IDS = st.integers(0, 3)
MESSAGES = st.one_of(
    st.builds(Server, TEXTS),
    st.builds(Ready, IDS),
    st.builds(Failed, IDS, TEXTS),
    st.builds(Listening, IDS, st.booleans()),
    st.builds(Ended, IDS, TEXTS),
    st.builds(Devices, st.lists(st.sampled_from([MIC, HEADSET]), unique=True).map(tuple)),
)


def datagram(message: sound_link.Message) -> bytes:
    with contextlib.suppress(Exception):
        return sound_link.build(message)
    return b"\x02\x00\x00"


DATAGRAMS = st.one_of(
    MESSAGES.map(datagram),
    st.binary(min_size=1, max_size=60),
    st.builds(lambda m, cut: datagram(m)[:cut] or b"\0", MESSAGES, st.integers(1, 20)),
)


@settings(max_examples=60)
@given(st.lists(DATAGRAMS, max_size=12))
def test_whatever_it_says_it_only_ends_itself(raw: list[bytes]) -> None:
    why = link_of(raw)
    assert why == session.LEFT or why.startswith("the connection of pedos-sound failed: ")


async def test_more_messages_than_may_be_are_read_more_slowly(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    seen: list[float] = []
    served = session.Session(PacketSocket(ours), 1, lambda: seen.append(trio.current_time()))
    theirs.send(HELLO)

    async def flood() -> None:
        with theirs:
            await trio.testing.wait_all_tasks_blocked()
            assert theirs.recv(100) == sound_link.build(Welcome(1))
            for number in range(4 * session.BURST):
                while True:
                    try:
                        theirs.send(sound_link.build(Server(f"{number}")))
                        break
                    except BlockingIOError:
                        await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        await served.run()
    assert served.lack == session.LEFT
    assert len(seen) == 4 * session.BURST, "none is lost"
    took = seen[-1] - seen[0]
    assert took >= 3 * session.BURST / session.RATE * 0.9


async def test_a_session_that_does_not_read_costs_no_more_than_its_socket_holds(
    nursery: trio.Nursery,
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    served = session.Session(PacketSocket(ours), 1, lambda: None)
    theirs.send(HELLO)
    nursery.start_soon(served.run)
    await trio.testing.wait_all_tasks_blocked()
    ended: list[str] = []
    with theirs, socket.socket() as file, pytest.raises(CallError, match="does not answer"):
        for _ in range(10_000):
            served.lend(
                *(MIC, "work", False, file.fileno()),
                ended=ended.append,
                heard=lambda _yes: None,
            )
    await trio.testing.wait_all_tasks_blocked()
    assert set(ended) == {"pedos-sound does not answer"}
    assert 100 < len(ended) < 2000


async def test_the_agent_s_own_end_is_not_put_on_the_session() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    served = session.Session(PacketSocket(ours), 1, lambda: None)
    theirs.send(HELLO)
    ended: list[str] = []
    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            await trio.testing.wait_all_tasks_blocked()
            served.lend(MIC, "work", False, theirs.fileno(), ended=ended.append, heard=bool)
            nursery.cancel_scope.cancel()
    assert ended == ["the VM's agent ends"]


async def test_ids_are_never_used_twice(nursery: trio.Nursery) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    served = session.Session(PacketSocket(ours), 1, lambda: None)
    theirs.send(HELLO)
    nursery.start_soon(served.run)
    await trio.testing.wait_all_tasks_blocked()
    served._last_id = 2**32 - 2
    with theirs, socket.socket() as file:

        def lend() -> int:
            return served.lend(*(MIC, "work", False, file.fileno()), ended=str, heard=bool).id

        assert lend() == 2**32 - 1
        with pytest.raises(CallError, match="all streams of one connection"):
            lend()


async def test_a_lack_of_descriptors_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lacks = [errno.EMFILE] * 3
    accept = PacketListener.accept_socket

    async def lacking(listener: PacketListener) -> socket.socket:
        client = await accept(listener)
        if lacks:
            client.close()
            raise OSError(lacks.pop(), "no descriptor left")
        return client

    monkeypatch.setattr(link_server, "ACCEPT_RETRY", 0.001)
    monkeypatch.setattr(PacketListener, "accept_socket", lacking)
    await world.comes(BOB)  # for it the server waits already
    for _ in range(5):  # as pedos-sound does
        session = FakeSession(world.path)
        with contextlib.suppress(OSError):
            session.greet(MIC)
        world.uids[:] = [BOB]
        await world.nursery.start(session.run)
    assert session.refused == "pedos-sound of this user is connected already"
    assert not lacks
    assert "pedos-sound could not connect" in caplog.text
